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
from genimg_fast.cli.use import Real, load_real, load_with_settings
from genimg_fast.data import ImageDataset
from genimg_fast.data.optional import optional_import
from genimg_fast.metrics import (
    DigitsNetwork,
    FeatureNetwork,
    GaussianStatistics,
    InceptionNetwork,
    InceptionScore,
    RandomNetwork,
    frechet_distance,
    judge_discriminator,
    plot_roc,
    real_statistics,
)
from genimg_fast.models import BaseGAN, create_model
from genimg_fast.models.checkpoint import find_checkpoint

_BATCH = 100
_FEATURES = ("digits", "random", "inception")
_READABLE = 0.8  # share of the real digits that the classifier of digits reads, for its features to say something


def add(commands: Any) -> None:
    """Add the command."""
    new = add_command(commands, "eval", _evaluate, "Judge the images that a trained model generates.", """
        genimg-fast eval runs/00000-dcgan-digits
        genimg-fast eval runs/00003-dcgan-photos --features inception --weights inception_v3.pth --n 10000
    """)  # fmt: skip
    new.description = (
        f"{new.description} The figures compare with each other only, for the same features, real images and "
        "numbers of images. They compare with no published FID, whatever the features: that takes weights of "
        "Inception v3 which were converted from TensorFlow, where --features inception takes torchvision's, and "
        "mostly 50,000 images; the package torch-fidelity computes it."
    )
    new.add_argument("RUN", type=Path, help="run folder, or checkpoint")
    new.add_argument("--data", metavar="NAME|FOLDER",
                     help="real images; default: what the run held out, else what it trained on")  # fmt: skip
    add_data_root(new)
    new.add_argument(
        "--n",
        type=at_least(2),
        metavar="N",
        help="images to generate; default: as many as real ones to compare with",
    )
    new.add_argument("--features", choices=list(_FEATURES),
                     help="network that judges: a small classifier of digits, for digits like scikit-learn's, an "
                     "untrained network, Inception v3; default: digits for such digits, else random")  # fmt: skip
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
    reference, others = _real_images(args, model, config)
    network = _network(args, reference)
    model.to(args.device)
    torch.manual_seed(args.seed)
    untrained = create_model(config["model"], **config["model_args"]).to(args.device)
    n = args.n or len(others.dataset)
    with parser.blaming("--cache"):
        real = real_statistics(reference.dataset, network, cache=args.cache)
        floor = real_statistics(others.dataset, network, cache=args.cache)
    statistics, score, samples = _judge(args, model, network, n)
    start, _, _ = _judge(args, untrained, network, n)
    few = min(n, len(reference.dataset), len(others.dataset))
    report: dict[str, Any] = {
        "network": network.identity,
        "images": n,
        "real_images": len(reference.dataset),
        "real_images_are": reference.kind(),
        "frechet_distance": frechet_distance(statistics, real),
        "frechet_distance_untrained": frechet_distance(start, real),
        "frechet_distance_real": frechet_distance(floor, real),
    }
    by = f"by {network.dim} features of: {network.identity}"
    print(f"{config['model']} against {reference.describe(len(reference.dataset))}, {by}")
    if few <= network.dim:
        of_gan = ", and accuracy and area under the ROC curve vary much" if isinstance(model, BaseGAN) else ""
        print(f"  {few} images are too few: with no more than features, {network.dim}, Fréchet distances come out "
              f"far too high{of_gan}")  # fmt: skip
    others_are = others.kind() if others.relation != reference.relation else f"other {others.kind()}"
    for name, whose in (
        ("frechet_distance", f"{n} generated images"),
        ("frechet_distance_untrained", f"{n} images of the untrained model"),
        ("frechet_distance_real", f"{len(others.dataset)} {others_are}: the floor"),
    ):
        print(f"  {report[name]:10.4f}  Fréchet distance ({network.identity}) of {whose}")
    if score is not None:
        report["inception_score"] = score
        print(f"  {score[0]:10.4f}  Inception score ({network.identity}) of {n} generated images, "
              f"+- {score[1]:.4f}, of at most {network.num_classes}")  # fmt: skip
    out: Path = args.out or find_checkpoint(args.RUN).parent
    with parser.blaming("--out"):
        out.mkdir(parents=True, exist_ok=True)
        if isinstance(model, BaseGAN):
            judged = reference if reference.relation == "held-out" else others
            real_logits, fake_logits = _logits(args, model, judged.dataset, samples)
            discriminator = judge_discriminator(real_logits, fake_logits)
            real_ones = judged.describe(len(judged.dataset))
            plot_roc(discriminator, out / "roc.png", title=f"{real_ones}, {n} generated")
            report |= {"accuracy": discriminator.accuracy, "auc": discriminator.auc}
            of = f"{len(judged.dataset)} {judged.kind()} and {n} generated"
            print(f"discriminator: accuracy {discriminator.accuracy:.1%}, area under the ROC curve "
                  f"{discriminator.auc:.3f}, of {of}")  # fmt: skip
        (out / "eval.json").write_text(json.dumps(report, indent=2) + "\n")
    print(out / "eval.json")
    return 0


