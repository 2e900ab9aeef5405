"""What the operators and the public functions refuse; what is wrong for PyTorch, too, is left to it."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from genimg_fast.ops._checks import DTYPES, WIDE_DTYPE, check_dtype, check_type
from genimg_fast.ops.group_norm_act.operands import Backward, Operands


def check_modulation(input: Tensor, tensor: Tensor | None, name: str) -> None:
    """Check a scale or shift."""
    if tensor is None:
        return
    check_type(tensor, name)
    check_dtype(tensor, name)
    if tensor.shape != input.shape[:2]:
        raise ValueError(
            f"{name} must have shape (N, C), {tuple(input.shape[:2])}, one value per sample and channel of the "
            f"input, got {tuple(tensor.shape)}"
        )
    if tensor.device != input.device:
        raise ValueError(f"{name} must be on the device of input, {input.device}, got {tensor.device}")


def check_operands(operands: Operands, num_groups: int, output: torch.dtype) -> None:
    """The checks of csrc/group_norm_act.h, so that tracing refuses what the kernels would refuse."""
    input, residual, weight, bias, scale, shift = operands
    _check(input, num_groups, output, (residual,), (weight, bias), (scale, shift))


def check_backward(call: Backward) -> None:
    """Likewise, of backward."""
    _check(
        call.input, call.num_groups, call.grad_output.dtype, (call.grad_output, call.residual),
        (call.weight, call.bias), (call.scale, call.shift), (call.mean, call.invstd),
    )  # fmt: skip


def _check(
    input: Tensor,
    num_groups: int,
    output: torch.dtype,
    like_output: tuple[Tensor | None, ...],
    per_channel: tuple[Tensor | None, ...],
    per_sample: tuple[Tensor | None, ...],
    statistics: tuple[Tensor, ...] = (),
) -> None:
    torch._check(input.dim() >= 2, lambda: f"group_norm_act: input must be (N, C, ...), got {input.dim()}-d")
    torch._check(input.dtype in WIDE_DTYPE, lambda: f"group_norm_act: input must be {DTYPES}, got {input.dtype}")
    samples, channels = input.shape[:2]
    torch._check(
        num_groups > 0 and channels % num_groups == 0,
        lambda: f"group_norm_act: num_groups must divide the input's {channels} channels, got {num_groups}",
    )
    wide = WIDE_DTYPE[input.dtype]
    own = (input.dtype, wide)
    torch._check(output in own, lambda: f"group_norm_act: grad_output must be {own}, got {output}")
    for tensors, shape, dtypes, words in (
        (like_output, input.shape, (output,), "residual and grad_output must have the output's shape, dtype"),
        (per_channel, (channels,), own, "weight and bias must have shape (C,), the input's dtype or float32"),
        (
            per_sample,
            (samples, channels),
            own,
            "scale and shift must have shape (N, C), the input's dtype or float32",
        ),
        (
            statistics,
            (samples, num_groups),
            (wide,),
            "mean and invstd must have shape (N, num_groups), wide dtype",
        ),
    ):
        for tensor in tensors:
            torch._check(
                tensor is None
                or (tensor.shape == shape and tensor.dtype in dtypes and tensor.device == input.device),
                partial(str, f"group_norm_act: {words} and the input's device"),
            )
