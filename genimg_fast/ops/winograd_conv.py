"""Convolutions with fewer products than outputs times taps, by Winograd's tiles."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from genimg_fast.ops._autograd import call_backward
from genimg_fast.ops._checks import check_dtype, check_tensor, check_type
from genimg_fast.ops._dispatch import EMPTY, PLAIN_TENSORS, Kernels, Preference, check_backend, refusal

Pair = tuple[int, int]

_STRIDES = {3: 1, 4: 2}  # by the kernel's size; padding is 1
# Whether layers may use it, whose rounding errors reach a pixel or two beyond what a kernel sees.
_IN_LAYERS = os.environ.get("GENIMG_FAST_WINOGRAD", "1").lower() not in ("0", "false", "no", "off")

# Reference.


def winograd_conv2d_reference(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute :func:`winograd_conv2d` with PyTorch's own operator: the definition of what is right.

    Example:
        >>> import torch, genimg_fast as gf
        >>> x, weight = torch.randn(8, 32, 16, 16), torch.randn(64, 32, 4, 4)
        >>> expected = gf.ops.winograd_conv2d_reference(x, weight)
        >>> torch.allclose(gf.ops.winograd_conv2d(x, weight), expected, atol=1e-3)
        True
    """
    return F.conv2d(input, weight, bias, _STRIDES[weight.shape[-1]], 1)


