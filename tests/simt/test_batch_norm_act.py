"""The batch_norm_act kernels, executed by the SIMT emulator, against PyTorch."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import numpy as np
import pytest
import torch
from accuracy import FORWARD, GRADIENT, assert_as_accurate_as_torch
from memory import DTYPES, aligned, array
from torch import Tensor

Shape = tuple[int, int, int]  # outer, channels, inner; inner == 1 is channels-last
METHODS = ["split", "block"]
ACTIVATIONS = {
    "identity": (0, 1.0),
    "relu": (1, 0.0),
    "leaky_relu": (2, 0.2),
    "leaky_relu, odd slope": (2, -1.5),
    "silu": (3, 0.0),
}
SHAPES: list[Shape] = [
    (5, 1, 1),  # one channel
    (70, 3, 1),  # channels-last, odd
    (33, 17, 1),
    (150, 64, 1),  # 16-byte accesses along channels, the last tile of float16 with eight of them not full
    (41, 40, 1),
    (9, 3, 3),  # short runs, several channels to a row of threads
    (6, 17, 12),  # 16-byte accesses for float32, not for 16-bit
    (3, 64, 8),
    (4, 3, 5 * 7),  # odd runs
    (3, 2, 11 * 11),  # almost a piece
    (2, 1, 33 * 65),
    (2, 3, 33 * 64),  # runs longer than a block is wide
]
H200 = 132, 227 << 10, [132, 66, 33, 16, 8]
A100 = 108, 163 << 10, [0] * 5
MOMENTUM, EPS = 0.3, 1e-5


@dataclass
class Problem:
    """Tensors of one call, filled from a seed."""

    shape: Shape
    dtype: torch.dtype
    activation: str = "leaky_relu"
    residual: bool = True
    affine: bool = True
    own: bool = False  # parameters and running statistics are of the data's dtype
    misaligned: bool = False
    multiprocessors: int = 8
    shared_bytes: int = 227 << 10
    clusters: tuple[int, ...] = (0,) * 5  # of 1, 2, 4, 8, 16 blocks that run at a time

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        statistics = torch.float64 if self.dtype == torch.float64 else torch.float32

        def random(shape: tuple[int, ...], dtype: torch.dtype, scale: float = 1, shift: float = 0) -> Tensor:
            values = torch.randn(shape, generator=generator, dtype=torch.float64) * scale + shift
            return aligned(values.to(dtype), self.misaligned)

        channels = (self.shape[1],)
        self.input = random(self.shape, self.dtype, 2, 3)
        self.grad_output = random(self.shape, self.dtype)
        self.residual_input = random(self.shape, self.dtype) if self.residual else None
        parameters = self.dtype if self.own else statistics
        self.weight = random(channels, parameters, 0.3, 1) if self.affine else None
        self.bias = random(channels, parameters, 0.3) if self.affine else None
        self.running_mean = random(channels, parameters, 1, 3)
        self.running_var = random(channels, parameters).abs() + 1
        self.statistics = statistics

    def device(self, emulator: ModuleType) -> object:
        return emulator.batch_norm_act.Device(self.multiprocessors, self.shared_bytes, self.clusters)

    def empty(self) -> Tensor:
        return aligned(torch.full(self.shape, torch.nan, dtype=self.dtype), self.misaligned)

    def per_channel(self) -> Tensor:
        return torch.full(self.shape[1:2], torch.nan, dtype=self.statistics)

    @property
    def name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def arrays(self, **more: Tensor | None) -> dict[str, np.ndarray | None]:
        tensors = {"input": self.input, "residual": self.residual_input, "weight": self.weight, "bias": self.bias}
        return {name: None if t is None else array(t) for name, t in {**tensors, **more}.items()}

    def train(self, emulator: ModuleType, method: str = "automatic") -> tuple[dict[str, Tensor], str]:
        out = {
            "output": self.empty(),
            "mean": self.per_channel(),
            "invstd": self.per_channel(),
            "running_mean": self.running_mean.clone(),
            "running_var": self.running_var.clone(),
        }
        used = emulator.batch_norm_act.train(
            self.name,
            self.shape,
            self.arrays(**out),
            MOMENTUM,
            EPS,
            *ACTIVATIONS[self.activation],
            method,
            self.device(emulator),
        )
        return out, used

    def eval(self, emulator: ModuleType) -> Tensor:
        out = self.empty()
        arrays = self.arrays(output=out, running_mean=self.running_mean, running_var=self.running_var)
        emulator.batch_norm_act.eval(self.name, self.shape, arrays, EPS, *ACTIVATIONS[self.activation])
        return out

    def backward(
        self,
        emulator: ModuleType,
        mean: Tensor,
        invstd: Tensor,
        *,
        training: bool = True,
        method: str = "automatic",
        need_input: bool = True,
    ) -> tuple[dict[str, Tensor | None], str]:
        out = {
            "grad_input": self.empty() if need_input else None,
            "grad_residual": self.empty() if self.residual else None,
            "grad_weight": self.per_channel(),
            "grad_bias": self.per_channel(),
        }
        used = emulator.batch_norm_act.backward(
            self.name,
            self.shape,
            self.arrays(grad_output=self.grad_output, mean=mean, invstd=invstd, **out),
            training,
            *ACTIVATIONS[self.activation],
            method,
            self.device(emulator),
        )
        return out, used

    def torch(self, *, training: bool, exact: bool) -> dict[str, Tensor]:
        """What PyTorch makes of it, in float64 if ``exact``; grad_* as well."""

        def own(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.to(torch.float64 if exact else t.dtype, copy=True)

        x, residual, weight, bias = map(own, (self.input, self.residual_input, self.weight, self.bias))
        mean, var = own(self.running_mean), own(self.running_var)
        if weight is None or bias is None:
            weight, bias = torch.ones_like(mean), torch.zeros_like(mean)
        leaves = [t.requires_grad_() for t in (x, weight, bias, residual) if t is not None]
        y, saved_mean, saved_invstd = torch.native_batch_norm(x, weight, bias, mean, var, training, MOMENTUM, EPS)
        if residual is not None:
            y = y + residual
        y = activate(self.activation, y)
        grads = torch.autograd.grad(y, leaves, own(self.grad_output))
        names = ["grad_input", "grad_weight", "grad_bias", "grad_residual"]
        return {
            "output": y.detach(),
            "mean": saved_mean,
            "invstd": saved_invstd,
            "running_mean": mean,
            "running_var": var,
            **dict(zip(names, grads, strict=False)),
        }


def activate(activation: str, y: Tensor) -> Tensor:
    kind, slope = ACTIVATIONS[activation]
    if kind == 2:
        return torch.nn.functional.leaky_relu(y, slope)
    return [lambda y: y, torch.relu, None, torch.nn.functional.silu][kind](y)


def assert_accurate(ours: dict[str, Tensor | None], problem: Problem, *, training: bool, times: float) -> None:
    torchs, exact = (problem.torch(training=training, exact=exact) for exact in (False, True))
    for name, value in ours.items():
        if value is not None:
            if problem.own:  # what the kernels leave in float32, autograd rounds
                value = value.to(torchs[name].dtype)
            assert_as_accurate_as_torch(value, torchs[name], exact[name], times=times, ulps=8, name=name)


def check_training(emulator: ModuleType, problem: Problem, method: str) -> tuple[str, str]:
    forward, used_forward = problem.train(emulator, method)
    assert_accurate(forward, problem, training=True, times=FORWARD)
    backward, used_backward = problem.backward(emulator, forward["mean"], forward["invstd"], method=method)
    assert_accurate(backward, problem, training=True, times=GRADIENT)
    return used_forward, used_backward


def in_clusters(
    emulator: ModuleType, problem: Problem, blocks: int, *, tight: bool = False, clusters: int = 2
) -> tuple[tuple[str, str], tuple[int, int]]:
    """The problem on a device of so many clusters of so many blocks; the methods used, and pieces and slots of
    backward. tight: shared memory for one tile, else for two where tiles are small."""
    problem.clusters = tuple(clusters * (size == blocks) for size in (1, 2, 4, 8, 16))
    for problem.shared_bytes in range(20 << 10, 228 << 10, 1 << 10) if tight else [227 << 10]:
        planned = emulator.batch_norm_act.clusters(problem.name, problem.shape, 2, problem.device(emulator))
        if planned[0]:
            return check_training(emulator, problem, "cluster"), planned[2:]
    raise AssertionError(f"no plan for {blocks} blocks")


def check_evaluation(emulator: ModuleType, problem: Problem) -> None:
    assert_accurate({"output": problem.eval(emulator)}, problem, training=False, times=FORWARD)
    mean, var = problem.running_mean.to(problem.statistics), problem.running_var.to(problem.statistics)
    backward, used = problem.backward(emulator, mean, (var + EPS).rsqrt(), training=False)
    assert used == "split"
    assert_accurate(backward, problem, training=False, times=GRADIENT)


# results.


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_training(emulator: ModuleType, shape: Shape, dtype: torch.dtype, method: str) -> None:
    used = check_training(emulator, Problem(shape, dtype), method)
    assert set(used) <= {method, "split"}
    assert method != "block" or used == ("block", "block")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_evaluation(emulator: ModuleType, shape: Shape, dtype: torch.dtype) -> None:
    check_evaluation(emulator, Problem(shape, dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", [(33, 17, 1), (150, 64, 1), (6, 17, 12), (2, 3, 33 * 64)], ids=str)
def test_16_bits_throughout(emulator: ModuleType, shape: Shape, dtype: torch.dtype) -> None:
    problem = Problem(shape, dtype, own=True)
    for method in METHODS:
        check_training(emulator, problem, method)
    check_evaluation(emulator, problem)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("residual", "affine"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("shape", [(60, 16, 1), (4, 3, 20)], ids=str)
def test_options(emulator: ModuleType, shape: Shape, activation: str, residual: bool, affine: bool) -> None:
    problem = Problem(shape, torch.float32, activation=activation, residual=residual, affine=affine)
    for method in METHODS:
        check_training(emulator, problem, method)
    check_evaluation(emulator, problem)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(60, 16, 1), (4, 3, 40), (9, 3, 3)], ids=str)
def test_silu(emulator: ModuleType, shape: Shape, dtype: torch.dtype) -> None:
    problem = Problem(shape, dtype, activation="silu")
    for method in METHODS:
        check_training(emulator, problem, method)
    check_evaluation(emulator, problem)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(60, 16, 1), (4, 3, 40)], ids=str)
def test_misaligned_addresses(emulator: ModuleType, shape: Shape, dtype: torch.dtype) -> None:
    problem = Problem(shape, dtype, misaligned=True)
    for method in METHODS:
        check_training(emulator, problem, method)
    check_evaluation(emulator, problem)


@pytest.mark.parametrize("method", ["block"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1100, 8, 1), (2, 2, 4000), (1000, 2, 7)], ids=str)
def test_more_data_than_registers_hold(
    emulator: ModuleType, shape: Shape, dtype: torch.dtype, method: str
) -> None:
    assert check_training(emulator, Problem(shape, dtype), method) == (method, method)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(9000, 8, 1), (2, 2, 10001), (600, 3, 5)], ids=str)
def test_many_slices(emulator: ModuleType, shape: Shape, dtype: torch.dtype) -> None:
    problem = Problem(shape, dtype, multiprocessors=132)
    assert check_training(emulator, problem, "split") == ("split", "split")
    check_evaluation(emulator, problem)


def test_no_gradient_of_the_input(emulator: ModuleType) -> None:
    problem = Problem((4, 3, 20), torch.float32)
    forward, _ = problem.train(emulator)
    backward, used = problem.backward(emulator, forward["mean"], forward["invstd"], need_input=False)
    assert used == "split"
    assert_accurate(backward, problem, training=True, times=GRADIENT)


def far(x: Tensor) -> Tensor:
    return x + 1e4


def drifting(x: Tensor) -> Tensor:
    return x + torch.linspace(-300, 300, x.shape[0])[:, None, None]


def first_ones_differ(x: Tensor) -> Tensor:
    x[: x.shape[0] // 20] -= 1000
    return x


def mostly_zero(x: Tensor) -> Tensor:
    x[:, :, 1:] = 0
    x[1::50] = 0
    return x


@pytest.mark.parametrize("hard", [far, drifting, first_ones_differ, mostly_zero])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(50, 16, 1), (40000, 4, 1), (600, 1, 500)], ids=str)
def test_moments_of_hard_data(
    emulator: ModuleType, shape: Shape, method: str, hard: Callable[[Tensor], Tensor]
) -> None:
    """A variance from E[x^2] - E[x]^2 would have no correct digit here, or few."""
    problem = Problem(shape, torch.float32, residual=False, multiprocessors=1)
    problem.input = aligned(hard(problem.input))
    forward, _ = problem.train(emulator, method)
    torchs, exact = (problem.torch(training=True, exact=exact) for exact in (False, True))
    for name in ("invstd", "running_var"):
        assert_as_accurate_as_torch(forward[name], torchs[name], exact[name], times=FORWARD, ulps=8, name=name)
    spread = 1 / exact["invstd"]  # of which an error of the mean becomes a part of the output
    errors = ((result["mean"].double() - exact["mean"]).abs() / spread for result in (forward, torchs))
    allowed = 8 * torch.finfo(torch.float32).eps * (1 + exact["mean"].abs() / spread)
    assert (next(errors) <= allowed + FORWARD * next(errors)).all()


def test_infinities_and_nan_pass_as_in_torch(emulator: ModuleType) -> None:
    values = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, -1.0, 1.0, -2.0])
    for activation, method in itertools.product(ACTIVATIONS, ["eval", "backward"]):
        problem = Problem((8, 4, 1), torch.float32, activation=activation, residual=False, affine=False)
        problem.running_mean.zero_()
        problem.running_var.fill_(1 - EPS)
        x = values[:, None, None].expand(8, 4, 1).clone().requires_grad_()
        y = activate(activation, x * 1.0)
        problem.input = aligned(x.detach())
        if method == "eval":
            torch.testing.assert_close(problem.eval(emulator), y.detach(), equal_nan=True)
        else:
            out, _ = problem.backward(emulator, torch.zeros(4), torch.ones(4), training=False)
            (grad,) = torch.autograd.grad(y, x, problem.grad_output)
            torch.testing.assert_close(out["grad_input"], grad, equal_nan=True)


@pytest.mark.parametrize("shape", [(40, 24, 1), (5, 3, 44)], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_backward_sees_the_signs_that_forward_saw(emulator: ModuleType, shape: Shape, method: str) -> None:
    problem = Problem(shape, torch.float32, activation="relu")
    forward, _ = problem.train(emulator, method)
    problem.grad_output.fill_(1)
    backward, _ = problem.backward(emulator, forward["mean"], forward["invstd"], method=method)
    assert torch.equal(backward["grad_residual"] != 0, forward["output"] != 0)


@pytest.mark.parametrize("shape", [(400, 24, 1), (50, 3, 44)], ids=str)
def test_backward_sees_the_signs_of_evaluation(emulator: ModuleType, shape: Shape) -> None:
    """Where the activation's input all but vanishes: the bias is what one element needs, or one ulp off."""
    problem = Problem(shape, torch.float32, activation="relu", residual=False)
    invstd = torch.rsqrt(problem.running_var.double() + EPS).float()
    assert problem.weight is not None
    problem.input = aligned(problem.input[:1].expand(shape).contiguous())
    exact = (problem.input[0, :, 0] - problem.running_mean).double() * (invstd * problem.weight)
    problem.bias = aligned(-exact.float())
    problem.input[1:] += torch.randn(problem.input[1:].shape) * 1e-6
    problem.grad_output.fill_(1)
    output = problem.eval(emulator)
    backward, _ = problem.backward(emulator, problem.running_mean, invstd, training=False)
    assert torch.equal(backward["grad_input"] != 0, output != 0)


