"""Reparameterised Gaussian samples and their Kullback-Leibler divergence as one operator.

Reparameterisation: Kingma and Welling 2014, arXiv:1312.6114, section 2.4 and appendix B. Free bits: Kingma et al.
2016, arXiv:1606.04934, appendix C.8. Philox: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

from genimg_fast import _native
from genimg_fast.ops._autograd import call_backward, double_backward, keep_inputs
from genimg_fast.ops._checks import check_number, check_type
from genimg_fast.ops._dispatch import (
    PLAIN_TENSORS,
    TRANSFORMED,
    describe_paths,
    find_kernels,
    is_transformed,
    why_unavailable,
)

REDUCTIONS = ("sample", "none")

# Type of the arithmetic and of the divergence.
_WIDE_DTYPE = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}

# That many the kernels take in any layout; with friendly strides they would take more.
_MAX_DIMS = 9

_MASK = 0xFFFFFFFF
# The multipliers of Philox less 2**32: their product with 32 bits fits into 63, and the high half of the product
# with the multiplier itself follows by adding the factor.
_MULTIPLIERS = (0xD2511F53 - (1 << 32), 0xCD9E8D57 - (1 << 32))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def _philox4x32(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Return the four 32-bit words of Philox4x32-10, in int64 as are counter and key, which broadcast."""
    c0, c1, c2, c3 = counter
    rounds = torch.arange(_ROUNDS, device=c0.device)
    keys = [((k + step * rounds) & _MASK).unbind() for k, step in zip(key, _KEY_STEPS, strict=True)]
    for k0, k1 in zip(*keys, strict=True):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) + c2) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) + c0) ^ c3 ^ k1, p0 & _MASK
    return c0, c1, c2, c3


def _box_muller(radial: Tensor, angular: Tensor) -> tuple[Tensor, Tensor]:
    """Turn two 32-bit words (in int64) into two independent standard normals (float32)."""
    u = radial.float() * 2.0**-32 + 2.0**-33
    radius = (-2.0 * u.log()).sqrt()
    # The angle is 2 pi angular / 2**32. Its quadrant is split off in integers, where that is exact.
    quadrant = (angular + (1 << 29)) >> 30
    angle = (angular - (quadrant << 30)).float() * (math.pi / 2 * 2.0**-30)
    cos, sin = angle.cos(), angle.sin()
    odd = (quadrant & 1).bool()
    x, y = torch.where(odd, sin, cos), torch.where(odd, cos, sin)
    x = torch.where(((quadrant + 1) & 2).bool(), -x, x)
    y = torch.where((quadrant & 2).bool(), -y, y)
    return radius * x, radius * y


