"""What the kernels take."""

from __future__ import annotations

from genimg_fast.ops._dispatch import Kernels, refusal
from genimg_fast.ops.reparameterize_kl.operands import Operands

# In any layout; with friendly strides they would take more.
_MAX_DIMS = 9
_DIMENSIONS = f"at most {_MAX_DIMS} dimensions"


def _unlike(operands: Operands, options: None) -> str | None:
    dims = operands.mu.dim()
    return refusal(_DIMENSIONS, dims) if dims > _MAX_DIMS else None


KERNELS = Kernels("reparameterize_kl", [_DIMENSIONS], _unlike)
