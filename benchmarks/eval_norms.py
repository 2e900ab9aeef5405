"""Norms with activations on the CPU: what bounds them, and whether any size is slower than PyTorch's.

    python benchmarks/eval_norms.py bound [--threads 2]  # the rows with targets: bytes, operations, our share
    python benchmarks/eval_norms.py parts [--threads 2]  # what their instructions are for, of data in the L2 cache
    python benchmarks/eval_norms.py sweep [--threads 1]  # layers of all sizes; exit status 1 if some are slower

Everything is timed in turns, in one process, and the least time counts, of one thread that of the processor: other
processes disturb these least.

bound: ``MB`` have to be read or written at least, of tensors that take ``set`` together, which says where they
lie. At the rate at which PyTorch copies within a set of that size, just measured, they take ``bytes``.
``operations`` is what our kernel takes for as many elements that lie in the L2 cache, in one thread, divided by
the threads: its instructions, without memory. The larger of the two, in times of ours and eager's, is the share,
a little above 100% where caches hold more for us than for the copy; ``most`` is the gain of a kernel with a share
of 100%. Eager's results lie in new memory in some processes and in used memory in others, which is twice as fast.

sweep: the layers of this package and of torch.nn in a Sequential, in training, forward and backward, and in
evaluation. A figure is their time over ours; below 0.95 counts as slower.
"""

import argparse
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

import genimg_fast as gf
from genimg_fast.bench.case import calls_of
from genimg_fast.bench.entries import OURS
from genimg_fast.bench.machine import commit, facts, last_cache
from genimg_fast.bench.operators import group_norm_case

SLOWEST, LOOKS = 0.95, 3  # of eager's speed; how often it is measured again, where that seems slower
TARGETS = [
    ((8, 128, 64, 64), 32, "silu", ""),
    ((4, 64, 128, 128), 64, "leaky_relu", "instance"),
]
KINDS, LAYOUTS = ("float32", "autocast"), ("NCHW", "channels_last")
# One unit of work of the first target, and how many of them lie in the L2 cache.
UNIT, FEW, MANY = (4, 64, 64), 1, 3
SHAPES = [
    (1, 8, 1, 2), (2, 8, 4, 4), (1, 32, 4, 4), (4, 16, 8, 8), (16, 64, 4, 4), (8, 32, 16, 16), (32, 512, 2, 2),
    (2, 64, 28, 28), (8, 512, 8, 8), (64, 128, 8, 8), (4, 64, 32, 32), (1, 64, 64, 64), (16, 96, 31, 33),
    (8, 128, 64, 64),
]  # fmt: skip
_Key = TypeVar("_Key", bound=Hashable)


def least(calls: Mapping[_Key, Callable[[], Any]], budget: float, rounds: int = 5) -> dict[_Key, float]:
    """Time calls in turns, at least so many rounds, until a budget is used up; short ones several times a round.

    Args:
        calls: What is timed.
        budget: Seconds.
        rounds: How many at least.

    Returns:
        The least seconds of a call.
    """
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    repeats = {}
    for key, call in calls.items():
        call()
        started = clock()
        call()
        repeats[key] = max(1, min(50, int(1e-3 / (clock() - started))))
    best = dict.fromkeys(calls, float("inf"))
    ends = time.perf_counter() + budget
    while rounds > 0 or time.perf_counter() < ends:
        for key, call in calls.items():
            call()  # what the one before left in the caches is not part of it
            started = clock()
            for _ in range(repeats[key]):
                call()
            best[key] = min(best[key], (clock() - started) / repeats[key])
        rounds -= 1
    return best


def norm_call(
    shape: tuple[int, ...], groups: int, activation: str, norm: str, kind: str, layout: str, direction: Any
) -> dict[str, Callable[[], Any]]:
    """Make the calls of a case of ``genimg-fast bench``, ours and eager's."""
    case = group_norm_case(shape, groups, activation, norm, kind, layout, "cpu")
    return {name: calls_of(case.contenders[name], case.inputs, direction) for name in (OURS, "eager")}


