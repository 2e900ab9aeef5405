import itertools

import pytest
import torch
from accuracy import FORWARD, GRADIENT, assert_as_accurate_as_torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck, gradgradcheck

import genimg_fast as gf
from genimg_fast import _native
from genimg_fast.ops import (
    gru,
    gru_cell_update,
    gru_cell_update_reference,
    gru_reference,
    lstm,
    lstm_cell_update,
    lstm_cell_update_reference,
    lstm_reference,
    rnn,
    rnn_reference,
)
from genimg_fast.ops.recurrent import run_native

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
CELLS = {"rnn_tanh": 1, "rnn_relu": 1, "gru": 3, "lstm": 4}  # with the number of gates
OPERATORS = torch.ops.genimg_fast
LENGTHS = [7, 5, 5, 2, 1]


@pytest.fixture(autouse=True)
def _native_backend():
    with gf.backend("native"):
        yield


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


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_dtypes_and_directions(cell, dtype, packed, reverse, device):
    check(cell, make(cell, dtype=dtype, packed=packed, device=device), packed=packed, reverse=reverse)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    "shape",
    [
        (1, 1, 1, 1),
        (2, 3, 1, 5),
        (5, 1, 3, 16),
        (40, 1, 70, 80),
        (3, 17, 20, 33),
        (16, 16, 3, 64),
        (9, 40, 64, 100),
    ],
    ids=str,
)
def test_shapes(cell, shape, device):
    check(cell, make(cell, shape, device=device))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("missing", [("bias_ih",), ("bias_hh",), ("bias_ih", "bias_hh")], ids=str)
def test_without_biases(cell, missing, device):
    tensors = {name: t for name, t in make(cell, device=device).items() if name not in missing}
    check(cell, tensors)


@pytest.mark.parametrize("cell", CELLS)
def test_initial_state_defaults_to_zero(cell, device):
    tensors = make(cell, device=device)
    zeros = torch.zeros_like(tensors["h0"])
    expected = call(cell, tensors | {"h0": zeros} | ({"c0": zeros} if cell == "lstm" else {}))
    t = tensors
    function, options = {
        "rnn_tanh": (rnn, {}), "rnn_relu": (rnn, {"nonlinearity": "relu"}), "gru": (gru, {}), "lstm": (lstm, {})
    }[cell]  # fmt: skip
    ours = function(t["input"], None, t["weight_ih"], t["weight_hh"], t["bias_ih"], t["bias_hh"], **options)
    assert torch.equal(ours[0], expected[0])


@pytest.fixture(params=["avx512", "avx2", "sse2"])
def simd_level(request):
    """The CPU kernels on one level; bfloat16 data on avx512 uses the products of bfloat16, if there are any."""
    before = _native.simd_level()
    try:
        _native.set_simd_level(request.param)
    except ValueError:
        pytest.skip(f"this processor has no {request.param}")
    yield
    _native.set_simd_level(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.usefixtures("simd_level")
def test_every_simd_level(dtype, cell):
    check(cell, make(cell, (4, 9, 5, 37), dtype))


@pytest.mark.parametrize("hidden", [4, 5, 17])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.usefixtures("simd_level")
def test_infinities_spread_no_further_than_in_torch(cell, dtype, hidden):
    tensors = make(cell, (4, 2, 3, hidden), dtype)
    weights = [torch.randn_like(o) for o in call(cell, tensors)]
    for name, at in (("h0", (0, 0)), ("input", (1, 0, 0)), ("weight_hh", (0, 0)), ("grad", (2, 0, 0))):
        changed = {key: t.clone() for key, t in tensors.items()}
        grads = [w.clone() for w in weights]
        (grads[0] if name == "grad" else changed[name])[at] = torch.inf
        ours, torchs = run(cell, changed, grads), run(cell, changed, grads, reference=True)
        for key, value in ours.items():
            assert not (value.isnan() & ~torchs[key].isnan()).any(), (name, key)


@pytest.mark.parametrize("cell", CELLS)
def test_layouts_of_input_and_parameters(cell, device):
    tensors = make(cell, device=device)
    strided = {
        "input": tensors["input"].transpose(0, 1).contiguous().transpose(0, 1),
        "h0": tensors["h0"][:1].expand_as(tensors["h0"]),
        "weight_ih": tensors["weight_ih"].t().contiguous().t(),
        "weight_hh": tensors["weight_hh"].repeat(2, 2)[::2, ::2],
        "bias_hh": tensors["bias_hh"].repeat_interleave(2)[::2],
    }
    dense = {name: t.contiguous() for name, t in (tensors | strided).items()}
    for ours, expected in zip(call(cell, tensors | strided), call(cell, dense), strict=True):
        assert torch.equal(ours, expected)
    check(cell, tensors | strided)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.usefixtures("simd_level")
def test_bit_identical_from_run_to_run_and_across_threads(cell, packed, dtype):
    tensors = make(cell, (20, 5, 40, 96), dtype, packed=packed)
    weights = [torch.randn_like(o) for o in call(cell, tensors, packed=packed)]
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 2, 3):
            torch.set_num_threads(count)
            results.append(run(cell, tensors, weights, packed=packed))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(20, 3, 40, 96), (9, 40, 7, 64), (3, 20, 8, 256)], ids=str)
