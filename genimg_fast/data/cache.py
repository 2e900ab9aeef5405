"""Images decoded once, into a file.

The file holds bytes, image behind image. It is read by position rather than mapped into memory: mapped pages count
as memory of the process, and a file that is cut short would end it without a word.
"""

import errno
import fcntl
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import escape
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genimg_fast.data.decode import Decoder, UnreadableError
from genimg_fast.data.stream import map_in_order
from genimg_fast.options import OptionError

_FORMAT = 1


class CacheError(OSError):
    """A cache cannot be written."""


class CacheFile:
    """Reads images from a cache.

    Args:
        path: The file; its description is beside it, with the ending ``.json``.
        key: What the description has to say about where the images come from.

    Raises:
        ValueError: If the description is damaged or another one, or the file has another size than it says.
        OSError: If a file cannot be read.
    """

    fingerprint = ""  # the images themselves tell: they are quick to read
    quick = True

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        note = _read_note(path)
        if note.get("key") != key or note.get("format") != _FORMAT:
            raise OptionError(
                "cache", f"{path} is a cache of other images: remove it, or have another folder for caches"
            )
        self.number, *shape = note["shape"]
        self.shape: tuple[int, int, int] = (shape[0], shape[1], shape[2])
        self.skipped: list[int] = note["skipped"]
        self._size = shape[0] * shape[1] * shape[2]
        self._file: Any = None
        if (size := path.stat().st_size) != self.number * self._size:
            raise OptionError(
                "cache",
                f"{path} is damaged: it has {size} bytes instead of {self.number * self._size}; remove it, and it "
                "is made anew",
            )

    @property
    def storage(self) -> str:
        """Where the images are, in words."""
        return f"in {self.path}, {self.number * self._size / 1e9:.3g} GB"

    def __len__(self) -> int:
        return self.number

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def read(self, rows: list[int]) -> Tensor:
        """Read images by their numbers.

        Raises:
            OSError: If it cannot be read, or was cut short meanwhile.
        """
        descriptor, images = self._open(), torch.empty(len(rows), *self.shape, dtype=torch.uint8)
        for row, place in zip(rows, images.view(len(rows), -1).numpy(), strict=True):
            if os.preadv(descriptor, [place], row * self._size) < self._size:
                raise OSError(f"{self.path} is cut short: image {row} is not in it")
        return images

    def expect(self, rows: list[int]) -> None:
        """Let the system read images that will be asked for soon."""
        descriptor = self._open()
        for row in rows:
            os.posix_fadvise(descriptor, row * self._size, self._size, os.POSIX_FADV_WILLNEED)

    def _open(self) -> int:
        if self._file is None:
            self._file = open(self.path, "rb", buffering=0)  # noqa: SIM115 (open as long as there are rows to read)
        return self._file.fileno()

    def recall_hash(self, name: str, compute: Callable[[], str]) -> str:
        """Get a hash from the description; compute it and write it there if it is missing."""
        known = _read_note(self.path)["hashes"]
        if name not in known:
            known = {**known, name: compute()}
            try:
                _write_note(self.path, {**_read_note(self.path), "hashes": known})
            except OSError as error:
                warnings.warn(f"cannot keep a hash beside {self.path}: {error.strerror}", stacklevel=2)
        return known[name]


def find_cache(folder: Path, name: str, key: str, decoder: Decoder) -> CacheFile | None:
    """Find the cache of a decoder's images that :func:`make_cache` has finished; None if there is none.

    Raises:
        ValueError: If it is damaged, or one of other images.
    """
    path = _path(folder, name, key)
    if not path.exists():
        return None
    cache = CacheFile(path, key)
    fits = cache.shape == decoder.shape and cache.number == len(decoder) - len(cache.skipped)
    if not fits or any(item >= len(decoder.items) for item in cache.skipped):
        raise OptionError("cache", f"{_note_of(path)} is damaged: remove {path}, and it is made anew")
    return cache


def has_room(folder: Path, name: str, key: str, size: int) -> bool:
    """Tell whether there is room for a cache of so many bytes, or for what is missing of it."""
    while not folder.exists():
        folder = folder.parent
    part = _path(folder, name, key).with_suffix(".part")
    done = part.stat().st_size if part.is_file() else 0
    return shutil.disk_usage(folder).free > size - done


def make_cache(folder: Path, name: str, key: str, decoder: Decoder, *, workers: int) -> CacheFile:
    """Decode images into a cache, or go on where that was interrupted, or wait for another process that does it.

    Args:
        folder: Where to; made if it is missing.
        name: What the file's name begins with.
        key: Tells images and settings apart from any others, in hexadecimal digits.
        decoder: Reads the images.
        workers: Processes that decode.

    Returns:
        The cache. What could not be read is missing, if the decoder skips that.

    Raises:
        ValueError: If an image cannot be read, or none can.
        CacheError: If the cache cannot be written, because the disk is full, say. The next time, it goes on.
    """
    path = _path(folder, name, key)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(path) as part:
            if part is not None:
                _tell_of_others(path, name)
                _decode(part, path, key, decoder, workers)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise CacheError(
                f"cannot write {path.with_suffix('.part')}: {error.strerror}; the decoded images take "
                f"{decoder.nbytes / 1e9:.3g} GB: make room, and it goes on, or have another folder for caches"
            ) from error
        if error.filename is None or not Path(error.filename).absolute().is_relative_to(folder.absolute()):
            raise  # the images are to blame
        raise CacheError(f"cannot write {error.filename}: {error.strerror}") from error
    return CacheFile(path, key)


