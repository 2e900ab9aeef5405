"""The command line: ``genimg-fast``, or ``python -m genimg_fast``."""

import argparse
import copy
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import torch

import genimg_fast as gf
from genimg_fast.data import ImageDataset, batches, load_dataset
from genimg_fast.data.optional import optional_import
from genimg_fast.losses import GAN_LOSSES
from genimg_fast.models import create_model
from genimg_fast.training import GANTrainer, NonFiniteLossError, RunFolder, fit, load_model, save_grid

# Recognisable digits in about a minute on two cores. Unlike the defaults: less noise to organise, and a higher
# learning rate, which so small a network stands.
# fmt: off
DEMO = [
    "train", "dcgan", "--data", "digits", "--image-size", "32", "--channels", "32", "--z-dim", "20",
    "--batch-size", "64", "--lr", "5e-4", "--steps", "1500",
]
# fmt: on


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: Arguments, without the program's name; those of the process by default.

    Returns:
        The exit status: 0 done, 1 failed, 130 stopped by Ctrl-C.

    Raises:
        SystemExit: With status 2 for arguments that make no sense, after one line on stderr.

    Example:
        >>> main(["sample", "runs/00000-dcgan-digits", "--n", "16"])  # doctest: +SKIP
        0
    """
    parser = _build_parser()
    args = parser.parse_args(argv)
    try:
        return args.run(args)
    except (ImportError, NonFiniteLossError) as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print(f"{parser.prog}: {interrupt or 'interrupted'}", file=sys.stderr)
        return 130


def _train(args: argparse.Namespace) -> int:
    _fit(args)
    return 0


def _fit(args: argparse.Namespace) -> tuple[RunFolder, GANTrainer, ImageDataset]:
    parser: _Parser = args.parser
    with parser.blaming("--backend"):
        gf.set_backend(args.backend)
    with parser.blaming("--data"):
        dataset = load_dataset(
            args.data, image_size=args.image_size, channels=args.c_dim, root=args.data_root, download=args.download
        )
    if args.batch_size > len(dataset):
        parser.error(f"argument --batch-size: must be at most {len(dataset)}, the number of images in {args.data}")

    model_args = {
        "z_dim": args.z_dim,
        "c_dim": dataset.images.shape[1],
        "channels": args.channels,
        "n_blocks": int(math.log2(args.image_size // 4)),
    }
    config = {
        "model": args.model,
        "model_args": model_args,
        "data": args.data,
        "image_size": args.image_size,
        "loss": args.loss,
        "lr": args.lr,
        "batch_size": args.batch_size,
        "steps": args.steps,
        "seed": args.seed,
        "device": str(args.device),
        "backend": args.backend,
        "versions": {"genimg_fast": gf.__version__, "torch": str(torch.__version__)},
    }
    with parser.blaming("--out"):
        run = RunFolder.create(args.out, f"{args.model}-{Path(args.data).resolve().name}", config)

    torch.manual_seed(args.seed)
    model = create_model(args.model, **model_args).to(args.device)
    trainer = GANTrainer(model, loss=args.loss, lr=args.lr, seed=args.seed)
    print(f"{args.model} on {len(dataset)} images of {args.data}, {args.device}, writing to {run.path}")
    fit(
        trainer,
        dataset,
        steps=args.steps,
        batch_size=args.batch_size,
        seed=args.seed,
        run=run,
        log_every=args.log_every,
        sample_every=args.sample_every,
        checkpoint_every=args.checkpoint_every,
        progress=True,
    )
    print(f"done: {run.path / f'samples-{args.steps:06d}.png'}, checkpoint {run.checkpoint}")
    return run, trainer, dataset


def _sample(args: argparse.Namespace) -> int:
    parser: _Parser = args.parser
    if args.out.suffix.lower() not in optional_import("PIL.Image").registered_extensions():
        parser.error(f"argument --out: {str(args.out)!r} does not end like an image file, such as .png")
    with parser.blaming("RUN"):
        model: Any = load_model(args.RUN)
    images = model.to(args.device).sample(args.n, generator=torch.Generator().manual_seed(args.seed))
    with parser.blaming("--out"):
        save_grid(images, args.out)
    print(args.out)
    return 0


def _info(args: argparse.Namespace) -> int:
    print(gf.info())
    return 0


def _demo(args: argparse.Namespace) -> int:
    flags = [*DEMO, "--out", str(args.out), "--seed", str(args.seed), "--device", str(args.device)]
    if args.steps is not None:
        flags += ["--steps", str(args.steps)]
    train_args = _build_parser().parse_args(flags)
    print(f"genimg-fast {' '.join(flags)}")
    run, trainer, dataset = _fit(train_args)

    plain, fused = _time_steps(trainer, dataset, train_args.batch_size)
    kernels = "fused kernels" if gf.info().native else "genimg_fast.nn (not fused: see genimg-fast info)"
    print(
        f"step of {train_args.batch_size} images: {fused:.1f} ms with {kernels}, "
        f"{plain:.1f} ms with plain torch.nn ({plain / fused:.2f}x)"
    )
    print(f"real digits:      {run.path / 'real.png'}")
    print(f"generated digits: {run.path / f'samples-{train_args.steps:06d}.png'}")
    return 0


def _time_steps(
    trainer: GANTrainer, dataset: ImageDataset, batch_size: int, rounds: int = 40
) -> tuple[float, float]:
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


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help with the defaults, where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")

    @contextmanager
    def blaming(self, flag: str) -> Iterator[None]:
        """Report an error that comes of a flag's value like one of parsing it."""
        try:
            yield
        except (OSError, RuntimeError, ValueError) as error:
            self.error(f"argument {flag}: {' '.join(str(error).split())}")


