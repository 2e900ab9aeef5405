import copy
import itertools
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from genimg_fast import nn
from genimg_fast.training.processes import process_group, rank

# Rows of the whole batch that each of the two processes has.
SPLITS = {"even": (3, 3), "ragged": (5, 1), "empty": (6, 0)}
CHANNELS = 4
OPTIONS: list[dict[str, Any]] = [
    {"activation": "relu"},
    {"activation": "silu"},
    {"activation": "leaky_relu", "negative_slope": 0.2, "momentum": None},
    {"activation": "identity", "affine": False, "track_running_stats": False},
]


def whole_batch() -> Tensor:
    x = torch.randn(6, CHANNELS, 3, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x + 100 * torch.arange(CHANNELS).view(1, -1, 1, 1)  # far from zero: E[x^2] - E[x]^2 would show


def plain_layer(options: dict[str, Any]) -> nn.BatchNormAct2d:
    torch.manual_seed(1)
    layer = nn.BatchNormAct2d(CHANNELS, dtype=torch.float64, **options)
    if layer.affine:
        torch.nn.init.uniform_(layer.weight)
        torch.nn.init.uniform_(layer.bias)
    return layer


def derivatives(layer: torch.nn.Module, x: Tensor, residual: Tensor, weights: Tensor) -> list[Tensor]:
    """Output, gradient, and the gradient of a gradient penalty, at the input."""
    output = layer(x, residual)
    (first,) = torch.autograd.grad((output * weights).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    return [output.detach(), first.detach(), second]


def parameter_gradients(layer: torch.nn.Module, x: Tensor, weights: Tensor) -> list[Tensor]:
    twin = copy.deepcopy(layer)  # whose running statistics may change
    loss = (twin(x) * weights).sum()
    return list(torch.autograd.grad(loss, list(twin.parameters()))) if layer.affine else []


def in_a_process(folder: str) -> None:
    torch.set_num_threads(1)
    results = {}
    with process_group(torch.device("cpu")):
        for (name, split), options in itertools.product(SPLITS.items(), OPTIONS):
            layer = nn.SyncBatchNormAct.convert_sync_batchnorm(plain_layer(options))
            assert isinstance(layer, nn.SyncBatchNormAct)
            begin = sum(split[: rank()])
            rows = slice(begin, begin + split[rank()])
            x = whole_batch()[rows].requires_grad_()
            weights = whole_batch().flip(0).cos()[rows]
            found = derivatives(layer, x, x.detach().sin(), weights)
            state = {key: value.clone() for key, value in layer.state_dict().items()}
            parameters = parameter_gradients(layer, x, weights)
            results[name, OPTIONS.index(options)] = (found, parameters, state)
        half = nn.SyncBatchNormAct(CHANNELS, momentum=None).bfloat16()
        half.num_batches_tracked.fill_(256)  # a number of which bfloat16 does not hold the successor
        half(whole_batch()[rank() :: 2].bfloat16()).float().sum().backward()
        results["16 bits"] = half.state_dict()
        with pytest.raises(ValueError, match="more than 1 value per channel when training, over all processes"):
            nn.SyncBatchNormAct(2)(torch.ones(1 - rank(), 2))
        torch.save(results, f"{folder}/{rank()}.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("processes")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, __file__, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{k}.pt") for k in (0, 1)]


@pytest.mark.parametrize("option", range(len(OPTIONS)))
@pytest.mark.parametrize("split", SPLITS)
def test_two_processes_equal_one_with_the_whole_batch(split: str, option: int, results: list[Any]) -> None:
    layer = plain_layer(OPTIONS[option])
    x = whole_batch().requires_grad_()
    weights = whole_batch().flip(0).cos()
    expected = derivatives(layer, x, x.detach().sin(), weights)
    state = dict(layer.state_dict())
    parameters = parameter_gradients(layer, x, weights)
    (first, first_parameters, first_state), (second, second_parameters, second_state) = (
        found[split, option] for found in results
    )
    for a, b, whole in zip(first, second, expected, strict=True):
        torch.testing.assert_close(torch.cat((a, b)), whole, rtol=1e-9, atol=1e-10)
    for a, b, whole in zip(first_parameters, second_parameters, parameters, strict=True):
        torch.testing.assert_close(a + b, whole, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(first_state, state, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(second_state, first_state, rtol=0, atol=0)


def test_16_bits_throughout(results: list[Any]) -> None:
    whole = nn.BatchNorm2d(CHANNELS, momentum=None).bfloat16()
    whole.num_batches_tracked.fill_(256)
    whole(whole_batch().bfloat16())
    for found in results:
        torch.testing.assert_close(found["16 bits"], whole.state_dict(), rtol=0.01, atol=0.01)


def test_conversion_keeps_parameters_statistics_and_activation() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNormAct2d(4, activation="leaky_relu"),
        torch.nn.BatchNorm2d(4, momentum=None),
    )  # fmt: skip
    before, tensors = copy.deepcopy(model), dict(model.state_dict(keep_vars=True))
    converted = nn.SyncBatchNormAct.convert_sync_batchnorm(model)
    assert converted is model
    assert [type(layer).__name__ for layer in model] == [
        "Conv2d", "SyncBatchNormAct", "ReLU", "SyncBatchNormAct", "SyncBatchNormAct",
    ]  # fmt: skip
    assert [model[k].activation for k in (1, 3, 4)] == ["identity", "leaky_relu", "identity"]
    assert model[4].momentum is None
    assert all(value is tensors[key] for key, value in model.state_dict(keep_vars=True).items())
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model(x), before(x))  # alone, it is a batch norm like others
    torch.testing.assert_close(model.eval()(x), before.eval()(x))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="expected at least 2D input"):
        nn.SyncBatchNormAct(4)(torch.randn(4))
    with pytest.raises(ValueError, match="unknown activation 'gelu'"):
        nn.SyncBatchNormAct(4, activation="gelu")


if __name__ == "__main__":
    in_a_process(sys.argv[1])
