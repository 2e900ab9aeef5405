"""Image quilting: a texture grown from blocks of an exemplar, joined where they differ least.

1. The result is a grid of square blocks, each of which overlaps its neighbours by a strip; it grows by columns.
2. The squared difference between what is already in a block's strips and every block of the exemplar comes of
   three sums: of old squares, of new squares and, by one Fourier transform, of products.
3. Each place of a column has as choices the blocks that differ least from the column before, by a difference that
   is random within a tolerance; those that were taken before count as worse. Of the choices, the blocks of the
   whole column are taken together, so that their strips differ least: a cheapest path (Viterbi).
4. In each strip the new block begins behind the path on which both differ least (dynamic programming). Where two
   strips meet in a corner, it is new what is new in both.
5. A tileable result is a torus: the last column overlaps the first, the last row the first, with cuts as anywhere.
   So that lines of the texture, which drift from block to block, meet themselves again, columns are closed paths,
   and so is the first row, which is taken before them.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg_fast.data.progress import bar
from genimg_fast.editing.pictures import check_memory, check_picture, tool
from genimg_fast.options import NonNegativeFloat, PositiveInt

# Blocks among which each is chosen.
_CHOICES = 144
# Of those, blocks with which a closed line may begin.
_BEGINNINGS = 32
# By which part the difference of a block counts more each time that it, or one near it, has been taken.
_WEAR = 0.1


@tool
def quilt(
    exemplar: Tensor,
    *,
    size: tuple[PositiveInt, PositiveInt],
    patch: PositiveInt = 32,
    overlap: PositiveInt | None = None,
    tolerance: NonNegativeFloat = 0.3,
    tileable: bool = False,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Tensor:
    """Make more of a texture, by image quilting.

    Args:
        exemplar: The texture, in [0, 1] of shape (channels, height, width), grey or RGB.
        size: Width and height of the result, in pixels.
        patch: Side of a block, in pixels: a little more than that of the largest thing that has to stay whole.
        overlap: Pixels by which blocks overlap; default: a third of the block.
        tolerance: By which part of it the difference of blocks is random: more is more varied, and fits less.
        tileable: Whether the result continues at the opposite edge, so that copies side by side show no seam.
        generator: Random numbers; by default torch's own.
        progress: Whether to show a progress bar.

    Returns:
        The larger texture, of shape (channels, height, width), on the exemplar's device.

    Raises:
        ValueError: If the exemplar is no picture or smaller than a block, if blocks are single pixels or overlap
            by more than half, a tileable result is smaller than a block, or any is too large for the memory.

    Example:
        >>> import torch, genimg_fast as gf
        >>> stripes = torch.linspace(0, 60, 64).sin().mul(0.5).add(0.5).expand(3, 48, 64)
        >>> gf.editing.quilt(stripes, size=(160, 120), tileable=True).shape
        torch.Size([3, 120, 160])

    Source:
        Efros and Freeman, "Image Quilting for Texture Synthesis and Transfer" (2001), section 2; there, each block
        is chosen alone.
    """
    check_picture(exemplar, "exemplar")
    if patch < 2:
        raise ValueError(f"patch must be at least 2, got {patch}")
    overlap = max(1, patch // 3) if overlap is None else overlap
    width, height = size
    if min(exemplar.shape[1:]) < patch:
        got = "x".join(str(n) for n in exemplar.shape[:0:-1])
        raise ValueError(f"exemplar must be at least {patch}x{patch} pixels, as a block is, got {got}")
    if not 0 < overlap <= patch // 2:
        raise ValueError(f"overlap must be from 1 to {patch // 2}, half a block, got {overlap}")
    if min(size) < 1:
        raise ValueError(f"size must be at least 1x1 pixels, got {width}x{height}")
    if tileable and min(size) < patch:
        raise ValueError(f"size must be at least {patch}x{patch} if tileable, as a block is, got {width}x{height}")
    check_memory("size", width, height, 5 * len(exemplar), exemplar)

    grid = _Grid(exemplar.detach(), size, patch, overlap, tolerance, tileable, generator)
    rows, columns = (range(len(starts)) for starts in grid.starts)
    for x in bar(columns, "quilt", "column", progress):
        grid.fill([(y, x) for y in rows], axis=0)
        if tileable and x == 0:
            grid.fill([(0, x) for x in columns], axis=1)
    return grid.canvas[:, :height, :width].contiguous()


class _Grid:
    """The result, as it grows, and which block of the exemplar is at which place of it."""

    def __init__(
        self, exemplar: Tensor, size: tuple[int, int], patch: int, overlap: int, tolerance: float, tileable: bool,
        generator: torch.Generator | None,
    ) -> None:  # fmt: skip
        self.tileable, self.tolerance = tileable, tolerance
        axes = [_starts(length, patch, overlap, tileable) for length in size[::-1]]
        self.starts = [starts for starts, _ in axes]
        self.strip = min(least for _, least in axes)
        self.blocks = _Blocks(exemplar, patch, self.strip, generator)
        self.lengths = [
            n if tileable else starts[-1] + patch for n, starts in zip(size[::-1], self.starts, strict=True)
        ]
        self.canvas = exemplar.new_zeros(len(exemplar), *self.lengths)
        self.taken: dict[tuple[int, int], Tensor] = {}

    def fill(self, places: list[tuple[int, int]], axis: int) -> None:
        """Fill the places of a row (axis 1) or a column (axis 0) that are empty."""
        choices, costs = [], []
        for place in places:
            if place in self.taken:
                choice, cost = self.taken[place], self.canvas.new_zeros(1)
            else:
                choice, cost = self.blocks.find(self._view(place), self._filled(place), self.tolerance)
            choices.append(choice)
            costs.append(cost)
        ends = self.starts[axis][1:]
        if self.tileable:
            choices[0], costs[0] = choices[0][:_BEGINNINGS], costs[0][:_BEGINNINGS]
            ends = [*ends, self.lengths[axis]]
        steps = [end - start for start, end in zip(self.starts[axis], ends, strict=False)]
        for place, block in zip(places, self.blocks.join(choices, costs, steps, axis), strict=True):
            if place in self.taken:
                continue
            new, old, filled = self.blocks.take(block)[0], self._view(place), self._filled(place)
            if any(filled):
                new = torch.where(_newer((new - old).square().sum(0), filled, self.strip), new, old)
            y, x = self._pixels(place)
            self.canvas[:, y, x] = new
            self.taken[place] = block

    def _filled(self, place: tuple[int, int]) -> tuple[bool, ...]:
        """Tell whether there is something at the left, at the top, at the right, and at the bottom."""
        rows, columns = (len(starts) if self.tileable else 1 << 30 for starts in self.starts)
        y, x = place
        return tuple(
            (p % rows, q % columns) in self.taken for p, q in ((y, x - 1), (y - 1, x), (y, x + 1), (y + 1, x))
        )

    def _pixels(self, place: tuple[int, int]) -> tuple[Tensor, Tensor]:
        inside = torch.arange(self.blocks.patch, device=self.canvas.device)
        y, x = ((starts[k] + inside) % n for starts, k, n in zip(self.starts, place, self.lengths, strict=True))
        return y[:, None], x

    def _view(self, place: tuple[int, int]) -> Tensor:
        y, x = self._pixels(place)
        return self.canvas[:, y, x]


def _starts(length: int, patch: int, overlap: int, tileable: bool) -> tuple[list[int], int]:
    """Choose where blocks begin along a side, and by how much neighbours overlap at least."""
    step = patch - overlap
    if not tileable:
        return [step * k for k in range(max(1, math.ceil((length - overlap) / step)))], overlap
    count = max(2, math.ceil(length / step))
    return [k * length // count for k in range(count)], min(patch - math.ceil(length / count), patch // 2)


class _Blocks:
    """All blocks of an exemplar; one is known by its number, counted along rows."""

    def __init__(self, exemplar: Tensor, patch: int, strip: int, generator: torch.Generator | None) -> None:
        self.exemplar, self.patch, self.strip, self.generator = exemplar, patch, strip, generator
        self.rows, self.columns = (length - patch + 1 for length in exemplar.shape[1:])
        self.views = exemplar.unfold(1, patch, 1).unfold(2, patch, 1).permute(1, 2, 0, 3, 4)
        self.uses = exemplar.new_ones(self.rows, self.columns)
        # Near zero, the sum of products cancels less.
        self.mean = exemplar.mean((1, 2), keepdim=True)
        centred = exemplar - self.mean
        self.spectrum = torch.fft.rfft2(centred)
        self.energy_spectrum = torch.fft.rfft2(centred.square().sum(0, keepdim=True))
        self.energies: dict[tuple[bool, ...], tuple[Tensor, Tensor]] = {}

    def take(self, block: Tensor) -> Tensor:
        """Get blocks by their numbers, (blocks, channels, side, side)."""
        return self.views[block // self.columns, block % self.columns]

    def find(self, old: Tensor, filled: tuple[bool, ...], tolerance: float) -> tuple[Tensor, Tensor]:
        """Find blocks like the old one in the strips that are filled, with their differences; any if none is."""
        if not any(filled):
            drawn = self._draw(4 * _CHOICES)
            return drawn, old.new_zeros(len(drawn))
        if filled not in self.energies:
            left = old.new_zeros(1, self.patch, self.patch)
            left[..., : self.strip] = 1
            counts = torch.stack([_turn(left, side) * whether for side, whether in enumerate(filled)]).amax(0)
            self.energies[filled] = counts, self._correlate(self.energy_spectrum, counts)
        counts, energies = self.energies[filled]
        old = (old - self.mean) * counts
        costs = (energies - 2 * self._correlate(self.spectrum, old) + old.square().sum()).clamp_(min=0)
        chance = torch.rand(costs.shape, generator=self.generator).to(costs)
        # What rounding leaves of a difference of zero is below the last term.
        costs = (costs * (1 + tolerance * chance) + 1e-6 * counts.sum()) * self.uses
        costs = costs.flatten()
        best = costs.topk(min(_CHOICES, len(costs)), largest=False).indices
        # The best are often neighbours; others, if only good, leave more ways to go on.
        drawn = self._draw(8 * _CHOICES)
        good = drawn[costs[drawn].topk(min(_CHOICES, len(drawn)), largest=False).indices]
        blocks = torch.cat([best, good])
        return blocks, costs[blocks]

    def _draw(self, number: int) -> Tensor:
        drawn = torch.randperm(self.rows * self.columns, generator=self.generator)[:number]
        return drawn.to(self.exemplar.device)

    def join(self, choices: list[Tensor], costs: list[Tensor], steps: list[int], axis: int) -> list[Tensor]:
        """Take one block of each place's choices, so that costs and differences in the strips are least.

        Args:
            choices: Numbers of blocks, for each place.
            costs: What each choice costs.
            steps: Pixels from each place to the next, and, in a closed line, from the last to the first.
            axis: 0 for a column, 1 for a row.
        """
        closed = len(steps) == len(choices)
        # The least sum from each first choice, if it matters, to each choice of the place.
        sums, best = costs[0][None], []
        if closed:
            sums = sums.new_full((len(costs[0]),) * 2, math.inf).fill_diagonal_(0)
        for here, there, cost, step in zip(
            choices, [*choices[1:], choices[0]], [*costs[1:], costs[0]], steps, strict=False
        ):
            tails, heads = (
                self.take(blocks).narrow(axis + 2, at, self.strip).flatten(1)
                for blocks, at in ((here, step), (there, 0))
            )
            sums, before = (sums[:, :, None] + torch.cdist(tails, heads).square()).min(1)
            sums = sums + cost
            best.append(before)
        first = sums.diagonal().argmin() if closed else sums.min(1).values.argmin()
        path = [first if closed else sums[first].argmin()]
        for before in best[::-1]:
            path.append(before[first, path[-1]])
        taken = [choice[number][None] for choice, number in zip(choices, path[::-1], strict=False)]
        near = self.patch // 4
        for block in torch.cat(taken).unique().tolist():
            y, x = divmod(block, self.columns)
            self.uses[max(0, y - near) : y + near + 1, max(0, x - near) : x + near + 1] += _WEAR
        return taken

    def _correlate(self, spectrum: Tensor, template: Tensor) -> Tensor:
        """Sum the products of a template with what is below it, wherever it is inside the exemplar."""
        size = tuple(self.exemplar.shape[1:])
        products = (spectrum * torch.fft.rfft2(template, size).conj()).sum(0)
        return torch.fft.irfft2(products, size)[: self.rows, : self.columns]


def _turn(block: Tensor, side: int) -> Tensor:
    """Turn a block so that a side, of left, top, right and bottom, is the left one; twice is back."""
    if side >= 2:
        block = block.flip(-2, -1)
    return block.transpose(-2, -1) if side % 2 else block


def _newer(differences: Tensor, filled: tuple[bool, ...], strip: int) -> Tensor:
    """Tell the pixels of a block that are new: beyond the cuts of all strips that are filled."""
    sides = [side for side, whether in enumerate(filled) if whether]
    paths = cut(torch.stack([_turn(differences, side)[:, :strip] for side in sides]))
    beyond = torch.arange(len(differences), device=paths.device) >= paths[..., None]
    return torch.stack([_turn(new, side) for side, new in zip(sides, beyond, strict=True)]).all(0)


def cut(differences: Tensor) -> Tensor:
    """Find the paths from the first row to the last on which the sum is least.

    Args:
        differences: Numbers of shape (paths, rows, columns).

    Returns:
        A column for each row, of shape (paths, rows); from row to row it changes by one at most.
    """
    sums = [differences[:, 0]]
    for row in differences.unbind(1)[1:]:
        sums.append(row - F.max_pool1d(-sums[-1], 3, 1, 1))
    columns = [sums[-1].argmin(1, keepdim=True)]
    near = torch.arange(-1, 2, device=differences.device)
    for row in sums[-2::-1]:
        choices = (columns[-1] + near).clamp(0, differences.shape[2] - 1)
        columns.append(choices.gather(1, row.gather(1, choices).argmin(1, keepdim=True)))
    return torch.cat(columns[::-1], 1)
