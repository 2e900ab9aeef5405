"""Convolutions of few pixels as matrix products."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from accuracy import FORWARD, GRADIENT, assert_as_accurate_as_torch
from torch import Tensor

import genimg_fast as gf
from genimg_fast.ops import product_conv as module
from genimg_fast.ops.product_conv import may_gain, product_conv

FORMATS = [torch.contiguous_format, torch.channels_last]
HALVE: dict[str, Any] = {"stride": (2, 2), "padding": (1, 1)}
DOUBLE = {**HALVE, "transposed": True}
BOTH = "forward gradient"
# Shapes of the input and of the weight, options, and what is a product: everything, the pass from image to
# features, the weight's gradient.
CASES: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any], str]] = {
    "whole": ((3, 6, 4, 4), (5, 6, 4, 4), {}, "whole"),
    "whole, not square": ((3, 6, 2, 3), (1, 6, 2, 3), {"stride": (2, 1)}, "whole"),
    "whole, transposed": ((3, 6, 1, 1), (6, 5, 4, 4), {"transposed": True}, "whole"),
    "one pixel": ((1, 128, 2, 2), (64, 128, 4, 4), HALVE, BOTH),
    "one pixel, transposed": ((1, 128, 1, 1), (128, 64, 4, 4), DOUBLE, BOTH),
    "odd": ((1, 150, 3, 4), (100, 150, 3, 3), {"stride": (3, 4), "padding": (0, 2)}, BOTH),
    "output padding": (
        (1, 96, 1, 1),
        (96, 64, 5, 5),
        {"stride": (3, 3), "padding": (2, 1), "transposed": True, "output_padding": (2, 1)},
        BOTH,
    ),
    "few pixels": ((1, 160, 4, 4), (64, 160, 4, 4), HALVE, "gradient"),
    "few pixels, transposed": ((1, 160, 2, 2), (160, 64, 4, 4), DOUBLE, "gradient"),
    "many pixels": ((3, 128, 8, 8), (64, 128, 4, 4), HALVE, "bfloat16"),
}


@pytest.fixture(autouse=True)
def _products_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether this machine has products of bfloat16 or not."""
    monkeypatch.setattr(module.kernels, "gains", lambda *_: (False, False))
    monkeypatch.setattr(module.kernels, "may_gain", lambda _: False)


def made(name: str, dtype: torch.dtype, memory_format: torch.memory_format, bias: bool = True) -> Any:
    """Make the input, the weight and the bias of a case, its options and what is a product."""
    shape, weight_shape, options, products = CASES[name]
    torch.manual_seed(0)
    outputs = weight_shape[1 if options.get("transposed") else 0]
    tensors = [torch.randn(shape), torch.randn(weight_shape) / 30, *([torch.randn(outputs)] if bias else [])]
    tensors = [
        t.to(dtype).contiguous(memory_format=memory_format if t.ndim == 4 else torch.contiguous_format)
        for t in tensors
    ]
    return [t.requires_grad_() for t in tensors], options, products


def torchs(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    *,
    transposed: bool = False,
    output_padding: tuple[int, int] = (0, 0),
) -> Tensor:
    if transposed:
        return F.conv_transpose2d(input, weight, bias, stride, padding, output_padding)
    return F.conv2d(input, weight, bias, stride, padding)


def ours(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    **options: Any,
) -> Tensor:
    output = product_conv(input, weight, bias, stride, padding, **options)
    assert output is not None
    return output


