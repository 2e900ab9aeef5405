"""The group_norm_act kernels, executed by the SIMT emulator, against PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pytest
import torch
from accuracy import FORWARD, GRADIENT, assert_as_accurate_as_torch
from memory import DTYPES, Outputs, aligned, array, arrays, name_of
from torch import Tensor

Shape = tuple[int, int, int, int]  # samples, channels, inner, groups
# The input's dtype, and whether the result is in float32, as under autocast.
KINDS = [*((dtype, False) for dtype in DTYPES), (torch.bfloat16, True), (torch.float16, True)]
WAYS = ["split", "on_chip", "channels_last split", "channels_last on_chip"]  # layout and method
ACTIVATIONS = {
    "identity": (0, 0.0),
    "relu": (1, 0.0),
    "leaky_relu": (2, 0.2),
    "leaky_relu, odd slope": (2, -1.5),
    "silu": (3, 0.0),
}
SHAPES: list[Shape] = [
    (3, 24, 1, 4),  # one element per channel
    (70, 4, 2, 2),  # groups smaller than a warp, more of them than a block has teams for
    (2, 96, 16, 32),  # three channels to a group: accesses along channels cross from one group to the next
    (2, 32, 49, 32),  # one channel to a group, odd
    (5, 6, 35, 3),
    (2, 40, 24, 4),
    (1, 12, 640, 1),  # one group
    (2, 36, 20, 4),  # channels a multiple of 4, but not of 8
    (1, 520, 6, 2),  # groups wider than a tile
    (1, 1056, 3, 11),  # several tiles of several groups
    (1, 2, 5, 1),
]
# Where a group with channels_last is cut into several tiles.
CUT = [
    ((1, 520, 6, 2), torch.float32),
    ((1, 520, 6, 2), torch.float64),
    ((1, 1056, 3, 11), torch.float64),
]
NO_CLUSTERS = (0,) * 5  # of 1, 2, 4, 8, 16 blocks that run at a time
H200 = 132, 227 << 10, (132, 66, 33, 16, 8)
A100 = 108, 163 << 10, NO_CLUSTERS
EPS = 1e-5


@dataclass
class Problem:
    """Tensors of one call, filled from a seed."""

    shape: Shape
    dtype: torch.dtype
    way: str = "split"
    activation: str = "silu"
    residual: bool = True
    affine: bool = True
    modulated: bool = True  # with scale and shift
    own: bool = False  # parameters are of the data's dtype
    wide_output: bool = False
    shift: int = 0  # elements after an address aligned to 16 bytes
    multiprocessors: int = 8
    shared_bytes: int = 227 << 10
    clusters: tuple[int, ...] = NO_CLUSTERS

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.output_dtype = self.wide if self.wide_output else self.dtype

        def random(shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1, mean: float = 0) -> Tensor:
            return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale + mean).to(dtype)

        n, c, inner, _ = self.shape
        parameters = self.dtype if self.own else self.wide
        self.tensors = {
            "input": random((n, c, inner), self.dtype, 2, 3),
            "residual": random((n, c, inner), self.output_dtype) if self.residual else None,
            "weight": random((c,), parameters, 0.3, 1) if self.affine else None,
            "bias": random((c,), parameters, 0.3) if self.affine else None,
            "scale": random((n, c), parameters, 0.3) if self.modulated else None,
            "shift": random((n, c), parameters, 0.3) if self.modulated else None,
        }
        self.grad_output = random((n, c, inner), self.output_dtype)

    @property
    def channels_last(self) -> bool:
        return self.way.startswith("channels_last")

    @property
    def dtypes(self) -> str:
        """The emulator's word for what data is in."""
        return name_of(self.dtype) + " to float32" * self.wide_output

    @property
    def facts(self) -> tuple[str, int, int, tuple[int, ...]]:
        """The method, and of the device what the launchers ask for."""
        return self.way.split()[-1], self.multiprocessors, self.shared_bytes, self.clusters

    def turned(self, t: Tensor) -> Tensor:
        """Data from (samples, channels, inner) to memory order or back."""
        return t.transpose(1, 2) if self.channels_last and t.dim() == 3 else t

    def run(self, function: Callable, outputs: Outputs, more: dict[str, Tensor], *arguments: object) -> object:
        inputs = {
            name: aligned(self.turned(t), self.shift if t.dim() == 3 else 0)
            for name, t in {**self.tensors, **more}.items()
            if t is not None
        }
        memory = arrays({**inputs, **outputs.tensors})
        result = function(self.dtypes, self.shape, self.channels_last, memory, *arguments)
        outputs.check()
        for name, t in outputs.tensors.items():
            outputs.tensors[name] = None if t is None else self.turned(t)
        return result

    def add_data(self, outputs: Outputs, name: str, dtype: torch.dtype, *, when: bool = True) -> None:
        n, c, inner, _ = self.shape
        outputs.add(name, *((n, inner, c) if self.channels_last else (n, c, inner)), when=when, dtype=dtype)

    def forward(self, emulator: ModuleType) -> tuple[dict[str, Tensor], str]:
        n, _, _, groups = self.shape
        out = Outputs(self.dtype, self.shift)
        self.add_data(out, "output", self.output_dtype)
        for name in ("mean", "invstd"):
            out.add(name, n, groups, dtype=self.wide)
        used = self.run(emulator.group_norm_act.forward, out, {}, EPS, *ACTIVATIONS[self.activation], *self.facts)
        return out.tensors, used

    def backward(
        self,
        emulator: ModuleType,
        forward: dict[str, Tensor],
        *,
        need_input: bool = True,
        need_residual: bool | None = None,
        need_parameters: bool = True,
        expected: str = "split",
    ) -> dict[str, Tensor | None]:
        """expected: the method that is used."""
        n, c, _, _ = self.shape
        out = Outputs(self.dtype, self.shift)
        self.add_data(out, "grad_input", self.dtype, when=need_input)
        wanted = self.residual if need_residual is None else need_residual
        self.add_data(out, "grad_residual", self.output_dtype, when=wanted)
        for name in ("grad_weight", "grad_bias"):
            out.add(name, c, dtype=self.wide, when=need_parameters)
        for name in ("grad_scale", "grad_shift"):
            out.add(name, n, c, dtype=self.wide, when=need_parameters)
        more = {"grad_output": self.grad_output, "mean": forward["mean"], "invstd": forward["invstd"]}
        arguments = *ACTIVATIONS[self.activation], *self.facts
        assert self.run(emulator.group_norm_act.backward, out, more, *arguments) == expected
        return out.tensors

    def torch(self, *, exact: bool) -> dict[str, Tensor]:
        """What PyTorch makes of it, in float64 if ``exact``; grad_* as well."""
        n, c, inner, groups = self.shape
        leaves = {
            name: t.to(torch.float64 if exact else t.dtype, copy=True)
            for name, t in self.tensors.items()
            if t is not None
        }
        x = leaves["input"]
        for name, value, shape in (
            ("weight", 1, (c,)),
            ("bias", 0, (c,)),
            ("scale", 0, (n, c)),
            ("shift", 0, (n, c)),
        ):
            leaves.setdefault(name, torch.full(shape, value, dtype=torch.float64 if exact else self.wide))
        for t in leaves.values():
            t.requires_grad_()
        wide = x.detach().to(torch.float64 if exact else self.wide)
        _, mean, invstd = torch.native_group_norm(wide, None, None, n, c, inner, groups, EPS)
        gain = 1 + leaves["scale"]
        data = x if exact else x.to(self.output_dtype)
        y = torch.nn.functional.group_norm(data, groups, eps=EPS) * (leaves["weight"] * gain)[:, :, None]
        y = y + (leaves["bias"] * gain + leaves["shift"])[:, :, None]
        if "residual" in leaves:
            y = y + leaves["residual"]
        y = activate(y, self.activation).to(data.dtype)
        grads = torch.autograd.grad(y, list(leaves.values()), self.grad_output.to(y.dtype))
        named = {f"grad_{name}": g for name, g in zip(leaves, grads, strict=True)}
        return {"output": y.detach(), "mean": mean, "invstd": invstd, **named}


