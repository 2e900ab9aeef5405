"""The reparameterize_kl kernels, executed by the SIMT emulator, against PyTorch and the noise's definition."""

from __future__ import annotations

import itertools
import mmap
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from accuracy import FORWARD, GRADIENT, assert_as_accurate_as_torch
from memory import DTYPES, aligned, array
from torch import Tensor

SHAPES = [
    (7,),
    (5, 3),
    (4, 16),  # several samples to a warp
    (3, 100),  # 16-byte accesses for float32, not for 16-bit
    (70, 40),
    (2, 129),
    (3, 4, 6, 8),
    (2, 3, 5, 7),
    (2, 4096),  # a block to a sample, or several
    (1, 9001),
]
OFF = (-np.inf, np.inf)
SEED = -0x123456789ABCDEF  # both halves of the key matter, and the sign does not


Place = Callable[[Tensor], Tensor]


@dataclass
class Problem:
    """Tensors of one call, filled from a seed; `place` gives each its layout."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    given: tuple[str, ...] = ()  # of noise, prior; else the noise is made from SEED, and the prior is N(0, 1)
    place: Place = aligned
    clamp: tuple[float, float] = OFF
    free_bits: float = 0.0
    per_element: bool = False
    multiprocessors: int = 8
    plan: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def random(scale: float = 1.0) -> Tensor:
            values = torch.randn(self.shape, generator=generator, dtype=torch.float64) * scale
            return self.place(values.to(self.dtype))

        self.wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.inputs = {"mu": random(), "logvar": random(2.0)}
        self.grad_z = random()
        kl_shape = self.shape if self.per_element else self.shape[:1]
        self.grad_kl = torch.randn(kl_shape, generator=generator, dtype=torch.float64).to(self.wide)
        if "noise" in self.given:
            self.inputs["noise"] = random()
        if "prior" in self.given:
            self.inputs |= {"prior_mu": random(), "prior_logvar": random()}

    @property
    def name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def arguments(self, **more: Tensor) -> dict[str, np.ndarray]:
        arrays = {name: array(t) for name, t in {**self.inputs, **more}.items()}
        return arrays if "noise" in self.given else {**arrays, "seed": np.array(SEED)}

    def empty(self) -> Tensor:
        return self.place(torch.full(self.shape, torch.nan, dtype=self.dtype))

    def forward(self, emulator: ModuleType) -> dict[str, Tensor]:
        out = {"z": self.empty(), "kl": torch.full(self.grad_kl.shape, torch.nan, dtype=self.wide)}
        self.plan = emulator.reparameterize_kl.forward(
            self.name, self.arguments(**out), self.clamp, self.free_bits, self.per_element, self.multiprocessors
        )
        return out

    def backward(self, emulator: ModuleType, *without: str) -> dict[str, Tensor]:
        grads = {"grad_z": self.grad_z, "grad_kl": self.grad_kl}
        out = {f"grad_{name}": self.empty() for name in self.inputs}
        arguments = self.arguments(**{k: v for k, v in {**grads, **out}.items() if k not in without})
        self.plan = emulator.reparameterize_kl.backward(
            self.name, arguments, self.clamp, self.free_bits, self.multiprocessors
        )
        return {name: value for name, value in out.items() if name not in without}

    def noise(self, emulator: ModuleType) -> Tensor:
        """What the kernels make of SEED, in float32."""
        elements = int(np.prod(self.shape[1:], dtype=int))
        groups = (elements + 3) // 4
        rows = [emulator.reparameterize_kl.noise(SEED % 2**64, b, 0, groups) for b in range(self.shape[0])]
        return torch.from_numpy(np.stack(rows)[:, :elements]).reshape(self.shape)

    def torch(self, emulator: ModuleType, *without: str, exact: bool) -> dict[str, Tensor]:
        """What plain PyTorch makes of it; 16-bit inputs in float32 arithmetic, all in float64 if `exact`."""
        dtype = torch.float64 if exact else self.wide
        leaves = {name: t.to(dtype).detach().clone().requires_grad_() for name, t in self.inputs.items()}
        mu, logvar = leaves["mu"], leaves["logvar"]
        noise = leaves["noise"] if "noise" in leaves else self.noise(emulator).to(dtype)
        # Not clamp(): whether it passes a gradient at the ends of its range depends on torch's version.
        logvar = torch.where(logvar < self.clamp[0], self.clamp[0], logvar)
        logvar = torch.where(logvar > self.clamp[1], self.clamp[1], logvar)
        z = mu + (0.5 * logvar).exp() * noise
        if "prior" in self.given:
            offset, difference = mu - leaves["prior_mu"], logvar - leaves["prior_logvar"]
            square = offset.square() * (-leaves["prior_logvar"]).exp()
        else:
            difference, square = logvar, mu.square()
        kl = 0.5 * (difference.expm1() - difference + square)
        if self.free_bits:
            kl = torch.where(kl < self.free_bits, self.free_bits, kl)
        if not self.per_element:
            kl = kl.flatten(1).sum(1) if kl.dim() > 1 else kl
        loss = torch.zeros((), dtype=dtype)
        if "grad_z" not in without:
            loss = loss + (z * self.grad_z.to(dtype)).sum()
        if "grad_kl" not in without:
            loss = loss + (kl * self.grad_kl.to(dtype)).sum()
        grads = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True, materialize_grads=True)
        results = {"z": z.detach(), "kl": kl.detach()}
        results |= {f"grad_{name}": grad for name, grad in zip(leaves, grads, strict=True)}
        if not exact:
            results = {k: v if k == "kl" else v.to(self.dtype) for k, v in results.items()}
        return results


def check(emulator: ModuleType, problem: Problem, *without: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Forward and backward against PyTorch; returns how the work of each was cut up."""
    torchs, exact = (problem.torch(emulator, *without, exact=exact) for exact in (False, True))
    forward = problem.forward(emulator)
    plans = [problem.plan]
    for name, value in forward.items():
        assert_as_accurate_as_torch(value, torchs[name], exact[name], times=FORWARD, name=name)
    for name, value in problem.backward(emulator, *without).items():
        assert_as_accurate_as_torch(value, torchs[name], exact[name], times=GRADIENT, name=name)
    return plans[0], problem.plan


