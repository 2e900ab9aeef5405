"""Translation between images of two kinds, without pairs: Zhu et al. 2017, https://arxiv.org/abs/1703.10593."""

from typing import Literal

import torch
from torch import Tensor

from genimg_fast._evaluating import evaluating
from genimg_fast.models.common import check_choice, check_images
from genimg_fast.models.pix2pix import Norm, PatchDiscriminator, ResNetGenerator, patch_layers
from genimg_fast.models.pretrained import BaseModel
from genimg_fast.models.registry import register_model
from genimg_fast.options import ConvImageSize, PositiveInt

Direction = Literal["a2b", "b2a"]


@register_model("cyclegan")
class CycleGAN(BaseModel):
    """Translates images of one kind into another and back, without pairs of them.

    ``.a2b`` and ``.b2a`` are generators of residual blocks, ``.judge_a`` and ``.judge_b`` discriminators of
    patches of either kind, to be trained with the adversarial loss and the error of what is translated there and
    back (:class:`genimg_fast.training.CycleGANTrainer`).

    Args:
        c_dim: Channels of the images of both kinds.
        channels: Feature channels of all networks.
        image_size: Height and width of the images: a multiple of 4, at least 8.
        n_residual: Residual blocks of a generator; by default 9 from 256 pixels on, else 6.
        n_layers: Depth of the discriminators; by default it follows the image size, as in :class:`Pix2Pix`.
        norm: Of all networks: ``"instance"``, or ``"batch"``.

    Raises:
        ValueError: If a size does not fit, or the norm is unknown.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.CycleGAN(1, channels=8, image_size=32)
        >>> model.translate(torch.randn(2, 1, 32, 32), direction="b2a").shape
        torch.Size([2, 1, 32, 32])
    """

    def __init__(
        self,
        c_dim: int = 3,
        channels: PositiveInt = 64,
        image_size: ConvImageSize = 256,
        *,
        n_residual: PositiveInt | None = None,
        n_layers: PositiveInt | None = None,
        norm: Norm = "instance",
    ) -> None:
        super().__init__()
        if image_size < 8 or image_size % 4 != 0:
            raise ValueError(f"image_size must be a multiple of 4, at least 8, got {image_size}")
        blocks = (9 if image_size >= 256 else 6) if n_residual is None else n_residual
        layers = patch_layers(image_size) if n_layers is None else n_layers
        self.a2b = ResNetGenerator(c_dim, c_dim, channels, blocks, norm=norm)
        self.b2a = ResNetGenerator(c_dim, c_dim, channels, blocks, norm=norm)
        self.judge_a = PatchDiscriminator(c_dim, channels, layers, norm=norm)
        self.judge_b = PatchDiscriminator(c_dim, channels, layers, norm=norm)
        self.c_dim, self.image_size = c_dim, image_size

    def forward(self, images: Tensor, *, direction: Direction = "a2b") -> Tensor:
        """Translate images in the mode that the model is in.

        Args:
            images: Images in [-1, 1], of shape (batch, c_dim, image_size, image_size).
            direction: ``"a2b"`` for images of kind A, ``"b2a"`` for images of kind B.

        Returns:
            Images of the other kind, likewise.

        Raises:
            ValueError: If ``images`` has another shape, or the direction is unknown.
        """
        check_choice("direction", direction, ("a2b", "b2a"))
        check_images(images, self.c_dim, self.image_size)
        return self.a2b(images) if direction == "a2b" else self.b2a(images)

    @torch.no_grad()
    def translate(self, images: Tensor, *, direction: Direction = "a2b") -> Tensor:
        """Translate images in evaluation mode, without recording gradients.

        Args:
            images: Images in [-1, 1], of shape (batch, c_dim, image_size, image_size).
            direction: ``"a2b"`` for images of kind A, ``"b2a"`` for images of kind B.

        Returns:
            Images of the other kind, likewise.

        Raises:
            ValueError: If ``images`` has another shape, or the direction is unknown.
        """
        with evaluating(self):
            return self(images, direction=direction)
