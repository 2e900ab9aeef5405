"""What a recurrent layer costs, forward and backward, against steps, batch and hidden size: one picture.

python benchmarks/plot_recurrent.py --out docs/recurrent-cost.png
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch
from tqdm import tqdm

import genimg_fast.nn
from genimg_fast.bench.machine import commit, facts
from genimg_fast.bench.timing import synchronize

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BASE = {"steps": 64, "batch": 64, "hidden": 128}
SWEEPS = {
    "steps": [4, 8, 16, 32, 64, 128, 256],
    "batch": [1, 2, 4, 8, 16, 32, 64, 128, 256],
    "hidden": [16, 32, 64, 128, 256, 512],
}
CELLS = ("RNN", "GRU", "LSTM")


def milliseconds(pair: tuple[Callable[[], object], Callable[[], object]]) -> tuple[float, float]:
    """Median times of two functions that are called in turns, each timed call after one of the same function."""
    times: tuple[list[float], list[float]] = ([], [])
    began = time.perf_counter()
    while len(times[0]) < 5 or time.perf_counter() - began < 0.5:
        for function, taken in zip(pair, times, strict=True):
            function()
            synchronize(DEVICE)
            started = time.perf_counter()
            function()
            synchronize(DEVICE)
            taken.append(time.perf_counter() - started)
    return statistics.median(times[0]) * 1e3, statistics.median(times[1]) * 1e3


def measure(cell: str, steps: int, batch: int, hidden: int) -> tuple[float, float]:
    """Milliseconds of forward and backward of one layer with as many inputs as hidden units: ours, torch.nn's."""
    torch.manual_seed(0)
    x = torch.randn(steps, batch, hidden, device=DEVICE, requires_grad=True)
    grad_output = torch.randn(steps, batch, hidden, device=DEVICE)

    def both(library: object) -> Callable[[], object]:
        layer = getattr(library, cell)(hidden, hidden, device=DEVICE)
        return lambda: torch.autograd.grad(layer(x)[0], (x, *layer.parameters()), grad_output)

    return milliseconds((both(genimg_fast.nn), both(torch.nn)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("recurrent-cost.png"), help="the picture")
    args = parser.parse_args()
    figure, axes = plt.subplots(1, len(SWEEPS), figsize=(12, 4), sharey=True, layout="constrained")
    progress = tqdm(total=len(CELLS) * sum(map(len, SWEEPS.values())), unit="shape")
    for axis, (swept, values) in zip(axes, SWEEPS.items(), strict=True):
        for k, cell in enumerate(CELLS):
            points = []
            for value in values:
                points.append(measure(cell, **{**BASE, swept: value}))
                progress.update()
            ours, torchs = zip(*points, strict=True)
            axis.loglog(values, ours, f"C{k}o-", label=f"{cell}, genimg_fast")
            axis.loglog(values, torchs, f"C{k}x:", label=f"{cell}, torch.nn")
        fixed = ", ".join(f"{name} {value}" for name, value in BASE.items() if name != swept)
        axis.set(xlabel=swept, title=fixed)
        axis.set_xticks(values, map(str, values), minor=False)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    progress.close()
    found = facts(DEVICE)
    axes[0].set_ylabel("forward + backward, ms")
    axes[-1].legend(fontsize=8)
    figure.suptitle(
        f"One recurrent layer, float32, inputs = hidden; {found['device']}, threads: {found['threads']}, "
        f"torch {found['torch']}, commit {commit()}",
        fontsize=9,
    )
    figure.savefig(args.out, dpi=120)
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
