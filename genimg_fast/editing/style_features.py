"""Style by optimisation: the pixels themselves go down a loss, from coarse to fine.

1. Begin with the content in the styles' colours, reduced by halves until its shorter side is about 64 pixels.
2. Take steps of Adam down style + content_weight * content + a little total variation.
3. Enlarge the picture twofold, and go on at 2.

Without a network, style is the distribution of patches, projected on random filters (Heitz et al. 2021,
https://arxiv.org/abs/2006.07229, of pixels instead of VGG's features), and content is the brightness of the
reduced picture. Of large pictures a part of the patches is compared, on a grid that lies elsewhere in every step.

With a network, style is in Gram matrices of its features (Gatys et al. 2016,
https://doi.org/10.1109/CVPR.2016.265), and content in one layer.

A large picture is never in one graph. Patches are those of the whole picture, of one size and scale at a time. A
network sees tiles: first all of them, for the Gram matrices of the whole picture, then each again, for its share
of the gradient. The grid lies elsewhere in every step, so nothing of it stays, and every step moves all pixels.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from genimg_fast.data.progress import bar
from genimg_fast.editing.colours import recoloured
from genimg_fast.editing.patches import SIZES, halved, halvings, resized
from genimg_fast.editing.tiles import random_tiles
from genimg_fast.losses import ContentLoss, StyleLoss, TotalVariationLoss
from genimg_fast.losses.patches import BRIGHTNESS_SHARE, PatchStyle, brightness_distance
from genimg_fast.losses.perceptual import find_features, weigh_alike

_STEPS, _LR = 120, 0.02
_COMPARED = 2**15  # patches of a size, about
_MOST_STRIDE = 4  # patches of 7 pixels have to cover the picture
_WHOLE = 2**18  # pixels of the largest picture whose loss is one graph
_TILE = 256  # pixels a side that a network sees, half more at most
_SMOOTHNESS = 0.1
Place = tuple[slice, ...]  # of a tile: an index of the picture


def optimise_style(
    content: Tensor,
    styles: list[Tensor],
    *,
    shares: list[float],
    content_weight: float,
    network: str | Path | None,
    generator: torch.Generator | None,
    progress: bool,
) -> Tensor:
    """Move a picture's pixels towards a style; see the top of this file.

    Args:
        content: The picture.
        styles: Pictures of as many channels, at the size at which they are to be seen.
        shares: Weight of each.
        content_weight: Of the content's loss.
        network: File of a network of torchvision.
        generator: Random numbers.
        progress: Whether to show a progress bar.

    Returns:
        The picture, not clipped.

    Raises:
        ValueError: If the file is none of such a network.
    """
    features = None if network is None else find_features(network).to(content.device)
    levels = halvings(content)
    coloured = recoloured(content, styles, shares)
    plan = [(level, step) for level in reversed(range(levels + 1)) for step in range(_STEPS)]
    made: Tensor | None = None
    with torch.enable_grad():
        for level, step in bar(plan, "style", "step", progress):
            if step == 0:
                target, *reduced = (
                    resized(picture, halved(picture.shape[1:], level, least=2 * SIZES[-1]))
                    for picture in (coloured, *styles)
                )
                made = (target if made is None else resized(made.detach(), target.shape[1:])).clamp(0, 1)
                made = made.clone().requires_grad_()
                optimizer = torch.optim.Adam([made], _LR)
                descend = (
                    _patch_loss(target, reduced, shares, content_weight, generator)
                    if features is None
                    else _feature_loss(features, target, reduced, shares, content_weight, generator)
                )
            assert made is not None
            optimizer.param_groups[0]["lr"] = _LR * (1 - step / _STEPS)
            optimizer.zero_grad()
            descend(made)
            optimizer.step()
    assert made is not None  # there is a step at least
    return made.detach()


def _patch_loss(
    target: Tensor,
    styles: list[Tensor],
    shares: list[float],
    content_weight: float,
    generator: torch.Generator | None,
) -> Callable[[Tensor], None]:
    """Make the function that computes the loss of a picture and leaves its gradient there."""
    style = PatchStyle([picture[None] for picture in styles], weights=shares, generator=generator)
    stride = min(_MOST_STRIDE, max(1, round((target[0].numel() / _COMPARED) ** 0.5)))

    def content(picture: Tensor) -> Tensor:
        return BRIGHTNESS_SHARE * content_weight * brightness_distance(picture[None], target[None])

    def descend(picture: Tensor) -> None:
        if picture[0].numel() <= _WHOLE:
            kept = content(picture)
            (style(picture[None], stride=stride, generator=generator) + kept + _roughness(picture)).backward()
            return
        images = picture[None]
        weight = style.weight(images)
        for term in style.terms(images, stride=stride, generator=generator):
            (term / weight).backward()
        content(picture).backward()
        for channel in range(len(picture)):
            (_roughness(picture[channel, None]) / len(picture)).backward()

    return descend


def _feature_loss(
    features: nn.Module,
    target: Tensor,
    styles: list[Tensor],
    shares: list[float],
    content_weight: float,
    generator: torch.Generator | None,
) -> Callable[[Tensor], None]:
    """Do what :func:`_patch_loss` does, for a network's features."""
    style, content = StyleLoss(features).to(target), ContentLoss(features).to(target)
    described = [_grams(style, picture, _shares(picture, generator)) for picture in styles]
    wanted = [
        sum(
            (share / sum(shares) * gram for share, gram in zip(shares, grams, strict=True)),
            torch.zeros_like(grams[0]),
        )
        for grams in zip(*described, strict=True)
    ]
    weigh_alike(style, wanted, content, _variances(content, target, _shares(target, generator)))

    def descend(picture: Tensor) -> None:
        tiles = _shares(picture, generator)
        if len(tiles) == 1:
            images = picture[None]
            loss = style(images, wanted) + content_weight * content(images, target[None])
            (loss + _roughness(picture)).backward()
            return
        grams = _grams(style, picture.detach(), tiles)
        # The style's loss, linear around the whole picture's Gram matrices: its gradient is the sum of the tiles'.
        slopes = [
            2 * weight * (gram - goal) for weight, gram, goal in zip(style.weights, grams, wanted, strict=True)
        ]
        picture.grad = torch.zeros_like(picture)
        for here, share in tiles:
            tile = picture.detach()[here].requires_grad_()
            described = style.describe(tile[None])
            linear = sum(
                ((slope * gram).sum() for slope, gram in zip(slopes, described, strict=True)), tile.new_zeros(())
            )
            kept = content(tile[None], target[here][None])
            (gradient,) = torch.autograd.grad(share * (linear + content_weight * kept + _roughness(tile)), tile)
            picture.grad[here] = gradient

    return descend


