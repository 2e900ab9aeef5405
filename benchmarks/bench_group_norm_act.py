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
# Shape, groups, activation, and whether a scale and a shift per sample and channel come with it.
NORMS = [
    ((8, 128, 64, 64), 32, "silu", False),
    ((8, 128, 64, 64), 32, "silu", True),
    ((8, 256, 32, 32), 32, "silu", False),
    ((16, 512, 16, 16), 32, "silu", True),
    ((32, 512, 8, 8), 32, "silu", False),
    ((4, 64, 128, 128), 64, "leaky_relu", False),
    ((1, 128, 256, 256), 32, "silu", False),
    ((16, 96, 31, 33), 1, "identity", False),
    ((256, 1024), 1, "identity", False),
    # Small ones, and large groups.
    ((1, 32, 4, 4), 32, "silu", False),
    ((8, 512, 8, 8), 32, "silu", False),
    ((2, 8), 2, "silu", False),
    ((1, 64, 64, 64), 1, "silu", False),
    ((4, 64, 32, 32), 1, "silu", False),
]
# bfloat16 beside float32 parameters, under autocast as without.
CASES = [
    (norm, kind, layout)
    for norm in NORMS
    for kind in ("float32", "bfloat16", "autocast")
    for layout in ("NCHW", "channels_last")
    if len(norm[0]) == 4 or layout == "NCHW"
]
# Tensors of the input's size that have to be read or written: input and output; input, grad_output, grad_input.
TENSORS_MOVED = {"forward": 2, "backward": 3, "both": 5}


def name_of(case):
    (shape, groups, activation, modulated), kind, layout = case
    modulation = "+mod" if modulated else ""
    return f"{'x'.join(map(str, shape))}/{groups}{modulation} {activation} {kind} {layout}"


def eager(x, groups, weight, bias, scale, shift, activation, inplace=False):
    if groups == x.shape[1]:
        y = F.instance_norm(x, weight=weight, bias=bias)
    else:
        y = F.group_norm(x, groups, weight, bias)
    if scale is not None:
        y = y * (1 + scale)[:, :, None, None] + shift[:, :, None, None]
    if activation == "silu":
        return F.silu(y, inplace)
    return F.leaky_relu(y, SLOPE, inplace) if activation == "leaky_relu" else y


def ours(x, groups, weight, bias, scale, shift, activation):
    return group_norm_act(
        x, groups, weight, bias, activation=activation, negative_slope=SLOPE, scale=scale, shift=shift
    )


@pytest.mark.parametrize("direction", TENSORS_MOVED)
@pytest.mark.parametrize("case", CASES, ids=lambda case: name_of(case).replace(" ", "-"))
def test_group_norm_act(case, direction, compare):
    (shape, groups, activation, modulated), kind, layout = case
    torch.manual_seed(0)
    dtype = torch.float32 if kind == "float32" else torch.bfloat16
    x = torch.randn(shape, device=DEVICE).to(dtype)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    x.requires_grad_()
    weight = torch.rand(shape[1], device=DEVICE).add_(0.5).requires_grad_()
    bias = torch.randn(shape[1], device=DEVICE).requires_grad_()
    scale = shift = None
    if modulated:
        scale, shift = (torch.randn(shape[:2], device=DEVICE).to(dtype).requires_grad_() for _ in range(2))
    leaves = [t for t in (x, weight, bias, scale, shift) if t is not None]

    def timed(function, **options):
        def forward():
            with torch.autocast(DEVICE, torch.bfloat16) if kind == "autocast" else contextlib.nullcontext():
                return function(x, groups, weight, bias, scale, shift, activation, **options)

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
    compare(Row("group_norm_act", name_of(case), direction, TENSORS_MOVED[direction] * x.nbytes), contenders)
