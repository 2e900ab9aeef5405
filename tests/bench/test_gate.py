"""What is wrong gets no figure, and neither does what cheats."""

import re
import resource
import threading
import time
from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.utils import counters

from genimg_fast.bench import Case, WrongResultError, timing
from genimg_fast.bench.gate import Gate
from genimg_fast.bench.worker import measure


def case_of(contender: Callable[..., object], dtype: torch.dtype = torch.float32) -> Case:
    torch.manual_seed(0)
    x = torch.randn(8, 64).to(dtype).requires_grad_()
    return Case({"mine": contender, "eager": F.silu}, (x,), compiled=False)


def half_of_the_work(x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[: len(x) // 2] = F.silu(x[: len(x) // 2])
    return y


class Kept:
    """Returns what it computed first for an address."""

    def __init__(self) -> None:
        self.results: dict[int, Tensor] = {}

    def __call__(self, x: Tensor) -> Tensor:
        return self.results.setdefault(x.data_ptr(), F.silu(x))


class KeptUnlessWritten(Kept):
    """Likewise, until autograd has counted another version of what lies there."""

    def __call__(self, x: Tensor) -> Tensor:
        return self.results.setdefault(hash((x.data_ptr(), x._version)), F.silu(x))


class OneBuffer:
    """Writes all results into the same memory."""

    def __init__(self) -> None:
        self.buffer = torch.empty(8, 64)

    def __call__(self, x: Tensor) -> Tensor:
        return self.buffer.copy_(F.silu(x).detach())


def changes_its_input(x: Tensor) -> Tensor:
    y = F.silu(x)
    with torch.no_grad():
        x.mul_(1.5)
    return y


def dense_only(x: Tensor) -> Tensor:
    """Takes elements for neighbours, whatever the strides say."""
    return F.silu(x.as_strided(x.shape, (x.shape[1], 1)))


def later(x: Tensor) -> Tensor:
    """Returns before the work is done."""
    y = torch.zeros_like(x)
    values = x.detach()

    def work() -> None:
        time.sleep(0.3)
        y.copy_(F.silu(values))

    threading.Thread(target=work).start()
    return y


def rounded(x: Tensor) -> Tensor:
    return F.silu(x.half()).float()


@pytest.mark.parametrize(
    ("cheat", "words"),
    [
        (half_of_the_work, "differ from float64"),
        (Kept(), "other values in the same memory"),
        (KeptUnlessWritten(), "other values in the same memory"),
        (lambda x: F.silu(x.double()), "is of torch.float64, not torch.float32"),
        (lambda x: None, "has 0 results, the reference 1"),
        (OneBuffer(), "changes in a later call"),
        (changes_its_input, "changes its inputs"),
        (dense_only, "inputs with gaps"),
        (later, "differ from float64"),
        (rounded, "differ from float64"),
        (lambda x: F.silu(x)[:4], "has shape"),
        (lambda x: (F.silu(x), x), "has 2 results"),
        (lambda x: F.silu(x) * torch.nan, "differ from float64"),
    ],
)
def test_a_cheat_is_caught(cheat: Callable[..., object], words: str) -> None:
    case = case_of(cheat)
    with torch.no_grad(), pytest.raises(WrongResultError, match=words):
        Gate(case, "forward").check("mine", cheat)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("direction", ["forward", "both"])
def test_what_is_right_passes(dtype: torch.dtype, direction: str) -> None:
    def right(x: Tensor) -> Tensor:
        wide = x.double()
        return (wide * torch.sigmoid(wide)).to(x.dtype)

    case = case_of(right, dtype)
    error = Gate(case, direction).check("mine", right)  # type: ignore[arg-type]
    assert error <= torch.finfo(dtype).eps


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_float64_may_round_otherwise(direction: Literal["forward", "both"]) -> None:
    """Than the reference, which has no error of its own there; less precision is caught."""

    def softmax(x: Tensor) -> Tensor:
        return x.exp() / x.exp().sum(1, keepdim=True)

    def narrow(x: Tensor) -> Tensor:
        return softmax(x.float()).double()

    x = torch.randn(8, 4096, dtype=torch.float64, requires_grad=True)
    case = Case({"mine": softmax, "eager": lambda x: x.softmax(1)}, (x,), compiled=False)
    assert Gate(case, direction).check("mine", softmax) < 1e-12
    with pytest.raises(WrongResultError, match="differ from float64"):
        Gate(case, direction).check("mine", narrow)


def test_a_wrong_gradient_is_caught() -> None:
    def wrong(x: Tensor) -> Tensor:
        return F.silu(x) + (x - x.detach())

    with pytest.raises(WrongResultError, match=r"gradients\[0\]"):
        Gate(case_of(wrong), "both").check("mine", wrong)


class NoForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x)
        return torch.zeros_like(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:  # type: ignore[no-untyped-def, override]
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * s * (1 + x * (1 - s))


def test_a_backward_pass_behind_no_forward_pass_is_caught() -> None:
    with pytest.raises(WrongResultError, match=r"results\[0\]"):
        Gate(case_of(NoForward.apply), "both").check("mine", NoForward.apply)


def test_a_sum_that_was_kept_is_caught() -> None:
    kept: dict[int, Tensor] = {}

    def total(x: Tensor) -> Tensor:
        return kept.setdefault(x.data_ptr(), x.square().sum())

    case = Case({"mine": total, "eager": lambda x: x.square().sum()}, (torch.randn(64),), compiled=False)
    with pytest.raises(WrongResultError, match="other values in the same memory"):
        Gate(case, "forward").check("mine", total)


def test_integers_and_complex_numbers_are_compared() -> None:
    x = torch.randn(8, 64)
    for right, wrong in (
        (lambda x: x.argmax(1), lambda x: x.argmax(1) + 1),
        (torch.fft.fft, lambda x: torch.complex(torch.fft.fft(x).real, torch.zeros_like(x))),
    ):
        case = Case({"mine": wrong, "eager": right}, (x,), compiled=False)
        gate = Gate(case, "forward")
        gate.check("eager", right)
        with pytest.raises(WrongResultError):
            gate.check("mine", wrong)


def test_one_contender_does_not_spoil_another() -> None:
    gate = Gate(case_of(F.silu), "both")
    with pytest.raises(WrongResultError):
        gate.check("mine", lambda x: (F.silu(x), x.detach()))
    assert gate.check("mine", F.silu) < 1e-6


def test_a_module_is_compared_with_a_function() -> None:
    case = Case({"mine": torch.nn.SiLU(), "eager": F.silu}, (torch.randn(8, 16),), compiled=False)
    assert Gate(case, "forward").check("mine", case.contenders["mine"]) < 1e-6


def test_buffers_of_networks_are_compared() -> None:
    class Forgets(torch.nn.BatchNorm1d):
        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x, None, None, self.weight, self.bias, True, 0.0, self.eps)

    case = Case({"mine": Forgets(4), "eager": torch.nn.BatchNorm1d(4)}, (torch.randn(8, 4),), compiled=False)
    with pytest.raises(WrongResultError, match="its buffer running_mean"):
        Gate(case, "forward").check("mine", case.contenders["mine"])


def test_what_stops_working_while_it_is_timed_has_no_figure() -> None:
    calls = 0

    def tires(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return F.silu(x) if calls <= 8 else torch.zeros_like(x)

    with torch.no_grad():
        found = measure(
            case_of(tires), "forward", device="cpu", states=["warm"], peers=None, budget=0.01, seed=0, whole=True
        )
    assert "after it was timed" in found["wrong"]["mine"]
    assert found["seconds"] == {}


def test_a_peer_that_does_not_run_is_left_out() -> None:
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("not on this machine")

    case = case_of(F.silu)
    case = Case({**case.contenders, "broken": broken}, case.inputs, compiled=False)
    found = measure(case, "both", device="cpu", states=["warm"], peers=None, budget=0.01, seed=0, whole=True)
    assert list(found["wrong"]) == ["broken"]
    assert re.fullmatch(
        r"broken does not run: RuntimeError: not on this machine \(.*test_gate\.py:\d+\)", found["wrong"]["broken"]
    )
    assert set(found["seconds"]["warm"]) == {"mine", "eager"}


def test_the_first_call_of_a_compiler_counts_if_it_compiles() -> None:
    def compiled(x: Tensor) -> Tensor:
        counters["inductor"][next(found_in, "nothing")] += 1
        return F.silu(x)

    case = case_of(F.silu)
    case = Case({**case.contenders, "compile": compiled}, case.inputs, compiled=False)
    for where, counted in (("fxgraph_cache_hit", False), ("fxgraph_cache_miss", True), ("nothing", False)):
        found_in = iter([where])
        found = measure(case, "both", device="cpu", states=["warm"], peers=None, budget=0.01, seed=0, whole=True)
        assert ("compile" in found["first_call"]) == counted
        assert set(found["seconds"]["warm"]) == {"mine", "eager", "compile"}


def test_fresh_memory_is_new_to_torch_too() -> None:
    def faults() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(1 << 18).fill_(1.0)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert [faults() for _ in range(50)][-5:] == [0] * 5  # the C library has learned to keep such blocks
    timing.forget_memory("cpu")
    assert faults() > 0


def test_each_state_takes_the_inputs_that_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "last_cache", lambda device: 4096)
    seen: dict[str, set[int]] = {}

    def watching(x: Tensor) -> Tensor:
        seen[state].add(x.data_ptr())
        return F.silu(x)

    case = case_of(watching)  # 2 KiB: six of them are three times the cache
    for state in ("warm", "cold", "fresh"):
        seen[state] = set()
        calls = timing.calls(case, {"mine": watching}, "forward", state, "cpu")
        times = timing.rounds(calls, state, "cpu", 0.01, np.random.default_rng(0))
        assert len(times["mine"]) >= timing.FEWEST_ROUNDS
    assert {state: len(places) for state, places in seen.items()} == {"warm": 1, "cold": 6, "fresh": 1}


def test_memory_of_a_call() -> None:
    x = torch.randn(1 << 18, requires_grad=True)  # 1 MiB
    case = Case({"eager": lambda x: (x * 2).sin()}, (x,))
    call = timing.calls(case, dict(case.contenders), "both", "warm", "cpu")["eager"]
    call()
    memory = timing.memory_of(call, "cpu")
    assert memory.saved == 1 << 20  # what the sine takes, not the input
    assert 2 << 20 <= memory.peak <= 6 << 20


class Net(torch.nn.Sequential):
    def __init__(self, slope: float = 0.0) -> None:
        super().__init__(torch.nn.Linear(16, 16), torch.nn.LeakyReLU(slope), torch.nn.Linear(16, 1))


def test_networks_are_compared_in_float64() -> None:
    torch.manual_seed(0)
    plain, same, other = Net(), Net(), Net(1e-5)
    for net in (same, other):
        net.load_state_dict(plain.state_dict())
    case = Case({"same": same, "eager": plain}, (torch.randn(8, 16),), passes=("both",), compiled=False)
    gate = Gate(case, "both")
    assert gate.check("same", same) < 1e-5
    with pytest.raises(WrongResultError, match="copy in float64"):
        gate.check("other", other)
