import itertools

import pytest
import torch
import torch.nn.functional as F
from accuracy import GRADIENT, assert_as_accurate_as_torch
from ops.group_norm_act.calls import ACTIVATIONS, KINDS, NAMES, check, lay_out, make
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from genimg_fast.ops import group_norm_act, group_norm_act_reference


def call(function, tensors, groups, **options):
    x, weight, bias, residual, scale, shift = tensors
    return function(x, groups, weight, bias, residual=residual, scale=scale, shift=shift, **options)


@pytest.mark.parametrize("layout", ["channels_last", "strided", "expanded"])
def test_grad_output_of_another_layout(layout, device):
    tensors = make((4, 12, 7, 9), device=device)
    check(tensors, groups=3, grad_output=lay_out(torch.randn_like(tensors[0]), layout))
    channels_last = make((4, 12, 7, 9), device=device, layout="channels_last")
    check(channels_last, groups=3, grad_output=torch.randn((4, 12, 7, 9), device=device))


@pytest.mark.parametrize(
    ("groups", "activation", "modulated"),
    [
        *((2, activation, True) for activation in ACTIVATIONS),
        (1, "silu", True),
        (4, "silu", True),
        (2, "silu", False),
    ],
)
def test_gradients_of_first_and_second_order(groups, activation, modulated, device):
    tensors = make((2, 4, 3, 2), torch.float64, device=device, modulated=modulated)
    given = [k for k, t in enumerate(tensors) if t is not None]

    def function(*inputs):
        arguments = list(tensors)
        for k, t in zip(given, inputs, strict=True):
            arguments[k] = t
        return call(group_norm_act, arguments, groups, activation=activation)

    inputs = [tensors[k].clone().requires_grad_() for k in given]
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@pytest.mark.parametrize("of", range(3), ids=NAMES[:3])
def test_identity_has_the_second_derivatives_of_group_norm(of, device):
    tensors = [t.requires_grad_() for t in make((2, 4, 3, 2), torch.float64, device=device)[:3]]

    grad_output = torch.randn_like(tensors[0]).requires_grad_()

    def second(y):
        (slope,) = torch.autograd.grad(y, tensors[of], grad_output, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), tensors, allow_unused=True)

    expected = second(F.group_norm(tensors[0], 2, *tensors[1:]))
    found = second(group_norm_act(tensors[0], 2, *tensors[1:], activation="identity"))
    for theirs, ours in zip(expected, found, strict=True):
        if theirs is None:  # as torch 2.13 has it where later ones have zeros
            assert ours is None or not ours.any()
        else:
            torch.testing.assert_close(ours, theirs)


def test_gradients_of_input_of_two_dimensions(device):
    x = torch.randn(3, 6, dtype=torch.float64, device=device, requires_grad=True)
    assert gradcheck(lambda x: group_norm_act(x, 2), x)
    assert gradgradcheck(lambda x: group_norm_act(x, 2), x)


@pytest.mark.parametrize("activation", ["silu", "identity"])
def test_arguments_that_depend_on_each_other(activation, device):
    x, weight, *_ = make((4, 4, 3, 2), torch.float64, device=device)

    def function(x, weight):
        return group_norm_act(
            x * 2, 2, weight, weight, activation=activation, residual=x, scale=x.mean((2, 3)), shift=x.amax((2, 3))
        )

    inputs = (x.requires_grad_(), weight.requires_grad_())
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)
    results = []
    for create_graph in (False, True):
        output = function(*inputs)
        score = (output * torch.arange(output.numel(), device=device).view_as(output)).sum()
        results.append(torch.autograd.grad(score, inputs, create_graph=create_graph))
    torch.testing.assert_close(*results)


def test_one_tensor_as_input_and_residual(device):
    x = torch.randn(4, 4, 5, 5, dtype=torch.float64, device=device, requires_grad=True)
    assert gradcheck(lambda x: group_norm_act(x, 2, residual=x), x)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: group_norm_act(x, 2, residual=x), fullgraph=True)
    torch.testing.assert_close(compiled(x), group_norm_act(x, 2, residual=x))


