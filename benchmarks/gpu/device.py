"""The GPU, or for a dry run its stand-in, and how calls are timed on it.

Calls rotate through sets of buffers that together exceed the L2 several times, so that each finds its data in
memory. They run on one stream, backward passes included: autograd runs a node on the stream of its forward pass.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import torch

Call = Callable[[], Any]
COLD_BYTES = 256 << 20  # of all sets of buffers: several times the largest L2
MOST_SETS = 128


class StandIn:
    """What the check uses of torch.cuda, on the CPU: a graph is replayed by running its calls again."""

    class Stream:
        def wait_stream(self, other: Any) -> None:
            pass

        def synchronize(self) -> None:
            pass

    class CUDAGraph:
        calls: Sequence[Call] = ()

        def replay(self) -> None:
            for call in self.calls:
                call()

    class Event:
        def __init__(self, enable_timing: bool = False) -> None:
            self.at = 0.0

        def record(self) -> None:
            self.at = time.perf_counter()

        def elapsed_time(self, end: Any) -> float:
            return (end.at - self.at) * 1e3 + 1e-6

    def current_stream(self) -> Any:
        return self.Stream()

    def stream(self, stream: Any) -> Any:
        return nullcontext()

    def graph(self, graph: Any, stream: Any = None) -> Any:
        return nullcontext()

    def synchronize(self) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_name(self) -> str:
        return "stand-in"

    def get_device_properties(self, device: int) -> Any:
        return SimpleNamespace(multi_processor_count=1, total_memory=1 << 30)

    def get_device_capability(self) -> tuple[int, int]:
        return 0, 0


DEVICE = "cuda"
cuda: Any = torch.cuda
dry = False


@contextmanager
def stand_in():
    """Within, the CPU stands in for a GPU, and few small things are timed, once."""
    global DEVICE, cuda, dry
    before = DEVICE, cuda, dry
    DEVICE, cuda, dry = "cpu", StandIn(), True
    try:
        yield
    finally:
        DEVICE, cuda, dry = before


def compiled(function: Call) -> Call:
    """torch.compile without its own graphs, whose backward may run several times; nothing in a dry run."""
    if dry:
        return function
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False
    torch._dynamo.reset()
    return torch.compile(function, dynamic=False)


def number_of_sets(touched: int) -> int:
    """How many sets of buffers of so many bytes exceed the caches."""
    return 2 if dry else min(max(-(-COLD_BYTES // touched), 2), MOST_SETS)


def captured(calls: Sequence[Call]) -> tuple[Any, list[Any]]:
    """Record calls as a graph; return it and their results, which its replays overwrite."""
    stream = cuda.current_stream()
    cuda.synchronize()
    graph = cuda.CUDAGraph()
    with cuda.graph(graph, stream=stream):
        results = [call() for call in calls]
    if dry:
        graph.calls = calls
    return graph, results


def _seconds(run: Call, calls: int, repeats: int) -> list[float]:
    """Seconds of each call of `repeats` runs, by the device's clock."""
    events = [[cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    run()
    for start, end in events:
        start.record()
        run()
        end.record()
    cuda.synchronize()
    return [start.elapsed_time(end) * 1e-3 / calls for start, end in events]


def graph_seconds(calls: Sequence[Call]) -> dict[str, float]:
    """Time of a call within a graph: the median of replays, their extremes, and the median of as many again."""
    for call in calls:
        call()
    graph, results = captured(calls)
    once = _seconds(graph.replay, 1, 1)[0]
    repeats = 2 if dry else int(min(max(0.03 / once, 7), 40))
    times = _seconds(graph.replay, len(calls), repeats)
    again = _seconds(graph.replay, len(calls), repeats)
    del graph, results
    return {
        "seconds": statistics.median(times), "fastest": min(times), "slowest": max(times),
        "again": statistics.median(again),
    }  # fmt: skip


def eager_seconds(calls: Sequence[Call]) -> dict[str, float]:
    """Time of a call as Python launches one after the other, by the device's clock."""

    def run() -> None:
        for call in calls:
            call()

    run()
    return {"eager_seconds": statistics.median(_seconds(run, len(calls), 1 if dry else 7))}


def wall_seconds(call: Call, repeats: int) -> dict[str, float]:
    """Time of a call until the device has finished, by the host's clock."""
    times = []
    for _ in range(repeats):
        cuda.synchronize()
        started = time.perf_counter()
        call()
        cuda.synchronize()
        times.append(time.perf_counter() - started)
    return {"seconds": statistics.median(times), "fastest": min(times), "slowest": max(times)}
