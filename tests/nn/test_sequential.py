import copy

import pytest
import torch

import genimg_fast as gf
from genimg_fast import nn
from genimg_fast.nn import batch_norm_act as layer_module


@pytest.fixture
def activations(monkeypatch):
    """Records the activation of every batch norm operator that runs."""
    seen: list[str] = []
    original = layer_module.batch_norm_act

    def record(*args, activation, **kwargs):
        seen.append(activation)
        return original(*args, activation=activation, **kwargs)

    monkeypatch.setattr(layer_module, "batch_norm_act", record)
    with gf.backend("native"):
        yield seen


def layers(source=torch.nn):
    return [
        torch.nn.Conv2d(3, 8, 3), source.BatchNorm2d(8), torch.nn.ReLU(),
        torch.nn.Conv2d(8, 8, 3), source.BatchNorm2d(8), torch.nn.LeakyReLU(0.2, inplace=True),
        source.BatchNorm2d(8), torch.nn.SiLU(), source.BatchNorm2d(8), torch.nn.SiLU(inplace=True),
        source.BatchNorm2d(8), torch.nn.Tanh(),
    ]  # fmt: skip


@pytest.mark.parametrize("source", [torch.nn, nn], ids=["torch.nn", "gf.nn"])
def test_pairs_run_fused_with_torchs_numbers(source, activations):
    plain = torch.nn.Sequential(*layers())
    ours = nn.Sequential(*layers(source))
    ours.load_state_dict(plain.state_dict())
    assert list(ours.state_dict()) == list(plain.state_dict())
    for training in (True, True, False):
        ours.train(training)
        plain.train(training)
        x = torch.randn(4, 3, 12, 12)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        ours(a).sum().backward()
        plain(b).sum().backward()
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.state_dict(), plain.state_dict())
    alone = ["identity"] if source is nn else []
    assert activations == ["relu", "leaky_relu", "silu", "silu", *alone] * 3


def test_list_operations_keep_fusing(activations):
    model = nn.Sequential(*layers())
    assert isinstance(model[1:3], nn.Sequential)
    model[1:3](torch.randn(4, 8, 5, 5))
    assert activations == ["relu"]
    activations.clear()
    block = nn.Sequential(torch.nn.BatchNorm1d(4))
    block.append(torch.nn.Tanh())
    block(torch.randn(6, 4))
    assert activations == []
    block.insert(1, torch.nn.LeakyReLU(0.1))
    x = torch.randn(6, 4)
    torch.testing.assert_close(block(x), torch.nn.Sequential(*copy.deepcopy(block))(x))
    assert activations == ["leaky_relu"]
    block[1] = torch.nn.Sigmoid()
    block(x)
    del block[0]
    assert torch.equal(block(x), x.sigmoid().tanh())
    assert activations == ["leaky_relu"]
    assert torch.equal(nn.Sequential()(x), x)


@pytest.mark.parametrize("position", [0, 1], ids=["on batch norm", "on the activation"])
@pytest.mark.parametrize(
    "register",
    [
        "register_forward_hook",
        "register_forward_pre_hook",
        "register_full_backward_hook",
        "register_full_backward_pre_hook",
    ],
)
def test_hooks_are_respected(position, register, activations):
    model = nn.Sequential(torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    calls = []
    handle = getattr(model[position], register)(lambda *_: calls.append(1))
    x = torch.randn(4, 8, 5, 5, requires_grad=True)
    model(x).sum().backward()
    assert calls == [1]
    assert activations == []
    handle.remove()
    model(x)
    assert activations == ["relu"]


def test_global_hooks_are_respected(activations):
    calls = []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda m, i, o: calls.append(type(m)))
    try:
        nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.ReLU())(torch.randn(4, 8))
    finally:
        handle.remove()
    assert calls[:2] == [torch.nn.BatchNorm1d, torch.nn.ReLU]
    assert activations == []


def test_subclasses_and_replaced_forwards_run_unfused(activations):
    class Shifted(torch.nn.ReLU):
        def forward(self, input):
            return super().forward(input) + 1

    x = torch.randn(4, 8)
    assert nn.Sequential(torch.nn.BatchNorm1d(8), Shifted())(x).min() >= 1
    model = nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.ReLU())
    model[1].forward = torch.neg
    assert model(x).min() < 0
    assert activations == []


def test_double_backward_through_a_discriminator(activations):
    gradients = []
    plain = torch.nn.Sequential(
        torch.nn.Conv2d(1, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.LeakyReLU(0.2)
    ).double()
    fused = gf.fuse(copy.deepcopy(plain))
    x = torch.randn(6, 1, 7, 7, dtype=torch.float64)
    for model in (plain, fused):
        leaf = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(leaf).sum(), leaf, create_graph=True)
        (slope.flatten(1).norm(dim=1) - 1).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(gradients[1], gradients[0])
    assert activations == ["leaky_relu"]


def test_compiles_as_one_graph():
    model = nn.Sequential(*layers()).train()
    torch._dynamo.reset()
    x = torch.randn(4, 3, 12, 12)
    expected = copy.deepcopy(model)(x)
    torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)


@pytest.mark.parametrize("source", [torch.nn, nn], ids=["torch.nn", "gf.nn"])
def test_torch_fx_traces_through_it(source):
    model = nn.Sequential(*layers(source)).eval()
    traced = torch.fx.symbolic_trace(model)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == [str(i) for i in range(len(model))]
    x = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(traced(x), model(x))


def test_dynamic_batch_compiles_with_a_declared_range():
    model = torch.compile(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU()), fullgraph=True, backend="aot_eager")
    for batch in (4, 32):
        x = torch.randn(batch, 8, 32, 32)
        torch._dynamo.mark_dynamic(x, 0, min=2, max=64)
        torch.testing.assert_close(model(x), torch.relu(torch.nn.BatchNorm2d(8)(x)))
