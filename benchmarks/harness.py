"""The machinery that every benchmark shares: contenders, timing, memory, and one table at the end."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

import genimg_fast as gf
from genimg_fast import _native

OURS = "genimg_fast"
PEERS = ("eager", "inplace", "compile", "diffusers")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@dataclass
class Row:
    """One line of the table: everything measured of one case and pass."""

    operator: str
    case: str
    direction: str
    must_move: int  # bytes; 0 for what is bound by arithmetic
    seconds: dict[str, float] = field(default_factory=dict)
    peak_bytes: dict[str, int] = field(default_factory=dict)


ROWS: list[Row] = []


def synchronize() -> None:
    """Wait for the device."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def peak_bytes(function: Callable[[], object]) -> int:
    """Memory that one call allocates at its peak, beyond what was there before."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    _native.take_output_peak()
    before = _native.take_output_peak()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    current = peak = 0
    events = profile.profiler.kineto_results.events()
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    # Our large outputs lie in memory that the profiler does not see. The two peaks need not coincide: their sum is
    # an upper bound.
    return peak + _native.take_output_peak() - before


def copy_bandwidth() -> float:
    """Bytes per second, read plus written, of a 64 MB copy into memory that is already there."""
    source = torch.randn(1 << 24, device=DEVICE)
    destination = torch.empty_like(source)
    times = []
    for _ in range(20):
        synchronize()
        started = time.perf_counter()
        destination.copy_(source)
        synchronize()
        times.append(time.perf_counter() - started)
    return 2 * source.nbytes / sorted(times)[len(times) // 2]


def commit() -> str:
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> dict[str, str]:
    facts = {
        "device": platform.processor() or platform.machine(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "genimg_fast": gf.__version__,
        "commit": commit(),
        "simd": gf.info().simd or "-",
    }
    if DEVICE == "cuda":
        facts["device"] = torch.cuda.get_device_name()
        facts["CUDA"] = torch.version.cuda or "-"
        facts["driver"] = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
        ).stdout.strip()
    elif Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        facts["device"] = f"{names[0]} ({os.cpu_count()} cores)" if names else facts["device"]
    return facts


def table(bandwidth: float) -> list[str]:
    peers = [p for p in PEERS if any(p in row.seconds for row in ROWS)]
    header = f"{'case':<38} {'pass':<8} {'ms':>8} {'GB/s':>6} {'% copy':>6} {'peak MB':>8}"
    header += "".join(f" {'x ' + peer:>9}" for peer in peers)
    header += f" {'eager ms':>9} {'eager MB':>9}"
    lines = [header, "-" * len(header)]
    for row in ROWS:
        seconds = row.seconds[OURS]
        rate = row.must_move / seconds
        line = f"{row.case:<38} {row.direction:<8} {seconds * 1e3:8.3f}"
        line += f" {rate / 1e9:6.1f} {rate / bandwidth:6.0%}" if row.must_move else f" {'-':>6} {'-':>6}"
        line += f" {row.peak_bytes[OURS] / 1e6:8.2f}"
        for peer in peers:
            line += f" {row.seconds[peer] / seconds:9.2f}" if peer in row.seconds else f" {'-':>9}"
        eager = row.seconds.get("eager")
        line += f" {eager * 1e3:9.3f} {row.peak_bytes['eager'] / 1e6:9.2f}" if eager else ""
        lines.append(line)
    return lines
