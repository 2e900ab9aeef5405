"""What :func:`genimg_fast.training.fit` takes beside the package's own data sets, turned into batches."""

import copy
import random
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler
from torch.utils.data.distributed import DistributedSampler

from genimg_fast.data.dataset import BatchedDataset, BatchStream, ImageDataset
from genimg_fast.data.decode import picture_to_pixels
from genimg_fast.data.stream import Batch, draw_order, fetch_batches, garbage_left_to_this_process, to_floats

_LOOKED_AT = 64  # images, to check and to show
_IMAGE_KEYS = ("image", "img", "images", "pixel_values", "jpg", "jpeg", "png", "webp")
_LABEL_KEYS = ("label", "labels", "cls", "class", "target", "fine_label")


def as_batched(
    data: Any, *, image_size: int | None = None, channels: int | None = None, workers: int = 0
) -> BatchedDataset | BatchStream:
    """Turn whatever images come from into what :func:`batches` takes.

    What a data set or an iterable returns is an image, ``(image, label)``, or a dict with an ``image`` and
    perhaps a ``label``, such as those of Hugging Face's ``datasets``. An image is a tensor, uint8 or
    floating-point numbers in [-1, 1], of shape (channels, height, width); a NumPy array of bytes, with its
    channels first or last; or an image of Pillow's. A label is an integer from 0 on, 0 where there is none.

    Args:
        data: One of

            * a data set of this package, or anything else of its form: returned as it is;
            * a tensor of images, or a tuple of images and labels;
            * a data set with indices, such as torchvision's: shuffled here, and the same batches come for any
              number of workers and after resuming, random transforms included;
            * a ``DataLoader``: it decides the batches, and the batch size. Its random numbers follow from the
              training's seed and the batch's number, unless it has a generator of its own. In several processes it
              needs a ``DistributedSampler``;
            * anything iterable, of single images, in its own order. To resume, it is read again from the
              beginning.
        image_size: Height and width, in pixels, to crop and resize images of Pillow's to; by default they stay.
        channels: 1 or 3, to turn images of Pillow's into grey or RGB; by default whichever they are.
        workers: Processes that make the items of a data set with indices; 0 for this one.

    Returns:
        The data, on the CPU; without indices, if it has none.

    Raises:
        TypeError: If it is none of these.
        ValueError: If tensors have the wrong shape or type.

    Example:
        >>> import torch, genimg_fast as gf
        >>> data = gf.data.as_batched([(torch.zeros(1, 8, 8), 0), (torch.ones(1, 8, 8), 1)])
        >>> images, labels = next(gf.data.batches(data, 2))
        >>> images.shape, sorted(labels.tolist())
        (torch.Size([2, 1, 8, 8]), [0, 1])
    """
    if isinstance(data, DataLoader):
        return _Loader(data)
    if isinstance(data, Tensor):
        data = (data,)
    if isinstance(data, tuple) and 1 <= len(data) <= 2 and all(isinstance(each, Tensor) for each in data):
        return _from_tensors(*data)
    indexed = hasattr(data, "__getitem__") and hasattr(data, "__len__")
    if hasattr(data, "device") and hasattr(data, "to") and (indexed or hasattr(data, "batches")):
        return data
    if isinstance(data, (str, bytes)) or hasattr(data, "__fspath__"):
        raise TypeError(f"data is the name {data!r}: gf.data.load_dataset loads what is there")
    convert = _Convert(image_size, channels)
    if indexed and not isinstance(data, (IterableDataset, Mapping)):
        return _Mapped(data, convert, workers)
    if hasattr(data, "__iter__") and not isinstance(data, Mapping):
        return _Iterated(data, convert)
    raise TypeError(
        "data must be a data set, a DataLoader, something iterable, a tensor or a tuple of images and labels, got "
        f"{type(data).__name__}"
    )