@pytest.mark.parametrize(("dtype", "own"), KINDS)
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_gradient_penalty_is_as_accurate_as_torchs(dtype, own, activation, device):
    tensors = make((8, 8, 5, 5), dtype, own, device=device)

    def penalty_gradients(function, wanted=None):
        leaves = [t.to(wanted or t.dtype).clone().requires_grad_() for t in tensors]
        y = call(function, leaves, 2, activation=activation)
        slopes = torch.autograd.grad(y, leaves[:2], y.detach().cos(), create_graph=True)
        penalty = slopes[0].square().sum() + slopes[1].square().sum() / leaves[0].numel()
        return torch.autograd.grad(penalty, leaves, allow_unused=True)

    for name, ours, torchs, exact in zip(
        NAMES,
        penalty_gradients(group_norm_act),
        penalty_gradients(group_norm_act_reference),
        penalty_gradients(group_norm_act_reference, torch.float64),
        strict=True,
    ):
        if torchs is not None:
            ours = torch.zeros_like(torchs) if ours is None else ours
            assert_as_accurate_as_torch(ours, torchs, exact, times=GRADIENT, name=name)


@pytest.mark.parametrize("needed", list(itertools.product([False, True], repeat=6))[1::3], ids=str)
@pytest.mark.parametrize("activation", ["identity", "silu"])
def test_only_the_gradients_that_are_needed(needed, activation, device):
    tensors = make((6, 6, 7, 9), device=device)
    results = []
    for function in (group_norm_act, group_norm_act_reference):
        leaves = [t.clone().requires_grad_(n) for t, n in zip(tensors, needed, strict=True)]
        call(function, leaves, 3, activation=activation).square().sum().backward()
        results.append([leaf.grad for leaf in leaves])
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-4)


def test_saves_the_input_and_two_values_per_group(device):
    x, weight, bias, *_ = make((8, 16, 8, 8), device=device)
    x.requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        group_norm_act(x, 4, weight, bias)
    assert sorted(t.numel() for t in saved) == [16, 16, 32, 32, x.numel()]
    assert any(t.data_ptr() == x.data_ptr() for t in saved)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("create_graph", [False, True])
def test_bias_may_change_before_backward(activation, create_graph, device):
    tensors = make((6, 6, 7, 9), torch.float64, device=device)
    results = []
    for function in (group_norm_act, group_norm_act_reference):
        leaves = [t.clone().requires_grad_() for t in tensors]
        y = call(function, leaves, 3, activation=activation)
        with torch.no_grad():
            leaves[2].add_(1)
        found = torch.autograd.grad(y, leaves, tensors[0].cos(), create_graph=create_graph)
        if create_graph:
            penalty = found[0].square().sum()
            found += torch.autograd.grad(penalty, leaves, materialize_grads=True)
        results.append(found)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_backward_alone_may_be_transformed(activation, create_graph, device):
    results = []
    tensors = make((6, 6, 7, 9), torch.float64, device=device)

    def plain(x, groups, weight, bias, *, activation, residual, scale, shift):
        """The same in steps: the derivatives that torch has for its group norm and SiLU are for reverse mode."""
        grouped = x.view(x.shape[0], groups, -1)
        variance, mean = torch.var_mean(grouped, 2, correction=0, keepdim=True)
        y = ((grouped - mean) * (variance + 1e-5).rsqrt()).view_as(x)
        y = y * weight[:, None, None] + bias[:, None, None]
        y = y * (1 + scale)[..., None, None] + shift[..., None, None] + residual
        if activation == "silu":
            return y * y.sigmoid()
        return {"identity": torch.clone, "relu": F.relu, "leaky_relu": F.leaky_relu}[activation](y)

    v, t = torch.randn(2, *tensors[0].shape, dtype=torch.float64, device=device)
    for function in (group_norm_act, plain):
        leaves = [t.clone().requires_grad_() for t in tensors]
        y = call(function, leaves, 2, activation=activation)
        with forward_ad.dual_level():
            dual = torch.autograd.grad(
                y, leaves, forward_ad.make_dual(v, t), create_graph=create_graph, retain_graph=True
            )
            tangents = [forward_ad.unpack_dual(d).tangent for d in dual]
        many = torch.autograd.grad(y, leaves, torch.stack((v, t)), is_grads_batched=True)
        results.append([*tangents, *many])
    torch.testing.assert_close(*results)


def test_checkpointing(device):
    from torch.utils.checkpoint import checkpoint

    x, weight, bias, *_ = make((8, 16, 8, 8), device=device)
    gradients = []
    for wrap in (lambda f, t: f(t), lambda f, t: checkpoint(f, t, use_reentrant=False)):
        leaf = x.clone().requires_grad_()
        wrap(lambda t: group_norm_act(t, 4, weight, bias), leaf).square().sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)
