"""Convolutions with passes that are faster than oneDNN's, on a CPU: matrix products, and products of bfloat16.

oneDNN walks over the pixels of an image. Where a layer has a handful of them and many weights, as in the middle of
a U-Net or at the end of a discriminator, putting weights in order takes most of its time. A product does without:

    windows (pixels, kh * kw * Ci) @ weight^T (kh * kw * Ci, Cf) = features (pixels, Cf)
    features^T (Cf, pixels) @ windows (pixels, kh * kw * Ci) = gradient of the weight

where a row of the windows is what the kernel sees of the image for one pixel of the features. In a transposed
convolution, image and features change places: the first line is the gradient of its input.

A kernel as large as the image has one window, the image itself, and all three passes are products of what is
there. Elsewhere, the pass from features to image stays oneDNN's.

In bfloat16, there are kernels of our own for layers of more pixels (`bf16_conv`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._C._functorch import is_legacy_batchedtensor

from genimg_fast import _native
from genimg_fast.ops import bf16_conv as kernels
from genimg_fast.ops._dispatch import PLAIN_TENSORS, is_transformed
from genimg_fast.ops.bf16_conv import Pair, bf16_conv, bf16_conv_weight

_Order = tuple[int, int, int, int]

_DTYPES = (torch.float32, torch.bfloat16)
_NCHW, _CHANNELS_LAST = (0, 1, 2, 3), (0, 2, 3, 1)  # orders of a weight's dimensions in memory
# From how many weights on for each pixel of the features a product takes less time than oneDNN, by a tenth or more
# of the layer's (docs/benchmarks.md).
_FORWARD = {_NCHW: 1 << 16, _CHANNELS_LAST: 1 << 16}
_GRADIENT = {_NCHW: 1 << 15, _CHANNELS_LAST: 1 << 13}
# So does, with fewer weights, the gradient in bfloat16 and channels_last where a stride leads to few pixels.
_FEW_PIXELS = 16
# For less, it is not worth to call a function of Python's.
_FEWEST_WEIGHTS = 1 << 17
# Terms of a sum in float32: longer ones are sums of sums, with errors like those of oneDNN.
_LONGEST_SUM = 1024


class _Plan(NamedTuple):
    """The convolution from image to features, in rows and columns, and what to do by products."""

    kernel: Pair
    stride: Pair
    padding: Pair
    image: Pair
    features: Pair
    transposed: bool
    whole: bool  # the kernel is as large as the image
    forward: bool  # the pass from image to features
    gradient: bool  # the weight's gradient
    kernels: bool  # bf16_conv convolves, where there is no bias
    kernel_gradient: bool  # bf16_conv_weight computes the weight's gradient
    order: _Order | None  # of all results: PyTorch's are channels_last if the input or the weight is


def may_gain(layer: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """Tell whether :func:`product_conv` is likely to do something for a layer."""
    whole = layer.padding == (0, 0) and max(layer.kernel_size) > 3  # smaller kernels seldom see a whole image
    weights = layer.in_channels * layer.out_channels * math.prod(layer.kernel_size)
    return (layer.groups == 1 and (whole or weights >= _FEWEST_WEIGHTS)) or kernels.may_gain(layer)


def product_conv(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    *,
    transposed: bool = False,
    output_padding: Pair = (0, 0),
) -> Tensor | None:
    """Convolve with matrix products, or kernels of our own, where these are faster than PyTorch's own convolution.

    Args:
        input: (N, Ci, H, W), the image; with ``transposed`` (N, Cf, h, w), the features.
        weight: (Cf, Ci, kh, kw), as ``nn.Conv2d(Ci, Cf)`` and ``nn.ConvTranspose2d(Cf, Ci)`` have it.
        bias: One value per channel of the result, or None.
        stride: Step of the window over the image, in rows and columns.
        padding: Zeros around the image.
        transposed: Whether it goes from the features to the image.
        output_padding: With ``transposed``, rows and columns that the image has more than the smallest that fits.

    Returns:
        What ``F.conv2d`` or ``F.conv_transpose2d`` does, to rounding, with gradients of every order. None where
        that is to run: it is as fast, someone has to see it, or it has an error to raise.
    """
    plan = _plan(input, weight, bias, stride, padding, transposed, output_padding)
    if plan is None:
        return None
    dtype = _dtype_of(input)
    bias = None if bias is None else bias.to(dtype)
    output: Tensor = _ProductConv.apply(input.to(dtype), weight, bias, plan)
    return output


def _dtype_of(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which convolutions take a tensor, which autocast may change."""
    cast = torch.is_autocast_enabled("cpu") and tensor.dtype in (*_DTYPES, torch.float16)
    return torch.get_autocast_dtype("cpu") if cast else tensor.dtype


