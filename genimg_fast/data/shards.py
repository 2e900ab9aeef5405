"""Tar files in the form of WebDataset (https://github.com/webdataset/webdataset): shards of a data set.

The files of one sample follow each other and have a name in common, up to the first dot: ``cats/0001.jpg``,
``cats/0001.cls``. A shard is read through once, header by header, for the place of every image and its class. From
then on images are read by their places: in any order, from any batch on, by any number of processes.
"""

import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from genimg_fast.data.decode import image_suffixes, measure, open_image, to_pixels

_END = 512  # bytes of zeros that a tar file ends with, at least


def index_shards(shards: list[Path]) -> tuple[numpy.ndarray, Tensor]:
    """Find the images in tar files.

    Args:
        shards: The files, not compressed.

    Returns:
        For each image, in the order of the files: number of its shard, place and size in bytes, int64 of shape
        (n, 3); and its class, int64 of shape (n,): what the sample's ``.cls`` or the ``label`` of its ``.json`` says, or
        0.

    Raises:
        ValueError: If a file is no tar file, is cut short, or holds no images; a sample holds several, or its class
            is no number; or some samples have a class and others have none.
    """
    places: list[tuple[int, int, int]] = []
    labels: list[int | None] = []
    suffixes = image_suffixes()
    for number, shard in enumerate(shards):
        before = len(places)
        try:
            for image, label in _samples(shard, suffixes):
                places.append((number, *image))
                labels.append(label)
        except (tarfile.TarError, OSError) as error:
            raise ValueError(f"shard {shard} cannot be read, or is cut short: {error}") from error
        if len(places) == before:
            raise ValueError(f"no images in shard {shard}")
    if len({label is None for label in labels}) > 1:
        unlabelled = shards[places[labels.index(None)][0]]
        raise ValueError(f"some images have a class, and others, such as one in {unlabelled}, have none")
    return numpy.array(places, numpy.int64), torch.tensor([label or 0 for label in labels])


def _samples(shard: Path, suffixes: set[str]) -> Iterator[tuple[tuple[int, int], int | None]]:
    """Yield place and size of each sample's image, and its class or None."""
    with tarfile.open(shard, "r:") as tar:
        name, image, label = None, None, None
        for member in tar:
            tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
            if not member.isfile() or Path(member.name).name.startswith("."):
                continue
            folder, _, file = member.name.rpartition("/")
            key, _, ending = file.partition(".")
            if (folder, key) != name:
                if image is not None:
                    yield image, label
                name, image, label = (folder, key), None, None
            ending = f".{ending}".lower()
            if Path(file).suffix.lower() in suffixes:
                if image is not None:
                    raise ValueError(
                        f"sample {'/'.join(filter(None, name))} of shard {shard} holds several images"
                    )
                image = member.offset_data, member.size
            elif ending in (".cls", ".json"):
                opened = tar.extractfile(member)
                assert opened is not None  # it is a file
                found = _label(opened.read(), ending, f"{member.name} of shard {shard}")
                label = label if found is None else found
        # tarfile takes a file that is cut between two members, or damaged there, for whole.
        with open(shard, "rb") as content:
            content.seek(tar.offset)
            if content.read(_END) != bytes(_END):
                raise tarfile.ReadError("its end is missing")
        if image is not None:
            yield image, label


def _label(content: bytes, ending: str, where: str) -> int | None:
    label: Any = None
    with suppress(ValueError):
        label = json.loads(content)
    if ending == ".json":
        label = label.get("label", label.get("cls")) if isinstance(label, dict) else None
        if label is None:
            return None
    if type(label) is not int or label < 0:
        raise ValueError(f"the class in {where} is no number from 0 on")
    return label


class TarImages:
    """Reads images by their places in tar files.

    Args:
        shards: The files.
        image_size: Height and width, in pixels.
        channels: 1 or 3.
    """

    def __init__(self, shards: tuple[str, ...], image_size: int, channels: int) -> None:
        self.shards, self.image_size, self.channels = shards, image_size, channels

    def __call__(self, item: numpy.ndarray) -> Tensor:
        """Read an image: bytes of shape (channels, image_size, image_size)."""
        with open_image(*self._open(item)) as image:
            return to_pixels(image, self.image_size, self.channels)

    def is_grey(self, item: numpy.ndarray) -> bool:
        """Tell whether an image is grey; so is what cannot be read."""
        try:
            return measure(*self._open(item)).grey
        except ValueError:
            return True

    def _open(self, item: numpy.ndarray) -> tuple[str, io.BytesIO]:
        shard, place, size = item.tolist()
        with open(self.shards[shard], "rb") as file:
            file.seek(place)
            content = file.read(size)
        if len(content) < size:
            raise ValueError(f"shard {self.shards[shard]} is cut short")
        return f"at byte {place} of {self.shards[shard]}", io.BytesIO(content)
