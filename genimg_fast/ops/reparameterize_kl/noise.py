"""Standard normal noise as a pure function of a seed.

Philox: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from genimg_fast.ops._checks import check_type
from genimg_fast.ops.reparameterize_kl.checks import check_seed, seed_tensor

_MASK = 0xFFFFFFFF
# The multipliers of Philox less 2**32: their product with 32 bits fits into 63, and the high half of the product
# with the multiplier itself follows by adding the factor.
_MULTIPLIERS = (0xD2511F53 - (1 << 32), 0xCD9E8D57 - (1 << 32))
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox4x32(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Return the four 32-bit words of Philox4x32-10, in int64 as are counter and key, which broadcast."""
    c0, c1, c2, c3 = counter
    rounds = torch.arange(_ROUNDS, device=c0.device)
    keys = [((k + step * rounds) & _MASK).unbind() for k, step in zip(key, _KEY_STEPS, strict=True)]
    for k0, k1 in zip(*keys, strict=True):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) + c2) ^ c1 ^ k0, p1 & _MASK, ((p0 >> 32) + c0) ^ c3 ^ k1, p0 & _MASK
    return c0, c1, c2, c3


def box_muller(radial: Tensor, angular: Tensor) -> tuple[Tensor, Tensor]:
    """Turn two 32-bit words (in int64) into two independent standard normals (float32)."""
    u = radial.float() * 2.0**-32 + 2.0**-33
    radius = (-2.0 * u.log()).sqrt()
    # The angle is 2 pi angular / 2**32. Its quadrant is split off in integers, where that is exact.
    quadrant = (angular + (1 << 29)) >> 30
    angle = (angular - (quadrant << 30)).float() * (math.pi / 2 * 2.0**-30)
    cos, sin = angle.cos(), angle.sin()
    odd = (quadrant & 1).bool()
    x, y = torch.where(odd, sin, cos), torch.where(odd, cos, sin)
    x = torch.where(((quadrant + 1) & 2).bool(), -x, x)
    y = torch.where((quadrant & 2).bool(), -y, y)
    return radius * x, radius * y


def normal_from_seed(
    seed: Tensor | int, shape: tuple[int, ...] | torch.Size, device: torch.device | str | None = None
) -> Tensor:
    """Return the standard normal noise that :func:`reparameterize_kl` makes of a seed.

    Philox4x32-10, keyed by the seed and counting samples and elements, then Box-Muller: each value depends on the
    seed and its own index (sample, element of the sample) only, not on batch size, layout, device or dtype.

    Args:
        seed: A Python int, or a 0-dim int64 tensor.
        shape: (B, ...).
        device: Of the result; the seed's, or the default device, if None.

    Returns:
        float32, contiguous.

    Raises:
        ValueError: ``seed`` is a tensor of another kind or does not fit into an int64, or ``shape`` is empty.
        TypeError: ``seed`` is neither an int nor a tensor, or ``shape`` no tuple of ints.

    Example:
        >>> import torch, genimg_fast as gf
        >>> noise = gf.ops.normal_from_seed(7, (2, 5))
        >>> torch.equal(noise, gf.ops.normal_from_seed(7, (3, 5))[:2])
        True
    """
    # The sizes in a torch.Size are tensors under torch.jit.trace.
    if not isinstance(shape, torch.Size) and not (
        isinstance(shape, (tuple, list)) and all(isinstance(n, (int, torch.SymInt)) for n in shape)
    ):
        raise TypeError(f"shape must be a tuple of ints, got {shape!r}")
    if len(shape) == 0:
        raise ValueError("shape must have at least one dimension, got ()")
    if isinstance(seed, Tensor):
        check_type(seed, "seed")
        check_seed(seed, seed.device)
        seed = seed.to(device)
    else:
        seed = seed_tensor(seed, device)
    batch, length = shape[0], math.prod(shape[1:])
    sample = torch.arange(batch, device=seed.device).unsqueeze(1)
    block = torch.arange((length + 3) // 4, device=seed.device)
    counter = (block & _MASK, block >> 32, sample & _MASK, sample >> 32)
    words = philox4x32(counter, (seed & _MASK, (seed >> 32) & _MASK))
    normals = torch.stack((*box_muller(*words[:2]), *box_muller(*words[2:])), dim=-1)
    return normals.flatten(1)[:, :length].reshape(shape)
