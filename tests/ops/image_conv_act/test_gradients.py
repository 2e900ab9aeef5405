import itertools

import pytest
import torch
from accuracy import GRADIENT, assert_as_accurate_as_torch
from ops.image_conv_act.calls import (
    ACTIVATIONS,
    DTYPES,
    NAMES,
    OPERATORS,
    SHAPES,
    SMALL,
    Shape,
    both_ways,
    make,
    ran_natively,
)
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import genimg_fast as gf
from genimg_fast.ops import image_conv_act, image_conv_act_reference
from genimg_fast.ops.image_conv_act import dispatch, gradients

TINY = Shape((2, 2, 5, 4), 3, (3, 2), (2, 1), (1, 0))


@pytest.fixture
def _formulas(monkeypatch):
    """PyTorch's operations in place of the kernels, which have no float64."""
    for name, formula in (
        ("image_conv_from", gradients.from_image),
        ("image_conv_to", gradients.to_image),
        ("image_conv_weight", gradients.weight_gradient),
    ):
        monkeypatch.setattr(getattr(OPERATORS, name), "default", formula)
    monkeypatch.setattr(dispatch, "DTYPES", (torch.float64,))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@both_ways
@pytest.mark.usefixtures("_formulas")
def test_formulas_of_first_and_second_order(activation, transposed):
    tensors = [t.requires_grad_() for t in make(TINY, transposed, torch.float64)]
    options = TINY.options(transposed) | {"activation": activation, "negative_slope": 0.2}

    def function(*tensors):
        output = image_conv_act(*tensors, **options)
        assert ran_natively(output) == (activation != "silu")
        return output

    assert gradcheck(function, tensors)
    assert gradgradcheck(function, tensors)


@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3], SHAPES[5], SHAPES[7]], ids=str)
@pytest.mark.parametrize(("dtype", "layout"), zip(DTYPES, ["contiguous", "channels_last"], strict=True), ids=str)
@pytest.mark.parametrize("activation", ["leaky_relu", "silu", "tanh"])
@both_ways
def test_gradient_penalty_is_as_accurate_as_torchs(shape, dtype, activation, layout, transposed):
    tensors = make(shape, transposed, dtype, layout=layout)

    def penalty_gradients(function, wanted=None):
        leaves = [t.to(wanted or t.dtype).clone().requires_grad_() for t in tensors]
        y = function(*leaves, **shape.options(transposed), activation=activation, negative_slope=0.2)
        slopes = torch.autograd.grad(y, leaves, y.detach().cos(), create_graph=True)
        penalty = slopes[0].square().sum() + sum(s.square().sum() / s.numel() for s in slopes[1:])
        return torch.autograd.grad(penalty, leaves, materialize_grads=True)

    for name, ours, torchs, exact in zip(
        NAMES,
        penalty_gradients(image_conv_act),
        penalty_gradients(image_conv_act_reference),
        penalty_gradients(image_conv_act_reference, torch.float64),
        strict=True,
    ):
        assert_as_accurate_as_torch(ours, torchs, exact, times=GRADIENT, name=name)


@both_ways
def test_third_order(transposed):
    results = []
    tensors = make(SMALL, transposed)
    for function in (image_conv_act, image_conv_act_reference):
        leaves = [t.clone().requires_grad_() for t in tensors]
        total = function(*leaves, **SMALL.options(transposed), activation="tanh").sum()
        for _ in range(2):
            found = torch.autograd.grad(total, leaves[:2], create_graph=True)
            total = sum(f.square().mean() for f in found)
        results.append(torch.autograd.grad(total, leaves))
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("needed", list(itertools.product([False, True], repeat=3))[1:], ids=str)
@pytest.mark.parametrize("activation", ["identity", "leaky_relu", "silu"])
@both_ways
def test_only_the_gradients_that_are_needed(needed, activation, transposed):
    tensors = make(SMALL, transposed)
    results = []
    for function in (image_conv_act, image_conv_act_reference):
        leaves = [t.clone().requires_grad_(n) for t, n in zip(tensors, needed, strict=True)]
        function(*leaves, **SMALL.options(transposed), activation=activation).square().sum().backward()
        results.append([leaf.grad for leaf in leaves])
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@both_ways
def test_saves_no_more_than_it_needs(activation, transposed):
    x, weight, bias = make(SMALL, transposed)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = image_conv_act(x, weight.requires_grad_(), bias, **SMALL.options(transposed), activation=activation)
    assert [t.numel() for t in saved] == [x.numel(), *([] if activation == "identity" else [y.numel()])]
    assert saved[0].data_ptr() == x.data_ptr()


