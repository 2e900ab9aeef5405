"""Fréchet distance and Inception score: how near a set of images comes to another, in the eyes of a network.

Both are computed as the images come, in any number of batches and processes, over any network that turns images
into vectors (features) or into logits. Figures of different networks do not compare.
"""

import torch
import torch.distributed as dist
from torch import Tensor


class GaussianStatistics:
    """Mean and covariance of feature vectors, in float64, from batches of any size.

    Args:
        dim: Length of a feature vector.
        device: Where the features are.

    Example:
        >>> import torch, genimg_fast as gf
        >>> statistics = gf.metrics.GaussianStatistics(3)
        >>> statistics.update(torch.randn(100, 3))
        >>> statistics.update(torch.randn(7, 3))
        >>> statistics.count, statistics.mean.shape, statistics.covariance.shape
        (107, torch.Size([3]), torch.Size([3, 3]))
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu") -> None:
        self._merged = False
        self.count = 0
        self.mean = torch.zeros(dim, dtype=torch.float64, device=device)
        self._scatter = torch.zeros(dim, dim, dtype=torch.float64, device=device)  # around the mean

    def update(self, features: Tensor) -> None:
        """Add feature vectors, (n, dim).

        Raises:
            ValueError: If they have another shape or are not finite, or if :meth:`reduce` made these statistics.
        """
        _check_not_merged(self._merged)
        if features.dim() != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"expected features of shape (n, {len(self.mean)}), got {tuple(features.shape)}")
        if not features.isfinite().all():
            raise ValueError("features are not finite")
        if len(features) > 0:
            features = features.detach().double()
            mean = features.mean(0)
            centred = features - mean
            self._add(len(features), mean, centred.T @ centred)

    def _add(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        total, shift = self.count + count, mean - self.mean
        self._scatter += scatter + torch.outer(shift, shift) * (self.count * count / total)
        self.mean += shift * (count / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance, (dim, dim).

        Raises:
            ValueError: If there are fewer than two vectors.
        """
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 feature vectors, got {self.count}")
        return self._scatter / (self.count - 1)

    def reduce(self) -> "GaussianStatistics":
        """Merge the statistics of all processes, each of which has to call this.

        Returns:
            The statistics of all, alike in every process. These here stay as they are and may go on; those
            returned take no more features, and their ``reduce`` returns themselves: nothing counts twice.
        """
        if self._merged:
            return self
        dim = len(self.mean)
        merged = GaussianStatistics(dim, self.mean.device)
        mine = torch.cat((self.mean.new_tensor([float(self.count)]), self.mean, self._scatter.flatten()))
        parts = [mine]
        if dist.is_initialized():
            parts = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, mine)
        for part in parts:
            if part[0] > 0:
                merged._add(int(part[0]), part[1 : dim + 1], part[dim + 1 :].view(dim, dim))
        merged._merged = True
        return merged


