"""Batch norm, an optional residual and an activation as one operator.

Batch norm: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg_fast import _native
from genimg_fast.ops._autograd import call_backward, double_backward, keep_inputs
from genimg_fast.ops._dispatch import PLAIN_TENSORS, TRANSFORMED, Kernels, is_transformed

ACTIVATIONS = {"identity": 0, "relu": 1, "leaky_relu": 2}

# CPU inputs with fewer elements than this run on PyTorch's own kernels unless the backend is "native": calling a
# custom operator from Python costs a few microseconds more than calling a built-in one. The second figure is for
# 16-bit data in NCHW, for which PyTorch is faster than for the rest.
SMALLEST_NATIVE_NUMEL, SMALLEST_NATIVE_NUMEL_16_BIT = 24 << 10, 48 << 10

_STATISTICS_DTYPE = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}


def batch_norm_act_reference(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str = "leaky_relu",
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
) -> Tensor:
    """Compute :func:`batch_norm_act` with PyTorch's own operators: the definition of what is right.

    Example:
        >>> import torch, genimg_fast as gf
        >>> x = torch.randn(8, 64, 16, 16)
        >>> expected = gf.ops.batch_norm_act_reference(x, training=True)
        >>> torch.allclose(gf.ops.batch_norm_act(x, training=True), expected, atol=1e-5)
        True
    """
    output = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return _add_and_activate(output, residual, activation, negative_slope)


def _add_and_activate(output: Tensor, residual: Tensor | None, activation: str, negative_slope: float) -> Tensor:
    if residual is not None:
        output = output + residual
    if activation == "relu":
        return F.relu(output)
    if activation == "leaky_relu":
        return F.leaky_relu(output, negative_slope)
    return output


def batch_norm_act(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str = "leaky_relu",
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
) -> Tensor:
    """Normalise each channel over the batch, add a residual, apply an activation, in one pass.

    Equals ``activation(F.batch_norm(input, ...) + residual)``: same numbers, running statistics, gradients of
    first and second order and errors. Backward needs only the input and two values per channel.

    Parameters and running statistics are of the input's dtype or, beside 16-bit input, all of float32. The
    arithmetic is in float32 (float64 for float64) either way.

    Args:
        input: (N, C, *), float32, float64, bfloat16 or float16, in any memory layout.
        running_mean: (C,), updated in place in training; required in evaluation.
        running_var: (C,), likewise; receives the unbiased variance.
        weight: (C,), scale; None stands for ones.
        bias: (C,), shift; None stands for zeros.
        training: Normalise with the statistics of this batch (True) or the running ones (False).
        momentum: Share of this batch's statistics in the running ones.
        eps: Added to the variance.
        activation: ``"identity"``, ``"relu"`` or ``"leaky_relu"``.
        negative_slope: Slope of ``"leaky_relu"`` below zero.
        residual: Shape of ``input``; added before the activation.

    Returns:
        Shape, dtype and memory format of ``input``.

    Raises:
        ValueError: The activation is unknown, or training has one value per channel.
        RuntimeError: Shapes, dtypes or devices do not fit, as :func:`torch.nn.functional.batch_norm` says; or
            the backend is ``"native"`` and no compiled kernel takes these arguments.

    Example:
        >>> import torch, genimg_fast as gf
        >>> x = torch.randn(8, 64, 16, 16)
        >>> gf.ops.batch_norm_act(x, training=True, activation="leaky_relu", negative_slope=0.2).shape
        torch.Size([8, 64, 16, 16])
    """
    code = ACTIVATIONS.get(activation)
    if code is None:
        raise ValueError(f"unknown activation {activation!r}; choose one of {', '.join(ACTIVATIONS)}")
    # To look at sizes is to be warned by torch.jit.trace, whose graph consists of PyTorch's operators anyhow.
    backend = "reference" if torch._C._get_tracing_state() is not None else _native._backend
    compiling = torch.compiler.is_compiling()
    # Under torch.compile the cost of the call is paid at compile time; comparing the size would only put a guard
    # on a dimension that the user declared dynamic.
    if backend == "auto" and not compiling and _is_faster_on_torch(input):
        if eps > 0 and (not training or (input.dim() > 1 and input.numel() > input.shape[1])):
            # What F.batch_norm does once it has checked these.
            output = torch.batch_norm(
                input, weight, bias, running_mean, running_var, training, momentum, eps,
                torch.backends.cudnn.enabled,
            )  # fmt: skip
            return _add_and_activate(output, residual, activation, negative_slope)
    elif backend != "reference":
        reason = _why_not_native(input, running_mean, running_var, weight, bias, training, eps, residual)
        if reason is None:
            forward = _compiled_forward if compiling else _native_forward
            return forward(
                input, residual, weight, bias, running_mean, running_var, training, momentum, eps, code,
                negative_slope,
            )  # fmt: skip
        if backend == "native" and reason not in _LEFT_TO_TORCH:
            raise RuntimeError(f"batch_norm_act: backend 'native' was asked for, but {reason}")
    return batch_norm_act_reference(
        input, running_mean, running_var, weight, bias, training, momentum, eps,
        activation=activation, negative_slope=negative_slope, residual=residual,
    )  # fmt: skip


def _is_faster_on_torch(input: Tensor) -> bool:
    if type(input) is not Tensor or not input.is_cpu:
        return False
    numel = input.numel()
    return numel < SMALLEST_NATIVE_NUMEL or (
        numel < SMALLEST_NATIVE_NUMEL_16_BIT and input.element_size() == 2 and input.is_contiguous()
    )


_BAD_INPUT = "the arguments are not valid"
_EMPTY = "the input is empty"
# Even with backend "native" these go to PyTorch, which raises the error users know or has nothing to compute.
_LEFT_TO_TORCH = (_BAD_INPUT, TRANSFORMED, _EMPTY)


def _why_not_native(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    eps: float,
    residual: Tensor | None,
) -> str | None:
    """Return None if the compiled kernel takes these arguments, else the reason why it does not.

    Whatever PyTorch itself would refuse is left to PyTorch, so that its own error is what the user sees. This is
    everything that the operators check, and more: they see neither transforms nor tensor subclasses, and they take
    a few inputs that PyTorch refuses. It runs at every call: a microsecond here is a few percent of a small one.
    """
    if type(input) not in PLAIN_TENSORS:
        return TRANSFORMED
    shape, dtype, device = input.shape, input.dtype, input.device
    if len(shape) < 2:
        return _BAD_INPUT
    kernels = "cpu" if input.is_cpu else "cuda" if input.is_cuda else device.type  # the last one takes long
    if (missing := KERNELS.why_unavailable(kernels)) is not None:
        return missing
    wide = _STATISTICS_DTYPE.get(dtype)
    if wide is None:
        return f"it has no kernel for {dtype} input"
    numel = input.numel()
    if numel == 0:
        return _EMPTY
    if (training and numel == shape[1]) or not eps > 0:
        return _BAD_INPUT
    if (running_mean is None) != (running_var is None) or (running_mean is None and not training):
        return _BAD_INPUT
    per_channel, common = (shape[1],), None
    for tensor in (weight, bias, running_mean, running_var):
        if tensor is None:
            continue
        if type(tensor) not in PLAIN_TENSORS:
            return TRANSFORMED
        if tensor.shape != per_channel or tensor.device != device:
            return _BAD_INPUT
        kind = tensor.dtype
        if kind is not common:
            if common is not None:
                return f"parameters and statistics must have one dtype, got {common} and {kind}"
            if kind is not wide and kind is not dtype:
                return f"parameters and statistics must be {dtype} or {wide} for {dtype} input, got {kind}"
            common = kind
        if not tensor.is_contiguous():
            return "parameters and statistics must be contiguous"
    if running_mean is not None and (running_mean.requires_grad or running_var.requires_grad):  # type: ignore[union-attr]
        return "running statistics require a gradient"
    if residual is not None:
        if type(residual) not in PLAIN_TENSORS:
            return TRANSFORMED
        if residual.shape != shape or residual.dtype is not dtype or residual.device != device:
            return "residual must have the input's shape, dtype and device"
    return TRANSFORMED if is_transformed(input) else None


def _native_forward(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: int,
    negative_slope: float,
) -> Tensor:
    if _is_recorded(input, residual, weight, bias):
        output = _BatchNormAct.apply(
            input, residual, weight, bias, running_mean, running_var, training, momentum, eps, activation,
            negative_slope,
        )  # fmt: skip
    elif training:
        output = _train(
            input, residual, weight, bias, running_mean, running_var, momentum, eps, activation, negative_slope
        )[0]
    else:
        output = _eval(input, residual, weight, bias, running_mean, running_var, eps, activation, negative_slope)
    return output


def _is_recorded(input: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether autograd is to record the call."""
    return torch.is_grad_enabled() and (
        input.requires_grad
        or (weight is not None and weight.requires_grad)
        or (bias is not None and bias.requires_grad)
        or (residual is not None and residual.requires_grad)
    )