# clusters.

CLUSTER_SHAPES: list[Shape] = [
    (6, 5, 256),
    (3, 7, 8 * 67),  # shares of blocks begin and end inside runs
    (33, 5, 24),
    (65, 3, 8),  # runs of one word or two
    (1, 3, 8 * 40),
    (157, 72, 1),  # the last tile is not full
    (65, 8, 1),  # one narrow tile
]


@pytest.mark.parametrize("blocks", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("shape", CLUSTER_SHAPES, ids=str)
def test_clusters(emulator: ModuleType, shape: Shape, blocks: int) -> None:
    for dtype, tight in itertools.product([torch.float32, torch.bfloat16, torch.float16], [False, True]):
        emulator.seed(blocks)
        used, (pieces, slots) = in_clusters(emulator, Problem(shape, dtype), blocks, tight=tight)
        assert used == ("cluster", "cluster")
        assert slots == (pieces if tight else 2 * pieces)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("spare", [0, 1, 2])
@pytest.mark.parametrize("shape", [(5, 5, 8 * 491), (1300, 96, 1)], ids=str)
def test_rings_of_several_pieces(emulator: ModuleType, shape: Shape, spare: int, seed: int) -> None:
    """Of which the last one is not full, with room for so many more."""
    emulator.seed(seed)
    problem = Problem(shape, torch.bfloat16, clusters=(0, 1, 0, 0, 0))
    for problem.shared_bytes in range(40 << 10, 228 << 10, 1 << 10):
        _, _, pieces, slots = emulator.batch_norm_act.clusters(
            problem.name, problem.shape, 2, problem.device(emulator)
        )
        if pieces and slots == pieces + spare:
            break
    assert pieces >= 2
    assert slots == pieces + spare
    assert check_training(emulator, problem, "cluster") == ("cluster", "cluster")


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("residual", "affine"), [(False, False), (False, True), (True, False)])
@pytest.mark.parametrize("shape", [(60, 16, 1), (4, 3, 136)], ids=str)
def test_options_in_clusters(
    emulator: ModuleType, shape: Shape, activation: str, residual: bool, affine: bool
) -> None:
    problem = Problem(shape, torch.float32, activation=activation, residual=residual, affine=affine)
    assert in_clusters(emulator, problem, 2)[0] == ("cluster", "cluster")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_16_bits_throughout_in_clusters(emulator: ModuleType, dtype: torch.dtype) -> None:
    for shape in ((60, 16, 1), (4, 3, 136)):
        problem = Problem(shape, dtype, own=True, residual=False, activation="silu")
        assert in_clusters(emulator, problem, 4, tight=True)[0] == ("cluster", "cluster")


