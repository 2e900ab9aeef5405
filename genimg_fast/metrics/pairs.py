"""How near images come to those that they should equal; images in [-1, 1] throughout."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genimg_fast._images import check_layout, check_values
from genimg_fast.data.optional import optional_import


def psnr(images: Tensor, target: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio of each image.

    Args:
        images: Images in [-1, 1], of shape (batch, channels, height, width).
        target: What they should be, of the same shape.

    Returns:
        Decibels, of shape (batch,); infinite for equal images.

    Raises:
        ValueError: If the shapes differ, or images are integers, have their channels last or, on the CPU, are far
            outside [-1, 1].

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.metrics.psnr(torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 0.2))  # a tenth of the range
        tensor([20.])
    """
    _check(images, target)
    error = (images.double() - target.double()).square().flatten(1).mean(1)
    return (10 * (4 / error).log10()).to(images.dtype)


def ssim(images: Tensor, target: Tensor) -> Tensor:
    """Compute the structural similarity of each image, with the Gaussian window of 11 pixels of its paper.

    Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity". Computed by
    torchmetrics.

    Args:
        images: Images in [-1, 1], of shape (batch, channels, height, width), at least 11 pixels a side.
        target: What they should be, of the same shape.

    Returns:
        1 for equal images, of shape (batch,).

    Raises:
        ValueError: If the shapes differ, or images are smaller, integers, have their channels last or, on the
            CPU, are far outside [-1, 1].
        ImportError: If torchmetrics is missing.

    Example:
        >>> import torch, genimg_fast as gf
        >>> image = torch.rand(1, 3, 16, 16)
        >>> gf.metrics.ssim(image, image)
        tensor([1.])
    """
    _check(images, target)
    if min(images.shape[2:]) < 11:
        size = "x".join(map(str, images.shape[2:]))
        raise ValueError(f"images must have at least 11 pixels a side, the size of the window, got {size}")
    similarity = optional_import("torchmetrics.functional.image", "metrics").structural_similarity_index_measure
    # Its term for brightness is made for pixels from 0 on.
    return similarity((images + 1) / 2, (target + 1) / 2, data_range=1.0, reduction="none").view(-1)


class PerceptualSimilarity:
    """LPIPS: a distance between images that agrees with people's, computed by the ``lpips`` package.

    Zhang et al. 2018, https://arxiv.org/abs/1801.03924. The backbone's weights are torchvision's, and nothing is
    downloaded unasked.

    Args:
        backbone: ``"alex"``, ``"vgg"`` or ``"squeeze"``; or a module of the caller's that takes two batches of
            images in [-1, 1] and returns their distances.
        device: Where the images are.
        download: Whether torchvision may download the backbone's weights if they are not there.

    Raises:
        ValueError: If there is no such backbone.
        FileNotFoundError: If its weights are not there and may not be downloaded.
        ImportError: If a package is missing.

    Example:
        >>> import torch, genimg_fast as gf
        >>> distance = gf.metrics.PerceptualSimilarity(lambda a, b: (a - b).abs().mean((1, 2, 3)))
        >>> distance(torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8))
        tensor([1., 1.])
    """

    def __init__(self, backbone: Any = "alex", *, device: Any = "cpu", download: bool = False) -> None:
        if isinstance(backbone, str):
            if backbone not in _BACKBONES:
                raise ValueError(f"backbone must be one of {', '.join(_BACKBONES)}, or a module, got {backbone!r}")
            url = optional_import("torchvision.models").get_weight(_BACKBONES[backbone]).url
            file = Path(torch.hub.get_dir(), "checkpoints", Path(url).name)
            if not download and not file.is_file():
                raise FileNotFoundError(f"there is no {file}: put {url} there or pass download=True")
            backbone = optional_import("lpips", "metrics").LPIPS(net=backbone, verbose=False).eval().to(device)
        self._distance = backbone

    def __call__(self, images: Tensor, target: Tensor) -> Tensor:
        """Return the distance of each pair, (batch,); 0 for equal images."""
        _check(images, target)
        return self._distance(images, target).flatten()


# The weights that each of the networks of lpips begins with.
_BACKBONES = {
    "alex": "AlexNet_Weights.IMAGENET1K_V1",
    "vgg": "VGG16_Weights.IMAGENET1K_V1",
    "squeeze": "SqueezeNet1_1_Weights.IMAGENET1K_V1",
}


def _check(images: Tensor, target: Tensor) -> None:
    if images.dim() != 4 or images.shape != target.shape:
        raise ValueError(
            "images and target must have the same shape (batch, channels, height, width), "
            f"got {tuple(images.shape)} and {tuple(target.shape)}"
        )
    check_layout(images)
    check_values(images)
    check_values(target, "target")
