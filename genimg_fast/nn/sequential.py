"""A Sequential that runs a norm and the activation behind it as one operator."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from genimg_fast.nn.pending import Pending, Waiting, call, done, follows, leave
from genimg_fast.nn.roles import waits_with
from genimg_fast.nn.stands_for import StandIn


def run_in_order(self: nn.Sequential, input: Any) -> Any:
    """Run the modules in order; the result may be pending."""
    waiting: Waiting = []  # empty, or what waits is `input`
    modules = list(self._modules.values())
    index, last = 0, len(modules) - 1
    while index <= last:
        module, index = modules[index], index + 1
        if type(input) is Pending:
            input = call(waiting, module, input)
        elif index <= last and (pair := follows(module, modules[index], input)) is not None:
            run, *activation = pair
            input = run(module, input, *activation)
            index += 1
        else:
            input = call(waiting, module, input)
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
