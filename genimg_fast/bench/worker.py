"""A process that measures cases and writes a line of JSON for each row: ``python -m genimg_fast.bench.worker``.

The job comes as JSON on stdin; lines go to the file descriptor that it names, out of the way of whatever the
contenders print.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

# The compiler's pool of worker processes would still be starting while the first figures are taken.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import numpy as np
import torch
from torch._dynamo.utils import counters

from genimg_fast.bench import machine, timing
from genimg_fast.bench.case import COMPILED, REFERENCE, Case, Pass, Step, calls_of, leaves_of
from genimg_fast.bench.catalog import find
from genimg_fast.bench.entries import said
from genimg_fast.bench.gate import Gate, WrongResultError, copy_of
from genimg_fast.bench.step_gate import SEED, StepGate
from genimg_fast.bench.turns import Turns

STEPS_COMPARED = 3
STEPS_BEFORE = 4  # steps before one is timed: a CUDA graph is recorded in the fourth
STEPS_BEFORE_KNOWN = 2  # on a CPU, in processes after the first


def measure(
    case: Case, direction: Pass, *, device: str, states: list[timing.State], peers: list[str] | None,
    budget: float, seed: int, whole: bool, without: Sequence[str] = (), turns: Turns | None = None,
    place: Sequence[int] = (), again: Callable[[], Case] | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Check and time one pass of a case in this process.

    Args:
        case: The case.
        direction: The pass.
        device: ``"cpu"`` or ``"cuda"``.
        states: Of inputs and memory.
        peers: Names of contenders beside the judged one and the reference; default: all.
        budget: Seconds of timing for all states together.
        seed: Of the order of calls.
        whole: Whether to check the results and measure memory, too, which need be done once.
        without: Contenders that were found to be wrong before.
        turns: With a process that measures another version; the judged contender alone is timed then.
        place: Where in the job this is.
        again: Makes the case again, from the start, which a comparison of training steps needs.

    Returns:
        What was found, for a row.
    """
    found: dict[str, Any] = nothing()
    contenders = {name: function for name, function in case.peers(peers).items() if name not in without}
    if turns is not None:
        contenders = {name: contenders[name] for name in contenders if name == case.judged}
    gate = Gate(case, direction) if direction != "step" and whole else None
    steps = None
    if direction == "step" and whole:
        if again is None:
            raise ValueError("again must be given for training steps, which start from the same weights")
        steps = StepGate(case, again, STEPS_COMPARED if device == "cpu" else STEPS_BEFORE + 2)
    for name, function in list(contenders.items()):
        try:
            # Of copies: what changes its inputs is not to spoil those of others.
            inputs = [copy_of(t) for t in case.inputs]
            torch.manual_seed(SEED)
            before, started = _compilations(), time.perf_counter()
            # Of backward, it runs forward to see what comes of it.
            call = function if isinstance(function, Step) else calls_of(function, inputs, direction)
            first = call()
            timing.synchronize(device)
            anew, from_disk = _compilations() - before
            if not from_disk and (anew or name not in COMPILED):  # otherwise an earlier run, or pass, has paid
                found["first_call"][name] = time.perf_counter() - started
            if gate is not None:
                found["errors"][name] = gate.check(name, function)
            if steps is not None and name != REFERENCE and isinstance(function, Step):
                found["errors"][name] = steps.check(name, function, first)
            before_timing = STEPS_BEFORE if whole or device != "cpu" else STEPS_BEFORE_KNOWN
            for _ in range(before_timing - 1 if direction == "step" else 0):
                call()
        except WrongResultError as error:
            found["wrong"][name] = str(error)
            del contenders[name]
        except Exception as error:  # whatever a contender raises is for the table
            found["wrong"][name] = f"{name} does not run: {said(error)}"
            del contenders[name]
    if case.judged not in contenders:
        return found
    generator = np.random.default_rng(seed)
    for number, state in enumerate(states):
        if direction == "step" and state != "warm":
            continue
        running = timing.calls(case, contenders, direction, state, device)
        share = 0.5 if state == "warm" and len(states) > 1 else 0.5 / max(1, len(states) - 1)
        share = 1.0 if len(states) == 1 or direction == "step" else share
        beside = timing.yardsticks(case, direction, device) if state == "warm" else {}
        times = timing.rounds(
            {**running, **beside}, state, device, budget * share, generator, turns, [*place, number]
        )
        found["yardsticks"] |= {name: times.pop(name) for name in beside}
        found["seconds"][state] = times
        if state == "warm":
            for name, call in running.items():
                if gate is not None:
                    try:
                        gate.check_again(name, call, case.inputs)
                    except WrongResultError as error:
                        found["wrong"][name] = str(error)
                if whole and direction != "step":
                    found["memory"][name] = list(timing.memory_of(call, device))
        del running
    if case.judged in found["wrong"]:
        found["seconds"], found["yardsticks"] = {}, {}
    for times in found["seconds"].values():
        for name in found["wrong"]:
            times.pop(name, None)
    return found


