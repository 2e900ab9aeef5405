"""Checks and times the CUDA kernels on this machine's GPU: `make gpu-check`, or one stage at a time.

    python3 benchmarks/gpu_check.py --stage bn --deadline 300 --out results.jsonl

Needs a built package, PyTorch and, for the tests, pytest; no network and no installation. Every row is appended to
the file as soon as it is found. Rows that the file has of this GPU and this library are not found again, so a run
that was cut short goes on where it was; remove a line to have its row again.

    facts       the machine; ceilings: copy by size, reads, bfloat16 products, launches
    tests       the test suite on CUDA tensors
    methods     the tests of each family with each of its ways of computing
    sanitizers  compute-sanitizer: memcheck, racecheck, synccheck, initcheck
    stress      captured graphs, streams, threads, blocks that wait beside other kernels
    bn gn reparam rnn   times by size, dtype, layout and direction, of each way of computing and of peers
    steps       a DCGAN's training step
    ncu         counters of Nsight Compute, if it is there
    report      tables, and a verdict for each target; every run ends with it

Exit status: 0 if all stages that were asked for are complete; 1 without a usable GPU; 3 if the deadline left rows
out; 10 + n if stage n of this list, from facts = 0, is the first with a failure. A target that is missed is none.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import date
from importlib.util import find_spec
from pathlib import Path

SCRIPT = Path(__file__).resolve()
ROOT = SCRIPT.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

STAGES = (
    "facts", "tests", "methods", "sanitizers", "stress", "bn", "gn", "reparam", "rnn", "steps", "ncu", "report",
)  # fmt: skip


def read(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    parser.add_argument("--out", type=Path, help="file of rows (default: benchmarks/results/<gpu>-<date>.jsonl)")
    parser.add_argument(
        "--deadline", type=float, default=540, help="seconds for each stage (default: %(default)s)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="everything, small and once, on the CPU in its place"
    )
    parser.add_argument("--contender", help=argparse.SUPPRESS)  # this is the process of one
    parser.add_argument("--profiled", action="store_true", help=argparse.SUPPRESS)  # this is what ncu looks at
    options = parser.parse_args(arguments)
    if options.out is not None and (options.out.suffix != ".jsonl" or options.out.is_dir()):
        parser.error(f"argument --out: {options.out} is no .jsonl file; tables of it are .txt and .json beside it")
    return options


if __name__ == "__main__":  # what needs no torch is answered without
    read()
    if find_spec("torch") is None:
        sys.exit(f"gpu-check: there is no torch in {sys.executable}: run it by a python3 that has it")

import torch  # noqa: E402
from gpu import cases, commands, device, facts, report, steps, stress  # noqa: E402
from gpu.rows import Row, Rows  # noqa: E402

import genimg_fast as gf  # noqa: E402

NO_GPU, UNFINISHED, FAILED = 1, 3, 10
GRACE = 30  # seconds after a stage's deadline for the row that is being measured
LONGEST_ROW = 150  # seconds without a word from a process before it counts as hung

# Of the stages that measure in processes of their own: what to run, and for whom with what environment.
MEASURED = {
    "facts": (facts.measure, {"": {}}),
    "stress": (stress.measure, {name: environment for name, (_, environment) in stress.CHECKS.items()}),
    "steps": (steps.measure, {name: {} for name in steps.CONTENDERS}),
    **{
        name: (cases.measure, {contender: stage.environment(contender) for contender in stage.contenders})
        for name, stage in cases.STAGES.items()
    },
}


class Unfinished(Exception):
    """The deadline came before the last row."""


def why_not() -> str | None:
    """Return what keeps the check from running, or None."""
    if not torch.cuda.is_available():
        return f"no NVIDIA GPU is visible to torch {torch.__version__}: nothing was checked or timed"
    for operator, paths in gf.info().operators.items():
        path, reason = paths["cuda"]
        if path != "native":
            return f"the CUDA kernels of {operator} are not usable: {reason}"
    return None


def events_of_process(
    stage: str, contender: str, out: Path, environment: dict[str, str], end: float
) -> Iterator[Row]:
    """What a process of its own reports; it is killed if it hangs, or is still in a row at `end`."""
    command = [sys.executable, str(SCRIPT), "--stage", stage, "--contender", contender, "--out", str(out)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env={**os.environ, **environment}
    )
    assert process.stdout is not None
    killed = threading.Event()

    def kill() -> None:
        killed.set()
        process.kill()

    try:
        while True:
            patience = min(LONGEST_ROW, max(end - time.monotonic(), 1))
            timer = threading.Timer(patience, kill)
            timer.start()
            line = process.stdout.readline()
            timer.cancel()
            if not line:
                break
            if line.startswith('{"'):
                yield json.loads(line)
        code = process.wait()
        if killed.is_set() and patience < LONGEST_ROW:
            raise Unfinished
        words = f"hung for {LONGEST_ROW} s" if killed.is_set() else f"ended with {code}"
        yield {"end": words if code else ""}
    finally:
        process.kill()
        process.wait()


def events_in_this_process(stage: str, contender: str, rows: Rows) -> Iterator[Row]:
    measure, _ = MEASURED[stage]
    yield from measure(stage, contender, rows.done(stage, contender))
    yield {"end": ""}


def run_contender(stage: str, contender: str, rows: Rows, until: float, end: float) -> None:
    """Have a contender's rows measured; a process that fails in one is followed by another for the rest.

    Args:
        stage: Of the rows.
        contender: Whose rows.
        rows: Where they go.
        until: After this time no row is begun.
        end: At this time the row that is not done is given up.
    """
    environment = MEASURED[stage][1][contender]
    while True:
        begun, progress, failure = None, False, ""
        events = (
            events_in_this_process(stage, contender, rows)
            if device.dry
            else events_of_process(stage, contender, rows.path, environment, end)
        )
        for event in events:
            if "begin" in event:
                if time.monotonic() > until:
                    events.close()
                    raise Unfinished
                begun = event["begin"]
            elif "end" in event:
                failure = event["end"]
            else:
                tell(rows.add(event))
                begun, progress = None, True
        if not failure:
            return
        if begun is None and not progress:
            row = {"stage": stage, "row": "start", "contender": contender, "status": "failed"}
            tell(rows.add(row | {"words": f"the process {failure}"}))
            return
        if begun is not None:
            row = {"stage": stage, "row": begun, "contender": contender, "status": "failed"}
            tell(rows.add(row | {"words": f"the process {failure} in this row"}))


def run_measured(stage: str, rows: Rows, seconds: float) -> None:
    contenders, until = MEASURED[stage][1], time.monotonic() + seconds
    unfinished = []
    for number, contender in enumerate(contenders):
        now = time.monotonic()
        # What the others leave goes to those that are still to come.
        share = until - now if stage == "stress" else (until - now) / (len(contenders) - number)
        try:
            run_contender(stage, contender, rows, now + share, until + GRACE)
        except Unfinished:
            unfinished.append(contender)
    if unfinished:
        raise Unfinished


def run_commands(stage: str, rows: Rows, seconds: float) -> None:
    until = time.monotonic() + seconds
    # Packages that were brought along stay on the path.
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "GENIMG_FAST_BACKEND": "native", "PYTHONPATH": path}
    done = rows.done(stage, "")
    for command in commands.COMMANDS[stage]():
        if command.row in done:
            continue
        if time.monotonic() > until:
            raise Unfinished
        print(f"    {command.row} ...", flush=True)
        remaining = max(until - time.monotonic(), 1)
        row = commands.run(stage, command, environment, remaining)
        if row.get("code") == commands.TIMED_OUT and remaining < 0.9 * seconds:
            raise Unfinished  # it gets more time in the next call
        tell(rows.add(row))


def tell(row: Row) -> None:
    """Print a row as a line."""
    figure = f"{row['seconds'] * 1e6:10.2f} us" if "seconds" in row else f"{row['status']:>10}   "
    print(f"{figure}  {row['stage']}: {report.name_of(row)}  {row.get('words', '')}", flush=True)


def check(stages: list[str], rows: Rows, seconds: float) -> int:
    """Run stages; return the exit status."""
    if not rows.of("facts") and any(stage in cases.STAGES for stage in stages):
        stages = ["facts", *(stage for stage in stages if stage != "facts")]  # what a time is a share of
    unfinished, left = [], seconds
    for stage in stages:
        started = time.monotonic()
        print(f"\n=== {stage}", flush=True)
        try:
            if stage in commands.COMMANDS:
                run_commands(stage, rows, left)
            elif stage in MEASURED:
                run_measured(stage, rows, left)
        except Unfinished:
            unfinished.append(stage)
            print(f"{stage}: the deadline left rows out; the same command goes on from here", flush=True)
        # The next stage gives the time that the facts took: a call for one stage takes no longer than it was told.
        left = seconds - (time.monotonic() - started) if stage == "facts" else seconds
    for line in report.write(rows):
        print(line)
    failed = [stage for stage in stages if any(row["status"] == "failed" for row in rows.of(stage))]
    if "report" in stages and not any("seconds" in row for row in rows.rows):
        failed.append("report")
    print(f"\nrows: {rows.path}")
    print(f"gpu-check: {'failed: ' + ', '.join(failed) if failed else 'nothing failed'}", end="")
    print(f"; unfinished: {', '.join(unfinished)}" if unfinished else "")
    return FAILED + STAGES.index(failed[0]) if failed else UNFINISHED if unfinished else 0


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status."""
    options = read(arguments)
    with ExitStack() as stack:
        if options.dry_run:
            stack.enter_context(device.stand_in())
        elif (problem := why_not()) is not None:
            print(f"gpu-check: {problem}", file=sys.stderr)
            return NO_GPU
        gpu = device.cuda.get_device_name()
        if options.profiled:
            for call in cases.profiled():
                for _ in range(3):
                    call()
            return 0
        name = re.sub(r"[^A-Za-z0-9]+", "-", gpu).strip("-").lower()
        folder = Path(tempfile.gettempdir()) if options.dry_run else ROOT / "benchmarks" / "results"
        out = options.out or folder / f"{name}-{date.today().isoformat()}.jsonl"
        rows = Rows(out.resolve(), gpu)
        if options.contender is not None:
            for event in events_in_this_process(options.stage, options.contender, rows):
                if "end" not in event:
                    print(json.dumps(event), flush=True)
            return 0
        print(gf.info())
        return check(list(STAGES) if options.stage == "all" else [options.stage], rows, options.deadline)


if __name__ == "__main__":
    sys.exit(main())
