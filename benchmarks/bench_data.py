"""Images per second and memory of the loaders alone, against torchvision's ImageFolder and torch's DataLoader.

    python benchmarks/bench_data.py                  # 60,000 small images, 20,000 JPEG files of 256x256
    python benchmarks/bench_data.py --images 4000    # so many of either, in a few minutes

The images are generated; `--fashion-mnist FOLDER` takes Fashion-MNIST's IDX files for the small ones. Every
contender gives shuffled batches of float32 in [-1, 1] on the CPU, resized and cropped alike, with the same
number of workers, in a process of its own. Its images are counted from the second batch on; memory is the most
that it and its workers had together (proportional set size, shared pages counted once) beyond what it had before
it loaded anything, of all images and of a quarter of them. The first run from a cache makes it, and the verdict is
on the one after that, without workers: one that starts while memory is measured counts twice.

Exit status 1 if reading from a cache has less than twice ImageFolder's images per second, or takes memory that
grows with the number of images.
"""

import argparse
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch

from genimg_fast.bench.machine import commit

ALLOWED = 32 << 20  # bytes of growth: the fluctuation of allocators, and indices
CLASSES = 10


def write_image(file: str, size: int, channels: int, seed: int) -> None:
    """Write smooth noise, which compresses about as well as a photograph."""
    from PIL import Image, ImageFilter

    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (max(4, size // 16),) * 2 + (channels,), dtype=np.uint8).squeeze()
    image = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    grain = Image.effect_noise((size, size), 12).filter(ImageFilter.GaussianBlur(0.7)).convert(image.mode)
    Image.blend(image, grain, 0.25).save(file, quality=90)


def make_folder(folder: Path, n: int, size: int, channels: int, ending: str, workers: int) -> None:
    files = [folder / f"{k % CLASSES}" / f"{k:06}.{ending}" for k in range(n)]
    for below in {file.parent for file in files}:
        below.mkdir(parents=True)
    with ProcessPoolExecutor(workers) as pool:
        some = [str(file) for file in files]
        list(pool.map(write_image, some, [size] * n, [channels] * n, range(n), chunksize=64))


def unpack(idx: Path, folder: Path, n: int) -> None:
    """Write the images of IDX files one by one, for ImageFolder."""
    from PIL import Image

    import genimg_fast as gf

    data = gf.data.load_dataset(idx, image_size=28)
    for k, (image, label) in enumerate(zip(data.images[:n], data.labels.tolist(), strict=False)):
        below = folder / str(label)
        below.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(below / f"{k:06}.png")


def link_some(folder: Path, part: Path, every: int) -> None:
    for file in sorted(folder.rglob("*.*"))[::every]:
        target = part / file.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, target)


def image_folder(args: argparse.Namespace) -> Iterator[torch.Tensor]:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import InterpolationMode, v2

    transform = v2.Compose(
        [
            *([v2.Grayscale()] if args.channels == 1 else []),
            v2.Resize(args.size, InterpolationMode.BICUBIC),
            v2.CenterCrop(args.size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5] * args.channels, [0.5] * args.channels),
        ]
    )
    loader = torch.utils.data.DataLoader(
        ImageFolder(args.measured, transform), batch_size=args.batch_size, shuffle=True, drop_last=True,
        num_workers=args.workers, persistent_workers=args.workers > 0,
    )  # fmt: skip
    while True:
        for images, _ in loader:
            yield images


def ours(args: argparse.Namespace, memory: float | None, cache: Path | None) -> Iterator[torch.Tensor]:
    import genimg_fast as gf

    data = gf.data.load_dataset(
        args.measured, image_size=args.size, channels=args.channels, memory=memory, cache=cache,
        workers=args.workers,
    )  # fmt: skip
    return (images for images, _ in gf.data.batches(data, args.batch_size))


CONTENDERS: dict[str, Callable[[argparse.Namespace], Iterator[torch.Tensor]]] = {
    "ImageFolder + DataLoader": image_folder,
    "in memory": lambda args: ours(args, None, None),
    "from a cache": lambda args: ours(args, 0, args.measured.with_name(f"cache-{args.measured.name}")),
    "decoded as needed": lambda args: ours(args, 0, None),
}


