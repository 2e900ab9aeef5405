"""One training step of the networks that paint in a style."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy
import torch
from torch import Tensor

from genimg_fast.data.decode import open_image
from genimg_fast.data.optional import optional_import
from genimg_fast.losses import ContentLoss, StyleLoss, TotalVariationLoss
from genimg_fast.losses.patches import BRIGHTNESS_SHARE, PatchStyle, brightness_distance
from genimg_fast.losses.perceptual import find_features, weigh_alike
from genimg_fast.options import Decay, NonNegativeFloat, PositiveFloat, PositiveInt, Reader
from genimg_fast.training.one_loss import OneLossTrainer
from genimg_fast.training.pictures import Picture
from genimg_fast.training.trainer import Recipe

_SMOOTHNESS = 0.05


class StyleTrainer(OneLossTrainer):
    """Trains a network to paint pictures in the style of one picture.

    Johnson et al. 2016, https://arxiv.org/abs/1603.08155, without a network that has seen millions of pictures.
    Style is the distribution of patches of three sizes, at three scales: the squared sliced Wasserstein distance
    of the batch's from the style's (see :class:`genimg_fast.losses.SlicedWassersteinLoss`), relative to their
    variance. Content is the brightness of the reduced picture, less its mean, in units of its deviation. With a
    ``network``, they are distances of its features, as published.

    Args:
        model: A :class:`genimg_fast.models.StyleNet`, on the device to train on.
        style: File of the picture whose style it is.
        style_size: Pixels of the style's longer side: the fewer, the smaller its strokes come out.
        content_weight: How much the structure of pictures counts.
        network: File of VGG16, VGG19 or SqueezeNet of torchvision, whose features to compare.
        lr: Learning rate of Adam.
        betas: Decay rates of Adam.
        recipe: How to train; ``Recipe()`` by default.
        seed: Seed of the directions on which patches are projected.

    Raises:
        ValueError: If the style cannot be read, or the network is none of these.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.editing.save_picture(torch.rand(3, 40, 40), "noise.png")
        >>> model = gf.models.StyleNet(channels=4, n_residual=1)
        >>> trainer = gf.training.StyleTrainer(model, style="noise.png")
        >>> sorted(trainer.step(torch.rand(2, 3, 32, 32) * 2 - 1))
        ['content', 'loss', 'style']
    """

    curves = (("style", "content"),)

    def __init__(
        self,
        model: Any,
        *,
        style: Annotated[str, Reader(str, "PICTURE")],
        style_size: PositiveInt = 384,
        content_weight: NonNegativeFloat = 1.0,
        network: Annotated[str, Reader(str, "FILE")] | None = None,
        lr: PositiveFloat = 2e-3,
        betas: tuple[Decay, Decay] = (0.9, 0.999),
        recipe: Recipe | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, model.parameters(), lr=lr, betas=betas, recipe=recipe, seed=seed)
        self.content_weight = content_weight
        picture = _read(style, style_size, model.c_dim).to(self.device)
        self._smooth = TotalVariationLoss()
        self._features: tuple[StyleLoss, list[Tensor], ContentLoss] | None = None
        if network is None:
            self._style = PatchStyle([picture], generator=torch.Generator().manual_seed(seed))
        else:
            features = find_features(network).to(self.device)
            compared = StyleLoss(features, value_range=(-1, 1)).to(self.device)
            content = ContentLoss(features, value_range=(-1, 1)).to(self.device)
            wanted = compared.describe(picture)
            variances = [float(features.var()) for features in content.describe(picture)]
            weigh_alike(compared, wanted, content, variances)
            self._features = compared, wanted, content

    def step(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Take one step.

        Args:
            images: Images in [-1, 1], of shape (batch, channels, height, width), on the model's device.
            labels: Not looked at.

        Returns:
            Scalars without gradient: ``style``, ``content``, and ``loss``, which has them weighted.
        """
        return self.take_step(self._update, images)

    def _update(self, images: Tensor) -> dict[str, Tensor]:
        loss, style, content = self.descend(partial(self._losses, self._forward), images)
        return {"loss": loss, "style": style, "content": content}

    def _losses(self, network: Any, images: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        with self.autocast():
            painted = network(images)
        painted = painted.float()
        if self._features is not None:
            compared, wanted, kept = self._features
            style, content = compared(painted, wanted), kept(painted, images)
        else:
            style = self._style(painted, generator=generator)
            content = BRIGHTNESS_SHARE * brightness_distance(painted, images)
        loss = style + self.content_weight * content + _SMOOTHNESS * self._smooth(painted)
        return [loss, style, content]

    def evaluate(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Compute the losses on held-out images, with averaged weights in evaluation mode.

        Args:
            images: Images in [-1, 1], of shape (batch, channels, height, width), on the model's device.
            labels: Not looked at.
            generator: Draws directions.

        Returns:
            What :meth:`step` returns.
        """
        with self.evaluation() as model:
            loss, style, content = self._losses(model, images, generator)
        return {"loss": loss, "style": style, "content": content}

    def pictures(self, images: Tensor, labels: Tensor) -> dict[str, Picture]:
        """Make pictures to look at: ``paintings``, with ``original`` and ``painted`` images."""
        with self.evaluation() as model:
            painted = model(images)
        return {"paintings": Picture(images={"original": images, "painted": painted})}


def _read(style: str, size: int, channels: int) -> Tensor:
    """Read a picture in [-1, 1], (1, channels, height, width), whose longer side has so many pixels."""
    ImageOps = optional_import("PIL.ImageOps")
    try:
        with open_image(Path(style)) as opened:
            image = ImageOps.exif_transpose(opened).convert("L" if channels == 1 else "RGB")
            width, height = (max(1, round(side * size / max(image.size))) for side in image.size)
            pixels = torch.from_numpy(numpy.array(image.resize((width, height)), dtype=numpy.float32))
    except (OSError, ValueError) as error:
        raise ValueError(f"style must be a picture: {error}") from error
    return pixels.view(1, height, width, -1).permute(0, 3, 1, 2) / 127.5 - 1
