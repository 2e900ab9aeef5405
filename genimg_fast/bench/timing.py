"""Times and memory of contenders in this process.

Rounds: each times every contender once, in an order drawn anew, so that what slows the machine slows all of them.
Each timed call follows one of the same contender, unless that takes long: what another left in the caches and in
the allocator's free lists is not part of the comparison. Inputs and memory are in one of three states:

* warm: the same inputs again and again, in whatever cache holds them; memory of results is reused.
* cold: inputs in turn, of three times the last cache's size together.
* fresh: as warm, and memory for the results comes from the operating system (or the driver).
"""

import ctypes
import gc
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from genimg_fast import _native
from genimg_fast.bench.case import Case, Pass, calls_of
from genimg_fast.bench.machine import last_cache
from genimg_fast.bench.turns import Turns

State = Literal["warm", "cold", "fresh"]
MOST_BYTES = 1 << 30  # of inputs that are cold
MOST_SETS = 256
FEWEST_ROUNDS, MOST_ROUNDS, MOST_PAIRS = 5, 100, 300
_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
LONG = 0.1  # seconds of a call, of which nothing from before it is a part
MEMORY, ARITHMETIC = "yardstick of memory", "yardstick of arithmetic"
MOST_YARDSTICK = 64 << 20  # bytes
Call = Callable[[], Any]


class Memory(NamedTuple):
    """Bytes that a call takes: at its peak beyond what was there, and kept for backward beside the inputs."""

    peak: int
    saved: int


def synchronize(device: str) -> None:
    """Wait for all streams of the device."""
    if device != "cpu":
        torch.cuda.synchronize()


def seconds_of(call: Call, device: str) -> float:
    """Time one call, to the end of all that it started on the device."""
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - started


def sets_of(case: Case, state: State, device: str) -> list[list[Any]]:
    """Make the sets of inputs that are taken in turn: one, or as many as no cache holds."""
    size = sum(t.nbytes for t in case.inputs if isinstance(t, Tensor))
    if state != "cold" or size == 0:
        return [list(case.inputs)]
    count = min(-(-3 * last_cache(device) // size), MOST_BYTES // size, MOST_SETS)
    copies = [[_copy(t) for t in case.inputs] for _ in range(max(1, count) - 1)]
    return [list(case.inputs), *copies]


def _copy(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return torch.empty_like(value).copy_(value.detach()).requires_grad_(value.requires_grad)


def calls(
    case: Case, contenders: dict[str, Callable[..., Any]], direction: Pass, state: State, device: str
) -> dict[str, Call]:
    """Make for each contender a call that takes the next set of inputs."""
    sets = [()] if direction == "step" else sets_of(case, state, device)
    found: dict[str, Call] = {}
    for name, function in contenders.items():
        several = [calls_of(function, inputs, direction) for inputs in sets]
        found[name] = several[0] if len(several) == 1 else _in_turn(several)
    return found


def yardsticks(case: Case, direction: Pass, device: str) -> dict[str, Call]:
    """Make calls that no version of the package changes, for a comparison of results of different times.

    They allocate nothing: new memory may take twice the time in the next process.

    Args:
        case: The case, whose size they have.
        direction: The pass.
        device: ``"cpu"`` or ``"cuda"``.

    Returns:
        A pass over as many bytes as the case has to move, and a product of matrices.
    """
    moved = case.moved.get(direction, 0) or 2 * sum(t.nbytes for t in case.inputs if isinstance(t, Tensor))
    x = torch.ones(max(1 << 14, min(moved, MOST_YARDSTICK)) // 8, device=device)
    y = torch.empty_like(x)
    a = torch.ones(128, 128, device=device)
    b = torch.empty_like(a)
    return {
        MEMORY: torch.no_grad()(partial(torch.mul, x, 0.5, out=y)),
        ARITHMETIC: torch.no_grad()(partial(torch.mm, a, a, out=b)),
    }


def _in_turn(several: Sequence[Call]) -> Call:
    turns = cycle(several)
    return lambda: next(turns)()


def rounds(
    calls: dict[str, Call], state: State, device: str, budget: float, generator: np.random.Generator,
    turns: Turns | None = None, place: Sequence[int] = (),
) -> dict[str, list[float]]:  # fmt: skip
    """Time contenders in rounds.

    Args:
        calls: Contenders.
        state: Of inputs and memory.
        device: ``"cpu"`` or ``"cuda"``.
        budget: Seconds for all of it, beyond which no round begins once there are enough.
        generator: Draws the orders.
        turns: With another process that times the same; the budget is for both.
        place: Where in the job this is, at which that process is waited for.

    Returns:
        Seconds of each round, by contender.
    """
    names = list(calls)
    times: dict[str, list[float]] = {name: [] for name in names}
    first = {name: seconds_of(call, device) for name, call in calls.items()}
    long = {name: seconds > LONG for name, seconds in first.items()}
    for name in names:
        for _ in range(0 if long[name] else 5):  # until caches, branches and the allocator know it
            first[name] = seconds_of(calls[name], device)
    fewest = max(FEWEST_ROUNDS, min(30, int(0.1 / sum(first.values()))))
    together = turns if turns is not None and turns.meet(place) else None
    most = MOST_ROUNDS if together is None else MOST_PAIRS
    ends, done = time.perf_counter() + budget, 0

    def work() -> None:
        for index in generator.permutation(len(names)):
            name = names[index]
            if not long[name]:
                calls[name]()
            if state == "fresh":
                forget_memory(device)
            times[name].append(float(f"{seconds_of(calls[name], device):.4g}"))  # as in a file

    with _without_collections():
        while True:
            done += 1
            enough = done >= most or (done >= fewest and time.perf_counter() > ends)
            if together is not None:
                enough = together.pair(work, enough)
            else:
                work()
            if enough:
                break
    return times


@contextmanager
def _without_collections() -> Iterator[None]:
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def forget_memory(device: str) -> None:
    """Give free memory back: of this package's large results, of torch's in the C library, and of a GPU.

    The C library keeps what was freed in blocks of up to 32 MiB for the next call, once some were.
    """
    _native.empty_cache()
    if _trim is not None:
        _trim(0)
    if device != "cpu":
        torch.cuda.empty_cache()


def memory_of(call: Call, device: str) -> Memory:
    """Measure what one call of forward, or forward and backward, takes.

    Args:
        call: The call, which has run before.
        device: ``"cpu"`` or ``"cuda"``.

    Returns:
        Bytes at the peak, and those kept for backward in tensors that the call made.
    """
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if not t.is_leaf or not t.requires_grad:
            kept[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        result = call()
        del result
    return Memory(peak_bytes(call, device), sum(kept.values()))


@contextmanager
def _quietly() -> Iterator[None]:
    """Send stderr nowhere: the profiler writes lines of its own there, from C++."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def peak_bytes(call: Call, device: str) -> int:
    """Measure the memory that one call allocates at its peak, beyond what was there before."""
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    cpu = torch.profiler.ProfilerActivity.CPU
    _native.take_output_peak()
    before = _native.take_output_peak()
    with _quietly(), torch.profiler.profile(activities=[cpu], profile_memory=True) as profile:
        call()
    current = peak = 0
    events = profile.profiler.kineto_results.events()
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    # Our large outputs lie in memory that the profiler does not see. The two peaks need not coincide: their sum is
    # an upper bound.
    return peak + _native.take_output_peak() - before
