import copy
import functools
import io
import itertools
import pickle

import pytest
import torch
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch_samples import modules_named

import genimg_fast as gf
from genimg_fast import nn
from genimg_fast.nn import recurrent as layer_module
from genimg_fast.ops.recurrent import dispatch

LAYERS = ["RNN", "GRU", "LSTM"]
CELLS = ["RNNCell", "GRUCell", "LSTMCell"]
KINDS = ["padded", "unbatched", "packed", "packed unsorted"]
BACKENDS = ["auto", "native", "reference"]


@pytest.fixture
def fused(monkeypatch):
    """Counts calls of the fused operator, with backend "native"."""
    calls: list[int] = []
    original = layer_module.run_native

    def count(*arguments):
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(layer_module, "run_native", count)
    with gf.backend("native"):
        yield calls


def pair(name, *arguments, dtype=None, **options):
    """A layer of ours and one of torch's with the same parameters."""
    ours = getattr(nn, name)(*arguments, **options).to(dtype)
    theirs = getattr(torch.nn, name)(*arguments, **options).to(dtype)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def make_input(kind, batch_first=False, dtype=torch.float32):
    """Seven steps of four sequences with three values."""
    if kind == "unbatched":
        return torch.randn(7, 3, dtype=dtype)
    x = torch.randn((4, 7, 3) if batch_first else (7, 4, 3), dtype=dtype)
    if kind == "padded":
        return x
    lengths = {"packed": [7, 5, 5, 2], "packed unsorted": [2, 7, 5, 6], "packed, equal lengths": [7] * 4}[kind]
    return pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=kind != "packed unsorted")


def make_state(layer, kind, dtype=torch.float32):
    layers = layer.num_layers * (2 if layer.bidirectional else 1)
    sizes = [layer.proj_size or layer.hidden_size, layer.hidden_size][: 2 if layer.mode == "LSTM" else 1]
    states = [torch.randn(layers, *([] if kind == "unbatched" else [4]), n, dtype=dtype) for n in sizes]
    return tuple(states) if len(states) == 2 else states[0]


def tensors_of(structure):
    """All tensors in a result, in order."""
    if isinstance(structure, torch.Tensor):
        return [structure]
    if isinstance(structure, PackedSequence):
        return [structure.data, structure.batch_sizes]
    return [t for part in structure for t in tensors_of(part)]


def results(layer, input, hx=None):
    """Everything that a call and its backward give."""
    hx = None if hx is None else copy.deepcopy(hx)
    leaf = (input.data if isinstance(input, PackedSequence) else input).clone().requires_grad_()
    leaves = [leaf, *(t.requires_grad_() for t in ([] if hx is None else tensors_of(hx)))]
    input = PackedSequence(leaf, *input[1:]) if isinstance(input, PackedSequence) else leaf
    torch.manual_seed(5)
    outputs = tensors_of(layer(input, hx))
    loss = sum((k * o.float()).square().sum() for k, o in enumerate(outputs, 1) if o.is_floating_point())
    return outputs, torch.autograd.grad(loss, [*leaves, *layer.parameters()])


def assert_same(ours, theirs, **tolerance):
    for mine, torchs in zip(ours, theirs, strict=True):
        for a, b in zip(mine, torchs, strict=True):
            torch.testing.assert_close(a, b, check_stride=True, **tolerance)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one way", "both ways"])
def test_same_as_torch(name, kind, layers, bidirectional, fused):
    for batch_first, bias, given in itertools.product([False, True], repeat=3):
        options = {"bidirectional": bidirectional, "batch_first": batch_first, "bias": bias}
        ours, theirs = pair(name, 3, 5, layers, dtype=torch.float64, **options)
        x = make_input(kind, batch_first, torch.float64)
        hx = make_state(ours, kind, torch.float64) if given else None
        assert_same(results(ours, x, hx), results(theirs, x, hx))
    assert len(fused) == 8


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_dtypes(name, dtype, kind, fused):
    ours, theirs = pair(name, 3, 16, 2, dtype=dtype, bidirectional=True)
    # Of 16-bit gradients torch, too, is right to a few per cent only; accuracy is measured on the operators.
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.3}
    x = make_input(kind, dtype=dtype)
    assert_same(results(ours, x), results(theirs, x), **tolerance)
    assert len(fused) == 1


def test_auto_leaves_to_torch_what_torch_is_faster_at(fused):
    for name, shape, ours in (("GRU", (1, 3, 3), False), ("GRU", (4, 2, 3), True), ("LSTM", (1, 3, 3), True)):
        layer, theirs = pair(name, 3, 256)
        with gf.backend("auto"):
            torch.testing.assert_close(layer(torch.ones(shape)), theirs(torch.ones(shape)))
        assert len(fused) == ours
        fused.clear()
    assert "fewer than 8 rows" in str(gf.info())


