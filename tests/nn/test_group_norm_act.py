"""Group norm and instance norm layers: torch's, with and without an activation."""

import copy

import pytest
import torch
from accuracy import FORWARD, GRADIENT, assert_as_accurate_as_torch
from torch import Tensor
from torch.nn import functional as F
from torch_samples import modules_named

import genimg_fast as gf
from genimg_fast import nn

ACTIVATIONS = {
    "identity": lambda x: x, "relu": F.relu, "leaky_relu": lambda x: F.leaky_relu(x, 0.2), "silu": F.silu,
}  # fmt: skip
PLAIN = ["GroupNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"]


@pytest.mark.parametrize("module_info", modules_named(*PLAIN))
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_pytorchs_own_samples(module_info, backend, dtype, training) -> None:
    ours_class = getattr(nn, module_info.module_cls.__name__)
    samples = module_info.module_inputs_func(module_info, "cpu", dtype, True, training)
    assert samples
    for sample in samples:
        build, call = sample.constructor_input, sample.forward_input
        theirs = module_info.module_cls(*build.args, **build.kwargs).to(dtype).train(training)
        ours = ours_class(*build.args, **build.kwargs).to(dtype).train(training)
        ours.load_state_dict(theirs.state_dict())
        with gf.backend(backend):
            results = []
            for layer in (ours, theirs):
                x = call.args[0].detach().clone().requires_grad_()
                output = layer(x)
                results.append((output, *torch.autograd.grad(output.square().sum(), [x, *layer.parameters()])))
        torch.testing.assert_close(*results)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).mul_(2).add_(1).to(dtype)


