"""``genimg-fast demo``."""

import copy
import shlex
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genimg_fast._fuse import unfuse
from genimg_fast._info import info
from genimg_fast.bench import timing
from genimg_fast.bench.machine import Watch, unsound
from genimg_fast.bench.own import quick
from genimg_fast.bench.statistics import ratio_of
from genimg_fast.cli.arguments import Device
from genimg_fast.cli.train import run_training
from genimg_fast.data import ImageDataset, batches
from genimg_fast.options import Folder, PositiveInt, Seed
from genimg_fast.training import GANTrainer, Recipe, Trainer, find_trainable

# With the defaults, that gives recognisable digits in about a minute on two cores.
DEMO: dict[str, Any] = {"data": "digits"}
# About ten seconds of them show what the kernels gain here.
OPERATORS = (
    "batch_norm_act 64x128x16x16 leaky_relu float32 NCHW",
    "group_norm_act 8x256x32x32/32 silu float32 NCHW",
    "reparameterize_kl 512x512 float32",
    "GRU T28 B64 I28 H64 float32",
)


def demo(
    *, out: Folder = Path("runs"), steps: PositiveInt | None = None, seed: Seed = 0, device: Device = "auto"
) -> int:
    """Train a small DCGAN on real handwritten digits; time training and the operators.

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
    watch = Watch()
    plain, fused = _time_steps(trainer, dataset, batch_size)
    print(f"\ngenerated digits: {run.path / f'samples-{trainer.steps_done:06d}.png'}")
    print(f"real digits:      {run.path / 'real.png'}")
    kernels = "fused kernels" if info().native else "genimg_fast.nn (not fused: see genimg-fast info)"
    rates = [batch_size / statistics.median(times) for times in (fused, plain)]
    print(
        f"training: {rates[0]:.0f} images/s with {kernels}, {rates[1]:.0f} with plain torch.nn: "
        f"{ratio_of([plain], [fused])} times as fast; convolutions take most of it"
    )
    print("\noperators on this machine, forward + backward, times as fast as eager PyTorch [interval of 95%]:")
    for name, ratio in quick(trainer.device.type, OPERATORS):
        print(f"  {name:<58} {ratio}  {ratio.verdict}")
    for words in unsound(watch.quiet(), []):
        print(f"these figures are rough: {words}")
    print(
        f"\nnext:\n  genimg-fast interpolate {run.path}\n  genimg-fast train cvae --data digits\n"
        "  genimg-fast bench ops --time-limit 5"
    )
    return 0


def _time_steps(trainer: Trainer, dataset: ImageDataset, batch_size: int) -> tuple[list[float], list[float]]:
    """Seconds of training steps with plain torch.nn, as it lays tensors out, and with this package."""
    plain = unfuse(copy.deepcopy(trainer.model)).to(memory_format=torch.contiguous_format)
    stream = batches(dataset.to(trainer.device), batch_size)

    def stepping(model: Any, recipe: Recipe) -> Callable[[], Any]:
        stepper = GANTrainer(model, recipe=recipe)
        return lambda: stepper.step(*next(stream))["loss_g"].item()

    calls = {
        "plain": stepping(plain, Recipe(channels_last=False)),
        "fused": stepping(copy.deepcopy(trainer.model), Recipe()),
    }
    found = timing.rounds(calls, "warm", trainer.device.type, 4.0, np.random.default_rng(0))
    return found["plain"], found["fused"]
