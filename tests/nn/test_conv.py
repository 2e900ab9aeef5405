"""Convolutions at images: torch's layers, on our operator, with the activation behind them."""

import copy

import pytest
import torch
from torch.nn.utils.parametrizations import spectral_norm
from torch_samples import modules_named

import genimg_fast as gf
from genimg_fast import nn
from genimg_fast.nn import conv as layer_module
from genimg_fast.ops import product_conv, winograd_conv

PLAIN = torch.nn.Conv2d, torch.nn.ConvTranspose2d


@pytest.fixture
def activations(monkeypatch):
    """Records the activation of every convolution that runs on the kernels."""
    seen: list[str] = []
    original = layer_module.run_native

    def record(operands, options):
        seen.append(options.activation)
        return original(operands, options)

    monkeypatch.setattr(layer_module, "run_native", record)
    with gf.backend("native"):
        yield seen


def results_of(model, x, **options):
    """The result and all gradients."""
    x = x.clone().requires_grad_()
    output = model(x, **options)
    return [output, *torch.autograd.grad(output.square().sum(), [x, *model.parameters()])]


def check_equal(ours, plain, x, **options):
    torch.testing.assert_close(
        results_of(ours, x, **options), results_of(plain, x, **options), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("module_info", modules_named("Conv2d", "ConvTranspose2d"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_pytorchs_own_samples(module_info, dtype):
    samples = module_info.module_inputs_func(module_info, "cpu", dtype, True, True)
    assert samples
    for sample in samples:
        build, call = sample.constructor_input, sample.forward_input
        theirs = module_info.module_cls(*build.args, **build.kwargs).to(dtype)
        ours = gf.fuse(copy.deepcopy(theirs))
        with gf.backend("native"):
            check_equal(ours, theirs, call.args[0].detach())


def test_the_number_of_channels_at_the_image_decides():
    for layer, plain in (
        (nn.Conv2d(4, 8, 3), False), (nn.Conv2d(5, 8, 3), True), (nn.Conv2d(64, 3, 3), False),
        (nn.Conv2d(64, 5, 3), True), (nn.Conv2d(64, 3, 3, 2), True), (nn.Conv2d(64, 3, 1), True),
        (nn.ConvTranspose2d(8, 4, 3), False), (nn.ConvTranspose2d(8, 5, 3), True),
    ):  # fmt: skip
        assert (type(layer) in PLAIN and any(type(layer) is cls for cls in PLAIN)) == plain
        assert type(gf.fuse(gf.unfuse(copy.deepcopy(layer)))) is type(layer)
        assert repr(layer) == repr(gf.unfuse(copy.deepcopy(layer)))


LAYERS = {
    "from": (lambda nn: nn.Conv2d(3, 16, 4, 2, 1), (2, 3, 12, 16)),
    "from, no bias": (lambda nn: nn.Conv2d(1, 8, 3, bias=False), (2, 1, 9, 8)),
    "to": (lambda nn: nn.ConvTranspose2d(16, 3, 4, 2, 1), (2, 16, 6, 8)),
    "to, padded": (lambda nn: nn.ConvTranspose2d(8, 1, 3, 2, 1, 1), (2, 8, 5, 4)),
    "to, not transposed": (lambda nn: nn.Conv2d(16, 3, 3, padding=1), (2, 16, 9, 8)),
    "to, not transposed, smaller": (lambda nn: nn.Conv2d(8, 1, (4, 2), padding=(1, 0), bias=False), (2, 8, 7, 6)),
    "to, mirrored": (lambda nn: nn.Conv2d(8, 2, 5, padding=2, padding_mode="reflect"), (2, 8, 7, 6)),
    "to, repeated": (lambda nn: nn.Conv2d(8, 4, 3, padding=(1, 2), padding_mode="circular"), (2, 8, 7, 6)),
}
BEHIND = {
    "identity": torch.nn.Identity(), "relu": torch.nn.ReLU(True), "leaky_relu": torch.nn.LeakyReLU(0.2, True),
    "silu": torch.nn.SiLU(), "tanh": torch.nn.Tanh(), "sigmoid": torch.nn.Sigmoid(),
}  # fmt: skip


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("behind", BEHIND)
@pytest.mark.parametrize("fused", [False, True], ids=["gf.nn", "gf.fuse"])
def test_sequential_runs_the_activation_with_it(name, behind, fused, activations):
    make, shape = LAYERS[name]
    plain = torch.nn.Sequential(make(torch.nn), BEHIND[behind])
    ours = gf.fuse(copy.deepcopy(plain)) if fused else nn.Sequential(make(nn), BEHIND[behind])
    ours.load_state_dict(plain.state_dict())
    check_equal(ours, plain, torch.randn(shape))
    assert activations == [behind]


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_of_gradients(name, activations):
    make, shape = LAYERS[name]
    plain = make(torch.nn)
    ours = gf.fuse(copy.deepcopy(plain))
    x = torch.randn(shape).requires_grad_()
    found = []
    for layer in (ours, plain):
        gradients = torch.autograd.grad(layer(x).tanh().sum(), [x, layer.weight], create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in gradients), [x, layer.weight]))
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)
    assert activations == ["identity"]


