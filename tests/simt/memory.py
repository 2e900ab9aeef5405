"""Tensors for emulated kernels: as arrays, at chosen addresses, and guarded against writes beyond their end."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def array(t: Tensor) -> np.ndarray:
    """The tensor's memory as an array of the same strides; numpy has no bfloat16."""
    return (t.view(torch.int16) if t.element_size() == 2 else t).numpy()


def arrays(tensors: dict[str, Tensor | None]) -> dict[str, np.ndarray]:
    return {name: array(t) for name, t in tensors.items() if t is not None}


def aligned(values: Tensor, shift: int = 0) -> Tensor:
    """Copies to contiguous memory amid NaNs that begins `shift` elements after an address aligned to 16 bytes."""
    padding = 16 // values.element_size()
    memory = torch.full((values.numel() + 2 * padding,), torch.nan, dtype=values.dtype)
    start = -memory.data_ptr() // values.element_size() % padding + shift
    return memory[start : start + values.numel()].view(values.shape).copy_(values)


@dataclass
class Outputs:
    """Memory that kernels write: each tensor amid NaNs, which they must leave alone."""

    dtype: torch.dtype
    shift: int = 0  # elements after an address aligned to 16 bytes
    tensors: dict[str, Tensor | None] = field(default_factory=dict)
    guards: list[Tensor] = field(default_factory=list)

    def add(self, name: str, *shape: int, when: bool = True, dtype: torch.dtype | None = None) -> None:
        dtype = dtype or self.dtype
        size = int(np.prod(shape, dtype=int))
        memory = torch.full((size + 96,), torch.nan, dtype=dtype)
        start = 32 - memory.data_ptr() // memory.element_size() % (16 // memory.element_size()) + self.shift
        self.guards += [memory[:start], memory[start + size :]]
        self.tensors[name] = memory[start : start + size].view(shape) if when else None

    def check(self) -> None:
        assert all(guard.isnan().all() for guard in self.guards), "written beyond an output"
