"""What edits of latents do to real handwritten digits: figures, and a picture of each.

    python benchmarks/eval_latents.py --out FOLDER

A fifth of scikit-learn's 1,797 digits, at 32x32 pixels, is held out, and all figures are about those. A VAE, a
GAN (dcgan) and a VQ-VAE are trained as by ``genimg-fast train`` without flags.

* project: the mean squared error, in [-1, 1], of the nearest image that the model makes: of the VAE by its encoder
  alone, and after 200 steps from there; of the GAN after 400 steps, and of the nearest of 256 random images.
* attribute: ink. From the third of the training digits with the least of it to the third with the most; how much
  of the difference of the two the images gain for a strength of 1, and how many are still read as what they were
  by a support vector machine that has seen real digits only.
* compression: latents rounded to steps of a size, and coded as well as N(0, 1), from which training takes them to
  be, allows (as an arithmetic coder does, to some bits a file); the codes of the VQ-VAE, at log2 of their number
  each. A JPEG file of one digit is mostly headers and tables, so all digits are one file, of either kind: for JPEG
  a sheet of them side by side, whose blocks of 8x8 pixels hold one digit each, with its headers and one set of
  optimised tables; for the others with as many bytes of header as a JPEG file of nothing has. Networks are no more
  counted than JPEG's decoder is, though they know digits, and nothing else. PSNR is the mean over the digits.

Exit status 1 if projecting is no better than the nearest of 256, or an attribute is not gained by half.
"""

import argparse
import io
import math
import sys
from pathlib import Path
from typing import Any

import numpy
import torch
from eval_gan import split_digits
from eval_vae import train
from PIL import Image
from sklearn.svm import SVC
from torch import Tensor

import genimg_fast as gf
from genimg_fast.editing import attribute_direction, mix, project, vary
from genimg_fast.training import Picture

SHOWN = 12
TITLES = {
    "encoded": "VAE, encoded",
    "200 steps": "VAE, 200 steps",
    "nearest": "GAN, the nearest of 256",
    "inverted": "GAN, 400 steps",
}


def main() -> int:
    parser = argparse.ArgumentParser(description="Edit digits through the latents of models trained on others.")
    parser.add_argument("--out", type=Path, default=Path("eval-latents"), help="folder for the pictures")
    parser.add_argument("--seed", type=int, default=0, help="seed of the split and of the training")
    parser.add_argument("--steps", type=int, help="steps of each training instead of the default")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    training, held_out = split_digits(args.seed)
    images, labels = held_out[:]
    vae, gan, vqvae = (train(name, training, args) for name in ("vae", "dcgan", "vqvae"))
    checks = projections(vae, gan, images[:100], args)
    checks |= inks(vae, training, images, labels, args)
    variations(vae, images, args)
    compression(vae, vqvae, images)
    for check, passed in checks.items():
        print(f"{'pass' if passed else 'FAIL'}: {check}")
    return 0 if all(checks.values()) else 1


def generator(args: argparse.Namespace) -> torch.Generator:
    return torch.Generator().manual_seed(args.seed)


def error(made: Tensor, images: Tensor) -> float:
    return (made - images).square().mean().item()


@torch.no_grad()
def decode(model: Any, z: Tensor) -> Tensor:
    return model.to_images(model.eval().decode(z)) if hasattr(model, "decode") else model.eval()(z)


def projections(vae: Any, gan: Any, images: Tensor, args: argparse.Namespace) -> dict[str, bool]:
    found = {
        "encoded": decode(vae, project(vae, images)),
        "200 steps": decode(vae, project(vae, images, steps=200)),
        "nearest": decode(gan, project(gan, images, steps=0, generator=generator(args))),
        "inverted": decode(gan, project(gan, images, generator=generator(args))),
    }
    for name, made in found.items():
        print(f"project, {TITLES[name]}: mean squared error {error(made, images):.4f}")
    shown = {"image": images[:SHOWN]} | {name: made[:SHOWN] for name, made in found.items()}
    Picture(images=shown).save(args.out / "project.png")
    ours, nearest = (error(found[name], images) for name in ("inverted", "nearest"))
    return {"a GAN's projection has at most half the error of the nearest of 256 images": ours <= nearest / 2}


