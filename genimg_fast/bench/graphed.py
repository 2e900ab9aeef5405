"""Eager PyTorch as a CUDA graph, the peer of whatever gains by launching less."""

import copy
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn


class Graphed(nn.Module):
    """Records a function or a module with :func:`torch.cuda.make_graphed_callables`, which users would call, too.

    Inputs are copied to where the graph reads them. Results lie where the next call writes its own.

    Args:
        function: What to record; of a module a copy, for inputs of one kind.

    Raises:
        RuntimeError: If a module's inputs are of another kind than those that were recorded.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = copy.deepcopy(function) if isinstance(function, nn.Module) else function
        self._recorded: dict[Hashable, Callable[..., Any]] = {}

    def forward(self, *inputs: Any, **options: Any) -> Any:
        """Compute, by a graph that is recorded in the first call with tensors of this kind."""
        values = [*inputs, *options.values()]
        tensors = [value for value in values if isinstance(value, Tensor)]
        kinds = tuple((t.shape, t.stride(), t.dtype, t.requires_grad) for t in tensors)
        key = kinds, tuple(options), torch.is_grad_enabled()
        if key not in self._recorded:
            samples = tuple(t.detach().clone().requires_grad_(t.requires_grad) for t in tensors)
            self._recorded[key] = self._record(inputs, options, samples)
        return self._recorded[key](*tensors)

    def _record(
        self, inputs: tuple[Any, ...], options: dict[str, Any], samples: tuple[Tensor, ...]
    ) -> Callable[..., Any]:
        record: Any = torch.cuda.make_graphed_callables
        if isinstance(self.function, nn.Module):
            if self._recorded:
                raise RuntimeError("a module's graph takes inputs of one kind alone")
            return record(self.function, samples, allow_unused_input=True)

        def of_tensors(*tensors: Tensor) -> Any:
            rest = iter(tensors)
            values = [next(rest) if isinstance(v, Tensor) else v for v in (*inputs, *options.values())]
            return self.function(*values[: len(inputs)], **dict(zip(options, values[len(inputs) :], strict=True)))

        return record(of_tensors, samples, allow_unused_input=True)