def without_memory(activation: str, kind: str, layout: str, direction: Any) -> float:
    """Time our operator in one thread on data in the L2 cache.

    Returns:
        Seconds of an element: of the difference of two sizes, in which what a call costs is not.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    calls = {}
    for units in (FEW, MANY):
        shape = (1, UNIT[0] * units, *UNIT[1:])
        call = norm_call(shape, units, activation, "", kind, layout, direction)[OURS]
        calls[units] = gf.backend("native")(call)  # PyTorch's own are what runs of so few elements
    took = least(calls, 1.0)
    torch.set_num_threads(threads)
    return (took[MANY] - took[FEW]) / (UNIT[0] * UNIT[1] * UNIT[2] * (MANY - FEW))


def place(size: int) -> str:
    """Say where data of a size lies that is used again and again."""
    cache = last_cache("cpu")
    return "L3" if size <= 0.75 * cache else "memory" if size > 1.5 * cache else "L3 and memory"


def show_bound() -> None:
    """Print what bounds the rows that have targets."""
    print("| row | pass | MB | set: MB | GB/s | bytes: ms | operations: ms | ours: ms | share | eager: ms | share "
          "| gain | most |\n|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|")  # fmt: skip
    for shape, groups, activation, norm in TARGETS:
        for kind in KINDS:
            for layout in LAYOUTS:
                for direction in ("forward", "both"):
                    calls: dict[Any, Callable[[], Any]] = {}
                    calls |= norm_call(shape, groups, activation, norm, kind, layout, direction)
                    numel = torch.Size(shape).numel()
                    size = numel * (4 if kind == "float32" else 2)
                    # x and the result; and the gradients of both.
                    moved, held = (2 * size, 2 * size) if direction == "forward" else (5 * size, 4 * size)
                    source = torch.ones(held // 8)
                    calls["copy"] = partial(torch.empty_like(source).copy_, source)
                    took = least(calls, 4.0)
                    rate = held / took["copy"]
                    alone = without_memory(activation, kind, layout, direction)
                    of_bytes, of_operations = moved / rate, alone * numel / torch.get_num_threads()
                    floor = max(of_bytes, of_operations)
                    words = "x".join(map(str, shape)), norm or f"{groups} groups", activation, kind, layout
                    print(
                        f"| {' '.join(words)} | {direction} | {moved / 1e6:.0f} | {held / 1e6:.0f}, {place(held)} "
                        f"| {rate / 1e9:.0f} | {of_bytes * 1e3:.2f} | {of_operations * 1e3:.2f} "
                        f"| {took[OURS] * 1e3:.2f} | {floor / took[OURS]:.0%} "
                        f"| {took['eager'] * 1e3:.2f} | {floor / took['eager']:.0%} "
                        f"| {took['eager'] / took[OURS]:.2f} | {took['eager'] / floor:.1f} |",
                        flush=True,
                    )


def show_parts() -> None:
    """Print what the instructions are for: conversions, and SiLU, are what others do without."""
    print("| data in the L2 cache, 1 thread | pass | NCHW: ns for 16 elements | channels_last |")
    print("|---|---|--:|--:|")
    for direction in ("forward", "both"):
        for activation in ("identity", "leaky_relu", "silu"):
            for kind in KINDS:
                cells = []
                for layout in LAYOUTS:
                    cells.append(f"{without_memory(activation, kind, layout, direction) * 16e9:.1f}")
                print(f"| {activation} {kind} | {direction} | {' | '.join(cells)} |", flush=True)


def families(shape: tuple[int, ...]) -> dict[str, Callable[[Any], nn.Module]]:
    """Make the layers of each family, of a package's: the norm alone, and with an activation."""
    channels = shape[1]
    groups = min(32, channels // 2)
    return {
        "batch": lambda its: its.Sequential(its.BatchNorm2d(channels)),
        "batch + leaky_relu": lambda its: its.Sequential(its.BatchNorm2d(channels), its.LeakyReLU(0.2)),
        "group": lambda its: its.Sequential(its.GroupNorm(groups, channels)),
        "group + silu": lambda its: its.Sequential(its.GroupNorm(groups, channels), its.SiLU()),
        "instance + leaky_relu": lambda its: its.Sequential(its.InstanceNorm2d(channels), its.LeakyReLU(0.2)),
    }


def layer_call(layer: nn.Module, x: Tensor, training: bool) -> Callable[[], Any]:
    """Make a call of a layer: in training forward and backward, in evaluation forward alone."""
    if training:
        return calls_of(layer.train(), (x,), "both")
    return torch.no_grad()(partial(layer.eval(), x))


def show_sweep(threads: int) -> int:
    """Print how fast layers are in times of torch.nn's, by size; count those that are slower."""
    slow: list[str] = []
    print(
        f"| {threads} threads: layers | dtype | layout | pass | "
        + " | ".join("x".join(map(str, s)) for s in SHAPES)
    )
    print("|---|---|---|---|" + "--:|" * len(SHAPES))
    for family in families(SHAPES[0]):
        for dtype in (torch.float32, torch.bfloat16):
            for layout in LAYOUTS:
                for training in (True, False):
                    gains = []
                    for shape in SHAPES:
                        gain = _gain(family, shape, dtype, layout, training)
                        gains.append(gain)
                        if gain < SLOWEST:
                            slow.append(f"{family} {shape} {dtype} {layout} {training=}: {gain:.3f}")
                    words = str(dtype).removeprefix("torch."), layout, "both" if training else "evaluation"
                    print(
                        f"| {family} | {' | '.join(words)} | {' | '.join(f'{g:.2f}' for g in gains)} |", flush=True
                    )
    print(f"{len(slow)} slower than {SLOWEST} of eager's speed", *slow, sep="\n")
    return len(slow)


def _gain(family: str, shape: tuple[int, ...], dtype: torch.dtype, layout: str, training: bool) -> float:
    x = torch.randn(shape).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x
    make = families(shape)[family]
    calls = {
        name: layer_call(make(its), x.clone().requires_grad_(training), training)
        for name, its in (("ours", gf.nn), ("torch", nn))
    }
    took = least(calls, 0.25)
    for _ in range(LOOKS):  # again, before it is said
        if took["torch"] >= SLOWEST * took["ours"]:
            break
        took = {name: min(took[name], again) for name, again in least(calls, 2.0).items()}
    return took["torch"] / took["ours"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("bound", "parts", "sweep"))
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    machine = facts("cpu")
    print(f"{machine['device']}, {args.threads} threads, torch {torch.__version__}, commit {commit()}")
    if args.what == "sweep":
        sys.exit(show_sweep(args.threads) > 0)
    (show_bound if args.what == "bound" else show_parts)()


if __name__ == "__main__":
    main()
