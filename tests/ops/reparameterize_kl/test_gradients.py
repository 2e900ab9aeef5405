import itertools

import pytest
import torch
from ops.reparameterize_kl.calls import (
    LAYOUTS,
    NAMES,
    OPTIONS,
    lay_out,
    make,
    native_only,
    run,
)
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils.checkpoint import checkpoint

from genimg_fast.ops import reparameterize_kl, reparameterize_kl_reference


@pytest.mark.parametrize("layout", LAYOUTS)
def test_gradients_of_another_layout(layout, device):
    tensors = make((4, 6, 7, 9), device=device)
    grads = [torch.randn_like(tensors[0]) for _ in range(2)]
    grads = [lay_out(g, layout) for g in grads]
    ours = run(reparameterize_kl, tensors, grads, reduction="none")
    dense = run(reparameterize_kl, tensors, [g.contiguous() for g in grads], reduction="none")
    for name, value in ours.items():
        assert torch.equal(value, dense[name]), name


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
