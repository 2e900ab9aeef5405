"""DCGAN: Radford et al. 2016, https://arxiv.org/abs/1511.06434, and what others made of it.

The layers sit in one ``nn.Sequential`` named ``main``: batch norm and activation run as one fused operator, and
the ``state_dict`` keys are those of PyTorch's own DCGAN example, whose 64x64 checkpoints load into ``n_blocks=4``.
"""

from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn.utils.parametrizations import spectral_norm

from genimg_fast import nn
from genimg_fast.models.common import check_choice, check_sizes
from genimg_fast.models.gan import BaseDiscriminator, BaseGAN, BaseGenerator
from genimg_fast.models.registry import register_model
from genimg_fast.options import PositiveInt

# What keeps a discriminator's activations in bounds.
Norm = Literal["batch", "spectral", "none"]
NORMS = get_args(Norm)
Condition = Literal["concat", "projection"]


def init_weights(module: nn.Module) -> None:
    """Initialise as in the paper: weights N(0, 0.02), batch-norm scales N(1, 0.02), no shift."""
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


class DCGANGenerator(BaseGenerator):
    """The generator of a DCGAN: noise to images, each block doubling the resolution.

    Args:
        z_dim: Length of a noise vector.
        c_dim: Colour channels of the images.
        channels: Feature channels at half the image's resolution; they double with every halving.
        n_blocks: Number of doublings from 4x4; images have ``4 * 2**n_blocks`` pixels a side.
        num_classes: Number of classes of a class-conditional generator, which gets an embedding of the class, as
            long as the noise, beside it: Mirza, Osindero 2014, https://arxiv.org/abs/1411.1784. 0 for none.

    Raises:
        ValueError: If a size is below 1.

    Example:
        >>> import torch, genimg_fast as gf
        >>> generator = gf.models.DCGANGenerator(z_dim=100, c_dim=3, channels=64, n_blocks=3)
        >>> generator(torch.randn(8, 100)).shape
        torch.Size([8, 3, 32, 32])
    """

    def __init__(
        self, z_dim: int = 100, c_dim: int = 3, channels: int = 64, n_blocks: int = 3, *, num_classes: int = 0
    ) -> None:
        check_sizes(channels=channels, n_blocks=n_blocks)
        super().__init__(z_dim=z_dim, c_dim=c_dim, image_size=4 * 2**n_blocks, num_classes=num_classes)
        self.embedding = nn.Embedding(num_classes, z_dim) if num_classes > 0 else None

        width = channels * 2 ** (n_blocks - 1)
        inputs = z_dim if self.embedding is None else 2 * z_dim
        layers: list[nn.Module] = [
            nn.ConvTranspose2d(inputs, width, 4, stride=1, padding=0, bias=False),
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
        self.apply(init_weights)

    def _images(self, z: Tensor, labels: Tensor | None) -> Tensor:
        if self.embedding is not None:
            z = torch.cat((z, self.embedding(labels)), dim=1)
        return self.main(z[:, :, None, None])


class DCGANDiscriminator(BaseDiscriminator):
    """The discriminator of a DCGAN: images to one logit each, each block halving the resolution.

    Args:
        c_dim: Colour channels of the images.
        channels: Feature channels at half the image's resolution; they double with every halving.
        n_blocks: Number of halvings down to 4x4; images have ``4 * 2**n_blocks`` pixels a side.
        norm: ``"batch"``; ``"spectral"`` for weights of spectral norm 1 (Miyato et al. 2018,
            https://arxiv.org/abs/1802.05957) or ``"none"``, both with biases instead of batch norm. A gradient
            penalty needs one of these two: batch norm mixes the samples.
        num_classes: Number of classes of a class-conditional discriminator, 0 for none.
        condition: How that one sees the class. ``"concat"``: as another channel of the image, an embedding of the
            image's size (Mirza, Osindero 2014, https://arxiv.org/abs/1411.1784); ``"projection"``: the logit gets
            the inner product of an embedding and the summed features before the last layer (Miyato, Koyama 2018,
            https://arxiv.org/abs/1802.05637).
        minibatch_std: Whether the last layer sees how much the images of a class vary in the batch: the standard
            deviation within each class, averaged over all features, beside them. Karras et al. 2018,
            https://arxiv.org/abs/1710.10196, section 3, take it over the batch.

    Raises:
        ValueError: If a size is below 1, or an option unknown.

    Example:
        >>> import torch, genimg_fast as gf
        >>> discriminator = gf.models.DCGANDiscriminator(c_dim=3, channels=64, n_blocks=3)
        >>> discriminator(torch.randn(8, 3, 32, 32)).shape
        torch.Size([8])
    """

    def __init__(
        self,
        c_dim: int = 3,
        channels: int = 64,
        n_blocks: int = 3,
        *,
        norm: str = "batch",
        num_classes: int = 0,
        condition: str = "concat",
        minibatch_std: bool = False,
    ) -> None:
        check_sizes(channels=channels, n_blocks=n_blocks)
        super().__init__(c_dim=c_dim, image_size=4 * 2**n_blocks, num_classes=num_classes)
        self.minibatch_std = minibatch_std
        check_choice("norm", norm, NORMS)
        if condition not in ("concat", "projection"):
            raise ValueError(f"condition must be 'concat' or 'projection', got {condition!r}")
        top = channels * 2 ** (n_blocks - 1)
        self.condition = condition if num_classes > 0 else None
        self.embedding: nn.Module | None = None
        if self.condition == "concat":
            self.embedding = nn.Embedding(num_classes, self.image_size**2)
        elif self.condition == "projection":
            self.embedding = nn.Embedding(num_classes, top)
            nn.init.normal_(self.embedding.weight, 0.0, 0.02)

        # The paper leaves the first layer without batch norm.
        bias = norm != "batch"
        layers: list[nn.Module] = [
            nn.Conv2d(c_dim + (self.condition == "concat"), channels, 4, stride=2, padding=1, bias=bias),
            nn.LeakyReLU(0.2, inplace=True),
        ]
        for block in range(n_blocks - 1):
            width = channels * 2**block
            layers.append(nn.Conv2d(width, width * 2, 4, stride=2, padding=1, bias=bias))
            if norm == "batch":
                layers.append(nn.BatchNorm2d(width * 2))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
        layers += [nn.Conv2d(top + minibatch_std, 1, 4, stride=1, padding=0, bias=bias)]
        self.main = nn.Sequential(*layers)
        if norm == "batch":  # else so small weights would let the signal die on its way
            self.apply(init_weights)
        if norm == "spectral":
            for layer in (*self.main, self.embedding):
                if isinstance(layer, (nn.Conv2d, nn.Embedding)):
                    spectral_norm(layer)

    def _logits(self, images: Tensor, labels: Tensor | None) -> Tensor:
        if self.embedding is not None:
            embedded = self.embedding(labels)
        if self.condition == "concat":
            images = torch.cat((images, embedded.view(-1, 1, *images.shape[2:])), dim=1)
        if self.condition != "projection" and not self.minibatch_std:
            return self.main(images)
        features = seen = self.main[:-1](images)
        if self.minibatch_std:
            std = deviation_within_classes(features, labels).view(-1, 1, 1, 1)
            seen = torch.cat((features, std.expand(-1, 1, *features.shape[2:])), dim=1)
        logits = self.main[-1](seen).flatten()
        return logits if self.condition != "projection" else logits + (embedded * features.sum((2, 3))).sum(1)


def deviation_within_classes(features: Tensor, labels: Tensor | None) -> Tensor:
    """Compute the standard deviation of features within the class of each sample, averaged over all features.

    Args:
        features: Of shape (batch, ...).
        labels: Classes, int64 of shape (batch,); None for a single one.

    Returns:
        Of shape (batch,) and the features' type; next to 0 for a class of one sample.
    """
    flat = features.flatten(1).float()
    labels = torch.zeros(len(flat), device=flat.device) if labels is None else labels
    same = (labels[:, None] == labels).float()
    with torch.autocast(flat.device.type, enabled=False):  # differences take full precision
        share = same / same.sum(1, keepdim=True)
        variance = share @ (flat - share @ flat).square()
        return (variance + 1e-6).sqrt().mean(1).to(features.dtype)  # a finite gradient at 0


@register_model("dcgan")
class DCGAN(BaseGAN):
    """A DCGAN: ``.generator`` and ``.discriminator``.

    The defaults give the 32x32 network (1,068,928 and 663,296 parameters), ``n_blocks=4`` the classic 64x64 one.

    Args:
        z_dim: Length of a noise vector.
        c_dim: Colour channels of the images.
        channels: Feature channels of both networks at half the image's resolution.
        n_blocks: Images have ``4 * 2**n_blocks`` pixels a side.
        norm: Of the discriminator: ``"batch"``, ``"spectral"`` or ``"none"``.

    Raises:
        ValueError: If a size is below 1, or an option unknown.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.DCGAN(z_dim=100, c_dim=3, channels=64, n_blocks=3)
        >>> model.discriminator(model.generator(torch.randn(8, 100))).shape
        torch.Size([8])
    """

    def __init__(
        self,
        z_dim: PositiveInt = 100,
        c_dim: int = 3,
        channels: PositiveInt = 64,
        n_blocks: int = 3,
        *,
        norm: Norm = "batch",
    ) -> None:
        super().__init__(
            DCGANGenerator(z_dim, c_dim, channels, n_blocks),
            DCGANDiscriminator(c_dim, channels, n_blocks, norm=norm),
        )


@register_model("wgan")
class WGAN(DCGAN):
    """A DCGAN whose discriminator is a critic without batch norm, to be trained with a Wasserstein loss.

    Something has to keep the critic Lipschitz: clipped weights (Arjovsky et al. 2017,
    https://arxiv.org/abs/1701.07875), a gradient penalty (Gulrajani et al. 2017,
    https://arxiv.org/abs/1704.00028, :func:`genimg_fast.losses.gradient_penalty`), or ``norm="spectral"``.

    Args:
        z_dim: Length of a noise vector.
        c_dim: Colour channels of the images.
        channels: Feature channels of both networks at half the image's resolution.
        n_blocks: Images have ``4 * 2**n_blocks`` pixels a side.
        norm: Of the critic: ``"none"`` or ``"spectral"``.

    Raises:
        ValueError: If a size is below 1, or an option unknown.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.WGAN(c_dim=1, channels=16)
        >>> model.discriminator(model.sample(2)).shape
        torch.Size([2])
    """

    def __init__(
        self,
        z_dim: PositiveInt = 100,
        c_dim: int = 3,
        channels: PositiveInt = 64,
        n_blocks: int = 3,
        *,
        norm: Literal["none", "spectral"] = "none",
    ) -> None:
        if norm not in ("none", "spectral"):
            raise ValueError(f"norm of a critic must be 'none' or 'spectral', got {norm!r}")
        super().__init__(z_dim, c_dim, channels, n_blocks, norm=norm)


@register_model("cdcgan")
class ConditionalDCGAN(BaseGAN):
    """A class-conditional DCGAN: both networks know the class.

    Args:
        num_classes: Number of classes.
        z_dim: Length of a noise vector.
        c_dim: Colour channels of the images.
        channels: Feature channels of both networks at half the image's resolution.
        n_blocks: Images have ``4 * 2**n_blocks`` pixels a side.
        norm: Of the discriminator: ``"batch"``, ``"spectral"`` or ``"none"``.
        condition: How the discriminator sees the class: ``"concat"`` or ``"projection"``. See
            :class:`DCGANDiscriminator`. On little data, such as scikit-learn's digits, ``"projection"`` tends to
            one image per class.
        minibatch_std: Whether the discriminator sees how much the images of a class vary in the batch.

    Raises:
        ValueError: If a size is below 1, or an option unknown.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.ConditionalDCGAN(num_classes=10, c_dim=1, channels=16)
        >>> model.sample(4, labels=7).shape
        torch.Size([4, 1, 32, 32])
    """

    def __init__(
        self,
        num_classes: int,
        z_dim: PositiveInt = 100,
        c_dim: int = 3,
        channels: PositiveInt = 64,
        n_blocks: int = 3,
        *,
        norm: Norm = "batch",
        condition: Condition = "concat",
        minibatch_std: bool = False,
    ) -> None:
        check_sizes(num_classes=num_classes)
        super().__init__(
            DCGANGenerator(z_dim, c_dim, channels, n_blocks, num_classes=num_classes),
            DCGANDiscriminator(
                c_dim,
                channels,
                n_blocks,
                norm=norm,
                num_classes=num_classes,
                condition=condition,
                minibatch_std=minibatch_std,
            ),
        )
