import importlib
import json
import pkgutil
import random
import subprocess
import sys

import pytest
import torch

import genimg_fast.nn as nn


def test_every_public_name_of_torch_nn_is_there():
    replaced = {"Sequential", "BatchNorm1d", "BatchNorm2d", "BatchNorm3d"}
    replaced |= {"GroupNorm", "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"}
    replaced |= {"Conv2d", "ConvTranspose2d"}
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
    assert names["Conv3d"] is torch.nn.Conv3d
    assert names["BatchNormAct2d"] is nn.BatchNormAct2d
    assert names["Sequential"] is nn.Sequential


# Imports modules below the package that is its first argument, in all spellings, and prints what is then in each
# module of torch.nn.
SCRIPT = """
import importlib, json, sys, torch
package, *names = sys.argv[1:]
importlib.import_module(package)
for number, name in enumerate(names):
    parent, _, child = f"{package}.{name}".rpartition(".")
    if number % 3 == 0:
        importlib.import_module(f"{parent}.{child}")
    elif number % 3 == 1:
        exec(f"import {parent}.{child} as it")
    else:
        exec(f"from {parent} import {child}")
found = {n: m for n, m in sys.modules.items() if n.startswith("torch.nn.")}
for name, module in found.items():
    assert sys.modules.get(package + name.removeprefix("torch.nn"), module) is module, name
print(json.dumps({
    name: [module.__name__, module.__spec__.name, type(module.__loader__).__name__]
    + sorted((key, type(v).__name__, str(getattr(v, "__name__", ""))) for key, v in vars(module).items())
    for name, module in found.items()
}))
"""
NAMES = [
    f"{package}.{module.name}"
    for package in ("modules", "utils")
    for module in pkgutil.iter_modules([f"{torch.nn.__path__[0]}/{package}"])
] + ["functional", "init", "parallel.data_parallel", "qat.modules.conv"]


def test_imports_at_any_depth_give_and_leave_what_torchs_do():
    names = random.Random(0).sample(NAMES, len(NAMES))
    of_torch, ours = (
        json.loads(subprocess.check_output([sys.executable, "-W", "ignore", "-c", SCRIPT, package, *names]))
        for package in ("torch.nn", "genimg_fast.nn")
    )
    assert {name: ours[name] for name in of_torch} == of_torch


def test_import_statements_in_a_fresh_interpreter():
    script = (
        "from genimg_fast.nn.utils.rnn import pack_padded_sequence\n"
        "import genimg_fast.nn.functional as F, genimg_fast.nn.utils.parametrizations as P\n"
        "from genimg_fast.nn import functional, init, parallel, recurrent, utils\n"
        "from genimg_fast.nn.modules.batchnorm import _BatchNorm, BatchNorm2d\n"
        "import genimg_fast.nn, torch, importlib\n"
        "assert F is functional is torch.nn.functional and P is torch.nn.utils.parametrizations\n"
        "assert F.__spec__.name == 'torch.nn.functional'\n"
        "assert isinstance(genimg_fast.nn.BatchNorm2d(3), _BatchNorm) and BatchNorm2d is torch.nn.BatchNorm2d\n"
        "assert recurrent.LSTM is importlib.reload(genimg_fast.nn).LSTM\n"
        "assert importlib.util.find_spec('genimg_fast.nn.utils.nothing') is None\n"
        "packed = torch.nn.utils.rnn.pack_padded_sequence(torch.randn(3, 2, 4), [3, 2])\n"
        "torch.nn.LSTM(4, 4)(packed), torch.nn.LSTM(4, 4)(pack_padded_sequence(torch.randn(3, 2, 4), [3, 2]))\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("name", ["nothing", "utils.nothing", "functional.nothing", "nothing.rnn"])
def test_missing_submodule_is_an_import_error(name):
    with pytest.raises(ModuleNotFoundError, match=rf"No module named 'genimg_fast\.nn\.{name.split('.rnn')[0]}'"):
        importlib.import_module(f"genimg_fast.nn.{name}")


def test_missing_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"'genimg_fast\.nn' has no attribute 'Conv9d'"):
        _ = nn.Conv9d
