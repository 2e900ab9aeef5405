"""What is timed: the cases of each stage, most important first, and the ways that compute them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import genimg_fast as gf

from . import device
from .device import Call

# Of x, in the order in which they are timed: the targets' size first; 64 KiB takes the time of launching.
SIZES = tuple(n << 10 for n in (65536, 16384, 1024, 524288, 131072, 32768, 4096, 64))
LARGEST_EAGER = 16 << 20
COMPILED = (64 << 20, 16 << 20, 1 << 20)  # of which torch.compile's kernels are timed: each takes it seconds
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SLOPE = 0.2

# The environment's variable that forces a way of computing, and what it can say.
METHODS = {
    "batch_norm_act": ("GENIMG_FAST_BATCH_NORM_METHOD", ("split", "block", "cluster")),
    "group_norm_act": ("GENIMG_FAST_GROUP_NORM_METHOD", ("split", "on_chip")),
    "reparameterize_kl": ("", ()),
    "recurrent": ("GENIMG_FAST_RECURRENT_METHOD", ("persistent", "steps")),
}
AUTOMATIC = "automatic"  # ours, as users get it


@dataclass(frozen=True)
class Case:
    """One row for each contender.

    Attributes:
        row: Its name, unique in its stage.
        facts: What the report needs to know of it: operator, direction, bytes of x, dtype ...
        make: Returns a contender's calls, one for each set of buffers.
        contenders: Those that run it; None: all.
        eager: Whether it is timed without a graph, too.
    """

    row: str
    facts: dict[str, Any]
    make: Callable[[str], Sequence[Call]]
    contenders: tuple[str, ...] | None = None
    eager: bool = False

    def is_for(self, contender: str) -> bool:
        return self.contenders is None or contender in self.contenders


@dataclass(frozen=True)
class Stage:
    """Cases that the same contenders run, each in a process of its own."""

    operator: str
    contenders: tuple[str, ...]
    cases: Callable[[], Iterator[Case]]

    def environment(self, contender: str) -> dict[str, str]:
        """Of its process: the automatic way is what users get, with torch's own kernels where those are faster."""
        variable, methods = METHODS[self.operator]
        if contender in methods:
            return {"GENIMG_FAST_BACKEND": "native", variable: contender}
        return {"GENIMG_FAST_BACKEND": "auto"}


def directions(forward: Call, inputs: Sequence[Tensor], grads: Sequence[Tensor], direction: str) -> Call:
    """A call of the forward pass, of the backward pass alone, or of both."""
    if direction == "forward":
        return forward
    if direction == "both":
        return lambda: torch.autograd.grad(forward(), inputs, grads)
    outputs = forward()
    return lambda: torch.autograd.grad(outputs, inputs, grads, retain_graph=True)


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


# Batch norm and group norm.


def batch_norm_cases() -> Iterator[Case]:
    for size, dtype in grid():
        for layout in ("NCHW", "NHWC"):
            for channels in (64,) if device.dry else (64, 256):
                for direction in ("forward", "backward"):
                    yield norm_case("batch_norm_act", size, dtype, layout, channels, direction)


def group_norm_cases() -> Iterator[Case]:
    for size, dtype in grid():
        for layout in ("NCHW", "NHWC"):
            for direction in ("forward", "backward"):
                yield norm_case("group_norm_act", size, dtype, layout, 128, direction)


