"""The compiled operators: calls, autograd and fake kernels."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from genimg_fast.ops._activations import ACTIVATIONS
from genimg_fast.ops._autograd import call_backward, double_backward, keep_inputs
from genimg_fast.ops._checks import WIDE_DTYPE
from genimg_fast.ops._dispatch import PLAIN_TENSORS, new
from genimg_fast.ops._layout import dense_like
from genimg_fast.ops.batch_norm_act.checks import check_backward, check_operands
from genimg_fast.ops.batch_norm_act.dispatch import KERNELS
from genimg_fast.ops.batch_norm_act.gradients import gradients_reference
from genimg_fast.ops.batch_norm_act.operands import Backward, EvalBackward, Operands, Options


def run_native(operands: Operands, options: Options) -> Tensor:
    """Run the compiled operators."""
    if torch.compiler.is_compiling():
        return _run_in_graph(operands, options)
    if torch.is_grad_enabled() and _require_grad(operands):
        return _BatchNormAct.apply(*(operands + options))  # one tuple: faster than two stars
    if options.training:
        return _train(*(operands + options[1:]))[0]
    return _evaluate(*(operands + options[2:]))


def _evaluate(*arguments: Any) -> Tensor:
    with torch._C._AutoDispatchBelowAutograd():  # nothing to record: passing by the formula saves microseconds
        return _eval(*arguments)


def _require_grad(operands: Operands) -> bool:
    input, residual, weight, bias, _, _ = operands
    return (
        input.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    )


def _run_in_graph(operands: Operands, options: Options) -> Tensor:
    """Do the same for torch.compile, with operators that are pure functions.

    Dynamo runs the backward of an autograd.Function without recording it, which would drop second-order gradients,
    and a formula cannot be registered for an operator that mutates its arguments.
    """
    operators, (input, residual, weight, bias, running_mean, running_var) = torch.ops.genimg_fast, operands
    # Copies that the forward pass itself uses: others are moved to the backward pass, behind a change.
    copying = options.activation != ACTIVATIONS["identity"] and torch.is_grad_enabled() and _require_grad(operands)
    if copying and bias is not None:
        bias = operators.copy.default(bias)
    if not options.training:
        evaluate = operators.batch_norm_act_eval_with_copies if copying else operators.batch_norm_act_eval
        evaluated = evaluate.default(input, residual, weight, bias, running_mean, running_var, *options[2:])
        return evaluated[0] if copying else evaluated
    output, mean, _, var = operators.batch_norm_act_train_functional.default(
        input, residual, weight, bias, *options[2:]
    )
    if running_mean is not None and running_var is not None:
        update_running_statistics((running_mean, running_var), (mean, var), options.momentum)
    return output


def update_running_statistics(
    running: tuple[Tensor, Tensor], batch: tuple[Tensor, Tensor], share: float | Tensor
) -> None:
    """Do what the kernels do with running statistics: average in the batch's dtype, round once.

    As with PyTorch's kernels, autograd does not notice: the backward of an evaluation may follow a training step.

    Args:
        running: Mean and variance, (C,) each, changed in place.
        batch: The same of one batch, of a dtype that is at least as wide.
        share: Weight of the batch.
    """
    with torch.no_grad():
        for average, value in zip(running, batch, strict=True):
            average.data.copy_(average.to(value.dtype) * (1 - share) + value * share)


class _BatchNormAct(torch.autograd.Function):
    """Autograd of the eager operators: costs less per call than formulas registered with the dispatcher."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        operands, training, numbers = arguments[:6], arguments[6], arguments[8:]
        if training:
            output, mean, spread = _train(*(operands + arguments[7:]))
        else:
            output = _evaluate(*(operands + numbers))
            mean, spread = operands[4:]
        _keep(ctx, operands[:4], mean, spread, training, numbers)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return *_backward(ctx, grad_output), None, None, None, None, None, None, None


