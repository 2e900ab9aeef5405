import pytest
import torch
from accuracy import FORWARD, GRADIENT, assert_as_accurate_as_torch

import genimg_fast as gf
from genimg_fast.ops import (
    winograd_conv2d,
    winograd_conv2d_reference,
    winograd_conv_transpose2d,
    winograd_conv_transpose2d_reference,
)

OPERATORS = torch.ops.genimg_fast
FUNCTIONS = {
    "conv": (winograd_conv2d, winograd_conv2d_reference),
    "transposed": (winograd_conv_transpose2d, winograd_conv_transpose2d_reference),
}
NAMES = ("output", "input", "weight", "bias")
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}
# Kernel, and height and width on the finer side: tiles of 2 and of 3 outputs, alone and mixed, and of both sides.
SIZES = [(4, 4, 4), (4, 6, 8), (4, 10, 14), (4, 16, 22), (4, 32, 4), (3, 4, 4), (3, 6, 16), (3, 22, 10)]


@pytest.fixture(autouse=True)
def _native_backend():
    with gf.backend("native"):
        yield


def make(kind, kernel, height, width, *, batch=3, channels=(32, 64), bias=True):
    channels_in, channels_out = channels
    scale = 2 if kind == "transposed" and kernel == 4 else 1
    input = torch.randn(batch, channels_in, height // scale, width // scale)
    first, second = (channels_in, channels_out) if kind == "transposed" else (channels_out, channels_in)
    tensors = [input, torch.randn(first, second, kernel, kernel)]
    return [*tensors, torch.randn(channels_out)] if bias else tensors


def run(function, tensors, dtype=torch.float32):
    leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
    output = function(*leaves)
    output.sin().sum().backward()
    return [output, *(leaf.grad for leaf in leaves)]


def check(kind, tensors):
    function, reference = FUNCTIONS[kind]
    ours, torchs, exact = run(function, tensors), run(reference, tensors), run(reference, tensors, torch.float64)
    for name, value, theirs, right in zip(NAMES, ours, torchs, exact, strict=False):
        times = FORWARD if name == "output" else GRADIENT
        assert_as_accurate_as_torch(value, theirs, right, times=times, name=name)
    return ours


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_gradients(kind, size, layout):
    tensors = make(kind, *size)
    tensors = [t.contiguous(memory_format=LAYOUTS[layout]) if t.dim() == 4 else t for t in tensors]
    output = check(kind, tensors)[0]
    assert output.stride() == FUNCTIONS[kind][1](*tensors).stride()


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize("channels", [(32, 32), (96, 32), (32, 160), (512, 32)], ids=str)
def test_channels(kind, channels):
    check(kind, make(kind, 4, 8, 8, channels=channels, bias=False))


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize("kernel", [3, 4])
def test_sums_of_many_channels_err_as_torchs(kind, kernel):
    function, reference = FUNCTIONS[kind]
    tensors = make(kind, kernel, 16, 16, channels=(256, 64), bias=False)
    exact = reference(*(t.double() for t in tensors))
    # The root mean square, without the few ulp of the largest value that single errors may have.
    ours, torchs = ((f(*tensors) - exact).square().mean().sqrt() for f in (function, reference))
    assert ours <= FORWARD * torchs


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize("kernel", [3, 4])
def test_many_groups_of_tiles(kind, kernel):
    check(kind, make(kind, kernel, 64, 64, batch=5 if kernel == 3 else 12, channels=(64, 64)))


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize("kernel", [3, 4])
@pytest.mark.usefixtures("simd_level")
def test_every_simd_level(kind, kernel):
    check(kind, make(kind, kernel, 10, 8))


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_strided_tensors(kind):
    input, weight, bias = make(kind, 4, 12, 8)
    wide = [t.repeat_interleave(2, -1)[..., ::2] for t in (input, weight)]
    check(kind, [*wide, bias])
    check(kind, [input[:1].expand_as(input), weight, bias])
    check(kind, [input, weight, bias[:1].expand_as(bias)])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", FUNCTIONS)
def test_results_can_be_changed_in_place(kind, layout):
    """As by an activation behind a layer without a norm."""
    found = []
    for function in FUNCTIONS[kind]:
        torch.manual_seed(0)
        x, weight, bias = (t.requires_grad_() for t in make(kind, 4, 8, 8))
        output = function(x.contiguous(memory_format=LAYOUTS[layout]), weight, bias)
        output = torch.nn.functional.leaky_relu(output, 0.2, inplace=True)
        found.append(torch.autograd.grad(output.sin().sum(), (x, weight, bias)))
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize(
    ("kernel", "size", "batch", "channels"),
    [(4, 32, 7, (32, 64)), (4, 16, 3, (128, 128)), (3, 8, 3, (128, 128)), (3, 64, 5, (64, 64))],
    ids=["one group", "channels in parts", "channels in parts, 3 x 3", "many groups"],
)
def test_results_do_not_depend_on_threads(kind, kernel, size, batch, channels):
    tensors = make(kind, kernel, size, size, batch=batch, channels=channels)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 5):  # of blocks of channels there are four at most
            torch.set_num_threads(threads)
            results.append(run(FUNCTIONS[kind][0], tensors))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("kind", FUNCTIONS)