def normal_from_seed(
    seed: Tensor | int, shape: tuple[int, ...] | torch.Size, device: torch.device | str | None = None
) -> Tensor:
    """Return the standard normal noise that :func:`reparameterize_kl` makes of a seed.

    Philox4x32-10, keyed by the seed and counting samples and elements, then Box-Muller: each value depends on the
    seed and its own index (sample, element of the sample) only, not on batch size, layout, device or dtype.

    Args:
        seed: A Python int, or a 0-dim int64 tensor.
        shape: (B, ...).
        device: Of the result; the seed's, or the default device, if None.

    Returns:
        float32, contiguous.

    Raises:
        ValueError: ``seed`` is a tensor of another kind or does not fit into an int64, or ``shape`` is empty.
        TypeError: ``seed`` is neither an int nor a tensor, or ``shape`` no tuple of ints.

    Example:
        >>> import torch, genimg_fast as gf
        >>> noise = gf.ops.normal_from_seed(7, (2, 5))
        >>> torch.equal(noise, gf.ops.normal_from_seed(7, (3, 5))[:2])
        True
    """
    # The sizes in a torch.Size are tensors under torch.jit.trace.
    if not isinstance(shape, torch.Size) and not (
        isinstance(shape, (tuple, list)) and all(isinstance(n, (int, torch.SymInt)) for n in shape)
    ):
        raise TypeError(f"shape must be a tuple of ints, got {shape!r}")
    if len(shape) == 0:
        raise ValueError("shape must have at least one dimension, got ()")
    if isinstance(seed, Tensor):
        check_type(seed, "seed")
        _check_seed(seed, seed.device)
        seed = seed.to(device)
    else:
        seed = _seed_tensor(seed, device)
    batch, length = shape[0], math.prod(shape[1:])
    sample = torch.arange(batch, device=seed.device).unsqueeze(1)
    block = torch.arange((length + 3) // 4, device=seed.device)
    counter = (block & _MASK, block >> 32, sample & _MASK, sample >> 32)
    words = _philox4x32(counter, (seed & _MASK, (seed >> 32) & _MASK))
    normals = torch.stack((*_box_muller(*words[:2]), *_box_muller(*words[2:])), dim=-1)
    return normals.flatten(1)[:, :length].reshape(shape)


def _exp_minus_first_order(x: Tensor) -> Tensor:
    """Return exp(x) - 1 - x, near zero from its series: the difference would lose every digit there."""
    near = x.abs() < 0.5
    t = torch.where(near, x, 0.0)
    series = torch.zeros_like(t)
    for k in reversed(range(2, 18 if x.dtype == torch.float64 else 12)):
        series = series * t + 1.0 / math.factorial(k)
    return torch.where(near, t * t * series, torch.expm1(x) - x)


def _clamp(lv: Tensor, logvar_min: float, logvar_max: float) -> Tensor:
    # torch.clamp would do, but whether it passes a gradient at the ends of its range depends on torch's version.
    if logvar_min > -math.inf:
        lv = torch.where(lv < logvar_min, logvar_min, lv)
    if logvar_max < math.inf:
        lv = torch.where(lv > logvar_max, logvar_max, lv)
    return lv


def _divergence(mean: Tensor, lv: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None) -> Tensor:
    """Return the divergence of each element."""
    if prior_mu is None or prior_logvar is None:
        return 0.5 * (_exp_minus_first_order(lv) + mean * mean)
    offset, prior_lv = mean - prior_mu.to(mean.dtype), prior_logvar.to(mean.dtype)
    return 0.5 * (_exp_minus_first_order(lv - prior_lv) + offset * offset * (-prior_lv).exp())


def _compute(
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor | None,
    seed: Tensor | None,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    logvar_min: float,
    logvar_max: float,
    free_bits: float,
    per_element: bool,
) -> tuple[Tensor, Tensor]:
    """Do what the operator does, in PyTorch operations."""
    dtype = _WIDE_DTYPE[mu.dtype]
    if noise is None:
        assert seed is not None
        noise = normal_from_seed(seed, mu.shape)
    mean, lv = mu.to(dtype), _clamp(logvar.to(dtype), logvar_min, logvar_max)
    z = (mean + (0.5 * lv).exp() * noise.to(dtype)).to(mu.dtype)
    kl = _divergence(mean, lv, prior_mu, prior_logvar)
    if free_bits > 0:
        kl = torch.where(kl < free_bits, free_bits, kl)
    if not per_element and kl.dim() > 1:
        kl = kl.sum(tuple(range(1, kl.dim())))
    return z, kl


def _compute_gradients(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor | None,
    seed: Tensor | None,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    logvar_min: float,
    logvar_max: float,
    free_bits: float,
    per_element: bool,
    need_noise: bool,
    need_prior: bool,
) -> tuple[Tensor, ...]:
    """Do what the backward operator does, in PyTorch operations."""
    dtype = _WIDE_DTYPE[mu.dtype]
    mean, unclamped = mu.to(dtype), logvar.to(dtype)
    lv = _clamp(unclamped, logvar_min, logvar_max)
    at_mu = at_logvar = at_noise = at_prior_mu = at_prior_logvar = torch.zeros_like(mean)
    if grad_kl is not None:
        at_kl = grad_kl if per_element else grad_kl.reshape(grad_kl.shape + (1,) * (mu.dim() - 1)).expand_as(mu)
        if free_bits > 0:
            at_kl = torch.where(_divergence(mean, lv, prior_mu, prior_logvar) < free_bits, 0.0, at_kl)
        if prior_mu is None or prior_logvar is None:
            at_mu, at_logvar = at_kl * mean, 0.5 * at_kl * torch.expm1(lv)
        else:
            offset, prior_lv = mean - prior_mu.to(dtype), prior_logvar.to(dtype)
            at_mu, at_logvar = at_kl * offset * (-prior_lv).exp(), 0.5 * at_kl * torch.expm1(lv - prior_lv)
            at_prior_mu, at_prior_logvar = -at_mu, -at_logvar - 0.5 * at_mu * offset
    if grad_z is not None:
        at_z, std = grad_z.to(dtype), (0.5 * lv).exp()
        if noise is None:
            assert seed is not None
            noise = normal_from_seed(seed, mu.shape)
        at_mu, at_logvar = at_mu + at_z, at_logvar + 0.5 * at_z * std * noise.to(dtype)
        at_noise = at_z * std
    at_logvar = torch.where((unclamped < logvar_min) | (unclamped > logvar_max), 0.0, at_logvar)
    needed = (True, True, need_noise, need_prior, need_prior)
    found = (at_mu, at_logvar, at_noise, at_prior_mu, at_prior_logvar)
    return tuple(
        gradient.to(mu.dtype) if need else mu.new_empty(0) for gradient, need in zip(found, needed, strict=True)
    )


def _check_mu(mu: Tensor) -> None:
    check_type(mu, "mu")
    if mu.dtype not in _WIDE_DTYPE:
        raise ValueError(f"mu must be float32, float64, bfloat16 or float16, got {mu.dtype}")
    if mu.dim() == 0:
        raise ValueError("mu must have at least 1 dimension (B, ...), got 0")


def _check_like(mu: Tensor, tensor: Tensor, name: str) -> None:
    check_type(tensor, name)
    if tensor.shape != mu.shape:
        raise ValueError(f"{name} must have mu's shape, {tuple(mu.shape)}, got {tuple(tensor.shape)}")
    if tensor.dtype != mu.dtype:
        raise ValueError(f"{name} must have mu's dtype, {mu.dtype}, got {tensor.dtype}")
    if tensor.device != mu.device:
        raise ValueError(f"{name} must be on mu's device, {mu.device}, got {tensor.device}")


def _expand(mu: Tensor, prior: Tensor, name: str) -> Tensor:
    check_type(prior, name)
    missing = mu.dim() - prior.dim()
    if missing < 0 or any(n not in (1, m) for n, m in zip(prior.shape, mu.shape[missing:], strict=True)):
        # The type of torch's own error.
        raise RuntimeError(f"{name} must expand to mu's shape, {tuple(mu.shape)}, got {tuple(prior.shape)}")
    prior = prior.expand_as(mu)
    _check_like(mu, prior, name)
    return prior


def _seed_tensor(seed: int, device: torch.device | str | None) -> Tensor:
    if not isinstance(seed, int):
        raise TypeError(f"seed must be an int or a 0-dim int64 tensor, got {type(seed).__name__}")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must fit into an int64, got {seed}")
    return torch.full((), seed, dtype=torch.int64, device=device)


def _check_seed(seed: Tensor, device: torch.device) -> None:
    if seed.dim() != 0 or seed.dtype != torch.int64:
        raise ValueError(
            f"seed must be an int or a 0-dim int64 tensor, got {seed.dtype} of shape {tuple(seed.shape)}"
        )
    if seed.device != device:
        raise ValueError(f"seed must be on mu's device, {device}, got {seed.device}")


def check_logvar_clamp(logvar_clamp: Any) -> tuple[float, float]:
    """Return the limits of the log-variance, infinite where there are none."""
    if logvar_clamp is None:
        return -math.inf, math.inf
    if not isinstance(logvar_clamp, (tuple, list)):
        raise TypeError(f"logvar_clamp must be (min, max) or None, got {type(logvar_clamp).__name__}")
    if len(logvar_clamp) != 2:
        raise ValueError(f"logvar_clamp must be (min, max), got {len(logvar_clamp)} values")
    logvar_min, logvar_max = (
        check_number(value, f"the {name} of logvar_clamp")
        for name, value in zip(("min", "max"), logvar_clamp, strict=True)
    )
    if not logvar_min <= logvar_max:
        raise ValueError(f"logvar_clamp must be (min, max) with min <= max, got {logvar_clamp}")
    return logvar_min, logvar_max


def check_free_bits(free_bits: Any) -> float:
    """Return the smallest divergence of a dimension."""
    free_bits = check_number(free_bits, "free_bits")
    if not 0 <= free_bits < math.inf:
        raise ValueError(f"free_bits must be finite and not negative, got {free_bits}")
    return free_bits


def _prepare(
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor | None,
    seed: Tensor | int | None,
    generator: torch.Generator | None,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    logvar_clamp: tuple[float, float] | None,
    free_bits: float,
    reduction: str,
) -> tuple[Any, ...]:
    """Check the arguments of the public functions and return those of the operator."""
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ValueError(f"unknown reduction {reduction!r}; choose one of {', '.join(REDUCTIONS)}")
    free_bits = check_free_bits(free_bits)
    logvar_min, logvar_max = check_logvar_clamp(logvar_clamp)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    _check_mu(mu)
    _check_like(mu, logvar, "logvar")
    if prior_mu is not None or prior_logvar is not None:
        if prior_mu is None or prior_logvar is None:
            missing = "prior_mu" if prior_mu is None else "prior_logvar"
            raise ValueError(f"prior_mu and prior_logvar go together, but {missing} is None")
        prior_mu, prior_logvar = _expand(mu, prior_mu, "prior_mu"), _expand(mu, prior_logvar, "prior_logvar")
    if (noise is not None) + (seed is not None) + (generator is not None) > 1:
        raise ValueError("noise, seed and generator exclude each other: give one of them at most")
    if noise is not None:
        _check_like(mu, noise, "noise")
    elif seed is None:
        seed = torch.randint(0, 2**63 - 1, (), dtype=torch.int64, device=mu.device, generator=generator)
    elif isinstance(seed, Tensor):
        check_type(seed, "seed")
        _check_seed(seed, mu.device)
    else:
        seed = _seed_tensor(seed, mu.device)
    return (
        mu, logvar, noise, seed, prior_mu, prior_logvar, logvar_min, logvar_max, free_bits, reduction == "none",
    )  # fmt: skip


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
    return _compute(
        *_prepare(
            mu, logvar, noise, seed, generator, prior_mu, prior_logvar, logvar_clamp, free_bits, reduction,
        )
    )  # fmt: skip


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
    arguments = _prepare(
        mu, logvar, noise, seed, generator, prior_mu, prior_logvar, logvar_clamp, free_bits, reduction
    )
    if _native._backend != "reference":
        reason = _why_not_native(*arguments[:6])
        if reason is None:
            return _native_forward(*arguments)
        if _native._backend == "native" and reason is not TRANSFORMED:
            raise RuntimeError(f"reparameterize_kl: backend 'native' was asked for, but {reason}")
    return _compute(*arguments)


def _why_not_native(mu: Tensor, *others: Tensor | None) -> str | None:
    """Return None if the compiled kernel takes these arguments, else the reason why it does not."""
    if type(mu) not in PLAIN_TENSORS:
        return TRANSFORMED
    for tensor in others:
        if tensor is not None and type(tensor) not in PLAIN_TENSORS:
            return TRANSFORMED
    if (reason := why_unavailable(_KERNELS, mu.device.type)) is not None:
        return reason
    if mu.dim() > _MAX_DIMS:
        return f"it takes {_MAX_DIMS} dimensions at most, got {mu.dim()}"
    return TRANSFORMED if is_transformed(mu) else None


def _native_forward(
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor | None,
    seed: Tensor | None,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    *options: float | bool,
) -> tuple[Tensor, Tensor]:
    arguments = (mu, logvar, noise, seed, prior_mu, prior_logvar, *options)
    if torch.compiler.is_compiling():
        return torch.ops.genimg_fast.reparameterize_kl.default(*arguments)
    if torch.is_grad_enabled() and (
        mu.requires_grad
        or logvar.requires_grad
        or (noise is not None and noise.requires_grad)
        or (prior_mu is not None and prior_mu.requires_grad)
        or (prior_logvar is not None and prior_logvar.requires_grad)
    ):
        return _ReparameterizeKL.apply(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.genimg_fast.reparameterize_kl.default(*arguments)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    keep_inputs(ctx, inputs, output, 6)


def _keep_for_double_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    keep_inputs(ctx, inputs, output, 8)


def _backward(ctx: Any, grad_z: Tensor | None, grad_kl: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad_z is None and grad_kl is None:
        return (None,) * 10
    need = ctx.needs_input_grad
    operator = torch.ops.genimg_fast.reparameterize_kl_backward.default
    others = (*ctx.saved_tensors, *ctx.options, need[2], need[4] or need[5])
    gradients = call_backward(operator, _compute_gradients, (grad_z, grad_kl), *others)
    grad_mu, grad_logvar, grad_noise, grad_prior_mu, grad_prior_logvar = gradients
    return (
        grad_mu if need[0] else None,
        grad_logvar if need[1] else None,
        grad_noise if need[2] else None,
        None,
        grad_prior_mu if need[4] else None,
        grad_prior_logvar if need[5] else None,
        None, None, None, None,
    )  # fmt: skip


class _ReparameterizeKL(torch.autograd.Function):
    """Autograd of the compiled operators in eager mode.

    The operator has a formula registered with the dispatcher, which is the one that torch.compile uses; calling
    that one from Python costs more.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            output = torch.ops.genimg_fast.reparameterize_kl.default(*arguments)
        _keep_for_backward(ctx, arguments, output)
        return output

    backward = staticmethod(_backward)


_KERNELS = find_kernels("reparameterize_kl")


def paths() -> dict[str, tuple[str, str]]:
    """Return, for ``info()``, per device the path that ``backend="auto"`` takes and why."""
    return describe_paths(_KERNELS)


if _KERNELS:

    @torch.library.register_fake("genimg_fast::reparameterize_kl")
    def _(
        mu: Tensor,
        logvar: Tensor,
        noise: Tensor | None,
        seed: Tensor | None,
        prior_mu: Tensor | None,
        prior_logvar: Tensor | None,
        logvar_min: float,
        logvar_max: float,
        free_bits: float,
        per_element: bool,
    ) -> tuple[Tensor, Tensor]:
        _check(mu, logvar, noise, seed, prior_mu, prior_logvar)
        kl = mu.new_empty(mu.shape if per_element else mu.shape[0], dtype=_WIDE_DTYPE[mu.dtype])
        return torch.empty_like(mu), kl

    @torch.library.register_fake("genimg_fast::reparameterize_kl_backward")
    def _(
        grad_z: Tensor | None,
        grad_kl: Tensor | None,
        mu: Tensor,
        logvar: Tensor,
        noise: Tensor | None,
        seed: Tensor | None,
        prior_mu: Tensor | None,
        prior_logvar: Tensor | None,
        logvar_min: float,
        logvar_max: float,
        free_bits: float,
        per_element: bool,
        need_noise: bool,
        need_prior: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        _check(mu, logvar, noise, seed, prior_mu, prior_logvar, grad_z)
        if grad_kl is not None and (
            grad_kl.shape != (mu.shape if per_element else mu.shape[:1])
            or grad_kl.dtype != _WIDE_DTYPE[mu.dtype]
            or grad_kl.device != mu.device
        ):
            raise ValueError("grad_kl must have kl's shape, dtype and device")
        needed = (True, True, need_noise, need_prior, need_prior)
        grads = [torch.empty_like(mu) if need else mu.new_empty(0) for need in needed]
        return grads[0], grads[1], grads[2], grads[3], grads[4]

    torch.library.register_autograd("genimg_fast::reparameterize_kl", _backward, setup_context=_keep_for_backward)
    torch.library.register_autograd(
        "genimg_fast::reparameterize_kl_backward",
        partial(double_backward, _compute_gradients),
        setup_context=_keep_for_double_backward,
    )


def _check(
    mu: Tensor,
    logvar: Tensor,
    noise: Tensor | None,
    seed: Tensor | None,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    grad_z: Tensor | None = None,
) -> None:
    """The checks of the compiled operators, so that tracing refuses what they would refuse."""
    _check_mu(mu)
    named = {
        "logvar": logvar, "noise": noise, "prior_mu": prior_mu, "prior_logvar": prior_logvar, "grad_z": grad_z
    }  # fmt: skip
    for name, tensor in named.items():
        if tensor is not None:
            _check_like(mu, tensor, name)
    if (noise is None) == (seed is None):
        raise ValueError("exactly one of noise and seed must be given")
    if (prior_mu is None) != (prior_logvar is None):
        raise ValueError("prior_mu and prior_logvar must be given together")
    if seed is not None:
        _check_seed(seed, mu.device)
