"""Models of image sequences, and of images as sequences of rows.

Frames and images come and go in [-1, 1], frames in the order (batch, steps, c_dim, height, width). What a network
says about them are the logits of Bernoulli pixels, with (frame + 1) / 2 as target of the cross-entropy, whose best
answer is the mean; ``to_images`` turns logits into frames.

A frame model has a recurrent core between a convolutional encoder and decoder:

============ ========================================= =========================================================
core         encoder and decoder                       state
============ ========================================= =========================================================
``convlstm`` to a quarter of the resolution, and back  a ConvLSTM's (Shi et al. 2015, arXiv:1506.04214): what
                                                       moves stays where it is in the frame, and new shapes are
                                                       no harder than known ones
``lstm``     those of the VAEs: a vector a frame       one vector a layer: cheaper, and good for what the
``gru``                                                training has shown
============ ========================================= =========================================================
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad, unfold

from genimg_fast import nn
from genimg_fast._evaluating import evaluating
from genimg_fast._images import check_values
from genimg_fast.losses.elbo import logistic_log_likelihood
from genimg_fast.models.common import check_choice, check_sizes, conv_decoder, conv_encoder
from genimg_fast.models.pretrained import BaseModel
from genimg_fast.models.registry import register_model

CORES = ("convlstm", "gru", "lstm")


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


class RowPrediction(NamedTuple):
    """What a :class:`RowRNN` returns: a mixture for each row, given those above it.

    Attributes:
        mean: Of the components' pixels, (batch, image_size, components, c_dim * image_size).
        log_scale: Logarithm of their scale, of the same shape.
        mixture: Logits of the components, (batch, image_size, components).

    Example:
        >>> import torch, genimg_fast as gf
        >>> prediction = gf.models.RowRNN(image_size=16, components=5)(torch.zeros(2, 1, 16, 16))
        >>> prediction.mean.shape, prediction.mixture.shape
        (torch.Size([2, 16, 5, 16]), torch.Size([2, 16, 5]))
    """

    mean: Tensor
    log_scale: Tensor
    mixture: Tensor


class BaseFrameModel(BaseModel):
    """What models of frames have in common: encoder, recurrent core, decoder.

    Args:
        in_channels: Channels of what goes in.
        c_dim: Colour channels of the frames.
        channels: Feature channels at half the resolution; they double with every halving.
        n_blocks: Frames have ``4 * 2**n_blocks`` pixels a side.
        core: ``"convlstm"``, ``"gru"`` or ``"lstm"``.
        hidden_size: Channels, or length, of the core's state.
        num_layers: Layers of the core.
        reach: Pixels, to every side, that something can move in a frame; 0 makes all pixels anew.
        bidirectional: Whether the core also runs from the last frame to the first.

    Raises:
        ValueError: If a size is below 1, ``reach`` is not within the frame, or the core is unknown.

    Example:
        >>> import genimg_fast as gf
        >>> issubclass(gf.models.FrameFiller, gf.models.BaseFrameModel)
        True
    """

    core: nn.Module

    def __init__(
        self,
        *,
        in_channels: int,
        c_dim: int,
        channels: int,
        n_blocks: int,
        core: str,
        hidden_size: int,
        num_layers: int,
        reach: int,
        bidirectional: bool,
    ) -> None:
        super().__init__()
        check_sizes(
            c_dim=c_dim, channels=channels, n_blocks=n_blocks, hidden_size=hidden_size, num_layers=num_layers
        )
        check_choice("core", core, CORES)
        self.c_dim = c_dim
        self.image_size = 4 * 2**n_blocks
        if not 0 <= reach < self.image_size:
            raise ValueError(f"reach must lie in 0..{self.image_size - 1}, got {reach}")
        self.reach = reach
        self.candidates = (2 * reach + 1) ** 2 + 1  # what a pixel can be made of: those around, and a new one
        directions = 2 if bidirectional else 1
        width = directions * hidden_size
        out_channels = c_dim if reach == 0 else c_dim + directions * self.candidates + directions - 1
        if core == "convlstm":
            self.encoder = nn.Sequential(
                nn.Conv2d(in_channels, channels, 4, stride=2, padding=1),
                nn.LeakyReLU(0.2, inplace=True),
                nn.Conv2d(channels, 2 * channels, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(2 * channels),
                nn.LeakyReLU(0.2, inplace=True),
            )
            layer = _BidirectionalConvLSTM2d if bidirectional else nn.ConvLSTM2d
            self.core = layer(2 * channels, hidden_size, 3, num_layers)
            self.decoder = nn.Sequential(
                nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(channels),
                nn.LeakyReLU(0.2, inplace=True),
                nn.ConvTranspose2d(channels, out_channels, 4, stride=2, padding=1),
            )
        else:
            recurrent = nn.GRU if core == "gru" else nn.LSTM
            self.encoder = nn.Sequential(*conv_encoder(in_channels, channels, n_blocks, hidden_size), nn.Flatten())
            self.core = recurrent(hidden_size, hidden_size, num_layers, bidirectional=bidirectional)
            self.decoder = conv_decoder(width, channels, n_blocks, out_channels)

    def to_images(self, decoded: Tensor) -> Tensor:
        """Turn logits into frames in [-1, 1]: the mean."""
        return (decoded / 2).tanh()  # 2 sigmoid(logits) - 1

    def _run(self, frames: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Run over frames, (batch, steps, ...): the decoder's output alike, and the core's state at the end."""
        batch, steps = frames.shape[:2]
        features = self.encoder(frames.transpose(0, 1).flatten(0, 1))
        states, state = self.core(features.unflatten(0, (steps, batch)), state)
        return self.decoder(states.flatten(0, 1)).unflatten(0, (steps, batch)).transpose(0, 1), state

    def _advect(self, last: Tensor, logits: Tensor, made: Tensor) -> Tensor:
        """Make frames, (batch, c_dim, ...), of the pixels around each place in the last ones and of new pixels."""
        weights = logits.softmax(1).unsqueeze(1)
        around = unfold(pad(last, [self.reach] * 4, mode="replicate"), 2 * self.reach + 1)
        around = around.view(*made.shape[:2], self.candidates - 1, *made.shape[2:])
        return (weights[:, :, :-1] * around).sum(2) + weights[:, :, -1] * made.tanh()

    def _to_logits(self, images: Tensor) -> Tensor:
        """Do the opposite of ``to_images``, with probabilities that keep a distance of 0.0005 from 0 and 1."""
        return 2 * torch.atanh(0.999 * images)

    def _check(self, frames: Tensor, least: int) -> None:
        expected = (self.c_dim, self.image_size, self.image_size)
        if frames.ndim != 5 or frames.shape[2:] != expected or frames.shape[1] < least:
            raise ValueError(
                f"expected frames of shape (batch, steps, {', '.join(map(str, expected))}) with at least {least} "
                f"steps, got {tuple(frames.shape)}"
            )
        check_values(frames, "frames")


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
        core: ``"convlstm"``, ``"gru"`` or ``"lstm"``; see :mod:`genimg_fast.models.sequence`.
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
        channels: int = 32,
        n_blocks: int = 3,
        *,
        core: str = "convlstm",
        hidden_size: int = 64,
        num_layers: int = 2,
        reach: int = 2,
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
        core: ``"convlstm"``, ``"gru"`` or ``"lstm"``; see :mod:`genimg_fast.models.sequence`.
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
        channels: int = 32,
        n_blocks: int = 3,
        *,
        core: str = "convlstm",
        hidden_size: int = 32,
        num_layers: int = 2,
        reach: int = 2,
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


