"""One training step of the models that turn images into images: Pix2Pix, autoencoder, GLO."""

from typing import Any, Literal

import torch
from torch import Tensor

from genimg_fast._evaluating import evaluating
from genimg_fast.losses import GANLoss
from genimg_fast.losses.gan import GANLossName
from genimg_fast.models.common import check_choice
from genimg_fast.options import Decay, NonNegativeFloat, PositiveFloat
from genimg_fast.training.gan import frozen
from genimg_fast.training.one_loss import OneLossTrainer
from genimg_fast.training.pictures import Picture, class_samples
from genimg_fast.training.trainer import BaseTrainer, Recipe


class Pix2PixTrainer(BaseTrainer):
    """Trains a Pix2Pix on pairs of images: an adversarial loss and the mean absolute error.

    Isola et al. 2017, https://arxiv.org/abs/1611.07004. A pair comes as one image, its halves A | B side by side.

    Args:
        model: A :class:`genimg_fast.models.Pix2Pix`, on the device to train on.
        direction: Which half goes in: ``"a2b"`` or ``"b2a"``.
        l1: Weight of the mean absolute error.
        loss: Adversarial loss. One of ``genimg_fast.losses.GAN_LOSSES``.
        lr: Learning rate of Adam.
        betas: Decay rates of Adam.
        recipe: How to train; ``Recipe()`` by default.
        seed: Not used: nothing is drawn for pictures.

    Raises:
        ValueError: If a value is out of range or unknown.

    Example:
        >>> import torch, genimg_fast as gf
        >>> trainer = gf.training.Pix2PixTrainer(gf.models.Pix2Pix(1, 1, channels=4, image_size=16))
        >>> values = trainer.step(torch.rand(4, 1, 16, 32) * 2 - 1)
        >>> sorted(values)
        ['l1', 'loss_d', 'loss_g']
    """

    curves = (("loss_d", "loss_g"), ("l1",))

    def __init__(
        self,
        model: Any,
        *,
        direction: Literal["a2b", "b2a"] = "a2b",
        l1: NonNegativeFloat = 100.0,
        loss: GANLossName = "non_saturating",
        lr: PositiveFloat = 2e-4,
        betas: tuple[Decay, Decay] = (0.5, 0.999),
        recipe: Recipe | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, recipe=recipe, seed=seed)
        check_choice("direction", direction, ("a2b", "b2a"))
        if not l1 >= 0:
            raise ValueError(f"l1 must be at least 0, got {l1}")
        self.direction, self.l1, self.loss = direction, l1, GANLoss(loss)
        self._generator = self.prepared(model.generator)
        self._discriminator = self.prepared(model.discriminator)
        self.add_optimizer("g", model.generator.parameters(), lr=lr, betas=betas)
        self.add_optimizer("d", model.discriminator.parameters(), lr=lr, betas=betas)

    def halves(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Cut pairs, (batch, channels, n, 2 n), into what goes in and what should come out.

        Pairs have as many channels as the half with more of them; a grey half has its one in each.

        Raises:
            ValueError: If the pairs have another shape.
        """
        sizes = self.model.in_channels, self.model.out_channels
        channels, n = max(sizes), self.model.image_size
        if pairs.shape[1:] != (channels, n, 2 * n):
            raise ValueError(
                f"expected pairs of images side by side, (batch, {channels}, {n}, {2 * n}), "
                f"got {tuple(pairs.shape)}"
            )
        halves = pairs.chunk(2, dim=3)
        source, target = halves if self.direction == "a2b" else halves[::-1]
        return source[:, : sizes[0]], target[:, : sizes[1]]

    def step(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Take one step of the discriminator and one of the generator.

        Args:
            images: Pairs in [-1, 1], of shape (batch, channels, height, 2 * width), on the model's device.
            labels: Not looked at.

        Returns:
            Scalars without gradient: both adversarial losses, and the mean absolute error.
        """
        return self.take_step(self._update, *self.halves(images))

    def _update(self, source: Tensor, target: Tensor) -> dict[str, Tensor]:
        with torch.no_grad() if self.recipe.accumulate > 1 else torch.enable_grad():
            fakes = [self._translated(part) for (part,) in self.parts(source)]
        losses: list[list[Tensor]] = [[], [], []]
        parts = [(*pair, fake) for pair, fake in zip(self.parts(source, target), fakes, strict=True)]
        with self.descending("d"):
            for given, real, fake in self.in_turn(parts):
                if self.loss.paired:
                    with self.autocast():
                        logits = self._discriminator(given, real), self._discriminator(given, fake.detach())
                        loss_d = 0.5 * self.loss.discriminator(*logits)
                    self.backward(loss_d)
                    losses[0].append(loss_d.detach())
                    continue
                with self.adding_up():
                    with self.autocast():
                        loss_real = 0.5 * self.loss.real(self._discriminator(given, real))
                    self.backward(loss_real)
                with self.autocast():
                    loss_fake = 0.5 * self.loss.fake(self._discriminator(given, fake.detach()))
                self.backward(loss_fake)
                losses[0].append((loss_real + loss_fake).detach())
        with frozen(self.model.discriminator), self.descending("g"):
            for given, real, fake in self.in_turn(parts):
                output = fake if fake.requires_grad else self._translated(given)
                with self.autocast():
                    with torch.no_grad():
                        beside = self._discriminator(given, real) if self.loss.paired else None
                    loss_g = self.loss.generator(self._discriminator(given, output), beside)
                error = (output.float() - real).abs().mean()
                self.backward(loss_g + self.l1 * error)
                losses[1].append(loss_g.detach())
                losses[2].append(error.detach())
        means = [torch.stack(values).mean() for values in losses]
        return dict(zip(("loss_d", "loss_g", "l1"), means, strict=True))

    def evaluate(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Compute the error on held-out pairs, with averaged weights in evaluation mode.

        Args:
            images: Pairs in [-1, 1], of shape (batch, channels, height, 2 * width), on the model's device.
            labels: Not looked at.
            generator: Not used: nothing is drawn.

        Returns:
            The mean absolute error. The adversarial losses say nothing about pairs that the discriminator has not
            trained on.
        """
        source, target = self.halves(images)
        with self.evaluation() as model, self.autocast():
            output = model.generator(source)
        return {"l1": (output.float() - target).abs().mean()}

    def _translated(self, source: Tensor) -> Tensor:
        with self.autocast():
            return self._generator(source)

    def pictures(self, images: Tensor, labels: Tensor) -> dict[str, Picture]:
        """Make pictures to look at: ``translations``, with ``input``, ``output`` and ``target`` of each pair.

        Args:
            images: Pairs in [-1, 1], of shape (n, channels, height, 2 * width).
            labels: Not looked at.
        """
        source, target = self.halves(images)
        output = self.sampler.translate(source)
        return {"translations": Picture(images={"input": source, "output": output, "target": target})}


class _ReconstructionTrainer(OneLossTrainer):
    """What the two trainers of the mean squared error share."""

    curves = (("loss",),)

    def _update(self, images: Tensor, inputs: Tensor) -> dict[str, Tensor]:
        (loss,) = self.descend(self._losses, images, inputs)
        return {"loss": loss}

    def _losses(self, images: Tensor, inputs: Tensor) -> list[Tensor]:
        with self.autocast():
            output = self._forward(inputs)
        return [(output.float() - images).square().mean()]


class AutoencoderTrainer(_ReconstructionTrainer):
    """Trains an autoencoder by the mean squared error of its reconstructions.

    Args:
        model: A :class:`genimg_fast.models.Autoencoder`, on the device to train on.
        lr: Learning rate of Adam.
        betas: Decay rates of Adam.
        recipe: How to train; ``Recipe()`` by default.
        seed: Not used: nothing is drawn for pictures.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.Autoencoder(z_dim=8, c_dim=1, channels=4, n_blocks=2)
        >>> sorted(gf.training.AutoencoderTrainer(model).step(torch.zeros(4, 1, 16, 16)))
        ['loss']
    """

    def __init__(
        self,
        model: Any,
        *,
        lr: PositiveFloat = 1e-3,
        betas: tuple[Decay, Decay] = (0.9, 0.999),
        recipe: Recipe | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, model.parameters(), lr=lr, betas=betas, recipe=recipe, seed=seed)

    def step(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Take one step.

        Args:
            images: Images in [-1, 1], of shape (batch, channels, height, width), on the model's device.
            labels: Not looked at.

        Returns:
            A scalar without gradient: the mean squared error.
        """
        return self.take_step(self._update, images, images)

    def evaluate(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Compute the mean squared error on held-out images, with averaged weights in evaluation mode.

        Args:
            images: Images in [-1, 1], of shape (batch, channels, height, width), on the model's device.
            labels: Not looked at.
            generator: Not used: nothing is drawn.

        Returns:
            The error.
        """
        with self.evaluation() as model, self.autocast():
            output = model(images)
        return {"loss": (output.float() - images).square().mean()}

    def pictures(self, images: Tensor, labels: Tensor) -> dict[str, Picture]:
        """Make pictures to look at: ``reconstructions``, each ``input`` beside the model's ``output``."""
        return {"reconstructions": Picture(images={"input": images, "output": self.sampler.reconstruct(images)})}


class GLOTrainer(_ReconstructionTrainer):
    """Trains a GLO by the mean squared error between each image and what is decoded from its code.

    Bojanowski et al. 2018, https://arxiv.org/abs/1707.05776. The "labels" of the data set are the images' numbers:
    ``ImageDataset(images, torch.arange(len(images)))``.

    Args:
        model: A :class:`genimg_fast.models.GLO`, on the device to train on.
        lr: Learning rate of Adam. The codes, each of which is seen once an epoch, have ten times as much.
        betas: Decay rates of Adam.
        recipe: How to train; ``Recipe()`` by default.
        seed: Seed of the fixed codes of ``samples``.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.GLO(num_images=4, z_dim=8, c_dim=1, channels=4, n_blocks=2)
        >>> sorted(gf.training.GLOTrainer(model).step(torch.zeros(4, 1, 16, 16), torch.arange(4)))
        ['loss']
    """

    def __init__(
        self,
        model: Any,
        *,
        lr: PositiveFloat = 1e-3,
        betas: tuple[Decay, Decay] = (0.9, 0.999),
        recipe: Recipe | None = None,
        seed: int = 0,
    ) -> None:
        groups = [
            {"params": list(model.decoder.parameters())},
            {"params": list(model.codes.parameters()), "lr": 10 * lr},
        ]
        super().__init__(model, groups, lr=lr, betas=betas, recipe=recipe, seed=seed)

    def step(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Take one step.

        Args:
            images: Images in [-1, 1], of shape (batch, channels, height, width), on the model's device.
            labels: Their numbers, int64 of shape (batch,).

        Returns:
            A scalar without gradient: the mean squared error.
        """
        return self.take_step(self._update, images, labels)

    def _update(self, images: Tensor, inputs: Tensor) -> dict[str, Tensor]:
        values = super()._update(images, inputs)
        self.model.project_codes()
        return values

    def pictures(self, images: Tensor, labels: Tensor) -> dict[str, Picture]:
        """Make pictures to look at: ``samples``, and ``reconstructions``, each image beside its ``output``."""
        with torch.no_grad(), evaluating(self.sampler):
            decoded = self.sampler(labels)
        return {
            "samples": class_samples(self.sampler, generator=torch.Generator().manual_seed(self.seed)),
            "reconstructions": Picture(images={"input": images, "output": decoded}),
        }
