"""Convolution from an image, or transposed to one, with bias and activation as one operator.

These are a discriminator's first layer and a generator's last: Radford et al. 2016, arXiv:1511.06434.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genimg_fast.ops._activations import activate
from genimg_fast.ops._dispatch import check_backend, new
from genimg_fast.ops.image_conv_act.checks import check_options
from genimg_fast.ops.image_conv_act.dispatch import why_not
from genimg_fast.ops.image_conv_act.operands import Operands, Options, Pair
from genimg_fast.ops.image_conv_act.operator import run_native
from genimg_fast.ops.image_conv_act.reference import convolve, image_conv_act_reference

__all__ = ["image_conv_act", "image_conv_act_reference"]


def image_conv_act(
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
    """Convolve from an image, or transpose a convolution to one, add a bias, apply an activation, in one pass.

    Equals ``activation(F.conv2d(input, weight, bias, stride, padding))``, or the same of ``F.conv_transpose2d``:
    same numbers, gradients of first and second order and errors. On a CPU, images of at most four channels in
    float32 or bfloat16 have kernels of their own, forward and backward, where they are faster; PyTorch runs
    everything else. Backward keeps the result and not what the activation was applied to, SiLU excepted. Autocast
    does what it does to PyTorch's convolutions.

    Such are a discriminator's first layer and a generator's last: Radford et al. 2016, arXiv:1511.06434.

    Args:
        input: (N, Ci, H, W), the image; with ``transposed`` (N, Cf, h, w), the features; in any memory layout.
        weight: (Cf, Ci, kh, kw), as ``nn.Conv2d(Ci, Cf)`` and ``nn.ConvTranspose2d(Cf, Ci)`` have it.
        bias: One value per channel of the result; None stands for zeros.
        stride: Step of the window over the image, in pixels.
        padding: Zeros around the image, in pixels.
        transposed: Whether it goes from the features to the image.
        output_padding: With ``transposed``, rows and columns that the image has more than the smallest that fits.
        activation: ``"identity"``, ``"relu"``, ``"leaky_relu"``, ``"silu"``, ``"tanh"`` or ``"sigmoid"``.
        negative_slope: Slope of ``"leaky_relu"`` below zero.

    Returns:
        (N, Cf, h, w) with ``h = (H + 2 * padding - kh) // stride + 1``; with ``transposed`` (N, Ci, H, W) with
        ``H = (h - 1) * stride - 2 * padding + kh + output_padding``. Dtype and memory format as PyTorch's.

    Raises:
        ValueError: The activation is unknown, or there is output padding of a convolution that is not transposed.
        RuntimeError: Shapes, dtypes or devices do not fit, as :func:`torch.nn.functional.conv2d` says; or the
            backend is ``"native"`` and no compiled kernel takes these arguments.

    Example:
        >>> import torch, genimg_fast as gf
        >>> x, weight = torch.randn(8, 3, 64, 64), torch.randn(32, 3, 4, 4)
        >>> y = gf.ops.image_conv_act(x, weight, stride=2, padding=1, activation="leaky_relu", negative_slope=0.2)
        >>> y.shape
        torch.Size([8, 32, 32, 32])
        >>> gf.ops.image_conv_act(y, weight, stride=2, padding=1, transposed=True, activation="tanh").shape
        torch.Size([8, 3, 64, 64])
    """
    check_options(activation, transposed, output_padding)
    pairs = _pair(stride), _pair(padding), _pair(output_padding)
    # To look at sizes is to be warned by torch.jit.trace, whose graph consists of PyTorch's operators anyhow.
    if pairs[0] and pairs[1] and pairs[2] and torch._C._get_tracing_state() is None:
        operands = new(Operands, (input, weight, bias))
        options = new(Options, (pairs[0], pairs[1], transposed, pairs[2], activation, negative_slope))
        reason = why_not(operands, options)
        if reason is None:
            return run_native(operands, options)
        check_backend("image_conv_act", reason)
    output = convolve(input, weight, bias, stride, padding, transposed, output_padding)
    return activate(output, activation, negative_slope)


def _pair(value: Any) -> Pair | None:
    """Return rows and columns of what may be one number for both; None if it is none that the kernels take."""
    if type(value) is int:
        return value, value
    if isinstance(value, (tuple, list)) and len(value) == 2 and type(value[0]) is type(value[1]) is int:
        return value[0], value[1]
    return None