def test_auto_leaves_to_cudnn_what_no_block_holds(monkeypatch):
    asked = []

    def fits(device, dtype, cell, hidden):
        asked.append((device, dtype, cell, hidden))
        return dtype != torch.float32 or hidden <= 115

    def ours(dtype, hidden):
        call = layer_module.LayerCall(layer_module.LSTM_CELL, 10, 16, 32, hidden, dtype, 1)
        return not layer_module.KERNELS.is_slower("cuda", call)

    monkeypatch.setattr(dispatch, "_fits_in_a_block", fits)
    with gf.backend("auto"):
        assert [ours(torch.bfloat16, hidden) for hidden in (128, 129)] == [True, False]
        assert [ours(torch.float32, hidden) for hidden in (115, 116)] == [True, False]
        assert asked[-1] == (1, torch.float32, layer_module.LSTM_CELL, 116)
        with torch.backends.cudnn.flags(enabled=False):
            assert ours(torch.float32, 129)
    with gf.backend("native"):
        assert ours(torch.float32, 129)


def test_layers_are_chosen_by_the_dtype_of_their_arithmetic(monkeypatch):
    calls, is_slower = [], layer_module.KERNELS.is_slower
    monkeypatch.setattr(layer_module.KERNELS, "is_slower", lambda *a: calls.append(a[1]) or is_slower(*a))
    with torch.autocast("cpu", torch.bfloat16):
        gf.nn.LSTM(3, 5)(torch.ones(2, 1, 3))
    assert [(call.dtype, call.device) for call in calls] == [(torch.bfloat16, -1)]


def test_relu(fused):
    ours, theirs = pair("RNN", 3, 5, 2, nonlinearity="relu", dtype=torch.float64)
    x = make_input("padded", dtype=torch.float64)
    assert_same(results(ours, x), results(theirs, x))
    assert len(fused) == 1


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", ["padded", "packed unsorted"])
def test_dropout_between_layers_draws_torchs_masks(name, kind, fused):
    ours, theirs = pair(name, 3, 5, 3, dropout=0.4, bidirectional=True, dtype=torch.float64)
    x = make_input(kind, dtype=torch.float64)
    assert_same(results(ours, x), results(theirs, x))
    torch.manual_seed(1)
    first = tensors_of(ours(x))[0]
    assert not torch.equal(first, tensors_of(ours(x))[0])
    assert_same(results(ours.eval(), x), results(theirs.eval(), x))
    assert torch.equal(tensors_of(ours(x))[0], tensors_of(ours(x))[0])
    assert len(fused) == 3 * 3 + 3  # with masks to draw, each layer has a call of its own


def test_projections_run_on_torch(fused):
    ours, theirs = pair("LSTM", 3, 5, 2, proj_size=2, bidirectional=True, dtype=torch.float64)
    for kind in KINDS:
        x = make_input(kind, dtype=torch.float64)
        assert_same(results(ours, x), results(theirs, x))
        hx = make_state(ours, kind, torch.float64)
        assert_same(results(ours, x, hx), results(theirs, x, hx))
    assert fused == []


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["padded", "packed", "packed, equal lengths"])
@pytest.mark.parametrize("onednn", [True, False], ids=["onednn", "no onednn"])
def test_autocast_gives_torchs_dtypes(name, dtype, kind, onednn, fused):
    ours, theirs = pair(name, 3, 5, 2, bidirectional=True)
    dtypes, compared = (torch.float32, torch.bfloat16, torch.float16), []
    for own, data_dtype, state_dtype in itertools.product((torch.float32, dtype), dtypes, (None, *dtypes)):
        ours.to(own)
        theirs.to(own)
        x = make_input(kind, dtype=data_dtype)
        hx = None if state_dtype is None else make_state(ours, kind, state_dtype)
        with torch.autocast("cpu", dtype), torch.backends.mkldnn.flags(enabled=onednn):
            mine = tensors_of(ours(x, hx))
            try:
                torchs = tensors_of(theirs(x, hx))
            except RuntimeError:  # some mixtures; and its LSTM in float16 needs a processor that has it
                assert kind == "packed" or (name, dtype, onednn) == ("LSTM", torch.float16, True)
                continue
        compared.append(1)
        for a, b in zip(mine, torchs, strict=True):
            torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)
    assert fused
    assert len(compared) >= 12 or (name, dtype, onednn) == ("LSTM", torch.float16, True)


