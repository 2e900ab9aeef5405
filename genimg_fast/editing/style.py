"""Style transfer by patch transport: a picture that is rebuilt from the patches of others, from coarse to fine.

1. Give the content the styles' colours: their mean and covariance, by the linear map that moves colours least
   (Pitie, Kokaram 2007, https://doi.org/10.1049/cp:20070055).
2. Reduce content and styles by halves until the content's shorter side is about 64 pixels; begin with the content.
3. For patches of 32, 16 and 8 pixels, three times each: rebuild the picture from the styles' patches, all of which
   are used (:mod:`genimg_fast.editing.patches`); then mix in the content, most where it has edges.
4. Enlarge the picture twofold, and go on at 3. At last, do 1 again: means of patches have less contrast.

No network is needed. Offsets of patches are random but the same for the whole picture: large ones have no seams.
Elad, Milanfar 2017, https://doi.org/10.1109/TIP.2017.2678168.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from genimg_fast.data.progress import bar
from genimg_fast.editing.patches import SIZES, resized, take_patches, transport
from genimg_fast.editing.pictures import Mask, check_mask, check_picture, to_grey, tool
from genimg_fast.options import NonNegativeFloat, PositiveFloat

_COARSEST = 64  # pixels of the shorter side, about
_ROUNDS = 3
_EVENNESS = 0.05


@tool
def stylise(
    content: Tensor,
    *,
    style: list[Tensor],
    style_weights: list[PositiveFloat] | None = None,
    style_scale: PositiveFloat = 1.0,
    content_weight: NonNegativeFloat = 1.0,
    preserve_colours: bool = False,
    masks: list[Mask] | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Tensor:
    """Paint a picture in the style of others.

    Patch transport from coarse to fine, after Elad, Milanfar 2017, https://doi.org/10.1109/TIP.2017.2678168; no
    network and no weights are needed.

    Args:
        content: The picture.
        style: Pictures whose style it takes.
        style_weights: Weight of each style; default: the same. Patches of each are used in proportion.
        style_scale: Size of the styles relative to the picture. Of 0.5, strokes are half as large.
        content_weight: How much the structure of the picture counts. Of 0.4 strokes are bolder; of 0, only the
            first sketch has it.
        preserve_colours: Whether the picture keeps its colours, and takes a style of brightness alone.
        masks: For each style, a mask of the picture's size that is white where the style is to be. Where none is,
            the picture stays as it is.
        generator: Source of the random numbers, on the CPU; None for torch's global one.
        progress: Whether to show a progress bar.

    Returns:
        The picture in that style, in [0, 1], of its size; a grey one has colours if the styles have.

    Raises:
        ValueError: If these are no pictures, or smaller than two patches, masks are of another size, or ``masks``
            or ``style_weights`` are not as many as styles.
        ImportError: If tqdm is missing, for a progress bar.

    Example:
        >>> import torch, genimg_fast as gf
        >>> content, style = torch.rand(3, 32, 40), torch.rand(3, 48, 32)
        >>> gf.editing.stylise(content, style=[style], content_weight=0.5).shape
        torch.Size([3, 32, 40])
    """
    _check(content, style, style_weights, style_scale, masks)
    shares = [1.0] * len(style) if style_weights is None else style_weights
    given = content
    if preserve_colours:
        content, style = to_grey(content), [to_grey(picture) for picture in style]
    channels = max(map(len, (content, *style)))
    original = content.expand(channels, -1, -1)
    longer = style_scale * max(content.shape[1:])
    styles = [
        _fitted(picture.to(content).expand(channels, -1, -1), longer / max(picture.shape[1:])) for picture in style
    ]
    regions = None if masks is None else torch.cat(masks).argmax(0).to(content.device)
    recoloured = _recoloured(original, styles, shares, regions)

    levels = max(0, round(math.log2(min(content.shape[1:]) / _COARSEST)))
    painted: Tensor | None = None
    plan = [(level, patch) for level in reversed(range(levels + 1)) for patch in SIZES]
    for level, patch in bar(plan, "style", "pass", progress):
        target, *reduced = (_reduced(picture, level) for picture in (recoloured, *styles))
        if painted is None:
            painted = target
        painted = resized(painted, target.shape[1:])
        if 1.5 * patch > min(min(picture.shape[1:]) for picture in (target, *reduced)) and patch > SIZES[-1]:
            continue
        here = None
        if regions is not None:
            here = interpolate(regions[None, None].float(), target.shape[1:], mode="nearest-exact")[0, 0].long()
        weight = content_weight * (0.25 + 2 * _edges(target))
        finest = level == 0 and patch == SIZES[-1]
        patches = take_patches(reduced, patch, shares=shares, most=2**12 if finest else 2**14, generator=generator)
        for turn in range(_ROUNDS):
            last = finest and turn == _ROUNDS - 1
            painted = transport(
                painted,
                patches,
                evenness=None if finest else _EVENNESS,
                stride=1 if last else None,  # or a patch that is taken everywhere leaves a grid
                regions=here,
                generator=generator,
            )
            if not last:
                painted = (painted + weight * target) / (1 + weight)
    assert painted is not None  # the plan has three passes at least
    painted = _recoloured(painted, styles, shares, regions)
    if preserve_colours:
        painted = given + (painted - original)
    if masks is not None:
        share = torch.cat(masks).amax(0).to(painted)
        painted = share * painted + (1 - share) * given
    return painted.clamp(0, 1)


def _check(
    content: Tensor, style: list[Tensor], weights: list[float] | None, scale: float, masks: list[Tensor] | None
) -> None:
    smallest = 2 * SIZES[-1]
    check_picture(content, "content")
    if len(style) == 0:
        raise ValueError("style must be one picture or more, got none")
    for name, picture in (("content", content), *(("style", picture) for picture in style)):
        check_picture(picture, name)
        if min(picture.shape[1:]) < smallest:
            got = "x".join(str(n) for n in picture.shape[:0:-1])
            raise ValueError(f"{name} must have at least {smallest} pixels a side, two patches, got {got}")
    if weights is not None and len(weights) != len(style):
        raise ValueError(f"style_weights must be {len(style)}, one for each style, got {len(weights)}")
    if weights is not None and not all(weight > 0 for weight in weights):
        raise ValueError(f"style_weights must be above 0, got {weights}")
    if not scale > 0:
        raise ValueError(f"style_scale must be above 0, got {scale}")
    if masks is not None and len(masks) != len(style):
        raise ValueError(f"masks must be {len(style)}, one for each style, got {len(masks)}")
    for mask in masks or ():
        check_mask(mask, content, "masks")


def _fitted(picture: Tensor, scale: float) -> Tensor:
    """Scale a style, but to two patches a side at least."""
    scale = max(scale, 2 * SIZES[-1] / min(picture.shape[1:]))
    height, width = (round(scale * n) for n in picture.shape[1:])
    return resized(picture, (height, width)).clamp(0, 1)


def _reduced(picture: Tensor, halvings: int) -> Tensor:
    height, width = (max(SIZES[-1], round(n / 2**halvings)) for n in picture.shape[1:])
    return resized(picture, (height, width))


def _edges(picture: Tensor) -> Tensor:
    """How much each pixel is on an edge, (1, height, width) in [0, 1]."""
    grey = to_grey(picture)
    right, below = pad(grey.diff(dim=2), (0, 1)), pad(grey.diff(dim=1), (0, 0, 0, 1))
    slope = avg_pool2d((right.square() + below.square()).sqrt()[None], 5, 1, 2)[0]
    ordered = slope.flatten().sort().values
    return (slope / (ordered[int(0.95 * (len(ordered) - 1))] + 1e-6)).clamp(0, 1)


def _recoloured(content: Tensor, styles: list[Tensor], shares: list[float], regions: Tensor | None) -> Tensor:
    """Give a picture, or each region, the mean and covariance of its styles' colours."""
    if regions is None:
        pixels = torch.cat([picture.flatten(1) for picture in styles], 1)
        weights = torch.cat(
            [
                pixels.new_full((picture[0].numel(),), share / picture[0].numel())
                for picture, share in zip(styles, shares, strict=True)
            ]
        )
        return _moved(content.flatten(1), pixels, weights).view_as(content)
    moved = content.flatten(1).clone()
    for number in regions.unique().tolist():
        here = regions.flatten() == number
        pixels = styles[number].flatten(1)
        moved[:, here] = _moved(moved[:, here], pixels, pixels.new_ones(pixels.shape[1]))
    return moved.view_as(content)


def _moved(colours: Tensor, others: Tensor, weights: Tensor) -> Tensor:
    """Move colours, (channels, n), by the linear optimal transport of Gaussians to the others'."""
    ours, theirs = colours.double(), others.double()
    mean, wanted = ours.mean(1, keepdim=True), (theirs * weights).sum(1, keepdim=True) / weights.sum()
    little = 1e-5 * torch.eye(len(ours), dtype=ours.dtype, device=ours.device)
    covariance = (ours - mean) @ (ours - mean).T / ours.shape[1] + little
    goal = ((theirs - wanted) * weights) @ (theirs - wanted).T / weights.sum() + little
    root = _root(covariance)
    inverse = torch.linalg.inv(root)
    move = inverse @ _root(root @ goal @ root) @ inverse
    return (wanted + move @ (ours - mean)).clamp(0, 1).to(colours)


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