def test_several_layers_equal_single_ones_bit_for_bit(cell, dtype, shape):
    input, h0, c0, _, weights, code, *_ = make_stack(cell, shape, layers=2, dtype=dtype)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            leaves = [t.clone().requires_grad_() for t in (input, *weights)]
            output, h_n, c_n = run_native(leaves[0], h0, c0, None, leaves[1:], code, True)
            gradients = torch.autograd.grad(output.square().sum() + h_n.sum(), leaves)
            results.append([output, h_n, c_n, *gradients])
            x, finals = leaves[0], []
            for layer in range(2):
                parts = []
                for k in (2 * layer, 2 * layer + 1):
                    states = h0[k : k + 1], None if c0 is None else c0[k : k + 1]
                    own = leaves[1 + 2 * k : 3 + 2 * k]
                    output, *final = run_native(x, *states, None, own, code, False, k % 2 == 1)
                    parts.append(output)
                    finals.append(final)
                x = torch.cat(parts, -1)
            h_n, c_n = (torch.cat(kind) for kind in zip(*finals, strict=True))
            gradients = torch.autograd.grad(x.square().sum() + h_n.sum(), leaves)
            results.append([x, h_n, c_n, *gradients])
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for expected, found in zip(results[0], other, strict=True):
            assert torch.equal(expected, found)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_gradients_of_first_and_second_order(cell, packed, reverse, device):
    tensors = make(cell, (3, 5, 1, 1) if packed else (3, 2, 2, 2), torch.float64, packed=packed, device=device)
    leaves = [t.requires_grad_() for t in tensors.values()]

    def function(*leaves):
        return call(cell, dict(zip(tensors, leaves, strict=True)), packed=packed, reverse=reverse)

    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_several_layers(cell, device):
    input, h0, c0, _, weights, code, *_ = make_stack(cell, (2, 2, 2, 1), 2, torch.float64, device)

    def function(input, h0, c0, *weights):
        output, h_n, c_n = run_native(input, h0, c0, None, weights, code, True, True)
        return (output, h_n) if c0 is None else (output, h_n, c_n)

    leaves = [None if t is None else t.requires_grad_() for t in (input, h0, c0, *weights)]
    assert gradcheck(function, leaves)
    assert gradgradcheck(function, leaves)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("used", [0, 1, 2], ids=["output", "h_n", "c_n"])
def test_only_one_result_is_used(cell, used, device):
    if used == 2 and cell != "lstm":
        pytest.skip("only an LSTM has a cell state")
    tensors = make(cell, torch.Size((3, 2, 3, 4)), torch.float64, device=device)
    results = []
    for reference in (False, True):
        leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
        call(cell, leaves, reference=reference)[used].square().sum().backward()
        results.append([leaf.grad for leaf in leaves.values()])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("cell", CELLS)
