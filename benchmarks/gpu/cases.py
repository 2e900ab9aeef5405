"""What is timed: the cases of ``genimg-fast bench`` by size, dtype and layout, and the ways that compute them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from genimg_fast.bench import operators
from genimg_fast.bench.case import REFERENCE, Case, backward_of, calls_of
from genimg_fast.bench.entries import OURS
from genimg_fast.bench.gate import copy_of

from . import device
from .device import Call

# Of x, in the order in which they are timed: the targets' size first; 64 KiB takes the time of launching.
SIZES = tuple(n << 10 for n in (65536, 16384, 1024, 524288, 131072, 32768, 4096, 64))
LARGEST_EAGER = 16 << 20
COMPILED = (64 << 20, 16 << 20, 1 << 20)  # of which torch.compile's kernels are timed: each takes it seconds
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

# The environment's variable that forces a way of computing, and what it can say.
METHODS = {
    "batch_norm_act": ("GENIMG_FAST_BATCH_NORM_METHOD", ("split", "block", "cluster")),
    "group_norm_act": ("GENIMG_FAST_GROUP_NORM_METHOD", ("split", "on_chip", "cluster")),
    "reparameterize_kl": ("", ()),
    "recurrent": ("GENIMG_FAST_RECURRENT_METHOD", ("persistent", "steps")),
}
AUTOMATIC = "automatic"  # ours, as users get it


@dataclass(frozen=True)
class Point:
    """A case at a size, in a direction: one row for each contender.

    Attributes:
        row: Its name, unique in its stage.
        facts: What the report needs to know of it: operator, direction, bytes of x, dtype ...
        build: Makes the case on a device.
        contenders: Those that run it.
        eager: Whether it is timed without a graph, too.
    """

    row: str
    facts: dict[str, Any]
    build: Callable[[str], Case]
    contenders: tuple[str, ...]
    eager: bool = False

    def calls(self, contender: str) -> list[Call]:
        """A contender's calls, one for each set of buffers."""
        case, direction = self.build(device.DEVICE), self.facts["direction"]
        if contender == "compile":
            function = device.compiled(case.contenders[REFERENCE])
        elif contender in ("eager", "cudnn", "cudnn_tf32"):
            function = case.contenders[REFERENCE]
        else:
            function = case.contenders["inplace" if contender == "inplace" else OURS]
        # A graph of recurrent layers is long, and their weights are the same in all calls.
        sets = 2 if self.facts["operator"] == "recurrent" else device.number_of_sets(moved(case, direction))
        several = [case.inputs, *([copy_of(t) for t in case.inputs] for _ in range(sets - 1))]
        if direction == "backward":
            return [backward_of(function, inputs) for inputs in several]
        return [calls_of(function, inputs, direction) for inputs in several]


def moved(case: Case, direction: str) -> int:
    """Bytes that a pass has to move."""
    if direction == "backward":
        return case.moved["both"] - case.moved["forward"]
    return case.moved[direction]


@dataclass(frozen=True)
class Stage:
    """Cases that the same contenders run, each in a process of its own."""

    operator: str
    contenders: tuple[str, ...]
    cases: Callable[[], Iterator[Point]]

    def environment(self, contender: str) -> dict[str, str]:
        """Of its process: the automatic way is what users get, with torch's own kernels where those are faster."""
        variable, methods = METHODS[self.operator]
        if contender in methods:
            return {"GENIMG_FAST_BACKEND": "native", variable: contender}
        return {"GENIMG_FAST_BACKEND": "auto"}


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device=device.DEVICE, dtype=dtype)