@pytest.mark.parametrize(
    ("shape", "dtype", "misaligned"),
    [
        ((60, 16, 1), torch.float64, False),
        ((60, 17, 1), torch.float32, False),
        ((4, 3, 35), torch.float32, False),
        ((4, 3, 20), torch.bfloat16, False),
        ((60, 16, 1), torch.float32, True),
        ((3, 16, 1), torch.float32, False),  # a block of the cluster would have nothing
        ((40000, 16, 1), torch.float32, False),  # too large
    ],
    ids=str,
)
def test_what_clusters_cannot_do_is_split(
    emulator: ModuleType, shape: Shape, dtype: torch.dtype, misaligned: bool
) -> None:
    problem = Problem(shape, dtype, misaligned=misaligned, clusters=(0, 0, 2, 0, 0))
    assert check_training(emulator, problem, "cluster") == ("split", "split")


@pytest.mark.parametrize("shape", [(50, 16, 1), (4, 3, 64)], ids=str)
def test_mean_far_from_zero_in_clusters(emulator: ModuleType, shape: Shape) -> None:
    problem = Problem(shape, torch.float32, residual=False, clusters=(0, 2, 0, 0, 0))
    problem.input += 1e4
    forward, used = problem.train(emulator, "cluster")
    assert used == "cluster"
    exact = problem.torch(training=True, exact=True)
    torch.testing.assert_close(forward["invstd"].double(), exact["invstd"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(40, 24, 1), (5, 3, 44)], ids=str)
