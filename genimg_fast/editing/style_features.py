"""Style by optimisation: the pixels themselves go down a loss, from coarse to fine.

1. Begin with the content in the styles' colours, reduced by halves until its shorter side is about 64 pixels.
2. Take steps of Adam down style + content_weight * content + a little total variation.
3. Enlarge the picture twofold, and go on at 2.

Without a network, style is the distribution of patches, projected on random filters (Heitz et al. 2021,
https://arxiv.org/abs/2006.07229, of pixels instead of VGG's features), and content is the brightness of the
reduced picture. Of large pictures a part of the patches is compared, on a grid that lies elsewhere in every step:
the distribution is that of the whole picture, so nothing drifts, and there are no tiles.

With a network, style is in Gram matrices of its features (Gatys et al. 2016,
https://doi.org/10.1109/CVPR.2016.265), and content in one layer. Of large pictures each step sees one window, at
random: there are no seams, as no border is twice in one place.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from genimg_fast.data.progress import bar
from genimg_fast.editing.colours import recoloured
from genimg_fast.editing.patches import SIZES, halved, halvings, resized
from genimg_fast.losses import ContentLoss, StyleLoss, TotalVariationLoss
from genimg_fast.losses.patches import BRIGHTNESS_SHARE, PatchStyle, brightness_distance
from genimg_fast.losses.perceptual import find_features, weigh_alike

_STEPS, _LR = 120, 0.02
_COMPARED = 2**15  # patches of a size, about
_MOST_STRIDE = 4  # patches of 7 pixels have to cover the picture
_WINDOW = 384  # pixels a side
_SMOOTHNESS = 0.1


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
    windows = 1.0 if features is None else content[0].numel() / _WINDOW**2  # of the largest, each is to be seen
    steps = [max(_STEPS, round(_STEPS * windows / 4**level)) for level in range(levels + 1)]
    plan = [(level, step) for level in reversed(range(levels + 1)) for step in range(steps[level])]
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
                loss = (
                    _patch_loss(target, reduced, shares, content_weight, generator)
                    if features is None
                    else _feature_loss(features, target, reduced, shares, content_weight, generator)
                )
            assert made is not None
            optimizer.param_groups[0]["lr"] = _LR * (1 - step / steps[level])
            optimizer.zero_grad()
            (loss(made) + _SMOOTHNESS * TotalVariationLoss()(made[None])).backward()
            optimizer.step()
    assert made is not None  # there is a step at least
    return made.detach()


def _patch_loss(
    target: Tensor,
    styles: list[Tensor],
    shares: list[float],
    content_weight: float,
    generator: torch.Generator | None,
) -> Callable[[Tensor], Tensor]:
    style = PatchStyle([picture[None] for picture in styles], weights=shares, generator=generator)
    stride = min(_MOST_STRIDE, max(1, round((target[0].numel() / _COMPARED) ** 0.5)))

    def loss(picture: Tensor) -> Tensor:
        content = brightness_distance(picture[None], target[None])
        return (
            style(picture[None], stride=stride, generator=generator) + BRIGHTNESS_SHARE * content_weight * content
        )

    return loss


def _feature_loss(
    features: nn.Module,
    target: Tensor,
    styles: list[Tensor],
    shares: list[float],
    content_weight: float,
    generator: torch.Generator | None,
) -> Callable[[Tensor], Tensor]:
    style, content = StyleLoss(features).to(target), ContentLoss(features).to(target)
    described = [style.describe(picture[None]) for picture in styles]
    wanted = [
        sum(
            (share / sum(shares) * gram for share, gram in zip(shares, grams, strict=True)),
            torch.zeros_like(grams[0]),
        )
        for grams in zip(*described, strict=True)
    ]
    weigh_alike(style, wanted, content, content.describe(target[None]))

    def loss(picture: Tensor) -> Tensor:
        corner = [_corner(side, generator) for side in picture.shape[1:]]
        here = (slice(None), *(slice(start, start + _WINDOW) for start in corner))
        ours, theirs = picture[here][None], target[here][None]
        return style(ours, wanted) + content_weight * content(ours, theirs)

    return loss


def _corner(side: int, generator: torch.Generator | None) -> int:
    """Draw where a window begins; half of one may lie outside, or borders would be in few windows."""
    half = _WINDOW // 2
    drawn = int(torch.randint(-half, max(1, side - _WINDOW + half + 1), (), generator=generator))
    return max(0, min(drawn, side - _WINDOW))
