"""Switching existing torch models to the fused layers and back, in place."""

from __future__ import annotations

from typing import TypeVar

from torch import nn as torch_nn

from genimg_fast import nn

Model = TypeVar("Model", bound=torch_nn.Module)

# The classes on the right add no state to those on the left, so changing an instance's class is all it takes.
_FUSED = {
    torch_nn.Sequential: nn.Sequential,
    torch_nn.BatchNorm1d: nn.BatchNorm1d,
    torch_nn.BatchNorm2d: nn.BatchNorm2d,
    torch_nn.BatchNorm3d: nn.BatchNorm3d,
    torch_nn.RNN: nn.RNN,
    torch_nn.GRU: nn.GRU,
    torch_nn.LSTM: nn.LSTM,
    torch_nn.GRUCell: nn.GRUCell,
    torch_nn.LSTMCell: nn.LSTMCell,
}
_PLAIN = {fused: plain for plain, fused in _FUSED.items()}


def fuse(model: Model) -> Model:
    """Make a model's ``Sequential``, batch norm and recurrent layers run on the fused operators, in place.

    Parameters, buffers, hooks, ``state_dict`` keys and optimizer references stay what they are.

    Args:
        model: Any module; subclasses of the torch layers are left alone.

    Returns:
        The same object.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.fuse(torch.nn.Sequential(torch.nn.BatchNorm1d(8), torch.nn.ReLU()))
        >>> type(model)
        <class 'genimg_fast.nn.sequential.Sequential'>
    """
    return _change_classes(model, _FUSED)


def unfuse(model: Model) -> Model:
    """Undo :func:`fuse`, in place.

    Args:
        model: Any module; layers made with ``genimg_fast.nn`` itself become torch's, too. ``BatchNormAct`` layers
            have no counterpart and stay.

    Returns:
        The same object.

    Example:
        >>> import torch, genimg_fast as gf
        >>> type(gf.unfuse(gf.nn.Sequential(gf.nn.BatchNorm1d(8), gf.nn.ReLU())))
        <class 'torch.nn.modules.container.Sequential'>
    """
    return _change_classes(model, _PLAIN)


def _change_classes(model: Model, replacement: dict[type, type]) -> Model:
    for module in model.modules():
        if type(module) in replacement:
            module.__class__ = replacement[type(module)]
    return model
