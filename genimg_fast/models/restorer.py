"""A network that repairs images: of noise, blur, compression, holes, or too few pixels.

It decides on the coefficients of overlapping patches, as filters do that shrink or restore them; what to do with
each of them is learned. Foi et al. 2007, "Pointwise shape-adaptive DCT for high-quality denoising and deblocking",
shows what such a transform is worth without learning; Guo and Chao 2016, "Building dual-domain representations for
compression artifacts reduction", with.

1. Where more pixels are to be made, the image is enlarged by bicubic interpolation. Colours become a luminance
   and two differences.
2. Patches of 8x8 pixels begin at every fourth pixel of each row and column, so that every pixel is in four. Each
   is a place with 64 coefficients of an orthonormal DCT for each colour.
3. The network sees each coefficient c, relative to the standard deviation s of what is wrong, as tanh(c / 4s), its
   sign unless it is small, and as (c / 2s)², its power, up to 4; and maps of the level, or of holes, or of where
   blocks of JPEG begin. A convolution of 1x1, residual blocks, and another convolution of 1x1 make two numbers a
   and b of these, for each coefficient.
4. What is wrong with a patch is a c + b s; that of a pixel is the mean of its patches', and is taken away.

U-Nets of pixels, of the same size, gained less in as many steps when they were tried on JPEGs and on noise.
"""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg_fast import nn
from genimg_fast._images import check_layout, check_values
from genimg_fast.models.common import check_choice, check_sizes
from genimg_fast.models.pretrained import BaseModel
from genimg_fast.models.registry import register_model
from genimg_fast.options import PositiveInt

Task = Literal["denoise", "neighbor2neighbor", "deblur", "jpeg", "inpaint", "sr2", "sr3", "sr4"]
# What the level that a network is told is divided by. The others see for themselves.
_LEVELS = {"denoise": 255.0, "deblur": 5.0}
_SIDE = 8  # of a patch
_STRIDE = 4  # between patches
_USUAL = 12 / 255  # standard deviation of what is wrong, of black to white, if no level says it
_LEAST = 1 / 255


