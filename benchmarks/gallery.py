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
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import eval_adversarial
import numpy
import skimage.data
import sklearn.datasets
import torch
from eval_matting import OUTLINE
from eval_restore import write_training_photographs
from eval_style import painting
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate

from genimg_fast.cli import main as genimg_fast
from genimg_fast.data.degradations import JPEG, Blur, Downsample, GaussianNoise, motion_kernel
from genimg_fast.editing import before_and_after, load_picture, save_picture, upscale

WIDEST = 900  # pixels, of a picture on the page
PAINTER = "--style painting.png --style-size 640 --data ./photographs --steps 400"


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


def expose_coffee() -> None:
    """Write a photograph as cameras would that let in less light, and more."""
    light = photograph("coffee") ** 2.2
    for name, factor in (("dark", 0.3), ("bright", 2.5)):
        save_picture((factor * light).clamp(0, 1) ** (1 / 2.2), f"{name}.png")


def show_exposures() -> None:
    in_a_row([load_picture(f"{name}.png") for name in ("dark", "bright", "exposures")], "exposures.png")


def in_a_row(pictures: list[Tensor], file: str) -> None:
    save_picture(functools.reduce(before_and_after, pictures), file)


def paint_style() -> None:
    """Train a painter on other photographs than the cat, which is enlarged: strokes are finer then."""
    Image.fromarray(painting()).save("painting.png")
    save_picture(upscale(photograph("chelsea"), factor=2), "large-chelsea.png")
    write_training_photographs(Path("photographs"))
    train(f"style-net {PAINTER}", "painter")


def show_painting() -> None:
    """Put the painting above the photograph, and what the network has made beside them."""
    made = load_picture("painter.png")
    width = round(made.shape[1] / 1.68)  # so that both are about as high as the result
    left = [fitted(load_picture(file), width) for file in ("painting.png", "large-chelsea.png")]
    left.insert(1, torch.ones(3, 4, width))
    save_picture(before_and_after(torch.cat(left, 1), made), "painter.png")


def fitted(picture: Tensor, width: int) -> Tensor:
    height = round(picture.shape[1] * width / picture.shape[2])
    return interpolate(picture[None], (height, width), mode="bilinear", antialias=True)[0]


def learn_to_restore(task: str, steps: int) -> None:
    """Train a restorer on other photographs than the coffee, which it is to restore."""
    coffee = photograph("coffee")[:, 100:356, 170:490]
    save_picture(Downsample(4)(coffee) if task == "sr4" else JPEG(10)(coffee), f"{task}-coffee.png")
    write_training_photographs(Path("photographs"))
    train(f"restorer --task {task} --data ./photographs --crops 8000 --steps {steps}", task)


def show_upscaling() -> None:
    small, made = load_picture("sr4-coffee.png"), load_picture("upscale.png")
    bicubic = upscale(small, factor=4, method="bicubic")
    in_a_row([bicubic, made, photograph("coffee")[:, 100:356, 170:490]], "upscale.png")


def train(options: str, folder: str) -> None:
    """Train what a command takes, unless that was done before; a training that was cut short does not count."""
    if not Path(folder).exists():
        with tempfile.TemporaryDirectory(dir=".") as begun:
            run(f"genimg-fast train {options} --out {begun}/{folder}")
            Path(begun, folder).rename(folder)


def train_classifier() -> None:
    """Write a digit, and a network that has learned to read the others."""
    data = sklearn.datasets.load_digits()
    images, labels = torch.from_numpy(data.images / 16).float()[:, None], torch.from_numpy(data.target)
    save_picture(images[7], "seven.png")
    others = torch.arange(len(images)) != 7
    torch.manual_seed(0)
    network = eval_adversarial.train(images[others], labels[others], 4, adversarial=False).eval()
    torch.jit.trace(network, images[:1]).save("digits.pt")


def show_difference() -> None:
    """Put the digit, twice the difference and the sample side by side, with what the network reads."""
    network = torch.jit.load("digits.pt")
    before, after = load_picture("seven.png"), load_picture("adversarial.png")
    shown = [before, (0.5 + 2 * (after - before)).clamp(0, 1), after]
    in_a_row([each.repeat_interleave(32, 1).repeat_interleave(32, 2) for each in shown], "adversarial.png")
    with Image.open("adversarial.png") as picture:
        drawn = Image.new("RGB", (picture.width, picture.height + 28), "white")
        drawn.paste(picture)
    draw = ImageDraw.Draw(drawn)
    for column, image in enumerate((before, None, after)):
        text = "twice the difference"
        if image is not None:
            probability, label = network(image[None])[0].detach().softmax(0).max(0)
            text = f"read as {int(label)}, probability {float(probability):.3f}"
        draw.text((column * 260 + 6, picture.height + 5), text, "black", ImageFont.load_default(16))
    drawn.save("adversarial.png")


