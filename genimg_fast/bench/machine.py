"""What a machine is, what it can do at best, and whether it was quiet."""

import functools
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from genimg_fast._info import info
from genimg_fast._version import __version__

DRIFT = 0.10  # of the canary's time, beyond which a run is unsound
BUSY = 0.05  # share of the processors' time that others, or the hypervisor, took


class Ceilings(NamedTuple):
    """What this machine reaches, of bytes and of operations a second, and what a call takes.

    Attributes:
        copy: Bytes read and written, by the bytes of one of the two tensors.
        read: Bytes read, of a sum, likewise.
        float32: Operations of a product of float32 matrices.
        bfloat16: Likewise of bfloat16.
        forward_call: Seconds of one operator of torch on four numbers, with gradients recorded; 0 if not known.
        both_call: Likewise with its backward.
    """

    copy: dict[int, float]
    read: dict[int, float]
    float32: float
    bfloat16: float
    forward_call: float = 0.0
    both_call: float = 0.0


class Bound(NamedTuple):
    """The least time that a machine allows, and what it is of.

    Attributes:
        seconds: The time; 0 if nothing is known.
        what: ``"bytes"``, ``"operations"`` or ``"calls"``.
    """

    seconds: float
    what: str


class Quiet(NamedTuple):
    """How much of the machine others had.

    Attributes:
        stolen: Share of the processors' time that the hypervisor gave to others.
        others: Share that other processes had.
        load: Load average.
        megahertz: Clock, 0 where it cannot be read.
        degrees: Temperature, Celsius, 0 where it cannot be read.
    """

    stolen: float
    others: float
    load: float
    megahertz: float
    degrees: float


@functools.cache
def last_cache(device: str) -> int:
    """Find the size in bytes of the last cache, 32 MiB where the system does not say."""
    if device != "cpu":
        return int(torch.cuda.get_device_properties(0).L2_cache_size)
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = file.read_text().strip()
        sizes.append(int(text.rstrip("KM")) << {"K": 10, "M": 20}.get(text[-1:], 0))
    return min(max(sizes, default=32 << 20), 128 << 20)