@pytest.mark.parametrize("name", LAYERS)
def test_float64_stays_float64_under_autocast(name):
    ours, theirs = pair(name, 3, 5, dtype=torch.float64)
    x = make_input("padded", dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same([tensors_of(ours(x))], [tensors_of(theirs(x))])


@pytest.mark.parametrize("name", LAYERS)
def test_state_dict_both_ways(name):
    ours, theirs = getattr(nn, name)(3, 5, 2), getattr(torch.nn, name)(3, 5, 2)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = make_input("padded")
    torch.testing.assert_close(ours(x), theirs(x))
    theirs.load_state_dict(getattr(nn, name)(3, 5, 2).state_dict())
    assert ours.all_weights[0][0].shape == theirs.all_weights[0][0].shape
    assert repr(ours) == repr(theirs)


@pytest.mark.parametrize("name", LAYERS)
def test_what_people_do_with_a_layer(name, fused):
    ours, theirs = pair(name, 3, 5, 2, bidirectional=True)
    x = make_input("padded")
    expected = theirs(x)[0]
    assert isinstance(ours, getattr(torch.nn, name))
    ours.flatten_parameters()
    file = io.BytesIO()
    torch.save(ours, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for twin in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours)), loaded):
        torch.testing.assert_close(twin(x)[0], expected)
    assert ours.double()(x.double())[0].dtype == torch.float64
    ours.float()
    replaced = {key: torch.zeros_like(p) for key, p in ours.named_parameters()}
    assert torch.equal(torch.func.functional_call(ours, replaced, (x,))[0], torch.zeros_like(expected))
    ours.weight_hh_l0 = torch.nn.Parameter(torch.zeros_like(ours.weight_hh_l0))
    theirs.weight_hh_l0 = torch.nn.Parameter(torch.zeros_like(theirs.weight_hh_l0))
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])
    assert len(fused) == 5  # those from files are torch's
    x = x.double()
    ours, theirs = (torch.nn.utils.spectral_norm(m, "weight_hh_l0") for m in pair(name, 3, 5, dtype=x.dtype))
    ours.load_state_dict(theirs.state_dict())
    assert_same(results(ours.eval(), x), results(theirs.eval(), x))


@pytest.mark.parametrize("name", LAYERS)
def test_training_steps_equal_torchs(name):
    ours, theirs = pair(name, 3, 8, 2, dtype=torch.float64)
    x = make_input("padded", dtype=torch.float64)
    for layer in (ours, theirs):
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
        for _ in range(4):
            optimizer.zero_grad()
            layer(x)[0].square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


@pytest.mark.parametrize("name", LAYERS)
def test_gradient_penalty(name, fused):
    ours, theirs = pair(name, 3, 5, 3, bidirectional=True, dtype=torch.float64)
    gradients = []
    for layer in (ours, theirs):
        torch.manual_seed(0)
        x = make_input("padded", dtype=torch.float64).requires_grad_()
        (slope,) = torch.autograd.grad(layer(x)[0].square().sum(), x, create_graph=True)
        (slope.transpose(0, 1).flatten(1).norm(dim=1) - 1).square().mean().backward()
        gradients.append([p.grad for p in layer.parameters()])
    torch.testing.assert_close(*gradients)
    assert len(fused) == 1


def batched(output, x, parameters):
    directions = torch.randn(3, *output.shape, dtype=output.dtype)
    return torch.autograd.grad(output, [x, *parameters], directions, is_grads_batched=True)


def batched_and_differentiated(output, x, parameters):
    directions = torch.randn(3, *output.shape, dtype=output.dtype)
    slopes = torch.autograd.grad(output, x, directions, is_grads_batched=True, create_graph=True)
    return torch.autograd.grad(slopes[0].square().sum(), [x, *parameters])