def test_only_the_gradients_that_are_needed(cell, device):
    tensors = make(cell, (3, 2, 3, 4), torch.float64, device=device)
    for needed in itertools.chain(*(itertools.combinations(tensors, k) for k in (1, 2))):
        results = []
        for reference in (False, True):
            leaves = {name: t.clone().requires_grad_(name in needed) for name, t in tensors.items()}
            call(cell, leaves, reference=reference)[0].square().sum().backward()
            results.append({name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None})
        assert list(results[0]) == [name for name in tensors if name in needed]
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradient_penalty_equals_torch(cell, dtype, device):
    tensors = {name: t.to(dtype) for name, t in make(cell, (4, 3, 5, 6), device=device).items()}
    results = []
    for reference, kind in ((False, dtype), (True, torch.float64)):
        leaves = {name: t.clone().to(kind).requires_grad_() for name, t in tensors.items()}
        score = call(cell, leaves, reference=reference)[0].square().sum(dim=(0, 2))
        (slope,) = torch.autograd.grad(score.sum(), leaves["input"], create_graph=True)
        penalty = (slope.transpose(0, 1).flatten(1).norm(dim=1) - 1).square().mean()
        penalty.backward()
        results.append([leaf.grad.double() for leaf in leaves.values()])
    tolerance = 1e-4 if dtype == torch.float32 else 0.1  # a chain of 16-bit roundings, none of them ours to avoid
    for ours, exact in zip(*results, strict=True):
        assert (ours - exact).norm() <= tolerance * exact.norm()


def test_third_order(device):
    tensors = make("gru", (2, 1, 2, 2), torch.float64, device=device)
    results = []
    for reference in (False, True):
        leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
        value = call("gru", leaves, reference=reference)[0].square().sum()
        for _ in range(3):
            (slope,) = torch.autograd.grad(value, leaves["input"], create_graph=True)
            value = slope.square().sum()
        results.append(value)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("shape", [(0, 3, 2, 4), (3, 0, 2, 4)], ids=["no steps", "no sequences"])
def test_empty_input(cell, shape, device):
    tensors, results = make(cell, shape, device=device), []
    for reference in (False, True):
        leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
        outputs = call(cell, leaves, reference=reference)
        sum((o * 2).sum() for o in outputs).backward()
        results.append([*outputs, *(torch.zeros_like(t) if t.grad is None else t.grad for t in leaves.values())])
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_computes_all_in_its_dtype(cell, dtype, device):
    tensors = make(cell, device=device)
    lower = {name: t.to(dtype) for name, t in tensors.items()}
    with torch.autocast(device, dtype):
        ours = call(cell, tensors)
        reference = call(cell, tensors, reference=True)
    for result, torchs, expected in zip(ours, reference, call(cell, lower), strict=True):
        assert result.dtype == torchs.dtype == dtype
        assert torch.equal(result, expected)
    with torch.autocast(device, dtype):
        double = call(cell, {name: t.double() for name, t in tensors.items()})
    assert double[0].dtype == torch.float64


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_compiles_as_one_graph(cell, packed, device):
    tensors = make(cell, packed=packed, device=device)

    def gradients(function):
        leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
        outputs = function(leaves)
        return [*outputs, *torch.autograd.grad(sum(o.square().sum() for o in outputs), leaves.values())]

    def function(leaves):
        return call(cell, leaves, packed=packed, reverse=True)

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for ours, eager in zip(gradients(compiled), gradients(function), strict=True):
        torch.testing.assert_close(ours, eager)


def test_compiles_with_inductor(device):
    tensors = make("lstm", device=device)
    torch._dynamo.reset()
    compiled = torch.compile(lambda t: call("lstm", t), fullgraph=True)
    torch.testing.assert_close(compiled(tensors), call("lstm", tensors))


