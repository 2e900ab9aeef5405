"""The evidence lower bound of a variational autoencoder, in nats.

Kingma, Welling 2014, https://arxiv.org/abs/1312.6114. Log-likelihoods are **summed over pixels and channels**, the
KL divergence is summed over the latent dimensions, and the loss is the **mean over the batch**. A mean over pixels
would divide the reconstruction term by their number and leave the other as it is: a beta-VAE with that number as
beta, whose latents collapse. Every log-likelihood has its normalising constant, so that bounds of different models
of the same pixels compare.
"""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from genimg_fast import ops
from genimg_fast._evaluating import HasModes, evaluating
from genimg_fast._images import check_values

_LOG_2PI = math.log(2 * math.pi)


class NegativeELBO(NamedTuple):
    """A loss and the two terms it is made of: scalars in nats, means over the batch.

    Attributes:
        loss: ``reconstruction + beta * kl``.
        reconstruction: Negative log-likelihood of the images.
        kl: KL divergence of the posterior from the prior, without ``beta``.

    Example:
        >>> import torch, genimg_fast as gf
        >>> loss, reconstruction, kl = gf.losses.negative_elbo(torch.tensor([-3.0]), torch.tensor([1.0]))
        >>> loss
        tensor(4.)
    """

    loss: Tensor
    reconstruction: Tensor
    kl: Tensor


def negative_elbo(log_likelihood: Tensor, kl: Tensor, *, beta: float | Tensor = 1.0) -> NegativeELBO:
    """Compute the loss of a VAE: the negative evidence lower bound, with the KL term weighted by ``beta``.

    With ``beta`` other than 1 it is the loss of a beta-VAE (Higgins et al. 2017,
    https://openreview.net/forum?id=Sy2fzU9gl) and no longer a bound.

    Args:
        log_likelihood: log p(x|z) of each image, summed over its pixels, of shape (batch,).
        kl: KL divergence of each image's posterior from the prior, of shape (batch,), with free bits or without.
        beta: Weight of the KL term; a tensor with that number is not looked at.

    Returns:
        The loss, the reconstruction term and the KL term.

    Raises:
        ValueError: If the shapes are not (batch,) both, or ``beta`` is negative.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.losses.negative_elbo(torch.tensor([-3.0, -5.0]), torch.tensor([1.0, 2.0]), beta=2.0)
        NegativeELBO(loss=tensor(7.), reconstruction=tensor(4.), kl=tensor(1.5000))
    """
    if log_likelihood.ndim != 1 or log_likelihood.shape != kl.shape:
        raise ValueError(
            "log_likelihood and kl must both have shape (batch,), "
            f"got {tuple(log_likelihood.shape)} and {tuple(kl.shape)}"
        )
    if not isinstance(beta, Tensor) and not beta >= 0:
        raise ValueError(f"beta must be at least 0, got {beta}")
    reconstruction, kl = -log_likelihood.mean(), kl.mean()
    return NegativeELBO(reconstruction + beta * kl, reconstruction, kl)


def warmup_beta(step: int, warmup: int, beta: float = 1.0) -> float:
    """Raise the weight of the KL term linearly over the first steps: until then, latents are cheap to use.

    Bowman et al. 2016, https://arxiv.org/abs/1511.06349; Sonderby et al. 2016, https://arxiv.org/abs/1602.02282.

    Args:
        step: Number of the step, from 1.
        warmup: Number of the step at which the weight is reached; 0 for no warm-up.
        beta: The weight after the warm-up.

    Returns:
        The weight at this step.

    Example:
        >>> import genimg_fast as gf
        >>> [gf.losses.warmup_beta(step, warmup=4, beta=2.0) for step in (1, 2, 4, 100)]
        [0.5, 1.0, 2.0, 2.0]
    """
    return beta * min(1.0, step / warmup) if warmup > 0 else beta


