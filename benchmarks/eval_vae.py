"""What the VAEs learn of real handwritten digits in a few minutes: figures, pictures, and if they are good enough.

    python benchmarks/eval_vae.py --out FOLDER
    python benchmarks/eval_vae.py --models resvae vqvae --out FOLDER
    python benchmarks/eval_vae.py --mnist FOLDER
    python benchmarks/eval_vae.py --fashion-mnist FOLDER
    python benchmarks/eval_vae.py --photographs --out FOLDER

Of scikit-learn's 1,797 digits, at 32x32 pixels, a fifth is held out; every figure is about those. A VAE is
compared with probabilistic PCA (Tipping, Bishop 1999) of the same latent size, its linear relative: both are
densities of the same pixels in [-1, 1], Gaussian with one learned variance around a mean that depends on the
latents, so their nats compare. PPCA's log-likelihood is exact, the VAE's ELBO is a lower bound. Images of a
requested class, drawn from a class-conditional VAE, are judged by a support vector machine that has seen real
digits only. The training is that of ``genimg-fast train vae`` and ``cvae`` by default; their beta is for it alone:
the ELBOs below are true ones.

The VAE of residual blocks is compared with the same PPCA. The VQ-VAE is judged by the mean squared error of
held-out pixels, against the mean of the training images and against PCA that spends as many bits on an image: in
turn on the component with the largest error left, each of whose bits quarters it, with Lloyd's (1982) best
quantiser of the training images' values for each component. Bits of the VQ-VAE are places of the grid times log2
of the number of codes.

The second command does so for some of the models. The third takes a folder with the four IDX files of MNIST, or of
a relative. A 784-200-200-50 ``MLPVAE``, trained by the package, is compared with the same layers in plain PyTorch,
fed with pixels in [0, 1]: 10 epochs, in batches of 100, of pixels drawn anew each time with their brightness as
probability; Adam with 1e-3, falling to 0 by a cosine. The figure is the negative ELBO of the test images, pixels
and latents drawn once.

The fourth one does as the first with Fashion-MNIST, for VAE and class-conditional VAE, at 32x32 pixels: 60,000
images to train on, the first 1,000 of the test images to judge by, and a convolutional network, trained on the
same 60,000, as judge of classes.

The fifth trains the VAE of residual blocks on grey pieces of 64x64 pixels of photographs that come with
scikit-image and scikit-learn, brought to 256 pixels on the shorter side first; it is judged by pieces of others,
held out whole, against PPCA of as many latents.

Exit status 1 if a figure misses what the project asks for.
"""

import argparse
import math
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from clothes import CLASSES, Judge, read_splits
from eval_restore import HELD_OUT, TRAINED_ON, photograph
from sklearn.decomposition import PCA
from sklearn.svm import SVC
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

import genimg_fast as gf
from genimg_fast.losses import active_units, importance_weighted_bound
from genimg_fast.models import MLPVAE, VQVAE, BaseVAE
from genimg_fast.training import (
    Picture,
    Recipe,
    VAETrainer,
    find_trainable,
    fit,
    plot_latents,
    save_animation,
    save_grid,
)
from genimg_fast.training.pictures import class_samples

IMPORTANCE_SAMPLES = 100
MODELS = ("vae", "resvae", "vqvae")


def main() -> int:
    parser = argparse.ArgumentParser(description="Train VAEs on digits; print how good they are; draw pictures.")
    parser.add_argument("--out", type=Path, default=Path("eval-vae"), help="folder for the pictures")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split and of the training")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="vae: and its relatives")
    parser.add_argument("--steps", type=int, help="steps of each training instead of the default")
    parser.add_argument(
        "--mnist", type=Path, metavar="FOLDER", help="of IDX files: train on these instead of digits"
    )
    parser.add_argument("--epochs", type=int, default=10, help="with --mnist")
    parser.add_argument(
        "--fashion-mnist", type=Path, metavar="FOLDER", help="of IDX files: train on these instead of digits"
    )
    parser.add_argument("--photographs", action="store_true", help="train on pieces of these instead of digits")
    args = parser.parse_args()
    if args.mnist is not None:
        checks = on_mnist(args)
    elif args.photographs:
        checks = on_photographs(args)
    else:
        checks = on_digits(args) if args.fashion_mnist is None else on_clothes(args)
    for check, passed in checks.items():
        print(f"{'pass' if passed else 'FAIL'}: {check}")
    return 0 if all(checks.values()) else 1