# results.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_contiguous(emulator: ModuleType, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    problem = Problem(shape, dtype)
    step = 8 if dtype.itemsize == 2 else 4
    plans = check(emulator, problem)
    assert [plan["dense"] for plan in plans] == [np.prod(shape[1:], dtype=int) % step == 0] * 2
    assert all(plan["plain"] == plan["dense"] for plan in plans)
    problem.multiprocessors = 132  # more threads to a sample, and more blocks
    check(emulator, problem)


OPTIONS: dict[str, dict[str, Any]] = {
    "noise": {"given": ("noise",)},
    "prior": {"given": ("prior",)},
    "noise and prior": {"given": ("noise", "prior")},
    "clamp": {"clamp": (-1.0, 0.5)},
    "clamp from above": {"clamp": (-np.inf, 0.5)},
    "free bits": {"free_bits": 0.4},
    "per element": {"per_element": True},
    "all": {"given": ("noise", "prior"), "clamp": (-2.0, 1.0), "free_bits": 0.7, "per_element": True},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_options(emulator: ModuleType, dtype: torch.dtype, options: dict[str, Any]) -> None:
    for shape in [(3, 64), (2, 3, 7)]:
        assert not any(plan["plain"] for plan in check(emulator, Problem(shape, dtype, **options)))


@pytest.mark.parametrize("without", ["grad_z", "grad_kl"])
@pytest.mark.parametrize("shape", [(3, 64), (2, 21)], ids=str)
def test_gradient_of_one_output_only(emulator: ModuleType, shape: tuple[int, ...], without: str) -> None:
    for dtype in DTYPES:
        check(emulator, Problem(shape, dtype), without)
    check(emulator, Problem(shape, torch.float32, given=("noise", "prior")), without)


def test_gradients_that_are_not_needed(emulator: ModuleType) -> None:
    problem = Problem((3, 64), torch.float32, given=("noise", "prior"))
    every = problem.backward(emulator)
    some = problem.backward(emulator, "grad_noise", "grad_prior_mu", "grad_prior_logvar")
    assert set(some) == {"grad_mu", "grad_logvar"}
    assert all(torch.equal(some[name], every[name]) for name in some)


def packed(half: int, dim: int, format: torch.memory_format = torch.contiguous_format) -> Place:
    """One of the two halves of a tensor that is twice as large along `dim`."""

    def place(values: Tensor) -> Tensor:
        whole = torch.full_like(torch.cat([values, values], dim), torch.nan)
        if values.dim() == 4:
            whole = whole.contiguous(memory_format=format)
        return aligned_like(whole).chunk(2, dim)[half].copy_(values)

    return place


def aligned_like(t: Tensor) -> Tensor:
    """As `aligned`, with the strides of a dense tensor kept."""
    order = sorted(range(t.dim()), key=t.stride, reverse=True)
    inverse = [order.index(d) for d in range(t.dim())]
    return aligned(t.permute(order).contiguous()).permute(inverse)


LAYOUTS: dict[str, tuple[Place, tuple[int, ...], bool]] = {  # of which shape; whether 16-byte accesses fit float32
    "first half": (packed(0, 1), (3, 8, 4, 4), True),
    "second half": (packed(1, 1), (3, 8, 4, 4), True),
    "second half, odd": (packed(1, 1), (3, 7, 3, 3), False),
    "halves of the last dimension": (packed(1, 3), (3, 4, 4, 8), False),
    "channels_last": (
        lambda t: aligned_like(t.contiguous(memory_format=torch.channels_last)),
        (2, 6, 5, 4),
        False,
    ),
    "half of channels_last": (packed(1, 1, torch.channels_last), (2, 4, 4, 4), False),
    "rows of a wider tensor": (lambda t: aligned(torch.cat([t, t, t], 1))[:, :64], (5, 64), True),
    "rows of an odd tensor": (lambda t: aligned(torch.cat([t, t[:, :1]], 1))[:, :64], (5, 64), False),
    "every second column": (lambda t: aligned(t.repeat_interleave(2, 1))[:, ::2], (5, 64), False),
    "transposed": (lambda t: aligned(t.t().contiguous()).t(), (9, 24), False),
    "reversed dimensions": (
        lambda t: aligned(t.permute(3, 2, 1, 0).contiguous()).permute(3, 2, 1, 0),
        (3, 4, 5, 6),
        False,
    ),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(emulator: ModuleType, layout: str, dtype: torch.dtype) -> None:
    place, shape, fits = LAYOUTS[layout]
    problem = Problem(shape, dtype, place=place)
    plans = check(emulator, problem)
    if dtype == torch.float32:
        assert [plan["dense"] for plan in plans] == [fits] * 2
    plain = Problem(shape, dtype)
    assert torch.equal(
        problem.forward(emulator)["z"], plain.forward(emulator)["z"]
    )  # the noise's order is logical


@pytest.mark.parametrize("shifts", [(1, 0), (0, 1)], ids=["inputs", "results"])
def test_misaligned(emulator: ModuleType, shifts: tuple[int, int]) -> None:
    for dtype in DTYPES:
        problem = Problem((3, 64), dtype, place=lambda t: aligned(t, shifts[0]))
        problem.place = lambda t: aligned(t, shifts[1])
        assert [plan["dense"] for plan in check(emulator, problem)] == [False, False]


def test_operands_of_different_layouts(emulator: ModuleType) -> None:
    problem = Problem((2, 6, 5, 4), torch.float32, given=("noise", "prior"), per_element=True)
    problem.inputs["logvar"] = LAYOUTS["channels_last"][0](problem.inputs["logvar"])
    problem.inputs["prior_mu"] = packed(1, 1)(problem.inputs["prior_mu"])
    problem.grad_z = problem.grad_z.transpose(1, 3).contiguous().transpose(1, 3)
    problem.grad_kl = problem.grad_kl.contiguous(memory_format=torch.channels_last)
    check(emulator, problem)


@pytest.mark.parametrize(
    ("shape", "dense"),
    [((1, 64), (True, True)), ((64,), (True, True)), ((), (False, False)), ((3, 1), (False, False))],
)
def test_expanded_prior(emulator: ModuleType, shape: tuple[int, ...], dense: tuple[bool, bool]) -> None:
    for dtype in DTYPES:
        problem = Problem((3, 64), dtype, given=("prior",))
        for name in ("prior_mu", "prior_logvar"):
            problem.inputs[name] = aligned(torch.randn(shape).to(dtype)).expand(3, 64)
        plans = check(emulator, problem)
        assert tuple(plan["dense"] for plan in plans) == dense


@pytest.mark.parametrize("shape", [(3, 64), (3, 21), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("per_element", [False, True])
def test_expanded_gradients(emulator: ModuleType, shape: tuple[int, ...], per_element: bool) -> None:
    """As sum() and mean() send them."""
    for dtype in DTYPES:
        problem = Problem(shape, dtype, per_element=per_element)
        problem.grad_z = torch.tensor(0.3).to(dtype).expand(shape)
        problem.grad_kl = torch.tensor(-0.7, dtype=problem.wide).expand_as(problem.grad_kl)
        check(emulator, problem)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 40000), (1, 30001), (1, 3, 77, 130)], ids=str)
def test_several_blocks_to_a_sample(emulator: ModuleType, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    problem = Problem(shape, dtype, multiprocessors=16)
    assert all(plan["slices"] > 1 for plan in check(emulator, problem))
    assert problem.forward(emulator)["kl"].isfinite().all()


def test_no_cancellation_near_the_prior(emulator: ModuleType) -> None:
    problem = Problem((2, 64), torch.float32)
    problem.inputs = {name: t * 1e-4 for name, t in problem.inputs.items()}
    exact = problem.torch(emulator, exact=True)["kl"]
    torch.testing.assert_close(problem.forward(emulator)["kl"].double(), exact, rtol=1e-6, atol=0)


def test_large_logvar(emulator: ModuleType) -> None:
    problem = Problem((2, 64), torch.float32)
    problem.inputs["logvar"] = aligned(torch.linspace(-30, 30, 128).view(2, 64))
    check(emulator, problem)


@pytest.mark.parametrize("shape", [(1, 8), (1, 7)], ids=str)
def test_nan_and_infinities_pass_as_in_torch(emulator: ModuleType, shape: tuple[int, ...]) -> None:
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, 1e30, -1e30, 200.0, -200.0])[: shape[1]]
    for options in ({}, {"clamp": (-3.0, 3.0)}, {"free_bits": 0.5}):
        for name in ("mu", "logvar"):
            problem = Problem(shape, torch.float32, per_element=True, **options)
            problem.inputs[name] = aligned(values[None])
            expected = problem.torch(emulator, exact=False)
            ours = {**problem.forward(emulator), **problem.backward(emulator)}
            for key, value in ours.items():
                torch.testing.assert_close(value, expected[key], equal_nan=True, msg=f"{options} {name} {key}")


