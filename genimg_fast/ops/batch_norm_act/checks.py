"""What the operators refuse; what is wrong for PyTorch, too, the public function leaves to it."""

from __future__ import annotations

import torch
from torch import Tensor

from genimg_fast.ops._checks import DTYPES, WIDE_DTYPE
from genimg_fast.ops.batch_norm_act.operands import Backward, Operands


def check_operands(operands: Operands) -> None:
    """The checks of csrc/batch_norm_act.h, so that tracing refuses what the kernels would refuse."""
    _check(operands.input, (operands.residual,), operands[2:])


def check_backward(call: Backward) -> None:
    """Likewise, of backward."""
    _check(call.input, (call.grad_output, call.residual), (call.weight, call.bias), (call.mean, call.invstd))


def _check(
    input: Tensor,
    like_input: tuple[Tensor | None, ...],
    per_channel: tuple[Tensor | None, ...],
    statistics: tuple[Tensor, ...] = (),
) -> None:
    torch._check(input.dim() >= 2, lambda: f"batch_norm_act: input must be (N, C, ...), got {input.dim()}-d")
    torch._check(
        input.dtype in WIDE_DTYPE,
        lambda: f"batch_norm_act: input must be {DTYPES}, got {input.dtype}",
    )
    for tensor in like_input:
        torch._check(
            tensor is None
            or (tensor.shape == input.shape and tensor.dtype == input.dtype and tensor.device == input.device),
            lambda: "batch_norm_act: residual and grad_output must have the input's shape, dtype and device",
        )
    wide = WIDE_DTYPE[input.dtype]
    for tensors, dtypes in ((per_channel, (input.dtype, wide)), (statistics, (wide,))):
        for tensor in tensors:
            torch._check(
                tensor is None
                or (
                    tensor.shape == (input.shape[1],) and tensor.dtype in dtypes and tensor.device == input.device
                ),
                lambda: (
                    "batch_norm_act: parameters and statistics must have one value per channel of the input, on "
                    "its device, in its dtype or, beside 16-bit input, in float32"
                ),
            )
