"""Random changes to images that leave them what they are."""

import torch
from torch import Tensor
from torch.nn.functional import pad

from genimg_fast.data.dataset import BatchedDataset
from genimg_fast.options import NonNegativeInt


class Augmented:
    """A data set whose images are mirrored and moved at random, anew each time that they are asked for.

    The random numbers come from PyTorch's global generator on the CPU, so a resumed training sees the same images.

    Args:
        dataset: Images, indexed with a whole batch of indices.
        flip: Whether to mirror every other image, left to right.
        shift: Pixels by which an image moves at most, in every direction; its mirror image fills the gap.

    Raises:
        ValueError: If ``shift`` is below 0 or not below the images' size.

    Example:
        >>> import torch, genimg_fast as gf
        >>> data = gf.data.Augmented(gf.data.load_dataset("digits", image_size=16), shift=2)
        >>> data[torch.arange(8)][0].shape
        torch.Size([8, 1, 16, 16])
    """

    def __init__(self, dataset: BatchedDataset, *, flip: bool = False, shift: NonNegativeInt = 0) -> None:
        size = min(dataset[torch.zeros(1, dtype=torch.int64, device=dataset.device)][0].shape[-2:])
        if not 0 <= shift < size:
            raise ValueError(f"shift must lie in 0..{size - 1}, got {shift}")
        self.dataset, self.flip, self.shift = dataset, flip, shift

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
        n, device = len(images), images.device
        if self.flip:
            mirrored = (torch.rand(n) < 0.5).to(device).view(-1, *[1] * (images.ndim - 1))
            images = torch.where(mirrored, images.flip(-1), images)
        if self.shift > 0:
            height, width = images.shape[-2:]
            down, right = torch.randint(2 * self.shift + 1, (2, n, 1)).to(device)
            padded = pad(images, [self.shift] * 4, mode="reflect")
            rows = (torch.arange(height, device=device) + down).unsqueeze(2)
            columns = (torch.arange(width, device=device) + right).unsqueeze(1)
            which = torch.arange(n, device=device).view(-1, 1, 1)
            images = padded[which, :, rows, columns].permute(0, 3, 1, 2)
        return images, labels

    def to(self, device: torch.device | str) -> "Augmented":
        """Get the same data on another device."""
        return Augmented(self.dataset.to(device), flip=self.flip, shift=self.shift)
