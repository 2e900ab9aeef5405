"""``genimg-fast eval``."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genimg_fast._evaluating import evaluating
from genimg_fast.cli.arguments import Parser, add_command, add_data_root, add_seed_and_device, at_least
from genimg_fast.cli.use import load_real, load_with_settings
from genimg_fast.data import ImageDataset
from genimg_fast.data.optional import optional_import
from genimg_fast.metrics import (
    DigitsNetwork,
    FeatureNetwork,
    GaussianStatistics,
    InceptionNetwork,
    InceptionScore,
    frechet_distance,
    judge_discriminator,
    plot_roc,
    real_statistics,
)
from genimg_fast.models import BaseGAN, create_model
from genimg_fast.training.run import find_checkpoint

_BATCH = 100


def add(commands: Any) -> None:
    """Add the command."""
    new = add_command(commands, "eval", _evaluate, "Judge the images that a trained model generates.", """
        genimg-fast eval runs/00000-dcgan-digits
        genimg-fast eval runs/00003-dcgan-photos --features inception --weights inception_v3.pth --n 10000
    """)  # fmt: skip
    new.add_argument("RUN", type=Path, help="run folder, or checkpoint")
    new.add_argument("--data", metavar="NAME|FOLDER", help="real images; default: those of the training")
    add_data_root(new)
    new.add_argument(
        "--n", type=at_least(2), metavar="N", help="images to generate; default: half of the real ones"
    )
    new.add_argument("--features", choices=["digits", "inception"], default="digits",
                     help="network that judges: a small classifier of digits, or Inception v3")  # fmt: skip
    new.add_argument("--weights", type=Path, metavar="FILE",
                     help="of Inception v3, torchvision's; default: downloaded, with --download")  # fmt: skip
    new.add_argument("--cache", type=Path, metavar="FOLDER", help="where to keep the statistics of real images")
    new.add_argument("--out", type=Path, metavar="FOLDER", help="for eval.json and roc.png; default: the run's")
    add_seed_and_device(new)


def _evaluate(args: argparse.Namespace) -> int:
    parser: Parser = args.parser
    if args.weights and args.features != "inception":
        parser.error("argument --weights: is for --features inception")
    model, config = load_with_settings(args)
    if not hasattr(model, "sample") or not hasattr(model, "c_dim"):
        parser.error(f"argument RUN: {config['model']} does not generate images by itself")
    dataset = load_real(args, model, config)
    if len(dataset) < 4:
        parser.error(f"argument --data: needs at least 4 images, got {len(dataset)}")
    with parser.blaming("--weights"):
        network: FeatureNetwork = (
            DigitsNetwork()
            if args.features == "digits"
            else InceptionNetwork(args.weights, download=args.download)
        )
    network.to(args.device)
    model.to(args.device)
    torch.manual_seed(args.seed)
    untrained = create_model(config["model"], **config["model_args"]).to(args.device)
    # Distances of sets of different sizes do not compare, so half of the real images stands for the data and the
    # other half shows how near other real ones come.
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(args.seed))
    reference, others = (
        ImageDataset(dataset.images[half], dataset.labels[half], class_names=dataset.class_names)
        for half in order.tensor_split(2)
    )
    n = args.n or len(others)
    with parser.blaming("--cache"):
        real = real_statistics(reference, network, cache=args.cache)
        floor = real_statistics(others, network, cache=args.cache)
    statistics, score, samples = _judge(args, model, network, n)
    start, _, _ = _judge(args, untrained, network, n)
    report: dict[str, Any] = {
        "network": network.identity,
        "images": n,
        "frechet_distance": frechet_distance(statistics, real),
        "frechet_distance_untrained": frechet_distance(start, real),
        "frechet_distance_real": frechet_distance(floor, real),
        "inception_score": score,
    }
    print(f"{config['model']}, {n} images, {network.identity}")
    print(f"Fréchet distance to {len(reference)} real images of {args.data or config['data']}")
    print(f"  {report['frechet_distance']:10.4f}  generated images")
    print(f"  {report['frechet_distance_untrained']:10.4f}  those of the untrained model")
    print(f"  {report['frechet_distance_real']:10.4f}  {len(others)} other real images: the floor")
    print(f"Inception score {score[0]:.3f} +- {score[1]:.3f}, of at most {network.num_classes}")
    out: Path = args.out or find_checkpoint(args.RUN).parent
    with parser.blaming("--out"):
        out.mkdir(parents=True, exist_ok=True)
        if isinstance(model, BaseGAN):
            real_logits, fake_logits = _logits(args, model, others, samples)
            discriminator = judge_discriminator(real_logits, fake_logits)
            plot_roc(discriminator, out / "roc.png")
            report |= {"accuracy": discriminator.accuracy, "auc": discriminator.auc}
            print(f"discriminator: accuracy {discriminator.accuracy:.1%}, area under the ROC curve "
                  f"{discriminator.auc:.3f}")  # fmt: skip
        (out / "eval.json").write_text(json.dumps(report, indent=2) + "\n")
    print(out / "eval.json")
    return 0


@torch.no_grad()
def _judge(
    args: argparse.Namespace, model: Any, network: FeatureNetwork, n: int
) -> tuple[GaussianStatistics, tuple[float, float], Tensor]:
    """Generate ``n`` images; return their features' statistics, their score, and themselves."""
    statistics = GaussianStatistics(network.dim, args.device)
    score = InceptionScore(network.num_classes, splits=min(10, n), device=args.device)
    kept = []
    for images in _generated(args, model, n):
        features, logits = network(images)
        statistics.update(features)
        score.update(logits)
        kept.append(images.cpu())
    return statistics, score.compute(), torch.cat(kept)


def _generated(args: argparse.Namespace, model: Any, n: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(args.seed)
    labels = _labels(args, model, n)
    sizes = [_BATCH] * (n // _BATCH) + ([n % _BATCH] if n % _BATCH else [])
    done = 0
    for size in optional_import("tqdm").tqdm(sizes, desc="generating", unit="batch", leave=False, disable=None):
        if labels is None:
            yield model.sample(size, generator=generator)
        else:
            yield model.sample(size, labels=labels[done : done + size].to(args.device), generator=generator)
        done += size


def _labels(args: argparse.Namespace, model: Any, n: int) -> Tensor | None:
    """Draw the classes to generate, each equally often, in any order: no split of a score has one alone."""
    classes = getattr(model, "num_classes", 0)
    if classes == 0:
        return None
    return (torch.arange(n) % classes)[torch.randperm(n, generator=torch.Generator().manual_seed(args.seed))]


@torch.no_grad()
def _logits(args: argparse.Namespace, model: BaseGAN, real: ImageDataset, fake: Tensor) -> tuple[Tensor, Tensor]:
    """The discriminator's logits, in evaluation mode."""
    requested = _labels(args, model, len(fake))
    classes = torch.zeros(len(fake), dtype=torch.int64) if requested is None else requested
    images, labels = real[:]

    def judge(images: Tensor, labels: Tensor) -> Tensor:
        pieces = zip(images.split(_BATCH), labels.split(_BATCH), strict=True)
        moved = ((i.to(args.device), c.to(args.device)) for i, c in pieces)
        return torch.cat([model.discriminator(i, c if model.num_classes > 0 else None) for i, c in moved])

    with evaluating(model):
        return judge(images, labels), judge(fake, classes)
