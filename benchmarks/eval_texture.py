"""Texture synthesis: seconds for 512x512 pixels from 192x192, and whether a seam shows in tileable results.

    python benchmarks/eval_texture.py
    python benchmarks/eval_texture.py --save pictures/     # tileable ones 2x2, so that the seam is in the middle

Exemplars are parts of photographs that scikit-image installs. "seam" is the mean size of the gradient across the
seams of copies side by side, over the mean elsewhere in that direction, for the columns and for the rows: 1 if the
seam is like any other line. "worst line" is the same for the line of pixels where it is largest: what a texture
without any seam has, too.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genimg_fast.data.optional import optional_import
from genimg_fast.editing import quilt, save_picture

SIDE = 192
EXEMPLARS = {  # top and left of the part, and the side of a block
    "brick": (300, 160, 64), "grass": (0, 0, 32), "gravel": (0, 0, 32),
    "immunohistochemistry": (20, 20, 48), "hubble_deep_field": (300, 300, 48),
}  # fmt: skip


def exemplars() -> Iterator[tuple[str, Tensor, int]]:
    data = optional_import("skimage.data")
    for name, (top, left, patch) in EXEMPLARS.items():
        pixels = np.array(getattr(data, name)())
        picture = torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1) / 255
        yield name, picture[:, top : top + SIDE, left : left + SIDE], patch


def seams(texture: Tensor) -> tuple[list[float], float]:
    """Return the mean gradient across the seams over the mean elsewhere, and the largest of any line."""
    ratios, worst = [], 0.0
    for axis in (2, 1):
        steps = (texture - texture.roll(1, axis)).abs().movedim(axis, 0).flatten(1).mean(1)
        ratios.append(float(steps[0] / steps[1:].mean()))
        worst = max(worst, float(steps[1:].max() / steps[1:].mean()))
    return ratios, worst


def main() -> None:
    parser = argparse.ArgumentParser(description="Make textures; print seconds, and how much seams show.")
    parser.add_argument("--size", type=int, default=512, help="side of the result, in pixels")
    parser.add_argument("--save", type=Path, help="folder for the pictures")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; {args.size} pixels a side of {SIDE}")
    print(f"{'exemplar':20} {'channels':>8} {'tileable':>8} {'seconds':>8} {'seam':>11} {'worst line':>10}")
    for name, exemplar, patch in exemplars():
        for tileable in (False, True):
            started = time.perf_counter()
            texture = quilt(
                exemplar, size=(args.size, args.size), patch=patch, tileable=tileable,
                generator=torch.Generator().manual_seed(0),
            )  # fmt: skip
            seconds = time.perf_counter() - started
            ratios, worst = seams(texture)
            seam = " ".join(f"{ratio:5.2f}" for ratio in ratios)
            row = f"{name:20} {len(exemplar):8} {tileable!s:>8} {seconds:8.1f} {seam:>11} {worst:10.2f}"
            print(row, flush=True)
            if args.save:
                args.save.mkdir(parents=True, exist_ok=True)
                save_picture(exemplar, args.save / f"{name}-exemplar.png")
                ending = "-tileable" if tileable else ""
                save_picture(texture.repeat(1, 1 + tileable, 1 + tileable), args.save / f"{name}{ending}.png")


if __name__ == "__main__":
    main()
