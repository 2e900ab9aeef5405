"""The user's own model, plain against fused."""

import math
from typing import Any

import pytest
import torch
from torch import nn

import genimg_fast as gf
from genimg_fast.bench import own


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
        ((nn.ReLU(), torch.ones(2)), {"seconds": 0}, ValueError, "seconds must be finite and more than 0, got 0"),
        ((nn.ReLU(), torch.ones(2)), {"seconds": math.nan}, ValueError, "seconds must be .* got nan"),
        ((nn.ReLU(), torch.ones(2)), {"seconds": math.inf}, ValueError, "seconds must be .* got inf"),
        ((nn.ReLU(), torch.ones(2)), {"seconds": "1"}, TypeError, "seconds must be a number, got str"),
    ],
)
def test_bad_arguments(
    arguments: tuple[Any, ...], options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        gf.bench.compare(*arguments, **{"seconds": 0.1} | options)


class WrongInFloat32(nn.Module):
    """As torch's instance norm in channels_last, whose gradient of one sample is wrong."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu() * (2 if x.dtype == torch.float32 else 1)


def test_a_wrong_result_of_torch_is_called_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "unfuse", lambda module: WrongInFloat32())
    words = r"PyTorch's own result is wrong.*: eager: results\[0\] of inputs differ"
    with pytest.raises(gf.bench.WrongResultError, match=words):
        gf.bench.compare(nn.ReLU(), torch.randn(2, 4), direction="forward", seconds=0.1)


def test_a_wrong_result_of_ours_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "fuse", lambda module: WrongInFloat32())
    with pytest.raises(gf.bench.WrongResultError, match=r"^genimg_fast: results\[0\] of inputs differ"):
        gf.bench.compare(nn.ReLU(), torch.randn(2, 4), direction="forward", seconds=0.1)
