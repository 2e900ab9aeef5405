"""The smallest GAN: fully connected networks, as in Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from genimg_fast import nn
from genimg_fast.models.common import check_sizes
from genimg_fast.models.gan import BaseDiscriminator, BaseGAN, BaseGenerator
from genimg_fast.models.registry import register_model
from genimg_fast.options import PositiveInt


def _layers(sizes: Sequence[int]) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.LeakyReLU(0.2, inplace=True)]
    return layers[:-1]


class MLPGenerator(BaseGenerator):
    """Noise to images through fully connected layers with LeakyReLU(0.2) between them.

    Args:
        z_dim: Length of a noise vector.
        c_dim: Colour channels of the images.
        image_size: Their height and width.
        hidden: Widths of the hidden layers.

    Raises:
        ValueError: If a size is below 1.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.models.MLPGenerator()(torch.randn(8, 100)).shape
        torch.Size([8, 1, 28, 28])
    """

    def __init__(
        self, z_dim: int = 100, c_dim: int = 1, image_size: int = 28, hidden: Sequence[int] = (256, 512)
    ) -> None:
        super().__init__(z_dim=z_dim, c_dim=c_dim, image_size=image_size)
        check_sizes(**{f"hidden[{k}]": width for k, width in enumerate(hidden)})
        self.main = nn.Sequential(*_layers([z_dim, *hidden, c_dim * image_size**2]), nn.Tanh())

    def _images(self, z: Tensor, labels: Tensor | None) -> Tensor:
        return self.main(z).view(-1, self.c_dim, self.image_size, self.image_size)


class MLPDiscriminator(BaseDiscriminator):
    """Images to one logit each through fully connected layers with LeakyReLU(0.2) between them.

    Args:
        c_dim: Colour channels of the images.
        image_size: Their height and width.
        hidden: Widths of the hidden layers.

    Raises:
        ValueError: If a size is below 1.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.models.MLPDiscriminator()(torch.randn(8, 1, 28, 28)).shape
        torch.Size([8])
    """

    def __init__(self, c_dim: int = 1, image_size: int = 28, hidden: Sequence[int] = (512, 256)) -> None:
        super().__init__(c_dim=c_dim, image_size=image_size)
        check_sizes(**{f"hidden[{k}]": width for k, width in enumerate(hidden)})
        self.main = nn.Sequential(*_layers([c_dim * image_size**2, *hidden, 1]))

    def _logits(self, images: Tensor, labels: Tensor | None) -> Tensor:
        return self.main(images.flatten(1))


@register_model("mlp-gan")
class MLPGAN(BaseGAN):
    """A GAN of fully connected layers: 100-256-512-784 and 784-512-256-1 by default.

    Args:
        z_dim: Length of a noise vector.
        c_dim: Colour channels of the images.
        image_size: Their height and width.
        hidden: Widths of the generator's hidden layers; the discriminator has them in reverse.

    Raises:
        ValueError: If a size is below 1.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.MLPGAN()
        >>> model.discriminator(model(torch.randn(8, 100))).shape
        torch.Size([8])
    """

    def __init__(
        self,
        z_dim: PositiveInt = 100,
        c_dim: int = 1,
        image_size: PositiveInt = 28,
        hidden: Sequence[PositiveInt] = (256, 512),
    ) -> None:
        super().__init__(
            MLPGenerator(z_dim, c_dim, image_size, hidden),
            MLPDiscriminator(c_dim, image_size, tuple(reversed(hidden))),
        )
