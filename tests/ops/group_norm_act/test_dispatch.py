import pytest
import torch
from ops.group_norm_act.calls import OPERATORS, make

import genimg_fast as gf
from genimg_fast.ops import group_norm_act, group_norm_act_reference
from genimg_fast.ops._dispatch import AUTOCAST
from genimg_fast.ops.group_norm_act.dispatch import KERNELS
from genimg_fast.ops.group_norm_act.operands import Operands, Options


@pytest.mark.parametrize("shape", [(2, 16, 3, 3), (64, 16, 8, 8)], ids=["small", "large"])
def test_a_trace_consists_of_torchs_operators(shape):
    x, weight, bias, *_ = make(shape)

    def evaluate(x):
        return group_norm_act(x, 4, weight, bias)

    with gf.backend("auto"):
        traced = torch.jit.trace(evaluate, x)
    assert "genimg_fast" not in str(traced.graph)
    torch.testing.assert_close(traced(x), evaluate(x))


def test_native_backend_says_what_it_cannot_do():
    x, c = torch.randn(8, 4), torch.ones(4, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match=r"'native'.*, float32, got torch.bfloat16 beside torch.float16 input"):
        group_norm_act(x.half(), 2, c, c)
    with pytest.raises(RuntimeError, match=r"'native'.*a residual of the input's shape"):
        group_norm_act(x, 2, residual=x[:1])
    assert "a residual of the input's shape" in gf.info().operators["group_norm_act"]["cpu"][1]


def test_auto_leaves_to_torch_what_is_faster_there(device):
    small = torch.randn(2, 4, device=device, requires_grad=True)
    large = torch.randn(16, 64, 16, 16, device=device, requires_grad=True)
    with gf.backend("auto"):
        if device == "cpu":
            assert "Silu" in type(group_norm_act(small, 2).grad_fn).__name__
        assert type(group_norm_act(large, 2).grad_fn).__name__ == "_GroupNormActBackward"
        y = group_norm_act(large, 2, residual=large[:1])
        assert "Silu" in type(y.grad_fn).__name__
        alone = group_norm_act(large, 1, activation="identity")
        assert ("NativeGroupNorm" in type(alone.grad_fn).__name__) == (device == "cpu")


def test_autocast_runs_on_the_kernels(device):
    x = torch.randn(8, 4, 5, 5, device=device, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast(device, torch.bfloat16):
        for data, residual in ((x, None), (x.float(), None), (x, x.float()), (x, x)):
            y = group_norm_act(data, 2, residual=residual)
            assert y.dtype == group_norm_act_reference(data, 2, residual=residual).dtype
            fits = residual is None or (residual.dtype is torch.float32) == (device == "cuda")
            assert ("GroupNormAct" if fits else "Silu") in type(y.grad_fn).__name__


@pytest.fixture
def autocast_of_a_gpu(monkeypatch):
    """On the meta device, which has no autocast."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device_type: device_type == "meta")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_of_a_gpu_wants_what_is_added_in_float32(dtype, autocast_of_a_gpu):
    x, c = torch.empty(8, 4, 5, 5, dtype=dtype, device="meta"), torch.ones(4, device="meta")
    options = Options(2, 1e-5, 3, 0.0)

    def why_not(residual, parameter):
        return KERNELS.unlike(Operands(x, residual, parameter, parameter, None, None), options)

    for parameter in (None, c, c.to(dtype)):
        assert why_not(None, parameter) is why_not(x.float(), parameter) is None
        assert why_not(x, parameter) == AUTOCAST
    assert why_not(None, c.double()) == AUTOCAST


def test_traced_operators_know_the_dtypes_of_autocast_on_a_gpu():
    x = torch.empty(8, 4, 5, 5, dtype=torch.bfloat16, device="meta").to(memory_format=torch.channels_last)
    added = x.float()
    y, mean, invstd = OPERATORS.group_norm_act(x, added, None, None, None, None, 2, 1e-5, 3, 0.0, True)
    assert (y.dtype, y.stride(), mean.dtype) == (torch.float32, x.stride(), torch.float32)
    call = (y, x, added, None, None, None, None, mean, invstd, 2, 3, 0.0, True, True, True)
    grad_input, grad_residual, *_ = OPERATORS.group_norm_act_backward(*call)
    assert (grad_input.dtype, grad_residual.dtype) == (torch.bfloat16, torch.float32)
    with pytest.raises(RuntimeError, match="residual and grad_output must have the output's shape, dtype"):
        OPERATORS.group_norm_act(x, x, None, None, None, None, 2, 1e-5, 3, 0.0, True)


def test_transforms_run_on_torch():
    x, tangent = torch.randn(5, 4, 3), torch.randn(5, 4, 3)
    results = []
    for function in (group_norm_act, group_norm_act_reference):
        gradient = torch.func.grad(lambda t, f=function: f(t, 2).square().sum())(x)
        _, derivative = torch.func.jvp(lambda t, f=function: f(t, 2), (x,), (tangent,))
        results.append((gradient, derivative))
    torch.testing.assert_close(*results)


def test_transforms_inside_compile_run_on_torch():
    x, tangent = torch.randn(5, 4, 3), torch.randn(5, 4, 3)
    results = []
    for function in (group_norm_act, group_norm_act_reference):
        torch._dynamo.reset()

        def derivative(x, t, f=function):
            return torch.func.jvp(lambda x: f(x, 2), (x,), (t,))[1]

        results.append(torch.compile(derivative, backend="aot_eager", fullgraph=True)(x, tangent))
    torch.testing.assert_close(*results)
    assert results[0].norm() > 0


def test_default_device_keeps_the_kernel():
    x = torch.randn(4, 6, 5, 5, requires_grad=True)
    with torch.device("cpu"):
        assert type(group_norm_act(x, 2).grad_fn).__name__ == "_GroupNormActBackward"


def test_a_bool_is_no_number_of_groups() -> None:
    with gf.backend("native"), pytest.raises(TypeError, match="must be int, not bool"):
        gf.ops.group_norm_act(torch.zeros(2, 4, 8, 8), True)
