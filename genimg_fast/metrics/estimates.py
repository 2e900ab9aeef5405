"""Figures of a set of images with confidence intervals, by resampling."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from genimg_fast.metrics.distribution import GaussianStatistics, InceptionScore, frechet_distance
from genimg_fast.metrics.kernel import kernel_distance, weighted_distances
from genimg_fast.metrics.neighbours import check_features, density_coverage, precision_recall

CONFIDENCE = 0.95
ERRORS = 1.96  # standard deviations to either side that make up such an interval
_SUBSETS = 100  # for a kernel distance
_MOST_OPERATIONS = 5e12  # that resampled figures may cost: a minute or two on two cores
_FEWEST_RESAMPLES = 20


class Estimate(NamedTuple):
    """A figure, and where it would lie for other images of the same kind.

    Attributes:
        value: The figure.
        low: Lower end of its 95 % confidence interval.
        high: Upper end.
        bias: How much of the figure comes of the number of images alone, as resampling shows it; 0 for a figure
            without bias.

    Example:
        >>> import genimg_fast as gf
        >>> gf.metrics.Estimate(0.5, 0.4, 0.6).low
        0.4
    """

    value: float
    low: float
    high: float
    bias: float = 0.0


def compare_features(
    generated: Tensor,
    real: Tensor,
    *,
    figures: Sequence[str] | None = None,
    resamples: int = 200,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Compute what is published of two sets of features, each figure with a confidence interval.

    ``frechet_distance``, see :func:`frechet_distance`; ``kernel_distance``, see :func:`kernel_distance`;
    ``precision`` and ``recall``, see :func:`precision_recall`; ``density`` and ``coverage``, see
    :func:`density_coverage`.

    An interval is the figure and 1.96 standard deviations to either side: those of the figure over halves of both
    sets, drawn without replacement, which vary about the whole as the whole about the truth. (Points that occur
    twice, as a bootstrap has them, would shrink neighbourhoods.) It is rather too wide for Fréchet distances
    of few images, and too narrow for densities where one point is near to most of the others (in many dimensions).
    Small sets are farther apart by the Fréchet distance than large ones, and halves are so once more: the
    difference is returned as ``bias``, and the interval is one of the figure for so many images.

    Args:
        generated: Features, (n, dim), on one device with ``real``.
        real: Features, (m, dim).
        figures: Names of those to compute; by default all six.
        resamples: Halves to draw for an interval, at least 2; fewer, at least 20, of features so many and so long
            that a figure would take minutes.
        seed: Decides the draws.

    Returns:
        The figures by name.

    Raises:
        ValueError: If a name is unknown, the shapes do not fit, there are too few features (6 for all figures) or
            resamples, or they are not finite or of different types.

    Example:
        >>> import torch, genimg_fast as gf
        >>> features = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> found = gf.metrics.compare_features(features[:100], features[100:])
        >>> found["coverage"].low <= found["coverage"].value <= found["coverage"].high
        True
    """
    check_features(generated, real)
    if generated.dtype != real.dtype:
        raise ValueError(f"features must be of one type, got {generated.dtype} and {real.dtype}")
    figures = list(FIGURES) if figures is None else list(figures)
    if unknown := [name for name in figures if name not in FIGURES]:
        raise ValueError(f"figures must be some of {', '.join(FIGURES)}, got {unknown[0]!r}")
    generator = torch.Generator().manual_seed(seed)
    sides = (generated, real)
    halves = [draw_halves(side.new_zeros(len(side)).long(), resamples, generator) for side in sides]
    n, dim = len(generated) + len(real), generated.shape[1]
    found: dict[str, Estimate] = {}

    def judge(names: Sequence[str], judge_sets: Callable[..., Sequence[float]], k: int, operations: float) -> None:
        if not any(name in figures for name in names):
            return
        sets = min(resamples, max(_FEWEST_RESAMPLES, int(_MOST_OPERATIONS / operations)))
        resampled = []
        for chosen in zip(*(half[:sets] for half in halves), strict=True):
            a, b = (side[half] for side, half in zip(sides, chosen, strict=True))
            resampled.append(judge_sets(a, b, k=min(k, len(a) - 1, len(b) - 1)))
        others = torch.tensor(resampled, dtype=torch.float64).T
        for name, value, values in zip(names, judge_sets(*sides, k=k), others, strict=True):
            found[name] = around(value, float(values.std()), lowest=0, highest=_HIGHEST.get(name, math.inf))
            if name == "frechet_distance":
                found[name] = found[name]._replace(bias=float(values.mean()) - value)

    judge(["frechet_distance"], _frechet, 1, dim**2 * n + 15 * dim**3)
    if "kernel_distance" in figures:
        value, std = kernel_distance(generated, real, subsets=_SUBSETS, seed=seed)
        others = weighted_distances(generated, real, *(half.double() for half in halves))
        found["kernel_distance"] = around(value, math.hypot(float(others.std()), std / math.sqrt(_SUBSETS)))
    operations = (n / 2) ** 2 * (2 * dim + 100)  # to compute, and compare, each distance of a pair
    judge(["precision", "recall"], precision_recall, 3, operations)
    judge(["density", "coverage"], density_coverage, 5, operations)
    return {name: found[name] for name in figures}


