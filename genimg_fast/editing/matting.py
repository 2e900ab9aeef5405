"""Matting: how much of each pixel is foreground.

Closed form (Levin, Lischinski, Weiss 2008): in each window of 3x3 pixels, alpha is taken to be affine in the
colour. What is left over, summed over all windows, is alpha^T L alpha, with L_ij the sum over the windows that
hold i and j of delta_ij - (1 + (I_i - mean)^T (covariance + epsilon/9)^-1 (I_j - mean)) / 9. Known pixels keep
their value, the unknown ones solve L_uu alpha_u = -L_uk alpha_k; :mod:`genimg_fast.editing.multigrid` does that.

KNN (Chen, Li, Tang 2013): alpha is much the same at pixels that are neighbours in the space of colour and place.
Of neighbours' counts S and their sums D, (D - S + 100 D K) alpha = 100 D K known, with K for known pixels.
"""

from typing import Literal

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from genimg_fast.data.optional import optional_import
from genimg_fast.editing.multigrid import BlockMatrix, solve
from genimg_fast.editing.pictures import (
    Mask,
    check_choices,
    check_left_out,
    check_mask,
    check_memory,
    check_picture,
    tool,
)
from genimg_fast.options import PositiveFloat

_KNOWN = 100  # weight of known pixels in KNN matting, against 1 of the neighbours
_NEIGHBOURS = ((20, 2.0), (10, 0.1))  # how many, and the weight of their place against their colour
_CHUNK = 1024  # blocks whose Laplacian is made at once; what they take fits into a cache


@tool
def matte(
    image: Tensor,
    *,
    trimap: Mask,
    method: Literal["closed-form", "knn"] = "closed-form",
    epsilon: PositiveFloat | None = None,
    tolerance: PositiveFloat = 1e-7,
) -> Tensor:
    """Estimate how much of each pixel is foreground.

    Levin et al. 2008, "A closed-form solution to natural image matting", section 3; Chen et al. 2013, "KNN
    matting", section 3. Computed in float64: the closed form where the picture is, KNN matting on the CPU.

    Args:
        image: The picture, of shape (channels, height, width), at least 3 pixels a side.
        trimap: What is known, of the picture's size. From 0.9 on it is foreground, up to 0.1 background; between,
            it is to be found out.
        method: How. ``"closed-form"`` follows lines of colours, ``"knn"`` also joins areas that do not touch.
        epsilon: How little alpha may follow the colours in the closed form, by default 1e-7; larger is smoother.
        tolerance: Residual of the equations, as a share of their right-hand side's length, at which to stop.

    Returns:
        Alpha in [0, 1], of shape (1, height, width): exactly 0 or 1 where the trimap says so.

    Raises:
        ValueError: If the picture is smaller, or too large for the memory, the trimap of another size, or nothing
            in it is known as foreground, or as background.
        ImportError: If SciPy, which KNN matting needs, is missing.

    Example:
        >>> import torch, genimg_fast as gf
        >>> alpha = torch.linspace(-0.5, 1.5, 33).clamp(0, 1).expand(1, 20, 33)
        >>> trimap = torch.full_like(alpha, 0.5)
        >>> trimap[alpha == 0], trimap[alpha == 1] = 0, 1
        >>> image = 0.2 + 0.6 * alpha  # light before dark
        >>> (gf.editing.matte(image, trimap=trimap) - alpha).abs().max() < 1e-3
        tensor(True)
    """
    check_picture(image)
    check_mask(trimap, image, "trimap")
    check_choices(method=(method, ("closed-form", "knn")))
    if method == "knn":
        check_left_out("KNN matting has none", epsilon=epsilon)
    epsilon = 1e-7 if epsilon is None else epsilon
    if not epsilon >= 1e-12:
        raise ValueError(f"epsilon must be at least 1e-12, got {epsilon:g}")
    image = image.detach()
    if min(image.shape[1:]) < 3:
        raise ValueError(f"image must have at least 3 pixels a side, got {image.shape[2]}x{image.shape[1]}")
    foreground, background = trimap[0] >= 0.9, trimap[0] <= 0.1
    for known, name in ((foreground, "foreground (0.9 or more)"), (background, "background (0.1 or less)")):
        if not known.any():
            raise ValueError(f"trimap must say of some pixels that they are {name}")
    alpha = foreground.double()
    unknown = ~(foreground | background)
    if unknown.any():
        # KNN matting has rows of equations for known pixels, too.
        share, numbers = (1.0, 250) if method == "knn" else (float(unknown.double().mean()), 400)
        check_memory("image", image.shape[2], image.shape[1], share * numbers, alpha)
        colours = image.double().expand(3, -1, -1)
        if method == "knn":
            found = _knn(colours, foreground, unknown, tolerance)
        else:
            found = _closed_form(colours, foreground, unknown, epsilon, tolerance)
        alpha = found.clamp(0, 1).where(unknown, alpha)
    return alpha[None].to(image.dtype)


