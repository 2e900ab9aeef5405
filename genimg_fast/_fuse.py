"""Switching existing torch models to the fused layers and back, in place."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from genimg_fast.nn.stands_for import STAND_INS, become_torchs

Model = TypeVar("Model", bound=nn.Module)


def fuse(model: Model) -> Model:
    """Make a model's ``Sequential``, batch norm and recurrent layers run on the fused operators, in place.

    Parameters, buffers, hooks, ``state_dict`` keys and optimizer references stay what they are. A model that was
    loaded whole, from what ``torch.save(model)`` wrote, has torch's layers: this makes them fused again.

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
    for module in model.modules():
        if type(module) in STAND_INS:
            # They add no state to torch's classes, so changing an instance's class is all it takes.
            module.__class__ = STAND_INS[type(module)]
    return model


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
    for module in model.modules():
        become_torchs(module)
    return model
