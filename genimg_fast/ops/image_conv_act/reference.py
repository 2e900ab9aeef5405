"""The definition of what is right, in plain PyTorch."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from genimg_fast.ops._activations import activate
from genimg_fast.ops.image_conv_act.checks import check_options


def image_conv_act_reference(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    *,
    transposed: bool = False,
    output_padding: int | tuple[int, int] = 0,
    activation: str = "identity",
    negative_slope: float = 0.01,
) -> Tensor:
    """Compute :func:`image_conv_act` with PyTorch's own operators: the definition of what is right.

    Example:
        >>> import torch, genimg_fast as gf
        >>> x, weight = torch.randn(8, 3, 16, 16), torch.randn(32, 3, 4, 4)
        >>> expected = gf.ops.image_conv_act_reference(x, weight, stride=2, padding=1)
        >>> torch.allclose(gf.ops.image_conv_act(x, weight, stride=2, padding=1), expected, atol=1e-4)
        True
    """
    check_options(activation, transposed, output_padding)
    output = convolve(input, weight, bias, stride, padding, transposed, output_padding)
    return activate(output, activation, negative_slope)


def convolve(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    transposed: bool,
    output_padding: Any,
) -> Tensor:
    """Convolve, or transpose a convolution, as PyTorch does."""
    if transposed:
        return F.conv_transpose2d(input, weight, bias, stride, padding, output_padding)
    return F.conv2d(input, weight, bias, stride, padding)