def look_at(dataset: BatchedDataset | BatchStream) -> Batch:
    """Get up to 64 images, from all over a data set or from the beginning of a stream, and their labels."""
    look: Any = getattr(dataset, "look", None)
    if look is not None:
        return look()
    indexed: Any = dataset
    n = len(indexed)
    return indexed[torch.arange(n) if n < _LOOKED_AT else torch.linspace(0, n - 1, _LOOKED_AT).long()]


def _from_tensors(images: Tensor, labels: Tensor | None = None) -> BatchedDataset:
    if labels is None:
        labels = torch.zeros(len(images), dtype=torch.int64) if images.ndim > 0 else None
    if images.ndim < 2 or len(images) == 0 or labels is None or len(labels) != len(images):
        count = "none" if labels is None else tuple(labels.shape)
        shape = tuple(images.shape)
        raise ValueError(
            f"images must be a tensor of one or more, with as many labels, got shapes {shape} and {count}"
        )
    labels = _classes(labels, len(images), "labels")
    if images.dtype == torch.uint8 and images.ndim == 4:
        return ImageDataset(images, labels)
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images must be uint8, or floating-point numbers in [-1, 1], got {images.dtype}")
    return _Tensors(images, labels)


class _Tensors:
    """Images, or anything else, and labels in memory, as they are or as bytes."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    @property
    def device(self) -> torch.device:
        return self.images.device

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor) -> Batch:
        return to_floats(self.images[index]), self.labels[index]

    def to(self, device: torch.device | str) -> "_Tensors":
        return _Tensors(self.images.to(device), self.labels.to(device))


class _Mapped:
    """A data set whose items are made one by one."""

    def __init__(self, data: Any, convert: "_Convert", workers: int) -> None:
        self.data, self.convert, self.workers = data, convert, workers
        self.device = torch.device("cpu")

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Tensor) -> Batch:
        images, labels = _FetchItems(self.data, self.convert, 0, 0)(0, index.cpu())
        return to_floats(images.to(self.device)), labels.to(self.device)

    def batches(self, batch_size: int, *, seed: int, start: int, part: int, parts: int) -> Iterator[Batch]:
        order = draw_order(len(self), batch_size, seed=seed, start=start, part=part, parts=parts)
        fetch = _FetchItems(self.data, self.convert, seed, part)
        return fetch_batches(fetch, order, device=self.device, workers=self.workers)

    def pieces(self, indices: Iterable[Tensor]) -> Iterator[Batch]:
        fetch = _FetchItems(self.data, self.convert, 0, 0)
        return fetch_batches(fetch, enumerate(indices), device=self.device, workers=self.workers)

    def to(self, device: torch.device | str) -> "_Mapped":
        moved = copy.copy(self)
        moved.device = torch.device(device)
        return moved


class _FetchItems:
    """Makes the items of a batch, with random numbers that depend on the seed and the batch alone."""

    def __init__(self, data: Any, convert: "_Convert", seed: int, part: int) -> None:
        self.data, self.convert, self.seed, self.part = data, convert, seed, part

    def __call__(self, number: int, index: Tensor) -> Batch:
        numbers = index.tolist()
        with own_random_numbers(self.seed, number, self.part):
            several = getattr(self.data, "__getitems__", None)
            items = several(numbers) if several is not None else [self.data[k] for k in numbers]
        return self.convert.batch(items, [f"item {k} of the data" for k in numbers])


class _Loader:
    """Batches of a DataLoader."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader, self.device = loader, torch.device("cpu")
        self._stream = isinstance(loader.dataset, IterableDataset)
        batches: Any = loader.batch_sampler
        self._sampler: Any = loader.sampler if batches is None else getattr(batches, "sampler", batches)
        self._generator = loader.generator or getattr(self._sampler, "generator", None)
        self._begun: tuple[Batch, Iterator[Any]] | None = None

    def look(self) -> Batch:
        """Get images of the first batch, which comes again when the batches are iterated over."""
        if self._begun is None:
            batches = self._epoch(0, 0, 0)
            first = next(batches, None)
            if first is None:
                raise ValueError("the DataLoader has no batches")
            self._begun = first, batches
        images, labels = self._begun[0]
        return to_floats(images[:_LOOKED_AT].to(self.device)), labels[:_LOOKED_AT].to(self.device)

    def batches(self, batch_size: int, *, seed: int, start: int, part: int, parts: int) -> Iterator[Batch]:
        """Iterate over its batches, epoch after epoch; those of another size than its batch size are left out."""
        if parts > 1 and (self._stream or not isinstance(self._sampler, DistributedSampler)):
            raise ValueError(
                f"in {parts} processes a DataLoader needs a DistributedSampler, else all have the same images; an "
                "iterable data set is shared out if it is given without a DataLoader"
            )
        known = isinstance(self._sampler, (RandomSampler, SequentialSampler, DistributedSampler)) and (
            type(self.loader.batch_sampler) in (type(None), BatchSampler)
        )
        if start > 0 and (
            self._stream or not known or self._generator is not None or self.loader.persistent_workers
        ):
            warnings.warn(
                f"the first {start} batches of the DataLoader are left out, but only it knows if they are those "
                "of before: it goes on exactly without a generator, sampler and persistent workers of its own",
                stacklevel=4,
            )
        return self._whole_batches(seed, start, part)

    def _whole_batches(self, seed: int, start: int, part: int) -> Iterator[Batch]:
        per_epoch = self._batches_per_epoch()
        epoch = start // per_epoch if per_epoch else 0
        skip, size, told = start - epoch * (per_epoch or 0), self.loader.batch_size, False
        while True:
            # The look at the data knew no seed. What cannot begin anew, or has its own, goes on.
            goes_on = self._stream or self._generator is not None or (seed, part) == (0, 0)
            if self._begun is not None and epoch == 0 and goes_on:
                first, rest = self._begun
                batches: Iterator[Batch] = chain([first], rest)
            else:
                self._begun = None  # first, for its workers to end
                batches = self._epoch(seed, epoch, part)
            self._begun = None
            whole = 0
            for images, labels in batches:
                size = size or len(images)
                if len(images) != size:
                    if not told:
                        warnings.warn(
                            f"a batch of {len(images)} instead of {size} images is left out in every epoch: "
                            "DataLoader(drop_last=True) leaves it out, too",
                            stacklevel=2,
                        )
                    told = True
                    continue
                whole += 1
                if skip > 0:
                    skip -= 1
                    continue
                yield (
                    to_floats(images.to(self.device, non_blocking=True)),
                    labels.to(self.device, non_blocking=True),
                )
            if whole == 0:
                raise ValueError(f"the DataLoader has no batch of {size} images")
            epoch += 1

    def _batches_per_epoch(self) -> int | None:
        try:
            batch_sampler = self.loader.batch_sampler
            if type(batch_sampler) is BatchSampler:
                return len(batch_sampler.sampler) // batch_sampler.batch_size  # type: ignore[arg-type]
            return len(self.loader)
        except TypeError:  # a stream has no length
            return None

    def _epoch(self, seed: int, epoch: int, part: int) -> Iterator[Batch]:
        samplers: list[Any] = [self._sampler, self.loader.batch_sampler]
        for sampler in samplers:
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
        with own_random_numbers(seed, epoch, part):  # the order is drawn here, or with the first batch
            with garbage_left_to_this_process():
                batches = iter(self.loader)
            batch = next(batches, None)
        number = 0
        while batch is not None:
            yield _to_batch(batch)
            number += 1
            with own_random_numbers(seed, epoch, part, number):
                batch = next(batches, None)

    def to(self, device: torch.device | str) -> "_Loader":
        moved = copy.copy(self)
        moved.device = torch.device(device)
        return moved


