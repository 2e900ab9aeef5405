import itertools
import math

import pytest
import torch
from accuracy import FORWARD, assert_as_accurate_as_torch
from ops.reparameterize_kl.calls import (
    DTYPES,
    LAYOUTS,
    OPTIONS,
    SHAPES,
    check,
    lay_out,
    make,
    native_only,
    run,
)
from torch.distributions import Normal, kl_divergence

import genimg_fast as gf
from genimg_fast.ops import reparameterize_kl, reparameterize_kl_reference


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
