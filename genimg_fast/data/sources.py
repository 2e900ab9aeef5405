"""Where images come from: scikit-learn's digits, torchvision's data sets, folders.

To add a named data set, write a function ``(root, download) -> ImageDataset`` and enter it in ``_SOURCES``.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from genimg_fast.data.dataset import ImageDataset
from genimg_fast.data.optional import optional_import


def load_dataset(
    name_or_path: str | Path,
    *,
    image_size: int,
    channels: int | None = None,
    root: str | Path = "data",
    download: bool = False,
) -> ImageDataset:
    """Load images into memory, at the size and with the number of channels that a model takes.

    Images are resized by antialiased bicubic interpolation; those of a folder are first cropped to a square.

    Args:
        name_or_path: ``"digits"`` (1,797 real 8x8 handwritten digits that come with scikit-learn), ``"mnist"``,
            ``"fashion-mnist"``, ``"cifar10"`` (training sets, through torchvision), or a folder of images. A
            folder whose subfolders hold images is read as one class per subfolder, in alphabetical order.
        image_size: Height and width, in pixels.
        channels: 1 (grey) or 3 (RGB); grey images are repeated, colour ones weighted. By default, the data's own.
        root: Folder for data sets that torchvision stores.
        download: Whether torchvision may download what is not in ``root``. Nothing is ever downloaded otherwise.

    Returns:
        The data set, on the CPU.

    Raises:
        ValueError: If nothing has this name, a folder holds no images, or an image cannot be read.
        FileNotFoundError: If the data set is not in ``root`` and may not be downloaded.
        ImportError: If a package that the source needs is missing.

    Example:
        >>> import genimg_fast as gf
        >>> data = gf.data.load_dataset("digits", image_size=32)
        >>> len(data), data[0][0].shape
        (1797, torch.Size([1, 32, 32]))
    """
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}")
    if channels not in (None, 1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    name = str(name_or_path)
    if name in _SOURCES:
        data = _SOURCES[name](Path(root), download)
        images = _resize(_convert(data.images, channels), image_size)
        return ImageDataset(images, data.labels, class_names=data.class_names)
    if Path(name_or_path).is_dir():
        return _folder(Path(name_or_path), image_size, channels)
    raise ValueError(f"{name!r} is neither a folder nor one of {', '.join(_SOURCES)}")


def _digits(root: Path, download: bool) -> ImageDataset:
    digits = optional_import("sklearn.datasets").load_digits()
    images = torch.from_numpy(digits.images).unsqueeze(1).mul(255 / 16)  # 17 grey levels, 0 to 16
    return ImageDataset(_to_bytes(images), torch.from_numpy(digits.target).long())


def _torchvision(class_name: str, root: Path, download: bool) -> ImageDataset:
    dataset_class = getattr(optional_import("torchvision.datasets"), class_name)
    try:
        data = dataset_class(str(root), train=True, download=download)
    except RuntimeError as error:  # torchvision's way to say that the files are not there, or damaged
        if download:
            raise
        raise FileNotFoundError(f"no {class_name} data set in {root}, and download is off: {error}") from error
    images = torch.as_tensor(data.data)
    images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
    return ImageDataset(images, torch.as_tensor(data.targets), class_names=data.classes)


_SOURCES: dict[str, Callable[[Path, bool], ImageDataset]] = {
    "digits": _digits,
    "mnist": partial(_torchvision, "MNIST"),
    "fashion-mnist": partial(_torchvision, "FashionMNIST"),
    "cifar10": partial(_torchvision, "CIFAR10"),
}


def _folder(folder: Path, image_size: int, channels: int | None) -> ImageDataset:
    suffixes = image_suffixes()
    by_class = [
        (entry.name, sorted(f for f in entry.rglob("*") if f.suffix.lower() in suffixes))
        for entry in sorted(folder.iterdir())
        if entry.is_dir()
    ]
    by_class = [(name, files) for name, files in by_class if files]
    if not by_class:
        by_class = [(folder.name, sorted(f for f in folder.iterdir() if f.suffix.lower() in suffixes))]
    if not by_class[0][1]:
        raise ValueError(f"no images in folder {folder}")

    images, labels = [], []
    for label, (_, files) in enumerate(by_class):
        images += [read_image(file, image_size, channels) for file in files]
        labels += [label] * len(files)
    return ImageDataset(torch.stack(images), torch.tensor(labels), class_names=[name for name, _ in by_class])


def image_suffixes() -> set[str]:
    """Get the endings of the image files that Pillow reads, in lower case."""
    return set(optional_import("PIL.Image").registered_extensions())


def read_image(file: Path, image_size: int, channels: int | None) -> Tensor:
    """Read an image file as bytes; see :func:`to_pixels`."""
    try:
        with optional_import("PIL.Image").open(file) as opened:
            return to_pixels(opened, image_size, channels)
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all three on broken files
        raise ValueError(f"cannot read image {file}: {error}") from error


def to_pixels(image: Any, image_size: int, channels: int | None) -> Tensor:
    """Crop an image of Pillow's to a square and resize it: bytes of shape (channels, image_size, image_size)."""
    Image, ImageOps = optional_import("PIL.Image"), optional_import("PIL.ImageOps")
    image = image.convert("L" if channels == 1 else "RGB")
    image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image_size, image_size, -1).permute(2, 0, 1)


def _to_bytes(images: Tensor) -> Tensor:
    return images.round().clamp(0, 255).to(torch.uint8)


def _convert(images: Tensor, channels: int | None) -> Tensor:
    if channels in (None, images.shape[1]):
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    # The weights of ITU-R BT.601, as in Pillow's conversion to grey.
    return _to_bytes((images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True))


def _resize(images: Tensor, image_size: int) -> Tensor:
    size = (image_size, image_size)
    if images.shape[2:] == size:
        return images.contiguous()
    # In pieces: as float32 a large data set would take five times its memory.
    return torch.cat(
        [
            _to_bytes(interpolate(piece.float(), size, mode="bicubic", antialias=True))
            for piece in images.split(4096)
        ]
    )