@pytest.mark.parametrize("methods", list(itertools.product(["cluster", "split", "block"], repeat=2)), ids="-".join)
def test_every_backward_sees_the_signs_that_every_forward_saw(
    emulator: ModuleType, shape: Shape, methods: tuple[str, str]
) -> None:
    problem = Problem(shape, torch.float32, activation="relu", clusters=(0, 2, 0, 0, 0))
    forward, forward_method = problem.train(emulator, methods[0])
    problem.grad_output.fill_(1)
    backward, backward_method = problem.backward(emulator, forward["mean"], forward["invstd"], method=methods[1])
    assert (forward_method, backward_method) == methods
    assert torch.equal(backward["grad_residual"] != 0, forward["output"] != 0)


# determinism.


@pytest.mark.parametrize("method", [*METHODS, "cluster"])
@pytest.mark.parametrize("shape", [(700, 64, 1), (3, 5, 4000), (400, 6, 5)], ids=str)
def test_same_bits_under_every_schedule(emulator: ModuleType, shape: Shape, method: str) -> None:
    clusters = (0, 0, 2, 0, 0)

    def run(seed: int, resident: int) -> list[bytes]:
        emulator.seed(seed)
        emulator.resident_blocks(resident)
        problem = Problem(shape, torch.float32, clusters=clusters)
        forward, _ = problem.train(emulator, method)
        backward, _ = problem.backward(emulator, forward["mean"], forward["invstd"], method=method)
        evaluation, _ = problem.backward(emulator, forward["mean"], forward["invstd"], training=False)
        results = [*forward.values(), *backward.values(), *evaluation.values()]
        return [t.numpy().tobytes() for t in results if t is not None]

    expected = run(0, 4)
    for seed in range(1, 5):
        assert run(seed, 1 + seed) == expected


