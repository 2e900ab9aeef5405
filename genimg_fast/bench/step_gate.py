"""No figure for a training step that trains otherwise than the reference does.

1. A contender takes a few steps from the same weights and of the same noise: PyTorch's global generator is seeded
   before each of them. What the steps report, and the weights and buffers after the last one, are compared with
   those of the reference, or of what the contender has to train like, if the reference draws its noise otherwise.
   Of numbers with names those count that both report, of others all.
2. Rounding alone drives two trainings apart, and an optimizer that divides by the size of a gradient makes much of
   little. How far, is measured: the reference takes the same steps from weights that are off by a unit in the last
   place of bfloat16, if that is what contenders compute in, or 16 units of float32: there it takes a rare event,
   an activation or a gradient that changes its sign, to drive them apart, and one unit may meet none. Eight times
   the distance is allowed, but at least 1e-4 and at most 0.1 of what is reported, at least 0.01 and at most 0.98
   of how far weights and buffers have come: without a step of the optimizer it is 1.

A step that skips the optimizer, reports an old loss, or trains on a part of the batch is much farther off.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genimg_fast.bench.case import REFERENCE, Case, Step
from genimg_fast.bench.gate import WrongResultError

FACTOR = 8.0
REPORTS, STATES = (1e-4, 0.1), (0.01, 0.98)  # the least and the most that is allowed
NUDGE = 16 * torch.finfo(torch.float32).eps
SEED = 1


_Report = dict[tuple[str, int], float] | list[float]


class _Course(NamedTuple):
    """What a few steps reported, and each network's weights and buffers after them."""

    reports: list[_Report]
    states: list[list[Tensor]]


class _Right(NamedTuple):
    """How to train: the course, the states before it, and what distances are allowed."""

    course: _Course
    before: list[list[Tensor]]
    allowed: list[float]


class StepGate:
    """Knows how contenders have to train.

    Args:
        case: A case of the pass ``"step"``.
        again: Makes it again, from the start.
        steps: How many are compared.

    Raises:
        ValueError: If the judged contender is no :class:`Step`, or has nothing to be compared with.
    """

    def __init__(self, case: Case, again: Callable[[], Case], steps: int) -> None:
        self.steps, self._precision = steps, case.precision
        judged, reference = case.contenders[case.judged], case.contenders[REFERENCE]
        if not isinstance(judged, Step):
            raise ValueError(f"of the pass 'step', {case.judged}, which is judged, must be a gf.bench.Step")
        if judged.like is None and not isinstance(reference, Step):
            raise ValueError(f"of the pass 'step', {REFERENCE} must be a gf.bench.Step")

        def fresh() -> Step:
            step = again().contenders[REFERENCE]
            assert isinstance(step, Step)
            return step

        self._fresh = fresh
        self._reference: _Right | None = None

    def _right(self, step: Step) -> _Right:
        """Find how a contender has to train, once for all that have to train like the reference."""
        if step.like is not None:
            return self._train(step.like)
        self._reference = self._reference or self._train(self._fresh)
        return self._reference

    def _train(self, make: Callable[[], Step]) -> _Right:
        plain = make()
        before = _states(plain)
        course = self._course(plain, seeded_call(plain))
        reported = [number for report in course.reports for number in _values(report)]
        if not reported or not all(map(math.isfinite, reported)):
            raise ValueError(f"{REFERENCE} must report numbers that are finite, got {course.reports[0]}")
        nudged = make()
        _nudge(nudged, self._precision)
        distances = _distances(self._course(nudged, seeded_call(nudged)), course, before)
        allowed = [
            min(max(FACTOR * distance, least), most)
            for distance, (least, most) in zip(distances, [REPORTS] + [STATES] * len(before), strict=True)
        ]
        return _Right(course, before, allowed)

    def check(self, name: str, step: Step, first: Any) -> float:
        """Compare a contender's steps with what is right.

        Args:
            name: Its name.
            step: The contender, which has taken its first step, see :func:`seeded_call`.
            first: What that reported.

        Returns:
            The largest distance of what is reported, relative to the reference's.

        Raises:
            WrongResultError: If it trains otherwise.
            ValueError: If the reference reports nothing, or what is not finite.
        """
        right, course = self._right(step), self._course(step, first)
        common = {len(_pairs(*both)) for both in zip(course.reports, right.course.reports, strict=True)}
        if len(common) != 1 or common == {0}:
            words = [_said(c.reports) for c in (course, right.course)]
            raise WrongResultError(f"{name} reports {words[0]} a step, {REFERENCE} {words[1]}")
        shapes, others = ([[t.shape for t in state] for state in c.states] for c in (course, right.course))
        if shapes != others:
            raise WrongResultError(f"{name} trains networks of other shapes than {REFERENCE}")
        distances = _distances(course, right.course, right.before)
        names = ["reports"]
        for number in range(len(step.networks)):
            names += [f"weights of network {number}", f"buffers of network {number}"]
        for what, distance, allowed in zip(names, distances, right.allowed, strict=True):
            if not distance <= allowed:  # NaN is not
                raise WrongResultError(
                    f"{name}: {what} after {self.steps} steps differ from those of {REFERENCE} by {distance:.1e}, "
                    f"allowed is {allowed:.1e}"
                )
        return distances[0]

    def _course(self, step: Step, first: Any) -> _Course:
        """Take the steps that follow the first one."""
        reports = [_report(first)]
        for number in range(1, self.steps):
            reports.append(_report(seeded_call(step, number)))
        return _Course(reports, _states(step))


