import copy
import inspect
import pickle

import pytest
import torch
from accuracy import FORWARD, GRADIENT, assert_as_accurate_as_torch
from torch.ao.quantization import MinMaxObserver, fuse_modules, get_default_qconfig
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval
from torch.utils.mkldnn import to_mkldnn
from torch_samples import modules_named

import genimg_fast as gf
from genimg_fast import nn

SHAPES = {1: [(6, 5), (4, 5, 9)], 2: [(4, 5, 6, 7)], 3: [(2, 5, 3, 4, 5)]}
LAYERS = [(d, shape) for d, shapes in SHAPES.items() for shape in shapes]


@pytest.fixture(autouse=True)
def _native_backend():
    with gf.backend("native"):
        yield


def torch_layer(dimensions: int, *args, **kwargs) -> torch.nn.Module:
    return getattr(torch.nn, f"BatchNorm{dimensions}d")(*args, **kwargs)


def layer(dimensions: int, *args, **kwargs) -> torch.nn.Module:
    return getattr(nn, f"BatchNormAct{dimensions}d")(*args, **kwargs)


@pytest.mark.parametrize(("dimensions", "shape"), LAYERS, ids=str)
@pytest.mark.parametrize(
    "options",
    [{}, {"affine": False}, {"track_running_stats": False}, {"momentum": None}, {"eps": 0.1, "momentum": 0.7}],
    ids=str,
)
@pytest.mark.parametrize("activation", [torch.nn.LeakyReLU(0.2), torch.nn.SiLU()], ids=str)
def test_same_as_torch_followed_by_the_activation(dimensions, shape, options, activation):
    name = "silu" if isinstance(activation, torch.nn.SiLU) else "leaky_relu"
    ours = layer(dimensions, 5, **options, activation=name, negative_slope=0.2)
    theirs = torch_layer(dimensions, 5, **options)
    for step in range(4):
        if step == 3:
            ours.eval()
            theirs.eval()
        x = torch.randn(shape)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        output, expected = ours(a), activation(theirs(b))
        output.square().sum().backward()
        expected.square().sum().backward()
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("batch", [3, 200], ids=["small", "large"])
@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_layers_in_16_bits_are_as_accurate_as_torchs(dtype, momentum, batch, layout):
    layers = {name: kind(5, momentum=momentum).to(dtype) for name, kind in (
        ("ours", nn.BatchNorm2d), ("torchs", torch.nn.BatchNorm2d), ("exact", torch.nn.BatchNorm2d),
    )}  # fmt: skip
    layers["exact"].double()
    found: dict[str, dict[str, torch.Tensor]] = {}
    for step in range(4):
        x, gradient = (torch.randn(batch, 5, 8, 8).to(dtype, memory_format=layout) for _ in range(2))
        for name, layer in layers.items():
            layer.train(step < 3)
            layer.zero_grad()
            leaf = x.detach().to(layer.weight.dtype).requires_grad_()
            with gf.backend("auto"):
                output = layer(leaf)
            output.backward(gradient.to(output.dtype))
            parameters = {f"{n}.grad": p.grad for n, p in layer.named_parameters()}
            found[name] = {"output": output, "input.grad": leaf.grad, **parameters, **dict(layer.named_buffers())}
            del found[name]["num_batches_tracked"]
        for key, exact in found["exact"].items():
            times = GRADIENT if "grad" in key else FORWARD
            ours, torchs = found["ours"][key], found["torchs"][key]
            assert_as_accurate_as_torch(ours, torchs, exact, times=times, name=key)


