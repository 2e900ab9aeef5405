import importlib
import pkgutil
import subprocess
import sys

import pytest
import torch

import genimg_fast.nn as nn


def test_every_public_name_of_torch_nn_is_there():
    replaced = {"Sequential", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d"}
    replaced |= {"RNN", "GRU", "LSTM", "GRUCell", "LSTMCell"}
    for name in dir(torch.nn):
        if not name.startswith("_"):
            assert (getattr(nn, name) is getattr(torch.nn, name)) == (name not in replaced), name
            assert name in dir(nn)
    for name in replaced:
        assert issubclass(getattr(nn, name), getattr(torch.nn, name))


def test_isinstance_means_what_it_means_for_torch():
    class Derived(nn.Sequential):
        pass

    assert isinstance(torch.nn.BatchNorm2d(3), nn.BatchNorm2d)
    assert isinstance(nn.BatchNormAct2d(3), nn.BatchNorm2d)
    assert isinstance(torch.nn.Sequential(), nn.Sequential)
    assert isinstance(Derived(), nn.Sequential)
    assert issubclass(torch.nn.BatchNorm1d, nn.BatchNorm1d)
    assert not isinstance(nn.Sequential(), Derived)
    assert not isinstance(torch.nn.Sequential(), Derived)
    assert not isinstance(torch.nn.BatchNorm1d(3), nn.BatchNorm2d)
    assert not isinstance(torch.nn.BatchNorm2d(3), nn.BatchNormAct2d)


def test_from_import_star():
    names: dict[str, object] = {}
    exec("from genimg_fast.nn import *", names)
    assert names["Conv2d"] is torch.nn.Conv2d
    assert names["BatchNormAct2d"] is nn.BatchNormAct2d
    assert names["Sequential"] is nn.Sequential


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules(torch.nn.__path__)])
def test_submodules_are_torchs_own(name):
    try:
        expected = importlib.import_module(f"torch.nn.{name}")
    except ImportError:
        pytest.skip(f"torch.nn.{name} does not import here")
    assert importlib.import_module(f"genimg_fast.nn.{name}") is expected


def test_import_statements_in_a_fresh_interpreter():
    script = (
        "import genimg_fast.nn.functional as F, genimg_fast.nn.utils.parametrizations as P\n"
        "from genimg_fast.nn import functional, init, parallel, utils\n"
        "from genimg_fast.nn.parameter import Parameter\n"
        "from genimg_fast.nn.utils.rnn import pack_sequence\n"
        "import torch.nn.functional, torch.nn.utils.parametrizations\n"
        "assert F is functional is torch.nn.functional and P is torch.nn.utils.parametrizations\n"
        "assert F.__spec__.name == 'torch.nn.functional'\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_missing_submodule_is_an_import_error():
    with pytest.raises(ModuleNotFoundError, match=r"genimg_fast\.nn\.nothing"):
        importlib.import_module("genimg_fast.nn.nothing")
    with pytest.raises(AttributeError, match="Conv9d"):
        _ = nn.Conv9d
