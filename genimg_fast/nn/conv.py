"""Convolutions that run as whatever computes them fastest on a CPU; torch's own where that is torch's."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from genimg_fast.nn.stands_for import StandIn, become_torchs
from genimg_fast.ops import product_conv, winograd_conv
from genimg_fast.ops._activations import activate
from genimg_fast.ops._dispatch import PLAIN_TENSORS, new
from genimg_fast.ops.image_conv_act.checks import MAX_IMAGE_CHANNELS
from genimg_fast.ops.image_conv_act.dispatch import why_not
from genimg_fast.ops.image_conv_act.operands import Operands, Options
from genimg_fast.ops.image_conv_act.operator import run_native
from genimg_fast.ops.product_conv import Pair

Numbers = tuple[Pair, Pair, bool, Pair]
"""Stride, padding, whether it is transposed, and output padding."""


def run_image_conv(
    layer: Any, input: Tensor, activation: str = "identity", negative_slope: float = 0.01
) -> Tensor | None:
    """Do what a convolution does in ``forward``, and the activation with it, if there is a kernel for it.

    Args:
        layer: Supplies the weight, the bias and the numbers; transposed or not.
        input: (N, C, H, W).
        activation: As in :func:`genimg_fast.ops.image_conv_act`.
        negative_slope: Slope of ``"leaky_relu"`` below zero.

    Returns:
        The result; None if torch's own is to run, be it for an error.
    """
    if (numbers := _numbers(layer)) is None:
        return None
    if layer.padding_mode != "zeros":
        return _run_padded(layer, input, activation, negative_slope)
    weight, bias = layer.weight, layer.bias
    output = _run_image_conv(input, weight, bias, numbers, activation, negative_slope)
    if output is None and "parametrizations" in layer._modules:  # to compute a weight again is to change it, maybe
        output = activate(_convolve(layer, input, weight, bias, numbers), activation, negative_slope)
    return output


def _run_image_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    numbers: Numbers,
    activation: str = "identity",
    negative_slope: float = 0.01,
) -> Tensor | None:
    turned = _is_turned(input, weight, numbers)
    if turned:
        stride, padding, *_ = numbers
        rows, columns = (k - 1 - p for k, p in zip(weight.shape[2:], padding, strict=True))
        numbers = stride, (rows, columns), True, (0, 0)
    # Whether kernels take it does not depend on which way round the weight is.
    operands = new(Operands, (input, weight.transpose(0, 1) if turned else weight, bias))
    options = new(Options, (*numbers, activation, negative_slope))
    if why_not(operands, options) is not None:
        return None
    return run_native(operands._replace(weight=_Turned.apply(weight)) if turned else operands, options)


def _may_be_turned(inputs: int, outputs: int, kernel: tuple[int, ...], stride: tuple[int, ...]) -> bool:
    """Whether a convolution goes to an image from more than that, a step of one pixel at a time.

    With its weight turned by half a circle it is a transposed one, for which there is a kernel.
    """
    return outputs <= MAX_IMAGE_CHANNELS < inputs and stride == (1, 1) and max(kernel) > 1


def _is_turned(input: Tensor, weight: Tensor, numbers: Numbers) -> bool:
    stride, padding, transposed, _ = numbers
    if transposed or type(input) not in PLAIN_TENSORS or type(weight) not in PLAIN_TENSORS or weight.dim() != 4:
        return False
    outputs, inputs, *kernel = weight.shape
    if not _may_be_turned(inputs, outputs, (*kernel,), stride) or not input.is_cpu:
        return False
    if any(p >= k for p, k in zip(padding, kernel, strict=True)):
        return False
    return padding != (0, 0) or input.shape[2:] != weight.shape[2:]  # that is a product


class _Turned(Function):
    """A weight as the transposed convolution has it; a gradient in the memory format that PyTorch's has."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        memory_format = torch._prims_common.suggest_memory_format(weight)  # which the output's depends on
        return weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=memory_format)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.flip(2, 3).transpose(0, 1).contiguous()


