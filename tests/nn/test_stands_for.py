"""The layers that stand for torch's: in torch's tools, in files, in copies."""

import copy
import inspect
import io
import pickle
import subprocess
import sys
from abc import ABC
from multiprocessing.reduction import ForkingPickler
from typing import Generic, Protocol, TypeVar
from unittest import mock

import pytest
import torch
from torch.ao import quantization
from torch.ao.quantization import quantize_fx
from torch.fx.experimental import optimization
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.prune import l1_unstructured

import genimg_fast as gf
from genimg_fast import nn
from genimg_fast.nn.stands_for import STAND_INS

pytestmark = pytest.mark.filterwarnings(  # of the tools
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::torch.jit.TracerWarning"
)

ARGUMENTS = {
    "BatchNorm1d": (3,), "BatchNorm2d": (3,), "BatchNorm3d": (3,), "Sequential": (torch.nn.ReLU(),),
    "GroupNorm": (1, 3), "InstanceNorm1d": (3,), "InstanceNorm2d": (3,), "InstanceNorm3d": (3,),
    "Conv2d": (3, 4, 3), "ConvTranspose2d": (4, 3, 3),
    "RNN": (3, 4, 2, "relu"), "GRU": (3, 4), "LSTM": (3, 4, 2), "GRUCell": (3, 4), "LSTMCell": (3, 4),
}  # fmt: skip
every_layer = pytest.mark.parametrize("name", ARGUMENTS)


def make(name, namespace=nn):
    return getattr(namespace, name)(*ARGUMENTS[name])


def test_these_are_all():
    assert {cls.__name__ for cls in STAND_INS} == set(ARGUMENTS)


@every_layer
def test_class_is_torchs_but_for_identity(name):
    ours, plain = getattr(nn, name), getattr(torch.nn, name)
    assert ours is not plain
    assert ours == plain
    assert plain == ours
    assert {plain: 1}[ours] == 1
    assert type(make(name)) in (torch.nn.Linear, plain)
    assert ours != torch.nn.Linear
    assert "genimg_fast" in repr(ours)
    assert inspect.signature(ours) == inspect.signature(plain)
    assert inspect.signature(ours.forward) == inspect.signature(plain.forward)
    assert inspect.getdoc(ours).startswith(inspect.getdoc(plain))
    assert inspect.getclasstree([ours])[1][0][0] is ours
    assert set(dir(ours)) >= set(dir(plain))
    assert set(dir(make(name))) >= set(dir(make(name, torch.nn)))
    assert callable(mock.create_autospec(ours, instance=True).forward)

    class Derived(ours):
        pass

    assert Derived not in (ours, plain)
    assert len({Derived, ours, plain}) == 2


@every_layer
def test_files_are_torchs(name):
    ours, plain = make(name), getattr(torch.nn, name)
    file = io.BytesIO()
    torch.save(ours, file)
    state = torch.get_rng_state()
    for admitted in (plain, getattr(nn, name)):  # the script's nn decides what a file's layers are
        file.seek(0)
        with torch.serialization.safe_globals([admitted, torch.nn.ReLU]):
            loaded = torch.load(file)
        assert type(loaded) is admitted
        torch.testing.assert_close(loaded.state_dict(), ours.state_dict())
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps([ours, type(ours)], protocol)
        assert b"genimg_fast" not in data
        loaded, cls = pickle.loads(data)
        assert type(loaded) is cls is plain
        assert loaded.__dict__.keys() == ours.__dict__.keys()
    assert torch.equal(torch.get_rng_state(), state)
    assert type(gf.fuse(loaded)) is type(ours)


def test_files_load_without_this_package(tmp_path):
    torch.save(torch.nn.ModuleList(make(name) for name in ARGUMENTS), tmp_path / "model.pt")
    script = (
        "import sys; sys.modules['genimg_fast'] = None\n"
        "import torch\n"
        "for layer in torch.load('model.pt', weights_only=False):\n"
        "    assert type(layer).__module__.startswith('torch.nn.'), type(layer)\n"
        "assert layer(torch.randn(2, 3))[0].shape == (2, 4)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)


@every_layer
def test_copies_stay_fused(name):
    ours = make(name)
    for twin in (copy.copy(ours), copy.deepcopy(ours), pickle.loads(ForkingPickler.dumps(ours))):
        assert type(twin) is type(ours)
        torch.testing.assert_close(twin.state_dict(), ours.state_dict())
    assert pickle.loads(ForkingPickler.dumps(type(ours))) is type(ours)
    assert type(pickle.loads(ForkingPickler.dumps(make(name, torch.nn)))) is getattr(torch.nn, name)


def test_what_users_derive_keeps_its_name():
    layer = Derived(3, 4)
    for twin in (copy.copy(layer), copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), gf.unfuse(layer)):
        assert type(twin) is Derived
    assert pickle.loads(pickle.dumps(Derived)) is Derived


