import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

import genimg_fast as gf
from genimg_fast import nn
from genimg_fast.ops import normal_from_seed, reparameterize_kl


@pytest.fixture(autouse=True, params=["native", "reference"])
def backend(request):
    with gf.backend(request.param):
        yield request.param


def distribution(mu, logvar):
    return Independent(Normal(mu, (logvar / 2).exp()), mu.dim() - 1)


def test_layer_samples_in_training_and_takes_the_mean_in_evaluation():
    layer = nn.GaussianReparameterization(logvar_clamp=(-3.0, 3.0), free_bits=0.1)
    mu, logvar = torch.randn(2, 8, 5)
    options = {"logvar_clamp": (-3.0, 3.0), "free_bits": 0.1}
    for source in ({"noise": torch.randn(8, 5)}, {"seed": 3}, {"generator": torch.Generator().manual_seed(1)}):
        state = source["generator"].get_state() if "generator" in source else None
        z, kl = layer(mu, logvar, **source)
        if state is not None:
            source["generator"].set_state(state)
        torch.testing.assert_close((z, kl), reparameterize_kl(mu, logvar, **source, **options))
    layer.eval()
    before = torch.get_rng_state()
    z, evaluated = layer(mu, logvar)
    assert z is mu
    torch.testing.assert_close(evaluated, kl)
    assert torch.equal(torch.get_rng_state(), before)
    assert repr(layer) == "GaussianReparameterization(logvar_clamp=(-3.0, 3.0), free_bits=0.1)"
    assert not layer.state_dict()


def test_layer_in_a_network_trains():
    encoder = nn.Linear(6, 8)
    layer = nn.GaussianReparameterization()
    z, kl = layer(*encoder(torch.randn(5, 6)).chunk(2, dim=1))
    (z.square().sum() + kl.sum()).backward()
    assert (encoder.weight.grad != 0).all()


MOMENTS = {"image": ((3, 8, 5, 6), 1), "last": ((3, 4, 10), -1), "flat": ((3, 10), 1)}


