"""The compiled operators: calls, autograd and fake kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genimg_fast.ops._activations import ACTIVATIONS
from genimg_fast.ops._autograd import call_backward, double_backward, keep_inputs
from genimg_fast.ops._checks import WIDE_DTYPE
from genimg_fast.ops._layout import dense_like
from genimg_fast.ops.group_norm_act.checks import check_backward, check_operands
from genimg_fast.ops.group_norm_act.dispatch import KERNELS, has_wide_output
from genimg_fast.ops.group_norm_act.gradients import gradients_reference
from genimg_fast.ops.group_norm_act.operands import Backward, Operands, Options


def run_native(operands: Operands, options: Options) -> Tensor:
    """Run the compiled operator."""
    arguments = operands + options + (has_wide_output(operands.input),)
    if torch.compiler.is_compiling():
        return torch.ops.genimg_fast.group_norm_act.default(*arguments)[0]
    if torch.is_grad_enabled() and _require_grad(operands):
        return _GroupNormAct.apply(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.genimg_fast.group_norm_act.default(*arguments)[0]


def _require_grad(operands: Operands) -> bool:
    input, residual, weight, bias, scale, shift = operands
    return (
        input.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
        or (scale is not None and scale.requires_grad)
        or (shift is not None and shift.requires_grad)
        or (residual is not None and residual.requires_grad)
    )


class _GroupNormAct(torch.autograd.Function):
    """Autograd of the compiled operators in eager mode.

    The operator has a formula registered with the dispatcher, which is the one that torch.compile uses; calling
    that one from Python costs more.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            output, mean, invstd = torch.ops.genimg_fast.group_norm_act.default(*arguments)
        bias = arguments[3]
        # PyTorch's backward does without the bias, which may therefore change before it.
        ctx.bias = bias
        _keep(ctx, arguments, mean, invstd, None if bias is None else bias.clone())
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return _backward(ctx, grad_output)


def _keep(ctx: Any, arguments: tuple[Any, ...], mean: Tensor, invstd: Tensor, bias: Tensor | None) -> None:
    """Save what backward needs.

    Args:
        ctx: Of the forward operator's call.
        arguments: Of that call.
        mean: Its result.
        invstd: Its result.
        bias: The values that it added.
    """
    input, residual, weight, _, scale, shift, num_groups, _, activation, negative_slope, _ = arguments
    if activation == ACTIVATIONS["identity"]:
        residual = shift = None
    ctx.save_for_backward(input, residual, weight, bias, scale, shift, mean, invstd)
    ctx.options = num_groups, activation, negative_slope


def _backward(ctx: Any, grad_output: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    """Return the gradients of the forward operator's arguments.

    Those of 16-bit parameters come in float32; autograd rounds them.
    """
    need_input, need_residual, *need = ctx.needs_input_grad[:6]
    input, residual, weight, bias, scale, shift, mean, invstd = ctx.saved_tensors
    num_groups, activation, negative_slope = ctx.options
    linear = activation == ACTIVATIONS["identity"]
    whole = getattr(ctx, "bias", None)
    if bias is not None and whole is not None and torch.is_grad_enabled():
        bias = bias + (whole - whole.detach())  # the value of the forward pass, the derivative of the argument
    grad_input, grad_residual, *gradients = call_backward(
        torch.ops.genimg_fast.group_norm_act_backward.default,
        gradients_reference,
        (grad_output,),
        input, residual, weight, bias, scale, shift, mean, invstd, num_groups, activation, negative_slope,
        need_input, need_residual and not linear, any(need),
    )  # fmt: skip
    return (
        grad_input if need_input else None,
        (grad_output if linear else grad_residual) if need_residual else None,
        *(g if n else None for g, n in zip(gradients, need, strict=True)),
        None, None, None, None, None,
    )  # fmt: skip


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, mean, invstd = output
    ctx.mark_non_differentiable(mean, invstd)
    _keep(ctx, inputs, mean, invstd, inputs[3])


def _keep_for_double_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    keep_inputs(ctx, inputs, output, 9)


def _double_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    result = list(double_backward(gradients_reference, ctx, *grads))
    # As in torch 2.14, input's and weight's gradients are functions of weight and bias, even where constant ones.
    if any(grads[k] is not None for k in (0, 2)):
        for k in (3, 4):
            if ctx.needs_input_grad[k] and result[k] is None:
                result[k] = torch.zeros_like(ctx.saved_tensors[k])
    return tuple(result)


if KERNELS.in_library:

    @torch.library.register_fake("genimg_fast::group_norm_act")
    def _(*arguments: Any) -> tuple[Tensor, ...]:
        operands, num_groups = Operands(*arguments[:6]), arguments[6]
        input = operands.input
        output = WIDE_DTYPE.get(input.dtype, input.dtype) if arguments[10] else input.dtype
        check_operands(operands, num_groups, output)
        mean = input.new_empty((input.shape[0], num_groups), dtype=WIDE_DTYPE[input.dtype])
        return dense_like(input, output), mean, torch.empty_like(mean)

    @torch.library.register_fake("genimg_fast::group_norm_act_backward")
    def _(*arguments: Any) -> tuple[Tensor, ...]:
        call = Backward(*arguments)
        check_backward(call)
        samples, channels = call.input.shape[:2]
        shapes = ((channels,), (channels,), (samples, channels), (samples, channels))
        return (
            *(
                dense_like(call.input, t.dtype) if n else t.new_empty(0)
                for n, t in ((call.need_input, call.input), (call.need_residual, call.grad_output))
            ),
            *(call.mean.new_empty(shape if call.need_parameters else 0) for shape in shapes),
        )

    torch.library.register_autograd("genimg_fast::group_norm_act", _backward, setup_context=_keep_for_backward)
    torch.library.register_autograd(
        "genimg_fast::group_norm_act_backward",
        _double_backward,
        setup_context=_keep_for_double_backward,
    )
