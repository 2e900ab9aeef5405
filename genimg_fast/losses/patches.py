"""Distance of the patches of images, as sets: a loss that knows textures without a network.

All k x k patches of an image are points of k * k * channels dimensions. Their sliced Wasserstein distance from
those of another image is that of their projections on random directions, which on a line is had by sorting: the
n-th smallest goes to the n-th smallest. Projecting all patches is a convolution. Elnekave, Weiss 2022,
https://arxiv.org/abs/2203.11862; Rabin et al. 2011, https://doi.org/10.1007/978-3-642-24785-9_37.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate

from genimg_fast._images import check_floating, check_layout


class SlicedWassersteinLoss(nn.Module):
    """Squared sliced Wasserstein distance between the sets of all patches of two images.

    Elnekave, Weiss 2022, https://arxiv.org/abs/2203.11862. Directions are new, orthonormal and uniformly
    distributed at every call; the loss is an unbiased estimate of the mean over all of them. Images of different
    sizes compare by quantiles, interpolated. Half-precision images are projected and compared in float32.

    Args:
        patch_size: Height and width of patches, in pixels; of 1, it is a distance of colours.
        num_projections: Directions at each call; more make it less noisy.
        generator: Source of the directions, on the CPU; None for torch's global one.

    Raises:
        ValueError: If one of the numbers is below 1.

    Example:
        >>> import torch, genimg_fast as gf
        >>> loss = gf.losses.SlicedWassersteinLoss(patch_size=5, num_projections=16)
        >>> output = torch.rand(1, 3, 48, 48, requires_grad=True)
        >>> loss(output, torch.rand(1, 3, 32, 40)).backward()
    """

    def __init__(
        self, patch_size: int = 7, *, num_projections: int = 64, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if patch_size < 1 or num_projections < 1:
            raise ValueError(
                f"patch_size and num_projections must be at least 1, got {patch_size} and {num_projections}"
            )
        self.patch_size, self.num_projections, self.generator = patch_size, num_projections, generator

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            output: Images, of shape (batch, channels, height, width), in any range.
            target: Images of as many channels, one for all or one for each; height and width may differ.

        Returns:
            The mean over the batch, the directions and the patches: a scalar.

        Raises:
            ValueError: If the images do not fit, or are smaller than a patch.
        """
        for name, images in (("output", output), ("target", target)):
            check_floating(images, name)
            check_layout(images, name=name)
            if min(images.shape[2:]) < self.patch_size:
                size = "x".join(str(n) for n in images.shape[:1:-1])
                raise ValueError(
                    f"{name} must be at least of a patch's size, {self.patch_size} pixels, got {size}"
                )
        if target.shape[1] != output.shape[1] or len(target) not in (1, len(output)):
            raise ValueError(
                "target must have the channels of output, and 1 image or as many, "
                f"got {tuple(target.shape)} and {tuple(output.shape)}"
            )
        dtype = torch.promote_types(output.dtype, torch.float32)
        filters = random_filters(output.shape[1], self.patch_size, self.num_projections, self.generator)
        filters = filters.to(output.device, dtype)
        with torch.autocast(output.device.type, enabled=False):
            ours, theirs = (sort(conv2d(images.to(dtype), filters).flatten(2)) for images in (output, target))
        return (ours - quantiles(theirs, ours.shape[2])).square().mean()


def random_filters(
    channels: int, patch_size: int, number: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draw filters of unit norm, uniformly distributed, and orthogonal as far as there are as many dimensions.

    Args:
        channels: Of the images.
        patch_size: Height and width.
        number: How many.
        generator: Source of the random numbers, on the CPU; None for torch's global one.

    Returns:
        Filters for ``conv2d``, (number, channels, patch_size, patch_size) on the CPU, in float64.
    """
    dimensions = channels * patch_size**2
    rows: list[Tensor] = []
    while (missing := number - sum(map(len, rows))) > 0:
        normal = torch.randn(dimensions, min(missing, dimensions), generator=generator, dtype=torch.float64)
        orthogonal, upper = torch.linalg.qr(normal)
        rows.append((orthogonal * upper.diagonal().sign()).T)  # signs of QR are no random ones
    return torch.cat(rows).view(number, channels, patch_size, patch_size)


def sort(values: Tensor) -> Tensor:
    """Sort along the last dimension; gradients go to where the values came from."""
    return values.gather(-1, argsort(values.detach()))


def argsort(values: Tensor) -> Tensor:
    """Find the order along the last dimension."""
    if values.is_cpu and values.dtype in (torch.float32, torch.float64):
        return torch.from_numpy(values.numpy().argsort(-1))  # vectorised: five times as fast as torch's
    return values.argsort(-1)


def quantiles(ordered: Tensor, number: int) -> Tensor:
    """Take equidistant quantiles of sorted values, (batch, rows, n) to (batch, rows, number)."""
    if ordered.shape[2] == number:
        return ordered
    return interpolate(ordered, number, mode="linear", align_corners=False)
