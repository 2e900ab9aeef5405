"""Tar files in the form of WebDataset (https://github.com/webdataset/webdataset): shards of a data set.

The files of one sample have a name in common, up to the first dot: ``cats/0001.jpg``, ``cats/0001.cls``. A shard
is read through once, header by header, for the place of every image and its class. From then on images are read by
their places: in any order, from any batch on, by any number of processes.
"""

import io
import json
import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy
import torch
from torch import Tensor

from genimg_fast.data.decode import image_suffixes, measure, open_image, to_pixels

_BLOCK = 512  # bytes, of which headers, contents and the zeros at the end are made
_HIGHEST_CLASS = 100_000  # what is above is a number of something else, such as of the image
_PACKED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}


def is_shard(file: Path) -> bool:
    """Tell whether a file has the name of a tar file, packed or not."""
    return file.suffix in (".tar", ".tgz", ".tbz2", ".txz") or file.suffixes[-2:-1] == [".tar"]


def index_shards(shards: list[Path]) -> tuple[numpy.ndarray, Tensor]:
    """Find the images in tar files.

    Args:
        shards: The files, not compressed.

    Returns:
        For each image, in the order of the files: number of its shard, place and size in bytes, int64 of shape
        (n, 3); and its class, int64 of shape (n,): what the sample's ``.cls`` or the ``label`` of its ``.json``
        says, or 0.

    Raises:
        ValueError: If a file is no tar file, is compressed, is cut short, or holds no images; a file in it comes
            twice, is sparse, or is a link to none; a sample holds several images, a class and no image, or its
            class is no number from 0 to 100,000; or some samples have a class and others have none.
    """
    places: list[tuple[int, int, int]] = []
    labels: list[int | None] = []
    suffixes = image_suffixes()
    for number, shard in enumerate(shards):
        before = len(places)
        try:
            with open(shard, "rb") as content:
                for files in _archives(content, shard):
                    for sample in _samples(files, suffixes, content, shard):
                        places.append((number, *sample.image))
                        labels.append(sample.label)
        except (tarfile.TarError, OSError) as error:
            raise ValueError(f"shard {shard} cannot be read, or is cut short: {error}") from error
        if len(places) == before:
            raise ValueError(f"no images in shard {shard}")
    if len({label is None for label in labels}) > 1:
        unlabelled = shards[places[labels.index(None)][0]]
        raise ValueError(f"some images have a class, and others, such as one in {unlabelled}, have none")
    return numpy.array(places, numpy.int64), torch.tensor([label or 0 for label in labels])


_Place = tuple[int, int]  # first byte and size
_Files = dict[str, _Place | None]  # by their names; None for a link to no file


class _Sample(NamedTuple):
    image: _Place
    label: int | None


def _archives(content: BinaryIO, shard: Path) -> Iterator[_Files]:
    """Yield the places of an archive's files by their names; what ``cat`` has put together is several archives."""
    start = content.read(6)
    if unpack := next((unpack for magic, unpack in _PACKED.items() if start.startswith(magic)), None):
        raise ValueError(f"shard {shard} is compressed: unpack it with {unpack}")
    content.seek(0)
    block = start
    while block:
        files: _Files = {}
        with tarfile.open(fileobj=content, mode="r:") as tar:
            links = {}
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # it would keep all of them
                name, where = member.name, f"{member.name} of shard {shard}"
                if name in files and not member.isdir():
                    raise ValueError(f"{where} comes twice: give every sample a name of its own")
                if member.issparse():
                    raise ValueError(f"{where} is a sparse file: pack it without --sparse")
                if member.islnk() or member.issym():
                    folder = posixpath.dirname(name) if member.issym() else ""
                    links[name] = posixpath.normpath(posixpath.join(folder, member.linkname))
                    files[name] = None
                elif member.isfile():
                    files[name] = member.offset_data, member.size
            end = tar.offset
        # tarfile takes a file that is cut between two members, or damaged there, for whole.
        content.seek(end)
        if content.read(_BLOCK) != bytes(_BLOCK):
            raise tarfile.ReadError("its end is missing")
        if links:
            found = {posixpath.normpath(name): place for name, place in files.items() if name not in links}
            for name, target in links.items():
                files[name] = found.get(target)
        yield files
        content.seek(end + _BLOCK)
        while (block := content.read(_BLOCK)) and not any(block):
            pass
        content.seek(-len(block), io.SEEK_CUR)


def _samples(files: _Files, suffixes: set[str], content: BinaryIO, shard: Path) -> Iterator[_Sample]:
    """Put the files of an archive together to samples, in the order of their first files."""
    images: dict[str, _Place | None] = {}
    labels: dict[str, int] = {}
    lonely: dict[str, str] = {}  # a .cls by its sample
    for name, place in files.items():
        folder, slash, file = name.rpartition("/")
        stem, _, ending = file.partition(".")
        key, ending = folder + slash + stem, f".{ending}".lower()
        image = Path(file).suffix.lower() in suffixes
        if not stem or not (image or ending in (".cls", ".json")):
            continue
        where = f"{name} of shard {shard}"
        if place is None:
            raise ValueError(f"{where} is a link to no file in it")
        images.setdefault(key, None)
        if image:
            if images[key] is not None:
                raise ValueError(f"sample {key} of shard {shard} holds several images")
            images[key] = place
            continue
        content.seek(place[0])
        label = _label(content.read(place[1]), ending, where)
        if label is not None:
            labels[key] = label
        if ending == ".cls":
            lonely[key] = where
    for key, found in images.items():
        if found is not None:
            yield _Sample(found, labels.get(key))
        elif key in lonely:
            raise ValueError(f"{lonely[key]} has no image beside it, in the same folder, of the same name")


def _label(content: bytes, ending: str, where: str) -> int | None:
    label: Any = None
    try:
        label = json.loads(content)
    except ValueError as error:
        if ending == ".json":
            raise ValueError(f"{where} is no JSON: {error}") from error
    if ending == ".json":
        names = [name for name in ("label", "cls") if isinstance(label, dict) and label.get(name) is not None]
        if not names:
            return None
        label = label[names[0]]
    if type(label) is not int or not 0 <= label <= _HIGHEST_CLASS:
        raise ValueError(f"the class in {where} is no number from 0 to {_HIGHEST_CLASS:,}")
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
            file.seek(place - _BLOCK)
            name = file.read(_BLOCK)[:100].split(b"\0")[0].decode(errors="replace")  # begins the header
            content = file.read(size)
        if len(content) < size:
            raise ValueError(f"shard {self.shards[shard]} is cut short")
        return f"{name}, at byte {place} of {self.shards[shard]}", io.BytesIO(content)
