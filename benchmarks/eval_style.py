"""Style transfer on bundled photographs: time, style taken, structure kept.

    python benchmarks/eval_style.py --out FOLDER
    python benchmarks/eval_style.py --contents chelsea --styles cells --size 256 --method features
    python benchmarks/eval_style.py --painting painting.png
    genimg-fast train style-net --style painting.png
    python benchmarks/eval_style.py --styles painting --model runs/00000-style-net-photos
    python benchmarks/eval_style.py --large 1920 1080 --model runs/00000-style-net-photos
    python benchmarks/eval_style.py --tiled 2048 1536

For each content, scaled to --size pixels on its longer side, and each style:

seconds    wall time, with the threads that PyTorch has
style      sliced Wasserstein distance of patches of 7 pixels from the style's, times 1000: of the result, and
           in brackets of the content, and of the content with the style's colours alone
structure  correlation of brightness with the content's: of the result, and in brackets of the style

With --out, the pictures are written. --painting writes a picture of brush strokes, the style called painting,
and does nothing else. --large paints one photograph, of so many pixels, and prints seconds and the most memory
that the process had. --tiled paints it by optimisation with and without tiles, in a process each, and prints also
how they differ and, of patch transport, how large steps of brightness are across the borders of tiles, relative to
the mean elsewhere, in brackets without tiles. Exit status 1 if a result is not nearer to the style than the
content with its colours, or does not correlate with the content by 0.3.
"""

import argparse
import math
import multiprocessing
import resource
import sys
import time
from pathlib import Path

import numpy
import skimage.data
import sklearn.datasets
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn.functional import interpolate

from genimg_fast.editing import colours, patches, save_picture, style_features, stylise
from genimg_fast.editing.colours import moved
from genimg_fast.editing.pictures import to_grey
from genimg_fast.losses import SlicedWassersteinLoss

CONTENTS = ("astronaut", "chelsea", "coffee")
STYLES = {
    "cells": lambda: skimage.data.immunohistochemistry(),
    "gravel": lambda: skimage.data.gravel(),
    "flower": lambda: sklearn.datasets.load_sample_image("flower.jpg"),
    "china": lambda: sklearn.datasets.load_sample_image("china.jpg"),
    "coffee": lambda: skimage.data.coffee(),
    "painting": lambda: painting(),
}
# Middles of swirls, which way they turn, and how wide they are, of a picture of size 1.
SWIRLS = (
    (0.25, 0.25, 1, 0.14), (0.62, 0.38, -1, 0.2), (0.85, 0.15, 1, 0.1), (0.4, 0.72, -1, 0.13),
    (0.82, 0.8, 1, 0.15), (0.1, 0.6, 1, 0.08),
)  # fmt: skip
NIGHT = (
    (14, 24, 62), (24, 52, 120), (48, 96, 168), (120, 170, 200), (214, 206, 140), (246, 200, 60), (252, 232, 150),
)  # fmt: skip


def painting(size: int = 512) -> numpy.ndarray:
    """A night of swirls in brush strokes, which nobody has painted."""
    random = numpy.random.default_rng(0)
    y, x = numpy.mgrid[:size, :size] / size
    flow, light = numpy.full((size, size), 1 + 0.2j), numpy.zeros((size, size))
    for left, top, turn, width in SWIRLS:
        away = (x - left) + 1j * (y - top)
        distance = abs(away)
        flow += 4 * turn * numpy.exp(-((distance / width) ** 2)) * 1j * away / (distance + 1e-3)
        light += numpy.exp(-((distance / (0.45 * width)) ** 2))
        light += 0.45 * numpy.exp(-(((distance - 0.9 * width) / (0.18 * width)) ** 2))
    coarse = Image.fromarray(random.normal(size=(8, 8)).astype(numpy.float32))
    clouds = numpy.array(coarse.resize((size, size), Image.Resampling.BICUBIC))
    tone = numpy.clip(0.16 + 0.62 * light + 0.16 * clouds, 0, 1)
    canvas = Image.new("RGB", (size, size), (20, 40, 90))
    draw = ImageDraw.Draw(canvas)
    for width, strokes, length in ((14, 1500, 40), (8, 5000, 34), (5, 9000, 26)):
        for _ in range(strokes):
            points = [tuple(random.uniform(0, size, 2))]
            at = tone[int(points[0][1]), int(points[0][0])] + 0.09 * random.normal()
            at = numpy.clip(at, 0, 1) * (len(NIGHT) - 1)
            colour = [
                numpy.interp(at, range(len(NIGHT)), band) + 9 * random.normal()
                for band in zip(*NIGHT, strict=True)
            ]
            for _ in range(6):
                column, row = (int(numpy.clip(place, 0, size - 1)) for place in points[-1])
                angle = numpy.angle(flow[row, column])
                step = length * size / 512 / 6
                points.append((points[-1][0] + step * numpy.cos(angle), points[-1][1] + step * numpy.sin(angle)))
            fill = tuple(int(value) for value in numpy.clip(colour, 0, 255))
            draw.line(points, fill=fill, width=max(1, round(width * size / 512)), joint="curve")
    return numpy.array(canvas)


def picture(pixels: object, longer: int) -> Tensor:
    """A picture in colours, of a size."""
    read = torch.tensor(pixels).float() / 255
    read = read.expand(3, -1, -1) if read.ndim == 2 else read.permute(2, 0, 1)
    size = [round(n * longer / max(read.shape[1:])) for n in read.shape[1:]]
    return interpolate(read[None], size, mode="bilinear", antialias=True)[0].clamp(0, 1)


