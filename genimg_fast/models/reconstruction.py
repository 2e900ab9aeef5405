"""Convolutional networks trained by mean squared error, in the ways in which that works.

A network that maps random noise to images and is trained by the mean squared error against images drawn at
random learns one thing: the mean image. The noise says nothing about which image it will be compared with, and
the constant c that minimises E|c - x|² is E[x], blurred grey for photographs. The error has to know which image
belongs to which input. Three ways to arrange that:

* :class:`Autoencoder`: the input is computed from the image, by an encoder.
* :class:`GLO`: the input is a code of the image's own that is learned along with the network.
* :class:`DeepImagePrior`: there is one image and one noise input, and the architecture is the prior.
"""

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from genimg_fast import nn
from genimg_fast._evaluating import evaluating
from genimg_fast.models.common import check_images, check_sizes, conv_decoder, conv_encoder
from genimg_fast.models.pretrained import BaseModel
from genimg_fast.models.registry import register_model
from genimg_fast.options import PositiveInt


@register_model("autoencoder")
class Autoencoder(BaseModel):
    """A convolutional autoencoder, with the networks of the convolutional VAE.

    Hinton, Salakhutdinov 2006, "Reducing the dimensionality of data with neural networks".

    Args:
        z_dim: Length of a code.
        c_dim: Colour channels of the images.
        channels: Feature channels of both networks at half the image's resolution; they double with every halving.
        n_blocks: Images have ``4 * 2**n_blocks`` pixels a side.

    Raises:
        ValueError: If a size is below 1.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.Autoencoder(z_dim=20, c_dim=1, channels=16)
        >>> model(torch.zeros(8, 1, 32, 32)).shape
        torch.Size([8, 1, 32, 32])
    """

    def __init__(
        self, z_dim: PositiveInt = 100, c_dim: int = 3, channels: PositiveInt = 64, n_blocks: int = 3
    ) -> None:
        super().__init__()
        check_sizes(z_dim=z_dim, c_dim=c_dim, channels=channels, n_blocks=n_blocks)
        self.z_dim, self.c_dim, self.image_size = z_dim, c_dim, 4 * 2**n_blocks
        self.encoder = conv_encoder(c_dim, channels, n_blocks, z_dim)
        self.decoder = conv_decoder(z_dim, channels, n_blocks, c_dim)

    def encode(self, images: Tensor) -> Tensor:
        """Turn images in [-1, 1], (batch, c_dim, image_size, image_size), into codes, (batch, z_dim)."""
        check_images(images, self.c_dim, self.image_size)
        return self.encoder(images).flatten(1)

    def decode(self, z: Tensor) -> Tensor:
        """Turn codes, (batch, z_dim), into images in [-1, 1], (batch, c_dim, image_size, image_size)."""
        return self.decoder(z).tanh()

    def forward(self, images: Tensor) -> Tensor:
        """Encode images and decode the codes.

        Args:
            images: Images in [-1, 1], of shape (batch, c_dim, image_size, image_size).

        Returns:
            Images in [-1, 1], of the same shape.

        Raises:
            ValueError: If ``images`` has another shape.
        """
        return self.decode(self.encode(images))

    @torch.no_grad()
    def reconstruct(self, images: Tensor) -> Tensor:
        """Do what :meth:`forward` does, in evaluation mode, without recording gradients."""
        with evaluating(self):
            return self(images)


