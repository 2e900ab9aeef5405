import itertools
import math
from fractions import Fraction

import pytest
import torch
from accuracy import FORWARD, GRADIENT, assert_as_accurate_as_torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.distributions import Normal, kl_divergence
from torch.utils.checkpoint import checkpoint

import genimg_fast as gf
from genimg_fast import _native
from genimg_fast.ops import normal_from_seed, reparameterize_kl, reparameterize_kl_reference
from genimg_fast.ops.reparameterize_kl import _box_muller, _philox4x32

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPES = [(16, 8), (5, 7), (3, 1), (9,), (4, 5, 33), (2, 4, 8, 8), (2, 3, 4, 5, 6), (3, 1000), (70, 2, 3)]
LAYOUTS = ["chunk", "channels_last", "channels_last_chunk", "transposed", "strided", "expanded"]
OPTIONS = {
    "plain": {},
    "clamp": {"logvar_clamp": (-0.5, 1.0)},
    "free_bits": {"free_bits": 0.4},
    "per_element": {"reduction": "none"},
    "all": {"logvar_clamp": (-0.5, 1.0), "free_bits": 0.4, "reduction": "none"},
}
OFF = (-math.inf, math.inf, 0.0)
OPERATORS = torch.ops.genimg_fast


@pytest.fixture(autouse=True, params=["native", "reference"])
def backend(request):
    with gf.backend(request.param):
        yield request.param


@pytest.fixture(params=["avx512", "avx2", "sse2"])
def simd_level(request):
    before = _native.simd_level()
    try:
        _native.set_simd_level(request.param)
    except ValueError:
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    _native.set_simd_level(before)


native_only = pytest.mark.parametrize("backend", ["native"], indirect=True)


def wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def lay_out(x: Tensor, layout: str) -> Tensor:
    """The same values in another memory layout; "expanded": those of the first sample for all."""
    if layout.startswith("channels_last"):
        x = x.contiguous(memory_format={4: torch.channels_last}.get(x.dim(), torch.contiguous_format))
    if layout.endswith("chunk") and x.dim() > 1:
        return torch.cat([torch.full_like(x, math.nan), x], dim=1).chunk(2, dim=1)[1]
    if layout == "transposed":
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided":
        larger = x.new_full([2 * n + 1 for n in x.shape], math.nan)
        return larger[tuple(slice(1, 2 * n + 1, 2) for n in x.shape)].copy_(x)
    if layout == "expanded":
        return x[:1].expand_as(x)
    return x


def make(shape, dtype=torch.float32, *, device="cpu", layout="contiguous", prior=False, scale=1.0):
    """mu, logvar, noise and, or None, prior_mu and prior_logvar."""
    tensors = [lay_out((scale * torch.randn(shape, device=device)).to(dtype), layout) for _ in range(5)]
    return tensors if prior else [*tensors[:3], None, None]


NAMES = ("mu", "logvar", "noise", "prior_mu", "prior_logvar")


def run(function, tensors, grads=None, *, dtype=None, **options):
    """Forward and backward; returns every result by name. `dtype` computes in that dtype instead."""
    leaves = {
        name: t.detach().to(dtype or t.dtype).requires_grad_()
        for name, t in zip(NAMES, tensors, strict=True)
        if t is not None
    }
    z, kl = function(**leaves, **options)
    if grads is None:
        torch.manual_seed(1)
        grads = torch.randn(z.shape, device=z.device).to(z.dtype), torch.randn(kl.shape, device=z.device)
    torch.autograd.backward((z, kl), (grads[0].to(z.dtype), grads[1].to(kl.dtype)))
    return {"z": z, "kl": kl, **{f"grad_{name}": leaf.grad for name, leaf in leaves.items()}}


def check(tensors, **options):
    """The accuracy rule: the reference in float64 is exact, in the inputs' dtype it is plain torch."""
    mu = tensors[0]
    kl_shape = mu.shape if options.get("reduction") == "none" else mu.shape[:1]
    grads = torch.randn_like(mu), torch.randn(kl_shape, device=mu.device, dtype=wide(mu.dtype))
    exact = run(reparameterize_kl_reference, tensors, grads, dtype=torch.float64, **options)
    torchs = run(reparameterize_kl_reference, tensors, grads, **options)
    ours = run(reparameterize_kl, tensors, grads, **options)
    for name, value in ours.items():
        times = GRADIENT if name.startswith("grad") else FORWARD
        assert_as_accurate_as_torch(value, torchs[name], exact[name], times=times, name=name)
    return ours