# policy.


@pytest.mark.parametrize(
    ("gpu", "shape", "dtype", "forward", "backward"),
    [
        (H200, (64, 512, 4 * 4), "float32", "block", "block"),
        (H200, (128, 256, 8 * 8), "float32", "block", "cluster"),
        (H200, (128, 128, 16 * 16), "float32", "block", "cluster"),
        (H200, (128, 64, 32 * 32), "float32", "cluster", "cluster"),
        (H200, (128, 64, 32 * 32), "bfloat16", "cluster", "cluster"),
        (H200, (128 * 32 * 32, 64, 1), "bfloat16", "split", "split"),  # 64 bytes a row are 8 MB
        (H200, (128 * 16 * 16, 512, 1), "bfloat16", "cluster", "split"),  # 2 MB
        (H200, (64 * 4 * 4, 512, 1), "bfloat16", "block", "block"),
        (H200, (128, 1024, 1), "float32", "block", "block"),
        (H200, (64, 64, 64 * 64), "float32", "cluster", "cluster"),  # 67 MB
        (H200, (128, 64, 64 * 64), "bfloat16", "cluster", "cluster"),
        (H200, (32, 128, 64 * 64), "float32", "cluster", "cluster"),
        (H200, (32, 256, 64 * 64), "bfloat16", "cluster", "cluster"),
        (H200, (64, 512, 64 * 64), "float32", "cluster", "cluster"),  # 537 MB
        (H200, (128, 256, 64 * 64), "float32", "cluster", "split"),  # 2 MB a channel
        (H200, (512, 64, 64 * 64), "float32", "split", "split"),  # 8 MB
        (A100, (128, 128, 16 * 16), "float32", "block", "split"),
        (A100, (64, 64, 32 * 32), "float32", "split", "split"),
        (A100, (64, 64, 64 * 64), "float32", "split", "split"),
    ],
    ids=str,
)
def test_policy(emulator: ModuleType, gpu: tuple, shape: Shape, dtype: str, forward: str, backward: str) -> None:
    device = emulator.batch_norm_act.Device(*gpu)
    chosen = [emulator.batch_norm_act.chosen(dtype, shape, held, device) for held in (1, 2)]
    assert chosen == [forward, backward]


