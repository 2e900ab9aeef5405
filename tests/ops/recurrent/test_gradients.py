import itertools

import pytest
import torch
from ops.recurrent.calls import CELLS, call, make, make_stack
from torch.autograd import gradcheck, gradgradcheck

from genimg_fast.ops.recurrent.operands import Operands, Options
from genimg_fast.ops.recurrent.operator import run_native


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
        output, h_n, c_n = run_native(Operands(input, h0, c0, None, weights), Options(code, True, True))
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