def facts(device: str) -> dict[str, str]:
    """Say what was measured on.

    Args:
        device: ``"cpu"`` or ``"cuda"``.

    Returns:
        Facts by name.
    """
    found = {
        "device": platform.processor() or platform.machine(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "last cache": f"{last_cache(device) / 2**20:.0f} MiB",
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "genimg_fast": __version__,
        "SIMD": info().simd or "-",
        "torch's SIMD": torch.backends.cpu.get_cpu_capability(),
    }
    if device != "cpu":
        found["device"] = torch.cuda.get_device_name()
        found["CUDA"] = torch.version.cuda or "-"
        found["driver"] = run_quietly("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "-"
    elif Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        found["device"] = names[0] if names else found["device"]
    return found


def commit() -> str:
    """Name the commit that the package's files are of, with ``-dirty`` where they differ; "-" without one."""
    return (
        run_quietly("git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=7")
        or "-"
    )


def run_quietly(*command: str) -> str:
    """Run a program and return what it prints, nothing if it fails or is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _rate(amount: float, call: Callable[[], Any], device: str, seconds: float = 0.15) -> float:
    times: list[float] = []
    ends = time.perf_counter() + seconds
    while len(times) < 5 or time.perf_counter() < ends:
        if device != "cpu":
            torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return amount / statistics.median(times[1:])


def ceilings(device: str) -> Ceilings:
    """Measure what the machine reaches, in about two seconds.

    Args:
        device: ``"cpu"`` or ``"cuda"``.

    Returns:
        The rates.
    """
    copy, read = {}, {}
    for megabytes in (1, 8, 64, *((256,) if device != "cpu" else ())):
        source = torch.randn(megabytes << 18, device=device)
        target = torch.empty_like(source)
        copy[source.nbytes] = _rate(2 * source.nbytes, partial(target.copy_, source), device)
        read[source.nbytes] = _rate(source.nbytes, source.sum, device)
    n = 1024 if device == "cpu" else 8192
    products = []
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(n, n, device=device).to(dtype)
        products.append(_rate(2 * n**3, partial(torch.mm, a, a), device))
    few = torch.randn(4, device=device, requires_grad=True)
    ones = torch.ones_like(few)
    silu = torch.nn.functional.silu
    forward = 1 / _rate(1, lambda: silu(few), device, 0.05)
    both = 1 / _rate(1, lambda: torch.autograd.grad(silu(few), few, ones), device, 0.05)
    return Ceilings(copy, read, products[0], products[1], forward, both)


def bound_of(
    limits: Ceilings, moved: float, operations: float, dtype: torch.dtype | None, direction: str = ""
) -> Bound:
    """Bound a time from below: by the bytes at the rate of a copy of that size, the operations, and one call.

    Args:
        limits: The machine's.
        moved: Bytes.
        operations: Additions and multiplications.
        dtype: Of the data.
        direction: The pass; of ``"forward"`` and ``"both"`` it is known what a call takes.

    Returns:
        The longest of these times; 0 if neither bytes nor operations are known.
    """
    if not moved and not operations:
        return Bound(0.0, "bytes")
    size = min(limits.copy, key=lambda known: abs(known - moved / 2))
    rate = limits.float32 if dtype in (None, torch.float32) else max(limits.float32, limits.bfloat16)
    calls = {"forward": limits.forward_call, "both": limits.both_call}
    return max(
        Bound(moved / limits.copy[size], "bytes"),
        Bound(operations / rate, "operations"),
        Bound(calls.get(direction, 0.0), "calls"),
    )


def canary(device: str) -> float:
    """Time something that never changes, which tells whether the machine does.

    Returns:
        Median seconds of a product and a copy of 1 MB.
    """
    a = torch.ones(512, 512, device=device)
    b = torch.empty_like(a)

    def work() -> None:
        torch.mm(a, a, out=b)
        b.copy_(a)

    return 1 / _rate(1, work, device, 0.1)


class Watch:
    """Measures from its making on how much of the machine others had.

    Example:
        >>> from genimg_fast.bench.machine import Watch
        >>> 0 <= Watch().quiet().stolen <= 1
        True
    """

    def __init__(self) -> None:
        self.before = self._read()

    @staticmethod
    def _read() -> tuple[float, float, float, float]:
        """Ticks: of all processors, of those idle, stolen; and those of this process and its children."""
        try:
            numbers = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        except (OSError, ValueError):
            numbers = [0] * 8
        own = sum(os.times()[:4]) * os.sysconf("SC_CLK_TCK")
        return sum(numbers), numbers[3] + numbers[4], numbers[7], own

    def quiet(self) -> Quiet:
        """Say what others had since."""
        total, idle, stolen, own = (b - a for a, b in zip(self.before, self._read(), strict=True))
        others = max(0.0, total - idle - stolen - own)
        try:
            lines = Path("/proc/cpuinfo").read_text().splitlines()
            clocks = [float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")]
        except (OSError, ValueError):
            clocks = []
        degrees = []
        for file in Path("/sys/class/thermal").glob("thermal_zone*/temp"):
            try:
                degrees.append(int(file.read_text()) / 1000)
            except (OSError, ValueError):
                continue
        return Quiet(
            stolen / total if total else 0.0,
            others / total if total else 0.0,
            os.getloadavg()[0],
            statistics.mean(clocks) if clocks else 0.0,
            max(degrees, default=0.0),
        )


def unsound(quiet: Quiet, canaries: list[float]) -> list[str]:
    """List what speaks against a run's figures.

    Args:
        quiet: What others had of the machine.
        canaries: The canary's seconds, in the order of time.

    Returns:
        Reasons, none if the run is sound.
    """
    found = []
    if quiet.stolen > BUSY:
        found.append(f"the hypervisor gave {quiet.stolen:.0%} of the processors' time to others")
    if quiet.others > BUSY:
        found.append(f"other processes had {quiet.others:.0%} of the processors' time")
    drift = max(canaries) / min(canaries) - 1 if canaries else 0.0
    if drift > DRIFT:
        found.append(f"the same work took up to {drift:.0%} longer at one time than at another")
    return found
