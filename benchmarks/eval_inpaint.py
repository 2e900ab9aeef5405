"""Inpainting on photographs: seconds and similarity to what was there, beside scikit-image's and OpenCV's.

    python benchmarks/eval_inpaint.py
    python benchmarks/eval_inpaint.py --prior          # with the deep prior, minutes more
    python benchmarks/eval_inpaint.py --save pictures/

A hole of 96x96 pixels in each photograph that scikit-image and scikit-learn install. What is measured within it:

* PSNR, in dB: of all pixels, RGB. A blur wins it where nobody can know what was there.
* gradient: mean similarity of gradient magnitudes (as GMSD has it), 1 for the same edges and textures.
* patches: mean distance of the sorted projections of 7x7 patches on random directions (sliced Wasserstein) from
  those that were there, in grey levels of 255: 0 for the same texture, wherever each patch is.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from genimg_fast.data.optional import optional_import
from genimg_fast.editing import before_and_after, inpaint, save_picture
from genimg_fast.editing.pictures import to_grey

SIDE = 96
HOLES = {  # top and left of the hole
    "brick": (200, 200), "grass": (200, 200), "gravel": (200, 200), "astronaut": (20, 20), "chelsea": (20, 170),
    "coffee": (30, 480), "rocket": (60, 60), "china": (300, 100), "flower": (220, 60),
}  # fmt: skip


def photographs() -> Iterator[tuple[str, Tensor]]:
    data, datasets = optional_import("skimage.data"), optional_import("sklearn.datasets")
    for name in HOLES:
        load = getattr(data, name, None)
        pixels = np.array(load() if load else datasets.load_sample_image(f"{name}.jpg"))
        yield name, torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1) / 255


def gradient_similarity(a: Tensor, b: Tensor, hole: Tensor) -> float:
    kernel = torch.tensor([[1.0, 0, -1]] * 3).div(3).expand(1, 1, 3, 3)
    kernels = torch.cat([kernel, kernel.transpose(2, 3)])
    sizes = [F.conv2d(to_grey(x)[None], kernels, padding=1)[0].square().sum(0).sqrt() for x in (a, b)]
    constant = 170 / 255**2
    similar = (2 * sizes[0] * sizes[1] + constant) / (sizes[0].square() + sizes[1].square() + constant)
    return float(similar[hole].mean())


def patch_distance(a: Tensor, b: Tensor, hole: Tensor) -> float:
    top, left = hole.nonzero().amin(0).tolist()
    bottom, right = (hole.nonzero().amax(0) + 1).tolist()
    parts = [F.unfold(x[None, :, top:bottom, left:right], 7)[0] for x in (a, b)]
    directions = F.normalize(torch.randn(128, len(parts[0]), generator=torch.Generator().manual_seed(0)))
    projected = [(directions @ part).sort(1).values for part in parts]
    return float((projected[0] - projected[1]).abs().mean()) * 255


def ways(prior: bool) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Functions of a picture and a mask."""

    def ours(method: str) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda image, mask: inpaint(
            image, mask=mask, method=method, generator=torch.Generator().manual_seed(0)
        )

    def biharmonic(image: Tensor, mask: Tensor) -> Tensor:
        restoration = optional_import("skimage.restoration")
        filled = restoration.inpaint_biharmonic(image.numpy(), mask[0].numpy() > 0.5, channel_axis=0)
        return torch.from_numpy(filled).float().clamp(0, 1)

    def telea(image: Tensor, mask: Tensor) -> Tensor:
        cv2 = optional_import("cv2")
        pixels = image.mul(255).round().byte().permute(1, 2, 0).squeeze(2).contiguous().numpy()
        filled = torch.from_numpy(cv2.inpaint(pixels, mask[0].byte().numpy() * 255, 5, cv2.INPAINT_TELEA))
        return filled.reshape(*image.shape[1:], -1).permute(2, 0, 1) / 255

    found = {"patchmatch": ours("patchmatch"), "biharmonic": biharmonic, "Telea": telea}
    return {**found, "prior": ours("prior")} if prior else found


def main() -> None:
    parser = argparse.ArgumentParser(description="Fill holes in photographs; print seconds and similarity.")
    parser.add_argument("--prior", action="store_true", help="the deep prior, too")
    parser.add_argument("--save", type=Path, help="folder for pictures of the holes and of what is in them")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; holes of {SIDE}x{SIDE} pixels")
    print(f"{'picture':10} {'size':>9} {'way':>10} {'seconds':>8} {'PSNR':>6} {'gradient':>8} {'patches':>8}")
    totals: dict[str, list[tuple[float, ...]]] = {}
    for name, image in photographs():
        top, left = HOLES[name]
        mask = torch.zeros(1, *image.shape[1:])
        mask[:, top : top + SIDE, left : left + SIDE] = 1
        hole = mask[0] > 0.5
        for way, fill in ways(args.prior).items():
            started = time.perf_counter()
            try:
                filled = fill(image * (1 - mask), mask)
            except ImportError as error:
                print(f"{name:10} {way:>10} {error}")
                continue
            seconds = time.perf_counter() - started
            psnr = -10 * float((filled - image)[:, hole].square().mean().log10())
            row = (seconds, psnr, gradient_similarity(filled, image, hole), patch_distance(filled, image, hole))
            totals.setdefault(way, []).append(row)
            print_row(name, f"{image.shape[2]}x{image.shape[1]}", way, row)
            if args.save:
                args.save.mkdir(parents=True, exist_ok=True)
                save_picture(
                    before_and_after(torch.where(hole, torch.ones(()), image), filled),
                    args.save / f"{name}-{way}.png",
                )
    for way, rows in totals.items():
        print_row("mean", "", way, tuple(sum(column) / len(rows) for column in zip(*rows, strict=True)))


def print_row(name: str, size: str, way: str, row: tuple[float, ...]) -> None:
    seconds, psnr, gradient, patches = row
    print(f"{name:10} {size:>9} {way:>10} {seconds:8.1f} {psnr:6.2f} {gradient:8.3f} {patches:8.2f}", flush=True)


if __name__ == "__main__":
    main()
