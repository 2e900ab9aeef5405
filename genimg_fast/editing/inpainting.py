"""Inpainting: what is missing in a picture is made up from the rest of it.

By patches (:mod:`genimg_fast.editing.patchmatch`): copies of the picture's own textures and edges, sharp. By a
network that has learned of other pictures (:class:`genimg_fast.models.Restorer`): many small holes. By the
deep prior, slowly and smoothly: a network without any training learns to make the known pixels of this one picture
out of their coordinates; what a convolutional network makes of the missing ones on its way is like a picture.

1. The part around the hole is cut out. The hole is filled as smoothly as can be (Laplace's equation), and all is
   blurred: this gives colours to the middle of a large hole, where the network alone may make anything.
2. A small network, the shape of an hourglass, gets the coordinates of the pixels, and makes what has to be added.
   Each step of Adam reduces the mean squared difference over known pixels.
3. The result is the mean of what the network made in the last quarter of the steps.
"""

import itertools
import math
import warnings
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimg_fast.data.progress import bar
from genimg_fast.editing.networks import load_restorer, restore
from genimg_fast.editing.patchmatch import complete, depths
from genimg_fast.editing.pictures import Mask, check_choices, check_left_out, check_mask, check_picture, tool
from genimg_fast.nn import BatchNormAct2d
from genimg_fast.options import NonNegativeInt, PositiveInt


