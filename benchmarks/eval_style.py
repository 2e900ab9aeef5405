"""Style transfer by patch transport on bundled photographs: time, style taken, structure kept.

    python benchmarks/eval_style.py --out FOLDER
    python benchmarks/eval_style.py --contents chelsea --styles cells --size 256

For each content, scaled to --size pixels on its longer side, and each style:

seconds    wall time, with the threads that PyTorch has
style      sliced Wasserstein distance of patches of 7 pixels from the style's, times 1000: of the result, and
           in brackets of the content, and of the content with the style's colours alone
structure  correlation of brightness with the content's: of the result, and in brackets of the style

With --out, the pictures are written. Exit status 1 if a result is not nearer to the style than the content with
its colours, or does not correlate with the content by 0.3.
"""

import argparse
import sys
import time
from pathlib import Path

import skimage.data
import sklearn.datasets
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from genimg_fast.editing import save_picture, stylise
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
}


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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--contents", nargs="+", choices=CONTENTS, default=CONTENTS)
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=list(STYLES))
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
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
            made = stylise(content, style=[style], generator=torch.Generator().manual_seed(0))
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
