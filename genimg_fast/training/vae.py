"""One training step of a VAE."""

from typing import Any

import torch
from torch import Tensor

from genimg_fast.losses import NegativeELBO, active_units, negative_elbo, warmup_beta
from genimg_fast.options import Decay, NonNegativeFloat, NonNegativeInt, PositiveFloat
from genimg_fast.training.one_loss import OneLossTrainer
from genimg_fast.training.pictures import Picture, class_samples
from genimg_fast.training.trainer import Recipe, generator_on


class VAETrainer(OneLossTrainer):
    """Trains a VAE by minimising its negative evidence lower bound with Adam.

    Kingma, Welling 2014, https://arxiv.org/abs/1312.6114. Random numbers come from PyTorch's global generator:
    ``torch.manual_seed`` before the model is built makes a run reproducible.

    Args:
        model: A VAE of this package, such as :class:`genimg_fast.models.VAE`, on the device to train on.
        lr: Learning rate of Adam. The variance of a Gaussian likelihood, one number that has far to go, has ten
            times as much.
        betas: Decay rates of Adam.
        beta: Weight of the KL term.
        warmup: Steps over which that weight rises linearly from 0; 0: none.
        free_bits: Nats of KL divergence per image and latent dimension that cost no more than less would. Kingma
            et al. 2016, https://arxiv.org/abs/1606.04934.
        recipe: How to train; ``Recipe()`` by default.
        seed: Seed of the fixed latents of :meth:`samples`.

    Raises:
        ValueError: If a number is negative.

    Example:
        >>> import genimg_fast as gf
        >>> data = gf.data.load_dataset("digits", image_size=16)
        >>> trainer = gf.training.VAETrainer(gf.models.VAE(z_dim=8, c_dim=1, channels=8, n_blocks=2))
        >>> history = gf.training.fit(trainer, data, steps=2, batch_size=32)
        >>> sorted(history[-1])
        ['active_units', 'data_wait', 'images_per_s', 'kl', 'loss', 'memory_mb', 'reconstruction', 'step']
    """

    curves = (("loss", "reconstruction"), ("kl",))

    def __init__(
        self,
        model: Any,  # a BaseVAE; the attributes of a torch.nn.Module are not typed
        *,
        lr: PositiveFloat = 1e-3,
        betas: tuple[Decay, Decay] = (0.9, 0.999),
        beta: NonNegativeFloat = 1.0,
        warmup: NonNegativeInt = 0,
        free_bits: NonNegativeFloat = 0.0,
        recipe: Recipe | None = None,
        seed: int = 0,
    ) -> None:
        variance = [] if model.image_logvar is None else [model.image_logvar]
        others = [parameter for parameter in model.parameters() if all(parameter is not v for v in variance)]
        groups = [{"params": others, "lr": lr}, {"params": variance, "lr": 10 * lr}]
        used = [group for group in groups if group["params"]]
        super().__init__(model, used, lr=lr, betas=betas, recipe=recipe, seed=seed)
        for name, value in (("beta", beta), ("warmup", warmup), ("free_bits", free_bits)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        self.beta = beta
        self.warmup = warmup
        self.free_bits = free_bits

    def step(
        self, images: Tensor, labels: Tensor | None = None, *, noise: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Take one step.

        Args:
            images: Real images in [-1, 1], of shape (batch, channels, height, width), on the model's device.
            labels: Their classes, int64 of shape (batch,); an unconditional VAE does not look at them.
            noise: The standard normal numbers to sample the latents with, of shape (batch, z_dim), if given.

        Returns:
            Scalars without gradient, in nats, means over the batch: the loss and its two terms (the KL divergence
            before its weight, with free bits if there are any), and the number of active latent dimensions.
        """
        beta = images.new_full((), warmup_beta(self.steps_done + 1, self.warmup, self.beta))
        return self.take_step(self._update, images, self._labels(labels), noise, beta)

    def _update(
        self, images: Tensor, labels: Tensor | None, noise: Tensor | None, beta: Tensor
    ) -> dict[str, Tensor]:
        def losses(images: Tensor, labels: Tensor | None, noise: Tensor | None) -> list[Tensor]:
            terms, mu = self._terms(self._forward, self.model, images, labels, beta, noise=noise)
            return [*terms, active_units(mu.detach()).to(terms.loss)]

        values = self.descend(losses, images, labels, noise)
        return dict(zip(("loss", "reconstruction", "kl", "active_units"), values, strict=True))

    def _terms(
        self, forward: Any, model: Any, images: Tensor, labels: Tensor | None, beta: float | Tensor, **random: Any
    ) -> tuple[NegativeELBO, Tensor]:
        """Compute the loss with its terms, and the posterior means."""
        with self.autocast():
            output = forward(images, labels, free_bits=self.free_bits, **random)
        # Sums over all pixels: in full precision.
        decoded = output.reconstruction.to(images.dtype)
        return negative_elbo(model.log_likelihood(images, decoded), output.kl, beta=beta), output.mu

    def evaluate(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Compute the loss of held-out images, as of the last step, with averaged weights in evaluation mode.

        Args:
            images: Images in [-1, 1], of shape (batch, channels, height, width), on the model's device.
            labels: Their classes, int64 of shape (batch,); an unconditional VAE does not look at them.
            generator: Source of the random numbers, on the CPU.

        Returns:
            Scalars, in nats, means over the batch: the loss and its two terms.
        """
        drawn = generator_on(images.device, generator)
        beta = warmup_beta(max(1, self.steps_done), self.warmup, self.beta)
        with self.evaluation() as model:
            terms, _ = self._terms(model, model, images, self._labels(labels), beta, generator=drawn)
        return terms._asdict()

    def samples(self, n: int = 64) -> Tensor:
        """Generate images from the same latents every time, to watch the training.

        Args:
            n: Number of images; a class-conditional VAE generates all classes in order.

        Returns:
            Images in [-1, 1], of shape (n, channels, height, width).
        """
        return self.sampler.sample(n, generator=torch.Generator().manual_seed(self.seed))

    def pictures(self, images: Tensor, labels: Tensor) -> dict[str, Picture]:
        """Make pictures to look at: samples, and real images with their reconstructions.

        Args:
            images: Real images in [-1, 1], of shape (n, channels, height, width).
            labels: Their classes, int64 of shape (n,).

        Returns:
            ``samples``, from the same latents every time, and ``reconstructions``: each image, ``input``, beside
            the model's version of it, ``output``.
        """
        reconstructions = self.sampler.reconstruct(images, self._labels(labels))
        return {
            "samples": class_samples(self.sampler, generator=torch.Generator().manual_seed(self.seed)),
            "reconstructions": Picture(images={"input": images, "output": reconstructions}),
        }

    def _labels(self, labels: Tensor | None) -> Tensor | None:
        return labels if self.model.num_classes > 0 else None
