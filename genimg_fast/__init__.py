"""Fused C++/CUDA kernels for training image-generation models in PyTorch, as drop-in layers.

``import genimg_fast.nn as nn`` replaces ``import torch.nn as nn``; ``genimg_fast.ops`` holds the operators,
``genimg_fast.models``, ``losses``, ``data`` and ``training`` what is built on them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

# ruff: noqa: E402 - the other imports take seconds, in which Ctrl-C is pressed
from genimg_fast._program import watch_imports

watch_imports()

from genimg_fast import nn, ops
from genimg_fast._fold import fold_batch_norm
from genimg_fast._fuse import fuse, fuse_report, unfuse
from genimg_fast._info import Info, info
from genimg_fast._native import NativeUnavailableWarning, backend, empty_cache, get_backend, set_backend
from genimg_fast._version import __version__

if TYPE_CHECKING:
    from genimg_fast import bench, data, editing, losses, metrics, models, training

_LAZY = ("bench", "data", "editing", "losses", "metrics", "models", "training")

__all__ = [
    "Info",
    "NativeUnavailableWarning",
    "__version__",
    "backend",
    "bench",
    "data",
    "editing",
    "empty_cache",
    "fold_batch_norm",
    "fuse",
    "fuse_report",
    "get_backend",
    "info",
    "losses",
    "metrics",
    "models",
    "nn",
    "ops",
    "set_backend",
    "training",
    "unfuse",
]


def __getattr__(name: str) -> object:
    # Models and recipes are not needed to use a kernel: they load at first use.
    if name in _LAZY:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
