"""The colours of the foreground, where pixels mix it with a background.

Foreground F and background B minimise, over all pixels and the four neighbours j of each pixel i,
(alpha F + (1 - alpha) B - I)^2 + sum_j w_ij [(F_i - F_j)^2 + (B_i - B_j)^2], with
w_ij = smoothness + |alpha_i - alpha_j|.

1. Begin with a picture of one pixel; each level has twice the pixels a side of the one before.
2. Enlarge F and B to the level's size, and reduce picture and alpha to it (nearest neighbour).
3. Of each pixel, with W = sum_j w_ij and F', B' the neighbours' means by w_ij, the two equations have the solution
   F = F' + alpha e, B = B' + (1 - alpha) e, e = (I - alpha F' - (1 - alpha) B') / (W + alpha^2 + (1 - alpha)^2).
   Do so for all pixels at once, 20 times on levels of up to 32 pixels a side, and 6 times on larger ones.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg_fast.editing.pictures import Mask, check_mask, check_picture, tool
from genimg_fast.options import PositiveFloat

_SMALL, _OFTEN, _SELDOM = 32, 20, 6


@tool
def estimate_foreground(image: Tensor, *, alpha: Mask, smoothness: PositiveFloat = 1e-5) -> tuple[Tensor, Tensor]:
    """Estimate the colours that foreground and background have in the mixed pixels of a picture.

    Germer et al. 2020, "Fast multi-level foreground estimation", https://arxiv.org/abs/2006.14970.

    Args:
        image: The picture, of shape (channels, height, width).
        alpha: How much of each pixel is foreground, as of :func:`matte`.
        smoothness: How much alike neighbours are where alpha does not change.

    Returns:
        Foreground and background, each of the picture's shape.

    Raises:
        ValueError: If alpha is of another size.

    Example:
        >>> import torch, genimg_fast as gf
        >>> alpha = torch.linspace(0, 1, 9).expand(1, 4, 9)
        >>> colours = torch.tensor([1.0, 0.0, 0.0]).view(3, 1, 1)
        >>> foreground, background = gf.editing.estimate_foreground(alpha * colours, alpha=alpha)
        >>> bool((foreground[0, :, 1:] > 0.9).all())  # red wherever there is any of it
        True
    """
    check_picture(image)
    check_mask(alpha, image, "alpha")
    if not smoothness > 0:
        raise ValueError(f"smoothness must be above 0, got {smoothness:g}")
    image, alpha = image.clamp(0, 1), alpha.clamp(0, 1)
    height, width = image.shape[1:]
    foreground = background = image.mean((1, 2), keepdim=True)
    levels = math.ceil(math.log2(max(height, width, 2)))
    for level in range(levels + 1):
        size = [max(1, round(side ** (level / levels))) for side in (height, width)]
        foreground, background = _resized(foreground, size), _resized(background, size)
        mixed, share = _resized(image, size), _resized(alpha, size)
        weights = [smoothness + (share - neighbour).abs() for neighbour in _neighbours(share)]
        total = torch.stack(weights).sum(0)
        for _ in range(_OFTEN if max(size) <= _SMALL else _SELDOM):
            near, far = (_mean(colours, weights, total) for colours in (foreground, background))
            error = mixed - share * near - (1 - share) * far
            error = error / (total + share.square() + (1 - share).square())
            foreground = (near + share * error).clamp(0, 1)
            background = (far + (1 - share) * error).clamp(0, 1)
    return foreground, background


def _resized(picture: Tensor, size: list[int]) -> Tensor:
    return F.interpolate(picture[None], size, mode="nearest-exact")[0]


def _neighbours(picture: Tensor) -> list[Tensor]:
    padded = F.pad(picture[None], (1, 1, 1, 1), mode="replicate")[0]
    return [padded[:, 1:-1, :-2], padded[:, 1:-1, 2:], padded[:, :-2, 1:-1], padded[:, 2:, 1:-1]]


def _mean(colours: Tensor, weights: list[Tensor], total: Tensor) -> Tensor:
    summed = torch.zeros_like(total * colours)
    for weight, near in zip(weights, _neighbours(colours), strict=True):
        summed.addcmul_(weight, near)
    return summed / total
