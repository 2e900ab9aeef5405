"""Patch transport: rebuild a picture from patches of exemplars, each of which is used about equally often.

1. Patches of the picture, every few pixels from a random offset on, and those of the exemplars are projected on
   the exemplars' principal components.
2. The cost of a pair of patches is their squared distance, divided by that of the exemplar's patch from whichever
   patch of the picture is closest to it: a patch that is used already costs more than one that nothing resembles
   yet (Granot et al. 2022, https://arxiv.org/abs/2103.15545). It is a fast approximation of optimal transport,
   where every patch of the exemplars has to be used. Each patch of the picture takes the cheapest.
3. The patches overlap: a pixel is their mean, with more weight for those that lie closest to what was there
   (Kwatra et al. 2005, https://doi.org/10.1145/1073204.1073263), and for the middles of patches.

Of a large picture, patches are compared in tiles: first all of them for the distance that each of the exemplars'
has from its closest, then again for their choice. So all tiles share one price list, and choose as the whole
picture would; nothing is matched within a tile, and a border between two cannot show.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

from genimg_fast.editing.tiles import spans
from genimg_fast.losses import SlicedWassersteinLoss

SIZES = (32, 16, 8)  # of patches, in turn; every quarter of one is one taken
COARSEST = 64  # pixels of the shorter side to begin with, about
_COMPONENTS = 32
_TILE = 512  # patches a side that are compared at a time
_ROBUSTNESS = 0.6  # of the mean: the exponent that weights have of squared distances


@dataclass(frozen=True)
class Patches:
    """Patches of exemplars.

    Attributes:
        values: Pixels, (n, channels * size * size).
        keys: Principal components, (n, components).
        mean: Of the values.
        basis: From values to components.
        sources: Number of the exemplar that each is from, (n,).
        size: Height and width.
    """

    values: Tensor
    keys: Tensor
    mean: Tensor
    basis: Tensor
    sources: Tensor
    size: int


def take_patches(
    exemplars: Sequence[Tensor],
    size: int,
    *,
    shares: Sequence[float],
    most: int,
    generator: torch.Generator | None,
) -> Patches:
    """Take patches of exemplars at random, each position at most once.

    Args:
        exemplars: Pictures.
        size: Height and width of patches.
        shares: How many to take of each exemplar, in proportion.
        most: Number of patches of all together.
        generator: Random numbers.
    """
    values, sources = [], []
    for source, (exemplar, share) in enumerate(zip(exemplars, shares, strict=True)):
        windows = exemplar.unfold(1, size, 1).unfold(2, size, 1)
        rows, columns = windows.shape[1:3]
        chosen = torch.randperm(rows * columns, generator=generator)[: max(1, round(most * share / sum(shares)))]
        chosen = chosen.to(exemplar.device)
        values.append(windows[:, chosen // columns, chosen % columns].transpose(0, 1).flatten(1))
        sources.append(chosen.new_full((len(chosen),), source))
    all_values = torch.cat(values)
    mean = all_values.mean(0)
    some = all_values[torch.randperm(len(all_values), generator=generator)[:4096].to(mean.device)] - mean
    basis = torch.linalg.eigh(some.T @ some).eigenvectors[:, -_COMPONENTS:]
    return Patches(all_values, (all_values - mean) @ basis, mean, basis, torch.cat(sources), size)


def transport(
    picture: Tensor,
    patches: Patches,
    *,
    wrap: bool = False,
    evenness: float | None = None,
    stride: int | None = None,
    regions: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Rebuild a picture from patches; see the top of this file.

    Args:
        picture: The picture, at least of a patch's size.
        patches: What to rebuild it from.
        wrap: Whether the picture goes on at the opposite border.
        evenness: The smaller, the more evenly are patches used: what is added to the distance from the closest,
            as a share of the patches' variance. None: each is replaced by the closest.
        stride: Pixels from one patch to the next; default: a quarter of its size.
        regions: Number of the exemplar whose patches each pixel is built from, (height, width); None: of any.
        generator: Random numbers.

    Returns:
        The picture rebuilt.
    """
    size, (height, width) = patches.size, picture.shape[1:]
    stride = stride or size // 4
    rows, columns = (
        _starts(length, size, stride, wrap, generator).to(picture.device) for length in (height, width)
    )
    around = _pad_around(picture, size - 1) if wrap else picture
    windows = around.unfold(1, size, 1).unfold(2, size, 1)
    where = None
    if regions is not None:
        where = regions[(rows + size // 2)[:, None] % height, (columns + size // 2) % width]
    chosen, distances = _assign(windows, rows, columns, patches, evenness, where)
    weights = (distances + 0.05 * distances.mean() + 1e-8).pow(-_ROBUSTNESS)
    window = _window(size, stride).to(picture)
    total, weight = torch.zeros_like(picture), torch.zeros_like(picture[0])
    done = 0
    for band in _bands(rows, columns, patches.values.shape[1]):
        here = slice(done, done + len(band) * len(columns))
        done = here.stop
        shape = (len(band), len(columns))
        values = patches.values[chosen[here]].view(*shape, len(picture), size, size).permute(2, 3, 4, 0, 1)
        scale = weights[here].view(shape)
        for y in range(size):  # no two patches begin in one place, so each of these adds to different pixels
            to_rows = ((band + y) % height)[:, None]
            for x in range(size):
                to_columns, share = (columns + x) % width, scale * window[y, x]
                total[:, to_rows, to_columns] += values[:, y, x] * share
                weight[to_rows, to_columns] += share
    return total / weight


def match(
    picture: Tensor, exemplar: Tensor, *, steps: int, wrap: bool = False, generator: torch.Generator | None = None
) -> Tensor:
    """Move a picture's small patches towards the distribution of an exemplar's; it sharpens what means blurred."""
    size = 5
    loss = SlicedWassersteinLoss(size, num_projections=16, generator=generator)
    moved = picture.detach().clone().requires_grad_()
    optimizer = torch.optim.Adam([moved], lr=0.01)
    with torch.enable_grad():
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / steps) ** 0.5
            optimizer.zero_grad()
            loss((_pad_around(moved, size - 1) if wrap else moved)[None], exemplar[None]).backward()
            optimizer.step()
    return moved.detach()


def resized(picture: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a picture to (height, width): smoothly when it shrinks, with sharp edges when it grows."""
    size = list(size)
    if list(picture.shape[1:]) == size:
        return picture
    if size[0] < picture.shape[1]:
        return interpolate(picture[None], size, mode="bilinear", antialias=True)[0]
    return interpolate(picture[None], size, mode="bicubic")[0]


def halvings(picture: Tensor) -> int:
    """Count how often a picture is reduced by half until its shorter side has about 64 pixels."""
    return max(0, round(math.log2(min(picture.shape[1:]) / COARSEST)))


def halved(size: Sequence[int], times: int, *, least: int = SIZES[-1]) -> tuple[int, int]:
    """Halve a height and width so often, but to ``least`` pixels at least."""
    height, width = (max(least, round(side / 2**times)) for side in size)
    return height, width


def _starts(length: int, size: int, stride: int, wrap: bool, generator: torch.Generator | None) -> Tensor:
    """Where patches begin along one side: from a random offset on, with one at each border unless it wraps."""
    offset = int(torch.randint(stride, (), generator=generator))
    if wrap:
        return torch.arange(offset, length + offset, stride) % length
    inner = torch.arange(offset, length - size, stride)
    return torch.cat([torch.tensor([0]), inner, torch.tensor([length - size])]).unique()


def _pad_around(picture: Tensor, margin: int) -> Tensor:
    return pad(picture[None], (0, margin, 0, margin), mode="circular")[0]


def _bands(rows: Tensor, columns: Tensor, values: int) -> Iterator[Tensor]:
    """Cut the rows of patches so that the patches of a piece are of 64 MB at most, if a row of them is."""
    yield from rows.split(max(1, 2**24 // (len(columns) * values)))


def _pixels(windows: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return windows[:, rows[:, None], columns].permute(1, 2, 0, 3, 4).flatten(2).flatten(0, 1)


def _assign(
    windows: Tensor, rows: Tensor, columns: Tensor, patches: Patches, evenness: float | None, where: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Find each place's cheapest patch, of the exemplar in ``where``; return numbers and squared distances."""
    if where is None:
        where = torch.zeros((), dtype=torch.long, device=rows.device).expand(len(rows), len(columns))
        known = {0: torch.arange(len(patches.keys), device=rows.device)}
    else:
        known = {source: (patches.sources == source).nonzero()[:, 0] for source in where.unique().tolist()}
    choices = {source: _Choice(patches.keys[numbers], evenness) for source, numbers in known.items()}
    tiles = [
        (slice(*down), slice(*across))
        for down, across in itertools.product(spans(len(rows), _TILE), spans(len(columns), _TILE))
    ]

    @functools.lru_cache(1)  # the only tile of a small picture is needed twice
    def project(number: int) -> Tensor:
        down, across = (side[part] for side, part in zip((rows, columns), tiles[number], strict=True))
        bands = _bands(down, across, patches.values.shape[1])
        return torch.cat([(_pixels(windows, band, across) - patches.mean) @ patches.basis for band in bands])

    if evenness is not None:
        for number, tile in enumerate(tiles):
            sources = where[tile].flatten()
            for source in sources.unique().tolist():
                choices[source].price(project(number)[sources == source])
    chosen = torch.empty(len(rows), len(columns), dtype=torch.long, device=rows.device)
    distances = windows.new_empty(len(rows), len(columns))
    for number, tile in enumerate(tiles):
        sources = where[tile].flatten()
        found, far = chosen.new_empty(len(sources)), distances.new_empty(len(sources))
        for source in sources.unique().tolist():
            here = sources == source
            best, far[here] = choices[source].choose(project(number)[here])
            found[here] = known[source][best]
        chosen[tile], distances[tile] = found.view_as(chosen[tile]), far.view_as(distances[tile])
    return chosen.flatten(), distances.flatten()


class _Choice:
    """The cheapest key for each of many queries, which come in parts: all of them to be priced, then to choose."""

    def __init__(self, keys: Tensor, evenness: float | None) -> None:
        self._keys, self._evenness = keys, evenness
        self._half = keys.square().sum(1) / 2
        self._closest = torch.full_like(self._half, torch.inf)

    def price(self, queries: Tensor) -> None:
        """See how close queries are to each key."""
        for chunk in self._chunks(queries):
            self._closest = torch.minimum(self._closest, self._halves(chunk).amin(0))

    def choose(self, queries: Tensor) -> tuple[Tensor, Tensor]:
        """Find the cheapest key of each query; return their numbers and the squared distances."""
        chunks = self._chunks(queries)
        if self._evenness is not None:
            spread = self._evenness * self._keys.var(0, unbiased=False).sum()
            price = 1 / (self._closest.clamp(min=0) + spread + 1e-12)
            found = torch.cat([_argmin(self._halves(chunk).clamp_(min=0).mul_(price)) for chunk in chunks])
        else:
            found = torch.cat([_argmin(self._halves(chunk)) for chunk in chunks])
        return found, (queries - self._keys[found]).square().sum(1)

    def _chunks(self, queries: Tensor) -> tuple[Tensor, ...]:
        return queries.split(max(64, (2**23 if queries.is_cpu else 2**27) // len(self._keys)))

    def _halves(self, chunk: Tensor) -> Tensor:
        """Half of the squared distances."""
        return torch.addmm(self._half, chunk, self._keys.T, alpha=-1).add_(chunk.square().sum(1, keepdim=True) / 2)


def _argmin(costs: Tensor) -> Tensor:
    if costs.is_cpu and costs.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(costs.numpy().argmin(1))  # vectorised: four times as fast as torch's
    return costs.argmin(1)


def _window(size: int, stride: int) -> Tensor:
    """Weights within a patch: the closer patches lie, the more does the middle count, which is sharper."""
    bell = torch.exp(-((torch.arange(size) - (size - 1) / 2) / (0.9 * stride)).square() / 2)
    return bell[:, None] * bell
