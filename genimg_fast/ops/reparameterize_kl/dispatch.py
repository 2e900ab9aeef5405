"""What the kernels take."""

from __future__ import annotations

from genimg_fast.ops._dispatch import Kernels, Limit
from genimg_fast.ops.reparameterize_kl.operands import Operands

# In any layout; with friendly strides they would take more.
_MAX_DIMS = 9


def _unlike_dimensions(operands: Operands) -> str | None:
    dims = operands.mu.dim()
    return str(dims) if dims > _MAX_DIMS else None


KERNELS = Kernels("reparameterize_kl", [Limit(f"at most {_MAX_DIMS} dimensions", _unlike_dimensions)])
