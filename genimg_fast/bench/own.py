"""The user's own model or function: plain against fused, in three lines."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn

from genimg_fast._fuse import fuse, unfuse
from genimg_fast._native import backend
from genimg_fast.bench import machine, timing
from genimg_fast.bench.case import Case
from genimg_fast.bench.catalog import find
from genimg_fast.bench.entries import OURS
from genimg_fast.bench.gate import Gate, WrongResultError
from genimg_fast.bench.results import Row
from genimg_fast.bench.statistics import Ratio
from genimg_fast.bench.worker import measure
from genimg_fast.ops._checks import check_number

PARTS = 5  # of a measurement in one process


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found; ``print`` it.

    Attributes:
        row: All figures.
        unsound: What speaks against them.

    Example:
        >>> import torch, genimg_fast as gf
        >>> net = torch.nn.Sequential(torch.nn.BatchNorm2d(8), torch.nn.ReLU())
        >>> found = gf.bench.compare(net, torch.randn(4, 8, 16, 16), seconds=0.2)
        >>> found.ratio().verdict in ("faster", "slower", "same", "cannot tell")
        True
    """

    row: Row
    unsound: list[str]

    def ratio(self, peer: str = "eager") -> Ratio:
        """Tell by how many times the fused version is faster than another.

        Args:
            peer: ``"eager"`` or ``"compile"``.

        Returns:
            The ratio, with its interval and verdict.

        Raises:
            KeyError: If there is no such version.
        """
        found = self.row.ratio(peer)
        if found is None:
            raise KeyError(f"{peer!r} was not timed; there are {', '.join(self.row.peers())}")
        return found

    def __str__(self) -> str:
        lines = []
        for peer in self.row.peers():
            ratio, theirs = self.ratio(peer), self.row.median(peer) or 0.0
            lines.append(
                f"{self.row.pass_}: {(self.row.median() or 0) * 1e3:.3f} ms fused, {theirs * 1e3:.3f} ms {peer}: "
                f"{ratio} times as fast, {ratio.verdict}"
            )
        ours, theirs_too = self.row.memory.get(OURS), self.row.memory.get("eager")
        if ours and theirs_too:
            lines.append(f"memory at the peak: {ours[0] / 1e6:.1f} MB fused, {theirs_too[0] / 1e6:.1f} MB eager")
        lines += [f"unsound: {words}" for words in self.unsound]
        return "\n".join(lines)


def compare(
    module_or_function: Callable[..., Any], inputs: Tensor | Sequence[Any], *,
    direction: Literal["forward", "both"] = "both", compiled: bool = False, seconds: float = 3.0,
) -> Comparison:  # fmt: skip
    """Time a model as it is and fused, after a look whether both compute the same.

    Args:
        module_or_function: A module, whose copy is fused by :func:`genimg_fast.fuse`; or a function that calls
            operators of this package, which is timed with their kernels and with plain PyTorch.
        inputs: The tensor that it takes, or a list of what it takes, on the device to measure on.
        direction: ``"forward"``, or ``"both"``: forward and backward.
        compiled: Whether to time ``torch.compile`` of the plain one, too.
        seconds: Of timing; more than 0.

    Returns:
        The comparison, of this process alone; ``genimg-fast bench FILE.py:FUNCTION`` takes several.

    Raises:
        WrongResultError: If the fused one does not compute the same, or if PyTorch's own result is wrong, as a
            gradient of its instance norm may be; the message says which.
        ValueError: If there is no such direction, nothing that a gradient could be taken of, or no time.
        TypeError: If the first is nothing that can be called, ``inputs`` are neither a tensor nor a list, or
            ``seconds`` is no number.

    Example:
        >>> import torch, genimg_fast as gf
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
        >>> print(gf.bench.compare(net, torch.randn(2, 3, 16, 16), seconds=0.2))  # doctest: +ELLIPSIS
        both: ... ms fused, ... ms eager: ... times as fast, ...
        memory at the peak: ... MB fused, ... MB eager...
    """
    if not callable(module_or_function):
        kind = type(module_or_function).__name__
        raise TypeError(f"module_or_function must be a module or a function, got {kind}")
    if not isinstance(inputs, (Tensor, list, tuple)):
        raise TypeError(f"inputs must be a tensor, or a list of what it takes, got {type(inputs).__name__}")
    if direction not in ("forward", "both"):
        raise ValueError(f"direction must be 'forward' or 'both', got {direction!r}")
    seconds = check_number(seconds, "seconds")
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds must be finite and more than 0, got {seconds}")
    given = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    device = next((t.device.type for t in given if isinstance(t, Tensor)), "cpu")
    if isinstance(module_or_function, nn.Module):
        plain = unfuse(copy.deepcopy(module_or_function))
        contenders: dict[str, Callable[..., Any]] = {OURS: fuse(copy.deepcopy(module_or_function)), "eager": plain}
    else:
        contenders = {OURS: module_or_function, "eager": partial(_plainly, module_or_function)}
    case = Case(contenders, given, passes=(direction,), compiled=compiled)
    contenders = case.peers()
    watch, canaries = machine.Watch(), [machine.canary(device)]
    gate = Gate(case, direction)
    row = Row("", direction, OURS)
    for name, function in contenders.items():
        try:
            row.errors[name] = gate.check(name, function)
        except WrongResultError as error:
            if name == OURS:
                raise
            found = "PyTorch's own result is wrong, and the fused one, which is right, cannot be compared with it"
            raise WrongResultError(f"{found}: {error}") from error
    generator = np.random.default_rng(0)
    calls = timing.calls(case, contenders, direction, "warm", device)
    # Parts, each as if it were a process: what drifts slowly shows as a wider interval.
    for _ in range(PARTS):
        for name, times in timing.rounds(calls, "warm", device, seconds / PARTS, generator).items():
            row.seconds.setdefault("warm", {}).setdefault(name, []).append(times)
    for name, call in calls.items():
        gate.check_again(name, call, case.inputs)
    row.memory = {name: list(timing.memory_of(call, device)) for name, call in calls.items()}
    canaries.append(machine.canary(device))
    return Comparison(row, machine.unsound(watch.quiet(), canaries))


def quick(device: str, names: Sequence[str], seconds: float = 1.0) -> Iterator[Row]:
    """Time a few cases of the package against eager PyTorch, forward and backward, in this process.

    Args:
        device: ``"cpu"`` or ``"cuda"``.
        names: Of the cases.
        seconds: Of timing, for each.

    Yields:
        A row for each case, none for one whose results are wrong.
    """
    for name in names:
        case = find(name).case(device)
        row = Row(name, "both", case.judged)
        for part in range(PARTS):  # as if each were a process: what drifts slowly shows as a wider interval
            found = measure(
                case,
                "both",
                device=device,
                states=["warm"],
                peers=[],
                budget=seconds / PARTS,
                seed=part,
                whole=part == 0,
            )
            for contender, times in found["seconds"].get("warm", {}).items():
                row.seconds.setdefault("warm", {}).setdefault(contender, []).append(times)
        if row.ratio("eager") is not None:
            yield row


def _plainly(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    with backend("reference"):
        return function(*args, **options)