def activate(y: Tensor, activation: str) -> Tensor:
    kind, slope = ACTIVATIONS[activation]
    if kind == 2:
        return torch.nn.functional.leaky_relu(y, slope)
    return [lambda y: y, torch.relu, None, torch.nn.functional.silu][kind](y)


def assert_accurate(ours: dict[str, Tensor | None], problem: Problem, *, times: float) -> None:
    torchs, exact = (problem.torch(exact=exact) for exact in (False, True))
    for name, value in ours.items():
        if value is not None:
            if problem.own:  # what the kernels leave in float32, autograd rounds
                value = value.to(torchs[name].dtype)
            assert_as_accurate_as_torch(value, torchs[name], exact[name], times=times, ulps=8, name=name)


def check(emulator: ModuleType, problem: Problem) -> str:
    forward, used = problem.forward(emulator)
    assert_accurate(forward, problem, times=FORWARD)
    assert_accurate(problem.backward(emulator, forward), problem, times=GRADIENT)
    return used


# results.


@pytest.mark.parametrize(("dtype", "wide_output"), KINDS, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_shapes(emulator: ModuleType, shape: Shape, dtype: torch.dtype, wide_output: bool, way: str) -> None:
    problem = Problem(shape, dtype, way, wide_output=wide_output)
    used = check(emulator, problem)
    cut = way.startswith("channels_last") and (shape, problem.output_dtype) in CUT
    assert used == ("split" if cut else way.split()[-1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(2, 40, 24, 4), (5, 6, 35, 3), (2, 96, 16, 32)], ids=str)
@pytest.mark.parametrize("wide_output", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_16_bit_parameters(
    emulator: ModuleType, shape: Shape, dtype: torch.dtype, wide_output: bool, way: str
) -> None:
    check(emulator, Problem(shape, dtype, way, own=True, wide_output=wide_output))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("residual", "affine", "modulated"),
    [(False, False, False), (False, True, False), (True, False, False), (False, False, True), (True, True, True)],
)
@pytest.mark.parametrize("way", WAYS)
def test_options(
    emulator: ModuleType, activation: str, residual: bool, affine: bool, modulated: bool, way: str
) -> None:
    problem = Problem(
        (3, 24, 20, 8), torch.float32, way, activation, residual=residual, affine=affine, modulated=modulated
    )
    check(emulator, problem)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("dtype", "wide_output"), KINDS[2:], ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_16_bits_without_residual(
    emulator: ModuleType, way: str, dtype: torch.dtype, wide_output: bool, activation: str
) -> None:
    """The kernels of the usual call; in channels_last, accesses of eight channels."""
    options = {"residual": False, "wide_output": wide_output}
    check(emulator, Problem((2, 48, 120, 6), dtype, way, activation, **options))


@pytest.mark.parametrize(("dtype", "wide_output"), KINDS, ids=str)
@pytest.mark.parametrize("way", WAYS)
def test_misaligned_addresses(emulator: ModuleType, dtype: torch.dtype, wide_output: bool, way: str) -> None:
    check(emulator, Problem((2, 40, 24, 4), dtype, way, shift=1, wide_output=wide_output))


@pytest.mark.parametrize(("dtype", "wide_output"), KINDS, ids=str)
@pytest.mark.parametrize(
    ("shape", "way"),
    [
        ((1, 4, 6008, 1), "on_chip"),
        ((1, 3, 9001, 3), "on_chip"),
        ((1, 40, 601, 4), "channels_last on_chip"),
        ((1, 16, 1200, 4), "channels_last on_chip"),
        ((1, 3, 1201, 3), "channels_last on_chip"),
    ],
    ids=str,
)
def test_more_data_than_registers_hold(
    emulator: ModuleType, shape: Shape, way: str, dtype: torch.dtype, wide_output: bool
) -> None:
    assert check(emulator, Problem(shape, dtype, way, wide_output=wide_output)) == "on_chip"


@pytest.mark.parametrize(("dtype", "wide_output"), KINDS, ids=str)
@pytest.mark.parametrize("shape", [(1, 2, 20000, 1), (1, 3, 5001, 3), (2, 24, 900, 8), (1, 520, 130, 2)], ids=str)
@pytest.mark.parametrize("way", ["split", "channels_last split"])
def test_many_slices(emulator: ModuleType, shape: Shape, dtype: torch.dtype, wide_output: bool, way: str) -> None:
    check(emulator, Problem(shape, dtype, way, multiprocessors=132, wide_output=wide_output))


def test_sums_on_the_way_cost_no_digits(emulator: ModuleType) -> None:
    """Warps find 2^19 and -2^19 here, whose fractions are what is left; float32 would cut them off."""
    problem = Problem((1, 1, 80 << 10, 1), torch.float32, "split", "identity", residual=False, modulated=False)
    element = torch.arange(80 << 10)
    sign = 1 - 2 * (element // 512 % 2)
    problem.grad_output[:] = sign * 1024 + element % 7 / 512
    forward, _ = problem.forward(emulator)
    found = problem.backward(emulator, forward)["grad_bias"]
    assert found.double().item() == problem.grad_output.double().sum().item()


@pytest.mark.parametrize("way", ["on_chip", "channels_last on_chip"])
def test_what_does_not_fit_is_split(emulator: ModuleType, way: str) -> None:
    assert check(emulator, Problem((1, 4, 3000, 1), torch.float32, way, shared_bytes=4 << 10)) == "split"


@pytest.mark.parametrize("needed", list(itertools.product([False, True], repeat=3)), ids=str)
@pytest.mark.parametrize("way", ["split", "channels_last split"])
def test_only_gradients_that_are_needed(emulator: ModuleType, needed: tuple[bool, bool, bool], way: str) -> None:
    problem = Problem((3, 24, 20, 8), torch.float32, way, "relu")
    forward, _ = problem.forward(emulator)
    names = ("need_input", "need_residual", "need_parameters")
    out = problem.backward(emulator, forward, **dict(zip(names, needed, strict=True)))
    assert_accurate(out, problem, times=GRADIENT)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", [(2, 16, 60, 4), (1, 6, 700, 2)], ids=str)
def test_mean_far_from_zero(emulator: ModuleType, shape: Shape, way: str) -> None:
    """A variance from E[x^2] - E[x]^2 would have no correct digit here."""
    problem = Problem(shape, torch.float32, way, residual=False)
    problem.tensors["input"] += 1e4
    forward, _ = problem.forward(emulator)
    exact = problem.torch(exact=True)
    torch.testing.assert_close(forward["invstd"].double(), exact["invstd"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("way", WAYS)
def test_infinite_scale_without_bias(emulator: ModuleType, way: str) -> None:
    problem = Problem((2, 8, 4, 2), torch.float32, way, "identity", residual=False, affine=False)
    problem.tensors["scale"][:, ::2] = torch.inf
    forward, _ = problem.forward(emulator)
    x, scale, shift = (problem.tensors[name] for name in ("input", "scale", "shift"))
    expected = torch.nn.functional.group_norm(x, 2, eps=EPS) * (1 + scale)[:, :, None] + shift[:, :, None]
    torch.testing.assert_close(forward["output"], expected)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_infinities_and_nan_pass_as_in_torch(emulator: ModuleType, activation: str, way: str) -> None:
    problem = Problem((2, 8, 4, 2), torch.float32, way, activation, modulated=False)
    values = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0])
    residual = values.expand(2, 8, 4).clone()
    problem.tensors["residual"] = residual
    forward, _ = problem.forward(emulator)
    exact = problem.torch(exact=True)
    torch.testing.assert_close(forward["output"], exact["output"].float(), equal_nan=True)
    out = problem.backward(emulator, forward)
    torch.testing.assert_close(out["grad_residual"], exact["grad_residual"].float(), equal_nan=True)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_backward_sees_the_signs_that_forward_saw(emulator: ModuleType, way: str, dtype: torch.dtype) -> None:
    for residual in (True, False):
        problem = Problem((3, 24, 40, 8), dtype, way, "relu", residual=residual)
        forward, _ = problem.forward(emulator)
        problem.grad_output.fill_(1)
        backward = problem.backward(emulator, forward, need_residual=True)
        assert torch.equal(backward["grad_residual"] != 0, forward["output"] != 0)


@pytest.mark.parametrize("way", ["split", "channels_last split"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_kernel_sees_the_same_signs(emulator: ModuleType, way: str, activation: str) -> None:
    """With grad_residual other kernels run than without: what they have in common must not differ in a bit."""
    problem = Problem((3, 24, 40, 8), torch.float32, way, activation, residual=False)
    forward, _ = problem.forward(emulator)
    alone, both = (problem.backward(emulator, forward, need_residual=needed) for needed in (False, True))
    for name, value in alone.items():
        assert value is None or torch.equal(value, both[name]), name


# clusters.

# With the sizes of clusters that have a share of a group for each block.
CLUSTER_SHAPES: list[tuple[Shape, tuple[int, ...]]] = [
    ((3, 4, 1024, 2), (1, 2)),
    ((1, 5, 4096, 1), (1, 4, 16)),  # shares of blocks begin and end inside channels
    ((2, 6, 3072, 2), (2, 8)),
    ((1, 32, 1024, 1), (2, 8)),  # as many channels as there may be
    ((5, 3, 8 * 67, 3), (1, 8, 16)),  # one channel in a group: any run of whole words
    ((2, 3, 8, 3), (1,)),
]
# Of channels_last, where a tile has several groups.
CLUSTER_COLUMNS: list[tuple[Shape, tuple[int, ...]]] = [
    ((3, 32, 40, 8), (1, 2)),
    ((1, 64, 301, 2), (1, 4, 16)),  # 32 channels to a group: wider rows in float32
    ((2, 64, 67, 64), (2, 8)),  # one channel
    ((2, 96, 640, 48), (4,)),
    ((5, 8, 9, 2), (1,)),  # rows of 32 or 16 bytes
]
CLUSTER_CASES = [
    (way, shape, blocks)
    for way, shapes in (("cluster", CLUSTER_SHAPES), ("channels_last cluster", CLUSTER_COLUMNS))
    for shape, several in shapes
    for blocks in several
]
CLUSTER_WAYS = [("cluster", (2, 4, 1024, 2)), ("channels_last cluster", (2, 32, 128, 16))]


def check_clusters(emulator: ModuleType, problem: Problem) -> None:
    forward, used = problem.forward(emulator)
    assert used == "cluster"
    assert_accurate(forward, problem, times=FORWARD)
    backward = problem.backward(emulator, forward, expected="cluster")
    assert_accurate(backward, problem, times=GRADIENT)


def planned(emulator: ModuleType, problem: Problem) -> tuple[int, int, int, int]:
    """Clusters, their blocks, and pieces and slots of each, of backward."""
    arguments = problem.dtypes, problem.shape, problem.channels_last, 2, *problem.facts[1:]
    return emulator.group_norm_act.clusters(*arguments)


def of_blocks(blocks: int, clusters: int = 2) -> tuple[int, ...]:
    return tuple(clusters * (size == blocks) for size in (1, 2, 4, 8, 16))


@pytest.mark.parametrize(("way", "shape", "blocks"), CLUSTER_CASES, ids=str)
def test_clusters(emulator: ModuleType, way: str, shape: Shape, blocks: int) -> None:
    for dtype, wide_output in (KINDS[0], *KINDS[2:]):
        emulator.seed(blocks)
        problem = Problem(shape, dtype, way, clusters=of_blocks(blocks), wide_output=wide_output)
        check_clusters(emulator, problem)
        for problem.shared_bytes in range(20 << 10, 228 << 10, 1 << 10):  # for one group, and no more
            if planned(emulator, problem)[0]:
                break
        _, _, pieces, slots = planned(emulator, problem)
        assert slots == pieces
        check_clusters(emulator, problem)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("spare", [0, 1, 2])
@pytest.mark.parametrize(
    ("way", "shape", "wide_output"),
    [
        *itertools.product(["cluster"], [(2, 2, 8 * 2491, 2), (1, 6, 8192, 2)], [False, True]),
        ("channels_last cluster", (1, 64, 1777, 32), False),
        ("channels_last cluster", (1, 64, 1001, 32), True),
    ],
    ids=str,
)
def test_rings_of_several_pieces(
    emulator: ModuleType, way: str, shape: Shape, wide_output: bool, spare: int, seed: int
) -> None:
    """With room for so many more."""
    emulator.seed(seed)
    problem = Problem(shape, torch.bfloat16, way, clusters=of_blocks(2, 1), wide_output=wide_output)
    for problem.shared_bytes in range(30 << 10, 228 << 10, 1 << 10):
        _, _, pieces, slots = planned(emulator, problem)
        if pieces and slots == pieces + spare:
            break
    assert pieces >= 2
    assert slots == pieces + spare
    check_clusters(emulator, problem)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("residual", "affine", "modulated"),
    [(False, False, False), (False, True, False), (True, False, False), (False, False, True), (True, True, True)],
)
def test_options_in_clusters(
    emulator: ModuleType, activation: str, residual: bool, affine: bool, modulated: bool
) -> None:
    options = {"residual": residual, "affine": affine, "modulated": modulated}
    options["clusters"] = of_blocks(2)
    for way, shape in (*CLUSTER_WAYS, ("cluster", (2, 2, 136, 2))):
        for dtype, wide_output in (KINDS[0], KINDS[4]):
            problem = Problem(shape, dtype, way, activation, **options, wide_output=wide_output)
            check_clusters(emulator, problem)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bits_throughout_in_clusters(emulator: ModuleType, dtype: torch.dtype) -> None:
    for way, shape in (*CLUSTER_WAYS, ("cluster", (2, 4, 2048, 2)), ("cluster", (2, 2, 136, 2))):
        for activation in ("relu", "silu"):
            options = {"residual": False, "own": True, "clusters": of_blocks(2)}
            check_clusters(emulator, Problem(shape, dtype, way, activation, **options))


@pytest.mark.parametrize(
    ("shape", "dtype", "way", "shift"),
    [
        ((2, 4, 1024, 2), torch.float64, "cluster", 0),
        ((2, 4, 1024, 2), torch.float32, "cluster", 1),
        ((2, 40, 256, 4), torch.float32, "channels_last cluster", 0),  # groups of ten do not make such rows
        ((2, 64, 256, 1), torch.float32, "channels_last cluster", 0),  # too many channels
        ((2, 4, 1000, 2), torch.float32, "cluster", 0),  # a warp would have words of two channels
        ((2, 2, 35, 2), torch.float32, "cluster", 0),
        ((1, 33, 512, 1), torch.float32, "cluster", 0),  # too many channels
        ((2, 2, 12, 2), torch.float32, "cluster", 0),  # a block of the cluster would have nothing
        ((1, 1, 40000, 1), torch.float32, "cluster", 0),  # too large
    ],
    ids=str,
)
def test_what_clusters_cannot_do_is_split(
    emulator: ModuleType, shape: Shape, dtype: torch.dtype, way: str, shift: int
) -> None:
    problem = Problem(shape, dtype, way, shift=shift, clusters=of_blocks(4), shared_bytes=64 << 10)
    assert check(emulator, problem) == "split"


@pytest.mark.parametrize(("way", "shape"), CLUSTER_WAYS, ids=str)
@pytest.mark.parametrize("needed", list(itertools.product([False, True], repeat=3)), ids=str)
def test_only_gradients_that_are_needed_in_clusters(
    emulator: ModuleType, way: str, shape: Shape, needed: tuple[bool, bool, bool]
) -> None:
    problem = Problem(shape, torch.float32, way, "relu", clusters=of_blocks(2))
    forward, _ = problem.forward(emulator)
    names = ("need_input", "need_residual", "need_parameters")
    expected = "cluster" if needed[0] else "split"
    out = problem.backward(emulator, forward, **dict(zip(names, needed, strict=True)), expected=expected)
    assert_accurate(out, problem, times=GRADIENT)


@pytest.mark.parametrize(("way", "shape"), CLUSTER_WAYS, ids=str)
def test_mean_far_from_zero_in_clusters(emulator: ModuleType, way: str, shape: Shape) -> None:
    problem = Problem(shape, torch.float32, way, residual=False, clusters=of_blocks(2))
    problem.tensors["input"] += 1e4
    forward, used = problem.forward(emulator)
    assert used == "cluster"
    torch.testing.assert_close(forward["invstd"].double(), problem.torch(exact=True)["invstd"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("dtype", "wide_output"), [KINDS[0], KINDS[2], KINDS[4]], ids=str)
@pytest.mark.parametrize(("way", "shape"), [("cluster", (2, 4, 2048, 2)), CLUSTER_WAYS[1]], ids=str)
@pytest.mark.parametrize(
    "methods", list(itertools.product(["cluster", "split", "on_chip"], ["cluster", "split"])), ids="-".join
)
def test_every_backward_sees_the_signs_that_every_forward_saw(
    emulator: ModuleType,
    methods: tuple[str, str],
    way: str,
    shape: Shape,
    dtype: torch.dtype,
    wide_output: bool,
    residual: bool,
) -> None:
    ways = [way.replace("cluster", method) for method in methods]
    options = {"residual": residual, "wide_output": wide_output, "clusters": of_blocks(2)}
    problem = Problem(shape, dtype, ways[0], "relu", **options)
    forward, used = problem.forward(emulator)
    problem.grad_output.fill_(1)
    problem.way = ways[1]
    backward = problem.backward(emulator, forward, need_residual=True, expected=methods[1])
    assert used == methods[0]
    assert torch.equal(backward["grad_residual"] != 0, forward["output"] != 0)


# determinism.


@pytest.mark.parametrize(
    ("shape", "way"),
    [
        *itertools.product([(2, 8, 900, 2), (9, 12, 6, 4)], WAYS),
        ((2, 6, 3072, 2), "cluster"),
        ((3, 3, 8 * 67, 3), "cluster"),
        ((3, 32, 300, 4), "channels_last cluster"),
    ],
    ids=str,
)
@pytest.mark.parametrize(("dtype", "wide_output"), [KINDS[0], KINDS[4]], ids=str)
def test_same_bits_under_every_schedule(
    emulator: ModuleType, shape: Shape, way: str, dtype: torch.dtype, wide_output: bool
) -> None:
    def run(seed: int, resident: int) -> list[bytes]:
        emulator.seed(seed)
        emulator.resident_blocks(resident)
        problem = Problem(shape, dtype, way, clusters=of_blocks(4), wide_output=wide_output)
        forward, _ = problem.forward(emulator)
        expected = "cluster" if "cluster" in way else "split"
        results = [*forward.values(), *problem.backward(emulator, forward, expected=expected).values()]
        return [array(t).tobytes() for t in results if t is not None]

    expected = run(0, 4)
    for seed in range(1, 5):
        assert run(seed, 1 + seed) == expected


# policy.


@pytest.mark.parametrize(
    ("gpu", "shape", "dtype", "channels_last", "forward", "backward"),
    [
        (H200, (8, 320, 64 * 64, 32), "bfloat16", False, "on_chip", "cluster"),
        (H200, (8, 320, 64 * 64, 32), "float32", False, "on_chip", "cluster"),
        (H200, (1, 320, 64 * 64, 32), "float32", False, "cluster", "cluster"),  # 32 groups of 164 kB
        (H200, (8, 128, 128 * 128, 32), "float32", False, "on_chip", "cluster"),  # 67 MB
        (H200, (16, 128, 128 * 128, 32), "bfloat16", False, "on_chip", "cluster"),
        (H200, (4, 256, 128 * 128, 32), "float32", False, "cluster", "cluster"),  # 67 MB in groups of 524 kB
        (H200, (4, 64, 256 * 256, 64), "float32", False, "on_chip", "cluster"),  # instance norm
        (H200, (1, 64, 512 * 512, 64), "float32", False, "cluster", "cluster"),  # of 1 MB
        (H200, (4, 256, 256 * 256, 32), "float32", False, "cluster", "split"),  # 2 MB
        (H200, (4, 256, 256 * 256, 32), "bfloat16", False, "cluster", "cluster"),
        (H200, (1, 128, 512 * 512, 32), "float32", False, "split", "split"),  # 4 MB
        (H200, (1, 128, 512 * 512, 32), "bfloat16", False, "cluster", "split"),
        (H200, (128, 512, 4 * 4, 32), "float32", False, "on_chip", "split"),  # runs of 64 bytes
        (H200, (64, 512, 1, 512), "float32", False, "on_chip", "split"),
        (H200, (8, 320, 64 * 64, 32), "bfloat16", True, "split", "split"),  # groups of ten channels
        (H200, (8, 512, 16 * 16, 32), "bfloat16", True, "on_chip", "cluster"),
        (H200, (8, 128, 128 * 128, 32), "float32", True, "cluster", "cluster"),  # rows of 64 bytes: 1 MB
        (H200, (16, 128, 128 * 128, 32), "bfloat16", True, "cluster", "cluster"),
        (H200, (4, 256, 256 * 256, 32), "float32", True, "split", "split"),  # 4 MB
        (H200, (8, 128, 64 * 64, 32), "bfloat16 to float32", False, "on_chip", "cluster"),
        (H200, (4, 256, 256 * 256, 32), "bfloat16 to float32", False, "cluster", "cluster"),
        (H200, (16, 128, 128 * 128, 32), "bfloat16 to float32", True, "cluster", "cluster"),
        (A100, (8, 320, 64 * 64, 32), "bfloat16", False, "on_chip", "split"),
        (A100, (1, 320, 64 * 64, 32), "float32", False, "split", "split"),
        (A100, (4, 64, 256 * 256, 64), "float32", False, "split", "split"),
    ],
    ids=str,
)
def test_policy(
    emulator: ModuleType, gpu: tuple, shape: Shape, dtype: str, channels_last: bool, forward: str, backward: str
) -> None:
    chosen = [emulator.group_norm_act.chosen(dtype, shape, channels_last, held, *gpu) for held in (1, 2)]
    assert chosen == [forward, backward]


# indices.


def row_of(offsets: np.ndarray, shape: Shape, channels_last: bool, moments: bool) -> np.ndarray:
    """What the elements at these offsets belong to: a channel of a sample, or a group of one."""
    _, channels, inner, groups = shape
    if channels_last:
        return offsets // (channels * inner) * channels + offsets % channels
    return offsets // inner // (channels // groups if moments else 1)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize("shape", [*SHAPES, (2, 24, 900, 8), (1, 520, 130, 2)], ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_element_is_visited_once(
    emulator: ModuleType, shape: Shape, dtype: str, moments: bool, channels_last: bool
) -> None:
    visited = np.zeros(np.prod(shape[:3]), dtype=int)
    arguments = dtype, shape, channels_last, True, moments, 132
    for block in range(emulator.group_norm_act.visits(*arguments, -1, 0)["blocks"]):
        v = emulator.group_norm_act.visits(*arguments, block, 1 << 20)
        np.add.at(visited, (v["offsets"][:, None] + np.arange(v["vector"])).ravel(), 1)
        assert (row_of(v["offsets"], shape, channels_last and shape[2] > 1, moments) == v["rows"]).all()
    assert (visited == 1).all()


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("moments", [False, True])
@pytest.mark.parametrize(
    ("shape", "channels_last"),
    [
        ((3, 1000, 1 << 21, 10), False),  # 6.3e9 elements
        ((5000, 300, 4096, 300), False),
        ((3, 1000, 1 << 21, 10), True),
        ((1 << 21, 24, 100, 8), True),
    ],
    ids=str,
)
def test_offsets_beyond_2_to_the_31(
    emulator: ModuleType, shape: Shape, channels_last: bool, moments: bool, aligned: bool
) -> None:
    arguments = "float32", shape, channels_last, aligned, moments, 132
    blocks = emulator.group_norm_act.visits(*arguments, -1, 0)["blocks"]
    ends = []
    for block in (0, blocks // 2, blocks - 1):
        v = emulator.group_norm_act.visits(*arguments, block, 2)
        assert (row_of(v["offsets"], shape, channels_last, moments) == v["rows"]).all()
        ends += [v["offsets"].min(), v["offsets"].max() + v["vector"]]
    assert ends[0] == 0
    assert ends[-1] == np.prod(shape[:3], dtype=object) > 2**31
    assert ends == sorted(ends) or channels_last  # slices of one row follow one another only there


# sanitizers.

SANITIZED = """
import itertools, sys
import numpy as np
import simt_kernels as emulator

kernels = emulator.group_norm_act
large = sys.argv[1:] == ["large"]
shapes = [(2, 24, 60, 8), (3, 6, 35, 2), (1, 1, 5000, 1), (1, 520, 6, 2), (2, 4, 2048, 2), (2, 32, 100, 4)]
shapes += [(1, 2, 30000, 1), (3, 6, 4096, 2)] if large else []
for seed, shape, dtype, way in itertools.product(
    (0, 1),
    shapes,
    ("float32", "bfloat16", "bfloat16 to float32"),
    [last + method for last in ("", "channels_last ") for method in ("split", "on_chip", "cluster")],
):
    emulator.seed(seed)
    n, c, inner, groups = shape
    element = np.float32 if dtype == "float32" else np.uint16
    result = np.uint16 if dtype == "bfloat16" else np.float32
    own = element if seed else np.float32
    data = lambda element: (np.arange(n * c * inner) % 97).astype(element)
    arrays = {name: data(element) for name in ("input", "grad_input")}
    arrays |= {name: data(result) for name in ("residual", "output", "grad_output", "grad_residual")}
    arrays |= {name: np.ones((n, groups), np.float32) for name in ("mean", "invstd")}
    arrays |= {name: np.ones(c, own) for name in ("weight", "bias")}
    arrays |= {name: np.ones((n, c), own) for name in ("scale", "shift")}
    arrays |= {name: np.ones(c, np.float32) for name in ("grad_weight", "grad_bias")}
    arrays |= {name: np.ones((n, c), np.float32) for name in ("grad_scale", "grad_shift")}
    last = way.startswith("channels_last")
    facts = way.split()[-1], 4, 227 << 10, (0, 1 - seed, seed, 0, 0)
    kernels.forward(dtype, shape, last, arrays, 1e-5, 3, 0.0, *facts)
    kernels.backward(dtype, shape, last, arrays, 2, 0.2, *facts)
print("done")
"""


@pytest.mark.sanitizer
@pytest.mark.parametrize(("sanitizer", "size"), [("asan", "large"), ("tsan", "small")])
def test_sanitizer_has_nothing_to_say(run_clean: Callable[..., None], sanitizer: str, size: str) -> None:
    run_clean(sanitizer, ["-c", SANITIZED, size])
