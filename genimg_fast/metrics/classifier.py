"""A small classifier of the data at hand, and what it says of images of requested classes."""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from genimg_fast import nn
from genimg_fast._images import check_layout, check_values
from genimg_fast.data import ImageDataset, batches
from genimg_fast.data.dataset import content_hash
from genimg_fast.data.progress import bar
from genimg_fast.metrics.estimates import ERRORS, Estimate, around, draw_halves
from genimg_fast.metrics.features import cached
from genimg_fast.metrics.networks import FeatureNetwork

_BATCH, _WIDTH, _LARGEST_SIDE = 128, 24, 32
_HELD_OUT = 0.2
_MOST_STEPS, _FEWEST_STEPS, _EPOCHS = 1500, 200, 36


class ClassifierNetwork(FeatureNetwork):
    """A small classifier, trained on labelled images when it is made: features without a download.

    Four fifths of the images train it, always alike: in some seconds, or a minute on two cores for 60,000 images.
    The others say how many it reads right. It looks at images of at most 32 pixels a side.

    Args:
        dataset: Images of two classes or more.
        steps: Steps of training; by default as many as the images need, 1,500 at most.
        cache: Folder to keep the weights in, in a file named by a hash of the images; None to train always.
        device: Where to train, and to stay.
        progress: Whether to show a progress bar, if stderr is a terminal.

    Attributes:
        accuracy: Share of held-out images whose class it finds.
        held_out: Number of these images.

    Raises:
        ValueError: If there are fewer than two classes, or too few images.
        OSError: If the file cannot be read or written.
        ImportError: If tqdm, which shows progress, is missing and wanted.

    Example:
        >>> import torch, genimg_fast as gf
        >>> network = gf.metrics.ClassifierNetwork(gf.data.load_dataset("digits", image_size=8), steps=50)
        >>> features, logits = network(torch.zeros(4, 1, 32, 32))
        >>> features.shape, logits.shape
        (torch.Size([4, 64]), torch.Size([4, 10]))
        >>> network.held_out
        359
    """

    dim = 64

    def __init__(
        self,
        dataset: ImageDataset,
        *,
        steps: int | None = None,
        cache: str | Path | None = None,
        device: torch.device | str = "cpu",
        progress: bool = False,
    ) -> None:
        super().__init__()
        self.num_classes = len(dataset.class_names)
        if self.num_classes < 2:
            raise ValueError(f"a classifier needs images of at least 2 classes, got {self.num_classes}")
        training, held_out = dataset.split(_HELD_OUT)
        channels, height, width = dataset[:1][0].shape[1:]
        self.channels, self.held_out = channels, len(held_out)
        self.side = max(8, min(_LARGEST_SIDE, height, width) // 8 * 8)
        if steps is None:
            steps = max(_FEWEST_STEPS, min(_MOST_STEPS, _EPOCHS * len(training) // _BATCH))
        digest = content_hash(f"{steps} steps, {dataset.class_names}", dataset.images, dataset.labels)
        self.identity = f"classifier {digest[:8]}"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            w = _WIDTH
            self.main = nn.Sequential(
                nn.Conv2d(channels, w, 3, stride=2, padding=1), nn.BatchNorm2d(w), nn.ReLU(),
                nn.Conv2d(w, 2 * w, 3, stride=2, padding=1), nn.BatchNorm2d(2 * w), nn.ReLU(),
                nn.Conv2d(2 * w, 4 * w, 3, stride=2, padding=1), nn.BatchNorm2d(4 * w), nn.ReLU(),
                nn.Flatten(), nn.Linear(4 * w * (self.side // 8) ** 2, self.dim), nn.ReLU(),
            )  # fmt: skip
            self.head = nn.Linear(self.dim, self.num_classes)
            self.to(device)

            def train() -> dict[str, Tensor]:
                self._train(training, steps, progress)
                return self.state_dict()

            if cache is None:
                train()
            else:
                names = set(self.state_dict())
                self.load_state_dict(cached(Path(cache) / f"classifier-{digest[:32]}.pt", names, train))
        self.eval().requires_grad_(False)
        self.accuracy = self.share_right(held_out)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features, (batch, 64), and logits, (batch, num_classes), of images of any size and channels."""
        check_layout(images)
        check_values(images)
        images = images.mean(1, keepdim=True) if self.channels == 1 else images.expand(-1, self.channels, -1, -1)
        if images.shape[2:] != (self.side, self.side):
            images = interpolate(images, (self.side, self.side), mode="bilinear", antialias=True)
        features = self.main(images)
        return features, self.head(features)

    @torch.no_grad()
    def share_right(self, dataset: ImageDataset) -> float:
        """Compute the share of labelled images whose class it finds."""
        device = self.head.weight.device
        right = 0
        for images, labels in dataset.pieces(torch.arange(len(dataset)).split(256)):
            right += int((self(images.to(device))[1].argmax(1) == labels.to(device)).sum())
        return right / len(dataset)

    def _train(self, training: ImageDataset, steps: int, progress: bool) -> None:
        stream = batches(training, min(_BATCH, len(training)))
        optimizer = torch.optim.Adam(self.parameters(), 4e-3)
        device = self.head.weight.device
        for step in bar(range(steps), "training a classifier", "step", progress):
            optimizer.param_groups[0]["lr"] = 4e-3 * min(1.0, (step + 1) / 50, (steps - step) / (0.7 * steps))
            images, labels = (each.to(device) for each in next(stream))
            most = self.side // 16
            down, right = torch.randint(-most, most + 1, (2,)).tolist()
            loss = cross_entropy(self(images.roll((down, right), (2, 3)))[1], labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


class ClassReport(NamedTuple):
    """What :func:`judge_classes` returns.

    Attributes:
        agreement: Share of the samples that are judged to be of the class that was asked for.
        variation: How much samples of a class vary, over how much real ones do: standard deviations, averaged over
            features and classes. Near 0 for a generator that knows one image of each class; None where no class
            has two samples and two real images.
        agreement_by_class: The share for each class; NaN for one without samples.

    Example:
        >>> import torch, genimg_fast as gf
        >>> labels, features = torch.arange(8) % 2, torch.randn(8, 3)
        >>> gf.metrics.judge_classes(labels, labels, features, labels, features).agreement_by_class
        [1.0, 1.0]
    """

    agreement: Estimate
    variation: Estimate | None
    agreement_by_class: list[float]


def judge_classes(
    requested: Tensor,
    judged: Tensor,
    features: Tensor,
    real_labels: Tensor,
    real_features: Tensor,
    *,
    resamples: int = 200,
    seed: int = 0,
) -> ClassReport:
    """Judge whether samples are of the classes that were asked for, and vary within them as real images do.

    Args:
        requested: The class that each sample is to have, int64 of shape (n,), n > 0.
        judged: The class that a classifier finds, (n,).
        features: Features of the samples, (n, dim): a network's, or pixels.
        real_labels: Classes of real images, (m,).
        real_features: Their features, (m, dim).
        resamples: Halves of each class to draw for the interval of the variation, at least 2; see
            :func:`compare_features`.
        seed: Decides the draws.

    Returns:
        Agreement, with Wilson's interval of a share of independent samples, and variation.

    Raises:
        ValueError: If the shapes do not fit, or there are too few resamples.

    Example:
        >>> import torch, genimg_fast as gf
        >>> requested, real = torch.arange(100) % 2, torch.randn(100, 3)
        >>> report = gf.metrics.judge_classes(requested, requested, real / 2, requested, real)
        >>> report.agreement.value, round(report.variation.value, 6)
        (1.0, 0.5)
    """
    if not (len(requested) == len(judged) == len(features) > 0 and len(real_labels) == len(real_features) > 0):
        lengths = (len(requested), len(judged), len(features), len(real_labels), len(real_features))
        raise ValueError(
            f"labels and features must be of the same sets, got {', '.join(map(str, lengths))} of them"
        )
    generator = torch.Generator().manual_seed(seed)
    halves, real_halves = (draw_halves(labels, resamples, generator) for labels in (requested, real_labels))
    right = (requested == judged).double()
    classes = int(max(requested.max(), real_labels.max())) + 1
    sums = torch.zeros(classes, dtype=torch.float64, device=right.device).index_add_(0, requested, right)
    known = [labels.bincount(minlength=classes).cpu() for labels in (requested, real_labels)]
    both = ((known[0] > 1) & (known[1] > 1)).nonzero()[:, 0].to(features.device)
    variation = None
    if len(both) > 0:
        mine = _spreads(features, requested, halves.double(), both)
        reals = _spreads(real_features, real_labels, real_halves.double(), both)
        ratios = mine / reals.clamp(min=1e-12)
        variation = around(float(ratios[0]), float(ratios[1:].std()), lowest=0)
    return ClassReport(
        agreement=_share(float(right.mean()), len(right)),
        variation=variation,
        agreement_by_class=(sums.cpu() / known[0]).tolist(),
    )


def _share(value: float, n: int) -> Estimate:
    """Make an estimate of a share of ``n``, with Wilson's interval, which has a width at 0 and 1, too."""
    z = ERRORS**2 / n
    middle, error = value + z / 2, (z * (value * (1 - value) + z / 4)) ** 0.5
    return Estimate(value, min(value, (middle - error) / (1 + z)), max(value, (middle + error) / (1 + z)))


def _spreads(features: Tensor, labels: Tensor, counts: Tensor, classes: Tensor) -> Tensor:
    """Mean standard deviation of a feature within a class: of the set itself, then of the resampled ones."""
    sums = torch.zeros(int(labels.max()) + 1, features.shape[1], dtype=torch.float64, device=features.device)
    of_class = labels.bincount().double()[:, None]
    features = features.double()
    features = features - (sums.index_add(0, labels, features) / of_class.clamp(min=1))[labels]
    spreads = []
    for weights in (torch.ones_like(counts[0]), *counts):
        weighted, n = features * weights[:, None], labels.bincount(weights)[:, None]
        mean, square = sums.index_add(0, labels, weighted), sums.index_add(0, labels, weighted * features)
        variance = (square - mean.square() / n.clamp(min=1)) / (n - 1).clamp(min=1)
        spreads.append(variance.clamp(min=0).sqrt()[classes].mean())
    return torch.stack(spreads)