# indices.


@pytest.mark.parametrize("kernel", ["elementwise", *METHODS])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_element_is_visited_once(emulator: ModuleType, shape: Shape, dtype: str, kernel: str) -> None:
    outer, channels, inner = shape
    visited = np.zeros(outer * channels * inner, dtype=int)
    counted = np.zeros(channels, dtype=int)
    arguments = dtype, shape, True, kernel, 20
    grid = emulator.batch_norm_act.visits(*arguments, 0, -1, 0)
    for tile, slice_ in itertools.product(range(grid["tiles"]), range(grid["slices"])):
        v = emulator.batch_norm_act.visits(*arguments, tile, slice_, 1 << 20)
        elements = v["offsets"][:, None] + np.arange(v["vector"])
        np.add.at(visited, elements.ravel(), 1)
        lanes = np.arange(v["vector"]) if v["lanes"] > 1 else np.zeros(v["vector"], dtype=int)
        belongs = v["channels"][:, None] + lanes
        assert (elements // inner % channels == belongs).all()
        counted[np.unique(belongs)] += v["slice_elements"]
    assert (visited == 1).all()
    assert kernel == "elementwise" or (counted == outer * inner).all()


@pytest.mark.parametrize("kernel", ["elementwise", "split"])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        (3, 1000, 1 << 21),  # 6.3e9 elements in long runs
        (1 << 22, 1024, 1),  # 4.3e9, channels-last
        (1 << 22, 300, 5),  # 6.3e9, short odd runs
        (1, 1, 3 << 30),
    ],
    ids=str,
)
def test_offsets_beyond_2_to_the_31(emulator: ModuleType, shape: Shape, kernel: str, aligned: bool) -> None:
    """Slices begin one after the other, the last element belongs to one, and accesses stay in their channel."""
    _, channels, inner = shape
    arguments = "float32", shape, aligned, kernel, 132
    grid = emulator.batch_norm_act.visits(*arguments, 0, -1, 0)
    tile, slices = grid["tiles"] - 1, grid["slices"]
    begins, ends = [], []  # places, counted within a channel
    for slice_ in (
        range(slices) if kernel == "split" else {0, 1, slices // 2, slices // 2 + 1, slices - 2, slices - 1}
    ):
        v = emulator.batch_norm_act.visits(*arguments, tile, slice_, 2)
        offsets = v["offsets"]
        assert (offsets // inner % channels == v["channels"]).all()
        assert offsets.max() + v["vector"] <= np.prod(shape, dtype=object)
        places = offsets // (channels * inner) * inner + offsets % inner
        begins.append((slice_, places.min()))
        ends.append(offsets.max() + v["vector"])
    assert max(ends) == np.prod(shape, dtype=object) > 2**31
    length = dict(begins).get(1, 0)
    assert all(begin == slice_ * length for slice_, begin in begins)


# sanitizers.

SANITIZED = """
import itertools, sys
import numpy as np
import simt_kernels as emulator

kernels = emulator.batch_norm_act
large = sys.argv[1:] == ["large"]
shapes = [(600, 8, 1), (33, 5, 1), (2, 1, 5000), (300, 3, 7), (100, 40, 1), (5, 3, 264)]
shapes += ([(3000, 8, 1), (2, 2, 30000)] if large else [])
for seed, shape, dtype, method in itertools.product(
    (0, 1), shapes, ("float32", "bfloat16"), ("split", "block", "cluster")
):
    emulator.seed(seed)
    element = {"float32": np.float32, "bfloat16": np.uint16}[dtype]
    own = element if seed else np.float32
    channel = lambda kind=np.float32: np.ones(shape[1], kind)
    data = lambda: (np.arange(np.prod(shape)) % 97).astype(element).reshape(shape)
    arrays = {name: data() for name in ("input", "residual", "output")}
    arrays |= {name: data() for name in ("grad_output", "grad_input", "grad_residual")}
    arrays |= {name: channel() for name in ("mean", "invstd", "grad_weight", "grad_bias")}
    arrays |= {name: channel(own) for name in ("weight", "bias", "running_mean", "running_var")}
    facts = method, kernels.Device(4, 227 << 10, (0, 1 - seed, seed, 0, 0))
    act = 3 if seed else 2
    kernels.train(dtype, shape, arrays, 0.1, 1e-5, act, 0.2, *facts)
    kernels.eval(dtype, shape, arrays, 1e-5, act, 0.0)
    kernels.backward(dtype, shape, arrays, True, act, 0.2, *facts)
    kernels.backward(dtype, shape, arrays, False, act, 0.0, *facts)
print("done")
"""


@pytest.mark.sanitizer
@pytest.mark.parametrize(("sanitizer", "size"), [("asan", "large"), ("tsan", "small")])
def test_sanitizer_has_nothing_to_say(run_clean: Callable[..., None], sanitizer: str, size: str) -> None:
    run_clean(sanitizer, ["-c", SANITIZED, size])
