"""A Sequential that runs a norm and the activation behind it as one operator."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from genimg_fast.nn.pending import LEAVES, Pending, Waiting, call, done, leave, waits_with
from genimg_fast.nn.stands_for import StandIn


def run_in_order(self: nn.Sequential, input: Any) -> Any:
    """Run the modules in order; the result may be pending."""
    waiting: Waiting = []
    for module in self._modules.values():
        # What waits here is `input`, or nothing.
        direct = type(module) in LEAVES and type(input) is not Pending
        input = module(input) if direct else call(waiting, module, input)
    return leave(waiting, input)


class Sequential(nn.Sequential, StandIn):
    """Here a norm followed by ReLU, LeakyReLU or SiLU runs fused.

    Modules with hooks run one by one, so that the hooks see what they always saw.
    """

    _smallest = ()

    def forward(self, input: Tensor) -> Tensor:
        """Run the modules in order."""
        result: Tensor = done(run_in_order(self, input))
        return result


waits_with(Sequential.forward, run_in_order)