@tool
def inpaint(
    image: Tensor,
    *,
    mask: Mask,
    dilate: NonNegativeInt = 0,
    guide: Mask | None = None,
    method: Literal["patchmatch", "prior"] | None = None,
    model: str | Path | None = None,
    patch: PositiveInt | None = None,
    steps: PositiveInt | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Tensor:
    """Fill what is missing in a picture, or has to go, so that it does not show.

    Args:
        image: The picture. In [0, 1] of shape (channels, height, width), grey or RGB.
        mask: White where something is missing, of the picture's size. Above 0.5, of shape (1, height, width). With
            nothing white, which is warned of, the picture is returned as it is.
        dilate: Pixels by which more is missing on each side: masks by hand often leave a rim of what has to go.
        guide: White where patches may be taken from; default: anywhere.
        method: ``patchmatch``, the default, copies patches of the picture; ``prior`` is a network that learns this
            picture, slow and smooth.
        model: Run of ``restorer``, for inpaint, to take instead: for many small holes.
        patch: Side of a patch, in pixels, an odd number; default: 7.
        steps: Steps in which the prior learns; default: 600.
        generator: Random numbers; by default torch's own.
        progress: Whether to show a progress bar.

    Returns:
        The whole picture, on the same device. What is not missing is as it was, bit for bit.

    Raises:
        ValueError: If the image is no picture, the mask or the guide no mask of its size, the patch's side even or
            1, if no patch is left that could be taken, if the model is no restorer of that task, or sees nothing
            known from within a hole, or for an argument that the chosen way does not use.

    Example:
        >>> import torch, genimg_fast as gf
        >>> stripes = torch.linspace(0, 60, 64).sin().mul(0.5).add(0.5).expand(3, 48, 64)
        >>> mask = torch.zeros(1, 48, 64)
        >>> mask[:, 20:30, 20:30] = 1
        >>> filled = gf.editing.inpaint(stripes * (1 - mask), mask=mask)
        >>> bool((filled - stripes).abs().max() < 0.1)
        True

    Source:
        For patches see :func:`genimg_fast.editing.patchmatch.complete`. Ulyanov, Vedaldi and Lempitsky, "Deep
        Image Prior" (2018), sections 2 and 3.
    """
    check_picture(image)
    check_mask(mask, image)
    if guide is not None:
        check_mask(guide, image, "guide")
    if model is not None:
        check_left_out("the model is the method", method=method, guide=guide, patch=patch, steps=steps)
    method = method or "patchmatch"
    check_choices(method=(method, ("patchmatch", "prior")))
    if method == "prior":
        check_left_out("the prior has no patches", patch=patch, guide=guide)
    else:
        check_left_out("patches are not learned, as the prior is", steps=steps)
    if patch is not None and (patch % 2 == 0 or patch < 3):
        raise ValueError(f"patch must be an odd number of at least 3, got {patch}")
    if dilate < 0:
        raise ValueError(f"dilate must be at least 0, got {dilate}")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    restorer = None if model is None else load_restorer(model, ("inpaint",))
    hole = mask[0].to(image.device) > 0.5
    if not bool(hole.any()):
        warnings.warn("mask has nothing white, where something is missing: the picture is unchanged", stacklevel=3)
        return image.clone()
    if dilate:
        wide = F.max_pool2d(hole[None].float(), (1, 2 * dilate + 1), 1, (0, dilate))
        hole = F.max_pool2d(wide, (2 * dilate + 1, 1), 1, (dilate, 0))[0] > 0
    if bool(hole.all()):
        raise ValueError("mask must leave a part of the picture, with what dilate adds; it covers all")
    if restorer is not None:
        if int(depths(hole).max()) > restorer.reach:
            raise ValueError(
                f"model must see known pixels from each that is missing, got one that sees {restorer.reach} pixels"
            )
        filled = restore(restorer, image, hole[None], progress=progress)
    elif method == "prior":
        filled = _imagine(image, hole, steps or 600, generator, progress)
    else:
        filled = _completed(image, hole, guide, patch or 7, generator, progress)
    return torch.where(hole, filled.clamp(0, 1), image)


def _completed(
    image: Tensor,
    hole: Tensor,
    guide: Tensor | None,
    patch: int,
    generator: torch.Generator | None,
    progress: bool,
) -> Tensor:
    allowed = torch.ones_like(hole) if guide is None else guide[0].to(image.device) > 0.5
    beyond = (0, max(0, patch - hole.shape[1]), 0, max(0, patch - hole.shape[0]))
    taken = F.pad((hole | ~allowed)[None].float(), beyond, value=1)
    if bool(F.max_pool2d(taken, patch, 1).all()):
        name = "mask" if guide is None else "guide"
        raise ValueError(f"{name} must leave {patch}x{patch} pixels, a patch, that are not missing")
    return complete(image, hole, allowed, patch=patch, generator=generator, progress=progress)


def _imagine(image: Tensor, hole: Tensor, steps: int, generator: torch.Generator | None, progress: bool) -> Tensor:
    """Let a network without training imagine what is missing."""
    places = hole.nonzero()
    low, high = places.amin(0), places.amax(0) + 1
    margin = max(32, int((high - low).max()) // 2)
    top, left = (low - margin).clamp(min=0).tolist()
    bottom, right = (high + margin).tolist()
    part = (slice(None), slice(top, bottom), slice(left, right))
    wanted, known = image[part].detach().float()[None], (~hole[None])[part].float()
    seed = int(torch.randint(1 << 62, (), generator=generator))
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.default_generator.manual_seed(seed)  # those of GPUs stay as they are
        network = _Hourglass(len(image), min(wanted.shape[2:])).to(image.device)
        # Sizes that can be halved as often as the network does.
        height, width = wanted.shape[2:]
        sides = [torch.linspace(-1, 1, n + -n % 64, device=image.device) for n in (height, width)]
        coordinates = torch.stack(torch.meshgrid(*sides, indexing="ij"))[None]
        base = _blurred(wanted[0] * known, known, int((high - low).max()))
        optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
        made, kept = torch.zeros_like(wanted), 0
        for step in bar(range(steps), "inpaint", "step", progress):
            output = base + network(coordinates)[:, :, :height, :width]
            optimizer.zero_grad()
            ((output - wanted) * known).square().mean().backward()
            optimizer.step()
            if 4 * (step + 1) > 3 * steps:
                made, kept = made + output.detach(), kept + 1
    filled = image.detach().clone()
    filled[part] = (made[0] / kept).to(image)
    return filled


def _blurred(values: Tensor, known: Tensor, side: int) -> Tensor:
    """Fill a hole as smoothly as can be, and blur the picture by about half the hole's size."""
    blurred = _solve_laplace(values, known, 1 - known)
    reach = [min(side // 4, n // 2) for n in values.shape[1:]]
    window = [2 * n + 1 for n in reach]
    for _ in range(2):
        blurred = F.avg_pool2d(blurred, window, 1, reach, count_include_pad=False)
    return blurred


def _solve_laplace(values: Tensor, given: Tensor, wanted: Tensor) -> Tensor:
    """Solve Laplace's equation: coarsely first, then by averages of neighbours, which smooth what is left."""
    counts = given.new_tensor([[0, 1, 0], [1, 0, 1], [0, 1, 0]]).expand(1, 1, 3, 3)
    guess = (values * given).sum((1, 2), keepdim=True) / given.sum().clamp(min=1)
    if min(values.shape[1:]) > 2:
        shares = F.avg_pool2d(given[None], 2, ceil_mode=True)[0]
        means = F.avg_pool2d((values * given)[None], 2, ceil_mode=True)[0] / shares.clamp(min=1e-6)
        free = F.max_pool2d(wanted[None], 2, ceil_mode=True)[0]
        coarse = _solve_laplace(means, (shares > 0).float(), free * (shares == 0))
        guess = F.interpolate(coarse[None], scale_factor=2, mode="bilinear")[
            0, :, : values.shape[1], : values.shape[2]
        ]
    used = given + wanted
    neighbours = F.conv2d(used[None], counts, padding=1)[0].clamp(min=1)
    solved = torch.where(given > 0, values, guess) * used
    for _ in range(20):
        means = F.conv2d(solved[:, None], counts, padding=1)[:, 0] / neighbours
        solved = torch.where(wanted > 0, means, solved)
    return solved


class _Hourglass(nn.Sequential):
    """A network that halves sizes until all is seen at once, and doubles them again."""

    def __init__(self, channels: int, side: int) -> None:
        widths = (16, 32, 48, 64, 64, 64, 64)[: max(2, int(math.log2(side / 2)))]
        pairs = list(itertools.pairwise(widths))
        down = [nn.Sequential(_block(a, b, stride=2), _block(b, b)) for a, b in pairs]
        up = [nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear"), _block(b, a)) for a, b in pairs[::-1]]
        super().__init__(_block(2, widths[0], kernel=1), *down, *up, nn.Conv2d(widths[0], channels, 1))
        for parameter in self[-1].parameters():
            nn.init.zeros_(parameter)


def _block(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, padding_mode="reflect", bias=False)
    return nn.Sequential(convolution, BatchNormAct2d(outputs, activation="leaky_relu", negative_slope=0.2))