def _build_parser() -> _Parser:
    parser = _Parser(prog="genimg-fast", description="Train image-generation models with fused kernels.")
    parser.add_argument("--version", action="version", version=f"genimg-fast {gf.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> _Parser:
        new = commands.add_parser(name, help=text, description=text, formatter_class=_Help)
        new.set_defaults(run=run, parser=new)
        return new

    train = command("train", _train, "Train a model; write a numbered run folder.")
    train.add_argument("model", choices=["dcgan"], help="what to train")
    group = train.add_argument_group("data")
    group.add_argument("--data", default="digits", metavar="NAME|FOLDER",
                       help="digits, mnist, fashion-mnist, cifar10, or a folder of images")  # fmt: skip
    group.add_argument(
        "--image-size", type=_image_size, metavar="N", default=32, help="pixels a side: 8, 16, 32, 64 ..."
    )
    group.add_argument(
        "--c-dim", type=int, choices=[1, 3], help="1 for grey, 3 for colour; default: the data's own"
    )
    group.add_argument(
        "--data-root", type=Path, metavar="FOLDER", default=Path("data"), help="where downloaded data sets are"
    )
    group.add_argument("--download", action="store_true", help="allow torchvision to download a missing data set")
    group = train.add_argument_group("model")
    group.add_argument("--z-dim", type=_at_least(1), metavar="N", default=100, help="length of a noise vector")
    group.add_argument(
        "--channels", type=_at_least(1), metavar="N", default=64, help="feature channels at half the resolution"
    )
    group = train.add_argument_group("training")
    group.add_argument("--steps", type=_at_least(1), metavar="N", default=2000, help="steps to train")
    group.add_argument("--batch-size", type=_at_least(2), metavar="N", default=64, help="images in a batch")
    group.add_argument("--lr", type=_positive, metavar="X", default=2e-4, help="learning rate of Adam")
    group.add_argument("--loss", choices=list(GAN_LOSSES), default="non_saturating", help="adversarial loss")
    _add_seed_and_device(group)
    group.add_argument("--backend", choices=["auto", "native", "reference"], default=gf.get_backend(),
                       help="fused kernels where they pay, always, or never")  # fmt: skip
    group = train.add_argument_group("output")
    group.add_argument("--out", type=Path, metavar="FOLDER", default=Path("runs"), help="folder of all runs")
    group.add_argument(
        "--log-every", type=_at_least(1), metavar="N", default=20, help="steps between two rows of statistics"
    )
    group.add_argument(
        "--sample-every",
        type=_at_least(0),
        metavar="N",
        default=500,
        help="steps between two grids; 0: at the end",
    )
    group.add_argument("--checkpoint-every", type=_at_least(0), metavar="N", default=500,
                       help="steps between two checkpoints; 0: at the end")  # fmt: skip

    sample = command("sample", _sample, "Generate images with a trained model.")
    sample.add_argument("RUN", type=Path, help="run folder, or checkpoint")
    sample.add_argument("--n", type=_at_least(1), metavar="N", default=64, help="number of images")
    sample.add_argument("--out", type=Path, metavar="FILE", default=Path("grid.png"), help="image file to write")
    _add_seed_and_device(sample)

    demo = command("demo", _demo, "Train a small DCGAN on real handwritten digits, then time a step.")
    demo.add_argument("--out", type=Path, metavar="FOLDER", default=Path("runs"), help="folder of all runs")
    demo.add_argument(
        "--steps", type=_at_least(1), metavar="N", help="steps to train; default: enough for recognisable digits"
    )
    _add_seed_and_device(demo)

    command("info", _info, "Show versions, and which path is live for each operator and device.")
    return parser


def _add_seed_and_device(parser: argparse._ActionsContainer) -> None:
    parser.add_argument("--seed", type=_at_least(0), metavar="N", default=0, help="seed of all random numbers")
    parser.add_argument(
        "--device", type=_device, default="auto", help="cpu, cuda, cuda:1 ...; auto: a GPU if there is one"
    )


def _at_least(minimum: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = minimum - 1
        if value < minimum:
            raise argparse.ArgumentTypeError(f"must be an integer of at least {minimum}, got {text!r}")
        return value

    return integer


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return value


def _image_size(text: str) -> int:
    sizes = [4 * 2**blocks for blocks in range(1, 9)]
    if text not in map(str, sizes):
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(map(str, sizes))}, got {text!r}")
    return int(text)


def _device(text: str) -> torch.device:
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(text)
    except RuntimeError:
        raise argparse.ArgumentTypeError(f"must be auto, cpu, cuda or cuda:<number>, got {text!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise argparse.ArgumentTypeError(f"there is no {text} on this machine")
    return device
