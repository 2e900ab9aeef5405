import pytest
import torch
from ops.recurrent.calls import CELLS, DTYPES, batch_sizes, call, check, make, make_stack, run

from genimg_fast.ops import gru, lstm, rnn
from genimg_fast.ops.recurrent.operands import Operands, Options
from genimg_fast.ops.recurrent.operator import run_native


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
            output, h_n, c_n = run_native(Operands(leaves[0], h0, c0, None, leaves[1:]), Options(code, True))
            gradients = torch.autograd.grad(output.square().sum() + h_n.sum(), leaves)
            results.append([output, h_n, c_n, *gradients])
            x, finals = leaves[0], []
            for layer in range(2):
                parts = []
                for k in (2 * layer, 2 * layer + 1):
                    states = h0[k : k + 1], None if c0 is None else c0[k : k + 1]
                    own = leaves[1 + 2 * k : 3 + 2 * k]
                    output, *final = run_native(Operands(x, *states, None, own), Options(code, False, k % 2 == 1))
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


def test_batch_sizes_may_have_strides():
    t = make("gru", packed=True)
    arguments = (t["input"], t["h0"], t["weight_ih"], t["weight_hh"])
    strided = batch_sizes().repeat_interleave(2)[::2]
    assert not strided.is_contiguous()
    torch.testing.assert_close(gru(*arguments, batch_sizes=strided), gru(*arguments, batch_sizes=batch_sizes()))