def _keep(
    ctx: Any,
    tensors: tuple[Any, ...],
    mean: Tensor | None,
    spread: Tensor | None,
    training: bool,
    numbers: tuple[Any, ...],
    values: tuple[Tensor | None, ...] = (None, None),
) -> None:
    """Save what backward needs.

    Like PyTorch's kernels, evaluation keeps the running statistics, not their values: backward takes them as they
    are by then. The activation's branch is that of the forward pass, whatever happens to statistics and bias in
    between, so for it their values are kept too, those that the operator returned if it did.

    Args:
        ctx: Of the forward operator's call.
        tensors: Its input, residual, weight and bias.
        mean: That it normalised with.
        spread: Likewise; invstd in training, the running variance in evaluation.
        training: Whether these are of the batch.
        numbers: Its eps, activation and negative slope.
        values: Copies of the running statistics.
    """
    input, residual, weight, bias = tensors
    if numbers[1] == ACTIVATIONS["identity"]:
        residual = bias = None
    else:
        ctx.bias, bias = bias, None if bias is None else bias.clone()
        if not training and mean is not None and spread is not None and values[0] is None:
            values = mean.clone(), spread.clone()
    ctx.save_for_backward(input, residual, weight, bias, mean, spread, *values)
    ctx.options = training, *numbers


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of input, residual, weight and bias.

    Those of 16-bit parameters come in float32; autograd rounds them.
    """
    need_input, need_residual, need_weight, need_bias = ctx.needs_input_grad[:4]
    input, residual, weight, bias, mean, spread, *values = ctx.saved_tensors
    training, eps, activation, negative_slope = ctx.options
    linear = activation == ACTIVATIONS["identity"]
    if bias is not None and torch.is_grad_enabled():
        # The value of the forward pass, and the argument's second derivative: as in torch, zeros but for SiLU.
        if activation == ACTIVATIONS["silu"]:
            bias = bias + (ctx.bias - ctx.bias.detach())
        else:
            bias = torch.where(torch.ones_like(bias, dtype=torch.bool), bias, ctx.bias)
    tensors = grad_output, input, residual, weight, bias, mean, spread
    options = activation, negative_slope, need_input, need_residual and not linear
    if training:
        grad_input, grad_residual, grad_weight, grad_bias = _call_backward(
            new(Backward, (*tensors, True, *options))
        )
    else:
        # One operator to those who trace: torch.compile would move what it is made of to the forward pass.
        backward: Any = _backward_of_eval
        if type(grad_output) not in PLAIN_TENSORS:
            backward = torch.ops.genimg_fast.batch_norm_act_eval_backward.default
        grad_input, grad_residual, grad_weight, grad_bias = backward(*tensors, *values, eps, *options)
    return (
        grad_input if need_input else None,
        (grad_output if linear else grad_residual) if need_residual else None,
        grad_weight if need_weight else None,
        grad_bias if need_bias else None,
    )


def _backward_of_eval(*arguments: Any) -> Any:
    """Do what the backward operator does, for running statistics that may have changed since the forward pass.

    Those of the forward pass come with an activation only. On a GPU, where to compare takes a synchronisation,
    they stand for both.
    """
    call = EvalBackward.of(*arguments)
    input, residual, weight, bias, mean, var = call.operands
    changed = False
    if call.forward_mean is not None and call.forward_var is not None:
        changed = _has_changed(mean, call.forward_mean) or _has_changed(var, call.forward_var)
        if not changed:
            mean, var = call.forward_mean, call.forward_var
    whole = Backward(
        call.grad_output, input, residual, weight, bias, *_wide_statistics(input, mean, var, call.eps), False,
        call.activation, call.negative_slope, call.need_input, call.need_residual,
    )  # fmt: skip
    if not changed:
        return _call_backward(whole)
    # First through the activation, then through batch norm. An explicit residual, for the operator's second
    # derivative.
    forward_mean, forward_invstd = _wide_statistics(input, call.forward_mean, call.forward_var, call.eps)
    added = torch.zeros_like(input) if residual is None else residual
    through_activation = whole._replace(
        residual=added,
        mean=forward_mean,
        invstd=forward_invstd,
        need_input=False,
        need_residual=True,
    )
    if call.activation == ACTIVATIONS["silu"] and torch.is_grad_enabled():
        # Its second derivative has the values of the forward pass, and goes through batch norm as that is now.
        now = torch.batch_norm(input, weight, bias, mean, var, False, 0.0, call.eps, False)
        through_activation = through_activation._replace(
            input=input.detach(),
            residual=added + (now - now.detach()),
            weight=None if weight is None else weight.detach(),
            bias=None if bias is None else bias.detach(),
        )
    grad_residual = _call_backward(through_activation)[1]
    through_norm = whole._replace(
        grad_output=grad_residual,
        residual=None,
        bias=None,
        activation=ACTIVATIONS["identity"],
        need_residual=False,
    )
    gradients = _call_backward(through_norm)
    return (gradients[0], grad_residual, *gradients[2:]) if call.need_residual else gradients


def _has_changed(statistic: Any, before: Tensor) -> bool:
    return type(statistic) in PLAIN_TENSORS and statistic.is_cpu and not torch.equal(statistic, before)


def _wide_statistics(input: Tensor, mean: Any, var: Any, eps: float) -> tuple[Tensor, Tensor]:
    wide = WIDE_DTYPE[input.dtype]
    return mean.to(wide), torch.rsqrt(var.double() + eps).to(wide)


def _call_backward(call: Backward) -> Any:
    operator = torch.ops.genimg_fast.batch_norm_act_backward.default
    return call_backward(operator, gradients_reference, call[:1], *call[1:])


def _keep_for_train_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, mean, invstd, var = output
    ctx.mark_non_differentiable(mean, invstd, var)
    _keep(ctx, inputs[:4], mean, invstd, True, inputs[4:])


def _train_backward(ctx: Any, grad_output: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_backward(ctx, grad_output), None, None, None


def _keep_for_eval_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor | tuple[Tensor, ...]) -> None:
    values = output[1:] if isinstance(output, tuple) else (None, None)
    ctx.mark_non_differentiable(*(t for t in values if t is not None))
    _keep(ctx, inputs[:4], inputs[4], inputs[5], False, inputs[6:], values)


def _eval_backward(ctx: Any, grad_output: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_backward(ctx, grad_output), None, None, None, None, None


def _keep_for_double_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    keep_inputs(ctx, inputs, output, 7)


def _statistics_like(input: Tensor, count: int) -> list[Tensor]:
    return [input.new_empty(input.shape[1], dtype=WIDE_DTYPE[input.dtype]) for _ in range(count)]


if KERNELS.in_library:
    _train = torch.ops.genimg_fast.batch_norm_act_train.default
    _eval = torch.ops.genimg_fast.batch_norm_act_eval.default

    @torch.library.register_fake("genimg_fast::batch_norm_act_train")
    def _(*arguments: Any) -> tuple[Tensor, ...]:
        operands = Operands(*arguments[:6])
        check_operands(operands)
        return dense_like(operands.input), *_statistics_like(operands.input, 2)

    @torch.library.register_fake("genimg_fast::batch_norm_act_train_functional")
    def _(*arguments: Any) -> tuple[Tensor, ...]:
        operands = Operands._make((*arguments[:4], None, None))
        check_operands(operands)
        return dense_like(operands.input), *_statistics_like(operands.input, 3)

    @torch.library.register_fake("genimg_fast::batch_norm_act_eval")
    def _(*arguments: Any) -> Tensor:
        operands = Operands(*arguments[:6])
        check_operands(operands)
        return dense_like(operands.input)

    @torch.library.register_fake("genimg_fast::batch_norm_act_backward")
    def _(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        call = Backward(*arguments)
        check_backward(call)
        dense, nothing = dense_like(call.input), call.input.new_empty(0)
        return (
            dense if call.need_input else nothing,
            torch.empty_like(dense) if call.need_residual else torch.empty_like(nothing),
            torch.empty_like(call.mean),
            torch.empty_like(call.mean),
        )

    # Operators of torch.compile's graphs, where only PyTorch's are moved between the forward and backward pass.
    _LIBRARY = torch.library.Library("genimg_fast", "FRAGMENT")

    def _define(name: str, schema: str, function: Any) -> None:
        """Define an operator whose kernels and fake kernel are one function, of operators that have both."""
        _LIBRARY.define(f"{name}{schema}")
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")
        torch.library.register_fake(f"genimg_fast::{name}", function)

    def _eval_with_copies(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        running_mean, running_var = arguments[4:6]
        return _eval(*arguments), running_mean.clone(), running_var.clone()

    _define("copy", "(Tensor vector) -> Tensor", Tensor.clone)
    _define(
        "batch_norm_act_eval_with_copies",
        "(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, Tensor running_mean, Tensor running_var, "
        "float eps, int activation, float negative_slope) -> (Tensor, Tensor, Tensor)",
        _eval_with_copies,
    )
    _define(
        "batch_norm_act_eval_backward",
        "(Tensor grad_output, Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, Tensor running_mean, "
        "Tensor running_var, Tensor? forward_mean, Tensor? forward_var, float eps, int activation, "
        "float negative_slope, bool need_input, bool need_residual) -> (Tensor, Tensor, Tensor, Tensor)",
        _backward_of_eval,
    )
    torch.library.register_autograd("genimg_fast::copy", lambda ctx, grad: grad)
    torch.library.register_autograd(
        "genimg_fast::batch_norm_act_train_functional", _train_backward, setup_context=_keep_for_train_backward
    )
    for _name in ("batch_norm_act_eval", "batch_norm_act_eval_with_copies"):
        torch.library.register_autograd(
            f"genimg_fast::{_name}", _eval_backward, setup_context=_keep_for_eval_backward
        )
    torch.library.register_autograd(
        "genimg_fast::batch_norm_act_backward",
        partial(double_backward, gradients_reference),
        setup_context=_keep_for_double_backward,
    )
