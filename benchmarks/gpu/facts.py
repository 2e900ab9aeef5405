"""The machine, and the ceilings of this run: copying by size, reading, bfloat16 products, launching."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

import genimg_fast as gf

from . import device
from .cases import SIZES, random

ROOT = Path(__file__).parents[2]


def answer(*command: str) -> str:
    """The first line that a command prints, or a dash."""
    if shutil.which(command[0]) is None:
        return "-"
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    return (result.stdout.splitlines() or ["-"])[0].strip()


def from_nvidia_smi(*fields: str) -> str:
    return answer("nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader")


def machine() -> dict[str, Any]:
    """What a figure's reader has to know."""
    properties = device.cuda.get_device_properties(0)
    info = gf.info()
    return {
        "gpu": device.cuda.get_device_name(),
        "driver": from_nvidia_smi("driver_version"),
        "kernel": platform.release(),
        "capability": list(device.cuda.get_device_capability()),
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": getattr(properties, "L2_cache_size", None),
        "memory_bytes": properties.total_memory,
        "shared_bytes_per_block": getattr(properties, "shared_memory_per_block_optin", None),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None,
        "python": platform.python_version(),
        "genimg_fast": info.versions["genimg_fast"],
        "build": info.build,
        "paths": {name: rows.get("cuda") for name, rows in info.operators.items()},
        "commit": answer("git", "describe", "--always", "--dirty"),
        "library_bytes": gf._native.LIBRARY.stat().st_size if gf._native.LIBRARY.exists() else 0,
    }


def batch_norm_of_torch() -> dict[str, str]:
    """Whose batch norm torch takes, by dtype and layout."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = random(2, 64, 8, 8).to(dtype).contiguous(memory_format=layout)
            values = random(64)
            arguments = (x, values, values, values, values, True, 1e-5)
            found[f"{str(dtype)[6:]} {str(layout)[6:]}"] = str(torch._C._select_batch_norm_backend(*arguments))
    return found


def copying(size: int) -> dict[str, Any]:
    calls = []
    for _ in range(device.number_of_sets(2 * size)):
        source, target = random(size // 4), torch.empty(size // 4, device=device.DEVICE)
        calls.append(lambda source=source, target=target: target.copy_(source))
    return {"bytes": size, "moved": 2 * size, **device.graph_seconds(calls)}


def reading(size: int) -> dict[str, Any]:
    return {"bytes": size, "moved": size, **device.graph_seconds([random(size // 4).sum for _ in range(2)])}


def multiplying(n: int) -> dict[str, Any]:
    a, b = random(n, n).bfloat16(), random(n, n).bfloat16()
    return {"operations": 2 * n**3, **device.graph_seconds([lambda: a @ b])}


def launching() -> dict[str, Any]:
    one = random(1)
    calls = [lambda: one.fill_(1.0)] * 100
    return device.graph_seconds(calls) | device.eager_seconds(calls)


def ceilings() -> dict[str, Callable[[], dict[str, Any]]]:
    sizes, largest, n = ((1 << 12, 16 << 10), 1 << 14, 64) if device.dry else (SIZES, 512 << 20, 8192)
    return {
        **{copy_row(size): partial(copying, size) for size in sizes},
        "read": partial(reading, largest),
        "bfloat16 product": partial(multiplying, n),
        "launch": launching,
    }


def copy_row(size: int) -> str:
    return f"copy {size / 1e6:.4g} MB"


def measure(stage: str, contender: str, done: set[str]) -> Iterator[dict[str, Any]]:
    """Yields rows like those of cases.measure."""
    facts = {
        "machine": lambda: {**machine(), "batch_norm_of_torch": batch_norm_of_torch()},
        "clocks before": clocks,
        **ceilings(),
        "clocks after": clocks,
    }
    with device.cuda.stream(device.cuda.Stream()):
        for row, found in facts.items():
            if row not in done:
                yield {"begin": row}
                yield {"stage": stage, "row": row, "contender": contender, "status": "ok", **found()}


def clocks() -> dict[str, Any]:
    return {"words": from_nvidia_smi("clocks.sm", "clocks.mem", "power.draw")}
