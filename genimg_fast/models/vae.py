"""Variational autoencoders: Kingma, Welling 2014, https://arxiv.org/abs/1312.6114.

Images come and go in [-1, 1]. What the decoder says about them is one of three likelihoods:

============= =================================== ==================================================
likelihood    ``decode`` returns                  log p(x|z)
============= =================================== ==================================================
``gaussian``  means in [-1, 1] (a Tanh at the     N(mean, exp(``image_logvar``)): one variance for
              end of ``decode``)                  all pixels, learned (Rybkin et al. 2021,
                                                  https://arxiv.org/abs/2006.13202)
``mse``       the same                            N(mean, 1)
``bernoulli`` logits                              cross-entropy with (image + 1) / 2 as target
============= =================================== ==================================================

``to_images`` turns what ``decode`` returns into images; ``reconstruct``, ``sample`` and ``interpolate`` do so
themselves. With ``gaussian``, ELBOs compare with other densities of the same pixels. On few images its variance
gets small and the latents detailed; a KL term weighted by a ``beta`` above 1 then makes for better samples.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from genimg_fast import nn, ops
from genimg_fast._evaluating import evaluating
from genimg_fast.losses.elbo import bernoulli_log_likelihood, gaussian_log_likelihood
from genimg_fast.models.common import (
    check_images,
    check_labels,
    check_sizes,
    conv_decoder,
    conv_encoder,
    labels_to_sample,
)
from genimg_fast.models.pretrained import BaseModel
from genimg_fast.models.registry import register_model
from genimg_fast.options import PositiveInt

Likelihood = Literal["bernoulli", "gaussian", "mse"]
LIKELIHOODS = get_args(Likelihood)


class VAEOutput(NamedTuple):
    """What a VAE's ``forward`` returns.

    Attributes:
        reconstruction: As ``decode`` returns it: means or logits, (batch, c_dim, image_size, image_size).
        z: The sampled latents, (batch, z_dim).
        mu: Mean of the posterior, (batch, z_dim).
        logvar: Logarithm of its variance, (batch, z_dim).
        kl: Its KL divergence from N(0, I), in nats, with free bits if asked for: (batch,).

    Example:
        >>> import torch, genimg_fast as gf
        >>> output = gf.models.MLPVAE()(torch.zeros(8, 1, 28, 28))
        >>> output.z.shape, output.kl.shape
        (torch.Size([8, 20]), torch.Size([8]))
    """

    reconstruction: Tensor
    z: Tensor
    mu: Tensor
    logvar: Tensor
    kl: Tensor


def interpolate_latents(a: Tensor, b: Tensor, steps: int, mode: str = "linear") -> Tensor:
    """Walk from one latent vector to another.

    Args:
        a: Where to start, of shape (batch, z_dim).
        b: Where to end, of the same shape.
        steps: Number of points, both ends included.
        mode: ``"linear"``, or ``"spherical"`` (White 2016, https://arxiv.org/abs/1609.04468), which keeps the norm
            typical of N(0, I) on the way. Vectors in the same or in opposite directions are walked linearly.

    Returns:
        The points, of shape (batch, steps, z_dim).

    Raises:
        ValueError: If the shapes differ, ``steps`` is below 2, or the mode is unknown.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.models.interpolate_latents(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), steps=3)
        tensor([[[1.0000, 0.0000],
                 [0.5000, 0.5000],
                 [0.0000, 1.0000]]])
    """
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"a and b must both have shape (batch, z_dim), got {tuple(a.shape)} and {tuple(b.shape)}")
    if steps < 2:
        raise ValueError(f"steps must be at least 2, got {steps}")
    if mode not in ("linear", "spherical"):
        raise ValueError(f"mode must be 'linear' or 'spherical', got {mode!r}")
    a, b = a.unsqueeze(1), b.unsqueeze(1)
    t = torch.linspace(0, 1, steps, dtype=a.dtype, device=a.device).view(1, -1, 1)
    linear = torch.lerp(a, b, t)
    if mode == "linear":
        return linear
    cosine = torch.nn.functional.cosine_similarity(a, b, dim=-1).unsqueeze(-1)
    angle = cosine.clamp(-1, 1).acos()
    sine = angle.sin()
    spherical = (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / sine
    return torch.where(sine > 1e-3, spherical, linear)


class BaseVAE(BaseModel):
    """What all VAEs here have in common: everything but the networks.

    A subclass sets ``encoder``, which turns images into ``2 * z_dim`` numbers each (means, then logarithms of
    variances), and ``decoder``, which turns latents into images and has no output nonlinearity; a
    class-conditional one also overrides the methods that feed them.

    Args:
        z_dim: Length of a latent vector.
        c_dim: Colour channels of the images.
        image_size: Their height and width.
        likelihood: ``"bernoulli"``, ``"gaussian"`` or ``"mse"``.
        num_classes: Number of classes of a class-conditional model, else 0.

    Raises:
        ValueError: If a size is below 1 or the likelihood is unknown.

    Example:
        >>> import torch, genimg_fast as gf
        >>> class Linear(gf.models.BaseVAE):
        ...     def __init__(self):
        ...         super().__init__(z_dim=2, c_dim=1, image_size=8, likelihood="bernoulli")
        ...         self.encoder = gf.nn.Sequential(gf.nn.Flatten(), gf.nn.Linear(64, 4))
        ...         self.decoder = gf.nn.Linear(2, 64)
        >>> Linear().reconstruct(torch.zeros(4, 1, 8, 8)).shape
        torch.Size([4, 1, 8, 8])
    """

    encoder: nn.Module
    decoder: nn.Module

    def __init__(self, *, z_dim: int, c_dim: int, image_size: int, likelihood: str, num_classes: int = 0) -> None:
        super().__init__()
        check_sizes(z_dim=z_dim, c_dim=c_dim, image_size=image_size)
        if likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}, got {likelihood!r}")
        self.z_dim = z_dim
        self.c_dim = c_dim
        self.image_size = image_size
        self.likelihood = likelihood
        self.num_classes = num_classes
        self.image_logvar = nn.Parameter(torch.zeros(())) if likelihood == "gaussian" else None

    def encode(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute the posterior q(z|x): a Gaussian with a diagonal covariance.

        Args:
            images: Images in [-1, 1], of shape (batch, c_dim, image_size, image_size).
            labels: Their classes, int64 of shape (batch,), if the model is class-conditional.

        Returns:
            Its mean and the logarithm of its variance, of shape (batch, z_dim) each.

        Raises:
            ValueError: If ``images`` has another shape, or labels are missing or not taken.
        """
        check_images(images, self.c_dim, self.image_size)
        check_labels(labels, images.shape[0], self.num_classes)
        mu, logvar = self._moments(images, labels).flatten(1).chunk(2, dim=1)
        return mu, logvar

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Compute the parameters of p(x|z).

        Args:
            z: Latents, of shape (batch, z_dim).
            labels: Classes to decode for, int64 of shape (batch,), if the model is class-conditional.

        Returns:
            Means in [-1, 1] (``"gaussian"``, ``"mse"``) or logits (``"bernoulli"``), of shape
            (batch, c_dim, image_size, image_size); :meth:`to_images` makes images of either.

        Raises:
            ValueError: If ``z`` has another shape, or labels are missing or not taken.
        """
        if z.shape[1:] != (self.z_dim,):
            raise ValueError(f"expected latents of shape (batch, {self.z_dim}), got {tuple(z.shape)}")
        check_labels(labels, z.shape[0], self.num_classes)
        decoded = self._decoded(z, labels).view(-1, self.c_dim, self.image_size, self.image_size)
        return decoded if self.likelihood == "bernoulli" else decoded.tanh()

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        *,
        noise: Tensor | None = None,
        generator: torch.Generator | None = None,
        free_bits: float = 0.0,
    ) -> VAEOutput:
        """Encode images, sample a latent for each, decode it. It samples in evaluation mode too.

        Args:
            images: Images in [-1, 1], of shape (batch, c_dim, image_size, image_size).
            labels: Their classes, int64 of shape (batch,), if the model is class-conditional.
            noise: The standard normal numbers to sample with, of shape (batch, z_dim).
            generator: Source of them, on the model's device; PyTorch's global one by default.
            free_bits: Nats of KL divergence per latent dimension that cost no more than less would.

        Returns:
            Reconstruction (as :meth:`decode` returns it), latents, their distribution and its KL divergence.

        Raises:
            ValueError: If a shape does not fit, or labels are missing or not taken.
        """
        mu, logvar = self.encode(images, labels)
        z, kl = ops.reparameterize_kl(mu, logvar, noise=noise, generator=generator, free_bits=free_bits)
        return VAEOutput(self.decode(z, labels), z, mu, logvar, kl)

    def log_likelihood(self, images: Tensor, decoded: Tensor) -> Tensor:
        """Compute log p(x|z), summed over pixels and channels.

        Args:
            images: Images in [-1, 1], of shape (batch, c_dim, image_size, image_size).
            decoded: What :meth:`decode` returned for their latents.

        Returns:
            Nats, of shape (batch,), float32 or wider.

        Raises:
            ValueError: If the shapes differ.
        """
        if self.likelihood == "bernoulli":
            return bernoulli_log_likelihood(images, decoded)
        return gaussian_log_likelihood(images, decoded, 0.0 if self.image_logvar is None else self.image_logvar)

    def to_images(self, decoded: Tensor) -> Tensor:
        """Turn what :meth:`decode` returned into images in [-1, 1]: the mean of p(x|z)."""
        # 2 sigmoid(logits) - 1 = tanh(logits / 2)
        return (decoded / 2).tanh() if self.likelihood == "bernoulli" else decoded

    @torch.no_grad()
    def reconstruct(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Encode images and decode the mean of their posterior, in evaluation mode, without recording gradients.

        Args:
            images: Images in [-1, 1], of shape (batch, c_dim, image_size, image_size).
            labels: Their classes, int64 of shape (batch,), if the model is class-conditional.

        Returns:
            Images in [-1, 1], of the same shape.

        Example:
            >>> import torch, genimg_fast as gf
            >>> gf.models.VAE(channels=8).reconstruct(torch.zeros(2, 3, 32, 32)).shape
            torch.Size([2, 3, 32, 32])
        """
        with evaluating(self):
            mu, _ = self.encode(images, labels)
            return self.to_images(self.decode(mu, labels))

    @torch.no_grad()
    def sample(
        self, n: int, *, labels: Tensor | int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Generate images: the mean of p(x|z) for z from N(0, I), in evaluation mode, without recording gradients.

        Args:
            n: Number of images.
            labels: For a class-conditional model: the class of all, or int64 of shape (n,); by default all classes
                in order, equally often.
            generator: Source of the random numbers, on any device; PyTorch's global one by default.

        Returns:
            Images in [-1, 1], of shape (n, c_dim, image_size, image_size).

        Raises:
            ValueError: If labels are not taken or do not fit.

        Example:
            >>> import torch, genimg_fast as gf
            >>> gf.models.VAE(channels=8).sample(4, generator=torch.Generator().manual_seed(0)).shape
            torch.Size([4, 3, 32, 32])
        """
        weight = next(self.decoder.parameters())
        device = weight.device if generator is None else generator.device
        z = torch.randn(n, self.z_dim, generator=generator, device=device).to(weight)
        with evaluating(self):
            return self.to_images(self.decode(z, labels_to_sample(labels, n, self.num_classes, weight.device)))

    @torch.no_grad()
    def interpolate(
        self, a: Tensor, b: Tensor, *, steps: int = 10, mode: str = "linear", labels: Tensor | None = None
    ) -> Tensor:
        """Morph images into others, through their latents, in evaluation mode, without recording gradients.

        Args:
            a: Images to start at, in [-1, 1], of shape (batch, c_dim, image_size, image_size).
            b: Images to end at, of the same shape.
            steps: Number of images, reconstructions of both ends included.
            mode: ``"linear"`` or ``"spherical"``: see :func:`interpolate_latents`.
            labels: For a class-conditional model: the class of each pair, int64 of shape (batch,).

        Returns:
            Images in [-1, 1], of shape (batch, steps, c_dim, image_size, image_size).

        Raises:
            ValueError: If an argument does not fit.

        Example:
            >>> import torch, genimg_fast as gf
            >>> a, b = torch.zeros(2, 2, 3, 32, 32).unbind()
            >>> gf.models.VAE(channels=8).interpolate(a, b, steps=5).shape
            torch.Size([2, 5, 3, 32, 32])
        """
        with evaluating(self):
            path = interpolate_latents(self.encode(a, labels)[0], self.encode(b, labels)[0], steps, mode)
            repeated = None if labels is None else labels.repeat_interleave(steps)
            images = self.to_images(self.decode(path.flatten(0, 1), repeated))
        return images.unflatten(0, path.shape[:2])

    def _moments(self, images: Tensor, labels: Tensor | None) -> Tensor:
        return self.encoder(images)

    def _decoded(self, z: Tensor, labels: Tensor | None) -> Tensor:
        return self.decoder(z)


@register_model("vae")
class VAE(BaseVAE):
    """A convolutional VAE, with the networks of a DCGAN: strided convolutions down to 4x4, transposed ones up.

    Args:
        z_dim: Length of a latent vector.
        c_dim: Colour channels of the images.
        channels: Feature channels of both networks at half the image's resolution; they double with every halving.
        n_blocks: Images have ``4 * 2**n_blocks`` pixels a side.
        likelihood: p(x|z): ``"bernoulli"``, ``"gaussian"`` with a learned variance, or ``"mse"``.

    Raises:
        ValueError: If a size is below 1 or the likelihood is unknown.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.VAE(z_dim=100, c_dim=3, channels=64, n_blocks=3)
        >>> images = torch.rand(8, 3, 32, 32) * 2 - 1
        >>> output = model(images)
        >>> output.z.shape, output.kl.shape, model.to_images(output.reconstruction).shape
        (torch.Size([8, 100]), torch.Size([8]), torch.Size([8, 3, 32, 32]))
        >>> log_likelihood = model.log_likelihood(images, output.reconstruction)
        >>> gf.losses.negative_elbo(log_likelihood, output.kl).loss.backward()
    """

    def __init__(
        self,
        z_dim: PositiveInt = 100,
        c_dim: int = 3,
        channels: PositiveInt = 64,
        n_blocks: int = 3,
        *,
        likelihood: Likelihood = "bernoulli",
    ) -> None:
        check_sizes(channels=channels, n_blocks=n_blocks)
        super().__init__(z_dim=z_dim, c_dim=c_dim, image_size=4 * 2**n_blocks, likelihood=likelihood)
        self.encoder = conv_encoder(c_dim, channels, n_blocks, 2 * z_dim)
        self.decoder = conv_decoder(z_dim, channels, n_blocks, c_dim)


@register_model("cvae")
class ConditionalVAE(BaseVAE):
    """A convolutional VAE whose encoder and decoder know the class: Sohn et al. 2015, Kingma et al. 2014.

    https://papers.nips.cc/paper/5775, https://arxiv.org/abs/1406.5298. The encoder sees it as one more image
    channel, learned for each class, the decoder as a one-hot vector beside the latents. These need not tell the
    class, so they come to describe style.

    Args:
        num_classes: Number of classes.
        z_dim: Length of a latent vector.
        c_dim: Colour channels of the images.
        channels: Feature channels of both networks at half the image's resolution; they double with every halving.
        n_blocks: Images have ``4 * 2**n_blocks`` pixels a side.
        likelihood: p(x|z): ``"bernoulli"``, ``"gaussian"`` with a learned variance, or ``"mse"``.

    Raises:
        ValueError: If a size is below 1 or the likelihood is unknown.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.ConditionalVAE(num_classes=10, c_dim=1, channels=8)
        >>> model.sample(4, labels=7).shape
        torch.Size([4, 1, 32, 32])
        >>> model(torch.zeros(2, 1, 32, 32), torch.tensor([3, 7])).kl.shape
        torch.Size([2])
    """

    def __init__(
        self,
        num_classes: int,
        z_dim: PositiveInt = 100,
        c_dim: int = 3,
        channels: PositiveInt = 64,
        n_blocks: int = 3,
        *,
        likelihood: Likelihood = "bernoulli",
    ) -> None:
        check_sizes(num_classes=num_classes, channels=channels, n_blocks=n_blocks)
        image_size = 4 * 2**n_blocks
        super().__init__(
            z_dim=z_dim, c_dim=c_dim, image_size=image_size, likelihood=likelihood, num_classes=num_classes
        )
        self.class_channel = nn.Embedding(num_classes, image_size**2)
        self.encoder = conv_encoder(c_dim + 1, channels, n_blocks, 2 * z_dim)
        self.decoder = conv_decoder(z_dim + num_classes, channels, n_blocks, c_dim)

    def _moments(self, images: Tensor, labels: Tensor | None) -> Tensor:
        channel = self.class_channel(labels).view(-1, 1, self.image_size, self.image_size)
        return self.encoder(torch.cat([images, channel.to(images.dtype)], 1))

    def _decoded(self, z: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None  # check_labels has seen to it
        one_hot = torch.nn.functional.one_hot(labels, self.num_classes).to(z.dtype)
        return self.decoder(torch.cat([z, one_hot], 1))


@register_model("mlp-vae")
class MLPVAE(BaseVAE):
    """A VAE of fully connected layers; with the defaults, the classic one for MNIST: 784-400-20.

    As in the classic one, the layers see pixels in [0, 1]: where most are black, -1, a layer begins with one large
    sum in all of its units that says nothing of the image, and learns more slowly. A ``state_dict`` of the class's
    first version, whose layers saw pixels in [-1, 1], is converted as it is loaded.

    Args:
        z_dim: Length of a latent vector.
        c_dim: Colour channels of the images.
        image_size: Height and width of the images, which are flattened.
        hidden: Widths of the encoder's hidden layers; the decoder has them in reverse.
        likelihood: p(x|z): ``"bernoulli"``, ``"gaussian"`` with a learned variance, or ``"mse"``.

    Raises:
        ValueError: If a size is below 1 or the likelihood is unknown.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.MLPVAE()
        >>> sum(parameter.numel() for parameter in model.parameters())
        652824
        >>> model(torch.zeros(8, 1, 28, 28)).z.shape
        torch.Size([8, 20])
    """

    _version = 2  # in the metadata of a state_dict; 1: the encoder saw pixels in [-1, 1]

    def __init__(
        self,
        z_dim: PositiveInt = 20,
        c_dim: int = 1,
        image_size: PositiveInt = 28,
        hidden: Sequence[PositiveInt] = (400,),
        *,
        likelihood: Likelihood = "bernoulli",
    ) -> None:
        super().__init__(z_dim=z_dim, c_dim=c_dim, image_size=image_size, likelihood=likelihood)
        check_sizes(**{f"hidden[{index}]": width for index, width in enumerate(hidden)})
        pixels = c_dim * image_size**2
        self.encoder = nn.Sequential(nn.Flatten(), *_mlp([pixels, *hidden, 2 * z_dim]))
        self.decoder = nn.Sequential(*_mlp([z_dim, *reversed(hidden), pixels]))

    def _moments(self, images: Tensor, labels: Tensor | None) -> Tensor:
        return self.encoder((images + 1) / 2)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any], *args: Any
    ) -> None:
        weight, bias = (state_dict.get(f"{prefix}encoder.1.{name}") for name in ("weight", "bias"))
        if local_metadata.get("version") == 1 and weight is not None and bias is not None:
            # W (2 x - 1) + b = 2 W x + (b - W 1)
            state_dict |= {
                f"{prefix}encoder.1.weight": 2 * weight,
                f"{prefix}encoder.1.bias": bias - weight.sum(1),
            }
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


def _mlp(widths: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(inplace=True)]
    return layers[:-1]