@pytest.mark.parametrize("observed", [0, 1])
def test_layers_with_hooks_run_one_by_one(observed, activations):
    plain = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 4, 2, 1), torch.nn.LeakyReLU(0.2))
    ours = gf.fuse(copy.deepcopy(plain))
    seen = []
    for model in (plain, ours):
        model[observed].register_forward_hook(lambda layer, inputs, output: seen.append(output.clone()))
    x = torch.randn(2, 3, 8, 8)
    check_equal(ours, plain, x)
    torch.testing.assert_close(*seen)
    assert activations == ["identity"]


TORCHS = {
    "padding same": (lambda nn: nn.Conv2d(3, 8, 3, padding="same"), (2, 3, 8, 8), {}),
    "reflected": (lambda nn: nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"), (2, 3, 8, 8), {}),
    "dilated": (lambda nn: nn.Conv2d(3, 8, 3, dilation=2), (2, 3, 8, 8), {}),
    "grouped": (lambda nn: nn.Conv2d(4, 8, 3, groups=2), (2, 4, 8, 8), {}),
    "no batch": (lambda nn: nn.Conv2d(3, 8, 3), (3, 8, 8), {}),
    "batch of none": (lambda nn: nn.Conv2d(3, 8, 3), (0, 3, 8, 8), {}),
    "stride of one number": (lambda nn: nn.Conv2d(3, 8, 3, stride=(2,)), (2, 3, 8, 8), {}),
    "to, padded by the kernel": (lambda nn: nn.Conv2d(8, 3, 2, padding=2), (2, 8, 5, 5), {}),
    "to, mirrored, strided": (
        lambda nn: nn.Conv2d(8, 3, 3, 2, padding=1, padding_mode="reflect"),
        (2, 8, 8, 8),
        {},
    ),
    "to, mirrored, no batch": (lambda nn: nn.Conv2d(8, 3, 3, padding=1, padding_mode="reflect"), (8, 8, 8), {}),
    "transposed, dilated": (lambda nn: nn.ConvTranspose2d(8, 3, 3, dilation=2), (2, 8, 5, 5), {}),
    "transposed, grouped": (lambda nn: nn.ConvTranspose2d(8, 4, 3, groups=2), (2, 8, 5, 5), {}),
    "size given": (lambda nn: nn.ConvTranspose2d(8, 3, 3, 2), (2, 8, 5, 5), {"output_size": [12, 11]}),
}


@pytest.mark.parametrize("case", TORCHS)
def test_the_rest_is_torchs(case, activations):
    make, shape, options = TORCHS[case]
    ours, plain = make(nn), make(torch.nn)
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(shape)
    torch.testing.assert_close(results_of(ours, x, **options), results_of(plain, x, **options), rtol=0, atol=0)
    assert activations == []


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (LAYERS["from"][0], lambda: torch.randn(2, 4, 8, 8)),
        (LAYERS["from"][0], lambda: torch.randn(8, 8)),
        (LAYERS["from"][0], lambda: torch.randn(2, 3, 1, 8)),
        (LAYERS["from"][0], lambda: torch.randn(2, 3, 8, 8).double()),
        (LAYERS["from"][0], lambda: None),
        (LAYERS["from"][0], lambda: [1.0]),
        (LAYERS["to, not transposed"][0], lambda: torch.randn(2, 15, 8, 8)),
        (LAYERS["to, not transposed"][0], lambda: torch.randn(2, 16, 8, 8).double()),
        (LAYERS["to, not transposed, smaller"][0], lambda: torch.randn(2, 8, 1, 1)),
        (LAYERS["to, mirrored"][0], lambda: torch.randn(2, 8, 2, 2)),
        (LAYERS["to, mirrored"][0], lambda: torch.randn(2, 7, 8, 8)),
        (LAYERS["to, mirrored"][0], lambda: None),
        (LAYERS["to"][0], lambda: torch.randn(2, 15, 8, 8)),
        (LAYERS["to"][0], lambda: torch.randn(2, 16, 8, 8).long()),
    ],
)
@pytest.mark.parametrize("container", [lambda x: x, lambda x: gf.nn.Sequential(x, torch.nn.Tanh())])
def test_errors_are_torchs(make, wrong, container, activations):
    with pytest.raises((RuntimeError, TypeError)) as theirs:
        make(torch.nn)(wrong())
    with pytest.raises(type(theirs.value)) as ours:
        container(make(nn))(wrong())
    assert str(ours.value) == str(theirs.value)
    assert activations == []


