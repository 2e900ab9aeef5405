"""Random changes to images that leave them what they are."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from genimg_fast.data.adapt import as_batched, look_at
from genimg_fast.data.dataset import batches
from genimg_fast.options import NonNegativeInt


class Augmented:
    """A data set whose images are changed at random, anew each time that they are asked for, on its device.

    The random numbers come from PyTorch's global generator on the CPU, so a resumed training sees the same images.

    Args:
        dataset: Images, in whatever form :func:`as_batched` takes.
        flip: Whether to mirror every other image, left to right.
        shift: Pixels by which an image moves at most, in every direction; its mirror image fills the gap.
        transform: What else is to happen to an image, at last: of ``torchvision.transforms.v2``, or any other
            function. It gets each image by itself, because those of torchvision draw one random number for all that
            they get, as float32 in [0, 1], of shape (channels, height, width), and leaves the shape as it is.

    Raises:
        ValueError: If ``shift`` is below 0 or not below the images' size.

    Example:
        >>> import torch, genimg_fast as gf
        >>> data = gf.data.Augmented(gf.data.load_dataset("digits", image_size=16), shift=2)
        >>> data[torch.arange(8)][0].shape
        torch.Size([8, 1, 16, 16])
    """

    def __init__(
        self,
        dataset: Any,
        *,
        flip: bool = False,
        shift: NonNegativeInt = 0,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.dataset: Any = as_batched(dataset)
        if shift != 0:
            size = min(look_at(self.dataset)[0].shape[-2:])
            if not 0 <= shift < size:
                raise ValueError(f"shift must lie in 0..{size - 1}, got {shift}")
        self.flip, self.shift, self.transform = flip, shift, transform

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.dataset.device

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Get images, changed, and labels.

        Args:
            index: A tensor of indices.
        """
        images, labels = self.dataset[index]
        return self._change(images), labels

    def look(self) -> tuple[Tensor, Tensor]:
        """Get a few images, changed, and labels."""
        images, labels = look_at(self.dataset)
        return self._change(images), labels

    def batches(
        self, batch_size: int, *, seed: int = 0, start: int = 0, part: int = 0, parts: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over shuffled batches, changed; see :func:`batches`. What is read ahead is changed in its turn."""
        plain = batches(self.dataset, batch_size, seed=seed, start=start, part=part, parts=parts)
        return ((self._change(images, part, parts), labels) for images, labels in plain)

    def _change(self, images: Tensor, part: int = 0, parts: int = 1) -> Tensor:
        # Numbers are drawn for the images of all processes: it does not matter which one has an image.
        n, device = len(images) * parts, images.device
        if self.flip:
            mirrored = (torch.rand(n) < 0.5)[part::parts].to(device).view(-1, *[1] * (images.ndim - 1))
            images = torch.where(mirrored, images.flip(-1), images)
        if self.shift > 0:
            height, width = images.shape[-2:]
            down, right = torch.randint(2 * self.shift + 1, (2, n, 1))[:, part::parts].to(device)
            padded = pad(images, [self.shift] * 4, mode="reflect")
            rows = (torch.arange(height, device=device) + down).unsqueeze(2)
            columns = (torch.arange(width, device=device) + right).unsqueeze(1)
            which = torch.arange(len(images), device=device).view(-1, 1, 1)
            images = padded[which, :, rows, columns].permute(0, 3, 1, 2)
        if self.transform is not None:
            images = torch.stack([self.transform(image.add(1).div(2)) for image in images]).mul(2).sub(1)
        return images

    def to(self, device: torch.device | str) -> "Augmented":
        """Get the same data on another device."""
        return Augmented(self.dataset.to(device), flip=self.flip, shift=self.shift, transform=self.transform)
