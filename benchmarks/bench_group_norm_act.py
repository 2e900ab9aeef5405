"""group_norm_act in training against eager PyTorch and torch.compile: `make bench`.

One case: `pytest benchmarks/bench_group_norm_act.py -k "8x128x64x64 and float32"`.
"""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from harness import DEVICE, OURS, Row

from genimg_fast.ops import group_norm_act

SLOPE = 0.2
# Shape, groups, activation, and which norm: group norm, also with a scale and a shift per sample and channel, or
# instance norm without parameters.
NORMS = [
    ((8, 128, 64, 64), 32, "silu", "group"),
    ((8, 128, 64, 64), 32, "silu", "modulated"),
    ((8, 256, 32, 32), 32, "silu", "group"),
    ((16, 512, 16, 16), 32, "silu", "modulated"),
    ((32, 512, 8, 8), 32, "silu", "group"),
    ((4, 64, 128, 128), 64, "leaky_relu", "instance"),
    ((1, 128, 256, 256), 32, "silu", "group"),
    ((16, 96, 31, 33), 1, "identity", "group"),
    ((256, 1024), 1, "identity", "group"),
    # Small ones, and large groups.
    ((1, 32, 4, 4), 32, "silu", "group"),
    ((8, 512, 8, 8), 32, "silu", "group"),
    ((2, 8), 2, "silu", "group"),
    ((1, 64, 64, 64), 1, "silu", "group"),
    ((4, 64, 32, 32), 1, "silu", "group"),
]
# 16-bit data has float32 parameters; under autocast, for CPUs, it stays 16-bit data, so that one shape shows it.
CASES = [
    (norm, kind, layout)
    for norm in NORMS
    for kind in ("float32", "bfloat16", "autocast")
    for layout in ("NCHW", "channels_last")
    if (len(norm[0]) == 4 or layout == "NCHW") and (kind != "autocast" or norm is NORMS[0])
]
# How often tensors like the input and like the output have to be read or written: input and output; input, its
# gradient and the output's.
MOVED = {"forward": (1, 1), "backward": (2, 1), "both": (3, 2)}


def name_of(case):
    (shape, groups, activation, norm), kind, layout = case
    suffix = {"group": "", "modulated": "+mod", "instance": " instance"}[norm]
    return f"{'x'.join(map(str, shape))}/{groups}{suffix} {activation} {kind} {layout}"


def eager(x, groups, weight, bias, scale, shift, activation, inplace=False):
    y = F.instance_norm(x) if weight is None else F.group_norm(x, groups, weight, bias)
    if scale is not None:
        y = y * (1 + scale)[:, :, None, None] + shift[:, :, None, None]
    if activation == "silu":
        return F.silu(y, inplace)
    return F.leaky_relu(y, SLOPE, inplace) if activation == "leaky_relu" else y


def ours(x, groups, weight, bias, scale, shift, activation):
    return group_norm_act(
        x, groups, weight, bias, activation=activation, negative_slope=SLOPE, scale=scale, shift=shift
    )


@pytest.mark.parametrize("direction", MOVED)
@pytest.mark.parametrize("case", CASES, ids=lambda case: name_of(case).replace(" ", "-"))
def test_group_norm_act(case, direction, compare):
    (shape, groups, activation, norm), kind, layout = case
    torch.manual_seed(0)
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    x = torch.randn(shape, device=DEVICE).to(dtype)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    weight = bias = scale = shift = None
    if norm != "instance":
        weight = torch.rand(shape[1], device=DEVICE).add_(0.5).requires_grad_()
        bias = torch.randn(shape[1], device=DEVICE).requires_grad_()
    if norm == "modulated":
        scale, shift = (torch.randn(shape[:2], device=DEVICE).to(dtype).requires_grad_() for _ in range(2))
    leaves = [t for t in (x, weight, bias, scale, shift) if t is not None]

    def forward_of(function, **options):
        def forward():
            with torch.autocast(DEVICE, torch.bfloat16) if kind == "autocast" else contextlib.nullcontext():
                return function(x, groups, weight, bias, scale, shift, activation, **options)

        return forward

    def timed(function, **options):
        forward = forward_of(function, **options)
        output = forward()
        grad_output = torch.randn_like(output)

        def both():
            return torch.autograd.grad(forward(), leaves, grad_output)

        def backward():
            return torch.autograd.grad(output, leaves, grad_output, retain_graph=True)

        return {"forward": forward, "backward": backward, "both": both}[direction]

    contenders = {OURS: timed(ours), "eager": timed(eager)}
    # In place where backward needs no more than the result: not SiLU.
    if activation == "leaky_relu":
        contenders["inplace"] = timed(eager, inplace=True)
    # A compiled graph gives up its buffers in the first backward, so backward alone cannot be repeated.
    if direction != "backward":
        torch._dynamo.reset()
        contenders["compile"] = timed(torch.compile(eager, dynamic=False))
    inputs, outputs = MOVED[direction]
    moved = inputs * x.nbytes + outputs * forward_of(eager)().nbytes
    compare(Row("group_norm_act", name_of(case), direction, moved), contenders)