class _Iterated:
    """Batches of whatever can be iterated over; every process takes its part of each."""

    def __init__(self, data: Iterable[Any], convert: "_Convert") -> None:
        self.data, self.convert, self.device = data, convert, torch.device("cpu")
        self._first: list[Any] = []
        self._items: Iterator[Any] | None = None

    def look(self) -> Batch:
        """Get the first images, which come again when the batches are iterated over."""
        if self._items is None:
            with own_random_numbers(0):
                self._items = iter(self.data)
                self._first = list(islice(self._items, _LOOKED_AT))
        if not self._first:
            raise ValueError("the data has no images")
        images, labels = self._to_batch(self._first, 0)
        return to_floats(images.to(self.device)), labels.to(self.device)

    def batches(self, batch_size: int, *, seed: int, start: int, part: int, parts: int) -> Iterator[Batch]:
        """Put batches together, epoch after epoch; an incomplete one at the end is left out."""
        self.look()
        if start > 0:
            warnings.warn(
                f"{start} batches are read again to go on behind them: exactly, if the data is the same each time",
                stacklevel=4,
            )
        return self._batches(batch_size, seed, start, part, parts)

    def _batches(self, batch_size: int, seed: int, start: int, part: int, parts: int) -> Iterator[Batch]:
        number = epoch = 0
        while True:
            items = self._epoch(epoch)
            before, read = number, 0
            while True:
                with own_random_numbers(seed, number):
                    batch = list(islice(items, batch_size))
                if len(batch) < batch_size:
                    break
                if number >= start:
                    images, labels = self._to_batch(batch[part::parts], read + part, parts)
                    yield (
                        to_floats(images.to(self.device, non_blocking=True)),
                        labels.to(self.device, non_blocking=True),
                    )
                number += 1
                read += batch_size
            if number == before:
                raise ValueError(
                    f"the data ended after {read + len(batch)} images, fewer than a batch of {batch_size}"
                    if epoch == 0
                    else f"the data ended after {number} batches, and cannot be iterated over anew"
                )
            epoch += 1

    def _epoch(self, epoch: int) -> Iterator[Any]:
        if self._items is not None:
            items, self._items = chain(self._first, self._items), None
            return items
        if hasattr(self.data, "set_epoch"):
            self.data.set_epoch(epoch)
        return iter(self.data)

    def _to_batch(self, items: list[Any], first: int, step: int = 1) -> Batch:
        return self.convert.batch(items, [f"image {first + step * k} of the data" for k in range(len(items))])

    def to(self, device: torch.device | str) -> "_Iterated":
        moved = copy.copy(self)
        moved.device = torch.device(device)
        return moved


