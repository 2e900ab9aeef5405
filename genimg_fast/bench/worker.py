"""A process that measures cases and writes a line of JSON for each row: ``python -m genimg_fast.bench.worker``.

The job comes as JSON on stdin; lines go to the file descriptor that it names, out of the way of whatever the
contenders print.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

# The compiler's pool of worker processes would still be starting while the first figures are taken.
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import numpy as np
import torch

from genimg_fast.bench import machine, timing
from genimg_fast.bench.case import REFERENCE, Case, Pass, calls_of, leaves_of
from genimg_fast.bench.catalog import find
from genimg_fast.bench.gate import Gate, WrongResultError, copy_of

STEPS_BEFORE = 4  # steps before one is timed: a CUDA graph is recorded in the fourth


def measure(
    case: Case, direction: Pass, *, device: str, states: list[timing.State], peers: list[str] | None,
    budget: float, seed: int, whole: bool, without: Sequence[str] = (),
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

    Returns:
        What was found, for a row.
    """
    found: dict[str, Any] = {"first_call": {}, "errors": {}, "wrong": {}, "memory": {}, "seconds": {}}
    contenders = {name: function for name, function in case.peers(peers).items() if name not in without}
    gate = Gate(case, direction) if direction != "step" and whole else None
    for name, function in list(contenders.items()):
        try:
            # Of copies: what changes its inputs is not to spoil those of others.
            inputs = [copy_of(t) for t in case.inputs]
            started = time.perf_counter()
            call = calls_of(function, inputs, direction)  # of backward, it runs forward to see what comes of it
            call()
            timing.synchronize(device)
            found["first_call"][name] = time.perf_counter() - started
            if gate is not None:
                found["errors"][name] = gate.check(name, function)
            for _ in range(STEPS_BEFORE - 1 if direction == "step" else 0):
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
    for state in states:
        if direction == "step" and state != "warm":
            continue
        running = timing.calls(case, contenders, direction, state, device)
        share = 0.5 if state == "warm" and len(states) > 1 else 0.5 / max(1, len(states) - 1)
        share = 1.0 if len(states) == 1 or direction == "step" else share
        found["seconds"][state] = timing.rounds(running, state, device, budget * share, generator)
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
        found["seconds"] = {}
    for times in found["seconds"].values():
        for name in found["wrong"]:
            times.pop(name, None)
    return found


def said(error: BaseException) -> str:
    """Say an error in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}" if lines[0] else type(error).__name__


def work(job: dict[str, Any], write: Callable[[dict[str, Any]], None]) -> None:
    """Measure all rows of a job.

    Args:
        job: See :mod:`genimg_fast.bench.runs`.
        write: Takes what was found, row by row.
    """
    if job["threads"]:
        torch.set_num_threads(job["threads"])
    device = job["device"]
    for name in job["names"]:
        started = time.perf_counter()
        try:
            torch._dynamo.reset()
            case = find(name, job["own"]).case(device)
        except ImportError as error:
            write({"name": name, "skipped": str(error)})
            continue
        passes = [direction for direction in case.passes if not job["passes"] or direction in job["passes"]]
        if not leaves_of(case.contenders[REFERENCE], case.inputs):
            passes = [direction for direction in passes if direction != "both"]
        write({"name": name, "passes": passes})
        for direction in passes:
            try:
                found = measure(
                    case, direction, device=device, states=job["states"], peers=job["peers"], budget=job["budget"],
                    seed=job["seed"], whole=job["whole"], without=job["without"].get(f"{name}, {direction}", ()),
                )  # fmt: skip
            except (
                RuntimeError,
                ValueError,
                TypeError,
            ) as error:  # of the reference itself: the next case goes on
                found = {"first_call": {}, "errors": {}, "memory": {}, "seconds": {}}
                found["wrong"] = {case.judged: said(error)}
            write({
                "name": name, "pass": direction, "moved": case.moved.get(direction, 0),
                "operations": case.operations.get(direction, 0), "images": case.images, "judged": case.judged,
                "canary": machine.canary(device), "took": time.perf_counter() - started, **found,
            })  # fmt: skip
            started = time.perf_counter()


def main() -> None:
    """Do the job on stdin."""
    job = json.load(sys.stdin)
    with os.fdopen(job["descriptor"], "w") as lines:

        def write(row: dict[str, Any]) -> None:
            lines.write(json.dumps(row) + "\n")
            lines.flush()

        work(job, write)


if __name__ == "__main__":
    main()
