"""A model that fills in missing frames of image sequences."""

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from genimg_fast._evaluating import evaluating
from genimg_fast.models.frame_model import BaseFrameModel, Core
from genimg_fast.models.registry import register_model
from genimg_fast.options import NonNegativeInt, NumLayers, PositiveInt


class FrameFilling(NamedTuple):
    """What a :class:`FrameFiller` returns.

    Attributes:
        decoded: Logits of all frames, (batch, steps, c_dim, image_size, image_size).

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.FrameFiller(channels=8, n_blocks=2, hidden_size=8)
        >>> known = torch.tensor([True, False, True])
        >>> model(torch.zeros(2, 3, 1, 16, 16), known).decoded.shape
        torch.Size([2, 3, 1, 16, 16])
    """

    decoded: Tensor


@register_model("frame-filler")
class FrameFiller(BaseFrameModel):
    """Fills in missing frames of a sequence from those before and after them, and so changes its speed.

    Its core runs in both directions. A missing frame goes in grey, and an extra channel tells which are known. As
    in a :class:`FramePredictor`, pixels come from frames nearby: once from the frame before, itself known or
    filled in, once from the frame behind, and the network mixes both.

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
        >>> model = gf.models.FrameFiller(channels=8, hidden_size=16)
        >>> frames, known = torch.zeros(4, 5, 1, 32, 32), torch.tensor([True, False, False, True, True])
        >>> model.fill(frames, known).shape
        torch.Size([4, 5, 1, 32, 32])
        >>> model.retime(frames, speed=0.5).shape
        torch.Size([4, 9, 1, 32, 32])
    """

    def __init__(
        self,
        c_dim: int = 1,
        channels: PositiveInt = 32,
        n_blocks: int = 3,
        *,
        core: Core = "convlstm",
        hidden_size: PositiveInt = 32,
        num_layers: NumLayers = 2,
        reach: NonNegativeInt = 2,
    ) -> None:
        super().__init__(
            in_channels=c_dim + 1, c_dim=c_dim, channels=channels, n_blocks=n_blocks, core=core,
            hidden_size=hidden_size, num_layers=num_layers, reach=reach, bidirectional=True,
        )  # fmt: skip

    def forward(self, frames: Tensor, known: Tensor) -> FrameFilling:
        """Predict all frames from the known ones.

        Args:
            frames: Frames in [-1, 1], of shape (batch, steps, c_dim, image_size, image_size); what stands in those
                that are not known plays no part.
            known: Which frames are, bool of shape (batch, steps), or (steps,) for the same ones in all sequences.

        Returns:
            Logits of all frames.

        Raises:
            ValueError: If a shape does not fit.
        """
        known = self._mask(frames, known)
        # Not a product: an unknown frame may hold NaN.
        visible = torch.where(known, frames, torch.zeros_like(frames))
        channel = known.to(frames.dtype).expand(-1, -1, 1, *frames.shape[3:])
        output, _ = self._run(torch.cat([visible, channel], 2))
        if self.reach == 0:
            return FrameFilling(output)
        before, behind, share, made = output.split([self.candidates, self.candidates, 1, self.c_dim], 2)
        forwards = self._walk(visible.unbind(1), known.unbind(1), before.unbind(1), made.unbind(1))
        backwards = self._walk(*(parts.flip(1).unbind(1) for parts in (visible, known, behind, made)))
        return FrameFilling(
            self._to_logits(torch.lerp(backwards.flip(1), forwards, share.sigmoid().to(forwards.dtype)))
        )

    @torch.no_grad()
    def fill(self, frames: Tensor, known: Tensor) -> Tensor:
        """Fill in the frames that are not known, in evaluation mode, without recording gradients.

        Args:
            frames: Frames in [-1, 1], of shape (batch, steps, c_dim, image_size, image_size).
            known: Which ones to keep, bool of shape (batch, steps) or (steps,).

        Returns:
            Frames in [-1, 1] of the same shape, the known ones as they were.

        Raises:
            ValueError: If a shape does not fit or a sequence has no known frame.
        """
        mask = self._mask(frames, known)
        if not known.any(-1).all():  # not in forward: a GPU has to be waited for
            raise ValueError("known must have a frame that is known in every sequence")
        with evaluating(self):
            filled = self.to_images(self(frames, known).decoded)
        return torch.where(mask, frames, filled)

    def retime(self, frames: Tensor, speed: float | Fraction) -> Tensor:
        """Play sequences faster or slower: frames in between are filled in, and every so many of all are taken.

        Args:
            frames: Frames in [-1, 1], of shape (batch, steps, c_dim, image_size, image_size).
            speed: How much faster: 0.5 is half the speed, 3 leaves two of three frames out. It is rounded to a
                fraction with a denominator of at most 8, which is the number of frames that one becomes.

        Returns:
            Frames in [-1, 1], (steps - 1) / speed + 1 of them, rounded down.

        Raises:
            ValueError: If the shape is another or the speed is below 1/8.
        """
        self._check(frames, 1)
        if not speed >= 1 / 8:
            raise ValueError(f"speed must be at least 1/8, got {speed}")
        fraction = Fraction(speed).limit_denominator(8)
        factor = fraction.denominator
        if factor > 1:
            spread = frames.new_zeros(len(frames), (frames.shape[1] - 1) * factor + 1, *frames.shape[2:])
            spread[:, ::factor] = frames
            frames = self.fill(spread, torch.arange(spread.shape[1], device=frames.device) % factor == 0)
        return frames[:, :: fraction.numerator]

    def _walk(
        self, frames: Sequence[Tensor], known: Sequence[Tensor], logits: Sequence[Tensor], made: Sequence[Tensor]
    ) -> Tensor:
        """Make each frame of the one before it: the known one, or the one that was made."""
        images = [made[0].tanh()]
        for step in range(1, len(frames)):
            last = torch.where(known[step - 1], frames[step - 1], images[-1])
            images.append(self._advect(last, logits[step], made[step]))
        return torch.stack(images, 1)

    def _mask(self, frames: Tensor, known: Tensor) -> Tensor:
        """Check the shapes; return ``known`` with those of ``frames`` but 1 for all behind the first two."""
        self._check(frames, 1)
        if known.dtype != torch.bool or known.shape not in (frames.shape[:2], frames.shape[1:2]):
            raise ValueError(
                f"known must be bool of shape {tuple(frames.shape[:2])} or {tuple(frames.shape[1:2])}, "
                f"got {known.dtype} of shape {tuple(known.shape)}"
            )
        return known.expand(frames.shape[:2]).view(*frames.shape[:2], 1, 1, 1)