def _tell_of_others(path: Path, name: str) -> None:
    """Warn of caches of a data set of the same name, which may be of files or settings that are no more."""
    files = [file for file in path.parent.glob(f"{escape(name)}-*") if file.suffix in (".images", ".part")]
    others = [file for file in files if file.stem != path.stem]
    if others:
        size = sum(file.stat().st_size for file in others) / 1e9
        told = f"caches of other files or settings, such as {min(others)}, take {size:.3g} GB"
        warnings.warn(f"{told}: remove what is not needed", stacklevel=5)


def _decode(part: int, path: Path, key: str, decoder: Decoder, workers: int) -> None:
    """Append what is missing; then write the description and give the file its name."""
    journal = path.with_suffix(".skipped")
    size = decoder.nbytes // len(decoder)
    done = os.fstat(part).st_size // size
    if done == 0:
        journal.unlink(missing_ok=True)
    skipped = [int(line) for line in journal.read_text().split()] if journal.is_file() else []
    # Items are written whole or begun anew. Of one image each, all but the skipped ones are there.
    if decoder.corners is None:
        first = done + len(skipped)
    else:
        starts = decoder.rows_of_cache()[: len(decoder.items)]
        first = int((starts[1:] <= done).sum())
        done = len(decoder) if done >= len(decoder) else int(starts[first])
        first = len(decoder.items) if done == len(decoder) else first
    os.ftruncate(part, done * size)
    os.lseek(part, 0, os.SEEK_END)
    items = range(first, len(decoder.items))
    for item, images in zip(
        items, map_in_order(decoder.read_item, items, workers=workers, title=f"decoding into {path}"), strict=True
    ):
        if isinstance(images, UnreadableError) and decoder.skip_broken and decoder.corners is None:
            warnings.warn(f"skipped: {images}", stacklevel=2)
            skipped.append(item)
            with open(journal, "a") as file:
                file.write(f"{item}\n")
        elif isinstance(images, Exception):
            raise images
        else:
            _write(part, memoryview(images.reshape(-1)))
            done += len(images)
    if done == 0:
        raise ValueError("no image can be read")
    os.fsync(part)
    _write_note(
        path, {"format": _FORMAT, "key": key, "shape": [done, *decoder.shape], "skipped": skipped, "hashes": {}}
    )
    os.replace(path.with_suffix(".part"), path)
    journal.unlink(missing_ok=True)


def _write(descriptor: int, content: memoryview) -> None:
    while len(content) > 0:
        content = content[os.write(descriptor, content) :]


@contextmanager
def _locked(path: Path) -> Iterator[int | None]:
    """Yield the descriptor of the part file, locked; None if another process has finished it meanwhile."""
    part = path.with_suffix(".part")
    while True:
        if path.exists():
            yield None
            return
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    warnings.warn(f"waiting for another process that writes {part}", stacklevel=4)
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            except OSError as error:
                warnings.warn(f"cannot keep other processes from writing {part}: {error.strerror}", stacklevel=4)
            # The process before may have given the file its name.
            if part.exists() and os.path.samestat(os.fstat(descriptor), os.stat(part)):
                yield descriptor
                return
        finally:
            os.close(descriptor)


def _path(folder: Path, name: str, key: str) -> Path:
    return folder / f"{name}-{key[:16]}.images"


def _note_of(path: Path) -> Path:
    return path.with_suffix(".json")


def _read_note(path: Path) -> dict[str, Any]:
    note = _note_of(path)
    try:
        content = json.loads(note.read_bytes())
        if not {"format", "key", "shape", "skipped", "hashes"} <= content.keys():
            raise ValueError("something is missing")
        shape, skipped, hashes = content["shape"], content["skipped"], content["hashes"]
        numbers = [*shape, *(place + 1 for place in skipped)]
        if len(shape) != 4 or any(type(number) is not int or number < 1 for number in numbers):
            raise ValueError("a number in it makes no sense")
        if not all(isinstance(each, str) for each in (*hashes, *hashes.values())):
            raise ValueError("a hash in it is none")
    except (FileNotFoundError, ValueError, AttributeError, TypeError) as error:
        why = "missing" if isinstance(error, FileNotFoundError) else f"damaged: {error}"
        raise OptionError("cache", f"{note} is {why}; remove {path}, and it is made anew") from error
    return content


def _write_note(path: Path, content: dict[str, Any]) -> None:
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(content) + "\n")
        os.replace(temporary, _note_of(path))
    finally:
        temporary.unlink(missing_ok=True)