def _distances(course: _Course, right: _Course, before: list[list[Tensor]]) -> list[float]:
    """Of reports, relative to each one's size; of weights and buffers, relative to how far they have come."""
    steps = [_pairs(*both) for both in zip(course.reports, right.reports, strict=True)]
    reports = 0.0
    for pairs in zip(*steps, strict=True):  # of one number, step by step
        scale = max(abs(theirs) for _, theirs in pairs) or 1.0
        reports = max(
            reports, *(abs(ours - theirs) / scale if math.isfinite(ours) else math.inf for ours, theirs in pairs)
        )
    networks = [
        _norm(ours, theirs) / (_norm(start, theirs) or 1.0)
        for ours, theirs, start in zip(course.states, right.states, before, strict=True)
    ]
    return [reports, *networks]


def seeded_call(step: Callable[[], Any], number: int = 0) -> Any:
    """Take a step with the noise of its number.

    Args:
        step: The step.
        number: How many were taken before.

    Returns:
        What it reports.
    """
    torch.manual_seed(SEED + number)
    return step()


def _nudge(step: Step, precision: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for network in step.networks:
            for weight in network.parameters():
                signs = torch.rand(weight.shape, generator=generator).sub_(0.5).sign_().to(weight.device)
                weight.mul_(1 + max(torch.finfo(precision).eps, NUDGE) * signs)


def _states(step: Step) -> list[list[Tensor]]:
    """Copies of the weights and of the buffers, network by network."""
    tensors = [group for network in step.networks for group in (network.parameters(), network.buffers())]
    return [[t.detach().to(torch.float64, copy=True) for t in group if t.is_floating_point()] for group in tensors]


def _norm(a: list[Tensor], b: list[Tensor]) -> float:
    return math.sqrt(sum((x - y).square().sum().item() for x, y in zip(a, b, strict=True)))


def _report(value: Any) -> _Report:
    """The numbers of a report, by name if it has names."""
    if not isinstance(value, Mapping):
        return _numbers(value)
    return {(str(name), i): x for name, part in value.items() for i, x in enumerate(_numbers(part))}


def _said(reports: list[_Report]) -> str:
    """Say what reports hold: names, or how many numbers."""
    longest = max(reports, key=len)
    if isinstance(longest, dict):
        return ", ".join(dict.fromkeys(name for name, _ in longest)) or "nothing"
    return f"{len(longest)} number{'s' * (len(longest) != 1)}"


def _values(report: _Report) -> list[float]:
    return list(report.values()) if isinstance(report, dict) else report


def _pairs(ours: _Report, theirs: _Report) -> list[tuple[float, float]]:
    """Numbers of the same name, of two reports; in their order, if one has no names and both have as many."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        return [(ours[name], number) for name, number in theirs.items() if name in ours]
    both = _values(ours), _values(theirs)
    return list(zip(*both, strict=True)) if len(both[0]) == len(both[1]) else []


def _numbers(report: Any) -> list[float]:
    if isinstance(report, Mapping):
        report = list(report.values())
    if isinstance(report, (list, tuple)):
        return [number for part in report for number in _numbers(part)]
    if isinstance(report, Tensor):
        return [float(value) for value in report.detach().double().flatten().tolist()]
    return [float(report)] if isinstance(report, (int, float)) else []
