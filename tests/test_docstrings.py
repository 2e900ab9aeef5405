import doctest
import importlib
import inspect
import pkgutil

import pytest

import genimg_fast as gf

FOUND = [m.name for m in pkgutil.walk_packages(gf.__path__, "genimg_fast.")]
MODULES = [name for name in FOUND if not name.endswith(("__main__", "._C"))]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results = doctest.testmod(importlib.import_module(name))
    assert results.failed == 0


PUBLIC = [(m, n) for m in (gf, gf.ops, gf.models, gf.losses, gf.data, gf.training) for n in m.__all__]


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_public_names_are_documented(module, name):
    thing = getattr(module, name)
    if callable(thing):
        assert inspect.getdoc(thing), name
