"""Images that are not in memory."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor

from genimg_fast.data.stream import Batch, announced, fetch_batches


class Reader(Protocol):
    """What images are read from: a cache, or files that are decoded.

    Attributes:
        shape: Channels, height and width of every image.
        storage: Where the images are, in words.
        fingerprint: What tells them apart from others without reading them; empty if there is no such thing.
        quick: Whether reading what was expected takes so little time that a thread for it would be in the way.
    """

    quick: bool
    shape: tuple[int, int, int]

    @property
    def storage(self) -> str: ...  # noqa: D102

    @property
    def fingerprint(self) -> str: ...  # noqa: D102

    def __len__(self) -> int: ...

    def read(self, rows: list[int]) -> Tensor:
        """Read images by their numbers: bytes of shape (len(rows), *shape)."""

    def expect(self, rows: list[int]) -> None:
        """Hear which images will be asked for soon."""

    def recall_hash(self, name: str, compute: Callable[[], str]) -> str:
        """Get a hash that was computed before, by its name; compute it if it was not."""


class StoredImages:
    """Images that are read when they are asked for, and indexed like a tensor of bytes.

    Args:
        reader: Reads them.
        rows: Their numbers in it, int64 of shape (n,); by default all of them.
        workers: Processes that read batches ahead; 0 for a thread.
        device: Where what is read goes.
    """

    dtype, ndim = torch.uint8, 4

    def __init__(
        self,
        reader: Reader,
        rows: Tensor | None = None,
        *,
        workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.reader, self.workers, self.device = reader, workers, torch.device(device)
        self.rows = torch.arange(len(reader)) if rows is None else rows

    @property
    def shape(self) -> torch.Size:
        """Number, channels, height and width."""
        return torch.Size((len(self.rows), *self.reader.shape))

    @property
    def storage(self) -> str:
        """Where the images are, in words."""
        return self.reader.storage

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        """Read images."""
        rows = self.rows[index.cpu() if isinstance(index, Tensor) else index]
        images = self.reader.read(rows.reshape(-1).tolist()).to(self.device)
        return images if rows.ndim == 1 else images[0]

    def take(self, chosen: Tensor) -> "StoredImages":
        """Get some of them, without reading any."""
        return StoredImages(self.reader, self.rows[chosen.cpu()], workers=self.workers, device=self.device)

    def to(self, device: torch.device | str) -> "StoredImages":
        """Get the same images; what is read goes to another device."""
        return StoredImages(self.reader, self.rows, workers=self.workers, device=device)

    def batches(self, order: Iterator[tuple[int, Tensor]], labels: Tensor) -> Iterator[Batch]:
        """Read batches ahead.

        Args:
            order: Numbers of batches, and the indices of each.
            labels: Of all images, int64 of shape (n,).

        Yields:
            float32 images in [-1, 1], and labels.
        """
        fetch = _Fetch(self.reader, self.rows, labels.cpu())
        thread = self.device.type == "cuda" or not self.reader.quick
        if not thread:
            order = announced(order, lambda index: self.reader.expect(self.rows[index].tolist()))
        return fetch_batches(fetch, order, device=self.device, workers=self.workers, thread=thread)

    def pieces_to_hash(self) -> Iterator[Any]:
        """Get what stands for the images in a hash: what a tensor of them would, or the reader's fingerprint."""
        if self.reader.fingerprint:
            yield self.reader.fingerprint.encode()
            yield self.rows.numpy().data
            return
        yield f"{self.dtype} {tuple(self.shape)}".encode()
        for first in range(0, len(self), 256):
            yield self.reader.read(self.rows[first : first + 256].tolist()).view(-1).numpy().data

    def rows_hash(self) -> str:
        """Hash which images of the reader's these are."""
        return hashlib.sha256(self.rows.numpy().tobytes()).hexdigest()

    def recall_hash(self, others: str, compute: Callable[[], str]) -> str:
        """Get a hash of these images and ``others`` from where it was kept; compute it if it is not there."""
        name = hashlib.sha256(self.rows.numpy().tobytes() + others.encode()).hexdigest()
        return self.reader.recall_hash(name, compute)


class _Fetch:
    """Reads a batch. Workers get it whole, and so not the data set."""

    def __init__(self, reader: Reader, rows: Tensor, labels: Tensor) -> None:
        self.reader, self.rows, self.labels = reader, rows, labels

    def __call__(self, number: int, index: Tensor) -> Batch:
        return self.reader.read(self.rows[index].tolist()), self.labels[index]
