"""Memory layouts of results, for fake kernels."""

from __future__ import annotations

import torch
from torch import Tensor


def dense_like(input: Tensor) -> Tensor:
    """Return an empty tensor with the dtype, shape and strides that kernels of norms give their outputs."""
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(input.dim())
    if not input.is_contiguous() and channels_last and input.is_contiguous(memory_format=channels_last):
        return torch.empty_like(input, memory_format=channels_last)
    return torch.empty_like(input, memory_format=torch._prims_common.suggest_memory_format(input))
