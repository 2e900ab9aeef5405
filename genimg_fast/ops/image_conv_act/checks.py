"""What the operators refuse; what is wrong for PyTorch, too, is left to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genimg_fast.ops._activations import IMAGE_ACTIVATIONS, activation_code

DTYPES = (torch.float32, torch.bfloat16)
MAX_IMAGE_CHANNELS = 4


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
    image: Sequence[int],
    features: Sequence[int],
    weight: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    tensors: Sequence[Tensor | None],
) -> None:
    """Refuse, when tracing, what the kernels would refuse.

    Args:
        image: Its shape.
        features: Theirs.
        weight: Its shape.
        stride: Of the convolution from the image.
        padding: Likewise.
        tensors: Which must be of one dtype, on one device.
    """
    kinds = {(t.dtype, t.device) for t in tensors if t is not None}
    torch._check(
        len(kinds) == 1 and next(iter(kinds))[0] in DTYPES,
        lambda: f"image_conv: tensors must be float32 or bfloat16, on one device, got {kinds}",
    )
    torch._check(
        image[1] <= MAX_IMAGE_CHANNELS,
        lambda: f"image_conv: the image must have at most {MAX_IMAGE_CHANNELS} channels, got {image[1]}",
    )
    torch._check(
        tuple(weight[:2]) == (features[1], image[1]) and image[0] == features[0],
        lambda: f"image_conv: weight must be (features' channels, image's channels, kh, kw), got {tuple(weight)}",
    )
    torch._check(
        tuple(features[2:]) == features_size(image[2:], weight[2:], stride, padding),
        lambda: f"image_conv: features of {tuple(features[2:])} are not of an image of {tuple(image[2:])}",
    )
