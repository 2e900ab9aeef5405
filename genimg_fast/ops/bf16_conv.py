"""Convolutions in bfloat16 between images and features of many channels, on CPUs that have its products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genimg_fast import _native
from genimg_fast.ops._autograd import call_backward, keep_inputs
from genimg_fast.ops._dispatch import EMPTY, Kernels, Preference, refusal
from genimg_fast.ops.image_conv_act.gradients import from_image, to_image, weight_gradient

Pair = tuple[int, int]

# Reference.


def bf16_conv_reference(
    input: Tensor, weight: Tensor, stride: Pair, padding: Pair, size: Sequence[int] = ()
) -> Tensor:
    """Compute :func:`bf16_conv` with PyTorch's own operators: the definition of what is right."""
    if size:
        return to_image(input, weight, None, stride, padding, size, 0, 0.0)
    return from_image(input, weight, None, stride, padding, 0, 0.0)


bf16_conv_weight_reference = weight_gradient

# Dispatch.

_BLOCK = 32
_CHANNELS = f"numbers of channels that are multiples of {_BLOCK}"
_MACHINE = "machines with products of bfloat16 (AVX-512 BF16)"
# Samples of which blocks of five and six can be made.
_FEWEST_SAMPLES = 20
# Fewer products take PyTorch less time than calls from Python cost.
_FEWEST_PRODUCTS, _FEWEST_WEIGHTS = 1 << 23, 1 << 15
# Of the features, with steps of one pixel and of more: there, padding is a good part of what PyTorch multiplies.
_MOST_PIXELS, _MOST_STRIDED_PIXELS = 16, 256
# With as few pixels, PyTorch takes so long for a weight's gradient that a sample without a partner and copies to
# channels_last do not matter; with as many samples, the former.
_FEW_PIXELS, _MANY_SAMPLES = 64, 16


def _unlike(tensors: tuple[Any, ...], call: tuple[torch.dtype, int, int]) -> str | None:
    dtype, *channels = call
    if dtype is not torch.bfloat16:
        return refusal("bfloat16", dtype)
    if any(number % _BLOCK for number in channels):
        return refusal(_CHANNELS, tuple(channels))
    if not tensors[0].numel():
        return EMPTY
    return None if _native.has_bf16_products() else refusal(_MACHINE, "one without")


def _is_channels_last(tensor: Tensor) -> bool:
    return torch._prims_common.suggest_memory_format(tensor) is torch.channels_last


def _is_slower(call: tuple[Tensor, Tensor, int, Pair | None]) -> bool:
    """Tell of an input, a weight, the features' pixels, and the stride, or None for the weight's gradient."""
    input, weight, pixels, stride = call
    samples = len(input)
    if samples == 1 or weight[0, 0].numel() == 1 or samples * pixels * weight.numel() < _FEWEST_PRODUCTS:
        return True
    if stride is not None:
        many = pixels > (_MOST_PIXELS if min(stride) == 1 else _MOST_STRIDED_PIXELS)
        if many or not (_is_channels_last(input) and _is_channels_last(weight)):
            return True
    elif pixels > _FEW_PIXELS and (not _is_channels_last(input) or (samples % 2 and samples < _MANY_SAMPLES)):
        return True
    return torch.cpu._is_amx_tile_supported()


KERNELS = Kernels(
    "bf16_conv",
    [_MACHINE, _CHANNELS],
    _unlike,
    {
        "cpu": Preference(
            f"machines with AMX, kernels of one pixel and fewer than {_FEWEST_PRODUCTS} products; for all but the "
            f"weight's gradient, what has a bias, fewer than {_FEWEST_SAMPLES} samples, more than {_MOST_PIXELS} "
            f"pixels of the features ({_MOST_STRIDED_PIXELS} with a stride) or is not channels_last; for that, "
            f"with more than {_FEW_PIXELS} pixels, what is not, or has an odd number of samples below "
            f"{_MANY_SAMPLES}",
            _is_slower,
        )
    },
    devices=["cpu"],
    dtypes="bfloat16",
)


