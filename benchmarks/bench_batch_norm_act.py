"""batch_norm_act in training mode against eager PyTorch and torch.compile: `make bench`.

One case: `pytest benchmarks/bench_batch_norm_act.py -k "128x256x8x8 and float32"`.
"""

import pytest
import torch
import torch.nn.functional as F
from harness import DEVICE, OURS, Row

from genimg_fast.ops import batch_norm_act

SLOPE = 0.2
WITH_SILU = (64, 128, 16, 16)  # the shape that is timed with SiLU, too
SHAPES = [
    (128, 64, 32, 32),
    (64, 128, 16, 16),
    (128, 256, 8, 8),
    (64, 512, 4, 4),
    (16, 64, 128, 128),
    (8, 3, 33, 65),
    (256, 1024),
]
CASES = [
    (shape, dtype, layout, activation)
    for shape in SHAPES
    for activation in ("leaky_relu", "silu")
    for dtype in (torch.float32, torch.bfloat16)
    for layout in ("NCHW", "channels_last")
    if (len(shape) == 4 or layout == "NCHW") and (activation == "leaky_relu" or shape == WITH_SILU)
]
# Tensors of the input's size that have to be read or written: input and output; input, grad_output, grad_input.
TENSORS_MOVED = {"forward": 2, "backward": 3, "both": 5}


def name_of(case):
    shape, dtype, layout, activation = case
    silu = " silu" if activation == "silu" else ""
    return f"{'x'.join(map(str, shape))}{silu} {str(dtype)[6:]} {layout}"


def eager(x, mean, var, weight, bias, activation, inplace=False):
    y = F.batch_norm(x, mean, var, weight, bias, True, 0.1, 1e-5)
    return F.silu(y, inplace) if activation == "silu" else F.leaky_relu(y, SLOPE, inplace)


def inplace(*arguments):
    return eager(*arguments, inplace=True)


def ours(x, mean, var, weight, bias, activation):
    return batch_norm_act(x, mean, var, weight, bias, True, 0.1, 1e-5, activation=activation, negative_slope=SLOPE)


@pytest.mark.parametrize("direction", TENSORS_MOVED)
@pytest.mark.parametrize("case", CASES, ids=lambda case: name_of(case).replace(" ", "-"))
def test_batch_norm_act(case, direction, compare):
    shape, dtype, layout, activation = case
    torch.manual_seed(0)
    x = torch.randn(shape, device=DEVICE).to(dtype)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    grad_output = torch.randn_like(x)
    x.requires_grad_()
    channels = shape[1]
    weight = torch.rand(channels, device=DEVICE).add_(0.5).requires_grad_()
    bias = torch.randn(channels, device=DEVICE).requires_grad_()
    mean, var = torch.zeros(channels, device=DEVICE), torch.ones(channels, device=DEVICE)

    def timed(function):
        def forward():
            return function(x, mean, var, weight, bias, activation)

        def both():
            return torch.autograd.grad(forward(), (x, weight, bias), grad_output)

        output = forward()

        def backward():
            return torch.autograd.grad(output, (x, weight, bias), grad_output, retain_graph=True)

        return {"forward": forward, "backward": backward, "both": both}[direction]

    contenders = {OURS: timed(ours), "eager": timed(eager)}
    if activation != "silu":  # in place where backward needs no more than the result
        contenders["inplace"] = timed(inplace)
    # A compiled graph gives up its buffers in the first backward, so backward alone cannot be repeated.
    if direction != "backward":
        torch._dynamo.reset()
        contenders["compile"] = timed(torch.compile(eager, dynamic=False))
    compare(Row("batch_norm_act", name_of(case), direction, TENSORS_MOVED[direction] * x.nbytes), contenders)