@register_model("row-rnn")
class RowRNN(BaseModel):
    """Generates an image row by row, from the top: a recurrent network whose steps are the rows.

    A row, given those above it, has the density of a mixture whose components are whole rows of independent pixels
    (Graves 2013, https://arxiv.org/abs/1308.0850), rounded logistic ones (Salimans et al. 2017,
    https://arxiv.org/abs/1701.05517). Pixels alone would mix what the row might be; those of a component belong
    together.

    Args:
        c_dim: Colour channels of the images.
        image_size: Their height and width.
        hidden_size: Length of the state.
        num_layers: Layers of the recurrent network.
        cell: ``"gru"``, ``"lstm"`` or ``"rnn"``.
        components: Number of components of the mixture.

    Raises:
        ValueError: If a size is below 1 or the cell is unknown.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.RowRNN(c_dim=1, image_size=16, hidden_size=32)
        >>> images, _ = gf.data.load_dataset("digits", image_size=16)[:4]
        >>> (-model.log_likelihood(images, model(images)).mean()).backward()
        >>> model.sample(9).shape, model.complete(images[:, :, :8]).shape
        (torch.Size([9, 1, 16, 16]), torch.Size([4, 1, 16, 16]))
    """

    def __init__(
        self,
        c_dim: int = 1,
        image_size: int = 32,
        *,
        hidden_size: int = 256,
        num_layers: int = 2,
        cell: str = "lstm",
        components: int = 30,
    ) -> None:
        super().__init__()
        check_sizes(
            c_dim=c_dim, image_size=image_size, hidden_size=hidden_size, num_layers=num_layers,
            components=components,
        )  # fmt: skip
        layers = {"gru": nn.GRU, "lstm": nn.LSTM, "rnn": nn.RNN}
        check_choice("cell", cell, layers)
        self.c_dim = c_dim
        self.image_size = image_size
        self.components = components
        row = c_dim * image_size
        self.recurrent = layers[cell](row, hidden_size, num_layers, batch_first=True)
        self.readout = nn.Linear(hidden_size, components * (2 * row + 1))

    def forward(self, images: Tensor) -> RowPrediction:
        """Predict each row of images from those above it.

        Args:
            images: Images in [-1, 1], of shape (batch, c_dim, image_size, image_size).

        Returns:
            The mixture of each row.

        Raises:
            ValueError: If the shape is another.
        """
        rows = self._rows(images, self.image_size)
        above = torch.cat([torch.zeros_like(rows[:, :1]), rows[:, :-1]], 1)
        return self._run(above)[0]

    def log_likelihood(self, images: Tensor, output: RowPrediction) -> Tensor:
        """Compute log p(x), summed over rows.

        Args:
            images: Images in [-1, 1], of shape (batch, c_dim, image_size, image_size).
            output: What ``forward`` returned for them.

        Returns:
            Nats, of shape (batch,), float32 or wider.

        Raises:
            ValueError: If the shape is another.
        """
        rows = self._rows(images, self.image_size).unsqueeze(2).expand_as(output.mean)
        each = logistic_log_likelihood(*(part.flatten(0, 2) for part in (rows, output.mean, output.log_scale)))
        weights = output.mixture.to(each.dtype).log_softmax(-1)
        return (weights + each.view(weights.shape)).logsumexp(-1).sum(-1)

    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """Generate images, in evaluation mode, without recording gradients.

        Args:
            n: Number of images.
            generator: Source of the random numbers, on any device; PyTorch's global one by default.

        Returns:
            Images in [-1, 1], of shape (n, c_dim, image_size, image_size).

        Example:
            >>> import torch, genimg_fast as gf
            >>> gf.models.RowRNN(image_size=16).sample(4, generator=torch.Generator().manual_seed(0)).shape
            torch.Size([4, 1, 16, 16])
        """
        return self.complete(self.readout.weight.new_zeros(n, self.c_dim, 0, self.image_size), generator=generator)

    @torch.no_grad()
    def complete(self, partial: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Generate the rest of images whose upper rows are given, in evaluation mode, without gradients.

        Args:
            partial: Upper rows in [-1, 1], of shape (batch, c_dim, any, image_size).
            generator: Source of the random numbers, on any device; PyTorch's global one by default.

        Returns:
            Images in [-1, 1], of shape (batch, c_dim, image_size, image_size), the given rows as they were.

        Raises:
            ValueError: If the shape is another.

        Example:
            >>> import torch, genimg_fast as gf
            >>> gf.models.RowRNN(image_size=16).complete(torch.zeros(4, 1, 10, 16)).shape
            torch.Size([4, 1, 16, 16])
        """
        rows = self._rows(partial)
        device = rows.device if generator is None else generator.device
        new = [rows]
        with evaluating(self):
            fed, state = torch.cat([rows.new_zeros(len(rows), 1, rows.shape[2]), rows], 1), None
            for _ in range(self.image_size - rows.shape[1]):
                (mean, log_scale, mixture), state = self._run(fed, state)
                # The smallest of exponential numbers, each over its rate, is drawn with the rates as weights.
                race = torch.empty(mixture[:, -1].shape, device=device).exponential_(generator=generator)
                winner = (mixture[:, -1].float() - race.to(rows.device).log()).argmax(-1)
                at = torch.arange(len(rows), device=rows.device), -1, winner
                uniform = torch.rand(mean[at].shape, generator=generator, device=device).to(mean)
                drawn = mean[at] + log_scale[at].exp() * torch.logit(uniform, eps=1e-5)
                levels = drawn.clamp(-1, 1).add(1).mul(127.5).round()
                fed = levels.div(127.5).sub(1).unsqueeze(1)
                new.append(fed)
        return torch.cat(new, 1).unflatten(2, (self.c_dim, self.image_size)).transpose(1, 2)

    def _run(self, above: Tensor, state: Any = None) -> tuple[RowPrediction, Any]:
        """Predict the row below each given one; return the state after the last one, too."""
        states, state = self.recurrent(above, state)
        numbers = self.components * above.shape[2]
        mean, log_scale, mixture = self.readout(states).split([numbers, numbers, self.components], -1)
        shape = (self.components, above.shape[2])
        return RowPrediction(mean.unflatten(-1, shape), log_scale.unflatten(-1, shape), mixture), state

    def _rows(self, images: Tensor, height: int | None = None) -> Tensor:
        """Turn images into rows, (batch, rows, c_dim * image_size)."""
        rows = images.shape[2] if images.ndim == 4 else -1
        fits = images.ndim == 4 and images.shape[1] == self.c_dim and images.shape[3] == self.image_size
        if not fits or rows > self.image_size or rows != (rows if height is None else height):
            expected = "any" if height is None else height
            raise ValueError(
                f"expected images of shape (batch, {self.c_dim}, {expected}, {self.image_size}), "
                f"got {tuple(images.shape)}"
            )
        check_values(images)
        return images.transpose(1, 2).flatten(2)


class _BidirectionalConvLSTM2d(nn.Module):
    """Two ConvLSTMs, of which one runs from the last step to the first: their states side by side."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.forwards = nn.ConvLSTM2d(*sizes)
        self.backwards = nn.ConvLSTM2d(*sizes)

    def forward(self, frames: Tensor, state: None = None) -> tuple[Tensor, None]:
        return torch.cat([self.forwards(frames)[0], self.backwards(frames.flip(0))[0].flip(0)], 2), None