@pytest.mark.parametrize("batch", [2, 300], ids=["small", "large"])
def test_a_cumulative_variance_beyond_float16_leaves_its_average(batch):
    ours, theirs = (kind(3, momentum=None).half() for kind in (nn.BatchNorm1d, torch.nn.BatchNorm1d))
    for scale in (1, 1, 1, 1, 300):  # the last variance is 90,000, the average of all five 18,000
        x = (torch.randn(batch, 3, 70) * scale).half()
        with gf.backend("auto"):
            ours(x)
        theirs(x)
    assert ours.running_var.isfinite().all()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("batch", [2, 300], ids=["small", "large"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_backward_of_an_evaluation_after_a_training_step(momentum, batch):
    x, gradients = torch.randn(batch, 3, 70), []
    for kind in (nn.BatchNorm1d, torch.nn.BatchNorm1d):
        layer, leaf = kind(3, momentum=momentum), x.clone().requires_grad_()
        with gf.backend("auto"):
            evaluated = layer.eval()(leaf)
            layer.train()(x * 3)
        evaluated.sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("backend", ["eager", "compiled"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_empty_batch_counts_and_leaves_statistics(momentum, backend):
    states = []
    for kind in (nn.BatchNorm2d, torch.nn.BatchNorm2d):
        layer = kind(3, momentum=momentum)
        layer(torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)))
        # Compiled, the number of batches is no Python number, as on a GPU.
        call = torch.compile(layer, backend="eager") if backend == "compiled" else layer
        call(torch.randn(0, 3, 5, 5))
        states.append(layer.state_dict())
    torch.testing.assert_close(*states)
    assert states[0]["num_batches_tracked"] == 2


@pytest.mark.parametrize("dimensions", SHAPES)
def test_state_dict_both_ways(dimensions):
    ours, theirs = layer(dimensions, 5), torch_layer(dimensions, 5)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs(torch.randn(SHAPES[dimensions][0]))
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("dimensions", SHAPES)
def test_constructor_has_torchs_arguments_in_torchs_order(dimensions):
    ours = inspect.signature(type(layer(dimensions, 1))).parameters.values()
    theirs = inspect.signature(torch.nn.modules.batchnorm._BatchNorm).parameters.values()
    positional = [p.name for p in theirs if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert [p.name for p in ours if p.kind is p.POSITIONAL_OR_KEYWORD] == positional
    assert {p.name for p in ours if p.kind is p.KEYWORD_ONLY} == {"activation", "negative_slope"}
    if "bias" in inspect.signature(torch.nn.BatchNorm2d).parameters:
        assert layer(dimensions, 3, bias=False).bias is None


def test_what_people_do_with_a_layer():
    ours = nn.BatchNormAct2d(8, activation="leaky_relu", negative_slope=0.2)
    assert isinstance(ours, torch.nn.BatchNorm2d)
    assert "negative_slope=0.2" in repr(ours)
    assert "leaky_relu" in repr(ours)
    assert "8, eps=1e-05" in repr(ours)
    x = torch.randn(4, 8, 5, 5)
    expected = copy.deepcopy(ours)(x)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(twin(x), expected)
    residual = torch.randn_like(x)
    for name, activate in (("relu", torch.relu), ("silu", torch.nn.functional.silu)):
        with_residual = nn.BatchNormAct2d(8, activation=name)(x, residual)
        torch.testing.assert_close(with_residual, activate(torch.nn.BatchNorm2d(8)(x) + residual))


def test_errors():
    with pytest.raises(ValueError, match="expected 4D input"):
        nn.BatchNormAct2d(8)(torch.randn(4, 8))
    with pytest.raises(ValueError, match=r"'swish'.*relu, silu"):
        nn.BatchNormAct2d(8, activation="swish")
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        nn.BatchNormAct1d(8)(torch.randn(1, 8))


def quantized(convolution, layer):
    layer.qconfig, layer.activation_post_process = get_default_qconfig(), MinMaxObserver()
    return torch.ao.nn.quantized.BatchNorm2d.from_float(layer)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    "tool",
    [
        fuse_conv_bn_eval,
        lambda convolution, layer: fuse_linear_bn_eval(torch.nn.Linear(3, 8).eval(), layer),
        lambda convolution, layer: to_mkldnn(layer),
        lambda convolution, layer: fuse_modules(torch.nn.Sequential(convolution, layer), [["0", "1"]]),
        quantized,
    ],
    ids=["fuse_conv_bn_eval", "fuse_linear_bn_eval", "to_mkldnn", "fuse_modules", "from_float"],
)
def test_tools_that_replace_batch_norm_do_not_silently_drop_the_activation(tool):
    convolution = torch.nn.Conv2d(3, 8, 3).eval()
    layer = nn.BatchNormAct2d(8).eval()
    with pytest.raises((RuntimeError, AssertionError), match=r"would drop the activation of|did not find fuser"):
        tool(convolution, layer)
    layer.running_var += 1
    assert torch.equal(layer.running_var, torch.full((8,), 2.0))
    read = torch.compile(lambda x: layer(x) + layer.running_var.sum(), backend="eager", fullgraph=True)
    x = torch.randn(2, 8, 3, 3)
    torch.testing.assert_close(read(x), layer(x) + 16)
    layer.running_mean = layer.running_var = None
    assert layer.running_var is None


def test_a_layer_without_activation_folds():
    convolution, layer = torch.nn.Conv2d(3, 8, 3).eval(), nn.BatchNormAct2d(8, activation="identity").eval()
    layer.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(fuse_conv_bn_eval(convolution, layer)(x), layer(convolution(x)))


def test_sync_conversion_does_not_silently_drop_the_activation():
    convert = torch.nn.SyncBatchNorm.convert_sync_batchnorm
    with pytest.raises(RuntimeError, match="would drop the activation of BatchNormAct2d"):
        convert(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), nn.BatchNormAct2d(8)))
    converted = convert(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNormAct2d(8, activation="identity")))
    assert [type(m).__name__ for m in converted] == ["SyncBatchNorm", "ReLU", "SyncBatchNorm"]
    layer = nn.BatchNormAct2d(8)
    assert not hasattr(layer, "qconfig")
    layer.qconfig = None  # quantisation tools assign it
    assert layer.qconfig is None


