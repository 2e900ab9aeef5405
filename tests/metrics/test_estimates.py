from functools import partial

import numpy
import pytest
import torch
from torch import Tensor

from genimg_fast.metrics import (
    Estimate,
    GaussianStatistics,
    compare_features,
    density_coverage,
    frechet_distance,
    inception_score,
    judge_classes,
    kernel_distance,
    neighbours,
    precision_recall,
)
from genimg_fast.metrics.estimates import FIGURES, draw_halves
from genimg_fast.metrics.kernel import weighted_distances


def two_sets(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    return torch.randn(70, 5, dtype=dtype) * 0.8 + 0.5, torch.randn(90, 5, dtype=dtype)


def test_kernel_distance_equals_torch_fidelitys() -> None:
    kid = pytest.importorskip("torch_fidelity.metric_kid")
    generated, real = two_sets()
    expected = kid.kid_features_to_metric(
        generated, real, kid_subsets=4, kid_subset_size=50, rng_seed=3, verbose=False
    )
    found = kernel_distance(generated, real, subsets=4, subset_size=50, seed=3)
    assert found == pytest.approx(tuple(expected.values()), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_and_recall_equal_torch_fidelitys(dtype: torch.dtype) -> None:
    prc = pytest.importorskip("torch_fidelity.metric_prc")
    generated, real = two_sets(dtype)
    expected = prc.prc_features_to_metric(generated, real, verbose=False)
    found = precision_recall(generated, real)
    assert found == pytest.approx((expected["precision"], expected["recall"]), abs=1e-6)
    assert 0.2 < found.recall < found.precision < 1


def test_density_and_coverage_equal_their_definition() -> None:
    """Equations 3 and 4 of Naeem et al. 2020, point by point."""
    generated, real = two_sets()
    k, x, y = 5, real.numpy(), generated.numpy()
    within = [numpy.linalg.norm(x - x[i], axis=1) for i in range(len(x))]
    radius = [numpy.sort(numpy.delete(within[i], i))[k - 1] for i in range(len(x))]
    inside = numpy.array(
        [[numpy.linalg.norm(y[j] - x[i]) <= radius[i] for i in range(len(x))] for j in range(len(y))]
    )
    found = density_coverage(generated, real, k=k)
    assert found == pytest.approx((inside.sum() / (k * len(y)), inside.any(0).mean()))


@pytest.mark.parametrize("size", [1, 3000, 1 << 20])
def test_neighbours_do_not_depend_on_the_parts(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    generated, real = two_sets()
    expected = precision_recall(generated, real), density_coverage(generated, real)
    monkeypatch.setattr(neighbours, "_BYTES", size)
    assert (precision_recall(generated, real), density_coverage(generated, real)) == expected


def test_copies_of_the_real_ones_are_among_them() -> None:
    _, real = two_sets(torch.float32)
    far = real + 1000  # where float32 has few digits left for distances
    assert precision_recall(far.clone(), far) == (1, 1)
    assert density_coverage(far.clone(), far).coverage == 1


@pytest.mark.parametrize("size", [1, 5000, 1 << 20])
def test_weighted_kernel_distances(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_BYTES", size)
    generated, real = two_sets()
    ones = torch.ones(1, 70).double(), torch.ones(1, 90).double()
    whole = kernel_distance(generated[:70], real[:70], subsets=1, subset_size=70).mean
    assert weighted_distances(generated, real[:70], ones[0], ones[0]).item() == pytest.approx(whole)
    half = (torch.arange(70) % 2).double()[None]  # weight 0 is the same as not there
    expected = weighted_distances(generated[1::2], real, torch.ones(1, 35).double(), ones[1])
    torch.testing.assert_close(weighted_distances(generated, real, half, ones[1]), expected)
    torch.testing.assert_close(weighted_distances(generated, real, 3 * half, ones[1]), expected)


def test_figures_are_those_of_their_functions_and_seeded() -> None:
    generated, real = two_sets()
    found = compare_features(generated, real, resamples=20)
    assert tuple(found) == FIGURES
    statistics = [GaussianStatistics(5) for _ in range(2)]
    for each, features in zip(statistics, (generated, real), strict=True):
        each.update(features)
    assert found["frechet_distance"].value == pytest.approx(frechet_distance(*statistics))
    assert found["kernel_distance"].value == kernel_distance(generated, real).mean
    shares = (found["precision"].value, found["recall"].value)
    assert shares == precision_recall(generated, real)
    assert (found["density"].value, found["coverage"].value) == density_coverage(generated, real)
    for figure in found.values():
        assert figure.low < figure.value < figure.high
    assert compare_features(generated, real, resamples=20) == found
    assert compare_features(generated, real, resamples=20, seed=1) != found
    only = compare_features(generated, real, figures=["recall"], resamples=20)
    assert only == {"recall": found["recall"]}


def test_intervals_cover_the_figures_of_so_many_images() -> None:
    """The means over other sets of both kinds: far above 0 for a Fréchet distance even of one distribution."""
    pairs = [(0.9 * torch.randn(60, 8), torch.randn(60, 8) + 0.3) for _ in range(40)]
    found = [compare_features(*pair, resamples=40) for pair in pairs]
    for name in FIGURES:
        figures = [each[name] for each in found]
        mean = sum(figure.value for figure in figures) / len(figures)
        assert all(figure.low <= figure.value <= figure.high for figure in figures), name
        assert sum(figure.low <= mean <= figure.high for figure in figures) >= 34, name  # of 40, 38 on average
        deviation = torch.tensor([figure.value for figure in figures]).std().item()
        width = sum(figure.high - figure.low for figure in figures) / len(figures)
        assert width < 1.5 * 2 * 1.96 * deviation, name  # nor do they cover it because they are wide
    mean, bias = (sum(each["frechet_distance"][k] for each in found) / len(found) for k in (0, 3))
    assert bias == pytest.approx(mean - 8 * (0.09 + 0.01), rel=0.4)


def test_intervals_of_very_few() -> None:
    generated = torch.randn(6, 8)
    for figure in compare_features(generated, generated + 1).values():
        assert figure.low <= figure.value <= figure.high  # not so for NaN


def test_kernel_distances_of_subsets_lie_within_their_intervals() -> None:
    generated, real = torch.randn(1400, 2), torch.randn(1400, 2)
    for seed in range(3):
        found = compare_features(generated, real, figures=["kernel_distance"], resamples=20, seed=seed)
        assert found["kernel_distance"].value == kernel_distance(generated, real, seed=seed).mean
        assert found["kernel_distance"].low < found["kernel_distance"].value < found["kernel_distance"].high


def test_score_and_its_interval() -> None:
    logits = 2 * torch.randn(300, 6)
    found = inception_score(logits, splits=3, resamples=50)
    assert found.low < found.value < found.high
    p = logits.double().softmax(1)
    splits = torch.arange(300) % 3
    halves = draw_halves(splits, 50, torch.Generator().manual_seed(0))
    assert all(half[splits == k].sum() == 50 for half in halves for k in range(3))
    scores = []
    for half in halves:
        chosen = [(half & (splits == k)).nonzero()[:, 0] for k in range(3)]
        each = [(p[c] * (p[c].log() - p[c].mean(0).log())).sum(1).mean().exp() for c in chosen]
        scores.append(torch.stack(each).mean().item())
    assert found.bias == pytest.approx(sum(scores) / 50 - found.value)


@pytest.mark.parametrize("figure", ["inception_score", "agreement", "variation"])
def test_intervals_of_classes_cover(figure: str) -> None:
    def judge(seed: int) -> Estimate:
        generator = torch.Generator().manual_seed(seed)
        draw = partial(torch.randn, generator=generator)
        if figure == "inception_score":
            return inception_score(2 * draw(120, 4), splits=2, resamples=40)
        labels = torch.arange(100) % 5
        judged = torch.where(torch.rand(100, generator=generator) < 0.9, labels, 0)
        report = judge_classes(labels, judged, draw(100, 4) * 0.7, labels, draw(100, 4), resamples=40)
        return getattr(report, figure)

    found = [judge(seed) for seed in range(40)]
    mean = sum(each.value for each in found) / 40
    assert sum(each.low <= mean <= each.high for each in found) >= 34
    deviation = torch.tensor([each.value for each in found]).std().item()
    assert sum(each.high - each.low for each in found) / 40 < 1.5 * 2 * 1.96 * deviation


def test_bad_sets() -> None:
    ok = torch.zeros(6, 2)
    with pytest.raises(ValueError, match=r"generated must be floating-point features of shape \(n, dim\)"):
        precision_recall(torch.zeros(6), ok)
    with pytest.raises(ValueError, match=r"real must be floating-point .* got torch\.int64 of shape"):
        kernel_distance(ok, ok.long())
    with pytest.raises(ValueError, match="different lengths, 2 and 3"):
        density_coverage(ok, torch.zeros(6, 3))
    with pytest.raises(ValueError, match="real features are not finite"):
        kernel_distance(ok, ok / 0)
    with pytest.raises(ValueError, match=r"k must lie in 1\.\.5, below the number of points, got 6"):
        precision_recall(ok, ok, k=6)
    with pytest.raises(ValueError, match="subsets of at least 2 features, got 100 of 1"):
        kernel_distance(ok[:1], ok)
    with pytest.raises(ValueError, match=r"figures must be some of .* got 'fid'"):
        compare_features(ok, ok, figures=["fid"])
    with pytest.raises(ValueError, match=r"of one type, got torch\.float64 and torch\.float32"):
        compare_features(ok.double(), ok)
    with pytest.raises(ValueError, match="resamples must be at least 2, got 0"):
        compare_features(ok, ok, resamples=0)
    with pytest.raises(ValueError, match="resamples must be at least 2, got 1"):
        inception_score(ok, splits=1, resamples=1)
