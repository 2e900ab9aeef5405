"""How far an estimated alpha is from the true one: the four errors of Rhemann et al. 2009.

Over the unknown pixels of the trimap, of estimate a and truth t: SAD, sum |a - t|; MSE, mean (a - t)^2; gradient,
sum (|grad a| - |grad t|)^2, with derivatives of a Gaussian of sigma 1.4, of unit length as filters; connectivity,
sum |phi(a) - phi(t)|, with phi(x) = 1 - d where d = x - l is at least 0.15, and 1 elsewhere: l is the highest of
the levels 0, 0.1 ... 1 up to which the pixel is in the largest area in which both alphas reach the level.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg_fast.data.optional import optional_import
from genimg_fast.editing.pictures import Mask, check_mask, check_picture, tool

_SIGMA, _STEP, _THRESHOLD = 1.4, 0.1, 0.15


class MattingErrors(NamedTuple):
    """What :func:`matting_errors` returns: ``sad``, ``mse``, ``gradient`` and ``connectivity``.

    Example:
        >>> import genimg_fast as gf
        >>> gf.editing.MattingErrors(sad=1.0, mse=0.1, gradient=2.0, connectivity=3.0).mse
        0.1
    """

    sad: float
    mse: float
    gradient: float
    connectivity: float


@tool
def matting_errors(alpha: Mask, *, truth: Mask, trimap: Mask | None = None) -> MattingErrors:
    """Measure how far an alpha is from the true one.

    Rhemann et al. 2009, "A perceptually motivated online benchmark for image matting", section 5. Sums are as they
    are; alphamatting.com prints them in thousands.

    Args:
        alpha: The estimate, of shape (1, height, width).
        truth: The true alpha, of the same size.
        trimap: What was known; pixels above 0.1 and below 0.9 count. Without one, all do.

    Returns:
        Sum of absolute differences, mean squared error, gradient error and connectivity error.

    Raises:
        ValueError: If the sizes differ.
        ImportError: If SciPy is missing.

    Example:
        >>> import torch, genimg_fast as gf
        >>> truth = torch.zeros(1, 8, 8)
        >>> truth[:, 2:6, 2:6] = 1
        >>> errors = gf.editing.matting_errors(truth * 0.5, truth=truth)
        >>> errors.sad, errors.mse
        (8.0, 0.0625)
    """
    check_picture(alpha, "alpha", channels=(1,))
    check_mask(truth, alpha, "truth")
    if trimap is None:
        counted = torch.ones_like(truth[0], dtype=torch.bool)
    else:
        check_mask(trimap, alpha, "trimap")
        counted = (trimap[0] > 0.1) & (trimap[0] < 0.9)
    found, true = alpha[0].double(), truth[0].to(alpha.device).double()
    difference = (found - true)[counted]
    steepness = (_steepness(found) - _steepness(true))[counted]
    return MattingErrors(
        sad=difference.abs().sum().item(),
        mse=difference.square().mean().item() if len(difference) else 0.0,
        gradient=steepness.square().sum().item(),
        connectivity=_connectivity(found.cpu(), true.cpu())[counted.cpu()].sum().item(),
    )


def _steepness(alpha: Tensor) -> Tensor:
    half = math.ceil(_SIGMA * math.sqrt(-2 * math.log(math.sqrt(2 * math.pi) * _SIGMA * 1e-2)))
    place = torch.arange(-half, half + 1, dtype=alpha.dtype, device=alpha.device)
    gaussian = (-place.square() / (2 * _SIGMA**2)).exp()
    kernel = gaussian[:, None] * (place * gaussian)
    kernel = kernel / kernel.norm()
    padded = F.pad(alpha[None, None], (half,) * 4, mode="replicate")
    across, down = (F.conv2d(padded, each[None, None])[0, 0] for each in (kernel, kernel.T))
    return torch.hypot(across, down)


def _connectivity(found: Tensor, true: Tensor) -> Tensor:
    label = optional_import("scipy.ndimage", "editing").label
    level = torch.zeros_like(true)
    connected = torch.ones_like(true, dtype=torch.bool)
    for step in range(1, round(1 / _STEP) + 1):
        threshold = step * _STEP - 1e-9  # 0.3 is not 3 * 0.1
        areas, number = label(((found >= threshold) & (true >= threshold)).numpy())
        if not number:
            break
        areas = torch.from_numpy(areas)
        largest = int(areas.flatten().bincount()[1:].argmax()) + 1
        connected &= areas == largest
        level[connected] = step * _STEP

    def degree(alpha: Tensor) -> Tensor:
        distance = alpha - level
        return 1 - distance * (distance >= _THRESHOLD)

    return (degree(found) - degree(true)).abs()