def distance(made: Tensor, style: Tensor) -> float:
    loss = SlicedWassersteinLoss(7, num_projections=128, generator=torch.Generator().manual_seed(0))
    return 1000 * float(loss(made[None], style[None]).sqrt())


def correlation(one: Tensor, two: Tensor) -> float:
    two = interpolate(two[None], one.shape[1:], mode="bilinear", antialias=True)[0]
    return float(torch.corrcoef(torch.stack([to_grey(x).flatten() for x in (one, two)]))[0, 1])


def paint(content: Tensor, style: Tensor, args: argparse.Namespace) -> Tensor:
    if args.model is not None:
        return stylise(content, model=args.model)
    return stylise(content, style=[style], method=args.method, generator=torch.Generator().manual_seed(0))


def memory() -> float:
    """The most that this process has had, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def paint_large(width: int, height: int, args: argparse.Namespace) -> tuple[Tensor, float]:
    """Paint a photograph of a size; return it, and the seconds."""
    content = picture(sklearn.datasets.load_sample_image("china.jpg"), max(width, height))
    content = interpolate(content[None], (height, width), mode="bicubic")[0].clamp(0, 1)
    start = time.perf_counter()
    return paint(content, picture(painting(), 512), args), time.perf_counter() - start


def paint_tiled(tiles: bool, args: argparse.Namespace) -> tuple[numpy.ndarray, float, float, float]:
    """Paint a large photograph in tiles or as a whole; return it, seconds, and memory before and at most."""
    if not tiles:  # what nobody needs, and so is no option
        patches._TILE = style_features._WHOLE = colours._PIECE = sys.maxsize
    before = memory()
    made, seconds = paint_large(*args.tiled, args)
    return made.numpy(), seconds, before, memory()


def across_borders(made: Tensor) -> float:
    """Mean step of brightness where a tile's patches end and the next one's go on, relative to that elsewhere."""
    grey, found, size = to_grey(made)[0], [], patches.SIZES[-1]
    for picture in (grey, grey.T):
        steps = picture.diff(dim=0).abs().mean(1)
        borders = torch.zeros(len(steps), dtype=torch.bool)
        for start in range(patches._TILE, len(picture) - size, patches._TILE):
            borders[start - 1 : start + size - 1] = True  # patches begin at each pixel in the last pass
        if borders.any():
            found.append(float(steps[borders].mean() / steps[~borders].mean()))
    return max(found, default=math.nan)


def tiled(args: argparse.Namespace) -> int:
    print("{}x{} pixels, {} threads".format(*args.tiled, torch.get_num_threads()))
    made = {}
    for tiles in (True, False):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            pixels, seconds, before, most = pool.apply(paint_tiled, (tiles, args))
        made[tiles] = torch.tensor(pixels)
        name = "in tiles" if tiles else "whole"
        print(f"{name:9} {seconds:7.1f} s, {most:5.2f} GiB at most, {before:.2f} before", flush=True)
        if args.out is not None:
            args.out.mkdir(parents=True, exist_ok=True)
            save_picture(made[tiles], args.out / f"{args.method}-{name.replace(' ', '-')}.png")
    difference = (made[True] - made[False]).abs()
    print(f"difference {float(difference.max()):.2g} at most, {float(difference.mean()):.2g} in the mean")
    if args.method == "transport":
        seams = {tiles: across_borders(picture) for tiles, picture in made.items()}
        print(f"steps across borders of tiles {seams[True]:.3f} ({seams[False]:.3f})")
    return 0


def large(width: int, height: int, args: argparse.Namespace) -> int:
    made, seconds = paint_large(width, height, args)
    print(f"{width}x{height} pixels, {torch.get_num_threads()} threads: {seconds:.1f} s, {memory():.1f} GiB")
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        save_picture(made, args.out / "large.png")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contents", nargs="+", choices=CONTENTS, default=CONTENTS)
    parser.add_argument(
        "--styles", nargs="+", choices=STYLES, default=[name for name in STYLES if name != "painting"]
    )
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--method", choices=("transport", "features"), default="transport")
    parser.add_argument("--model", type=Path, help="run of style-net, which is compared with the styles")
    parser.add_argument("--painting", type=Path, help="where to write it")
    parser.add_argument("--large", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--tiled", type=int, nargs=2, metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.painting is not None:
        Image.fromarray(painting()).save(args.painting)
        return 0
    if args.large is not None:
        return large(*args.large, args)
    if args.tiled is not None:
        return tiled(args)
    print(f"{args.size} pixels, {torch.get_num_threads()} threads")
    print(f"{'content':10} {'style':8} {'seconds':>8} {'style':>24} {'structure':>14}")
    good = True
    for name in args.contents:
        content = picture(getattr(skimage.data, name)(), args.size)
        for style_name in args.styles:
            if style_name == name:
                continue
            style = picture(STYLES[style_name](), args.size)
            start = time.perf_counter()
            made = paint(content, style, args)
            seconds = time.perf_counter() - start
            pixels = style.flatten(1)
            recoloured = moved(content.flatten(1), pixels, torch.ones(pixels.shape[1])).view_as(content)
            taken, before, colours = (distance(x, style) for x in (made, content, recoloured))
            kept = correlation(made, content)
            good &= taken < colours and kept > 0.3
            print(
                f"{name:10} {style_name:8} {seconds:8.1f} {taken:8.1f} ({before:6.1f} {colours:6.1f}) "
                f"{kept:6.2f} ({correlation(content, style):5.2f})",
                flush=True,
            )
            if args.out is not None:
                args.out.mkdir(parents=True, exist_ok=True)
                save_picture(made, args.out / f"{name}-{style_name}.png")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