_HIGHEST = {"precision": 1.0, "recall": 1.0, "coverage": 1.0}
FIGURES = ("frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage")


def inception_score(logits: Tensor, *, splits: int = 10, resamples: int = 200, seed: int = 0) -> Estimate:
    """Compute the Inception score with a confidence interval; see :class:`InceptionScore`.

    Args:
        logits: A classifier's logits for images, (n, num_classes).
        splits: Number of splits, over whose scores the mean is taken.
        resamples: Halves of each split to draw for the interval, at least 2; see :func:`compare_features`.
        seed: Decides the draws.

    Returns:
        The score. Small splits score higher than large ones, and halves more so: the difference is returned as
        ``bias``, and the interval is one of the score for so many images.

    Raises:
        ValueError: If the shape is another, there are fewer logits than splits, they are not finite, or there are
            too few resamples.

    Example:
        >>> import torch, genimg_fast as gf
        >>> round(gf.metrics.inception_score(100 * torch.eye(5), splits=1).value, 6)
        5.0
    """
    score = InceptionScore(logits.shape[-1], splits=splits, device=logits.device)
    score.update(logits)
    value = score.compute()[0]
    groups = torch.arange(len(logits), device=logits.device) % splits
    halves = draw_halves(groups, resamples, torch.Generator().manual_seed(seed)).double()
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    entropy = torch.special.entr(p).sum(1)
    scores = torch.zeros(resamples, dtype=torch.float64, device=logits.device)
    for split in range(splits):
        weights = halves[:, split::splits]
        size = weights.sum(1)
        marginal = torch.special.entr(weights @ p[split::splits] / size[:, None]).sum(1)
        scores += (marginal - weights @ entropy[split::splits] / size).exp() / splits
    found = around(value, float(scores.std()), lowest=1, highest=logits.shape[-1])
    return found._replace(bias=float(scores.mean()) - value)


def draw_halves(groups: Tensor, sets: int, generator: torch.Generator) -> Tensor:
    """Draw halves of each group, of at least two members if it has them, without replacement.

    Args:
        groups: The group of each member, int64 of shape (n,).
        sets: Number of draws.
        generator: Of the random numbers, on the CPU.

    Returns:
        Whether each is in each: bool of shape (sets, n), on the groups' device.

    Raises:
        ValueError: If there are fewer than two sets, which have no deviation.
    """
    if sets < 2:
        raise ValueError(f"resamples must be at least 2, got {sets}")
    known = groups.cpu()
    sizes = known.bincount()
    # Group by group, in random order within each.
    order = (known + torch.rand(sets, len(known), generator=generator, dtype=torch.float64)).argsort(1)
    places = torch.arange(len(known)) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    first = places < (sizes // 2).clamp(min=2).repeat_interleave(sizes)
    chosen = torch.zeros(sets, len(known), dtype=torch.bool).scatter_(1, order, first.expand(sets, -1))
    return chosen.to(groups.device)


def around(value: float, error: float, *, lowest: float = -math.inf, highest: float = math.inf) -> Estimate:
    """Make an estimate of a figure and its standard deviation."""
    return Estimate(value, max(float(lowest), value - ERRORS * error), min(float(highest), value + ERRORS * error))


def _frechet(generated: Tensor, real: Tensor, *, k: int) -> list[float]:
    return [frechet_distance(_gaussian(generated), _gaussian(real))]


def _gaussian(features: Tensor) -> GaussianStatistics:
    statistics = GaussianStatistics(features.shape[1], features.device)
    for part in features.split(4096):  # few at a time: they are summed in float64
        statistics.update(part)
    return statistics
