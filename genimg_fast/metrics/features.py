"""Networks that turn images into features, and the statistics of the features of a set of images."""

import io
import os
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, interpolate

from genimg_fast import nn
from genimg_fast.data import ImageDataset, batches, load_dataset
from genimg_fast.data.dataset import content_hash
from genimg_fast.data.optional import optional_import
from genimg_fast.metrics.distribution import GaussianStatistics


class FeatureNetwork(nn.Module):
    """Images in [-1, 1] to features and class logits: what the metrics of this package need.

    A subclass sets the three attributes and ``forward``.
    """

    dim: int  # length of a feature vector
    num_classes: int  # 0: no logits
    identity: str  # says which network it is: figures of different ones do not compare

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features, (batch, dim), and logits, (batch, num_classes)."""
        raise NotImplementedError


class DigitsNetwork(FeatureNetwork):
    """A small classifier of handwritten digits, trained on scikit-learn's: features without a download.

    It reads digits like those, which fill the image; of MNIST's, which have a margin, 4 of 10. Of what it does not
    read (:meth:`share_read`) it has no meaningful features.

    It is trained when it is made, in some seconds, always alike: on four fifths of the digits, moved by up to two
    pixels.

    Args:
        steps: Steps of training.

    Raises:
        ImportError: If scikit-learn is missing.

    Example:
        >>> import torch, genimg_fast as gf
        >>> network = gf.metrics.DigitsNetwork(steps=1)
        >>> features, logits = network(torch.zeros(4, 1, 32, 32))
        >>> features.shape, logits.shape
        (torch.Size([4, 64]), torch.Size([4, 10]))
    """

    dim, num_classes = 64, 10

    def __init__(self, steps: int = 400) -> None:
        super().__init__()
        self.identity = f"digits classifier, {steps} steps"
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.main = nn.Sequential(
                nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
                nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
                nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
                nn.Flatten(), nn.Linear(64 * 16, self.dim), nn.ReLU(),
            )  # fmt: skip
            self.head = nn.Linear(self.dim, self.num_classes)
            self._train(steps)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features, (batch, 64), and logits, (batch, 10), of images of any size and channels."""
        features = self.main(interpolate(images.mean(1, keepdim=True), (16, 16), mode="bilinear", antialias=True))
        return features, self.head(features)

    @torch.no_grad()
    def share_read(self, dataset: ImageDataset, *, most: int = 1000) -> float:
        """Compute the share of labelled images of digits, 0 to 9, whose class it finds.

        Args:
            dataset: The images.
            most: Number of images to look at; from all over the data set.
        """
        indices = torch.linspace(0, len(dataset) - 1, min(most, len(dataset))).long()
        images, labels = dataset[indices]
        device = next(self.parameters()).device
        found = torch.cat([self(part.to(device))[1].argmax(1) for part in images.split(256)])
        return (found.to(labels.device) == labels).double().mean().item()

    def _train(self, steps: int) -> None:
        data = load_dataset("digits", image_size=16)
        used = torch.randperm(len(data))[len(data) // 5 :]
        stream = batches(ImageDataset(data.images[used], data.labels[used]), 128)
        optimizer = torch.optim.Adam(self.parameters(), 2e-3)
        for _ in range(steps):
            images, labels = next(stream)
            down, right = torch.randint(-2, 3, (2,)).tolist()
            loss = cross_entropy(self(images.roll((down, right), (2, 3)))[1], labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


class RandomNetwork(FeatureNetwork):
    """An untrained convolutional network, always the same: features of any images, without a download.

    Random features tell apart sets of images that a classifier of other images is blind to: Naeem et al. 2020,
    https://arxiv.org/abs/2002.09797. They know nothing of what images show. There are no classes.

    Example:
        >>> import torch, genimg_fast as gf
        >>> features, logits = gf.metrics.RandomNetwork()(torch.zeros(4, 3, 32, 32))
        >>> features.shape, logits.shape
        (torch.Size([4, 64]), torch.Size([4, 0]))
    """

    dim, num_classes = 64, 0
    identity = "untrained network"

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(64 * 64, self.dim),
        )  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        for layer in self.main:
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                # Of variance 2 / inputs: what comes out varies as much as what goes in (He et al. 2015).
                deviation = (2 / layer.weight[0].numel()) ** 0.5
                layer.weight = nn.Parameter(torch.randn(layer.weight.shape, generator=generator) * deviation)
                layer.bias = nn.Parameter(torch.zeros(len(layer.weight)))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features, (batch, 64), and no logits, (batch, 0), of images of any size, grey or colour."""
        images = images.expand(-1, 3, -1, -1)
        features = self.main(interpolate(images, (32, 32), mode="bilinear", antialias=True))
        return features, features[:, :0]


class InceptionNetwork(FeatureNetwork):
    """Inception v3 of torchvision: 2,048 features, 1,000 classes of ImageNet.

    Szegedy et al. 2016, https://arxiv.org/abs/1512.00567. Published FIDs use weights converted from TensorFlow, so
    these figures do not compare with them.

    Args:
        weights: File with the ``state_dict`` of ``torchvision.models.inception_v3``.
        download: Whether to take torchvision's ImageNet weights instead, which it downloads if they are not there.

    Raises:
        FileNotFoundError: If the file is not there, or none is given and nothing may be downloaded.
        ValueError: If it holds something else.
        ImportError: If torchvision is missing.
    """

    dim, num_classes = 2048, 1000

    def __init__(self, weights: str | Path | None = None, *, download: bool = False) -> None:
        super().__init__()
        if weights is None and not download:
            raise FileNotFoundError("Inception v3 needs a file of weights, or leave to download them")
        models = optional_import("torchvision.models")
        if weights is None:
            self.network = models.inception_v3(weights=models.Inception_V3_Weights.IMAGENET1K_V1)
        else:
            self.network = models.inception_v3(weights=None, init_weights=False, transform_input=True)
            try:
                self.network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
            except OSError:
                raise
            except Exception as error:  # torch.load documents none; a damaged file raises half a dozen of them
                raise ValueError(f"{weights} does not hold the weights of inception_v3: {error}") from error
        self.identity = f"inception_v3 of torchvision, {weights or 'IMAGENET1K_V1'}"
        self._features: list[Tensor] = []
        self.network.avgpool.register_forward_hook(lambda module, args, output: self._features.append(output))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features, (batch, 2048), and logits, (batch, 1000), of images of any size, grey or colour."""
        images = images.expand(-1, 3, -1, -1)
        # transform_input takes what was normalised with torchvision's means and deviations.
        mean, std = images.new_tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
        resized = interpolate(images, (299, 299), mode="bilinear", antialias=True)
        logits = self.network(((resized + 1) / 2 - mean) / std)
        return self._features.pop().flatten(1), logits


@torch.no_grad()
def feature_statistics(images: Iterable[Tensor], network: FeatureNetwork) -> GaussianStatistics:
    """Compute the statistics of the features of images that come in batches.

    Args:
        images: Batches in [-1, 1], on the network's device if it has parameters.
        network: What makes the features.

    Returns:
        Mean and covariance.

    Example:
        >>> import torch, genimg_fast as gf
        >>> network = gf.metrics.DigitsNetwork(steps=1)
        >>> feature_statistics(torch.zeros(10, 1, 32, 32).split(4), network).count
        10
    """
    statistics = None
    for batch in images:
        features = network(batch)[0]
        if statistics is None:
            statistics = GaussianStatistics(network.dim, features.device)
        statistics.update(features)
    return GaussianStatistics(network.dim) if statistics is None else statistics


def real_statistics(
    dataset: ImageDataset, network: FeatureNetwork, *, cache: str | Path | None = None
) -> GaussianStatistics:
    """Compute the statistics of a data set, or take them from the last time.

    Args:
        dataset: The images.
        network: What makes the features.
        cache: Folder of files named by a hash of the images and of the network's weights; None to compute always.
            A damaged file is replaced.

    Returns:
        Mean and covariance.

    Raises:
        OSError: If a file cannot be read or written.
    """
    device = next((value.device for value in network.state_dict().values()), dataset.images.device)

    def compute() -> GaussianStatistics:
        pieces = torch.arange(len(dataset)).split(256)
        return feature_statistics((dataset[piece][0].to(device) for piece in pieces), network)

    if cache is None:
        return compute()
    digest = content_hash(network.identity, dataset.images, *network.state_dict().values())
    file = Path(cache) / f"{digest[:32]}.pt"
    if file.is_file():
        content = io.BytesIO(file.read_bytes())
        statistics = GaussianStatistics(network.dim, device)
        try:
            statistics.load_state_dict(torch.load(content, map_location="cpu", weights_only=True))
            return statistics
        except Exception:  # torch.load documents none; a damaged file raises half a dozen of them
            pass
    statistics = compute()
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}.tmp")  # other processes may write the same statistics
    torch.save(statistics.state_dict(), temporary)
    temporary.replace(file)
    return statistics