def _real_images(args: argparse.Namespace, model: Any, config: dict[str, Any]) -> tuple[Real, Real]:
    """Get the real images that stand for the data, and others, to show how near real ones come to them.

    Distances of sets of different sizes do not compare. So these are the images that the run held out, and as many
    of the others; or, if it held none out, two halves.
    """
    real = load_real(args, model, config)
    generator = torch.Generator().manual_seed(args.seed)
    if real.relation == "held-out":
        training = load_real(args, model, config, training=True)
        order = torch.randperm(len(training.dataset), generator=generator)
        pieces = [real, training._replace(dataset=_part(training.dataset, order[: len(real.dataset)]))]
    else:
        order = torch.randperm(len(real.dataset), generator=generator)
        pieces = [real._replace(dataset=_part(real.dataset, half)) for half in order.tensor_split(2)]
    if min(len(piece.dataset) for piece in pieces) < 2:
        args.parser.error(f"argument --data: needs at least 4 images, got {len(real.dataset)} {real.kind()}")
    return pieces[0], pieces[1]


def _part(dataset: ImageDataset, chosen: Tensor) -> ImageDataset:
    return ImageDataset(dataset.images[chosen], dataset.labels[chosen], class_names=dataset.class_names)


def _network(args: argparse.Namespace, real: Real) -> FeatureNetwork:
    """Get the network that judges: one whose features fit the images."""
    if args.features == "inception":
        with args.parser.blaming("--weights"):
            return InceptionNetwork(args.weights, download=args.download).to(args.device)
    if args.features != "random":
        # "0", or "0 - zero" as torchvision calls it.
        names = real.dataset.class_names
        named = len(names) == 10 and all(name.split(" ")[0] == str(k) for k, name in enumerate(names))
        why = f"the classes of {real.source} are not the digits"
        if named:
            digits = DigitsNetwork().to(args.device)
            read = digits.share_read(real.dataset)
            if read >= _READABLE:
                return digits
            why = f"it reads {read:.0%} of those of {real.source} right"
        if args.features == "digits":
            args.parser.error(
                f"argument --features: digits is a classifier of scikit-learn's digits, and {why}: use random, or "
                "inception with --weights or --download"
            )
    return RandomNetwork().to(args.device)


@torch.no_grad()
def _judge(
    args: argparse.Namespace, model: Any, network: FeatureNetwork, n: int
) -> tuple[GaussianStatistics, tuple[float, float] | None, Tensor]:
    """Generate ``n`` images; return their features' statistics, their score (if any), and themselves."""
    statistics = GaussianStatistics(network.dim, args.device)
    score = None
    if network.num_classes > 0:
        score = InceptionScore(network.num_classes, splits=min(10, n), device=args.device)
    kept = []
    for images in _generated(args, model, n):
        features, logits = network(images)
        statistics.update(features)
        if score is not None:
            score.update(logits)
        kept.append(images.cpu())
    return statistics, None if score is None else score.compute(), torch.cat(kept)


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
