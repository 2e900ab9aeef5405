"""Denoising by groups of similar patches: block matching and 3-D filtering.

Dabov et al. 2007, "Image denoising by sparse 3-D transform-domain collaborative filtering"; parameters as in
Lebrun 2012, "An analysis and implementation of the BM3D image denoising method" (IPOL 2, 175-213).

1. Every third pixel is the corner of a reference patch of 8x8 pixels. The patches nearest to it, in a window
   around it, are its group: as many of the 16 nearest as are near, rounded down to a power of two.
2. Of each group, a 2-D wavelet transform of the patches and a Haar transform across them; coefficients below 2.7
   standard deviations of the noise become 0; back. A pixel's basic estimate is the mean of what all groups say of
   it, weighted by how few coefficients they need.
3. Groups of up to 32 are found anew in the basic estimate, where there is less noise to be misled by. The noisy
   patches' coefficients (of a 2-D DCT, and Haar) shrink as in a Wiener filter whose spectrum is the estimate's.

Colours are turned into a luminance and two differences, among which noise stays independent; the luminance finds
the groups for all three. Distances are matrix products: the references of a tile, 4x4 of them, have one window.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg_fast.data.progress import bar
from genimg_fast.editing.networks import load_restorer, restore
from genimg_fast.editing.pictures import check_left_out, check_picture, tool
from genimg_fast.options import NonNegativeFloat

_SIDE = 8  # of a patch
_STRIDE = 3  # between references
_TILE = 4  # references to a window, along each side
_REACH = 16  # of a window beyond its tile
_MOST_NUMBERS = 2**25  # in a temporary tensor
_MEDIAN_OF_NORMAL = 0.6745  # of absolute values


@tool
def denoise(
    image: Tensor,
    *,
    sigma: NonNegativeFloat | None = None,
    model: str | Path | None = None,
    progress: bool = False,
) -> Tensor:
    """Take the noise out of a picture.

    The noise is supposed to be Gaussian, and the same everywhere and in every channel. See the top of
    ``genimg_fast/editing/denoise.py`` for the method, BM3D. A network that was trained for other damage takes out
    that.

    Args:
        image: The picture. Its shape is (1 or 3, height, width), at least 8 pixels a side; noise may make it
            leave [0, 1].
        sigma: Standard deviation of the noise, in levels of 255; default: estimated.
        model: Run of ``restorer``, for denoise, neighbor2neighbor or jpeg, to take instead of the filter.
        progress: Whether to show a progress bar.

    Returns:
        The picture without noise, clipped to [0, 1].

    Raises:
        ValueError: If the image is no picture, or smaller than a patch, ``sigma`` is negative, or the model no
            restorer of such a task.

    Example:
        >>> import torch, genimg_fast as gf
        >>> clean = torch.linspace(0, 1, 64).expand(1, 64, 64)
        >>> noisy = clean + torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0)) * 25 / 255
        >>> restored = gf.editing.denoise(noisy, sigma=25)
        >>> bool((restored - clean).std() < 0.3 * (noisy - clean).std())
        True
    """
    check_noisy(image)
    restorer = None if model is None else load_restorer(model, ("denoise", "neighbor2neighbor", "jpeg"))
    if restorer is not None and not restorer.takes_level:
        check_left_out(f"the model finds out for itself ({restorer.task})", sigma=sigma)
    if sigma is None:
        sigma = estimate_sigma(image)
    elif not 0 <= sigma < math.inf:
        raise ValueError(f"sigma must be at least 0, got {sigma}")
    if restorer is not None:
        return restore(restorer, image, sigma, progress=progress)
    if sigma == 0:
        return image.clamp(0, 1)
    noisy = image.detach().float() if image.dtype in (torch.float16, torch.bfloat16) else image.detach()
    mixing = _opponent(len(image), noisy)
    noisy = torch.einsum("ij,jhw->ihw", mixing, noisy)
    basic = _filtered(noisy, None, sigma / 255, "hard threshold", progress)
    restored = _filtered(noisy, basic, sigma / 255, "Wiener filter", progress)
    return torch.einsum("ji,jhw->ihw", mixing, restored).clamp(0, 1).to(image.dtype)


@tool
def estimate_sigma(image: Tensor) -> float:
    """Estimate the standard deviation of the noise in a picture.

    Second differences along both directions leave little of a picture but its noise, and their median absolute
    value is that of the noise even where there are edges: Immerkaer 1996, "Fast noise variance estimation", and
    Donoho and Johnstone 1994, "Ideal spatial adaptation by wavelet shrinkage". Fine textures count as noise.

    Args:
        image: The picture, of shape (1 or 3, height, width), at least 8 pixels a side.

    Returns:
        The standard deviation, in levels of 255.

    Raises:
        ValueError: If the image is no picture, or smaller than a patch.

    Example:
        >>> import torch, genimg_fast as gf
        >>> noise = torch.randn(1, 128, 128, generator=torch.Generator().manual_seed(0))
        >>> round(gf.editing.estimate_sigma(0.5 + noise * 10 / 255))
        10
    """
    check_noisy(image)
    second = torch.tensor([1.0, -2.0, 1.0], dtype=torch.float64, device=image.device) / math.sqrt(6)
    rest = F.conv2d(image.detach().double().unsqueeze(1), torch.outer(second, second)[None, None])
    return 255 * float(rest.abs().median()) / _MEDIAN_OF_NORMAL


def check_noisy(image: Tensor) -> None:
    """Raise a ValueError unless a tensor is a picture, maybe with noise that leaves [0, 1], of a patch or more."""
    check_picture(image.clamp(0, 1) if isinstance(image, Tensor) and image.is_floating_point() else image)
    lowest, highest = (float(limit) for limit in image.detach().aminmax())
    if not (lowest > -4 and highest < 5):  # as noise of a standard deviation of 255 levels might do
        raise ValueError(f"image must be in [0, 1], noise aside, got {lowest:g} to {highest:g}")
    if min(image.shape[1:]) < _SIDE:
        raise ValueError(f"image must have at least {_SIDE} pixels a side, got {tuple(image.shape[1:])}")


def _filtered(noisy: Tensor, basic: Tensor | None, sigma: float, what: str, progress: bool) -> Tensor:
    """Filter groups: by a threshold, or, with an estimate of the result, like Wiener."""
    channels, height, width = noisy.shape
    rows, columns = height - _SIDE + 1, width - _SIDE + 1  # of patches
    tile_rows, tile_columns = _tiles(rows, noisy.device), _tiles(columns, noisy.device)
    tops = tile_rows[:, 0].sub(_REACH).clamp(0, rows - _window(rows)).tolist()
    total, weight = torch.zeros_like(noisy), torch.zeros_like(noisy)
    # A band of the picture at a time, for the patches of a whole one may not fit in memory.
    per_row = channels * columns * _SIDE**2 * (1 if basic is None else 2)
    band = max(1, _MOST_NUMBERS // (per_row * _STRIDE * _TILE))
    starts = range(0, len(tops), band)
    for start in bar(starts, what, "band", progress):
        end = min(start + band, len(tops))
        top, bottom = tops[start], tops[end - 1] + _window(rows) + _SIDE - 1
        part = slice(top, bottom)
        filtered = _filtered_band(
            noisy[:, part], None if basic is None else basic[:, part], sigma,
            tile_rows[start:end] - top, tile_columns, [t - top for t in tops[start:end]],
        )  # fmt: skip
        total[:, part] += filtered[0]
        weight[:, part] += filtered[1]
    return total / weight


def _filtered_band(
    noisy: Tensor, basic: Tensor | None, sigma: float, tile_rows: Tensor, tile_columns: Tensor, tops: list[int]
) -> tuple[Tensor, Tensor]:
    """Return sums of what groups say of each pixel, weighted, and of the weights."""
    channels, area = len(noisy), _SIDE**2
    dct = _dct(noisy)
    transform = _wavelet(noisy) if basic is None else dct
    coefficients = _patches(noisy, transform)
    size = coefficients.shape[-2:]
    coefficients = _as_rows(coefficients)
    if basic is None:
        guide = _patches(noisy[:1] - noisy[:1].mean(), dct)[0]
        if sigma > 40 / 255:  # then noise would decide which patches are similar
            guide = guide * (guide.abs() > 2 * sigma)
        nearest, near = 16, 2500 if sigma <= 40 / 255 else 5000
        spectrum = None
    else:
        guide = _patches(basic, dct)
        spectrum, guide = _as_rows(guide), guide[0]
        nearest, near = 32, 400 if sigma <= 40 / 255 else 3500
    places, distances = _match(guide, tile_rows, tile_columns, tops, nearest)
    most = places.shape[1]
    counts = (distances <= near * area / 255**2).sum(1).clamp_min(1)
    sums = torch.zeros_like(coefficients)
    weights = coefficients.new_zeros(channels, size.numel())
    for members in (2**power for power in range(int(math.log2(most)) + 1)):
        chosen = ((counts >= members) & (counts < 2 * members)).nonzero().flatten()
        haar = _haar(members, noisy)
        for some in chosen.split(max(1, _MOST_NUMBERS // (8 * members * area))):
            at = places[some, :members].flatten()
            for channel in range(channels):
                group = haar @ coefficients[channel].index_select(0, at).view(-1, members, area)
                if spectrum is None:
                    kept = group.abs() > 2.7 * sigma
                    weight = 1 / kept.sum((1, 2)).clamp_min(1).to(group)
                    group *= kept
                else:
                    power = (haar @ spectrum[channel].index_select(0, at).view(-1, members, area)).square_()
                    gain = power.div_(power + sigma**2)
                    weight = 1 / gain.square().sum((1, 2)).clamp_min(1e-6)
                    group *= gain
                group = haar.T @ (group * weight.view(-1, 1, 1))
                sums[channel].index_add_(0, at, group.view(-1, area))
                weights[channel].index_add_(0, at, weight.repeat_interleave(members))
    line = torch.kaiser_window(_SIDE, periodic=False, beta=2.0, dtype=noisy.dtype, device=noisy.device)
    window = torch.outer(line, line).flatten()
    inverse = torch.linalg.inv(transform)
    pixels = (sums @ torch.kron(inverse, inverse).T) * window
    both = torch.cat([pixels, weights.unsqueeze(2) * window]).transpose(1, 2)
    total, weight = F.fold(both, noisy.shape[1:], _SIDE).squeeze(1).chunk(2)
    return total, weight


def _match(
    guide: Tensor, tile_rows: Tensor, tile_columns: Tensor, tops: list[int], nearest: int
) -> tuple[Tensor, Tensor]:
    """Find, for each reference, the places of the nearest patches, and their squared distances."""
    rows, columns = guide.shape[1:]
    height, width = _window(rows), _window(columns)
    lefts = tile_columns[:, 0].sub(_REACH).clamp(0, columns - width)
    # |a - b|² - |a|² is the product of (-2 a, 1) and (b, |b|²).
    lengths = guide.square().sum(0, keepdim=True)
    terms = torch.cat([guide, lengths])
    places, distances = [], []
    for ys, top in zip(tile_rows, tops, strict=True):
        strip = terms[:, top : top + height]
        candidates = torch.stack([strip[:, :, left : left + width] for left in lefts.tolist()]).flatten(2)
        own = guide[:, ys.view(-1, 1, 1), tile_columns].permute(2, 1, 3, 0).flatten(1, 2)
        products = torch.bmm(F.pad(-2 * own, (0, 1), value=1.0), candidates)
        # The reference itself comes first, even where all patches are equal: no pixel is left without a group.
        itself = (ys.view(1, -1, 1) - top) * width + (tile_columns - lefts.view(-1, 1)).unsqueeze(1)
        products.scatter_(2, itself.reshape(len(lefts), -1, 1), -math.inf)
        least, which = products.topk(min(nearest, height * width), largest=False)
        places.append((top + which // width) * columns + lefts.view(-1, 1, 1) + which % width)
        distances.append(least + own.square().sum(2, keepdim=True))
    return torch.cat(places).flatten(0, 1), torch.cat(distances).flatten(0, 1)


def _tiles(count: int, device: torch.device) -> Tensor:
    """Get where references are, of ``count`` places in a line: at both ends, and at most a stride apart."""
    tiles = -(-(count + _STRIDE - 1) // (_STRIDE * _TILE))
    places = torch.linspace(0, count - 1, tiles * _TILE, dtype=torch.float64, device=device)
    return places.round().long().view(tiles, _TILE)


def _window(count: int) -> int:
    return min(count, 2 * _REACH + 2 + (_TILE - 1) * _STRIDE)


def _patches(image: Tensor, transform: Tensor) -> Tensor:
    """Transform the patches of each channel: (channels, coefficients, rows, columns)."""
    bases = torch.kron(transform, transform).view(-1, 1, _SIDE, _SIDE)
    return F.conv2d(image.unsqueeze(1), bases)


def _as_rows(patches: Tensor) -> Tensor:
    return patches.flatten(2).transpose(1, 2).contiguous()


def _dct(like: Tensor) -> Tensor:
    k, n = torch.meshgrid(*[torch.arange(_SIDE, dtype=torch.float64)] * 2, indexing="ij")
    cosines = torch.cos(math.pi * k * (2 * n + 1) / (2 * _SIDE)) * math.sqrt(2 / _SIDE)
    cosines[0] /= math.sqrt(2)
    return cosines.to(like)


def _wavelet(like: Tensor) -> Tensor:
    """Get the biorthogonal spline wavelet 1.5 of a patch's side, rows of unit length: noise is alike in all.

    Cohen, Daubechies, Feauveau 1992, "Biorthogonal bases of compactly supported wavelets", table 6.1.
    """
    low = torch.tensor([3, -3, -22, 22, 128, 128, 22, -22, -3, 3], dtype=torch.float64) / 256
    transform, size = torch.eye(_SIDE, dtype=torch.float64), _SIDE
    while size > 1:
        level = torch.eye(_SIDE, dtype=torch.float64)
        level[:size, :size] = 0
        for row in range(size // 2):
            taps = torch.arange(2 * row - 4, 2 * row + 6).remainder(size)  # the patch is periodic
            level[row].index_add_(0, taps, low)
            level[size // 2 + row, 2 * row : 2 * row + 2] = torch.tensor([1.0, -1.0], dtype=torch.float64)
        transform, size = level @ transform, size // 2
    return F.normalize(transform, dim=1).to(like)


def _haar(size: int, like: Tensor) -> Tensor:
    rows = torch.ones(1, 1)
    while len(rows) < size:
        pairs = torch.kron(torch.eye(len(rows)), torch.tensor([[1.0, -1.0]]))
        rows = torch.cat([torch.kron(rows, torch.ones(1, 2)), pairs * math.sqrt(len(rows))])
    return F.normalize(rows.double(), dim=1).to(like)


def _opponent(channels: int, like: Tensor) -> Tensor:
    """Get rows of unit length, orthogonal: luminance first."""
    rows = [[1.0]] if channels == 1 else [[1, 1, 1], [1, 0, -1], [1, -2, 1]]
    return F.normalize(torch.tensor(rows, dtype=torch.float64), dim=1).to(like)
