"""A model that continues image sequences."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from genimg_fast._evaluating import evaluating
from genimg_fast.models.common import check_sizes
from genimg_fast.models.frame_model import BaseFrameModel, Core
from genimg_fast.models.registry import register_model
from genimg_fast.options import NonNegativeInt, NumLayers, PositiveInt


class FramePrediction(NamedTuple):
    """What a :class:`FramePredictor` returns.

    Attributes:
        decoded: Logits of the frames from the second on, (batch, steps - 1, c_dim, image_size, image_size).
        state: Of the core after the last frame that went in: what ``core`` takes and returns.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.FramePredictor(channels=8, n_blocks=2, hidden_size=8)
        >>> model(torch.zeros(2, 5, 1, 16, 16)).decoded.shape
        torch.Size([2, 4, 1, 16, 16])
    """

    decoded: Tensor
    state: Any


@register_model("frame-predictor")
class FramePredictor(BaseFrameModel):
    """Predicts the next frame of a sequence from those so far, and goes on from its own predictions.

    A pixel is a weighted mean of the pixels around its place in the last frame and of one made anew, and the
    network finds the weights: dynamic neural advection (Finn et al. 2016, https://arxiv.org/abs/1605.07157). What
    moves keeps its shape that way.

    Args:
        c_dim: Colour channels of the frames.
        channels: Feature channels at half the resolution; they double with every halving.
        n_blocks: Frames have ``4 * 2**n_blocks`` pixels a side.
        core: Recurrent network between frames: ``"convlstm"``, ``"gru"`` or ``"lstm"``. See
            :mod:`genimg_fast.models.frame_model`.
        hidden_size: Channels of a ConvLSTM's state, or length of another core's state and of its input.
        num_layers: Layers of the core.
        reach: Pixels, to every side, that something can move in a frame; 0 makes all pixels anew.

    Raises:
        ValueError: If a size is below 1, ``reach`` is not within the frame, or the core is unknown.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.FramePredictor(channels=8, hidden_size=16)
        >>> frames, _ = gf.data.MovingDigits(image_size=32)[:4]
        >>> model(frames).decoded.shape
        torch.Size([4, 19, 1, 32, 32])
        >>> model.rollout(frames[:, :10], steps=5).shape
        torch.Size([4, 5, 1, 32, 32])
    """

    def __init__(
        self,
        c_dim: int = 1,
        channels: PositiveInt = 32,
        n_blocks: int = 3,
        *,
        core: Core = "convlstm",
        hidden_size: PositiveInt = 64,
        num_layers: NumLayers = 2,
        reach: NonNegativeInt = 2,
    ) -> None:
        super().__init__(
            in_channels=c_dim, c_dim=c_dim, channels=channels, n_blocks=n_blocks, core=core,
            hidden_size=hidden_size, num_layers=num_layers, reach=reach, bidirectional=False,
        )  # fmt: skip

    def forward(
        self,
        frames: Tensor,
        *,
        context: int = 1,
        teacher_forcing: float | Tensor = 1.0,
        generator: torch.Generator | None = None,
    ) -> FramePrediction:
        """Predict each frame but the first from what went in before it.

        With ``teacher_forcing`` below 1 it is scheduled sampling (Bengio et al. 2015,
        https://arxiv.org/abs/1506.03099): behind the first ``context`` frames, the model's own prediction often
        goes in instead of the true frame, and the gradient flows through it.

        Args:
            frames: Frames in [-1, 1], of shape (batch, steps, c_dim, image_size, image_size), at least two steps.
            context: Frames at the beginning that always go in as they are.
            teacher_forcing: Probability, for each sequence and step behind them, that the true frame goes in; a
                tensor with that number is not looked at, so that a step with it can be recorded.
            generator: Source of the random numbers, on the frames' device; PyTorch's global one by default.

        Returns:
            Logits of the frames from the second on, and the state of the core.

        Raises:
            ValueError: If the shape is another or a number is out of range.
        """
        self._check(frames, 2)
        if not 1 <= context < frames.shape[1]:
            raise ValueError(f"context must lie in 1..{frames.shape[1] - 1}, got {context}")
        if not isinstance(teacher_forcing, Tensor):
            if not 0 <= teacher_forcing <= 1:
                raise ValueError(f"teacher_forcing must lie in 0..1, got {teacher_forcing}")
            if teacher_forcing == 1:
                context = frames.shape[1] - 1
        decoded, state = self._next(frames[:, :context])
        predictions = [decoded]
        for step in range(context, frames.shape[1] - 1):
            own = self.to_images(predictions[-1][:, -1])
            drawn = torch.rand(len(frames), 1, 1, 1, generator=generator, device=frames.device)
            fed = torch.where(drawn < teacher_forcing, frames[:, step], own)
            decoded, state = self._next(fed.unsqueeze(1), state)
            predictions.append(decoded)
        return FramePrediction(torch.cat(predictions, 1), state)

    @torch.no_grad()
    def predict(self, frames: Tensor) -> Tensor:
        """Predict, at every step, the next frame, in evaluation mode, without recording gradients.

        Args:
            frames: Frames in [-1, 1], of shape (batch, steps, c_dim, image_size, image_size).

        Returns:
            Frames in [-1, 1] of the same shape, each one the model's idea of the frame that follows.

        Raises:
            ValueError: If the shape is another.

        Example:
            >>> import torch, genimg_fast as gf
            >>> gf.models.FramePredictor(channels=8).predict(torch.zeros(2, 6, 1, 32, 32)).shape
            torch.Size([2, 6, 1, 32, 32])
        """
        self._check(frames, 1)
        with evaluating(self):
            return self.to_images(self._next(frames)[0])

    @torch.no_grad()
    def rollout(self, frames: Tensor, steps: int) -> Tensor:
        """Continue sequences, each new frame from the ones before it, in evaluation mode, without gradients.

        Args:
            frames: Frames in [-1, 1], of shape (batch, any, c_dim, image_size, image_size).
            steps: Number of new frames.

        Returns:
            The new frames alone, in [-1, 1], of shape (batch, steps, c_dim, image_size, image_size).

        Raises:
            ValueError: If the shape is another or ``steps`` is below 1.

        Example:
            >>> import torch, genimg_fast as gf
            >>> gf.models.FramePredictor(channels=8).rollout(torch.zeros(2, 6, 1, 32, 32), steps=3).shape
            torch.Size([2, 3, 1, 32, 32])
        """
        self._check(frames, 1)
        check_sizes(steps=steps)
        with evaluating(self):
            decoded, state = self._next(frames)
            new = [self.to_images(decoded[:, -1:])]
            while len(new) < steps:
                decoded, state = self._next(new[-1], state)
                new.append(self.to_images(decoded))
        return torch.cat(new, 1)

    def _next(self, frames: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Run over frames: logits of the frame after each of them, and the core's state at the end."""
        output, state = self._run(frames, state)
        if self.reach == 0:
            return output, state
        logits, made = output.flatten(0, 1).split([self.candidates, self.c_dim], 1)
        images = self._advect(frames.flatten(0, 1), logits, made)
        return self._to_logits(images).unflatten(0, output.shape[:2]), state
