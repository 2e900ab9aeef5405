"""The compiled operators: calls, autograd and fake kernels."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from genimg_fast.ops._autograd import call_backward, double_backward, keep_inputs
from genimg_fast.ops.recurrent.checks import check_backward, check_operands
from genimg_fast.ops.recurrent.dispatch import KERNELS
from genimg_fast.ops.recurrent.gradients import gradients_reference
from genimg_fast.ops.recurrent.operands import CELLS, LSTM, Backward, Operands, Options


def run_native(operands: Operands, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """Run layers on the compiled operator, which checks what there is.

    Returns:
        Output, (T, B, D * H) or (N, D * H), final state, final cell state (empty unless the cell is an LSTM).
    """
    input, h0, c0, batch_sizes, weights = operands
    differentiable = torch.is_grad_enabled() and (
        input.requires_grad
        or h0.requires_grad
        or (c0 is not None and c0.requires_grad)
        or any(weight.requires_grad for weight in weights)
    )
    if differentiable and not torch.compiler.is_compiling():
        output, h_n, c_n, *_ = _Layers.apply(input, h0, c0, batch_sizes, *options, True, *weights)
        return output, h_n, c_n
    # Dynamo runs the backward of an autograd.Function without recording it, which would drop second-order
    # gradients; the operators' registered formulas do without.
    operator = torch.ops.genimg_fast.recurrent.default
    if torch.compiler.is_compiling():
        return operator(*operands, *options, differentiable)[:3]
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*operands, *options, differentiable)[:3]


def _keep_for_backward(ctx: Any, inputs: Sequence[Any], weights: Sequence[Tensor], kept: Sequence[Tensor]) -> None:
    """Keep what :func:`_gradients` needs; `inputs` are the operator's but the weights.

    That is nothing which torch's own layers let the caller change in place: neither the output nor the biases.
    """
    input, h0, c0, batch_sizes, cell, bidirectional, reverse, keep = inputs
    if not keep:
        raise RuntimeError("recurrent: keep must be True where gradients are needed")
    each = len(weights) // h0.shape[0]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, h0, c0, batch_sizes, *kept, *(w for k, w in enumerate(weights) if k % each < 2))
    ctx.kept, ctx.options = len(kept), (cell, bidirectional, reverse, each == 4)


def _gradients(
    ctx: Any, grads: Sequence[Tensor | None], grad_kept: Sequence[Tensor | None], need: Sequence[bool], count: int
) -> tuple[Any, ...] | None:
    """Return the gradients of input, states and weights, or None if all of them are.

    Args:
        ctx: Of the forward operator's call.
        grads: At its output and final states.
        grad_kept: At what it kept for backward.
        need: Of input, h0 and c0, then of the weights, which of them are needed.
        count: Number of weights.
    """
    grad_output, grad_h_n, grad_c_n = grads
    if ctx.options[0] != LSTM:
        grad_c_n = None
    direct = any(grad is not None for grad in grad_kept)
    if grad_output is None and grad_h_n is None and grad_c_n is None and not direct:
        return None
    saved = ctx.saved_tensors
    kept, weights = saved[4 : 4 + ctx.kept], saved[4 + ctx.kept :]
    grads = (grad_output, grad_h_n, grad_c_n)
    others = (*saved[:4], kept, weights, *ctx.options, need[0], any(need[3:]))
    if direct:
        # Only derivatives of higher order come here.
        *found, grad_weights = gradients_reference(*grads, *others, grad_kept=grad_kept)
    else:
        operator = torch.ops.genimg_fast.recurrent_backward.default
        *found, grad_weights = call_backward(operator, gradients_reference, grads, *others)
    none: list[Any] = [None] * count
    return tuple(g if n else None for g, n in zip((*found, *(grad_weights or none)), need, strict=True))


class _Layers(torch.autograd.Function):
    """Autograd of the operator in eager mode: costs less per call than the formula registered for torch.compile.

    What is kept for backward is an output like the others: that is how gradients of second order find their way
    to it.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        inputs, weights = arguments[:8], arguments[8:]
        with torch._C._AutoDispatchBelowAutograd():
            *outputs, kept = torch.ops.genimg_fast.recurrent.default(*inputs[:4], weights, *inputs[4:])
        _keep_for_backward(ctx, inputs, weights, kept)
        return *outputs, *kept

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        need = ctx.needs_input_grad
        found = _gradients(ctx, grads[:3], grads[3:], need[:3] + need[8:], len(need) - 8)
        if found is None:
            return (None,) * len(need)
        return *found[:3], None, None, None, None, None, *found[3:]


if KERNELS.in_library:

    @torch.library.register_fake("genimg_fast::recurrent")
    def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        operands, options, keep = Operands(*arguments[:5]), Options(*arguments[5:8]), arguments[8]
        _, hidden = check_operands(operands, options)
        input, h0 = operands.input, operands.h0
        parts, directions = h0.shape[0], options.directions
        rows, values = input.shape[:-1].numel(), CELLS[options.cell].reserve * hidden
        output, *outputs = (
            input.new_empty((*input.shape[:-1], directions * hidden))
            for _ in range(1 + (parts // directions if keep else 0))
        )
        reserves = [input.new_empty((rows, values)) for _ in range(parts if keep and values else 0)]
        c_n = input.new_empty(h0.shape if options.cell == LSTM else 0)
        return output, input.new_empty(h0.shape), c_n, outputs + reserves

    @torch.library.register_fake("genimg_fast::recurrent_backward")
    def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        call = Backward.of(*arguments)
        check_backward(call)
        input, h0, *_, weights = call.operands
        return (
            input.new_empty(input.shape if call.need_input else 0),
            input.new_empty(h0.shape),
            input.new_empty(h0.shape if call.options.cell == LSTM else 0),
            [
                input.new_empty(shape)
                for k in range(h0.shape[0] if call.need_weights else 0)
                for shape in (
                    *(weight.shape for weight in weights[2 * k : 2 * k + 2]),
                    *([weights[2 * k].shape[:1]] * (2 if call.biased else 0)),
                )
            ],
        )

    def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        _keep_for_backward(ctx, inputs[:4] + inputs[5:], inputs[4], output[3])

    def _backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        need = ctx.needs_input_grad
        found = _gradients(ctx, grads[:3], grads[3], [*need[:3], *need[4]], len(need[4]))
        if found is None:
            found = (None,) * (3 + len(need[4]))
        return *found[:3], None, list(found[3:]), None, None, None, None

    def _setup_double_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kept = len(inputs[7])
        keep_inputs(ctx, (*inputs[:7], *inputs[7], *inputs[8], *inputs[9:]), output, 7 + ctx.kept + len(inputs[8]))

    def _double_backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        need, first = ctx.needs_input_grad, 7 + ctx.kept  # first: of the weights among the tensors

        def formula(*arguments: Any) -> tuple[Tensor, ...]:
            tensors, options = arguments[:-6], arguments[-6:]
            lists = tensors[7:first], tensors[first:]
            *found, grad_weights = gradients_reference(*tensors[:7], *lists, *options)
            return *found, *grad_weights

        flat = SimpleNamespace(
            saved_tensors=ctx.saved_tensors, needs_input_grad=(*need[:7], *need[7], *need[8]), options=ctx.options
        )
        found = double_backward(formula, flat, *grads[:3], *grads[3])
        return *found[:7], list(found[7:first]), list(found[first:]), None, None, None, None, None, None

    torch.library.register_autograd("genimg_fast::recurrent", _backward, setup_context=_setup_context)
    torch.library.register_autograd(
        "genimg_fast::recurrent_backward", _double_backward, setup_context=_setup_double_backward
    )
