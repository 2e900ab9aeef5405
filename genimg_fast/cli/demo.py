"""``genimg-fast demo``."""

import copy
import os
import shlex
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genimg_fast._fuse import unfuse
from genimg_fast._info import info
from genimg_fast.bench import timing
from genimg_fast.bench.entries import OURS
from genimg_fast.bench.machine import Watch, unsound
from genimg_fast.bench.own import quick
from genimg_fast.bench.report import shares_of
from genimg_fast.bench.shares import seconds_by_kind
from genimg_fast.bench.statistics import ratio_of
from genimg_fast.cli.arguments import Device
from genimg_fast.cli.train import run_training
from genimg_fast.data import ImageDataset, batches
from genimg_fast.options import Folder, PositiveInt, Seed
from genimg_fast.training import GANTrainer, Recipe, Trainer, find_trainable

# With the defaults, that gives recognisable digits in about a minute on two cores.
DEMO: dict[str, Any] = {"data": "digits"}
# About six seconds of them show what the kernels gain here.
OPERATORS = {
    "batch norm + LeakyReLU, 64x128x16x16": "batch_norm_act 64x128x16x16 leaky_relu float32 NCHW",
    "group norm + SiLU, 8x256x32x32": "group_norm_act 8x256x32x32/32 silu float32 NCHW",
    "discriminator's first layer, 64x1x32x32": (
        "image_conv_act from 64x1x32x32 32 4x4 stride 2 leaky_relu float32 NCHW"
    ),
    "a VAE's latent and its KL, 512x512": "reparameterize_kl 512x512 float32",
    "GRU, 28 steps of 64x28": "GRU T28 B64 I28 H64 float32",
}


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

    print(f"\ngenerated digits: {run.path / f'samples-{trainer.steps_done:06d}.png'}")
    print(f"real digits:      {run.path / 'real.png'}")
    watch = Watch()
    for line in (*_step_lines(trainer, dataset, run.config["batch_size"]), *_operator_lines(trainer.device.type)):
        print(line, flush=True)
    for words in unsound(watch.quiet(), []):
        print(f"These figures are rough: {words}.")
    commands = {
        shlex.join(["interpolate", str(run.path)]): "from digit to digit",
        "train cvae --data digits": "a digit of your choice: sample RUN --class 7",
        "bench ops --time-limit 5": "all kernels, against torch.compile, too",
    }
    print("\nTry next:")
    for command, words in commands.items():
        print(f"  {_program()} {command:<{max(map(len, commands))}}  # {words}")
    return 0


def _program() -> str:
    """What to type for this program: that of an environment that is not active has a folder before its name."""
    name = "genimg-fast"
    beside = Path(sys.executable).with_name(name)
    return name if shutil.which(name) or not beside.exists() else os.path.relpath(beside)


def _step_lines(trainer: Trainer, dataset: ImageDataset, batch_size: int) -> Iterator[str]:
    """Say how fast training is, and what bounds it."""
    device = trainer.device.type
    calls = _steps(trainer, dataset, batch_size)
    times = timing.rounds(calls, "warm", device, 3.0, np.random.default_rng(0))
    ratio = ratio_of([times["eager"]], [times[OURS]])
    rates = {name: batch_size / statistics.median(seconds) for name, seconds in times.items()}
    kernels = "fused kernels" if info().native else "genimg_fast.nn (not fused: see genimg-fast info)"
    yield f"\ntraining: {rates[OURS]:,.0f} images/s with {kernels}, {rates['eager']:,.0f} with plain torch.nn"
    yield f"          ({ratio} times as fast: {ratio.verdict})"
    kinds = seconds_by_kind(calls, device)
    bound = max(kinds[OURS], key=lambda kind: kinds[OURS][kind])
    yield "          where torch.nn's time goes, and how many times as fast that is here:"
    yield f"            {shares_of(kinds['eager'], kinds[OURS])}"
    yield f"          what bounds it now: {bound}, {kinds[OURS][bound] / sum(kinds[OURS].values()):.0%} of a step"


def _operator_lines(device: str) -> Iterator[str]:
    """A table of what operators gain."""
    labels = {name: label for label, name in OPERATORS.items()}
    heading = "forward + backward, on this machine"
    width = max(map(len, (heading, *OPERATORS)))
    yield f"\n{heading:<{width}} {'ours':>9} {'eager':>9}   times as fast"
    for row in quick(device, tuple(OPERATORS.values())):
        ratio, ours, theirs = row.ratio("eager"), row.median() or 0.0, row.median("eager") or 0.0
        if ratio is not None:
            yield (
                f"{labels[row.name]:<{width}} {ours * 1e3:6.2f} ms {theirs * 1e3:6.2f} ms   "
                f"{ratio.value:.1f} [{ratio.low:.1f}, {ratio.high:.1f}] {ratio.verdict}"
            )


def _steps(trainer: Trainer, dataset: ImageDataset, batch_size: int) -> dict[str, Callable[[], Any]]:
    """Training steps with this package, and with plain torch.nn, as it lays tensors out."""
    stream = batches(dataset.to(trainer.device), batch_size)

    def stepping(model: Any, recipe: Recipe) -> Callable[[], Any]:
        stepper = GANTrainer(model, recipe=recipe)
        return lambda: stepper.step(*next(stream))["loss_g"].item()

    plain = unfuse(copy.deepcopy(trainer.model)).to(memory_format=torch.contiguous_format)
    return {
        OURS: stepping(copy.deepcopy(trainer.model), Recipe()),
        "eager": stepping(plain, Recipe(channels_last=False)),
    }
