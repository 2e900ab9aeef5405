"""Image-to-image translation: Isola et al. 2017, https://arxiv.org/abs/1611.07004."""

import math
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from genimg_fast import nn
from genimg_fast._evaluating import evaluating
from genimg_fast._images import check_layout, check_values
from genimg_fast.models.common import check_choice, check_images, check_sizes
from genimg_fast.models.dcgan import init_weights
from genimg_fast.models.pretrained import BaseModel
from genimg_fast.models.registry import register_model
from genimg_fast.options import ConvImageSize, Decay, PositiveInt

Norm = Literal["batch", "instance"]


def _make_norm(norm: str, width: int) -> nn.Module:
    check_choice("norm", norm, ("batch", "instance"))
    return nn.BatchNorm2d(width) if norm == "batch" else nn.InstanceNorm2d(width, affine=True)


class UNetGenerator(nn.Module):
    """Images to images through an hourglass down to 1x1 whose two halves are joined at every resolution.

    Halvings are 4x4 convolutions, a norm, LeakyReLU(0.2); doublings ReLU, 4x4 transposed convolutions, a norm
    and, in the three behind the innermost, dropout. Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597.

    Args:
        in_channels: Channels of the images that come in.
        out_channels: Channels of those that go out.
        channels: Feature channels at half the image's resolution; they double with every halving, up to eight
            times as many.
        image_size: Height and width of the images: a power of two, at least 8.
        dropout: Probability of the dropout.
        norm: ``"batch"``, or ``"instance"`` for batches of one image.

    Raises:
        ValueError: If a size does not fit, or the norm is unknown.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.models.UNetGenerator(3, 3, channels=8, image_size=64)(torch.randn(2, 3, 64, 64)).shape
        torch.Size([2, 3, 64, 64])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: int = 64,
        image_size: int = 256,
        *,
        dropout: float = 0.5,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        check_sizes(in_channels=in_channels, out_channels=out_channels, channels=channels)
        self.in_channels = in_channels
        depth = _halvings(image_size)
        widths = [channels * min(2**level, 8) for level in range(depth)]
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        for level, width in enumerate(widths):
            inputs = widths[level - 1] if level else in_channels
            # The innermost map has one pixel, which cannot be normalised in a batch of one.
            normed = 0 < level < depth - 1
            halve: list[nn.Module] = [nn.Conv2d(inputs, width, 4, stride=2, padding=1, bias=not normed)]
            if normed:
                halve.append(_make_norm(norm, width))
            halve.append(nn.LeakyReLU(0.2) if level < depth - 1 else nn.ReLU())
            self.down.append(nn.Sequential(*halve))
        for level in reversed(range(depth)):
            inputs = widths[level] if level == depth - 1 else 2 * widths[level]
            if level == 0:
                double = [nn.ConvTranspose2d(inputs, out_channels, 4, stride=2, padding=1), nn.Tanh()]
            else:
                width = widths[level - 1]
                double = [
                    nn.ConvTranspose2d(inputs, width, 4, stride=2, padding=1, bias=False),
                    _make_norm(norm, width),
                ]
                double.append(nn.Dropout(dropout) if depth - 4 <= level < depth - 1 and dropout else nn.Identity())
                double.append(nn.ReLU())
            self.up.append(nn.Sequential(*double))
        self.apply(init_weights)

    def forward(self, images: Tensor) -> Tensor:
        """Translate images, (batch, in_channels, image_size, image_size), into (batch, out_channels, ...)."""
        check_layout(images, self.in_channels)
        check_values(images)
        skips = []
        for halve in self.down:
            images = halve(images)
            skips.append(images)
        x = skips.pop()
        for k, double in enumerate(self.up):
            x = double(x if k == 0 else torch.cat((x, skips.pop()), dim=1))
        return x


class ResNetGenerator(nn.Module):
    """Images to images through two halvings, residual blocks and two doublings.

    Johnson et al. 2016, https://arxiv.org/abs/1603.08155, with the blocks' second batch norm and addition as one
    operator.

    Args:
        in_channels: Channels of the images that come in.
        out_channels: Channels of those that go out.
        channels: Feature channels at full resolution; they double with every halving.
        n_blocks: Number of residual blocks.
        dropout: Probability of dropout within the blocks.
        norm: ``"batch"``, or ``"instance"`` for batches of one image.

    Raises:
        ValueError: If a size is below 1, or the norm is unknown.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.models.ResNetGenerator(3, 3, channels=8, n_blocks=2)(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        channels: int = 64,
        n_blocks: int = 6,
        *,
        dropout: float = 0.0,
        norm: str = "batch",
    ) -> None:
        super().__init__()
        check_sizes(in_channels=in_channels, out_channels=out_channels, channels=channels, n_blocks=n_blocks)
        self.in_channels = in_channels

        def normed(convolution: nn.Module, width: int) -> list[nn.Module]:
            return [convolution, _make_norm(norm, width), nn.ReLU()]

        c = channels
        self.encode = nn.Sequential(
            *normed(nn.Conv2d(in_channels, c, 7, padding=3, padding_mode="reflect", bias=False), c),
            *normed(nn.Conv2d(c, 2 * c, 3, stride=2, padding=1, bias=False), 2 * c),
            *normed(nn.Conv2d(2 * c, 4 * c, 3, stride=2, padding=1, bias=False), 4 * c),
        )
        self.blocks = nn.Sequential(*(_ResidualBlock(4 * c, dropout, norm) for _ in range(n_blocks)))
        self.decode = nn.Sequential(
            *normed(nn.ConvTranspose2d(4 * c, 2 * c, 4, stride=2, padding=1, bias=False), 2 * c),
            *normed(nn.ConvTranspose2d(2 * c, c, 4, stride=2, padding=1, bias=False), c),
            nn.Conv2d(c, out_channels, 7, padding=3, padding_mode="reflect"),
            nn.Tanh(),
        )
        self.apply(init_weights)

    def forward(self, images: Tensor) -> Tensor:
        """Translate images, (batch, in_channels, height, width); height and width are multiples of 4."""
        check_layout(images, self.in_channels)
        check_values(images)
        return self.decode(self.blocks(self.encode(images)))


