"""Image files: which there are, how they are read, and images that are decoded when they are asked for."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy
import torch
from torch import Tensor

from genimg_fast.data.optional import optional_import

_GREY = ("1", "L", "LA", "La")  # Pillow's modes


class UnreadableError(ValueError):
    """A file cannot be read; ``skip_broken`` leaves it out."""


class Decoder:
    """Reads images from what holds them compressed, one at a time or all of them in order.

    Args:
        items: What holds them, an array with an entry for each: names of files, places in archives.
        load: Decodes the image of an item: bytes of shape (channels, height, width). Where it raises a ValueError,
            the item is broken. It goes to worker processes.
        shape: Channels, height and width of every image.
        fingerprint: What tells these images apart from others.
        corners: Upper left corners of squares to cut from the decoded pictures, int64 of shape (n, 2); row ``r``
            is cut from item number ``r % len(items)``. By default pictures are taken as they are.
        skip_broken: Whether broken items may be left out; :meth:`read` takes each for an error.
    """

    def __init__(
        self,
        items: numpy.ndarray,
        load: Callable[[Any], Tensor],
        shape: tuple[int, int, int],
        *,
        fingerprint: str,
        corners: Tensor | None = None,
        skip_broken: bool = False,
    ) -> None:
        self.items, self.load, self.shape = items, load, shape
        self.fingerprint, self.corners, self.skip_broken = fingerprint, corners, skip_broken

    quick = False

    @property
    def storage(self) -> str:
        """Where the images are, in words."""
        return "decoded whenever they are needed"

    @property
    def nbytes(self) -> int:
        """Bytes of all images, decoded."""
        return len(self) * self.shape[0] * self.shape[1] * self.shape[2]

    def __len__(self) -> int:
        return len(self.items if self.corners is None else self.corners)

    def read(self, rows: list[int]) -> Tensor:
        """Decode images by their numbers."""
        return torch.stack([self._row(row) for row in rows]) if rows else torch.empty(0, *self.shape).byte()

    def expect(self, rows: list[int]) -> None:
        """Hear which images will be asked for soon: workers read ahead by themselves."""

    def read_item(self, item: int) -> numpy.ndarray:
        """Decode what is in an item: bytes of shape (images, channels, height, width)."""
        try:
            picture = self.load(self.items[item])
        except ValueError as error:
            raise UnreadableError(str(error)) from error
        if self.corners is None:
            return picture.unsqueeze(0).numpy()
        return torch.stack(
            [self._cut(picture, *c) for c in self.corners[item :: len(self.items)].tolist()]
        ).numpy()

    def check_item(self, item: int) -> None:
        """Decode an item to see if it can be read."""
        self.read_item(item)

    def keep(self, kept: Tensor) -> None:
        """Go on with some of the items only, where each holds one image: bool of shape (items,)."""
        self.items = self.items[kept.numpy()]
        self.fingerprint = f"{self.fingerprint} {kept.nonzero().flatten().tolist()}"

    def rows_of_cache(self) -> Tensor:
        """Get the place of every row in a file that holds the images item by item."""
        if self.corners is None:
            return torch.arange(len(self))
        rows, items = torch.arange(len(self)), len(self.items)
        each, more = divmod(len(self), items)
        item = rows % items
        return item * each + item.clamp(max=more) + rows // items

    def recall_hash(self, name: str, compute: Callable[[], str]) -> str:
        """Compute a hash: there is nowhere to keep it, and the fingerprint is quick to hash."""
        return compute()

    def _cut(self, picture: Tensor, top: int, left: int) -> Tensor:
        cut = picture[:, top : top + self.shape[1], left : left + self.shape[2]]
        if cut.shape != self.shape:
            raise UnreadableError("a picture has another size than its file says")
        return cut

    def _row(self, row: int) -> Tensor:
        try:
            return self._read_row(row)
        except UnreadableError:
            raise
        except ValueError as error:
            raise UnreadableError(str(error)) from error

    def _read_row(self, row: int) -> Tensor:
        if self.corners is not None:
            return self._cut(self.load(self.items[row % len(self.items)]), *self.corners[row].tolist())
        return self.load(self.items[row])


class Measured(NamedTuple):
    """What the header of an image file says, of the image upright."""

    height: int
    width: int
    grey: bool


def measure(file: Path | str, content: BinaryIO | None = None, *, whole: bool = False) -> Measured:
    """Read the header of an image file; with ``whole``, the rest as well, to see if it can be read."""
    with open_image(file, content) as image:
        grey = image.mode in _GREY or image.mode.startswith("I;16") or image.mode == "I"
        turned = image.getexif().get(0x0112, 1) >= 5  # EXIF's orientation: a quarter turn is in it
        height, width = (image.width, image.height) if turned else (image.height, image.width)
        if whole:
            image.load()
    return Measured(height, width, grey)


def paths_of(files: list[Path]) -> numpy.ndarray:
    """Pack paths: a list of them takes ten times the memory, and worker processes copy it."""
    return numpy.array([os.fsencode(file) for file in files])


def path_in(item: Any) -> Path:
    """Unpack a path."""
    return Path(os.fsdecode(bytes(item)))


def image_suffixes() -> set[str]:
    """Get the endings of the image files that Pillow reads, in lower case."""
    pillow = optional_import("PIL.Image")
    suffixes = pillow.registered_extensions()
    # An MPO file is opened as the JPEG file that it begins like; of an MPEG video nothing but the size is read.
    readable = (set(pillow.OPEN) | {"MPO"}) - {"MPEG"}
    return {suffix for suffix, name in suffixes.items() if name in readable}


def images_among(files: list[Path]) -> list[Path]:
    """Take the files that Pillow reads."""
    suffixes = image_suffixes()
    return [file for file in files if file.suffix.lower() in suffixes]


@contextmanager
def open_image(file: Path | str, content: BinaryIO | None = None) -> Iterator[Any]:
    """Open an image file with Pillow; whatever fails until it is closed becomes a ValueError that names it.

    Args:
        file: The file.
        content: What is in it, if it is no file of its own.

    Yields:
        The image.
    """
    pillow = optional_import("PIL.Image")
    try:
        with pillow.open(file if content is None else content) as image:
            yield image
    except Exception as error:  # Pillow documents few; damaged files raise a dozen of them, by their format
        why = (
            str(error).replace(repr(str(file) if content is None else content), "").rstrip(": ")
        )  # the path is in front already
        raise ValueError(f"cannot read image {file}: {why or type(error).__name__}") from error


def read_whole(file: Path, channels: int | None) -> Tensor:
    """Read an image file as bytes, (channels, height, width), as it is."""
    with open_image(file) as opened:
        return picture_to_pixels(opened, None, channels)


def read_image(file: Path, image_size: int, channels: int | None) -> Tensor:
    """Read an image file as bytes; see :func:`to_pixels`."""
    with open_image(file) as opened:
        return to_pixels(opened, image_size, channels)


def to_pixels(image: Any, image_size: int, channels: int | None) -> Tensor:
    """Crop an image of Pillow's to a square and resize it: bytes of shape (channels, image_size, image_size)."""
    Image, ImageOps = optional_import("PIL.Image"), optional_import("PIL.ImageOps")
    image = _eight_bits(image, channels)
    return _pixels(ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC))


