"""What the operators refuse; what is wrong for PyTorch, too, is left to it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from genimg_fast.ops._activations import IMAGE_ACTIVATIONS, activation_code

DTYPES = (torch.float32, torch.bfloat16)
MAX_IMAGE_CHANNELS, MAX_KERNEL, MAX_STRIDE = 4, 9, 4


def features_size(
    size: Sequence[int], kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> tuple[int, ...]:
    """Return the height and width that a convolution makes of an image's."""
    return tuple((n + 2 * p - k) // s + 1 for n, k, s, p in zip(size, kernel, stride, padding, strict=True))


def check_options(activation: str, transposed: bool, output_padding: Any) -> None:
    """Check what PyTorch's convolutions do not have."""
    if activation not in IMAGE_ACTIVATIONS:
        activation_code(activation, IMAGE_ACTIVATIONS)  # which raises
    if output_padding != 0 and not transposed:
        raise ValueError(f"output_padding is for transposed convolutions, got {output_padding}")


def check_call(
    image: Tensor,
    features: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    parameters: Sequence[Tensor | None] = (),
) -> None:
    """The checks of csrc/image_conv_act.h, so that tracing refuses what the kernels would refuse."""
    for given, limit, words in (
        (kernel, MAX_KERNEL, "a kernel of 1 to 9 pixels"), (stride, MAX_STRIDE, "a stride of 1 to 4"),
    ):  # fmt: skip
        torch._check(
            all(1 <= n <= limit for n in given),
            partial(str, f"image_conv_act: {words} is supported, got {tuple(given)}"),
        )
    torch._check(
        all(0 <= p < k for p, k in zip(padding, kernel, strict=True)),
        lambda: f"image_conv_act: padding must be less than the kernel, got {tuple(padding)}",
    )
    torch._check(
        image.dtype in DTYPES and image.dtype == features.dtype and image.device == features.device,
        lambda: "image_conv_act: image and features must be float32 or bfloat16, of one dtype, on one device",
    )
    for parameter in parameters:
        torch._check(
            parameter is None
            or (parameter.dtype in (image.dtype, torch.float32) and parameter.device == image.device),
            lambda: "image_conv_act: parameters must have the data's dtype, or float32, and its device",
        )
    torch._check(
        image.shape[1] <= MAX_IMAGE_CHANNELS,
        lambda: f"image_conv_act: an image of 1 to 4 channels is supported, got {image.shape[1]}",
    )
    torch._check(
        tuple(features.shape[2:]) == features_size(image.shape[2:], kernel, stride, padding),
        lambda: f"image_conv_act: features {tuple(features.shape)} do not belong to an image {tuple(image.shape)}",
    )
