"""One training step of a GAN."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from genimg_fast.losses import GANLoss, gradient_penalty, r1_penalty
from genimg_fast.losses.gan import GANLossName
from genimg_fast.models.common import check_sizes
from genimg_fast.options import Decay, NonNegativeFloat, PositiveFloat, PositiveInt, Probability
from genimg_fast.training.pictures import Picture, class_samples
from genimg_fast.training.trainer import BaseTrainer, Recipe


class GANTrainer(BaseTrainer):
    """Trains a GAN by alternating steps of the discriminator and of the generator.

    Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661; Adam's settings are those of Radford et al. 2016,
    https://arxiv.org/abs/1511.06434. Noise comes from PyTorch's global generator: ``torch.manual_seed`` before the
    model is built makes a run reproducible. A class-conditional model sees the labels of the data.

    Args:
        model: A GAN of this package, such as :class:`genimg_fast.models.DCGAN`, or of any two modules,
            :class:`genimg_fast.models.PlainGAN`, on the device to train on.
        loss: Adversarial loss. One of ``genimg_fast.losses.GAN_LOSSES``.
        label_smoothing: How far the label of real images lies below 1.
        lr: Learning rate of Adam.
        lr_d: Learning rate of the discriminator, if it is not ``lr``.
        betas: Decay rates of Adam.
        n_critic: Steps of the discriminator, each with a batch of its own, for one of the generator.
        gp: Weight of the gradient penalty. It is 10 in its paper; see :func:`genimg_fast.losses.gradient_penalty`.
        r1: Weight of the penalty on the gradient at real images. See :func:`genimg_fast.losses.r1_penalty`.
        r2: Weight of the same penalty at generated images. With the relativistic loss, R1 and R2 are R3GAN's.
        clip_weights: Largest magnitude of the discriminator's weights; 0: any. It is 0.01 in the paper on
            Wasserstein GANs.
        recipe: How to train; ``Recipe()`` by default.
        seed: Seed of the fixed noise of :meth:`samples`.

    Raises:
        ValueError: If a value is out of range or unknown, or a penalty meets batch norm.

    Example:
        >>> import genimg_fast as gf
        >>> data = gf.data.load_dataset("digits", image_size=16)
        >>> trainer = gf.training.GANTrainer(gf.models.DCGAN(c_dim=1, channels=16, n_blocks=2))
        >>> history = gf.training.fit(trainer, data, steps=2, batch_size=32)
        >>> sorted(history[-1])
        ['data_wait', 'fake_logit', 'images_per_s', 'loss_d', 'loss_g', 'memory_mb', 'real_logit', 'step']
    """

    curves = (("loss_d", "loss_g"), ("real_logit", "fake_logit"))

    def __init__(
        self,
        model: Any,  # a BaseGAN; the attributes of a torch.nn.Module are not typed
        *,
        loss: GANLossName = "non_saturating",
        label_smoothing: Probability = 0.0,
        lr: PositiveFloat = 2e-4,
        lr_d: PositiveFloat | None = None,
        betas: tuple[Decay, Decay] = (0.5, 0.999),
        n_critic: PositiveInt = 1,
        gp: NonNegativeFloat = 0.0,
        r1: NonNegativeFloat = 0.0,
        r2: NonNegativeFloat = 0.0,
        clip_weights: NonNegativeFloat = 0.0,
        recipe: Recipe | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, recipe=recipe, seed=seed)
        check_sizes(n_critic=n_critic)
        for name, value in (("gp", gp), ("r1", r1), ("r2", r2), ("clip_weights", clip_weights)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        norms = [m for m in model.discriminator.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        penalties = [name for name, value in (("gp", gp), ("r1", r1), ("r2", r2)) if value > 0]
        if penalties and norms:
            raise ValueError(
                f"{penalties[0]} must be 0: it judges each image alone, and batch norm in the "
                "discriminator mixes them; use a discriminator with norm 'none' or 'spectral'"
            )
        self.loss = GANLoss(loss, label_smoothing=label_smoothing)
        self.n_critic, self.gp, self.r1, self.r2, self.clip_weights = n_critic, gp, r1, r2, clip_weights
        self._generator = self.prepared(model.generator)
        self._discriminator = self.prepared(model.discriminator)
        self.add_optimizer("g", model.generator.parameters(), lr=lr, betas=betas)
        self.add_optimizer("d", model.discriminator.parameters(), lr=lr if lr_d is None else lr_d, betas=betas)

    def step(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Take one step of the discriminator and, every ``n_critic`` steps, one of the generator.

        Args:
            images: Real images in [-1, 1], of shape (batch, channels, height, width), on the model's device.
            labels: Their classes, int64 of shape (batch,); an unconditional GAN does not look at them.

        Returns:
            Scalars without gradient: both losses, and the mean logits of real and generated images. When it is not
            the generator's turn, its loss is that of the images that the discriminator has just seen.
        """
        if self.model.num_classes == 0:
            labels = None
        return self.take_step(
            self._update, images, labels, generator_turn=(self.steps_done + 1) % self.n_critic == 0
        )

    def _update(self, images: Tensor, labels: Tensor | None, *, generator_turn: bool) -> dict[str, Tensor]:
        # In one part, the generator's turn takes up the images that the discriminator has seen.
        keep = generator_turn and self.recipe.accumulate == 1
        paired = self.loss.paired
        fakes: list[tuple[Tensor, Tensor, Any]] = []
        logged: list[Tensor] = []

        with self.descending("d"):
            for real, classes in self.parts(images, labels):
                # A backward pass for each half of the loss, unless it compares the two: the first graph is gone
                # before the second one is made.
                with nullcontext() if paired else self.adding_up():
                    with self.autocast():
                        real_logits = self._discriminator(real, classes)
                        first = real_logits.new_zeros(()) if paired else self.loss.real(real_logits)
                    if self.r1 > 0:
                        first = first + self._r1_penalty(self.r1, real, classes)
                    if not paired:
                        self.backward(first)
                with self.autocast():
                    with torch.set_grad_enabled(keep):
                        fake = self._fake(len(real), classes)
                    fakes.append((fake, real, classes))
                    # Detached, the generated images pass no gradient on to the generator.
                    fake_logits = self._discriminator(fake.detach(), classes)
                    if paired:
                        second = first + self.loss.discriminator(real_logits, fake_logits)
                    else:
                        second = self.loss.fake(fake_logits)
                    loss_g = self.loss.generator(fake_logits.detach(), real_logits.detach())
                if self.r2 > 0:
                    second = second + self._r1_penalty(self.r2, fake.to(real.dtype), classes)
                if self.gp > 0:
                    second = second + self._gradient_penalty(real, fake, classes)
                self.backward(second)
                loss_d = second if paired else first + second
                scalars = loss_d, loss_g, real_logits.mean(), fake_logits.mean()
                logged.append(torch.stack(scalars).detach())
        if self.clip_weights > 0:
            with torch.no_grad():
                for parameter in self.model.discriminator.parameters():
                    parameter.clamp_(-self.clip_weights, self.clip_weights)

        names = ("loss_d", "loss_g", "real_logit", "fake_logit")
        values = dict(zip(names, torch.stack(logged).mean(0).unbind(), strict=True))
        if generator_turn:
            # The gradient flows through the discriminator, but none is computed for its parameters.
            losses = []
            with frozen(self.model.discriminator), self.descending("g"):
                for fake, real, classes in self.in_turn(fakes):
                    with self.autocast():
                        images_g = fake if keep else self._fake(len(fake), classes)
                        with torch.no_grad():
                            beside = self._discriminator(real, classes) if paired else None
                        loss_g = self.loss.generator(self._discriminator(images_g, classes), beside)
                    self.backward(loss_g)
                    losses.append(loss_g.detach())
            values["loss_g"] = torch.stack(losses).mean()
        return values

    def evaluate(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Let the discriminator judge held-out images, in the mode that it is in: as it judges those of a step.

        Where its logits are lower than those of training images, ``real_logit`` of a step, and nearer to
        ``fake_logit``, it knows the training images by heart (Karras et al. 2020,
        https://arxiv.org/abs/2006.06676). It has the weights that the generator trains against, not averaged ones.

        Args:
            images: Images in [-1, 1], of shape (batch, channels, height, width), on the model's device.
            labels: Their classes, int64 of shape (batch,); an unconditional GAN does not look at them.
            generator: Not used: nothing is drawn.

        Returns:
            The mean logit.
        """
        discriminator = self.model.discriminator
        # Running statistics, and the vectors of spectral norm, are for training images alone.
        buffers = {name: buffer.clone() for name, buffer in discriminator.named_buffers()}
        classes = labels if self.model.num_classes > 0 else None
        with torch.no_grad(), self.autocast():
            logits = functional_call(discriminator, buffers, (images, classes))
        return {"real_logit": logits.float().mean()}

    def _fake(self, n: int, labels: Tensor | None) -> Tensor:
        return self._generator(torch.randn(n, self.model.generator.z_dim, device=self.device), labels)

    # The penalties are gradients of gradients: in full precision, whatever the recipe, and not compiled, because
    # torch.compile has no second derivatives.

    def _gradient_penalty(self, real: Tensor, fake: Tensor, labels: Tensor | None) -> Tensor:
        discriminator = self.model.discriminator
        return self.gp * gradient_penalty(lambda x: discriminator(x, labels), real, fake.to(real.dtype))

    def _r1_penalty(self, weight: float, images: Tensor, labels: Tensor | None) -> Tensor:
        discriminator = self.model.discriminator
        return weight * r1_penalty(lambda x: discriminator(x, labels), images)

    def samples(self, n: int = 64) -> Tensor:
        """Generate images from the same noise every time, with the averaged weights, to watch the training.

        Args:
            n: Number of images; a class-conditional GAN generates all classes in order.

        Returns:
            Images in [-1, 1], of shape (n, channels, height, width).
        """
        return self.sampler.sample(n, generator=torch.Generator().manual_seed(self.seed))

    def pictures(self, images: Tensor, labels: Tensor) -> dict[str, Picture]:
        """Make pictures to look at: ``samples``, from the same noise every time. Real images play no part."""
        return {"samples": class_samples(self.sampler, generator=torch.Generator().manual_seed(self.seed))}


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Compute no gradients of a network's parameters."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