def _run_padded(
    layer: Any, input: Tensor, activation: str = "identity", negative_slope: float = 0.01
) -> Tensor | None:
    """Do what a convolution does that mirrors or repeats the image around it, if it goes to an image."""
    if type(input) not in PLAIN_TENSORS or input.dim() != 4 or not input.is_cpu:
        return None
    if not _may_be_turned(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride):
        return None
    padded = F.pad(input, layer._reversed_padding_repeated_twice, layer.padding_mode)
    weight, bias = layer.weight, layer.bias
    output = _run_image_conv(
        padded, weight, bias, (layer.stride, (0, 0), False, (0, 0)), activation, negative_slope
    )
    if output is None:
        output = activate(F.conv2d(padded, weight, bias, layer.stride), activation, negative_slope)
    return output


def _run_conv(layer: Any, input: Tensor) -> Tensor | None:
    """Do what a convolution does in ``forward``, in the fastest way there is; None if torch's method is to run."""
    if (numbers := _numbers(layer)) is None:
        return None
    if layer.padding_mode != "zeros":
        return _run_padded(layer, input)
    weight, bias = layer.weight, layer.bias
    output = _run_image_conv(input, weight, bias, numbers)
    return _convolve(layer, input, weight, bias, numbers) if output is None else output


def _convolve(layer: Any, input: Tensor, weight: Tensor, bias: Tensor | None, numbers: Numbers) -> Tensor:
    """Convolve in the fastest way that is not that of images."""
    stride, padding, transposed, more = numbers
    if type(input) in PLAIN_TENSORS:
        for run in (winograd_conv.run_layer, product_conv.product_conv):
            output = run(input, weight, bias, stride, padding, transposed=transposed, output_padding=more)
            if output is not None:
                return output
    if transposed:
        return F.conv_transpose2d(input, weight, bias, stride, padding, more)
    result: Tensor = layer._conv_forward(input, weight, bias)
    return result


def _may_gain(layer: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """Tell whether there is a faster way than torch's for a layer, whatever its input is."""
    image_channels = layer.out_channels if layer.transposed else layer.in_channels
    if image_channels <= MAX_IMAGE_CHANNELS or winograd_conv.may_gain(layer) or product_conv.may_gain(layer):
        return True
    return not layer.transposed and _may_be_turned(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride
    )


def _numbers(layer: Any) -> Numbers | None:
    """Get a layer's numbers; None if torch's own is to run."""
    if layer.dilation != (1, 1) or layer.groups != 1:
        return None
    stride, padding, more, transposed = layer.stride, layer.padding, layer.output_padding, layer.transposed
    if type(padding) is not tuple or not len(stride) == len(padding) == len(more) == 2:  # also "same" and "valid"
        return None
    # Some tools convolve in another way in place of this method.
    if not transposed and getattr(layer._conv_forward, "__func__", None) is not nn.Conv2d._conv_forward:
        return None
    return stride, padding, transposed, more


class Conv2d(nn.Conv2d, StandIn):
    """Here, on a CPU: from images of at most four channels, and with stride 1 to them, on the fused operator.

    Others are of torch's class, but for, in float32, 4x4 kernels with stride 2 and 3x3 kernels, which take
    Winograd's products, for many weights on few pixels, which are matrix products, and, in bfloat16, for many
    channels on some processors.
    """

    _smallest = (1, 1, 1, 1, 0, 1, 1, True, "zeros", "meta")

    @functools.wraps(nn.Conv2d.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self._gains(self):
            become_torchs(self)

    _gains = staticmethod(_may_gain)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve ``input``, (N, C, H, W) or (C, H, W)."""
        output = _run_conv(self, input)
        return super().forward(input) if output is None else output


class ConvTranspose2d(nn.ConvTranspose2d, StandIn):
    """Here, on a CPU, as :class:`Conv2d`: to images of at most four channels on the fused operator."""

    _smallest = (1, 1, 1, 1, 0, 0, 1, True, 1, "zeros", "meta")

    @functools.wraps(nn.ConvTranspose2d.__init__)  # type: ignore[misc]
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not self._gains(self):
            become_torchs(self)

    _gains = staticmethod(_may_gain)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Transpose a convolution of ``input``, (N, C, H, W) or (C, H, W)."""
        output = _run_conv(self, input) if output_size is None else None
        return super().forward(input, output_size) if output is None else output
