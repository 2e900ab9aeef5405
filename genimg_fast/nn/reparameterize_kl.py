"""The sampling layer of variational autoencoders, and the distribution behind it, on the fused operator."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from genimg_fast.nn.stands_for import is_leaf, leaf
from genimg_fast.ops._checks import check_type
from genimg_fast.ops.reparameterize_kl import reparameterize_kl
from genimg_fast.ops.reparameterize_kl.checks import check_free_bits, check_logvar_clamp


class GaussianReparameterization(nn.Module):
    """The step between a VAE's encoder and decoder: a sample in training, the mean in evaluation, and the KL.

    Kingma and Welling 2014, arXiv:1312.6114.

    Args:
        logvar_clamp: (min, max) of the log-variance, in nats; None for no limits.
        free_bits: Smallest divergence that a dimension of a sample is charged, in nats; 0 for none.

    Raises:
        TypeError: An argument is of the wrong kind, here or in :meth:`forward`.
        ValueError: It does not fit, as :func:`genimg_fast.ops.reparameterize_kl` says.

    Example:
        >>> import torch, genimg_fast as gf
        >>> layer = gf.nn.GaussianReparameterization(free_bits=0.05)
        >>> z, kl = layer(torch.zeros(8, 20), torch.zeros(8, 20))
        >>> z.shape, kl.shape
        (torch.Size([8, 20]), torch.Size([8]))
    """

    def __init__(self, *, logvar_clamp: tuple[float, float] | None = None, free_bits: float = 0.0) -> None:
        super().__init__()
        check_logvar_clamp(logvar_clamp)
        check_free_bits(free_bits)
        self.logvar_clamp = logvar_clamp
        self.free_bits = free_bits

    def forward(
        self,
        mu: Tensor,
        logvar: Tensor,
        *,
        noise: Tensor | None = None,
        seed: Tensor | int | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Sample N(mu, exp(logvar)) and compute its divergence from N(0, I).

        Args:
            mu: (B, ...).
            logvar: Shape of ``mu``.
            noise: Standard normal, shape of ``mu``, instead of drawing it; ignored in evaluation, as are the next.
            seed: Of the noise.
            generator: Draws the seed; torch's default generator if None.

        Returns:
            ``z``, shape of ``mu`` (``mu`` itself in evaluation), and the divergence (B,) in nats.
        """
        if is_leaf(self, mu):
            return leaf(self, mu, logvar, noise=noise, seed=seed, generator=generator)
        if not self.training:
            noise, seed, generator = _no_noise(mu), None, None
        z, kl = reparameterize_kl(
            mu,
            logvar,
            noise=noise,
            seed=seed,
            generator=generator,
            logvar_clamp=self.logvar_clamp,
            free_bits=self.free_bits,
        )
        return z if self.training else mu, kl

    def extra_repr(self) -> str:
        """Describe the layer."""
        return f"logvar_clamp={self.logvar_clamp}, free_bits={self.free_bits}"


def _no_noise(mu: Tensor) -> Tensor:
    """Noise for calls that want the divergence only: it draws nothing, and no random number is made."""
    return mu.new_zeros(()).expand_as(mu)


