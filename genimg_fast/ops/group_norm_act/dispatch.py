"""What the kernels take, and where PyTorch's own are faster."""

from __future__ import annotations

import torch
from torch import Tensor

from genimg_fast.ops._checks import DTYPES, WIDE_DTYPE
from genimg_fast.ops._dispatch import AUTOCAST, EMPTY, INVALID, Kernels, Preference, refusal
from genimg_fast.ops.group_norm_act.operands import Operands, Options

# To call an operator of Python's autograd costs some fifty microseconds more, forward and backward, than to call
# built-in ones; and what backward does for every channel takes more than PyTorch's does where a channel has few
# elements, in float32 in NCHW more than elsewhere.
SMALLEST_NATIVE_NUMEL, SMALLEST_NATIVE_PLANE, SMALLEST_NATIVE_FLOAT32_PLANE = 128 << 10, 64, 128
# With nothing behind the norm that could be saved, in NCHW; in channels_last PyTorch is fast where a group has
# this many channels, and without gradients where a plane has this many pixels.
SMALLEST_NATIVE_ALONE, SMALLEST_NATIVE_ALONE_LAST, MANY_CHANNELS, LARGE_PLANE = 2 << 20, 1 << 20, 16, 1024

_16_BITS = (torch.bfloat16, torch.float16)

_PARAMETERS = "parameters of the input's dtype or, beside 16-bit input, float32"
_RESIDUAL = "a residual of the input's shape and device, and the result's dtype"


def has_wide_output(input: Tensor) -> bool:
    """Whether the result of 16-bit input is in float32, as autocast has it on a GPU; for CPUs it has no rule."""
    return not input.is_cpu and input.dtype in _16_BITS and torch.is_autocast_enabled(input.device.type)


def _unlike(operands: Operands, options: Options) -> str | None:
    """Tell what the kernels refuse from what PyTorch itself does, whose own error is what the user then sees.

    This is everything that the operators check, and more: they take a few inputs that PyTorch refuses.
    """
    input, residual, weight, bias, scale, shift = operands
    num_groups = options.num_groups
    shape, dtype, numel = input.shape, input.dtype, input.numel()
    if len(shape) < 2:
        return INVALID
    wide = WIDE_DTYPE.get(dtype)
    if wide is None:
        return refusal(DTYPES, dtype)
    if numel == 0:
        return EMPTY
    # torch's F.group_norm refuses one value a group only if there is but one sample and group.
    # And True, which is an int to Python.
    if not isinstance(num_groups, int) or num_groups is True or num_groups < 1:
        return INVALID
    if shape[1] % num_groups or numel == num_groups:
        return INVALID
    if weight is not None and bias is not None and weight.dtype is not bias.dtype:
        return INVALID
    for tensor, expected in (
        (weight, shape[1:2]), (bias, shape[1:2]), (scale, shape[:2]), (shift, shape[:2]),
    ):  # fmt: skip
        if tensor is None:
            continue
        if tensor.shape != expected or tensor.device != input.device:
            return INVALID
        kind = tensor.dtype
        if kind is not dtype and kind is not wide:
            if torch.is_autocast_enabled(input.device.type):
                return AUTOCAST
            return refusal(_PARAMETERS, f"{kind} beside {dtype} input")
    if residual is not None and (
        residual.shape != shape
        or residual.dtype is not (wide if has_wide_output(input) else dtype)
        or residual.device != input.device
    ):
        if torch.is_autocast_enabled(input.device.type):
            return AUTOCAST
        return refusal(_RESIDUAL, f"{residual.dtype} of shape {tuple(residual.shape)} on {residual.device}")
    return None


def _is_slower(call: tuple[Tensor, int, bool]) -> bool:
    """Whether PyTorch is faster for an input.

    With it are how many groups there are if nothing follows, else 0, and whether a contiguous copy is taken.
    """
    input, alone, copied = call
    if type(input) is not Tensor or not input.is_cpu:
        return False
    numel = input.numel()
    if alone == 1 or numel < SMALLEST_NATIVE_NUMEL or input.dim() < 2:
        return True
    dense, channels = copied or input.is_contiguous(), input.shape[1]
    if alone and (dense or channels >= MANY_CHANNELS * alone):
        least = SMALLEST_NATIVE_ALONE if dense else SMALLEST_NATIVE_ALONE_LAST
        if numel < least:
            return True
    if alone and not dense and numel >= LARGE_PLANE * input.shape[0] * channels and not torch.is_grad_enabled():
        return True
    plane = SMALLEST_NATIVE_PLANE
    if dense and input.dtype is torch.float32 and torch.is_grad_enabled():
        plane = SMALLEST_NATIVE_FLOAT32_PLANE
    return numel < plane * input.shape[0] * channels


KERNELS = Kernels(
    "group_norm_act",
    [_PARAMETERS, _RESIDUAL],
    _unlike,
    {
        "cpu": Preference(
            f"fewer than {SMALLEST_NATIVE_NUMEL} elements, planes of fewer than {SMALLEST_NATIVE_PLANE} "
            f"({SMALLEST_NATIVE_FLOAT32_PLANE} with gradients in float32 in NCHW), and, with nothing behind it, "
            f"one group, fewer than {SMALLEST_NATIVE_ALONE} elements in NCHW, or fewer than "
            f"{SMALLEST_NATIVE_ALONE_LAST} in channels_last in groups of {MANY_CHANNELS} channels or more, and "
            f"without gradients planes of {LARGE_PLANE} in channels_last, which are faster there",
            _is_slower,
        )
    },
)
