"""The recurrent kernels, executed by the SIMT emulator, against PyTorch."""

from __future__ import annotations

import importlib
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

HIDDEN = [1, 7, 16, 40, 64]
METHODS = ["persistent", "steps"]
H200 = (132, 227 << 10, 90)  # multiprocessors, shared memory of a block, compute capability
SMALL = (8, 227 << 10, 90)
RAGGED = (5, 5, 4, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 1, 1, 1, 1)  # the second block has only short sequences


def begins(batch_sizes: Tensor | None, steps: int, batch: int) -> np.ndarray:
    sizes = [batch] * steps if batch_sizes is None else batch_sizes.tolist()
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def recurrent_steps(
    emulator: ModuleType,
    gates: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weight_hh: Tensor,
    bias_n: Tensor | None,
    batch_sizes: Tensor | None,
    cell: int,
    reverse: bool,
    keep: bool,
    *,
    method: str = "automatic",
    device: tuple[int, int, int] = SMALL,
    shift: int = 0,
    plans: list[dict[str, Any]] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator of this name; all tensors are contiguous."""
    batch, hidden = h0.shape
    offsets = begins(batch_sizes, len(gates), batch)
    lstm, saved = cell == LSTM, RESERVE[cell]
    wide = torch.float64 if gates.dtype == torch.float64 else torch.float32
    out = Outputs(gates.dtype, shift)
    out.add("output", *gates.shape[:-1], hidden)
    out.add("h_n", batch, hidden)
    out.add("c_n", batch, hidden, when=lstm)
    out.add("reserve", int(offsets[-1]), saved * hidden, when=keep and saved > 0)
    out.add("product", batch, GATES[cell] * hidden)
    out.add("kept", batch, hidden, dtype=wide)
    t = out.tensors

    def multiply(first: int, rows: int) -> None:
        assert first == 0
        t["product"][:rows] = F.linear(t["h_n"][:rows], weight_hh)

    inputs = {"gates": gates, "h0": h0, "c0": c0, "weight_hh": weight_hh, "bias_n": bias_n}
    ragged = batch_sizes is not None
    plan = emulator.recurrent.forward(
        name_of(gates.dtype), cell, batch, hidden, reverse, ragged, arrays(inputs | t) | {"offsets": offsets},
        method, device, multiply,
    )  # fmt: skip
    out.check()
    if plans is not None:
        plans.append(plan)
    nothing = gates.new_empty(0)
    return t["output"], t["h_n"], t["c_n"] if lstm else nothing, nothing if t["reserve"] is None else t["reserve"]


def recurrent_steps_backward(
    emulator: ModuleType,
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    output: Tensor,
    reserve: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weight_hh: Tensor,
    batch_sizes: Tensor | None,
    cell: int,
    reverse: bool,
    *,
    method: str = "automatic",
    device: tuple[int, int, int] = SMALL,
    shift: int = 0,
    plans: list[dict[str, Any]] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The operator of this name; all tensors are contiguous."""
    batch, hidden = h0.shape
    offsets = begins(batch_sizes, len(output), batch)
    gru, lstm, width = cell == GRU, cell == LSTM, GATES[cell] * hidden
    wide = torch.float64 if output.dtype == torch.float64 else torch.float32
    out = Outputs(output.dtype, shift)
    out.add("grad_gates", *output.shape[:-1], width)
    out.add("grad_hidden_n", int(offsets[-1]), hidden, when=gru)
    out.add("grad_h0", batch, hidden)
    out.add("grad_c0", batch, hidden, when=lstm)
    out.add("product", batch, hidden)
    out.add("operand", batch, width, when=gru)
    out.add("dh", batch, hidden, dtype=wide)
    out.add("dc", batch, hidden, dtype=wide, when=lstm)
    t = out.tensors

    def multiply(first: int, rows: int) -> None:
        operand = t["operand"][:rows] if gru else t["grad_gates"].view(-1, width)[first : first + rows]
        t["product"][:rows] = operand @ weight_hh

    inputs = {"grad_output": grad_output, "grad_h_n": grad_h_n, "grad_c_n": grad_c_n, "output": output}
    inputs |= {"reserve": reserve if RESERVE[cell] else None, "h0": h0, "c0": c0, "weight_hh": weight_hh}
    ragged = batch_sizes is not None
    plan = emulator.recurrent.backward(
        name_of(output.dtype), cell, batch, hidden, reverse, ragged, arrays(inputs | t) | {"offsets": offsets},
        method, device, multiply,
    )  # fmt: skip
    out.check()
    if plans is not None:
        plans.append(plan)
    nothing = output.new_empty(0)
    return t["grad_gates"], t["grad_hidden_n"] if gru else nothing, t["grad_h0"], t["grad_c0"] if lstm else nothing


@dataclass
class Problem:
    """Tensors of one layer, filled from a seed."""

    cell: int
    dtype: torch.dtype
    hidden: int
    lengths: tuple[int, ...] = (3,) * 18
    ragged: bool = False
    reverse: bool = False
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
        lstm, scale = self.cell == LSTM, hidden**-0.5
        self.inputs = {
            "gates": random(*lead, width * hidden),
            "h0": random(batch, hidden),
            "c0": random(batch, hidden, when=lstm),
            "weight_hh": random(width * hidden, hidden, scale=scale),
            "bias_n": random(hidden, when=self.bias and self.cell == GRU),
        }
        self.grads = {
            "grad_output": random(*lead, hidden, when="grad_output" not in self.without),
            "grad_h_n": random(batch, hidden, when="grad_h_n" not in self.without),
            "grad_c_n": random(batch, hidden, when=lstm and "grad_c_n" not in self.without),
        }

    def place(self, values: Tensor) -> Tensor:
        out = Outputs(self.dtype, self.shift)
        out.add("values", *values.shape)
        return out.tensors["values"].copy_(values)

    def run(self, emulator: ModuleType, method: str, *, keep: bool = True) -> dict[str, Tensor]:
        how: dict[str, Any] = {"method": method, "device": self.device, "shift": self.shift}
        self.plans: list[dict[str, Any]] = []
        x, where = self.inputs, (self.batch_sizes, self.cell, self.reverse)
        output, h_n, c_n, reserve = recurrent_steps(emulator, *x.values(), *where, keep, plans=self.plans, **how)
        results = {"output": output, "h_n": h_n, "c_n": c_n}
        if keep:
            operands = output, reserve, x["h0"], x["c0"], x["weight_hh"]
            grads = recurrent_steps_backward(
                emulator, *self.grads.values(), *operands, *where, plans=self.plans, **how
            )
            results |= dict(zip(("grad_gates", "grad_hidden_n", "grad_h0", "grad_c0"), grads, strict=True))
        return {name: t for name, t in results.items() if t.numel() > 0}

    def torch(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """What plain PyTorch makes of it, in arithmetic of `dtype`."""
        x = {k: None if t is None else t.to(dtype, copy=True).requires_grad_() for k, t in self.inputs.items()}
        steps = x["gates"].unbind() if self.batch_sizes is None else x["gates"].split(self.batch_sizes.tolist())
        probes = [torch.zeros_like(g[..., : self.hidden], requires_grad=True) for g in steps]  # added to hn
        h, c, outputs = x["h0"], x["c0"], [None] * len(steps)
        for t in reversed(range(len(steps))) if self.reverse else range(len(steps)):
            n = len(steps[t])
            gates_h = F.linear(h[:n], x["weight_hh"])
            if self.cell == LSTM:
                new, c_new = lstm_update(steps[t] + gates_h, c[:n])
                c = torch.cat((c_new, c[n:]))
            elif self.cell == GRU:
                hn = gates_h[:, 2 * self.hidden :] + probes[t]
                hn = hn if x["bias_n"] is None else hn + x["bias_n"]
                new = gru_update(steps[t], torch.cat((gates_h[:, : 2 * self.hidden], hn), 1), h[:n])
            else:
                new = (steps[t] + gates_h).tanh() if self.cell == RNN_TANH else (steps[t] + gates_h).relu()
            h = torch.cat((new, h[n:]))
            outputs[t] = new
        output = torch.stack(outputs) if self.batch_sizes is None else torch.cat(outputs)
        results = {"output": output, "h_n": h} | ({"c_n": c} if self.cell == LSTM else {})
        pairs = [(results[k.removeprefix("grad_")], g.to(dtype)) for k, g in self.grads.items() if g is not None]
        torch.autograd.backward([sum((out * g).sum() for out, g in pairs)])
        results |= {"grad_gates": x["gates"].grad, "grad_h0": x["h0"].grad}
        if self.cell == LSTM:
            results["grad_c0"] = x["c0"].grad
        if self.cell == GRU:
            results["grad_hidden_n"] = torch.cat([probe.grad for probe in probes])
        return {name: t.detach() for name, t in results.items()}

    def check(self, emulator: ModuleType, *methods: str) -> None:
        torchs, exact = self.torch(self.dtype), self.torch(torch.float64)
        for method in methods or METHODS:
            results = self.run(emulator, method)
            assert results.keys() == exact.keys()
            assert [plan["method"] for plan in self.plans] == [method] * 2
            for name, value in results.items():
                times = GRADIENT if name.startswith("grad") else FORWARD
                assert_as_accurate_as_torch(
                    value, torchs[name], exact[name], times=times, name=f"{method}: {name}"
                )


# results.


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS, ids=NAMES)
def test_matches_torch(emulator: ModuleType, cell: int, dtype: torch.dtype, hidden: int) -> None:
    for (lengths, ragged), reverse in itertools.product([((3,) * 18, False), (RAGGED, True)], [False, True]):
        Problem(cell, dtype, hidden, lengths, ragged, reverse).check(emulator)


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
    problem.inputs["gates"] = problem.inputs["gates"][:0]
    problem.grads["grad_output"] = problem.grads["grad_output"][:0]
    results = problem.run(emulator, method)
    for result, given in [("h_n", "h0"), ("c_n", "c0")]:
        assert torch.equal(results[result], problem.inputs[given])
        assert torch.equal(results[f"grad_{given}"], problem.grads[f"grad_{result}"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_misaligned(emulator: ModuleType, dtype: torch.dtype) -> None:
    for cell in CELLS:
        Problem(cell, dtype, 8, shift=1).check(emulator)


@pytest.mark.parametrize("method", METHODS)
def test_reserve_is_optional(emulator: ModuleType, method: str) -> None:
    for cell in CELLS:
        problem = Problem(cell, torch.bfloat16, 9, RAGGED, ragged=True)
        kept = problem.run(emulator, method)
        for name, value in problem.run(emulator, method, keep=False).items():
            assert torch.equal(value, kept[name])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("cell", CELLS, ids=NAMES)
def test_nan_and_infinities_stay_in_their_sequence(emulator: ModuleType, cell: int, method: str) -> None:
    problem = Problem(cell, torch.float32, 6, (3,) * 5)
    clean = problem.run(emulator, method)
    problem.inputs["gates"][1, 2, 3] = torch.nan
    problem.inputs["gates"][1, 4, 0] = torch.inf
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
    for where, at in (("h0", (0, 0)), ("gates", (1, 0, 0)), ("weight_hh", (0, 0)), ("grad_output", (1, 0, 0))):
        problem = Problem(cell, dtype, 7, (3,) * 5)  # fragments and accesses end with padding
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
        ("bfloat16", RNN_TANH, 320, 304),
        ("float16", GRU, 176, 176),
        ("bfloat16", LSTM, 160, 144),
        ("float32", RNN_RELU, 236, 234),
        ("float32", GRU, 136, 134),
        ("float32", LSTM, 118, 115),
        ("float64", LSTM, 83, 80),
    ],
)
def test_what_fits_on_h200(emulator: ModuleType, dtype: str, cell: int, forward: int, backward: int) -> None:
    def fits(hidden: int, is_backward: bool) -> bool:
        return (
            emulator.recurrent.plan(dtype, cell, 64, hidden, is_backward, "automatic", H200)["method"]
            == "persistent"
        )

    for is_backward, most in ((False, forward), (True, backward)):
        assert max(h for h in range(1, 400) if fits(h, is_backward)) == most
    both = [h for h in range(1, 400) if emulator.recurrent.fits(dtype, cell, h, H200)]
    assert max(both) == min(forward, backward)


@pytest.mark.parametrize(
    ("dtype", "batch", "hidden", "rows", "threads", "blocks"),
    [
        ("bfloat16", 64, 128, 16, 512, 4),
        ("bfloat16", 64, 64, 16, 256, 4),
        ("float32", 64, 64, 4, 256, 16),
        ("float32", 1000, 64, 8, 512, 125),
        ("float32", 4096, 64, 16, 512, 256),
        ("float32", 4096, 100, 16, 416, 256),
    ],
)
def test_plan_on_h200(
    emulator: ModuleType, dtype: str, batch: int, hidden: int, rows: int, threads: int, blocks: int
) -> None:
    plan = emulator.recurrent.plan(dtype, LSTM, batch, hidden, False, "automatic", H200)
    assert (plan["method"], plan["rows"], plan["threads"], plan["blocks"]) == ("persistent", rows, threads, blocks)
    assert plan["shared_bytes"] == emulator.recurrent.shared_bytes(dtype, LSTM, hidden, rows, False) <= H200[1]


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
        assert emulator.recurrent.plan(dtype, LSTM, 64, hidden, backward, method, gpu)["method"] == "steps"


# sanitizers.


@pytest.fixture
def layers_on_the_emulator(emulator: ModuleType) -> Iterator[ModuleType]:
    """What stands in for the layer's operators on CUDA, with the kernels of the steps emulated."""
    recurrent = importlib.import_module("genimg_fast.ops.recurrent.cuda")

    def steps(*arguments: Any) -> tuple[Tensor, ...]:
        return recurrent_steps(emulator, *map(dense, arguments))

    def steps_backward(*arguments: Any) -> tuple[Tensor, ...]:
        return recurrent_steps_backward(emulator, *map(dense, arguments))

    def dense(argument: Any) -> Any:
        return argument.contiguous() if isinstance(argument, Tensor) else argument

    with torch.library._scoped_library("genimg_fast", "IMPL") as library:
        library.impl("recurrent_steps", steps, "CPU")
        library.impl("recurrent_steps_backward", steps_backward, "CPU")
        yield recurrent


@pytest.mark.skipif(not gf.info().native, reason=f"no compiled kernels: {gf.info().load_error}")
@pytest.mark.parametrize("cell", CELLS, ids=NAMES)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("layers", [1, 2])
def test_layers_equal_those_of_the_cpu(
    layers_on_the_emulator: ModuleType, cell: int, packed: bool, reverse: bool, layers: int
) -> None:
    torch.manual_seed(cell)
    batch, features, hidden, width = 5, 6, 7, GATES[cell] * 7
    directions = layers  # one layer in one direction, or two in two
    parts = layers * directions
    sizes = torch.tensor([5, 5, 3, 1]) if packed else None
    leading = (14,) if packed else (4, batch)
    draw = partial(torch.randn, dtype=torch.float64)
    states = draw(parts, batch, hidden), draw(parts, batch, hidden) if cell == LSTM else None
    weights = []
    for part in range(parts):
        inputs = features if part < directions else directions * hidden
        weights += [draw(width, inputs), draw(width, hidden), draw(width), draw(width)]
    options = cell, directions == 2, reverse
    arguments = draw(*leading, features), *states, sizes, weights, *options, True
    expected = torch.ops.genimg_fast.recurrent(*arguments)
    output, h_n, c_n, kept = layers_on_the_emulator.forward(*arguments)
    torch.testing.assert_close((output, h_n, c_n, kept), expected)
    grads = [draw(output.shape), draw(h_n.shape), draw(c_n.shape) if cell == LSTM else None]
    for needs in ((True, True), (False, True), (True, False)):
        matrices = [w for w in weights if w.dim() == 2]
        backward = (*grads, arguments[0], *states, sizes, kept, matrices, *options, True, *needs)
        expected = torch.ops.genimg_fast.recurrent_backward(*backward)
        found = layers_on_the_emulator.backward(*backward)
        torch.testing.assert_close(found, expected)
    weights[2] = draw(1)
    with pytest.raises(ValueError, match=r"bias_ih must have shape"):
        layers_on_the_emulator.forward(*arguments)


SANITIZED = """
import importlib
import itertools
import numpy as np
import simt_kernels as emulator

kernels, device = emulator.recurrent, (2, 227 << 10, 90)
types = {"float32": np.float32, "float64": np.float64, "bfloat16": np.int16}
for (dtype, type), (cell, gates, saved), hidden, reverse in itertools.product(
    types.items(), ((0, 1, 0), (2, 3, 4), (3, 4, 5)), (7, 18), (False, True)
):
    emulator.seed(reverse)
    sizes = np.array([17, 6, 6, 1])
    offsets, batch = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64), 17
    rows = int(offsets[-1])
    zeros = lambda *shape: np.zeros(shape, type)
    states = ("h0", "c0", "h_n", "c_n", "grad_h_n", "grad_c_n", "grad_h0", "grad_c0")
    arrays = {"offsets": offsets, "weight_hh": zeros(gates * hidden, hidden), "bias_n": zeros(hidden)}
    arrays |= {name: zeros(batch, hidden) for name in states}
    arrays |= {name: zeros(rows, hidden) for name in ("output", "grad_output", "grad_hidden_n")}
    arrays |= {name: zeros(rows, gates * hidden) for name in ("gates", "grad_gates")}
    arrays["reserve"] = zeros(rows, saved * hidden)
    arrays["operand"] = zeros(batch, gates * hidden)
    wide = np.float64 if dtype == "float64" else np.float32
    arrays |= {name: np.zeros((batch, hidden), wide) for name in ("kept", "dh", "dc")}
    for method in ("persistent", "steps"):
        arguments = dtype, cell, batch, hidden, reverse, True
        how = method, device, lambda first, rows: None
        arrays["product"] = zeros(batch, gates * hidden)
        assert kernels.forward(*arguments, arrays, *how)["method"] == method
        arrays["product"] = zeros(batch, hidden)
        assert kernels.backward(*arguments, arrays, *how)["method"] == method
print("done")
"""


@pytest.mark.sanitizer
@pytest.mark.parametrize("sanitizer", ["asan", "tsan"])
def test_sanitizer_has_nothing_to_say(run_clean: Callable[..., None], sanitizer: str) -> None:
    run_clean(sanitizer, SANITIZED)
