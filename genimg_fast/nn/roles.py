"""What a class of layers is to a norm that waits: an activation, a norm, something that leaves values alone.

A class is known by its ``forward``, or by that of the torch class that it stands for. What was found is
remembered, as a network calls the same few classes over and over.
"""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from genimg_fast.nn.batch_norm_act import BatchNorm1d, BatchNorm2d, BatchNorm3d
from genimg_fast.nn.conv import Conv2d, ConvTranspose2d
from genimg_fast.nn.group_norm_act import (
    GroupNorm,
    InstanceNorm1d,
    InstanceNorm2d,
    InstanceNorm3d,
    forward_group_norm,
    forward_instance_norm,
)
from genimg_fast.nn.stands_for import torch_class

Role = tuple[int, Any]
_CALL = nn.Module.__call__

# What a class of layers is here, with what belongs to it.
OTHER = 0
ACTIVATION = 1  # its name
IDENTITY, DROPOUT = 2, 3
LEAF = 4  # the name of an activation that norms do not run with
IMAGE_CONV = 5
WAITS = 6  # the form of its forward whose result may be pending
BATCH_NORM, SYNC_BATCH_NORM, FROZEN = 7, 8, 9
GROUP_NORM = 10  # what runs it
NORMS = (BATCH_NORM, SYNC_BATCH_NORM, FROZEN, GROUP_NORM)
# By the ids of classes: what they were found to be, as long as they, their forward, and that of the torch class
# that they stand for, are these.
_ROLES: dict[int, tuple[Any, Any, Any, Any, Role]] = {}


def waits_with(forward: Any, waiting_forward: Callable[..., Any]) -> None:
    """Tell that a class's ``forward`` has a form whose result may be pending; a derived class may have another."""
    forward._gf_waiting = waiting_forward


def is_observed(layer: nn.Module) -> bool:
    """Whether calling a layer does more than to run its class's forward: hooks, a compiled or replaced forward."""
    return bool(
        layer._forward_hooks
        or layer._forward_pre_hooks
        or layer._backward_hooks
        or layer._backward_pre_hooks
        or layer._compiled_call_impl is not None
        or "forward" in layer.__dict__
        or type(layer).__call__ is not _CALL
        or _has_any_global_hook()
    )


def role_of(cls: Any) -> Role:
    """Find what a class of layers is, and what belongs to that."""
    if torch.compiler.is_compiling():
        return _find_role(cls)
    known, forward = _ROLES.get(id(cls)), getattr(cls, "forward", None)
    if known is not None and known[0]() is cls and forward is known[1]() and known[2].forward is known[3]:
        return known[4] if known[4][0] != WAITS else (WAITS, forward._gf_waiting)
    role, plain = _find_role(cls), torch_class(cls)
    # None of these may keep the class alive, as its own forward would, or the form of that which may wait.
    if plain is cls:
        plain = nn.Module
    if isinstance(forward, types.FunctionType):
        kept = role if role[0] != WAITS else (WAITS, None)
        _ROLES[id(cls)] = weakref.ref(cls), weakref.ref(forward), plain, plain.forward, kept
    return role


def is_leaf(role: Role) -> bool:
    """Whether layers are called as they are, but for activations behind what waits."""
    return ACTIVATION <= role[0] <= IMAGE_CONV


def _find_role(cls: Any) -> Role:
    forward = getattr(cls, "forward", None)
    if _KNOWN.get(cls, (None,))[0] is forward and forward is not None:  # else somebody has replaced it
        return _KNOWN[cls][1]
    if forward in _IMAGE_CONV_FORWARDS:
        return IMAGE_CONV, None
    plain = getattr(torch_class(cls), "forward", None)
    if plain in _FORWARDS:
        return (SYNC_BATCH_NORM if issubclass(cls, nn.SyncBatchNorm) else BATCH_NORM), None
    if plain in _GROUP_NORM_FORWARDS:
        return GROUP_NORM, forward_group_norm
    if plain in _INSTANCE_NORM_FORWARDS:
        return GROUP_NORM, forward_instance_norm
    if cls.__name__ == "FrozenBatchNorm2d":
        return FROZEN, None
    waits = getattr(forward, "_gf_waiting", None)
    return (OTHER, None) if waits is None else (WAITS, waits)


def is_batch_norm(layer: nn.Module) -> bool:
    """Whether a layer is a batch norm whose call may wait; it may have another kind of forward now and then."""
    kind = role_of(type(layer))[0]
    return kind in (BATCH_NORM, SYNC_BATCH_NORM) or (kind == FROZEN and is_frozen(layer))


def is_frozen(layer: nn.Module) -> bool:
    """Whether a layer is a batch norm of constants, as detection models have them, torchvision's for one."""
    if len(layer._buffers) != 4 or layer._parameters:
        return False
    return all(
        isinstance(layer._buffers.get(n), Tensor) for n in ("weight", "bias", "running_mean", "running_var")
    )


def is_group_norm(layer: nn.Module) -> bool:
    """Whether a layer is a group norm, or an instance norm, whose call may wait."""
    return role_of(type(layer))[0] == GROUP_NORM


# Layers of torch's, with their forward and what they are here.
_KNOWN: dict[Any, tuple[Any, Role]] = {
    cls: (cls.forward, role)
    for role, classes in (
        ((ACTIVATION, "relu"), (nn.ReLU,)),
        ((ACTIVATION, "leaky_relu"), (nn.LeakyReLU,)),
        ((ACTIVATION, "silu"), (nn.SiLU,)),
        ((IDENTITY, None), (nn.Identity,)),
        ((LEAF, "tanh"), (nn.Tanh,)),
        ((LEAF, "sigmoid"), (nn.Sigmoid,)),
        ((DROPOUT, None), (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)),
        (
            (LEAF, None),
            (
                nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
                nn.Linear, nn.GELU, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d,
                nn.Upsample, nn.Flatten, nn.Unflatten,
            ),
        ),
    )
    for cls in classes
}  # fmt: skip
_IMAGE_CONV_FORWARDS = (Conv2d.forward, ConvTranspose2d.forward)
_FORWARDS = (
    nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward, *(c.forward for c in (BatchNorm1d, BatchNorm2d, BatchNorm3d))
)  # fmt: skip
_GROUP_NORM_FORWARDS = (nn.GroupNorm.forward, GroupNorm.forward)
_INSTANCE_NORM_FORWARDS = (
    nn.InstanceNorm2d.forward, *(c.forward for c in (InstanceNorm1d, InstanceNorm2d, InstanceNorm3d))
)  # fmt: skip
