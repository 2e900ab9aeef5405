"""Texture by patch transport: noise that is rebuilt from an exemplar's patches, from coarse to fine.

1. Reduce the exemplar by halves until its shorter side is about 64 pixels.
2. Begin with its pixels there, in random order, moved until small patches have the exemplar's distribution.
3. Rebuild the picture from patches of 32, 16 and 8 pixels, a few times each, so that all of the exemplar's are
   used (:mod:`genimg_fast.editing.patches`).
4. Enlarge the picture twofold, and go on at 3 with the exemplar of that size.
5. At last move patches of 5 pixels towards the exemplar's distribution (sliced Wasserstein distance): it sharpens.

A tileable picture goes on at the opposite border in all of this. Granot et al. 2022,
https://arxiv.org/abs/2103.15545; Kwatra et al. 2005, https://doi.org/10.1145/1073204.1073263.
"""

import math

import torch
from torch import Tensor

from genimg_fast.data.progress import bar
from genimg_fast.editing.patches import COARSEST, SIZES, halved, match, resized, take_patches, transport
from genimg_fast.editing.pictures import check_memory, check_picture, tool
from genimg_fast.options import PositiveInt

_EVENNESS = 0.005


@tool
def synthesise(
    exemplar: Tensor,
    *,
    size: tuple[PositiveInt, PositiveInt],
    tileable: bool = False,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Tensor:
    """Make a texture of any size that looks like a picture, by patch transport.

    Every part of the exemplar is used about equally often; what is larger than 32 pixels at a size where the
    exemplar's shorter side has 64 is not known to it. Granot et al. 2022, https://arxiv.org/abs/2103.15545.

    Args:
        exemplar: The picture, of at least 16 pixels a side.
        size: Width and height of the texture, in pixels, at least 16.
        tileable: Whether the texture goes on at its opposite border.
        generator: Source of the random numbers, on the CPU; None for torch's global one.
        progress: Whether to show a progress bar.

    Returns:
        The texture, in [0, 1] of shape (channels, height, width).

    Raises:
        ValueError: If the exemplar is no picture or smaller than a patch, or ``size`` is, or too large for the
            memory.
        ImportError: If tqdm is missing, for a progress bar.

    Example:
        >>> import torch, genimg_fast as gf
        >>> exemplar = torch.rand(3, 40, 48)
        >>> gf.editing.synthesise(exemplar, size=(64, 32), tileable=True).shape
        torch.Size([3, 32, 64])
    """
    check_picture(exemplar, "exemplar")
    smallest = 2 * SIZES[-1]
    if min(exemplar.shape[1:]) < smallest:
        got = "x".join(str(n) for n in exemplar.shape[:0:-1])
        raise ValueError(f"exemplar must have at least {smallest} pixels a side, two patches, got {got}")
    if min(size) < smallest:
        raise ValueError(f"size must be at least {smallest} pixels a side, got {size[0]}x{size[1]}")
    check_memory("size", *size, 150, exemplar)
    coarsest = min(math.log2(min(exemplar.shape[1:]) / COARSEST), math.log2(min(size) / smallest) - 0.5)
    levels = max(0, round(coarsest))
    plan = [
        (level, patch)
        for level in reversed(range(levels + 1))
        for patch in SIZES
        if 1.5 * patch <= min(*exemplar.shape[1:], *size) / 2**level or patch == SIZES[-1]
    ]
    texture: Tensor | None = None
    for level, patch in bar(plan, "texture", "pass", progress):
        reduced = resized(exemplar, halved(exemplar.shape[1:], level))
        height, width = halved(size[::-1], level)
        if texture is None:
            texture = _begin(reduced, height, width, tileable, generator)
        if tileable:  # 3 x 3 tiles, so that the borders are enlarged like all else
            tiles = resized(texture.repeat(1, 3, 3), (3 * height, 3 * width))
            texture = tiles[:, height : 2 * height, width : 2 * width]
        else:
            texture = resized(texture, (height, width))
        finest = level == 0 and patch == SIZES[-1]
        patches = take_patches([reduced], patch, shares=[1], most=2**13 if finest else 2**15, generator=generator)
        for _ in range(4):
            texture = transport(
                texture, patches, wrap=tileable, evenness=None if finest else _EVENNESS, generator=generator
            )
    assert texture is not None  # the plan has one pass at least
    return match(texture, exemplar, steps=20, wrap=tileable, generator=generator).clamp(0, 1)


def _begin(exemplar: Tensor, height: int, width: int, wrap: bool, generator: torch.Generator | None) -> Tensor:
    pixels = exemplar.flatten(1)
    chosen = torch.randint(pixels.shape[1], (height * width,), generator=generator).to(pixels.device)
    noise = pixels[:, chosen].view(-1, height, width)
    return match(noise, exemplar, steps=40, wrap=wrap, generator=generator)
