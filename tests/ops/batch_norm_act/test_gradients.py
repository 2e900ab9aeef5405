import itertools

import pytest
import torch
from accuracy import GRADIENT, assert_as_accurate_as_torch
from ops.batch_norm_act.calls import (
    ACTIVATIONS,
    KINDS,
    check,
    lay_out,
    make,
)
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck

import genimg_fast as gf
from genimg_fast.ops import batch_norm_act, batch_norm_act_reference


@pytest.mark.parametrize("layout", ["channels_last", "strided", "expanded"])
def test_grad_output_of_another_layout(layout, device):
    tensors = make((4, 12, 7, 9), device=device)
    check(tensors, grad_output=lay_out(torch.randn_like(tensors[0]), layout))
    channels_last = make((4, 12, 7, 9), device=device, layout="channels_last")
    check(channels_last, grad_output=torch.randn((4, 12, 7, 9), device=device))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_of_first_and_second_order(training, activation, device):
    tensors = make((4, 3, 3, 2), torch.float64, device=device, residual=True)
    running = (
        torch.zeros(3, dtype=torch.float64, device=device),
        torch.ones(3, dtype=torch.float64, device=device),
    )
    inputs = [t.requires_grad_() for t in tensors]

    def function(x, weight, bias, residual):
        statistics = tuple(r.clone() for r in running)
        return batch_norm_act(x, *statistics, weight, bias, training, activation=activation, residual=residual)

    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@pytest.mark.parametrize("activation", ["relu", "identity", "silu"])
def test_arguments_that_depend_on_each_other(activation, device):
    x, weight, _, _ = make((4, 3, 3, 2), torch.float64, device=device)

    def function(x, weight):
        return batch_norm_act(x * 2, None, None, weight, weight, True, activation=activation, residual=x)

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
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64, device=device, requires_grad=True)
    assert gradcheck(lambda x: batch_norm_act(x, training=True, residual=x), x)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: batch_norm_act(x, training=True, residual=x), fullgraph=True)
    torch.testing.assert_close(compiled(x), batch_norm_act(x, training=True, residual=x))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("dtype", "own"), KINDS)
@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
def test_gradient_penalty_is_as_accurate_as_torchs(dtype, own, training, activation, device):
    tensors = make((16, 8, 5, 5), dtype, own, device=device, residual=True)

    def penalty_gradients(function, wanted=None):
        x, weight, bias, residual = (t.to(wanted or t.dtype).clone().requires_grad_() for t in tensors)
        statistics = torch.zeros_like(bias), torch.ones_like(bias)
        y = function(x, *statistics, weight, bias, training, activation=activation, residual=residual)
        slopes = torch.autograd.grad(y, (x, weight), y.detach().cos(), create_graph=True)
        penalty = slopes[0].square().sum() + slopes[1].square().sum() / x.numel()
        return torch.autograd.grad(penalty, (x, weight, residual), allow_unused=True)

    for ours, torchs, exact in zip(
        penalty_gradients(batch_norm_act),
        penalty_gradients(batch_norm_act_reference),
        penalty_gradients(batch_norm_act_reference, torch.float64),
        strict=True,
    ):
        if torchs is not None:
            assert_as_accurate_as_torch(ours, torchs, exact, times=GRADIENT)


@pytest.mark.parametrize("needed", list(itertools.product([False, True], repeat=4))[1:], ids=str)
@pytest.mark.parametrize("activation", ["identity", "relu", "silu"])
def test_only_the_gradients_that_are_needed(needed, activation, device):
    tensors = make((6, 5, 7, 9), device=device, residual=True)
    results = []
    for function in (batch_norm_act, batch_norm_act_reference):
        leaves = [t.clone().requires_grad_(n) for t, n in zip(tensors, needed, strict=True)]
        x, weight, bias, residual = leaves
        function(
            x, None, None, weight, bias, True, activation=activation, residual=residual
        ).square().sum().backward()
        results.append([leaf.grad for leaf in leaves])
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
def test_saves_the_input_and_two_values_per_channel(activation, device):
    x, weight, bias, _ = make((8, 16, 8, 8), device=device)
    x.requires_grad_()
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        batch_norm_act(x, torch.zeros_like(bias), torch.ones_like(bias), weight, bias, True, activation=activation)
    assert sorted(t.numel() for t in saved) == [16, 16, 16, 16, x.numel()]
    assert any(t.data_ptr() == x.data_ptr() for t in saved)


