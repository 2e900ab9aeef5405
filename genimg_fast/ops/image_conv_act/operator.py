"""The compiled operators: calls, autograd and fake kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from genimg_fast.ops._activations import IMAGE_ACTIVATIONS, activate
from genimg_fast.ops._autograd import call_backward
from genimg_fast.ops._checks import WIDE_DTYPE
from genimg_fast.ops._layout import dense
from genimg_fast.ops.image_conv_act.checks import check_call
from genimg_fast.ops.image_conv_act.dispatch import KERNELS, dtype_of, image_size, torch_is_faster
from genimg_fast.ops.image_conv_act.gradients import (
    before_activation,
    from_image,
    is_from_result,
    to_image,
    weight_gradient,
)
from genimg_fast.ops.image_conv_act.operands import Operands, Options, Pair

_LINEAR = (IMAGE_ACTIVATIONS["identity"], 0.0)


def run_native(operands: Operands, options: Options) -> Tensor:
    """Run the compiled operator."""
    input, weight, bias = operands
    # Under autocast the parameters stay what they are, float32 most often.
    input = dense(input.to(dtype_of(input)))
    stride, padding, transposed, _, activation, negative_slope = options
    code = IMAGE_ACTIVATIONS[activation]
    recorded = torch.is_grad_enabled() and (
        input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    )
    # These activations' gradients need what they are applied to, which is then kept instead of the result.
    apart = recorded and not is_from_result(code, negative_slope)
    inner = _LINEAR if apart else (code, negative_slope)
    if transposed:
        size = image_size(input, weight, options)
        output = _run("image_conv_to", recorded, input, weight, bias, stride, padding, size, *inner)
    else:
        output = _run("image_conv_from", recorded, input, weight, bias, stride, padding, *inner)
    return activate(output, activation, negative_slope) if apart else output


def _run(name: str, recorded: bool, *arguments: Any) -> Tensor:
    if torch.compiler.is_compiling():
        return getattr(torch.ops.genimg_fast, name).default(*arguments)
    if recorded:
        return _FUNCTIONS[name].apply(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return _chosen(name, *arguments)


def _chosen(name: str, data: Tensor, weight: Tensor, *others: Any) -> Tensor:
    """Run what is faster for a convolution from or to an image."""
    if name == "image_conv_from" and torch_is_faster(data, weight.shape):
        return from_image(data, weight, *others)
    return getattr(torch.ops.genimg_fast, name).default(data, weight, *others)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Save what backward needs: for each gradient what it depends on, and the sign or value of the result."""
    data, weight, _, stride, padding, *_, activation, negative_slope = inputs
    if not is_from_result(activation, negative_slope):
        raise RuntimeError("image_conv: this activation's gradient cannot be told from its result; apply it apart")
    need_data, need_weight, _ = ctx.needs_input_grad[:3]
    ctx.save_for_backward(
        data if need_weight else None, weight if need_data else None, None if activation == 0 else output
    )
    ctx.shapes = data.shape[2:], weight.shape[2:]
    ctx.options = stride, padding, activation, negative_slope


def _from_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    image, weight, result = ctx.saved_tensors
    size, kernel = ctx.shapes
    stride, padding, activation, negative_slope = ctx.options
    grad = before_activation(grad, result, activation, negative_slope)
    return (
        None if weight is None else _to_image(grad, weight, stride, padding, size),
        None if image is None else _weight_gradient(image, grad, kernel, stride, padding),
        grad.sum((0, 2, 3), dtype=WIDE_DTYPE[grad.dtype]) if ctx.needs_input_grad[2] else None,
        None, None, None, None,
    )  # fmt: skip


def _to_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    features, weight, result = ctx.saved_tensors
    _, kernel = ctx.shapes
    stride, padding, activation, negative_slope = ctx.options
    grad = before_activation(grad, result, activation, negative_slope)
    return (
        None if weight is None else _from_image(grad, weight, stride, padding),
        None if features is None else _weight_gradient(grad, features, kernel, stride, padding),
        grad.sum((0, 2, 3), dtype=WIDE_DTYPE[grad.dtype]) if ctx.needs_input_grad[2] else None,
        None, None, None, None, None,
    )  # fmt: skip


def _keep_for_weight(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    image, features, _, stride, padding = inputs
    need_image, need_features = ctx.needs_input_grad[:2]
    ctx.save_for_backward(image if need_features else None, features if need_image else None)
    ctx.size, ctx.options = image.shape[2:], (stride, padding)


def _weight_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    image, features = ctx.saved_tensors
    stride, padding = ctx.options
    return (
        None if features is None else _to_image(features, grad, stride, padding, ctx.size),
        None if image is None else _from_image(image, grad, stride, padding),
        None, None, None,
    )  # fmt: skip


def _from_image(image: Tensor, weight: Tensor, stride: Pair, padding: Pair) -> Tensor:
    if torch_is_faster(image, weight.shape):
        return from_image(image, weight, None, stride, padding, *_LINEAR)
    operator = torch.ops.genimg_fast.image_conv_from.default
    return call_backward(operator, from_image, (dense(image), weight), None, stride, padding, *_LINEAR)


def _to_image(features: Tensor, weight: Tensor, stride: Pair, padding: Pair, size: Pair) -> Tensor:
    operator = torch.ops.genimg_fast.image_conv_to.default
    return call_backward(operator, to_image, (dense(features), weight), None, stride, padding, size, *_LINEAR)


def _weight_gradient(image: Tensor, features: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """Autograd rounds it for 16-bit weights."""
    if torch_is_faster(features, (features.shape[1], image.shape[1], *kernel)):
        return weight_gradient(image, features, kernel, stride, padding)
    operator = torch.ops.genimg_fast.image_conv_weight.default
    return call_backward(operator, weight_gradient, (dense(image), dense(features)), kernel, stride, padding)


def _function(name: str, backward: Callable[..., Any]) -> Any:
    """Make the autograd of a compiled operator in eager mode.

    The operators have formulas registered with the dispatcher, which are those that torch.compile uses; calling
    them from Python costs more.
    """

    def forward(ctx: Any, *arguments: Any) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            output = _chosen(name, *arguments)
        _keep(ctx, arguments, output)
        return output

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    return type(name, (torch.autograd.Function,), methods)


_FUNCTIONS = {
    "image_conv_from": _function("image_conv_from", _from_backward),
    "image_conv_to": _function("image_conv_to", _to_backward),
}


if KERNELS.in_library:

    @torch.library.register_fake("genimg_fast::image_conv_from")
    def _(
        image: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, *activation: Any
    ) -> Tensor:
        output = from_image(image, weight, bias, stride, padding, *activation)
        check_call(image, output, weight.shape[2:], stride, padding, (weight, bias))
        return output

    @torch.library.register_fake("genimg_fast::image_conv_to")
    def _(
        features: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair, *others: Any
    ) -> Tensor:
        output = to_image(features, weight, bias, stride, padding, *others)
        check_call(output, features, weight.shape[2:], stride, padding, (weight, bias))
        return output

    @torch.library.register_fake("genimg_fast::image_conv_weight")
    def _(image: Tensor, features: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
        check_call(image, features, kernel, stride, padding)
        return image.new_empty((features.shape[1], image.shape[1], *kernel), dtype=WIDE_DTYPE[image.dtype])

    torch.library.register_autograd("genimg_fast::image_conv_from", _from_backward, setup_context=_keep)
    torch.library.register_autograd("genimg_fast::image_conv_to", _to_backward, setup_context=_keep)
    torch.library.register_autograd(
        "genimg_fast::image_conv_weight", _weight_backward, setup_context=_keep_for_weight
    )
