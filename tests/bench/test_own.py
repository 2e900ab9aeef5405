"""The user's own model, plain against fused."""

from typing import Any

import pytest
import torch
from torch import nn

import genimg_fast as gf


def test_a_module_is_compared_with_its_fused_copy() -> None:
    net = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())
    found = gf.bench.compare(net, torch.randn(2, 4, 8, 8), seconds=0.1)
    assert found.ratio().value > 0
    assert str(found).startswith("both: ")
    assert type(net[0]) is nn.BatchNorm2d  # a copy was fused


def test_a_function_is_compared_with_plain_pytorch() -> None:
    def normed(x: torch.Tensor) -> torch.Tensor:
        return gf.ops.group_norm_act(x, 2)

    found = gf.bench.compare(normed, [torch.randn(2, 4, 8, 8)], direction="forward", seconds=0.1)
    assert str(found).startswith("forward: ")


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (("net", torch.ones(2)), {}, TypeError, "module_or_function must be a module or a function, got str"),
        ((nn.ReLU(), 3), {}, TypeError, "inputs must be a tensor, or a list of what it takes, got int"),
        ((nn.ReLU(), {"x": torch.ones(2)}), {}, TypeError, "inputs must be .* got dict"),
        ((nn.ReLU(), torch.ones(2)), {"direction": "step"}, ValueError, "must be 'forward' or 'both', got 'step'"),
        ((nn.ReLU(), torch.ones(2)), {}, ValueError, "requires a gradient: forward alone can be timed"),
    ],
)
def test_bad_arguments(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        gf.bench.compare(*arguments, seconds=0.1, **options)
