import pytest
import torch
from ops.reparameterize_kl.calls import make
from torch import Tensor

import genimg_fast as gf
from genimg_fast.ops import reparameterize_kl, reparameterize_kl_reference


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


def test_native_backend_says_what_it_cannot_do():
    meta = torch.empty(3, 4, device="meta")
    with gf.backend("native"), pytest.raises(RuntimeError, match=r"'native' was asked for, but .* 'meta'"):
        reparameterize_kl(meta, meta)
    many = torch.zeros([1] * 12)
    with gf.backend("native"), pytest.raises(RuntimeError, match=r"'native' .* at most 9 dimensions, got 12"):
        reparameterize_kl(many, many)
    with gf.backend("native"):
        assert "at most 9 dimensions" in gf.info().operators["reparameterize_kl"]["cpu"][1]