@pytest.mark.parametrize("momentum", [0.1, None])
def test_compiles_as_one_graph(momentum):
    ours = nn.BatchNormAct2d(8, momentum=momentum)
    torch._dynamo.reset()
    twin = copy.deepcopy(ours)
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    for training in (True, True, False):
        ours.train(training)
        twin.train(training)
        x = torch.randn(4, 8, 5, 5)
        torch.testing.assert_close(compiled(x), ours(x))
        torch.testing.assert_close(twin.state_dict(), ours.state_dict())


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("module_info", modules_named("BatchNorm1d", "BatchNorm2d", "BatchNorm3d"))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_pytorchs_own_samples(module_info, dtype, training):
    fused = getattr(nn, module_info.module_cls.__name__)
    fused_with_activation = getattr(nn, module_info.module_cls.__name__.replace("Norm", "NormAct"))
    samples = module_info.module_inputs_func(module_info, "cpu", dtype, requires_grad=True, training=training)
    assert samples
    for sample in samples:
        build, call = sample.constructor_input, sample.forward_input
        theirs = module_info.module_cls(*build.args, **build.kwargs).to(dtype).train(training)
        expected = theirs(*call.args, **call.kwargs)
        for ours, activate in (
            (fused(*build.args, **build.kwargs), lambda t: t),
            (fused_with_activation(*build.args, **build.kwargs, activation="relu"), torch.relu),
        ):
            ours.to(dtype).train(training)
            torch.testing.assert_close(ours(*call.args, **call.kwargs), activate(expected))
            torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_fuse_and_unfuse_in_place():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.Sequential(torch.nn.BatchNorm2d(8)),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    keys, parameters, x = list(model.state_dict()), list(model.parameters()), torch.randn(4, 3, 9, 9)
    plain = copy.deepcopy(model)
    assert gf.fuse(model) is model
    assert isinstance(model, nn.Sequential)
    assert isinstance(model[3][0], nn.BatchNorm2d)
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    torch.testing.assert_close(model(x), plain(x))
    model(x).sum().backward()
    optimizer.step()
    gf.unfuse(model)
    assert type(model) is torch.nn.Sequential
    assert type(model[1]) is torch.nn.BatchNorm2d
