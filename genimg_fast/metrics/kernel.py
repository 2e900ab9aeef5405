"""Kernel distance of two sets of features."""

from typing import NamedTuple

import numpy
import torch
from torch import Tensor

from genimg_fast.metrics.neighbours import check_features, parts


class KernelDistance(NamedTuple):
    """What :func:`kernel_distance` returns.

    Attributes:
        mean: Over the subsets; about 0 for sets of one distribution, and below 0 as often as above.
        std: Standard deviation over the subsets. They overlap: it is no error of the mean.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.metrics.kernel_distance(torch.zeros(4, 2), torch.zeros(4, 2), subset_size=4).mean
        0.0
    """

    mean: float
    std: float


def kernel_distance(
    generated: Tensor, real: Tensor, *, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """Compute the squared maximum mean discrepancy under the kernel ``(x·y / dim + 1)^3``, without bias.

    With the features of Inception v3 it is the KID: Bińkowski et al. 2018, https://arxiv.org/abs/1801.01401. The
    figures are those of torch-fidelity for the same features and seed.

    Args:
        generated: Features, (n, dim), on one device with ``real``.
        real: Features, (m, dim).
        subsets: Number of subsets, drawn of both sets, whose distances are averaged.
        subset_size: Features in a subset; fewer if a set has fewer.
        seed: Decides the subsets.

    Returns:
        Mean and standard deviation over the subsets.

    Raises:
        ValueError: If the shapes do not fit, a number is below 1, a set has fewer than two features, or they are
            not finite.

    Example:
        >>> import torch, genimg_fast as gf
        >>> generated = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> gf.metrics.kernel_distance(generated, generated + 2, subset_size=100).mean > 5
        True
    """
    check_features(generated, real)
    size = min(subset_size, len(generated), len(real))
    if subsets < 1 or size < 2:
        raise ValueError(f"a kernel distance needs subsets of at least 2 features, got {subsets} of {size}")
    draws = numpy.random.RandomState(seed)  # torch-fidelity's source of random numbers, asked in its order
    found = []
    for _ in range(subsets):
        a, b = (
            features[torch.from_numpy(draws.choice(len(features), size, replace=False)).to(features.device)]
            for features in (generated, real)
        )
        one = torch.ones(1, size, dtype=torch.float64, device=a.device)
        found.append(weighted_distances(a, b, one, one))
    values = torch.cat(found)
    return KernelDistance(float(values.mean()), float(values.std(correction=0)))


def weighted_distances(generated: Tensor, real: Tensor, weights: Tensor, real_weights: Tensor) -> Tensor:
    """Compute unbiased distances of sets in which each feature occurs as often as its weight says.

    A pair of one feature with itself counts nowhere, even if the feature occurs several times: it says nothing of
    how near different ones are.

    Args:
        generated: Features, (n, dim).
        real: Features, (m, dim).
        weights: Non-negative weights of the generated ones, one set in each row: (sets, n).
        real_weights: Those of the real ones, (sets, m).

    Returns:
        The distances, (sets,), in float64.
    """
    within = (_mean_kernel(x, x, w, w, same=True) for x, w in ((generated, weights), (real, real_weights)))
    between = _mean_kernel(generated, real, weights, real_weights, same=False)
    return sum(within, start=-2 * between)


def _mean_kernel(a: Tensor, b: Tensor, weights_a: Tensor, weights_b: Tensor, *, same: bool) -> Tensor:
    total = torch.zeros(len(weights_a), dtype=torch.float64, device=a.device)
    weights_b = weights_b.to(b.dtype)
    done = 0
    for rows in parts(a, b):
        kernel = (rows @ b.T).div_(a.shape[1]).add_(1).pow_(3)
        if same:
            kernel.diagonal(done).zero_()
        total += (weights_a[:, done : done + len(rows)].double() * (weights_b @ kernel.T)).sum(1)
        done += len(rows)
    pairs = weights_a.double().sum(1) * weights_b.double().sum(1)
    if same:
        pairs -= weights_a.double().square().sum(1)
    return total / pairs
