"""Counts of operations for ``torch.utils.flop_counter``: what it has for PyTorch's own convolutions.

These are the additions and multiplications of the direct way, in which each pixel of the features meets every
weight once, for all three passes. How many a kernel does is another matter.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from math import prod
from types import ModuleType
from typing import Any

import torch

from genimg_fast import _native

Shape = Sequence[int]
_COUNTER = "torch.utils.flop_counter"


def _count(features: Shape, weight: Shape) -> int:
    return 2 * features[0] * prod(features[2:]) * prod(weight)


# Of the shapes of an operator's tensors and of its result.
_FORMULAS: dict[str, Callable[..., int]] = {
    "bf16_conv": lambda input, weight, stride, padding, size, *, out_shape, **_: _count(
        input if size else out_shape, weight
    ),
    "bf16_conv_weight": lambda image, features, *_, out_shape, **__: _count(features, out_shape),
    "image_conv_from": lambda image, weight, *_, out_shape: _count(out_shape, weight),
    "image_conv_to": lambda features, weight, *_, out_shape: _count(features, weight),
    "image_conv_weight": lambda image, features, *_, out_shape: _count(features, out_shape),
    "winograd_conv2d": lambda image, weight, *_, out_shape: _count(out_shape, weight),
    "winograd_conv_transpose2d": lambda features, weight, *_, out_shape: _count(features, weight),
    "winograd_conv2d_weight_gradient": lambda image, features, *_, out_shape: _count(features, out_shape),
}


def _register(counter: ModuleType) -> None:
    for name, formula in _FORMULAS.items():
        operator = getattr(torch.ops.genimg_fast, name, None)  # the library may be older
        if operator is not None and operator not in counter.flop_registry:
            counter.register_flop_formula(operator)(formula)


class _AtImport(MetaPathFinder):
    """Registers the formulas when the counter is imported, which takes as long as Triton does.

    It stays: a module may be looked for and not imported, fail to import, or be imported again.
    """

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Leave the search to those behind, and add to what the module that they find does."""
        if fullname != _COUNTER:
            return None
        behind = sys.meta_path[sys.meta_path.index(self) + 1 :]
        found = (finder.find_spec(fullname, path, target) for finder in behind)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register(module)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if _native.load_error is None:
    if _COUNTER in sys.modules:
        _register(sys.modules[_COUNTER])
    else:
        sys.meta_path.insert(0, _AtImport())
