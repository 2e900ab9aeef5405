"""What models of image sequences have in common.

Frames come and go in [-1, 1], in the order (batch, steps, c_dim, height, width). What a network says about them
are the logits of Bernoulli pixels, with (frame + 1) / 2 as target of the cross-entropy, whose best answer is the
mean; ``to_images`` turns logits into frames.

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

from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad, unfold

from genimg_fast import nn
from genimg_fast._images import check_values
from genimg_fast.models.common import check_choice, check_sizes, conv_decoder, conv_encoder
from genimg_fast.models.pretrained import BaseModel

Core = Literal["convlstm", "gru", "lstm"]
CORES = get_args(Core)


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
        if reach < 0:
            raise ValueError(f"reach must be at least 0, got {reach}")
        if reach >= self.image_size:
            raise ValueError(f"reach must be below {self.image_size}, the image size, got {reach}")
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


class _BidirectionalConvLSTM2d(nn.Module):
    """Two ConvLSTMs, of which one runs from the last step to the first: their states side by side."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.forwards = nn.ConvLSTM2d(*sizes)
        self.backwards = nn.ConvLSTM2d(*sizes)

    def forward(self, frames: Tensor, state: None = None) -> tuple[Tensor, None]:
        return torch.cat([self.forwards(frames)[0], self.backwards(frames.flip(0))[0].flip(0)], 2), None
