"""Convolutions in bfloat16, on the machine's products of it."""

import copy
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from accuracy import FORWARD, GRADIENT, assert_as_accurate_as_torch
from torch import Tensor

import genimg_fast as gf
from genimg_fast import _native, nn
from genimg_fast.ops import bf16_conv as module
from genimg_fast.ops.bf16_conv import (
    bf16_conv,
    bf16_conv_reference,
    bf16_conv_weight,
    bf16_conv_weight_reference,
    gains,
)
from genimg_fast.ops.product_conv import product_conv

OPERATORS = torch.ops.genimg_fast
NOTHING, OF_WEIGHT, ALL = (False, False), (False, True), (True, True)
Pair = tuple[int, int]

pytestmark = pytest.mark.skipif(
    not _native.has_bf16_products(), reason="this processor has no products of bfloat16 (AVX-512 BF16)"
)


class Case(NamedTuple):
    image: tuple[int, int, int, int]
    features: int
    kernel: Pair
    stride: Pair
    padding: Pair


CASES = {
    "halving": Case((4, 64, 8, 8), 128, (4, 4), (2, 2), (1, 1)),
    "3x3": Case((3, 32, 7, 9), 64, (3, 3), (1, 1), (1, 1)),
    "one image": Case((1, 64, 6, 6), 32, (4, 4), (2, 2), (1, 1)),
    "channels that leave half a panel": Case((2, 96, 6, 5), 160, (3, 3), (2, 2), (1, 1)),
    "nothing alike": Case((2, 32, 11, 6), 32, (1, 5), (3, 1), (0, 2)),
    "taps that meet padding only": Case((5, 32, 1, 2), 32, (5, 3), (2, 1), (2, 1)),
    "many images at a time": Case((40, 32, 8, 8), 96, (4, 4), (2, 2), (1, 1)),
    "many groups of images": Case((11, 32, 32, 32), 32, (4, 4), (2, 2), (1, 1)),
    "long sums": Case((2, 32, 40, 41), 32, (3, 3), (1, 1), (1, 1)),
    "no padding": Case((6, 64, 9, 9), 64, (3, 3), (2, 2), (0, 0)),
}
LOOKS = {
    "NCHW": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "gaps": lambda x: torch.cat([x, x], 3)[..., : x.shape[3]],
    "expanded": lambda x: x[:1].expand_as(x),
}


def made(name: str, look: str = "channels_last", samples: int | None = None) -> tuple[Any, ...]:
    """Make image and features of a case, and the other arguments."""
    case = CASES[name]
    torch.manual_seed(0)
    image = torch.randn(samples or case.image[0], *case.image[1:])
    weight = torch.empty(case.features, case.image[1], *case.kernel)
    features = torch.randn_like(F.conv2d(image, weight, None, case.stride, case.padding))
    return *(LOOKS[look](t.bfloat16()) for t in (image, features)), case.kernel, case.stride, case.padding


def convolutions(name: str, samples: int, look: str = "channels_last") -> list[tuple[Any, ...]]:
    """Make the arguments of a convolution and of its transpose."""
    image, features, kernel, stride, padding = made(name, look, samples)
    weight = LOOKS[look](torch.randn(features.shape[1], image.shape[1], *kernel) / 30)
    return [(image, weight, stride, padding), (features, weight, stride, padding, image.shape[2:])]


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", CASES)
def test_gradient_of_the_weight(name: str, look: str) -> None:
    image, features, *others = made(name, look)
    ours, torchs = (f(image, features, *others) for f in (bf16_conv_weight, bf16_conv_weight_reference))
    exact = bf16_conv_weight_reference(image.double(), features.double(), *others)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    assert_as_accurate_as_torch(ours, torchs, exact, times=GRADIENT)
    scale = exact.abs().max().item()
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5 * scale)  # it is not rounded


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["", "float32 weight"])
@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("name", CASES)
def test_convolutions(name: str, look: str, dtype: torch.dtype) -> None:
    for input, weight, *others in convolutions(name, 23, look):
        ours, torchs = bf16_conv(input, weight.to(dtype), *others), bf16_conv_reference(input, weight, *others)
        exact = bf16_conv_reference(input.double(), weight.bfloat16().double(), *others)
        assert ours.is_contiguous(memory_format=torch.channels_last)
        assert_as_accurate_as_torch(ours, torchs, exact, times=FORWARD)


