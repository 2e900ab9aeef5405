"""The recurrent kernels, executed by the SIMT emulator, against PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accuracy import FORWARD, GRADIENT, assert_as_accurate_as_torch
from cells import CELLS, GATES, GRU, LSTM, NAMES, RESERVE, RNN_RELU, RNN_TANH, gru_update, lstm_update
from memory import DTYPES, Outputs, arrays, name_of
from torch import Tensor

import genimg_fast as gf

HIDDEN = [1, 8, 7, 26, 64]
METHODS = ["persistent", "steps"]
H200 = (132, 227 << 10, 90)  # multiprocessors, shared memory of a block, compute capability
SMALL = (8, 227 << 10, 90)
RAGGED = (5, 5, 4, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1)  # the second block has only short sequences


def begins(batch_sizes: Tensor | None, steps: int, batch: int) -> np.ndarray:
    sizes = [batch] * steps if batch_sizes is None else batch_sizes.tolist()
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def by_direction(name: str, tensors: list[Tensor]) -> dict[str, Tensor | None]:
    return {f"{name}_{d}": t for d, t in enumerate(tensors)}


def recurrent_steps(
    emulator: ModuleType,
    gates: list[Tensor],
    h0: Tensor,
    c0: Tensor | None,
    weight_hh: list[Tensor],
    bias_n: list[Tensor],
    batch_sizes: Tensor | None,
    cell: int,
    reverse: bool,
    output: Tensor,
    h_n: Tensor,
    c_n: Tensor | None,
    reserve: list[Tensor],
    *,
    method: str = "automatic",
    device: tuple[int, int, int] = SMALL,
) -> dict[str, Any]:
    """The operator of this name; all tensors are contiguous. Returns the plan."""
    directions, batch, hidden = h0.shape
    out = Outputs(h0.dtype)
    out.add("product", batch, GATES[cell] * hidden)
    out.add("kept", batch, hidden, dtype=torch.float64 if h0.dtype == torch.float64 else torch.float32)
    t = out.tensors

    def multiply(direction: int, first: int, rows: int) -> None:
        assert first == 0
        t["product"][:rows] = F.linear(h_n[direction, :rows], weight_hh[direction])

    tensors = {"h0": h0, "c0": c0, "output": output, "h_n": h_n, "c_n": c_n}
    tensors |= by_direction("gates", gates) | by_direction("weight_hh", weight_hh)
    tensors |= by_direction("bias_n", bias_n) | by_direction("reserve", reserve)
    plan = emulator.recurrent.forward(
        name_of(h0.dtype), cell, batch, hidden, directions, reverse, batch_sizes is not None,
        arrays(tensors | t) | {"offsets": begins(batch_sizes, len(gates[0]), batch)}, method, device, multiply,
    )  # fmt: skip
    out.check()
    return plan


def recurrent_steps_backward(
    emulator: ModuleType,
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    output: Tensor,
    reserve: list[Tensor],
    h0: Tensor,
    c0: Tensor | None,
    weight_hh: list[Tensor],
    batch_sizes: Tensor | None,
    cell: int,
    reverse: bool,
    grad_gates: list[Tensor],
    grad_hidden_n: list[Tensor],
    grad_h0: Tensor,
    grad_c0: Tensor | None,
    *,
    method: str = "automatic",
    device: tuple[int, int, int] = SMALL,
) -> dict[str, Any]:
    """The operator of this name; all tensors are contiguous. Returns the plan."""
    directions, batch, hidden = h0.shape
    gru, lstm, width = cell == GRU, cell == LSTM, GATES[cell] * hidden
    wide = torch.float64 if output.dtype == torch.float64 else torch.float32
    out = Outputs(output.dtype)
    out.add("product", batch, hidden)
    out.add("operand", batch, width, when=gru)
    out.add("dh", batch, hidden, dtype=wide)
    out.add("dc", batch, hidden, dtype=wide, when=lstm)
    t = out.tensors

    def multiply(direction: int, first: int, rows: int) -> None:
        all_rows = grad_gates[direction].view(-1, width)
        operand = t["operand"][:rows] if gru else all_rows[first : first + rows]
        t["product"][:rows] = operand @ weight_hh[direction]

    tensors = {"grad_output": grad_output, "grad_h_n": grad_h_n, "grad_c_n": grad_c_n, "output": output}
    tensors |= {"h0": h0, "c0": c0, "grad_h0": grad_h0, "grad_c0": grad_c0}
    tensors |= by_direction("reserve", reserve) | by_direction("weight_hh", weight_hh)
    tensors |= by_direction("grad_gates", grad_gates) | by_direction("grad_hidden_n", grad_hidden_n)
    plan = emulator.recurrent.backward(
        name_of(output.dtype), cell, batch, hidden, directions, reverse, batch_sizes is not None,
        arrays(tensors | t) | {"offsets": begins(batch_sizes, len(output), batch)}, method, device, multiply,
    )  # fmt: skip
    out.check()
    return plan


@dataclass
class Problem:
    """Tensors of one layer, filled from a seed."""

    cell: int
    dtype: torch.dtype
    hidden: int
    lengths: tuple[int, ...] = (3,) * 18
    ragged: bool = False
    reverse: bool = False
    directions: int = 1
    bias: bool = True
    without: tuple[str, ...] = ()  # gradients that are not given
    device: tuple[int, int, int] = SMALL
    shift: int = 0

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int, scale: float = 1.0, when: bool = True) -> Tensor | None:
            values = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
            return self.place(values.to(self.dtype)) if when else None

        batch, steps, hidden, width = len(self.lengths), max(self.lengths), self.hidden, GATES[self.cell]
        sizes = [sum(length > t for length in self.lengths) for t in range(steps)]
        lead = (sum(sizes),) if self.ragged else (steps, batch)
        self.batch_sizes = torch.tensor(sizes) if self.ragged else None
        lstm, scale, states = self.cell == LSTM, hidden**-0.5, (self.directions, batch, hidden)
        self.inputs = {"h0": random(*states), "c0": random(*states, when=lstm)}
        for d in range(self.directions):
            self.inputs |= {
                f"gates_{d}": random(*lead, width * hidden),
                f"weight_hh_{d}": random(width * hidden, hidden, scale=scale),
                f"bias_n_{d}": random(hidden, when=self.bias and self.cell == GRU),
            }
        self.grads = {
            "grad_output": random(*lead, self.directions * hidden, when="grad_output" not in self.without),
            "grad_h_n": random(*states, when="grad_h_n" not in self.without),
            "grad_c_n": random(*states, when=lstm and "grad_c_n" not in self.without),
        }

    def place(self, values: Tensor) -> Tensor:
        out = Outputs(self.dtype, self.shift)
        out.add("values", *values.shape)
        return out.tensors["values"].copy_(values)

    @property
    def methods(self) -> list[str]:
        """Those that take it: in 16 bits, pairs of hidden units are one access."""
        pairs = self.dtype.itemsize > 2 or (self.hidden % 2 == 0 and self.shift % 2 == 0)
        return METHODS if pairs else ["steps"]

    def run(self, emulator: ModuleType, method: str, *, keep: bool = True) -> dict[str, Tensor]:
        x, options = self.inputs, (self.batch_sizes, self.cell, self.reverse)
        how: dict[str, Any] = {"method": method, "device": self.device}
        gates, weight_hh, bias_n = (
            [x[f"{name}_{d}"] for d in range(self.directions) if x[f"{name}_{d}"] is not None]
            for name in ("gates", "weight_hh", "bias_n")
        )
        rows, width = gates[0].shape[:-1], gates[0].shape[-1]
        saved, gru = RESERVE[self.cell], self.cell == GRU
        out = Outputs(self.dtype, self.shift)

        def make(name: str, *shape: int, when: bool = True) -> list[Tensor]:
            """Of each direction."""
            for d in range(self.directions):
                out.add(f"{name}_{d}", *shape, when=when)
            return [out.tensors[f"{name}_{d}"] for d in range(self.directions)] if when else []

        out.add("output", *rows, self.directions * self.hidden)
        out.add("h_n", *x["h0"].shape)
        out.add("c_n", *x["h0"].shape, when=self.cell == LSTM)
        reserve = make("reserve", rows.numel(), saved * self.hidden, when=keep and saved > 0)
        t = out.tensors
        operands, outputs = (weight_hh, bias_n), (t["output"], t["h_n"], t["c_n"], reserve)
        self.plans = [recurrent_steps(emulator, gates, x["h0"], x["c0"], *operands, *options, *outputs, **how)]
        if keep:
            out.add("grad_h0", *x["h0"].shape)
            out.add("grad_c0", *x["h0"].shape, when=self.cell == LSTM)
            grads = make("grad_gates", *rows, width), make("grad_hidden_n", rows.numel(), self.hidden, when=gru)
            operands = t["output"], reserve, x["h0"], x["c0"], weight_hh
            at_states = t["grad_h0"], t["grad_c0"]
            self.plans.append(
                recurrent_steps_backward(
                    emulator, *self.grads.values(), *operands, *options, *grads, *at_states, **how
                )
            )
        out.check()
        return {name: t for name, t in t.items() if t is not None and t.numel() and "reserve" not in name}

    def torch(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """What plain PyTorch makes of it, in arithmetic of `dtype`."""
        x = {k: None if t is None else t.to(dtype, copy=True).requires_grad_() for k, t in self.inputs.items()}
        outputs, finals, probes = [], [], []
        for d in range(self.directions):
            output, *final, probe = self.torch_direction(x, d)
            outputs.append(output)
            finals.append(final)
            probes.append(probe)
        h_n, c_n = (None if kind[0] is None else torch.stack(kind) for kind in zip(*finals, strict=True))
        results = {"output": torch.cat(outputs, -1), "h_n": h_n} | ({} if c_n is None else {"c_n": c_n})
        pairs = [(results[k.removeprefix("grad_")], g.to(dtype)) for k, g in self.grads.items() if g is not None]
        torch.autograd.backward([sum((out * g).sum() for out, g in pairs)])
        results["grad_h0"] = x["h0"].grad
        if self.cell == LSTM:
            results["grad_c0"] = x["c0"].grad
        for d in range(self.directions):
            results[f"grad_gates_{d}"] = x[f"gates_{d}"].grad
            if self.cell == GRU:
                results[f"grad_hidden_n_{d}"] = torch.cat([probe.grad for probe in probes[d]])
        return {name: t.detach() for name, t in results.items()}

    def torch_direction(self, x: dict[str, Tensor | None], d: int) -> tuple[Any, ...]:
        """Output, final states, and what was added to hn of each step."""
        gates, weight_hh, bias_n = (x[f"{name}_{d}"] for name in ("gates", "weight_hh", "bias_n"))
        steps = gates.unbind() if self.batch_sizes is None else gates.split(self.batch_sizes.tolist())
        probes = [torch.zeros_like(g[..., : self.hidden], requires_grad=True) for g in steps]
        h, c, outputs = x["h0"][d], None if x["c0"] is None else x["c0"][d], [None] * len(steps)
        descending = self.reverse != (d == 1)
        for t in reversed(range(len(steps))) if descending else range(len(steps)):
            n = len(steps[t])
            gates_h = F.linear(h[:n], weight_hh)
            if self.cell == LSTM:
                new, c_new = lstm_update(steps[t] + gates_h, c[:n])
                c = torch.cat((c_new, c[n:]))
            elif self.cell == GRU:
                hn = gates_h[:, 2 * self.hidden :] + probes[t]
                hn = hn if bias_n is None else hn + bias_n
                new = gru_update(steps[t], torch.cat((gates_h[:, : 2 * self.hidden], hn), 1), h[:n])
            else:
                new = (steps[t] + gates_h).tanh() if self.cell == RNN_TANH else (steps[t] + gates_h).relu()
            h = torch.cat((new, h[n:]))
            outputs[t] = new
        return torch.stack(outputs) if self.batch_sizes is None else torch.cat(outputs), h, c, probes

    def check(self, emulator: ModuleType, *methods: str) -> None:
        torchs, exact = self.torch(self.dtype), self.torch(torch.float64)
        for method in methods or self.methods:
            results = self.run(emulator, method)
            assert results.keys() == exact.keys()
            assert [plan["method"] for plan in self.plans] == [method] * 2
            for name, value in results.items():
                of_interest = partial(self.without_crossings, results["output"], exact["output"], name)
                times = GRADIENT if name.startswith("grad") else FORWARD
                assert_as_accurate_as_torch(
                    *map(of_interest, (value, torchs[name], exact[name])), times=times, name=f"{method}: {name}"
                )

    def without_crossings(self, output: Tensor, exact: Tensor, name: str, value: Tensor) -> Tensor:
        """Without the gradients of sequences of which rounding takes a state across relu's kink."""
        if self.cell != RNN_RELU or not name.startswith("grad"):
            return value
        batch = len(self.lengths)
        sizes = [batch] * len(output) if self.batch_sizes is None else self.batch_sizes.tolist()
        sequence = torch.cat([torch.arange(n) for n in sizes])  # of each row
        crossed = ((output > 0) != (exact > 0)).view(len(sequence), -1).any(1)
        kept = torch.ones(batch, dtype=torch.bool)
        kept[sequence[crossed]] = False
        assert 2 * kept.sum() >= batch or self.hidden > 26, "few sequences are left"
        return value[:, kept] if "grad_h0" in name else value.view(len(sequence), -1)[kept[sequence]]