def test_numbers_that_change_after_the_layer_was_made(activations):
    ours, plain = nn.Conv2d(3, 8, 3), torch.nn.Conv2d(3, 8, 3)
    ours.load_state_dict(plain.state_dict())
    for layer in (ours, plain):
        layer.dilation = (2, 2)
    check_equal(ours, plain, torch.randn(2, 3, 9, 9))
    for layer in (ours, plain):
        layer.dilation, layer.stride = (1, 1), (2, 2)
    check_equal(ours, plain, torch.randn(2, 3, 9, 9))
    assert activations == ["identity"]


def test_another_way_to_convolve_is_kept(activations):
    class Standardised(nn.Conv2d):
        def _conv_forward(self, input, weight, bias):
            return super()._conv_forward(input, weight - weight.mean(), bias)

    layer = Standardised(3, 8, 3)
    x = torch.randn(2, 3, 8, 8)
    expected = torch.nn.functional.conv2d(x, layer.weight - layer.weight.mean(), layer.bias)
    torch.testing.assert_close(layer(x), expected)
    layer = nn.Conv2d(3, 8, 3)
    layer._conv_forward = lambda input, weight, bias: input
    assert layer(x) is x
    assert activations == []


@pytest.mark.parametrize("name", ["from", "to, not transposed", "to, mirrored"])
def test_parametrised_layers(name, activations):
    make, shape = LAYERS[name]
    plain = torch.nn.Sequential(make(torch.nn), torch.nn.LeakyReLU(0.2))
    ours = gf.fuse(copy.deepcopy(plain))
    for model in (plain, ours):
        torch.manual_seed(0)
        spectral_norm(model[0])
    check_equal(ours, plain, torch.randn(shape))
    assert activations == ["leaky_relu"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
def test_models_have_it_at_both_ends(dtype, memory_format, activations):
    model = gf.models.DCGAN(z_dim=16, c_dim=3, channels=8, n_blocks=3)
    plain = gf.unfuse(copy.deepcopy(model))
    z = torch.randn(4, 16).to(dtype)
    results = []
    for networks in (model, plain):
        networks.to(dtype, memory_format=memory_format)
        images = networks.generator(z)
        loss = networks.discriminator(images).float().square().sum()
        gradients = torch.autograd.grad(loss, list(networks.parameters()))
        results.append([images, *gradients])
        if networks is model:
            assert activations == ["tanh", "leaky_relu"]
    assert len(activations) == 2
    tolerance = 1e-3 if dtype == torch.float32 else 0.2
    torch.testing.assert_close(results[0][0], results[1][0], rtol=tolerance, atol=tolerance)
    for ours, theirs in zip(*results, strict=True):
        error = (ours.float() - theirs.float()).norm() / theirs.float().norm()
        assert error < tolerance


def test_compiles_as_one_graph(activations):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.ConvTranspose2d(8, 3, 4, 2, 1), nn.Tanh()
    )
    x = torch.randn(2, 3, 8, 8)
    expected = results_of(model, x)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = x.clone().requires_grad_()
    output = compiled(x)
    found = [output, *torch.autograd.grad(output.square().sum(), [x, *model.parameters()])]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(32, 1, 4), (3, 32, 4, 4)),
        (nn.ConvTranspose2d(16, 32, 4), (3, 16, 1, 1)),
        (nn.Conv2d(128, 64, 4, 2, 1), (1, 128, 2, 2)),
        (nn.ConvTranspose2d(128, 64, 4, 2, 1), (1, 128, 1, 1)),
    ],
    ids=str,
)
def test_layers_of_few_pixels_are_products(layer, shape, monkeypatch):
    products = []
    run = product_conv.product_conv
    monkeypatch.setattr(
        product_conv, "product_conv", lambda *a, **o: products.append(run(*a, **o)) or products[-1]
    )
    plain = copy.deepcopy(gf.unfuse(copy.deepcopy(layer)))
    assert type(plain) in PLAIN
    x = torch.randn(shape)
    for ours, theirs in ((layer, plain), (nn.Sequential(layer, nn.ReLU()), torch.nn.Sequential(plain, nn.ReLU()))):
        check_equal(ours, theirs, x)
        assert products.pop() is not None
        with gf.backend("reference"):
            check_equal(ours, theirs, x)
        assert products.pop() is None
    if isinstance(layer, torch.nn.ConvTranspose2d):
        check_equal(layer, plain, x, output_size=plain(x).shape[2:])
        assert not products


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_channels_in_blocks_run_with_fewer_products(layout, monkeypatch):
    run, ran = winograd_conv.run_layer, []

    def record(*arguments, **options):
        output = run(*arguments, **options)
        ran.append(output is not None)
        return output

    monkeypatch.setattr(winograd_conv, "run_layer", record)
    for build, expected in (
        (lambda nn: nn.Conv2d(32, 64, 4, 2, 1), True),
        (lambda nn: nn.Conv2d(32, 32, 3, 1, 1, bias=False), True),
        (lambda nn: nn.ConvTranspose2d(32, 32, 4, 2, 1), True),
        (lambda nn: nn.ConvTranspose2d(32, 64, 3, 1, 1), True),
        (lambda nn: nn.Conv2d(32, 32, 4, 2, 0), False),
        (lambda nn: nn.Conv2d(32, 32, 3, 1, 0), False),
        (lambda nn: nn.ConvTranspose2d(32, 32, 4, 2, 1, 1), False),
    ):
        ran.clear()
        ours, plain = build(nn).to(memory_format=layout), build(torch.nn).to(memory_format=layout)
        plain.load_state_dict(ours.state_dict())
        x = torch.randn(3, 32, 8, 12).contiguous(memory_format=layout)
        check_equal(ours, plain, x)
        assert ours(x).stride() == plain(x).stride()
        assert ran == [expected] * 2
    for plain in (
        nn.Conv2d(32, 32, 4, 1, 1), nn.Conv2d(32, 32, 5, 1, 1), nn.Conv2d(64, 64, 3, groups=2),
        nn.Conv2d(32, 48, 3), nn.ConvTranspose2d(32, 32, 3, 2, 1),
    ):  # fmt: skip
        assert type(plain) in (torch.nn.Conv2d, torch.nn.ConvTranspose2d)
    ran.clear()
    for layer in (nn.Conv2d(32, 32, 3, padding="same"), nn.Conv2d(32, 32, 3, padding=1, padding_mode="reflect")):
        check_equal(layer, gf.unfuse(copy.deepcopy(layer)), torch.randn(2, 32, 8, 8))
    assert not ran