class Derived(nn.LSTM):
    pass


def test_parametrised_layers_are_copied_and_restored():
    layer = torch.nn.utils.parametrizations.weight_norm(make("LSTM"), "weight_hh_l0")
    assert type(layer).__module__ == "torch.nn.utils.parametrize"
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(copy.deepcopy(layer)(x)[0], layer(x)[0])
    torch.nn.utils.parametrize.remove_parametrizations(layer, "weight_hh_l0")
    assert type(layer) is nn.LSTM


def test_cloudpickle_leads_back_to_the_class():
    cloudpickle = pytest.importorskip("cloudpickle")
    script = (
        "import pickle, sys, torch\n"
        "cls, derived = pickle.load(sys.stdin.buffer)\n"
        "from genimg_fast import nn\n"
        "assert cls is nn.LSTM\n"
        "derived(3, 4)(torch.randn(5, 2, 3))\n"
    )

    class Local(nn.LSTM):
        pass

    subprocess.run([sys.executable, "-c", script], input=cloudpickle.dumps([nn.LSTM, Local]), check=True)


class ConvNet(torch.nn.Module):
    shape = (2, 3, 9, 9)

    def __init__(self, nn):
        super().__init__()
        self.conv, self.bn, self.relu = torch.nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), torch.nn.ReLU()
        self.body = nn.Sequential(torch.nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), torch.nn.ReLU())

    def forward(self, x):
        return self.body(self.relu(self.bn(self.conv(x))))


class Recurrent(torch.nn.Module):
    shape = (5, 2, 3)

    def __init__(self, nn):
        super().__init__()
        self.lstm, self.gru, self.rnn = nn.LSTM(3, 4, batch_first=True), nn.GRU(4, 5), nn.RNN(5, 5)
        self.lstm_cell, self.gru_cell, self.linear = nn.LSTMCell(5, 4), nn.GRUCell(4, 4), torch.nn.Linear(4, 2)

    def forward(self, x):
        x, _ = self.lstm(x)
        x, _ = self.gru(x)
        x, _ = self.rnn(x)
        h, _ = self.lstm_cell(x[:, 0])
        return self.linear(self.gru_cell(h))


def quantize_dynamic(model, x):
    layers = {nn.LSTM, torch.nn.GRU, torch.nn.Linear, torch.nn.LSTMCell, nn.GRUCell}
    return quantization.quantize_dynamic(model, layers)


def fuse_modules(model, x):
    return quantization.fuse_modules(model, [["conv", "bn", "relu"], ["body.0", "body.1", "body.2"]])


def quantize(model, x):
    model = quantization.QuantWrapper(fuse_modules(model, x))
    model.qconfig = quantization.get_default_qconfig()
    model = quantization.prepare(model)
    model(x)
    return quantization.convert(model)


def prepare_qat(model, x):
    model.qconfig = quantization.get_default_qat_qconfig()
    return quantization.prepare_qat(model.train())


def convert_fx(model, x):
    model = quantize_fx.prepare_fx(model, quantization.get_default_qconfig_mapping(), (x,))
    model(x)
    return quantize_fx.convert_fx(model)


def convert_fx_dynamic(model, x):
    mapping = quantization.QConfigMapping().set_object_type(torch.nn.LSTM, quantization.default_dynamic_qconfig)
    return quantize_fx.convert_fx(quantize_fx.prepare_fx(model, mapping, (x,)))


def optimization_fuse(model, x):
    return optimization.fuse(model)


def fold_batch_norm(model, x):
    return fuse_conv_bn_eval(model.conv, model.bn)


def symbolic_trace(model, x):
    return torch.fx.symbolic_trace(model)


def convert_sync_batchnorm(model, x):
    return torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)


def replace_batch_norm(model, x):
    return torch.func.replace_all_batch_norm_modules_(model)


def script(model, x):
    return torch.jit.script(model)


def trace(model, x):
    return torch.jit.trace(model, x)


def export(model, x):
    return torch.export.export(model, (x,)).module()


def prune(model, x):
    l1_unstructured(model.lstm, "weight_hh_l0", 0.5)
    return model


