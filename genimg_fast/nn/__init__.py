"""Everything in ``torch.nn``, with fused layers in place of some and beside them.

``import genimg_fast.nn as nn`` works in any script that did ``import torch.nn as nn``: every public name and
submodule is there. ``BatchNorm1d/2d/3d``, ``GroupNorm``, ``InstanceNorm1d/2d/3d``, ``Sequential``, ``RNN``,
``GRU``, ``LSTM``, ``GRUCell``, ``LSTMCell``, and ``Conv2d`` and ``ConvTranspose2d`` at images run on the fused
operators; ``BatchNormAct1d/2d/3d``, ``SyncBatchNormAct``, ``GroupNormAct``, ``InstanceNormAct2d``,
``ConditionalInstanceNormAct2d``, ``ConvLSTM2d``, ``GaussianReparameterization`` and ``DiagonalGaussian`` are new.

These names alone are replaced. Below them are torch's very modules with all that is in them:
``genimg_fast.nn.functional is torch.nn.functional``, and ``genimg_fast.nn.modules.rnn.LSTM`` is torch's LSTM. To
``isinstance``, ``==`` and dictionaries a replaced class is the same as torch's, so that both kinds of layers meet
all of a script's and of torch's own tests.

Files are torch's: a layer that is pickled, by ``torch.save(model)`` for one, names the class of torch.nn and
loads wherever a file made with torch.nn would, with or without this package; ``genimg_fast.fuse(model)`` makes its
layers fused again, and ``torch.load`` does so at once under ``safe_globals([nn.LSTM, ...])`` with the classes of
this package. Programs made by ``torch.export`` and ``torch.jit`` run torch's operators. torch.ao's quantisation
turns the layers it is given into torch's. Layers that torch.nn does not have need this package wherever they go.
"""

from __future__ import annotations

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
from genimg_fast.nn.conv import Conv2d as Conv2d, ConvTranspose2d as ConvTranspose2d
from genimg_fast.nn.group_norm_act import (
    ConditionalInstanceNormAct2d,
    GroupNorm as GroupNorm,
    GroupNormAct,
    InstanceNorm1d as InstanceNorm1d,
    InstanceNorm2d as InstanceNorm2d,
    InstanceNorm3d as InstanceNorm3d,
    InstanceNormAct2d,
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
from genimg_fast.nn.torch_modules import install

__all__ = [
    *(name for name in dir(torch.nn) if not name.startswith("_")),
    "BatchNormAct1d",
    "BatchNormAct2d",
    "BatchNormAct3d",
    "ConditionalInstanceNormAct2d",
    "ConvLSTM2d",
    "DiagonalGaussian",
    "GaussianReparameterization",
    "GroupNormAct",
    "InstanceNormAct2d",
    "SyncBatchNormAct",
]


install()


def __getattr__(name: str) -> object:
    # Names that torch.nn has but does not export with *, and whatever later versions add.
    try:
        return getattr(torch.nn, name)
    except AttributeError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *dir(torch.nn)})
