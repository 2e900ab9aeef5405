"""``genimg-fast eval``."""

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from genimg_fast._close_names import did_you_mean
from genimg_fast._evaluating import evaluating
from genimg_fast._files import replacing
from genimg_fast.cli.arguments import blaming
from genimg_fast.cli.picture_sets import common_side, load_pictures
from genimg_fast.cli.runs import Images, ImageSource, Real, Session, load_real, load_with_settings
from genimg_fast.data import ImageDataset
from genimg_fast.data.progress import bar
from genimg_fast.metrics import (
    ClassifierNetwork,
    Estimate,
    FeatureNetwork,
    Features,
    FidelityNetwork,
    InceptionNetwork,
    RandomNetwork,
    compare_features,
    inception_score,
    judge_classes,
    judge_discriminator,
    plot_roc,
    real_features,
)
from genimg_fast.metrics.estimates import CONFIDENCE
from genimg_fast.models import BaseGAN, create_model
from genimg_fast.models.pretrained import find_run
from genimg_fast.options import File, Folder, OptionError, PositiveInt, Reader, integers

_BATCH = 100
_FEATURES = ("classifier", "random", "inception")
_READABLE = 0.5  # share of held-out images that a classifier reads right, for its features to say something
_FIGURES = {
    "frechet_distance": "Fréchet distance",
    "kernel_distance": "kernel distance",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
}
_FEWEST = 6  # images, for all of them
_SPLITS = 10  # of the Inception score


def _features(text: str) -> str:
    if text not in _FEATURES and not text.startswith("fidelity:"):
        known = [*_FEATURES, "fidelity:FILE"]
        hint = did_you_mean(text, known) or f" (choose from {', '.join(known)})"
        raise ValueError(f"invalid choice: {text!r}{hint}")
    return text


_FeaturesName = Annotated[str, Reader(_features, "NAME")]
_Pictures = Annotated[Path, Reader(Path, "FOLDER|FILE")]


class _Options(NamedTuple):
    """Arguments that several steps need."""

    source: ImageSource
    n: int | None
    features: str | None
    weights: Path | None
    cache: Path | None
    seed: int
    device: torch.device


class _Judged(NamedTuple):
    """Images that were generated, in the eyes of networks."""

    seen: Features
    requested: Tensor | None  # classes
    classified: Features | None  # in the eyes of the classifier
    logits: Tensor  # of the discriminator, if there is one


def evaluate(
    run: Path | None = None,
    *,
    samples: _Pictures | None = None,
    real: Images | None = None,
    source: ImageSource,
    n: Annotated[int, integers(2)] | None = None,
    image_size: PositiveInt | None = None,
    features: _FeaturesName | None = None,
    weights: File | None = None,
    cache: Folder | None = None,
    out: Folder | None = None,
    session: Session,
) -> int:
    """Judge the images that a trained model generates, or any pictures.

    Each figure has a 95 % interval, by resampling, and compares with others for the same features, real images and
    numbers of images only. Published FIDs, KIDs and Inception scores take --features fidelity:FILE, with the
    weights that torch-fidelity publishes, 50,000 samples and all real images in the size of the samples: put the
    samples into a folder or an .npz file for --samples.

    Args:
        run: Run folder, or checkpoint.
        samples: Pictures to judge, of any origin: a folder, or an .npz file.
        real: Real ones to judge them by: a folder, an .npz file, or the name of a data set.
        n: Images to generate; default: as many as real ones to compare with.
        image_size: Pixels a side to resize pictures to; default: that of the samples.
        features: Network that judges: classifier, a small one trained on the real images; random, an untrained
            one; inception, torchvision's Inception v3; fidelity:FILE, torch-fidelity's, with its weights; default:
            classifier for labelled images, else random.
        weights: Of --features inception, torchvision's; default: downloaded, with --download.
        cache: Where to keep the features of real images, and the classifier; default: the classifier in the run.
        out: For eval.json and roc.png; default: the run's, or this folder.
        source: Where real images come from.
        session: Random numbers, and the device.

    Example:
        genimg-fast eval runs/00000-dcgan-digits
        genimg-fast eval runs/00003-dcgan-photos --features inception --weights inception_v3.pth --n 10000
        genimg-fast eval --samples samples/ --real faces/
        genimg-fast eval --samples samples.npz --real faces/ --features fidelity:weights-inception-2015-12-05.pth
    """
    if (run is None) == (samples is None):
        raise OptionError("run", "must be given, or else --samples and --real")
    for name, given, wanted in (
        ("weights", weights, features == "inception"), ("real", real, samples is not None),
        ("data", source.data, run is not None), ("n", n, run is not None), ("image_size", image_size, run is None),
    ):  # fmt: skip
        if given is not None and not wanted:
            what = {"weights": "--features inception", "real": "--samples", "image_size": "--samples"}.get(
                name, "a RUN"
            )
            raise OptionError(name, f"is for {what}")
    args = _Options(source, n, features, weights, cache, session.seed, session.find_device())
    if run is not None:
        report, roc = _judge_run(args, run)
    elif samples is not None and real is not None:
        report, roc = _judge_pictures(args, samples, real, image_size), None
    else:
        raise OptionError("samples", "needs real pictures to compare with: --real")
    out = out or (Path() if run is None else find_run(run))
    with blaming("out"):
        out.mkdir(parents=True, exist_ok=True)
        if roc is not None:
            plot_roc(roc[0], out / "roc.png", title=roc[1])
        with replacing(out / "eval.json") as temporary:
            temporary.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n")
    print(out / "eval.json")
    return 0


