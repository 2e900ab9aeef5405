"""DCGAN: Radford et al. 2016, https://arxiv.org/abs/1511.06434.

The layers sit in one ``nn.Sequential`` named ``main``: batch norm and activation run as one fused operator, and
the ``state_dict`` keys are those of PyTorch's own DCGAN example, whose 64x64 checkpoints load into ``n_blocks=4``.
"""

import torch
from torch import Tensor

from genimg_fast import nn
from genimg_fast._evaluating import evaluating
from genimg_fast.models.common import check_sizes
from genimg_fast.models.registry import register_model


def _init_weights(module: nn.Module) -> None:
    """Initialise as in the paper: weights N(0, 0.02), batch-norm scales N(1, 0.02), no shift."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class DCGANGenerator(nn.Module):
    """The generator of a DCGAN: noise to images, each block doubling the resolution.

    Args:
        z_dim: Length of a noise vector.
        c_dim: Colour channels of the images.
        channels: Feature channels at half the image's resolution; they double with every halving.
        n_blocks: Number of doublings from 4x4; images have ``4 * 2**n_blocks`` pixels a side.

    Raises:
        ValueError: If a size is below 1.

    Example:
        >>> import torch, genimg_fast as gf
        >>> generator = gf.models.DCGANGenerator(z_dim=100, c_dim=3, channels=64, n_blocks=3)
        >>> generator(torch.randn(8, 100)).shape
        torch.Size([8, 3, 32, 32])
    """

    def __init__(self, z_dim: int = 100, c_dim: int = 3, channels: int = 64, n_blocks: int = 3) -> None:
        super().__init__()
        check_sizes(z_dim=z_dim, c_dim=c_dim, channels=channels, n_blocks=n_blocks)
        self.z_dim = z_dim
        self.image_size = 4 * 2**n_blocks

        width = channels * 2 ** (n_blocks - 1)
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(z_dim, width, 4, stride=1, padding=0, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        for _ in range(n_blocks - 1):
            layers += [
                nn.ConvTranspose2d(width, width // 2, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width // 2),
                nn.ReLU(inplace=True),
            ]
            width //= 2
        layers += [nn.ConvTranspose2d(width, c_dim, 4, stride=2, padding=1, bias=False), nn.Tanh()]
        self.main = nn.Sequential(*layers)
        self.apply(_init_weights)

    def forward(self, z: Tensor) -> Tensor:
        """Turn noise into images.

        Args:
            z: Noise from N(0, 1), of shape (batch, z_dim) or (batch, z_dim, 1, 1).

        Returns:
            Images in [-1, 1], of shape (batch, c_dim, image_size, image_size).

        Raises:
            ValueError: If ``z`` has another shape.
        """
        if z.shape[1:] not in ((self.z_dim,), (self.z_dim, 1, 1)):
            raise ValueError(
                f"expected noise of shape (batch, {self.z_dim}) or (batch, {self.z_dim}, 1, 1), "
                f"got {tuple(z.shape)}"
            )
        return self.main(z.view(-1, self.z_dim, 1, 1))

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Generate images, with the running statistics of batch norm and without recording gradients.

        Args:
            n: Number of images.
            generator: Source of the random numbers, on any device; PyTorch's global one by default.

        Returns:
            Images in [-1, 1], of shape (n, c_dim, image_size, image_size).

        Example:
            >>> import torch, genimg_fast as gf
            >>> generator = gf.models.DCGANGenerator()
            >>> generator.sample(4, generator=torch.Generator().manual_seed(0)).shape
            torch.Size([4, 3, 32, 32])
        """
        weight = next(self.parameters())
        device = weight.device if generator is None else generator.device
        z = torch.randn(n, self.z_dim, generator=generator, device=device).to(weight)
        with evaluating(self):
            return self(z)


class DCGANDiscriminator(nn.Module):
    """The discriminator of a DCGAN: images to one logit each, each block halving the resolution.

    Args:
        c_dim: Colour channels of the images.
        channels: Feature channels at half the image's resolution; they double with every halving.
        n_blocks: Number of halvings down to 4x4; images have ``4 * 2**n_blocks`` pixels a side.

    Raises:
        ValueError: If a size is below 1.

    Example:
        >>> import torch, genimg_fast as gf
        >>> discriminator = gf.models.DCGANDiscriminator(c_dim=3, channels=64, n_blocks=3)
        >>> discriminator(torch.randn(8, 3, 32, 32)).shape
        torch.Size([8])
    """

    def __init__(self, c_dim: int = 3, channels: int = 64, n_blocks: int = 3) -> None:
        super().__init__()
        check_sizes(c_dim=c_dim, channels=channels, n_blocks=n_blocks)
        self.c_dim = c_dim
        self.image_size = 4 * 2**n_blocks

        # The paper leaves the first layer without batch norm.
        layers: list[nn.Module] = [
            nn.Conv2d(c_dim, channels, 4, stride=2, padding=1, bias=False),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        width = channels
        for _ in range(n_blocks - 1):
            layers += [
                nn.Conv2d(width, width * 2, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(width * 2),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            width *= 2
        layers += [nn.Conv2d(width, 1, 4, stride=1, padding=0, bias=False)]
        self.main = nn.Sequential(*layers)
        self.apply(_init_weights)

    def forward(self, images: Tensor) -> Tensor:
        """Judge images.

        Args:
            images: Images in [-1, 1], of shape (batch, c_dim, image_size, image_size).

        Returns:
            Logits of shape (batch,): positive means real. No sigmoid has been applied.

        Raises:
            ValueError: If ``images`` has another shape.
        """
        expected = (self.c_dim, self.image_size, self.image_size)
        if images.shape[1:] != expected:
            raise ValueError(
                f"expected images of shape (batch, {', '.join(map(str, expected))}), got {tuple(images.shape)}"
            )
        return self.main(images).flatten()


@register_model("dcgan")
class DCGAN(nn.Module):
    """A DCGAN: ``.generator`` and ``.discriminator``.

    The defaults give the 32x32 network (1,068,928 and 663,296 parameters), ``n_blocks=4`` the classic 64x64 one.

    Args:
        z_dim: Length of a noise vector.
        c_dim: Colour channels of the images.
        channels: Feature channels of both networks at half the image's resolution.
        n_blocks: Images have ``4 * 2**n_blocks`` pixels a side.

    Raises:
        ValueError: If a size is below 1.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.DCGAN(z_dim=100, c_dim=3, channels=64, n_blocks=3)
        >>> model.discriminator(model.generator(torch.randn(8, 100))).shape
        torch.Size([8])
    """

    def __init__(self, z_dim: int = 100, c_dim: int = 3, channels: int = 64, n_blocks: int = 3) -> None:
        super().__init__()
        self.generator = DCGANGenerator(z_dim, c_dim, channels, n_blocks)
        self.discriminator = DCGANDiscriminator(c_dim, channels, n_blocks)
        self.image_size = self.generator.image_size

    def forward(self, z: Tensor) -> Tensor:
        """Turn noise into images: the generator's :meth:`~DCGANGenerator.forward`."""
        return self.generator(z)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Generate images: the generator's :meth:`~DCGANGenerator.sample`."""
        return self.generator.sample(n, generator=generator)
