"""What is in the foreground, cut out of a picture, or put before another background.

1. Alpha, of the trimap (:func:`matte`).
2. The foreground's own colours (:func:`estimate_foreground`): those of the picture would bring the old background
   along at the edges.
3. Both as a picture with transparent pixels; or alpha times the foreground, and 1 - alpha times the background.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg_fast.editing.foreground import estimate_foreground
from genimg_fast.editing.matting import matte
from genimg_fast.editing.pictures import Mask, check_mask, check_picture, tool
from genimg_fast.options import PositiveFloat


@tool
def cut_out(
    image: Tensor,
    *,
    trimap: Mask,
    background: Tensor | None = None,
    only_alpha: bool = False,
    method: Literal["closed-form", "knn"] = "closed-form",
    epsilon: PositiveFloat | None = None,
) -> Tensor:
    """Cut what is in the foreground out of a picture, hair and fur included.

    Args:
        image: The picture, at least 3 pixels a side. Its shape is (channels, height, width).
        trimap: Grey picture of the same size: white is foreground, black background, and grey to be found out.
        background: Picture to put behind it, enlarged or reduced until it covers the picture; its centre is taken.
        only_alpha: Whether to make a grey picture of how much of each pixel is foreground instead.
        method: How to estimate that: by lines of colours, or also joining areas that do not touch.
        epsilon: How little it may follow the colours in the closed form; default: 1e-7. Larger is smoother.

    Returns:
        The foreground with alpha as its last channel; without alpha before the background, if there is one; or
        alpha alone.

    Raises:
        ValueError: If a picture is none, or the trimap does not fit.

    Example:
        >>> import torch, genimg_fast as gf
        >>> image = torch.rand(3, 20, 30)
        >>> trimap = torch.full((1, 20, 30), 0.5)
        >>> trimap[:, :, :10], trimap[:, :, 20:] = 0, 1
        >>> gf.editing.cut_out(image, trimap=trimap).shape
        torch.Size([4, 20, 30])
        >>> gf.editing.cut_out(image, trimap=trimap, background=torch.ones(3, 10, 10)).shape
        torch.Size([3, 20, 30])
    """
    if background is not None:
        check_picture(background, "background")
        if only_alpha:
            raise ValueError("background must be left out if alpha alone is wanted")
    alpha = matte(image, trimap=trimap, method=method, epsilon=epsilon)
    if only_alpha:
        return alpha
    foreground, _ = estimate_foreground(image, alpha=alpha)
    if background is None:
        return torch.cat([foreground, alpha])
    return composite(foreground, alpha=alpha, background=_covering(background.to(image), image.shape[1:]))


def composite(foreground: Tensor, *, alpha: Mask, background: Tensor) -> Tensor:
    """Put a foreground before a background.

    Args:
        foreground: A picture of shape (channels, height, width), grey or with colours.
        alpha: How much of each pixel is foreground.
        background: A picture of the same size.

    Returns:
        alpha * foreground + (1 - alpha) * background; it has colours if one of them has.

    Raises:
        ValueError: If the sizes differ.

    Example:
        >>> import torch, genimg_fast as gf
        >>> half = torch.full((1, 2, 2), 0.5)
        >>> gf.editing.composite(torch.ones(1, 2, 2), alpha=half, background=torch.zeros(1, 2, 2))[0, 0]
        tensor([0.5000, 0.5000])
    """
    check_picture(foreground, "foreground")
    check_picture(background, "background")
    check_mask(alpha, foreground, "alpha")
    if background.shape[1:] != foreground.shape[1:]:
        got, wanted = ("x".join(str(n) for n in p.shape[:0:-1]) for p in (background, foreground))
        raise ValueError(f"background must have the foreground's size, {wanted} pixels, got {got}")
    alpha, background = alpha.to(foreground), background.to(foreground)
    return alpha * foreground + (1 - alpha) * background


def _covering(picture: Tensor, size: torch.Size) -> Tensor:
    height, width = size
    factor = max(height / picture.shape[1], width / picture.shape[2])
    larger = [max(side, round(factor * old)) for side, old in zip(size, picture.shape[1:], strict=True)]
    picture = F.interpolate(picture[None], larger, mode="bilinear", antialias=True)[0]
    top, left = (larger[0] - height) // 2, (larger[1] - width) // 2
    return picture[:, top : top + height, left : left + width]
