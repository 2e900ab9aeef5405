import math

import pytest
import torch
from torch import Tensor, nn

import genimg_fast as gf
from genimg_fast.losses import (
    active_units,
    bernoulli_log_likelihood,
    gaussian_log_likelihood,
    importance_weighted_bound,
    logistic_log_likelihood,
    negative_elbo,
    warmup_beta,
)


def pixels(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return (torch.rand(*shape, dtype=torch.float64) * 2 - 1).to(dtype)


@pytest.mark.parametrize("logvar", [0.0, -2.5, torch.tensor(1.5), torch.linspace(-3, 3, 8)])
def test_gaussian_log_likelihood(logvar: Tensor | float, device: str) -> None:
    images, mean = pixels(5, 3, 8, 8).to(device), pixels(5, 3, 8, 8).to(device)
    logvar = torch.as_tensor(logvar, dtype=torch.float64, device=device)
    expected = torch.distributions.Normal(mean, (logvar / 2).exp()).log_prob(images).sum((1, 2, 3))
    torch.testing.assert_close(gaussian_log_likelihood(images, mean, logvar), expected)


def test_bernoulli_log_likelihood(device: str) -> None:
    outcomes, logits = (torch.rand(5, 3, 8, 8, device=device) < 0.3).double(), 3 * pixels(5, 3, 8, 8).to(device)
    expected = torch.distributions.Bernoulli(logits=logits).log_prob(outcomes).sum((1, 2, 3))
    torch.testing.assert_close(bernoulli_log_likelihood(2 * outcomes - 1, logits), expected)
    extreme = bernoulli_log_likelihood(torch.tensor([[1.0, -1.0]]), torch.tensor([[-500.0, -500.0]]))
    assert extreme.item() == -500


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pixels_are_summed_in_float32(dtype: torch.dtype) -> None:
    images, decoded = pixels(2, 3, 64, 64, dtype=dtype), pixels(2, 3, 64, 64, dtype=dtype)
    for function in (gaussian_log_likelihood, bernoulli_log_likelihood):
        value = function(images, decoded)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value.double(), function(images.double(), decoded.double()), rtol=1e-5, atol=0)


def test_sum_over_pixels_and_mean_over_the_batch() -> None:
    images, mean, kl = pixels(4, 1, 8, 8), pixels(4, 1, 8, 8), torch.rand(4, dtype=torch.float64)
    small = negative_elbo(gaussian_log_likelihood(images, mean), kl)
    twice = [torch.cat([tensor, tensor]) for tensor in (images, mean, kl)]
    assert negative_elbo(gaussian_log_likelihood(*twice[:2]), twice[2]).loss.item() == pytest.approx(
        small.loss.item()
    )
    large = negative_elbo(gaussian_log_likelihood(images.repeat(1, 3, 2, 1), mean.repeat(1, 3, 2, 1)), kl)
    assert large.reconstruction.item() == pytest.approx(6 * small.reconstruction.item())
    assert large.kl.item() == pytest.approx(small.kl.item())


def test_the_split_adds_up_and_carries_gradients() -> None:
    log_likelihood = torch.tensor([-3.0, -5.0], requires_grad=True)
    kl = torch.tensor([1.0, 2.0], requires_grad=True)
    terms = negative_elbo(log_likelihood, kl, beta=0.5)
    assert [value.item() for value in terms] == [4.75, 4, 1.5]
    terms.loss.backward()
    assert log_likelihood.grad.tolist() == [-0.5, -0.5]
    assert kl.grad.tolist() == [0.25, 0.25]


def test_warmup() -> None:
    assert [warmup_beta(step, 0, 3.0) for step in (1, 1000)] == [3, 3]
    assert [warmup_beta(step, 10, 3.0) for step in (1, 5, 10, 11)] == pytest.approx([0.3, 1.5, 3, 3])


def test_active_units() -> None:
    mu = torch.randn(500, 4) * torch.tensor([1.0, 0.2, 0.05, 0.0]) + 3
    assert active_units(mu) == 2  # variances 1, 0.04, 0.0025, 0
    assert active_units(mu, threshold=0.001) == 3
    assert active_units(mu.view(500, 1, 2, 2).bfloat16()) == 2


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match=r"must both have shape \(batch,\), got \(4,\) and \(4, 3\)"):
        negative_elbo(torch.zeros(4), torch.zeros(4, 3))
    with pytest.raises(ValueError, match=r"must both have shape \(batch,\), got \(\) and \(\)"):
        negative_elbo(torch.tensor(0.0), torch.tensor(0.0))
    with pytest.raises(ValueError, match="beta must be at least 0, got -1"):
        negative_elbo(torch.zeros(4), torch.zeros(4), beta=-1)
    with pytest.raises(ValueError, match=r"images and mean must have the same shape, got \(4, 1\) and \(4,\)"):
        gaussian_log_likelihood(torch.zeros(4, 1), torch.zeros(4))
    with pytest.raises(ValueError, match=r"images and logits must have the same shape, got \(4, 1\) and \(4, 2\)"):
        bernoulli_log_likelihood(torch.zeros(4, 1), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="k and chunk_size must be at least 1, got 0 and 1024"):
        importance_weighted_bound(gf.models.MLPVAE(), torch.zeros(1, 1, 28, 28), k=0)


