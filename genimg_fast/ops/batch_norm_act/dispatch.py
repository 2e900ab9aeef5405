"""What the kernels take, and where PyTorch's own are faster."""

from __future__ import annotations

from torch import Tensor

from genimg_fast.ops._checks import DTYPES, WIDE_DTYPE
from genimg_fast.ops._dispatch import EMPTY, INVALID, Kernels, Preference, refusal
from genimg_fast.ops.batch_norm_act.operands import Operands, Options

# To call a custom operator from Python costs a few microseconds more than to call a built-in one. The others are
# for 16-bit data in NCHW, for which PyTorch is faster than for the rest; for training, but for float32 in NCHW,
# where PyTorch is slow; and for training with nothing behind the norm that could be saved.
SMALLEST_NATIVE_NUMEL, SMALLEST_NATIVE_NUMEL_16_BIT, SMALLEST_NATIVE_TRAINING = 24 << 10, 48 << 10, 96 << 10
SMALLEST_NATIVE_ALONE_16_BIT, SMALLEST_NATIVE_ALONE = 384 << 10, 2 << 20

_PARAMETERS = "contiguous parameters and statistics of one dtype, the input's or, beside 16-bit input, float32"
_STATISTICS = "running statistics that require no gradient"
_RESIDUAL = "a residual of the input's shape, dtype and device"


def _unlike(operands: Operands, options: Options) -> str | None:
    """Tell what the kernels refuse from what PyTorch itself does, whose own error is what the user then sees.

    This is everything that the operators check, and more: they take a few inputs that PyTorch refuses.
    """
    input, residual, weight, bias, running_mean, running_var = operands
    training, _, eps, _, _ = options
    shape, dtype, numel, on_cpu = input.shape, input.dtype, input.numel(), input.is_cpu
    if len(shape) < 2:
        return INVALID
    wide = WIDE_DTYPE.get(dtype)
    if wide is None:
        return refusal(DTYPES, dtype)
    if numel == 0:
        return EMPTY
    if (training and numel == shape[1]) or not eps > 0:
        return INVALID
    if (running_mean is None) != (running_var is None) or (running_mean is None and not training):
        return INVALID
    per_channel, common = (shape[1],), None
    for tensor in (weight, bias, running_mean, running_var):
        if tensor is None:
            continue
        if tensor.shape != per_channel or tensor.is_cpu != on_cpu:
            return INVALID
        if not on_cpu and tensor.device != input.device:
            return INVALID
        kind = tensor.dtype
        if kind is not common:
            if common is not None:
                return refusal(_PARAMETERS, f"{common} and {kind}")
            if kind is not dtype and kind is not wide:
                return refusal(_PARAMETERS, f"{kind} beside {dtype} input")
            common = kind
        if not tensor.is_contiguous():
            return refusal(_PARAMETERS, "strided ones")
    if running_mean is not None and (running_mean.requires_grad or running_var.requires_grad):  # type: ignore[union-attr]
        return refusal(_STATISTICS, "some that require one")
    if residual is not None and (
        residual.shape != shape or residual.dtype is not dtype or residual.device != input.device
    ):
        return refusal(_RESIDUAL, f"{residual.dtype} of shape {tuple(residual.shape)} on {residual.device}")
    return None


def _is_slower(call: tuple[Tensor, bool, bool]) -> bool:
    """Whether PyTorch is faster for an input; in training or not; and if nothing follows the norm."""
    input, training, alone = call
    if type(input) is not Tensor or not input.is_cpu:
        return False
    numel = input.numel()
    if numel < SMALLEST_NATIVE_NUMEL:
        return True
    narrow, dense = input.element_size() == 2, input.is_contiguous()
    if training:
        least = SMALLEST_NATIVE_TRAINING
        if alone:
            least = SMALLEST_NATIVE_ALONE_16_BIT if narrow else SMALLEST_NATIVE_ALONE
        return numel < least and (narrow or not dense)
    if alone:
        return narrow or dense
    return narrow and dense and numel < SMALLEST_NATIVE_NUMEL_16_BIT


KERNELS = Kernels(
    "batch_norm_act_train_functional",
    [_PARAMETERS, _STATISTICS, _RESIDUAL],
    _unlike,
    {
        "cpu": Preference(
            f"fewer than {SMALLEST_NATIVE_NUMEL} elements (16-bit NCHW: {SMALLEST_NATIVE_NUMEL_16_BIT}; in "
            f"training, but for float32 in NCHW: {SMALLEST_NATIVE_TRAINING}, with nothing behind it "
            f"{SMALLEST_NATIVE_ALONE}, of 16 bits {SMALLEST_NATIVE_ALONE_16_BIT}), and, in evaluation with "
            "nothing behind it, all but float32 in channels_last, which are faster there",
            _is_slower,
        )
    },
)
