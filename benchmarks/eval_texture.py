"""Textures from scikit-image's pictures: seconds, and whether seams show when copies lie side by side.

    python benchmarks/eval_texture.py [--method transport] [--out FOLDER]
    python benchmarks/eval_texture.py --exemplars brick --size 256

For each exemplar of 192 pixels a side, a tileable texture of --size pixels a side:

seconds     wall time, with the threads that PyTorch has
seam        mean gradient across the seams of 2 x 2 copies over the mean gradient elsewhere, the larger one of both
            directions; in brackets that of the exemplar tiled as it is
lines above share of the other rows or columns across which the gradient is larger: 0 where the seam is the worst
distance    sliced Wasserstein distance of patches of 7 pixels from the exemplar's, times 1000; in brackets that of
            the exemplar's pixels in random order

With --out, exemplar and 2 x 2 copies are written, so that the seam is in the middle. Exit status 1 if a seam is
over 1.6: from row to row within a texture of gravel there are steps like that.
"""

import argparse
import sys
import time
from pathlib import Path

import numpy
import skimage.data
import torch
from torch import Tensor

from genimg_fast.editing import save_picture, texture
from genimg_fast.losses import SlicedWassersteinLoss

SIDE = 192
# Where the square begins: top and left; and the side of a block of quilting.
EXEMPLARS = {
    "brick": (300, 160, 64), "grass": (0, 0, 32), "gravel": (0, 0, 32),
    "immunohistochemistry": (20, 20, 48), "hubble_deep_field": (300, 300, 48),
}  # fmt: skip


def exemplar(name: str) -> Tensor:
    top, left, _ = EXEMPLARS[name]
    pixels = numpy.array(getattr(skimage.data, name)())
    picture = torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1) / 255
    return picture[:, top : top + SIDE, left : left + SIDE].contiguous()


def seam(picture: Tensor) -> tuple[float, float]:
    """How visible the worse seam of copies is: relative to the mean step, and the share of larger steps."""
    worst = (0.0, 1.0)
    for dim in (1, 2):
        steps = (picture - picture.roll(1, dim)).abs().mean((0, 3 - dim))
        found = (float(steps[0] / steps[1:].mean()), float((steps[1:] > steps[0]).float().mean()))
        worst = max(worst, found)
    return worst


def distance(made: Tensor, exemplar: Tensor) -> float:
    loss = SlicedWassersteinLoss(7, num_projections=128, generator=torch.Generator().manual_seed(0))
    return 1000 * float(loss(made[None], exemplar[None]).sqrt())


def main() -> int:
    parser = argparse.ArgumentParser(description="Make textures; print seconds, and how much seams show.")
    parser.add_argument("--exemplars", nargs="+", choices=EXEMPLARS, default=list(EXEMPLARS))
    parser.add_argument("--method", choices=("quilting", "transport"), default="quilting")
    parser.add_argument("--size", type=int, default=512, help="side of the result, in pixels")
    parser.add_argument("--out", type=Path, help="folder for the pictures")
    args = parser.parse_args()
    print(f"{args.method}, {args.size}x{args.size} from {SIDE}x{SIDE}, {torch.get_num_threads()} threads")
    print(f"{'exemplar':20} {'seconds':>8} {'seam':>14} {'lines above':>12} {'distance':>18}")
    good = True
    for name in args.exemplars:
        given = exemplar(name)
        patch = EXEMPLARS[name][2] if args.method == "quilting" else None
        start = time.perf_counter()
        made = texture(
            given, size=(args.size, args.size), method=args.method, patch=patch, tileable=True,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        seconds = time.perf_counter() - start
        shuffled = given.flatten(1)[:, torch.randperm(given[0].numel())].view_as(given)
        distances = [distance(x, given) for x in (made, shuffled)]
        ratio, above = seam(made)
        good &= ratio < 1.6
        print(
            f"{name:20} {seconds:8.1f} {ratio:6.2f} ({seam(given)[0]:5.2f}) {above:12.2f} "
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
