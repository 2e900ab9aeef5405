"""Style transfer: a picture painted like others, by one of three means.

* Patch transport: the picture is rebuilt from the styles' patches (:mod:`genimg_fast.editing.style_transport`).
* Features: its pixels go down a loss of patches, or of what a network sees, from coarse to fine
  (:mod:`genimg_fast.editing.style_features`).
* A model: a network that was trained for one style, in one pass (:mod:`genimg_fast.editing.style_network`).

Here is what they share. A picture that preserves its colours is changed in brightness alone: what the grey picture
gains in the grey styles is added to each channel. Styles are scaled relative to the picture. Where no mask is, the
picture stays.
"""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from genimg_fast.editing.patches import SIZES, resized
from genimg_fast.editing.pictures import (
    Mask,
    check_choices,
    check_left_out,
    check_mask,
    check_picture,
    to_grey,
    tool,
)
from genimg_fast.editing.style_features import optimise_style
from genimg_fast.editing.style_network import paint
from genimg_fast.editing.style_transport import transport_style
from genimg_fast.options import NonNegativeFloat, PositiveFloat

_SMALLEST = 2 * SIZES[-1]


@tool
def stylise(
    content: Tensor,
    *,
    style: list[Tensor] | None = None,
    method: Literal["transport", "features"] | None = None,
    style_weights: list[PositiveFloat] | None = None,
    style_scale: PositiveFloat | None = None,
    content_weight: NonNegativeFloat | None = None,
    preserve_colours: bool = False,
    masks: list[Mask] | None = None,
    network: str | Path | None = None,
    model: str | Path | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Tensor:
    """Paint a picture in the style of others.

    By patch transport from coarse to fine, after Elad, Milanfar 2017, https://doi.org/10.1109/TIP.2017.2678168; by
    optimisation, after Gatys et al. 2016, https://doi.org/10.1109/CVPR.2016.265, with the distribution of patches
    as style unless a network is given; or by a network that was trained for one style, Johnson et al. 2016,
    https://arxiv.org/abs/1603.08155. No weights are needed. Large pictures are worked on in parts, by themselves.

    Args:
        content: The picture.
        style: Pictures whose style it takes.
        method: ``"transport"``, strokes as they are, and the default; or ``"features"``, closer to the picture.
        style_weights: Weight of each style; default: the same. Patches of each are used in proportion, features
            are mixed.
        style_scale: Size of the styles relative to the picture; default: 1. Of 0.5, strokes are half as large.
        content_weight: How much the structure of the picture counts; default: 1. Of 0.4 strokes are bolder.
        preserve_colours: Whether the picture keeps its colours, and takes a style of brightness alone.
        masks: For each style, a mask of the picture's size that is white where the style is to be, for transport.
            Where none is, the picture stays as it is.
        network: File of VGG16, VGG19 or SqueezeNet of torchvision, whose features to take instead of patches.
        model: Run of ``style-net`` to take instead of styles.
        generator: Source of the random numbers, on the CPU; None for torch's global one.
        progress: Whether to show a progress bar.

    Returns:
        The picture in that style, in [0, 1], of its size; a grey one has colours if the styles have.

    Raises:
        ValueError: If there is not exactly one of ``style`` and ``model``, these are no pictures, or smaller than
            two patches, masks are of another size, ``masks`` or ``style_weights`` are not as many as styles, an
            argument is given that the method does not use, or files hold something else.
        ImportError: If tqdm is missing, for a progress bar.

    Example:
        >>> import torch, genimg_fast as gf
        >>> content, style = torch.rand(3, 32, 40), torch.rand(3, 48, 32)
        >>> gf.editing.stylise(content, style=[style], content_weight=0.5).shape
        torch.Size([3, 32, 40])
    """
    _check_picture(content, "content")
    given = content
    if preserve_colours:
        content = to_grey(content)
    original = content
    if model is not None:
        check_left_out(
            "the model is the style", style=style, method=method, style_weights=style_weights, masks=masks,
            style_scale=style_scale, content_weight=content_weight, network=network,
        )  # fmt: skip
        painted = paint(content, model, progress=progress)
        painted = to_grey(painted) if preserve_colours else painted
    else:
        if style is None:
            raise ValueError("style must be given, or else a model")
        method = method or "transport"
        style_scale, content_weight = (1.0 if n is None else n for n in (style_scale, content_weight))
        check_choices(method=(method, ("transport", "features")))
        _check(given, style, style_weights, style_scale, content_weight, masks)
        shares = [1.0] * len(style) if style_weights is None else style_weights
        if preserve_colours:
            style = [to_grey(picture) for picture in style]
        channels = max(map(len, (content, *style)))
        original = content.expand(channels, -1, -1)
        longer = style_scale * max(content.shape[1:])
        styles = [_fitted(p.to(content).expand(channels, -1, -1), longer / max(p.shape[1:])) for p in style]
        if method == "features":
            check_left_out("only transport has regions", masks=masks)
            painted = optimise_style(
                original, styles, shares=shares, content_weight=content_weight, network=network,
                generator=generator, progress=progress,
            )  # fmt: skip
        else:
            check_left_out("only the method features takes one", network=network)
            regions = None if masks is None else torch.cat(masks).argmax(0).to(content.device)
            painted = transport_style(
                original, styles, shares=shares, content_weight=content_weight, regions=regions,
                generator=generator, progress=progress,
            )  # fmt: skip
    if preserve_colours:
        painted = given + (painted - original)
    if masks is not None:
        share = torch.cat(masks).amax(0).to(painted)
        painted = share * painted + (1 - share) * given
    return painted.clamp(0, 1)


def _check_picture(picture: Tensor, name: str) -> None:
    check_picture(picture, name)
    if min(picture.shape[1:]) < _SMALLEST:
        got = "x".join(str(n) for n in picture.shape[:0:-1])
        raise ValueError(f"{name} must have at least {_SMALLEST} pixels a side, two patches, got {got}")


def _check(
    content: Tensor,
    style: list[Tensor],
    weights: list[float] | None,
    scale: float,
    content_weight: float,
    masks: list[Tensor] | None,
) -> None:
    if len(style) == 0:
        raise ValueError("style must be one picture or more, got none")
    for picture in style:
        _check_picture(picture, "style")
    if weights is not None and len(weights) != len(style):
        raise ValueError(f"style_weights must be {len(style)}, one for each style, got {len(weights)}")
    if weights is not None and not all(weight > 0 for weight in weights):
        raise ValueError(f"style_weights must be above 0, got {weights}")
    if not scale > 0:
        raise ValueError(f"style_scale must be above 0, got {scale}")
    if not content_weight >= 0:
        raise ValueError(f"content_weight must be at least 0, got {content_weight}")
    if masks is not None and len(masks) != len(style):
        raise ValueError(f"masks must be {len(style)}, one for each style, got {len(masks)}")
    for mask in masks or ():
        check_mask(mask, content, "masks")


def _fitted(picture: Tensor, scale: float) -> Tensor:
    """Scale a style, but to two patches a side at least."""
    scale = max(scale, _SMALLEST / min(picture.shape[1:]))
    height, width = (round(scale * n) for n in picture.shape[1:])
    return resized(picture, (height, width)).clamp(0, 1)
