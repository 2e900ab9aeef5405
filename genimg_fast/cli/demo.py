"""``genimg-fast demo``."""

import argparse
import copy
import shlex
import statistics
import time
from pathlib import Path
from typing import Any

import genimg_fast as gf
from genimg_fast.cli import train
from genimg_fast.cli.arguments import add_command, add_seed_and_device, at_least
from genimg_fast.data import ImageDataset, batches
from genimg_fast.training import GANTrainer, Trainer

# The defaults give recognisable digits in about a minute on two cores.
DEMO = ["dcgan", "--data", "digits"]


def add(commands: Any) -> None:
    """Add the command."""
    demo = add_command(commands, "demo", _demo, "Train a small DCGAN on real handwritten digits; time a step.")
    demo.add_argument("--out", type=Path, metavar="FOLDER", default=Path("runs"), help="folder of all runs")
    demo.add_argument(
        "--steps", type=at_least(1), metavar="N", help="steps to train; default: enough for recognisable digits"
    )
    add_seed_and_device(demo)


def _demo(args: argparse.Namespace) -> int:
    flags = [*DEMO, "--out", str(args.out), "--seed", str(args.seed), "--device", str(args.device)]
    if args.steps is not None:
        flags += ["--steps", str(args.steps)]
    train_args = train.train_arguments(*flags)
    print(f"genimg-fast train {shlex.join(flags)}")
    run, trainer, dataset = train.run_training(train_args)

    plain, fused = _time_steps(trainer, dataset, train_args.batch_size)
    kernels = "fused kernels" if gf.info().native else "genimg_fast.nn (not fused: see genimg-fast info)"
    print(
        f"step of {train_args.batch_size} images: {fused:.1f} ms with {kernels}, "
        f"{plain:.1f} ms with plain torch.nn ({plain / fused:.2f}x)"
    )
    print(f"real digits:      {run.path / 'real.png'}")
    print(f"generated digits: {run.path / f'samples-{train_args.steps:06d}.png'}")
    return 0


def _time_steps(trainer: Trainer, dataset: ImageDataset, batch_size: int, rounds: int = 40) -> tuple[float, float]:
    """Median milliseconds of a training step with plain torch.nn, and with this package."""
    trainers = [GANTrainer(gf.unfuse(copy.deepcopy(trainer.model))), GANTrainer(copy.deepcopy(trainer.model))]
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