class DiagonalGaussian:
    """A normal distribution with independent dimensions, as an encoder describes it.

    The interface of diffusers' ``DiagonalGaussianDistribution``, on :func:`genimg_fast.ops.reparameterize_kl`. The
    limits of the log-variance are its as well; :meth:`kl` and :meth:`nll` sum over all dimensions but the first,
    whatever their number, and in float32 at least; :meth:`sample` takes a seed too; there is no ``deterministic``,
    which is :meth:`mode`.

    Args:
        moments: Mean and log-variance, packed as the two halves of dimension ``dim``; (B, 2 * C, ...) for dim 1.
        dim: The packed dimension.
        logvar_clamp: (min, max) of the log-variance, in nats; None for no limits.

    Raises:
        TypeError: ``moments`` is no tensor, or a limit of the log-variance no number.
        ValueError: ``moments`` has no dimension ``dim``, or an odd number of entries along it; or the limits are
            in the wrong order.

    Example:
        >>> import torch, genimg_fast as gf
        >>> posterior = gf.nn.DiagonalGaussian(torch.zeros(2, 8, 16, 16))
        >>> posterior.sample().shape, posterior.kl()
        (torch.Size([2, 4, 16, 16]), tensor([0., 0.]))
    """

    def __init__(
        self, moments: Tensor, *, dim: int = 1, logvar_clamp: tuple[float, float] | None = (-30.0, 20.0)
    ) -> None:
        check_type(moments, "moments")
        if not isinstance(dim, int) or not -moments.dim() <= dim < moments.dim():
            raise ValueError(f"dim must be an int that moments of {moments.dim()} dimensions have, got {dim!r}")
        check_logvar_clamp(logvar_clamp)
        if moments.shape[dim] % 2 != 0:
            raise ValueError(
                f"moments must hold mean and log-variance as halves of dimension {dim}, whose size must be even, "
                f"got shape {tuple(moments.shape)}"
            )
        self._mu, self._logvar = moments.chunk(2, dim)
        self._logvar_clamp = logvar_clamp

    @classmethod
    def from_parameters(
        cls, mu: Tensor, logvar: Tensor, *, logvar_clamp: tuple[float, float] | None = (-30.0, 20.0)
    ) -> DiagonalGaussian:
        """Build the distribution from its mean and log-variance.

        Args:
            mu: (B, ...).
            logvar: Shape of ``mu``.
            logvar_clamp: (min, max) of the log-variance, in nats; None for no limits.

        Example:
            >>> import torch, genimg_fast as gf
            >>> gf.nn.DiagonalGaussian.from_parameters(torch.zeros(2, 3), torch.zeros(2, 3)).std
            tensor([[1., 1., 1.],
                    [1., 1., 1.]])
        """
        check_type(mu, "mu")
        check_type(logvar, "logvar")
        check_logvar_clamp(logvar_clamp)
        distribution = cls.__new__(cls)
        distribution._mu, distribution._logvar = mu, logvar
        distribution._logvar_clamp = logvar_clamp
        return distribution

    @property
    def mean(self) -> Tensor:
        """(B, ...)."""
        return self._mu

    @property
    def logvar(self) -> Tensor:
        """Logarithm of the variance, within its limits; shape of the mean."""
        return self._logvar if self._logvar_clamp is None else self._logvar.clamp(*self._logvar_clamp)

    @property
    def std(self) -> Tensor:
        """Standard deviation, shape of the mean."""
        return (0.5 * self.logvar).exp()

    @property
    def var(self) -> Tensor:
        """Variance, shape of the mean."""
        return self.logvar.exp()

    def mode(self) -> Tensor:
        """Return the most probable value: the mean."""
        return self._mu

    def sample(self, generator: torch.Generator | None = None, seed: Tensor | int | None = None) -> Tensor:
        """Draw one sample per entry of the batch, differentiable with respect to the moments.

        Args:
            generator: Draws the seed; torch's default generator if None.
            seed: Of the noise, instead; see :func:`genimg_fast.ops.reparameterize_kl`.

        Returns:
            Shape, dtype and memory format of the mean.
        """
        return self.sample_and_kl(generator=generator, seed=seed)[0]

    def kl(self, other: DiagonalGaussian | None = None) -> Tensor:
        """Return the Kullback-Leibler divergence of this distribution from another.

        Args:
            other: N(0, I) if None.

        Returns:
            (B,), in nats, summed over all dimensions but the first; float32, or float64 for float64.
        """
        return self.sample_and_kl(other, noise=_no_noise(self._mu))[1]

    def sample_and_kl(
        self,
        other: DiagonalGaussian | None = None,
        *,
        noise: Tensor | None = None,
        seed: Tensor | int | None = None,
        generator: torch.Generator | None = None,
        free_bits: float = 0.0,
        reduction: str = "sample",
    ) -> tuple[Tensor, Tensor]:
        """Do :meth:`sample` and :meth:`kl` in one pass over the data.

        Args:
            other: The distribution to compare with; N(0, I) if None.
            noise: As for :func:`genimg_fast.ops.reparameterize_kl`, like all that follow.
            seed: Of the noise.
            generator: Draws the seed.
            free_bits: Smallest divergence that a dimension of a sample is charged, in nats.
            reduction: ``"sample"`` or ``"none"``.

        Returns:
            The sample and its divergence.

        Raises:
            TypeError: If ``other`` is something else. Other arguments raise what the operator does.
        """
        if other is not None and not isinstance(other, DiagonalGaussian):
            raise TypeError(f"other must be a DiagonalGaussian, got {type(other).__name__}")
        return reparameterize_kl(
            self._mu,
            self._logvar,
            noise=noise,
            seed=seed,
            generator=generator,
            prior_mu=None if other is None else other.mean,
            prior_logvar=None if other is None else other.logvar,
            logvar_clamp=self._logvar_clamp,
            free_bits=free_bits,
            reduction=reduction,
        )

    def nll(self, x: Tensor) -> Tensor:
        """Return the negative logarithm of the density.

        Args:
            x: Shape of the mean.

        Returns:
            (B,), in nats, summed over all dimensions but the first; float32, or float64 for float64.

        Raises:
            ValueError: If ``x`` has another shape.
        """
        check_type(x, "x")
        if x.shape != self._mu.shape:
            raise ValueError(f"x must have the mean's shape, {tuple(self._mu.shape)}, got {tuple(x.shape)}")
        dtype = torch.promote_types(self._mu.dtype, torch.float32)
        logvar = self.logvar.to(dtype)
        terms = math.log(2 * math.pi) + logvar + (x.to(dtype) - self._mu.to(dtype)).square() * (-logvar).exp()
        return 0.5 * terms.flatten(1).sum(1)