def _compilations() -> np.ndarray:
    """Count what the compiler has made, and what it has found in its caches on disk, since the process began."""
    endings = "cache_miss", "cache_hit"
    return np.array(
        [
            sum(n for group in counters.values() for key, n in group.items() if key.endswith(ending))
            for ending in endings
        ]
    )


def nothing() -> dict[str, dict[str, Any]]:
    """What was found, before anything was."""
    return {key: {} for key in ("first_call", "errors", "wrong", "memory", "seconds", "yardsticks")}


def work(job: dict[str, Any], write: Callable[[dict[str, Any]], None]) -> None:
    """Measure all rows of a job.

    Args:
        job: See :mod:`genimg_fast.bench.runs`.
        write: Takes what was found, row by row.
    """
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    device, turns = job["device"], None
    if job["turns"] is not None:
        reads, writes, number = job["turns"]
        turns = Turns(reads, writes, number, job["seed"])
    for index, name in enumerate(job["names"]):
        started = time.perf_counter()
        try:
            torch._dynamo.reset()
            entry = find(name, job["own"])
            case = entry.case(device)
        except (ImportError, AttributeError) as error:  # a library, or an operator in an older revision
            write({"name": name, "skipped": str(error)})
            continue
        passes = [direction for direction in case.passes if not job["passes"] or direction in job["passes"]]
        if not leaves_of(case.contenders[REFERENCE], case.inputs):
            passes = [direction for direction in passes if direction != "both"]
        if not passes:
            write({"name": name, "skipped": "it has none of the passes wanted, or nothing requires a gradient"})
            continue
        write({"name": name, "passes": passes})
        for number, direction in enumerate(passes):
            try:
                found = measure(
                    case, direction, device=device, states=job["states"], peers=job["peers"], budget=job["budget"],
                    seed=job["seed"], whole=job["whole"], without=job["without"].get(f"{name}, {direction}", ()),
                    turns=turns, place=[index, number], again=partial(entry.case, device),
                )  # fmt: skip
            except (
                RuntimeError,
                ValueError,
                TypeError,
            ) as error:  # of the reference itself: the next case goes on
                found = {**nothing(), "wrong": {case.judged: said(error)}}
            write({
                "name": name, "pass": direction, "moved": case.moved.get(direction, 0),
                "operations": case.operations.get(direction, 0), "images": case.images, "judged": case.judged,
                "canary": _canary(device, turns, [index, number, len(job["states"])]),
                "took": time.perf_counter() - started, **found,
            })  # fmt: skip
            started = time.perf_counter()


def _canary(device: str, turns: Turns | None, place: Sequence[int]) -> float:
    found: list[float] = []

    def work() -> None:
        found.append(machine.canary(device))

    if turns is not None and turns.meet(place):
        turns.pair(work, enough=True)
    else:
        work()
    return found[0]


def serve(work: Callable[[dict[str, Any], Callable[[dict[str, Any]], None]], None]) -> None:
    """Do the job on stdin, and write a line for each row where it says."""
    job = json.load(sys.stdin)
    with os.fdopen(job["descriptor"], "w") as lines:

        def write(row: dict[str, Any]) -> None:
            lines.write(json.dumps(row) + "\n")
            lines.flush()

        work(job, write)


if __name__ == "__main__":
    serve(work)
