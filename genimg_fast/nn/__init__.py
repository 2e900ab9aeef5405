"""Everything in ``torch.nn``, with fused layers in place of some and beside them.

``import genimg_fast.nn as nn`` works in any script that did ``import torch.nn as nn``: every public name and
submodule is there. ``BatchNorm1d/2d/3d``, ``Sequential``, ``RNN``, ``GRU``, ``LSTM``, ``GRUCell`` and ``LSTMCell``
run on the fused operators; ``BatchNormAct1d/2d/3d``, ``SyncBatchNormAct``, ``ConvLSTM2d``,
``GaussianReparameterization`` and ``DiagonalGaussian`` are new.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

import torch.nn
from torch.nn import *  # noqa: F403

from genimg_fast.nn.batch_norm_act import (
    BatchNorm1d as BatchNorm1d,
    BatchNorm2d as BatchNorm2d,
    BatchNorm3d as BatchNorm3d,
    BatchNormAct1d,
    BatchNormAct2d,
    BatchNormAct3d,
)
from genimg_fast.nn.recurrent import (
    GRU as GRU,
    LSTM as LSTM,
    RNN as RNN,
    ConvLSTM2d,
    GRUCell as GRUCell,
    LSTMCell as LSTMCell,
)
from genimg_fast.nn.reparameterize_kl import DiagonalGaussian, GaussianReparameterization
from genimg_fast.nn.sequential import Sequential as Sequential
from genimg_fast.nn.sync_batch_norm_act import SyncBatchNormAct

__all__ = [
    *(name for name in dir(torch.nn) if not name.startswith("_")),
    "BatchNormAct1d",
    "BatchNormAct2d",
    "BatchNormAct3d",
    "ConvLSTM2d",
    "DiagonalGaussian",
    "GaussianReparameterization",
    "SyncBatchNormAct",
]


class _TorchSubmodules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Serves ``import genimg_fast.nn.X`` with the very module ``torch.nn.X`` where this package has no X."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not fullname.startswith(f"{__name__}."):
            return None
        if importlib.util.find_spec(self._torch_name(fullname)) is None:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        # The import system hands back what stands in sys.modules: torch's module, its own __spec__ untouched.
        sys.modules[module.__name__] = importlib.import_module(self._torch_name(module.__name__))

    @staticmethod
    def _torch_name(fullname: str) -> str:
        return "torch.nn" + fullname.removeprefix(__name__)


sys.meta_path.append(_TorchSubmodules())


def __getattr__(name: str) -> object:
    # Names that torch.nn has but does not export with *, and whatever later versions add.
    return getattr(torch.nn, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(torch.nn)})
