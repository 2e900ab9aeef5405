"""The kernels of the cell updates, executed by the SIMT emulator, against PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import pytest
import torch
from accuracy import FORWARD, GRADIENT, assert_as_accurate_as_torch
from cells import GATES, GRU, LSTM, gru_update, lstm_update
from memory import DTYPES, Outputs, arrays, name_of
from torch import Tensor


@dataclass
class Update:
    """Tensors of a cell update: (outer, gates, inner), or (outer, inner) for states."""

    cell: int
    dtype: torch.dtype
    outer: int
    inner: int
    without: tuple[str, ...] = ()
    shift: int = 0

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        names = (
            ["gates", "gates_h", "state", "grad_h"] if self.cell == GRU else ["gates", "state", "grad_h", "grad_c"]
        )
        out = self.outputs(*names)
        for t in out.tensors.values():
            t.copy_(torch.randn(t.shape, generator=generator, dtype=torch.float64))
        self.inputs = {name: t for name, t in out.tensors.items() if name not in self.without}

    def outputs(self, *names: str) -> Outputs:
        out = Outputs(self.dtype, self.shift)
        for name in names:
            gates = (GATES[self.cell],) if "gates" in name else ()
            out.add(name, self.outer, *gates, self.inner)
        return out

    def run(self, emulator: ModuleType) -> dict[str, Tensor]:
        results = {}
        more = {GRU: ("grad_gates_h",), LSTM: ()}[self.cell]
        for backward, names in (
            (False, ("h", "c") if self.cell == LSTM else ("h",)),
            (True, ("grad_gates", *more, "grad_state")),
        ):
            out = self.outputs(*names)
            emulator.cell_update.update(
                name_of(self.dtype), self.cell, backward, self.outer, self.inner, arrays(self.inputs | out.tensors)
            )
            out.check()
            results |= out.tensors
        return results

    def torch(self, dtype: torch.dtype) -> dict[str, Tensor]:
        leaves = {n: t.to(dtype, copy=True).requires_grad_() for n, t in self.inputs.items() if "grad" not in n}
        if self.cell == GRU:
            gates = (leaves[name].flatten(1) for name in ("gates", "gates_h"))
            results = {"h": gru_update(*gates, leaves["state"])}
        else:
            results = dict(zip("hc", lstm_update(leaves["gates"].flatten(1), leaves["state"]), strict=True))
        pairs = [(results[n[5:]], g.to(dtype)) for n, g in self.inputs.items() if n.startswith("grad")]
        torch.autograd.backward([sum((out * g).sum() for out, g in pairs)])
        results |= {f"grad_{name}": t.grad for name, t in leaves.items()}
        return {name: t.detach() for name, t in results.items()}

    def check(self, emulator: ModuleType) -> None:
        torchs, exact = self.torch(self.dtype), self.torch(torch.float64)
        results = self.run(emulator)
        assert results.keys() == exact.keys()
        for name, value in results.items():
            times = GRADIENT if name.startswith("grad") else FORWARD
            assert_as_accurate_as_torch(value, torchs[name], exact[name], times=times, name=name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", [GRU, LSTM], ids=["gru", "lstm"])
def test_matches_torch(emulator: ModuleType, cell: int, dtype: torch.dtype) -> None:
    for outer, inner in [(1, 1), (5, 7), (3, 64), (2, 8 * 45), (300, 3)]:
        Update(cell, dtype, outer, inner).check(emulator)
    Update(cell, dtype, 3, 64, shift=1).check(emulator)


@pytest.mark.parametrize("without", ["grad_h", "grad_c"])
def test_lstm_update_with_one_gradient(emulator: ModuleType, without: str) -> None:
    for dtype in DTYPES:
        Update(LSTM, dtype, 3, 16, (without,)).check(emulator)


SANITIZED = """
import itertools
import numpy as np
import simt_kernels as emulator

types = {"float32": np.float32, "float64": np.float64, "bfloat16": np.int16}
for (dtype, type), (cell, gates), (outer, inner), backward in itertools.product(
    types.items(), ((2, 3), (3, 4)), ((3, 5), (2, 16)), (False, True)
):
    sizes = {name: (outer, inner) for name in ("state", "h", "c", "grad_h", "grad_c", "grad_state")}
    sizes |= {name: (outer, gates, inner) for name in ("gates", "gates_h", "grad_gates", "grad_gates_h")}
    arrays = {name: np.zeros(size, type) for name, size in sizes.items()}
    emulator.cell_update.update(dtype, cell, backward, outer, inner, arrays)
print("done")
"""


@pytest.mark.sanitizer
@pytest.mark.parametrize("sanitizer", ["asan", "tsan"])
def test_sanitizer_has_nothing_to_say(run_clean: Callable[..., None], sanitizer: str) -> None:
    run_clean(sanitizer, SANITIZED)
