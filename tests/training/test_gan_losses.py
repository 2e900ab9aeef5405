import math

import pytest
import torch

import genimg_fast as gf


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


# Logits of real and fake images, and for each loss its two values by the papers' formulas.
R, F = (2.0, -1.0), (0.5, -3.0)
CROSS_ENTROPY = sum(-math.log(sigmoid(r)) for r in R) / 2 + sum(-math.log(1 - sigmoid(f)) for f in F) / 2
EXPECTED = {
    "non_saturating": (CROSS_ENTROPY, sum(-math.log(sigmoid(f)) for f in F) / 2),
    "minimax": (CROSS_ENTROPY, sum(math.log(1 - sigmoid(f)) for f in F) / 2),
    "least_squares": ((1 + 4) / 4 + (0.25 + 9) / 4, (0.25 + 16) / 4),
    "hinge": ((0 + 2) / 2 + (1.5 + 0) / 2, 1.25),
    "wasserstein": (-1.25 - 0.5, 1.25),
}


@pytest.mark.parametrize("name", gf.losses.GAN_LOSSES)
def test_values(name: str, device: str) -> None:
    loss = gf.losses.GANLoss(name)
    real = torch.tensor(R, dtype=torch.float64, device=device)
    fake = torch.tensor(F, dtype=torch.float64, device=device)
    discriminator, generator = EXPECTED[name]
    assert loss.discriminator(real, fake).item() == pytest.approx(discriminator, rel=1e-12)
    assert loss.generator(fake).item() == pytest.approx(generator, rel=1e-12)


@pytest.mark.parametrize("name", gf.losses.GAN_LOSSES)
def test_gradients_push_the_right_way(name: str) -> None:
    loss = gf.losses.GANLoss(name)
    real, fake = (torch.zeros(4, requires_grad=True) for _ in range(2))
    loss.discriminator(real, fake).backward()
    assert (real.grad < 0).all()  # descending raises the logits of real images
    if name != "least_squares":  # whose target for fake images is 0
        assert (fake.grad > 0).all()
    fake.grad = None
    loss.generator(fake).backward()
    assert (fake.grad < 0).all()


def test_extreme_logits_keep_a_finite_loss_and_gradient() -> None:
    loss = gf.losses.GANLoss()
    real, fake = torch.tensor([-200.0], requires_grad=True), torch.tensor([200.0], requires_grad=True)
    value = loss.discriminator(real, fake)
    value.backward()
    assert value.item() == 400
    assert (real.grad.item(), fake.grad.item()) == (-1, 1)


def test_patches_and_different_batches() -> None:
    loss = gf.losses.GANLoss()
    assert loss.discriminator(torch.zeros(4, 1, 3, 3), torch.zeros(2, 1, 3, 3)).ndim == 0


def test_bad_logits() -> None:
    loss = gf.losses.GANLoss()
    with pytest.raises(ValueError, match=r"same shape but for the batch, got \(4,\) and \(4, 1\)"):
        loss.discriminator(torch.zeros(4), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="fake_logits must be floating point"):
        loss.generator(torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"real_logits must be .* with a batch dimension"):
        loss.discriminator(torch.tensor(0.0), torch.zeros(4))


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="unknown GAN loss 'nope'; known losses: non_saturating, minimax"):
        gf.losses.GANLoss("nope")
