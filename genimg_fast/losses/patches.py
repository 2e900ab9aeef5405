"""Distance of the patches of images, as sets: a loss that knows textures without a network.

All k x k patches of an image are points of k * k * channels dimensions. Their sliced Wasserstein distance from
those of another image is that of their projections on random directions, which on a line is had by sorting: the
n-th smallest goes to the n-th smallest. Projecting all patches is a convolution. Elnekave, Weiss 2022,
https://arxiv.org/abs/2203.11862; Rabin et al. 2011, https://doi.org/10.1007/978-3-642-24785-9_37.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate

from genimg_fast._images import check_floating, check_layout

BRIGHTNESS_SHARE = 0.2  # beside a distance of patches, as content and style weigh alike to the eye
_STYLE_SIZES = (1, 3, 7)
_STRUCTURE_REDUCTIONS = (2, 4)
_COLOURS = 3.0  # weight of the distribution of colours, or there are some that the style has not
_FLAT = 3e-3  # variance of a style in which there is nothing to see at this scale
_LITTLE = 0.03  # what noise deviates by in an image of nothing, which is not to be enlarged
_PROJECTIONS = 2**23  # that are sorted at a time
_DIRECTIONS, _QUANTILES = 256, 4096  # that are kept of a style, for each size and scale


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


class PatchStyle:
    """Squared sliced Wasserstein distance from the patches of given images, of several sizes at several scales.

    What is fixed is computed once: quantiles of projections on a few hundred directions, of which each call draws
    some. Images of a batch are one set of patches. Patches of more than a pixel are taken without their mean
    colour, which would outweigh their texture, and a term is relative to the variance of the given projections: so
    sizes, scales and colours count alike.

    Args:
        images: The images that are the style, each of shape (1, channels, height, width).
        weights: Of each; between two styles there are their quantiles' means (Rabin et al. 2011).
        reductions: By how much images are reduced: 1, 2 ....
        num_projections: Directions of each size and scale at a call.
        generator: Source of the fixed directions, on the CPU; None for torch's global one.

    Example:
        >>> import torch
        >>> from genimg_fast.losses.patches import PatchStyle
        >>> loss = PatchStyle([torch.rand(1, 3, 64, 64)], reductions=(1, 2))
        >>> loss(torch.rand(2, 3, 48, 48, requires_grad=True)).backward()
    """

    def __init__(
        self,
        images: Sequence[Tensor],
        *,
        weights: Sequence[float] = (1.0,),
        reductions: Sequence[int] = (1, 2, 4),
        num_projections: int = 16,
        generator: torch.Generator | None = None,
    ) -> None:
        self.num_projections = num_projections
        self._terms: list[tuple[int, Tensor, Tensor, Tensor]] = []
        for by in reductions:
            reduced = [shrunk(image, by) for image in images]
            for size in _STYLE_SIZES:
                if size > min(min(image.shape[2:]) for image in reduced):
                    continue
                filters = random_filters(images[0].shape[1], size, _DIRECTIONS, generator).to(images[0])
                if size > 1:
                    filters = filters - filters.mean((2, 3), keepdim=True)
                known = images[0].new_zeros(_DIRECTIONS, _QUANTILES)
                for image, weight in zip(reduced, weights, strict=True):
                    at_a_time = max(1, min(32, _PROJECTIONS // image[0, 0].numel()))
                    found = [
                        quantiles(sort(conv2d(image, some).flatten(2)), _QUANTILES)
                        for some in filters.split(at_a_time)
                    ]
                    known += weight / sum(weights) * torch.cat(found, 1)[0]
                self._terms.append((by, filters, known, known.var(1).mean() + _FLAT))

    def __call__(self, images: Tensor, *, stride: int = 1, generator: torch.Generator | None = None) -> Tensor:
        """Compute the loss.

        Args:
            images: Of shape (batch, channels, height, width), in float32.
            stride: Pixels from one patch that is compared to the next; more take less time. Where they begin is
                random.
            generator: Random numbers, on the CPU; None for torch's global one, of the images' device.

        Returns:
            The mean over sizes, scales, directions and patches: a scalar. Patches larger than the images are left
            out.
        """
        terms = self.terms(images, stride=stride, generator=generator)
        return sum(terms, images.new_zeros(())) / self.weight(images)

    def weight(self, images: Tensor) -> float:
        """Sum the weights of the terms that such images have."""
        return max(1.0, sum(self._weight(filters) for _, filters, _, _ in self._seen(images)))

    def terms(self, images: Tensor, *, stride: int, generator: torch.Generator | None) -> Iterator[Tensor]:
        """Compute the loss, times :meth:`weight`, in parts: what is differentiated at once leaves the memory."""
        for by, filters, known, variance in self._seen(images):
            reduced = shrunk(images, by)
            step = max(1, stride // by)
            if step > 1:
                room = [min(step, side - filters.shape[-1] + 1) for side in reduced.shape[2:]]
                top, left = (int(torch.randint(most, (), generator=generator)) for most in room)
                reduced = reduced[:, :, top:, left:]
            device = images.device if generator is None else torch.device("cpu")
            drawn = torch.randint(_DIRECTIONS, (self.num_projections,), generator=generator, device=device)
            drawn = drawn.to(images.device)
            ours = sort(conv2d(reduced, filters[drawn], stride=step).transpose(0, 1).flatten(1))
            theirs = quantiles(known[drawn][None], ours.shape[1])[0]
            yield self._weight(filters) * (ours - theirs).square().mean() / variance

    def _seen(self, images: Tensor) -> list[tuple[int, Tensor, Tensor, Tensor]]:
        return [term for term in self._terms if term[1].shape[-1] <= max(1, min(images.shape[2:]) // term[0])]

    @staticmethod
    def _weight(filters: Tensor) -> float:
        return _COLOURS if filters.shape[-1] == 1 else 1.0


def brightness_distance(output: Tensor, target: Tensor) -> Tensor:
    """Compare the structure of images: how the brightness of their reduced forms deviates from its mean.

    Args:
        output: Images, of shape (batch, channels, height, width).
        target: Likewise.

    Returns:
        The mean squared difference, in units of the deviations: a scalar.
    """
    total = output.new_zeros(())
    for by in _STRUCTURE_REDUCTIONS:
        normalised = []
        for images in (output, target):
            small = shrunk(images.mean(1, keepdim=True), by)
            deviation, mean = torch.std_mean(small, (1, 2, 3), keepdim=True, correction=0)
            normalised.append((small - mean) / (deviation + _LITTLE))
        total = total + (normalised[0] - normalised[1]).square().mean()
    return total / len(_STRUCTURE_REDUCTIONS)


def shrunk(images: Tensor, by: int) -> Tensor:
    """Reduce images, smoothly, to a part of their height and width."""
    if by == 1:
        return images
    return interpolate(images, [max(1, side // by) for side in images.shape[2:]], mode="bilinear", antialias=True)


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
