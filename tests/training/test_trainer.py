"""What all trainers share: recipes, averaged weights, several parts of a batch."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from trainers import SIZES, TRAINERS, batch, data_for, make

import genimg_fast as gf
from genimg_fast.data import as_batched
from genimg_fast.training import BaseTrainer, GANTrainer, Recipe, fit
from genimg_fast.training.trainer import is_faster_channels_last


def test_accumulation_equals_the_whole_batch() -> None:
    """For a network whose samples do not meet."""
    images, _ = batch()
    states = []
    for parts in (1, 4):
        trainer = make("wgan", recipe=Recipe(accumulate=parts))
        trainer.gp = 0.0  # it draws random numbers
        trainer._fake = lambda n, labels: images[:1].neg().expand(n, -1, -1, -1)
        trainer.step(images)
        states.append(trainer.model.discriminator.state_dict())
    torch.testing.assert_close(*states)


def test_accumulation_equals_the_whole_batch_of_unequal_parts() -> None:
    """The parts of a filler's batch miss different numbers of frames."""
    frames = torch.rand(4, 5, 1, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    known = torch.arange(5) < torch.tensor([[4], [4], [1], [1]])
    results = []
    for parts in (1, 2):
        trainer = make("frame-filler", recipe=Recipe(accumulate=parts))
        trainer.model.eval()  # batch norm in training sees the parts
        values = trainer.step(frames, known=known)
        results.append((values, [p.grad for p in trainer.model.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


def test_average_of_weights_and_buffers() -> None:
    trainer = make("dcgan", recipe=Recipe(ema=0.5))
    images, labels = batch()
    expected = None
    for step in range(4):
        trainer.step(images, labels)
        now = copy.deepcopy(trainer.model.state_dict())
        share = 1 - min(0.5, (1 + step) / (10 + step))
        expected = now if expected is None else {
            key: torch.lerp(expected[key], value, share) if value.is_floating_point() else value
            for key, value in now.items()
        }  # fmt: skip
    torch.testing.assert_close(trainer.sampler.state_dict(), expected)
    assert make("dcgan", recipe=Recipe(ema=0)).averaged is None


def test_averaged_weights_keep_their_spectral_norm() -> None:
    torch.manual_seed(0)
    trainer = GANTrainer(gf.models.WGAN(**SIZES, norm="spectral"), lr=1e-3)
    for _ in range(60):
        trainer.step(*batch())
    layers = [layer for layer in trainer.sampler.eval().discriminator.main if isinstance(layer, torch.nn.Conv2d)]
    norms = [torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() for layer in layers]
    assert norms == pytest.approx([1] * len(norms), abs=0.05)


def test_gradients_are_clipped() -> None:
    trainer = make("wgan", recipe=Recipe(grad_clip=1e-3))
    trainer.step(*batch())
    norms = [p.grad.norm() for p in trainer.model.discriminator.parameters()]
    assert torch.stack(norms).norm().item() == pytest.approx(1e-3, rel=1e-3)


def test_schedules() -> None:
    assert [Recipe().lr_factor(s) for s in (0, 9)] == [1, 1]
    assert [Recipe(schedule="linear", decay_steps=4).lr_factor(s) for s in (0, 1, 4, 9)] == [1, 0.75, 0, 0]
    cosine = Recipe(schedule="cosine", decay_steps=4)
    assert [cosine.lr_factor(s) for s in (0, 2, 4)] == pytest.approx([1, 0.5, 0])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_reaches_the_networks(precision: str) -> None:
    trainer = make("dcgan", recipe=Recipe(precision=precision))
    seen = []
    trainer.model.discriminator.main[0].register_forward_hook(lambda *a: seen.append(a[2].dtype))
    trainer.step(*batch())
    assert set(seen) == {{"bf16": torch.bfloat16, "fp16": torch.float16}[precision]}
    assert trainer.scaler.is_enabled() == (precision == "fp16")
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_channels_last_reaches_the_networks() -> None:
    trainer = make("dcgan", recipe=Recipe(channels_last=True))
    seen = []
    trainer.model.discriminator.main[2].register_forward_hook(lambda *a: seen.append(a[1][0]))
    trainer.step(*batch())
    assert seen
    assert all(x.is_contiguous(memory_format=torch.channels_last) for x in seen)


LAYOUTS: dict[str, tuple[Callable[[], torch.nn.Module], bool]] = {
    "convolutions": (lambda: gf.models.DCGAN(channels=2, n_blocks=1), True),
    "group norm": (lambda: gf.models.ResidualVAE(channels=2, n_blocks=1), True),
    "batch norm": (lambda: gf.models.Pix2Pix(channels=2, image_size=16, norm="batch"), True),
    "instance norm": (lambda: gf.models.Pix2Pix(channels=2, image_size=16, norm="instance"), False),
    "instance norm and activation": (lambda: gf.models.StyleNet(channels=2, n_residual=1), False),
    "no convolutions": (lambda: gf.models.MLPGAN(), False),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_channels_last_where_it_is_faster(name: str) -> None:
    make_model, expected = LAYOUTS[name]
    assert is_faster_channels_last(make_model()) == expected
    assert not is_faster_channels_last(make_model().to("meta"))
    trainer = BaseTrainer(make_model(), recipe=None, seed=0)
    assert trainer.recipe.channels_last == expected
    for channels_last in (False, True):
        asked = BaseTrainer(make_model(), recipe=Recipe(channels_last=channels_last), seed=0)
        assert asked.recipe.channels_last == channels_last


@pytest.mark.parametrize("name", TRAINERS)
def test_memory_formats_train_alike(name: str, digits: gf.data.ImageDataset) -> None:
    images, labels = as_batched(data_for(name, digits))[torch.arange(8)]
    plain, other = (make(name, recipe=Recipe(channels_last=c)) for c in (False, True))
    for _ in range(2):
        torch.manual_seed(1)
        expected = plain.step(images, labels)
        torch.manual_seed(1)
        got = other.step(images, labels)
        for key, value in expected.items():
            # Adam's first steps are as long for a gradient that is zero but for rounding as for any other one.
            torch.testing.assert_close(got[key], value, rtol=1e-2, atol=1e-3, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False)])
def test_a_state_loads_into_the_other_memory_format(before: bool, after: bool) -> None:
    """Fused Adam reads what it keeps as if it lay like the parameter."""
    first = make("dcgan", recipe=Recipe(channels_last=before))
    first.step(*batch())
    same, other = (make("dcgan", recipe=Recipe(channels_last=c)) for c in (before, after))
    for trainer in (same, other):
        trainer.load_state_dict(copy.deepcopy(first.state_dict()))
        torch.manual_seed(1)
        trainer.step(*batch())
    for (name, expected), got in zip(same.model.named_parameters(), other.model.parameters(), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-5, msg=lambda m, name=name: f"{name}: {m}")


def test_compiled_networks_train_alike() -> None:
    images, labels = batch()
    plain, compiled = (make("vae", recipe=Recipe(compile=c)) for c in (False, True))
    torch.manual_seed(5)
    expected = plain.step(images, labels)
    torch.manual_seed(5)
    torch.testing.assert_close(compiled.step(images, labels), expected, rtol=1e-4, atol=1e-5)


def test_spectral_norm_is_not_compiled() -> None:
    torch.manual_seed(0)
    model = gf.models.ResidualGAN(**SIZES, norm="spectral")
    with pytest.warns(UserWarning, match="Discriminator is not compiled: it has spectral norm"):
        trainer = GANTrainer(model, loss="hinge", recipe=Recipe(compile=True))
    assert trainer._discriminator is model.discriminator
    assert trainer._generator is not model.generator


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, "precision must be one of fp32, bf16, fp16, got 'fp8'"),
        ({"schedule": "step"}, "schedule must be one of constant, linear, cosine, got 'step'"),
        ({"schedule": "linear"}, "a linear schedule needs decay_steps of at least 1, got 0"),
        ({"accumulate": 0}, "accumulate must be at least 1, got 0"),
        ({"ema": 1.0}, r"ema must lie in \[0, 1\), got 1\.0"),
        ({"grad_clip": -1}, "grad_clip must be at least 0, got -1"),
    ],
)
def test_bad_recipes(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


def test_bad_trainers(digits: gf.data.ImageDataset) -> None:
    with pytest.raises(ValueError, match="n_critic must be at least 1, got 0"):
        GANTrainer(gf.models.DCGAN(**SIZES), n_critic=0)
    with pytest.raises(ValueError, match="gp must be at least 0, got -1"):
        GANTrainer(gf.models.DCGAN(**SIZES), gp=-1)
    with pytest.raises(ValueError, match="batch norm in the discriminator mixes them"):
        GANTrainer(gf.models.DCGAN(**SIZES), gp=10)
    with pytest.raises(ValueError, match="accumulate must divide the batch, 8, got 3"):
        make("dcgan", recipe=Recipe(accumulate=3)).step(*batch())
    with pytest.raises(ValueError, match="resume needs a run folder"):
        fit(make("dcgan"), digits, steps=1, batch_size=8, resume=True)
