"""The tables of what the kernels take."""

import re

import pytest
import torch

import genimg_fast as gf
from genimg_fast.ops._dispatch import EMPTY, Kernels, Limit, Preference


def refusal(table, *call):
    with gf.backend("native"), pytest.raises(RuntimeError) as error:
        table.take("name", (torch.ones(3),), *call)
    words = "name: backend 'native' was asked for, but "
    assert str(error.value).startswith(words)
    with gf.backend("auto"):
        assert not table.take("name", (torch.ones(3),), *call)
    return str(error.value).removeprefix(words)


def test_a_missing_operator_is_refused_in_the_words_of_info():
    table = Kernels("no_such_operator")
    assert not table.in_library
    assert table.describe()["cpu"] == ("torch", refusal(table))
    assert "reinstall" in refusal(table)


@pytest.mark.skipif(not gf.info().native, reason=f"no compiled kernels: {gf.info().load_error}")
def test_a_limit_is_refused_in_the_words_of_info():
    even = Limit("even numbers", lambda n: str(n) if n % 2 else None)
    small = Preference("numbers below 10", lambda n: n < 10)
    table = Kernels("lstm_cell_update", [even], {"cpu": small}, lambda n: EMPTY if n == 0 else None)
    assert refusal(table, 3) == "its kernels take even numbers, got 3"
    path, reason = table.describe()["cpu"]
    assert path == "native"
    assert re.search(r"which take .*; even numbers; torch's own for numbers below 10$", reason)
    for backend in ("auto", "native"):
        with gf.backend(backend):
            assert table.take("name", (torch.ones(3),), 4)
            assert not table.take("name", (torch.ones(3),), 0)
            assert table.is_slower("cpu", 4) == (backend == "auto")
            assert not table.is_slower("cpu", 12)
            assert not table.is_slower("cuda", 4)
    with gf.backend("reference"):
        assert not table.take("name", (torch.ones(3),), 4)