def memory_of_tree() -> int:
    """Bytes of this process and those below it: proportional set size."""
    total, pids = 0, [os.getpid()]
    while pids:
        pid = pids.pop()
        try:
            fields = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            children = Path(f"/proc/{pid}/task").glob("*/children")
            pids += [int(child) for file in children for child in file.read_text().split()]
        except OSError:  # it has just ended
            continue
        total += next(int(field.split()[1]) * 1024 for field in fields if field.startswith("Pss:"))
    return total


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Take batches for some seconds; return images per second and bytes of memory."""
    import torchvision.datasets
    import torchvision.transforms.v2  # noqa: F401  (every contender's memory begins with the same packages)

    import genimg_fast  # noqa: F401

    torch.set_num_threads(1)
    gc.collect()
    before, most, done = memory_of_tree(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.2):
            most[0] = max(most[0], memory_of_tree())

    watching = threading.Thread(target=watch)
    watching.start()
    began = time.perf_counter()
    batches = CONTENDERS[args.contender](args)
    next(batches)
    first = clock = time.perf_counter()
    count = 0
    while (clock := time.perf_counter()) - first < args.seconds:
        count += len(next(batches))
    done.set()
    watching.join()
    return {
        "images_per_s": count / (clock - first),
        "bytes": max(most[0], memory_of_tree()) - before,
        "first_batch_s": first - began,
    }


def run(args: argparse.Namespace, contender: str, folder: Path, size: int, channels: int) -> dict[str, float]:
    command = [
        sys.executable, __file__, "--contender", contender, "--measured", str(folder), "--size", str(size),
        "--channels", str(channels), "--workers", str(args.workers), "--batch-size", str(args.batch_size),
        "--seconds", str(args.seconds),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"{contender}: {result.stderr}")
    return json.loads(result.stdout.splitlines()[-1])


def compare(args: argparse.Namespace, what: str, folder: Path, size: int, channels: int) -> bool:
    """Print the table of one set of images; tell if the targets are met."""
    part = folder.with_name(f"{folder.name}-part")
    link_some(folder, part, 4)
    numbers = [sum(1 for file in each.rglob("*.*")) for each in (folder, part)]
    print(f"\n{what}, batches of {args.batch_size}, {args.workers} workers")
    print(
        f"{'':<26}{'images/s':>10}{'x':>8}{'first batch s':>15}{f'MB of {numbers[0]}':>14}{f'of {numbers[1]}':>12}"
    )
    first, passed = 0.0, True
    for contender in CONTENDERS:
        small = run(args, contender, part, size, channels)
        whole = run(args, contender, folder, size, channels)
        first = first or whole["images_per_s"]
        ratio = whole["images_per_s"] / first
        print(
            f"{contender:<26}{whole['images_per_s']:>10.0f}{ratio:>8.2f}{whole['first_batch_s']:>15.1f}"
            f"{whole['bytes'] / 1e6:>14.0f}{small['bytes'] / 1e6:>12.0f}",
            flush=True,
        )
        if contender == "from a cache":
            small, again = (run(args, contender, each, size, channels) for each in (part, folder))
            print(
                f"{'  again':<26}{again['images_per_s']:>10.0f}{again['images_per_s'] / first:>8.2f}"
                f"{again['first_batch_s']:>15.1f}{again['bytes'] / 1e6:>14.0f}{small['bytes'] / 1e6:>12.0f}",
                flush=True,
            )
            passed = again["images_per_s"] >= 2 * first and again["bytes"] - small["bytes"] <= ALLOWED
    return passed


def main() -> int:
    parser = argparse.ArgumentParser(description="Time the loaders alone; print images per second and memory.")
    parser.add_argument(
        "--images", type=int, help="images of either kind (default: 60000 small, 20000 JPEG files)"
    )
    parser.add_argument("--fashion-mnist", type=Path, metavar="FOLDER", help="IDX files, for the small images")
    parser.add_argument(
        "--image-size", type=int, default=256, help="pixels a side that the JPEG files come out at"
    )
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=8, help="time for each contender")
    parser.add_argument(
        "--scratch", type=Path, metavar="FOLDER", help="where images and caches are made, and removed"
    )
    for hidden, kind in (("--contender", str), ("--measured", Path), ("--size", int), ("--channels", int)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        print(json.dumps(measure(args)))
        return 0
    print(f"torch {torch.__version__}, {len(os.sched_getaffinity(0))} processors, commit {commit()}")
    scratch = Path(tempfile.mkdtemp(prefix="genimg_fast-", dir=args.scratch))
    try:
        small, photos = scratch / "small", scratch / "photos"
        n = args.images or 60_000
        if args.fashion_mnist:
            unpack(args.fashion_mnist, small, n)
        else:
            make_folder(small, n, 28, 1, "png", args.workers)
        kind = "of Fashion-MNIST" if args.fashion_mnist else "generated"
        passed = compare(
            args, f"{len(list(small.rglob('*.png')))} images of 28x28, {kind}, as PNG files", small, 28, 1
        )
        n = args.images or 20_000
        make_folder(photos, n, 256, 3, "jpg", args.workers)
        what = f"{n} JPEG files of 256x256, at {args.image_size}x{args.image_size}"
        passed &= compare(args, what, photos, args.image_size, 3)
    finally:
        shutil.rmtree(scratch)
    print(
        f"\n{'pass' if passed else 'FAIL'}: from a cache at least twice ImageFolder's images per second, in "
        f"memory that grows by at most {ALLOWED / 2**20:.0f} MiB with four times the images"
    )
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
