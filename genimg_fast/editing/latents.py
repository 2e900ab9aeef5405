"""Latents of the models here: what to draw, how to encode and to decode, whatever the model calls it.

Images are the models': in [-1, 1], of shape (batch, c_dim, image_size, image_size).

=====================  ====================================  ==========================
Model                  Latent                                Encoder
=====================  ====================================  ==========================
GANs                   noise, (batch, z_dim), N(0, 1)        none
VAEs                   mean, (batch, z_dim), N(0, 1)         the posterior's mean
Autoencoder            code, (batch, z_dim)                  its own
GLO                    code, (batch, z_dim), in the ball     none
VQVAE                  codes, (batch, code_dim, grid, grid)  its own, nearest codes
=====================  ====================================  ==========================
"""

from typing import Any

import torch
from torch import Tensor

from genimg_fast._images import check_floating, check_has_numbers
from genimg_fast.models import GLO, VQVAE, Autoencoder, BaseGAN, BaseVAE
from genimg_fast.models.common import check_images, check_labels
from genimg_fast.models.reconstruction import into_unit_ball


class Latents:
    """The latents of a model.

    Args:
        model: A GAN, VAE, VQVAE, Autoencoder or GLO.
        labels: Classes of the images, int64 of shape (batch,), if the model is class-conditional.

    Raises:
        ValueError: If the model has no latents, or labels are missing or not taken.
    """

    def __init__(self, model: Any, labels: Tensor | None = None) -> None:
        if not isinstance(model, (BaseGAN, BaseVAE, VQVAE, Autoencoder, GLO)):
            kind = type(model).__name__
            raise ValueError(f"model must have latents: a GAN, VAE, VQVAE, Autoencoder or GLO, got {kind}")
        sized: Any = model.generator if isinstance(model, BaseGAN) else model
        self.model: Any = model
        self.labels = labels
        self.z_dim: int = getattr(sized, "z_dim", 0)
        self.c_dim, self.image_size = sized.c_dim, sized.image_size
        self.num_classes: int = getattr(sized, "num_classes", 0)
        if labels is None and self.num_classes > 0:
            raise ValueError(f"labels must be given: the model has {self.num_classes} classes")
        if labels is not None:
            check_labels(labels, len(labels), self.num_classes)
        self.encodes = not isinstance(model, (BaseGAN, GLO))
        self.gaussian = isinstance(model, (BaseGAN, BaseVAE))
        self.in_ball = isinstance(model, GLO)

    def check_images(self, images: Tensor) -> None:
        """Raise a ValueError unless these are images of the model's size, one for each label."""
        check_floating(images, "images", " in [-1, 1]")
        check_has_numbers(images, "images")
        check_images(images, self.c_dim, self.image_size)
        if bool(images.isnan().any()):
            raise ValueError("images must be numbers in [-1, 1], some are NaN")
        if self.labels is not None and len(self.labels) != len(images):
            raise ValueError(f"labels must be {len(images)}, one for each image, got {len(self.labels)}")

    def check(self, z: Tensor) -> None:
        """Raise a ValueError unless these are latents of the model, one for each label."""
        codes = isinstance(self.model, VQVAE)
        size = self.model.codebook.codes.shape[1] if codes else self.z_dim
        wanted = f"(n, {size}, grid, grid)" if codes else f"(n, {size})"
        check_floating(z, "z")
        check_has_numbers(z, "z")
        if z.dim() != (4 if codes else 2) or z.shape[1] != size:
            raise ValueError(f"z must be latents of the model, {wanted}, got {tuple(z.shape)}")
        if self.labels is not None and len(self.labels) != len(z):
            raise ValueError(f"labels must be {len(z)}, one for each latent, got {len(self.labels)}")

    def encode(self, images: Tensor) -> Tensor:
        """Turn images into latents, with the model's encoder."""
        if isinstance(self.model, BaseVAE):
            return self.model.encode(images, self.labels)[0]
        if isinstance(self.model, VQVAE):
            return self.model.codebook.look_up(self.model.encode(images))
        latents: Tensor = self.model.encode(images)
        return latents

    def decode(self, z: Tensor) -> Tensor:
        """Turn latents into images; those of several for each label, in the labels' order."""
        labels = self.labels
        if labels is not None:
            labels = labels.repeat_interleave(len(z) // len(labels))
        if isinstance(self.model, BaseVAE):
            return self.model.to_images(self.model.decode(z, labels))
        if isinstance(self.model, VQVAE):
            return self.model.decode(self.model.codebook(z))
        images: Tensor = self.model(z, labels) if isinstance(self.model, BaseGAN) else self.model.decode(z)
        return images

    def draw(self, n: int, generator: torch.Generator | None) -> Tensor:
        """Draw latents of a model without an encoder."""
        weight = next(self.model.parameters())
        z = noise((n, self.z_dim), weight, generator)
        return z if self.gaussian else into_unit_ball(z / self.z_dim**0.5)


def noise(shape: tuple[int, ...], like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw from N(0, 1), on the generator's device, and take it to that of a tensor."""
    device = like.device if generator is None else generator.device
    return torch.randn(shape, generator=generator, device=device).to(like)
