"""Memory of a process that trains on shapes that change with every step: the figures, and if they are flat.

    python benchmarks/eval_memory.py

A step is forward and backward of one kind of layer on the CPU, with a batch, an image size or a number of steps
drawn anew: batch norm with activation, the sampling layer, GRU and LSTM over padded or packed sequences. Large
outputs lie in memory that the library keeps for the next ones; that, too, must come to an end.

Exit status 1 if the memory in use grows after the first fifth of the steps.
"""

import argparse
import ctypes
import os
import random
import sys
import time
from pathlib import Path

import torch
from torch.nn.utils.rnn import pack_sequence

import genimg_fast as gf
from genimg_fast import nn

ALLOWED = 32 << 20  # bytes of growth: the allocators' own fluctuation


def resident_bytes() -> int:
    """Memory of this process that is in use: what the C library keeps for itself is handed back first."""
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def make_steps(draw: random.Random) -> dict[str, object]:
    """Return the kinds of steps, by name: functions that run one and return a scalar to differentiate."""
    norm, norm_last = nn.BatchNormAct2d(16), nn.BatchNormAct2d(16).to(memory_format=torch.channels_last)
    sample, gru, lstm = nn.GaussianReparameterization(), nn.GRU(16, 48, 2), nn.LSTM(16, 48, bidirectional=True)

    def images() -> torch.Tensor:
        return torch.randn(draw.randint(1, 40), 16, draw.randint(8, 56), draw.randint(8, 56), requires_grad=True)

    def normalise() -> torch.Tensor:
        return norm(images()).sum()

    def normalise_last() -> torch.Tensor:
        return norm_last(images().contiguous(memory_format=torch.channels_last)).sum()

    def reparameterise() -> torch.Tensor:
        x = images()
        z, kl = sample(x, x)
        return z.sum() + kl.sum()

    def padded() -> torch.Tensor:
        x = torch.randn(draw.randint(1, 30), draw.randint(1, 24), 16, requires_grad=True)
        return lstm(x)[0].sum() + gru(x)[0].sum()

    def packed() -> torch.Tensor:
        rows = [torch.randn(draw.randint(1, 30), 16) for _ in range(draw.randint(1, 12))]
        return gru(pack_sequence(rows, enforce_sorted=False))[0].data.sum()

    return {f.__name__: f for f in (normalise, normalise_last, reparameterise, padded, packed)}


def main() -> int:
    parser = argparse.ArgumentParser(description="Train on changing shapes; print the memory in use.")
    parser.add_argument("--steps", type=int, default=10_000, help="steps")
    parser.add_argument("--seed", type=int, default=0, help="seed of the shapes")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    draw = random.Random(args.seed)
    steps = make_steps(draw)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {gf.info().backend} backend")
    started, used = time.perf_counter(), []
    every = max(1, args.steps // 10)
    for step in range(1, args.steps + 1):
        steps[draw.choice(list(steps))]().backward()
        if step % every == 0:
            used.append(resident_bytes())
            seconds = time.perf_counter() - started
            print(f"step {step:6}: {used[-1] / 2**20:7.1f} MiB after {seconds:5.1f} s", flush=True)
    early, late = max(used[:2]), max(used[2:], default=used[-1])
    flat = late - early <= ALLOWED
    print(
        f"{'pass' if flat else 'FAIL'}: after the first fifth of the steps the memory in use grew by "
        f"{max(0, late - early) / 2**20:.1f} MiB, at most {ALLOWED / 2**20:.0f} MiB are allowed"
    )
    return 0 if flat else 1


if __name__ == "__main__":
    sys.exit(main())