def gaussian_log_likelihood(images: Tensor, mean: Tensor, logvar: Tensor | float = 0.0) -> Tensor:
    """Compute the log-density of images under independent Gaussian pixels.

    With the default, a variance of 1, it is minus half the squared error, up to a constant: the MSE loss, summed.

    Args:
        images: Images, of shape (batch, ...).
        mean: Mean of each pixel, of the same shape.
        logvar: Natural logarithm of the variance: one number, or anything that broadcasts to the images.

    Returns:
        log N(images; mean, exp(logvar)) in nats, normalising constant included, summed over all but the batch:
        float32 (float64 for float64) of shape (batch,).

    Raises:
        ValueError: If the shapes of ``images`` and ``mean`` differ, or the images are integers.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.losses.gaussian_log_likelihood(torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 8, 8))
        tensor([-58.8121, -58.8121])
    """
    check_values(images, look=False)  # a density of any numbers
    images, mean = _same_shape(images, mean, "mean")
    logvar = torch.as_tensor(logvar, dtype=mean.dtype, device=mean.device)
    terms = (images - mean).square() * (-logvar).exp() + (logvar + _LOG_2PI)
    return -0.5 * terms.flatten(1).sum(1)


def logistic_log_likelihood(images: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Compute the log-probability of images of bytes under independent, rounded logistic pixels.

    Salimans et al. 2017, https://arxiv.org/abs/1701.05517: a pixel is a number with a logistic distribution,
    rounded to one of the 256 levels in [-1, 1]; black and white get all that lies beyond them.

    Args:
        images: Images in [-1, 1], of shape (batch, ...).
        mean: Mean of each pixel before it is rounded, of the same shape.
        log_scale: Natural logarithm of each one's scale, of the same shape.

    Returns:
        Nats, summed over all but the batch: float32 (float64 for float64) of shape (batch,).

    Raises:
        ValueError: If the shapes differ, the images are integers or, on the CPU, far outside [-1, 1].

    Example:
        >>> import torch, genimg_fast as gf
        >>> white, scale = torch.ones(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)
        >>> gf.losses.logistic_log_likelihood(white, white, scale)  # 64 log s(1/255)
        tensor([-44.2361, -44.2361])
    """
    check_values(images)
    images, mean = _same_shape(images, mean, "mean")
    images, log_scale = _same_shape(images, log_scale, "log_scale")
    half = 1 / 255  # of the distance between two levels
    per_scale = (-log_scale).exp()
    above, below = (images - mean + half) * per_scale, (images - mean - half) * per_scale
    # s(a) - s(b) = s(a) s(-b) (1 - exp(b - a)) for the logistic function s
    under, over = logsigmoid(above), logsigmoid(-below)
    inside = under + over + torch.log(-torch.expm1(-2 * half * per_scale))
    terms = torch.where(images <= half - 1, under, torch.where(images >= 1 - half, over, inside))
    return terms.flatten(1).sum(1)


def bernoulli_log_likelihood(images: Tensor, logits: Tensor) -> Tensor:
    """Compute the log-probability of images under independent Bernoulli pixels.

    For black and white pixels it is a log-probability; for grey ones it is the usual cross-entropy, whose values
    compare with each other only.

    Args:
        images: Images in [-1, 1], like everywhere in this package, of shape (batch, ...). -1 and 1 stand for the
            outcomes 0 and 1.
        logits: Logit of each pixel's probability of being 1, of the same shape. No sigmoid has been applied.

    Returns:
        Nats, summed over all but the batch: float32 (float64 for float64) of shape (batch,).

    Raises:
        ValueError: If the shapes differ, the images are integers or, on the CPU, far outside [-1, 1].

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.losses.bernoulli_log_likelihood(torch.ones(2, 1, 8, 8), torch.zeros(2, 1, 8, 8))  # 64 log 2
        tensor([-44.3614, -44.3614])
    """
    check_values(images)
    images, logits = _same_shape(images, logits, "logits")
    return -binary_cross_entropy_with_logits(logits, (images + 1) / 2, reduction="none").flatten(1).sum(1)


def _same_shape(images: Tensor, other: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Check the shapes, and convert to a type wide enough to sum many pixels."""
    if images.shape != other.shape:
        raise ValueError(
            f"images and {name} must have the same shape, got {tuple(images.shape)} and {tuple(other.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(images.dtype, other.dtype), torch.float32)
    return images.to(dtype), other.to(dtype)


def active_units(mu: Tensor, threshold: float = 0.01) -> Tensor:
    """Count the latent dimensions that carry information: those whose posterior mean varies from image to image.

    Burda et al. 2016, https://arxiv.org/abs/1509.00519.

    Args:
        mu: Posterior means of at least two images, of shape (batch, ...).
        threshold: Variance over the images above which a dimension counts.

    Returns:
        The number of active dimensions, a scalar.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.losses.active_units(torch.tensor([[0.0, 1.0, 3.0], [0.0, -1.0, 3.0]]))
        tensor(1)
    """
    return (mu.float().var(0) > threshold).sum()


class _LatentVariableModel(HasModes, Protocol):
    """What the bound needs of a model; :class:`genimg_fast.models.BaseVAE` says what each method does."""

    def encode(self, images: Tensor, labels: Tensor | None = None) -> tuple[Tensor, Tensor]: ...

    def decode(self, z: Tensor, labels: Tensor | None = None) -> Tensor: ...

    def log_likelihood(self, images: Tensor, decoded: Tensor) -> Tensor: ...


@torch.no_grad()
def importance_weighted_bound(
    model: _LatentVariableModel,
    images: Tensor,
    labels: Tensor | None = None,
    *,
    k: int = 64,
    chunk_size: int = 1024,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Estimate the log-likelihood of images by importance sampling: a tighter lower bound than the ELBO.

    Burda et al. 2016, https://arxiv.org/abs/1509.00519: log (1/k) sum_i p(x|z_i) p(z_i) / q(z_i|x), with z_i drawn
    from the posterior q. Its expectation rises with ``k``, from the ELBO at 1 towards log p(x). The model is in
    evaluation mode meanwhile.

    Args:
        model: A VAE of this package, or another model with ``encode``, ``decode`` and ``log_likelihood`` like a
            :class:`genimg_fast.models.BaseVAE`'s.
        images: Images in [-1, 1], of shape (batch, c_dim, image_size, image_size).
        labels: Their classes, int64 of shape (batch,), for a class-conditional model.
        k: Samples for each image.
        chunk_size: Latents decoded at once, at least one for each image: bounds the memory.
        generator: Source of the random numbers, on any device; PyTorch's global one by default.

    Returns:
        The bound for each image, in nats, of shape (batch,).

    Raises:
        ValueError: If ``k`` or ``chunk_size`` is below 1.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.MLPVAE(image_size=8, hidden=(16,), z_dim=4)
        >>> gf.losses.importance_weighted_bound(model, torch.zeros(2, 1, 8, 8), k=16).shape
        torch.Size([2])
    """
    if k < 1 or chunk_size < 1:
        raise ValueError(f"k and chunk_size must be at least 1, got {k} and {chunk_size}")
    with evaluating(model):
        mu, logvar = model.encode(images, labels)
        total = mu.new_full((len(images),), -math.inf, dtype=torch.promote_types(mu.dtype, torch.float32))
        at_once = max(1, chunk_size // max(1, len(images)))
        for start in range(0, k, at_once):
            repeats = min(at_once, k - start)
            log_weights = _log_weights(model, images, labels, mu, logvar, repeats, generator)
            total = torch.logaddexp(total, log_weights.logsumexp(0))
    return total - math.log(k)


def _log_weights(
    model: _LatentVariableModel,
    images: Tensor,
    labels: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    repeats: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Draw ``repeats`` latents for each image; return log p(x|z) p(z) / q(z|x), of shape (repeats, batch)."""

    def repeat(tensor: Tensor) -> Tensor:
        return tensor.expand(repeats, *tensor.shape).flatten(0, 1)

    device = mu.device if generator is None else generator.device
    noise = torch.randn(repeats * len(mu), *mu.shape[1:], generator=generator, device=device).to(mu)
    z, _ = ops.reparameterize_kl(repeat(mu), repeat(logvar), noise=noise)
    decoded = model.decode(z, None if labels is None else repeat(labels))
    # The normalising constants of the two Gaussians cancel.
    wide = torch.promote_types(mu.dtype, torch.float32)
    log_ratio = 0.5 * (noise.to(wide).square() - z.to(wide).square() + repeat(logvar)).flatten(1).sum(1)
    return (model.log_likelihood(repeat(images), decoded) + log_ratio).view(repeats, -1)