def _judge_run(args: _Options, run: Path) -> tuple[dict[str, Any], tuple[Any, str] | None]:
    """Judge what a model generates; return the report, and the ROC curve with its title, if there is one."""
    model, config = load_with_settings(run)
    if not hasattr(model, "sample") or not hasattr(model, "c_dim"):
        raise OptionError("run", f"{config['model']} does not generate images by itself")
    reference, others, training = _real_images(args, model, config)
    beside = args.cache or find_run(run)
    network, classifier = _networks(args, training, beside)
    model.to(args.device)
    torch.manual_seed(args.seed)
    untrained = create_model(config["model"], **config["model_args"]).to(args.device)
    n = args.n or len(others.dataset)
    generated = _generate(args, model, network, classifier, n)
    start = _generate(args, untrained, network, None, n)
    with blaming("cache"):
        real = real_features(reference.dataset, network, cache=args.cache, progress=True)
        floor = real_features(others.dataset, network, cache=args.cache, progress=True)

    print(f"{config['model']} against {reference.describe(len(reference.dataset))}, {_by(network)}")
    few = min(n, len(reference.dataset), len(others.dataset))
    _warn_of_few(
        few, network, ", and accuracy and area under the ROC curve vary much" * isinstance(model, BaseGAN)
    )
    others_are = others.kind() if others.relation != reference.relation else f"other {others.kind()}"
    report = _Report(network, seed=args.seed)
    report.add("", generated.seen, real.features, f"{n} generated images")
    report.add("_untrained", start.seen, real.features, f"{n} images of the untrained model", ["frechet_distance"])
    report.add("_real", floor, real.features, f"{len(others.dataset)} {others_are}, the best to expect")
    report.write()
    report.values |= {"images": n, "real_images": len(reference.dataset), "real_images_are": reference.kind()}
    if generated.requested is not None and generated.classified is not None and classifier is not None:
        known = real_features(reference.dataset, classifier, cache=args.cache)
        labels = reference.dataset.labels.to(args.device)
        report.add_classes(classifier, generated.requested, generated.classified, labels, known.features)
    if not isinstance(model, BaseGAN):
        return report.values, None
    judged = reference if reference.relation == "held-out" else others
    of = f"{len(judged.dataset)} {judged.kind()} and {n} generated"
    found = judge_discriminator(_real_logits(args, model, judged.dataset), generated.logits)
    print(f"discriminator: accuracy {found.accuracy:.1%}, area under the ROC curve {found.auc:.3f}, of {of}")
    report.values |= {"accuracy": found.accuracy, "auc": found.auc}
    return report.values, (found, f"{judged.describe(len(judged.dataset))}, {n} generated")


def _judge_pictures(args: _Options, samples: Path, real: str, image_size: int | None) -> dict[str, Any]:
    """Judge pictures of any origin."""
    sides = {}
    for name, source in (("samples", samples), ("real", real)):
        with blaming(name):
            sides[name] = common_side(source)
    if sides["samples"] is None:
        raise OptionError("samples", f"{samples} holds no pictures")
    side = image_size or sides["samples"][0]
    options = {"root": args.source.data_root, "download": args.source.download}
    with blaming("samples"):
        pictures = load_pictures(samples, side)
    with blaming("real"):
        others = load_pictures(real, side, **options)
    reference = Real(others, "real", real)
    if min(len(pictures), len(others)) < 2:
        raise OptionError("samples", "and --real need at least 2 pictures each")
    resized = [name for name, found in sides.items() if found not in (None, (side, True))]
    alike = f"all at {side}x{side}" + (f", {' and '.join(resized)} resized" if resized else "")
    network, classifier = _networks(args, reference, args.cache)
    with blaming("cache"):
        seen = real_features(pictures, network, cache=args.cache, progress=True)
        known = real_features(others, network, cache=args.cache, progress=True)
    print(f"{samples} against {reference.describe(len(others))}, {alike}, {_by(network)}")
    _warn_of_few(min(len(pictures), len(others)), network)
    report = _Report(network, seed=args.seed)
    report.add("", seen, known.features, f"{len(pictures)} samples and {len(others)} real images")
    report.write()
    report.values |= {"images": len(pictures), "real_images": len(others), "real_images_are": "real images"}
    report.values |= {"samples": str(samples), "real": real, "image_size": side}
    if classifier is not None and pictures.class_names == others.class_names:
        classified = real_features(pictures, classifier, cache=args.cache)
        of_real = real_features(others, classifier, cache=args.cache).features
        report.add_classes(
            classifier, pictures.labels.to(args.device), classified, others.labels.to(args.device), of_real
        )
    return report.values