@pytest.mark.parametrize("samples", [20, 21, 24, 25, 37])
def test_any_number_of_samples_from_20_on(samples: int) -> None:
    for input, weight, *others in convolutions("halving", samples):
        ours, torchs = bf16_conv(input, weight, *others), bf16_conv_reference(input, weight, *others)
        exact = bf16_conv_reference(input.double(), weight.bfloat16().double(), *others)
        assert_as_accurate_as_torch(ours, torchs, exact, times=FORWARD)


def test_results_do_not_depend_on_threads() -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found = [bf16_conv_weight(*made(name)) for name in CASES]
            results.append([*found, *(bf16_conv(*call) for name in CASES for call in convolutions(name, 21))])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_derivatives() -> None:
    arguments = made("halving")

    def derivatives(function: Any, dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.to(dtype).requires_grad_() for t in arguments[:2]]
        weight = function(*leaves, *arguments[2:])
        first = torch.autograd.grad(weight.square().sum(), leaves, create_graph=True)
        return [*first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)]

    ours = derivatives(bf16_conv_weight, torch.bfloat16)
    torchs = derivatives(bf16_conv_weight_reference, torch.bfloat16)
    right = derivatives(bf16_conv_weight_reference, torch.float64)
    for a, b, c in zip(ours, torchs, right, strict=True):
        assert_as_accurate_as_torch(a, b, c, times=GRADIENT)


def test_opcheck() -> None:
    image, features, *others = made("3x3")
    arguments = image.requires_grad_(), features.requires_grad_(), *others
    tests = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(OPERATORS.bf16_conv_weight.default, arguments, test_utils=tests)
    for call in convolutions("3x3", 20):
        torch.library.opcheck(
            OPERATORS.bf16_conv.default, (*call, ())[:5], test_utils=("test_schema", "test_faketensor")
        )


def test_no_image() -> None:
    image, features, *others = made("halving")
    gradient = OPERATORS.bf16_conv_weight(image[:0], features[:0], *others)
    assert gradient.shape == (128, 64, 4, 4)
    assert not gradient.any()


NO_FIT = "image, features, weight, stride and padding do not fit together"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: lambda t: t.float()}, "image and features must be bfloat16 and have 4 dimensions"),
        ({1: lambda t: t[0]}, "image and features must be bfloat16 and have 4 dimensions"),
        ({0: lambda t: t[:, 1:]}, "numbers of channels must be multiples of 32, got 63"),
        ({1: lambda t: t[:, :, 1:]}, NO_FIT),
        ({1: lambda t: t[1:]}, NO_FIT),
        ({3: lambda _: (0, 2)}, NO_FIT),
        ({4: lambda _: (1,)}, NO_FIT),
        ({2: lambda _: (11, 4)}, NO_FIT),
    ],
)
def test_bad_arguments_of_the_gradient(change: dict[int, Any], words: str) -> None:
    arguments = [change.get(i, lambda x: x)(value) for i, value in enumerate(made("halving"))]
    with pytest.raises(RuntimeError, match=words):
        OPERATORS.bf16_conv_weight(*arguments)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: lambda t: t.float()}, "image and features must be bfloat16 and have 4 dimensions"),
        ({0: lambda t: t[:19]}, "a batch must have at least 20 samples, got 19"),
        ({0: lambda t: t[:0]}, "a batch must have at least 20 samples, got 0"),
        ({0: lambda t: t[:, 32:]}, NO_FIT),
        ({1: lambda t: t.double()}, "weight must be bfloat16 or float32 and have 4 dimensions"),
        ({1: lambda t: t[1:]}, "numbers of channels must be multiples of 32, got 127"),
        ({3: lambda _: (-1, 1)}, NO_FIT),
    ],
)
def test_bad_arguments(change: dict[int, Any], words: str) -> None:
    for call in convolutions("halving", 20):
        arguments = [change.get(i, lambda x: x)(value) for i, value in enumerate(call)]
        with pytest.raises(RuntimeError, match=words):
            bf16_conv(*arguments)


def test_a_size_that_does_not_fit() -> None:
    _, (*arguments, _) = convolutions("halving", 20)
    for size in ((8, 7), (8, 10), (8,)):
        with pytest.raises(RuntimeError, match=NO_FIT):
            bf16_conv(*arguments, size)