# Philox and the noise.

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
    result = _philox4x32(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(int(word) for word in result) == words


def test_box_muller_at_the_ends_of_its_range():
    ends = [0, 1, 2**24, 2**31, 2**32 - 1]
    turns = [(k * 2**29 + d) % 2**32 for k in range(8) for d in (-1, 0, 1)]
    radial, angular = torch.tensor(list(itertools.product(ends, turns))).unbind(1)
    u = (radial.float() * 2.0**-32 + 2.0**-33).double()
    radius, angle = (-2 * u.log()).sqrt(), angular.double() * (2 * math.pi / 2**32)
    for ours, exact in zip(_box_muller(radial, angular), (angle.cos(), angle.sin()), strict=True):
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


# Where the noise comes from.


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


# Values and gradients.


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("prior", [False, True], ids=["standard", "prior"])
def test_dtypes_and_shapes(shape, dtype, prior, device):
    check(make(shape, dtype, device=device, prior=prior))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("prior", [False, True], ids=["standard", "prior"])
def test_options(options, dtype, prior, device):
    check(make((6, 5, 7), dtype, device=device, prior=prior), **OPTIONS[options])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(5, 12), (4, 6, 7, 9), (8, 16, 8, 8), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("prior", [False, True], ids=["standard", "prior"])
def test_layouts(layout, dtype, shape, prior, device):
    tensors = make(shape, dtype, device=device, layout=layout, prior=prior)
    ours = check(tensors, reduction="none")
    assert ours["z"].stride() == torch.empty_like(tensors[0]).stride()
    assert torch.equal(check(tensors)["z"], ours["z"])


@pytest.mark.parametrize(
    "layouts", list(itertools.permutations(["contiguous", "channels_last", "chunk"])), ids=str
)
def test_layouts_that_differ(layouts, device):
    tensors = make((4, 6, 7, 9), device=device, prior=True)
    expected = run(reparameterize_kl, tensors)
    mixed = [lay_out(t, layout) for t, layout in zip(tensors, (*layouts, *layouts[:2]), strict=True)]
    results = run(reparameterize_kl, mixed)
    for name, value in results.items():
        torch.testing.assert_close(value, expected[name], msg=name)
    assert torch.equal(results["z"], expected["z"])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_another_layout(layout, device):
    tensors = make((4, 6, 7, 9), device=device)
    grads = [torch.randn_like(tensors[0]) for _ in range(2)]
    grads = [lay_out(g, layout) for g in grads]
    ours = run(reparameterize_kl, tensors, grads, reduction="none")
    dense = run(reparameterize_kl, tensors, [g.contiguous() for g in grads], reduction="none")
    for name, value in ours.items():
        assert torch.equal(value, dense[name]), name


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_large(dtype, device):
    check(make((64, 4, 32, 32), dtype, device=device, layout="chunk", prior=True))
    check(make((3, 70001), dtype, device=device))
    check(make((20000, 3), dtype, device=device))


@native_only
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", ["plain", "all"])
@pytest.mark.parametrize("prior", [False, True], ids=["standard", "prior"])
def test_every_simd_level(dtype, options, prior, simd_level):
    for shape, layout in [((6, 37), "contiguous"), ((4, 6, 7, 9), "chunk"), ((4, 6, 7, 9), "channels_last")]:
        check(make(shape, dtype, layout=layout, prior=prior), **OPTIONS[options])


@pytest.mark.parametrize("prior", [False, True], ids=["standard", "prior"])
@pytest.mark.parametrize("extreme", [1.0, 10.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_divergence_is_that_of_torch_distributions(extreme, dtype, prior, device):
    mu, _, _, prior_mu, prior_logvar = make((40, 25), dtype, device=device, prior=prior)
    logvar = torch.linspace(-extreme, extreme, 1000, device=device, dtype=dtype).view(40, 25)
    if prior:
        prior_logvar = prior_logvar * (extreme / 10)

    def distributions(mu, logvar, prior_mu, prior_logvar):
        standard = Normal(torch.zeros_like(mu), torch.ones_like(mu))
        other = standard if prior_mu is None else Normal(prior_mu, (prior_logvar / 2).exp())
        return kl_divergence(Normal(mu, (logvar / 2).exp()), other)

    arguments = (mu, logvar, prior_mu, prior_logvar)
    torchs = distributions(*arguments)
    exact = distributions(*(None if t is None else t.double() for t in arguments))
    ours = {
        r: reparameterize_kl(mu, logvar, seed=0, prior_mu=prior_mu, prior_logvar=prior_logvar, reduction=r)[1]
        for r in ("none", "sample")
    }
    # The difference of the two log-variances is rounded, to half an ulp, and exp makes a relative error of that.
    exponent = 0.0 if prior_logvar is None else (logvar - prior_logvar).abs().max().item()
    rule = {"times": FORWARD, "ulps": 4 + exponent / 2}
    assert_as_accurate_as_torch(ours["none"], torchs, exact, **rule)
    assert_as_accurate_as_torch(ours["sample"], torchs.sum(1), exact.sum(1), **rule)
    # Element by element, too: none has lost digits by cancellation. (In float64 `exact` itself has.)
    tolerance = (8 + exponent / 2) * torch.finfo(dtype).eps if dtype == torch.float32 else 1e-9
    torch.testing.assert_close(ours["none"].double(), exact, rtol=tolerance, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("prior", [False, True], ids=["standard", "prior"])
def test_small_divergence_keeps_its_digits(dtype, prior, device):
    x = torch.tensor([s * 10.0 ** (-k / 4) for k in range(4, 40) for s in (1, -1)], dtype=dtype, device=device)
    mu, logvar = torch.zeros_like(x).requires_grad_(), x.clone().requires_grad_()
    zeros = torch.zeros_like(x) if prior else None
    kl = reparameterize_kl(mu, logvar, seed=0, prior_mu=zeros, prior_logvar=zeros, reduction="none")[1]
    kl.sum().backward()
    exact = x.double()
    series = sum(exact**k / math.factorial(k) for k in range(2, 14))
    ulp = torch.finfo(dtype).eps
    torch.testing.assert_close(kl.double(), series / 2, rtol=6 * ulp, atol=0)
    torch.testing.assert_close(logvar.grad.double(), exact.expm1() / 2, rtol=6 * ulp, atol=0)
    assert (kl >= 0).all()


def test_identical_distributions_have_no_divergence(device):
    mu, logvar, *_ = make((5, 40), device=device, scale=3.0)
    _, kl = reparameterize_kl(mu, logvar, prior_mu=mu, prior_logvar=logvar)
    assert torch.equal(kl, torch.zeros_like(kl))


@pytest.mark.parametrize("shape", [(4, 6, 5), (6, 5), (1, 6, 1), (5,), (1,), ()], ids=str)
def test_prior_expands(shape, device):
    mu, logvar, noise, *_ = make((4, 6, 5), torch.float64, device=device)
    prior_mu, prior_logvar = torch.randn(2, *shape, dtype=torch.float64, device=device)
    results = [
        run(function, [mu, logvar, noise, prior_mu, prior_logvar])
        for function in (reparameterize_kl, reparameterize_kl_reference)
    ]
    for name, ours in results[0].items():
        torch.testing.assert_close(ours, results[1][name], msg=name)
    assert results[0]["grad_prior_mu"].shape == shape


def test_free_bits_and_clamp(device):
    mu = torch.tensor([[0.0, 0.1, 2.0, 0.0]], device=device, requires_grad=True)
    logvar = torch.tensor([[0.0, 0.1, 0.5, -5.0]], device=device, requires_grad=True)
    z, kl = reparameterize_kl(
        mu, logvar, noise=torch.ones_like(mu), free_bits=0.25, logvar_clamp=(-2.0, 0.5), reduction="none"
    )
    last = 0.5 * (math.exp(-2) - 1 + 2)
    third = 0.5 * (math.exp(0.5) - 1 - 0.5 + 4)
    torch.testing.assert_close(kl.tolist(), [[0.25, 0.25, third, last]])
    torch.testing.assert_close(z.tolist(), [[1.0, 0.1 + math.exp(0.05), 2 + math.exp(0.25), math.exp(-1)]])
    kl.sum().backward()
    torch.testing.assert_close(mu.grad.tolist(), [[0.0, 0.0, 2.0, 0.0]])
    # The end of the range lets the gradient pass.
    torch.testing.assert_close(logvar.grad.tolist(), [[0.0, 0.0, 0.5 * math.expm1(0.5), 0.0]])
    one = torch.ones(1, device=device, requires_grad=True)
    reparameterize_kl(one, torch.zeros_like(one), free_bits=0.5)[1].backward()
    assert one.grad.item() == 1.0


@pytest.mark.parametrize("shape", [(0, 3), (0,), (2, 0), (0, 3, 0), (3, 0, 2)], ids=str)
@pytest.mark.parametrize("options", OPTIONS)
def test_empty(shape, options, device):
    for prior in (False, True):
        results = run(reparameterize_kl, make(shape, device=device, prior=prior), **OPTIONS[options])
        for name, value in results.items():
            assert value.shape == (shape[:1] if name == "kl" and "reduction" not in OPTIONS[options] else shape)
        assert (results["kl"] == 0).all()


def test_batch_of_scalars(device):
    mu, logvar, *_ = make((9,), device=device)
    z, kl = reparameterize_kl(mu, logvar, seed=1)
    torch.testing.assert_close(kl, reparameterize_kl(mu, logvar, seed=1, reduction="none")[1])
    assert z.shape == kl.shape == (9,)


def test_many_dimensions(device):
    tensors = make((2, 1, 3, 2, 2, 1, 2, 2, 3, 2), torch.float64, device=device)
    with gf.backend("auto"):
        check(tensors)
    tensors = [lay_out(t, "strided") for t in make((2, 3, 2, 2, 2, 2, 2, 3, 2), torch.float64, device=device)[:3]]
    check([*tensors, None, None])


def test_nan_and_infinity_spread_as_in_the_reference(device):
    special = torch.tensor([0.0, 1.0, math.nan, math.inf, -math.inf], device=device)
    mu, logvar = (t.repeat(3, 1) for t in torch.cartesian_prod(special, special).unbind(1))
    for options in OPTIONS.values():
        ours = reparameterize_kl(mu, logvar, noise=torch.ones_like(mu), **options)
        expected = reparameterize_kl_reference(mu, logvar, noise=torch.ones_like(mu), **options)
        torch.testing.assert_close(ours, expected, equal_nan=True)


def test_bit_identical_from_run_to_run_across_threads_and_batch_sizes(device):
    tensors = make((64, 3, 333), device=device, prior=True)
    tensors[2] = None
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(run(reparameterize_kl, tensors, seed=3))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name
    mu, logvar, *_ = tensors
    for size in (1, 2, 7):
        z, kl = reparameterize_kl(
            mu[:size], logvar[:size], seed=3, prior_mu=tensors[3][:size], prior_logvar=tensors[4][:size]
        )
        assert torch.equal(z, results[0]["z"][:size])
        assert torch.equal(kl, results[0]["kl"][:size])


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("prior", [False, True], ids=["standard", "prior"])
@pytest.mark.parametrize("seed", [None, 3], ids=["noise", "seed"])
def test_gradients_of_first_and_second_order(options, prior, seed, device):
    tensors = make((3, 2, 3), torch.float64, device=device, prior=prior)
    if seed is not None:
        tensors[2] = None
    names = [name for name, t in zip(NAMES, tensors, strict=True) if t is not None]
    inputs = [t.requires_grad_() for t in tensors if t is not None]

    def function(*inputs):
        return reparameterize_kl(**dict(zip(names, inputs, strict=True)), seed=seed, **OPTIONS[options])

    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


def test_third_order(device):
    _, values, noise, *_ = make((3, 4), torch.float64, device=device)

    def third(function):
        logvar = values.clone().requires_grad_()
        z, kl = function(logvar.sin(), logvar, noise=noise)
        total = z.pow(3).sum() + kl.square().sum()
        for _ in range(3):
            (gradient,) = torch.autograd.grad(total, logvar, create_graph=True)
            total = gradient.square().sum()
        return gradient

    torch.testing.assert_close(third(reparameterize_kl), third(reparameterize_kl_reference))


def test_arguments_that_depend_on_each_other(device):
    x = torch.randn(4, 6, dtype=torch.float64, device=device, requires_grad=True)

    def function(x):
        return reparameterize_kl(x, x, noise=x.sin(), prior_mu=x.square(), prior_logvar=x)

    assert gradcheck(function, x)
    assert gradgradcheck(function, x)
    packed = torch.randn(4, 12, dtype=torch.float64, device=device, requires_grad=True)
    assert gradcheck(lambda packed: reparameterize_kl(*packed.chunk(2, 1), seed=1), packed)


@pytest.mark.parametrize("used", ["z", "kl"])
@pytest.mark.parametrize("order", [1, 2])
def test_one_output_alone(used, order, device):
    mu, logvar, noise, *_ = make((4, 6), torch.float64, device=device)

    def gradients(function):
        leaves = [t.clone().requires_grad_() for t in (mu, logvar)]
        total = function(*leaves, noise=noise)[used == "kl"].pow(3).sum()
        for _ in range(order):
            result = torch.autograd.grad(total, leaves, create_graph=True)
            total = sum(g.square().sum() for g in result)
        return result

    torch.testing.assert_close(gradients(reparameterize_kl), gradients(reparameterize_kl_reference))


@pytest.mark.parametrize("needed", list(itertools.product([False, True], repeat=5))[1:], ids=str)
def test_only_the_gradients_that_are_needed(needed, device):
    tensors = make((4, 6), torch.float64, device=device, prior=True)
    results = []
    for function in (reparameterize_kl, reparameterize_kl_reference):
        leaves = [t.clone().requires_grad_(n) for t, n in zip(tensors, needed, strict=True)]
        z, kl = function(**dict(zip(NAMES, leaves, strict=True)))
        (z.square().sum() + kl.square().sum()).backward()
        results.append([leaf.grad for leaf in leaves])
    for ours, torchs, need in zip(*results, needed, strict=True):
        assert (ours is not None) == need
        torch.testing.assert_close(ours, torchs)


@native_only
def test_unneeded_gradients_are_not_computed(device):
    mu, logvar, noise, prior_mu, prior_logvar = make((4, 6), device=device, prior=True)
    asked = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "reparameterize_kl_backward" in str(function):
                asked.append(args[-2:])
            return function(*args, **(kwargs or {}))

    for needed in [(), (noise,), (prior_logvar,), (noise, prior_mu)]:
        leaves = [t.detach().requires_grad_(any(t is n for n in needed)) for t in (noise, prior_mu, prior_logvar)]
        z, kl = reparameterize_kl(
            mu.detach().requires_grad_(), logvar, noise=leaves[0], prior_mu=leaves[1], prior_logvar=leaves[2]
        )
        with Watch():
            (z.sum() + kl.sum()).backward()
    assert asked == [(False, False), (True, False), (False, True), (True, True)]


@native_only
@pytest.mark.parametrize("by", ["seed", "noise"])
def test_saves_its_arguments_alone(by, device):
    mu, logvar, noise, *_ = make((8, 16), device=device)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        reparameterize_kl(mu.requires_grad_(), logvar, **({"seed": 1} if by == "seed" else {"noise": noise}))
    expected = {mu.data_ptr(): 128, logvar.data_ptr(): 128}
    rest = {t.data_ptr(): t.numel() for t in saved if t.data_ptr() not in expected}
    assert len(saved) == 3
    assert rest == ({noise.data_ptr(): 128} if by == "noise" else {next(iter(rest)): 1})


@native_only
def test_changed_arguments_are_noticed(device):
    mu, logvar, *_ = make((8, 16), device=device)
    z, kl = reparameterize_kl(mu.requires_grad_(), logvar)
    logvar.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        (z.sum() + kl.sum()).backward()


# Inside PyTorch's machinery.


@native_only
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("prior", [False, True], ids=["standard", "prior"])
@pytest.mark.parametrize("by", ["noise", "seed"])
def test_backward_under_transforms_equals_the_reference(options, prior, by, device):
    mu, logvar, noise, *priors = make((3, 4), torch.float64, device=device, prior=prior)
    candidates = (mu, logvar, noise if by == "noise" else None, *priors)
    leaves = [t.requires_grad_() for t in candidates if t is not None]
    others = dict(zip(("prior_mu", "prior_logvar"), priors, strict=True)) | OPTIONS[options]
    others |= {"noise": noise} if by == "noise" else {"seed": 7}
    results = []
    for function in (reparameterize_kl, reparameterize_kl_reference):
        torch.manual_seed(1)
        outputs = function(mu, logvar, **others)
        directions = [torch.randn(2, *o.shape, dtype=o.dtype, device=device) for o in outputs]
        found = [*torch.autograd.grad(outputs, leaves, directions, is_grads_batched=True, retain_graph=True)]
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(*d.unbind()) for d in directions]
            slopes = torch.autograd.grad(outputs, leaves, duals, retain_graph=True)
            found += [forward_ad.unpack_dual(slope).tangent for slope in slopes]
        slopes = torch.autograd.grad(outputs, leaves, [d[0] for d in directions], create_graph=True)
        weights = [torch.randn(2, *s.shape, dtype=s.dtype, device=device) for s in slopes]
        found += torch.autograd.grad(slopes, leaves, weights, is_grads_batched=True, allow_unused=True)
        results.append([torch.zeros(()) if t is None else t for t in found])
    torch.testing.assert_close(*results)


@native_only
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_infinities_spread_no_further_than_in_the_reference(options, dtype, device):
    for at, value in itertools.product(range(5), (math.inf, -math.inf)):
        tensors = make((3, 5), dtype, device=device, prior=True)
        tensors[at][1, 2] = value
        functions = reparameterize_kl, reparameterize_kl_reference
        ours, theirs = (run(function, tensors, **OPTIONS[options]) for function in functions)
        for name, result in ours.items():
            assert not (result.isnan() & ~theirs[name].isnan()).any(), (at, value, name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_changes_nothing(dtype, device):
    for data_dtype in (torch.float32, dtype):
        tensors = make((4, 6), data_dtype, device=device)
        expected = run(reparameterize_kl, tensors)
        with torch.autocast(device, dtype):
            results = run(reparameterize_kl, tensors)
        for name, value in results.items():
            assert value.dtype == expected[name].dtype
            assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant, device):
    mu, logvar, *_ = make((8, 16), device=device)
    gradients = []
    for wrap in (lambda f, *t: f(*t), lambda f, *t: checkpoint(f, *t, use_reentrant=reentrant)):
        torch.manual_seed(3)
        leaves = [t.clone().requires_grad_() for t in (mu, logvar)]
        z, kl = wrap(reparameterize_kl, *leaves)
        torch.randn(5, device=device)  # the generator has moved on when backward computes the forward pass again
        (z.pow(3).sum() + kl.sum()).backward()
        gradients.append([z, *(leaf.grad for leaf in leaves)])
    for ours, expected in zip(*gradients, strict=True):
        assert torch.equal(ours, expected)


def compile_backends(backend):
    # Inductor would turn the reference's Philox into C++ for a minute.
    return ["eager", "aot_eager", "inductor"] if backend == "native" else ["eager", "aot_eager"]


@pytest.mark.parametrize("layout", ["contiguous", "chunk", "channels_last_chunk"])
def test_compiles_as_one_graph(layout, backend, device):
    tensors = make((4, 6, 5, 5), device=device, layout=layout, prior=True)
    mu, logvar, _, prior_mu, prior_logvar = tensors
    options = {"logvar_clamp": (-1.0, 1.0), "free_bits": 0.1}
    for compiler in compile_backends(backend):
        torch._dynamo.reset()
        compiled = torch.compile(reparameterize_kl, fullgraph=True, backend=compiler)
        for source in ({}, {"seed": 5}, {"seed": torch.tensor(5, device=device)}):
            given = [mu, logvar, None, prior_mu, prior_logvar]
            ours = run(compiled, given, seed=source.get("seed"), **options)
            if source:
                eager = run(reparameterize_kl, given, seed=5, **options)
                for name, value in ours.items():
                    torch.testing.assert_close(value, eager[name], msg=f"{compiler} {name}")
        ours, eager = run(compiled, tensors, **options), run(reparameterize_kl, tensors, **options)
        for name, value in ours.items():
            torch.testing.assert_close(value, eager[name], msg=f"{compiler} {name}")
        assert ours["z"].stride() == eager["z"].stride()


def test_compiled_noise_obeys_manual_seed(backend, device):
    mu, logvar, *_ = make((6, 10), device=device)
    for compiler in compile_backends(backend):
        torch._dynamo.reset()
        compiled = torch.compile(reparameterize_kl, fullgraph=True, backend=compiler)
        torch.manual_seed(7)
        first, second = compiled(mu, logvar)[0], compiled(mu, logvar)[0]
        torch.manual_seed(7)
        assert torch.equal(compiled(mu, logvar)[0], first)
        assert not torch.equal(first, second)


def test_compiled_backward_uses_the_noise_of_forward(backend, device):
    mu, logvar, *_ = make((6, 10), device=device)
    for compiler in compile_backends(backend):
        torch._dynamo.reset()
        compiled = torch.compile(reparameterize_kl, fullgraph=True, backend=compiler)
        leaf = logvar.clone().requires_grad_()
        z, _ = compiled(mu, leaf)
        z.sum().backward()
        torch.testing.assert_close(leaf.grad, 0.5 * (z - mu).detach())


def test_compiles_with_a_generator_in_two_graphs(device):
    mu, logvar, *_ = make((6, 10), device=device)
    torch._dynamo.reset()
    compiled = torch.compile(reparameterize_kl, backend="eager")
    ours = compiled(mu, logvar, generator=torch.Generator(device).manual_seed(7))
    eager = reparameterize_kl(mu, logvar, generator=torch.Generator(device).manual_seed(7))
    torch.testing.assert_close(ours, eager)


def test_compiles_with_dynamic_sizes_and_options(backend, device):
    torch._dynamo.reset()
    compiled = torch.compile(reparameterize_kl, fullgraph=True, dynamic=True, backend="aot_eager")
    for batch, length, free_bits in [(3, 10, 0.0), (5, 11, 0.1), (7, 8, 0.2), (2, 33, 0.3)]:
        tensors = make((batch, length), device=device)
        ours = run(compiled, tensors, free_bits=free_bits)
        eager = run(reparameterize_kl, tensors, free_bits=free_bits)
        for name, value in ours.items():
            torch.testing.assert_close(value, eager[name], msg=name)


def test_second_order_under_compile(device):
    mu, logvar, noise, *_ = make((3, 5), torch.float64, device=device)

    def penalty(function):
        leaves = [t.clone().requires_grad_() for t in (mu, logvar)]
        z, kl = function(*leaves, noise=noise)
        grads = torch.autograd.grad(z.pow(3).sum() + kl.square().sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)

    torch._dynamo.reset()
    compiled = torch.compile(reparameterize_kl, fullgraph=True, backend="eager")
    torch.testing.assert_close(penalty(compiled), penalty(reparameterize_kl_reference))


OPCHECKED = [(torch.float32, layout) for layout in ("contiguous", "chunk", "channels_last", "expanded")]


@native_only
@pytest.mark.parametrize(("dtype", "layout"), [*OPCHECKED, (torch.bfloat16, "chunk"), (torch.float64, "chunk")])
def test_opcheck(dtype, layout, device):
    mu, logvar, noise, prior_mu, prior_logvar = make((3, 4, 2, 5), dtype, device=device, layout=layout, prior=True)
    seed = torch.tensor(5, device=device)
    by_seed = (mu.requires_grad_(), logvar.requires_grad_(), None, seed, None, None, *OFF, False)
    by_noise = (
        mu,
        logvar,
        noise.requires_grad_(),
        None,
        prior_mu,
        prior_logvar.requires_grad_(),
        -1.0,
        1.0,
        0.2,
        True,
    )
    grad_z, grad_kl = torch.randn_like(mu), torch.randn(3, device=device, dtype=wide(dtype))
    for forward, given, needed in [
        (by_seed, (grad_z.requires_grad_(), grad_kl.requires_grad_()), (False, False)),
        (by_seed, (None, grad_kl), (False, False)),
        (by_noise, (grad_z, torch.randn_like(mu, dtype=wide(dtype))), (True, True)),
        (by_noise, (grad_z, None), (False, True)),
    ]:
        torch.library.opcheck(OPERATORS.reparameterize_kl.default, forward)
        torch.library.opcheck(OPERATORS.reparameterize_kl_backward.default, (*given, *forward, *needed))


def test_transforms(device):
    mu, logvar, noise, *_ = make((5, 4, 3), torch.float64, device=device)

    def total(function, mu, logvar, noise):
        z, kl = function(mu, logvar, noise=noise)
        return z.pow(3).sum() + kl.square().sum()

    results = []
    for function in (reparameterize_kl, reparameterize_kl_reference):
        gradient = torch.func.grad(lambda *t, f=function: total(f, *t), argnums=(0, 1))(mu, logvar, noise)
        jvp = torch.func.jvp(lambda *t, f=function: f(t[0], t[1], noise=noise), (mu, logvar), (noise, mu))
        each = torch.func.vmap(lambda *t, f=function: f(t[0], t[1], seed=3))(mu, logvar)
        drawn = torch.func.vmap(
            lambda *t, f=function: f(t[0], t[1])[0].shape, randomness="different", out_dims=None
        )
        results.append((gradient, jvp, each))
        assert drawn(mu, logvar) == (4, 3)
    torch.testing.assert_close(*results)
    single = reparameterize_kl(mu[2], logvar[2], seed=3)
    torch.testing.assert_close((each[0][2], each[1][2]), single, rtol=1e-5, atol=1e-5)


def test_transforms_inside_compile(device):
    mu, tangent, noise, *_ = make((5, 4), device=device)
    results = []
    for function in (reparameterize_kl, reparameterize_kl_reference):
        torch._dynamo.reset()

        def derivative(x, t, f=function):
            return torch.func.jvp(lambda x: f(x, x, noise=noise), (x,), (t,))[1]

        results.append(torch.compile(derivative, backend="aot_eager", fullgraph=True)(mu, tangent))
    torch.testing.assert_close(*results)
    assert results[0][0].norm() > 0


def test_forward_mode(device):
    mu, logvar, noise, *_ = make((5, 4), torch.float64, device=device)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(logvar, noise)
        z, _ = reparameterize_kl(mu, dual, noise=noise)
        tangent = torch.autograd.forward_ad.unpack_dual(z).tangent
    torch.testing.assert_close(tangent, 0.5 * noise * (0.5 * logvar).exp() * noise)


def test_export_and_trace():
    class Encoder(torch.nn.Module):
        def forward(self, packed, seed):
            return reparameterize_kl(*packed.chunk(2, dim=1), seed=seed)

    arguments = (torch.randn(3, 8), torch.tensor(5))
    expected = reparameterize_kl_reference(*arguments[0].chunk(2, dim=1), seed=5)
    exported = torch.export.export(Encoder(), arguments)
    assert "genimg_fast" not in str(exported.graph)
    torch.testing.assert_close(exported.module()(*arguments), expected)
    torch.testing.assert_close(torch.jit.trace(Encoder(), arguments)(*arguments), expected)


def test_subclasses_keep_their_type(device):
    class Marked(Tensor):
        pass

    mu, logvar, *_ = make((3, 5), device=device)
    z, kl = reparameterize_kl(mu.as_subclass(Marked), logvar, seed=1)
    assert type(z) is type(kl) is Marked
    torch.testing.assert_close(z.as_subclass(Tensor), reparameterize_kl(mu, logvar, seed=1)[0])


def test_meta_device():
    with gf.backend("auto"):
        mu = torch.empty(3, 4, 5, device="meta", dtype=torch.bfloat16)
        z, kl = reparameterize_kl(mu, mu)
    assert (z.shape, z.dtype, kl.shape, kl.dtype) == (mu.shape, mu.dtype, (3,), torch.float32)


def test_which_path_runs(backend, device):
    mu, logvar, *_ = make((3, 5), device=device)
    ours = "_ReparameterizeKLBackward"
    name = type(reparameterize_kl(mu.requires_grad_(), logvar)[0].grad_fn).__name__
    assert (name == ours) == (backend == "native")
    with torch.device(device):
        name = type(reparameterize_kl(mu, logvar)[0].grad_fn).__name__
    assert (name == ours) == (backend == "native")
    assert gf.info().operators["reparameterize_kl"]["cpu"][0] == backend


# Bad input.

MU = torch.zeros(4, 6)
BAD_INPUT = {
    r"noise, seed and generator exclude each other": {"noise": MU, "seed": 1},
    r"noise, seed and generator exclude each other:": {"seed": 1, "generator": torch.Generator()},
    r"logvar must have mu's shape, \(4, 6\), got \(4, 5\)": {"logvar": torch.zeros(4, 5)},
    r"logvar must have mu's dtype, torch.float32, got torch.float64": {"logvar": MU.double()},
    r"logvar must be on mu's device, cpu, got meta": {"logvar": MU.to("meta")},
    r"logvar must be a Tensor, got float": {"logvar": 0.0},
    r"prior_logvar must be a Tensor, got float": {"prior_mu": MU, "prior_logvar": 0.0},
    r"noise must have mu's shape": {"noise": torch.zeros(6)},
    r"noise must have mu's dtype": {"noise": MU.half()},
    r"mu must be float32, float64, bfloat16 or float16, got torch.int64": {"mu": MU.long(), "logvar": MU.long()},
    r"mu must be .*, got torch.complex64": {"mu": MU.cfloat(), "logvar": MU.cfloat()},
    r"mu must be a Tensor, got list": {"mu": [0.0]},
    r"mu must have at least 1 dimension": {"mu": torch.tensor(0.0), "logvar": torch.tensor(0.0)},
    r"seed must be an int or a 0-dim int64 tensor, got torch.float32": {"seed": torch.tensor(1.0)},
    r"seed must be an int or a 0-dim int64 tensor, got torch.int64 of shape \(1,\)": {"seed": torch.tensor([1])},
    r"seed must be on mu's device, cpu, got meta": {"seed": torch.tensor(1, device="meta")},
    r"seed must fit into an int64, got 18446744073709551616": {"seed": 2**64},
    r"seed must be an int or a 0-dim int64 tensor, got float": {"seed": 1.5},
    r"prior_mu and prior_logvar go together, but prior_logvar is None": {"prior_mu": MU},
    r"prior_mu and prior_logvar go together, but prior_mu is None": {"prior_logvar": MU},
    r"prior_mu must expand to mu's shape, \(4, 6\), got \(5,\)": {"prior_mu": torch.zeros(5), "prior_logvar": MU},
    r"prior_logvar must expand to mu's shape": {"prior_mu": MU, "prior_logvar": torch.zeros(1, 4, 6)},
    r"prior_logvar must have mu's dtype": {"prior_mu": MU, "prior_logvar": MU.double()},
    r"logvar_clamp must be \(min, max\)": {"logvar_clamp": (1.0, -1.0)},
    r"logvar_clamp must be \(min, max\) with": {"logvar_clamp": (math.nan, 1.0)},
    r"the min of logvar_clamp must be a number, got str": {"logvar_clamp": ("a", "b")},
    r"the max of logvar_clamp must be a number, got NoneType": {"logvar_clamp": (0.0, None)},
    r"logvar_clamp must be \(min, max\), got 3 values": {"logvar_clamp": (0.0, 1.0, 2.0)},
    r"logvar_clamp must be \(min, max\) or None, got float": {"logvar_clamp": 1.0},
    r"free_bits must be a number, got str": {"free_bits": "a"},
    r"generator must be a torch.Generator, got int": {"generator": 7},
    r"unknown reduction \['none'\]": {"reduction": ["none"]},
    r"mu must be a dense tensor, got torch.sparse_coo": {"mu": MU.to_sparse()},
    r"noise must be a dense tensor, got torch.sparse_csr": {"noise": MU.to_sparse_csr()},
    r"seed must be a dense tensor": {"seed": torch.tensor([1]).to_sparse()},
    r"free_bits must be finite and not negative, got -0.1": {"free_bits": -0.1},
    r"free_bits must be finite": {"free_bits": math.inf},
    r"unknown reduction 'mean'; choose one of sample, none": {"reduction": "mean"},
}


@pytest.mark.parametrize("message", BAD_INPUT)
def test_bad_input(message):
    with pytest.raises((ValueError, TypeError, RuntimeError), match=message):
        reparameterize_kl(**({"mu": MU, "logvar": MU} | BAD_INPUT[message]))


def test_limits_may_be_any_real_numbers():
    expected = reparameterize_kl(MU, MU + 2, seed=0, logvar_clamp=(-1.0, 1.0), free_bits=0.5)
    numbers = {"logvar_clamp": (Fraction(-1), 1), "free_bits": Fraction(1, 2)}
    torch.testing.assert_close(reparameterize_kl(MU, MU + 2, seed=0, **numbers), expected)


def test_generator_of_another_device():
    if not torch.cuda.is_available():
        pytest.skip("needs a second kind of device")
    with pytest.raises(RuntimeError, match="generator"):
        reparameterize_kl(MU, MU, generator=torch.Generator("cuda"))


RAW_BAD_INPUT = {
    "exactly one of noise and seed": {"seed": None},
    "exactly one of noise and seed must": {"noise": MU},
    "logvar must have mu's shape": {"logvar": torch.zeros(4, 5)},
    "noise must have mu's dtype": {"noise": MU.double(), "seed": None},
    "prior_mu must have mu's shape": {"prior_mu": torch.zeros(6), "prior_logvar": MU},
    "prior_mu and prior_logvar must be given together": {"prior_mu": MU},
    "seed must be .*int64": {"seed": torch.tensor(1.0)},
    "seed must be .*int64 tensor": {"seed": torch.tensor([1])},
    "mu must be float32, float64, bfloat16 or float16": {"mu": MU.long(), "logvar": MU.long()},
    "mu must have at least 1 dimension": {"mu": torch.tensor(0.0), "logvar": torch.tensor(0.0)},
}


@native_only
@pytest.mark.parametrize("message", RAW_BAD_INPUT)
@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_raw_operators_refuse_bad_input(message, where):
    arguments = {"mu": MU, "logvar": MU, "noise": None, "seed": torch.tensor(1)}
    arguments |= {"prior_mu": None, "prior_logvar": None} | RAW_BAD_INPUT[message]
    arguments = {name: t if t is None else t.to(where) for name, t in arguments.items()}
    options = {"logvar_min": -math.inf, "logvar_max": math.inf, "free_bits": 0.0, "per_element": False}
    with pytest.raises((ValueError, RuntimeError), match=message):
        OPERATORS.reparameterize_kl(**arguments, **options)
    gradients = {"grad_z": arguments["mu"], "grad_kl": None, "need_noise": False, "need_prior": False}
    with pytest.raises((ValueError, RuntimeError), match=message):
        OPERATORS.reparameterize_kl_backward(**gradients, **arguments, **options)


@native_only
@pytest.mark.parametrize("where", ["cpu", "meta"])
def test_raw_backward_refuses_bad_gradients(where):
    mu, seed = MU.to(where), torch.tensor(1).to(where)
    for grads in [(mu[:2], None), (mu.double(), None), (None, mu[0]), (None, mu), (None, mu[:, 0].double())]:
        with pytest.raises((ValueError, RuntimeError), match=r"grad_(z|kl) must"):
            OPERATORS.reparameterize_kl_backward(*grads, mu, mu, None, seed, None, None, *OFF, False, False, False)


def test_native_backend_says_what_it_cannot_do():
    meta = torch.empty(3, 4, device="meta")
    with gf.backend("native"), pytest.raises(RuntimeError, match=r"'native' was asked for, but .* 'meta'"):
        reparameterize_kl(meta, meta)
    many = torch.zeros([1] * 12)
    with gf.backend("native"), pytest.raises(RuntimeError, match=r"'native' .* 9 dimensions"):
        reparameterize_kl(many, many)
