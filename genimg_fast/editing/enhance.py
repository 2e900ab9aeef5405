"""Exposure, colour and contrast of a photograph.

In this order, each only if it is asked for:

1. Exposures of one scene become one picture, each pixel from those that show it well: neither black nor white,
   with contrast, with colour. These weights would leave seams; blended band by band, the details of a Laplacian
   pyramid by the Gaussian pyramid of the weights, they do not. Mertens, Kautz, Van Reeth 2007, "Exposure fusion".
2. White balance: each colour is multiplied such that the picture's mean is grey (von Kries; the grey world of
   Buchsbaum 1980), or that its brightest hundredth of pixels is white.
3. Contrast: histograms of tiles are made even, but not where that would amplify noise (CLAHE, Zuiderveld 1994, by
   scikit-image), on the lightness of CIELAB: colours stay.
"""

import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg_fast.data.optional import optional_import
from genimg_fast.editing.pictures import check_picture, to_grey, tool
from genimg_fast.options import NonNegativeFloat


@tool
def enhance(
    image: Tensor,
    *,
    exposures: list[Tensor] | None = None,
    white_balance: Literal["none", "grey-world", "white-patch"] = "none",
    contrast: NonNegativeFloat = 0.005,
) -> Tensor:
    """Improve exposure, colours and contrast of a photograph.

    Args:
        image: The picture. Its shape is (1 or 3, height, width).
        exposures: More pictures of the scene, darker and brighter, from the same place. They are put together.
        white_balance: What becomes grey: ``"grey-world"``: the mean of the picture; ``"white-patch"``: its
            brightest pixels; ``"none"``: colours stay.
        contrast: Limit of how much a tile's contrast is raised, from 0, not at all, to 1.

    Returns:
        The picture, in [0, 1].

    Raises:
        ValueError: If something is no picture, or not of the image's size, ``white_balance`` is unknown, or of a
            grey picture, or ``contrast`` is not in [0, 1].
        ImportError: If scikit-image is missing.

    Example:
        >>> import torch, genimg_fast as gf
        >>> dull = 0.4 + 0.2 * torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
        >>> bool(gf.editing.enhance(dull).std() > dull.std())
        True
    """
    check_picture(image)
    if not 0 <= contrast <= 1:
        raise ValueError(f"contrast must be from 0 to 1, got {contrast}")
    if white_balance not in ("none", "grey-world", "white-patch"):
        raise ValueError(f"white_balance must be none, grey-world or white-patch, got {white_balance!r}")
    if white_balance != "none" and len(image) == 1:
        raise ValueError("white_balance must be none for a grey picture")
    for index, other in enumerate(exposures or []):
        check_picture(other, f"exposures[{index}]")
        if other.shape != image.shape:
            raise ValueError(
                f"exposures[{index}] must have the picture's size and colours, {_size(image)}, got {_size(other)}"
            )
    picture = image.detach()
    if exposures:
        picture = _fused([picture, *(other.to(picture) for other in exposures)])
    if white_balance != "none":
        picture = _balanced(picture, white_balance)
    return _with_contrast(picture, contrast) if contrast > 0 else picture.clone()


def _size(picture: Tensor) -> str:
    return f"{picture.shape[2]}x{picture.shape[1]} pixels of {len(picture)} channel{'s' * (len(picture) > 1)}"


def _fused(pictures: Sequence[Tensor]) -> Tensor:
    weights = torch.stack([_quality(picture) for picture in pictures])
    weights = weights / weights.sum(0)
    levels = max(1, min(pictures[0].shape[1:]).bit_length() - 2)
    bands = [torch.zeros_like(band) for band in _laplacian(pictures[0], levels)]
    for picture, weight in zip(pictures, weights, strict=True):
        parts = zip(bands, _laplacian(picture, levels), _gaussian(weight, levels), strict=True)
        for band, detail, share in parts:
            band += detail * share
    fused = bands[-1]
    for band in reversed(bands[:-1]):
        fused = band + _enlarged(fused, band.shape[1:])
    return fused.clamp(0, 1)


def _quality(picture: Tensor) -> Tensor:
    """Weigh pixels by contrast, saturation and exposure, (1, height, width)."""
    across = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=picture.dtype, device=picture.device)
    grey = F.pad(to_grey(picture)[None], [1] * 4, mode="replicate")
    contrast = F.conv2d(grey, across[None, None])[0].abs()
    saturation = picture.std(0, keepdim=True, correction=0) if len(picture) == 3 else 1.0
    exposed = torch.exp(-0.5 * ((picture - 0.5) / 0.2).square()).prod(0, keepdim=True)
    return contrast * saturation * exposed + 1e-12


def _reduced(picture: Tensor) -> Tensor:
    size = [-(-side // 2) for side in picture.shape[1:]]
    return F.interpolate(picture[None], size, mode="bilinear", antialias=True)[0]


def _enlarged(picture: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(picture[None], list(size), mode="bilinear")[0]


def _gaussian(picture: Tensor, levels: int) -> list[Tensor]:
    pyramid = [picture]
    for _ in range(levels):
        pyramid.append(_reduced(pyramid[-1]))
    return pyramid


def _laplacian(picture: Tensor, levels: int) -> list[Tensor]:
    pyramid = _gaussian(picture, levels)
    finer = [level - _enlarged(above, level.shape[1:]) for level, above in pairwise(pyramid)]
    return [*finer, pyramid[-1]]


def _balanced(picture: Tensor, method: str) -> Tensor:
    if method == "grey-world":
        means = picture.mean((1, 2), keepdim=True)
    else:
        brightness = to_grey(picture).flatten()
        brightest = brightness.topk(max(1, brightness.numel() // 100)).indices
        means = picture.flatten(1)[:, brightest].mean(1).view(3, 1, 1)
    # The luminance of the mean stays; a colour that is not there at all is not made of noise.
    return (picture * (to_grey(means) / means.clamp_min(1 / 255))).clamp(0, 1)


def _with_contrast(picture: Tensor, limit: float) -> Tensor:
    adapt = optional_import("skimage.exposure", "editing").equalize_adapthist
    pixels = picture.cpu().double().clamp(0, 1).permute(1, 2, 0).numpy()
    if len(picture) == 1:
        return torch.from_numpy(adapt(pixels[..., 0], clip_limit=limit))[None].to(picture)
    color = optional_import("skimage.color", "editing")
    lab = color.rgb2lab(pixels)
    lab[..., 0] = 100 * adapt(lab[..., 0] / 100, clip_limit=limit)
    with warnings.catch_warnings():  # a lighter shade of a strong colour may be none that a screen has
        warnings.filterwarnings("ignore", "Conversion from CIE-LAB", UserWarning)
        pixels = color.lab2rgb(lab)
    return torch.from_numpy(pixels).clamp(0, 1).permute(2, 0, 1).contiguous().to(picture)
