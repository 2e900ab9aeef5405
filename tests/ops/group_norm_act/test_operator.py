import pytest
import torch
from ops.group_norm_act.calls import KINDS, OPERATORS, make, run, statistics_dtype

from genimg_fast.ops import group_norm_act, group_norm_act_reference


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize(("dtype", "own"), [KINDS[0], KINDS[4]])
def test_compiles_as_one_graph(dtype, own, layout, backend, device):
    tensors = make((4, 6, 5, 5), dtype, own, device=device, layout=layout)
    grad_output = torch.randn_like(tensors[0])
    torch._dynamo.reset()
    compiled = torch.compile(group_norm_act, fullgraph=True, backend=backend)
    for _ in range(2):
        ours = run(compiled, tensors, grad_output, groups=3)
        eager = run(group_norm_act, tensors, grad_output, groups=3)
        for name, value in ours.items():
            torch.testing.assert_close(value, eager[name], msg=name)
    assert ours["output"].stride() == eager["output"].stride()
    assert "group_norm_act" in str(torch._dynamo.explain(group_norm_act)(tensors[0], 3).graphs[0].graph)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_inside_compile(dtype, device):
    x = torch.randn(4, 6, 5, 5, device=device).to(dtype)
    results = []
    for function in (group_norm_act, group_norm_act_reference):
        torch._dynamo.reset()
        with torch.autocast(device, torch.bfloat16):
            results.append(torch.compile(function, fullgraph=True, backend="aot_eager")(x, 3))
    torch.testing.assert_close(*results)


def test_second_order_inside_compile(device):
    tensors = make((4, 6, 5, 5), device=device)

    def penalty_gradients(function):
        leaves = [t.clone().requires_grad_() for t in tensors]
        x, weight, bias, residual, scale, shift = leaves
        output = function(x, 3, weight, bias, residual=residual, scale=scale, shift=shift)
        (gradient,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), leaves)

    torch._dynamo.reset()
    # The other backends refuse to differentiate twice, whatever the layer.
    compiled = torch.compile(group_norm_act, fullgraph=True, backend="eager")
    for ours, torchs in zip(penalty_gradients(compiled), penalty_gradients(group_norm_act_reference), strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@pytest.mark.parametrize(("dtype", "own"), [KINDS[0], KINDS[4]])
def test_opcheck(layout, dtype, own, device):
    x, weight, bias, residual, scale, shift = make((4, 6, 5, 7), dtype, own, device=device, layout=layout)
    mean = torch.zeros(4, 3, dtype=statistics_dtype(dtype), device=device)
    invstd = torch.ones_like(mean)
    for others in [(residual, weight, bias, scale, shift), (None,) * 5]:
        forward = (x.detach().requires_grad_(), *others, 3, 1e-5, 3, 0.2, False)
        torch.library.opcheck(OPERATORS.group_norm_act.default, forward)
        for needed in [(True, True, True), (True, False, False), (False, True, False), (False, False, True)]:
            backward = (
                torch.randn_like(x),
                x.detach().requires_grad_(),
                *others,
                mean,
                invstd,
                3,
                3,
                0.2,
                *needed,
            )
            torch.library.opcheck(OPERATORS.group_norm_act_backward.default, backward)
