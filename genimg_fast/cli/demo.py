"""``genimg-fast demo``."""

import copy
import shlex
import statistics
import time
from pathlib import Path
from typing import Any

from genimg_fast._fuse import unfuse
from genimg_fast._info import info
from genimg_fast.cli.arguments import Device
from genimg_fast.cli.train import run_training
from genimg_fast.data import ImageDataset, batches
from genimg_fast.options import Folder, PositiveInt, Seed
from genimg_fast.training import GANTrainer, Trainer, find_trainable

# With the defaults, that gives recognisable digits in about a minute on two cores.
DEMO: dict[str, Any] = {"data": "digits"}


def demo(
    *, out: Folder = Path("runs"), steps: PositiveInt | None = None, seed: Seed = 0, device: Device = "auto"
) -> int:
    """Train a small DCGAN on real handwritten digits; time a step.

    Args:
        out: Folder of all runs.
        steps: Steps to train; default: enough for recognisable digits.
        seed: Seed of all random numbers.
        device: ``cpu``, ``cuda``, ``cuda:1`` ...; ``auto``: a GPU if there is one.
    """
    values = {**DEMO, "out": out, "seed": seed, "device": device}
    values |= {} if steps is None else {"steps": steps}
    flags = [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    print(f"genimg-fast train dcgan {shlex.join(flags)}")
    run, trainer, dataset = run_training(find_trainable("dcgan"), values)

    batch_size = run.config["batch_size"]
    plain, fused = _time_steps(trainer, dataset, batch_size)
    kernels = "fused kernels" if info().native else "genimg_fast.nn (not fused: see genimg-fast info)"
    print(
        f"step of {batch_size} images: {fused:.1f} ms with {kernels}, "
        f"{plain:.1f} ms with plain torch.nn ({plain / fused:.2f}x)"
    )
    print(f"real digits:      {run.path / 'real.png'}")
    print(f"generated digits: {run.path / f'samples-{trainer.steps_done:06d}.png'}")
    return 0


def _time_steps(trainer: Trainer, dataset: ImageDataset, batch_size: int, rounds: int = 40) -> tuple[float, float]:
    """Median milliseconds of a training step with plain torch.nn, and with this package."""
    trainers = [GANTrainer(unfuse(copy.deepcopy(trainer.model))), GANTrainer(copy.deepcopy(trainer.model))]
    milliseconds: list[list[float]] = [[], []]
    stream = batches(dataset.to(trainer.device), batch_size)
    # In turns, so that whatever else the machine does slows both; each timed step follows one of the same kind,
    # whose memory it finds free.
    for _ in range(rounds):
        images, labels = next(stream)
        for measured, times in zip(trainers, milliseconds, strict=True):
            measured.step(images, labels)
            start = time.perf_counter()
            measured.step(images, labels)["loss_g"].item()  # .item() waits for an accelerator
            times.append(1e3 * (time.perf_counter() - start))
    plain, fused = (statistics.median(times[rounds // 8 :]) for times in milliseconds)  # the first ones warm up
    return plain, fused