class _Convert:
    """Turns items of any kind into images and labels."""

    def __init__(self, image_size: int | None, channels: int | None) -> None:
        self.image_size, self.channels = image_size, channels

    def batch(self, items: Sequence[Any], names: Sequence[str]) -> Batch:
        """Stack items.

        Raises:
            ValueError: If one is no image, or they do not fit together; the message has its name.
        """
        pairs = [self._item(item, name) for item, name in zip(items, names, strict=True)]
        first = pairs[0][0]
        for (image, _), name in zip(pairs, names, strict=True):
            if (image.shape, image.dtype) != (first.shape, first.dtype):
                raise ValueError(
                    f"{name} is {image.dtype} of shape {tuple(image.shape)}, and {names[0]} {first.dtype} of "
                    f"shape {tuple(first.shape)}: images must be of one size; gf.data.as_batched(..., "
                    "image_size=, channels=) sees to it for those of Pillow's"
                )
        return torch.stack([image for image, _ in pairs]), torch.stack([label for _, label in pairs])

    def _item(self, item: Any, name: str) -> tuple[Tensor, Tensor]:
        image, label = _pick(item, name)
        if type(image).__module__.startswith("PIL."):
            image = picture_to_pixels(image, self.image_size, self.channels)
        elif isinstance(image, numpy.ndarray):
            image = torch.tensor(image)  # a copy: many arrays must not be written to
            if image.ndim == 2:
                image = image.unsqueeze(0)
            elif image.ndim == 3 and image.shape[2] in (1, 3) and image.shape[0] not in (1, 3):
                image = image.permute(2, 0, 1)
        if not isinstance(image, Tensor):
            raise ValueError(
                f"{name} is of type {type(image).__name__}, and no image, (image, label) or dict of them"
            )
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise ValueError(f"{name} is {image.dtype}: an image is uint8, or floating-point numbers in [-1, 1]")
        label = 0 if label is None else label
        if not _is_integer(label):
            raise ValueError(f"the label of {name} is no integer, but of type {type(label).__name__}")
        return image, _classes(torch.as_tensor(label).reshape(-1), 1, f"the label of {name}")[0]


