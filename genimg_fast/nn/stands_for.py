"""The metaclass of layers that take the place of a torch.nn class."""

from __future__ import annotations

from abc import ABCMeta
from typing import Any


class StandsFor(ABCMeta):
    """Makes ``isinstance(layer, genimg_fast.nn.X)`` mean ``isinstance(layer, torch.nn.X)``.

    A script whose ``nn`` is this package asks that of layers that it did not make itself, those of torchvision's
    models for one. It holds for the direct subclass of the torch class only, not for what users derive from it.
    Derived from ABCMeta, so that abstract bases can be mixed in as with torch's classes.
    """

    def __instancecheck__(cls, instance: Any) -> bool:
        return cls.__subclasscheck__(type(instance))

    def __subclasscheck__(cls, subclass: type) -> bool:
        plain = cls.__bases__[0]
        if plain.__module__.startswith("torch.nn.") and plain.__name__ == cls.__name__:
            return issubclass(subclass, plain)
        return super().__subclasscheck__(subclass)
