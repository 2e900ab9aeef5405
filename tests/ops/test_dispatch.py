"""The tables of what the kernels take."""

import re

import pytest
import torch

import genimg_fast as gf
from genimg_fast.ops._dispatch import EMPTY, REFERENCE, Kernels, Preference, check_backend, refusal


def refused(table, size=3):
    reason = table.why_not((torch.ones(size),))
    with gf.backend("native"), pytest.raises(RuntimeError) as error:
        check_backend("name", reason)
    assert str(error.value) == f"name: backend 'native' was asked for, but {reason}"
    with gf.backend("auto"):
        check_backend("name", reason)
    return reason


def test_a_missing_operator_is_refused_in_the_words_of_info():
    table = Kernels("no_such_operator")
    assert not table.in_library
    assert table.describe()["cpu"] == ("torch", refused(table))
    assert "reinstall" in refused(table)


@pytest.mark.skipif(not gf.info().native, reason=f"no compiled kernels: {gf.info().load_error}")
def test_a_limit_is_refused_in_the_words_of_info():
    def unlike(tensors, options):
        n = tensors[0].numel()
        return EMPTY if n == 0 else refusal("even numbers", n) if n % 2 else None

    small = Preference("numbers below 10", lambda n: n < 10)
    table = Kernels("lstm_cell_update", ["even numbers"], unlike, {"cpu": small})
    assert refused(table, 3) == "its kernels take even numbers, got 3"
    path, reason = table.describe()["cpu"]
    assert path == "native"
    assert re.search(r"which take .*; even numbers; torch's own for numbers below 10$", reason)
    for backend in ("auto", "native"):
        with gf.backend(backend):
            assert table.why_not((torch.ones(4),)) is None
            assert table.why_not((torch.ones(0),)) == EMPTY
            check_backend("name", EMPTY)
            assert table.is_slower("cpu", 4) == (backend == "auto")
            assert not table.is_slower("cpu", 12)
            assert not table.is_slower("cuda", 4)
    with gf.backend("reference"):
        assert table.why_not((torch.ones(4),)) == table.describe()["cpu"][1] == REFERENCE
