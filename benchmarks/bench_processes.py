"""Images per second of training in one process and in two, on all of this machine's cores or on two GPUs.

    python benchmarks/bench_processes.py [--model dcgan] [--steps 30] [--batch-size 64]

The cores are shared out: one process computes with all of them, each of two with half; and one with half of them,
which says what the second process adds. Each process has a batch of its own: two take a batch of twice the size.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from genimg_fast.bench.machine import commit, facts

CORES = len(os.sched_getaffinity(0))
GPUS = torch.cuda.device_count()


def images_per_second(processes: int, threads: int, options: list[str]) -> float:
    """Train, and take the median of the rows of statistics but the first."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    with tempfile.TemporaryDirectory() as folder:
        train = ["-m", "genimg_fast", "train", *options, "--log-every", "5", "--out", folder]
        command = [sys.executable, *(launch if processes > 1 else []), *train]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode != 0:
            sys.exit(done.stderr)
        (run,) = Path(folder).iterdir()
        rows = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    rates = sorted(row["images_per_s"] for row in rows[1:])
    return rates[len(rates) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="dcgan")
    parser.add_argument("--steps", type=int, default=30, help="at least 10")
    parser.add_argument("--batch-size", type=int, default=64, help="images of each process")
    args = parser.parse_args()
    options = [args.model, "--data", "digits", "--channels", "64", "--batch-size", str(args.batch_size)]
    options += ["--steps", str(args.steps)]

    found = {**facts("cuda" if GPUS else "cpu"), "commit": commit()}
    print("  ".join(f"{name} {value}" for name, value in found.items()))
    cases = [(1, CORES), (2, max(1, CORES // 2))]
    if CORES > 1 and GPUS == 0:
        cases.insert(1, (1, CORES // 2))
    first = None
    for processes, threads in cases:
        rate = images_per_second(processes, threads, options)
        first = rate if first is None else first
        print(f"{processes} x {threads} threads: {rate:7.0f} images/s, {rate / first:.2f} x")


if __name__ == "__main__":
    main()
