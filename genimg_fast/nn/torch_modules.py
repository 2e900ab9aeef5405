"""Lets ``import genimg_fast.nn.X`` find torch.nn's module X."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

_OURS, _TORCHS = "genimg_fast.nn", "torch.nn"


def give_names() -> None:
    """Give each module of torch.nn that is loaded its name below genimg_fast.nn, unless this package has the name.

    Those need no import: it would set the module as an attribute of its parent, where torch may have put something
    else, as ``torch.nn.utils.weight_norm`` is a function.
    """
    for name, module in list(sys.modules.items()):
        if name.startswith(f"{_TORCHS}."):
            sys.modules.setdefault(_OURS + name.removeprefix(_TORCHS), module)


class TorchModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds, below genimg_fast.nn, the very modules of torch.nn where this package has none of its own."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return how to load a module of torch.nn, None for others."""
        if not fullname.startswith(f"{_OURS}."):
            return None
        child = fullname.removeprefix(f"{_OURS}.")
        if "." not in child and PathFinder.find_spec(fullname, path) is not None:
            return None
        if importlib.util.find_spec(f"{_TORCHS}.{child}") is None:
            return None
        return ModuleSpec(fullname, self)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Leave it to the import system: the module is only in the way until torch's is there."""
        return None

    def exec_module(self, module: ModuleType) -> None:
        """Put torch's module in place of this one; the import system hands on what it finds there."""
        own = module.__name__
        sys.modules[own] = importlib.import_module(_TORCHS + own.removeprefix(_OURS))
        give_names()


def install() -> None:
    """Serve imports from now on, before the finder of files, which would load a file of torch's once more."""
    if not any(isinstance(finder, TorchModules) for finder in sys.meta_path):
        sys.meta_path.insert(0, TorchModules())
    give_names()
