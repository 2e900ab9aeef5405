"""Image quilting: a texture grown from blocks of an exemplar, joined where they differ least.

1. The result is a grid of square blocks, each of which overlaps its neighbours by a strip. It is filled from left to
   right, then from top to bottom.
2. The squared difference between what is already in a block's strips and every block of the exemplar comes of three
   sums: of old squares, of new squares and, by one Fourier transform, of products.
3. One of the blocks that differ little more than the best is taken at random.
4. In each strip the new block begins behind the path on which both differ least (dynamic programming). Where two
   strips meet in a corner, it is new what is new in both.
5. A tileable result is a torus: the last column overlaps the first, the last row the first, with cuts as anywhere.
   So that lines of the texture, which drift from block to block, meet themselves again, the blocks of the first row
   and of the first column are chosen together: closed chains, the cheapest among random blocks (Viterbi).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg_fast.data.progress import bar
from genimg_fast.editing.pictures import check_picture
from genimg_fast.options import NonNegativeFloat, PositiveInt

# Blocks among which each of a closed chain is chosen.
_DRAWN = 600


def quilt(
    exemplar: Tensor,
    *,
    size: tuple[PositiveInt, PositiveInt],
    patch: PositiveInt = 32,
    overlap: PositiveInt | None = None,
    tolerance: NonNegativeFloat = 0.1,
    tileable: bool = False,
    generator: torch.Generator | None = None,
    progress: bool = False,
) -> Tensor:
    """Make more of a texture, by image quilting.

    Args:
        exemplar: The texture, in [0, 1] of shape (channels, height, width), grey or RGB.
        size: Width and height of the result, in pixels.
        patch: Side of a block, in pixels: a little more than that of the largest thing that has to stay whole.
        overlap: Pixels by which blocks overlap; default: a quarter of the block.
        tolerance: Blocks may differ more than the best by this part of it, and one of them is taken at random.
        tileable: Whether the result continues at the opposite edge, so that copies side by side show no seam.
        generator: Random numbers; by default torch's own.
        progress: Whether to show a progress bar.

    Returns:
        The larger texture, of shape (channels, height, width), on the exemplar's device.

    Raises:
        ValueError: If the exemplar is no picture or smaller than a block, if blocks overlap by more than half, or a
            tileable result is smaller than a block.

    Example:
        >>> import torch, genimg_fast as gf
        >>> stripes = torch.linspace(0, 60, 64).sin().mul(0.5).add(0.5).expand(3, 48, 64)
        >>> gf.editing.quilt(stripes, size=(160, 120), tileable=True).shape
        torch.Size([3, 120, 160])

    Source:
        Efros and Freeman, "Image Quilting for Texture Synthesis and Transfer" (2001), section 2.
    """
    check_picture(exemplar, "exemplar")
    overlap = max(1, patch // 4) if overlap is None else overlap
    width, height = size
    if min(exemplar.shape[1:]) < patch:
        got = "x".join(str(n) for n in exemplar.shape[:0:-1])
        raise ValueError(f"exemplar must be at least {patch}x{patch} pixels, as a block is, got {got}")
    if not 0 < overlap <= patch // 2:
        raise ValueError(f"overlap must be from 1 to {patch // 2}, half a block, got {overlap}")
    if tileable and min(size) < patch:
        raise ValueError(f"size must be at least {patch}x{patch} if tileable, as a block is, got {width}x{height}")

    tops, overlap_y = _starts(height, patch, overlap, tileable)
    lefts, overlap_x = _starts(width, patch, overlap, tileable)
    strip = min(overlap_x, overlap_y)
    blocks = _Blocks(exemplar, patch, strip)
    whole = (height, width) if tileable else (tops[-1] + patch, lefts[-1] + patch)
    canvas = exemplar.new_zeros(len(exemplar), *whole)
    inside = torch.arange(patch, device=exemplar.device)
    chosen = blocks.draw(1, generator)[0]
    chains: list[list[int]] = [[chosen], [chosen]]
    if tileable:
        chains = [blocks.close(chosen, starts, whole[axis], axis, generator) for axis, starts in enumerate((tops, lefts))]
    for number in bar(range(len(tops) * len(lefts)), "quilt", "block", progress):
        row, column = divmod(number, len(lefts))
        rows = ((tops[row] + inside) % whole[0])[:, None]
        columns = (lefts[column] + inside) % whole[1]
        old = canvas[:, rows, columns]
        filled = (
            column > 0,
            row > 0,
            tileable and column == len(lefts) - 1,
            tileable and row == len(tops) - 1,
        )
        if row == 0 and column < len(chains[1]):
            new = blocks.take(chains[1][column])
        elif column == 0 and row < len(chains[0]):
            new = blocks.take(chains[0][row])
        else:
            new = blocks.take(blocks.find(old, filled, tolerance, generator))
        if any(filled):
            new = torch.where(_newer((new - old).square().sum(0), filled, strip), new, old)
        canvas[:, rows, columns] = new
    return canvas[:, :height, :width].contiguous()


def _starts(length: int, patch: int, overlap: int, tileable: bool) -> tuple[list[int], int]:
    """Choose where blocks begin along a side, and by how much neighbours overlap at least."""
    step = patch - overlap
    if not tileable:
        return [step * k for k in range(max(1, math.ceil((length - overlap) / step)))], overlap
    count = max(2, math.ceil(length / step))
    return [k * length // count for k in range(count)], min(patch - math.ceil(length / count), patch // 2)


class _Blocks:
    """All blocks of an exemplar, to be found by the strips at their sides."""

    def __init__(self, exemplar: Tensor, patch: int, strip: int) -> None:
        self.exemplar, self.patch, self.strip = exemplar, patch, strip
        self.rows, self.columns = (length - patch + 1 for length in exemplar.shape[1:])
        self.uses = exemplar.new_ones(self.rows, self.columns)
        # Near zero, the sum of products cancels less.
        self.mean = exemplar.mean((1, 2), keepdim=True)
        centred = exemplar - self.mean
        self.spectrum = torch.fft.rfft2(centred)
        self.energy_spectrum = torch.fft.rfft2(centred.square().sum(0, keepdim=True))
        self.energies: dict[tuple[bool, ...], tuple[Tensor, Tensor]] = {}

    def draw(self, number: int, generator: torch.Generator | None) -> list[int]:
        """Draw different blocks at random."""
        return torch.randperm(self.rows * self.columns, generator=generator)[:number].tolist()

    def take(self, block: int) -> Tensor:
        """Get a block by its number: its first pixel's, among those that blocks can begin with."""
        y, x = divmod(block, self.columns)
        return self.exemplar[:, y : y + self.patch, x : x + self.patch]

    def close(
        self, first: int, starts: list[int], length: int, axis: int, generator: torch.Generator | None
    ) -> list[int]:
        """Choose blocks for a row or a column that is closed, and begins with a given one."""
        drawn = self.draw(_DRAWN * (len(starts) - 1), generator)
        drawn = [block for block in drawn if block != first] or [first]
        choices = [[first], *(drawn[k :: len(starts) - 1] or drawn for k in range(len(starts) - 1)), [first]]
        totals, best = self.exemplar.new_zeros(1), []
        for k, (start, end) in enumerate(zip(starts, [*starts[1:], length], strict=True)):
            heads, tails = (
                torch.stack([self.take(block).narrow(axis + 1, at, self.strip).flatten() for block in chosen])
                for chosen, at in ((choices[k + 1], 0), (choices[k], end - start))
            )
            totals, before = (totals[:, None] + torch.cdist(tails, heads).square()).min(0)
            best.append(before)
        chain = [0]
        for before in best[::-1]:
            chain.append(int(before[chain[-1]]))
        return [choices[k][number] for k, number in enumerate(chain[:0:-1])]

    def find(
        self, old: Tensor, filled: tuple[bool, ...], tolerance: float, generator: torch.Generator | None
    ) -> int:
        """Find a block that is like the old one in the strips that are filled: left, top, right, bottom."""
        if filled not in self.energies:
            left = old.new_zeros(1, self.patch, self.patch)
            left[..., : self.strip] = 1
            counts = torch.stack([_turn(left, side) * whether for side, whether in enumerate(filled)]).amax(0)
            self.energies[filled] = counts, self._correlate(self.energy_spectrum, counts)
        counts, energies = self.energies[filled]
        old = (old - self.mean) * counts
        differences = energies - 2 * self._correlate(self.spectrum, old) + old.square().sum()
        # What rounding leaves of a difference of zero is below the last term.
        differences = (differences.clamp(min=0) + 1e-6 * counts.sum()) * self.uses
        close = (differences <= differences.min() * (1 + tolerance)).flatten().nonzero()[:, 0]
        block = int(close[int(torch.randint(len(close), (), generator=generator))])
        y, x = divmod(block, self.columns)
        near = self.patch // 4
        self.uses[max(0, y - near) : y + near + 1, max(0, x - near) : x + near + 1] += 1
        return block

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