# results.


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=NAMES)
def test_matches_torch(emulator: ModuleType, cell: int, dtype: torch.dtype, hidden: int) -> None:
    for (lengths, ragged), reverse in itertools.product([((3,) * 18, False), (RAGGED, True)], [False, True]):
        Problem(cell, dtype, hidden, lengths, ragged, reverse).check(emulator)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=NAMES)
def test_two_directions_in_one_launch(emulator: ModuleType, cell: int, dtype: torch.dtype) -> None:
    for (lengths, ragged), reverse in itertools.product([((3,) * 5, False), (RAGGED, True)], [False, True]):
        Problem(cell, dtype, 12, lengths, ragged, reverse, directions=2).check(emulator)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=NAMES)
def test_registers_full_of_weights(emulator: ModuleType, cell: int, dtype: torch.dtype) -> None:
    Problem(cell, dtype, 128, (3,) * 4).check(emulator, "persistent")


@pytest.mark.parametrize("cell", CELLS, ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_rows_of_a_block_change_no_bit(emulator: ModuleType, dtype: torch.dtype, cell: int) -> None:
    problem = Problem(cell, dtype, 13, RAGGED, ragged=True)
    results = {}
    for multiprocessors, rows in ((8, 4), (4, 8), (1, 16)):
        problem.device = (multiprocessors, *H200[1:])
        results[rows] = problem.run(emulator, "persistent")
        assert [plan["rows"] for plan in problem.plans] == [rows] * 2
    for rows, name in itertools.product((8, 16), results[4]):
        assert torch.equal(results[rows][name], results[4][name]), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("without", [("grad_output",), ("grad_h_n", "grad_c_n"), ("grad_h_n",)], ids=str)
def test_gradients_that_are_not_given(emulator: ModuleType, without: tuple[str, ...], dtype: torch.dtype) -> None:
    for cell in CELLS:
        Problem(cell, dtype, 10, without=without).check(emulator)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", [(1,), (4,), (1,) * 33, (6, 1, 1)], ids=str)
def test_other_lengths(emulator: ModuleType, lengths: tuple[int, ...], dtype: torch.dtype) -> None:
    for cell, reverse in itertools.product(CELLS, [False, True]):
        Problem(cell, dtype, 6, lengths, len(set(lengths)) > 1, reverse, bias=False).check(emulator)


@pytest.mark.parametrize("method", METHODS)
def test_without_steps_the_states_stay(emulator: ModuleType, method: str) -> None:
    problem = Problem(LSTM, torch.float32, 5, (1, 1))
    problem.inputs["gates_0"] = problem.inputs["gates_0"][:0]
    problem.grads["grad_output"] = problem.grads["grad_output"][:0]
    results = problem.run(emulator, method)
    for result, given in [("h_n", "h0"), ("c_n", "c0")]:
        assert torch.equal(results[result], problem.inputs[given])
        assert torch.equal(results[f"grad_{given}"], problem.grads[f"grad_{result}"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shift", [1, 2])
def test_misaligned(emulator: ModuleType, dtype: torch.dtype, shift: int) -> None:
    for cell in CELLS:
        problem = Problem(cell, dtype, 8, shift=shift)
        problem.check(emulator)
        if "persistent" not in problem.methods:
            with pytest.raises(emulator.SimtError, match="error 9"):
                problem.run(emulator, "persistent")


@pytest.mark.parametrize("method", METHODS)
def test_reserve_is_optional(emulator: ModuleType, method: str) -> None:
    for cell in CELLS:
        problem = Problem(cell, torch.bfloat16, 10, RAGGED, ragged=True)
        kept = problem.run(emulator, method)
        for name, value in problem.run(emulator, method, keep=False).items():
            assert torch.equal(value, kept[name])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cell", CELLS, ids=NAMES)
def test_nan_and_infinities_stay_in_their_sequence(emulator: ModuleType, cell: int, method: str) -> None:
    problem = Problem(cell, torch.float32, 6, (3,) * 5)
    clean = problem.run(emulator, method)
    problem.inputs["gates_0"][1, 2, 3] = torch.nan
    problem.inputs["gates_0"][1, 4, 0] = torch.inf
    expected = problem.torch(torch.float32)
    for name, value in problem.run(emulator, method).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-5, equal_nan=True)
        if name == "output":
            assert torch.equal(value[:, [0, 1, 3]], clean[name][:, [0, 1, 3]])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=NAMES)
def test_infinities_spread_no_further_than_in_torch(
    emulator: ModuleType, cell: int, dtype: torch.dtype, method: str
) -> None:
    for where, at in (
        ("h0", (0, 0, 0)), ("gates_0", (1, 0, 0)), ("weight_hh_0", (0, 0)), ("grad_output", (1, 0, 0))
    ):  # fmt: skip
        problem = Problem(cell, dtype, 6, (3,) * 5)  # fragments and accesses end with padding
        (problem.inputs | problem.grads)[where][at] = torch.inf
        expected = problem.torch(dtype)
        for name, value in problem.run(emulator, method).items():
            assert not (value.isnan() & ~expected[name].isnan()).any(), (where, name)


# schedules.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=NAMES)
def test_same_bits_under_every_schedule(emulator: ModuleType, cell: int, dtype: torch.dtype) -> None:
    problem = Problem(cell, dtype, 20, RAGGED, ragged=True, reverse=True)
    expected = problem.run(emulator, "persistent")
    for seed in range(1, 4):
        emulator.seed(seed)
        emulator.resident_blocks(seed)
        for name, value in problem.run(emulator, "persistent").items():
            assert torch.equal(value, expected[name]), f"{name}, seed {seed}"


# offsets.


@pytest.mark.parametrize("count", [1, 480, 481, 2000])
def test_offsets_travel_by_value(emulator: ModuleType, count: int) -> None:
    offsets = np.cumsum(np.arange(count, dtype=np.int64)) << 20
    memory = np.full(count + 2, -1, np.int64)
    emulator.recurrent.write_offsets(offsets, memory[1:-1])
    assert (memory[1:-1] == offsets).all()
    assert memory[0] == memory[-1] == -1


def test_more_steps_than_offsets_of_one_launch(emulator: ModuleType) -> None:
    Problem(RNN_TANH, torch.float32, 2, (500, 3), ragged=True).check(emulator, "persistent")


# policy.


@pytest.mark.parametrize(
    ("dtype", "cell", "forward", "backward"),
    [  # the largest hidden sizes that fit
        ("bfloat16", RNN_TANH, 128, 128),
        ("float16", GRU, 128, 128),
        ("bfloat16", LSTM, 128, 128),
        ("float32", RNN_RELU, 236, 234),
        ("float32", GRU, 136, 134),
        ("float32", LSTM, 118, 115),
        ("float64", LSTM, 83, 80),
    ],
)
def test_what_fits_on_h200(emulator: ModuleType, dtype: str, cell: int, forward: int, backward: int) -> None:
    def fits(hidden: int, is_backward: bool) -> bool:
        return (
            emulator.recurrent.plan(dtype, cell, 64, hidden, 1, is_backward, "automatic", H200)["method"]
            == "persistent"
        )

    for is_backward, most in ((False, forward), (True, backward)):
        assert max(h for h in range(1, 400) if fits(h, is_backward)) == most
    both = [h for h in range(1, 400) if emulator.recurrent.fits(dtype, cell, h, H200)]
    assert max(both) == min(forward, backward)
    if dtype.endswith("16"):
        assert all(h % 2 == 0 for h in both)


@pytest.mark.parametrize(
    ("dtype", "batch", "hidden", "directions", "rows", "threads", "blocks"),
    [
        ("bfloat16", 64, 128, 1, 16, 512, 4),
        ("bfloat16", 64, 64, 2, 16, 256, 4),
        ("float32", 64, 64, 1, 4, 256, 16),
        ("float32", 512, 64, 1, 4, 256, 128),
        ("float32", 512, 64, 2, 8, 512, 64),
        ("float32", 1000, 64, 1, 8, 512, 125),
        ("float32", 4096, 64, 1, 16, 512, 256),
        ("float32", 4096, 100, 1, 16, 416, 256),
    ],
)
def test_plan_on_h200(
    emulator: ModuleType,
    dtype: str,
    batch: int,
    hidden: int,
    directions: int,
    rows: int,
    threads: int,
    blocks: int,
) -> None:
    plan = emulator.recurrent.plan(dtype, LSTM, batch, hidden, directions, False, "automatic", H200)
    assert (plan["method"], plan["rows"], plan["threads"], plan["blocks"]) == ("persistent", rows, threads, blocks)
    assert plan["shared_bytes"] <= H200[1]


@pytest.mark.parametrize(
    ("dtype", "hidden", "method", "gpu"),
    [
        ("float32", 64, "steps", H200),
        ("float32", 64, "automatic", (132, 48 << 10, 90)),  # too little shared memory
        ("bfloat16", 64, "automatic", (132, 227 << 10, 75)),  # no such tensor cores
        ("float32", 512, "persistent", H200),
        ("float32", 1 << 20, "persistent", H200),
    ],
)
def test_steps_instead(
    emulator: ModuleType, dtype: str, hidden: int, method: str, gpu: tuple[int, int, int]
) -> None:
    for backward in (False, True):
        assert emulator.recurrent.plan(dtype, LSTM, 64, hidden, 1, backward, method, gpu)["method"] == "steps"


# layers.


@pytest.fixture
def layers_on_the_emulator(emulator: ModuleType) -> Iterator[Callable[..., Any]]:
    """Calls an operator as on CUDA, made of torch's products and the steps; those are emulated."""

    def dense(argument: Any) -> Any:
        if isinstance(argument, (list, tuple)):
            return [dense(t) for t in argument]
        return argument.contiguous() if isinstance(argument, Tensor) else argument

    def emulate(steps: Callable[..., Any], inputs: int) -> Callable[..., None]:
        def run(*arguments: Any) -> None:  # its results are written as they are
            steps(emulator, *map(dense, arguments[:inputs]), *arguments[inputs:])

        return run

    def call(name: str, *arguments: Any) -> Any:
        on_cuda = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
        return getattr(torch.ops.genimg_fast, name).default.redispatch(on_cuda, *arguments)

    with torch.library._scoped_library("genimg_fast", "IMPL") as library:
        library.impl("recurrent_steps", emulate(recurrent_steps, 8), "CPU")
        library.impl("recurrent_steps_backward", emulate(recurrent_steps_backward, 11), "CPU")
        yield call


@pytest.mark.skipif(not gf.info().native, reason=f"no compiled kernels: {gf.info().load_error}")
@pytest.mark.parametrize("cell", CELLS, ids=NAMES)
@pytest.mark.parametrize("sizes", [None, [5, 5, 3, 1, 0], [5, 5]], ids=["padded", "packed", "packed alike"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(("layers", "biased"), [(1, True), (2, False), (3, True)])
def test_layers_equal_those_of_the_cpu(
    layers_on_the_emulator: Callable[..., Any],
    cell: int,
    sizes: list[int] | None,
    reverse: bool,
    layers: int,
    biased: bool,
) -> None:
    torch.manual_seed(cell)
    batch, features, hidden, width = 5, 6, 7, GATES[cell] * 7
    directions = min(layers, 2)
    parts = layers * directions
    batch_sizes = None if sizes is None else torch.tensor(sizes)
    leading = (4, batch) if sizes is None else (sum(sizes),)
    draw = partial(torch.randn, dtype=torch.float64)
    states = draw(parts, batch, hidden), draw(parts, batch, hidden) if cell == LSTM else None
    weights = []
    for part in range(parts):
        inputs = features if part < directions else directions * hidden
        weights += [draw(width, inputs), draw(width, hidden), *(draw(width) for _ in range(2 * biased))]
    options = cell, directions == 2, reverse
    arguments = draw(*leading, features), *states, batch_sizes, weights, *options
    for keep in (False, True):
        expected = torch.ops.genimg_fast.recurrent(*arguments, keep)
        output, h_n, c_n, kept = layers_on_the_emulator("recurrent", *arguments, keep)
        torch.testing.assert_close((output, h_n, c_n, kept), expected)
    grads = [draw(output.shape), draw(h_n.shape), draw(c_n.shape) if cell == LSTM else None]
    matrices = [w for w in weights if w.dim() == 2]
    for given, needs in ((grads, (True, True)), ([None, *grads[1:]], (False, True)), (grads, (True, False))):
        backward = (*given, arguments[0], *states, batch_sizes, kept, matrices, *options, biased, *needs)
        expected = torch.ops.genimg_fast.recurrent_backward(*backward)
        torch.testing.assert_close(layers_on_the_emulator("recurrent_backward", *backward), expected)
    weights[1] = draw(1)
    with pytest.raises(RuntimeError, match=r"weight_hh must have shape"):
        layers_on_the_emulator("recurrent", *arguments, True)


# sanitizers.


SANITIZED = """
import itertools
import numpy as np
import simt_kernels as emulator

kernels, device = emulator.recurrent, (2, 227 << 10, 90)
types = {"float32": np.float32, "float64": np.float64, "bfloat16": np.int16}
for (dtype, type), (cell, gates, saved), hidden, directions in itertools.product(
    types.items(), ((0, 1, 0), (2, 3, 4), (3, 4, 5)), (6, 18), (1, 2)
):
    emulator.seed(directions)
    sizes = np.array([17, 6, 6, 1])
    offsets, batch = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), 17
    rows = int(offsets[-1])
    zeros = lambda *shape: np.zeros(shape, type)
    states = ("h0", "c0", "h_n", "c_n", "grad_h_n", "grad_c_n", "grad_h0", "grad_c0")
    arrays = {"offsets": offsets}
    arrays |= {name: zeros(directions, batch, hidden) for name in states}
    arrays |= {name: zeros(rows, directions * hidden) for name in ("output", "grad_output")}
    for d in range(directions):
        arrays |= {f"weight_hh_{d}": zeros(gates * hidden, hidden), f"bias_n_{d}": zeros(hidden)}
        arrays |= {f"{name}_{d}": zeros(rows, gates * hidden) for name in ("gates", "grad_gates")}
        arrays |= {f"grad_hidden_n_{d}": zeros(rows, hidden), f"reserve_{d}": zeros(rows, saved * hidden)}
    arrays["operand"] = zeros(batch, gates * hidden)
    wide = np.float64 if dtype == "float64" else np.float32
    arrays |= {name: np.zeros((batch, hidden), wide) for name in ("kept", "dh", "dc")}
    for method in ("persistent", "steps"):
        arguments = dtype, cell, batch, hidden, directions, directions == 1, True
        how = method, device, lambda direction, first, rows: None
        arrays["product"] = zeros(batch, gates * hidden)
        assert kernels.forward(*arguments, arrays, *how)["method"] == method
        arrays["product"] = zeros(batch, hidden)
        assert kernels.backward(*arguments, arrays, *how)["method"] == method
written = np.zeros(481, np.int64)
kernels.write_offsets(np.arange(481), written)
print("done")
"""


@pytest.mark.sanitizer
@pytest.mark.parametrize("sanitizer", ["asan", "tsan"])
def test_sanitizer_has_nothing_to_say(run_clean: Callable[..., None], sanitizer: str) -> None:
    run_clean(sanitizer, SANITIZED)
