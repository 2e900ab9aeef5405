import pytest
import torch
from ops.image_conv_act.calls import ACTIVATIONS, SMALL, Shape, both_ways, check, make, ran_natively

import genimg_fast as gf
from genimg_fast import _native
from genimg_fast.ops import image_conv_act, image_conv_act_reference
from genimg_fast.ops.image_conv_act import dispatch, operator


def call(function, tensors, transposed, **options):
    return function(*tensors, **SMALL.options(transposed), **options)


@both_ways
def test_a_trace_consists_of_torchs_operators(transposed):
    x, *parameters = make(SMALL, transposed)

    def evaluate(x):
        return call(image_conv_act, (x, *parameters), transposed, activation="tanh")

    traced = torch.jit.trace(evaluate, x)
    assert "genimg_fast::" not in str(traced.graph)
    torch.testing.assert_close(traced(x), evaluate(x))


def test_native_backend_says_what_it_cannot_do():
    x, weight, bias = make(SMALL)
    with pytest.raises(RuntimeError, match=r"'native'.*take float32 or bfloat16, got torch.float64"):
        image_conv_act(x.double(), weight.double())
    with pytest.raises(RuntimeError, match=r"'native'.*at most 4 channels at the image, got 6"):
        image_conv_act(torch.randn(1, 6, 8, 8), torch.randn(3, 6, 3, 3))
    with pytest.raises(
        RuntimeError, match=r"'native'.*batches of at least one image, got one of shape \(3, 8, 8\)"
    ):
        image_conv_act(x[0], weight, bias)
    for stride, padding, side in ((5, 0, 4), (1, 4, 4), (1, 0, 10)):
        with pytest.raises(
            RuntimeError, match=r"'native'.*at most 9 pixels a side, steps of 4, and padding below"
        ):
            image_conv_act(torch.randn(1, 3, 16, 16), torch.randn(4, 3, side, side), None, stride, padding)
    info = gf.info().operators["image_conv_act"]
    assert "at most 4 channels at the image" in info["cpu"][1]
    assert info["cuda"] == ("torch", "there are no compiled kernels for device 'cuda'")


def test_auto_leaves_to_torch_what_the_kernels_do_not_take_or_is_faster_there():
    x, weight, bias = (t.requires_grad_() for t in make(SMALL))
    large = torch.randn(8, 3, 64, 64)
    with gf.backend("auto"):
        assert ran_natively(image_conv_act(large, weight, bias, 2, 1))
        assert not ran_natively(image_conv_act(x[:1, :, :4, :4], weight, bias))
        assert not ran_natively(image_conv_act(x[0], weight, bias))
        assert not ran_natively(image_conv_act(large.double(), weight.double()))
        with torch.autocast("cpu", torch.bfloat16):  # without a gradient at the image, and with one
            assert not ran_natively(image_conv_act(large, weight, bias, 2, 1))
            wide = torch.ones(64, 3, 4, 4, requires_grad=True)
            assert ran_natively(image_conv_act(large.clone().requires_grad_(), wide, None, 2, 1))
        assert not ran_natively(
            image_conv_act(torch.randn(8, 6, 64, 64), torch.randn(8, 6, 3, 3).requires_grad_())
        )


def torchs_calls(monkeypatch):
    """The list of names of the passes that PyTorch will have run."""
    called = []
    for name in ("from_image", "weight_gradient"):
        plain = getattr(operator, name)
        monkeypatch.setattr(operator, name, lambda *a, n=name, f=plain: called.append(n) or f(*a))
    return called


@pytest.mark.skipif(
    not _native.has_bf16_products() or torch.cpu._is_amx_tile_supported(),
    reason="PyTorch's products of bfloat16 are faster on this processor",
)
@pytest.mark.parametrize("activation", ["identity", "leaky_relu"])
@both_ways
def test_auto_runs_the_kernels_where_they_multiply_pairs(activation, transposed, monkeypatch):
    shape = Shape((8, 3, 64, 64), 64)
    called = torchs_calls(monkeypatch)
    with gf.backend("auto"):
        tensors = make(shape, transposed, torch.bfloat16, layout="channels_last")
        check(shape, tensors, transposed, activation=activation, grad_layout="channels_last")
        x, weight, _ = make(shape, dtype=torch.bfloat16, layout="channels_last")
        assert ran_natively(
            image_conv_act(x, weight.requires_grad_(), None, 2, 1)
        )  # without a gradient at the image
        assert not ran_natively(image_conv_act(x.contiguous(), weight, None, 2, 1))
    assert called == []


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
@both_ways
def test_auto_mixes_torchs_products_and_the_kernels(activation, layout, transposed, monkeypatch):
    shape = Shape((8, 3, 64, 64), 64)
    monkeypatch.setattr(dispatch, "_multiplies_pairs", lambda *_: False)  # as on most processors
    called = torchs_calls(monkeypatch)
    with gf.backend("auto"):
        check(shape, make(shape, transposed, torch.bfloat16, layout=layout), transposed, activation=activation)
        assert sorted(called) == ["from_image", "weight_gradient"]
        called.clear()
        check(shape, make(shape, transposed, layout=layout), transposed, activation=activation)
    assert called == []


@both_ways
def test_transforms_run_on_torch(transposed):
    x, *parameters = make(SMALL, transposed)
    tangent = torch.randn_like(x)
    results = []
    for function in (image_conv_act, image_conv_act_reference):

        def evaluate(t, f=function):
            return call(f, (t, *parameters), transposed, activation="tanh")

        gradient = torch.func.grad(lambda t, e=evaluate: e(t).square().sum())(x)
        _, derivative = torch.func.jvp(evaluate, (x,), (tangent,))
        many = torch.func.vmap(evaluate)(torch.stack((x, tangent)))
        results.append((gradient, derivative, many))
    torch.testing.assert_close(*results)


@both_ways
def test_transforms_inside_compile_run_on_torch(transposed):
    x, *parameters = make(SMALL, transposed)
    tangent = torch.randn_like(x)
    results = []
    for function in (image_conv_act, image_conv_act_reference):
        torch._dynamo.reset()

        def derivative(x, t, f=function):
            return torch.func.jvp(lambda x: call(f, (x, *parameters), transposed), (x,), (t,))[1]

        results.append(torch.compile(derivative, backend="aot_eager", fullgraph=True)(x, tangent))
    torch.testing.assert_close(*results)
    assert results[0].norm() > 0


def test_default_device_keeps_the_kernel():
    tensors = [t.requires_grad_() for t in make(SMALL)]
    with torch.device("cpu"):
        assert ran_natively(call(image_conv_act, tensors, False))
