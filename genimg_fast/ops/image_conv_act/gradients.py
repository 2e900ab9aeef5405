"""What the operators compute, in PyTorch operations: to be transformed or differentiated.

Convolve an image I with a weight W, multiply by features F and add up: that number is linear in each of the three,
and its derivatives are the operators. By F it is the convolution from the image, by I the transposed one to the
image, by W the weight's gradient. So the derivatives of each operator are the two others, in any order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg_fast.ops._activations import IMAGE_ACTIVATIONS, activate
from genimg_fast.ops._checks import WIDE_DTYPE

_NAMES = {code: name for name, code in IMAGE_ACTIVATIONS.items()}


def from_image(
    image: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    activation: int,
    negative_slope: float,
) -> Tensor:
    """Do what the operator ``image_conv_from`` does with the same arguments."""
    weight, bias = weight.to(image.dtype), None if bias is None else bias.to(image.dtype)
    features = F.conv2d(image, weight, bias, stride, padding)
    return activate(features, _NAMES[activation], negative_slope, in_place=True)


def to_image(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    size: Sequence[int],
    activation: int,
    negative_slope: float,
) -> Tensor:
    """Do what the operator ``image_conv_to`` does with the same arguments."""
    weight, bias = weight.to(features.dtype), None if bias is None else bias.to(features.dtype)
    more = [
        n - ((f - 1) * s - 2 * p + k)
        for n, f, s, p, k in zip(size, features.shape[2:], stride, padding, weight.shape[2:], strict=True)
    ]
    image = F.conv_transpose2d(features, weight, bias, stride, padding, more)
    return activate(image, _NAMES[activation], negative_slope, in_place=True)


def weight_gradient(
    image: Tensor, features: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Do what the operator ``image_conv_weight`` does with the same arguments."""
    weight = image.new_empty((features.shape[1], image.shape[1], *kernel))  # only its shape matters
    gradient: Tensor = torch.ops.aten.convolution_backward(
        features, image, weight, None, stride, padding, (1, 1), False, (0, 0), 1, (False, True, False)
    )[1]
    return gradient.to(WIDE_DTYPE[image.dtype])


def is_from_result(activation: int, negative_slope: float) -> bool:
    """Whether an activation's derivative can be told from its result."""
    if activation == IMAGE_ACTIVATIONS["leaky_relu"]:
        return negative_slope >= 0  # then the result has the sign of what it was applied to
    return activation != IMAGE_ACTIVATIONS["silu"]


def before_activation(grad: Tensor, result: Tensor, activation: int, negative_slope: float) -> Tensor:
    """Return the gradient before an activation, from its result; in operations that can be differentiated."""
    if activation == IMAGE_ACTIVATIONS["relu"]:
        return torch.ops.aten.threshold_backward(grad, result, 0)
    if activation == IMAGE_ACTIVATIONS["leaky_relu"]:
        return torch.ops.aten.leaky_relu_backward(grad, result, negative_slope, True)
    if activation == IMAGE_ACTIVATIONS["tanh"]:
        return torch.ops.aten.tanh_backward(grad, result)
    if activation == IMAGE_ACTIVATIONS["sigmoid"]:
        return torch.ops.aten.sigmoid_backward(grad, result)
    return grad