@pytest.mark.parametrize("kernel", [3, 4])
def test_second_order(kind, kernel):
    tensors = make(kind, kernel, 6, 8, batch=2)

    def gradients(function, dtype):
        leaves = [t.to(dtype).requires_grad_() for t in tensors]
        output = function(*leaves)
        first = torch.autograd.grad(output.square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in first), leaves)

    function, reference = FUNCTIONS[kind]
    ours, torchs = gradients(function, torch.float32), gradients(reference, torch.float32)
    exact = gradients(reference, torch.float64)
    for value, theirs, right in zip(ours, torchs, exact, strict=True):
        assert_as_accurate_as_torch(value, theirs, right, times=GRADIENT)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_only_what_is_needed(kind):
    function, reference = FUNCTIONS[kind]
    tensors = make(kind, 4, 8, 8)
    for needed in range(3):
        leaves = [t.clone().requires_grad_(k == needed) for k, t in enumerate(tensors)]
        function(*leaves).sum().backward()
        assert [leaf.grad is not None for leaf in leaves] == [k == needed for k in range(3)]
        expected = torch.autograd.grad(reference(*leaves).sum(), leaves[needed])[0]
        torch.testing.assert_close(leaves[needed].grad, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_transforms_see_torchs_operators(kind):
    function, reference = FUNCTIONS[kind]
    input, weight = make(kind, 4, 8, 8, bias=False)
    many = torch.func.vmap(lambda w: function(input, w))(torch.stack([weight, 2 * weight]))
    torch.testing.assert_close(many[1], reference(input, 2 * weight))
    leaf = weight.clone().requires_grad_()
    output = function(input, leaf)
    grads = torch.randn(2, *output.shape)
    (batched,) = torch.autograd.grad(output, leaf, grads, is_grads_batched=True)
    (expected,) = torch.autograd.grad(reference(input, leaf), leaf, grads[1])
    torch.testing.assert_close(batched[1], expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_compiles_as_one_graph(kind):
    function, tensors = FUNCTIONS[kind][0], make(kind, 4, 8, 8)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for a, b in zip(run(compiled, tensors), run(function, tensors), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kernel", [3, 4])
def test_opcheck(kernel):
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for kind, name in (("conv", "winograd_conv2d"), ("transposed", "winograd_conv_transpose2d")):
        leaves = [t.requires_grad_() for t in make(kind, kernel, 8, 8)]
        torch.library.opcheck(getattr(OPERATORS, name).default, leaves, test_utils=tests)
    input, weight = make("conv", kernel, 8, 8, bias=False)
    grad = torch.randn_like(winograd_conv2d(input, weight))
    arguments = [input.requires_grad_(), grad.requires_grad_(), kernel]
    torch.library.opcheck(OPERATORS.winograd_conv2d_weight_gradient.default, arguments, test_utils=tests)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_what_is_left_to_torch(kind):
    function, reference = FUNCTIONS[kind]
    tensors = make(kind, 4, 8, 8)
    for beyond, words in (
        ([t.double() for t in tensors], r"float32, got torch\.float64"),
        (make(kind, 3, 7, 8), r"even heights and widths, from 4 on, got \(7, 8\)"),
        (make(kind, 4, 8, 8, channels=(32, 16)), "numbers of channels that are multiples of 32"),
    ):
        with pytest.raises(RuntimeError, match=f"backend 'native' was asked for, but its kernels take .*{words}"):
            function(*beyond)
        with gf.backend("auto"):
            assert torch.equal(function(*beyond), reference(*beyond))
    with torch.autocast("cpu", torch.bfloat16), gf.backend("auto"):
        assert function(*tensors).dtype == reference(*tensors).dtype == torch.bfloat16
    nothing = [tensors[0][:0], *tensors[1:]]
    assert function(*nothing).shape == reference(*nothing).shape


def test_few_pixels_and_a_large_weight_are_torchs():
    few = make("conv", 4, 8, 8, batch=15, channels=(256, 64), bias=False)
    enough = make("conv", 4, 8, 8, batch=16, channels=(256, 64), bias=False)
    with gf.backend("auto"):
        assert torch.equal(winograd_conv2d(*few), winograd_conv2d_reference(*few))
        assert not torch.equal(winograd_conv2d(*enough), winograd_conv2d_reference(*enough))


def test_bad_arguments():
    ones = torch.ones
    with pytest.raises(ValueError, match=r"weight must have shape \(\*, \*, 4, 4\) or \(\*, \*, 3, 3\), got"):
        winograd_conv2d(ones(1, 32, 8, 8), ones(32, 32, 5, 5))
    with pytest.raises(ValueError, match=r"weight must have shape \(64, 32, 4, 4\), got \(64, 16, 4, 4\)"):
        winograd_conv2d(ones(1, 32, 8, 8), ones(64, 16, 4, 4))
    with pytest.raises(ValueError, match=r"bias must have shape \(64,\), got \(32,\)"):
        winograd_conv_transpose2d(ones(1, 32, 8, 8), ones(32, 64, 4, 4), ones(32))
    with pytest.raises(ValueError, match=r"input must have 4 dimensions, \(N, C, H, W\), got 3"):
        winograd_conv2d(ones(32, 8, 8), ones(32, 32, 4, 4))
    with pytest.raises(TypeError, match="weight must be a Tensor, got NoneType"):
        winograd_conv2d(ones(1, 32, 8, 8), None)
    with pytest.raises(RuntimeError, match="must be multiples of 32, got 16"):
        OPERATORS.winograd_conv2d(ones(1, 16, 8, 8), ones(32, 16, 4, 4), None)
    with pytest.raises(RuntimeError, match=r"grad_output of shape \(1, 32, 3, 4\) does not fit"):
        OPERATORS.winograd_conv2d_weight_gradient(ones(1, 32, 8, 8), ones(1, 32, 3, 4), 4)


def test_compiles_with_symbolic_sizes():
    compiled = torch.compile(winograd_conv2d, backend="eager", dynamic=True)
    for channels, kernel in ((32, 4), (64, 3)):
        x, weight = torch.randn(4, channels, 8, 8), torch.randn(32, channels, kernel, kernel)
        torch.testing.assert_close(compiled(x, weight), winograd_conv2d(x, weight))


def test_the_operator_refuses_what_is_empty():
    with pytest.raises(RuntimeError, match="input is empty"):
        OPERATORS.winograd_conv2d(torch.randn(0, 32, 8, 8), torch.randn(32, 32, 3, 3), None)
