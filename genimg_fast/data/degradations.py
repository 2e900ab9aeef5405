"""What spoils pictures: noise, blur, fewer pixels, compression, holes; each a small callable, and any in a row.

All take images in [0, 1] of shape (..., channels, height, width) on any device, of any floating-point dtype, and
return new ones there; those of 16 bits are computed in float32, and integers are refused, as white would not be 1
among them. Noise is not clipped: its mean and variance are what is asked for, and some pixels leave [0, 1]. Random
numbers come from a generator on the CPU, PyTorch's global one if there is none, so they are the same for every
device.
"""

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg_fast._images import check_floating, check_has_numbers
from genimg_fast.data.optional import optional_import

__all__ = [
    "JPEG",
    "Blur",
    "Compose",
    "Downsample",
    "GaussianNoise",
    "Masked",
    "PoissonNoise",
    "RandomHoles",
    "SaltAndPepper",
    "gaussian_kernel",
    "motion_kernel",
]

# Noise stays within; of images in 0..255, none but black ones do.
_FAR_OUTSIDE = 50


def _check_images(images: Tensor) -> None:
    check_floating(images, "images", " in [0, 1]")
    check_has_numbers(images, "images")
    if images.dim() < 3:
        raise ValueError(f"images must be of shape (..., channels, height, width), got {tuple(images.shape)}")
    if images.is_cpu and images.numel():  # a GPU would have to be waited for
        lowest, highest = (float(limit) for limit in images.detach().aminmax())
        if not (lowest > -_FAR_OUTSIDE and highest < _FAR_OUTSIDE):  # NaN is not, either
            raise ValueError(f"images must be in [0, 1], noise aside, got {lowest:g} to {highest:g}")