@pytest.mark.parametrize("cell", CELLS)
def test_second_order_inside_compile(cell, device):
    tensors = make(cell, (3, 2, 3, 4), device=device)

    def penalty_gradients(function):
        leaves = {name: t.clone().requires_grad_() for name, t in tensors.items()}
        (gradient,) = torch.autograd.grad(function(leaves)[0].square().sum(), leaves["input"], create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), leaves.values(), allow_unused=True)

    torch._dynamo.reset()
    # The other backends refuse to differentiate twice, whatever the layer.
    compiled = torch.compile(lambda t: call(cell, t), fullgraph=True, backend="eager")
    expected = penalty_gradients(lambda t: call(cell, t, reference=True))
    for ours, torchs in zip(penalty_gradients(compiled), expected, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(cell, packed, dtype, device):
    t = make(cell, (3, 5, 2, 4), dtype, packed=packed, device=device)
    sizes, code = batch_sizes() if packed else None, list(CELLS).index(cell)
    states = [t["h0"][None], t["c0"][None] if cell == "lstm" else None]
    weights = [t["weight_ih"], t["weight_hh"], t["bias_ih"], t["bias_hh"]]
    check_operators(t["input"], *states, sizes, weights, code, False, True)


@pytest.mark.parametrize("cell", ["rnn_tanh", "lstm"])
def test_opcheck_of_several_layers(cell, device):
    check_operators(*make_stack(cell, (3, 5, 2, 4), layers=2, device=device))


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


def check_operators(input, h0, c0, sizes, weights, *options):
    arguments = (input, h0, c0, sizes, weights, *options)
    torch.library.opcheck(OPERATORS.recurrent.default, (*arguments, False))
    output, _, c_n, kept = OPERATORS.recurrent(*arguments, True)
    grads = (torch.randn_like(output), None, None if c0 is None else torch.randn_like(c_n))
    each = len(weights) // len(h0)
    matrices = [w for k, w in enumerate(weights) if k % each < 2]
    saved = (*grads, input, h0, c0, sizes, kept, matrices, *options, each == 4)
    for needs in ((True, True), (False, True), (True, False)):
        torch.library.opcheck(OPERATORS.recurrent_backward.default, (*saved, *needs))
    for tensor in (input, *weights):
        tensor.requires_grad_()
    # Gradients at what is kept, and of the backward operator, come from a loop over the steps. They are of second
    # order, which torch.compile does not trace; the last of opcheck's utilities would, for minutes.
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(OPERATORS.recurrent.default, (*arguments, True), test_utils=checks)
    torch.library.opcheck(OPERATORS.recurrent_backward.default, (*saved, True, True), test_utils=checks)


def test_transforms_of_torch_func(device):
    tensors = make("lstm", (3, 2, 3, 4), torch.float64, device=device)
    leaf = tensors["input"].clone().requires_grad_()
    expected = torch.autograd.grad(call("lstm", tensors | {"input": leaf})[0].square().sum(), leaf)[0]
    ours = torch.func.grad(lambda x: call("lstm", tensors | {"input": x})[0].square().sum())(tensors["input"])
    torch.testing.assert_close(ours, expected)
    stack = torch.stack((tensors["input"], -tensors["input"]))
    mapped = torch.func.vmap(lambda x: call("lstm", tensors | {"input": x})[0])(stack)
    torch.testing.assert_close(mapped[1], call("lstm", tensors | {"input": stack[1]})[0])


BAD_INPUT = {
    "input must have shape (T, B, I), got (7, 6)": {"input": torch.ones(7, 6)},
    "input must be float32, float64, bfloat16 or float16, got torch.int64": {"input": torch.ones(7, 5, 6).long()},
    "h0 must have shape (5, 8), got (4, 8)": {"h0": torch.ones(4, 8)},
    "c0 must have shape (5, 8), got (5, 7)": {"c0": torch.ones(5, 7)},
    "weight_ih must have shape (32, 6), got (32, 5)": {"weight_ih": torch.ones(32, 5)},
    "weight_hh must have shape (32, 8), got (24, 8)": {"weight_hh": torch.ones(24, 8)},
    "weight_hh must have shape (4 * H, H), got (8,)": {"weight_hh": torch.ones(8)},
    "bias_ih must have shape (32,), got (31,)": {"bias_ih": torch.ones(31)},
    "bias_hh must have the dtype of input, torch.float32, got torch.float64": {"bias_hh": torch.ones(32).double()},
    "h0 must be on the device of input, cpu, got meta": {"h0": torch.ones(5, 8, device="meta")},
}


@pytest.mark.parametrize("message", BAD_INPUT)
@pytest.mark.parametrize("reference", [False, True], ids=["fused", "reference"])
def test_bad_input(message, reference):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call("lstm", make("lstm") | BAD_INPUT[message], reference=reference)
    assert str(error.value) == message


def test_bad_types_and_options():
    t = make("lstm")
    weights = (t["weight_ih"], t["weight_hh"])
    with pytest.raises(TypeError, match="input must be a Tensor, got list"):
        lstm([1.0], None, *weights)
    with pytest.raises(TypeError, match="bias_ih must be a Tensor, got float"):
        lstm(t["input"], None, *weights, 1.0)
    with pytest.raises(ValueError, match=r"hx must be a pair \(h0, c0\), got 3 tensors"):
        lstm(t["input"], (t["h0"],) * 3, *weights)
    with pytest.raises(ValueError, match=r"'sigmoid'.*tanh, relu"):
        rnn(t["input"], None, *weights, nonlinearity="sigmoid")
    with pytest.raises(ValueError, match=r"unknown nonlinearity \['tanh'\]"):
        rnn(t["input"], None, *weights, nonlinearity=["tanh"])
    for hx, kind in ((1.0, "float"), ("ab", "str"), (t["h0"], "Tensor")):
        with pytest.raises(TypeError, match=rf"hx must be a pair \(h0, c0\), got {kind}"):
            lstm(t["input"], hx, *weights)
    with pytest.raises(TypeError, match="reverse must be a bool, got str"):
        lstm(t["input"], None, *weights, reverse="yes")


@pytest.mark.parametrize("name", ["input", "h0", "c0", "weight_ih", "weight_hh", "bias_ih", "bias_hh"])
@pytest.mark.parametrize("layout", ["to_sparse", "to_mkldnn", "nested"])
def test_tensors_that_are_not_dense(name, layout):
    t = make("lstm")
    bad = torch.nested.nested_tensor([t[name]]) if layout == "nested" else getattr(t[name], layout)()
    with pytest.raises(ValueError, match=f"^{name} must be a dense tensor, got"):
        call("lstm", t | {name: bad})
    with pytest.raises(ValueError, match="batch_sizes must be a dense tensor"):
        gru(torch.randn(10, 6), None, t["weight_ih"], t["weight_hh"], batch_sizes=torch.tensor([5, 5]).to_sparse())


BAD_BATCH_SIZES = {
    "must not be empty, negative or increasing": [torch.tensor([5, 2, 3]), torch.tensor([6, 5, -1])],
    "must add up to the rows of input, 10, got 9": [torch.tensor([5, 4])],
    "must be a 1-dimensional int64 tensor on the CPU": [torch.tensor([5.0, 5.0]), torch.tensor([[5, 5]])],
}


@pytest.mark.parametrize("message", BAD_BATCH_SIZES)
def test_bad_batch_sizes(message):
    t = make("gru")
    for sizes in BAD_BATCH_SIZES[message]:
        with pytest.raises(ValueError, match=message):
            gru(torch.randn(10, 6), None, t["weight_ih"], t["weight_hh"], batch_sizes=sizes)


def test_batch_sizes_may_have_strides():
    t = make("gru", packed=True)
    arguments = (t["input"], t["h0"], t["weight_ih"], t["weight_hh"])
    strided = batch_sizes().repeat_interleave(2)[::2]
    assert not strided.is_contiguous()
    torch.testing.assert_close(gru(*arguments, batch_sizes=strided), gru(*arguments, batch_sizes=batch_sizes()))


RAW_BAD_INPUT = {
    "cell must be": {"cell": 4},
    "batch_sizes add up to|batch_sizes .*rows": {"batch_sizes": torch.tensor([5, 5])},
    "increase": {"batch_sizes": torch.tensor([5, 1, 29])},
    "c0 belongs to an LSTM": {"c0": None},
    "h0 must have": {"h0": torch.ones(8)},
    r"h0 must have shape \(layers \* 2": {"bidirectional": True},
    "bias_hh must have": {"bias_hh": torch.ones(8)},
    "weight_ih must have": {"weight_ih": torch.ones(32, 6, dtype=torch.float64)},
    "have 2 or 4 weights each, got 3": {"weights": [torch.ones(32, 6), torch.ones(32, 8), torch.ones(32)]},
}


@pytest.mark.parametrize("message", RAW_BAD_INPUT)
@pytest.mark.parametrize("fake", [False, True], ids=["real", "fake"])
def test_raw_operator_refuses_bad_input(message, fake):
    bad = RAW_BAD_INPUT[message]
    if fake and "batch_sizes" in bad:
        pytest.skip("tracing does not read the values")
    t = make("lstm") | bad
    arguments = {
        "input": t["input"].flatten(0, 1) if "batch_sizes" in bad else t["input"],
        "h0": t["h0"] if "h0" in bad else t["h0"][None],
        "c0": None if t["c0"] is None else t["c0"][None],
        "batch_sizes": t.get("batch_sizes"),
        "weights": t.get("weights", [t[name] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]),
        "cell": t.get("cell", 3),
        "bidirectional": t.get("bidirectional", False),
        "reverse": False,
        "keep": True,
    }
    if not fake:
        with pytest.raises(RuntimeError, match=message) as error:
            OPERATORS.recurrent(**arguments)
        assert str(error.value).startswith("recurrent: ")  # and not with a function, file and line of C++
        return
    with FakeTensorMode(allow_non_fake_inputs=True), pytest.raises(ValueError, match=message):
        OPERATORS.recurrent(**arguments)


def test_native_backend_says_what_it_cannot_do():
    tensors = {name: t.to("meta") for name, t in make("gru").items()}
    with pytest.raises(RuntimeError, match=r"gru: backend 'native'.*'meta'"):
        call("gru", tensors)
    with pytest.raises(RuntimeError, match=r"lstm_cell_update: backend 'native'.*'meta'"):
        lstm_cell_update(torch.ones(2, 4, device="meta"), torch.ones(2, 1, device="meta"))
    with gf.backend("auto"):
        assert call("gru", tensors)[0].shape == (7, 5, 8)


UPDATES = {
    "lstm": (lstm_cell_update, lstm_cell_update_reference, (4, 1)),
    "gru": (gru_cell_update, gru_cell_update_reference, (3, 3, 1)),
}
STATE_SHAPES = [(5, 7), (1, 1), (3, 5, 4), (2, 8, 5, 3), (2, 3, 2, 3, 2), (64, 300)]


def make_update(kind, shape, dtype=torch.float32, device="cpu"):
    counts = UPDATES[kind][2]
    return [torch.randn(shape[0], n * shape[1], *shape[2:]).to(device, dtype) for n in counts]


def run_update(function, tensors, dtype=None):
    leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]
    outputs = function(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    sum((k * o.double()).sin().sum() for k, o in enumerate(outputs, start=1)).backward()
    return outputs, [leaf.grad for leaf in leaves]


def check_update(kind, tensors):
    function, reference, _ = UPDATES[kind]
    ours, torchs = run_update(function, tensors), run_update(reference, tensors)
    exact = run_update(reference, tensors, torch.float64)
    for order, times in enumerate((FORWARD, GRADIENT)):
        for value, theirs, right in zip(ours[order], torchs[order], exact[order], strict=True):
            assert_as_accurate_as_torch(value, theirs, right, times=times)
    return ours


@pytest.mark.parametrize("kind", UPDATES)
@pytest.mark.parametrize("shape", STATE_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_updates(kind, shape, dtype, device):
    check_update(kind, make_update(kind, shape, dtype, device))


@pytest.mark.parametrize("kind", UPDATES)
def test_updates_in_other_layouts(kind, device):
    tensors = make_update(kind, (2, 8, 5, 3), device=device)
    last = [t.contiguous(memory_format=torch.channels_last) for t in tensors]
    outputs, _ = check_update(kind, last)
    assert all(o.is_contiguous(memory_format=torch.channels_last) for o in outputs)
    check_update(kind, [last[0], *tensors[1:]])
    check_update(kind, [tensors[0], *last[1:]])
    check_update(kind, [t[..., ::2] for t in tensors])
    check_update(kind, [t[:1].expand_as(t) for t in tensors])


@pytest.mark.parametrize("kind", UPDATES)
@pytest.mark.usefixtures("simd_level")
def test_updates_at_every_simd_level(kind):
    for dtype in DTYPES:
        check_update(kind, make_update(kind, (3, 37), dtype))


@pytest.mark.parametrize("kind", UPDATES)
def test_update_gradients_of_first_and_second_order(kind, device):
    tensors = [t.requires_grad_() for t in make_update(kind, (2, 2, 2), torch.float64, device)]
    assert gradcheck(UPDATES[kind][0], tensors)
    assert gradgradcheck(UPDATES[kind][0], tensors)


@pytest.mark.parametrize("kind", UPDATES)
def test_updates_give_only_what_is_needed(kind, device):
    function, reference, counts = UPDATES[kind]
    tensors = make_update(kind, (3, 4), torch.float64, device)
    for needed, used in itertools.product(itertools.product([False, True], repeat=len(counts)), (0, -1)):
        if not any(needed):
            continue
        results = []
        for f in (function, reference):
            leaves = [t.clone().requires_grad_(n) for t, n in zip(tensors, needed, strict=True)]
            outputs = f(*leaves)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            outputs[used].square().sum().backward()
            results.append([leaf.grad for leaf in leaves])
        assert [g is not None for g in results[0]] == list(needed)
        for ours, torchs in zip(*results, strict=True):
            torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize("kind", UPDATES)
def test_updates_promote_dtypes_as_torch(kind, device):
    function, reference, _ = UPDATES[kind]
    tensors = make_update(kind, (3, 4), device=device)
    for mixed in ([tensors[0].bfloat16(), *tensors[1:]], [*tensors[:-1], tensors[-1].double()]):
        ours, torchs = function(*mixed), reference(*mixed)
        # Torch rounds in between to the narrower dtype; these convert first.
        wide = torchs[0].dtype
        exact = reference(*(t.to(wide) for t in mixed))
        for result, theirs, right in zip(ours, torchs, exact, strict=True):
            assert result.dtype == theirs.dtype == wide
            torch.testing.assert_close(result, right)


@pytest.mark.parametrize("kind", UPDATES)
@pytest.mark.parametrize("backend", ["aot_eager", "eager"])
def test_updates_compile_as_one_graph(kind, backend, device):
    function, tensors = UPDATES[kind][0], make_update(kind, (2, 3, 4), device=device)
    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    torch.testing.assert_close(run_update(compiled, tensors), run_update(function, tensors))
    if backend == "eager":
        leaves = [t.double().requires_grad_() for t in tensors]
        assert gradgradcheck(compiled, leaves)


@pytest.mark.parametrize("kind", UPDATES)
@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4, 5)], ids=str)
def test_update_opcheck(kind, shape, device):
    for layout in (torch.contiguous_format, torch.channels_last):
        tensors = make_update(kind, shape, device=device)
        if len(shape) == 4:
            tensors = [t.contiguous(memory_format=layout) for t in tensors]
        leaves = [t.requires_grad_() for t in tensors]
        forward = getattr(OPERATORS, f"{kind}_cell_update").default
        backward = getattr(OPERATORS, f"{kind}_cell_update_backward").default
        torch.library.opcheck(forward, leaves)
        grad = torch.randn_like(leaves[-1])
        torch.library.opcheck(backward, [grad, *([None] if kind == "lstm" else []), *leaves])


