"""What the backward formulas of several operator families have in common."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_legacy_batchedtensor
from torch.autograd import forward_ad


def call_backward(operator: Any, formula: Callable[..., Any], grads: Sequence[Tensor | None], *others: Any) -> Any:
    """Call a backward operator, or do the same in PyTorch operations where a transform has to see those.

    The forward pass may have run on its kernel long before anyone decided to transform the backward pass: to take
    many gradients at a time (``is_grads_batched``), or the derivative of the gradient along a direction.

    Args:
        operator: Takes ``grads``, then ``others``.
        formula: Likewise, with the same results.
        grads: At the results of the forward operator.
        others: Whatever else the operator takes.
    """
    if torch.compiler.is_compiling():
        return operator(*grads, *others)
    if forward_ad._current_level >= 0 or torch._C._are_functorch_transforms_active():
        return formula(*grads, *others)
    for grad in grads:
        if grad is not None and is_legacy_batchedtensor(grad):
            return formula(*grads, *others)
    if torch.is_grad_enabled():  # its derivatives may be taken
        return operator(*grads, *others)
    # Nothing to record: passing by the registered formula saves 10 microseconds.
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*grads, *others)


def keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Any, tensors: int | None = None) -> None:
    """Keep an operator's arguments for its derivatives; only the first `tensors` are tensors, by default all."""
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:tensors])
    ctx.options = () if tensors is None else inputs[tensors:]


def double_backward(formula: Callable[..., Any], ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """Differentiate a backward operator whose arguments :func:`keep_inputs` kept.

    Args:
        formula: Computes the same from the same arguments, in PyTorch operations.
        ctx: Of the operator's call.
        grads: At the operator's results.
    """
    create_graph = torch.is_grad_enabled()
    result: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
    with torch.enable_grad():
        # Saved tensors may depend on each other; each gradient is to follow its own.
        tensors = [
            t if t is None or not t.is_floating_point() else t.view_as(t) if t.requires_grad
            else t.detach().requires_grad_() for t in ctx.saved_tensors
        ]  # fmt: skip
        wanted = [k for k, t in enumerate(tensors) if t is not None and ctx.needs_input_grad[k]]
        outputs = formula(*tensors, *ctx.options)
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
        if not (wanted and pairs):
            return tuple(result)
        gradients = torch.autograd.grad(
            [o for o, _ in pairs],
            [tensors[k] for k in wanted],
            [g for _, g in pairs],
            allow_unused=True,
            create_graph=create_graph,
        )
    for k, gradient in zip(wanted, gradients, strict=True):
        result[k] = gradient
    return tuple(result)
