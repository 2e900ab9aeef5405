"""Other programs that the check runs: pytest on CUDA tensors, compute-sanitizer, Nsight Compute."""

from __future__ import annotations

import csv
import importlib.util
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import device
from .cases import METHODS

TIMED_OUT = 124
ROOT = Path(__file__).parents[2]
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
# Tests of each family, under the folder of its operator, and which of their parameters.
SANITIZED = {
    "batch_norm_act": ("cuda", ("test_options", "test_layouts")),
    "group_norm_act": ("cuda", ("test_options", "test_layouts")),
    "reparameterize_kl": ("native-cuda", ("test_options", "test_layouts_that_differ")),
    "recurrent": ("cuda and packed", ("test_dtypes_and_directions",)),
}
# initcheck knows nothing of values that a masked lane loads and drops; it looks at the simplest family.
TOOLS = {
    "memcheck": tuple(SANITIZED),
    "racecheck": tuple(SANITIZED),
    "synccheck": tuple(SANITIZED),
    "initcheck": ("batch_norm_act",),
}
METRICS = (
    "gpu__time_duration.sum", "dram__bytes_read.sum", "dram__bytes_write.sum", "lts__t_sector_hit_rate.pct",
    "smsp__issue_active.avg.pct_of_peak_sustained_active", "sm__warps_active.avg.pct_of_peak_sustained_active",
    "smsp__inst_executed.sum", "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",
)  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A program; its row is "ok" if it ends with 0, "missing" if there is no such program."""

    row: str
    line: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


def pytest(*arguments: str) -> tuple[str, ...]:
    workers = ("-n", "8") if importlib.util.find_spec("xdist") and not device.dry else ()
    return (*PYTEST, *workers, "--maxfail=20", *arguments)


def tests() -> Iterator[Command]:
    """Never the emulator's tests: those need no GPU and take long."""
    yield Command("ops, layers and graphs", pytest(
        "tests/ops", "tests/nn", "tests/training/test_graphs.py", "-k", "cuda and not compile"
    ))  # fmt: skip
    yield Command("torch.compile", pytest("tests/ops", "-k", "cuda and compile"))


def methods() -> Iterator[Command]:
    for family, (variable, names) in METHODS.items():
        for name in names:
            line = pytest(f"tests/ops/{family}", "-k", "cuda and not compile")
            yield Command(f"{family}, {name}", line, {variable: name})


def find(tool: str) -> str:
    beside = Path("/usr/local/cuda/bin", tool)
    return shutil.which(tool) or (str(beside) if beside.exists() else tool)


def sanitizers() -> Iterator[Command]:
    for tool, families in TOOLS.items():
        start = (find("compute-sanitizer"), "--tool", tool, "--error-exitcode", "9", *PYTEST, "-x")
        for family in families:
            which, names = SANITIZED[family]
            tests = [f"tests/ops/{family}/test_reference.py::{name}" for name in names]
            variable, methods = METHODS[family]
            for method in methods or ("automatic",):
                # Every tensor its own allocation: an access past its end is not hidden by the caching allocator.
                environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} | ({variable: method} if variable else {})
                yield Command(f"{tool}, {family}, {method}", (*start, *tests, "-k", which), environment)


def ncu() -> Iterator[Command]:
    profiled = (sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), "--profiled")
    yield Command("counters", (
        find("ncu"), "--clock-control", "none", "--csv", "--launch-skip", "20", "--launch-count", "40",
        "--kernel-name", "regex:reduce_|normalize|on_chip|cluster|apply_|forward|backward",
        "--metrics", ",".join(METRICS), *profiled,
    ))  # fmt: skip


COMMANDS = {"tests": tests, "methods": methods, "sanitizers": sanitizers, "ncu": ncu}


def run(stage: str, command: Command, environment: dict[str, str], seconds: float) -> dict[str, Any]:
    """Run a command within a time; return its row."""
    row = {"stage": stage, "row": command.row, "contender": "", "command": " ".join(command.line)}
    line = command.line if not device.dry else (sys.executable, "-c", "print('1 passed')")
    if shutil.which(line[0]) is None:
        return row | {"status": "missing", "words": f"{line[0]} not found"}
    started = time.monotonic()
    process = subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, start_new_session=True,
        env={**environment, **command.environment},
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=seconds)
        code = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with the workers and programs that it started
        output, _ = process.communicate()
        code = TIMED_OUT
    took = time.monotonic() - started
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "")
    row |= {"status": "ok" if code == 0 else "failed", "code": code, "took": took, "words": last[:300]}
    if code == TIMED_OUT:
        row["words"] = f"not done after {seconds:.0f} s; {row['words']}"
    if code != 0:
        row["output"] = output[-8000:]
    if stage == "ncu" and code == 0:
        row["kernels"] = counters(output)
    return row


def counters(output: str) -> list[dict[str, str]]:
    """The metrics of each launch, from ncu's lines, which stand among those of the program."""
    lines = [line for line in output.splitlines() if line.startswith('"')]
    launches: dict[str, dict[str, str]] = {}
    for line in csv.DictReader(io.StringIO("\n".join(lines))):
        launch = launches.setdefault(line["ID"], {"kernel": line["Kernel Name"].split("(")[0]})
        launch[line["Metric Name"]] = f"{line['Metric Value']} {line['Metric Unit']}".strip()
    return list(launches.values())
