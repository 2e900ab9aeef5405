"""Figures of a set of images with confidence intervals, by the bootstrap."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from genimg_fast.metrics.distribution import GaussianStatistics, InceptionScore, frechet_distance
from genimg_fast.metrics.kernel import kernel_distance, weighted_distances
from genimg_fast.metrics.neighbours import check_features, densities, inside_manifolds

CONFIDENCE = 0.95
_MOST_OPERATIONS = 5e12  # that resampled Fréchet distances may cost: a minute or two on two cores
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

    The intervals are the percentiles of the figure over sets of the same sizes, drawn with replacement from those
    given. Small sets are farther apart by the Fréchet distance than large ones, and resampled sets are so once
    more: its interval is moved back by the difference, which is returned as ``bias``, and is one of the figure for
    so many images. For the figures by neighbours, the points that are judged are drawn again, and their
    neighbourhoods stay: points that occur twice would shrink them.

    Args:
        generated: Features, (n, dim), on one device with ``real``.
        real: Features, (m, dim).
        figures: Names of those to compute; by default all six.
        resamples: Sets to draw for an interval; fewer, at least 20, for Fréchet distances of features so many and
            so long that they would take minutes.
        seed: Decides the draws.

    Returns:
        The figures by name.

    Raises:
        ValueError: If a name is unknown, the shapes do not fit, there are too few features (6 for all figures), or
            they are not finite.

    Example:
        >>> import torch, genimg_fast as gf
        >>> features = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
        >>> found = gf.metrics.compare_features(features[:100], features[100:])
        >>> found["coverage"].low <= found["coverage"].value <= found["coverage"].high
        True
    """
    check_features(generated, real)
    figures = list(FIGURES) if figures is None else list(figures)
    if unknown := [name for name in figures if name not in FIGURES]:
        raise ValueError(f"figures must be some of {', '.join(FIGURES)}, got {unknown[0]!r}")
    generator = torch.Generator().manual_seed(seed)
    drawn = [draw_sets(len(features), resamples, generator).to(features.device) for features in (generated, real)]
    found: dict[str, Estimate] = {}
    if "frechet_distance" in figures:
        found["frechet_distance"] = _frechet(generated, real, *drawn)
    if "kernel_distance" in figures:
        value = kernel_distance(generated, real, seed=seed).mean
        found["kernel_distance"] = estimate(value, weighted_distances(generated, real, *drawn))
    for names, judge, k in (
        (("precision", "recall"), inside_manifolds, 3),
        (("density", "coverage"), densities, 5),
    ):
        if any(name in figures for name in names):
            judged = judge(generated, real, k)
            for name, values, counts in zip(names, judged, drawn, strict=True):
                resampled = counts @ values / len(values)
                found[name] = estimate(float(values.mean()), resampled)
    return {name: found[name] for name in figures}


FIGURES = ("frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage")


def inception_score(logits: Tensor, *, splits: int = 10, resamples: int = 200, seed: int = 0) -> Estimate:
    """Compute the Inception score with a confidence interval; see :class:`InceptionScore`.

    Args:
        logits: A classifier's logits for images, (n, num_classes).
        splits: Number of splits, over whose scores the mean is taken.
        resamples: Sets to draw, with replacement, for the interval.
        seed: Decides the draws.

    Returns:
        The score. Its interval is moved like that of a Fréchet distance; see :func:`compare_features`.

    Raises:
        ValueError: If the shape is another, there are fewer logits than splits, or they are not finite.

    Example:
        >>> import torch, genimg_fast as gf
        >>> round(gf.metrics.inception_score(100 * torch.eye(5), splits=1).value, 6)
        5.0
    """
    score = InceptionScore(logits.shape[-1], splits=splits, device=logits.device)
    score.update(logits)
    value = score.compute()[0]
    counts = draw_sets(len(logits), resamples, torch.Generator().manual_seed(seed)).to(logits.device)
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    entropy = torch.special.entr(p).sum(1)
    total, filled = (torch.zeros(resamples, dtype=torch.float64, device=logits.device) for _ in range(2))
    for split in range(splits):
        weights = counts[:, split::splits]
        size = weights.sum(1).clamp(min=1)
        marginal = torch.special.entr(weights @ p[split::splits] / size[:, None]).sum(1)
        total += (marginal - weights @ entropy[split::splits] / size).exp() * (weights.sum(1) > 0)
        filled += weights.sum(1) > 0
    return estimate(value, total / filled, biased=True)


def draw_sets(n: int, sets: int, generator: torch.Generator) -> Tensor:
    """Draw sets of ``n`` out of ``n`` with replacement: how often each is in each, float64 of shape (sets, n)."""
    chosen = torch.randint(n, (sets, n), generator=generator)
    return torch.zeros(sets, n, dtype=torch.float64).scatter_add_(1, chosen, torch.ones(sets, n).double())


def estimate(value: float, resampled: Tensor, *, biased: bool = False) -> Estimate:
    """Make an estimate of a figure and its values for resampled sets."""
    bias = float(resampled.mean()) - value if biased else 0.0
    tail = (1 - CONFIDENCE) / 2
    ends = resampled.double().quantile(
        torch.tensor([tail, 1 - tail], dtype=torch.float64, device=resampled.device)
    )
    low, high = (ends - bias).tolist()
    return Estimate(value, low, high, bias)


def _frechet(generated: Tensor, real: Tensor, counts: Tensor, real_counts: Tensor) -> Estimate:
    value = frechet_distance(_gaussian(generated), _gaussian(real))
    dim = generated.shape[1]
    operations = 2 * dim**2 * (len(generated) + len(real)) + 15 * dim**3
    sets = min(len(counts), max(_FEWEST_RESAMPLES, int(_MOST_OPERATIONS / operations)))
    resampled = [
        frechet_distance(_gaussian(generated, a), _gaussian(real, b))
        for a, b in zip(counts[:sets], real_counts[:sets], strict=True)
    ]
    found = estimate(value, torch.tensor(resampled, dtype=torch.float64), biased=True)
    return found._replace(low=max(found.low, 0.0))


def _gaussian(features: Tensor, counts: Tensor | None = None) -> GaussianStatistics:
    statistics = GaussianStatistics(features.shape[1], features.device)
    chosen = torch.arange(len(features), device=features.device)
    if counts is not None:
        chosen = chosen.repeat_interleave(counts.long())
    for part in chosen.split(4096):  # few at a time: they are summed in float64
        statistics.update(features[part])
    return statistics