def test_other_instruction_sets_are_refused() -> None:
    before = _native.simd_level()
    try:
        _native.set_simd_level("avx2")
        assert gains(torch.empty(64, 64, 8, 8), torch.empty(64, 64, 4, 4), torch.bfloat16, 16, (2, 2)) == NOTHING
        image, features, *others = made("halving")
        with pytest.raises(RuntimeError, match="this machine has no products of bfloat16"):
            OPERATORS.bf16_conv_weight(image, features, *others)
        expected = bf16_conv_weight_reference(image, features, *others)
        assert torch.equal(bf16_conv_weight(image, features, *others), expected)
    finally:
        _native.set_simd_level(before)


def test_what_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    last = {"memory_format": torch.channels_last}
    image, weight = torch.empty(64, 64, 8, 8), torch.empty(64, 64, 4, 4)
    image_last, weight_last = image.contiguous(**last), weight.contiguous(**last)
    bf16, two = torch.bfloat16, (2, 2)
    with gf.backend("auto"):
        assert gains(image_last, weight_last, bf16, 16, two) == ALL
        assert gains(image_last, weight_last, torch.float32, 16, two) == NOTHING
        assert gains(image_last, weight_last[:48], bf16, 16, two) == NOTHING
        assert gains(image_last[:1], weight_last, bf16, 1 << 10, two) == NOTHING
        assert gains(image_last[:2], weight_last[:32, :32], bf16, 16, two) == NOTHING
        assert gains(image_last, torch.empty(1024, 64, 1, 1), bf16, 64, two) == NOTHING
        assert gains(image_last, weight_last, bf16, 256, two) == ALL
        assert gains(image_last, weight_last, bf16, 400, two) == OF_WEIGHT
        assert gains(image_last, weight_last, bf16, 16, (1, 2)) == ALL
        assert gains(image_last, weight_last, bf16, 25, (1, 2)) == OF_WEIGHT
        assert gains(image_last[:19], weight_last, bf16, 256, two) == OF_WEIGHT
        assert gains(image_last[:15], weight_last, bf16, 256, two) == NOTHING
        assert gains(image_last[:15], weight_last, bf16, 64, two) == OF_WEIGHT
        assert gains(image_last, weight, bf16, 64, two) == OF_WEIGHT
        assert gains(image, weight_last, bf16, 64, two) == OF_WEIGHT
        assert gains(image, weight_last, bf16, 256, two) == NOTHING
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
        assert gains(image_last, weight_last, bf16, 16, two) == NOTHING
    with gf.backend("reference"):
        assert gains(image_last, weight_last, bf16, 16, two) == NOTHING