@pytest.mark.parametrize("backend", ["auto", "native"])
@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (2, 3, 4, 4), (1, 512, 8, 8), (2, 512, 8, 8)], ids=str)
def test_gradients_in_channels_last(shape: tuple[int, ...], backend: str) -> None:
    # For one image, torch 2.14.1's own instance norm has another gradient then.
    x, grad = images(*shape).requires_grad_(), images(*shape).roll(1)
    with gf.backend(backend):
        output = nn.InstanceNorm2d(shape[1])(x)
    (expected,) = torch.autograd.grad(output, x, grad, retain_graph=True)
    (found,) = torch.autograd.grad(output, x, grad.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["group", "instance"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_layers_with_an_activation(
    kind: str, activation: str, dtype: torch.dtype, layout: torch.memory_format
) -> None:
    if kind == "group":
        ours = nn.GroupNormAct(2, 6, activation=activation, negative_slope=0.2)
        theirs = torch.nn.GroupNorm(2, 6)
    else:
        ours = nn.InstanceNormAct2d(6, affine=True, activation=activation, negative_slope=0.2)
        theirs = torch.nn.InstanceNorm2d(6, affine=True)
    for values in theirs.parameters():
        values.data.uniform_(0.5, 2)
    ours.load_state_dict(theirs.state_dict())
    act = ACTIVATIONS[activation]
    x, residual = (images(3, 6, 20, 21, dtype=dtype).roll(k, 0).to(memory_format=layout) for k in (0, 1))

    def run(forward, parameters, *arguments: Tensor) -> list[Tensor]:
        arguments = [a.detach().clone().requires_grad_() for a in arguments]
        output = forward(*arguments)
        return [output.detach(), *torch.autograd.grad(output.square().sum(), [*arguments, *parameters])]

    exact = copy.deepcopy(theirs).double()
    ours, theirs = ours.to(dtype), theirs.to(dtype)
    with gf.backend("native"):
        found = run(ours, ours.parameters(), x, residual)
    eager = run(lambda x, r: act(theirs(x) + r), theirs.parameters(), x, residual)
    expected = run(lambda x, r: act(exact(x) + r), exact.parameters(), x.double(), residual.double())
    assert found[0].stride() == eager[0].stride()
    for k, results in enumerate(zip(found, eager, expected, strict=True)):
        assert_as_accurate_as_torch(*results, times=FORWARD if k == 0 else GRADIENT)


@pytest.mark.parametrize("conditioned", ["GroupNormAct", "ConditionalInstanceNormAct2d"])
def test_scale_and_shift_of_each_sample(conditioned: str) -> None:
    x, residual = images(3, 6, 20, 20), images(3, 6, 20, 20).flip(0)
    if conditioned == "GroupNormAct":
        layer = nn.GroupNormAct(3, 6)
        scale, shift = images(2, 3, 6)
        output = layer(x, residual, scale=scale, shift=shift)
        normalised, act = F.group_norm(x, 3), F.silu
    else:
        layer = nn.ConditionalInstanceNormAct2d(6, 4)
        torch.testing.assert_close(layer(x, torch.tensor([3, 0, 0])), F.relu(F.instance_norm(x)))
        for values in layer.parameters():
            values.data.normal_()
        style = torch.tensor([3, 0, 0])
        scale, shift = layer.scale[style], layer.shift[style]
        output = layer(x, style, residual)
        shares = F.one_hot(style, 4).float()
        torch.testing.assert_close(layer(x, shares, residual), output)
        normalised, act = F.instance_norm(x), F.relu
    scale, shift = (values[:, :, None, None] for values in (scale, shift))
    torch.testing.assert_close(output, act(normalised * (1 + scale) + shift + residual))
    output.sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_what_instance_norm_leaves_to_torch() -> None:
    """Running statistics, a sample without a batch, other numbers of channels; and torch's errors."""
    x = images(3, 6, 8, 8)
    for options in ({"track_running_stats": True}, {"affine": True, "track_running_stats": True}):
        ours, theirs = nn.InstanceNorm2d(6, **options), torch.nn.InstanceNorm2d(6, **options)
        for training in (True, False):
            torch.testing.assert_close(ours.train(training)(x), theirs.train(training)(x))
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())
    torch.testing.assert_close(nn.InstanceNorm2d(6)(x[0]), torch.nn.InstanceNorm2d(6)(x[0]))
    with pytest.warns(UserWarning, match="does not match num_features"):
        torch.testing.assert_close(nn.InstanceNorm2d(5)(x), torch.nn.InstanceNorm2d(6)(x))
    for bad in (x[:, :, :1, :1], x[None], x[:, :5]):
        messages = []
        for layer in (nn.InstanceNorm2d(6, affine=True), torch.nn.InstanceNorm2d(6, affine=True)):
            with pytest.raises((ValueError, RuntimeError)) as raised:
                layer(bad)
            messages.append(str(raised.value))
        assert messages[0] == messages[1]


@pytest.mark.parametrize("activation", ["identity", "leaky_relu"])
def test_small_instance_norms_err_as_torchs(activation: str) -> None:
    """Not as its group norm, whose gradients are ten times as far off where means are large."""
    x, g = images(2, 32, 32, 32) + 100, images(2, 32, 32, 32)
    found = []
    for namespace in (nn, torch.nn):
        layer = namespace.InstanceNorm2d(32, affine=True)
        behind = namespace.Identity() if activation == "identity" else namespace.LeakyReLU(0.2)
        leaf = x.clone().requires_grad_()
        with gf.backend("auto"):
            output = namespace.Sequential(layer, behind)(leaf)
        found.append([output, *torch.autograd.grad(output, [leaf, *layer.parameters()], g)])
    torch.testing.assert_close(*found, rtol=0, atol=0)


@pytest.mark.parametrize("activation", ["identity", "relu"])
@pytest.mark.parametrize("shape", [(2, 8, 4, 4), (4, 16, 64, 64), (64, 64, 8, 8)], ids=str)
def test_instance_norm_does_the_same_in_either_layout(shape: tuple[int, ...], activation: str) -> None:
    layer = nn.InstanceNormAct2d(shape[1], activation=activation)
    x = images(*shape)
    with gf.backend("auto"):
        one, other = (layer(t.requires_grad_()) for t in (x, x.contiguous(memory_format=torch.channels_last)))
    assert torch.equal(one, other)
    assert other.is_contiguous()


def test_autocast_gives_torchs_dtypes() -> None:
    x = images(3, 6, 8, 8, dtype=torch.bfloat16)
    for ours, theirs in (
        (nn.GroupNorm(2, 6), torch.nn.GroupNorm(2, 6)),
        (nn.InstanceNorm2d(6), torch.nn.InstanceNorm2d(6)),
    ):
        with torch.autocast("cpu", torch.bfloat16):
            results = ours(x), theirs(x)
        exact = copy.deepcopy(theirs).double()(x.double())
        assert_as_accurate_as_torch(*results, exact, times=FORWARD)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"num_channels .*must be divisible by num_groups"):
        nn.GroupNormAct(4, 6)
    for build in (nn.GroupNormAct, nn.ConditionalInstanceNormAct2d):
        with pytest.raises(ValueError, match="unknown activation 'gelu'; choose one of identity, relu"):
            build(2, 6, activation="gelu")
    layer = nn.ConditionalInstanceNormAct2d(6, 4)
    for style in (torch.tensor([1]), torch.tensor([1.0, 2.0, 3.0]), torch.ones(3, 5)):
        with pytest.raises(
            ValueError, match=r"style must be int64 of shape \(3,\), or shares of shape \(3, 4\), got"
        ):
            layer(images(3, 6, 8, 8), style)
    with pytest.raises(ValueError, match="scale must have shape"):
        nn.GroupNormAct(2, 6)(images(3, 6, 8, 8), scale=torch.ones(6))
    with pytest.raises(RuntimeError, match="cannot compile GroupNormAct"):
        torch.jit.script(torch.nn.Sequential(nn.GroupNormAct(2, 6)))


@pytest.mark.parametrize("layer", [nn.GroupNormAct(2, 6), nn.InstanceNormAct2d(6), nn.GroupNorm(3, 6)], ids=str)
def test_compiles_and_traces(layer) -> None:
    x = images(3, 6, 8, 8)
    torch._dynamo.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    traced = torch.fx.symbolic_trace(torch.nn.Sequential(layer))
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0"]
    torch.testing.assert_close(traced(x), layer(x))
    torch.testing.assert_close(copy.deepcopy(layer)(x), layer(x))
