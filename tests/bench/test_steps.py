"""Whole training steps: ours, and the loops that people start from, on small models."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch

from genimg_fast.bench import loops, networks
from genimg_fast.bench.entries import OURS
from genimg_fast.bench.loops import Setting
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


def small_case(name: str, options: dict[str, Any]) -> Any:
    """A case of the list, with a small model of the same class."""
    listed = next(key for key in networks._STEPS if key.split()[0].rstrip(",") == name)
    _, trainer, loop, _, classes, _ = networks._STEPS[listed]
    make, shape = SMALL[name]
    return networks.step_case(make, trainer, loop, shape, classes, options, "cpu")


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
        values = [case.contenders[contender]() for _ in range(2)]
        figures = [v if isinstance(v, list) else [t.item() for t in v.values()] for v in values]
        assert figures[0] != figures[1]
        assert torch.tensor(figures).isfinite().all()


@pytest.mark.parametrize("name", SMALL)
def test_a_recipe_changes_the_loop_s_precision_and_not_its_losses(name: str) -> None:
    make, shape = SMALL[name]
    _, _, loop, _, classes, _ = next(v for k, v in networks._STEPS.items() if k.split()[0].rstrip(",") == name)
    found = []
    for recipe in (Recipe(), Recipe(precision="bf16", channels_last=True)):
        torch.manual_seed(0)
        model = make()
        images = torch.rand(*shape).mul_(2).sub_(1)
        data = (images, torch.arange(shape[0]) % classes) if classes else (images,)
        step = loop(model, _AsCompiled("cpu", True, recipe), *data)
        torch.manual_seed(1)
        found.append(step())
    assert found[0] == pytest.approx(found[1], rel=0.1, abs=0.1)
    assert found[0] != found[1]


class _AsCompiled(Setting):
    """What a compiled loop does, without the minutes that a compiler takes."""

    def runs(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function


def test_the_loop_of_the_example_has_its_losses() -> None:
    """As of pytorch/examples, written down by hand: BCE of a sigmoid, D before G."""
    torch.manual_seed(0)
    model = DCGAN(z_dim=4, c_dim=1, channels=4, n_blocks=2)
    images = torch.rand(4, 1, 16, 16) * 2 - 1
    expected = model.discriminator(images).sigmoid().mean().item()
    _, _, mean_real, mean_fake, _ = loops.gan(model, Setting("cpu"), images)()
    assert mean_real == pytest.approx(expected, rel=1e-5)
    assert 0 < mean_fake < 1
