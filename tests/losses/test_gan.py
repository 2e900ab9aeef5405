import copy
import math
import pickle

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
    "relativistic": (
        sum(-math.log(sigmoid(r - f)) for r, f in zip(R, F, strict=True)) / 2,
        sum(-math.log(sigmoid(f - r)) for r, f in zip(R, F, strict=True)) / 2,
    ),
}


@pytest.mark.parametrize("name", gf.losses.GAN_LOSSES)
def test_values(name: str, device: str) -> None:
    loss = gf.losses.GANLoss(name)
    real = torch.tensor(R, dtype=torch.float64, device=device)
    fake = torch.tensor(F, dtype=torch.float64, device=device)
    discriminator, generator = EXPECTED[name]
    assert loss.discriminator(real, fake).item() == pytest.approx(discriminator, rel=1e-12)
    for same in (loss, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert same.generator(fake, real).item() == pytest.approx(generator, rel=1e-12)


@pytest.mark.parametrize("name", gf.losses.GAN_LOSSES)
def test_gradients_push_the_right_way(name: str) -> None:
    loss = gf.losses.GANLoss(name)
    real, fake = (torch.zeros(4, requires_grad=True) for _ in range(2))
    loss.discriminator(real, fake).backward()
    assert (real.grad < 0).all()  # descending raises the logits of real images
    if name != "least_squares":  # whose target for fake images is 0
        assert (fake.grad > 0).all()
    fake.grad = None
    loss.generator(fake, real).backward()
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


def test_a_paired_loss_needs_pairs() -> None:
    loss = gf.losses.GANLoss("relativistic")
    assert loss.paired
    for part in (loss.real, loss.fake):
        with pytest.raises(ValueError, match="the relativistic loss has no parts: give discriminator"):
            part(torch.zeros(4))
    with pytest.raises(ValueError, match="the relativistic loss of a generator needs real_logits, too"):
        loss.generator(torch.zeros(4))
    with pytest.raises(
        ValueError, match=r"in pairs: their logits must have the same shape, got \(4,\) and \(2,\)"
    ):
        loss.discriminator(torch.zeros(4), torch.zeros(2))


def test_unknown_name() -> None:
    with pytest.raises(ValueError, match="unknown GAN loss 'nope'; known losses: non_saturating, minimax"):
        gf.losses.GANLoss("nope")


@pytest.mark.parametrize("name", ["non_saturating", "minimax", "least_squares"])
def test_smoothed_labels_have_their_optimum_below_one(name: str) -> None:
    """The loss of a real image is smallest where the discriminator says 1 - smoothing."""
    loss = gf.losses.GANLoss(name, label_smoothing=0.1)
    best = 0.9 if name == "least_squares" else math.log(0.9 / 0.1)
    real = torch.tensor([best], dtype=torch.float64, requires_grad=True)
    loss.discriminator(real, torch.zeros(1, dtype=torch.float64)).backward()
    assert abs(real.grad.item()) < 1e-12


def test_bad_smoothing() -> None:
    with pytest.raises(ValueError, match=r"label_smoothing must lie in \[0, 0\.5\), got 0\.5"):
        gf.losses.GANLoss(label_smoothing=0.5)
    with pytest.raises(ValueError, match=r"label_smoothing must be 0: the hinge loss has no labels, got 0\.1"):
        gf.losses.GANLoss("hinge", label_smoothing=0.1)


def test_gradient_penalty_of_linear_critics(device: str) -> None:
    """The gradient of x -> a x u is a u everywhere, so the penalty is (a - 1)^2."""
    torch.manual_seed(0)
    unit = torch.nn.functional.normalize(torch.randn(12, dtype=torch.float64, device=device), dim=0)
    real, fake = torch.randn(2, 8, 3, 4, dtype=torch.float64, device=device)
    for scale, expected in ((1.0, 0.0), (3.0, 4.0)):
        critic = scale * unit
        penalty = gf.losses.gradient_penalty(lambda x: x.flatten(1) @ critic, real, fake)  # noqa: B023
        assert penalty.item() == pytest.approx(expected, abs=1e-12)
    assert gf.losses.r1_penalty(lambda x: x.flatten(1) @ (2 * unit), real).item() == pytest.approx(2.0)


@pytest.mark.parametrize("penalty", ["gradient_penalty", "r1_penalty"])
def test_penalties_through_the_fused_layers_equal_torchs(penalty: str, device: str) -> None:
    """Second order of a DCGAN discriminator with batch norm, on either path."""

    def gradients(backend: str) -> list[torch.Tensor]:
        torch.manual_seed(0)
        critic = gf.models.DCGANDiscriminator(1, 8, 2).to(device).double()
        real, fake = torch.randn(2, 6, 1, 16, 16, dtype=torch.float64).to(device)
        torch.manual_seed(1)
        with gf.backend(backend):
            if penalty == "r1_penalty":
                loss = gf.losses.r1_penalty(critic, real)
            else:
                loss = gf.losses.gradient_penalty(critic, real, fake)
            # What the last layers' shifts do to the gradient is exactly nothing.
            return list(torch.autograd.grad(loss, list(critic.parameters()), allow_unused=True))

    for ours, torchs in zip(gradients("auto"), gradients("reference"), strict=True):
        assert (ours is None) == (torchs is None)
        if ours is not None:
            torch.testing.assert_close(ours, torchs, rtol=1e-9, atol=1e-12)


def test_penalty_reaches_the_critic_but_not_the_generator() -> None:
    critic = gf.models.WGAN(8, 1, 4, 2).discriminator
    fake = torch.randn(4, 1, 16, 16, requires_grad=True)
    gf.losses.gradient_penalty(critic, torch.randn(4, 1, 16, 16), fake).backward()
    assert fake.grad is None
    assert all(p.grad is not None for name, p in critic.named_parameters() if name.endswith("weight"))
    with pytest.raises(ValueError, match=r"same shape \(batch, \.\.\.\), got \(4, 2\) and \(3, 2\)"):
        gf.losses.gradient_penalty(critic, torch.zeros(4, 2), torch.zeros(3, 2))
