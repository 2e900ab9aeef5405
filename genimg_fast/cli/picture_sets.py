"""Pictures of any origin, in the size of others."""

import statistics
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from genimg_fast.data import ImageDataset, load_dataset
from genimg_fast.data.files import files_below, list_folder
from genimg_fast.data.sources import images_among, open_image


def common_side(source: str | Path) -> tuple[int, bool] | None:
    """Find how large pictures are.

    Args:
        source: A folder, or an ``.npz`` file.

    Returns:
        Pixels of a picture's shorter side, in the median, and whether all are squares of this size; None if there
        are no files to look at.

    Raises:
        ValueError: If an ``.npz`` file holds no pictures.
        OSError: If it cannot be read.
    """
    path = Path(source)
    if path.suffix == ".npz" and path.is_file():
        shape = _read_npz(path)[0].shape[2:]
        return min(shape), shape[0] == shape[1]
    folders, files = list_folder(path) if path.is_dir() else ([], [])
    files += [file for folder in folders for file in files_below(folder, above=path)]
    sizes: list[tuple[int, int]] = []
    for file in images_among(files):
        with suppress(ValueError), open_image(file) as image:  # reading the pictures will tell
            sizes.append(image.size)
    if not sizes:
        return None
    side = statistics.median_low(map(min, sizes))
    return side, set(sizes) == {(side, side)}


def load_pictures(source: str | Path, image_size: int, **options: Any) -> ImageDataset:
    """Load pictures, cropped to squares and resized.

    Args:
        source: What :func:`load_dataset` takes, or an ``.npz`` file.
        image_size: Height and width, in pixels.
        **options: Of :func:`load_dataset`.

    Raises:
        ValueError: If there are no pictures.
        OSError: If a file cannot be read.
    """
    path = Path(source)
    if path.suffix != ".npz" or not path.is_file():
        return load_dataset(source, image_size=image_size, **options)
    images, labels = _read_npz(path)
    height, width = images.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    images = images[:, :, top : top + side, left : left + side]
    return ImageDataset(torch.cat(list(_resized(images, image_size))), labels)


def _resized(images: Tensor, size: int) -> Iterator[Tensor]:
    for part in images.split(1024):
        if part.shape[2] != size:
            part = interpolate(part.float(), (size, size), mode="bicubic", antialias=True).round().clamp(0, 255)
        yield part.to(torch.uint8)


def _read_npz(path: Path) -> tuple[Tensor, Tensor | None]:
    """Read bytes, (n, channels, height, width), and labels, if there are any."""
    try:
        with numpy.load(path, allow_pickle=False) as file:
            arrays = [torch.from_numpy(file[name]) for name in file.files if file[name].dtype.kind in "iu"]
    except OSError:
        raise
    except Exception as error:  # numpy documents few; a damaged archive raises half a dozen of them
        raise ValueError(f"cannot read {path}: {error}") from error
    images = next((a for a in arrays if a.dtype == torch.uint8 and a.ndim in (3, 4) and a.numel() > 0), None)
    if images is None:
        raise ValueError(f"{path} holds no pictures: bytes of shape (n, height, width, channels)")
    if images.ndim == 3:
        images = images.unsqueeze(1)
    elif images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        images = images.permute(0, 3, 1, 2)
    if images.shape[1] not in (1, 3):
        raise ValueError(f"{path}: pictures must have 1 or 3 channels, got the shape {tuple(images.shape)}")
    labels = next((a for a in arrays if a.shape == (len(images),)), None)
    return images.contiguous(), None if labels is None else labels.long()
