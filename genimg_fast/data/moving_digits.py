"""Sequences of bouncing digits, generated on the fly."""

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from genimg_fast.data.indices import SequenceIndex, check_at_least_1, numbers_of
from genimg_fast.data.sources import load_dataset


class MovingDigits(Dataset[tuple[Tensor, Tensor]]):
    """Sequences of real handwritten digits that move in a frame and bounce off its sides, made when asked for.

    The protocol of Moving MNIST (Srivastava et al. 2015, https://arxiv.org/abs/1502.04681), with the 1,797 digits
    that come with scikit-learn in place of MNIST: two digits of 28 pixels in frames of 64x64, each at a random
    place and in a random direction, 20 frames of which the first 10 are there to be seen and the others to be
    predicted. Where digits overlap, the brighter pixel shows. A sequence depends on ``seed`` and its index alone,
    whichever worker makes it; a fifth of the digits, the same ones for every seed, is in test sequences only.

    Args:
        length: Number of sequences.
        frames: Frames in a sequence.
        image_size: Height and width of a frame, in pixels.
        digit_size: Height and width of a digit, in pixels; by default 7/16 of the frame's, as in the paper.
        digits: Number of digits in a frame.
        speed: Way in a frame, as a share of the room that a digit has: one number, or the lowest and the highest
            of a range that each digit's is drawn from.
        channels: 1 (grey) or 3 (RGB).
        train: Whether to take the training digits; else those held out.
        seed: Decides everything else.

    Raises:
        ValueError: If a number is out of range.
        ImportError: If scikit-learn is missing.

    Example:
        >>> import torch, genimg_fast as gf
        >>> data = gf.data.MovingDigits(image_size=32, seed=1)
        >>> frames, labels = data[torch.tensor([4, 2])]
        >>> frames.shape, labels.shape
        (torch.Size([2, 20, 1, 32, 32]), torch.Size([2, 2]))
        >>> torch.equal(data[2][0], frames[1])
        True
    """

    def __init__(
        self,
        length: int = 10_000,
        *,
        frames: int = 20,
        image_size: int = 64,
        digit_size: int | None = None,
        digits: int = 2,
        speed: float | tuple[float, float] = 0.1,
        channels: int = 1,
        train: bool = True,
        seed: int = 0,
    ) -> None:
        digit_size = image_size * 7 // 16 if digit_size is None else digit_size
        check_at_least_1(length=length, frames=frames, digits=digits, digit_size=digit_size)
        if digit_size >= image_size:
            raise ValueError(f"digit_size must be below image_size, {image_size}, got {digit_size}")
        slowest, fastest = (speed, speed) if isinstance(speed, (int, float)) else speed
        if not 0 <= slowest <= fastest <= 1:
            raise ValueError(f"speed must be a number, or a range, within 0..1, got {speed}")
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        pool = load_dataset("digits", image_size=digit_size)
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(0))
        held_out = len(pool) // 5
        used = order[held_out:] if train else order[:held_out]
        self.images, self.labels = pool.images[used, 0], pool.labels[used]
        self.length, self.frames, self.image_size, self.digits = length, frames, image_size, digits
        self.speed, self.channels, self.train, self.seed = (slowest, fastest), channels, train, seed
        self.device = torch.device("cpu")

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: SequenceIndex) -> tuple[Tensor, Tensor]:
        """Make sequences.

        Args:
            index: One index, a slice, or a tensor of indices.

        Returns:
            float32 frames in [-1, 1], of shape (batch, frames, channels, image_size, image_size), and the digits'
            classes, int64 of shape (batch, digits); without the first dimension for a single index.

        Raises:
            IndexError: If there is no such sequence.
        """
        indices, single = numbers_of(index, self.length)
        room = self.images.shape[-1]
        drawn = [self._draw(i) for i in indices]
        chosen = torch.from_numpy(np.stack([d[0] for d in drawn])) if drawn else torch.zeros(0, self.digits).long()
        corners = torch.from_numpy(np.stack([d[1] for d in drawn])) if drawn else torch.zeros(0, self.frames, 1, 2)
        canvas = torch.zeros(len(indices) * self.frames, self.image_size, self.image_size, dtype=torch.uint8)
        first = torch.arange(len(canvas)).view(-1, 1, 1) * self.image_size**2
        offsets = torch.arange(room).view(-1, 1) * self.image_size + torch.arange(room)
        for digit in range(self.digits if drawn else 0):
            row, column = corners[:, :, digit].reshape(-1, 2, 1, 1).unbind(1)
            pixels = first + row * self.image_size + column + offsets
            patches = self.images[chosen[:, digit]].repeat_interleave(self.frames, 0)
            canvas.put_(pixels, torch.maximum(canvas.take(pixels), patches))
        frames = canvas.view(len(indices), self.frames, 1, self.image_size, self.image_size).to(self.device)
        frames = frames.float().div_(127.5).sub_(1).expand(-1, -1, self.channels, -1, -1)
        labels = self.labels[chosen].to(self.device)
        return (frames[0], labels[0]) if single else (frames, labels)

    def to(self, device: torch.device | str) -> "MovingDigits":
        """Get the same sequences on another device; they are made on the CPU all the same."""
        moved = object.__new__(MovingDigits)
        moved.__dict__.update(self.__dict__, device=torch.device(device))
        return moved

    def split(self, share: float, *, seed: int = 0) -> tuple["MovingDigits", "MovingDigits"]:
        """Get these sequences, which are made of training digits, and others, of the digits held out.

        Args:
            share: Number of the others, as a share of the number of these, between 0 and 1.
            seed: Decides the others.

        Returns:
            The sequences to train on, all of them, and those held out.

        Raises:
            ValueError: If there would be none, or these are of the digits held out themselves.
        """
        length = round(share * self.length) if 0 < share < 1 else 0
        if length < 1:
            raise ValueError(
                f"a share of {share:g} of {self.length} sequences is none, {1 / self.length:.2g} is one"
            )
        if not self.train:
            raise ValueError("these sequences are made of the digits held out")
        return self, MovingDigits(
            length, frames=self.frames, image_size=self.image_size, digit_size=self.images.shape[-1],
            digits=self.digits, speed=self.speed, channels=self.channels, train=False, seed=seed,
        )  # fmt: skip

    def _draw(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw the digits of a sequence, (digits,), and their upper left corners, (frames, digits, 2)."""
        random = np.random.default_rng((self.seed, self.train, index))
        chosen = random.integers(len(self.images), size=self.digits)
        room = self.image_size - self.images.shape[-1]
        start = random.uniform(0, room, (self.digits, 2))
        angle = random.uniform(0, 2 * np.pi, self.digits)
        way = random.uniform(*self.speed, self.digits) * room
        velocity = np.stack([way * np.sin(angle), way * np.cos(angle)], axis=1)
        straight = start + np.arange(self.frames).reshape(-1, 1, 1) * velocity
        # The path of something that bounces is a straight one, folded.
        folded = room - np.abs(straight % (2 * room) - room)
        return chosen, np.rint(folded).astype(np.int64)