def with_gradients(run: Callable[..., Tensor], tensors: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
    output = run(*tensors, **options)
    torch.manual_seed(1)
    grad = torch.randn(output.shape, dtype=torch.float64).to(output.dtype)
    return [output, *torch.autograd.grad(output, tensors, grad)]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_matches_torch(
    name: str, dtype: torch.dtype, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, options, products = made(name, dtype, memory_format)
    plans: list[Any] = []
    plan_of = module._plan
    monkeypatch.setattr(module, "_plan", lambda *args: plans.append(plan_of(*args)) or plans[-1])
    if products == "bfloat16" and (dtype is torch.float32 or memory_format is torch.contiguous_format):
        assert product_conv(*tensors, **options) is None
        return
    got = with_gradients(ours, tensors, options)
    expected = with_gradients(torchs, tensors, options)
    exact = with_gradients(torchs, [t.detach().double().requires_grad_() for t in tensors], options)
    for i, (a, b, c) in enumerate(zip(got, expected, exact, strict=True)):
        assert_as_accurate_as_torch(a, b, c, times=GRADIENT if i else FORWARD, name=f"result {i}")
    assert got[0].stride() == expected[0].stride()
    done = {word for word in ("whole", "forward", "gradient") if getattr(plans[0], word)}
    words = {"bfloat16": "gradient", "whole": "whole forward gradient"}.get(products, products)
    assert done == set(words.split())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", [name for name in CASES if name != "many pixels"])
def test_results_may_be_changed_in_place(name: str, bias: bool) -> None:
    tensors, options, _ = made(name, torch.float32, torch.channels_last, bias)
    results = [
        with_gradients(lambda *args, run=run, **others: F.relu_(run(*args, **others)), tensors, options)
        for run in (ours, torchs)
    ]
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", [name for name in CASES if name != "many pixels"])
def test_second_derivatives(name: str, memory_format: torch.memory_format) -> None:
    def penalty(run: Callable[..., Tensor], tensors: list[Tensor], options: dict[str, Any]) -> list[Tensor]:
        output = run(*tensors, **options)
        gradients = torch.autograd.grad(output.square().sum(), tensors[:2], create_graph=True)
        return list(torch.autograd.grad(sum(g.square().sum() for g in gradients), tensors[:2]))

    tensors, options, _ = made(name, torch.float32, memory_format)
    got, expected = (penalty(run, tensors, options) for run in (ours, torchs))
    exact = penalty(torchs, [t.detach().double().requires_grad_() for t in tensors], options)
    for a, b, c in zip(got, expected, exact, strict=True):
        assert_as_accurate_as_torch(a, b, c, times=GRADIENT)


@pytest.mark.parametrize("name", ["whole", "whole, transposed", "one pixel", "few pixels, transposed"])
def test_autocast(name: str) -> None:
    tensors, options, _ = made(name, torch.float32, torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        got, expected = (with_gradients(run, tensors, options) for run in (ours, torchs))
    exact = with_gradients(torchs, [t.detach().double().requires_grad_() for t in tensors], options)
    for a, b, c in zip(got, expected, exact, strict=True):
        # Of float32, the gradients are those of bfloat16.
        assert_as_accurate_as_torch(a, b, c, times=GRADIENT, ulps=4 * 2**16 if a.dtype is torch.float32 else 4)


def test_only_the_gradients_that_are_asked_for() -> None:
    (input, weight, _), options, _ = made("one pixel", torch.float32, torch.channels_last)
    output = ours(input.detach(), weight, **options)
    (grad,) = torch.autograd.grad(output.sum(), [weight])
    assert grad.stride() == weight.stride()
    output = ours(input, weight.detach(), **options)
    (grad,) = torch.autograd.grad(output.sum(), [input])
    torch.testing.assert_close(grad, torch.autograd.grad(torchs(input, weight, **options).sum(), [input])[0])
    with torch.no_grad():
        assert not ours(input, weight, **options).requires_grad


def test_many_gradients_at_a_time() -> None:
    tensors, options, _ = made("one pixel", torch.float32, torch.channels_last)
    output = ours(*tensors, **options)
    grads = torch.randn(3, *output.shape)
    together = torch.autograd.grad(output, tensors, grads, is_grads_batched=True, retain_graph=True)
    for i, grad in enumerate(grads):
        single = torch.autograd.grad(output, tensors, grad, retain_graph=True)
        for many, one in zip(together, single, strict=True):
            torch.testing.assert_close(many[i], one)


def test_is_torchs_to_those_who_have_to_see_it() -> None:
    tensors, options, _ = made("one pixel", torch.float32, torch.channels_last)
    input, weight, bias = (t.detach() for t in tensors)
    run = partial(product_conv, **options)
    with gf.backend("reference"):
        assert run(input, weight, bias) is None
    torch.func.vmap(lambda x: check(run(x[None], weight, bias)))(input[None].expand(2, -1, -1, -1, -1)[:, 0])
    torch.func.jvp(lambda x: check(run(x, weight, bias)), (input,), (input,))
    compiled = torch.compile(lambda x: x if run(x, weight, bias) is None else -x, backend="eager", fullgraph=True)
    assert compiled(input) is input


def check(output: Tensor | None) -> Tensor:
    assert output is None
    return torch.zeros(1)


@pytest.mark.parametrize(
    ("change", "options"),
    [
        ({"input": lambda x: x[:, 1:]}, {}),
        ({"input": lambda x: x[:0]}, {}),
        ({"input": lambda x: x[0]}, {}),
        ({"input": lambda x: x.double()}, {}),
        ({"weight": lambda x: x.half()}, {}),
        ({"bias": lambda x: x[1:]}, {}),
        ({"input": lambda x: x.to("meta")}, {}),
        ({}, {"stride": (0, 1)}),
        ({}, {"padding": (-1, 0)}),
        ({"weight": lambda x: x.repeat(1, 1, 3, 3)}, {}),
    ],
)
def test_leaves_what_is_not_valid_to_torch(change: dict[str, Any], options: dict[str, Any]) -> None:
    tensors, usual, _ = made("one pixel", torch.float32, torch.channels_last)
    named = dict(zip(("input", "weight", "bias"), (t.detach() for t in tensors), strict=True))
    assert product_conv(**named, **usual) is not None
    named |= {name: changed(named[name]) for name, changed in change.items()}
    assert product_conv(**named, **usual | options) is None


@pytest.mark.parametrize(
    ("n", "dtype", "memory_format", "stride", "forward"),
    [
        (2, torch.float32, FORMATS[0], 1, False), (1, torch.float32, FORMATS[0], 1, True),
        (2, torch.float32, FORMATS[1], 1, True), (2, torch.bfloat16, FORMATS[0], 1, True),
        (2, torch.float32, FORMATS[0], 2, True),
    ],
)  # fmt: skip
def test_leaves_small_kernels_of_several_images_to_torch(
    n: int, dtype: torch.dtype, memory_format: torch.memory_format, stride: int, forward: bool
) -> None:
    input, weight = (
        torch.zeros(s, dtype=dtype).to(memory_format=memory_format) for s in ((n, 512, 2, 2), (512, 512, 3, 3))
    )
    plan = module._plan(input, weight, None, (stride, stride), (1, 1), False, (0, 0))
    assert plan is not None
    assert (plan.forward, plan.gradient) == (forward, True)


def test_layers_that_may_gain() -> None:
    assert may_gain(torch.nn.Conv2d(512, 1, 4))
    assert may_gain(torch.nn.ConvTranspose2d(256, 128, 4, 2, 1))
    assert not may_gain(torch.nn.Conv2d(64, 64, 1))
    assert not may_gain(torch.nn.Conv2d(64, 64, 3))
    assert not may_gain(torch.nn.Conv2d(64, 64, 4, padding=1))
    assert not may_gain(torch.nn.Conv2d(64, 64, 4, groups=2))
    for name, (_, weight_shape, options, _) in CASES.items():
        transposed = options.get("transposed", False)
        kind = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
        channels = weight_shape[:2] if transposed else weight_shape[1::-1]
        numbers = {key: value for key, value in options.items() if key != "transposed"}
        assert may_gain(kind(*channels, weight_shape[2:], **numbers)) == (name != "whole, not square")


@pytest.mark.parametrize("case", [(64, 512, 1, 4), (4, 512, 1, 4), (1, 512, 300, 5)], ids=str)
def test_long_sums_are_as_accurate_as_torchs(case: tuple[int, int, int, int]) -> None:
    batch, channels, outputs, size = case
    for seed in range(10):
        torch.manual_seed(seed)
        x, weight = torch.randn(batch, channels, size, size), torch.randn(outputs, channels, size, size) / 90
        got = with_gradients(ours, [x.requires_grad_(), weight.requires_grad_()], {})
        expected = with_gradients(torchs, [x, weight], {})
        exact = with_gradients(torchs, [t.detach().double().requires_grad_() for t in (x, weight)], {})
        for i, (a, b, c) in enumerate(zip(got, expected, exact, strict=True)):
            assert_as_accurate_as_torch(a, b, c, times=GRADIENT if i else FORWARD, name=f"{seed}, result {i}")


def test_convolutions_keep_their_precision_where_products_may_have_less() -> None:
    tensors, options, _ = made("one pixel", torch.float32, torch.channels_last)
    torch.set_float32_matmul_precision("medium")
    try:
        assert product_conv(*tensors, **options) is None
    finally:
        torch.set_float32_matmul_precision("highest")