# One that runs by each way to convolve on a CPU, and an input.
EVERY_WAY = {
    "image": (lambda: nn.Conv2d(3, 16, 4, 2, 1), (2, 3, 16, 16)),
    "to image": (lambda: nn.ConvTranspose2d(16, 3, 4, 2, 1), (2, 16, 8, 8)),
    "to image, turned": (lambda: nn.Conv2d(16, 3, 3, 1, 1), (2, 16, 8, 8)),
    "to image, turned, mirrored": (lambda: nn.Conv2d(16, 3, 3, 1, 1, padding_mode="reflect"), (2, 16, 8, 8)),
    "winograd": (lambda: nn.Conv2d(64, 64, 3, 1, 1), (2, 64, 16, 16)),
    "winograd, stride 2": (lambda: nn.Conv2d(64, 64, 4, 2, 1), (2, 64, 16, 16)),
    "winograd, transposed": (lambda: nn.ConvTranspose2d(64, 64, 4, 2, 1), (2, 64, 8, 8)),
    "torch, of a layer for winograd": (lambda: nn.Conv2d(64, 64, 3, 1, 1), (2, 64, 15, 15)),
    "products": (lambda: nn.Conv2d(256, 256, 4, 2, 1), (2, 256, 4, 4)),
    "whole": (lambda: nn.Conv2d(64, 33, 4, 1, 0), (2, 64, 4, 4)),
    "whole, transposed": (lambda: nn.ConvTranspose2d(33, 64, 4, 1, 0), (2, 33, 1, 1)),
}
LOOKS = {
    "NCHW": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "gaps": lambda x: torch.cat([x, x], 3)[..., : x.shape[3]],
    "transposed": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "expanded": lambda x: x[:1].expand_as(x),
}