def frechet_distance(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """Compute the Fréchet distance between the Gaussians of two sets of features.

    ``|mean_a - mean_b|^2 + trace(cov_a + cov_b - 2 (cov_a cov_b)^(1/2))``; with the features of Inception v3 it is
    the FID: Heusel et al. 2017, https://arxiv.org/abs/1706.08500. It is biased: small sets are farther apart than
    large ones, so only figures of sets of equal sizes compare.

    Args:
        a: Statistics of one set.
        b: Statistics of the other.

    Returns:
        The squared distance, 0 for equal statistics.

    Raises:
        ValueError: If the features have different lengths or a set has fewer than two vectors.

    Example:
        >>> import torch, genimg_fast as gf
        >>> a, b = gf.metrics.GaussianStatistics(2), gf.metrics.GaussianStatistics(2)
        >>> a.update(torch.tensor([[0.0, 0.0], [0.0, 2.0], [2.0, 0.0], [2.0, 2.0]]))
        >>> b.update(torch.tensor([[3.0, 0.0], [3.0, 2.0], [5.0, 0.0], [5.0, 2.0]]))
        >>> round(gf.metrics.frechet_distance(a, b), 6)  # moved by 3
        9.0
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features have different lengths, {len(a.mean)} and {len(b.mean)}")
    # The eigenvalues of cov_a cov_b are those of the symmetric root_a cov_b root_a, which has real ones for sure.
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ b.covariance.to(root.device) @ root).clamp(min=0).sqrt().sum()
    traces = a.covariance.trace() + b.covariance.trace().to(root.device)
    distance = (a.mean - b.mean.to(root.device)).square().sum() + traces - 2 * cross
    return max(float(distance), 0.0)


class InceptionScore:
    """Inception score: exp E KL(p(y|x) || p(y)), between 1 and the number of classes.

    Salimans et al. 2016, https://arxiv.org/abs/1606.03498: high where a classifier is sure of each image and finds
    all classes equally often. Images go to the splits in turns; where there are several processes, each starts at
    another split.

    Args:
        num_classes: Number of classes.
        splits: Number of splits, over whose scores mean and standard deviation are taken.
        device: Where the logits are.

    Raises:
        ValueError: If a number is below 1.

    Example:
        >>> import torch, genimg_fast as gf
        >>> score = gf.metrics.InceptionScore(num_classes=5, splits=1)
        >>> score.update(100 * torch.eye(5))  # sure of each, and one of every class
        >>> mean, deviation = score.compute()
        >>> round(mean, 6)
        5.0
    """

    def __init__(self, num_classes: int, *, splits: int = 10, device: torch.device | str = "cpu") -> None:
        if num_classes < 1 or splits < 1:
            raise ValueError(f"num_classes and splits must be at least 1, got {num_classes} and {splits}")
        self.splits = splits
        self._merged = False
        # Processes that have few images each fill all splits only if they do not all begin with the first.
        self._next = dist.get_rank() * splits // dist.get_world_size() if dist.is_initialized() else 0
        # For each split: number of images, sum of their entropies with a minus, sums of their probabilities.
        self._sums = torch.zeros(splits, 2 + num_classes, dtype=torch.float64, device=device)

    def update(self, logits: Tensor) -> None:
        """Add the classifier's logits for images, (n, num_classes).

        Raises:
            ValueError: If they have another shape or are not finite, or if :meth:`reduce` made this score.
        """
        _check_not_merged(self._merged)
        if logits.dim() != 2 or logits.shape[1] != self._sums.shape[1] - 2:
            raise ValueError(f"expected logits of shape (n, {self._sums.shape[1] - 2}), got {tuple(logits.shape)}")
        if not logits.isfinite().all():
            raise ValueError("logits are not finite")
        log_p = logits.detach().double().log_softmax(1)
        p = log_p.exp()
        entropy = torch.where(p > 0, p * log_p, 0.0).sum(1, keepdim=True)
        split = (torch.arange(len(logits), device=logits.device) + self._next) % self.splits
        self._sums.index_add_(0, split, torch.cat((torch.ones_like(entropy), entropy, p), 1))
        self._next = (self._next + len(logits)) % self.splits

    def reduce(self) -> "InceptionScore":
        """Merge the sums of all processes, each of which has to call this.

        Returns:
            The score of all images, alike in every process. This one here stays as it is and may go on; the one
            returned takes no more logits, and its ``reduce`` returns itself: nothing counts twice.
        """
        if self._merged:
            return self
        merged = InceptionScore(self._sums.shape[1] - 2, splits=self.splits, device=self._sums.device)
        merged._sums.copy_(self._sums)
        if dist.is_initialized():
            dist.all_reduce(merged._sums)
        merged._merged = True
        return merged

    def compute(self) -> tuple[float, float]:
        """Return mean and (population) standard deviation of the splits' scores.

        Raises:
            ValueError: If a split has no image.
        """
        count, entropy, p = self._sums.split([1, 1, self._sums.shape[1] - 2], dim=1)
        if (count == 0).any():
            raise ValueError(f"the score needs at least one image for each of its {self.splits} splits")
        mean = p / count
        marginal = torch.where(mean > 0, mean * mean.log(), 0.0).sum(1)
        scores = (entropy[:, 0] / count[:, 0] - marginal).exp()
        return float(scores.mean()), float(scores.std(correction=0))


def _check_not_merged(merged: bool) -> None:
    if merged:
        raise ValueError("what reduce() returned takes no more batches: update the one that it was called on")
