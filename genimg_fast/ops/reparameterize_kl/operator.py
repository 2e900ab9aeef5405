"""The compiled operators: calls, autograd and fake kernels."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from genimg_fast.ops._autograd import call_backward, double_backward, keep_inputs
from genimg_fast.ops._checks import WIDE_DTYPE
from genimg_fast.ops.reparameterize_kl.checks import check_gradients, check_operands
from genimg_fast.ops.reparameterize_kl.dispatch import KERNELS
from genimg_fast.ops.reparameterize_kl.gradients import gradients_reference
from genimg_fast.ops.reparameterize_kl.operands import Backward, Operands, Options


def run_native(operands: Operands, options: Options) -> tuple[Tensor, Tensor]:
    """Run the compiled operator."""
    mu, logvar, noise, _, prior_mu, prior_logvar = operands
    if torch.compiler.is_compiling():
        return _forward(*operands, *options)
    if torch.is_grad_enabled() and (
        mu.requires_grad
        or logvar.requires_grad
        or (noise is not None and noise.requires_grad)
        or (prior_mu is not None and prior_mu.requires_grad)
        or (prior_logvar is not None and prior_logvar.requires_grad)
    ):
        return _ReparameterizeKL.apply(*operands, options)
    with torch._C._AutoDispatchBelowAutograd():
        return _forward(*operands, *options)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    keep_inputs(ctx, inputs, output, 6)


def _keep_for_double_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    keep_inputs(ctx, inputs, output, 8)


def _gradients(ctx: Any, grad_z: Tensor | None, grad_kl: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients of the operands."""
    if grad_z is None and grad_kl is None:
        return (None,) * 6
    need = ctx.needs_input_grad
    others = (*ctx.saved_tensors, *ctx.options, need[2], need[4] or need[5])
    gradients = call_backward(_backward, gradients_reference, (grad_z, grad_kl), *others)
    grad_mu, grad_logvar, grad_noise, grad_prior_mu, grad_prior_logvar = gradients
    return (
        grad_mu if need[0] else None,
        grad_logvar if need[1] else None,
        grad_noise if need[2] else None,
        None,
        grad_prior_mu if need[4] else None,
        grad_prior_logvar if need[5] else None,
    )


def _gradients_of_all(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_gradients(ctx, *grads), None, None, None, None


class _ReparameterizeKL(torch.autograd.Function):
    """Autograd of the compiled operators in eager mode.

    The operator has a formula registered with the dispatcher, which is the one that torch.compile uses; calling
    that one from Python costs more.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *operands, options = arguments
        with torch._C._AutoDispatchBelowAutograd():
            output: tuple[Tensor, Tensor] = _forward(*operands, *options)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*operands)
        ctx.options = options
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, *grads), None


if KERNELS.in_library:
    _forward = torch.ops.genimg_fast.reparameterize_kl.default
    _backward = torch.ops.genimg_fast.reparameterize_kl_backward.default

    @torch.library.register_fake("genimg_fast::reparameterize_kl")
    def _(*arguments: Any) -> tuple[Tensor, Tensor]:
        operands, options = Operands(*arguments[:6]), Options(*arguments[6:])
        check_operands(operands)
        mu = operands.mu
        kl = mu.new_empty(mu.shape if options.per_element else mu.shape[0], dtype=WIDE_DTYPE[mu.dtype])
        return torch.empty_like(mu), kl

    @torch.library.register_fake("genimg_fast::reparameterize_kl_backward")
    def _(*arguments: Any) -> tuple[Tensor, ...]:
        call = Backward.of(*arguments)
        check_gradients(call)
        mu = call.operands.mu
        needed = (True, True, call.need_noise, call.need_prior, call.need_prior)
        return tuple(torch.empty_like(mu) if need else mu.new_empty(0) for need in needed)

    torch.library.register_autograd(
        "genimg_fast::reparameterize_kl", _gradients_of_all, setup_context=_keep_for_backward
    )
    torch.library.register_autograd(
        "genimg_fast::reparameterize_kl_backward",
        partial(double_backward, gradients_reference),
        setup_context=_keep_for_double_backward,
    )
