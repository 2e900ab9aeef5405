import torch
from accuracy import FORWARD, GRADIENT, assert_as_accurate_as_torch

from genimg_fast.ops import gru, gru_reference, lstm, lstm_reference, rnn, rnn_reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
CELLS = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}  # with the number of gates
OPERATORS = torch.ops.genimg_fast
LENGTHS = [7, 5, 5, 2, 1]


def make(cell, shape=(7, 5, 6, 8), dtype=torch.float32, *, packed=False, device="cpu"):
    """Arguments of one call, by name; shape is T, B, I, H, of which LENGTHS takes the place where packed."""
    steps, batch, inputs, hidden = shape
    width, scale = CELLS[cell] * hidden, hidden**-0.5
    first = (sum(LENGTHS), inputs) if packed else (steps, batch, inputs)
    tensors = {
        "input": torch.randn(first),
        "h0": torch.randn(batch, hidden),
        "c0": torch.randn(batch, hidden),
        "weight_ih": torch.randn(width, inputs) * inputs**-0.5,
        "weight_hh": torch.randn(width, hidden) * scale,
        "bias_ih": torch.randn(width) * scale,
        "bias_hh": torch.randn(width) * scale,
    }
    if cell != "lstm":
        del tensors["c0"]
    return {name: t.to(device, dtype) for name, t in tensors.items()}


def batch_sizes():
    return torch.tensor([sum(length > t for length in LENGTHS) for t in range(LENGTHS[0])])


def call(cell, tensors, *, reference=False, packed=False, reverse=False):
    """Return output and final states."""
    t = dict(tensors)
    hx = (t.pop("h0"), t.pop("c0")) if cell == "lstm" else t.pop("h0")
    options = {"reverse": reverse, "batch_sizes": batch_sizes() if packed else None}
    arguments = (t["input"], hx, t["weight_ih"], t["weight_hh"], t.get("bias_ih"), t.get("bias_hh"))
    if cell.startswith("rnn"):
        options["nonlinearity"] = cell.removeprefix("rnn_")
        return (rnn_reference if reference else rnn)(*arguments, **options)
    if cell == "gru":
        return (gru_reference if reference else gru)(*arguments, **options)
    output, finals = (lstm_reference if reference else lstm)(*arguments, **options)
    return output, *finals


def run(cell, tensors, weights, dtype=None, **options):
    """Forward and backward; returns every result by name. `dtype` computes in that dtype instead."""
    leaves = {name: t.detach().to(dtype or t.dtype).requires_grad_() for name, t in tensors.items()}
    outputs = call(cell, leaves, **options)
    sum((o * w.to(o)).sum() for o, w in zip(outputs, weights, strict=True)).backward()
    named = dict(zip(("output", "h_n", "c_n"), outputs, strict=False))
    return named | {f"grad_{name}": leaf.grad for name, leaf in leaves.items()}


def check(cell, tensors, **options):
    weights = [torch.randn(o.shape, device=o.device) for o in call(cell, tensors, **options)]
    ours = run(cell, tensors, weights, **options)
    torchs = run(cell, tensors, weights, reference=True, **options)
    exact = run(cell, tensors, weights, torch.float64, reference=True, **options)
    for name, value in ours.items():
        times = GRADIENT if name.startswith("grad") else FORWARD
        assert_as_accurate_as_torch(value, torchs[name], exact[name], times=times, name=name)
    assert type(ours["output"].grad_fn).__name__ == "_LayersBackward"
    return ours


def make_stack(cell, shape, layers, dtype=torch.float32, device="cpu"):
    """Arguments of the operator but the last, `keep`: bidirectional layers without biases."""
    steps, batch, inputs, hidden = shape
    width, parts = CELLS[cell] * hidden, 2 * layers
    states = [torch.randn(parts, batch, hidden) for _ in range(2)]
    weights = [
        torch.randn(width, n) * hidden**-0.5
        for part in range(parts)
        for n in (inputs if part < 2 else 2 * hidden, hidden)
    ]
    tensors = [t.to(device, dtype) for t in (torch.randn(steps, batch, inputs), *states, *weights)]
    c0 = tensors[2] if cell == "lstm" else None
    return *tensors[:2], c0, None, tensors[3:], list(CELLS).index(cell), True, False
