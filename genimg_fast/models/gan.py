"""What all GANs here have in common: Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661.

Images come and go in [-1, 1]; discriminators return logits.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from genimg_fast import nn
from genimg_fast._evaluating import evaluating
from genimg_fast.models.common import check_images, check_labels, check_sizes, labels_to_sample
from genimg_fast.models.pretrained import BaseModel


class BaseGenerator(nn.Module):
    """Noise to images.

    A subclass writes ``_images(z, labels)``, which gets noise of shape (batch, z_dim) and labels that
    :meth:`forward` has checked, None without classes, and returns images in [-1, 1] of shape
    (batch, c_dim, image_size, image_size).

    Args:
        z_dim: Length of a noise vector.
        c_dim: Colour channels of the images.
        image_size: Their height and width.
        num_classes: Number of classes of a class-conditional generator, else 0.

    Raises:
        ValueError: If a size is below 1.

    Example:
        >>> import torch, genimg_fast as gf
        >>> class Linear(gf.models.BaseGenerator):
        ...     def __init__(self):
        ...         super().__init__(z_dim=10, c_dim=1, image_size=8)
        ...         self.main = gf.nn.Linear(10, 64)
        ...
        ...     def _images(self, z, labels):
        ...         return self.main(z).tanh().view(-1, 1, 8, 8)
        >>> Linear().sample(4).shape
        torch.Size([4, 1, 8, 8])
    """

    def __init__(self, *, z_dim: int, c_dim: int, image_size: int, num_classes: int = 0) -> None:
        super().__init__()
        check_sizes(z_dim=z_dim, c_dim=c_dim, image_size=image_size)
        self.z_dim = z_dim
        self.c_dim = c_dim
        self.image_size = image_size
        self.num_classes = num_classes

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Turn noise into images.

        Args:
            z: Noise from N(0, 1), of shape (batch, z_dim) or (batch, z_dim, 1, 1).
            labels: Classes to generate, int64 of shape (batch,), if the generator is class-conditional.

        Returns:
            Images in [-1, 1], of shape (batch, c_dim, image_size, image_size).

        Raises:
            ValueError: If ``z`` has another shape, or labels are missing or not taken.
        """
        if z.shape[1:] not in ((self.z_dim,), (self.z_dim, 1, 1)):
            raise ValueError(
                f"expected noise of shape (batch, {self.z_dim}) or (batch, {self.z_dim}, 1, 1), "
                f"got {tuple(z.shape)}"
            )
        check_labels(labels, z.shape[0], self.num_classes)
        return self._images(z.flatten(1), labels)

    @torch.no_grad()
    def sample(
        self, n: int, *, labels: Tensor | int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Generate images, with the running statistics of batch norm and without recording gradients.

        Args:
            n: Number of images.
            labels: For a class-conditional generator: the class of all, or int64 of shape (n,); by default all
                classes in order, equally often.
            generator: Source of the random numbers, on any device; PyTorch's global one by default.

        Returns:
            Images in [-1, 1], of shape (n, c_dim, image_size, image_size).

        Raises:
            ValueError: If labels are not taken or do not fit.

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
            return self(z, labels_to_sample(labels, n, self.num_classes, weight.device))

    def _images(self, z: Tensor, labels: Tensor | None) -> Tensor:
        raise NotImplementedError


class BaseDiscriminator(nn.Module):
    """Images to one logit each.

    A subclass writes ``_logits(images, labels)``, which gets what :meth:`forward` has checked, labels being None
    without classes, and returns logits of as many elements as there are images, such as (batch, 1).

    Args:
        c_dim: Colour channels of the images.
        image_size: Their height and width.
        num_classes: Number of classes of a class-conditional discriminator, else 0.

    Raises:
        ValueError: If a size is below 1.

    Example:
        >>> import torch, genimg_fast as gf
        >>> class Linear(gf.models.BaseDiscriminator):
        ...     def __init__(self):
        ...         super().__init__(c_dim=1, image_size=8)
        ...         self.main = gf.nn.Linear(64, 1)
        ...
        ...     def _logits(self, images, labels):
        ...         return self.main(images.flatten(1))
        >>> Linear()(torch.randn(4, 1, 8, 8)).shape
        torch.Size([4])
    """

    def __init__(self, *, c_dim: int, image_size: int, num_classes: int = 0) -> None:
        super().__init__()
        check_sizes(c_dim=c_dim, image_size=image_size)
        self.c_dim = c_dim
        self.image_size = image_size
        self.num_classes = num_classes

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        """Judge images.

        Args:
            images: Images in [-1, 1], of shape (batch, c_dim, image_size, image_size).
            labels: Their classes, int64 of shape (batch,), if the discriminator is class-conditional.

        Returns:
            Logits of shape (batch,): positive means real. No sigmoid has been applied.

        Raises:
            ValueError: If ``images`` has another shape, labels are missing or not taken, or the network returns
                more than a logit for each image.
        """
        check_images(images, self.c_dim, self.image_size)
        check_labels(labels, images.shape[0], self.num_classes)
        logits = self._logits(images, labels)
        if logits.numel() != images.shape[0]:
            raise ValueError(
                f"a discriminator must return one logit an image, got {tuple(logits.shape)} for {images.shape[0]}"
            )
        return logits.flatten()

    def _logits(self, images: Tensor, labels: Tensor | None) -> Tensor:
        raise NotImplementedError


class BaseGAN(BaseModel):
    """``.generator`` and ``.discriminator``.

    Args:
        generator: Noise, and classes where it is class-conditional, to images.
        discriminator: Such images to logits.

    Example:
        >>> import genimg_fast as gf
        >>> generator = gf.models.MLPGenerator(image_size=8)
        >>> gf.models.BaseGAN(generator, gf.models.MLPDiscriminator(image_size=8)).sample(4).shape
        torch.Size([4, 1, 8, 8])
    """

    generator: BaseGenerator
    discriminator: BaseDiscriminator

    def __init__(self, generator: BaseGenerator, discriminator: BaseDiscriminator) -> None:
        super().__init__()
        self.generator = generator
        self.discriminator = discriminator
        self.image_size = generator.image_size
        self.c_dim = generator.c_dim
        self.num_classes = generator.num_classes

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Turn noise into images: the generator's :meth:`~BaseGenerator.forward`."""
        return self.generator(z, labels)

    def sample(
        self, n: int, *, labels: Tensor | int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Generate images: the generator's :meth:`~BaseGenerator.sample`."""
        return self.generator.sample(n, labels=labels, generator=generator)


class PlainGAN(BaseGAN):
    """A GAN of any two modules, which need no base class, for :class:`genimg_fast.training.GANTrainer`.

    The modules are not copied: whoever holds them has the trained ones. The generator runs once, on zeros in
    evaluation mode, to show the size of its images.

    Args:
        generator: Called with noise from N(0, 1) of shape ``(batch, *noise_shape)``, and with labels, int64 of
            shape (batch,), if there are classes; returns square images in [-1, 1], (batch, channels, size, size).
        discriminator: Called with such images, and labels likewise; returns a logit each, (batch,), (batch, 1) or
            (batch, 1, 1, 1), without a sigmoid.
        noise_shape: Shape of the noise for one image, such as (100,) or (100, 1, 1).
        num_classes: Number of classes; 0 for a GAN without.

    Raises:
        ValueError: If the generator has no parameters or makes no square images, ``noise_shape`` is no shape, or
            the discriminator ends in a sigmoid.

    Example:
        >>> import torch, genimg_fast as gf
        >>> generator = torch.nn.Sequential(torch.nn.ConvTranspose2d(16, 1, 8), torch.nn.Tanh())
        >>> discriminator = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1))
        >>> gan = gf.models.PlainGAN(generator, discriminator, noise_shape=(16, 1, 1))
        >>> trainer = gf.training.GANTrainer(gan)
        >>> history = gf.training.fit(trainer, gf.data.load_dataset("digits", image_size=8), steps=2)
        >>> gan.sample(4).shape
        torch.Size([4, 1, 8, 8])
    """

    def __init__(
        self, generator: nn.Module, discriminator: nn.Module, *, noise_shape: Sequence[int], num_classes: int = 0
    ) -> None:
        if isinstance(noise_shape, int):
            raise ValueError(f"noise_shape must be a shape, such as ({noise_shape},), got {noise_shape}")
        if next(generator.parameters(), None) is None:
            raise ValueError("generator has no parameters: there is nothing to train")
        wrapped = _PlainGenerator(generator, tuple(noise_shape), num_classes)
        sizes = {"c_dim": wrapped.c_dim, "image_size": wrapped.image_size, "num_classes": num_classes}
        super().__init__(wrapped, _PlainDiscriminator(discriminator, **sizes))


class _PlainGenerator(BaseGenerator):
    def __init__(self, network: nn.Module, noise_shape: tuple[int, ...], num_classes: int) -> None:
        weight = next(network.parameters())
        noise = torch.zeros(1, *noise_shape, device=weight.device, dtype=weight.dtype)
        labels = [torch.zeros(1, dtype=torch.int64, device=weight.device)] if num_classes > 0 else []
        with torch.no_grad(), evaluating(network):
            shape = network(noise, *labels).shape
        if len(shape) != 4 or shape[0] != 1 or shape[2] != shape[3]:
            raise ValueError(
                f"generator must make square images, (batch, channels, size, size), of noise of shape "
                f"{tuple(noise.shape)}, got {tuple(shape)}"
            )
        z_dim = math.prod(noise_shape)
        super().__init__(z_dim=z_dim, c_dim=shape[1], image_size=shape[2], num_classes=num_classes)
        self.network = network
        self.noise_shape = noise_shape

    def _images(self, z: Tensor, labels: Tensor | None) -> Tensor:
        images: Tensor = self.network(z.unflatten(1, self.noise_shape), *([] if labels is None else [labels]))
        return images


class _PlainDiscriminator(BaseDiscriminator):
    def __init__(self, network: nn.Module, *, c_dim: int, image_size: int, num_classes: int) -> None:
        super().__init__(c_dim=c_dim, image_size=image_size, num_classes=num_classes)
        if isinstance(list(network.modules())[-1], nn.Sigmoid):
            raise ValueError("discriminator ends in a Sigmoid, and the losses take logits: leave the Sigmoid out")
        self.network = network

    def _logits(self, images: Tensor, labels: Tensor | None) -> Tensor:
        logits: Tensor = self.network(images, *([] if labels is None else [labels]))
        return logits
