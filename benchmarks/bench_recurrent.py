"""RNN, GRU and LSTM layers against torch.nn's (oneDNN or native on the CPU, cuDNN on GPUs): `make bench`.

torch.compile is no peer: it leaves recurrent layers to eager PyTorch.
One case: `pytest benchmarks/bench_recurrent.py -k "GRU and T64_B64 and float32 and both"`.
"""

import pytest
import torch
from harness import DEVICE, OURS, Row

import genimg_fast.nn

# Steps, batch, input size, hidden size, layers, bidirectional.
SHAPES = [
    (16, 16, 3, 64, 3, True),
    (28, 64, 28, 64, 1, False),
    (64, 64, 128, 128, 1, False),
    (64, 32, 256, 256, 1, False),
    (100, 8, 64, 512, 1, False),
]
CASES = [
    (cell, shape, dtype)
    for dtype in (torch.float32, torch.bfloat16)
    for shape in SHAPES
    for cell in ("RNN", "GRU", "LSTM")
]


def name(case):
    cell, (steps, batch, features, hidden, layers, bidirectional), dtype = case
    stack = f"_L{layers}{'_bidirectional' if bidirectional else ''}" if layers > 1 else ""
    return f"{cell} T{steps}_B{batch}_I{features}_H{hidden}{stack} {str(dtype)[6:]}"


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: name(case).replace(" ", "-"))
def test_recurrent(case, direction, compare):
    cell, (steps, batch, features, hidden, layers, bidirectional), dtype = case
    torch.manual_seed(0)
    arguments = {"num_layers": layers, "bidirectional": bidirectional, "device": DEVICE, "dtype": dtype}
    eager = getattr(torch.nn, cell)(features, hidden, **arguments)
    ours = getattr(genimg_fast.nn, cell)(features, hidden, **arguments)
    ours.load_state_dict(eager.state_dict())
    x = torch.randn(steps, batch, features, device=DEVICE, dtype=dtype, requires_grad=True)
    grad_output = torch.randn(steps, batch, hidden * (1 + bidirectional), device=DEVICE, dtype=dtype)

    def timed(module):
        inputs = (x, *module.parameters())

        def forward():
            return module(x)[0]

        def both():
            return torch.autograd.grad(forward(), inputs, grad_output)

        output = forward()

        def backward():
            return torch.autograd.grad(output, inputs, grad_output, retain_graph=True)

        return {"forward": forward, "backward": backward, "both": both}[direction]

    # Input and output, or their gradients and the input and output again; weights, or weights and their gradients.
    data, weights = x.nbytes + grad_output.nbytes, sum(p.nbytes for p in eager.parameters())
    moved = {"forward": data + weights, "backward": 2 * (data + weights), "both": 3 * (data + weights)}
    compare(Row("recurrent", name(case), direction, moved[direction]), {OURS: timed(ours), "eager": timed(eager)})
