"""What the public functions and the operators refuse."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from genimg_fast.ops._checks import WIDE_DTYPE, check_dtype, check_number, check_type
from genimg_fast.ops._dispatch import new
from genimg_fast.ops.reparameterize_kl.operands import Backward, Operands, Options

REDUCTIONS = ("sample", "none")


def check_mu(mu: Tensor) -> None:
    """Check the tensor that all others go with."""
    check_type(mu, "mu")
    check_dtype(mu, "mu")
    if mu.dim() == 0:
        raise ValueError("mu must have at least 1 dimension (B, ...), got 0")


def check_like(mu: Tensor, tensor: Tensor, name: str) -> None:
    """Check a tensor that must be like `mu`."""
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
    check_like(mu, prior, name)
    return prior


def seed_tensor(seed: int, device: torch.device | str | None) -> Tensor:
    """Return a seed as the operators take it."""
    if not isinstance(seed, int):
        raise TypeError(f"seed must be an int or a 0-dim int64 tensor, got {type(seed).__name__}")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed must fit into an int64, got {seed}")
    return torch.full((), seed, dtype=torch.int64, device=device)


def check_seed(seed: Tensor, device: torch.device) -> None:
    """Check a seed that is a tensor."""
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


def prepare(
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
) -> tuple[Operands, Options]:
    """Check the arguments of the public functions and return those of the operator."""
    if not isinstance(reduction, str) or reduction not in REDUCTIONS:
        raise ValueError(f"unknown reduction {reduction!r}; choose one of {', '.join(REDUCTIONS)}")
    free_bits = check_free_bits(free_bits)
    logvar_min, logvar_max = check_logvar_clamp(logvar_clamp)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    check_mu(mu)
    check_like(mu, logvar, "logvar")
    if prior_mu is not None or prior_logvar is not None:
        if prior_mu is None or prior_logvar is None:
            missing = "prior_mu" if prior_mu is None else "prior_logvar"
            raise ValueError(f"prior_mu and prior_logvar go together, but {missing} is None")
        prior_mu, prior_logvar = _expand(mu, prior_mu, "prior_mu"), _expand(mu, prior_logvar, "prior_logvar")
    if (noise is not None) + (seed is not None) + (generator is not None) > 1:
        raise ValueError("noise, seed and generator exclude each other: give one of them at most")
    key: Tensor | None = None
    if noise is not None:
        check_like(mu, noise, "noise")
    elif seed is None:
        key = torch.randint(0, 2**63 - 1, (), dtype=torch.int64, device=mu.device, generator=generator)
    elif isinstance(seed, Tensor):
        check_type(seed, "seed")
        check_seed(seed, mu.device)
        key = seed
    else:
        key = seed_tensor(seed, mu.device)
    operands = new(Operands, (mu, logvar, noise, key, prior_mu, prior_logvar))
    return operands, new(Options, (logvar_min, logvar_max, free_bits, reduction == "none"))


def check_operands(operands: Operands) -> None:
    """The checks of csrc/reparameterize_kl.h, so that tracing refuses what the kernels would refuse."""
    mu, seed = operands.mu, operands.seed
    check_mu(mu)
    for name in ("logvar", "noise", "prior_mu", "prior_logvar"):
        tensor = getattr(operands, name)
        if tensor is not None:
            check_like(mu, tensor, name)
    if (operands.noise is None) == (seed is None):
        raise ValueError("exactly one of noise and seed must be given")
    if (operands.prior_mu is None) != (operands.prior_logvar is None):
        raise ValueError("prior_mu and prior_logvar must be given together")
    if seed is not None:
        check_seed(seed, mu.device)


def check_gradients(call: Backward) -> None:
    """Likewise, of backward."""
    mu, grad_kl = call.operands.mu, call.grad_kl
    check_operands(call.operands)
    if call.grad_z is not None:
        check_like(mu, call.grad_z, "grad_z")
    if grad_kl is not None and (
        grad_kl.shape != (mu.shape if call.options.per_element else mu.shape[:1])
        or grad_kl.dtype != WIDE_DTYPE[mu.dtype]
        or grad_kl.device != mu.device
    ):
        raise ValueError("grad_kl must have kl's shape, dtype and device")
