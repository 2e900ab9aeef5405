"""Textures by patch transport, from scikit-image's pictures: time, and whether seams show when they are tiled.

    python benchmarks/eval_texture.py --out FOLDER
    python benchmarks/eval_texture.py --exemplars brick --size 256

For each exemplar of 192 pixels a side, a tileable texture of --size pixels a side:

seconds    wall time, with the threads that PyTorch has
seam       mean gradient across the seams of 2 x 2 tiles over the mean gradient elsewhere, the worse of both
           directions; in brackets that of the exemplar tiled as it is
rows above share of the other rows or columns across which the gradient is larger: 0 where the seam is the worst
distance   sliced Wasserstein distance of patches of 7 pixels from the exemplar's, times 1000; in brackets that of
           the exemplar's pixels in random order

With --out, exemplar and 2 x 2 tiles are written. Exit status 1 if a seam is over 1.6:
steps from row to row within a texture of gravel reach that.
"""

import argparse
import sys
import time
from pathlib import Path

import skimage.data
import torch
from torch import Tensor

from genimg_fast.editing import save_picture, synthesise
from genimg_fast.losses import SlicedWassersteinLoss

# Picture, and where the square begins: left and top.
EXEMPLARS = {
    "brick": ("brick", 0, 0),
    "grass": ("grass", 0, 0),
    "gravel": ("gravel", 0, 0),
    "cells": ("immunohistochemistry", 150, 300),
    "sky": ("hubble_deep_field", 200, 200),
    "wood": ("coffee", 0, 0),
}


def exemplar(name: str, side: int = 192) -> Tensor:
    picture, left, top = EXEMPLARS[name]
    pixels = torch.from_numpy(getattr(skimage.data, picture)()).float() / 255
    pixels = pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
    return pixels[:, top : top + side, left : left + side].contiguous()


def seam(texture: Tensor) -> tuple[float, float]:
    """How visible the worse seam of tiles is: relative to the mean step, and the share of larger steps."""
    worst = (0.0, 1.0)
    for dim in (1, 2):
        steps = (texture - texture.roll(1, dim)).abs().mean((0, 3 - dim))
        found = (float(steps[0] / steps[1:].mean()), float((steps[1:] > steps[0]).float().mean()))
        worst = max(worst, found)
    return worst


def distance(made: Tensor, exemplar: Tensor) -> float:
    loss = SlicedWassersteinLoss(7, num_projections=128, generator=torch.Generator().manual_seed(0))
    return 1000 * float(loss(made[None], exemplar[None]).sqrt())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exemplars", nargs="+", choices=EXEMPLARS, default=list(EXEMPLARS))
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    print(f"{args.size}x{args.size} from 192x192, {torch.get_num_threads()} threads")
    print(f"{'exemplar':10} {'seconds':>8} {'seam':>14} {'rows above':>11} {'distance':>18}")
    good = True
    for name in args.exemplars:
        given = exemplar(name)
        start = time.perf_counter()
        made = synthesise(
            given, size=(args.size, args.size), tileable=True, generator=torch.Generator().manual_seed(0)
        )
        seconds = time.perf_counter() - start
        shuffled = given.flatten(1)[:, torch.randperm(given[0].numel())].view_as(given)
        distances = [distance(x, given) for x in (made, shuffled)]
        ratio, above = seam(made)
        good &= ratio < 1.6
        print(
            f"{name:10} {seconds:8.1f} {ratio:6.2f} ({seam(given)[0]:5.2f}) {above:11.2f} "
            f"{distances[0]:8.1f} ({distances[1]:7.1f})",
            flush=True,
        )
        if args.out is not None:
            args.out.mkdir(parents=True, exist_ok=True)
            save_picture(given, args.out / f"{name}-exemplar.png")
            save_picture(made.repeat(1, 2, 2), args.out / f"{name}-tiled.png")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
