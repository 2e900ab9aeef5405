import math
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import Tensor

from genimg_fast.metrics import GaussianStatistics, InceptionScore, frechet_distance


def statistics(features: Tensor, pieces: int = 1) -> GaussianStatistics:
    result = GaussianStatistics(features.shape[1])
    for piece in features.tensor_split(pieces):
        result.update(piece)
    return result


@pytest.mark.parametrize("pieces", [1, 3, 200])
def test_statistics_do_not_depend_on_the_batches(pieces: int) -> None:
    torch.manual_seed(0)
    features = torch.randn(100, 5) + 1000  # far from zero: E[x^2] - E[x]^2 would show
    found = statistics(features, pieces)
    torch.testing.assert_close(found.mean, features.double().mean(0))
    torch.testing.assert_close(found.covariance, features.double().T.cov())


def test_distance_of_gaussians_in_closed_form() -> None:
    """With commuting covariances it is |shift|^2 + sum (sigma_a - sigma_b)^2."""
    torch.manual_seed(0)
    a = torch.randn(5000, 3, dtype=torch.float64)
    a -= a.mean(0)
    a = a @ torch.linalg.inv(torch.linalg.cholesky(a.T.cov()).T)  # exactly N(0, I) in its statistics
    sigma, shift = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([3.0, 0.0, -1.0]).double()
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    expected = float(shift.square().sum() + (sigma - 1).square().sum())
    found = frechet_distance(statistics(a @ rotation), statistics((a * sigma + shift) @ rotation))
    assert found == pytest.approx(expected, rel=1e-10)
    assert frechet_distance(statistics(a), statistics(a)) < 1e-8


def test_distance_equals_torchmetrics() -> None:
    fid = pytest.importorskip("torchmetrics.image.fid")
    torch.manual_seed(0)
    real, fake = torch.rand(2, 60, 3, 4, 4)

    class Features(torch.nn.Module):
        num_features = 8

        def forward(self, images: Tensor) -> Tensor:
            return images.flatten(1)[:, :8].double().sin()

    metric = fid.FrechetInceptionDistance(Features(), normalize=True, input_img_size=(3, 4, 4))
    metric.set_dtype(torch.float64)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    network = Features()
    found = frechet_distance(statistics(network(real)), statistics(network(fake)))
    assert found == pytest.approx(metric.compute().item(), rel=1e-6)


def test_distance_and_score_equal_torch_fidelitys() -> None:
    fid, isc = (pytest.importorskip(f"torch_fidelity.metric_{name}") for name in ("fid", "isc"))
    torch.manual_seed(0)
    sets = [statistics(torch.randn(90, 8) * scale) for scale in (1, 2)]
    theirs = [{"mu": s.mean.numpy(), "sigma": s.covariance.numpy()} for s in sets]
    (expected,) = fid.fid_statistics_to_metric(*theirs, verbose=False).values()
    assert frechet_distance(*sets) == pytest.approx(expected, rel=1e-9)
    logits = torch.randn(60, 7)
    score = InceptionScore(7, splits=3)
    score.update(logits)
    in_splits = torch.cat([logits[k::3] for k in range(3)])  # theirs are blocks
    expected = isc.isc_features_to_metric(in_splits, splits=3, shuffle=False).values()
    assert score.compute() == pytest.approx(tuple(expected), rel=1e-9)


def test_few_samples_in_many_dimensions() -> None:
    """Singular covariances, of which some implementations make complex numbers or NaN."""
    torch.manual_seed(0)
    a, b = statistics(torch.randn(5, 64)), statistics(torch.randn(5, 64) + 1)
    assert math.isfinite(frechet_distance(a, b))
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-6)


def test_score_of_known_classifiers() -> None:
    constant, sure = InceptionScore(7, splits=2), InceptionScore(7, splits=1)
    constant.update(torch.randn(7).expand(20, 7))
    assert constant.compute() == pytest.approx((1, 0))
    for row in 1e4 * torch.eye(7):
        sure.update(row.unsqueeze(0))
    assert sure.compute() == pytest.approx((7, 0))


def test_score_does_not_depend_on_the_batches() -> None:
    torch.manual_seed(0)
    logits = torch.randn(50, 4)
    scores = [InceptionScore(4, splits=3) for _ in range(2)]
    scores[0].update(logits)
    for piece in logits.split(7):
        scores[1].update(piece)
    assert scores[0].compute() == pytest.approx(scores[1].compute())
    p = logits.double().softmax(1)
    each = [(q * (q.log() - q.mean(0).log())).sum(1).mean().exp() for q in (p[k::3] for k in range(3))]
    values = torch.stack(each)
    assert scores[0].compute() == pytest.approx((values.mean().item(), values.std(correction=0).item()))


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"expected features of shape \(n, 3\), got \(2, 4\)"):
        GaussianStatistics(3).update(torch.zeros(2, 4))
    with pytest.raises(ValueError, match="features are not finite"):
        GaussianStatistics(3).update(torch.full((2, 3), math.nan))
    with pytest.raises(ValueError, match="at least 2 feature vectors, got 1"):
        frechet_distance(statistics(torch.zeros(1, 3)), statistics(torch.zeros(2, 3)))
    with pytest.raises(ValueError, match="different lengths, 3 and 4"):
        frechet_distance(statistics(torch.zeros(2, 3)), statistics(torch.zeros(2, 4)))
    with pytest.raises(ValueError, match="at least one image for each of its 10 splits"):
        InceptionScore(3).compute()
    with pytest.raises(ValueError, match=r"expected logits of shape \(n, 3\), got \(2, 2\)"):
        InceptionScore(3).update(torch.zeros(2, 2))
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="logits are not finite"):
            InceptionScore(3).update(torch.full((2, 3), bad))


IN_PROCESSES = """
    import torch
    import torch.distributed as dist
    from genimg_fast.metrics import GaussianStatistics, InceptionScore

    dist.init_process_group("gloo")
    values = torch.arange(40.0).sin().view(10, 4)
    mine, score = GaussianStatistics(4), InceptionScore(4, splits=10)
    for images in (1, 2):  # 5 on either process, and all splits have one
        score.update(values[dist.get_rank() :: 2])
        assert score.reduce()._sums[:, 0].tolist() == score.reduce().reduce()._sums[:, 0].tolist() == [images] * 10
    mine.update(values[dist.get_rank() :: 2])
    merged = mine.reduce()
    assert (mine.reduce().count, merged.reduce().count, mine.count) == (10, 10, 5)
    torch.testing.assert_close(merged.covariance, values.double().T.cov())
    dist.destroy_process_group()
"""


def test_two_processes_count_everything_once(tmp_path: Path) -> None:
    script = tmp_path / "reduce.py"
    script.write_text(textwrap.dedent(IN_PROCESSES))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_was_reduced_takes_no_more() -> None:
    values = torch.randn(6, 4)
    mine, score = statistics(values), InceptionScore(4, splits=2)
    score.update(values)
    assert torch.equal(mine.reduce().covariance, mine.covariance)
    assert score.reduce().compute() == score.compute()
    for merged in (mine.reduce(), score.reduce()):
        with pytest.raises(ValueError, match=r"what reduce\(\) returned takes no more batches"):
            merged.update(values)
