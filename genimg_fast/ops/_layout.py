"""Memory layouts."""

from __future__ import annotations

import torch
from torch import Tensor


def dense(input: Tensor) -> Tensor:
    """Return a tensor in NCHW or channels_last without gaps, itself if it is."""
    if input.is_contiguous() or input.is_contiguous(memory_format=torch.channels_last):
        return input
    return input.contiguous(memory_format=torch._prims_common.suggest_memory_format(input))


def dense_like(input: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return an empty tensor with the shape and strides that kernels of norms give their outputs.

    Args:
        input: Of the norm.
        dtype: By default the input's.
    """
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(input.dim())
    if not input.is_contiguous() and channels_last and input.is_contiguous(memory_format=channels_last):
        return torch.empty_like(input, dtype=dtype, memory_format=channels_last)
    memory_format = torch._prims_common.suggest_memory_format(input)
    return torch.empty_like(input, dtype=dtype, memory_format=memory_format)
