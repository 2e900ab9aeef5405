import itertools
import math

import pytest
import torch
from ops.reparameterize_kl.calls import (
    DTYPES,
    LAYOUTS,
    SHAPES,
    lay_out,
    make,
    native_only,
    run,
)
from torch import Tensor

from genimg_fast.ops import normal_from_seed, reparameterize_kl, reparameterize_kl_reference
from genimg_fast.ops.reparameterize_kl.noise import box_muller, philox4x32

KNOWN_ANSWERS = [  # of the authors' Random123 distribution: counter, key, words
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(counter, key, words):
    result = philox4x32(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(int(word) for word in result) == words


def test_box_muller_at_the_ends_of_its_range():
    ends = [0, 1, 2**24, 2**31, 2**32 - 1]
    turns = [(k * 2**29 + d) % 2**32 for k in range(8) for d in (-1, 0, 1)]
    radial, angular = torch.tensor(list(itertools.product(ends, turns))).unbind(1)
    u = (radial.float() * 2.0**-32 + 2.0**-33).double()
    radius, angle = (-2 * u.log()).sqrt(), angular.double() * (2 * math.pi / 2**32)
    for ours, exact in zip(box_muller(radial, angular), (angle.cos(), angle.sin()), strict=True):
        torch.testing.assert_close(ours.double(), radius * exact, rtol=1e-6, atol=1e-8)


def noise_of(seed: int, shape, dtype=torch.float32, device="cpu", layout="contiguous") -> Tensor:
    """The noise that the backend in force makes."""
    zeros = lay_out(torch.zeros(shape, dtype=dtype, device=device), layout)
    return reparameterize_kl(zeros, zeros, seed=seed)[0]


def assert_same_noise(ours: Tensor, expected: Tensor) -> None:
    # Logarithm, square root, sine and cosine, a few ulp each; results near zero are factors, not differences.
    torch.testing.assert_close(ours, expected, rtol=2e-6, atol=1e-12)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**32, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_noise_is_that_of_the_reference(seed, shape, device):
    assert_same_noise(noise_of(seed, shape, device=device).cpu(), normal_from_seed(seed, shape))
    as_tensor = torch.tensor(seed, device=device)
    assert torch.equal(normal_from_seed(as_tensor, shape).cpu(), normal_from_seed(seed, shape))


@native_only
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_noise_of_every_simd_level(shape, simd_level):
    assert_same_noise(noise_of(12345, shape), normal_from_seed(12345, shape))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_noise_depends_on_seed_and_index_alone(dtype, device):
    noise = noise_of(99, (6, 37), dtype, device)
    expected = noise_of(99, (6, 37), device=device)
    if dtype == torch.float64:
        assert_same_noise(noise, expected.double())
    else:
        assert torch.equal(noise, expected.to(dtype))
    assert torch.equal(noise_of(99, (2, 37), dtype, device), noise[:2])
    assert torch.equal(noise_of(99, (6, 21), dtype, device), noise[:, :21])
    for layout in LAYOUTS:
        assert torch.equal(noise_of(99, (6, 37), dtype, device, layout), noise), layout


def test_noise_is_standard_normal(device):
    noise = noise_of(2024, (512, 2048), device=device).double().flatten().cpu()
    n = noise.numel()
    assert abs(noise.mean()) < 4 / math.sqrt(n)
    assert abs(noise.var() - 1) < 4 * math.sqrt(2 / n)
    assert abs(noise.pow(3).mean()) < 4 * math.sqrt(15 / n)
    assert abs(noise.pow(4).mean() - 3) < 4 * math.sqrt(96 / n)
    # Kolmogorov-Smirnov: the greatest distance between the distribution functions, 1% level.
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    expected = torch.special.ndtr(noise.sort().values)
    distance = torch.maximum((steps[1:] - expected).max(), (expected - steps[:-1]).max())
    assert distance < 1.63 / math.sqrt(n)


def test_noise_is_not_correlated(device):
    def correlation(a, b):
        return torch.corrcoef(torch.stack([a.double().flatten().cpu(), b.double().flatten().cpu()]))[0, 1].abs()

    a = noise_of(1, (256, 1024), device=device)
    pairs = {f"elements {k} apart": (a[:, k:], a[:, :-k]) for k in range(1, 9)}
    pairs |= {f"samples {k} apart": (a[k:], a[:-k]) for k in range(1, 5)}
    pairs |= {"lanes 0 and 1": (a[:, ::4], a[:, 1::4]), "lanes 1 and 2": (a[:, 1::4], a[:, 2::4])}
    pairs |= {f"seed {seed}": (a, noise_of(seed, a.shape, device=device)) for seed in (0, 2, 1 + 2**32, -1)}
    zeros = torch.zeros_like(a)
    pairs["successive calls"] = (reparameterize_kl(zeros, zeros)[0], reparameterize_kl(zeros, zeros)[0])
    for name, (x, y) in pairs.items():
        limit = 4 / math.sqrt(x.numel())
        assert correlation(x, y) < limit, name
        assert correlation(x.square(), y.square()) < limit, f"{name}, squares"


def test_manual_seed_and_generator(device):
    mu, logvar, *_ = make((6, 10), device=device)
    torch.manual_seed(7)
    first, second = reparameterize_kl(mu, logvar)[0], reparameterize_kl(mu, logvar)[0]
    torch.manual_seed(7)
    assert torch.equal(reparameterize_kl(mu, logvar)[0], first)
    assert not torch.equal(first, second)
    generator = torch.Generator(device).manual_seed(7)
    before = torch.get_rng_state()
    assert torch.equal(reparameterize_kl(mu, logvar, generator=generator)[0], first)
    assert torch.equal(reparameterize_kl(mu, logvar, generator=generator)[0], second)
    assert torch.equal(torch.get_rng_state(), before)


def test_all_backends_draw_the_same(device):
    mu, logvar, *_ = make((6, 10), device=device)
    torch.manual_seed(7)
    ours = reparameterize_kl(mu, logvar)
    torch.manual_seed(7)
    torch.testing.assert_close(reparameterize_kl_reference(mu, logvar), ours)


def test_given_noise_or_seed_draws_nothing(device):
    mu, logvar, noise, *_ = make((6, 10), device=device)
    before = torch.get_rng_state()
    reparameterize_kl(mu, logvar, noise=noise)
    z, _ = reparameterize_kl(mu, logvar, seed=5)
    assert torch.equal(z, reparameterize_kl(mu, logvar, seed=torch.tensor(5, device=device))[0])
    with pytest.raises(ValueError, match="logvar must have"):
        reparameterize_kl(mu, logvar[:2])
    assert torch.equal(torch.get_rng_state(), before)


def test_seed_gives_what_its_noise_gives(device):
    for dtype in (torch.float32, torch.float64):
        mu, logvar, _, *priors = make((6, 10), dtype, device=device, prior=True)
        noise = normal_from_seed(5, (6, 10), device).to(dtype)
        by_seed = run(reparameterize_kl, [mu, logvar, None, *priors], seed=5)
        by_noise = run(reparameterize_kl, [mu, logvar, noise, *priors])
        for name, value in by_seed.items():
            torch.testing.assert_close(value, by_noise[name], rtol=1e-5, atol=1e-5, msg=name)


def test_noise_from_seed_on_another_shape():
    with pytest.raises(ValueError, match="at least one dimension"):
        normal_from_seed(1, ())
    with pytest.raises(ValueError, match="0-dim int64"):
        normal_from_seed(torch.tensor([1]), (3,))
    assert normal_from_seed(1, (0, 3)).shape == (0, 3)
    assert normal_from_seed(1, (3, 0)).shape == (3, 0)
