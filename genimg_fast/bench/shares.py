"""Where the time of training steps goes, by kind of operator: ``python -m genimg_fast.bench.shares``.

A pass of its own, in a process of its own, under ``torch.profiler``, which slows a step down: what is timed is
not profiled, and what is profiled is not timed. The job comes as JSON on stdin; lines go to the file descriptor
that it names, as in :mod:`genimg_fast.bench.worker`.
"""

import re
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from genimg_fast.bench import timing
from genimg_fast.bench.case import REFERENCE
from genimg_fast.bench.catalog import find
from genimg_fast.bench.worker import STEPS_BEFORE, said, serve

OTHER = "other"
# What an operator, a node of autograd, or a kernel of a GPU is called, lower case; the first that fits counts.
# The last words of a line are those of cuDNN's, cuBLAS's and ATen's kernels.
KINDS = {
    "optimizer": re.compile(r"^optimizer|adam|multi_tensor"),
    "recurrent layers": re.compile(r"\brnn\b|\bgru\b|lstm|rnn_tanh|recurrent|cell_update"),
    "losses": re.compile(r"cross_?entropy|mse_?loss|l1_?loss|softplus|log_?sigmoid|reparameterize_kl"),
    "norms and activations": re.compile(
        r"batch_?norm|group_?norm|instance_?norm|layer_?norm|relu|silu|tanh|sigmoid|threshold_backward"
        r"|\bbn_|reduce_moments|apply_gradients|normalize"
    ),
    "convolutions and products": re.compile(
        r"conv|linear|addmm|matmul|\bb?mm\b|mmbackward|[nt][nt]_gemm|gemm|xmma|cutlass|wgrad|dgrad|fprop|sm\d\d_"
    ),
}
FUSED = ("norms and activations", "recurrent layers")  # what this package has operators for
LEAST_SECONDS, FEWEST_ROUNDS, MOST_ROUNDS = 1.5, 3, 30


def kind_of(name: str) -> str | None:
    """Find the kind of an operator by its name, or None."""
    lower = name.lower()
    return next((kind for kind, words in KINDS.items() if words.search(lower)), None)


def seconds_by_kind(
    steps: dict[str, Callable[[], Any]], device: str, seconds: float = LEAST_SECONDS
) -> dict[str, dict[str, float]]:
    """Profile steps, in turns.

    What an operator calls counts for the outermost one that has a kind: the copies of a convolution are its own.
    On a GPU the kernels' time counts, and their names. What is left of a step, Python's own time included, is
    ``"other"``.

    Args:
        steps: Functions that take a step, by contender; they have run before.
        device: ``"cpu"`` or ``"cuda"``.
        seconds: After which no round begins.

    Returns:
        Seconds of a step by kind, medians over rounds, by contender.

    Example:
        >>> import torch
        >>> from genimg_fast.bench.shares import seconds_by_kind
        >>> x = torch.randn(64, 64)
        >>> found = seconds_by_kind({"mine": lambda: (x @ x).relu()}, "cpu", seconds=0.01)
        >>> found["mine"]["convolutions and products"] > 0
        True
    """
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in steps}
    ends = time.perf_counter() + seconds
    for done in range(MOST_ROUNDS):
        if done >= FEWEST_ROUNDS and time.perf_counter() > ends:
            break
        for name, step in steps.items():
            rounds[name].append(_profiled(step, device))
    return {
        name: {kind: statistics.median(each[kind] for each in found) for kind in (*KINDS, OTHER)}
        for name, found in rounds.items()
    }


def gain_of(theirs: dict[str, float], ours: dict[str, float], kinds: Iterable[str]) -> float:
    """Predict by how many times a step is faster if kinds of operators take our time, and all else theirs.

    Amdahl 1967, https://doi.org/10.1145/1465482.1465560.

    Args:
        theirs: Seconds by kind.
        ours: Likewise.
        kinds: Those that are replaced.

    Returns:
        The gain.

    Example:
        >>> from genimg_fast.bench.shares import gain_of
        >>> round(gain_of({"norms": 1.0, "other": 9.0}, {"norms": 0.2, "other": 8.0}, ["norms"]), 3)
        1.087
    """
    whole = sum(theirs.values())
    return whole / (whole - sum(theirs[kind] - ours[kind] for kind in kinds))


def _profiled(step: Callable[[], Any], device: str) -> dict[str, float]:
    """Seconds of one step, by kind."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device != "cpu" else [])]
    with timing._quietly(), profile(activities=activities) as found:
        whole = timing.seconds_of(step, device)
    totals = {**dict.fromkeys(KINDS, 0.0), OTHER: 0.0}
    for event in found.events() or ():
        if device != "cpu":
            if event.device_type != DeviceType.CPU:
                totals[kind_of(event.name) or OTHER] += event.device_time_total * 1e-6
        elif event.cpu_parent is None:
            _add(event, None, totals)
    totals[OTHER] += max(0.0, whole - sum(totals.values()))
    return totals


def _add(event: FunctionEvent, outer: str | None, totals: dict[str, float]) -> None:
    kind = outer or kind_of(event.name)
    totals[kind or OTHER] += event.self_cpu_time_total * 1e-6
    for child in event.cpu_children:
        _add(child, kind, totals)


def work(job: dict[str, Any], write: Callable[[dict[str, Any]], None]) -> None:
    """Profile the steps of a job, ours and the reference, and measure their memory.

    Args:
        job: Names, device and threads.
        write: Takes what was found, step by step.
    """
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    device = job["device"]
    for name in job["names"]:
        try:
            case = find(name, job["own"]).case(device)
        except ImportError:  # the timed pass says it
            continue
        if "step" not in case.passes:
            continue
        found: dict[str, Any] = {"name": name, "pass": "step", "memory": {}}
        steps: dict[str, Callable[[], Any]] = {}
        for contender in dict.fromkeys((case.judged, REFERENCE)):
            step = case.contenders[contender]
            try:
                # CUDA graphs are recorded in the fourth step; on a CPU the second one has all of Adam's memory.
                for _ in range(2 if device == "cpu" else STEPS_BEFORE):
                    step()
                found["memory"][contender] = [timing.peak_bytes(step, device), 0]
                steps[contender] = step
            except Exception as error:  # whatever a contender raises: the timed pass says it
                print(f"{name}: {contender} was not profiled: {said(error)}", file=sys.stderr)
        found["kinds"] = seconds_by_kind(steps, device)
        write(found)


if __name__ == "__main__":
    serve(work)
