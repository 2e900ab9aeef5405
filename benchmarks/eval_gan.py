"""What the GANs learn in a few minutes: figures, pictures, and if they are good enough.

    python benchmarks/eval_gan.py --out FOLDER
    python benchmarks/eval_gan.py gaussians pix2pix
    python benchmarks/eval_gan.py --fashion-mnist FOLDER

gaussians    WGAN-GP on a grid of 25 Gaussians in the plane, the toy of the WGAN-GP paper (Gulrajani et al.
             2017, https://arxiv.org/abs/1704.00028): modes found, samples near one of them
relativistic  the same with the relativistic loss, R1 and R2 (R3GAN, Huang et al. 2024,
             https://arxiv.org/abs/2501.05441), one step of the discriminator for one of the generator
conditional  a class-conditional DCGAN on scikit-learn's digits, trained as ``genimg-fast train cdcgan`` does by
             default: samples of each requested class, judged by a support vector machine that has seen real digits
             only
pix2pix      thin lines to the digits that they are the ridges of: mean absolute error on held-out digits, beside
             those of two answers that need no network, the training mean and the input itself
cyclegan     the same without pairs: lines of one half of the digits, the other half as they are

The last command takes a folder with the four IDX files of Fashion-MNIST, and trains on its 60,000 images, at 32x32
pixels, as ``genimg-fast train`` does by default:

conditional    a class-conditional DCGAN: samples of each requested class, judged by a classifier that has seen the
               real training images only; how much samples of a class that it reads as such vary, by their mean
               distance in its features, over how much real test images do
cyclegan       T-shirts to pullovers and back, without pairs: how the classifier reads translated test images, and
               how far those that went there and back are from what they were
unconditional  a DCGAN: how many samples of each class there are, precision and recall against real test images

Exit status 1 if a figure misses what the project asks for. The Fréchet distance of a DCGAN on digits comes from
the command line: genimg-fast eval.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib
import torch
from clothes import CLASSES, Judge, read_splits
from sklearn.svm import SVC
from torch import Tensor
from torch.nn.functional import max_pool2d

import genimg_fast as gf
from genimg_fast import nn
from genimg_fast.metrics import judge_classes
from genimg_fast.training import (
    CycleGANTrainer,
    GANTrainer,
    Pix2PixTrainer,
    Recipe,
    find_trainable,
    fit,
    save_grid,
)

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help="of those above; default: all")
    parser.add_argument("--out", type=Path, default=Path("eval-gan"), help="folder for the pictures")
    parser.add_argument("--seed", type=int, default=0, help="seed of the splits and of the training")
    parser.add_argument("--steps", type=int, help="steps of each training instead of its own number")
    parser.add_argument("--fashion-mnist", type=Path, metavar="FOLDER", help="of IDX files: train on these")
    args = parser.parse_args()
    parts = PARTS if args.fashion_mnist is None else CLOTHES_PARTS
    if unknown := set(args.parts) - set(parts):
        parser.error(f"unknown part {sorted(unknown)[0]!r}; choose of {', '.join(parts)}")
    args.out.mkdir(parents=True, exist_ok=True)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {gf.info().backend} backend")
    checks: dict[str, bool] = {}
    for part in args.parts or parts:
        torch.manual_seed(args.seed)
        started = time.perf_counter()
        checks |= parts[part](args)
        print(f"  {time.perf_counter() - started:.0f} s in all, pictures in {args.out}\n")
    for check, passed in checks.items():
        print(f"{'pass' if passed else 'FAIL'}: {check}")
    return 0 if all(checks.values()) else 1


SIGMA, SPACING = 0.05, 1.0  # of the Gaussians


class Points(torch.utils.data.Dataset):
    """Draws from the 25 Gaussians."""

    def __init__(self, points: Tensor) -> None:
        self.points, self.device = points, points.device

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: Any) -> tuple[Tensor, Tensor]:
        return self.points[index], torch.zeros(len(self.points[index]), dtype=torch.int64)

    def to(self, device: Any) -> "Points":
        return Points(self.points.to(device))


class PointGenerator(nn.Module):
    z_dim, num_classes = 2, 0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.main = mlp(self.z_dim, width, 2)

    def forward(self, z: Tensor, labels: None = None) -> Tensor:
        return self.main(z)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        with torch.no_grad():
            return self(torch.randn(n, self.z_dim, generator=generator))


class PointCritic(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.main = mlp(2, width, 1)

    def forward(self, points: Tensor, labels: None = None) -> Tensor:
        return self.main(points).flatten()


def mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    layers = [nn.Linear(inputs, width), nn.ReLU()]
    for _ in range(2):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


class PointGAN(nn.Module):
    num_classes = 0

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.generator, self.discriminator = PointGenerator(width), PointCritic(width)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        return self.generator.sample(n, generator=generator)


def gaussians(args: argparse.Namespace) -> dict[str, bool]:
    settings = {"loss": "wasserstein", "gp": 0.1, "n_critic": 5, "betas": (0.5, 0.9)}
    return on_gaussians(args, "gaussians", "WGAN-GP, 5 steps of the critic for one of the generator", settings)


def relativistic(args: argparse.Namespace) -> dict[str, bool]:
    settings = {"loss": "relativistic", "r1": 1.0, "r2": 1.0, "betas": (0.0, 0.9)}
    return on_gaussians(args, "relativistic", "relativistic loss, R1 and R2 of weight 1", settings)


def on_gaussians(args: argparse.Namespace, name: str, title: str, settings: dict[str, Any]) -> dict[str, bool]:
    steps = args.steps or 40_000
    axis = SPACING * torch.arange(-2.0, 3.0)
    centres = torch.cartesian_prod(axis, axis)
    data = Points(centres[torch.randint(25, (100_000,))] + SIGMA * torch.randn(100_000, 2))
    recipe = Recipe(schedule="linear", decay_steps=steps, ema=0.999)
    trainer = GANTrainer(PointGAN(), lr=1e-3, recipe=recipe, **settings)
    fit(trainer, data, steps=steps, batch_size=256, seed=args.seed, log_every=1000)
    samples = trainer.sampler.sample(10_000, generator=torch.Generator().manual_seed(args.seed))
    distance, nearest = torch.cdist(samples, centres).min(1)
    near = distance < 3 * SIGMA
    modes, share = len(nearest[near].unique()), near.double().mean().item()
    counts = nearest[near].bincount(minlength=25)
    print(f"25 Gaussians, {title}; {steps} steps with 256 points")
    print(f"  {modes} of 25 modes, {share:.1%} of 10,000 samples within 3 standard deviations of one")
    print(f"  between {counts.min()} and {counts.max()} samples near a mode")
    figure, axes = plt.subplots(figsize=(5, 5), layout="constrained")
    axes.scatter(*data.points[:10_000].T, s=1, label="data")
    axes.scatter(*samples.T, s=1, label="samples")
    axes.set_aspect("equal")
    axes.legend(markerscale=6, loc="upper right")
    figure.savefig(args.out / f"{name}.png", dpi=120)
    return {
        f"{name}: all 25 modes are found": modes == 25,
        f"{name}: at least 80% of the samples are near one": share >= 0.8,
    }


def split_digits(seed: int) -> tuple[gf.data.ImageDataset, gf.data.ImageDataset]:
    """Digits to train on, and a fifth of them that is held out."""
    digits = gf.data.load_dataset("digits", image_size=32)
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(seed))
    pieces = order[len(digits) // 5 :], order[: len(digits) // 5]
    training, held_out = (gf.data.ImageDataset(digits.images[k], digits.labels[k]) for k in pieces)
    return training, held_out


def conditional(args: argparse.Namespace) -> dict[str, bool]:
    cdcgan = find_trainable("cdcgan")
    options = cdcgan.resolve(seed=args.seed, **({} if args.steps is None else {"steps": args.steps}))
    training, held_out = split_digits(args.seed)
    classifier = SVC(C=10).fit(training[:][0].flatten(1).numpy(), training.labels.numpy())
    trainer = cdcgan.make_trainer(training, options)
    fit(trainer, training, steps=options["steps"], batch_size=cdcgan.batch_size, seed=args.seed)
    labels = torch.arange(1000) % 10
    samples = trainer.sampler.sample(1000, labels=labels, generator=torch.Generator().manual_seed(args.seed))

    def judged(images: Tensor) -> Tensor:
        return torch.from_numpy(classifier.predict(images.flatten(1).numpy()))

    real, real_labels = held_out[:]
    report = judge_classes(labels, judged(samples), samples.flatten(1), real_labels, real.flatten(1))
    by_class = report.agreement_by_class
    print(f"conditional DCGAN, digits at 32x32: {options['steps']} steps of 64; averaged weights")
    print(f"  classifier on real held-out digits: {(judged(real) == real_labels).double().mean():.1%} right")
    print(f"  1,000 samples of a requested class: {report.agreement.value:.1%} right; by class ", end="")
    print("  ".join(f"{k}: {share:.0%}" for k, share in enumerate(by_class)))
    print(f"  standard deviation within a class: {report.variation.value:.2f} times that of the real digits")
    save_grid(samples[:100], args.out / "classes.png", columns=10, column_labels=training.class_names)
    return {
        "at least 90% of the samples are of the requested class": report.agreement.value >= 0.9,
        "all ten classes are there": min(by_class) > 0.5,
        "samples of a class vary at least half as much as real ones": report.variation.value > 0.5,
    }


def ridges(images: Tensor) -> Tensor:
    """Keep the pixels of digits that are the brightest ones across a stroke: lines one or two pixels wide."""
    across = [
        max_pool2d(images, size, stride=1, padding=(size[0] // 2, size[1] // 2)) for size in ((1, 5), (5, 1))
    ]
    on_ridge = ((images == across[0]) | (images == across[1])) & (images > 0)
    return torch.where(on_ridge, 1.0, -1.0)


def pix2pix(args: argparse.Namespace) -> dict[str, bool]:
    steps = args.steps or 1000

    def pairs(dataset: gf.data.ImageDataset) -> gf.data.ImageDataset:
        images = dataset[:][0]
        side_by_side = torch.cat([ridges(images), images], dim=3)
        return gf.data.ImageDataset(((side_by_side + 1) * 127.5).round().to(torch.uint8))

    training, held_out = (pairs(dataset) for dataset in split_digits(args.seed))
    trainer = Pix2PixTrainer(
        gf.models.Pix2Pix(1, 1, channels=16, image_size=32), recipe=Recipe(schedule="linear", decay_steps=steps)
    )
    fit(trainer, training, steps=steps, batch_size=32, seed=args.seed)
    source, target = trainer.halves(held_out[:][0])
    mean = trainer.halves(training[:][0])[1].mean(0)
    answers = {
        "network": trainer.sampler.translate(source), "training mean": mean.expand_as(target), "input": source
    }  # fmt: skip
    errors = {name: (answer - target).abs().mean().item() for name, answer in answers.items()}
    print(f"Pix2Pix, ridges to digits at 32x32: {steps} steps of 32; averaged weights")
    print("  mean absolute error on held-out digits, in [-1, 1]: ", end="")
    print(", ".join(f"{name} {error:.4f}" for name, error in errors.items()))
    trainer.pictures(held_out[:32][0], torch.zeros(32))["translations"].save(args.out / "pix2pix.png")
    return {
        "error at least 30% below that of the training mean": errors["network"] <= 0.7 * errors["training mean"],
        "error below that of the input itself": errors["network"] < errors["input"],
    }


def train_cyclegan(a: Any, b: Any, args: argparse.Namespace, *, steps: int, **options: Any) -> CycleGANTrainer:
    """Train on images of two kinds at 32x32."""
    steps = args.steps or steps
    torch.manual_seed(args.seed)
    trainer = CycleGANTrainer(
        gf.models.CycleGAN(1, channels=16, image_size=32, n_residual=4),
        recipe=Recipe(schedule="linear", decay_steps=steps),
        seed=args.seed,
        **options,
    )
    started = time.perf_counter()
    fit(trainer, gf.data.UnpairedImages(a, b), steps=steps, batch_size=8, seed=args.seed, progress=True)
    print(f"CycleGAN at 32x32: {steps} steps of 8 in {time.perf_counter() - started:.0f} s; averaged weights")
    return trainer


def lines_to_digits(args: argparse.Namespace) -> dict[str, bool]:
    training, held_out = split_digits(args.seed)
    lines, digits = training.split(0.5, seed=args.seed)
    thin = gf.data.ImageDataset(((ridges(lines[:][0]) + 1) * 127.5).to(torch.uint8))
    trainer = train_cyclegan(thin, digits, args, steps=2000)
    target = held_out[:][0]
    source, mean = ridges(target), digits[:][0].mean(0)
    answers = {
        "network": trainer.sampler.translate(source), "training mean": mean.expand_as(target), "input": source
    }  # fmt: skip
    errors = {name: (answer - target).abs().mean().item() for name, answer in answers.items()}
    print("  lines to digits, mean absolute error on held-out digits, in [-1, 1]: ", end="")
    print(", ".join(f"{name} {error:.4f}" for name, error in errors.items()))
    pictures = trainer.pictures(torch.cat([source, target], 3)[:16], torch.zeros(16))
    pictures["translations"].save(args.out / "cyclegan-digits.png")
    return {
        "error at least 30% below that of the training mean": errors["network"] <= 0.7 * errors["training mean"],
        "error below that of the input itself": errors["network"] < errors["input"],
    }


def shirts_to_pullovers(args: argparse.Namespace) -> dict[str, bool]:
    training, test = read_splits(args.fashion_mnist, 32, CLASSES)
    kinds = [CLASSES.index(name) for name in ("T-shirt", "pullover")]
    images = [training.take(training.labels == kind) for kind in kinds]
    # The paper has the identity term where colours are to stay; here shapes have to change.
    trainer = train_cyclegan(*images, args, steps=3000, identity=0.0)
    judge = Judge(training, test, steps=args.steps)
    checks = {}
    for direction, (source, target) in (("a2b", kinds), ("b2a", kinds[::-1])):
        images = test[:][0][test.labels == source]
        translated = trainer.sampler.translate(images, direction=direction)
        back = trainer.sampler.translate(translated, direction="b2a" if direction == "a2b" else "a2b")
        before, after = ((judge.look(each)[1] == target).double().mean().item() for each in (images, translated))
        error = (back - images).abs().mean().item()
        print(
            f"  {len(images)} test images, {CLASSES[source]} to {CLASSES[target]}: read as {CLASSES[target]} ",
            end="",
        )
        print(f"{before:.1%} before, {after:.1%} after; mean absolute error of the way there and back {error:.4f}")
        checks[f"ten times as many are read as a {CLASSES[target]} as before"] = after >= 10 * before
    a, b = (test[:][0][test.labels == kind][:16] for kind in kinds)
    trainer.pictures(torch.cat([a, b], 3), torch.zeros(16))["translations"].save(args.out / "cyclegan.png")
    return checks


def train_on_clothes(name: str, training: gf.data.ImageDataset, args: argparse.Namespace) -> Any:
    trainable = find_trainable(name)
    asked = {} if args.steps is None else {"steps": args.steps}
    # channels_last is a sixth faster on the CPU.
    options = trainable.resolve(seed=args.seed, channels_last=True, **asked)
    trainer = trainable.make_trainer(training, options)
    steps, started = options["steps"], time.perf_counter()
    fit(trainer, training, steps=steps, batch_size=trainable.batch_size, seed=args.seed, progress=True)
    seconds = time.perf_counter() - started
    print(f"{name}, Fashion-MNIST at 32x32: {steps} steps of {trainable.batch_size} in {seconds:.0f} s")
    return trainer.sampler


def clothes_of_a_class(args: argparse.Namespace) -> dict[str, bool]:
    training, test = read_splits(args.fashion_mnist, 32, CLASSES)
    model = train_on_clothes("cdcgan", training, args)
    labels = torch.arange(1000) % 10
    samples = model.sample(1000, labels=labels, generator=torch.Generator().manual_seed(args.seed))
    judge = Judge(training, test, steps=args.steps)
    share_right, variation = judge.report(samples, labels)
    save_grid(samples[:100], args.out / "fashion-classes.png", columns=10, column_labels=training.class_names)
    return {
        "the classifier reads at least 90% of the test images": judge.accuracy >= 0.9,
        "at least 85% of the samples are of the requested class": share_right >= 0.85,
        "samples of every class vary at least 0.8 times as much as real images": variation >= 0.8,
    }


def clothes(args: argparse.Namespace) -> dict[str, bool]:
    training, test = read_splits(args.fashion_mnist, 32, CLASSES)
    model = train_on_clothes("dcgan", training, args)
    samples = model.sample(1000, generator=torch.Generator().manual_seed(args.seed))
    judge = Judge(training, test, steps=args.steps)
    features, judged = judge.look(samples)
    shares = judged.bincount(minlength=10).double() / len(judged)
    scores = gf.metrics.precision_recall(features, judge.features[:1000])
    training_features, _ = judge.look(training[:1000][0])
    best = gf.metrics.precision_recall(training_features, judge.features[:1000])
    print("  1,000 samples, read by a classifier: ", end="")
    print("  ".join(f"{name} {share:.0%}" for name, share in zip(training.class_names, shares, strict=True)))
    print(f"  against 1,000 test images: precision {scores.precision:.2f}, recall {scores.recall:.2f}", end="")
    print(f" (1,000 training images: {best.precision:.2f}, {best.recall:.2f})")
    save_grid(samples[:100], args.out / "fashion.png", columns=10)
    return {
        "all ten classes are there, each with at least 3% of the samples": shares.min().item() >= 0.03,
        "precision and recall are at least half of those of real images": (
            scores.precision >= best.precision / 2 and scores.recall >= best.recall / 2
        ),
    }


PARTS = {
    "gaussians": gaussians,
    "relativistic": relativistic,
    "conditional": conditional,
    "pix2pix": pix2pix,
    "cyclegan": lines_to_digits,
}
CLOTHES_PARTS = {"conditional": clothes_of_a_class, "cyclegan": shirts_to_pullovers, "unconditional": clothes}

if __name__ == "__main__":
    sys.exit(main())