@register_model("restorer")
class Restorer(BaseModel):
    """A network that repairs images, of one kind of damage.

    Args:
        task: What it repairs: ``"denoise"``; ``"neighbor2neighbor"``: noise, learned from noisy images alone;
            ``"deblur"``; ``"jpeg"``; ``"inpaint"``; ``"sr2"``, ``"sr3"``, ``"sr4"``: 2, 3 or 4 times the pixels.
        c_dim: Channels of the images.
        channels: Feature channels.
        depth: Number of residual blocks, of two convolutions each.

    Raises:
        ValueError: If the task is unknown, or a size is below 1.

    Example:
        >>> import torch, genimg_fast as gf
        >>> denoiser = gf.models.Restorer("denoise", c_dim=3, channels=8)
        >>> denoiser(torch.randn(2, 3, 33, 48), levels=torch.tensor([25.0, 50.0])).shape
        torch.Size([2, 3, 33, 48])
        >>> gf.models.Restorer("sr3", c_dim=3, channels=8)(torch.zeros(2, 3, 16, 20)).shape
        torch.Size([2, 3, 48, 60])
    """

    _transform: Tensor
    _colours: Tensor

    def __init__(
        self, task: Task = "denoise", *, c_dim: int = 3, channels: PositiveInt = 96, depth: PositiveInt = 3
    ) -> None:
        super().__init__()
        check_choice("task", task, get_args(Task))
        check_sizes(c_dim=c_dim, channels=channels, depth=depth)
        self.task, self.c_dim, self.depth = task, c_dim, depth
        self.scale = int(task[2:]) if task.startswith("sr") else 1
        coefficients, maps = c_dim * _SIDE**2, _SIDE**2 if task == "inpaint" else 1
        # No biases: a map is constant, and Muon, which trains it, is for matrices.
        first = nn.Conv2d(2 * coefficients + maps, channels, 1, bias=False)
        last = nn.Conv2d(channels, 2 * coefficients, 1, bias=False)
        self.body = nn.Sequential(first, *[_ResidualBlock(channels) for _ in range(depth)], last)
        with torch.no_grad():  # at first, it leaves images, or their bicubic interpolation, nearly as they are
            nn.init.kaiming_normal_(first.weight, nonlinearity="linear")
            last.weight.mul_(0.03)
        self.register_buffer("_transform", _dct(), persistent=False)
        self.register_buffer("_colours", _opponent(c_dim), persistent=False)

    @property
    def takes_level(self) -> bool:
        """Whether it has to be told how much is wrong, as one number for an image."""
        return self.task in _LEVELS

    @property
    def multiple(self) -> int:
        """Pixels by which images may be moved: blocks of JPEG, and so patches, begin at multiples of them."""
        return _SIDE

    @property
    def reach(self) -> int:
        """How many pixels away one may be that has a say in a pixel."""
        pixels = 2 * (_SIDE - 1) + 2 * self.depth * _STRIDE
        return pixels if self.scale == 1 else math.ceil(pixels / self.scale) + 2

    def forward(self, images: Tensor, levels: Tensor | None = None) -> Tensor:
        """Repair images.

        Args:
            images: In [-1, 1], of shape (batch, c_dim, height, width); noise may make them leave it.
            levels: For ``"denoise"``, the standard deviation of each image's noise, in levels of 255 between black
                and white, and for ``"deblur"`` that of the Gaussian blur, in pixels: of shape (batch,). For
                ``"inpaint"``, 1 where pixels are gone, of shape (batch, 1, height, width).

        Returns:
            The images, ``scale`` times as large; not clipped.

        Raises:
            ValueError: If the images or levels have another shape, or there are levels too many or too few.
        """
        check_layout(images, self.c_dim)
        if self.task not in ("denoise", "neighbor2neighbor"):
            check_values(images)
        expected = (
            tuple(images.shape[:1]) if self.takes_level else (images.shape[0], 1, *images.shape[2:])
            if self.task == "inpaint" else None
        )  # fmt: skip
        if (None if levels is None else tuple(levels.shape)) != expected:
            got = "none" if levels is None else f"shape {tuple(levels.shape)}"
            raise ValueError(f"levels must be of shape {expected} for {self.task}, got {got}")
        if self.scale > 1:
            images = F.interpolate(images, scale_factor=self.scale, mode="bicubic")
        coefficients = self._analysed(torch.einsum("ij,bjhw->bihw", self._colours, images))
        deviation = images.new_full((images.shape[0], 1, 1, 1), 2 * _USUAL)  # images have a range of 2
        if self.task == "denoise" and levels is not None:
            deviation = 2 * (levels.to(images) / 255).clamp_min(_LEAST).view(-1, 1, 1, 1)
        relative = coefficients / deviation
        seen = [(relative / 4).tanh(), (relative / 2).square().clamp(max=4) - 1, self._map(coefficients, levels)]
        share, more = self.body(torch.cat(seen, 1)).chunk(2, 1)
        wrong = torch.einsum(
            "ij,bihw->bjhw", self._colours, self._composed(share * coefficients + more * deviation)
        )
        wrong = wrong[:, :, : images.shape[2], : images.shape[3]]
        return images - (wrong if self.task != "inpaint" or levels is None else wrong * (levels > 0.5))

    def _map(self, coefficients: Tensor, levels: Tensor | None) -> Tensor:
        """Get what is known of each patch, beside its coefficients."""
        batch, _, rows, columns = coefficients.shape
        if self.task == "inpaint":
            assert levels is not None
            return self._analysed(levels.to(coefficients)) / 4
        if self.takes_level and levels is not None:
            return (levels.to(coefficients) / _LEVELS[self.task]).view(-1, 1, 1, 1).expand(-1, 1, rows, columns)
        known = coefficients.new_ones(batch, 1, rows, columns)
        if self.task == "jpeg":  # the first patch begins before the picture
            known[:, :, ::2] = 0
            known[:, :, :, ::2] = 0
        return known

    def _analysed(self, images: Tensor) -> Tensor:
        """Get the coefficients of patches: (batch, 64 for each channel, rows, columns)."""
        batch, channels, height, width = images.shape
        # Patches hang over the border by half, so that pixels there are in four, too.
        around = [_STRIDE, _STRIDE + -width % _SIDE, _STRIDE, _STRIDE + -height % _SIDE]
        planes = F.pad(images, around, mode="replicate").flatten(0, 1).unsqueeze(1)
        return (
            F.conv2d(planes, self._transform.to(planes), stride=_STRIDE)
            .unflatten(0, (batch, channels))
            .flatten(1, 2)
        )

    def _composed(self, coefficients: Tensor) -> Tensor:
        """Put patches back into images, whose size is a multiple of 8."""
        patches = coefficients.unflatten(1, (self.c_dim, _SIDE**2)).flatten(0, 1)
        mean = self._transform.to(patches) / (_SIDE // _STRIDE) ** 2
        planes = F.conv_transpose2d(patches, mean, stride=_STRIDE)
        inside = planes[:, :, _STRIDE:-_STRIDE, _STRIDE:-_STRIDE]
        return inside.unflatten(0, (coefficients.shape[0], self.c_dim)).squeeze(2)


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        first, last = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.body = nn.Sequential(first, nn.ReLU(inplace=True), last)
        with torch.no_grad():  # a block begins as next to nothing: features get through
            nn.init.kaiming_normal_(first.weight)
            nn.init.kaiming_normal_(last.weight).mul_(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _dct() -> Tensor:
    """Make the patches that the orthonormal DCT consists of: (64, 1, 8, 8)."""
    k, n = torch.meshgrid(*[torch.arange(_SIDE, dtype=torch.float64)] * 2, indexing="ij")
    cosines = torch.cos(math.pi * k * (2 * n + 1) / (2 * _SIDE)) * math.sqrt(2 / _SIDE)
    cosines[0] /= math.sqrt(2)
    return torch.kron(cosines, cosines).view(-1, 1, _SIDE, _SIDE).float()


def _opponent(channels: int) -> Tensor:
    """Get rows of unit length, orthogonal: luminance first, if there are colours."""
    if channels != 3:
        return torch.eye(channels)
    return F.normalize(torch.tensor([[1.0, 1, 1], [1, 0, -1], [1, -2, 1]]), dim=1)