def _compiled_forward(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: int,
    negative_slope: float,
) -> Tensor:
    """Do the same for torch.compile, with operators that are pure functions.

    Dynamo runs the backward of an autograd.Function without recording it, which would drop second-order gradients,
    and a formula cannot be registered for an operator that mutates its arguments.
    """
    operators = torch.ops.genimg_fast
    # Copies that the forward pass itself uses: others are moved to the backward pass, behind a change.
    copying = activation != ACTIVATIONS["identity"] and _is_recorded(input, residual, weight, bias)
    if copying and bias is not None:
        bias = operators.copy.default(bias)
    if not training:
        evaluate = operators.batch_norm_act_eval_with_copies if copying else operators.batch_norm_act_eval
        evaluated = evaluate.default(
            input, residual, weight, bias, running_mean, running_var, eps, activation, negative_slope
        )
        return evaluated[0] if copying else evaluated
    output, mean, _, var = operators.batch_norm_act_train_functional.default(
        input, residual, weight, bias, eps, activation, negative_slope
    )
    if running_mean is not None and running_var is not None:
        update_running_statistics((running_mean, running_var), (mean, var), momentum)
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
    def forward(
        ctx: Any,
        input: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        training: bool,
        momentum: float,
        eps: float,
        activation: int,
        negative_slope: float,
    ) -> Tensor:
        if training:
            output, mean, spread = _train(
                input, residual, weight, bias, running_mean, running_var, momentum, eps, activation,
                negative_slope,
            )  # fmt: skip
        else:
            output = _eval(
                input, residual, weight, bias, running_mean, running_var, eps, activation, negative_slope
            )
            mean, spread = running_mean, running_var
        _keep(ctx, input, residual, weight, bias, mean, spread, training, eps, activation, negative_slope)
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        return *_backward(ctx, grad_output), None, None, None, None, None, None, None


