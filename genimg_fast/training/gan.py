"""One training step of a GAN."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from genimg_fast.losses import GANLoss


class GANTrainer:
    """Trains a GAN by alternating one step of the discriminator and one of the generator.

    Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661; Adam's settings are those of Radford et al. 2016,
    https://arxiv.org/abs/1511.06434. Noise comes from PyTorch's global generator: ``torch.manual_seed`` before the
    model is built makes a run reproducible.

    Args:
        model: A model with ``generator``, ``discriminator`` and ``sample(n, generator=)``, such as
            :class:`genimg_fast.models.DCGAN`, on the device to train on.
        loss: One of ``genimg_fast.losses.GAN_LOSSES``.
        lr: Adam's learning rate for both networks.
        betas: Adam's decay rates.
        seed: Seed of the fixed noise of :meth:`samples`.

    Example:
        >>> import genimg_fast as gf
        >>> data = gf.data.load_dataset("digits", image_size=16)
        >>> trainer = gf.training.GANTrainer(gf.models.DCGAN(c_dim=1, channels=16, n_blocks=2))
        >>> history = gf.training.fit(trainer, data, steps=2, batch_size=32)
        >>> sorted(history[-1])
        ['fake_logit', 'images_per_s', 'loss_d', 'loss_g', 'real_logit', 'step']
    """

    curves = (("loss_d", "loss_g"),)

    def __init__(
        self,
        model: Any,  # a torch.nn.Module; its attributes are not typed
        *,
        loss: str = "non_saturating",
        lr: float = 2e-4,
        betas: tuple[float, float] = (0.5, 0.999),
        seed: int = 0,
    ) -> None:
        self.model = model
        self.loss = GANLoss(loss)
        self.seed = seed
        self.device = next(model.parameters()).device
        self.steps_done = 0
        # One kernel for all parameters instead of a dozen small ones for each.
        fused = self.device.type in ("cpu", "cuda")
        self.optimizer_g = torch.optim.Adam(self.model.generator.parameters(), lr, betas, fused=fused)
        self.optimizer_d = torch.optim.Adam(self.model.discriminator.parameters(), lr, betas, fused=fused)

    def step(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Take one step of the discriminator and one of the generator.

        Args:
            images: Real images in [-1, 1], of shape (batch, channels, height, width), on the model's device.
            labels: Their classes; an unconditional GAN does not look at them.

        Returns:
            Scalars without gradient: both losses, and the mean logits of real and generated images.
        """
        generator, discriminator = self.model.generator, self.model.discriminator
        fake = generator(torch.randn(len(images), generator.z_dim, device=self.device))

        # Discriminator: detached, the generated images pass no gradient on to the generator.
        real_logits, fake_logits = discriminator(images), discriminator(fake.detach())
        loss_d = self.loss.discriminator(real_logits, fake_logits)
        self.optimizer_d.zero_grad()
        loss_d.backward()
        self.optimizer_d.step()

        # Generator: the gradient flows through the discriminator, but none is computed for its parameters.
        with _frozen(discriminator):
            loss_g = self.loss.generator(discriminator(fake))
            self.optimizer_g.zero_grad()
            loss_g.backward()
            self.optimizer_g.step()

        self.steps_done += 1
        return {
            "loss_d": loss_d.detach(),
            "loss_g": loss_g.detach(),
            "real_logit": real_logits.detach().mean(),
            "fake_logit": fake_logits.detach().mean(),
        }

    def samples(self, n: int = 64) -> Tensor:
        """Generate images from the same noise every time, to watch the training.

        Args:
            n: Number of images.

        Returns:
            Images in [-1, 1], of shape (n, channels, height, width).
        """
        return self.model.sample(n, generator=torch.Generator().manual_seed(self.seed))

    def pictures(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Make pictures to look at: ``samples``, those of :meth:`samples`. Real images play no part."""
        return {"samples": self.samples()}

    def state_dict(self) -> dict[str, Any]:
        """Get all that the training has changed: networks, optimisers, number of steps."""
        return {
            "model": self.model.state_dict(),
            "optimizer_g": self.optimizer_g.state_dict(),
            "optimizer_d": self.optimizer_d.state_dict(),
            "step": self.steps_done,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what :meth:`state_dict` returned.

        Args:
            state: The state, of a model of the same size.
        """
        self.model.load_state_dict(state["model"])
        self.optimizer_g.load_state_dict(state["optimizer_g"])
        self.optimizer_d.load_state_dict(state["optimizer_d"])
        self.steps_done = state["step"]


@contextmanager
def _frozen(module: nn.Module) -> Iterator[None]:
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
