"""The definition of what is right, in plain PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genimg_fast.ops._checks import WIDE_DTYPE
from genimg_fast.ops.reparameterize_kl.checks import prepare
from genimg_fast.ops.reparameterize_kl.noise import normal_from_seed
from genimg_fast.ops.reparameterize_kl.operands import Operands, Options


def reparameterize_kl_reference(
    mu: Tensor,
    logvar: Tensor,
    *,
    noise: Tensor | None = None,
    seed: Tensor | int | None = None,
    generator: torch.Generator | None = None,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    logvar_clamp: tuple[float, float] | None = None,
    free_bits: float = 0.0,
    reduction: str = "sample",
) -> tuple[Tensor, Tensor]:
    """Compute :func:`reparameterize_kl` with PyTorch's own operators: the definition of what is right.

    Example:
        >>> import torch, genimg_fast as gf
        >>> mu, logvar = torch.randn(64, 32), torch.randn(64, 32)
        >>> expected = gf.ops.reparameterize_kl_reference(mu, logvar, seed=7)[0]
        >>> torch.allclose(gf.ops.reparameterize_kl(mu, logvar, seed=7)[0], expected, atol=1e-5)
        True
    """
    return compute(
        *prepare(mu, logvar, noise, seed, generator, prior_mu, prior_logvar, logvar_clamp, free_bits, reduction)
    )


def _exp_minus_first_order(x: Tensor) -> Tensor:
    """Return exp(x) - 1 - x, near zero from its series: the difference would lose every digit there."""
    near = x.abs() < 0.5
    t = torch.where(near, x, 0.0)
    series = torch.zeros_like(t)
    for k in reversed(range(2, 18 if x.dtype == torch.float64 else 12)):
        series = series * t + 1.0 / math.factorial(k)
    return torch.where(near, t * t * series, torch.expm1(x) - x)


def clamp_logvar(lv: Tensor, options: Options) -> Tensor:
    """Clamp the log-variance; at the ends of the range the gradient passes."""
    # torch.clamp would do, but whether it passes a gradient at the ends of its range depends on torch's version.
    if options.logvar_min > -math.inf:
        lv = torch.where(lv < options.logvar_min, options.logvar_min, lv)
    if options.logvar_max < math.inf:
        lv = torch.where(lv > options.logvar_max, options.logvar_max, lv)
    return lv


def divergence(mean: Tensor, lv: Tensor, operands: Operands) -> Tensor:
    """Return the divergence of each element from the prior of the operands."""
    prior_mu, prior_logvar = operands.prior_mu, operands.prior_logvar
    if prior_mu is None or prior_logvar is None:
        return 0.5 * (_exp_minus_first_order(lv) + mean * mean)
    offset, prior_lv = mean - prior_mu.to(mean.dtype), prior_logvar.to(mean.dtype)
    return 0.5 * (_exp_minus_first_order(lv - prior_lv) + offset * offset * (-prior_lv).exp())


def standard_noise(operands: Operands) -> Tensor:
    """Return the noise that is given, or that of the seed."""
    if operands.noise is not None:
        return operands.noise
    assert operands.seed is not None
    return normal_from_seed(operands.seed, operands.mu.shape)


def compute(operands: Operands, options: Options) -> tuple[Tensor, Tensor]:
    """Do what the operator does, in PyTorch operations."""
    mu, free_bits = operands.mu, options.free_bits
    dtype = WIDE_DTYPE[mu.dtype]
    noise = standard_noise(operands)
    mean, lv = mu.to(dtype), clamp_logvar(operands.logvar.to(dtype), options)
    z = (mean + (0.5 * lv).exp() * noise.to(dtype)).to(mu.dtype)
    kl = divergence(mean, lv, operands)
    if free_bits > 0:
        kl = torch.where(kl < free_bits, free_bits, kl)
    if not options.per_element and kl.dim() > 1:
        kl = kl.sum(tuple(range(1, kl.dim())))
    return z, kl
