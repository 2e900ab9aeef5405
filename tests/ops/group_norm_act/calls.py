import pytest
import torch
from accuracy import FORWARD, GRADIENT, assert_as_accurate_as_torch
from torch import Tensor

from genimg_fast.ops import group_norm_act, group_norm_act_reference

# Of the input, and of its parameters.
KINDS = [
    pytest.param(torch.float32, torch.float32, id="float32"),
    pytest.param(torch.float64, torch.float64, id="float64"),
    pytest.param(torch.bfloat16, torch.float32, id="bfloat16"),
    pytest.param(torch.float16, torch.float32, id="float16"),
    pytest.param(torch.bfloat16, torch.bfloat16, id="bfloat16 throughout"),
    pytest.param(torch.float16, torch.float16, id="float16 throughout"),
]
ACTIVATIONS = ["identity", "relu", "leaky_relu", "silu"]
# With the number of groups.
SHAPES = [
    ((16, 8), 2),
    ((5, 300), 1),
    ((6, 14), 2),
    ((5, 6, 33), 3),
    ((4, 6, 7, 9), 1),
    ((4, 6, 7, 9), 2),
    ((4, 6, 7, 9), 6),
    ((8, 64, 8, 8), 32),
    ((2, 4, 4, 5, 6), 2),
    ((3, 4, 17, 1), 2),
    ((6, 24, 2, 2), 4),
]
INF = float("inf")
OPERATORS = torch.ops.genimg_fast
NAMES = ("input", "weight", "bias", "residual", "scale", "shift")


def statistics_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout."""
    if layout == "channels_last":
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        return x.contiguous(memory_format=formats.get(x.dim(), torch.contiguous_format))
    if layout == "strided":  # a slice of a larger tensor: no dimension's stride is what the shape suggests
        larger = torch.full([2 * n + 1 for n in x.shape], float("nan"), dtype=x.dtype, device=x.device)
        view = larger[tuple(slice(1, 2 * n + 1, 2) for n in x.shape)]
        return view.copy_(x)
    if layout == "expanded":
        return x[:1].expand_as(x)
    return x


def make(
    shape, dtype=torch.float32, own=None, *, device="cpu", layout="contiguous", offset=0.0, affine=True,
    residual=True, modulated=True,
):  # fmt: skip
    """The tensors of one call, in the order of NAMES. `own` is the parameters' dtype."""
    x = torch.randn(shape, device=device) * 2 + offset
    parameters = {"dtype": own or statistics_dtype(dtype), "device": device}
    weight = torch.rand(shape[1], **parameters) + 0.5 if affine else None
    bias = torch.randn(shape[1], **parameters) if affine else None
    added = torch.randn(shape, device=device).to(dtype) if residual else None
    # The two halves of one tensor, as a linear layer gives them.
    halves = (torch.randn(shape[0], 2 * shape[1], **parameters) / 2).chunk(2, 1) if modulated else (None, None)
    return [lay_out(x.to(dtype), layout), weight, bias, added, *halves]


def run(function, tensors, grad_output, *, groups, activation="silu", dtype=None):
    """Forward and backward; returns every result by name. `dtype` computes in that dtype instead."""
    tensors = [None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]
    x, weight, bias, residual, scale, shift = tensors
    output = function(
        x, groups, weight, bias, 1e-5, activation=activation, negative_slope=0.2, residual=residual, scale=scale,
        shift=shift,
    )  # fmt: skip
    output.backward(grad_output.to(output.dtype))
    named = dict(zip(NAMES, tensors, strict=True))
    gradients = {f"grad_{name}": t.grad for name, t in named.items() if t is not None}
    return {"output": output, **gradients}


def check(tensors, *, groups, activation="silu", grad_output=None):
    grad_output = torch.randn_like(tensors[0]) if grad_output is None else grad_output
    options = {"groups": groups, "activation": activation}
    ours = run(group_norm_act, tensors, grad_output, **options)
    torchs = run(group_norm_act_reference, tensors, grad_output, **options)
    exact = run(group_norm_act_reference, tensors, grad_output, dtype=torch.float64, **options)
    for name, value in ours.items():
        times = GRADIENT if name.startswith("grad") else FORWARD
        assert_as_accurate_as_torch(value, torchs[name], exact[name], times=times, name=name)
    assert type(ours["output"].grad_fn).__name__ == "_GroupNormActBackward"
    return ours, torchs
