"""What trainers share that go down one loss with one optimiser."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from genimg_fast.training.trainer import BaseTrainer, Recipe


class OneLossTrainer(BaseTrainer):
    """A trainer whose model learns as a whole, by Adam or Muon.

    Args:
        model: On the device to train on.
        parameters: What the optimiser takes: parameters, or groups of them.
        lr: Learning rate.
        betas: Decay rates of Adam.
        momentum: Decay rate of Muon, instead of Adam.
        recipe: How to train; ``Recipe()`` by default.
        seed: Seed of what is drawn for pictures.
    """

    def __init__(
        self,
        model: Any,
        parameters: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float | None = None,
        recipe: Recipe | None,
        seed: int,
    ) -> None:
        super().__init__(model, recipe=recipe, seed=seed)
        self._forward = self.prepared(model)
        if momentum is None:
            self.add_optimizer("all", parameters, lr=lr, betas=betas)
        else:
            self.add_muon("all", parameters, lr=lr, momentum=momentum)

    def descend(self, losses: Callable[..., Sequence[Tensor]], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        """Take a step down the first of the scalars that ``losses`` makes of each part of a batch.

        Returns:
            All of these scalars, without gradient: means over the parts.
        """
        logged = []
        with self.descending("all"):
            for part in self.parts(*tensors):
                values = losses(*part)
                self.backward(values[0])
                logged.append(torch.stack([value.detach() for value in values]))
        return torch.stack(logged).mean(0).unbind()