# schedules.


@pytest.mark.parametrize("shape", [(1, 9001), (2, 4096), (70, 40), (5, 3, 77)], ids=str)
def test_same_bits_under_every_schedule(emulator: ModuleType, shape: tuple[int, ...]) -> None:
    def run(seed: int, resident: int) -> list[bytes]:
        emulator.seed(seed)
        emulator.resident_blocks(resident)
        problem = Problem(shape, torch.float32)
        results = {**problem.forward(emulator), **problem.backward(emulator)}
        return [t.numpy().tobytes() for t in results.values()]

    expected = run(0, 4)
    for seed in range(1, 5):
        assert run(seed, 1 + seed) == expected


def test_noise_depends_on_seed_sample_and_element_only(emulator: ModuleType) -> None:
    def z(shape: tuple[int, ...], dtype: torch.dtype, **options: Any) -> Tensor:
        problem = Problem(shape, dtype, **options)
        problem.inputs = {name: torch.zeros_like(t) for name, t in problem.inputs.items()}
        return problem.forward(emulator)["z"].double()

    expected = z((8, 48), torch.float32)
    assert expected.unique().numel() == expected.numel()
    assert torch.equal(z((3, 48), torch.float32), expected[:3])
    assert torch.equal(z((8, 4, 3, 4), torch.float32).view(8, 48), expected)
    assert torch.equal(z((8, 45), torch.float64, multiprocessors=132), expected[:, :45])
    for dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(z((8, 48), dtype), expected.to(dtype).double())