def _is_integer(value: Any) -> bool:
    """Tell whether a value is an integer, or several in a row."""
    if isinstance(value, Tensor):
        return value.ndim <= 1 and not value.is_floating_point() and not value.is_complex()
    if isinstance(value, numpy.ndarray):
        return value.ndim <= 1 and value.dtype.kind in "iub"
    return isinstance(value, (int, numpy.integer))


def _classes(labels: Tensor, count: int, name: str) -> Tensor:
    """Check that labels are as many numbers of classes; make them int64 of shape (count,)."""
    integers = not labels.is_floating_point() and not labels.is_complex()
    lowest = int(labels.min()) if integers and labels.numel() > 0 else 0
    if labels.shape not in ((count,), (count, 1)) or not integers or lowest < 0:
        shape, least = tuple(labels.shape), f" with {lowest}" if lowest < 0 else ""
        raise ValueError(
            f"{name} must be an integer from 0 on for each image, got {labels.dtype} of shape {shape}{least}"
        )
    return labels.long().reshape(count)


def _pick(item: Any, name: str) -> tuple[Any, Any]:
    """Take the image, or images, and the label, or None, out of what a data set or a DataLoader returns."""
    if isinstance(item, Mapping):
        keys = [key for key in _IMAGE_KEYS if key in item]
        if not keys:
            raise ValueError(
                f"{name} is a dict of {', '.join(map(str, item)) or 'nothing'}: none of {', '.join(_IMAGE_KEYS)}, "
                "where an image would be"
            )
        found = [item[key] for key in _LABEL_KEYS if key in item]
        others = [str(key) for key, value in item.items() if key not in _IMAGE_KEYS and _is_integer(value)]
        if not found and others:
            raise ValueError(
                f"{name} has no label, but integers named {', '.join(others)}: rename the one that is the class "
                "to label, or leave them out"
            )
        return item[keys[0]], found[0] if found else None
    if isinstance(item, (tuple, list)) and len(item) > 0:
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _to_batch(batch: Any) -> Batch:
    images, labels = _pick(batch, "a batch of the DataLoader")
    if not isinstance(images, Tensor) or images.ndim < 2:
        raise ValueError(
            f"a batch of the DataLoader is of type {type(images).__name__}, and no tensor of images, nor (images, "
            "labels) or a dict of them"
        )
    labels = torch.zeros(len(images), dtype=torch.int64) if labels is None else labels
    if not isinstance(labels, Tensor):
        raise ValueError(f"the labels of a batch of the DataLoader are no tensor, but {type(labels).__name__}")
    return images, _classes(labels, len(images), "the labels of a batch of the DataLoader")


@contextmanager
def own_random_numbers(*seeds: int) -> Iterator[None]:
    """Let Python's, NumPy's and torch's random numbers on the CPU depend on seeds; then put them back."""
    state = random.getstate(), numpy.random.get_state(), torch.get_rng_state()
    drawn = numpy.random.SeedSequence([seed % 2**64 for seed in seeds]).generate_state(3)
    random.seed(int(drawn[0]))
    numpy.random.seed(int(drawn[1]))
    torch.default_generator.manual_seed(int(drawn[2]))  # torch.manual_seed would seed GPUs as well
    try:
        yield
    finally:
        random.setstate(state[0])
        numpy.random.set_state(state[1])
        torch.set_rng_state(state[2])
