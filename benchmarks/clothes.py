"""Fashion-MNIST (Xiao et al. 2017, https://arxiv.org/abs/1708.07747), and a classifier to judge by."""

from pathlib import Path

import torch
from torch import Tensor

import genimg_fast as gf
from genimg_fast.data import ImageDataset

CLASSES = ["T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot"]


def read_splits(folder: Path, image_size: int, class_names: list[str] | None = None) -> list[ImageDataset]:
    """Read the training images and the test images from a folder with the four IDX files of both."""
    test_file = folder / "t10k-images-idx3-ubyte"
    if not test_file.exists():
        test_file = test_file.with_name(f"{test_file.name}.gz")
    read = [gf.data.load_dataset(path, image_size=image_size) for path in (folder, test_file)]
    return [ImageDataset(each.images, each.labels, class_names=class_names or each.class_names) for each in read]


class Judge:
    """A classifier that has seen real training images only, and what it makes of real test images."""

    def __init__(self, training: ImageDataset, test: ImageDataset, *, steps: int | None = None) -> None:
        self.network = gf.metrics.ClassifierNetwork(training, steps=steps or 3000, progress=True)
        images, self.labels = test[:]
        self.features, judged = self.look(images)
        self.right = judged == self.labels
        self.accuracy = self.right.double().mean().item()

    @torch.no_grad()
    def look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features, and the class that each image is read as."""
        features, logits = (torch.cat(each) for each in zip(*map(self.network, images.split(500)), strict=True))
        return features, logits.argmax(1)

    def report(self, samples: Tensor, requested: Tensor) -> tuple[float, float]:
        """Print how many samples are of the requested class, and how much they vary.

        Returns:
            The share that is of the requested class, and the smallest variation of a class.
        """
        features, judged = self.look(samples)
        right = judged == requested
        by_class = variation((features, requested, right), (self.features, self.labels, self.right))
        print(f"  classifier on real test images: {self.accuracy:.1%} right")
        print(f"  {len(samples):,} samples of a requested class: {right.double().mean():.1%} right")
        print("  share right, of real test images, and variation over theirs:")
        for k, name in enumerate(CLASSES):
            shares = [each.double().mean() for each in (right[requested == k], self.right[self.labels == k])]
            print(f"    {name:8}  {shares[0]:4.0%}  {shares[1]:4.0%}  {by_class[k]:.2f}")
        return right.double().mean().item(), min(by_class)


def variation(samples: tuple[Tensor, Tensor, Tensor], real: tuple[Tensor, Tensor, Tensor]) -> list[float]:
    """Compute how much samples of each class vary, over how much real images do.

    That is the mean distance of two of them in the features of a classifier. Only those count that it reads as of
    their class: failures, which lie far away, do not pass for variety.

    Args:
        samples: Features, (n, dim), classes, (n,), and whether they are read as of these.
        real: Likewise, of real images.

    Returns:
        A ratio for each class of the real images; 0 where fewer than two samples count.
    """
    of_each = [
        [_mean_distance(features[right & (labels == k)]) for k in range(int(real[1].max()) + 1)]
        for features, labels, right in (samples, real)
    ]
    return [ours / max(theirs, 1e-12) for ours, theirs in zip(*of_each, strict=True)]


def _mean_distance(features: Tensor) -> float:
    return torch.pdist(features.double()).mean().item() if len(features) > 1 else 0.0