# policy.


@pytest.mark.parametrize(
    ("dtype", "batch", "elements", "team", "slices", "blocks"),
    [
        ("float32", 128, 20, 8, 1, 16),  # so little work that blocks are small
        ("float32", 128, 128, 32, 1, 64),
        ("float32", 512, 512, 128, 1, 256),
        ("float32", 4096, 1024, 64, 1, 1024),
        ("bfloat16", 4096, 1024, 64, 1, 1024),
        ("float32", 32, 4 * 32 * 32, 256, 4, 128),
        ("float32", 1 << 20, 16, 4, 1, 1 << 14),
        ("float32", 8, 1 << 20, 256, 128, 1024),
        ("float32", 1, 1 << 26, 256, 1024, 1024),
    ],
)
def test_policy_on_h200(
    emulator: ModuleType, dtype: str, batch: int, elements: int, team: int, slices: int, blocks: int
) -> None:
    plan = emulator.reparameterize_kl.plan(dtype, batch, elements, True, 132)
    assert plan["dense"]
    assert (plan["team"], plan["slices"], plan["blocks"]) == (team, slices, blocks)
    assert (plan["workspace_bytes"] > 0) == (slices > 1)


# indices.


@pytest.mark.parametrize("multiprocessors", [2, 132])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (33, 100), (2, 5000), (1, 70001)], ids=str)
def test_every_step_is_visited_once(emulator: ModuleType, shape: tuple[int, int], multiprocessors: int) -> None:
    arguments = "float32", *shape, False, multiprocessors
    plan = emulator.reparameterize_kl.plan(*arguments)
    batch, steps = shape[0], -(-shape[1] // plan["step"])
    visited = np.zeros((batch, steps), dtype=int)
    for block, thread in itertools.product(range(plan["blocks"]), range(plan["threads"])):
        sample, begin, end, offset = emulator.reparameterize_kl.visit(*arguments, block, thread)
        if begin < end:
            visited[sample, begin : end : plan["team"]] += 1
            assert offset == sample * shape[1] + begin * plan["step"]
    assert (visited == 1).all()


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("shape", [(3, 1 << 32), (1, (1 << 33) + 4), (3 << 28, 12), (1 << 20, 5000)], ids=str)
def test_elements_beyond_2_to_the_31(emulator: ModuleType, shape: tuple[int, int], aligned: bool) -> None:
    """Slices follow one another without a gap, up to the last element."""
    arguments = "float32", *shape, aligned, 132
    plan = emulator.reparameterize_kl.plan(*arguments)
    last = plan["blocks"] - 1
    visits = [emulator.reparameterize_kl.visit(*arguments, block, 0) for block in (0, last - 1, last)]
    for sample, begin, _, offset in visits:
        assert offset == sample * shape[1] + begin * plan["step"]
    assert visits[0][:2] == [0, 0]
    sample, _, end, _ = visits[2]
    per_block = plan["threads"] // plan["team"]
    assert sample + (per_block if plan["slices"] == 1 else 1) >= shape[0] > sample
    assert shape[1] <= end * plan["step"] < shape[1] + plan["step"]
    if plan["slices"] > 1:
        assert visits[1][2] == visits[2][1]
    assert visits[2][3] + (end - visits[2][1]) * plan["step"] > 2**31


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("strides", [(2**31 + 64, 1), (64, 2**28 + 1), (1, 2**29)], ids=str)
def test_strides_beyond_2_to_the_31(emulator: ModuleType, strides: tuple[int, int], dtype: torch.dtype) -> None:
    """In memory that is reserved, but used at the tensors' elements only."""
    shape = (2, 16)
    extent = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    noreserve = getattr(mmap, "MAP_NORESERVE", 0x4000)  # has no name before Python 3.13
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | noreserve

    def place(values: Tensor) -> Tensor:
        try:
            memory = mmap.mmap(-1, extent * values.element_size(), flags=flags)
        except OSError as error:
            pytest.skip(f"no address space: {error}")
        return torch.frombuffer(memory, dtype=values.dtype).as_strided(shape, strides).copy_(values)

    plain = Problem(shape, dtype)
    problem = Problem(shape, dtype, place=place)
    for name, value in problem.forward(emulator).items():
        torch.testing.assert_close(value, plain.forward(emulator)[name], rtol=1e-6, atol=0)
    for name, value in problem.backward(emulator).items():
        assert torch.equal(value, plain.backward(emulator)[name])


# sanitizers.

SANITIZED = """
import itertools
import numpy as np
import simt_kernels as emulator

kernels, off = emulator.reparameterize_kl, (-np.inf, np.inf)
names = ("mu", "logvar", "z", "grad_z", "grad_mu", "grad_logvar")
more = ("noise", "prior_mu", "prior_logvar", "grad_noise", "grad_prior_mu", "grad_prior_logvar")
types = {"float32": np.float32, "float64": np.float64, "bfloat16": np.int16, "float16": np.int16}
for seed, (dtype, element), shape in itertools.product(
    (0, 1), types.items(), [(3, 1), (70, 8), (5, 37), (2, 2048), (1, 9001), (2, 3, 5, 7)]
):
    emulator.seed(seed)
    wide = np.float64 if dtype == "float64" else np.float32
    numbers = lambda type, shape: (np.arange(np.prod(shape)) % 97 % 3).astype(type).reshape(shape)
    plain = {name: numbers(element, shape) for name in names} | {"seed": np.array(5)}
    all_of_it = {name: numbers(element, shape) for name in names + more}
    for arrays, clamp, free_bits, per_element in ((plain, off, 0.0, False), (all_of_it, (-1.0, 1.0), 0.1, True)):
        if len(shape) == 4:
            arrays |= {name: x.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2) for name, x in arrays.items()
                       if x.ndim == 4}
        arrays |= {name: numbers(wide, shape if per_element else shape[:1]) for name in ("kl", "grad_kl")}
        kernels.forward(dtype, arrays, clamp, free_bits, per_element, 8)
        kernels.backward(dtype, arrays, clamp, free_bits, 8)
print("done")
"""


@pytest.mark.sanitizer
@pytest.mark.parametrize("sanitizer", ["asan", "tsan"])
def test_sanitizer_has_nothing_to_say(run_clean: Callable[..., None], sanitizer: str) -> None:
    run_clean(sanitizer, SANITIZED)