def winograd_conv_transpose2d_reference(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute :func:`winograd_conv_transpose2d` with PyTorch's own operator: the definition of what is right.

    Example:
        >>> import torch, genimg_fast as gf
        >>> x, weight = torch.randn(8, 64, 8, 8), torch.randn(64, 32, 4, 4)
        >>> expected = gf.ops.winograd_conv_transpose2d_reference(x, weight)
        >>> torch.allclose(gf.ops.winograd_conv_transpose2d(x, weight), expected, atol=1e-3)
        True
    """
    return F.conv_transpose2d(input, weight, bias, _STRIDES[weight.shape[-1]], 1)


# Gradients.


def _weight_gradient_reference(input: Tensor, grad_output: Tensor, kernel_size: int) -> Tensor:
    """Do what the operator of the weight's gradient does, in PyTorch operations."""
    shape = grad_output.shape[1], input.shape[1], kernel_size, kernel_size
    return conv2d_weight(input, shape, grad_output, _STRIDES[kernel_size], 1)


# Checks.


def _check(input: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> None:
    for tensor, name in ((input, "input"), (weight, "weight"), *(((bias, "bias"),) if bias is not None else ())):
        check_type(tensor, name)
        check_dtype(tensor, name)
    if input.dim() != 4:
        raise ValueError(f"input must have 4 dimensions, (N, C, H, W), got {input.dim()}")
    if weight.dim() != 4 or weight.shape[2] not in _STRIDES:
        raise ValueError(f"weight must have shape (*, *, 4, 4) or (*, *, 3, 3), got {tuple(weight.shape)}")
    size, channels = weight.shape[2], input.shape[1]
    shape = (channels, weight.shape[1], size, size) if transposed else (weight.shape[0], channels, size, size)
    check_tensor(weight, "weight", shape, input, "input")
    if bias is not None:
        check_tensor(bias, "bias", (weight.shape[1 if transposed else 0],), input, "input")


# Dispatch.

_BLOCK = 32
_CHANNELS = f"numbers of channels that are multiples of {_BLOCK}"
_SIZES = "even heights and widths, from 4 on"
_LARGE_WEIGHT, _FEW_PIXELS = 1 << 18, 256


def _fine_size(input: Tensor, weight: Tensor, transposed: bool) -> tuple[int, int]:
    """Return height and width on the side that has the larger ones."""
    scale = 2 if transposed and weight.shape[2] == 4 else 1
    return input.shape[2] * scale, input.shape[3] * scale


def _unlike(tensors: tuple[Any, ...], transposed: bool) -> str | None:
    input, weight = tensors[:2]
    if input.dtype != torch.float32:
        return refusal("float32", input.dtype)
    if torch.is_autocast_enabled("cpu"):
        return refusal("float32", f"{torch.get_autocast_dtype('cpu')} from autocast")
    if weight.shape[0] % _BLOCK or weight.shape[1] % _BLOCK or not weight.numel():
        return refusal(_CHANNELS, tuple(weight.shape[:2]))
    if any(size % 2 or size < 4 for size in _fine_size(input, weight, transposed)):
        return refusal(_SIZES, tuple(input.shape[2:]))
    return EMPTY if not input.numel() else None


def _transforms_faster(call: tuple[Tensor, Tensor, bool]) -> bool:
    """Whether a weight has too few products for its transform to pay."""
    input, weight, transposed = call
    if weight.numel() < _LARGE_WEIGHT:
        return False
    scale = 1 if transposed or weight.shape[2] == 3 else 4
    return input.numel() < _FEW_PIXELS * scale * input.shape[1]


KERNELS = Kernels(
    "winograd_conv2d",
    [
        _CHANNELS,
        _SIZES,
        *([] if _IN_LAYERS else ["calls by name, as GENIMG_FAST_WINOGRAD leaves layers to torch"]),
    ],
    _unlike,
    {
        "cpu": Preference(
            f"weights of {_LARGE_WEIGHT} values or more with fewer than {_FEW_PIXELS} pixels on the coarser side",
            _transforms_faster,
        )
    },
    devices=["cpu"],
    dtypes="float32",
)


# Operator. Its kernels write channels_last.


def _laid_out(result: Tensor, *operands: Tensor) -> Tensor:
    """Give a result PyTorch's memory format: channels_last if one of the layer's two operands is."""
    suggested = torch._prims_common.suggest_memory_format
    return result if torch.channels_last in map(suggested, operands) else result.contiguous()


def _backward(transposed: bool, ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None
    input, weight = ctx.saved_tensors
    need, size = ctx.needs_input_grad, weight.shape[2]
    operators = torch.ops.genimg_fast
    grad_input = grad_weight = None
    if need[0]:
        if transposed:
            operator, formula = operators.winograd_conv2d.default, winograd_conv2d_reference
        else:
            operator, formula = operators.winograd_conv_transpose2d.default, winograd_conv_transpose2d_reference
        grad_input = _laid_out(call_backward(operator, formula, (grad,), weight, None), input, weight)
    if need[1]:

        def of_sides(function: Callable[..., Tensor], grad: Tensor, input: Tensor) -> Tensor:
            return function(grad, input, size) if transposed else function(input, grad, size)

        native = partial(of_sides, operators.winograd_conv2d_weight_gradient.default)
        grad_weight = call_backward(native, partial(of_sides, _weight_gradient_reference), (grad,), input)
        grad_weight = _laid_out(grad_weight, input, weight)
    return grad_input, grad_weight, grad.sum((0, 2, 3)) if need[2] else None


def _weight_gradient_backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None
    input, grad_output = ctx.saved_tensors
    need, operators = ctx.needs_input_grad, torch.ops.genimg_fast
    grad_input = operators.winograd_conv_transpose2d.default(grad_output, grad, None) if need[0] else None
    grad_of_output = operators.winograd_conv2d.default(input, grad, None) if need[1] else None
    sides = input, grad_output
    return (*(None if g is None else _laid_out(g, *sides) for g in (grad_input, grad_of_output)), None)


def _keep_two(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:2])


def _empty(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape).contiguous(memory_format=torch.channels_last)


if KERNELS.in_library:

    @torch.library.register_fake("genimg_fast::winograd_conv2d")
    def _(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        stride = 2 if weight.shape[2] == 4 else 1  # a size may be symbolic
        return _empty(input, input.shape[0], weight.shape[0], input.shape[2] // stride, input.shape[3] // stride)

    @torch.library.register_fake("genimg_fast::winograd_conv_transpose2d")
    def _(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        stride = 2 if weight.shape[2] == 4 else 1
        return _empty(input, input.shape[0], weight.shape[1], input.shape[2] * stride, input.shape[3] * stride)

    @torch.library.register_fake("genimg_fast::winograd_conv2d_weight_gradient")
    def _(input: Tensor, grad_output: Tensor, kernel_size: int) -> Tensor:
        return _empty(input, grad_output.shape[1], input.shape[1], kernel_size, kernel_size)

    for _name, _formula in (
        ("winograd_conv2d", partial(_backward, False)),
        ("winograd_conv_transpose2d", partial(_backward, True)),
        ("winograd_conv2d_weight_gradient", _weight_gradient_backward),
    ):
        torch.library.register_autograd(f"genimg_fast::{_name}", _formula, setup_context=_keep_two)


# Functions.


def _call(input: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    operators = torch.ops.genimg_fast
    operator = operators.winograd_conv_transpose2d if transposed else operators.winograd_conv2d
    return _laid_out(operator.default(input, weight, bias), input, weight)


def _run(
    name: str,
    reference: Callable[..., Tensor],
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    transposed: bool,
) -> Tensor:
    _check(input, weight, bias, transposed)
    if (reason := KERNELS.why_not((input, weight, bias), transposed)) is not None:
        check_backend(name, reason)
        return reference(input, weight, bias)
    if KERNELS.is_slower("cpu", (input, weight, transposed)):
        return reference(input, weight, bias)
    return _call(input, weight, bias, transposed)


def may_gain(layer: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """Tell whether :func:`run_layer` may do something for a layer, whatever its input is."""
    size = layer.kernel_size[0]
    return (
        _IN_LAYERS
        and size in _STRIDES
        and layer.kernel_size == (size, size)
        and layer.stride == (_STRIDES[size],) * 2
        and layer.groups == 1
        and layer.in_channels % _BLOCK == layer.out_channels % _BLOCK == 0
    )


def run_layer(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    *,
    transposed: bool,
    output_padding: Pair,
) -> Tensor | None:
    """Do what ``F.conv2d`` or ``F.conv_transpose2d`` does where there is a kernel that is faster.

    Returns:
        The result; None if PyTorch's own is to run, be it for an error.
    """
    if type(input) not in PLAIN_TENSORS or type(weight) not in PLAIN_TENSORS:
        return None
    size = weight.shape[-1]
    if (
        not _IN_LAYERS
        or size not in _STRIDES
        or stride != (_STRIDES[size],) * 2
        or padding != (1, 1)
        or output_padding != (0, 0)
    ):
        return None
    inputs, outputs = weight.shape[:2] if transposed else (weight.shape[1], weight.shape[0])
    if weight.shape[2] != size or input.dim() != 4 or input.shape[1] != inputs:
        return None
    others = (weight,) if bias is None else (weight, bias)
    if any(t.dtype != input.dtype or t.device != input.device for t in others):
        return None
    if bias is not None and bias.shape != (outputs,):
        return None
    if KERNELS.why_not((input, weight, bias), transposed) is not None:
        return None
    if KERNELS.is_slower("cpu", (input, weight, transposed)):
        return None
    return _call(input, weight, bias, transposed)


def winograd_conv2d(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Convolve with 4 x 4 kernels and stride 2, or with 3 x 3 kernels and stride 1, with half the products.

    A 4 x 4 convolution with stride 2 is a 2 x 2 convolution over the channels of the four phases of its input
    (even and odd rows, even and odd columns). Winograd's F(3x3, 2x2) and F(2x2, 2x2) take 16 and 9 products where
    it takes 36 and 16; F(2x2, 3x3) takes 16 where a 3 x 3 convolution takes 36. Rounding errors are like those of
    PyTorch's own. Differentiable any number of times; gradients are calls of the same kernels.

    Args:
        input: (N, C, H, W), float32, H and W even, on a CPU; fastest in ``torch.channels_last``.
        weight: (O, C, 4, 4) or (O, C, 3, 3), float32; C and O are multiples of 32. Anything else is convolved by
            PyTorch, and so is what has too few products to gain.
        bias: (O,), or None.

    Returns:
        (N, O, H / 2, W / 2) or (N, O, H, W): ``F.conv2d(input, weight, bias, stride, padding=1)``.

    Raises:
        ValueError: A shape, dtype or device does not fit.
        RuntimeError: The backend is ``"native"`` and no compiled kernel takes these arguments.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.ops.winograd_conv2d(torch.randn(8, 32, 16, 16), torch.randn(64, 32, 4, 4)).shape
        torch.Size([8, 64, 8, 8])
    """
    return _run("winograd_conv2d", winograd_conv2d_reference, input, weight, bias, False)


def winograd_conv_transpose2d(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Transpose the convolution of :func:`winograd_conv2d`, with as few products.

    Args:
        input: (N, C, H, W), float32; fastest in ``torch.channels_last``.
        weight: (C, O, 4, 4) with stride 2, or (C, O, 3, 3) with stride 1, where H and W are even; float32, C and O
            are multiples of 32. Anything else is left to PyTorch.
        bias: (O,), or None.

    Returns:
        (N, O, 2 H, 2 W) or (N, O, H, W): ``F.conv_transpose2d(input, weight, bias, stride, padding=1)``.

    Raises:
        ValueError: A shape, dtype or device does not fit.
        RuntimeError: The backend is ``"native"`` and no compiled kernel takes these arguments.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.ops.winograd_conv_transpose2d(torch.randn(8, 64, 8, 8), torch.randn(64, 32, 4, 4)).shape
        torch.Size([8, 32, 16, 16])
    """
    return _run("winograd_conv_transpose2d", winograd_conv_transpose2d_reference, input, weight, bias, True)