@both_ways
def test_a_result_that_was_changed_is_noticed(transposed):
    tensors = [t.requires_grad_() for t in make(SMALL, transposed)]
    y = image_conv_act(*tensors, **SMALL.options(transposed), activation="tanh")
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("activation", ["identity", "tanh"])
@both_ways
def test_bias_may_change_before_backward(activation, transposed):
    tensors = make(SMALL, transposed)
    results = []
    for function in (image_conv_act, image_conv_act_reference):
        leaves = [t.clone().requires_grad_() for t in tensors]
        y = function(*leaves, **SMALL.options(transposed), activation=activation)
        with torch.no_grad():
            leaves[2].add_(1)
        results.append(torch.autograd.grad(y.square().sum(), leaves))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("activation", ["identity", "relu", "leaky_relu", "tanh", "sigmoid"])
@both_ways
def test_backward_alone_may_be_transformed(activation, create_graph, transposed):
    results = []
    tensors = make(SMALL, transposed)
    shape = SMALL.image if transposed else SMALL.features_shape
    v, t = torch.randn(2, *shape)
    for function in (image_conv_act, image_conv_act_reference):
        leaves = [t.clone().requires_grad_() for t in tensors]
        y = function(*leaves, **SMALL.options(transposed), activation=activation)
        with forward_ad.dual_level():
            dual = torch.autograd.grad(
                y, leaves, forward_ad.make_dual(v, t), create_graph=create_graph, retain_graph=True
            )
            tangents = [forward_ad.unpack_dual(d).tangent for d in dual]
        many = torch.autograd.grad(y, leaves, torch.stack((v, t)), is_grads_batched=True)
        results.append([*tangents, *many])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@both_ways
def test_checkpointing(transposed):
    from torch.utils.checkpoint import checkpoint

    x, *parameters = make(SMALL, transposed)
    found = []
    for wrap in (lambda f, t: f(t), lambda f, t: checkpoint(f, t, use_reentrant=False)):
        leaf = x.clone().requires_grad_()
        y = wrap(lambda t: image_conv_act(t, *parameters, **SMALL.options(transposed), activation="tanh"), leaf)
        y.square().sum().backward()
        found.append(leaf.grad)
    assert torch.equal(*found)


def test_one_tensor_in_two_places():
    weight = make(SMALL)[1].requires_grad_()
    results = []
    for function in (image_conv_act, image_conv_act_reference):
        y = function(weight, weight, None, 1, 2)
        (slope,) = torch.autograd.grad(y.square().sum(), weight, create_graph=True)
        results.append([slope, *torch.autograd.grad(slope.square().sum(), weight)])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-3)


def test_the_operator_refuses_to_record_what_it_cannot_differentiate():
    x, weight, bias = make(SMALL)
    arguments = (x.requires_grad_(), weight, bias, [2, 2], [1, 1])
    with pytest.raises(RuntimeError, match="cannot be told from its result"):
        OPERATORS.image_conv_from(*arguments, 3, 0.0)
    with torch.no_grad():
        expected = image_conv_act_reference(x, weight, bias, 2, 1, activation="silu")
        torch.testing.assert_close(OPERATORS.image_conv_from(*arguments, 3, 0.0), expected, rtol=1e-4, atol=1e-5)
        with gf.backend("native"):
            ours = image_conv_act(x, weight, bias, 2, 1, activation="silu")
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
