"""Textures, by the method that suits them.

``"quilting"`` copies whole blocks and joins them by cuts: sharp, quick, and good where a texture has things of a
size that have to stay whole (:mod:`genimg_fast.editing.quilting`). ``"transport"`` rebuilds noise from small
patches, all of which are used equally often: slower, without copies that an eye finds again
(:mod:`genimg_fast.editing.texture_transport`).
"""

from typing import Literal

import torch
from torch import Tensor

from genimg_fast.editing.pictures import check_choices, tool
from genimg_fast.editing.quilting import quilt
from genimg_fast.editing.texture_transport import synthesise
from genimg_fast.options import PositiveInt


@tool
def texture(
    exemplar: Tensor,
    *,
    size: tuple[PositiveInt, PositiveInt],
    method: Literal["quilting", "transport"] = "quilting",
    patch: PositiveInt | None = None,
    tileable: bool = False,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Tensor:
    """Make more of a texture.

    Args:
        exemplar: The texture. In [0, 1], of shape (channels, height, width), grey or RGB.
        size: Width and height of the result, in pixels.
        method: Blocks joined by cuts, or, slower, small patches that are all used equally often.
        patch: Side of a block of quilting; default: 32. A little more than that of what has to stay whole.
        tileable: Whether copies of the result, side by side, show no seam.
        generator: Random numbers; by default torch's own.
        progress: Whether to show a progress bar.

    Returns:
        The texture, of shape (channels, height, width), on the exemplar's device.

    Raises:
        ValueError: If the exemplar is no picture or too small, the size is, or more than the memory
            holds, or there is a patch without quilting.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.editing.texture(torch.rand(3, 48, 48), size=(64, 80), tileable=True).shape
        torch.Size([3, 80, 64])
    """
    check_choices(method=(method, ("quilting", "transport")))
    if method == "quilting":
        return quilt(
            exemplar, size=size, patch=patch or 32, tileable=tileable, generator=generator, progress=progress
        )
    if patch is not None:
        raise ValueError("patch must be left out: transport has patches of several sizes")
    return synthesise(exemplar, size=size, tileable=tileable, generator=generator, progress=progress)