CASES = [
    (ConvNet, fuse_modules), (ConvNet, quantize), (ConvNet, prepare_qat), (ConvNet, convert_fx),
    (ConvNet, optimization_fuse), (ConvNet, fold_batch_norm), (ConvNet, symbolic_trace),
    (ConvNet, convert_sync_batchnorm), (ConvNet, replace_batch_norm), (ConvNet, script), (ConvNet, trace),
    (ConvNet, export), (Recurrent, quantize_dynamic), (Recurrent, convert_fx_dynamic),
    (Recurrent, symbolic_trace), (Recurrent, script), (Recurrent, trace), (Recurrent, export), (Recurrent, prune),
]  # fmt: skip


@pytest.mark.parametrize("fused", [False, True], ids=["gf.nn", "gf.fuse"])
@pytest.mark.parametrize(("network", "tool"), CASES, ids=lambda v: v.__name__)
def test_tools_do_as_with_torchs_layers(network, tool, fused):
    plain = network(torch.nn).eval()
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.running_mean, module.running_var, module.weight.data):
                values.uniform_(0.5, 2.0)
    ours = gf.fuse(copy.deepcopy(plain)) if fused else network(nn).eval()
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(network.shape)
    results = [tool(model, x) for model in (plain, ours)]
    kinds = [[(name, type(m).__name__) for name, m in result.named_modules()] for result in results]
    assert kinds[1][1:] == kinds[0][1:]
    assert list(results[1].state_dict()) == list(results[0].state_dict())
    torch.testing.assert_close(results[1](x), results[0](x))
    if tool in (script, trace):
        assert "genimg_fast::" not in str(results[1].inlined_graph)
    if tool is export:
        assert "genimg_fast" not in str(results[1].graph)
    if tool in (script, trace, export, symbolic_trace, fuse_modules, optimization_fuse, quantize_dynamic):
        layer = ours.bn if network is ConvNet else ours.lstm  # it was not to be changed
        assert type(layer) is STAND_INS[type(layer)]


def test_derived_layers_are_scripted_as_torchs():
    class Block(nn.Sequential):
        pass

    block = Block(torch.nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), torch.nn.ReLU()).eval()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(torch.jit.script(block)(x), block(x))


@pytest.mark.parametrize("base", [Protocol, ABC, Generic[TypeVar("T")]], ids=["protocol", "abstract", "generic"])
def test_other_kinds_of_classes_can_be_mixed_in(base):
    class Sized(base):
        def size(self): ...

    class Derived(nn.GRU, Sized):
        def size(self):
            return self.hidden_size

    layer = Derived(3, 4)
    assert isinstance(layer, torch.nn.GRU)
    assert Sized in Derived.__mro__
    assert not isinstance(nn.GRU(3, 4), Derived)
    assert layer(torch.ones(2, 3))[0].shape == (2, layer.size())


def test_scripting_a_layer_that_torch_does_not_have_says_what_to_do():
    with pytest.raises(RuntimeError, match="cannot compile BatchNormAct2d; use a BatchNorm layer followed by"):
        torch.jit.script(torch.nn.Sequential(nn.BatchNormAct2d(3)))


@pytest.mark.parametrize(
    ("layer", "arguments"),
    [(nn.ConvLSTM2d(3, 4, 3), (torch.randn(2, 1, 3, 5, 5),)), (nn.BatchNormAct2d(3), (torch.randn(2, 3, 4, 4),))],
    ids=["ConvLSTM2d", "BatchNormAct2d"],
)
def test_torch_fx_takes_new_layers_as_leaves(layer, arguments):
    traced = torch.fx.symbolic_trace(torch.nn.Sequential(layer))
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["0"]
    torch.testing.assert_close(traced.eval()(*arguments), layer.eval()(*arguments))


# Tracers look into Sequential anyhow, and torch's group norm and convolutions ask nothing of their input.
@pytest.mark.parametrize(
    "name",
    [
        *(n for n in ARGUMENTS if n not in ("Sequential", "GroupNorm", "Conv2d", "ConvTranspose2d")),
        "BatchNormAct2d",
    ],
)
def test_torch_fx_looks_into_derived_layers_and_its_root_as_into_torchs(name):
    layer = getattr(nn, name)

    class Doubled(layer):
        def forward(self, x):
            return super().forward(x) * 2

    arguments = ARGUMENTS.get(name, (3,))
    for model in (torch.nn.Sequential(Doubled(*arguments)), Doubled(*arguments), layer(*arguments)):
        with pytest.raises(torch.fx.proxy.TraceError):
            torch.fx.symbolic_trace(model)
