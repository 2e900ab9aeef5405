import doctest
import importlib
import inspect
import pkgutil
import re

import pytest
import torch

import genimg_fast as gf
import genimg_fast.cli

FOUND = [m.name for m in pkgutil.walk_packages(gf.__path__, "genimg_fast.")]
MODULES = [importlib.import_module(name) for name in FOUND if not name.endswith(("__main__", "._C"))]
EXAMPLES = [test for module in (gf, *MODULES) for test in doctest.DocTestFinder().find(module) if test.examples]

PACKAGES = (gf, gf.ops, gf.nn, gf.models, gf.losses, gf.data, gf.training, gf.metrics)
NAMES = {f"{m.__name__}.{n}": getattr(m, n) for m in PACKAGES for n in m.__all__}
PUBLIC = {
    name: thing
    for name, thing in {**NAMES, "genimg_fast.cli.main": genimg_fast.cli.main}.items()
    if callable(thing) and thing.__module__.startswith("genimg_fast")
}
CLASSES = {name: thing for name, thing in PUBLIC.items() if inspect.isclass(thing)}


def each(things):
    return pytest.mark.parametrize("thing", things.values(), ids=things)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda test: test.name)
def test_an_example_runs_in_an_empty_interpreter(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    example.globs = {"__name__": "__main__"}  # as when it is pasted: nothing is there but what it imports
    report = []
    doctest.DocTestRunner().run(example, out=report.append)
    assert not report, "".join(report)
    assert not any(line.options.get(doctest.SKIP) for line in example.examples)


@each(PUBLIC)
def test_a_public_name_has_an_example(thing):
    stands_for_torchs = vars(torch.nn).get(thing.__name__) in getattr(thing, "__mro__", ())
    assert inspect.getdoc(thing)
    assert stands_for_torchs or ">>> " in thing.__doc__


@each(CLASSES)
def test_fields_are_described(thing):
    for field in inspect.get_annotations(thing):
        assert field.startswith("_") or re.search(rf"^ +{field}: |``{field}``", thing.__doc__, re.M), field


@each(CLASSES)
def test_what_a_subclass_writes_is_described(thing):
    for name, function in vars(thing).items():
        if inspect.isfunction(function) and "NotImplementedError" in function.__code__.co_names:
            assert name in thing.__doc__, name
