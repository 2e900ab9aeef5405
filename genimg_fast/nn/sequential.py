"""A Sequential that runs a norm, or a convolution at an image, and the activation behind it as one operator."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from genimg_fast.nn.pending import LISTENERS, Pending, Waiting, call, done, leave, with_activation
from genimg_fast.nn.roles import waits_with
from genimg_fast.nn.stands_for import StandIn


def run_in_order(
    self: nn.Sequential, input: Any, ends: bool = False, *, _gf_around: Iterable[Pending] = ()
) -> Any:
    """Run the modules in order; the result may be pending, unless all ends with the last one."""
    waiting: Waiting = [*_gf_around]  # and `input`, if it is pending
    modules = list(self._modules.values())
    index, last = 0, len(modules) - 1
    while index <= last:
        module, index = modules[index], index + 1
        if type(input) is Pending:
            input = call(waiting, module, input)
        elif index <= last and (result := with_activation(module, modules[index], input)) is not None:
            input, index = result, index + 1
        elif ends and index > last and not (waiting or LISTENERS):  # nothing that follows could run with it
            return module(input)
        else:
            input = call(waiting, module, input)
    return leave(waiting, input, _gf_around)


class Sequential(nn.Sequential, StandIn):
    """Here a norm followed by ReLU, LeakyReLU or SiLU runs fused, and so does a convolution from or to an image.

    Modules with hooks run one by one, so that the hooks see what they always saw.
    """

    _smallest = ()

    def forward(self, input: Tensor) -> Tensor:
        """Run the modules in order."""
        result: Tensor = done(run_in_order(self, input, ends=True))
        return result


waits_with(Sequential.forward, run_in_order)
