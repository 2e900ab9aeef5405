"""Training steps as CUDA graphs: one launch instead of hundreds."""

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

# Steps that run as usual first: they make what is made once, such as an optimiser's state and cuDNN's choices.
_WARM_UP = 3

Compute = Callable[..., dict[str, Tensor]]


class StepGraphs:
    """Runs a step the usual way a few times, then records it in a CUDA graph, and from there on replays that.

    A graph holds fixed shapes, addresses and decisions, so there is one for each kind of step: the shapes of its
    tensors and the settings that its code branches on. Whatever else changes from step to step has to be a tensor.

    Args:
        device: Where the steps run.

    Raises:
        ValueError: If that is not a CUDA device.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ValueError(f"cuda_graph needs a model on a CUDA device, and this one is on {device}")
        # Gradients are added up on the stream that first saw them: usual steps and the recording share one.
        self._stream = torch.cuda.Stream(device)
        self.forget()

    def forget(self) -> None:
        """Drop all graphs: the tensors that they use are no longer the trainer's."""
        self._steps_of: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, tuple[Callable[[], None], tuple[Tensor | None, ...], dict[str, Tensor]]] = {}

    def run(
        self, compute: Compute, tensors: tuple[Tensor | None, ...], settings: dict[str, Any]
    ) -> dict[str, Tensor]:
        """Take the step ``compute(*tensors, **settings)``; return its scalars."""
        layouts = tuple(None if t is None else (t.shape, t.stride(), t.dtype) for t in tensors)
        kind = (layouts, tuple(settings.items()))
        if kind not in self._graphs:
            self._steps_of[kind] += 1
            if self._steps_of[kind] <= _WARM_UP:
                return self._run_aside(lambda: compute(*tensors, **settings))
            inputs = tuple(None if t is None else t.clone() for t in tensors)
            replay, outputs = self._record(lambda: compute(*inputs, **settings))
            self._graphs[kind] = replay, inputs, outputs
        replay, inputs, outputs = self._graphs[kind]
        for ours, given in zip(inputs, tensors, strict=True):
            if ours is not None and given is not None:
                ours.copy_(given)
        replay()
        # The next replay writes to the same memory.
        return {name: value.clone() for name, value in outputs.items()}

    def _run_aside(self, function: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = function()
        current.wait_stream(self._stream)
        return outputs

    def _record(self, function: Callable[[], dict[str, Tensor]]) -> tuple[Callable[[], None], dict[str, Tensor]]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream):
            outputs = function()
        return graph.replay, outputs
