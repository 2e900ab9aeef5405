import pytest
import torch
from ops.reparameterize_kl.calls import OFF, OPERATORS, make, native_only, run, wide

from genimg_fast.ops import reparameterize_kl, reparameterize_kl_reference


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