def _closed_form(image: Tensor, foreground: Tensor, unknown: Tensor, epsilon: float, tolerance: float) -> Tensor:
    (height, width), device = unknown.shape, image.device
    rows, columns = -(-height // 4), -(-width // 4)
    padding = (2, 4 * columns - width + 2, 2, 4 * rows - height + 2)
    within = F.pad(torch.ones_like(unknown), padding)
    padded, image, foreground = F.pad(unknown, padding), F.pad(image, padding), F.pad(foreground.double(), padding)

    def patches(picture: Tensor) -> Tensor:  # 8x8 pixels around each block of 4x4
        return picture.unfold(-2, 8, 4).unfold(-2, 8, 4)

    position = patches(padded)[..., 2:6, 2:6].flatten(2).any(2).nonzero()
    row, column = position.T
    blocks, size = len(position), 16 * len(position)
    free = patches(padded)[row, column, 2:6, 2:6].reshape(blocks, 1, 16)
    number = torch.full(padded.shape, size, device=device)
    number[2:-2, 2:-2].unflatten(0, (rows, 4)).unflatten(2, (columns, 4))[row, :, column] = torch.arange(
        size, device=device
    ).view(blocks, 4, 4)
    window = patches(number)[row, column].flatten(1)

    values, rhs, near_null = [], [], []
    for part in position.split(_CHUNK):
        row, column = part.T
        colours = patches(image)[:, row, column].permute(1, 2, 3, 0)
        laplacian = _laplacian(colours, patches(within)[row, column], epsilon)
        laplacian = laplacian * patches(padded)[row, column, 2:6, 2:6].reshape(-1, 1, 16)
        rhs.append(-(patches(foreground)[row, column].reshape(-1, 1, 64) @ laplacian)[:, 0])
        values.append(laplacian * patches(padded)[row, column].reshape(-1, 64, 1))
        own = colours[:, 2:6, 2:6].reshape(-1, 16, 3)
        near_null.append(torch.cat([torch.ones_like(own[..., :1]), own], 2))
    matrix = BlockMatrix(torch.cat(values), window, position)
    known = torch.diag_embed((~free[:, 0]).double())  # such an unknown is 0
    matrix.values[:, matrix.inner] += known
    found = solve(matrix, torch.cat(rhs), torch.cat(near_null) * free.mT, tolerance=tolerance)

    alpha = image.new_zeros(4 * rows, 4 * columns)
    blocked = alpha.view(rows, 4, columns, 4)
    blocked[position[:, 0], :, position[:, 1]] = found.view(blocks, 4, 4)
    return alpha[:height, :width]


def _laplacian(colours: Tensor, within: Tensor, epsilon: float) -> Tensor:
    """Make the Laplacian's columns for the inner 4x4 of 8x8 pixels, (blocks, 64, 16)."""
    windows = colours.unfold(1, 3, 1).unfold(2, 3, 1).flatten(4)  # (blocks, 6, 6, 3, 9)
    windows = windows - windows.mean(4, keepdim=True)
    identity = torch.eye(9, dtype=colours.dtype, device=colours.device)
    # White colours, by a triangular factor: an explicit inverse in the usual formula loses what epsilon adds.
    factor = torch.linalg.cholesky(windows @ windows.mT / 9 + epsilon / 9 * identity[:3, :3])
    white = torch.linalg.solve_triangular(factor, windows, upper=False)
    energy = identity - (1 + white.mT @ white) / 9
    whole = within.unfold(1, 3, 1).unfold(2, 3, 1).flatten(3).all(3)
    energy = (energy * whole[..., None, None]).unflatten(4, (3, 3)).unflatten(3, (3, 3))
    summed = colours.new_zeros(len(colours), 8, 8, 4, 4)
    for row in range(6):
        for column in range(6):
            top, left = max(row, 2), max(column, 2)
            bottom, right = min(row + 3, 6), min(column + 3, 6)
            own = energy[:, row, column, :, :, top - row : bottom - row, left - column : right - column]
            seen = summed[:, row : row + 3, column : column + 3]
            seen[:, :, :, top - 2 : bottom - 2, left - 2 : right - 2] += own
    return summed.view(-1, 64, 16)


def _knn(image: Tensor, foreground: Tensor, unknown: Tensor, tolerance: float) -> Tensor:
    sparse, linalg = optional_import("scipy.sparse", "editing"), optional_import("scipy.sparse.linalg", "editing")
    tree = optional_import("scipy.spatial", "editing").cKDTree
    height, width = unknown.shape
    number = height * width
    rows, columns = (numpy.linspace(0, 1, side) for side in (height, width))
    place = numpy.stack([numpy.tile(columns, height), numpy.repeat(rows, width)], 1)
    colours = image.flatten(1).T.cpu().numpy()
    counts = sparse.csr_matrix((number, number))
    for neighbours, weight in _NEIGHBOURS:
        neighbours = min(neighbours, number)
        features = numpy.concatenate([colours, weight * place], 1)
        found = tree(features).query(features, neighbours, workers=torch.get_num_threads())[1]
        ones = numpy.ones(number * neighbours)
        pixels = numpy.repeat(numpy.arange(number), neighbours)
        counts = counts + sparse.csr_matrix((ones, (pixels, found.ravel())), (number, number))
    counts = counts + counts.T
    sums = numpy.asarray(counts.sum(1)).ravel()
    known = _KNOWN * sums * (~unknown).flatten().cpu().numpy()
    matrix = sparse.diags(sums + known) - counts
    rhs = known * foreground.flatten().cpu().numpy()
    alpha, _ = linalg.cg(matrix, rhs, rtol=tolerance, maxiter=10_000, M=sparse.diags(1 / matrix.diagonal()))
    return torch.from_numpy(alpha).view(height, width).to(image.device)