def inks(
    vae: Any, training: gf.data.ImageDataset, images: Tensor, labels: Tensor, args: argparse.Namespace
) -> dict[str, bool]:
    seen, seen_labels = training[:]
    classifier = SVC(C=10).fit(seen.flatten(1).numpy(), seen_labels.numpy())
    ink = seen.mean((1, 2, 3))
    third = len(ink) // 3
    order = ink.argsort()
    sets = [project(vae, seen[part]) for part in (order[:third], order[-third:])]
    difference = (ink[order[-third:]].mean() - ink[order[:third]].mean()).item()
    z, checks = project(vae, images), {}
    rows = {}
    for method in ("mean", "linear"):
        direction = attribute_direction(*sets, method=method)
        before, after = decode(vae, z), decode(vae, z + direction)
        gained = (after.mean() - before.mean()).item() / difference
        read = [
            (torch.from_numpy(classifier.predict(made.flatten(1).numpy())) == labels).float().mean().item()
            for made in (before, after)
        ]
        print(
            f"attribute, {method}: {gained:.0%} of the difference in ink; read right {read[0]:.1%}, {read[1]:.1%}"
        )
        checks[f"at least half of the ink is gained ({method})"] = gained >= 0.5
        strengths = torch.linspace(-2, 2, 9)
        rows[method] = torch.stack([decode(vae, one + strengths[:, None] * direction) for one in z[:6]])
    names = [f"{s:g}" for s in torch.linspace(-2, 2, 9).tolist()]
    Picture(images=rows["mean"], column_labels=names).save(args.out / "attribute.png")
    return checks


def variations(vae: Any, images: Tensor, args: argparse.Namespace) -> None:
    z = project(vae, images[:6])
    varied = [decode(vae, vary(vae, one[None], 8, strength=0.4, generator=generator(args))) for one in z]
    rows = [torch.cat([image[None], made]) for image, made in zip(images, varied, strict=False)]
    Picture(images=torch.stack(rows), column_labels=["image", *map(str, range(1, 9))]).save(args.out / "vary.png")
    pairs = [(0, 1), (2, 3), (4, 5)]
    mixed = [torch.cat([images[[a, b]], decode(vae, mix(vae, z[[a, b]]))]) for a, b in pairs]
    Picture(images=torch.stack(mixed), column_labels=["one", "other", "mixture"]).save(args.out / "mix.png")


def psnr(made: Tensor, images: Tensor) -> float:
    """In dB, of numbers in [0, 1]; the mean over the images."""
    errors = ((made - images) / 2).square().mean((1, 2, 3))
    return (-10 * errors.clamp(min=1e-10).log10()).mean().item()


def compression(vae: Any, vqvae: Any, images: Tensor) -> None:
    pixels, header = images.numel(), 8 * len(jpeg(torch.zeros(32, 32, dtype=torch.uint8), 50))
    parameters = sum(p.numel() for p in vae.decoder.parameters())
    print(f"files of {len(images)} digits, {header // 8} bytes of header; VAE's decoder: {parameters:,} numbers")

    def show(name: str, bits: float, made: Tensor) -> None:
        print(f"{name}: {bits / pixels:.3f} bits a pixel, {psnr(made, images):.2f} dB")

    normal = torch.distributions.Normal(0.0, 1.0)
    z = project(vae, images)
    for step in (2.0, 1.0, 0.5, 0.25):
        rounded = (z / step).round() * step
        chance = normal.cdf(rounded + step / 2) - normal.cdf(rounded - step / 2)
        bits = -chance.clamp(min=1e-12).log2().sum().item()
        show(f"vae, steps of {step:g}", header + bits, decode(vae, rounded))
    codes = vqvae.eval().encode(images)
    bits = codes.numel() * torch.tensor(float(vqvae.codebook.num_codes)).log2().item()
    show("vqvae", header + bits, vqvae.reconstruct(images))
    side = math.ceil(len(images) ** 0.5)
    rest = images.new_full((side**2 - len(images), *images.shape[1:]), -1)
    sheet = torch.cat([images, rest]).view(side, side, *images.shape[2:]).transpose(1, 2).flatten(2).flatten(0, 1)
    for quality in (1, 5, 10, 25, 50):
        file = jpeg(((sheet + 1) * 127.5).round().byte(), quality)
        read = torch.from_numpy(numpy.array(Image.open(io.BytesIO(file)))).float() / 127.5 - 1
        tiles = read.view(side, images.shape[2], side, images.shape[3]).transpose(1, 2).flatten(0, 1)
        show(f"jpeg, quality {quality}", 8 * len(file), tiles[: len(images), None])


def jpeg(picture: Tensor, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture.numpy()).save(file, "JPEG", quality=quality, optimize=True)
    return file.getvalue()


if __name__ == "__main__":
    sys.exit(main())
