"""Style by a network that a run has trained, in one pass, and tiles.

Instance norm's statistics are those of the whole picture: a pass of the picture, of one reduced to a megapixel
if it is larger, records them (Chen et al. 2022, https://arxiv.org/abs/2103.11784), and the tiles are all computed
with these. A tile is then what the whole picture would be there; no seam can be.
"""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from genimg_fast.editing.networks import load_network
from genimg_fast.editing.tiles import in_tiles
from genimg_fast.models import StyleNet

_THUMBNAIL = 2**20  # pixels
_TILE = 512


def paint(content: Tensor, model: str | Path, *, progress: bool = False) -> Tensor:
    """Put a picture through a network that paints in a style.

    Args:
        content: The picture, in [0, 1] of shape (1 or 3, height, width).
        model: See :func:`genimg_fast.editing.networks.load_network`.
        progress: Whether to show a progress bar.

    Returns:
        The picture, with the network's channels.

    Raises:
        ValueError: If there is no such model, or it is for grey pictures and this one has colours.
    """
    network = load_network(model, StyleNet, "style-net")
    if network.c_dim < len(content):
        raise ValueError("model must be for colours, got one for grey pictures")
    picture = content.detach().float().expand(network.c_dim, -1, -1).mul(2).sub(1)
    with torch.no_grad():
        fixed = network.to(picture.device).with_statistics_of(thumbnail(picture)[None])
        painted = in_tiles(
            lambda tile: fixed(tile[None])[0], picture, margin=network.reach, size=_TILE, multiple=4, what="style",
            progress=progress,
        )  # fmt: skip
    return painted.add(1).div(2).to(content.dtype)


def thumbnail(picture: Tensor) -> Tensor:
    """Reduce a picture to a megapixel, if it is larger."""
    scale = (_THUMBNAIL / picture[0].numel()) ** 0.5
    if scale >= 1:
        return picture
    size = [max(16, round(scale * side)) for side in picture.shape[1:]]
    return interpolate(picture[None], size, mode="bilinear", antialias=True)[0].clamp(-1, 1)
