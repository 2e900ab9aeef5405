import math

import pytest
import torch
from accuracy import FORWARD, GRADIENT, assert_as_accurate_as_torch
from torch import Tensor

from genimg_fast.ops import reparameterize_kl, reparameterize_kl_reference

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