def picture_shape(elements: int, channels: int) -> tuple[int, int, int, int]:
    """Squares of 128, or what the elements suffice for."""
    side = min(128, 1 << (int(math.log2(max(elements // channels, 1))) // 2))
    return max(elements // (channels * side * side), 1), channels, side, side


def grid(tiny: tuple[int, ...] = (16 << 10,)) -> Iterator[tuple[int, str]]:
    for size in tiny if device.dry else SIZES:
        for dtype in DTYPES:
            yield size, dtype


def batch_norm_cases() -> Iterator[Point]:
    for size, dtype in grid():
        for layout in ("NCHW", "NHWC"):
            for channels in (64,) if device.dry else (64, 256):
                for direction in ("forward", "backward"):
                    yield norm_case("batch_norm_act", size, dtype, layout, channels, direction)


def group_norm_cases() -> Iterator[Point]:
    for size, dtype in grid():
        for layout in ("NCHW", "NHWC"):
            for direction in ("forward", "backward"):
                yield norm_case("group_norm_act", size, dtype, layout, 128, direction)


def norm_case(operator: str, size: int, dtype: str, layout: str, channels: int, direction: str) -> Point:
    shape = picture_shape(size // DTYPES[dtype].itemsize, channels)
    laid_out = "channels_last" if layout == "NHWC" else layout
    if operator == "batch_norm_act":
        build = partial(operators.batch_norm_case, shape, DTYPES[dtype], laid_out, "leaky_relu")
    else:
        build = partial(operators.group_norm_case, shape, 32, "silu", "", dtype, laid_out)
    left_out = () if (size in COMPILED and channels < 256) or device.dry else ("compile",)
    contenders = tuple(c for c in CONTENDERS[operator] if c not in left_out)
    facts = {
        "operator": operator, "direction": direction, "bytes": size,
        "tensors": moved(build("meta"), direction) // size, "dtype": dtype, "layout": layout,
        "channels": channels, "shape": list(shape),
    }  # fmt: skip
    row = f"{size / 1e6:.4g} MB C{channels} {dtype} {layout} {direction}"
    return Point(row, facts, build, contenders, size <= LARGEST_EAGER)


def reparameterization_cases() -> Iterator[Point]:
    for size, dtype in grid():
        for direction in ("forward", "backward"):
            yield reparameterization_case(size, dtype, direction)


def reparameterization_case(size: int, dtype: str, direction: str) -> Point:
    shape = size // DTYPES[dtype].itemsize // 1024, 1024
    build = partial(operators.latents_case, shape, "", DTYPES[dtype])
    contenders = CONTENDERS["reparameterize_kl"] if size in COMPILED or device.dry else (AUTOMATIC, "eager")
    facts = {
        "operator": "reparameterize_kl", "direction": direction, "bytes": size,
        "tensors": moved(build("meta"), direction) // size, "dtype": dtype, "shape": list(shape),
    }  # fmt: skip
    return Point(f"{size / 1e6:.4g} MB {dtype} {direction}", facts, build, contenders, size <= LARGEST_EAGER)


def recurrent_cases() -> Iterator[Point]:
    cells, kinds = ("LSTM", "GRU", "RNN"), ("both", "forward")
    if device.dry:
        sizes = [(4, 2, 8, 1)]
    else:
        # Two lengths tell the time of a step from that of starting.
        layers = [(128, 16), (128, 64), (128, 256)]
        layers += [(h, b) for h in (64, 96, 32, 112, 160, 256, 512) for b in (16, 64)]
        sizes = [(16, 16, 64, 3), *((steps, b, h, 1) for h, b in layers for steps in (64, 512))]
    for steps, batch, hidden, layers in sizes:
        for cell in cells:
            for dtype in DTYPES:
                for direction in kinds:
                    yield recurrent_case(cell, steps, batch, hidden, layers, dtype, direction)


def recurrent_case(
    cell: str, steps: int, batch: int, hidden: int, layers: int, dtype: str, direction: str
) -> Point:
    sizes = (steps, batch, hidden, hidden, layers, layers > 1)
    name = f"{cell} T{steps} B{batch} H{hidden}{f' L{layers} bidirectional' if layers > 1 else ''}"
    facts = {
        "operator": "recurrent", "direction": direction, "cell": cell, "steps": steps, "batch": batch,
        "hidden": hidden, "layers": layers, "dtype": dtype,
    }  # fmt: skip
    # TF32 is about float32 alone.
    contenders = tuple(c for c in CONTENDERS["recurrent"] if dtype == "float32" or c != "cudnn_tf32")
    build = partial(operators.sequence_case, cell, sizes, DTYPES[dtype])
    return Point(f"{name} {dtype} {direction}", facts, build, contenders, steps < 512)


CONTENDERS = {
    "batch_norm_act": (AUTOMATIC, *METHODS["batch_norm_act"][1], "eager", "inplace", "compile"),
    "group_norm_act": (AUTOMATIC, *METHODS["group_norm_act"][1], "eager", "compile"),
    "reparameterize_kl": (AUTOMATIC, "eager", "compile"),
    "recurrent": (AUTOMATIC, "cudnn", "cudnn_tf32", *METHODS["recurrent"][1]),
}
STAGES = {
    "bn": Stage("batch_norm_act", CONTENDERS["batch_norm_act"], batch_norm_cases),
    "gn": Stage("group_norm_act", CONTENDERS["group_norm_act"], group_norm_cases),
    "reparam": Stage("reparameterize_kl", CONTENDERS["reparameterize_kl"], reparameterization_cases),
    "rnn": Stage("recurrent", CONTENDERS["recurrent"], recurrent_cases),
}


def measure(stage: str, contender: str, done: set[str]) -> Iterator[dict[str, Any]]:
    """Time a contender in the cases that are not done.

    Yields:
        ``{"begin": row}`` before each case, then what came of it.
    """
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    if not device.dry:  # a process of its own
        torch.backends.cudnn.allow_tf32 = contender == "cudnn_tf32"
    with device.cuda.stream(device.cuda.Stream()):
        for case in STAGES[stage].cases():
            if case.row in done or contender not in case.contenders:
                continue
            yield {"begin": case.row}
            torch.manual_seed(0)
            found = {"stage": stage, "row": case.row, "contender": contender, **case.facts}
            try:
                calls = case.calls(contender)
                figures = device.graph_seconds(calls)
                if case.eager:
                    figures |= device.eager_seconds(calls)
                yield found | {"status": "ok"} | figures
            except Exception as error:
                yield found | {"status": "failed", "words": f"{type(error).__name__}: {error}"[:500]}
                device.cuda.synchronize()  # raises if the device is lost to this process
            calls = None
            device.cuda.empty_cache()


def profiled() -> Iterator[Call]:
    """Calls for a profiler: ours alone, each several times, without a graph."""
    size = 16 << 10 if device.dry else 64 << 20
    for dtype in DTYPES:
        for direction in ("forward", "backward"):
            for layout in ("NCHW", "NHWC"):
                yield norm_case("batch_norm_act", size, dtype, layout, 64, direction).calls(AUTOMATIC)[0]
            yield reparameterization_case(size, dtype, direction).calls(AUTOMATIC)[0]