class _Report:
    """Figures, as lines and as what eval.json holds.

    Args:
        network: What the features are of.
        seed: Of the intervals.
    """

    def __init__(self, network: FeatureNetwork, *, seed: int) -> None:
        self.network, self.seed = network, seed
        self.values: dict[str, Any] = {"network": network.identity, "confidence": CONFIDENCE, "intervals": {}}
        self._lines: dict[str, list[str]] = {name: [] for name in [*_FIGURES, "inception_score"]}
        self._names = dict(_FIGURES, inception_score="Inception score")
        if isinstance(network, FidelityNetwork):
            self._names |= {"frechet_distance": "FID", "kernel_distance": "KID"}

    def add(
        self, suffix: str, seen: Features, real: Tensor, of: str, figures: Sequence[str] | None = None
    ) -> None:
        """Compute figures of images, and keep them under their names with a suffix."""
        if figures is None:
            figures = list(_FIGURES) if min(len(seen.features), len(real)) >= _FEWEST else ["frechet_distance"]
        found = compare_features(seen.features, real, figures=figures, seed=self.seed)
        if seen.logits.shape[1] > 0 and suffix == "":
            splits = min(_SPLITS, len(seen.logits))
            found["inception_score"] = inception_score(seen.logits, splits=splits, seed=self.seed)
        for name, estimate in found.items():
            self._keep(name + suffix, estimate)
            more = f", of at most {self.network.num_classes}" if name == "inception_score" else ""
            if name == "frechet_distance" and suffix == "" and estimate.bias > 0:
                more = f"; so few add about {_number(estimate.bias)}"
            line = _line(estimate, f"{self._names[name]} of {of}{more}")
            self._lines[name].append(line)

    def write(self) -> None:
        """Print the lines, those of a figure together."""
        for lines in self._lines.values():
            for line in lines:
                print(line)
        if isinstance(self.network, FidelityNetwork) and self.network.published:
            print(
                "  FID, KID and Inception score compare with published ones of as many images, the same real ones"
            )

    def add_classes(
        self, classifier: ClassifierNetwork, requested: Tensor, seen: Features, labels: Tensor, real: Tensor
    ) -> None:
        """Judge whether images are of their classes, and vary within them, and print it."""
        found = judge_classes(requested, seen.logits.argmax(1), seen.features, labels, real, seed=self.seed)
        self._keep("class_agreement", found.agreement)
        shares = found.agreement_by_class
        self.values["class_agreement_by_class"] = [None if math.isnan(share) else share for share in shares]
        n = len(requested)
        by = f" ({classifier.identity})" * (classifier is not self.network)
        print(_line(found.agreement, f"share of the requested class{by} of {n} generated images"))
        if found.variation is not None:
            self._keep("class_variation", found.variation)
            print(_line(found.variation, f"variation within a class{by} of {n} generated images, over that of "
                        f"{len(labels)} real ones"))  # fmt: skip

    def _keep(self, name: str, estimate: Estimate) -> None:
        self.values[name] = estimate.value
        self.values["intervals"][name] = [estimate.low, estimate.high]


def _number(value: float) -> str:
    return f"{value:.4g}"


def _line(estimate: Estimate, what: str) -> str:
    largest = max(map(abs, estimate[:3]))
    digits = (2 if largest < 1 else 3) - math.floor(math.log10(largest)) if largest > 0 else 3
    decimals = min(6, max(0, digits))
    value, low, high = (f"{each:.{decimals}f}" for each in estimate[:3])
    return f"  {value:>9} {f'[{low}, {high}]':<22}  {what}"


def _by(network: FeatureNetwork) -> str:
    return f"by {network.dim} features of: {network.identity}; [95% intervals]"


def _warn_of_few(few: int, network: FeatureNetwork, more: str = "") -> None:
    if few <= network.dim:
        print(f"  {few} images are too few: with no more than features, {network.dim}, Fréchet distances come out "
              f"far too high{more}")  # fmt: skip


