import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from trainers import batch

import genimg_fast as gf
from genimg_fast.training import AutoencoderTrainer, BaseTrainer, GLOTrainer, Pix2PixTrainer, Recipe, fit


def pairs(n: int = 8) -> Tensor:
    images, _ = batch(n)
    return torch.cat([images, images.neg()], dim=3)


@pytest.mark.parametrize("direction", ["a2b", "b2a"])
def test_pix2pix_step_equals_the_textbook(direction: str) -> None:
    def make_model() -> gf.models.Pix2Pix:
        torch.manual_seed(0)
        return gf.models.Pix2Pix(1, 1, channels=4, image_size=16, dropout=0.0)

    trainer, expected = Pix2PixTrainer(make_model(), direction=direction), make_model()
    values = trainer.step(pairs())

    a, b = pairs().chunk(2, dim=3)
    source, target = (a, b) if direction == "a2b" else (b, a)
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    g, d = expected.generator, expected.discriminator
    fake = g(source)
    real_logits, fake_logits = d(source, target), d(source, fake.detach())
    loss_d = (bce(real_logits, torch.ones_like(real_logits)) + bce(fake_logits, torch.zeros_like(fake_logits))) / 2
    loss_d.backward()
    torch.optim.Adam(d.parameters(), lr=2e-4, betas=(0.5, 0.999)).step()
    logits = d(source, fake)
    loss_g, error = bce(logits, torch.ones_like(logits)), (fake - target).abs().mean()
    (loss_g + 100 * error).backward()
    torch.optim.Adam(g.parameters(), lr=2e-4, betas=(0.5, 0.999)).step()

    for name, value in (("loss_d", loss_d), ("loss_g", loss_g), ("l1", error)):
        torch.testing.assert_close(values[name], value.detach())
    torch.testing.assert_close(trainer.model.state_dict(), expected.state_dict())
    panels = trainer.pictures(pairs(3), torch.zeros(3))["translations"].images
    assert list(panels) == ["input", "output", "target"]
    assert torch.equal(panels["input"], source[:3])
    assert torch.equal(panels["output"], trainer.sampler.translate(source[:3]))
    assert torch.equal(panels["target"], target[:3])


@pytest.mark.parametrize(("loss", "norm"), [("non_saturating", "batch"), ("relativistic", "instance")])
def test_pix2pix_in_parts(loss: str, norm: str) -> None:
    torch.manual_seed(0)
    model = gf.models.Pix2Pix(1, 1, channels=4, image_size=16, norm=norm)
    trainer = Pix2PixTrainer(model, loss=loss, recipe=Recipe(accumulate=2))
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.step(pairs())
    changed = [key for key, value in trainer.model.named_parameters() if not torch.equal(value, before[key])]
    # The differences of logits, which is all that a relativistic loss sees, are without the last bias.
    assert len(changed) == len(list(trainer.model.parameters())) - (loss == "relativistic")
    for bad in (batch()[0], pairs().expand(-1, 3, -1, -1), torch.zeros(8, 1, 32, 64)):
        with pytest.raises(ValueError, match=r"expected pairs .*, \(batch, 1, 16, 32\), got \(8, "):
            trainer.step(bad)
    with pytest.raises(ValueError, match="direction must be one of a2b, b2a, got 'ab'"):
        Pix2PixTrainer(trainer.model, direction="ab")


@pytest.mark.parametrize("name", ["autoencoder", "glo"])
def test_reconstruction_trainers_learn_each_image(name: str, digits: gf.data.ImageDataset) -> None:
    """Which a network from noise to images, trained by the same error, cannot: it learns their mean."""
    torch.manual_seed(0)
    data = gf.data.ImageDataset(digits.images[:16], torch.arange(16))
    if name == "glo":
        model: Any = gf.models.GLO(16, 16, 1, 8, 2)
        trainer: BaseTrainer = GLOTrainer(model, lr=3e-3)
    else:
        model = gf.models.Autoencoder(16, 1, 8, 2)
        trainer = AutoencoderTrainer(model, lr=3e-3)
    history = fit(trainer, data, steps=80, batch_size=16, log_every=10)
    images, _ = data[:]
    error_of_the_mean = (images - images.mean(0)).square().mean()
    assert history[-1]["loss"] < 0.3 * error_of_the_mean
    pictures = trainer.pictures(images[:5], torch.arange(5))
    assert torch.equal(pictures["reconstructions"].images["input"], images[:5])
    assert pictures["reconstructions"].images["output"].shape == (5, 1, 16, 16)
    if name == "glo":
        assert model.codes.weight.norm(dim=1).max() <= 1 + 1e-6
