"""An image data set, and reproducible batches from it and from others."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils.data import Dataset

from genimg_fast._images import check_layout
from genimg_fast.data.stored import StoredImages
from genimg_fast.data.stream import draw_order, to_floats


class BatchedDataset(Protocol):
    """What :func:`batches` needs: a data set that is indexed with a whole batch of indices.

    Example:
        >>> import torch, genimg_fast as gf
        >>> class Noise:
        ...     device = torch.device("cpu")
        ...
        ...     def __len__(self):
        ...         return 100
        ...
        ...     def __getitem__(self, index):
        ...         return torch.rand(len(index), 1, 8, 8) * 2 - 1, torch.zeros_like(index)
        ...
        ...     def to(self, device):
        ...         return self
        >>> next(gf.data.batches(Noise(), 64))[0].shape
        torch.Size([64, 1, 8, 8])
    """

    @property
    def device(self) -> torch.device:
        """Where the batches are."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Get images, or sequences of images, and labels."""

    def to(self, device: torch.device | str) -> "BatchedDataset":
        """Get the same data on another device."""


class BatchStream(Protocol):
    """What else :func:`batches` takes: data that makes its own batches.

    A :class:`BatchedDataset` may do so, too, for other processes to read ahead. Data that comes in a stream,
    without indices, has no other way.

    Attributes:
        device: Where the batches are.

    Example:
        >>> import torch, genimg_fast as gf
        >>> class Rain:
        ...     device = torch.device("cpu")
        ...
        ...     def look(self):
        ...         return next(self.batches(64, seed=0, start=0, part=0, parts=1))
        ...
        ...     def batches(self, batch_size, *, seed, start, part, parts):
        ...         while True:
        ...             generator = torch.Generator().manual_seed(seed + start)
        ...             drops = torch.rand(batch_size, 1, 8, 8, generator=generator) * 2 - 1
        ...             yield drops[part::parts], torch.zeros(len(drops[part::parts]), dtype=torch.int64)
        ...             start += 1
        ...
        ...     def to(self, device):
        ...         return self
        >>> next(gf.data.batches(Rain(), 32, part=1, parts=2))[0].shape
        torch.Size([16, 1, 8, 8])
    """

    device: torch.device

    def look(self) -> tuple[Tensor, Tensor]:
        """Get up to 64 images, or sequences, and labels; the batches are the same with and without that."""

    def batches(
        self, batch_size: int, *, seed: int, start: int, part: int, parts: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over batches, without end, from number ``start`` on; see :func:`batches`."""

    def to(self, device: torch.device | str) -> "BatchStream":
        """Get the same data for another device."""


def content_hash(*contents: str | Tensor | StoredImages) -> str:
    """Hash texts, and types, shapes and values of tensors.

    Args:
        *contents: What to tell apart from anything else. Images in a cache have the hash that they would have in
            memory, and are read for it once only; images that are decoded as needed have one of their files'
            names, sizes and times of change.

    Returns:
        The SHA-256, in hexadecimal digits.

    Example:
        >>> import torch
        >>> from genimg_fast.data.dataset import content_hash
        >>> content_hash("pixels", torch.zeros(2, 3)) == content_hash("pixels", torch.zeros(3, 2))
        False
    """
    stored = next((content for content in contents if isinstance(content, StoredImages)), None)
    if stored is not None:
        others = content_hash(
            *("images" if c is stored else c.rows_hash() if isinstance(c, StoredImages) else c for c in contents)
        )
        return stored.recall_hash(others, lambda: _digest(contents))
    return _digest(contents)


def _digest(contents: Sequence[str | Tensor | StoredImages]) -> str:
    digest = hashlib.sha256()
    for content in contents:
        if isinstance(content, Tensor):
            digest.update(f"{content.dtype} {tuple(content.shape)}".encode())
            digest.update(content.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
        elif isinstance(content, StoredImages):
            for piece in content.pieces_to_hash():
                digest.update(piece)
        else:
            digest.update(content.encode(errors="surrogateescape"))  # names of files need not be Unicode
    return digest.hexdigest()


def identify(dataset: "ImageDataset", *others: Tensor) -> dict[str, Any]:
    """Get what a run notes of its data: ``sha256`` of the images, None if decoded as needed, and ``files``."""
    images = dataset.images
    unread = isinstance(images, StoredImages) and images.reader.fingerprint
    return {"sha256": None if unread else content_hash(images, *others), "files": dataset.files}


def same_data(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> bool:
    """Compare what :func:`identify` found, wherever the images were: the first that both know decides."""
    for name in (f"{prefix}sha256", f"{prefix}files"):
        if before.get(name) is not None and now.get(name) is not None:
            return bool(before[name] == now[name])
    return False


def draw_share(labels: Tensor, share: float, *, seed: int, what: str) -> Tensor:
    """Draw a share of things at random, about the same share of each class.

    Args:
        labels: The classes, int64 of shape (n,).
        share: What to draw, between 0 and 1; the number is rounded.
        seed: Decides which.
        what: Their name in an error.

    Returns:
        True for those drawn, bool of shape (n,).

    Raises:
        ValueError: If that is none of them, or all.

    Example:
        >>> import torch
        >>> from genimg_fast.data.dataset import draw_share
        >>> draw_share(torch.tensor([0, 0, 1, 1]), 0.5, seed=0, what="images").view(2, 2).sum(1)
        tensor([1, 1])
    """
    n = len(labels)
    count = round(share * n) if 0 < share < 1 else 0
    if not 0 < count < n:
        hint = f"; {1 / n:.2g} holds one out" if n > 1 else ""
        raise ValueError(
            f"a share of {share:g} of {n} {what} leaves {n - count} to train on and holds {count} out{hint}"
        )
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]  # class by class
    drawn = torch.zeros(n, dtype=torch.bool)
    drawn[order[(2 * torch.arange(count) + 1) * n // (2 * count)]] = True
    return drawn


class ImageDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images and labels, kept as bytes, in memory or elsewhere, and handed out in [-1, 1], the range of Tanh.

    It works with ``torch.utils.data.DataLoader``, but indexing with a whole batch of indices, as :func:`batches`
    does, is many times faster for small images.

    Args:
        images: Bytes (uint8) of shape (n, channels, height, width), 0 to 255: a tensor, or images that are read
            when they are asked for, as :func:`load_dataset` finds them.
        labels: Class of each image, int64 of shape (n,); all zero by default.
        class_names: Names of the classes; their numbers by default.
        groups: Number of what each image was cut from, int64 of shape (n,): :meth:`split` keeps those of one
            number together. By default each is on its own.

    Attributes:
        files: Hashes of the names, and of the sizes and times of change, of the files that the images are from;
            None if nobody knows.

    Raises:
        ValueError: If dtype or shape is another, channels are last, there are no images, or a label has no class.

    Example:
        >>> import torch, genimg_fast as gf
        >>> data = gf.data.ImageDataset(torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8))
        >>> images, labels = data[torch.tensor([4, 2])]
        >>> images.shape, images.dtype, labels
        (torch.Size([2, 3, 32, 32]), torch.float32, tensor([0, 0]))
    """

    def __init__(
        self,
        images: Tensor | StoredImages,
        labels: Tensor | None = None,
        *,
        class_names: Sequence[str] | None = None,
        groups: Tensor | None = None,
    ) -> None:
        if images.dtype != torch.uint8 or images.ndim != 4 or len(images) == 0:
            raise ValueError(
                "images must be uint8 of shape (n, channels, height, width) with n > 0, "
                f"got {images.dtype} of shape {tuple(images.shape)}"
            )
        check_layout(cast(Tensor, images))  # indexed alike, of all that it asks for
        if labels is None:
            labels = torch.zeros(len(images), dtype=torch.int64)
        if labels.dtype != torch.int64 or labels.shape != (len(images),):
            raise ValueError(
                f"labels must be int64 of shape ({len(images)},), "
                f"got {labels.dtype} of shape {tuple(labels.shape)}"
            )
        if class_names is None:
            class_names = [str(label) for label in range(int(labels.max()) + 1)]
        if labels.min() < 0 or labels.max() >= len(class_names):
            raise ValueError(f"labels must lie in 0..{len(class_names) - 1}, got {labels.min()}..{labels.max()}")
        self.images: Any = images
        self.labels = labels
        self.class_names = list(class_names)
        self.groups = groups
        self.files: list[str] | None = None

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.images.device

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int | slice | Tensor) -> tuple[Tensor, Tensor]:
        """Get images and labels.

        Args:
            index: One index, a slice, or a tensor of indices on the data's device.

        Returns:
            float32 images in [-1, 1] and int64 labels; without the first dimension for a single index.
        """
        return to_floats(self.images[index]), self.labels[index]

    def batches(
        self, batch_size: int, *, seed: int = 0, start: int = 0, part: int = 0, parts: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over shuffled batches; see :func:`batches`. Images that are stored elsewhere are read ahead."""
        order = draw_order(len(self), batch_size, seed=seed, start=start, part=part, parts=parts)
        if isinstance(self.images, StoredImages):
            return self.images.batches(order, self.labels)
        return (self[index.to(self.device)] for _, index in order)

    def pieces(self, indices: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Get images and labels piece by piece; see :func:`pieces`."""
        if isinstance(self.images, StoredImages):
            return self.images.batches(enumerate(indices), self.labels)
        return (self[index.to(self.device)] for index in indices)

    @property
    def storage(self) -> str:
        """Where the images are, in words."""
        if isinstance(self.images, StoredImages):
            return self.images.storage
        return f"in memory, {self.images.nbytes / 1e9:.3g} GB"

    def to(self, device: torch.device | str) -> "ImageDataset":
        """Get the same data on another device; images that are stored elsewhere go there batch by batch."""
        return ImageDataset(
            self.images.to(device), self.labels.to(device), class_names=self.class_names, groups=self.groups
        )

    def split(self, share: float, *, seed: int = 0) -> tuple["ImageDataset", "ImageDataset"]:
        """Hold images out: a share of each class, drawn at random. Images cut from one picture stay together.

        Args:
            share: Share of the images to hold out, between 0 and 1.
            seed: Decides which.

        Returns:
            The images to train on, and those held out.

        Raises:
            ValueError: If either would be empty.

        Example:
            >>> import genimg_fast as gf
            >>> training, held_out = gf.data.load_dataset("digits", image_size=8).split(0.2)
            >>> len(training), len(held_out)
            (1438, 359)
        """
        groups = torch.arange(len(self)) if self.groups is None else self.groups
        numbers, members = groups.unique(return_inverse=True)
        # A picture's class is that of the images cut from it.
        labels = torch.zeros_like(numbers).scatter_(0, members, self.labels.cpu())
        what = "images" if self.groups is None else "pictures that images are cut from"
        held_out = draw_share(labels, share, seed=seed, what=what)[members]
        return self.take(~held_out), self.take(held_out)

    def with_classes(self, class_names: Sequence[str]) -> "ImageDataset":
        """Get the same images with the numbers that their classes have in a list of names.

        Raises:
            ValueError: If a class is not in the list.
        """
        if unknown := [name for name in self.class_names if name not in class_names]:
            raise ValueError(f"class {unknown[0]} is none of {', '.join(class_names)}")
        numbers = torch.tensor([list(class_names).index(name) for name in self.class_names], device=self.device)
        return ImageDataset(self.images, numbers[self.labels], class_names=class_names, groups=self.groups)

    def take(self, chosen: Tensor) -> "ImageDataset":
        """Get some of the images; those that are stored elsewhere stay there.

        Args:
            chosen: True for those to take, bool of shape (n,), or their indices.
        """
        groups = None if self.groups is None else self.groups[chosen]
        chosen = chosen.to(self.device)
        stored = isinstance(self.images, StoredImages)
        images = self.images.take(chosen) if stored else self.images[chosen]
        return ImageDataset(images, self.labels[chosen], class_names=self.class_names, groups=groups)


def pieces(dataset: BatchedDataset, indices: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Get images and labels piece by piece, read ahead where they are not in memory.

    Args:
        dataset: The images, or sequences of images.
        indices: Of each piece, on the CPU.

    Yields:
        What the data set returns for them.
    """
    own: Any = getattr(dataset, "pieces", None)
    if own is not None:
        return own(indices)
    return (dataset[index.to(dataset.device)] for index in indices)


def batches(
    dataset: BatchedDataset | BatchStream,
    batch_size: int,
    *,
    seed: int = 0,
    start: int = 0,
    part: int = 0,
    parts: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Iterate over shuffled batches, epoch after epoch, without end.

    The order depends on ``seed`` and the number of the batch alone: a run that stopped after ``start`` batches
    continues exactly where it was. An incomplete batch at the end of an epoch is left out, because the
    statistics of batch norm would be taken over fewer images.

    Args:
        dataset: The images, or sequences of images; or what :func:`as_batched` made of something else.
        batch_size: Images, or sequences, in a batch.
        seed: Decides the order.
        start: Number of batches to skip.
        part: What this process gets of each batch: image number ``part``, and every ``parts``-th one behind it.
        parts: Number of processes that share a batch.

    Yields:
        What the data set returns for ``batch_size`` indices: images in [-1, 1] of shape (batch_size, channels,
        height, width) and labels of shape (batch_size,) for an :class:`ImageDataset`.

    Raises:
        ValueError: If a batch is larger than the data set.

    Example:
        >>> import genimg_fast as gf
        >>> images, labels = next(gf.data.batches(gf.data.load_dataset("digits", image_size=16), 64, seed=1))
        >>> images.shape
        torch.Size([64, 1, 16, 16])
    """
    own: Any = getattr(dataset, "batches", None)
    if own is not None:
        return own(batch_size, seed=seed, start=start, part=part, parts=parts)
    indexed: Any = dataset
    order = draw_order(len(indexed), batch_size, seed=seed, start=start, part=part, parts=parts)
    return (indexed[index.to(dataset.device)] for _, index in order)
