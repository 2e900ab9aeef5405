"""Style by patch transport: a picture that is rebuilt from the patches of others, from coarse to fine.

1. Give the content the styles' colours (:mod:`genimg_fast.editing.colours`).
2. Reduce content and styles by halves until the content's shorter side is about 64 pixels; begin with the content.
3. For patches of 32, 16 and 8 pixels, three times each: rebuild the picture from the styles' patches, all of which
   are used (:mod:`genimg_fast.editing.patches`); then mix in the content, most where it has edges.
4. Enlarge the picture twofold, and go on at 3. At last, do 1 again: means of patches have less contrast.

No network is needed. Offsets of patches are random but the same for the whole picture. A large one is compared
with the styles in tiles that share one price list: the result is that of the whole, without seams or drift.
Elad, Milanfar 2017, https://doi.org/10.1109/TIP.2017.2678168.
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from genimg_fast.data.progress import bar
from genimg_fast.editing.colours import recoloured
from genimg_fast.editing.patches import SIZES, halved, halvings, resized, take_patches, transport
from genimg_fast.editing.pictures import to_grey

_ROUNDS = 3
_EVENNESS = 0.05


def transport_style(
    content: Tensor,
    styles: list[Tensor],
    *,
    shares: list[float],
    content_weight: float,
    regions: Tensor | None,
    generator: torch.Generator | None,
    progress: bool,
) -> Tensor:
    """Rebuild a picture from patches of others; see the top of this file.

    Args:
        content: The picture.
        styles: Pictures of as many channels, at the size at which they are to be seen.
        shares: How many patches to take of each, in proportion.
        content_weight: How much of the content is mixed in.
        regions: Number of the style of each pixel, (height, width); None: of any.
        generator: Random numbers.
        progress: Whether to show a progress bar.

    Returns:
        The picture, not clipped.
    """
    coloured = recoloured(content, styles, shares, regions)
    levels = halvings(content)
    painted: Tensor | None = None
    plan = [(level, patch) for level in reversed(range(levels + 1)) for patch in SIZES]
    for level, patch in bar(plan, "style", "pass", progress):
        target, *reduced = (resized(p, halved(p.shape[1:], level)) for p in (coloured, *styles))
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
    return recoloured(painted, styles, shares, regions)


def _edges(picture: Tensor) -> Tensor:
    """How much each pixel is on an edge, (1, height, width) in [0, 1]."""
    grey = to_grey(picture)
    right, below = pad(grey.diff(dim=2), (0, 1)), pad(grey.diff(dim=1), (0, 0, 0, 1))
    slope = avg_pool2d((right.square() + below.square()).sqrt()[None], 5, 1, 2)[0]
    ordered = slope.flatten().sort().values
    return (slope / (ordered[int(0.95 * (len(ordered) - 1))] + 1e-6)).clamp(0, 1)