def _keep(
    ctx: Any,
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor | None,
    spread: Tensor | None,
    training: bool,
    eps: float,
    activation: int,
    negative_slope: float,
    values: tuple[Tensor | None, ...] = (None, None),
) -> None:
    """Save what backward needs; ``spread`` is invstd in training, the running variance in evaluation.

    Like PyTorch's kernels, evaluation keeps the running statistics, not their values: backward takes them as they
    are by then. The activation's branch is that of the forward pass, whatever happens to statistics and bias in
    between, so for it their values are kept too, those that the operator returned if it did.
    """
    if activation == ACTIVATIONS["identity"]:
        residual = bias = None
    else:
        ctx.bias, bias = bias, None if bias is None else bias.clone()
        if not training and mean is not None and spread is not None and values[0] is None:
            values = mean.clone(), spread.clone()
    ctx.save_for_backward(input, residual, weight, bias, mean, spread, *values)
    ctx.options = training, eps, activation, negative_slope


def _backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients of input, residual, weight and bias.

    Those of 16-bit parameters come in float32; autograd rounds them.
    """
    need_input, need_residual, need_weight, need_bias = ctx.needs_input_grad[:4]
    input, residual, weight, bias, mean, spread, *values = ctx.saved_tensors
    training, eps, activation, negative_slope = ctx.options
    linear = activation == ACTIVATIONS["identity"]
    if bias is not None and torch.is_grad_enabled():
        # The value of the forward pass, and a second derivative of zeros as in torch.
        bias = torch.where(torch.ones_like(bias, dtype=torch.bool), bias, ctx.bias)
    needed = need_input, need_residual and not linear
    if training:
        grad_input, grad_residual, grad_weight, grad_bias = _call_backward(
            grad_output, input, residual, weight, bias, mean, spread, True, activation, negative_slope, *needed
        )
    else:
        # One operator to those who trace: torch.compile would move what it is made of to the forward pass.
        backward: Any = _backward_of_eval
        if type(grad_output) not in PLAIN_TENSORS:
            backward = torch.ops.genimg_fast.batch_norm_act_eval_backward.default
        grad_input, grad_residual, grad_weight, grad_bias = backward(
            grad_output, input, residual, weight, bias, mean, spread, *values, eps, activation, negative_slope,
            *needed,
        )  # fmt: skip
    return (
        grad_input if need_input else None,
        (grad_output if linear else grad_residual) if need_residual else None,
        grad_weight if need_weight else None,
        grad_bias if need_bias else None,
    )


def _backward_of_eval(
    grad_output: Tensor,
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    forward_mean: Tensor | None,
    forward_var: Tensor | None,
    eps: float,
    activation: int,
    negative_slope: float,
    need_input: bool,
    need_residual: bool,
) -> Any:
    """Do what the backward operator does, for running statistics that may have changed since the forward pass.

    Those of the forward pass come with an activation only. On a GPU, where to compare takes a synchronisation,
    they stand for both.
    """
    after_activation = None
    if forward_mean is not None and forward_var is not None:
        if _has_changed(running_mean, forward_mean) or _has_changed(running_var, forward_var):
            # First through the activation, then through batch norm. An explicit residual, for the operator's
            # second derivative.
            added = torch.zeros_like(input) if residual is None else residual
            forward = _wide_statistics(input, forward_mean, forward_var, eps)
            grad_output = _call_backward(
                grad_output, input, added, weight, bias, *forward, False, activation, negative_slope, False, True
            )[1]
            after_activation = grad_output if need_residual else None
            activation, residual, bias, need_residual = ACTIVATIONS["identity"], None, None, False
        else:
            running_mean, running_var = forward_mean, forward_var
    statistics = _wide_statistics(input, running_mean, running_var, eps)
    gradients = _call_backward(
        grad_output, input, residual, weight, bias, *statistics, False, activation, negative_slope, need_input,
        need_residual,
    )  # fmt: skip
    return gradients if after_activation is None else (gradients[0], after_activation, *gradients[2:])


def _has_changed(statistic: Tensor, before: Tensor) -> bool:
    return type(statistic) in PLAIN_TENSORS and statistic.is_cpu and not torch.equal(statistic, before)


def _wide_statistics(input: Tensor, mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = _STATISTICS_DTYPE[input.dtype]
    return mean.to(wide), torch.rsqrt(var.double() + eps).to(wide)


def _call_backward(grad_output: Tensor, *others: Any) -> Any:
    operator = torch.ops.genimg_fast.batch_norm_act_backward.default
    return call_backward(operator, _backward_reference, (grad_output,), *others)


def _keep_for_train_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    input, residual, weight, bias, eps, activation, negative_slope = inputs
    _, mean, invstd, var = output
    ctx.mark_non_differentiable(mean, invstd, var)
    _keep(ctx, input, residual, weight, bias, mean, invstd, True, eps, activation, negative_slope)


def _train_backward(ctx: Any, grad_output: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_backward(ctx, grad_output), None, None, None


def _keep_for_eval_backward(ctx: Any, inputs: tuple[Any, ...], output: Tensor | tuple[Tensor, ...]) -> None:
    input, residual, weight, bias, running_mean, running_var, eps, activation, negative_slope = inputs
    statistics, values = (running_mean, running_var), output[1:] if isinstance(output, tuple) else (None, None)
    ctx.mark_non_differentiable(*(t for t in values if t is not None))
    _keep(ctx, input, residual, weight, bias, *statistics, False, eps, activation, negative_slope, values)


def _eval_backward(ctx: Any, grad_output: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_backward(ctx, grad_output), None, None, None, None, None


def _backward_reference(
    grad_output: Tensor,
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    invstd: Tensor,
    training: bool,
    activation: int,
    negative_slope: float,
    need_input: bool,
    need_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute what the backward operator does, in PyTorch operations, to be transformed or differentiated.

    Statistics have the values given; in training they also depend on the input. Results that are not needed are
    empty.
    """
    wide, dims = mean.dtype, [d for d in range(input.dim()) if d != 1]
    shape = [1, -1] + [1] * (input.dim() - 2)
    grad, x = grad_output.to(wide), input.to(wide)
    mean, invstd = mean.detach().view(shape), invstd.detach().view(shape)
    if training and x.requires_grad:
        batch_variance, batch_mean = torch.var_mean(x, dims, correction=0, keepdim=True)
        mean = mean + (batch_mean - batch_mean.detach())
        invstd = (invstd.pow(-2) + (batch_variance - batch_variance.detach())).rsqrt()
    normalised = (x - mean) * invstd
    scale = invstd if weight is None else invstd * weight.to(wide).view(shape)
    if activation != ACTIVATIONS["identity"]:
        before = normalised if weight is None else normalised * weight.to(wide).view(shape)
        if bias is not None:
            before = before + bias.to(wide).view(shape)
        if residual is not None:
            before = before + residual.to(wide)
        # What the gradient of the activation records in torch: a second derivative of zeros by what it was given.
        if activation == ACTIVATIONS["relu"]:
            grad = torch.ops.aten.threshold_backward(grad, before, 0)
        else:
            grad = torch.ops.aten.leaky_relu_backward(grad, before, negative_slope, False)
    grad_bias, grad_weight = grad.sum(dims), (grad * normalised).sum(dims)
    grad_input = grad_residual = input.new_empty(0)
    if need_input:
        inner = grad
        if training:
            mean_grad, mean_product = (t.view(shape) * (x.shape[1] / x.numel()) for t in (grad_bias, grad_weight))
            inner = grad - mean_grad - normalised * mean_product
        grad_input = (inner * scale).to(input.dtype)
    if need_residual:
        grad_residual = grad.to(input.dtype)
    return grad_input, grad_residual, grad_weight, grad_bias


