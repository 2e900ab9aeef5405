"""The list of all cases, by name, and how a name is found."""

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from genimg_fast._close_names import did_you_mean
from genimg_fast.bench.case import Case

Kind = Literal["ops", "models", "own"]
OURS = "genimg_fast"


class Entry(NamedTuple):
    """A line of the list.

    Attributes:
        name: Operator or model, then what tells it from others.
        kind: ``"ops"``, ``"models"``, or ``"own"``: of a file of the user's.
        dtype: Of the data, in words.
        short: Whether it is in the short list, which runs without a filter.
        build: Makes the case on a device.
        step: Whether it is a training step.
    """

    name: str
    kind: Kind
    dtype: str
    short: bool
    build: Callable[[str], Case]
    step: bool = False

    def case(self, device: str) -> Case:
        """Make the case, of the same random numbers at each call."""
        torch.manual_seed(0)
        return self.build(device)


def own_entries(where: str) -> list[Entry]:
    """List the cases that a function of the user's returns.

    Args:
        where: ``FILE.py:FUNCTION``; the function takes nothing and returns a case, or cases by name.

    Returns:
        Their entries.

    Raises:
        ValueError: If there is no such file or function, or it returns something else.
    """
    file, _, name = where.rpartition(":")
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"must be FILE.py:FUNCTION; there is no file {file!r}")
    spec = importlib.util.spec_from_file_location(f"genimg_fast_bench_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"must be FILE.py:FUNCTION; {file!r} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # torch.compile and pickle look there
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    function = getattr(module, name, None)
    if not callable(function):
        public = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        raise ValueError(f"must be FILE.py:FUNCTION; {file} has no function {name!r}{did_you_mean(name, public)}")
    torch.manual_seed(0)
    found = function()
    cases = {name: found} if isinstance(found, Case) else found
    if not isinstance(cases, Mapping) or not all(isinstance(case, Case) for case in cases.values()) or not cases:
        raise ValueError(f"must return a gf.bench.Case, or a dictionary of some; {name} returns {found!r:.200}")

    def built(label: str) -> Callable[[str], Case]:
        def build(device: str) -> Case:
            again = function()
            return again if isinstance(again, Case) else again[label]

        return build

    return [
        Entry(str(label), "own", "", True, built(label), "step" in case.passes) for label, case in cases.items()
    ]


def choose(
    entries: Sequence[Entry], what: str, words: Sequence[str] = (), dtypes: Sequence[str] = ()
) -> list[Entry]:
    """Choose from the list.

    Args:
        entries: The list.
        what: ``"ops"``, ``"models"``, ``"own"`` or ``"all"``.
        words: What a name must hold, all of it; without any, the short list.
        dtypes: Of the data; without any, all.

    Returns:
        The chosen ones, in the list's order.
    """
    found = [e for e in entries if what in ("all", e.kind)]
    found = [e for e in found if all(word in e.name for word in words)] if words else [e for e in found if e.short]
    return [e for e in found if not dtypes or not e.dtype or e.dtype in dtypes]