class _ResidualBlock(nn.Module):
    def __init__(self, width: int, dropout: float, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect", bias=False)
        act: Any = partial(nn.InstanceNormAct2d, affine=True) if norm == "instance" else nn.BatchNormAct2d
        self.norm1 = act(width, activation="relu")
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, padding_mode="reflect", bias=False)
        self.norm2 = act(width, activation="identity")

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv2(self.dropout(self.norm1(self.conv1(x)))), residual=x)


class PatchDiscriminator(nn.Module):
    """Judges overlapping patches of an image, given another image that it should fit, or alone: a logit for each.

    Args:
        in_channels: Channels of all images together.
        channels: Feature channels after the first convolution; they double with every further one, up to eight
            times as many.
        n_layers: Number of halvings: patches have 16, 34, 70, 142 pixels a side for 1, 2, 3, 4.
        norm: ``"batch"`` or ``"instance"``.

    Raises:
        ValueError: If a size is below 1, or the norm is unknown.

    Example:
        >>> import torch, genimg_fast as gf
        >>> discriminator = gf.models.PatchDiscriminator(6, channels=16, n_layers=3)
        >>> discriminator(torch.randn(2, 3, 256, 256), torch.randn(2, 3, 256, 256)).shape
        torch.Size([2, 1, 30, 30])
    """

    def __init__(self, in_channels: int, channels: int = 64, n_layers: int = 3, *, norm: str = "batch") -> None:
        super().__init__()
        check_sizes(in_channels=in_channels, channels=channels, n_layers=n_layers)
        self.in_channels = in_channels
        layers: list[nn.Module] = [
            nn.Conv2d(in_channels, channels, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        inputs = channels
        for level in range(1, n_layers + 1):
            width = channels * min(2**level, 8)
            layers += [
                nn.Conv2d(inputs, width, 4, stride=2 if level < n_layers else 1, padding=1, bias=False),
                _make_norm(norm, width),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            inputs = width
        self.main = nn.Sequential(*layers, nn.Conv2d(inputs, 1, 4, stride=1, padding=1))
        self.apply(init_weights)

    def forward(self, *images: Tensor) -> Tensor:
        """Judge images, (batch, channels, height, width), behind those that they should fit, if there are any.

        Returns:
            Logits of shape (batch, 1, ..., ...).
        """
        together = torch.cat(images, dim=1) if len(images) > 1 else images[0]
        check_layout(together, self.in_channels, "condition and images together" if len(images) > 1 else "images")
        check_values(together)
        return self.main(together)


@register_model("pix2pix")
class Pix2Pix(BaseModel):
    """Translates images of one kind into another: ``.generator`` and a ``.discriminator`` of patches.

    To be trained with the adversarial loss and 100 times the mean absolute error
    (:class:`genimg_fast.training.Pix2PixTrainer`).

    Args:
        in_channels: Channels of the images that come in.
        out_channels: Channels of those that go out.
        channels: Feature channels of both networks.
        image_size: Height and width of the images: a power of two, at least 8.
        network: Of the generator: ``"unet"`` (:class:`UNetGenerator`) or ``"resnet"`` (:class:`ResNetGenerator`).
        n_layers: Depth of the discriminator; by default it follows the image size: 3, that is patches of 70 pixels
            a side, from 256 pixels on, one less for every halving, down to 1.
        dropout: Probability of the generator's dropout.
        norm: Of both networks: ``"batch"``, or ``"instance"`` for batches of one image.

    Raises:
        ValueError: If a size does not fit, or the network or the norm is unknown.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.Pix2Pix(1, 3, channels=8, image_size=32)
        >>> model.translate(torch.randn(2, 1, 32, 32)).shape
        torch.Size([2, 3, 32, 32])
    """

    def __init__(
        self,
        in_channels: int = 3,
        out_channels: int = 3,
        channels: PositiveInt = 64,
        image_size: ConvImageSize = 256,
        *,
        network: Literal["unet", "resnet"] = "unet",
        n_layers: PositiveInt | None = None,
        dropout: Decay = 0.5,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        _halvings(image_size)
        self.generator: nn.Module
        if network == "unet":
            self.generator = UNetGenerator(
                in_channels, out_channels, channels, image_size, dropout=dropout, norm=norm
            )
        elif network == "resnet":
            self.generator = ResNetGenerator(in_channels, out_channels, channels, dropout=dropout, norm=norm)
        else:
            raise ValueError(f"network must be 'unet' or 'resnet', got {network!r}")
        layers = patch_layers(image_size) if n_layers is None else n_layers
        self.discriminator = PatchDiscriminator(in_channels + out_channels, channels, layers, norm=norm)
        self.in_channels, self.out_channels, self.image_size = in_channels, out_channels, image_size

    def forward(self, images: Tensor) -> Tensor:
        """Translate images in the mode that the model is in.

        Args:
            images: Images in [-1, 1], of shape (batch, in_channels, image_size, image_size).

        Returns:
            Images in [-1, 1], of shape (batch, out_channels, image_size, image_size).

        Raises:
            ValueError: If ``images`` has another shape.
        """
        check_images(images, self.in_channels, self.image_size)
        return self.generator(images)

    @torch.no_grad()
    def translate(self, images: Tensor, *, dropout: bool = False, batch_statistics: bool = False) -> Tensor:
        """Translate images without recording gradients, and without changing the running statistics.

        By default as networks are usually evaluated: no dropout, running statistics of batch norm, so that the
        result depends on nothing but the image. The paper keeps both on at test time, in batches of one image.

        Args:
            images: Images in [-1, 1], of shape (batch, in_channels, image_size, image_size).
            dropout: Whether dropout is active, as the source of variation.
            batch_statistics: Whether batch norm uses the statistics of ``images``.

        Returns:
            Images in [-1, 1], of shape (batch, out_channels, image_size, image_size).

        Raises:
            ValueError: If ``images`` has another shape.
        """
        with evaluating(self):
            norms = [m for m in self.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
            for module in self.modules():
                if isinstance(module, nn.Dropout):
                    module.train(dropout)
            tracked = [norm.track_running_stats for norm in norms]
            for norm in norms if batch_statistics else ():
                norm.train()
                norm.track_running_stats = False
            try:
                return self(images)
            finally:
                for norm, track in zip(norms, tracked, strict=True):
                    norm.track_running_stats = track


def patch_layers(image_size: int) -> int:
    """Choose how deep a :class:`PatchDiscriminator` is."""
    return min(max(int(math.log2(image_size)) - 5, 1), 3)


def _halvings(image_size: int) -> int:
    if image_size < 8 or image_size & (image_size - 1):
        raise ValueError(f"image_size must be a power of two, at least 8, got {image_size}")
    return int(math.log2(image_size))