@pytest.mark.parametrize("case", MOMENTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_distribution_is_that_of_torch(case, dtype):
    shape, dim = MOMENTS[case]
    moments, others = torch.randn(2, *shape).to(dtype)
    ours, other = nn.DiagonalGaussian(moments, dim=dim), nn.DiagonalGaussian(others, dim=dim)
    wide = torch.promote_types(dtype, torch.float32)
    mu, logvar = moments.to(wide).chunk(2, dim)
    expected, prior = distribution(mu, logvar), distribution(*others.to(wide).chunk(2, dim))
    standard = distribution(torch.zeros_like(mu), torch.zeros_like(mu))
    torch.testing.assert_close(ours.kl(), kl_divergence(expected, standard))
    torch.testing.assert_close(ours.kl(other), kl_divergence(expected, prior))
    x = torch.randn_like(mu).to(dtype)
    torch.testing.assert_close(ours.nll(x), -expected.log_prob(x.to(wide)))
    torch.testing.assert_close(ours.mean, mu.to(dtype))
    torch.testing.assert_close(ours.mode(), mu.to(dtype))
    torch.testing.assert_close(ours.logvar, logvar.to(dtype))
    torch.testing.assert_close(ours.std, (logvar / 2).exp().to(dtype))
    torch.testing.assert_close(ours.var, logvar.exp().to(dtype))
    noise = normal_from_seed(5, mu.shape).to(wide)
    sample = (mu + (logvar / 2).exp() * noise).to(dtype)
    tolerance = {} if dtype == torch.bfloat16 else {"rtol": 2e-6, "atol": 2e-6}  # noise is float32 in every dtype
    torch.testing.assert_close(ours.sample(seed=5), sample, **tolerance)
    assert ours.sample().dtype == dtype
    assert ours.kl().dtype == ours.nll(x).dtype == wide


def test_sample_and_divergence_in_one_pass():
    ours, other = (nn.DiagonalGaussian(torch.randn(3, 8, 4, 4)) for _ in range(2))
    z, kl = ours.sample_and_kl(other, seed=5)
    torch.testing.assert_close((z, kl), (ours.sample(seed=5), ours.kl(other)))
    z, kl = ours.sample_and_kl(noise=torch.ones_like(z), free_bits=0.3, reduction="none")
    torch.testing.assert_close(z, ours.mean + ours.std)
    assert kl.shape == z.shape
    assert (kl >= 0.3).all()


def test_random_numbers():
    ours = nn.DiagonalGaussian(torch.randn(3, 8))
    torch.manual_seed(1)
    first, second = ours.sample(), ours.sample()
    assert torch.equal(ours.sample(generator=torch.Generator().manual_seed(1)), first)
    assert torch.equal(ours.sample(torch.Generator().manual_seed(1)), first)
    assert not torch.equal(first, second)
    before = torch.get_rng_state()
    ours.kl()
    assert torch.equal(torch.get_rng_state(), before)


def test_gradients_reach_the_moments():
    moments, others = torch.randn(2, 3, 8, dtype=torch.float64)
    x = torch.randn(3, 4, dtype=torch.float64)

    def everything(moments, others):
        ours, other = nn.DiagonalGaussian(moments), nn.DiagonalGaussian(others)
        return ours.sample(seed=1), ours.kl(), ours.kl(other), ours.nll(x), ours.std, ours.var

    inputs = (moments.requires_grad_(), others.requires_grad_())
    assert torch.autograd.gradcheck(everything, inputs)
    assert torch.autograd.gradgradcheck(everything, inputs)


def test_log_variance_is_limited():
    mu, logvar = torch.zeros(2, 3), torch.tensor([[-100.0, 0.0, 100.0]]).expand(2, 3)
    ours = nn.DiagonalGaussian.from_parameters(mu, logvar)
    assert ours.logvar.tolist() == [[-30.0, 0.0, 20.0]] * 2
    torch.testing.assert_close(ours.kl(), torch.full((2,), 0.5 * (29 + math.exp(20) - 21)))
    assert nn.DiagonalGaussian.from_parameters(mu, logvar, logvar_clamp=None).logvar is logvar
    packed = torch.cat([mu, logvar], dim=1)
    assert torch.equal(nn.DiagonalGaussian(packed).kl(), ours.kl())
    assert torch.equal(nn.DiagonalGaussian(packed, logvar_clamp=(-1.0, 1.0)).logvar, logvar.clamp(-1, 1))


def test_odd_number_of_moments():
    with pytest.raises(ValueError, match=r"dimension 1, whose size must be even, got shape \(2, 7\)"):
        nn.DiagonalGaussian(torch.zeros(2, 7))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: nn.GaussianReparameterization(logvar_clamp=("a", "b")),
            "the min of logvar_clamp must be a number",
        ),
        (lambda: nn.GaussianReparameterization(logvar_clamp=(1.0, 0.0)), "logvar_clamp must be"),
        (lambda: nn.GaussianReparameterization(free_bits="a"), "free_bits must be a number, got str"),
        (lambda: nn.DiagonalGaussian([0.0, 1.0]), "moments must be a Tensor, got list"),
        (lambda: nn.DiagonalGaussian(torch.zeros(2, 8), dim=2), "dim must be an int that moments of 2 dimensions"),
        (lambda: nn.DiagonalGaussian(torch.zeros(2, 8), logvar_clamp=(0.0,)), "logvar_clamp must be"),
        (
            lambda: nn.DiagonalGaussian.from_parameters(torch.zeros(2, 4), 0.0),
            "logvar must be a Tensor, got float",
        ),
        (lambda: nn.DiagonalGaussian(torch.zeros(2, 8)).kl(0.0), "other must be a DiagonalGaussian, got float"),
        (lambda: nn.DiagonalGaussian(torch.zeros(2, 8)).nll(torch.zeros(4)), "x must have the mean's shape"),
    ],
)
def test_a_bad_argument_is_named(build, message):
    with pytest.raises((TypeError, ValueError), match=message):
        build()


def test_prior_of_one_sample_serves_the_batch():
    ours = nn.DiagonalGaussian(torch.randn(3, 8, 2, 2))
    prior = nn.DiagonalGaussian(torch.randn(1, 8, 2, 2))
    mu, logvar = prior.mean.expand(3, -1, -1, -1), prior.logvar.expand(3, -1, -1, -1)
    expected = kl_divergence(distribution(ours.mean, ours.logvar), distribution(mu, logvar))
    torch.testing.assert_close(ours.kl(prior), expected)


def test_compiles_as_one_graph():
    layer = nn.GaussianReparameterization(free_bits=0.1)

    def step(moments):
        posterior = nn.DiagonalGaussian(moments)
        z, kl = layer(posterior.mean, posterior.logvar, seed=1)
        return z, kl, posterior.kl(), posterior.sample(seed=2), posterior.nll(z)

    moments = torch.randn(3, 8)
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(moments), step(moments))
