import ast
import builtins
import dataclasses
import doctest
import importlib
import inspect
import pkgutil
import re
import textwrap

import pytest
import torch
from docstring_parser import DocstringStyle, parse

import genimg_fast as gf
import genimg_fast.cli

FOUND = [m.name for m in pkgutil.walk_packages(gf.__path__, "genimg_fast.")]
MODULES = [importlib.import_module(name) for name in FOUND if not name.endswith(("__main__", "._C"))]
EXAMPLES = [test for module in (gf, *MODULES) for test in doctest.DocTestFinder().find(module) if test.examples]

PACKAGES = (gf, gf.ops, gf.nn, gf.models, gf.losses, gf.data, gf.training, gf.metrics, gf.editing, gf.bench)
NAMES = {f"{m.__name__}.{n}": getattr(m, n) for m in PACKAGES for n in m.__all__}
PUBLIC = {
    name: thing
    for name, thing in {**NAMES, "genimg_fast.cli.main": genimg_fast.cli.main}.items()
    if callable(thing) and thing.__module__.startswith("genimg_fast")
}
CLASSES = {name: thing for name, thing in PUBLIC.items() if inspect.isclass(thing)}
FUNCTIONS = {name: thing for name, thing in PUBLIC.items() if inspect.isfunction(thing)}
WRITTEN = {False: "__init__", True: "__post_init__"}  # a dataclass's __init__ is not
CONSTRUCTORS = {
    name: constructor
    for name, thing in CLASSES.items()
    if inspect.isfunction(constructor := vars(thing).get(WRITTEN[dataclasses.is_dataclass(thing)]))
    and not getattr(thing, "_is_protocol", False)
}
METHODS = {
    f"{name}.{key}": inspect.unwrap(getattr(method, "__func__", method))
    for name, thing in CLASSES.items()
    for key, method in vars(thing).items()
    if not key.startswith("_") and inspect.isroutine(method)
}


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


def arguments_of(function):
    names = inspect.signature(function).parameters
    return {name for name in names if name not in ("self", "cls") and not name.startswith("_")}


def described_in(docstring):
    documented = parse(docstring or "", DocstringStyle.GOOGLE)
    arguments = [p.arg_name for p in documented.params if p.args[0] == "param"]
    return {name.strip().lstrip("*") for names in arguments for name in names.split(",")}, documented


def errors_not_described(function, documented):
    """What a function raises itself, unless its docstring names it, or lists a class that it is derived from."""
    known = vars(builtins) | function.__globals__
    named = tuple(known[error.type_name] for error in documented.raises if error.type_name in known)
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    raised = [n.exc.func.id for n in ast.walk(tree) if isinstance(n, ast.Raise) and is_call_of_a_name(n.exc)]
    return {
        name
        for name in raised
        if inspect.isclass(known.get(name))
        and not issubclass(known[name], (*named, NotImplementedError))
        and name not in (function.__doc__ or "")
    }


def is_call_of_a_name(node):
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name)


@each(FUNCTIONS)
def test_a_function_has_its_arguments_result_and_errors_described(thing):
    described, documented = described_in(thing.__doc__)
    operator = thing.__name__.removesuffix("_reference")
    if operator != thing.__name__:  # the operator's docstring is its own
        assert f":func:`{operator}`" in thing.__doc__
        assert arguments_of(thing) <= arguments_of(getattr(gf.ops, operator))
        return
    assert described == arguments_of(thing)
    returned = inspect.signature(thing, eval_str=False).return_annotation
    assert returned in (None, "None") or documented.returns is not None
    assert errors_not_described(thing, documented) == set()


@each(CONSTRUCTORS)
def test_a_class_has_its_arguments_and_errors_described(thing, request):
    owner = CLASSES[request.node.callspec.id]
    described, documented = described_in(owner.__doc__)
    assert dataclasses.is_dataclass(owner) or described == arguments_of(thing)  # fields have a test of their own
    assert errors_not_described(thing, documented) == set()


@each(METHODS)
def test_a_method_describes_its_errors_and_all_of_its_arguments_or_none(thing):
    described, documented = described_in(thing.__doc__)
    assert described in (set(), arguments_of(thing))
    assert errors_not_described(thing, documented) == set()
