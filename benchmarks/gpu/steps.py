"""A DCGAN's whole training step on images of 64x64, against the loop of PyTorch's example, plain and compiled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from genimg_fast.bench.entries import OURS
from genimg_fast.bench.networks import dcgan_case

from . import device

RECIPES: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16 channels_last": {"precision": "bf16", "channels_last": True},
}
CONTENDERS = {"automatic": OURS, "eager": "eager", "compile": "compile"}


def measure(stage: str, contender: str, done: set[str]) -> Iterator[dict[str, Any]]:
    """Yields rows like those of cases.measure."""
    batch, channels = (2, 2) if device.dry else (128, 64)
    for name, options in RECIPES.items():
        row = f"DCGAN-64 B{batch} {name}"
        if row in done:
            continue
        yield {"begin": row}
        found = {"stage": stage, "row": row, "contender": contender, "operator": "training"}
        torch.manual_seed(0)
        try:
            case = dcgan_case(4, options, device.DEVICE, batch, channels)
            # A dry run compiles nothing.
            step = case.contenders["eager" if device.dry and contender == "compile" else CONTENDERS[contender]]
            for _ in range(1 if device.dry else 6):  # a CUDA graph is recorded in the fourth
                step()
            yield found | {"status": "ok"} | device.wall_seconds(step, 1 if device.dry else 50)
        except Exception as error:
            yield found | {"status": "failed", "words": f"{type(error).__name__}: {error}"[:500]}
            device.cuda.synchronize()