def picture_to_pixels(image: Any, image_size: int | None, channels: int | None) -> Tensor:
    """Turn an image of Pillow's into bytes, (channels, height, width), of its own size or as :func:`to_pixels`."""
    if image_size is not None:
        return to_pixels(image, image_size, channels)
    return _pixels(_eight_bits(image, channels))


def _pixels(image: Any) -> Tensor:
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, -1).permute(2, 0, 1)


def _eight_bits(image: Any, channels: int | None) -> Any:
    """Turn an image of Pillow's upright, and into grey or RGB of 8 bits; by default, whichever it is.

    Raises:
        ValueError: If its pixels are numbers of 32 bits.
    """
    Image, ImageOps = optional_import("PIL.Image"), optional_import("PIL.ImageOps")
    # Some versions of Pillow hold the 16 bits of these two formats in 32.
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if image.mode in ("I", "F") and not sixteen:  # Pillow would clip them to 0..255
        raise ValueError(
            "its pixels are numbers of 32 bits, which do not say what white is: convert it to 8 or 16 bits"
        )
    image = ImageOps.exif_transpose(image)
    if sixteen:  # Pillow would clip these, too
        image = Image.fromarray((numpy.asarray(image).clip(0, 65535) // 257).astype(numpy.uint8))
    if channels is None:
        channels = 1 if image.mode in _GREY else 3
    return image.convert("L" if channels == 1 else "RGB")
