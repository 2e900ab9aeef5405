"""One training step of the networks that repair images."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg_fast.data.degradations import JPEG, Blur, Downsample, RandomHoles, gaussian_kernel
from genimg_fast.options import Decay, NonNegativeFloat, PositiveFloat
from genimg_fast.training.one_loss import OneLossTrainer
from genimg_fast.training.pictures import Picture
from genimg_fast.training.trainer import Recipe

# From how much to how much: levels of noise, pixels of blur, qualities of JPEG, shares of holes.
_STRENGTHS = {"denoise": (0.0, 55.0), "deblur": (0.5, 2.5), "jpeg": (10.0, 60.0), "inpaint": (0.1, 0.6)}
_HOLE = 4  # pixels
_NOISE = 1.0  # levels of 255 that are on top of a blur


class RestorationTrainer(OneLossTrainer):
    """Trains a restorer by the mean absolute error, on images that it spoils itself, anew in each step.

    For ``"neighbor2neighbor"`` images are noisy already: of each square of 2x2 pixels, one pixel goes into an
    image of half the size, and its neighbour is what the network should make of it. The mean squared error's
    minimum is the clean image, as noise of neighbours is independent; a second term takes off that neighbours
    differ in clean images, too. Huang et al. 2021, https://arxiv.org/abs/2101.02824.

    Args:
        model: A :class:`genimg_fast.models.Restorer`, on the device to train on.
        strength: How much images are spoiled, the lower number first: standard deviation of noise in levels of 255
            (default: 0 to 55), of a Gaussian blur in pixels (0.5 to 2.5), quality of JPEG (10 to 60), or share of
            holes (0.1 to 0.6).
        lr: Learning rate of Muon.
        momentum: Decay rate of Muon.
        recipe: How to train; ``Recipe()`` by default.
        seed: Seed of how the images in pictures are spoiled.

    Raises:
        ValueError: If ``strength`` is no range of what the task has, or given for a task that has none.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.Restorer("denoise", c_dim=1, channels=4)
        >>> sorted(gf.training.RestorationTrainer(model).step(torch.zeros(4, 1, 16, 16)))
        ['loss']
    """

    curves = (("loss",),)

    def __init__(
        self,
        model: Any,
        *,
        strength: tuple[NonNegativeFloat, NonNegativeFloat] | None = None,
        lr: PositiveFloat = 0.01,
        momentum: Decay = 0.95,
        recipe: Recipe | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, model.parameters(), lr=lr, momentum=momentum, recipe=recipe, seed=seed)
        known = _STRENGTHS.get(model.task)
        if strength is not None:
            if known is None:
                raise ValueError(f"strength must be left out for {model.task}, which has none")
            most = {"jpeg": 100.0, "inpaint": 1.0}.get(model.task, math.inf)
            least = {"jpeg": 1.0, "deblur": 1e-3}.get(model.task, 0.0)
            if not least <= strength[0] <= strength[1] <= most:
                raise ValueError(
                    f"strength must be two numbers from {least:g} to {most:g}, the lower first, got {strength}"
                )
        self.strength = strength or known or (0.0, 0.0)

    def spoil(self, images: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor | None]:
        """Spoil images, and say how much, as the model is told.

        Args:
            images: Images in [-1, 1], of shape (batch, channels, height, width).
            generator: Of random numbers, on the CPU; PyTorch's global one by default.

        Returns:
            What goes into the model: images and levels.
        """
        task, pictures = self.model.task, images.add(1).div(2)
        least, most = self.strength
        strengths = least + (most - least) * torch.rand(len(images), generator=generator)
        levels: Tensor | None = None
        if task == "denoise":
            noise = torch.randn(images.shape, generator=generator) * (strengths / 255).view(-1, 1, 1, 1)
            spoilt, levels = pictures + noise.to(pictures), strengths.to(images)
        elif task == "deblur":
            blurred = [Blur(gaussian_kernel(s))(p) for s, p in zip(strengths.tolist(), pictures, strict=True)]
            # As rounding and any camera leave: without, a network would learn to make much of what is not there.
            noise = torch.randn(images.shape, generator=generator) * (_NOISE / 255)
            spoilt, levels = (torch.stack(blurred) + noise.to(pictures)).clamp(0, 1), strengths.to(images)
        elif task == "jpeg":
            spoilt = torch.stack([JPEG(round(s))(p) for s, p in zip(strengths.tolist(), pictures, strict=True)])
        elif task == "inpaint":
            chosen = strengths.tolist()
            masks = [
                RandomHoles(s, _HOLE).masks(p, generator=generator) for s, p in zip(chosen, pictures, strict=True)
            ]
            levels = torch.stack(masks)
            spoilt = torch.where(levels > 0.5, 0.5, pictures)
        elif task == "neighbor2neighbor":
            return images, None
        else:
            spoilt = Downsample(self.model.scale)(pictures)
        return spoilt.mul(2).sub(1), levels

    def step(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Take one step.

        Args:
            images: Images in [-1, 1], of shape (batch, channels, height, width), on the model's device.
            labels: Not looked at.

        Returns:
            A scalar without gradient: the mean absolute error, or the loss of Neighbor2Neighbor.
        """
        if self.model.task == "neighbor2neighbor":
            height, width = (side // 2 * 2 for side in images.shape[2:])  # neighbours are of cells of 2x2
            images = images[:, :, :height, :width]
            return self.take_step(self._update_from_neighbours, images, *_draw_neighbours(images))
        return self.take_step(self._update, self._target(images), *self.spoil(images))

    def _target(self, images: Tensor) -> Tensor:
        """Leave out the rows and columns that do not fill up a pixel."""
        height, width = (side // self.model.scale * self.model.scale for side in images.shape[2:])
        return images[:, :, :height, :width]

    def _update(self, images: Tensor, spoilt: Tensor, levels: Tensor | None) -> dict[str, Tensor]:
        (loss,) = self.descend(self._error, images, spoilt, levels)
        return {"loss": loss}

    def _error(self, images: Tensor, spoilt: Tensor, levels: Tensor | None) -> list[Tensor]:
        with self.autocast():
            restored = self._forward(spoilt, levels)
        return [(restored.float() - images).abs().mean()]

    def _update_from_neighbours(self, images: Tensor, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        (loss,) = self.descend(self._difference, images, first, second)
        return {"loss": loss}

    def _difference(self, images: Tensor, first: Tensor, second: Tensor) -> list[Tensor]:
        squares = F.pixel_unshuffle(images.reshape(-1, 1, *images.shape[2:]), 2)
        one, other = (_pick(squares, which, images) for which in (first, second))
        with torch.no_grad(), self.autocast():
            whole = self._forward(images)
        squares = F.pixel_unshuffle(whole.float().reshape(-1, 1, *images.shape[2:]), 2)
        clean_one, clean_other = (_pick(squares, which, images) for which in (first, second))
        with self.autocast():
            restored = self._forward(one)
        wrong = restored.float() - other
        return [wrong.square().mean() + 2 * (wrong - (clean_one - clean_other)).square().mean()]

    def evaluate(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Compute the error on held-out images, with averaged weights in evaluation mode.

        Args:
            images: Images in [-1, 1], of shape (batch, channels, height, width), on the model's device.
            labels: Not looked at.
            generator: Decides how they are spoiled.

        Returns:
            The mean absolute error. For Neighbor2Neighbor, it is that to the noisy images.
        """
        spoilt, levels = self.spoil(images, generator)
        with self.evaluation() as model, self.autocast():
            restored = model(spoilt, levels)
        return {"loss": (restored.float() - self._target(images)).abs().mean()}

    def pictures(self, images: Tensor, labels: Tensor) -> dict[str, Picture]:
        """Make pictures to look at: ``restorations``, with ``degraded``, ``restored`` and ``original`` images."""
        spoilt, levels = self.spoil(images, torch.Generator().manual_seed(self.seed))
        with self.evaluation() as model:
            restored = model(spoilt, levels)
        if self.model.scale > 1:
            spoilt = F.interpolate(spoilt, scale_factor=self.model.scale)
        panels = {"degraded": spoilt.clamp(-1, 1), "restored": restored.clamp(-1, 1)}
        if self.model.task != "neighbor2neighbor":
            panels["original"] = self._target(images)
        return {"restorations": Picture(images=panels)}


def _draw_neighbours(images: Tensor) -> tuple[Tensor, Tensor]:
    """Draw two pixels that are neighbours of each square of 2x2: their numbers, (batch, 1, rows, columns)."""
    batch, _, height, width = images.shape
    # Squares are numbered 0 1 / 2 3.
    pairs = torch.tensor([[0, 1], [0, 2], [1, 3], [2, 3], [1, 0], [2, 0], [3, 1], [3, 2]])
    drawn = pairs[torch.randint(8, (batch, 1, height // 2, width // 2))].to(images.device)
    return drawn[..., 0], drawn[..., 1]


def _pick(squares: Tensor, which: Tensor, images: Tensor) -> Tensor:
    """Take a pixel of each square, the same in all channels; squares are (batch * channels, 4, rows, columns)."""
    batch, channels = images.shape[:2]
    index = which.expand(-1, channels, -1, -1).reshape(-1, 1, *which.shape[2:])
    return squares.gather(1, index).view(batch, channels, *which.shape[2:])
