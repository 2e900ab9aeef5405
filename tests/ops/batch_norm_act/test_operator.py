import itertools

import pytest
import torch
from ops.batch_norm_act.calls import (
    KINDS,
    OPERATORS,
    make,
    run,
    statistics_dtype,
)

from genimg_fast.ops import batch_norm_act, batch_norm_act_reference


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize(
    ("dtype", "own", "activation"),
    [(*KINDS[0].values, "leaky_relu"), (*KINDS[0].values, "silu"), (*KINDS[4].values, "leaky_relu")],
    ids=str,
)
def test_compiles_as_one_graph(dtype, own, activation, training, layout, backend, device):
    tensors = make((4, 6, 5, 5), dtype, own, device=device, layout=layout, residual=True)
    grad_output = torch.randn_like(tensors[0])
    torch._dynamo.reset()
    compiled = torch.compile(batch_norm_act, fullgraph=True, backend=backend)
    for _ in range(2):
        options = {"training": training, "activation": activation}
        ours = run(compiled, tensors, grad_output, **options)
        eager = run(batch_norm_act, tensors, grad_output, **options)
        for name, value in ours.items():
            torch.testing.assert_close(value, eager[name], msg=name)
    assert ours["output"].stride() == eager["output"].stride()


@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_second_order_inside_compile(training, activation, device):
    x, weight, bias, _ = make((4, 6, 5, 5), device=device)
    mean, var = torch.zeros(6, device=device), torch.ones(6, device=device)

    def penalty_gradients(function):
        leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
        statistics = mean.clone(), var.clone()
        output = function(leaves[0], *statistics, *leaves[1:], training, activation=activation)
        (gradient,) = torch.autograd.grad(output.square().sum(), leaves[0], create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), leaves)

    torch._dynamo.reset()
    # The other backends refuse to differentiate twice, whatever the layer.
    compiled = torch.compile(batch_norm_act, fullgraph=True, backend="eager")
    for ours, torchs in zip(penalty_gradients(compiled), penalty_gradients(batch_norm_act_reference), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize(("dtype", "own"), KINDS[:3] + KINDS[4:5])
def test_opcheck(layout, dtype, own, device):
    x, weight, bias, residual = make((4, 6, 5, 7), dtype, own, device=device, layout=layout, residual=True)
    mean, var = torch.zeros_like(weight), torch.ones_like(weight)
    invstd = var.to(statistics_dtype(dtype))
    for r, w, b in [(residual, weight, bias), (None, None, None)]:
        for statistics in [(mean.clone(), var.clone()), (None, None)]:
            train = (x, r, w, b, *statistics, 0.1, 1e-5, 2, 0.2)
            torch.library.opcheck(OPERATORS.batch_norm_act_train.default, train)
        functional = (x.detach().requires_grad_(), r, w, b, 1e-5, 2, 0.2)
        torch.library.opcheck(OPERATORS.batch_norm_act_train_functional.default, functional)
        evaluate = (x, r, w, b, mean, var, 1e-5, 3, 0.0)
        torch.library.opcheck(OPERATORS.batch_norm_act_eval.default, evaluate)
        for needed in itertools.product([True, False], repeat=2):
            backward = (
                torch.randn_like(x),
                x.detach().requires_grad_(),
                r,
                w,
                b,
                torch.zeros_like(invstd),
                invstd,
                True,
                2 if r is None else 3,
                0.2,
                *needed,
            )
            torch.library.opcheck(OPERATORS.batch_norm_act_backward.default, backward)


@pytest.mark.parametrize("activation", [1, 3])
def test_opcheck_of_the_operators_of_compiled_graphs(activation):
    x, weight, bias, residual = make((4, 6, 5, 7), residual=True)
    evaluate = (x.requires_grad_(), residual, weight, bias, torch.zeros(6), torch.ones(6), 1e-5, activation, 0.0)
    torch.library.opcheck(OPERATORS.batch_norm_act_eval_with_copies.default, evaluate)
    backward = (x.detach(), *(t.detach() for t in evaluate[:6]), torch.ones(6), torch.ones(6), *evaluate[6:])
    torch.library.opcheck(OPERATORS.batch_norm_act_eval_backward.default, (*backward, True, True))
    torch.library.opcheck(OPERATORS.copy.default, (weight.requires_grad_(),))
