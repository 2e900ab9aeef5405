"""Mixtures of images: means of their latents, by weights.

The mean of Gaussian vectors is shorter than they are, and what a model makes of it is blander: a mixture is given
the mean of their lengths. Codes of a VQVAE are averaged place by place; the decoder takes the code that is
nearest.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from genimg_fast.editing.latents import Latents


def mix(model: Any, z: Tensor, *, weights: Sequence[float] | None = None, labels: Tensor | None = None) -> Tensor:
    """Mix latents.

    Args:
        model: The model whose latents these are; see :func:`project`.
        z: Latents, (n, z_dim), or (n, code_dim, grid, grid) of a VQVAE.
        weights: The share of each, n numbers that are not negative and not all 0; by default all the same. Only
            their ratios count.
        labels: Classes, int64 of shape (n,), if the model is class-conditional.

    Returns:
        The mixture, (1, ...).

    Raises:
        ValueError: If the model has no latents, these are none of it, or the weights do not fit.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.VAE(z_dim=2, channels=4)
        >>> gf.editing.mix(model, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        tensor([[0.7071, 0.7071]])
    """
    latents = Latents(model, labels)
    latents.check(z)
    if len(z) == 0:
        raise ValueError("z must be one latent or more, got none")
    shares = torch.ones(len(z)) if weights is None else torch.tensor(list(weights), dtype=torch.float32)
    if shares.shape != (len(z),) or not bool((shares >= 0).all()) or not float(shares.sum()) > 0:
        raise ValueError(f"weights must be {len(z)} numbers of at least 0, not all 0, got {list(weights or [])}")
    shares = (shares / shares.sum()).to(z)
    mixed = (shares.view(-1, *[1] * (z.dim() - 1)) * z).sum(0, keepdim=True)
    if latents.gaussian and mixed.norm() > 0:
        mixed = mixed * ((shares * z.norm(dim=1)).sum() / mixed.norm())
    return mixed
