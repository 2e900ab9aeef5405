"""Makes docs/gallery.md: what each edit does to real pictures, with its command.

    python benchmarks/gallery.py [NAME ...] [--work FOLDER] [--out docs]

The photographs come with scikit-image and scikit-learn; `--work` is where they, what is spoiled or masked in them,
and runs of models are put, so that the commands of the page can be repeated there. Takes some minutes.
"""

import argparse
import contextlib
import functools
import os
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy
import skimage.data
import sklearn.datasets
import torch
from eval_matting import OUTLINE
from PIL import Image, ImageDraw
from torch import Tensor

from genimg_fast.cli import main as genimg_fast
from genimg_fast.data.degradations import Blur, Downsample, GaussianNoise, motion_kernel
from genimg_fast.editing import before_and_after, load_picture, save_picture

WIDEST = 900  # pixels, of a picture on the page


class Entry(NamedTuple):
    """A tool on the page."""

    name: str
    title: str
    text: str
    command: str  # without --out
    prepare: Callable[[], None] = lambda: None
    finish: Callable[[], None] = lambda: None  # draws more into the picture that the command has made


def photograph(name: str) -> Tensor:
    pixels = getattr(skimage.data, name)() if hasattr(skimage.data, name) else None
    if pixels is None:
        pixels = sklearn.datasets.load_sample_image(f"{name}.jpg")
    picture = torch.from_numpy(numpy.array(pixels)).float() / 255
    return picture[None] if picture.dim() == 2 else picture[..., :3].permute(2, 0, 1)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def lay_out() -> None:
    """Write all photographs that the commands name."""
    for name in ("astronaut", "chelsea", "rocket", "china", "immunohistochemistry", "moon"):
        save_picture(photograph(name), f"{name}.png")
    save_picture(photograph("brick")[:, 300:492, 160:352], "brick.png")
    save_picture(photograph("gravel")[:, :192, :192], "gravel.png")


def mask_rocket() -> None:
    mask = torch.zeros(1, *photograph("rocket").shape[1:])
    mask[:, 118:408, 302:342] = 1
    mask[:, 330:408, 283:360] = 1
    save_picture(mask, "rocket-mask.png")


def outline_astronaut() -> None:
    trimap = Image.new("L", (512, 512))
    draw = ImageDraw.Draw(trimap)
    draw.polygon(OUTLINE, fill=255)
    draw.line((*OUTLINE, OUTLINE[0]), fill=128, width=24, joint="curve")
    trimap.save("astronaut-trimap.png")


def spoil_chelsea() -> None:
    chelsea = photograph("chelsea")
    save_picture(GaussianNoise(25)(chelsea, generator=generator()), "noisy.png")
    save_picture(Blur(motion_kernel(15, 30))(chelsea, generator=generator()), "moved.png")
    save_picture(Downsample(2)(chelsea, generator=generator()), "small.png")


def expose_coffee() -> None:
    """Write a photograph as cameras would that let in less light, and more."""
    light = photograph("coffee") ** 2.2
    for name, factor in (("dark", 0.3), ("bright", 2.5)):
        save_picture((factor * light).clamp(0, 1) ** (1 / 2.2), f"{name}.png")


def show_exposures() -> None:
    in_a_row([load_picture(f"{name}.png") for name in ("dark", "bright", "exposures")], "exposures.png")


def in_a_row(pictures: list[Tensor], file: str) -> None:
    save_picture(functools.reduce(before_and_after, pictures), file)


def digits() -> None:
    """A trained VAE, a digit that it has not seen, and folders of thin and bold ones."""
    images = sklearn.datasets.load_digits().images / 16
    pictures = [Image.fromarray((255 * image).astype("uint8")).resize((32, 32), 3) for image in images]
    ink = images.mean((1, 2)).argsort()
    for folder, chosen in (("thin", ink[:300]), ("bold", ink[-300:])):
        Path(folder).mkdir(exist_ok=True)
        for number in chosen:
            pictures[number].save(f"{folder}/{number:04}.png")
    for name, number in (("three", 3), ("eight", 8)):
        pictures[number].save(f"{name}.png")
    if not Path("runs").exists():
        run("genimg-fast train vae --data digits --out runs")


def run(command: str) -> float:
    started = time.perf_counter()
    with contextlib.suppress(SystemExit):
        if genimg_fast(shlex.split(command)[1:]) == 0:
            return time.perf_counter() - started
    raise RuntimeError(f"failed: {command}")


