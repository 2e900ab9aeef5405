import pytest
import torch
from accuracy import FORWARD, GRADIENT, assert_as_accurate_as_torch
from torch import Tensor

from genimg_fast.ops import batch_norm_act, batch_norm_act_reference

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# Of the input, and of parameters and running statistics.
KINDS = [
    pytest.param(torch.float32, torch.float32, id="float32"),
    pytest.param(torch.float64, torch.float64, id="float64"),
    pytest.param(torch.bfloat16, torch.float32, id="bfloat16"),
    pytest.param(torch.float16, torch.float32, id="float16"),
    pytest.param(torch.bfloat16, torch.bfloat16, id="bfloat16 throughout"),
    pytest.param(torch.float16, torch.float16, id="float16 throughout"),
]
ACTIVATIONS = ["identity", "relu", "leaky_relu", "silu"]
SHAPES = [(16, 7), (5, 3, 33), (4, 5, 7, 9), (8, 64, 8, 8), (2, 3, 4, 5, 6), (3, 1, 17, 1), (64, 24, 4, 4)]
INF = float("inf")
OPERATORS = torch.ops.genimg_fast


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
    residual=False,
):  # fmt: skip
    """Arguments of one call: input, weight, bias, residual. `own` is the parameters' dtype."""
    x = torch.randn(shape, device=device) * 2 + offset
    parameters = {"dtype": own or statistics_dtype(dtype), "device": device}
    weight = torch.rand(shape[1], **parameters) + 0.5 if affine else None
    bias = torch.randn(shape[1], **parameters) if affine else None
    added = torch.randn(shape, device=device).to(dtype) if residual else None
    return [lay_out(x.to(dtype), layout), weight, bias, added]


def run(function, tensors, grad_output, *, training, activation, dtype=None, **options):
    """Forward and backward; returns every result by name. `dtype` computes in that dtype instead."""
    x, weight = tensors[:2]
    kind = statistics_dtype(x.dtype) if weight is None else weight.dtype
    channels = x.shape[1]
    running_mean, running_var = (
        torch.linspace(*ends, channels, device=x.device).to(kind).to(dtype or kind) for ends in ((-1, 1), (0.5, 2))
    )
    tensors = [None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]
    x, weight, bias, residual = tensors
    output = function(
        x, running_mean, running_var, weight, bias, training, 0.3, 1e-5,
        activation=activation, negative_slope=0.2, residual=residual, **options,
    )  # fmt: skip
    output.backward(grad_output.to(output.dtype))
    named = dict(zip(("input", "weight", "bias", "residual"), tensors, strict=True))
    gradients = {f"grad_{name}": t.grad for name, t in named.items() if t is not None}
    return {"output": output, "running_mean": running_mean, "running_var": running_var, **gradients}


def check(tensors, *, training=True, activation="leaky_relu", grad_output=None):
    grad_output = torch.randn_like(tensors[0]) if grad_output is None else grad_output
    options = {"training": training, "activation": activation}
    ours = run(batch_norm_act, tensors, grad_output, **options)
    torchs = run(batch_norm_act_reference, tensors, grad_output, **options)
    exact = run(batch_norm_act_reference, tensors, grad_output, dtype=torch.float64, **options)
    for name, value in ours.items():
        times = GRADIENT if name.startswith("grad") else FORWARD
        assert_as_accurate_as_torch(value, torchs[name], exact[name], times=times, name=name)
    assert type(ours["output"].grad_fn).__name__ == "_BatchNormActBackward"
    return ours, torchs