class _Degradation:
    """What degradations have in common: what they take."""

    def __call__(self, images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Degrade images.

        Args:
            images: In [0, 1], noise aside, of shape (..., channels, height, width).
            generator: Random numbers, of the CPU; by default torch's global ones.

        Returns:
            Images of their dtype.

        Raises:
            ValueError: If these are no such images.
        """
        _check_images(images)
        wide = images.to(torch.promote_types(images.dtype, torch.float32))
        with torch.autocast(images.device.type, enabled=False):
            return self._degrade(wide, generator).to(images.dtype)

    def _degrade(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        raise NotImplementedError


class Compose(_Degradation):
    """Degradations one after another.

    Args:
        *steps: The degradations, or functions of images and ``generator``, the first one first.

    Example:
        >>> import torch, genimg_fast as gf
        >>> from genimg_fast.data.degradations import *
        >>> camera = Compose(Blur(gaussian_kernel(1.0)), Downsample(2), GaussianNoise(5), JPEG(60))
        >>> camera(torch.rand(3, 32, 48)).shape
        torch.Size([3, 16, 24])
    """

    def __init__(self, *steps: Callable[..., Tensor]) -> None:
        self.steps = steps

    def _degrade(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        for step in self.steps:
            images = step(images, generator=generator)
        return images


@dataclass(frozen=True)
class GaussianNoise(_Degradation):
    """Independent Gaussian noise on every pixel and channel.

    Args:
        sigma: Standard deviation, in levels of 255.

    Raises:
        ValueError: If ``sigma`` is negative.

    Example:
        >>> import torch
        >>> from genimg_fast.data.degradations import GaussianNoise
        >>> noisy = GaussianNoise(25)(torch.full((1, 64, 64), 0.5), generator=torch.Generator().manual_seed(0))
        >>> round(noisy.std().item() * 255)
        25
    """

    sigma: float

    def __post_init__(self) -> None:
        if not self.sigma >= 0:
            raise ValueError(f"sigma must be at least 0, got {self.sigma}")

    def _degrade(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        return images + _normal(images, generator) * (self.sigma / 255)


@dataclass(frozen=True)
class PoissonNoise(_Degradation):
    """Shot noise: each pixel is a count of photons, whose variance is its mean.

    Args:
        peak: Mean count of a white pixel: the lower, the noisier.

    Raises:
        ValueError: If ``peak`` is not positive.

    Example:
        >>> import torch
        >>> from genimg_fast.data.degradations import PoissonNoise
        >>> PoissonNoise(30)(torch.zeros(1, 2, 2)).tolist()  # where it is black, there are no photons
        [[[0.0, 0.0], [0.0, 0.0]]]
    """

    peak: float

    def __post_init__(self) -> None:
        if not self.peak > 0:
            raise ValueError(f"peak must be above 0, got {self.peak}")

    def _degrade(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        means = images.detach().cpu().clamp_min(0) * self.peak
        return (torch.poisson(means, generator=generator) / self.peak).to(images)


@dataclass(frozen=True)
class SaltAndPepper(_Degradation):
    """Pixels that are lost to black or white, all their channels alike.

    Args:
        share: Share of pixels that are lost, half of them to either.

    Raises:
        ValueError: If ``share`` is not in [0, 1].

    Example:
        >>> import torch
        >>> from genimg_fast.data.degradations import SaltAndPepper
        >>> SaltAndPepper(1.0)(torch.full((3, 8, 8), 0.5)).unique()
        tensor([0., 1.])
    """

    share: float

    def __post_init__(self) -> None:
        _check_share(self.share)

    def _degrade(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        chance = _uniform(images, generator)
        black, white = chance < self.share / 2, chance >= 1 - self.share / 2
        return images.masked_fill(black, 0).masked_fill(white, 1)


@dataclass(frozen=True)
class Blur(_Degradation):
    """Convolution with a kernel; behind the border is the picture's mirror image.

    Args:
        kernel: Weights of shape (height, width), both odd, such as of :func:`gaussian_kernel` and
            :func:`motion_kernel`.

    Raises:
        ValueError: If the kernel has another shape, or is larger than the picture allows.

    Example:
        >>> import torch
        >>> from genimg_fast.data.degradations import Blur
        >>> Blur(torch.full((3, 3), 1 / 9))(torch.eye(3)[None])[0, 1, 1]
        tensor(0.3333)
    """

    kernel: Tensor

    def __post_init__(self) -> None:
        check_kernel(self.kernel)

    def _degrade(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        planes = images.reshape(-1, 1, *images.shape[-2:])
        reach = [side // 2 for side in self.kernel.shape]
        if any(r >= side for r, side in zip(reach, planes.shape[2:], strict=True)):
            raise ValueError(
                f"kernel must be smaller than twice the picture, {tuple(planes.shape[2:])}, "
                f"got {tuple(self.kernel.shape)}"
            )
        padded = F.pad(planes, [reach[1], reach[1], reach[0], reach[0]], mode="reflect")
        return F.conv2d(padded, self.kernel.to(images).flip(0, 1)[None, None]).view_as(images)


@dataclass(frozen=True)
class Downsample(_Degradation):
    """Fewer pixels: a bicubic filter as wide as the factor asks for, as Pillow and MATLAB have it.

    Rows and columns that do not fill up a pixel are left out, and what leaves [0, 1] is clipped.

    Args:
        factor: Pixels of the picture to a pixel of the result, along each side.

    Raises:
        ValueError: If ``factor`` is below 1, or larger than the picture.

    Example:
        >>> import torch
        >>> from genimg_fast.data.degradations import Downsample
        >>> Downsample(2)(torch.rand(3, 32, 49)).shape
        torch.Size([3, 16, 24])
    """

    factor: int

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"factor must be at least 1, got {self.factor}")

    def _degrade(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        height, width = (side // self.factor for side in images.shape[-2:])
        if min(height, width) < 1:
            raise ValueError(f"factor must be at most the picture's size, got {self.factor}")
        whole = images[..., : height * self.factor, : width * self.factor]
        planes = whole.reshape(-1, 1, *whole.shape[-2:])
        small = F.interpolate(planes, (height, width), mode="bicubic", antialias=True).clamp(0, 1)
        return small.view(*images.shape[:-2], height, width)


@dataclass(frozen=True)
class JPEG(_Degradation):
    """Compression to JPEG and back, by Pillow: colours at half the resolution, as its default is.

    Args:
        quality: From 1 to 100, as cameras and programs have it.

    Raises:
        ValueError: If ``quality`` is not in 1..100, or images have neither 1 nor 3 channels.
        ImportError: If Pillow is missing.

    Example:
        >>> import torch
        >>> from genimg_fast.data.degradations import JPEG
        >>> JPEG(20)(torch.rand(3, 32, 48)).shape
        torch.Size([3, 32, 48])
    """

    quality: int

    def __post_init__(self) -> None:
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality must be from 1 to 100, got {self.quality}")

    def _degrade(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        if images.shape[-3] not in (1, 3):
            raise ValueError(f"images must have 1 or 3 channels, got {images.shape[-3]}")
        pixels = images.detach().clamp(0, 1).mul(255).round().byte().cpu()
        spoilt = [self._compress(each) for each in pixels.reshape(-1, *images.shape[-3:])]
        return torch.stack(spoilt).view(images.shape).to(images).div(255) if spoilt else images.clone()

    def _compress(self, pixels: Tensor) -> Tensor:
        Image = optional_import("PIL.Image", "editing")
        numpy = optional_import("numpy")
        file = io.BytesIO()
        Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).contiguous().numpy()).save(
            file, "JPEG", quality=self.quality
        )
        read = torch.from_numpy(numpy.array(Image.open(file)))
        return read.view(*read.shape[:2], -1).permute(2, 0, 1)


@dataclass(frozen=True)
class Masked(_Degradation):
    """Pixels that are gone: black, all their channels, at given places.

    Args:
        mask: 1 where they are gone and 0 elsewhere, of shape (1, height, width).

    Raises:
        ValueError: If the mask has another shape, or another size than the images, or is of integers.

    Example:
        >>> import torch
        >>> from genimg_fast.data.degradations import Masked
        >>> Masked(torch.eye(2)[None])(torch.ones(3, 2, 2))[0].tolist()
        [[0.0, 1.0], [1.0, 0.0]]
    """

    mask: Tensor

    def __post_init__(self) -> None:
        if not self.mask.is_floating_point() or self.mask.dim() != 3 or len(self.mask) != 1:
            raise ValueError(
                f"mask must be floating-point numbers of shape (1, height, width), got {self.mask.dtype} of shape "
                f"{tuple(self.mask.shape)}"
            )
        check_has_numbers(self.mask, "mask")

    def _degrade(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.mask.shape[1:] != images.shape[-2:]:
            got, wanted = ("x".join(str(n) for n in p.shape[:-3:-1]) for p in (self.mask, images))
            raise ValueError(f"mask must have the picture's size, {wanted} pixels, got {got}")
        return images * (1 - self.mask.to(images))


@dataclass(frozen=True)
class RandomHoles(_Degradation):
    """Pixels that are gone: black squares of a grid, at random places, anew for each image.

    Args:
        share: Chance of each square to be gone.
        size: Pixels of a square's side; 1 for single pixels. The grid lies anyhow.

    Raises:
        ValueError: If ``share`` is not in [0, 1], or ``size`` below 1.

    Example:
        >>> import torch
        >>> from genimg_fast.data.degradations import RandomHoles
        >>> RandomHoles(0.3, size=4)(torch.ones(3, 16, 16)).unique()
        tensor([0., 1.])
    """

    share: float
    size: int = 1

    def __post_init__(self) -> None:
        _check_share(self.share)
        if self.size < 1:
            raise ValueError(f"size must be at least 1, got {self.size}")

    def masks(self, images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw where pixels are gone: 1 there, of shape (..., 1, height, width)."""
        _check_images(images)
        *batch, _, height, width = images.shape
        rows, columns = (-(-side // self.size) + 1 for side in (height, width))
        gone = torch.rand(*batch, 1, rows, columns, generator=generator) < self.share
        top, left = torch.randint(self.size, (2,), generator=generator).tolist()
        gone = gone.repeat_interleave(self.size, -2).repeat_interleave(self.size, -1)
        return gone[..., top : top + height, left : left + width].to(images)

    def _degrade(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        return images * (1 - self.masks(images, generator=generator))


def gaussian_kernel(sigma: float) -> Tensor:
    """Make the kernel of a Gaussian blur, as far as three standard deviations.

    Args:
        sigma: Standard deviation, in pixels.

    Returns:
        Weights of shape (size, size), whose sum is 1.

    Raises:
        ValueError: If ``sigma`` is not positive.

    Example:
        >>> from genimg_fast.data.degradations import gaussian_kernel
        >>> gaussian_kernel(1.5).shape
        torch.Size([11, 11])
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be above 0, got {sigma}")
    reach = math.ceil(3 * sigma)
    line = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma).square())
    return torch.outer(line, line) / line.sum().square()


def motion_kernel(length: float, angle: float = 0.0) -> Tensor:
    """Make the kernel of a picture that moves evenly along a line while it is taken.

    Args:
        length: Of the line, in pixels, at least 1.
        angle: Of the line, in degrees from the horizontal, counterclockwise.

    Returns:
        Weights of shape (size, size), whose sum is 1: the time that the line spends in each pixel.

    Raises:
        ValueError: If ``length`` is below 1.

    Example:
        >>> from genimg_fast.data.degradations import motion_kernel
        >>> [round(weight, 2) for weight in motion_kernel(3).tolist()[1]]
        [0.33, 0.33, 0.33]
    """
    if not 1 <= length < math.inf:
        raise ValueError(f"length must be at least 1, got {length}")
    if not math.isfinite(angle):
        raise ValueError(f"angle must be a number of degrees, got {angle}")
    count = 1000  # points on the line
    along = (torch.arange(count, dtype=torch.float64) + 0.5) / count * length - length / 2
    radians = math.radians(angle)
    across, down = along * math.cos(radians), -along * math.sin(radians)
    # Ends that meet the border of a pixel by rounding do not make the kernel wider.
    reach = math.ceil(max(across.abs().max().item(), down.abs().max().item()) - 0.5)
    size = 2 * reach + 1
    cells = (down.round() + reach) * size + across.round() + reach
    weights = torch.bincount(cells.long(), minlength=size * size).view(size, size)
    return (weights / count).float()


def check_kernel(kernel: Tensor) -> None:
    """Raise a ValueError unless a tensor is a kernel: weights of odd height and width."""
    if kernel.dim() != 2 or any(side % 2 == 0 for side in kernel.shape) or not kernel.is_floating_point():
        raise ValueError(
            f"kernel must be floating-point weights of odd height and width, got {kernel.dtype} of shape "
            f"{tuple(kernel.shape)}"
        )
    check_has_numbers(kernel, "kernel")


def _check_share(share: float) -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"share must be from 0 to 1, got {share}")


def _normal(images: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.randn(images.shape, generator=generator).to(images)


def _uniform(images: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.rand(*images.shape[:-3], 1, *images.shape[-2:], generator=generator).to(images.device)
