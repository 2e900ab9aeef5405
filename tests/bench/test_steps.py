"""Whole training steps: ours, and the loops that people start from, on small models."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from genimg_fast.bench import Case, Step, WrongResultError, loops, networks
from genimg_fast.bench.entries import OURS
from genimg_fast.bench.loops import Setting
from genimg_fast.bench.step_gate import StepGate, seeded_call
from genimg_fast.models import (
    DCGAN,
    MLPVAE,
    VAE,
    VQVAE,
    WGAN,
    ConditionalDCGAN,
    CycleGAN,
    FramePredictor,
    Pix2Pix,
    ResidualGAN,
    ResidualVAE,
)
from genimg_fast.training import Recipe

SMALL: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "DCGAN": (partial(DCGAN, z_dim=4, c_dim=1, channels=4, n_blocks=2), (4, 1, 16, 16)),
    "WGAN-GP": (partial(WGAN, z_dim=4, channels=4, n_blocks=2), (4, 3, 16, 16)),
    "ResidualGAN-GP": (partial(ResidualGAN, z_dim=4, channels=4), (2, 3, 32, 32)),
    "cDCGAN": (
        partial(ConditionalDCGAN, z_dim=4, c_dim=1, channels=4, n_blocks=2, num_classes=10),
        (4, 1, 16, 16),
    ),
    "Pix2Pix": (partial(Pix2Pix, channels=4, image_size=16, norm="batch"), (2, 3, 16, 32)),
    "CycleGAN": (partial(CycleGAN, channels=4, image_size=16), (1, 3, 16, 32)),
    "VAE": (partial(VAE, z_dim=4, c_dim=1, channels=4, n_blocks=2), (4, 1, 16, 16)),
    "ResidualVAE": (partial(ResidualVAE, z_dim=4, c_dim=1, channels=4, n_blocks=2), (4, 1, 16, 16)),
    "MLPVAE": (partial(MLPVAE, z_dim=4, c_dim=1, image_size=8), (4, 1, 8, 8)),
    "VQVAE": (partial(VQVAE, image_size=16, channels=8, num_codes=8, code_dim=4), (4, 3, 16, 16)),
    "FramePredictor": (partial(FramePredictor, channels=4, n_blocks=2, hidden_size=4), (2, 4, 1, 16, 16)),
}


def small_case(name: str, options: dict[str, Any], **faults: Any) -> Case:
    """A case of the list, with a small model of the same class."""
    listed = next(key for key in networks._STEPS if key.split()[0].rstrip(",") == name)
    _, trainer, loop, _, classes, _ = networks._STEPS[listed]
    make, shape = SMALL[name]
    torch.manual_seed(0)
    return networks.step_case(make, partial(trainer, **faults), loop, shape, classes, options, "cpu")


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What compiled loops do, without the minutes that a compiler takes."""
    monkeypatch.setattr(Setting, "runs", lambda self, function: function)


def test_every_model_of_the_list_is_here() -> None:
    assert {name.split()[0].rstrip(",") for name in networks._STEPS} == set(SMALL)


@pytest.mark.parametrize("options", networks._RECIPES.values(), ids=networks._RECIPES)
@pytest.mark.parametrize("name", SMALL)
def test_steps_of_ours_and_of_the_loop_train(name: str, options: dict[str, Any]) -> None:
    case = small_case(name, options)
    assert list(case.contenders)[:3] == [OURS, "eager", "compile"]
    if options:  # where the loop in the recipe's precision and layout is another one
        assert ("compile-float32" in case.contenders) == ("precision" in options)
    for contender in (OURS, "eager"):
        figures = [[float(value) for value in case.contenders[contender]().values()] for _ in range(2)]
        assert figures[0] != figures[1]
        assert torch.tensor(figures).isfinite().all()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", SMALL)
def test_ours_and_compiled_loops_train_like_the_loop(name: str, channels_last: bool, uncompiled: None) -> None:
    """But for what is compiled with dropout, which draws other numbers."""
    options = {"channels_last": channels_last}
    case = small_case(name, options)
    gate = StepGate(case, partial(small_case, name, options), 3)
    steps = {key: step for key, step in case.contenders.items() if isinstance(step, Step)}
    assert list(steps) == ([OURS, "eager"] if name == "Pix2Pix" else list(case.contenders))
    for key, step in steps.items():
        if key != "eager":
            gate.check(key, step, seeded_call(step))


@pytest.mark.parametrize("name", SMALL)
def test_a_trainer_that_trains_otherwise_than_the_loop_is_caught(name: str) -> None:
    faulty = small_case(name, {}, lr=0.01)
    gate = StepGate(faulty, partial(small_case, name, {}), 3)
    step = faulty.contenders[OURS]
    assert isinstance(step, Step)
    with pytest.raises(WrongResultError, match=r"genimg_fast: .* differ"):
        gate.check(OURS, step, seeded_call(step))


@pytest.mark.parametrize("name", SMALL)
def test_a_recipe_changes_the_loop_s_precision_and_not_its_losses(name: str, uncompiled: None) -> None:
    make, shape = SMALL[name]
    _, _, loop, _, classes, _ = next(v for k, v in networks._STEPS.items() if k.split()[0].rstrip(",") == name)
    found = []
    for recipe in (Recipe(), Recipe(precision="bf16", channels_last=True)):
        torch.manual_seed(0)
        model = make()
        images = torch.rand(*shape).mul_(2).sub_(1)
        data = (images, torch.arange(shape[0]) % classes) if classes else (images,)
        step = loop(model, Setting("cpu", True, recipe), *data)
        torch.manual_seed(1)
        found.append(step())
    assert found[0] == pytest.approx(found[1], rel=0.1, abs=0.1)
    assert found[0] != found[1]


def test_the_loop_of_the_example_has_its_losses() -> None:
    """As of pytorch/examples, written down by hand: BCE of a sigmoid, D before G."""
    torch.manual_seed(0)
    model = DCGAN(z_dim=4, c_dim=1, channels=4, n_blocks=2)
    images = torch.rand(4, 1, 16, 16) * 2 - 1
    expected = model.discriminator(images).sigmoid().mean().item()
    reported = loops.gan(model, Setting("cpu"), images)()
    assert reported["real"] == pytest.approx(expected, rel=1e-5)
    assert 0 < reported["fake"] < 1
