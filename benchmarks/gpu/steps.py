"""A DCGAN's whole training step on images of 64x64, against the loop of PyTorch's example, plain and compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from genimg_fast.bench.dcgan_loop import dcgan, example
from genimg_fast.training import GANTrainer, Recipe

from . import device
from .device import Call

RECIPES = {
    "float32": Recipe(ema=0),
    "bfloat16 channels_last": Recipe(precision="bf16", channels_last=True, ema=0),
}


def ours(images: torch.Tensor, recipe: Recipe, channels: int) -> Call:
    recipe = Recipe(
        precision=recipe.precision, channels_last=recipe.channels_last, ema=0, cuda_graph=not device.dry
    )
    trainer = GANTrainer(dcgan(images.device, channels), recipe=recipe)
    return lambda: trainer.step(images)


def plain(images: torch.Tensor, recipe: Recipe, channels: int) -> Call:
    """The example as it is, whatever the recipe: in float32."""
    return example(images, channels=channels)


def compiled(images: torch.Tensor, recipe: Recipe, channels: int) -> Call:
    """Compiled with CUDA graphs, fused Adam, and the recipe's precision and memory format."""
    return example(images, None if device.dry else recipe, "reduce-overhead", channels)


CONTENDERS: dict[str, Callable[[torch.Tensor, Recipe, int], Call]] = {
    "automatic": ours, "eager": plain, "compile": compiled,
}  # fmt: skip


def measure(stage: str, contender: str, done: set[str]) -> Iterator[dict[str, Any]]:
    """Yields rows like those of cases.measure."""
    batch, channels = (2, 2) if device.dry else (128, 64)
    for name, recipe in RECIPES.items():
        row = f"DCGAN-64 B{batch} {name}"
        if row in done:
            continue
        yield {"begin": row}
        found = {"stage": stage, "row": row, "contender": contender, "operator": "training"}
        torch.manual_seed(0)
        images = torch.rand(batch, 3, 64, 64, device=device.DEVICE) * 2 - 1
        try:
            step = CONTENDERS[contender](images, recipe, channels)
            for _ in range(1 if device.dry else 6):  # a CUDA graph is recorded in the fourth
                step()
            yield found | {"status": "ok"} | device.wall_seconds(step, 1 if device.dry else 50)
        except Exception as error:
            yield found | {"status": "failed", "words": f"{type(error).__name__}: {error}"[:500]}
            device.cuda.synchronize()