def _grams(style: StyleLoss, picture: Tensor, tiles: list[tuple[Place, float]]) -> list[Tensor]:
    """Describe a picture of which a tile at a time is in memory."""
    total: list[Tensor] = []
    for here, share in tiles:
        parts = [share * gram for gram in style.describe(picture[here][None])]
        total = [gram + part for gram, part in zip(total, parts, strict=True)] if total else parts
    return total


def _variances(content: ContentLoss, picture: Tensor, tiles: list[tuple[Place, float]]) -> list[float]:
    """Compute the variance of each layer's features, of a tile at a time."""
    if len(tiles) == 1:
        return [float(features.var()) for features in content.describe(picture[None])]
    means, squares = [0.0] * len(content.layers), [0.0] * len(content.layers)
    for here, share in tiles:
        for number, features in enumerate(content.describe(picture[here][None])):
            means[number] += share * float(features.mean())
            squares[number] += share * float(features.square().mean())
    return [square - mean**2 for mean, square in zip(means, squares, strict=True)]


def _roughness(picture: Tensor) -> Tensor:
    return _SMOOTHNESS * TotalVariationLoss()(picture[None])


def _shares(picture: Tensor, generator: torch.Generator | None) -> list[tuple[Place, float]]:
    """Cut a picture into tiles at random; return where each is, and its share of the pixels."""
    height, width = picture.shape[1:]
    return [
        (
            (slice(None), *place),
            (place[0].stop - place[0].start) * (place[1].stop - place[1].start) / (height * width),
        )
        for place in random_tiles(height, width, _TILE, generator)
    ]