def norm_case(operator: str, size: int, dtype: str, layout: str, channels: int, direction: str) -> Case:
    shape = picture_shape(size // DTYPES[dtype].itemsize, channels)
    tensors = {"forward": 2, "backward": 3}[direction]
    # As under autocast and in a bfloat16 model.
    parameters = torch.float32 if operator == "batch_norm_act" else DTYPES[dtype]

    def make(contender: str) -> list[Call]:
        function = norm_function(operator, contender)
        calls = []
        for _ in range(device.number_of_sets(tensors * size)):
            x = random(*shape, dtype=DTYPES[dtype])
            if layout == "NHWC":
                x = x.contiguous(memory_format=torch.channels_last)
            grad, x = torch.randn_like(x), x.requires_grad_()
            weight, bias = (random(channels).to(parameters).requires_grad_() for _ in range(2))
            statistics = torch.zeros(channels, device=device.DEVICE), torch.ones(channels, device=device.DEVICE)

            def forward(x=x, weight=weight, bias=bias, statistics=statistics):
                return function(x, *statistics, weight, bias)

            calls.append(directions(forward, (x, weight, bias), (grad,), direction))
        return calls

    left_out = () if (size in COMPILED and channels < 256) or device.dry else ("compile",)
    contenders = tuple(c for c in CONTENDERS[operator] if c not in left_out)
    facts = {
        "operator": operator, "direction": direction, "bytes": size, "tensors": tensors, "dtype": dtype,
        "layout": layout, "channels": channels, "shape": list(shape),
    }  # fmt: skip
    row = f"{size / 1e6:.4g} MB C{channels} {dtype} {layout} {direction}"
    return Case(row, facts, make, contenders, size <= LARGEST_EAGER)


def norm_function(operator: str, contender: str) -> Callable[..., Tensor]:
    """The operator, or what a peer has instead of it, with the activation that it is used with."""
    if operator == "batch_norm_act":

        def ours(x, mean, var, weight, bias):
            return gf.ops.batch_norm_act(x, mean, var, weight, bias, True, negative_slope=SLOPE)

        def eager(x, mean, var, weight, bias, inplace=False):
            return F.leaky_relu(F.batch_norm(x, mean, var, weight, bias, True), SLOPE, inplace)
    else:

        def ours(x, mean, var, weight, bias):
            return gf.ops.group_norm_act(x, 32, weight, bias)

        def eager(x, mean, var, weight, bias):
            return F.silu(F.group_norm(x, 32, weight, bias))

    if contender == "inplace":
        return lambda *arguments: eager(*arguments, inplace=True)
    if contender == "compile":
        return device.compiled(eager)
    return eager if contender == "eager" else ours


# Reparameterisation.


def reparameterization_cases() -> Iterator[Case]:
    for size, dtype in grid():
        for direction in ("forward", "backward"):
            yield reparameterization_case(size, dtype, direction)


def reparameterization_case(size: int, dtype: str, direction: str) -> Case:
    elements = size // DTYPES[dtype].itemsize
    shape = elements // 1024, 1024
    tensors = {"forward": 3, "backward": 5}[direction]

    def eager(mu, logvar):
        std = torch.exp(0.5 * logvar)
        z = mu + torch.randn_like(std) * std
        return z, -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp(), dim=1)

    def make(contender: str) -> list[Call]:
        function = device.compiled(eager) if contender == "compile" else eager
        function = gf.ops.reparameterize_kl if contender == AUTOMATIC else function
        calls = []
        for _ in range(device.number_of_sets(tensors * size)):
            inputs = [random(*shape, dtype=DTYPES[dtype]).requires_grad_() for _ in range(2)]
            outputs = function(*inputs)
            grads = [torch.randn_like(output) for output in outputs]
            calls.append(directions(lambda inputs=inputs: function(*inputs), inputs, grads, direction))
        return calls

    contenders = CONTENDERS["reparameterize_kl"] if size in COMPILED or device.dry else (AUTOMATIC, "eager")
    facts = {
        "operator": "reparameterize_kl", "direction": direction, "bytes": size, "tensors": tensors, "dtype": dtype,
        "shape": list(shape),
    }  # fmt: skip
    return Case(f"{size / 1e6:.4g} MB {dtype} {direction}", facts, make, contenders, size <= LARGEST_EAGER)


# Recurrent layers.


def recurrent_cases() -> Iterator[Case]:
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
) -> Case:
    def make(contender: str) -> list[Call]:
        if not device.dry:  # a process of its own
            torch.backends.cudnn.allow_tf32 = contender == "cudnn_tf32"
        room = torch.nn if contender.startswith("cudnn") else gf.nn
        options: dict[str, Any] = {"num_layers": layers, "bidirectional": layers > 1}
        torch.manual_seed(0)
        module = getattr(room, cell)(hidden, hidden, device=device.DEVICE, dtype=DTYPES[dtype], **options)
        weights = tuple(module.parameters())
        calls = []
        for _ in range(2):
            x = random(steps, batch, hidden, dtype=DTYPES[dtype]).requires_grad_()
            grad = random(steps, batch, hidden * (1 + (layers > 1)), dtype=DTYPES[dtype])
            calls.append(directions(lambda x=x: module(x)[0], (x, *weights), (grad,), direction))
        return calls

    name = f"{cell} T{steps} B{batch} H{hidden}{f' L{layers} bidirectional' if layers > 1 else ''}"
    facts = {
        "operator": "recurrent", "direction": direction, "cell": cell, "steps": steps, "batch": batch,
        "hidden": hidden, "layers": layers, "dtype": dtype,
    }  # fmt: skip
    # TF32 is about float32 alone.
    contenders = tuple(c for c in CONTENDERS["recurrent"] if dtype == "float32" or c != "cudnn_tf32")
    return Case(f"{name} {dtype} {direction}", facts, make, contenders, steps < 512)


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
    with device.cuda.stream(device.cuda.Stream()):
        for case in STAGES[stage].cases():
            if case.row in done or not case.is_for(contender):
                continue
            yield {"begin": case.row}
            torch.manual_seed(0)
            found = {"stage": stage, "row": case.row, "contender": contender, **case.facts}
            try:
                calls = case.make(contender)
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
                yield norm_case("batch_norm_act", size, dtype, layout, 64, direction).make(AUTOMATIC)[0]
            yield reparameterization_case(size, dtype, direction).make(AUTOMATIC)[0]
