"""reparameterize_kl against eager PyTorch, torch.compile and diffusers' way of writing it: `make bench`.

One case: `pytest benchmarks/bench_reparameterize_kl.py -k "4096x1024 and float32"`.
"""

import pytest
import torch
from harness import DEVICE, OURS, Row

from genimg_fast.ops import reparameterize_kl

# Shapes of mu and logvar. "packed": both are halves of one tensor, as an encoder's last convolution gives them.
CASES = [
    (shape, dtype, packing)
    for shape, packing in [
        ((4096, 1024), "split"),
        ((512, 512), "split"),
        ((128, 128), "split"),
        ((32, 4, 32, 32), "packed"),
        ((100, 333), "split"),
        ((16, 8), "split"),
        *([((16384, 1024), "split")] if DEVICE == "cuda" else []),  # 67 MB a tensor: beyond a GPU's caches
    ]
    for dtype in (torch.float32, torch.bfloat16)
]
# Tensors of mu's size that have to be read or written: mu, logvar, z; mu, logvar, grad_z, grad_mu, grad_logvar.
TENSORS_MOVED = {"forward": 3, "backward": 5, "both": 8}


def ours(mu, logvar):
    return reparameterize_kl(mu, logvar)


def eager(mu, logvar):
    std = torch.exp(0.5 * logvar)
    noise = torch.randn_like(std)
    z = mu + noise * std
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp(), dim=tuple(range(1, mu.dim())))
    return z, kl


def diffusers(mu, logvar):
    logvar = torch.clamp(logvar, -30.0, 20.0)
    std, var = torch.exp(0.5 * logvar), torch.exp(logvar)
    z = mu + std * torch.randn(mu.shape, device=mu.device, dtype=mu.dtype)
    kl = 0.5 * torch.sum(mu.pow(2) + var - 1.0 - logvar, dim=tuple(range(1, mu.dim())))
    return z, kl


@pytest.mark.parametrize("direction", TENSORS_MOVED)
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{'x'.join(map(str, c[0]))}-{str(c[1])[6:]}-{c[2]}")
def test_reparameterize_kl(case, direction, compare):
    shape, dtype, packing = case
    torch.manual_seed(0)
    moments = torch.randn(shape[0], 2 * shape[1], *shape[2:], device=DEVICE).to(dtype)
    if packing == "packed":
        leaves = (moments.requires_grad_(),)
    else:
        leaves = tuple(half.contiguous().requires_grad_() for half in moments.chunk(2, dim=1))
    grad_z = torch.randn(shape, device=DEVICE).to(dtype)

    def timed(function):
        def forward():
            return function(*(leaves if packing == "split" else leaves[0].chunk(2, dim=1)))

        def gradients(outputs, **options):
            z, kl = outputs
            return torch.autograd.grad((z, kl), leaves, (grad_z, torch.ones_like(kl)), **options)

        outputs = forward()
        return {
            "forward": forward,
            "backward": lambda: gradients(outputs, retain_graph=True),
            "both": lambda: gradients(forward()),
        }[direction]

    contenders = {OURS: timed(ours), "eager": timed(eager), "diffusers": timed(diffusers)}
    # A compiled graph gives up its buffers in the first backward, so backward alone cannot be repeated.
    if direction != "backward":
        torch._dynamo.reset()
        contenders["compile"] = timed(torch.compile(eager, dynamic=False))
    name = f"{'x'.join(map(str, shape))} {str(dtype)[6:]} {packing}"
    compare(Row("reparameterize_kl", name, direction, TENSORS_MOVED[direction] * grad_z.nbytes), contenders)