class LinearGaussian(nn.Module):
    """x = W z + noise: a VAE whose posterior and log-likelihood are known exactly."""

    variance = 0.3

    def __init__(self, extra_logvar: float = 0.0) -> None:
        super().__init__()
        self.weight = torch.linalg.qr(torch.randn(12, 3, dtype=torch.float64)).Q * torch.tensor([2.0, 1.0, 0.5])
        self.extra_logvar = extra_logvar  # how much wider than the posterior the encoder makes it

    def encode(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        # The columns of the weight are orthogonal, so the posterior's covariance is diagonal.
        precision = 1 + self.weight.square().sum(0) / self.variance
        mu = images.flatten(1) @ self.weight / self.variance / precision
        return mu, (self.extra_logvar - precision.log()).expand_as(mu)

    def decode(self, z: Tensor, labels: Tensor | None) -> Tensor:
        return (z @ self.weight.T).view(-1, 1, 3, 4)

    def log_likelihood(self, images: Tensor, decoded: Tensor) -> Tensor:
        return gaussian_log_likelihood(images, decoded, math.log(self.variance))

    def exact(self, images: Tensor) -> Tensor:
        covariance = self.weight @ self.weight.T + self.variance * torch.eye(12)
        zeros = torch.zeros(12, dtype=torch.float64)
        return torch.distributions.MultivariateNormal(zeros, covariance).log_prob(images.flatten(1))


@pytest.mark.parametrize("k", [1, 7])
def test_importance_weighted_bound_with_the_true_posterior_is_exact(k: int) -> None:
    model, images = LinearGaussian(), torch.randn(5, 1, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(importance_weighted_bound(model, images, k=k), model.exact(images))


def test_importance_weighted_bound_rises_from_the_elbo_to_the_log_likelihood() -> None:
    model, images = LinearGaussian(extra_logvar=1.0), torch.randn(400, 1, 3, 4, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)

    def gap(k: int) -> float:
        return (model.exact(images) - importance_weighted_bound(model, images, k=k, generator=generator)).mean()

    mu, logvar = model.encode(images, None)
    z, kl = gf.ops.reparameterize_kl(mu, logvar, seed=0)
    elbo_gap = (model.exact(images) - model.log_likelihood(images, model.decode(z, None)) + kl).mean()
    # The gap of the ELBO is KL(q, posterior): (e - 1 - 1) / 2 for each of the three dimensions.
    assert elbo_gap.item() == pytest.approx(1.5 * (math.e - 2), abs=0.2)
    gaps = [gap(1), gap(10), gap(100), gap(1000)]
    assert gaps[0].item() == pytest.approx(1.5 * (math.e - 2), abs=0.2)
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0
    assert abs(gaps[3]) < 0.01


def test_importance_weighted_bound_decodes_in_chunks() -> None:
    model, images = LinearGaussian(extra_logvar=0.5), torch.randn(8, 1, 3, 4, dtype=torch.float64)
    sizes = []
    decode = model.decode
    model.decode = lambda z, labels: sizes.append(len(z)) or decode(z, labels)
    bound = importance_weighted_bound(model, images, k=2500, chunk_size=8000)
    assert sizes == [8000, 8000, 4000]
    torch.testing.assert_close(bound, model.exact(images), atol=0.05, rtol=0)  # a standard error of about 0.01


def test_importance_weighted_bound_of_a_conditional_model(device: str) -> None:
    model = gf.models.ConditionalVAE(3, z_dim=4, c_dim=1, channels=2, n_blocks=1, likelihood="gaussian").to(device)
    images, labels = torch.rand(5, 1, 8, 8, device=device) * 2 - 1, torch.tensor([0, 1, 2, 0, 1], device=device)
    generator = torch.Generator().manual_seed(0)
    bound = importance_weighted_bound(model, images, labels, k=4, generator=generator)
    assert bound.shape == (5,)
    assert bound.isfinite().all()
    assert not bound.requires_grad
    assert model.training


def test_logistic_log_likelihood_is_a_distribution_over_bytes() -> None:
    levels = (torch.arange(256, dtype=torch.float64) / 127.5 - 1).view(256, 1)
    for mean, log_scale in ((0.3, -3.0), (-1.0, -6.0), (1.4, -1.0), (0.0, 2.0)):
        each = [torch.full_like(levels, value) for value in (mean, log_scale)]
        log_likelihood = logistic_log_likelihood(levels, *each)
        assert log_likelihood.exp().sum().item() == pytest.approx(1)
        inside = torch.sigmoid((levels + 1 / 255 - mean) / math.exp(log_scale))
        inside = (inside - torch.sigmoid((levels - 1 / 255 - mean) / math.exp(log_scale)))[1:-1, 0]
        torch.testing.assert_close(log_likelihood.exp()[1:-1], inside, rtol=1e-6, atol=1e-12)


def test_logistic_log_likelihood_far_from_the_mean() -> None:
    # In float32 both logistic functions round to 1 there.
    images = torch.full((2, 1, 1, 1), 126 / 127.5, requires_grad=True)
    value = logistic_log_likelihood(images, torch.full_like(images, -1.0), torch.full_like(images, -3.0))
    value.sum().backward()
    expected = -((126 / 127.5 + 1) - 1 / 255) * math.exp(3) + math.log(1 - math.exp(-2 / 255 * math.exp(3)))
    assert value[0].item() == pytest.approx(expected, rel=1e-5)
    assert images.grad.isfinite().all()
    with pytest.raises(ValueError, match="log_scale"):
        logistic_log_likelihood(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 2))
