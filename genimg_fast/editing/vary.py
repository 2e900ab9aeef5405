"""Variations of images: noise on their latents.

Of a latent z from N(0, 1) and noise e, sqrt(1 - s²) z + s e is from N(0, 1) again, so that a variation is as
probable as what it varies: s = 0 is the image, s = 1 another one. The codes of an Autoencoder or GLO are not
Gaussian; their noise has the scale of the code. A VQVAE has no noise at all: a share s of its codes is exchanged
for one of the nearest other codes.
"""

from typing import Any

import torch
from torch import Tensor

from genimg_fast.editing.latents import Latents, noise

_NEAREST = 8  # codes, one of which replaces a code


def vary(
    model: Any,
    z: Tensor,
    n: int = 8,
    *,
    strength: float = 0.5,
    labels: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Make variations of latents.

    Args:
        model: The model whose latents these are; see :func:`project`.
        z: Latents, (batch, z_dim), or (batch, code_dim, grid, grid) of a VQVAE.
        n: Number of variations of each.
        strength: From 0, the same, to 1, anything.
        labels: Classes, int64 of shape (batch,), if the model is class-conditional.
        generator: Source of random numbers; PyTorch's global one by default.

    Returns:
        Latents, (batch * n, ...), those of the first one first.

    Raises:
        ValueError: If the model has no latents, or these are none of it, n is below 1, or the strength is not in
            [0, 1].

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.VAE(z_dim=10, channels=4)
        >>> gf.editing.vary(model, torch.zeros(2, 10), n=3, strength=0.2).shape
        torch.Size([6, 10])
    """
    latents = Latents(model, labels)
    latents.check(z)
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    if not 0 <= strength <= 1:
        raise ValueError(f"strength must be in [0, 1], got {strength}")
    repeated = z.repeat_interleave(n, 0)
    if z.dim() == 4:
        return _exchange(model.codebook.codes, repeated, strength, generator)
    e = noise(tuple(repeated.shape), z, generator)
    if latents.gaussian:
        return (1 - strength**2) ** 0.5 * repeated + strength * e
    return repeated + strength * e * repeated.std(1, keepdim=True)


def _exchange(codes: Tensor, z: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Exchange codes, at a share of the places, for others that are near."""
    flat = z.movedim(1, -1).flatten(0, -2)
    device = flat.device if generator is None else generator.device
    number = torch.cdist(flat, codes).argmin(1)
    nearest = torch.cdist(codes, codes).argsort(1)[:, 1 : 1 + _NEAREST]
    chosen = torch.randint(nearest.shape[1], (len(flat),), generator=generator, device=device).to(z.device)
    exchanged = torch.rand(len(flat), generator=generator, device=device).to(z.device) < share
    number = torch.where(exchanged, nearest[number].gather(1, chosen[:, None])[:, 0], number)
    return codes[number].view(z.movedim(1, -1).shape).movedim(-1, 1)
