"""Reparameterised Gaussian samples and their Kullback-Leibler divergence as one operator.

Reparameterisation: Kingma and Welling 2014, arXiv:1312.6114, section 2.4 and appendix B. Free bits: Kingma et al.
2016, arXiv:1606.04934, appendix C.8.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genimg_fast.ops._dispatch import check_backend
from genimg_fast.ops.reparameterize_kl.checks import prepare
from genimg_fast.ops.reparameterize_kl.dispatch import KERNELS
from genimg_fast.ops.reparameterize_kl.noise import normal_from_seed
from genimg_fast.ops.reparameterize_kl.operator import run_native
from genimg_fast.ops.reparameterize_kl.reference import compute, reparameterize_kl_reference

__all__ = ["normal_from_seed", "reparameterize_kl", "reparameterize_kl_reference"]


def reparameterize_kl(
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
    """Sample z ~ N(mu, exp(logvar)) and compute its divergence from a prior, in one pass over the data.

    ``z = mu + exp(logvar / 2) * noise``, and ``kl`` is KL(N(mu, exp(logvar)) || N(prior_mu, exp(prior_logvar))),
    both differentiable any number of times. Backward makes the noise again from its seed instead of keeping it.

    The noise is a pure function of the seed: the same on every device, to rounding, for every dtype, layout, batch
    size and number of threads. The seed comes from PyTorch's generator, so :func:`torch.manual_seed`, activation
    checkpointing and :func:`torch.compile` do what they do for :func:`torch.randn_like`. (torch.compile breaks its
    graph where ``generator`` is given.) Autocast changes nothing here: the arithmetic is in float32, float64 for
    float64, whatever the inputs' dtype.

    Args:
        mu: Means, (B, ...), float32, float64, bfloat16 or float16, in any memory layout.
        logvar: Logarithms of the variances, shape and dtype of ``mu``, like the other tensors.
        noise: Standard normal noise instead of drawing it; receives a gradient.
        seed: Of the noise: a Python int or a 0-dim int64 tensor on the device of ``mu``.
        generator: Draws the seed; the default generator of the device if None.
        prior_mu: Means of the prior, of a shape that expands to that of ``mu``; None for the prior N(0, I).
        prior_logvar: Likewise; goes with ``prior_mu``.
        logvar_clamp: (min, max) to limit ``logvar`` to; no gradient passes beyond them.
        free_bits: Smallest divergence that a dimension of a sample is charged, in nats; no gradient passes below.
        reduction: ``"sample"`` sums the divergence over all dimensions but the first, ``"none"`` over none.

    Returns:
        ``z``, with shape, dtype and memory format of ``mu``, and ``kl`` in nats, (B,) or the shape of ``mu``,
        float32 (float64 for float64).

    Raises:
        ValueError: Two of ``noise``, ``seed`` and ``generator`` are given, or one of ``prior_mu`` and
            ``prior_logvar`` without the other; a shape, dtype or device does not fit; an option is unknown or out
            of its range.
        TypeError: An argument is no tensor, or no number, where one must be.
        RuntimeError: A prior does not expand to the shape of ``mu``, or the generator is of another device, as in
            torch; or the backend is ``"native"`` and no compiled kernel takes these arguments.

    Example:
        >>> import torch, genimg_fast as gf
        >>> mu, logvar = torch.randn(64, 2 * 32).chunk(2, dim=1)
        >>> z, kl = gf.ops.reparameterize_kl(mu, logvar)
        >>> z.shape, kl.shape
        (torch.Size([64, 32]), torch.Size([64]))
    """
    operands, options = prepare(
        mu, logvar, noise, seed, generator, prior_mu, prior_logvar, logvar_clamp, free_bits, reduction
    )
    reason = KERNELS.why_not(operands)
    if reason is None:
        return run_native(operands, options)
    check_backend("reparameterize_kl", reason)
    return compute(operands, options)