def may_gain(layer: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """Tell whether :func:`gains` may be true for a layer, whatever its input is."""
    return (
        layer.groups == 1
        and layer.in_channels % _BLOCK == layer.out_channels % _BLOCK == 0
        and layer.weight.numel() >= _FEWEST_WEIGHTS
        and layer.kernel_size != (1, 1)
        and KERNELS.why_unavailable("cpu") is None
        and _native.has_bf16_products()
    )


def gains(input: Tensor, weight: Tensor, dtype: torch.dtype, pixels: int, stride: Pair) -> tuple[bool, bool]:
    """Tell what the kernels are to do of a layer.

    Args:
        input: Of the layer.
        weight: (Cf, Ci, kh, kw).
        dtype: In which the layer computes.
        pixels: Of the features, of one sample.
        stride: Step of the window over the image, in rows and columns.

    Returns:
        Whether to convolve, which is the gradient of the input, too; and whether to compute that of the weight.
    """
    if KERNELS.why_not((input, weight), (dtype, *weight.shape[:2])) is not None:
        return False, False
    convolves = len(input) >= _FEWEST_SAMPLES and not KERNELS.is_slower("cpu", (input, weight, pixels, stride))
    return convolves, not KERNELS.is_slower("cpu", (input, weight, pixels, None))


# Operators.


def _weight_backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None, None, None
    (image, features), (_, stride, padding), need = ctx.saved_tensors, ctx.options, ctx.needs_input_grad
    grad_image = grad_features = None
    if need[0]:
        grad_image = bf16_conv_reference(features, grad, stride, padding, image.shape[2:])
    if need[1]:
        grad_features = bf16_conv_reference(image, grad, stride, padding)
    return grad_image, grad_features, None, None, None


def _keep_two(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    keep_inputs(ctx, inputs, output, 2)


if KERNELS.in_library:

    @torch.library.register_fake("genimg_fast::bf16_conv")
    def _(input: Tensor, weight: Tensor, stride: Pair, padding: Pair, size: Sequence[int]) -> Tensor:
        output = bf16_conv_reference(input, weight, stride, padding, size)
        return torch.empty_like(output, memory_format=torch.channels_last)

    @torch.library.register_fake("genimg_fast::bf16_conv_weight")
    def _(image: Tensor, features: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
        shape = features.shape[1], image.shape[1], *kernel
        return image.new_empty(shape, dtype=torch.float32).contiguous(memory_format=torch.channels_last)

    torch.library.register_autograd("genimg_fast::bf16_conv_weight", _weight_backward, setup_context=_keep_two)


# Functions.


def bf16_conv(input: Tensor, weight: Tensor, stride: Pair, padding: Pair, size: Sequence[int] = ()) -> Tensor:
    """Convolve, or transpose a convolution, without a gradient.

    Args:
        input: (N, Ci, H, W), the image, or, with `size`, (N, Cf, h, w), the features: bfloat16, on a CPU, at
            least 20 samples; fastest in ``torch.channels_last``. Ci and Cf are multiples of 32.
        weight: (Cf, Ci, kh, kw), bfloat16, or float32, which is rounded.
        stride: Step of the window over the image, in rows and columns.
        padding: Zeros around the image.
        size: Rows and columns of the image, of a transposed convolution.

    Returns:
        What ``F.conv2d`` or ``F.conv_transpose2d`` does, to rounding, in ``torch.channels_last``.
    """
    result: Tensor = torch.ops.genimg_fast.bf16_conv.default(input, weight, stride, padding, size)
    return result


def bf16_conv_weight(image: Tensor, features: Tensor, kernel: Pair, stride: Pair, padding: Pair) -> Tensor:
    """Compute the gradient of a convolution's weight: of a sum of products of convolved image and features.

    Args:
        image: (N, Ci, H, W), bfloat16, on a CPU; fastest in ``torch.channels_last``. Ci and Cf are multiples of
            32. PyTorch computes the gradient of anything else, and on machines without products of bfloat16.
        features: (N, Cf, h, w), the gradient of what ``F.conv2d`` makes of the image.
        kernel: Rows and columns of the weight.
        stride: Step of the window over the image, in rows and columns.
        padding: Zeros around the image.

    Returns:
        (Cf, Ci, kh, kw), float32; differentiable any number of times.
    """
    call = image.dtype, features.shape[1], image.shape[1]
    if KERNELS.why_not((image, features), call) is not None:
        return bf16_conv_weight_reference(image, features, kernel, stride, padding)
    operator = torch.ops.genimg_fast.bf16_conv_weight.default
    return call_backward(operator, bf16_conv_weight_reference, (image, features), kernel, stride, padding)