@pytest.mark.parametrize("weights", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("way", EVERY_WAY)
def test_results_and_gradients_have_torchs_strides(way, look, weights):
    make, shape = EVERY_WAY[way]
    layer = make().to(memory_format=weights)
    x = LOOKS[look](torch.randn(shape)).requires_grad_()
    found = []
    for model in (layer, gf.unfuse(copy.deepcopy(layer))):
        output = model(x)
        found.append([output, *torch.autograd.grad(output.square().sum(), [x, model.weight], create_graph=True)])
        if "winograd" in way:
            found[-1] += torch.autograd.grad(found[-1][2].sum(), x)
    for ours, theirs in zip(*found, strict=True):
        # What is contiguous where torch's is not is no trouble: it can be viewed.
        assert ours.stride() == theirs.stride() or (ours is found[0][2] and ours.is_contiguous())


class Counting(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, weight):
        self.calls += 1
        return weight * 1


@pytest.mark.parametrize("wrap", [lambda layer: layer, lambda layer: nn.Sequential(layer, nn.LeakyReLU(0.2))])
@pytest.mark.parametrize("way", EVERY_WAY)
def test_a_weight_that_is_computed_is_computed_once(way, wrap):
    make, shape = EVERY_WAY[way]
    layer, counting = make(), Counting()
    torch.nn.utils.parametrize.register_parametrization(layer, "weight", counting)
    counting.calls = 0
    wrap(layer)(torch.randn(shape))
    assert counting.calls == 1


def test_winograd_can_be_turned_off(monkeypatch):
    monkeypatch.setattr(winograd_conv, "_IN_LAYERS", False)
    assert type(nn.Conv2d(32, 32, 3, 1, 1)) is torch.nn.Conv2d
    assert type(nn.Conv2d(3, 32, 3, 1, 1)) is not torch.nn.Conv2d