@register_model("glo")
class GLO(BaseModel):
    """A generator whose inputs are learned: a code for each training image, within the unit ball.

    Bojanowski et al. 2018, https://arxiv.org/abs/1707.05776. After each step of the optimiser,
    :meth:`project_codes` puts the codes back into the ball. New images are decoded from a Gaussian fitted to the
    codes.

    Args:
        num_images: Number of training images, each of which has a code.
        z_dim: Length of a code.
        c_dim: Colour channels of the images.
        channels: Feature channels at half the image's resolution; they double with every halving.
        n_blocks: Images have ``4 * 2**n_blocks`` pixels a side.

    Raises:
        ValueError: If a size is below 1.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.GLO(num_images=100, z_dim=20, c_dim=1, channels=16)
        >>> model(torch.tensor([3, 99])).shape
        torch.Size([2, 1, 32, 32])
    """

    def __init__(
        self,
        num_images: int,
        z_dim: PositiveInt = 100,
        c_dim: int = 3,
        channels: PositiveInt = 64,
        n_blocks: int = 3,
    ) -> None:
        super().__init__()
        check_sizes(num_images=num_images, z_dim=z_dim, c_dim=c_dim, channels=channels, n_blocks=n_blocks)
        self.z_dim, self.c_dim, self.image_size = z_dim, c_dim, 4 * 2**n_blocks
        self.codes = nn.Embedding(num_images, z_dim)
        self.decoder = conv_decoder(z_dim, channels, n_blocks, c_dim)
        with torch.no_grad():
            self.codes.weight.mul_(z_dim**-0.5)  # lengths around 1
        self.project_codes()

    @torch.no_grad()
    def project_codes(self) -> None:
        """Put codes that have left the unit ball back onto its surface."""
        weight = self.codes.weight
        weight.div_(weight.norm(dim=1, keepdim=True).clamp(min=1))

    def decode(self, z: Tensor) -> Tensor:
        """Turn codes, (batch, z_dim), into images in [-1, 1], (batch, c_dim, image_size, image_size)."""
        return self.decoder(z).tanh()

    def forward(self, indices: Tensor) -> Tensor:
        """Decode the codes of training images.

        Args:
            indices: Their numbers, int64 of shape (batch,).

        Returns:
            Images in [-1, 1], of shape (batch, c_dim, image_size, image_size).
        """
        return self.decode(self.codes(indices))

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Generate images: decode draws from a Gaussian with the codes' mean and covariance, in evaluation mode.

        Args:
            n: Number of images.
            generator: Source of the random numbers, on any device; PyTorch's global one by default.

        Returns:
            Images in [-1, 1], of shape (n, c_dim, image_size, image_size).
        """
        codes = self.codes.weight
        centred = codes - codes.mean(0)
        device = codes.device if generator is None else generator.device
        weights = torch.randn(n, len(codes), generator=generator, device=device).to(codes)
        # Random combinations of the codes have their covariance, without factorising it.
        z = codes.mean(0) + weights @ centred / max(len(codes) - 1, 1) ** 0.5
        with evaluating(self):
            return self.decode(into_unit_ball(z))


def into_unit_ball(z: Tensor) -> Tensor:
    """Shorten vectors, (batch, z_dim), that are longer than 1 to that length."""
    return z / z.norm(dim=1, keepdim=True).clamp(min=1)


@register_model("deep-image-prior")
class DeepImagePrior(BaseModel):
    """An hourglass that turns one fixed noise image into one image; fitted, it learns the image before its noise.

    Ulyanov et al. 2018, https://arxiv.org/abs/1711.10925. Fit ``model()`` to a damaged image, with the error over
    the known pixels only, and stop early: for denoising, inpainting, super-resolution.

    Args:
        c_dim: Colour channels of the image.
        channels: Feature channels at every resolution.
        n_blocks: Number of halvings.
        image_size: Height and width of the image: one number, or (height, width), multiples of ``2**n_blocks``,
            twice that at least.
        z_dim: Channels of the noise.
        skip_channels: Feature channels passed across at every resolution; 0 for none.

    Attributes:
        noise: The fixed noise image, a buffer of shape (1, z_dim, height, width).

    Raises:
        ValueError: If a size does not fit.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.models.DeepImagePrior(channels=16, n_blocks=2, image_size=(24, 32))().shape
        torch.Size([1, 3, 24, 32])
    """

    noise: Tensor

    def __init__(
        self,
        c_dim: int = 3,
        channels: int = 64,
        n_blocks: int = 4,
        image_size: int | tuple[int, int] = 64,
        *,
        z_dim: int = 32,
        skip_channels: int = 4,
    ) -> None:
        super().__init__()
        check_sizes(c_dim=c_dim, channels=channels, n_blocks=n_blocks, z_dim=z_dim)
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        step = 2**n_blocks
        if skip_channels < 0 or min(height, width) < 2 * step or height % step or width % step:
            raise ValueError(
                f"image_size must be multiples of {step}, from {2 * step} on, skip_channels at least 0, "
                f"got {image_size} and {skip_channels}"
            )

        def block(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
            convolution = nn.Conv2d(
                inputs, outputs, kernel, stride, kernel // 2, padding_mode="reflect", bias=False
            )
            return [convolution, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.2)]

        self.register_buffer("noise", 0.1 * torch.rand(1, z_dim, height, width))
        self.down, self.skip, self.up = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level in range(n_blocks):
            inputs = channels if level else z_dim
            self.down.append(nn.Sequential(*block(inputs, channels, 3, 2), *block(channels, channels, 3)))
            self.skip.append(nn.Sequential(*block(inputs, skip_channels, 1)) if skip_channels else nn.Identity())
            self.up.append(
                nn.Sequential(*block(channels + skip_channels, channels, 3), *block(channels, channels, 1))
            )
        self.head = nn.Sequential(nn.Conv2d(channels, c_dim, 1), nn.Tanh())

    def forward(self) -> Tensor:
        """Compute the image, in [-1, 1], of shape (1, c_dim, height, width)."""
        x, skips = self.noise, []
        for halve, skip in zip(self.down, self.skip, strict=True):
            skips.append(skip(x))
            x = halve(x)
        for double, skipped in zip(reversed(self.up), reversed(skips), strict=True):
            x = interpolate(x, size=skipped.shape[2:], mode="bilinear")
            x = double(x if isinstance(self.skip[0], nn.Identity) else torch.cat((x, skipped), dim=1))
        return self.head(x)