def digits() -> None:
    """Write a zero, a three and an eight, and folders of thin and bold digits; train a VAE on all digits."""
    images = sklearn.datasets.load_digits().images / 16
    pictures = [Image.fromarray((255 * image).astype("uint8")).resize((32, 32), 3) for image in images]
    ink = images.mean((1, 2)).argsort()
    for folder, chosen in (("thin", ink[:300]), ("bold", ink[-300:])):
        Path(folder).mkdir(exist_ok=True)
        for number in chosen:
            pictures[number].save(f"{folder}/{number:04}.png")
    for name, number in (("zero", 0), ("three", 3), ("eight", 8)):
        pictures[number].save(f"{name}.png")
    train("vae --data digits", "runs")


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
any of them. Before on the left, after on the right, unless the text says otherwise. `--work FOLDER` keeps the
pictures, folders and networks that the commands name, so that they can be repeated there.
"""

ENTRIES = [
    Entry(
        "style",
        "Style transfer",
        "The cat of patches of a microscope's picture of tissue; patch transport from coarse to fine, no network.",
        "genimg-fast edit style chelsea.png --style immunohistochemistry.png --before-after",
    ),
    Entry(
        "painter",
        "Style transfer by a network",
        "A painting, which was made by code; a cat; and the cat by a network that has learned the painting on\n"
        "other photographs, in one pass, as it does any picture. Before:\n"
        f"`genimg-fast train style-net {PAINTER} --out painter`.",
        "genimg-fast edit style large-chelsea.png --model painter/00000-style-net-photographs",
        paint_style,
        show_painting,
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
        "jpeg",
        "Repaired JPEG",
        "Quality 10, and what a network makes of it that has seen other photographs for some minutes. Before:\n"
        "`genimg-fast train restorer --task jpeg --data ./photographs --crops 8000 --steps 1500 --out jpeg`.",
        "genimg-fast edit denoise jpeg-coffee.png --model jpeg/00000-restorer-photographs --before-after",
        lambda: learn_to_restore("jpeg", 1500),
    ),
    Entry(
        "upscale",
        "Four times the pixels a side",
        "80x64 pixels by bicubic interpolation, by a network that has seen others, and the original. Before:\n"
        "`genimg-fast train restorer --task sr4 --data ./photographs --crops 8000 --steps 1000 --out sr4`.",
        "genimg-fast edit upscale sr4-coffee.png --model sr4/00000-restorer-photographs",
        lambda: learn_to_restore("sr4", 1000),
        show_upscaling,
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
        "adversarial",
        "Adversarial samples: how safe is a classifier?",
        "A network that reads 8x8 digits, and what it reads when no pixel is changed by more than a quarter.",
        "genimg-fast edit adversarial seven.png --classifier digits.pt --epsilon 0.25 --method apgd",
        train_classifier,
        show_difference,
    ),
    Entry(
        "attribute",
        "Latents: a bolder zero",
        "A VAE of handwritten digits of 8x8 pixels, enlarged, and the way from thin digits to bold ones. Before:\n"
        "`genimg-fast train vae --data digits --out runs`.",
        "genimg-fast edit attribute zero.png runs/00000-vae-digits --from thin --to bold --strength -1 0 1 2 "
        "--scale 5",
        digits,
    ),
    Entry(
        "vary",
        "Latents: more eights",
        "The same VAE, from places near the eight's latents.",
        "genimg-fast edit vary eight.png runs/00000-vae-digits --n 4 --strength 0.4 --scale 4",
        digits,
    ),
    Entry(
        "mix",
        "Latents: a three that is half an eight",
        "The same VAE: two digits, and what it makes of the mean of their latents.",
        "genimg-fast edit mix runs/00000-vae-digits --images three.png eight.png --scale 4",
        digits,
    ),
]


if __name__ == "__main__":
    sys.exit(main())