# A layer, the shape of its input, and how many of its passes run on the kernels.
LAYERS: dict[str, tuple[Any, tuple[int, ...], int]] = {
    "conv": (lambda nn: nn.Conv2d(32, 64, 4, 2, 1, bias=False), (21, 32, 9, 8), 3),
    "transposed": (lambda nn: nn.ConvTranspose2d(64, 32, 4, 2, 1, bias=False), (21, 64, 4, 5), 3),
    "with a bias": (lambda nn: nn.Conv2d(32, 64, 4, 2, 1), (20, 32, 9, 8), 2),
    "transposed, with a bias": (lambda nn: nn.ConvTranspose2d(64, 32, 4, 2, 1), (20, 64, 4, 5), 2),
    "few samples": (lambda nn: nn.Conv2d(64, 64, 3, 1, 1, bias=False), (4, 64, 7, 7), 1),
    "output padding": (lambda nn: nn.ConvTranspose2d(64, 64, 3, 2, 1, 1), (2, 64, 4, 4), 1),
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Shapes of what the kernels compute for layers."""
    shapes: list[Any] = []

    def recorded(function: Any) -> Any:
        def record(*arguments: Any) -> Tensor:
            result = function(*arguments)
            shapes.append(result.shape)
            return result

        return record

    for function in (bf16_conv, bf16_conv_weight):
        monkeypatch.setattr(f"genimg_fast.ops.product_conv.{function.__name__}", recorded(function))
    return shapes


def results(layer: torch.nn.Module, x: Tensor, autocast: bool = False) -> list[Tensor]:
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        output = layer(x)
    grad = torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.dtype)
    return [output, *torch.autograd.grad(output, [x, *layer.parameters()], grad)]


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("autocast", [False, True], ids=["bfloat16", "autocast"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, autocast: bool, look: str, calls: list[Any]) -> None:
    make, shape, passes = LAYERS[name]
    torch.manual_seed(0)
    layer, x = make(nn), LOOKS[look](torch.randn(shape))
    plain = make(torch.nn)
    plain.load_state_dict(layer.state_dict())
    wide = make(torch.nn).double()
    if not autocast:
        layer, plain, x = layer.bfloat16(), plain.bfloat16(), x.bfloat16()
    wide.load_state_dict(plain.state_dict())
    right = results(wide, x.double())
    with gf.backend("native"):
        ours = results(layer, x, autocast)
    assert len(calls) == passes
    assert calls[-1] == layer.weight.shape
    for i, (a, b, c) in enumerate(zip(ours, results(plain, x, autocast), right, strict=True)):
        # Of float32, the gradients are those of bfloat16.
        ulps = 4 * 2**16 if a.dtype is torch.float32 else 4
        assert_as_accurate_as_torch(a, b, c, times=GRADIENT, ulps=ulps, name=f"result {i}")
        assert a.stride() == b.stride()


@pytest.mark.parametrize("name", ["conv", "transposed"])
def test_second_derivatives(name: str, calls: list[Any]) -> None:
    make, shape, _ = LAYERS[name]

    def penalty(layer: torch.nn.Module, dtype: torch.dtype) -> list[Tensor]:
        torch.manual_seed(0)
        x = torch.randn(shape).bfloat16().to(dtype).requires_grad_()
        leaves = [x, *layer.to(dtype).parameters()]
        first = torch.autograd.grad(layer(x).square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().mean() for g in first), leaves)

    layer = make(nn).bfloat16()
    plain = gf.unfuse(copy.deepcopy(layer))
    with gf.backend("native"):
        ours = penalty(layer, torch.bfloat16)
    assert len(calls) == 4
    torchs = penalty(plain, torch.bfloat16)
    for a, b, c in zip(ours, torchs, penalty(plain, torch.float64), strict=True):
        assert_as_accurate_as_torch(a, b, c, times=GRADIENT)


def test_transforms_of_the_backward_pass_see_torchs_operators(calls: list[Any]) -> None:
    make, shape, _ = LAYERS["conv"]
    layer, x = make(nn).bfloat16(), torch.randn(shape).bfloat16().requires_grad_()
    with gf.backend("native"):
        output = layer(x)
    assert len(calls) == 1
    grads = torch.randn(2, *output.shape).bfloat16()
    leaves = [x, layer.weight]
    together = torch.autograd.grad(output, leaves, grads, is_grads_batched=True, retain_graph=True)
    assert len(calls) == 1
    for many, one in zip(together, torch.autograd.grad(output, leaves, grads[1]), strict=True):
        torch.testing.assert_close(many[1], one, rtol=0.02, atol=0.02 * one.abs().max().item())


def test_only_what_is_needed(calls: list[Any]) -> None:
    layer, x = nn.Conv2d(64, 64, 3, 1, 1, bias=False).bfloat16(), torch.randn(2, 64, 8, 8).bfloat16()
    with gf.backend("native"):
        layer(x).sum().backward()
        assert calls == [layer.weight.shape]
        with torch.no_grad():
            assert product_conv(x, layer.weight, None, (1, 1), (1, 1)) is None
        layer.requires_grad_(False)
        assert product_conv(x.requires_grad_(), layer.weight, None, (1, 1), (1, 1)) is None
        many = torch.randn(20, 64, 8, 8).bfloat16().requires_grad_()
        layer(many).sum().backward()
    assert calls[1:] == [many.shape] * 2
    assert many.grad is not None


def test_layers_that_may_gain() -> None:
    assert module.may_gain(torch.nn.Conv2d(32, 64, 4))
    assert module.may_gain(torch.nn.ConvTranspose2d(64, 64, 3))
    assert not module.may_gain(torch.nn.Conv2d(32, 32, 3))
    assert not module.may_gain(torch.nn.Conv2d(48, 64, 4))
    assert not module.may_gain(torch.nn.Conv2d(64, 64, 4, groups=2))
    assert not module.may_gain(torch.nn.ConvTranspose2d(64, 48, 4))
