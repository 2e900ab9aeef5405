"""Steps as CUDA graphs. Without a GPU a recorder stands in, which keeps and repeats operators as a graph would."""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trainers import ALL_OPTIONS, TRAINERS, data_for, make

import genimg_fast as gf
from genimg_fast.losses import patches
from genimg_fast.training import BaseTrainer, Recipe, trainer
from genimg_fast.training.graphs import StepGraphs


class Recorder(TorchDispatchMode):
    """Keeps the operators of a function and their tensors, as a CUDA graph does kernels and addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.ran = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # On the CPU alone, models look at the range of their labels, which are integers.
        if func is torch.ops.aten._local_scalar_dense.default and args[0].dtype != torch.int64:
            raise RuntimeError("the processor reads a number back from the device")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        if self.ran:  # a GPU records without computing
            self.ran = False
            return
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class RecordedSteps(StepGraphs):
    def __init__(self, device: torch.device) -> None:
        self.forget()

    def _run_aside(self, function: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        return function()

    def _record(self, function: Callable[[], dict[str, Tensor]]) -> tuple[Callable[[], None], dict[str, Tensor]]:
        with Recorder() as recorder:
            outputs = function()
        return recorder.replay, outputs


@pytest.fixture
def recorded(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if device == "cpu":
        monkeypatch.setattr(trainer, "StepGraphs", RecordedSteps)
        # On the CPU NumPy sorts, which is no operator to record; a GPU runs torch's.
        monkeypatch.setattr(patches, "argsort", lambda values: values.argsort(-1))


def made(name: str, recipe: Recipe, device: str) -> BaseTrainer:
    with torch.device(device):
        return make(name, recipe=recipe, lr=2**-12)  # exact in float32, as a graph has it


def assert_alike(ours: dict[str, Any], theirs: dict[str, Any], device: str) -> None:
    # The same kernels; on a GPU some add up in the order in which blocks happen to finish.
    tolerance = {"rtol": 0, "atol": 0} if device == "cpu" else {"rtol": 1e-2, "atol": 1e-3}
    torch.testing.assert_close(ours, theirs, **tolerance)


@pytest.mark.usefixtures("recorded")
@pytest.mark.parametrize("recipe", [Recipe(), ALL_OPTIONS, Recipe(precision="fp16")], ids=["plain", "all", "fp16"])
@pytest.mark.parametrize("name", TRAINERS)
def test_replayed_steps_equal_usual_ones(
    name: str, recipe: Recipe, digits: gf.data.ImageDataset, device: str
) -> None:
    """With other images, labels, random numbers, learning rates and turns of the generator every time."""
    usual, replayed = (made(name, r, device) for r in (recipe, replace(recipe, cuda_graph=True)))
    dataset = data_for(name, digits).to(device)
    histories: tuple[list[Any], list[Any]] = ([], [])
    for step in range(10):
        images, labels = dataset[torch.arange(8) + step]
        for each, history in zip((usual, replayed), histories, strict=True):
            torch.manual_seed(step)
            history.append(each.step(images, labels))
    for theirs, ours in zip(*histories, strict=True):  # at the end: no later step has written to them
        assert_alike(ours, theirs, device)
    assert_alike(replayed.sampler.state_dict(), usual.sampler.state_dict(), device)
    assert replayed._graphs is not None
    assert len(replayed._graphs._graphs) == (2 if name == "wgan" else 1)


@pytest.mark.usefixtures("recorded")
def test_graphs_are_dropped_with_the_tensors_they_use(digits: gf.data.ImageDataset, device: str) -> None:
    recipe = Recipe(cuda_graph=True)
    images, labels = digits.to(device)[:8]
    first = made("dcgan", recipe, device)
    for _ in range(5):
        first.step(images, labels)
    state = copy.deepcopy(first.state_dict())
    second = made("dcgan", recipe, device)
    for _ in range(5):
        second.step(-images, labels)
    second.load_state_dict(state)
    for _ in range(6):
        values = []
        for each in (first, second):
            torch.manual_seed(0)
            values.append(each.step(images, labels))
        assert_alike(values[1], values[0], device)


@pytest.mark.usefixtures("recorded")
def test_a_batch_of_another_size_has_its_own_graph(digits: gf.data.ImageDataset, device: str) -> None:
    each = made("autoencoder", Recipe(cuda_graph=True), device)
    images, labels = digits.to(device)[:8]
    for _ in range(5):
        for n in (8, 6):
            each.step(images[:n], labels[:n])
    assert each._graphs is not None
    assert len(each._graphs._graphs) == 2


def test_there_are_no_graphs_without_a_gpu() -> None:
    with pytest.raises(ValueError, match="cuda_graph needs a model on a CUDA device, and this one is on cpu"):
        make("vae", recipe=Recipe(cuda_graph=True))