def test_two_forwards_before_one_backward(device):
    x, weight, bias, _ = make((8, 16, 8, 8), device=device)
    x.requires_grad_()
    mean, var = torch.zeros(16, device=device), torch.ones(16, device=device)
    first = batch_norm_act(x, mean, var, weight, bias, True)
    second = batch_norm_act(x * 2, mean, var, weight, bias, True)
    (first + second).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("shape", [(2, 16, 3, 3), (64, 16, 8, 8)], ids=["small", "large"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize(("dtype", "own"), [KINDS[0], KINDS[4]])
def test_backward_of_an_evaluation_after_a_training_step(dtype, own, layout, shape, device):
    """PyTorch's kernels keep the running statistics, not their values, and do not notice that they changed."""
    x, weight, bias, _ = make(shape, dtype, own, device=device, layout=layout)
    results = []
    for function in (batch_norm_act, batch_norm_act_reference):
        leaf, mean, var = x.clone().requires_grad_(), torch.zeros_like(bias), torch.ones_like(bias)
        with gf.backend("auto"):
            evaluated = function(leaf, mean, var, weight, bias, False, activation="identity")
            function(x * 3, mean, var, weight, bias, True, 0.5)
        evaluated.sum().backward()
        results.append(leaf.grad)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "alone"])
def test_activation_has_the_forwards_branch_whatever_changes_before_backward(
    residual, activation, create_graph, device
):
    tensors = make((6, 5, 7, 9), torch.float64, device=device, residual=residual)
    results = []
    for function in (batch_norm_act, batch_norm_act_reference):
        leaves = [None if t is None else t.clone().requires_grad_() for t in tensors]
        x, weight, bias, added = leaves
        mean, var = torch.zeros_like(weight.detach()), torch.ones_like(weight.detach())
        y = function(x, mean, var, weight, bias, activation=activation, residual=added)
        with torch.no_grad():
            bias += 1
            if device == "cpu":  # elsewhere to notice would cost a synchronisation: all is the forward's
                function(x * 3 + 2, mean, var, training=True)
        wanted = [t for t in leaves if t is not None]
        found = torch.autograd.grad(y, wanted, y.detach().cos(), create_graph=create_graph)
        if create_graph:
            found += torch.autograd.grad(found[0].square().sum() + found[1].sum(), (x, weight))
        results.append(found)
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_bias_may_change_before_backward(activation, training, device):
    results = []
    x, weight, bias, _ = make((6, 5, 7, 9), device=device)
    for function in (batch_norm_act, batch_norm_act_reference):
        leaf, shift = x.clone().requires_grad_(), bias.clone().requires_grad_()
        statistics = torch.zeros_like(bias), torch.ones_like(bias)
        y = function(leaf, *statistics, weight, shift, training, activation=activation)
        with torch.no_grad():
            shift.add_(1)
        results.append(torch.autograd.grad(y, (leaf, shift), x.cos()))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "silu"])
@pytest.mark.parametrize("backend", [None, "aot_eager", "inductor"])
def test_statistics_and_bias_may_change_between_evaluation_and_backward(backend, activation):
    """Batch norm's gradient follows the statistics, the activation's branch does not, as eagerly in torch."""
    results = []
    tensors = make((6, 5, 7, 9), residual=True)
    torch._dynamo.reset()
    ours = torch.compile(batch_norm_act, backend=backend, fullgraph=True) if backend else batch_norm_act
    for function in (ours, batch_norm_act_reference):
        leaves = [t.clone().requires_grad_() for t in tensors]
        x, weight, bias, residual = leaves
        mean, var = torch.zeros(5), torch.ones(5)
        y = function(x, mean, var, weight, bias, activation=activation, residual=residual)
        with torch.no_grad():
            bias.add_(1)
            batch_norm_act(x * 3 + 2, mean, var, training=True, momentum=0.5)
        results.append(torch.autograd.grad(y, leaves, tensors[0].cos()))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("create_graph", [False, True])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_backward_alone_may_be_transformed(activation, training, create_graph, device):
    def in_steps(*arguments, activation, **options):
        """The same; the derivative that torch has for SiLU's gradient is for reverse mode."""
        if activation != "silu":
            return batch_norm_act_reference(*arguments, activation=activation, **options)
        before = batch_norm_act_reference(*arguments, activation="identity", **options)
        return before * before.sigmoid()

    results = []
    tensors = make((6, 5, 7, 9), torch.float64, device=device, residual=True)
    v, t = torch.randn(2, *tensors[0].shape, dtype=torch.float64, device=device)
    for function in (batch_norm_act, in_steps):
        leaves = [t.clone().requires_grad_() for t in tensors]
        x, weight, bias, residual = leaves
        statistics = torch.zeros_like(bias.detach()), torch.ones_like(bias.detach())
        y = function(x, *statistics, weight, bias, training, activation=activation, residual=residual)
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

    x, weight, bias, _ = make((8, 16, 8, 8), device=device)
    gradients = []
    for wrap in (lambda f, t: f(t), lambda f, t: checkpoint(f, t, use_reentrant=False)):
        leaf = x.clone().requires_grad_()
        wrap(lambda t: batch_norm_act(t, None, None, weight, bias, True), leaf).square().sum().backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)