def _plan(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Pair,
    padding: Pair,
    transposed: bool,
    output_padding: Pair,
) -> _Plan | None:
    """Decide what not to leave to PyTorch; None if nothing, or if the arguments are not valid."""
    tensors = [input, weight] if bias is None else [input, weight, bias]
    if not all(type(t) in PLAIN_TENSORS and t.is_cpu for t in tensors):
        return None
    if torch.compiler.is_compiling() or _native._backend == "reference" or is_transformed(input):
        return None
    if input.dim() != 4 or weight.dim() != 4 or input.numel() == 0 or weight.numel() == 0:
        return None
    inputs, outputs = weight.shape[:2] if transposed else (weight.shape[1], weight.shape[0])
    if input.shape[1] != inputs or (bias is not None and bias.shape != (outputs,)):
        return None
    dtype = _dtype_of(input)
    if dtype not in _DTYPES or any(_dtype_of(t) is not dtype for t in tensors):
        return None
    if min(stride) < 1 or min(padding) < 0:
        return None
    # Less than the highest precision is allowed for products, not for convolutions.
    if dtype is torch.float32 and torch.get_float32_matmul_precision() != "highest":
        return None
    kernel, given = _pair(weight.shape[2:]), _pair(input.shape[2:])
    if transposed:
        if not all(0 <= more < s for more, s in zip(output_padding, stride, strict=True)):
            return None
        sizes = zip(given, kernel, stride, padding, output_padding, strict=True)
        image, features = _pair((n - 1) * s - 2 * p + k + more for n, k, s, p, more in sizes), given
    else:
        sizes_ = zip(given, kernel, stride, padding, strict=True)
        image, features = given, _pair((n + 2 * p - k) // s + 1 for n, k, s, p in sizes_)
    if min(*image, *features) < 1:
        return None
    order, weights, pixels = _order(weight), weight.numel(), len(input) * math.prod(features)
    few = dtype is torch.bfloat16 and order is _CHANNELS_LAST and min(stride) > 1
    few = few and math.prod(features) <= _FEW_PIXELS
    whole = image == kernel and padding == (0, 0) and max(kernel) > 1
    enough = weights >= _FEWEST_WEIGHTS
    # Of several images, oneDNN has fewer products for this kernel (Winograd's), too.
    fewer = dtype is torch.float32 and order is _NCHW and kernel == (3, 3) and max(stride) == 1 and len(input) > 1
    forward = enough and not fewer and weights >= _FORWARD[order] * pixels
    gradient = enough and (few or weights >= _GRADIENT[order] * pixels)
    convolves, of_weight = False, False
    if not (whole or forward):
        convolves, of_weight = kernels.gains(input, weight, dtype, math.prod(features), stride)
        of_weight = of_weight and torch.is_grad_enabled() and weight.requires_grad
    if not (whole or forward or gradient or convolves or of_weight):
        return None
    forward, gradient = whole or forward, whole or gradient
    results = order if order is _CHANNELS_LAST else _order(input)
    return _Plan(
        kernel, stride, padding, image, features, transposed,
        whole, forward, gradient, convolves, of_weight, results,
    )  # fmt: skip


def _pair(values: Iterable[int]) -> Pair:
    rows, columns = values
    return rows, columns


def _order(tensor: Tensor) -> _Order:
    """Return the order of a tensor's dimensions in memory, as PyTorch understands it."""
    last = torch._prims_common.suggest_memory_format(tensor) is torch.channels_last
    return _CHANNELS_LAST if last else _NCHW


def _nchw(tensor: Tensor, order: _Order) -> Tensor:
    """Name the dimensions of a tensor that has them in an order as usual."""
    return tensor if order is _NCHW else tensor.permute(0, 3, 1, 2)


def _laid_out(images: Tensor, order: _Order | None) -> Tensor:
    """Bring images into an order, if there is one, their strides of single rows and columns, too."""
    if order is _CHANNELS_LAST:
        # To ask takes a fraction of the time of a call that changes nothing, and there are dozens in a step.
        last = images.is_contiguous(memory_format=torch.channels_last)
        return images if last else images.contiguous(memory_format=torch.channels_last)
    return images if order is None else images.flatten(1).view(images.shape)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Multiply matrices, in sums that are not too long."""
    length = left.shape[1]
    if length <= _LONGEST_SUM or left.dtype is not torch.float32:
        return left @ right
    first, *others = zip(left.split(_LONGEST_SUM, 1), right.split(_LONGEST_SUM), strict=True)
    total = first[0] @ first[1]
    for a, b in others:
        total = torch.addmm(total, a, b)
    return total


class _ProductConv(torch.autograd.Function):
    """A convolution by a plan; under autocast the weight may be wider than the rest."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, plan: _Plan) -> Tensor:
        need_input, need_weight, need_bias, _ = ctx.needs_input_grad
        # The gradient of the weight needs its shape and order, and it is there anyhow.
        ctx.save_for_backward(input if need_weight else None, weight)
        # Our kernels take both dtypes; for others, the weight is rounded once.
        ctx.rounded = None if plan.kernels or weight.dtype is input.dtype else weight.to(input.dtype)
        ctx.plan, ctx.need_input, ctx.need_bias = plan, need_input, need_bias
        used = weight if ctx.rounded is None else ctx.rounded
        output = (_to_image if plan.transposed else _to_features)(input, used, bias, plan)
        return output.data  # what is a view may not be changed in place, as by an activation behind

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients, in operations that can be differentiated again."""
        (input, weight), plan = ctx.saved_tensors, ctx.plan
        if is_legacy_batchedtensor(grad):  # many gradients at a time, which views do not take
            plan = plan._replace(
                whole=False, forward=False, gradient=False, kernels=False, kernel_gradient=False, order=None
            )
        grad_input = grad_weight = None
        if ctx.need_input:
            used = weight if ctx.rounded is None or torch.is_grad_enabled() else ctx.rounded
            grad_input = (_to_features if plan.transposed else _to_image)(grad, used, None, plan)
        if input is not None:
            image, features = (grad, input) if plan.transposed else (input, grad)
            grad_weight = _weight_gradient(image, features, weight, plan)
        return grad_input, grad_weight, grad.sum((0, 2, 3)) if ctx.need_bias else None, None


def _windows(image: Tensor, plan: _Plan, order: _Order) -> Tensor:
    """Return what the kernel sees, a row for each pixel of the features, in the order of a weight."""
    (kh, kw), (sh, sw), (ph, pw) = plan.kernel, plan.stride, plan.padding
    if ph or pw:
        image = F.pad(image, (pw, pw, ph, ph))
    seen = image.unfold(2, kh, sh).unfold(3, kw, sw)  # N, Ci, h, w, kh, kw
    inner = (1, 4, 5) if order is _NCHW else (4, 5, 1)
    return seen.permute(0, 2, 3, *inner).flatten(3).flatten(0, 2)


def _to_features(image: Tensor, weight: Tensor, bias: Tensor | None, plan: _Plan) -> Tensor:
    if _runs_on_kernels(image, bias, plan):
        features = bf16_conv(image, weight, plan.stride, plan.padding)
    elif plan.forward:
        order, weight = _order(weight), weight.to(image.dtype)
        rows = _product(_windows(image, plan, order), weight.permute(order).flatten(1).t())
        features = _shifted(rows.view(-1, *plan.features, rows.shape[1]).permute(0, 3, 1, 2), bias)
    else:
        features = F.conv2d(image, weight.to(image.dtype), bias, plan.stride, plan.padding)
    return _laid_out(features, plan.order)


def _to_image(features: Tensor, weight: Tensor, bias: Tensor | None, plan: _Plan) -> Tensor:
    if _runs_on_kernels(features, bias, plan):
        image = bf16_conv(features, weight, plan.stride, plan.padding, plan.image)
    elif plan.whole:
        order, weight = _order(weight), weight.to(features.dtype)
        rows = _product(features.flatten(1), weight.permute(order).flatten(1))
        image = _shifted(_nchw(rows.unflatten(1, [weight.shape[axis] for axis in order[1:]]), order), bias)
    else:
        sizes = zip(plan.image, plan.features, plan.kernel, plan.stride, plan.padding, strict=True)
        more = [n - ((f - 1) * s - 2 * p + k) for n, f, k, s, p in sizes]
        image = F.conv_transpose2d(features, weight.to(features.dtype), bias, plan.stride, plan.padding, more)
    return _laid_out(image, plan.order)


def _runs_on_kernels(input: Tensor, bias: Tensor | None, plan: _Plan) -> bool:
    """Tell whether our kernel convolves; it has no derivative."""
    return plan.kernels and bias is None and not torch.is_grad_enabled() and not is_transformed(input)


def _shifted(output: Tensor, bias: Tensor | None) -> Tensor:
    return output if bias is None else output + bias[:, None, None]


def _weight_gradient(image: Tensor, features: Tensor, weight: Tensor, plan: _Plan) -> Tensor:
    """Compute the gradient of a weight of which the shape and the order count."""
    if plan.kernel_gradient:
        gradient = bf16_conv_weight(image, features, plan.kernel, plan.stride, plan.padding)
    elif plan.gradient:
        order = _order(weight)
        rows = _product(features.permute(0, 2, 3, 1).flatten(0, 2).t(), _windows(image, plan, order))
        gradient = _nchw(rows.view([weight.shape[axis] for axis in order]), order)
    else:
        backward, mask = torch.ops.aten.convolution_backward, (False, True, False)
        one, none = (1, 1), (0, 0)
        weight = weight.to(image.dtype)
        gradient = backward(features, image, weight, None, plan.stride, plan.padding, one, False, none, 1, mask)[1]
    return _laid_out(gradient, plan.order)
