"""Precision, recall, density and coverage: what two sets of features have in common, by nearest neighbours."""

from typing import NamedTuple

import torch
from torch import Tensor

_BYTES = 64 << 20  # of distances, or of a kernel, that are in memory at once, about


class PrecisionRecall(NamedTuple):
    """What :func:`precision_recall` returns.

    Attributes:
        precision: Share of the generated that lie among the real ones: how good they look.
        recall: Share of the real ones that lie among the generated: how much of the variety is there.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.metrics.precision_recall(torch.zeros(4, 2), torch.zeros(4, 2)).recall
        1.0
    """

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """What :func:`density_coverage` returns.

    Attributes:
        density: Mean number of real ones' neighbourhoods, over ``k``, that a generated one lies in; 1 for sets of
            one distribution, more where the generated crowd among the real ones.
        coverage: Share of the real ones whose neighbourhood has a generated one.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.metrics.density_coverage(torch.zeros(6, 2), torch.zeros(6, 2)).coverage
        1.0
    """

    density: float
    coverage: float


def precision_recall(generated: Tensor, real: Tensor, *, k: int = 3) -> PrecisionRecall:
    """Compute improved precision and recall: Kynkäänniemi et al. 2019, https://arxiv.org/abs/1904.06991.

    A point lies among a set if it is no farther from one of its points than that one's ``k``-th neighbour in the
    set. One outlier among the real ones spans a large ball: see :func:`density_coverage`.

    Args:
        generated: Features, (n, dim), on one device with ``real``. Distances are taken in their own precision, a
            few at a time: 50,000 of either take no more memory than a few of them.
        real: Features, (m, dim).
        k: Neighbours that span a ball.

    Returns:
        Both shares.

    Raises:
        ValueError: If the shapes do not fit, a set has no more than ``k`` points, or they are not finite.

    Example:
        >>> import torch, genimg_fast as gf
        >>> real = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
        >>> gf.metrics.precision_recall(torch.tensor([[0.5], [0.6], [0.7], [0.8]]), real, k=1)  # good, but alike
        PrecisionRecall(precision=1.0, recall=0.0)
    """
    among_real, among_generated = inside_manifolds(generated, real, k)
    return PrecisionRecall(float(among_real.mean()), float(among_generated.mean()))


def density_coverage(generated: Tensor, real: Tensor, *, k: int = 5) -> DensityCoverage:
    """Compute density and coverage: Naeem et al. 2020, https://arxiv.org/abs/2002.09797.

    Args:
        generated: Features, (n, dim), on one device with ``real``; see :func:`precision_recall`.
        real: Features, (m, dim).
        k: Neighbours that span the neighbourhood of a real one.

    Returns:
        Both figures.

    Raises:
        ValueError: If the shapes do not fit, there are no generated points, no more than ``k`` real ones, or they
            are not finite.

    Example:
        >>> import torch, genimg_fast as gf
        >>> real = torch.tensor([[0.0], [1.0], [2.0], [9.0]])
        >>> gf.metrics.density_coverage(torch.tensor([[0.5], [0.6], [0.7], [20.0]]), real, k=1)
        DensityCoverage(density=1.5, coverage=0.5)
    """
    dense, covered = densities(generated, real, k)
    return DensityCoverage(float(dense.mean()), float(covered.mean()))


def inside_manifolds(generated: Tensor, real: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find whether each generated point lies among the real ones, and the other way round: 0 or 1."""
    generated, real = _centred(generated, real, k, min(len(generated), len(real)))
    among_real = _balls_around(generated, real, _radii(real, k)) > 0
    among_generated = _balls_around(real, generated, _radii(generated, k)) > 0
    return among_real.double(), among_generated.double()


def densities(generated: Tensor, real: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the density at each generated point, and whether each real one is covered: 0 or 1."""
    generated, real = _centred(generated, real, k, len(real))
    radii = _radii(real, k)
    dense = _balls_around(generated, real, radii).double() / k
    nearest = torch.cat([torch.cdist(part, generated).amin(1) for part in parts(real, generated)])
    return dense, (nearest <= radii).double()


def _centred(generated: Tensor, real: Tensor, k: int, fewest: int) -> tuple[Tensor, Tensor]:
    """Check two sets; move both to the middle of the real ones, where distances lose the fewest digits."""
    check_features(generated, real)
    if k < 1 or fewest <= k:
        raise ValueError(f"k must lie in 1..{fewest - 1}, below the number of points, got {k}")
    middle = real.mean(0)
    return generated - middle, real - middle


def check_features(generated: Tensor, real: Tensor) -> None:
    """Raise a ValueError unless two sets of features fit each other."""
    for name, features in (("generated", generated), ("real", real)):
        if features.ndim != 2 or len(features) == 0 or not features.is_floating_point():
            raise ValueError(
                f"{name} must be floating-point features of shape (n, dim) with n > 0, "
                f"got {features.dtype} of shape {tuple(features.shape)}"
            )
        if not features.isfinite().all():
            raise ValueError(f"{name} features are not finite")
    if generated.shape[1] != real.shape[1]:
        raise ValueError(f"features have different lengths, {generated.shape[1]} and {real.shape[1]}")


def parts(points: Tensor, others: Tensor) -> tuple[Tensor, ...]:
    """Cut points so that what there is of each pair of a part and all others, a distance, fits into memory."""
    return points.split(max(1, _BYTES // (others.element_size() * len(others))))


def _radii(points: Tensor, k: int) -> Tensor:
    """Distance of each point from its k-th neighbour; its nearest in the set is itself."""
    return torch.cat([torch.cdist(part, points).kthvalue(k + 1).values for part in parts(points, points)])


def _balls_around(points: Tensor, centres: Tensor, radii: Tensor) -> Tensor:
    """Count the balls that each point lies in."""
    return torch.cat([(torch.cdist(part, centres) <= radii).sum(1) for part in parts(points, centres)])
