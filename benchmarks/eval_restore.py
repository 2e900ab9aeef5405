"""How well pictures are restored: by filters, against scikit-image's, and by networks that learn from photographs.

    python benchmarks/eval_restore.py            # denoise, estimate_sigma, deblur
    python benchmarks/eval_restore.py --train    # restorers, of ten minutes each on two cores; writes pictures

The pictures come with scikit-image and scikit-learn. PSNR is that of all pixels, no border left out, and of all
channels: of grey pictures (Pillow's luminance) or of RGB, as a row says; SSIM has the Gaussian window of 11 pixels
of its paper. Noise is not clipped before a filter sees it; what a filter returns is clipped to [0, 1]. Non-local
means and total variation have, for each picture, the best of several strengths. What restorers are judged by is
held out whole: they learn from other photographs.
"""

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path

import matplotlib
import numpy
import skimage.data
import skimage.restoration
import sklearn.datasets
import torch
from PIL import Image
from torch import Tensor

import genimg_fast as gf
from genimg_fast.data.degradations import JPEG, Blur, Downsample, GaussianNoise, gaussian_kernel, motion_kernel
from genimg_fast.editing.pictures import to_grey
from genimg_fast.training import RunFolder, find_trainable, fit

HELD_OUT = ("astronaut", "chelsea", "coffee", "rocket")
PHOTOGRAPHS = (*HELD_OUT, "camera", "coins", "moon")
TRAINED_ON = ("camera", "coins")  # and others, of scikit-learn and matplotlib
SIGMAS = (15, 25, 50)
TASKS = ["denoise", "neighbor2neighbor", "jpeg", "deblur", "sr2", "sr3", "sr4"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Print how well pictures are restored.")
    parser.add_argument("--train", action="store_true", help="train restorers, and judge them")
    parser.add_argument("--tasks", nargs="+", default=TASKS, choices=TASKS, help="what to train for")
    parser.add_argument("--steps", type=int, help="steps of each training instead of the default")
    parser.add_argument("--side", type=int, help="judge by the middle of pictures, of so many pixels a side")
    parser.add_argument("--out", type=Path, default=Path("eval-restore"), help="folder for runs and pictures")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {gf.info().backend} backend")
    if args.train:
        return trained(args)
    denoised(args.side)
    estimated()
    deblurred(args.side)
    return 0


def photograph(name: str, *, grey: bool = False, side: int | None = None) -> Tensor:
    pixels = torch.from_numpy(numpy.array(getattr(skimage.data, name)()))
    picture = pixels.view(*pixels.shape[:2], -1)[..., :3].permute(2, 0, 1).float() / 255
    if side is not None:
        top, left = ((n - side) // 2 for n in picture.shape[1:])
        picture = picture[:, max(top, 0) :, max(left, 0) :][:, :side, :side]
    return to_grey(picture) if grey else picture


def psnr(picture: Tensor, target: Tensor) -> float:
    return -10 * math.log10((picture.clamp(0, 1) - target).square().mean())


def ssim(picture: Tensor, target: Tensor) -> float:
    return gf.metrics.ssim(picture.clamp(0, 1)[None] * 2 - 1, target[None] * 2 - 1).item()


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def non_local_means(noisy: Tensor, clean: Tensor, sigma: float) -> float:
    planes, axis = (noisy[0], None) if len(noisy) == 1 else (noisy, 0)
    found = []
    for strength, fast in ((0.6, True), (0.8, True), (0.8, False)):
        restored = skimage.restoration.denoise_nl_means(
            planes.numpy(), patch_size=5, patch_distance=6, h=strength * sigma / 255, sigma=sigma / 255,
            fast_mode=fast, channel_axis=axis,
        )  # fmt: skip
        found.append(psnr(torch.from_numpy(restored).view_as(clean), clean))
    return max(found)


def total_variation(noisy: Tensor, clean: Tensor, sigma: float) -> float:
    restored = [
        skimage.restoration.denoise_tv_chambolle(noisy.numpy(), weight * sigma / 255, channel_axis=0)
        for weight in (0.6, 0.8, 1.0, 1.3)
    ]
    return max(psnr(torch.from_numpy(r), clean) for r in restored)


def denoised(side: int | None) -> None:
    print("\ndenoise, PSNR in dB; + is the gain over non-local means")
    print(f"{'':24s}{'sigma':>6s}{'noisy':>8s}{'TV':>8s}{'NLM':>8s}{'ours':>8s}{'+':>7s}{'SSIM':>7s}{'s':>7s}")
    for grey in (True, False):
        gains: dict[int, list[float]] = {sigma: [] for sigma in SIGMAS}
        for name in PHOTOGRAPHS:
            clean = photograph(name, grey=grey, side=side)
            if not grey and len(clean) == 1:
                continue
            for sigma in SIGMAS:
                noisy = GaussianNoise(sigma)(clean, generator=seeded())
                means, variation = (rival(noisy, clean, sigma) for rival in (non_local_means, total_variation))
                started = time.perf_counter()
                restored = gf.editing.denoise(noisy, sigma=sigma)
                seconds = time.perf_counter() - started
                ours = psnr(restored, clean)
                gains[sigma].append(ours - means)
                size = "x".join(map(str, clean.shape[:0:-1]))
                print(
                    f"{name:10s}{size:>9s} {'Y' if grey else 'RGB':>3s} {sigma:6d}{psnr(noisy, clean):8.2f}"
                    f"{variation:8.2f}{means:8.2f}{ours:8.2f}{ours - means:+7.2f}{ssim(restored, clean):7.3f}"
                    f"{seconds:7.1f}",
                    flush=True,
                )
        for sigma, gain in gains.items():
            print(f"{'mean gain':20s}{'Y' if grey else 'RGB':>3s} {sigma:6d}{sum(gain) / len(gain):+47.2f}")


def estimated() -> None:
    levels = (0, 5, 10, 25, 50)
    print(f"\nestimate_sigma, of RGB with noise of{''.join(f'{level:7d}' for level in levels)}")
    for name in PHOTOGRAPHS:
        clean = photograph(name)
        found = [gf.editing.estimate_sigma(GaussianNoise(s)(clean, generator=seeded())) for s in levels]
        print(f"{name:36s}{''.join(f'{sigma:7.1f}' for sigma in found)}")


def deblurred(side: int | None) -> None:
    print("\ndeblur, RGB, noise of 1 level, PSNR in dB")
    print(f"{'':24s}{'blurred':>10s}{'Wiener':>10s}{'R.-Lucy':>10s}")
    ways = (({"gaussian": 1.5}, gaussian_kernel(1.5)), ({"motion": (15.0, 30.0)}, motion_kernel(15, 30)))
    for name in HELD_OUT:
        clean = photograph(name, side=side)
        for how, kernel in ways:
            spoilt = GaussianNoise(1)(Blur(kernel)(clean), generator=seeded()).clamp(0, 1)
            restored = [gf.editing.deblur(spoilt, method=m, **how) for m in ("wiener", "richardson-lucy")]
            figures = "".join(f"{psnr(p, clean):10.2f}" for p in (spoilt, *restored))
            print(f"{name:12s}{next(iter(how)):12s}{figures}", flush=True)


def write_training_photographs(folder: Path, *, noise: float = 0) -> None:
    pictures = {name: photograph(name) for name in TRAINED_ON}
    left, right, _ = skimage.data.stereo_motorcycle()
    samples = sklearn.datasets.load_sample_images()
    more = {
        "motorcycle-left": left,
        "motorcycle-right": right,
        "china": samples.images[0],
        "flower": samples.images[1],
        "hopper": Image.open(Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")),
    }
    for name, pixels in more.items():
        pictures[name] = torch.from_numpy(numpy.array(pixels)).permute(2, 0, 1).float() / 255
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        picture = GaussianNoise(noise)(picture.expand(3, -1, -1)).clamp(0, 1)
        gf.editing.save_picture(picture, folder / f"{name}.png")


def trained(args: argparse.Namespace) -> int:
    args.out.mkdir(parents=True, exist_ok=True)
    for task in args.tasks:
        with tempfile.TemporaryDirectory() as folder:
            # Neighbor2Neighbor never sees a clean picture: files have noise, and are clipped as files are.
            write_training_photographs(Path(folder), noise=25 if task == "neighbor2neighbor" else 0)
            restorer = find_trainable("restorer")
            asked = {} if args.steps is None else {"steps": args.steps}
            options = restorer.resolve(task=task, data=folder, crops=8000, **asked)
            dataset = restorer.data.load(options).dataset
            trainer = restorer.make_trainer(dataset, options)
            arguments = restorer.model_args(dataset, options)
            run = RunFolder.create(args.out, f"restorer-{task}", {"model": "restorer", "model_args": arguments})
            started, cpu = time.perf_counter(), time.process_time()
            data = restorer.data.augmented(dataset, options)
            fit(trainer, data, steps=options["steps"], batch_size=restorer.batch_size, run=run, progress=True)
            seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
        size = sum(parameter.numel() for parameter in trainer.model.parameters())
        print(
            f"\n{task}: {size:,} parameters, {options['steps']} steps in {seconds:.0f} s, {cpu:.0f} s of "
            f"processors; {run.path}"
        )
        judge(task, run.path, args)
    return 0


def judge(task: str, run: Path, args: argparse.Namespace) -> None:
    gains = []
    print(f"{'PSNR (SSIM), RGB':14s}{'spoilt':>17s}{'without network':>17s}{'restorer':>17s}{'gain':>7s}")
    for name in HELD_OUT:
        spoilt, plain, ours, clean = restorations(task, photograph(name, side=args.side), run)
        gains.append(psnr(ours, clean) - psnr(plain, clean))
        figures = "".join(f"{psnr(p, clean):9.2f} ({ssim(p, clean):.3f})" for p in (spoilt, plain, ours))
        print(f"{name:16s}{figures}{gains[-1]:+7.2f}", flush=True)
        row = torch.cat([p.clamp(0, 1) for p in (spoilt, plain, ours, clean)], 2)
        gf.editing.save_picture(row, args.out / f"{task}-{name}.png")
    print(f"{'mean gain':67s}{sum(gains) / len(gains):+7.2f}", flush=True)


def restorations(task: str, clean: Tensor, run: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Spoil a picture, and repair it without and with a network; the clean one comes last."""
    editing = gf.editing
    if task in ("denoise", "neighbor2neighbor"):
        spoilt = GaussianNoise(25)(clean, generator=seeded())
        return spoilt, editing.denoise(spoilt, sigma=25), editing.denoise(spoilt, sigma=25, model=run), clean
    if task == "jpeg":
        spoilt = JPEG(20)(clean)
        return spoilt, spoilt, editing.denoise(spoilt, model=run), clean
    if task == "deblur":
        spoilt = GaussianNoise(1)(Blur(gaussian_kernel(1.5))(clean), generator=seeded()).clamp(0, 1)
        ways = [editing.deblur(spoilt, gaussian=1.5, method=method) for method in ("wiener", "richardson-lucy")]
        return (
            spoilt,
            max(ways, key=lambda p: psnr(p, clean)),
            editing.deblur(spoilt, gaussian=1.5, model=run),
            clean,
        )
    factor = int(task[2:])
    clean = clean[:, : clean.shape[1] // factor * factor, : clean.shape[2] // factor * factor]
    small = Downsample(factor)(clean)
    plain = editing.upscale(small, factor=factor, method="bicubic")
    return plain, plain, editing.upscale(small, factor=factor, model=run), clean


if __name__ == "__main__":
    sys.exit(main())