def _real_images(args: _Options, model: Any, config: dict[str, Any]) -> tuple[Real, Real, Real]:
    """Get real images that stand for the data, others, to show how near real ones come, and those to learn from.

    Distances of sets of different sizes do not compare. So these are the images that the run held out, and as many
    of the others; or, if it held none out, two halves.
    """
    load = partial(load_real, model, config, args.source)
    real = load()
    generator = torch.Generator().manual_seed(args.seed)
    if real.relation == "held-out":
        training = load(training=True)
        order = torch.randperm(len(training.dataset), generator=generator)
        pieces = [real, training._replace(dataset=training.dataset.take(order[: len(real.dataset)]))]
    else:
        training = real
        order = torch.randperm(len(real.dataset), generator=generator)
        pieces = [real._replace(dataset=real.dataset.take(half)) for half in order.tensor_split(2)]
    if min(len(piece.dataset) for piece in pieces) < 2:
        raise OptionError("data", f"needs at least 4 images, got {len(real.dataset)} {real.kind()}")
    return pieces[0], pieces[1], training


def _classifier(args: _Options, real: Real, cache: Path | None) -> ClassifierNetwork | None:
    """Train a classifier on real images, if they have classes; say how it does, and what judges if it does not."""
    if len(real.dataset.class_names) < 2:
        if args.features == "classifier":
            raise OptionError(
                "features", f"classifier needs images of two classes or more, and {real.source} has one"
            )
        if args.features is None:
            print(f"{real.source} has no classes for a classifier to learn: features of an untrained network")
        return None
    with blaming("features", (ValueError,)), blaming("cache", (OSError,)):
        network = ClassifierNetwork(real.dataset, cache=cache, device=args.device, progress=True)
    useless = network.accuracy < _READABLE and args.features != "classifier"
    print(f"{network.identity} of {network.num_classes} classes reads {network.accuracy:.1%} right of "
          f"{network.held_out} {real.kind()} of {real.source} that it has not seen"
          f"{': too few to judge by' * useless}"
          f"{', so features of an untrained network' * (useless and args.features is None)}")  # fmt: skip
    return None if useless else network


def _networks(args: _Options, real: Real, cache: Path | None) -> tuple[FeatureNetwork, ClassifierNetwork | None]:
    """Get the network that judges; then, since it takes longest, a classifier of images that have classes."""
    network: FeatureNetwork = RandomNetwork()
    if args.features == "inception":
        with blaming("weights"):
            network = InceptionNetwork(args.weights, download=args.source.download)
    elif args.features is not None and args.features.startswith("fidelity:"):
        with blaming("features"):
            network = FidelityNetwork(args.features.removeprefix("fidelity:"))
    classifier = _classifier(args, real, cache)
    if args.features in (None, "classifier") and classifier is not None:
        return classifier, classifier
    return network.to(args.device), classifier


@torch.no_grad()
def _generate(
    args: _Options, model: Any, network: FeatureNetwork, classifier: ClassifierNetwork | None, n: int
) -> _Judged:
    """Generate ``n`` images, and look at them while they are there."""
    generator = torch.Generator().manual_seed(args.seed)
    requested = _labels(model, n, args.seed)
    seen: list[tuple[Tensor, Tensor]] = []
    classified: list[tuple[Tensor, Tensor]] = []
    logits = []
    for chosen in bar(torch.arange(n).split(_BATCH), "generating", "batch", progress=True):
        labels = None if requested is None else requested[chosen].to(args.device)
        conditions = {} if labels is None else {"labels": labels}
        images = model.sample(len(chosen), **conditions, generator=generator)
        seen.append(network(images))
        if classifier is not None and requested is not None:
            classified.append(seen[-1] if classifier is network else classifier(images))
        if isinstance(model, BaseGAN):
            with evaluating(model):
                logits.append(model.discriminator(images, labels))
    return _Judged(
        _joined(seen), None if requested is None else requested.to(args.device),
        _joined(classified) if classified else None, torch.cat(logits) if logits else torch.empty(0),
    )  # fmt: skip


def _joined(parts: list[tuple[Tensor, Tensor]]) -> Features:
    return Features(*(torch.cat(each) for each in zip(*parts, strict=True)))


def _labels(model: Any, n: int, seed: int) -> Tensor | None:
    """Draw the classes to generate, each equally often, in any order: no split of a score has one alone."""
    classes = getattr(model, "num_classes", 0)
    if classes == 0:
        return None
    return (torch.arange(n) % classes)[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]


@torch.no_grad()
def _real_logits(args: _Options, model: BaseGAN, real: ImageDataset) -> Tensor:
    """The discriminator's logits, in evaluation mode."""
    logits = []
    with evaluating(model):
        for images, labels in real.pieces(torch.arange(len(real)).split(_BATCH)):
            known = labels.to(args.device) if model.num_classes > 0 else None
            logits.append(model.discriminator(images.to(args.device), known))
    return torch.cat(logits)
