import pytest
import torch
from ops.batch_norm_act.calls import make

import genimg_fast as gf
from genimg_fast.ops import batch_norm_act, batch_norm_act_reference


@pytest.mark.parametrize("shape", [(2, 16, 3, 3), (64, 16, 8, 8)], ids=["small", "large"])
def test_a_trace_of_an_evaluation_warns_of_nothing(shape, recwarn):
    x, weight, bias, _ = make(shape)

    def evaluate(x):
        return batch_norm_act(x, torch.zeros(16), torch.ones(16), weight, bias)

    with gf.backend("auto"):
        traced = torch.jit.trace(evaluate, x)
    assert [w.category for w in recwarn if issubclass(w.category, torch.jit.TracerWarning)] == []
    torch.testing.assert_close(traced(x[:1]), evaluate(x[:1]))


def test_native_backend_says_what_it_cannot_do():
    x, c = torch.randn(8, 4), torch.ones(4, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match=r"'native'.*, float32, got torch.bfloat16 beside torch.float16 input"):
        batch_norm_act(x.half(), None, None, c, c, True)
    with pytest.raises(RuntimeError, match=r"'native'.*one dtype, .* got torch.bfloat16 and torch.float32"):
        batch_norm_act(x.bfloat16(), c.float(), c.float(), c, c, True)
    assert "statistics of one dtype" in gf.info().operators["batch_norm_act"]["cpu"][1]


def test_auto_leaves_to_torch_what_is_faster_there(device):
    small = torch.randn(2, 3, device=device, requires_grad=True)
    strided = torch.ones(128, device=device)[::2]
    large = torch.randn(64, 64, 4, 4, device=device, requires_grad=True)
    with gf.backend("auto"):
        if device == "cpu":
            assert "LeakyRelu" in type(batch_norm_act(small, training=True).grad_fn).__name__
        assert type(batch_norm_act(large, training=True).grad_fn).__name__ == "_BatchNormActBackward"
        y = batch_norm_act(large, None, None, strided, strided, True)
        assert "LeakyRelu" in type(y.grad_fn).__name__


def test_transforms_run_on_torch():
    x, tangent = torch.randn(5, 4, 3), torch.randn(5, 4, 3)
    results = []
    for function in (batch_norm_act, batch_norm_act_reference):
        gradient = torch.func.grad(lambda t, f=function: f(t, training=True).square().sum())(x)
        _, derivative = torch.func.jvp(lambda t, f=function: f(t, training=True), (x,), (tangent,))
        results.append((gradient, derivative))
    torch.testing.assert_close(*results)


def test_transforms_inside_compile_run_on_torch():
    x, tangent = torch.randn(5, 4, 3), torch.randn(5, 4, 3)
    results = []
    for function in (batch_norm_act, batch_norm_act_reference):
        torch._dynamo.reset()

        def derivative(x, t, f=function):
            return torch.func.jvp(lambda x: f(x, training=True), (x,), (t,))[1]

        results.append(torch.compile(derivative, backend="aot_eager", fullgraph=True)(x, tangent))
    torch.testing.assert_close(*results)
    assert results[0].norm() > 0


def test_default_device_keeps_the_kernel():
    x = torch.randn(4, 6, 5, 5, requires_grad=True)
    with torch.device("cpu"):
        assert type(batch_norm_act(x, training=True).grad_fn).__name__ == "_BatchNormActBackward"


def test_other_layouts_run_on_torch():
    x, c = torch.randn(4, 8, 6, 6), torch.ones(8)
    if torch.backends.mkldnn.is_available():
        with torch.no_grad():
            ours = batch_norm_act(x.to_mkldnn(), c, c, c, c, activation="relu").to_dense()
        torch.testing.assert_close(ours, batch_norm_act_reference(x, c, c, c, c, activation="relu"))