def main() -> int:
    parser = argparse.ArgumentParser(description="Make docs/gallery.md and its pictures.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="entries to make anew; default: all")
    parser.add_argument("--work", type=Path, default=Path("gallery"), help="where the commands run")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs", help="folder of the page")
    args = parser.parse_args()
    (args.out / "gallery").mkdir(parents=True, exist_ok=True)
    out = args.out.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    os.chdir(args.work)
    lay_out()
    page = [HEAD]
    for entry in ENTRIES:
        page.append(f"## {entry.title}\n\n{entry.text}\n\n```bash\n{entry.command}\n```\n")
        page.append(f"![{entry.title}](gallery/{entry.name}.jpg)\n")
        if args.names and entry.name not in args.names:
            continue
        entry.prepare()
        seconds = run(f"{entry.command} --out {entry.name}.png")
        entry.finish()
        with Image.open(f"{entry.name}.png") as made:
            picture = made.convert("RGB")
            picture.thumbnail((WIDEST, 2 * WIDEST))
            picture.save(out / "gallery" / f"{entry.name}.jpg", quality=85, optimize=True)
        print(f"{entry.name}: {seconds:.0f} s")
    (out / "gallery.md").write_text("\n".join(page))
    size = sum(file.stat().st_size for file in (out / "gallery").iterdir())
    print(f"{out / 'gallery.md'}: {size / 1e6:.1f} MB of pictures")
    return 0


HEAD = """# Gallery

What `genimg-fast edit` does to photographs, made by `python benchmarks/gallery.py`. No weights were downloaded for
any of them. Before on the left, after on the right.
"""

ENTRIES = [
    Entry(
        "style",
        "Style transfer",
        "The cat of patches of a microscope's picture of tissue; patch transport from coarse to fine, no network.",
        "genimg-fast edit style chelsea.png --style immunohistochemistry.png --before-after",
    ),
    Entry(
        "matte",
        "Matting: the astronaut in front of a palace",
        "Of a trimap with a wide grey band around her, closed-form matting finds what of the hair is hair.",
        "genimg-fast edit matte astronaut.png --trimap astronaut-trimap.png --background china.png --before-after",
        outline_astronaut,
    ),
    Entry(
        "inpaint",
        "Inpainting: the rocket has gone",
        "What a mask covers is filled by patches of the rest; every other pixel stays what it is.",
        "genimg-fast edit inpaint rocket.png --mask rocket-mask.png --dilate 4 --before-after",
        mask_rocket,
    ),
    Entry(
        "texture",
        "Texture: more gravel, tileable",
        "Image quilting; the picture on the right can be laid beside itself without a seam.",
        "genimg-fast edit texture gravel.png --size 512 512 --tileable --before-after",
    ),
    Entry(
        "denoise",
        "Denoising",
        "Noise of 25 grey levels; block matching and 3-D filtering.",
        "genimg-fast edit denoise noisy.png --sigma 25 --before-after",
        spoil_chelsea,
    ),
    Entry(
        "deblur",
        "Deblurring",
        "Moved by 15 pixels at 30 degrees; Richardson-Lucy.",
        "genimg-fast edit deblur moved.png --motion 15 30 --before-after",
        spoil_chelsea,
    ),
    Entry(
        "contrast",
        "Contrast",
        "The moon, with the histograms of its parts made even as far as noise allows (CLAHE).",
        "genimg-fast edit enhance moon.png --contrast 0.01 --before-after",
    ),
    Entry(
        "exposures",
        "Exposures put together",
        "A photograph with a third of its light, and with two and a half times as much; of each what shows.",
        "genimg-fast edit enhance dark.png --exposures bright.png --contrast 0",
        expose_coffee,
        show_exposures,
    ),
    Entry(
        "attribute",
        "Latents: a bolder three",
        "A VAE of handwritten digits, and the way from thin digits to bold ones.",
        "genimg-fast edit attribute three.png runs/00000-vae-digits --from thin --to bold --strength -1 0 1 2",
        digits,
    ),
    Entry(
        "vary",
        "Latents: more eights",
        "The same VAE, from places near the eight's latents.",
        "genimg-fast edit vary eight.png runs/00000-vae-digits --n 7 --strength 0.5",
        digits,
    ),
]


if __name__ == "__main__":
    sys.exit(main())
