"""A GAN of residual blocks: Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028, appendix C."""

from typing import Literal

from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate
from torch.nn.utils.parametrizations import spectral_norm

from genimg_fast import nn
from genimg_fast.models.common import check_sizes
from genimg_fast.models.gan import BaseDiscriminator, BaseGAN, BaseGenerator
from genimg_fast.models.registry import register_model
from genimg_fast.options import PositiveInt


class _UpBlock(nn.Module):
    """Batch norm, ReLU, doubling, convolution, batch norm, ReLU, convolution; beside it a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNormAct2d(inputs, activation="relu")
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNormAct2d(outputs, activation="relu")
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(interpolate(self.norm1(x), scale_factor=2, mode="nearest"))
        h = self.conv2(self.norm2(h))
        # A 1x1 convolution and nearest-neighbour doubling commute: on the small images it costs a quarter.
        return h + interpolate(self.shortcut(x), scale_factor=2, mode="nearest")


class _DownBlock(nn.Module):
    """ReLU, 3x3 convolution, ReLU, 3x3 convolution, halving; beside it a 1x1 convolution."""

    def __init__(self, inputs: int, outputs: int, *, first: bool) -> None:
        super().__init__()
        self.first = first  # it sees the image, which no ReLU should cut
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(x if self.first else x.relu())
        return avg_pool2d(self.conv2(h.relu()), 2) + self.shortcut(avg_pool2d(x, 2))


class ResidualGenerator(BaseGenerator):
    """Noise to images through residual blocks, each doubling the resolution.

    Args:
        z_dim: Length of a noise vector.
        c_dim: Colour channels of the images.
        channels: Feature channels of all blocks.
        n_blocks: Number of doublings from 4x4; images have ``4 * 2**n_blocks`` pixels a side.

    Raises:
        ValueError: If a size is below 1.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.models.ResidualGenerator(channels=16)(torch.randn(8, 128)).shape
        torch.Size([8, 3, 32, 32])
    """

    def __init__(self, z_dim: int = 128, c_dim: int = 3, channels: int = 128, n_blocks: int = 3) -> None:
        check_sizes(channels=channels, n_blocks=n_blocks)
        super().__init__(z_dim=z_dim, c_dim=c_dim, image_size=4 * 2**n_blocks)
        self.project = nn.Linear(z_dim, channels * 4 * 4)
        self.blocks = nn.Sequential(*(_UpBlock(channels, channels) for _ in range(n_blocks)))
        self.head = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, c_dim, 3, padding=1), nn.Tanh()
        )

    def _images(self, z: Tensor, labels: Tensor | None) -> Tensor:
        return self.head(self.blocks(self.project(z).unflatten(1, (-1, 4, 4))))


class ResidualDiscriminator(BaseDiscriminator):
    """Images to one logit each through residual blocks without batch norm, each halving the resolution.

    Args:
        c_dim: Colour channels of the images.
        channels: Feature channels of all blocks.
        n_blocks: Number of halvings down to 4x4; images have ``4 * 2**n_blocks`` pixels a side.
        norm: ``"spectral"`` for weights of spectral norm 1 (Miyato et al. 2018, https://arxiv.org/abs/1802.05957)
            or ``"none"``.

    Raises:
        ValueError: If a size is below 1, or the norm unknown.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.models.ResidualDiscriminator(channels=16)(torch.randn(8, 3, 32, 32)).shape
        torch.Size([8])
    """

    def __init__(self, c_dim: int = 3, channels: int = 128, n_blocks: int = 3, *, norm: str = "none") -> None:
        check_sizes(channels=channels, n_blocks=n_blocks)
        super().__init__(c_dim=c_dim, image_size=4 * 2**n_blocks)
        if norm not in ("none", "spectral"):
            raise ValueError(f"norm must be 'none' or 'spectral', got {norm!r}")
        self.blocks = nn.Sequential(
            *(_DownBlock(channels if k else c_dim, channels, first=k == 0) for k in range(n_blocks))
        )
        self.head = nn.Linear(channels, 1)
        if norm == "spectral":
            for layer in [m for m in self.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]:
                spectral_norm(layer)

    def _logits(self, images: Tensor, labels: Tensor | None) -> Tensor:
        return self.head(self.blocks(images).relu().mean((2, 3)))


@register_model("resgan")
class ResidualGAN(BaseGAN):
    """A GAN of residual blocks, to be trained with a gradient penalty, or with ``norm="spectral"``.

    Args:
        z_dim: Length of a noise vector.
        c_dim: Colour channels of the images.
        channels: Feature channels of all blocks.
        n_blocks: Images have ``4 * 2**n_blocks`` pixels a side.
        norm: Of the discriminator: ``"none"`` or ``"spectral"``.

    Raises:
        ValueError: If a size is below 1, or the norm unknown.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.ResidualGAN(channels=16)
        >>> model.discriminator(model.sample(2)).shape
        torch.Size([2])
    """

    def __init__(
        self,
        z_dim: PositiveInt = 128,
        c_dim: int = 3,
        channels: PositiveInt = 128,
        n_blocks: int = 3,
        *,
        norm: Literal["none", "spectral"] = "none",
    ) -> None:
        super().__init__(
            ResidualGenerator(z_dim, c_dim, channels, n_blocks),
            ResidualDiscriminator(c_dim, channels, n_blocks, norm=norm),
        )
