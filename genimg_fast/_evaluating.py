"""A context in which a model is in evaluation mode."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import nn


class HasModes(Protocol):
    """What is needed of a model: any ``torch.nn.Module`` has it."""

    def modules(self) -> Iterable[nn.Module]: ...

    def eval(self) -> Any: ...


@contextmanager
def evaluating(model: HasModes) -> Iterator[None]:
    """Put a model into evaluation mode, and afterwards each of its modules back into the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