def on_digits(args: argparse.Namespace) -> dict[str, bool]:
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()

    digits = gf.data.load_dataset("digits", image_size=32)
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(args.seed))
    held_out, used = order[: len(digits) // 5], order[len(digits) // 5 :]
    training = gf.data.ImageDataset(digits.images[used], digits.labels[used], class_names=digits.class_names)
    images, labels = digits[held_out]
    print(
        f"digits at 32x32: {len(training)} to train on, {len(images)} held out (seed {args.seed}); "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {gf.info().backend} backend"
    )
    checks: dict[str, bool] = {}
    if "vae" in args.models:
        checks |= of_vaes(args, training, images, labels)
    if "resvae" in args.models:
        vae = train("resvae", training, args, image_size=32)
        found = compare_with_ppca(vae, training, images)
        checks |= {f"ResidualVAE: {check}": passed for check, passed in found.items()}
        pairs = {"input": images[:18], "output": vae.reconstruct(images[:18])}
        Picture(images=pairs).save(args.out / "resvae-reconstructions.png")
        samples = class_samples(vae, generator=torch.Generator().manual_seed(args.seed))
        samples.save(args.out / "resvae-samples.png")
    if "vqvae" in args.models:
        vqvae = train("vqvae", training, args)
        checks |= compare_with_pca(vqvae, training, images)
        pairs = {"input": images[:36], "output": vqvae.reconstruct(images[:36])}
        Picture(images=pairs).save(args.out / "vqvae-reconstructions.png")
    print(f"pictures in {args.out}; {time.perf_counter() - started:.0f} s in all")
    return checks


def of_vaes(
    args: argparse.Namespace, training: gf.data.ImageDataset, images: Tensor, labels: Tensor
) -> dict[str, bool]:
    classifier = SVC(C=10).fit(training[:][0].flatten(1).numpy(), training.labels.numpy())

    def judge(of_images: Tensor, of_labels: Tensor) -> Tensor:
        return torch.from_numpy(classifier.predict(of_images.flatten(1).numpy())) == of_labels

    vae = train("vae", training, args)
    checks = compare_with_ppca(vae, training, images)
    reconstructions = vae.reconstruct(images)
    print(
        f"reconstructed digits read right by the classifier: {judge(reconstructions, labels).float().mean():.1%}"
    )

    conditional = train("cvae", training, args)
    requested = torch.arange(1000) // 100
    drawn = conditional.sample(1000, labels=requested, generator=torch.Generator().manual_seed(args.seed))
    right = judge(drawn, requested).float()
    print(f"classifier on real held-out digits: {judge(images, labels).float().mean():.1%} right")
    print(f"1,000 samples of a requested class: {right.mean():.1%} right; by class", end="")
    print("".join(f"  {label}: {share:.0%}" for label, share in enumerate(right.view(10, 100).mean(1))))
    checks["samples are of the requested class in at least 90%"] = right.mean().item() >= 0.9

    flat = train("mlp-vae", training, args, z_dim=2, image_size=32, likelihood="bernoulli")

    pairs = {"input": images[:36], "output": reconstructions[:36]}
    Picture(images=pairs).save(args.out / "reconstructions.png")
    class_samples(vae, generator=torch.Generator().manual_seed(args.seed)).save(args.out / "samples.png")
    by_class = drawn.view(10, 100, 1, 32, 32)[:, :10].transpose(0, 1).flatten(0, 1)
    save_grid(by_class, args.out / "class-samples.png", columns=10, column_labels=training.class_names)
    path = vae.interpolate(images[:9], images[9:18], steps=12, mode="spherical")
    save_grid(path.flatten(0, 1), args.out / "interpolation.png", columns=12)
    path = path[:4]
    first, last = (end.unsqueeze(1).expand_as(path) for end in (images[:4], images[9:13]))
    save_animation({"from": first, "morph": path, "to": last}, args.out / "interpolation.gif")
    flat.eval()
    with torch.no_grad():
        plot_latents(flat.encode(images)[0], labels, training.class_names, args.out / "latent.png")
    return checks


def on_clothes(args: argparse.Namespace) -> dict[str, bool]:
    args.out.mkdir(parents=True, exist_ok=True)
    training, test = read_splits(args.fashion_mnist, 32, CLASSES)
    images, labels = test[:1000]
    print(
        f"Fashion-MNIST at 32x32: {len(training)} to train on, {len(images)} test images (seed {args.seed}); "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {gf.info().backend} backend"
    )
    judge = Judge(training, test, steps=args.steps)

    vae = train("vae", training, args)
    checks = compare_with_ppca(vae, training, images)
    reconstructions = vae.reconstruct(images)
    read = (judge.look(reconstructions)[1] == labels).double().mean()
    print(f"reconstructed clothes read right by the classifier: {read:.1%} (real ones: {judge.accuracy:.1%})")

    conditional = train("cvae", training, args)
    requested = torch.arange(1000) % 10
    drawn = conditional.sample(1000, labels=requested, generator=torch.Generator().manual_seed(args.seed))
    judge.report(drawn, requested)

    pairs = {"input": images[:36], "output": reconstructions[:36]}
    Picture(images=pairs).save(args.out / "fashion-reconstructions.png")
    save_grid(drawn[:100], args.out / "fashion-class-samples.png", columns=10, column_labels=CLASSES)
    return checks


def on_photographs(args: argparse.Namespace) -> dict[str, bool]:
    args.out.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(args.seed)
    seen, unseen = (
        pieces([photograph(name, grey=True) for name in names], count, generator)
        for names, count in ((TRAINED_ON, 8000), (HELD_OUT, 500))
    )
    training, images = gf.data.ImageDataset(seen), gf.data.ImageDataset(unseen)[:][0]
    print(
        f"pieces of 64x64 of photographs: {len(training)} to train on, {len(images)} held out (seed {args.seed}); "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {gf.info().backend} backend"
    )
    vae = train("resvae", training, args, z_dim=64, beta=1.0)
    checks = compare_with_ppca(vae, training, images, most_nats=200)
    reconstructions = vae.reconstruct(images)
    print(f"PSNR of reconstructions: {10 * math.log10(4 / (reconstructions - images).square().mean()):.1f} dB")
    pairs = {"input": images[::14], "output": reconstructions[::14]}
    Picture(images=pairs).save(args.out / "photograph-reconstructions.png")
    class_samples(vae, generator=torch.Generator().manual_seed(args.seed)).save(
        args.out / "photograph-samples.png"
    )
    return checks


def pieces(pictures: list[Tensor], count: int, generator: torch.Generator) -> Tensor:
    """Cut pieces of 64x64 out of pictures at random, as many of each, with the shorter side at 256 pixels."""
    cut: list[Tensor] = []
    for number, picture in enumerate(pictures):
        size = [round(256 * n / min(picture.shape[1:])) for n in picture.shape[1:]]
        small = interpolate(picture[None], size, mode="bilinear", antialias=True)[0]
        for _ in range(number * count // len(pictures), (number + 1) * count // len(pictures)):
            top, left = (int(torch.randint(n - 63, (), generator=generator)) for n in size)
            cut.append(small[:, top : top + 64, left : left + 64])
    return torch.stack(cut).mul(255).round().byte()


def train(name: str, dataset: gf.data.ImageDataset, args: argparse.Namespace, **options: Any) -> Any:
    started = time.perf_counter()
    vae = find_trainable(name)
    options |= {} if args.steps is None else {"steps": args.steps}
    options = vae.resolve(seed=args.seed, **options)
    trainer = vae.make_trainer(dataset, options)
    fit(trainer, dataset, steps=options["steps"], batch_size=vae.batch_size, seed=args.seed)
    model = trainer.sampler
    what = f"{options['steps']} steps of {vae.batch_size} in {time.perf_counter() - started:.0f} s"
    if isinstance(model, BaseVAE):
        what = f"{model.z_dim} latents, {model.likelihood} likelihood, trained with beta {trainer.beta:g}: {what}"
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"\n{type(model).__name__}, {parameters:,} parameters, {what}")
    return model


@torch.no_grad()
def compare_with_ppca(
    vae: BaseVAE, training: gf.data.ImageDataset, images: Tensor, draws: int = 20, most_nats: float = 60
) -> dict[str, bool]:
    vae.eval()
    generator = torch.Generator().manual_seed(0)
    outputs = [vae(images, generator=generator) for _ in range(draws)]
    reconstruction = -torch.stack([vae.log_likelihood(images, output.reconstruction) for output in outputs]).mean(
        0
    )
    kl = outputs[0].kl
    elbo = -reconstruction - kl
    bound = importance_weighted_bound(vae, images, k=IMPORTANCE_SAMPLES, generator=generator)

    # The exact density, in float64, with the mean of the discarded eigenvalues as variance of the pixels.
    ppca = PCA(vae.z_dim, svd_solver="covariance_eigh").fit(training[:][0].flatten(1).double().numpy())
    linear = torch.from_numpy(ppca.score_samples(images.flatten(1).double().numpy()))

    print(f"held-out nats an image, {vae.c_dim * vae.image_size**2} pixels; higher is better, but for KL")
    print(
        f"  VAE    ELBO {elbo.mean():7.1f} = {-reconstruction.mean():7.1f} (log-likelihood) - {kl.mean():.1f} (KL)"
    )
    print(f"         importance-weighted bound, {IMPORTANCE_SAMPLES} samples: {bound.mean():.1f}")
    print(f"         {active_units(outputs[0].mu)} of {vae.z_dim} latents active")
    print(f"         pixel standard deviation {(vae.image_logvar / 2).exp():.3f} (images in [-1, 1])")
    print(
        f"  PPCA   log-likelihood {linear.mean():7.1f}, pixel standard deviation {ppca.noise_variance_**0.5:.3f}"
    )
    difference = elbo.double() - linear
    error = difference.std() / len(images) ** 0.5
    print(f"  VAE's ELBO - PPCA's log-likelihood: {difference.mean():.1f} +- {error:.1f} (standard error)")
    return {
        f"KL is between 5 and {most_nats:g} nats": 5 <= kl.mean().item() <= most_nats,
        "held-out ELBO beats PPCA of the same latent size": (difference.mean() > 2 * error).item(),
    }


@torch.no_grad()
def compare_with_pca(vqvae: VQVAE, training: gf.data.ImageDataset, images: Tensor) -> dict[str, bool]:
    indices = torch.cat([vqvae.eval().encode(piece) for piece in images.split(100)])
    decoded = torch.cat([vqvae.decode(piece) for piece in indices.split(100)])
    places, codes = vqvae.grid**2, vqvae.codebook.num_codes
    counts = indices.flatten().bincount(minlength=codes)
    perplexity = torch.special.entr(counts / counts.sum()).sum().exp().item()
    bits = places * math.log2(codes)
    seen, unseen = (each.flatten(1).double() for each in (training[:][0], images))
    mean = seen.mean(0)
    errors = {
        "mean image": (unseen - mean).square().mean(),
        "PCA": (unseen - quantised_pca(seen, unseen, int(bits))).square().mean(),
        "VQ-VAE": (images - decoded).square().mean(),
    }
    print(
        f"{bits:.0f} bits an image: {vqvae.grid}x{vqvae.grid} places, {codes} codes, of which held-out images use "
        f"{(counts > 0).sum()}; perplexity {perplexity:.1f}"
    )
    print("held-out mean squared error of pixels in [-1, 1]:", end="")
    print("".join(f"  {name} {error:.4f}" for name, error in errors.items()))
    return {
        "VQ-VAE: held-out error at most a tenth of that of the mean image": (
            errors["VQ-VAE"] <= errors["mean image"] / 10
        ).item(),
        "VQ-VAE: perplexity is at least half the number of codes": perplexity >= codes / 2,
    }


def quantised_pca(seen: Tensor, unseen: Tensor, bits: int) -> Tensor:
    """Code ``unseen``, (n, pixels), in ``bits`` bits each, by principal components of ``seen``; decode."""
    mean = seen.mean(0)
    _, values, components = torch.linalg.svd(seen - mean, full_matrices=False)
    left, spent = values.square(), torch.zeros(len(values), dtype=torch.int64)
    for _ in range(bits):
        worst = left.argmax()
        left[worst] /= 4
        spent[worst] += 1
    decoded = mean.expand_as(unseen)
    for component, share in zip(components[spent > 0], spent[spent > 0], strict=True):
        known = (seen - mean) @ component
        levels = known.quantile((torch.arange(2 ** int(share)).double() + 0.5) / 2 ** int(share))
        for _ in range(50):
            nearest = torch.bucketize(known, (levels[1:] + levels[:-1]) / 2)
            counts = nearest.bincount(minlength=len(levels))
            sums = torch.zeros_like(levels).index_add_(0, nearest, known)
            levels = torch.where(counts > 0, sums / counts.clamp(min=1), levels)
        nearest = torch.bucketize((unseen - mean) @ component, (levels[1:] + levels[:-1]) / 2)
        decoded = decoded + levels[nearest].unsqueeze(1) * component
    return decoded


class BlackAndWhite:
    """Images of black and white pixels, drawn anew each time with the brightness as probability of white."""

    def __init__(self, images: gf.data.ImageDataset) -> None:
        self.images, self.device = images, images.device

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = self.images[index]
        return torch.bernoulli((images + 1) / 2) * 2 - 1, labels

    def to(self, device: torch.device | str) -> "BlackAndWhite":
        return BlackAndWhite(self.images.to(device))


class PlainVAE(torch.nn.Module):
    """The layers of ``MLPVAE(z_dim=50, hidden=(200, 200))``, as usually written."""

    def __init__(self) -> None:
        super().__init__()
        Linear, ReLU = torch.nn.Linear, torch.nn.ReLU
        self.encoder = torch.nn.Sequential(Linear(784, 200), ReLU(), Linear(200, 200), ReLU(), Linear(200, 100))
        self.decoder = torch.nn.Sequential(Linear(50, 200), ReLU(), Linear(200, 200), ReLU(), Linear(200, 784))

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the negative ELBO of each image, (batch,), given its pixels in [0, 1], (batch, 784)."""
        mu, logvar = self.encoder(pixels).chunk(2, 1)
        z = mu + torch.randn_like(mu) * (logvar / 2).exp()
        kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum(1)
        return binary_cross_entropy_with_logits(self.decoder(z), pixels, reduction="none").sum(1) + kl


def on_mnist(args: argparse.Namespace) -> dict[str, bool]:
    training, test = (BlackAndWhite(split) for split in read_splits(args.mnist, 28))
    steps = args.epochs * (len(training) // 100)
    torch.manual_seed(args.seed)
    images, _ = test[torch.arange(len(test))]

    torch.manual_seed(args.seed)
    recipe = Recipe(schedule="cosine", decay_steps=steps)
    trainer = VAETrainer(MLPVAE(z_dim=50, hidden=(200, 200)), recipe=recipe)
    fit(trainer, training, steps=steps, seed=args.seed, batch_size=100)
    model = trainer.sampler
    with torch.no_grad():
        output = model(images, generator=torch.Generator().manual_seed(0))
        ours = output.kl - model.log_likelihood(images, output.reconstruction)

    torch.manual_seed(args.seed)
    plain = PlainVAE()
    optimizer = torch.optim.Adam(plain.parameters(), 1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for batch, _ in islice(gf.data.batches(training, 100, seed=args.seed), steps):
        optimizer.zero_grad()
        plain((batch.flatten(1) + 1) / 2).mean().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        theirs = plain((images.flatten(1) + 1) / 2)

    print(
        f"{args.mnist}: {len(training)} to train on, {len(test)} held out (seed {args.seed}); "
        f"torch {torch.__version__}"
    )
    print(f"negative ELBO, nats: MLPVAE {ours.mean():.2f}, the same layers in plain PyTorch {theirs.mean():.2f}")
    # Runs that differ in their random numbers alone were up to a nat apart; pixels in [-1, 1] cost four.
    return {"MLPVAE is at most 2 nats behind": (ours.mean() < theirs.mean() + 2).item()}


if __name__ == "__main__":
    sys.exit(main())
