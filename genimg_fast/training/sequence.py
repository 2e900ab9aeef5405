"""One training step of the models of sequences."""

from typing import Any

import torch
from torch import Tensor

from genimg_fast.losses import bernoulli_log_likelihood
from genimg_fast.options import Decay, NonNegativeInt, PositiveFloat, PositiveInt, Probability
from genimg_fast.training.one_loss import OneLossTrainer
from genimg_fast.training.pictures import Picture
from genimg_fast.training.trainer import Recipe, generator_on


def teacher_forcing_probability(step: int, steps: int, final: float = 0.0) -> float:
    """Lower the probability that a true frame goes in, linearly from 1: scheduled sampling.

    Bengio et al. 2015, https://arxiv.org/abs/1506.03099.

    Args:
        step: Number of the step of training, from 1.
        steps: Number of the step at which the last probability is reached; 0 for that one from the beginning.
        final: The last probability.

    Returns:
        The probability at this step.

    Example:
        >>> import genimg_fast as gf
        >>> [gf.training.teacher_forcing_probability(step, steps=4, final=0.2) for step in (1, 2, 4, 100)]
        [0.8, 0.6, 0.2, 0.2]
    """
    return round(1 - (1 - final) * min(1.0, step / steps), 12) if steps > 0 else final


def draw_known_frames(batch: int, steps: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw which frames a :class:`genimg_fast.models.FrameFiller` is to see: the first, the last, and some others.

    For every other sequence these are at equal distances, 2 to 4, as when a clip is slowed down; for the rest each
    frame is missing with a probability that is drawn first, between 0 and 0.9.

    Args:
        batch: Number of sequences.
        steps: Frames in each.
        generator: Source of the random numbers, on the CPU; PyTorch's global one by default.

    Returns:
        True for a frame to be seen, of shape (batch, steps), on the CPU.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.training.draw_known_frames(2, 7, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2, 7])
    """
    distance = torch.randint(2, 5, (batch, 1), generator=generator)
    missing = 0.9 * torch.rand(batch, 1, generator=generator)
    known = torch.rand(batch, steps, generator=generator) >= missing
    known[::2] = (torch.arange(steps) % distance == 0)[::2]
    known[:, 0] = known[:, -1] = True
    return known


def predictions(model: Any, frames: Tensor, context: int) -> Picture:
    """Show sequences, and their first ``context`` frames as the model continues them."""
    given = frames[:, :context]
    continued = torch.cat([given, model.rollout(given, frames.shape[1] - context)], 1)
    return Picture(
        images={"truth": frames, "model": continued}, generated=torch.arange(frames.shape[1]) >= context
    )


def fillings(model: Any, frames: Tensor, known: Tensor) -> Picture:
    """Show sequences, the same with grey for what is missing, and as the model fills them."""
    known = known.to(frames.device).expand(frames.shape[:2])
    given = frames * known.view(*known.shape, 1, 1, 1)
    return Picture(images={"truth": frames, "given": given, "model": model.fill(frames, known)}, generated=~known)


def completions(model: Any, images: Tensor, rows: int, generator: torch.Generator) -> Picture:
    """Show images, the same with grey below the upper ``rows``, and as the model completes them."""
    given = images.clone()
    given[:, :, rows:] = 0
    completed = model.complete(images[:, :, :rows], generator=generator)
    return Picture(images={"truth": images, "given": given, "model": completed})


class FramePredictorTrainer(OneLossTrainer):
    """Trains a frame predictor with Adam on the cross-entropy of each next frame.

    With ``teacher_forcing`` below 1 the model learns to go on from its own predictions, too: scheduled sampling,
    see :func:`teacher_forcing_probability`. ``torch.manual_seed`` before the model is built makes a run
    reproducible.

    Args:
        model: A :class:`genimg_fast.models.FramePredictor`, on the device to train on.
        lr: Learning rate of Adam.
        betas: Decay rates of Adam.
        context: Frames at the beginning of a sequence that are always given; half of them by default.
        teacher_forcing: Last probability that the true frame goes in behind them.
        forcing_steps: Steps over which that probability falls linearly from 1.
        recipe: How to train; ``Recipe()`` by default.
        seed: Not used: nothing is drawn for pictures.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> import genimg_fast as gf
        >>> data = gf.data.MovingDigits(100, frames=6, image_size=16)
        >>> model = gf.models.FramePredictor(channels=4, n_blocks=2, hidden_size=8)
        >>> history = gf.training.fit(gf.training.FramePredictorTrainer(model), data, steps=2, batch_size=4)
        >>> sorted(history[-1])
        ['data_wait', 'images_per_s', 'loss', 'memory_mb', 'mse', 'step', 'teacher_forcing']
    """

    curves = (("loss",), ("mse",))

    def __init__(
        self,
        model: Any,  # a FramePredictor; the attributes of a torch.nn.Module are not typed
        *,
        lr: PositiveFloat = 3e-3,
        betas: tuple[Decay, Decay] = (0.9, 0.999),
        context: PositiveInt | None = None,
        teacher_forcing: Probability = 1.0,
        forcing_steps: NonNegativeInt = 0,
        recipe: Recipe | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, model.parameters(), lr=lr, betas=betas, recipe=recipe, seed=seed)
        if context is not None and context < 1:
            raise ValueError(f"context must be at least 1, got {context}")
        if not 0 <= teacher_forcing <= 1:
            raise ValueError(f"teacher_forcing must lie in 0..1, got {teacher_forcing}")
        if forcing_steps < 0:
            raise ValueError(f"forcing_steps must be at least 0, got {forcing_steps}")
        self.context = context
        self.teacher_forcing = teacher_forcing
        self.forcing_steps = forcing_steps

    def check_data(self, images: Tensor) -> None:
        """Look at sequences before they are trained on.

        Args:
            images: Some of them, of shape (batch, steps, channels, height, width).

        Raises:
            ValueError: If they have no frame behind the context.
        """
        if (self.context or 1) >= images.shape[1]:
            raise ValueError(f"context must be below {images.shape[1]}, the number of frames, got {self.context}")

    def step(self, images: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Take one step.

        Args:
            images: Frames in [-1, 1], of shape (batch, steps, channels, height, width), on the model's device.
            labels: Not looked at.

        Returns:
            Scalars without gradient: the loss, in nats a frame; the mean squared error of the predictions behind
            the context, of pixels in [0, 1]; and the probability of teacher forcing.
        """
        probability = teacher_forcing_probability(self.steps_done + 1, self.forcing_steps, self.teacher_forcing)
        if probability == 1:
            return self.take_step(self._update, images, None)
        return self.take_step(self._update, images, images.new_full((), probability))

    def _update(self, images: Tensor, teacher_forcing: Tensor | None) -> dict[str, Tensor]:
        context = self._context(images)
        probability = 1.0 if teacher_forcing is None else teacher_forcing
        loss, mse = self.descend(lambda part: self._losses(self._forward, part, context, probability), images)
        return {"loss": loss, "mse": mse, "teacher_forcing": torch.ones_like(loss) * probability}

    def _losses(
        self, forward: Any, frames: Tensor, context: int, teacher_forcing: float | Tensor,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Compute the loss and, without gradient, the mean squared error."""
        with self.autocast():
            output = forward(frames, context=context, teacher_forcing=teacher_forcing, generator=generator)
        decoded, targets = output.decoded.float(), frames[:, 1:]
        loss = -bernoulli_log_likelihood(targets.flatten(0, 1), decoded.flatten(0, 1)).mean()
        with torch.no_grad():
            predicted = self.model.to_images(decoded[:, context - 1 :])
            mse = (predicted - targets[:, context - 1 :]).square().mean() / 4
        return loss, mse

    def evaluate(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Compute the losses of held-out sequences, as of the last step, with averaged weights in evaluation mode.

        Args:
            images: Frames in [-1, 1], of shape (batch, steps, channels, height, width), on the model's device.
            labels: Not looked at.
            generator: Source of the random numbers, on the CPU.

        Returns:
            The loss, in nats a frame, and the mean squared error, as :meth:`step` returns them.
        """
        step = max(1, self.steps_done)
        probability = teacher_forcing_probability(step, self.forcing_steps, self.teacher_forcing)
        drawn = generator_on(images.device, generator)
        with self.evaluation() as model:
            loss, mse = self._losses(model, images, self._context(images), probability, drawn)
        return {"loss": loss, "mse": mse}

    def pictures(self, images: Tensor, labels: Tensor) -> dict[str, Picture]:
        """Make pictures to look at: sequences beside their continuation by the model.

        Args:
            images: Frames in [-1, 1], of shape (n, steps, channels, height, width).
            labels: Not looked at.

        Returns:
            ``predictions``: each sequence, ``truth``, beside its beginning and how ``model`` continues it.
        """
        return {"predictions": predictions(self.sampler, images, self._context(images))}

    def _context(self, images: Tensor) -> int:
        return self.context or max(1, images.shape[1] // 2)


class FrameFillerTrainer(OneLossTrainer):
    """Trains a frame filler with Adam on the cross-entropy of frames that it does not see.

    Which ones these are comes from PyTorch's global generator (:func:`draw_known_frames`): ``torch.manual_seed``
    before the model is built makes a run reproducible.

    Args:
        model: A :class:`genimg_fast.models.FrameFiller`, on the device to train on.
        lr: Learning rate of Adam.
        betas: Decay rates of Adam.
        recipe: How to train; ``Recipe()`` by default.
        seed: Of the frames that are missing in pictures.

    Raises:
        ValueError: If a number is negative.

    Example:
        >>> import genimg_fast as gf
        >>> data = gf.data.MovingDigits(100, frames=6, image_size=16)
        >>> model = gf.models.FrameFiller(channels=4, n_blocks=2, hidden_size=8)
        >>> history = gf.training.fit(gf.training.FrameFillerTrainer(model), data, steps=2, batch_size=4)
        >>> sorted(history[-1])
        ['data_wait', 'images_per_s', 'loss', 'memory_mb', 'mse', 'step']
    """

    curves = (("loss",), ("mse",))

    def __init__(
        self,
        model: Any,  # a FrameFiller; the attributes of a torch.nn.Module are not typed
        *,
        lr: PositiveFloat = 3e-3,
        betas: tuple[Decay, Decay] = (0.9, 0.999),
        recipe: Recipe | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, model.parameters(), lr=lr, betas=betas, recipe=recipe, seed=seed)

    def step(
        self, images: Tensor, labels: Tensor | None = None, *, known: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Take one step.

        Args:
            images: Frames in [-1, 1], of shape (batch, steps, channels, height, width), on the model's device.
            labels: Not looked at.
            known: The frames that the model sees, bool of shape (batch, steps), if given.

        Returns:
            Scalars without gradient: the loss, in nats a missing frame, and the mean squared error of those
            frames, of pixels in [0, 1].
        """
        if known is None:
            known = draw_known_frames(*images.shape[:2])
        return self.take_step(self._update, images, known.to(self.device))

    def _update(self, images: Tensor, known: Tensor) -> dict[str, Tensor]:
        # The mean is over the missing frames of the batch, wherever its parts have them.
        count = (~known).sum().clamp(min=1) / self.recipe.accumulate
        loss, mse = self.descend(lambda part, seen: self._losses(self._forward, part, seen, count), images, known)
        return {"loss": loss, "mse": mse}

    def _losses(self, forward: Any, frames: Tensor, known: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the loss and, without gradient, the mean squared error: sums over missing frames / ``count``."""
        with self.autocast():
            decoded = forward(frames, known).decoded.flatten(0, 1).float()
        missing, targets = ~known.flatten(), frames.flatten(0, 1)
        # Weights instead of a selection, whose size the processor would have to wait for.
        loss = -(bernoulli_log_likelihood(targets, decoded) * missing).sum() / count
        with torch.no_grad():
            squared = (self.model.to_images(decoded) - targets).square().flatten(1).mean(1) / 4
        return loss, (squared * missing).sum() / count

    def evaluate(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Compute the losses of held-out sequences, with averaged weights in evaluation mode.

        Args:
            images: Frames in [-1, 1], of shape (batch, steps, channels, height, width), on the model's device.
            labels: Not looked at.
            generator: Source of the random numbers, on the CPU: they decide which frames are missing.

        Returns:
            The loss, in nats a missing frame, and the mean squared error, as :meth:`step` returns them.
        """
        known = draw_known_frames(*images.shape[:2], generator=generator).to(images.device)
        with self.evaluation() as model:
            loss, mse = self._losses(model, images, known, (~known).sum().clamp(min=1))
        return {"loss": loss, "mse": mse}

    def pictures(self, images: Tensor, labels: Tensor) -> dict[str, Picture]:
        """Make pictures to look at: sequences, what the model sees of them, and what it makes of that.

        Args:
            images: Frames in [-1, 1], of shape (n, steps, channels, height, width).
            labels: Not looked at.

        Returns:
            ``fillings``: each sequence as ``truth``, ``given`` (a missing frame shows grey) and ``model``.
        """
        generator = torch.Generator().manual_seed(self.seed)
        known = draw_known_frames(*images.shape[:2], generator=generator)
        return {"fillings": fillings(self.sampler, images, known)}


class RowRNNTrainer(OneLossTrainer):
    """Trains a model of image rows by maximum likelihood, with Adam.

    Args:
        model: A :class:`genimg_fast.models.RowRNN`, on the device to train on.
        lr: Learning rate of Adam.
        betas: Decay rates of Adam.
        recipe: How to train; ``Recipe()`` by default.
        seed: Seed of the random numbers of :meth:`samples` and of completions.

    Raises:
        ValueError: If a number is negative.

    Example:
        >>> import genimg_fast as gf
        >>> data = gf.data.load_dataset("digits", image_size=16)
        >>> trainer = gf.training.RowRNNTrainer(gf.models.RowRNN(image_size=16, hidden_size=32))
        >>> history = gf.training.fit(trainer, data, steps=2, batch_size=32)
        >>> sorted(history[-1])
        ['data_wait', 'images_per_s', 'loss', 'memory_mb', 'step']
    """

    curves = (("loss",),)

    def __init__(
        self,
        model: Any,  # a RowRNN; the attributes of a torch.nn.Module are not typed
        *,
        lr: PositiveFloat = 3e-3,
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
            A scalar without gradient: the loss, in nats an image.
        """
        return self.take_step(self._update, images)

    def _update(self, images: Tensor) -> dict[str, Tensor]:
        (loss,) = self.descend(lambda part: [self._loss(self._forward, part)], images)
        return {"loss": loss}

    def _loss(self, forward: Any, images: Tensor) -> Tensor:
        with self.autocast():
            output = forward(images)
        return -self.model.log_likelihood(images, type(output)(*(t.float() for t in output))).mean()

    def evaluate(
        self, images: Tensor, labels: Tensor | None = None, *, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """Compute the loss of held-out images, with averaged weights in evaluation mode.

        Args:
            images: Images in [-1, 1], of shape (batch, channels, height, width), on the model's device.
            labels: Not looked at.
            generator: Not used: nothing is drawn.

        Returns:
            The loss, in nats an image.
        """
        with self.evaluation() as model:
            return {"loss": self._loss(model, images)}

    def samples(self, n: int = 64) -> Tensor:
        """Generate images from the same random numbers every time, to watch the training.

        Args:
            n: Number of images.

        Returns:
            Images in [-1, 1], of shape (n, channels, height, width).
        """
        return self.sampler.sample(n, generator=torch.Generator().manual_seed(self.seed))

    def pictures(self, images: Tensor, labels: Tensor) -> dict[str, Picture]:
        """Make pictures to look at: samples, and images beside the model's completion of their upper half.

        Args:
            images: Real images in [-1, 1], of shape (n, channels, height, width).
            labels: Not looked at.

        Returns:
            ``samples`` (those of :meth:`samples`) and ``completions``: each image as ``truth``, ``given`` (grey
            where there is nothing) and ``model``.
        """
        generator = torch.Generator().manual_seed(self.seed)
        return {
            "samples": Picture(images=self.samples()),
            "completions": completions(self.sampler, images, images.shape[2] // 2, generator),
        }
