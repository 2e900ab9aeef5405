from typing import NamedTuple

import pytest
import torch
from accuracy import FORWARD, GRADIENT, assert_as_accurate_as_torch
from torch import Tensor

from genimg_fast.ops import image_conv_act, image_conv_act_reference

DTYPES = [torch.float32, torch.bfloat16]
ACTIVATIONS = ["identity", "relu", "leaky_relu", "silu", "tanh", "sigmoid"]
LAYOUTS = ["contiguous", "channels_last", "strided", "expanded"]
OPERATORS = torch.ops.genimg_fast
NAMES = ("input", "weight", "bias")
both_ways = pytest.mark.parametrize("transposed", [False, True], ids=["from", "to"])


class Shape(NamedTuple):
    """Of a convolution from an image, or back to it."""

    image: tuple[int, int, int, int]
    features: int = 8
    kernel: tuple[int, int] = (4, 4)
    stride: tuple[int, int] = (2, 2)
    padding: tuple[int, int] = (1, 1)

    @property
    def features_shape(self):
        sizes = zip(self.image[2:], self.kernel, self.stride, self.padding, strict=True)
        return (self.image[0], self.features, *((n + 2 * p - k) // s + 1 for n, k, s, p in sizes))

    @property
    def weight(self):
        return (self.features, self.image[1], *self.kernel)

    def options(self, transposed=False):
        more = {}
        if transposed:
            sizes = zip(self.image[2:], self.kernel, self.stride, self.padding, strict=True)
            more["output_padding"] = tuple((n + 2 * p - k) % s for n, k, s, p in sizes)
        return {"stride": self.stride, "padding": self.padding, "transposed": transposed, **more}


SMALL = Shape((2, 3, 8, 8))
SHAPES = [
    SMALL,
    Shape((4, 3, 64, 64), 64),
    Shape((3, 1, 32, 32), 32),
    Shape((2, 3, 35, 29), 33),
    Shape((5, 2, 17, 40), 16, (3, 3), (1, 1)),
    Shape((2, 4, 13, 11), 7, (5, 3), (2, 3), (0, 2)),
    Shape((3, 1, 28, 28), 6, (5, 5), (1, 1), (0, 0)),
    Shape((2, 3, 21, 19), 12, (7, 7), (1, 1), (3, 3)),
    Shape((2, 4, 9, 16), 24, (1, 1), (1, 1), (0, 0)),
    Shape((2, 2, 11, 12), 5, (2, 2), (3, 3), (0, 0)),
    Shape((2, 3, 3, 2), 9, (3, 2), (1, 1), (0, 0)),
    Shape((2, 1, 6, 7), 3, (2, 3), (1, 2), (1, 2)),
    Shape((1, 3, 40, 37), 20, (9, 8), (4, 3), (4, 7)),
    Shape((2, 3, 1, 40), 8, (1, 5), (1, 2), (0, 2)),
    Shape((1, 4, 70, 66), 1, (3, 3), (2, 2)),
]


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout."""
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "strided":  # a slice of a larger tensor: no dimension's stride is what the shape suggests
        larger = torch.full([2 * n + 1 for n in x.shape], float("nan"), dtype=x.dtype, device=x.device)
        return larger[tuple(slice(1, 2 * n + 1, 2) for n in x.shape)].copy_(x)
    return x[:1].expand_as(x) if layout == "expanded" else x


def make(
    shape, transposed=False, dtype=torch.float32, *, bias=True, layout="contiguous", weight_layout="contiguous"
):
    """The tensors of one call, in the order of NAMES."""
    x = torch.randn(shape.features_shape if transposed else shape.image).to(dtype)
    outputs = shape.image[1] if transposed else shape.features
    weight = lay_out((torch.randn(shape.weight) / 4).to(dtype), weight_layout)
    return [lay_out(x, layout), weight, torch.randn(outputs).to(dtype) if bias else None]


def run(function, tensors, grad_output, *, dtype=None, **options):
    """Forward and backward; returns every result by name. `dtype` computes in that dtype instead."""
    tensors = [None if t is None else t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]
    output = function(*tensors, negative_slope=0.2, **options)
    output.backward(grad_output.to(output.dtype))
    gradients = {f"grad_{n}": t.grad for n, t in zip(NAMES, tensors, strict=True) if t is not None}
    return {"output": output, **gradients}


def check(shape, tensors, transposed=False, *, activation="identity", grad_layout="contiguous"):
    """Check all results against float64 by the accuracy rule."""
    grad_output = torch.randn(shape.image if transposed else shape.features_shape).to(tensors[0].dtype)
    grad_output = lay_out(grad_output, grad_layout)
    options = {"activation": activation, **shape.options(transposed)}
    ours = run(image_conv_act, tensors, grad_output, **options)
    torchs = run(image_conv_act_reference, tensors, grad_output, **options)
    exact = run(image_conv_act_reference, tensors, grad_output, dtype=torch.float64, **options)
    for name, value in ours.items():
        times = GRADIENT if name.startswith("grad") else FORWARD
        assert_as_accurate_as_torch(value, torchs[name], exact[name], times=times, name=name)
    assert ran_natively(ours["output"]) == (activation != "silu")
    return ours, torchs


def ran_natively(output):
    """Whether a result, which requires a gradient, is that of our operator."""
    return type(output.grad_fn).__name__.startswith("image_conv")
