"""IDX files, in which MNIST and its relatives are published: one of images, one of their labels.

http://yann.lecun.com/exdb/mnist: two bytes 0, one for the type of the numbers (8: bytes), one for the dimensions,
their sizes as big-endian integers of 32 bits, the numbers.
"""

import gzip
import math
import re
import string
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from genimg_fast.data.dataset import ImageDataset

_IMAGES = re.compile(r"((?:.*-)?(?:train|t10k|test))-images[-.]idx3-ubyte(?:\.gz)?")

# The classes of EMNIST (Cohen et al. 2017, arXiv:1702.05373). Merged ones are called by the upper-case letter.
_MERGED = string.digits + string.ascii_uppercase + "abdefghnqrt"
_EMNIST = {
    "balanced": _MERGED,
    "byclass": string.digits + string.ascii_uppercase + string.ascii_lowercase,
    "bymerge": _MERGED,
    "digits": string.digits,
    "letters": string.ascii_lowercase,
    "mnist": string.digits,
}


def find_idx(path: Path) -> Path | None:
    """Find the IDX file of a data set's images.

    Args:
        path: The file itself, or a folder that holds it, such as ``train-images-idx3-ubyte``,
            ``t10k-images-idx3-ubyte.gz`` or ``emnist-letters-test-images-idx3-ubyte``.

    Returns:
        The file, of a folder that of the training split if there is one; None if there is no such file.

    Raises:
        ValueError: If the folder holds several data sets.
        OSError: If the folder cannot be read.
    """
    if not path.is_dir():
        return path if path.is_file() and _IMAGES.fullmatch(path.name) else None
    # In reverse: of an unpacked file and its archive, the former stays.
    files = sorted((f for f in path.iterdir() if not f.name.startswith(".") and f.is_file()), reverse=True)
    splits = {match[1]: file for file in files if (match := _IMAGES.fullmatch(file.name))}
    found = [file for split, file in splits.items() if split.endswith("train")] or list(splits.values())
    if len(found) > 1:
        raise ValueError(
            f"{path} holds {len(found)} data sets: give the file of one's images, such as {found[-1]}"
        )
    return found[0] if found else None


def read_idx(file: Path) -> ImageDataset:
    """Read images, and the labels beside them, compressed by gzip or not.

    Args:
        file: The images, as :func:`find_idx` returned it. EMNIST's, which are published with rows and columns
            exchanged, are turned upright, and its letters, counted from 1, are counted from 0.

    Returns:
        The data set, of grey images.

    Raises:
        ValueError: If a file is damaged, the labels are missing, or they do not fit the images.
    """
    match = _IMAGES.fullmatch(file.name)
    assert match is not None  # find_idx has seen to it
    names = [f"{match[1]}-labels{dot}idx1-ubyte{end}" for dot in "-." for end in ("", ".gz")]
    labels_file = next((f for f in (file.with_name(name) for name in names) if f.is_file()), None)
    if labels_file is None:
        raise ValueError(f"there are no labels beside {file}: neither {names[0]} nor {names[1]}")
    images, labels = _read(file, 3), _read(labels_file, 1).long()
    kind = re.match(r"emnist-(\w+)-", file.name)
    classes = _EMNIST.get(kind[1]) if kind else None
    if kind:
        images = images.transpose(1, 2).contiguous()
        labels = labels - int(kind[1] == "letters")
    height, width = images.shape[1:]
    if height != width or width == 0:
        raise ValueError(f"images must be square and have pixels, those of {file} have {width}x{height}")
    try:
        return ImageDataset(images.unsqueeze(1), labels, class_names=classes)
    except ValueError as error:
        raise ValueError(f"{file} and {labels_file} do not fit: {error}") from error


def _read(file: Path, dimensions: int) -> Tensor:
    try:
        content = file.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot read {file}: {error}") from error
    begin = 4 + 4 * dimensions
    if content[:4] != bytes([0, 0, 8, dimensions]) or len(content) < begin:
        raise ValueError(
            f"cannot read {file}: it does not begin like an IDX file of bytes in {dimensions} dimensions"
        )
    shape = struct.unpack_from(f">{dimensions}I", content, 4)
    if len(content) != begin + math.prod(shape):
        size = "x".join(map(str, shape))
        raise ValueError(f"cannot read {file}: it should hold {size} bytes, and holds {len(content) - begin}")
    # frombuffer refuses an empty rest.
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[begin:].view(shape)
