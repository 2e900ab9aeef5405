import pytest
import torch
from ops.recurrent.calls import CELLS, OPERATORS, batch_sizes, call, make, make_stack


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