def _keep_for_double_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    keep_inputs(ctx, inputs, output, 7)


def _double_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """Differentiate the backward operator, for gradient penalties."""
    return double_backward(_backward_reference, ctx, *grads)


def _dense_like(input: Tensor) -> Tensor:
    """An empty tensor with the dtype, shape and strides the kernels give their outputs."""
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(input.dim())
    if not input.is_contiguous() and channels_last and input.is_contiguous(memory_format=channels_last):
        return torch.empty_like(input, memory_format=channels_last)
    return torch.empty_like(input, memory_format=torch._prims_common.suggest_memory_format(input))


KERNELS = Kernels("batch_norm_act_train_functional")

if KERNELS.in_library:
    _train = torch.ops.genimg_fast.batch_norm_act_train.default
    _eval = torch.ops.genimg_fast.batch_norm_act_eval.default

    @torch.library.register_fake("genimg_fast::batch_norm_act_train")
    def _(
        input: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
        activation: int,
        negative_slope: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        _check(input, (residual,), (weight, bias, running_mean, running_var))
        statistics = input.new_empty(input.shape[1], dtype=_STATISTICS_DTYPE[input.dtype])
        return _dense_like(input), statistics, torch.empty_like(statistics)

    @torch.library.register_fake("genimg_fast::batch_norm_act_train_functional")
    def _(
        input: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        activation: int,
        negative_slope: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        _check(input, (residual,), (weight, bias))
        statistics = input.new_empty(input.shape[1], dtype=_STATISTICS_DTYPE[input.dtype])
        return _dense_like(input), statistics, torch.empty_like(statistics), torch.empty_like(statistics)

    @torch.library.register_fake("genimg_fast::batch_norm_act_eval")
    def _(
        input: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor,
        running_var: Tensor,
        eps: float,
        activation: int,
        negative_slope: float,
    ) -> Tensor:
        _check(input, (residual,), (weight, bias, running_mean, running_var))
        return _dense_like(input)

    @torch.library.register_fake("genimg_fast::batch_norm_act_backward")
    def _(
        grad_output: Tensor,
        input: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        invstd: Tensor,
        training: bool,
        activation: int,
        negative_slope: float,
        need_input: bool,
        need_residual: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        _check(input, (grad_output, residual), (weight, bias), (mean, invstd))
        dense, nothing = _dense_like(input), input.new_empty(0)
        return (
            dense if need_input else nothing,
            torch.empty_like(dense) if need_residual else torch.empty_like(nothing),
            torch.empty_like(mean),
            torch.empty_like(mean),
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
        "genimg_fast::batch_norm_act_backward", _double_backward, setup_context=_keep_for_double_backward
    )


def _check(
    input: Tensor,
    like_input: tuple[Tensor | None, ...],
    per_channel: tuple[Tensor | None, ...],
    statistics: tuple[Tensor, ...] = (),
) -> None:
    """The checks of csrc/batch_norm_act.h, so that tracing refuses what the kernels would refuse."""
    torch._check(input.dim() >= 2, lambda: f"batch_norm_act: input must be (N, C, ...), got {input.dim()}-d")
    torch._check(
        input.dtype in _STATISTICS_DTYPE,
        lambda: f"batch_norm_act: input must be float32, float64, bfloat16 or float16, got {input.dtype}",
    )
    for tensor in like_input:
        torch._check(
            tensor is None
            or (tensor.shape == input.shape and tensor.dtype == input.dtype and tensor.device == input.device),
            lambda: "batch_norm_act: residual and grad_output must have the input's shape, dtype and device",
        )
    wide = _STATISTICS_DTYPE[input.dtype]
    for tensors, dtypes in ((per_channel, (input.dtype, wide)), (statistics, (wide,))):
        for tensor in tensors:
            torch._check(
                tensor is None
                or (
                    tensor.shape == (input.shape[1],) and tensor.dtype in dtypes and tensor.device == input.device
                ),
                lambda: (
                    "batch_norm_act: parameters and statistics must have one value per channel of the input, on "
                    "its device, in its dtype or, beside 16-bit input, in float32"
                ),
            )
