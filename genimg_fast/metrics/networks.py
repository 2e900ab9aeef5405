"""Networks that turn images into features."""

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from genimg_fast import nn
from genimg_fast._images import check_layout, check_values
from genimg_fast.data.optional import optional_import


class FeatureNetwork(nn.Module):
    """Images in [-1, 1] to features and class logits: what the metrics of this package need.

    A subclass sets the attributes and writes :meth:`forward`.

    Attributes:
        dim: Length of a feature vector.
        num_classes: Number of class logits; the Inception score is at most this. 0 for a network without logits.
        identity: Says which network it is, with its weights: figures of different ones do not compare.

    Example:
        >>> import torch, genimg_fast as gf
        >>> class MeanColour(gf.metrics.FeatureNetwork):
        ...     dim, num_classes, identity = 3, 3, "mean colour"
        ...
        ...     def forward(self, images):
        ...         means = images.mean((2, 3))
        ...         return means, means
        >>> gf.metrics.extract_features([torch.zeros(10, 3, 8, 8)], MeanColour()).features.shape
        torch.Size([10, 3])
    """

    dim: int
    num_classes: int
    identity: str

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features, (batch, dim), and logits, (batch, num_classes), of images of any size."""
        raise NotImplementedError


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
    these figures do not compare with them: see :class:`FidelityNetwork`.

    Args:
        weights: File with the ``state_dict`` of ``torchvision.models.inception_v3``.
        download: Whether to take torchvision's ImageNet weights instead, which it downloads if they are not there.

    Raises:
        FileNotFoundError: If the file is not there, or none is given and nothing may be downloaded.
        ValueError: If it holds something else.
        ImportError: If torchvision is missing.

    Example:
        >>> import tempfile, torch, torchvision, genimg_fast as gf
        >>> untrained = torchvision.models.inception_v3(weights=None, init_weights=False)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     torch.save(untrained.state_dict(), f"{folder}/inception_v3.pth")
        ...     network = gf.metrics.InceptionNetwork(f"{folder}/inception_v3.pth")
        >>> features, logits = network(torch.zeros(1, 3, 64, 64))
        >>> features.shape, logits.shape
        (torch.Size([1, 2048]), torch.Size([1, 1000]))
    """

    dim, num_classes = 2048, 1000

    def __init__(self, weights: str | Path | None = None, *, download: bool = False) -> None:
        super().__init__()
        if weights is None and not download:
            raise FileNotFoundError(
                "Inception v3 needs a file of weights, or leave to download them: --weights or --download (in "
                "Python, weights or download=True)"
            )
        models = optional_import("torchvision.models")
        if weights is None:
            self.network = models.inception_v3(weights=models.Inception_V3_Weights.IMAGENET1K_V1)
        else:
            self.network = models.inception_v3(weights=None, init_weights=False, transform_input=True)
            with _blaming(weights, "inception_v3"):
                self.network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        self.identity = f"inception_v3 of torchvision, {weights or 'IMAGENET1K_V1'}"
        self._features: list[Tensor] = []
        self.network.avgpool.register_forward_hook(lambda module, args, output: self._features.append(output))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features, (batch, 2048), and logits, (batch, 1000), of images of any size, grey or colour."""
        check_layout(images)
        check_values(images)
        images = images.expand(-1, 3, -1, -1)
        # transform_input takes what was normalised with torchvision's means and deviations.
        mean, std = images.new_tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 1, 3, 1, 1)
        resized = interpolate(images, (299, 299), mode="bilinear", antialias=True)
        logits = self.network(((resized + 1) / 2 - mean) / std)
        return self._features.pop().flatten(1), logits


class FidelityNetwork(FeatureNetwork):
    """Inception v3 as published FIDs, KIDs and Inception scores take it: 2,048 features, 1,008 classes.

    torch-fidelity's "inception-v3-compat", with its own way of resizing, on weights converted from TensorFlow:
    https://github.com/toshas/torch-fidelity. Images become bytes first, as if they had been written to files.

    Args:
        weights: File of the weights, ``weights-inception-2015-12-05-6726825d.pth`` of torch-fidelity's release
            v0.2.0. Nothing is downloaded.

    Attributes:
        published: Whether these are those weights, to the byte: figures compare with published ones if so, and if
            the images, their number and their size do as well.

    Raises:
        FileNotFoundError: If the file is not there.
        ValueError: If it holds something else.
        ImportError: If torch-fidelity is missing.

    Example:
        >>> import torch, genimg_fast as gf
        >>> try:
        ...     gf.metrics.FidelityNetwork("weights-inception-2015-12-05-6726825d.pth")
        ... except FileNotFoundError:
        ...     print("put the file there first")
        put the file there first
    """

    dim, num_classes = 2048, 1008

    def __init__(self, weights: str | Path) -> None:
        super().__init__()
        content = Path(weights).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        self.published = digest.startswith("6726825d")
        of = "the published weights" if self.published else f"other weights than published, {digest[:8]}"
        self.identity = f"Inception v3 of torch-fidelity, {of}"
        extractor: Any = optional_import("torch_fidelity.feature_extractor_inceptionv3", "metrics")
        with _blaming(weights, "torch-fidelity's inception-v3-compat"):
            # It would run code that is in the file, so it gets one that holds tensors alone.
            safe = io.BytesIO()
            torch.save(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), safe)
            safe.seek(0)
            self.network = extractor.FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=safe
            )
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features, (batch, 2048), and logits, (batch, 1008), of images of any size, grey or colour."""
        check_layout(images)
        check_values(images)
        pixels = images.float().clamp(-1, 1).add(1).mul(127.5).round().byte()
        features, logits = self.network(pixels.expand(-1, 3, -1, -1))
        return features, logits


@contextmanager
def _blaming(weights: str | Path, what: str) -> Iterator[None]:
    """Let whatever a file of other content raises name the file; torch.load alone raises half a dozen errors."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise ValueError(f"{weights} does not hold the weights of {what}: {error}") from error
