"""From samples to a verdict: intervals by the bootstrap (Efron 1979), first over processes, then over rounds."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

Verdict = Literal["faster", "slower", "same", "cannot tell"]
SAME = 0.02  # share of the time that nobody would call a difference
RESAMPLES = 1000


class Ratio(NamedTuple):
    """How many times as fast: an estimate, and the interval that holds 95 of 100 such estimates.

    Attributes:
        value: The estimate.
        low: Where the interval begins.
        high: Where it ends.

    Example:
        >>> import genimg_fast as gf
        >>> ratio = gf.bench.Ratio(2.1, 2.0, 2.3)
        >>> print(ratio, ratio.verdict)
        2.10 [2.00, 2.30] faster
    """

    value: float
    low: float
    high: float

    @property
    def verdict(self) -> Verdict:
        """What the interval says: "same" if all of it is within 2 percent of 1."""
        if self.low >= 1 / (1 + SAME) and self.high <= 1 + SAME:
            return "same"
        if self.low > 1:
            return "faster"
        return "slower" if self.high < 1 else "cannot tell"

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def ratio_of(peer: Sequence[Sequence[float]], ours: Sequence[Sequence[float]], seed: int = 0) -> Ratio:
    """Estimate by how many times ours is faster than the peer.

    Rounds are pairs: whatever slowed the machine slowed both. Processes differ by where memory came to lie, which
    rounds of one process do not show, so that processes are drawn first, then rounds within each.

    Args:
        peer: Seconds, a sequence for each process, empty for one without it.
        ours: Likewise, of the same rounds.
        seed: Of the resampling.

    Returns:
        The median over processes of the median over rounds of the ratio, with its interval.

    Example:
        >>> from genimg_fast.bench.statistics import ratio_of
        >>> round(ratio_of([[2.0, 2.2, 1.8]] * 3, [[1.0, 1.1, 0.9]] * 3).value, 3)
        2.0
    """
    return Ratio(*np.exp(_interval(_logarithms(peer, ours), np.random.default_rng(seed))).tolist())


def change_of(
    before: tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]],
    after: tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]],
    seed: int = 0,
) -> Ratio:
    """Estimate by how many times a second measurement is faster than a first one, each beside a yardstick.

    Args:
        before: Seconds of the first one, and of a yardstick in the same rounds.
        after: Likewise of the second one.
        seed: Of the resampling.

    Returns:
        The ratio of the two, both counted in the yardstick's time, with an interval.

    Example:
        >>> from genimg_fast.bench.statistics import change_of
        >>> yardstick = [[4.0, 4.4]] * 3
        >>> round(change_of(([[2.0, 2.2]] * 3, yardstick), ([[1.0, 1.1]] * 3, yardstick)).value, 3)
        2.0
    """
    generator = np.random.default_rng(seed)
    logarithms = [_logarithms(yardstick, own) for own, yardstick in (before, after)]
    if min(map(len, logarithms)) < 2:  # which says nothing about what another process would have found
        return Ratio(math.exp(_middle(logarithms[1]) - _middle(logarithms[0])), 0.0, math.inf)
    (first, second), draws = map(_middle, logarithms), [_draws(each, generator) for each in logarithms]
    low, high = np.quantile(draws[1] - draws[0], (0.025, 0.975))
    change = second - first
    return Ratio(*np.exp([change, min(low, change), max(high, change)]).tolist())


def _logarithms(peer: Sequence[Sequence[float]], ours: Sequence[Sequence[float]]) -> list[np.ndarray]:
    def logarithms(times: Sequence[float]) -> np.ndarray:
        return np.log(np.maximum(np.asarray(times), 1e-9))  # no clock shows less

    # A file may have the first rounds alone of some.
    pairs = [(p, o, min(len(p), len(o))) for p, o in zip(peer, ours, strict=True)]
    return [logarithms(p[:n]) - logarithms(o[:n]) for p, o, n in pairs if n]


def _middle(processes: Sequence[np.ndarray]) -> float:
    return float(np.median([np.median(rounds) for rounds in processes]))


# Student's t of 95 percent over the normal distribution's, by degrees of freedom.
_STUDENT = (6.48, 2.20, 1.62, 1.42, 1.31, 1.25, 1.21, 1.18, 1.15, 1.14)


def _widening(processes: int) -> float:
    """What resampling few processes leaves out: they differ by more than they show, and by how much is a guess."""
    if processes == 1:
        return 1.0  # of rounds alone
    freedom = processes - 1
    student = _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else 1 + 1.25 / freedom
    return student * math.sqrt(processes / freedom)


def _draws(processes: list[np.ndarray], generator: np.random.Generator) -> np.ndarray:
    """Medians of the medians of resampled rounds in resampled processes, as far off the middle as they may be."""
    medians = np.stack(
        [
            np.median(rounds[generator.integers(0, len(rounds), (RESAMPLES, len(rounds)))], axis=1)
            for rounds in processes
        ]
    )
    chosen = generator.integers(0, len(processes), (len(processes), RESAMPLES))
    draws, middle = np.median(medians[chosen, np.arange(RESAMPLES)], axis=0), _middle(processes)
    return middle + _widening(len(processes)) * (draws - middle)


def _interval(processes: list[np.ndarray], generator: np.random.Generator) -> tuple[float, float, float]:
    low, high = np.quantile(_draws(processes, generator), (0.025, 0.975))
    middle = _middle(processes)
    return middle, min(float(low), middle), max(float(high), middle)
