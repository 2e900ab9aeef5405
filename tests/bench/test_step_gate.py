"""A training step that trains otherwise gets no figure."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from genimg_fast.bench import Case, Step, WrongResultError
from genimg_fast.bench.step_gate import StepGate, seeded_call
from genimg_fast.bench.worker import measure


def training(
    batch: int = 64, optimize: bool = True, lr: float = 1e-3, forget: bool = False, noise: bool = True,
    precision: torch.dtype = torch.float32,
) -> Step:  # fmt: skip
    """A step of an autoencoder that removes noise, or a faulty one."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.LeakyReLU(0.2), nn.Linear(32, 16))
    clean = torch.randn(64, 16)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    reports: list[torch.Tensor] = []

    def step() -> dict[str, torch.Tensor]:
        noisy = clean + (0.1 * torch.randn(64, 16) if noise else 0)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = (net(noisy[:batch]) - clean[:batch]).square().mean()
        loss.backward()
        if optimize:
            optimizer.step()
        reports.append(loss.detach())
        return {"loss": reports[0] if forget else loss.detach()}

    return Step(step, [net])


def case_of(make: Callable[[], Step], precision: torch.dtype = torch.float32) -> Case:
    return Case({"mine": make(), "eager": training()}, passes=("step",), precision=precision)


def checked(make: Callable[[], Step], precision: torch.dtype = torch.float32) -> float:
    case = case_of(make, precision)
    gate = StepGate(case, lambda: case_of(make, precision), 3)
    mine = case.contenders["mine"]
    assert isinstance(mine, Step)
    return gate.check("mine", mine, seeded_call(mine))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_what_trains_alike_passes(precision: torch.dtype) -> None:
    assert checked(partial(training, precision=precision), precision) < 0.05


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("cheat", "words"),
    [
        ({"optimize": False}, "differ"),
        ({"forget": True}, "mine: reports after 3 steps differ from those of eager"),
        ({"batch": 32}, "mine: reports after 3 steps differ from those of eager"),
        ({"lr": 2e-3}, "differ"),
        ({"noise": False}, "differ"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_cheat_is_caught(cheat: dict[str, Any], words: str, precision: torch.dtype) -> None:
    with pytest.raises(WrongResultError, match=words):
        checked(partial(training, precision=precision, **cheat), precision)


def test_less_precision_than_the_case_says_is_caught() -> None:
    with pytest.raises(WrongResultError, match="differ"):
        checked(partial(training, precision=torch.bfloat16))


def test_of_numbers_with_names_those_count_that_both_report() -> None:
    def make(**cheat: Any) -> Step:
        step = training(**cheat)
        return Step(lambda: {"more": 1.0, **step.run()}, step.networks)

    assert checked(make) == 0
    with pytest.raises(WrongResultError, match="mine: reports after 3 steps differ"):
        checked(partial(make, batch=32))


def test_an_optimizer_that_is_skipped_is_seen_in_the_weights() -> None:
    """Even where what is reported is the reference's."""

    def cheat() -> Step:
        right, idle = training(), training(optimize=False)
        return Step(right.run, idle.networks)

    with pytest.raises(WrongResultError, match="weights of network 0 after 3 steps differ"):
        checked(cheat)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Step(lambda: [1.0, 2.0], training().networks), "mine reports 2 numbers a step, eager loss"),
        (lambda: Step(lambda: {"error": 1.0}, training().networks), "mine reports error a step, eager loss"),
        (lambda: Step(lambda: float("nan"), training().networks), "mine: reports after 3 steps differ"),
        (lambda: Step(lambda: 1.0, [nn.Linear(2, 2)]), "mine trains networks of other shapes"),
    ],
)
def test_other_reports_and_networks_are_caught(make: Callable[[], Step], words: str) -> None:
    with pytest.raises(WrongResultError, match=words):
        checked(make)


def test_what_cannot_be_compared_is_said() -> None:
    bare = Case({"mine": lambda: 1.0, "eager": training()}, passes=("step",))
    with pytest.raises(ValueError, match=r"mine, which is judged, must be a gf\.bench\.Step"):
        StepGate(bare, lambda: bare, 3)
    silent = Case({"eager": Step(lambda: None, training().networks)}, passes=("step",))
    step = silent.contenders["eager"]
    assert isinstance(step, Step)
    with pytest.raises(ValueError, match="eager must report numbers that are finite"):
        StepGate(silent, lambda: silent, 3).check("eager", step, None)


@pytest.mark.parametrize("cheat", [{}, {"batch": 32}])
def test_a_step_is_compared_with_what_it_has_to_train_like(cheat: dict[str, Any]) -> None:
    """Where the reference draws other noise."""
    step = training(**cheat)
    mine = Step(step.run, step.networks, like=training)
    case = Case({"mine": mine, "eager": training(noise=False)}, passes=("step",))
    gate, first = StepGate(case, lambda: case, 3), seeded_call(mine)
    if not cheat:
        assert gate.check("mine", mine, first) == 0
        return
    with pytest.raises(WrongResultError, match="mine: reports after 3 steps differ"):
        gate.check("mine", mine, first)


def test_a_wrong_step_has_no_figure() -> None:
    def make() -> Case:
        contenders = {"mine": training(), "cheat": training(optimize=False), "eager": training()}
        return Case(contenders, passes=("step",))

    options: dict[str, Any] = {"device": "cpu", "states": ["warm"], "peers": None, "budget": 0.01, "seed": 0}
    found = measure(make(), "step", whole=True, again=make, **options)
    assert list(found["wrong"]) == ["cheat"]
    assert set(found["seconds"]["warm"]) == {"mine", "eager"}
    assert found["errors"] == {"mine": 0}
