"""What the kernels take, and where PyTorch's own are faster."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from genimg_fast import _native
from genimg_fast.ops._dispatch import (
    EMPTY,
    INVALID,
    PLAIN_TENSORS,
    TRANSFORMED,
    Kernels,
    Preference,
    refusal,
)
from genimg_fast.ops.image_conv_act.checks import (
    DTYPES,
    MAX_IMAGE_CHANNELS,
    MAX_KERNEL,
    MAX_STRIDE,
    features_size,
)
from genimg_fast.ops.image_conv_act.operands import Operands, Options

# To call an operator of Python's autograd costs some fifty microseconds more, forward and backward, than to call
# built-in ones. Work is the product of the sizes of input and weight.
SMALLEST_NATIVE_WORK = 2 << 20
# PyTorch multiplies bfloat16 as pairs, which pays where more elements of a weight belong to a channel of features:
# then, unless the kernels do so, too, only the way to an image is faster here, and what needs it as its gradient,
# if it is not small.
MOST_NATIVE_TAPS_BFLOAT16, SMALLEST_NATIVE_WORK_BFLOAT16 = 31, 64 << 20

_FEWEST_CHANNELS_OF_PAIRS = 3

_CAST = (torch.float32, torch.bfloat16, torch.float16)
_SLOWER = "PyTorch is faster"
_DTYPES = "float32 or bfloat16"
_BATCHES = "batches of at least one image"
_PARAMETERS = "parameters of the data's dtype or float32"
_CHANNELS = f"at most {MAX_IMAGE_CHANNELS} channels at the image"
_WINDOWS = f"kernels of at most {MAX_KERNEL} pixels a side, steps of {MAX_STRIDE}, and padding below the kernel"


def dtype_of(tensor: Tensor) -> torch.dtype:
    """Return the dtype in which PyTorch's convolutions take a tensor of a CPU, which autocast may change."""
    dtype = tensor.dtype
    if torch.is_autocast_enabled("cpu") and dtype in _CAST:
        return torch.get_autocast_dtype("cpu")
    return dtype


def _unlike(operands: Operands, options: Options) -> str | None:
    """Tell what the kernels refuse from what PyTorch itself does, whose own error is what the user then sees."""
    input, weight, bias = operands
    stride, padding, transposed, output_padding = options[:4]
    if weight.dim() != 4 or input.dim() not in (3, 4):
        return INVALID
    if input.dim() == 3:
        return refusal(_BATCHES, f"one of shape {tuple(input.shape)}")
    inputs, outputs = weight.shape[:2] if transposed else (weight.shape[1], weight.shape[0])
    if weight.shape[1] > MAX_IMAGE_CHANNELS:
        return refusal(_CHANNELS, weight.shape[1])
    if input.numel() == 0 or weight.numel() == 0:
        return EMPTY
    if input.shape[1] != inputs or min(stride) < 1 or min(padding) < 0:
        return INVALID
    kernel = weight.shape[2:]
    fits = max(kernel) <= MAX_KERNEL and max(stride) <= MAX_STRIDE
    if not fits or padding[0] >= kernel[0] or padding[1] >= kernel[1]:
        return refusal(_WINDOWS, f"{tuple(kernel)}, {stride} and {padding}")
    if transposed:
        if not all(0 <= more < s for more, s in zip(output_padding, stride, strict=True)):
            return INVALID
        smallest = min(image_size(input, weight, options))
    else:
        smallest = min(features_size(input.shape[2:], kernel, stride, padding))
    if smallest < 1:
        return INVALID
    dtype = dtype_of(input)
    if dtype not in DTYPES:
        return refusal(_DTYPES, dtype)
    for tensor in (weight, bias):
        if tensor is None:
            continue
        if dtype_of(tensor) is not dtype or tensor.device != input.device:
            return INVALID
        if tensor.dtype is not dtype and tensor.dtype is not torch.float32:
            return refusal(_PARAMETERS, tensor.dtype)
    if bias is not None and bias.shape != (outputs,):
        return INVALID
    return None


def image_size(input: Tensor, weight: Tensor, options: Options) -> tuple[int, ...]:
    """Return the height and width that a transposed convolution makes of its input's."""
    return tuple(
        (n - 1) * s - 2 * p + k + more
        for n, k, s, p, more in zip(
            input.shape[2:], weight.shape[2:], options.stride, options.padding, options.output_padding, strict=True
        )
    )


def _is_slower(call: tuple[Tensor, Tensor, bool]) -> bool:
    """Whether PyTorch is faster for an input, a weight, and a convolution that is transposed or not."""
    input, weight, transposed = call
    if not input.is_cpu or weight.dim() != 4:
        return False
    work = input.numel() * weight.numel()
    if work < SMALLEST_NATIVE_WORK:
        return True
    if transposed or not _pairs_pay(dtype_of(input), weight.shape):
        return False
    if work < SMALLEST_NATIVE_WORK_BFLOAT16:
        return True
    return not ((input.requires_grad and torch.is_grad_enabled()) or _multiplies_pairs(input, weight.shape))


def _pairs_pay(dtype: torch.dtype, weight_shape: Sequence[int]) -> bool:
    _, channels, rows, columns = weight_shape
    return dtype is torch.bfloat16 and channels * rows * columns > MOST_NATIVE_TAPS_BFLOAT16


def _multiplies_pairs(data: Tensor, weight_shape: Sequence[int]) -> bool:
    """Whether the kernels multiply pairs, as PyTorch does; on a machine with AMX, PyTorch does better."""
    last = data.is_contiguous(memory_format=torch.channels_last) and not data.is_contiguous()
    # Two channels may be channels_last by chance, which must not change a sum.
    enough = weight_shape[1] >= _FEWEST_CHANNELS_OF_PAIRS
    return last and enough and _native.has_bf16_products() and not torch.cpu._is_amx_tile_supported()


KERNELS = Kernels(
    "image_conv_from",
    [_BATCHES, _CHANNELS, _WINDOWS],
    _unlike,
    {
        "cpu": Preference(
            f"inputs and weights whose sizes have a product below {SMALLEST_NATIVE_WORK}; for bfloat16, with "
            f"weights of more than {MOST_NATIVE_TAPS_BFLOAT16} elements to a channel of features, all but the way "
            f"to an image, and but {_FEWEST_CHANNELS_OF_PAIRS} channels or more in channels_last on "
            "processors with AVX-512 BF16 and without AMX",
            _is_slower,
        )
    },
    devices=["cpu"],
    dtypes=_DTYPES,
)


def why_not(operands: Operands, options: Options) -> str | None:
    """Return the reason why PyTorch's own kernels are to run a call, or None."""
    input, weight, _ = operands
    if type(input) not in PLAIN_TENSORS or type(weight) not in PLAIN_TENSORS:
        return TRANSFORMED  # or no tensor, of which PyTorch has its own error
    if KERNELS.is_slower("cpu", (input, weight, options.transposed)):
        return _SLOWER
    return KERNELS.why_not(operands, options)


def torch_is_faster(data: Tensor, weight_shape: Sequence[int]) -> bool:
    """Whether PyTorch convolves from an image, or computes the weight's gradient, faster; to one it never does.

    Args:
        data: The image, or, of a weight's gradient, the features.
        weight_shape: (Cf, Ci, kh, kw).
    """
    return (
        _native._backend == "auto"
        and _pairs_pay(data.dtype, weight_shape)
        and not _multiplies_pairs(data, weight_shape)
    )