def test_updates_of_nothing(device):
    for kind, (function, _, _) in UPDATES.items():
        leaves = [t.requires_grad_() for t in make_update(kind, (0, 4), device=device)]
        output = function(*leaves)
        output = output[0] if kind == "lstm" else output
        output.sum().backward()
        assert output.shape == leaves[-1].grad.shape == (0, 4)


def test_updates_refuse_bad_input():
    ones = torch.ones
    with pytest.raises(ValueError, match=r"gates must have shape \(2, 12, 5\), got \(2, 9, 5\)"):
        lstm_cell_update(ones(2, 9, 5), ones(2, 3, 5))
    with pytest.raises(ValueError, match=r"gates_h must have shape \(2, 9\), got \(2, 12\)"):
        gru_cell_update(ones(2, 9), ones(2, 12), ones(2, 3))
    with pytest.raises(ValueError, match="c must have at least 2 dimensions"):
        lstm_cell_update(ones(4), ones(1))
    with pytest.raises(ValueError, match=r"h must be float32, float64, bfloat16 or float16, got torch\.int64"):
        gru_cell_update(ones(2, 9), ones(2, 9), ones(2, 3).long())
    with pytest.raises(TypeError, match="gates must be a Tensor, got float"):
        lstm_cell_update(1.0, ones(2, 3))
    with pytest.raises(ValueError, match=r"gates must be float32, .*, got torch\.complex64"):
        lstm_cell_update(ones(2, 12, dtype=torch.complex64), ones(2, 3))
    with pytest.raises(ValueError, match=r"gates_h must be a dense tensor, got torch\.sparse_coo"):
        gru_cell_update(ones(2, 9), ones(2, 9).to_sparse(), ones(2, 3))


def test_auto_runs_the_kernels_and_reference_does_not(device):
    tensors = {name: t.requires_grad_() for name, t in make("gru", device=device).items()}
    with gf.backend("auto"):
        assert type(call("gru", tensors)[0].grad_fn).__name__ == "_LayersBackward"
    with gf.backend("reference"):
        output = call("gru", tensors)[0]
    assert isinstance(output, Tensor)
    assert type(output.grad_fn).__name__ == "StackBackward0"