def batched_second_order(output, x, parameters):
    (slope,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    directions = torch.randn(3, *slope.shape, dtype=slope.dtype)
    return torch.autograd.grad(slope, [x, *parameters], directions, is_grads_batched=True)


def mapped(output, x, parameters):
    def gradient(direction):
        return torch.autograd.grad(output, [x, *parameters], direction, retain_graph=True)

    return torch.func.vmap(gradient)(torch.randn(3, *output.shape, dtype=output.dtype))


def forward_over_backward(output, x, parameters):
    with forward_ad.dual_level():
        direction = forward_ad.make_dual(torch.randn_like(output), torch.randn_like(output))
        slopes = torch.autograd.grad(output, [x, *parameters], direction)
        return [forward_ad.unpack_dual(slope).tangent for slope in slopes]


def gradient_over_backward(output, x, parameters):
    def loss(direction):
        slopes = torch.autograd.grad(output, [x, *parameters], direction, create_graph=True)
        return sum(slope.square().sum() for slope in slopes)

    return [torch.func.grad(loss)(torch.randn_like(output))]


TRANSFORMS = [
    batched,
    batched_and_differentiated,
    batched_second_order,
    mapped,
    forward_over_backward,
    gradient_over_backward,
]


@pytest.mark.parametrize("transform", TRANSFORMS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", [*LAYERS, *CELLS])
def test_backward_under_transforms_equals_torchs(name, transform):
    for options in ({},) if name in CELLS else ({}, {"num_layers": 2, "bidirectional": True}, {"bias": False}):
        x = torch.randn(4, 3, dtype=torch.float64)
        sequences = [make_input(kind, dtype=x.dtype) for kind in ("padded", "packed unsorted")]
        for input in [x] if name in CELLS else sequences:
            results = []
            for layer in pair(name, 3, 5, dtype=torch.float64, **options):
                packed = isinstance(input, PackedSequence)
                leaf = (input.data if packed else input).clone().requires_grad_()
                with gf.backend("native"):
                    output = tensors_of(layer(PackedSequence(leaf, *input[1:]) if packed else leaf))[0]
                    torch.manual_seed(3)
                    results.append(transform(output, leaf, list(layer.parameters())))
            torch.testing.assert_close(*results)


@pytest.mark.parametrize("name", LAYERS)
def test_jacobians_and_hessians_equal_torchs(name, fused):
    layers, x = pair(name, 3, 4, 2, dtype=torch.float64), make_input("unbatched", dtype=torch.float64)[:3]
    results = []
    for layer in layers:
        results.append(
            [
                torch.autograd.functional.jacobian(lambda x, layer=layer: layer(x)[0], x, vectorize=True),
                torch.autograd.functional.hessian(
                    lambda x, layer=layer: layer(x)[0].square().sum(), x, vectorize=True
                ),
                torch.func.jacrev(lambda x, layer=layer: layer(x)[0])(x),
                torch.func.jacfwd(lambda x, layer=layer: layer(x)[0])(x),
            ]
        )
    torch.testing.assert_close(*results)
    assert len(fused) == 2  # of torch.func's the layer is torch's own from the start


CHANGES = {
    "output": lambda x, outputs, layer: outputs[0].mul_(2),
    "part of the output": lambda x, outputs, layer: outputs[0][..., 0].zero_(),
    "final state": lambda x, outputs, layer: outputs[-1].mul_(2),
    "state": lambda x, outputs, layer: outputs[1].add_(1),
    "bias": lambda x, outputs, layer: layer.bias_hh_l0.data.zero_(),
    "batch-first input": lambda x, outputs, layer: x.mul_(2),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("training", [True, False], ids=["dropout", "no dropout"])
def test_what_torch_lets_the_caller_change_before_backward(name, change, training, fused):
    leaf, results = make_input("padded", batch_first=True, dtype=torch.float64).requires_grad_(), []
    for layer in pair(name, 3, 5, 2, batch_first=True, bidirectional=True, dropout=0.5, dtype=torch.float64):
        torch.manual_seed(2)
        x = leaf * 1
        outputs = tensors_of(layer.train(training)(x))
        with torch.no_grad() if change == "bias" else torch.enable_grad():
            CHANGES[change](x, outputs, layer)
        loss = sum(o.square().sum() for o in outputs)
        results.append([*outputs, *torch.autograd.grad(loss, [leaf, *layer.parameters()])])
    assert fused
    torch.testing.assert_close(*results)


BAD_CALLS = {
    "1-d input": lambda x, h: (x[0, 0], None),
    "4-d input": lambda x, h: (x[None], None),
    "wrong input size": lambda x, h: (x[..., :2], None),
    "wrong batch of hx": lambda x, h: (x, h[:, :2]),
    "wrong size of hx": lambda x, h: (x, h[..., :2]),
    "2-d hx": lambda x, h: (x, h[:, 0]),
    "3-d hx for unbatched input": lambda x, h: (x[:, 0], h),
    "input of another dtype": lambda x, h: (x.double(), None),
    "hx of another dtype": lambda x, h: (x, h.double()),
    "integer input": lambda x, h: (x.long(), None),
    "no steps": lambda x, h: (x[:0], None),
    "no sequences": lambda x, h: (x[:, :0], None),
    "not a tensor": lambda x, h: ([1.0], None),
    "hx on another device": lambda x, h: (x, h.to("meta")),
    "sparse input": lambda x, h: (x.to_sparse(), None),
    "sparse hx": lambda x, h: (x, h.to_sparse()),
    "2-d batch_sizes": lambda x, h: (PackedSequence(x.flatten(0, 1), torch.full((1, 7), 4)), None),
    "no batch_sizes": lambda x, h: (PackedSequence(x.flatten(0, 1), torch.zeros(0, dtype=torch.int64)), None),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_input_gets_torchs_own_error(name, case):
    ours, theirs = pair(name, 3, 5, 2)
    x, hx = BAD_CALLS[case](make_input("padded"), torch.randn(2, 4, 5))
    if name == "LSTM" and hx is not None:
        hx = (hx, torch.zeros_like(hx))
    outcomes = []
    for layer in (ours, theirs):
        try:
            with gf.backend("native"):
                outcomes.append(tensors_of(layer(x, hx)))
        except Exception as error:
            outcomes.append(f"{type(error).__name__}: {error}")
    mine, torchs = outcomes
    if isinstance(torchs, list):  # what one version of torch refuses another may take
        torch.testing.assert_close(mine, torchs)
    else:
        assert mine == torchs


@pytest.mark.parametrize("name", LAYERS)
def test_wrong_kind_of_state(name):
    ours, theirs = pair(name, 3, 5, 2)
    for hx in ((torch.zeros(2, 4, 5),), (torch.zeros(2, 4, 5),) * 3, [torch.zeros(2, 4, 5)] * 2, {}, 1):
        outcomes = []
        for layer in (ours, theirs):
            try:
                outcomes.append(type(layer(torch.zeros(7, 4, 3), hx)).__name__)
            except Exception as error:
                outcomes.append(f"{type(error).__name__}: {error}")
        assert outcomes[0] == outcomes[1]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_reference_backend_and_unusual_callers_run_torch(name, fused):
    ours, theirs = pair(name, 3, 5, 2)
    x = make_input("padded")
    with gf.backend("reference"):
        assert_same(results(ours, x), results(theirs, x))
    with gf.backend("auto"):
        traced = torch.jit.trace(ours, (x,), check_trace=False)
    torch.testing.assert_close(traced(x), theirs(x))
    slope = torch.func.grad(lambda x: ours(x)[0].square().sum())(x)
    torch.testing.assert_close(slope, torch.func.grad(lambda x: theirs(x)[0].square().sum())(x))
    assert fused == []


@pytest.mark.parametrize("name", [*LAYERS, "GRUCell", "LSTMCell"])
def test_torch_fx_takes_the_layer_as_a_leaf(name):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = getattr(nn, name)(3, 5)

        def forward(self, x, hx):
            return self.layer(x, hx)

    model = Model()
    traced = torch.fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["layer"]
    x = torch.randn(4, 3) if name.endswith("Cell") else make_input("padded")
    torch.testing.assert_close(traced(x, None), model(x, None))


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_compiles_where_torch_does(name, kind):
    layer = getattr(nn, name)(3, 5, 2, bidirectional=True)
    x = make_input(kind)
    torch._dynamo.reset()
    torch.testing.assert_close(tensors_of(torch.compile(layer, backend="aot_eager")(x)), tensors_of(layer(x)))
    with torch._dynamo.config.patch(allow_rnn=True):  # otherwise Dynamo breaks its graph at such layers
        torch._dynamo.reset()
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        gradients = []
        for function in (compiled, layer):
            loss = sum(o.square().sum() for o in tensors_of(function(x)) if o.is_floating_point())
            gradients.append(torch.autograd.grad(loss, layer.parameters()))
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("module_info", modules_named(*LAYERS, *CELLS))
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_pytorchs_own_samples(module_info, backend, dtype, training):
    ours_class = getattr(nn, module_info.module_cls.__name__)
    options = {"with_packed_sequence": True} if module_info.module_cls.__name__ in ("RNN", "GRU") else {}
    samples = module_info.module_inputs_func(module_info, "cpu", dtype, True, training, **options)
    assert samples
    for sample in samples:
        build, call = sample.constructor_input, sample.forward_input
        theirs = module_info.module_cls(*build.args, **build.kwargs).to(dtype).train(training)
        ours = ours_class(*build.args, **build.kwargs).to(dtype).train(training)
        ours.load_state_dict(theirs.state_dict())
        with gf.backend(backend):
            outputs = [tensors_of(layer(*call.args, **call.kwargs)) for layer in (ours, theirs)]
        torch.testing.assert_close(*outputs)
        if sample.reference_fn is not None and not isinstance(call.args[0], PackedSequence):
            expected = sample.reference_fn(ours, *call.args, **call.kwargs)
            torch.testing.assert_close(outputs[0], tensors_of(expected))


@pytest.mark.parametrize("module_info", modules_named(*LAYERS, *CELLS))
def test_pytorchs_own_error_samples(module_info):
    ours_class = getattr(nn, module_info.module_cls.__name__)
    for sample in module_info.module_error_inputs_func(module_info, "cpu", torch.float32, False, True):
        build, call = sample.module_error_input.constructor_input, sample.module_error_input.forward_input
        with gf.backend("native"), pytest.raises(sample.error_type, match=sample.error_regex):
            ours_class(*build.args, **build.kwargs)(*call.args, **call.kwargs)


@pytest.mark.parametrize("name", ["GRUCell", "LSTMCell"])
def test_cells_same_as_torch(name):
    for bias, given, batched in itertools.product([False, True], repeat=3):
        ours, theirs = pair(name, 3, 5, bias, dtype=torch.float64)
        batch = [4] if batched else []
        hx = torch.randn(*batch, 5, dtype=torch.float64)
        hx = None if not given else (hx, hx + 1) if name == "LSTMCell" else hx
        x = torch.randn(*batch, 3, dtype=torch.float64)
        with gf.backend("native"):
            mine = results(ours, x, hx)
        assert_same(mine, results(theirs, x, hx))
        assert any("CellUpdate" in type(o.grad_fn).__name__ for o in mine[0]) or not batched


@pytest.mark.parametrize("name", ["GRUCell", "LSTMCell"])
def test_cells_second_order_and_compile(name):
    ours, _ = pair(name, 2, 3, dtype=torch.float64)
    x = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    h = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)

    def step(x, h):
        return ours(x, (h, h + 1) if name == "LSTMCell" else h)

    assert gradcheck(step, (x, h))
    assert gradgradcheck(step, (x, h))
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, h), step(x, h))


@pytest.mark.parametrize("name", ["GRUCell", "LSTMCell"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_cells_give_torchs_dtypes_under_autocast(name, dtype):
    ours, theirs = pair(name, 3, 5)
    for data_dtype, state_dtype in itertools.product((torch.float32, dtype), (None, torch.float32, dtype)):
        x = torch.randn(4, 3, dtype=data_dtype)
        hx = None if state_dtype is None else torch.randn(4, 5, dtype=state_dtype)
        hx = (hx, hx) if name == "LSTMCell" and hx is not None else hx
        with torch.autocast("cpu", dtype), gf.backend("native"):
            mine, torchs = tensors_of(ours(x, hx)), tensors_of(theirs(x, hx))
        for a, b in zip(mine, torchs, strict=True):
            torch.testing.assert_close(a, b, rtol=0.02, atol=0.02)


BAD_CELL_CALLS = {
    "3-d input": lambda x, h: (x[None], None),
    "wrong input size": lambda x, h: (x[:, :2], None),
    "wrong batch of hx": lambda x, h: (x, h[:2]),
    "wrong size of hx": lambda x, h: (x, h[:, :2]),
    "3-d hx": lambda x, h: (x, h[None]),
    "input of another dtype": lambda x, h: (x.double(), None),
    "integer input": lambda x, h: (x.long(), None),
    "no sequences": lambda x, h: (x[:0], None),
}


@pytest.mark.parametrize("name", ["GRUCell", "LSTMCell"])
@pytest.mark.parametrize("case", BAD_CELL_CALLS)
def test_bad_input_to_cells_gets_torchs_own_error(name, case):
    ours, theirs = pair(name, 3, 5)
    x, hx = BAD_CELL_CALLS[case](torch.randn(4, 3), torch.randn(4, 5))
    hx = (hx, hx) if name == "LSTMCell" and hx is not None else hx
    outcomes = []
    for cell in (ours, theirs):
        try:
            with gf.backend("native"):
                outcomes.append(tensors_of(cell(x, hx)))
        except Exception as error:
            outcomes.append(type(error))
    torch.testing.assert_close(*outcomes) if isinstance(outcomes[1], list) else None
    assert isinstance(outcomes[0], list) or outcomes[0] is outcomes[1]


def test_fuse_and_unfuse_in_place():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name in (*LAYERS, *CELLS):
                setattr(self, name.lower(), getattr(torch.nn, name)(3, 5))

    model = Model()
    parameters, keys, x = list(model.parameters()), list(model.state_dict()), make_input("padded")
    expected = [getattr(model, name.lower())(x)[0] for name in LAYERS]
    assert gf.fuse(model) is model
    assert [type(getattr(model, name.lower())) for name in LAYERS] == [getattr(nn, name) for name in LAYERS]
    assert type(model.lstmcell) is nn.LSTMCell
    assert type(model.grucell) is nn.GRUCell
    with gf.backend("native"):
        torch.testing.assert_close([getattr(model, name.lower())(x)[0] for name in LAYERS], expected)
    assert list(model.state_dict()) == keys
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    gf.unfuse(model)
    assert [type(getattr(model, name.lower())) for name in LAYERS] == [getattr(torch.nn, n) for n in LAYERS]
    assert type(model.lstmcell) is torch.nn.LSTMCell


def loop_over_images(layer, x, hx):
    """The same as ConvLSTM2d, step by step, with torch's operators."""
    finals = []
    for k in range(layer.num_layers):
        h, c = (x.new_zeros(2, 1, *x.shape[1:2], layer.hidden_channels, *x.shape[3:])).select(1, 0)
        if hx is not None:
            h, c = hx[0][k], hx[1][k]
        outputs = []
        for image in x:
            gates = torch.nn.functional.conv2d(
                image, getattr(layer, f"weight_ih_l{k}"), getattr(layer, f"bias_l{k}"), padding="same"
            )
            gates = gates + torch.nn.functional.conv2d(h, getattr(layer, f"weight_hh_l{k}"), padding="same")
            i, f, g, o = gates.chunk(4, dim=1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        finals.append((h, c))
        x = torch.stack(outputs)
    return x, *(torch.stack(state) for state in zip(*finals, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kernel_size", [3, 1, (3, 5)], ids=str)
def test_convlstm_equals_a_loop(backend, kernel_size):
    for layers, bias, given in itertools.product((1, 2), (False, True), (False, True)):
        layer = nn.ConvLSTM2d(3, 4, kernel_size, layers, bias=bias).double()
        x = torch.randn(3, 2, 3, 4, 5, dtype=torch.float64)
        hx = torch.randn(2, layers, 2, 4, 4, 5, dtype=torch.float64).unbind() if given else None
        results = []
        for function in (layer, lambda x, hx, layer=layer: loop_over_images(layer, x, hx)):
            leaf = x.clone().requires_grad_()
            with gf.backend(backend):
                outputs = tensors_of(function(leaf, hx))
                loss = sum((k * o).square().sum() for k, o in enumerate(outputs, 1))
                results.append((outputs, torch.autograd.grad(loss, [leaf, *layer.parameters()])))
        assert_same(*results)


def test_convlstm_of_single_pixels_is_an_lstm():
    lstm, layer = torch.nn.LSTM(3, 5, 2), nn.ConvLSTM2d(3, 5, 1, 2)
    for k in range(2):
        for name in ("ih", "hh"):
            weight = getattr(lstm, f"weight_{name}_l{k}").detach()[:, :, None, None]
            getattr(layer, f"weight_{name}_l{k}").data.copy_(weight)
        bias = getattr(lstm, f"bias_ih_l{k}") + getattr(lstm, f"bias_hh_l{k}")
        getattr(layer, f"bias_l{k}").data.copy_(bias.detach())
    x = make_input("padded")
    images = tensors_of(layer(x[..., None, None]))
    torch.testing.assert_close([t.squeeze(-1).squeeze(-1) for t in images], tensors_of(lstm(x)))


def test_convlstm_as_a_module():
    layer = nn.ConvLSTM2d(2, 3, 3, num_layers=2, batch_first=True, bias=False)
    assert list(layer.state_dict()) == ["weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1"]
    assert "2, 3, kernel_size=(3, 3), num_layers=2, bias=False, batch_first=True" in repr(layer)
    x = torch.randn(4, 5, 2, 6, 6)
    output, (h_n, c_n) = layer(x)
    assert output.shape == (4, 5, 3, 6, 6)
    assert h_n.shape == c_n.shape == (2, 4, 3, 6, 6)
    torch.testing.assert_close(output[:, -1], h_n[-1])
    first, state = layer(x[:, :2])
    second, _ = layer(x[:, 2:], state)
    torch.testing.assert_close(torch.cat((first, second), dim=1), output)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(twin(x)[0], output)
    torch._dynamo.reset()
    torch.testing.assert_close(torch.compile(layer, fullgraph=True, backend="aot_eager")(x)[0], output)
    last = x.transpose(0, 1)[0].contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(last.unsqueeze(1))[0], layer(x[:, :1])[0])
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(layer(x)[0], output, rtol=0.05, atol=0.02)
    layer = nn.ConvLSTM2d(1, 1, 1, dtype=torch.float64)
    x = torch.randn(2, 1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    assert gradgradcheck(lambda x: layer(x)[0], x)


def test_convlstm_refuses_bad_input():
    with pytest.raises(ValueError, match=r"kernel_size must be odd.*got 4"):
        nn.ConvLSTM2d(3, 4, 4)
    with pytest.raises(ValueError, match="hidden_channels must be positive, got 0"):
        nn.ConvLSTM2d(3, 0, 3)
    layer = nn.ConvLSTM2d(3, 4, 3)
    for shape in ((5, 2, 3, 6), (5, 2, 2, 6, 6), (0, 2, 3, 6, 6)):
        with pytest.raises(ValueError, match=r"input must have shape \(T, B, 3, height, width\)"):
            layer(torch.randn(shape))
    zeros = torch.zeros(1, 2, 4, 6, 6)
    with pytest.raises(ValueError, match=r"hx: c must have shape \(1, 2, 4, 6, 6\), got \(1, 2, 4, 6, 5\)"):
        layer(torch.randn(5, 2, 3, 6, 6), (zeros, zeros[..., :5]))


BAD_CONVLSTM_CALLS = {
    "input must be a Tensor, got list": lambda layer, x, h: layer([1.0]),
    "input must be a dense tensor, got torch.sparse_coo": lambda layer, x, h: layer(x.to_sparse()),
    r"hx must be a pair \(h, c\), got Tensor": lambda layer, x, h: layer(x, h),
    "hx: c must be a Tensor, got NoneType": lambda layer, x, h: layer(x, (h, None)),
    "hx: h must be on the device of input, cpu, got meta": lambda layer, x, h: layer(x, (h.to("meta"), h)),
    "hx: c must be of a floating-point dtype, got torch.int64": lambda layer, x, h: layer(x, (h, h.long())),
    "hidden_channels must be an int, got float": lambda layer, x, h: nn.ConvLSTM2d(3, 4.0, 3),
    "kernel_size must be an int, got str": lambda layer, x, h: nn.ConvLSTM2d(3, 4, "3"),
    r"kernel_size must be one int, or .*, got 3 values": lambda layer, x, h: nn.ConvLSTM2d(3, 4, (3, 3, 3)),
    "batch_first must be a bool, got int": lambda layer, x, h: nn.ConvLSTM2d(3, 4, 3, batch_first=1),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD_CONVLSTM_CALLS)
def test_convlstm_names_the_bad_argument(message):
    with pytest.raises((TypeError, ValueError), match=message):
        BAD_CONVLSTM_CALLS[message](nn.ConvLSTM2d(3, 4, 3), torch.randn(5, 2, 3, 6, 6), torch.zeros(1, 2, 4, 6, 6))


def test_packed_sequences_with_strided_batch_sizes():
    x = make_input("packed")
    strided = x._replace(batch_sizes=x.batch_sizes.repeat_interleave(2)[::2])
    for name in LAYERS:
        layer = getattr(nn, name)(3, 5)
        with gf.backend("native"):
            torch.testing.assert_close(tensors_of(layer(strided)), tensors_of(layer(x)))


def test_padded_output_of_packed_sequences():
    ours, theirs = pair("GRU", 3, 5, batch_first=True)
    x = make_input("packed unsorted", batch_first=True)
    with gf.backend("native"):
        mine = pad_packed_sequence(ours(x)[0], batch_first=True)
    torch.testing.assert_close(mine, pad_packed_sequence(theirs(x)[0], batch_first=True))


def test_second_order_of_relu_is_zero_where_torchs_is():
    layer = nn.RNN(3, 5, nonlinearity="relu")
    x = make_input("padded").requires_grad_()
    operands = (x, *layer.parameters())
    found = []
    for forward in (layer, functools.partial(torch.nn.RNN.forward, layer)):
        (slope,) = torch.autograd.grad(forward(x)[0].sum(), x, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), operands, allow_unused=True))
    torch.testing.assert_close(*found)
    assert not found[0][0].any()


@pytest.mark.parametrize("name", [*LAYERS, "GRUCell", "LSTMCell"])
def test_complains_about_a_missing_input_as_torch_does(name):
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'dim'"):
        getattr(nn, name)(3, 5)(None)


def test_gradient_at_the_cell_state_alone_leaves_out_the_output_gate():
    cell = nn.LSTMCell(3, 5)
    x = make_input("padded")[0]
    with torch.no_grad():
        cell.bias_ih[15:] = torch.nan  # of the output gate
    found = []
    for forward in (cell, functools.partial(torch.nn.LSTMCell.forward, cell)):
        found.append(torch.autograd.grad(forward(x)[1].sum(), (cell.weight_ih, cell.bias_ih)))
    torch.testing.assert_close(*found)
    assert not found[0][1][15:].any()
