"""Checks and times the CUDA kernels on this machine's GPU: `make gpu-check`.

Runs the test suite on CUDA tensors, compute-sanitizer over a small set, and the benchmarks; writes
benchmarks/results/<gpu>-<date>.json and the table beside it as .txt. The build has to be up to date.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch

import genimg_fast as gf

ROOT = Path(__file__).parents[1]
SANITIZED = [
    "tests/ops/batch_norm_act/test_reference.py::test_options",
    "tests/ops/batch_norm_act/test_reference.py::test_layouts",
    "tests/ops/group_norm_act/test_reference.py::test_options",
    "tests/ops/group_norm_act/test_reference.py::test_layouts",
    "tests/ops/reparameterize_kl/test_reference.py::test_options",
    "tests/ops/reparameterize_kl/test_reference.py::test_layouts_that_differ",
    "tests/ops/reparameterize_kl/test_reference.py::test_large",
    "tests/ops/recurrent/test_reference.py::test_dtypes_and_directions",
    "tests/ops/test_cell_update.py::test_updates",
    "-k",
    "cuda and not reference",
]

# Ways of computing that the environment can force.
METHODS = {
    "batch_norm_act": ("split", "block", "cluster"),
    "group_norm_act": ("split", "on_chip"),
    "recurrent": ("persistent", "steps"),
}


def step(title: str, command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command, pass its output on, and keep it."""
    print(f"\n=== {title}\n$ {' '.join(command)}", flush=True)
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "GENIMG_FAST_BACKEND": "native", **environment},
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        print(line, end="", flush=True)
        lines.append(line)
    code = process.wait()
    print(
        f"=== {title}: {'ok' if code == 0 else f'FAILED ({code})'}, {time.monotonic() - started:.0f} s", flush=True
    )
    return subprocess.CompletedProcess(command, code, "".join(lines))


def why_not() -> str | None:
    """Return what keeps the check from running, or None."""
    if not torch.cuda.is_available():
        return f"no NVIDIA GPU is visible to torch {torch.__version__}: nothing was checked or timed"
    for operator, paths in gf.info().operators.items():
        path, reason = paths["cuda"]
        if path != "native":
            return f"the CUDA kernels of {operator} are not usable: {reason}"
    return None


def main() -> int:
    """Run every step; return the process's exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder for the result")
    parser.add_argument("--only", choices=["tests", "sanitizer", "benchmarks"], help="run one step alone")
    arguments = parser.parse_args()
    if (problem := why_not()) is not None:
        print(f"gpu-check: {problem}", file=sys.stderr)
        return 1
    print(gf.info())
    pytest = [sys.executable, "-m", "pytest", "-q"]
    failed = []
    if arguments.only in (None, "tests"):
        result = step("tests on CUDA tensors", [*pytest, "-m", "not install and not sanitizer"])
        failed += ["tests"] * (result.returncode != 0)
        for family, methods in METHODS.items():
            for method in methods:
                command = [*pytest, f"tests/ops/{family}", "-k", "cuda and not compile"]
                variable = f"GENIMG_FAST_{family.removesuffix('_act').upper()}_METHOD"
                result = step(f"{family}, method {method}", command, **{variable: method})
                failed += [f"{family} {method}"] * (result.returncode != 0)
    if arguments.only in (None, "sanitizer"):
        sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
        for tool in ("memcheck", "racecheck"):
            command = [sanitizer, "--tool", tool, "--error-exitcode", "9", *pytest, *SANITIZED]
            if not Path(sanitizer).exists():
                print(f"gpu-check: compute-sanitizer not found, {tool} was not run", file=sys.stderr)
                failed.append(tool)
            # Every tensor its own allocation: an access past the end is not hidden by the caching allocator.
            elif step(tool, command, PYTORCH_NO_CUDA_MEMORY_CACHING="1").returncode != 0:
                failed.append(tool)
    if arguments.only in (None, "benchmarks"):
        gpu = re.sub(r"[^A-Za-z0-9]+", "-", torch.cuda.get_device_name()).strip("-").lower()
        target = arguments.out / f"{gpu}-{date.today().isoformat()}.json"
        arguments.out.mkdir(parents=True, exist_ok=True)
        command = [*pytest, "benchmarks", "--benchmark-quiet", "--json", str(target)]
        result = step("benchmarks", command, GENIMG_FAST_BACKEND="auto")
        target.with_suffix(".txt").write_text(f"$ {' '.join(command[1:])}\n{result.stdout}")
        failed += ["benchmarks"] * (result.returncode != 0)
        print(f"\nresults: {target} and .txt")
    print(f"\ngpu-check: {'failed: ' + ', '.join(failed) if failed else 'all green'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
