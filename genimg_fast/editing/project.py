"""The latents of images.

A model with an encoder encodes. A generator alone is inverted: of a few hundred random latents, the three whose
images are nearest to the picture are improved by Adam, with a learning rate that falls to a hundredth along a
cosine, and the best one is taken. The error is the mean square over the picture and its versions of a half and a
quarter of its size, so that a shift by some pixels costs less than the absence of a thing. A term keeps the length
of the latent near the square root of its dimension, where those of training lie: far from there images are sharp
nonsense.

Zhu et al. 2016, arXiv:1609.03552; Karras et al. 2020, arXiv:1912.04958, section 5.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from genimg_fast._evaluating import evaluating
from genimg_fast.data.progress import bar
from genimg_fast.editing.latents import Latents
from genimg_fast.models.reconstruction import into_unit_ball

_DRAWN, _KEPT = 256, 3
_DECODED = 64  # at a time
_PRIOR = 0.1  # weight of the term for the length


def project(
    model: Any,
    images: Tensor,
    *,
    labels: Tensor | None = None,
    steps: int | None = None,
    learning_rate: float = 0.1,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Tensor:
    """Find the latents from which a model makes images that are as near as possible to those given.

    Args:
        model: A GAN, VAE, VQVAE, Autoencoder or GLO; it stays in the mode that it is in.
        images: In [-1, 1], of shape (batch, c_dim, image_size, image_size).
        labels: Their classes, int64 of shape (batch,), if the model is class-conditional.
        steps: Steps of the optimisation; by default none for a model with an encoder, and 400 for one without. A
            VQVAE, whose latents are codes, takes none.
        learning_rate: Of Adam, at the first step.
        generator: Source of random numbers; PyTorch's global one by default.
        progress: Whether to show a progress bar, if stderr is a terminal.

    Returns:
        Latents, without gradients, of the model's dtype: of shape (batch, z_dim), or (batch, code_dim, grid, grid)
        of a VQVAE.

    Raises:
        ValueError: If the model has no latents, the images do not fit, labels are missing or not taken, or steps
            are negative, or given for a VQVAE.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.DCGAN(z_dim=10, c_dim=1, channels=4)
        >>> gf.editing.project(model, torch.zeros(2, 1, 32, 32), steps=5).shape
        torch.Size([2, 10])
    """
    latents = Latents(model, labels)
    latents.check_images(images)
    steps = (0 if latents.encodes else 400) if steps is None else steps
    if steps < 0 or (steps > 0 and model._get_name() == "VQVAE"):
        raise ValueError(f"steps must be at least 0, and 0 for a VQVAE, got {steps}")
    with evaluating(model), torch.inference_mode(False):
        images = images.detach().to(next(model.parameters()), copy=True)  # outside of inference mode
        with torch.no_grad():
            start = latents.encode(images)[:, None] if latents.encodes else _nearest(latents, images, generator)
        if steps == 0 or len(images) == 0:
            return start[:, 0]
        return _improve(latents, images, start, steps, learning_rate, progress)


def _nearest(latents: Latents, images: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw latents, and take for each image those that are nearest: (batch, few, z_dim)."""
    z = latents.draw(_DRAWN, generator)
    chosen = []
    for number, image in enumerate(images):
        of_one = Latents(latents.model, None if latents.labels is None else latents.labels[number : number + 1])
        errors = torch.cat([_error(of_one.decode(part), image[None]) for part in z.split(_DECODED)])
        chosen.append(z[errors.argsort()[:_KEPT]])
    return torch.stack(chosen) if chosen else z.new_empty(0, _KEPT, z.shape[1])


def _improve(
    latents: Latents, images: Tensor, start: Tensor, steps: int, learning_rate: float, progress: bool
) -> Tensor:
    count, few = start.shape[:2]
    z = start.flatten(0, 1).detach().clone().requires_grad_()
    wanted = images.repeat_interleave(few, 0)
    adam = torch.optim.Adam([z], learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps, learning_rate / 100)
    for _ in bar(range(steps), "projecting", "step", progress):
        with torch.enable_grad():
            loss = _error(latents.decode(z), wanted)
            if latents.gaussian:
                # The mean square of d numbers from N(0, 1) lies within two of its deviations from 1.
                excess = (z.square().mean(1) - 1).abs() - 2 * (2 / z.shape[1]) ** 0.5
                loss = loss + _PRIOR * excess.clamp(min=0).square()
            (z.grad,) = torch.autograd.grad(loss.sum(), [z])
        adam.step()
        if latents.in_ball:
            with torch.no_grad():
                z.copy_(into_unit_ball(z))
        schedule.step()
    with torch.no_grad():
        errors = _error(latents.decode(z), wanted).view(count, few)
    return z.detach().view(count, few, -1)[torch.arange(count, device=z.device), errors.argmin(1)]


def _error(images: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error, over three sizes, of every image: (batch,)."""
    difference, errors = images - wanted, []
    for _ in range(3):
        errors.append(difference.square().mean((1, 2, 3)))
        if min(difference.shape[2:]) < 2:
            break
        difference = avg_pool2d(difference, 2)
    return torch.stack(errors).mean(0)
