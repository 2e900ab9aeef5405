"""Where images come from: scikit-learn's digits, data sets that torchvision downloads, folders.

To add a named data set, write a function ``(root, download) -> ImageDataset`` and enter it in ``_SOURCES``.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from genimg_fast._close_names import did_you_mean
from genimg_fast.data.dataset import ImageDataset
from genimg_fast.data.files import files_below, list_folder
from genimg_fast.data.idx import find_idx, read_idx
from genimg_fast.data.optional import optional_import


def load_dataset(
    name_or_path: str | Path,
    *,
    image_size: int,
    channels: int | None = None,
    root: str | Path = "data",
    download: bool = False,
    crops: int = 0,
    seed: int = 0,
    skip_broken: bool = False,
) -> ImageDataset:
    """Load images into memory, at the size and with the number of channels that a model takes.

    Images are resized by antialiased bicubic interpolation; those of a folder are first cropped to a square. With
    ``crops``, squares of ``image_size`` are cut at random from the images of a folder as they are.

    Args:
        name_or_path: ``"digits"`` (1,797 real 8x8 handwritten digits that come with scikit-learn), ``"mnist"``,
            ``"fashion-mnist"``, ``"cifar10"`` (training sets, through torchvision), ``"photos"`` (two photographs
            that come with scikit-learn, for crops), or a folder of images. A folder whose subfolders hold images
            is read as one class per subfolder, in alphabetical order; hidden files and folders are left out, links
            are followed. Or a folder of IDX files, as MNIST, Fashion-MNIST and EMNIST are published, packed by
            gzip or not: the training split, unless the path is that of a split's file of images.
        image_size: Height and width, in pixels.
        channels: 1 (grey) or 3 (RGB); grey images are repeated, colour ones weighted. By default, the data's own:
            1 if all files of a folder are grey.
        root: Folder for data sets that torchvision stores.
        download: Whether torchvision may download what is not in ``root``. Nothing is ever downloaded otherwise.
        crops: Number of random crops to take, equally many of each image of a folder or of ``"photos"``; 0 for
            whole images (of ``"photos"``: for 2,000 crops).
        seed: Decides where they are.
        skip_broken: Whether to leave out, with a warning that names it, a file that cannot be read.

    Returns:
        The data set, on the CPU.

    Raises:
        ValueError: If nothing has this name, a folder holds no images, or IDX files of several data sets, a file
            cannot be read, an image is too small for a crop, or crops are wanted of a data set of small images.
        FileNotFoundError: If the data set is not in ``root`` and may not be downloaded.
        OSError: If a folder cannot be read.
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
    if crops < 0:
        raise ValueError(f"crops must be at least 0, got {crops}")
    name = str(name_or_path)
    path = Path(name_or_path)
    idx = None if name in _SOURCES else find_idx(path)
    if name in _SOURCES or idx is not None:
        if crops > 0:
            raise ValueError(f"crops are cut from photos or a folder of images, not from {name}: leave crops at 0")
        data = _SOURCES[name](Path(root), download) if idx is None else read_idx(idx)
        images = _resize(_convert(data.images, channels), image_size)
        return ImageDataset(images, data.labels, class_names=data.class_names)
    if name == "photos":
        photos = optional_import("sklearn.datasets").load_sample_images()
        pictures = [torch.from_numpy(photo.copy()).permute(2, 0, 1) for photo in photos.images]
        named = [(Path(f).stem, picture) for f, picture in zip(photos.filenames, pictures, strict=True)]
        return _cut(named, image_size, channels, crops or 2000, seed)
    if path.is_dir():
        return _folder(path, image_size, channels, crops, seed, skip_broken)
    known = [*_SOURCES, "photos"]
    hint = did_you_mean(name, known)
    raise ValueError(f"{name!r} is neither a folder nor one of {', '.join(known)}{hint}")


def side_of_pairs(path: str | Path) -> int:
    """Get the height of the largest pair that :func:`load_pairs` finds, in pixels; 0 if there is none."""
    path = Path(path)
    folder = path / "A" if (path / "A").is_dir() and (path / "B").is_dir() else path
    sides = [0]
    for file in images_among(list_folder(folder)[1]) if folder.is_dir() else []:
        with suppress(ValueError), open_image(file) as image:  # reading the pairs will tell
            sides.append(min(image.size))
    return max(sides)


class UnreadableError(ValueError):
    """A file cannot be read; ``skip_broken`` leaves it out."""


def load_pairs(
    path: str | Path, *, image_size: int, channels: int | None = None, skip_broken: bool = False
) -> ImageDataset:
    """Load pairs of images, A and B, that belong together, side by side as one image each.

    Args:
        path: A folder of images twice as wide as high, whose left half is A and whose right half is B; or a
            folder with the subfolders ``A`` and ``B``, whose files of the same name are a pair. Hidden files are
            left out.
        image_size: Height and width of either half, in pixels.
        channels: 1 (grey) or 3 (RGB); by default 3.
        skip_broken: Whether to leave out, with a warning that names it, a file that cannot be read or is no pair.

    Returns:
        The pairs, images of shape (channels, image_size, 2 * image_size), on the CPU.

    Raises:
        ValueError: If there is no such folder, it holds no pair, a file has no partner, has the wrong shape, or
            cannot be read.

    Example:
        >>> from pathlib import Path
        >>> import torch, genimg_fast as gf
        >>> for half in "AB":
        ...     Path(half).mkdir()
        ...     gf.training.save_grid(torch.zeros(1, 1, 8, 8), f"{half}/0.png")
        >>> gf.data.load_pairs(".", image_size=8)[0][0].shape
        torch.Size([3, 8, 16])
    """
    path = Path(path)
    if not path.is_dir():
        raise ValueError(f"there is no folder {path}")
    pairs: list[Tensor] = []
    if (path / "A").is_dir() and (path / "B").is_dir():
        a, b = ({f.name: f for f in images_among(list_folder(path / half)[1])} for half in "AB")
        if lonely := sorted(a.keys() ^ b.keys()):
            raise ValueError(f"{lonely[0]} is in one of {path / 'A'} and {path / 'B'} only")
        for name in sorted(a):
            halves = _readable([a[name], b[name]], skip_broken, lambda f: read_image(f, image_size, channels or 3))
            if len(halves) == 2:
                pairs.append(torch.cat([image for _, image in halves], 2))
    else:

        def read(file: Path) -> Tensor:
            picture = _read_whole(file, channels or 3)
            height, width = picture.shape[1:]
            if width != 2 * height:  # any photograph could be cut in two, into a pair that is none
                raise ValueError(
                    f"{file} is {width} pixels wide and {height} high, but a pair, A and B side by side, is twice "
                    "as wide as high"
                )
            return torch.cat([_resize(half.unsqueeze(0), image_size)[0] for half in picture.chunk(2, 2)], 2)

        files = images_among(list_folder(path)[1])
        pairs = [pair for _, pair in _readable(files, skip_broken, read)]
    if not pairs:
        raise ValueError(f"no pairs of images in {path}")
    return ImageDataset(torch.stack(pairs))


def _digits(root: Path, download: bool) -> ImageDataset:
    digits = optional_import("sklearn.datasets").load_digits()
    images = torch.from_numpy(digits.images).unsqueeze(1).mul(255 / 16)  # 17 grey levels, 0 to 16
    return ImageDataset(_to_bytes(images), torch.from_numpy(digits.target).long())


def _mnist(class_name: str, root: Path, download: bool) -> ImageDataset:
    source = getattr(optional_import("torchvision.datasets"), class_name)
    file = root / class_name / "raw" / "train-images-idx3-ubyte"
    if download and not file.is_file():
        source(str(root), download=True)
    if not file.is_file():
        raise FileNotFoundError(
            f"no {class_name} data set in {root}: --download (download=True in Python) fetches it; if you have "
            f"{file.name} and its labels, also as .gz, give their folder as the data set"
        )
    data = read_idx(file)
    return ImageDataset(data.images, data.labels, class_names=source.classes)


def _cifar10(root: Path, download: bool) -> ImageDataset:
    source = optional_import("torchvision.datasets").CIFAR10
    try:
        data = source(str(root), download=download)
    except RuntimeError as error:  # torchvision's way to say that the files are not there, or damaged
        if download:
            raise
        raise FileNotFoundError(
            f"no CIFAR10 data set in {root}, or a damaged one: --download (download=True in Python) fetches it"
        ) from error
    images = torch.as_tensor(data.data).permute(0, 3, 1, 2).contiguous()
    return ImageDataset(images, torch.as_tensor(data.targets), class_names=data.classes)


_SOURCES: dict[str, Callable[[Path, bool], ImageDataset]] = {
    "digits": _digits,
    "mnist": partial(_mnist, "MNIST"),
    "fashion-mnist": partial(_mnist, "FashionMNIST"),
    "cifar10": _cifar10,
}


def _folder(
    folder: Path, image_size: int, channels: int | None, crops: int, seed: int, skip_broken: bool
) -> ImageDataset:
    subfolders, files = list_folder(folder)
    by_class = [(sub.name, images_among(files_below(sub, above=folder))) for sub in subfolders]
    by_class = [(name, files) for name, files in by_class if files]
    loose = images_among(files)
    if by_class and loose:
        raise ValueError(
            f"{folder} holds images, such as {loose[0].name}, beside subfolders of images, such as "
            f"{by_class[0][0]}: have one or the other"
        )
    if not by_class:
        by_class = [(folder.name, loose)]
    if not by_class[0][1]:
        raise ValueError(f"no images in folder {folder}")

    if crops > 0:
        whole = [
            (name, image)
            for name, files in by_class
            for _, image in _readable(files, skip_broken, lambda file: _read_whole(file, channels))
        ]
        alike = _alike([image for _, image in whole])
        named = [(name, image) for (name, _), image in zip(whole, alike, strict=True)]
        return _cut(named, image_size, channels, crops, seed)
    images, labels = [], []
    for label, (_, files) in enumerate(by_class):
        read = _readable(files, skip_broken, lambda file: read_image(file, image_size, channels))
        images += [image for _, image in read]
        labels += [label] * len(read)
    if not images:
        raise ValueError(f"no image in folder {folder} can be read")
    names = [name for name, _ in by_class]
    return ImageDataset(torch.stack(_alike(images)), torch.tensor(labels), class_names=names)


def _readable(
    files: Sequence[Path], skip_broken: bool, read: Callable[[Path], Tensor]
) -> list[tuple[Path, Tensor]]:
    """Read files; those that cannot be read are an error, or a warning each."""
    images = []
    for file in files:
        try:
            images.append((file, read(file)))
        except ValueError as error:
            if not skip_broken:
                raise UnreadableError(str(error)) from error
            warnings.warn(f"skipped: {error}", stacklevel=4)
    return images


def _cut(
    pictures: Sequence[tuple[str, Tensor]], image_size: int, channels: int | None, crops: int, seed: int
) -> ImageDataset:
    """Cut squares at random from pictures, (class name, bytes); equally many from each."""
    generator = torch.Generator().manual_seed(seed)
    if not pictures:
        raise ValueError("there is no picture to cut from")
    names = list(dict.fromkeys(name for name, _ in pictures))
    # In one piece from the start: if that is too large, it shows before the work.
    images = torch.empty(crops, len(pictures[0][1]), image_size, image_size, dtype=torch.uint8)
    labels = []
    for k in range(crops):
        name, picture = pictures[k % len(pictures)]
        room = [side - image_size for side in picture.shape[1:]]
        if min(room) < 0:
            size = "x".join(map(str, picture.shape[1:]))
            raise ValueError(f"a picture of {name} has {size} pixels, too few for crops of {image_size}")
        top, left = (int(torch.randint(r + 1, (), generator=generator)) for r in room)
        images[k] = picture[:, top : top + image_size, left : left + image_size]
        labels.append(names.index(name))
    return ImageDataset(
        _convert(images, channels), torch.tensor(labels), class_names=names,
        groups=torch.arange(crops) % len(pictures),
    )  # fmt: skip


def _alike(images: list[Tensor]) -> list[Tensor]:
    """Repeat grey images as often as those in colour have channels, if there are any."""
    channels = max((len(image) for image in images), default=1)
    return [image.expand(channels, -1, -1) for image in images]


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
def open_image(file: Path) -> Iterator[Any]:
    """Open an image file with Pillow; whatever fails until it is closed becomes a ValueError that names it."""
    pillow = optional_import("PIL.Image")
    try:
        with pillow.open(file) as image:
            yield image
    except Exception as error:  # Pillow documents few; damaged files raise a dozen of them, by their format
        why = str(error).replace(repr(str(file)), "").rstrip(": ")  # the path is in front already
        raise ValueError(f"cannot read image {file}: {why or type(error).__name__}") from error


def _read_whole(file: Path, channels: int | None) -> Tensor:
    """Read an image file as bytes, (channels, height, width), as it is."""
    with open_image(file) as opened:
        return _pixels(_eight_bits(opened, channels))


def read_image(file: Path, image_size: int, channels: int | None) -> Tensor:
    """Read an image file as bytes; see :func:`to_pixels`."""
    with open_image(file) as opened:
        return to_pixels(opened, image_size, channels)


def to_pixels(image: Any, image_size: int, channels: int | None) -> Tensor:
    """Crop an image of Pillow's to a square and resize it: bytes of shape (channels, image_size, image_size)."""
    Image, ImageOps = optional_import("PIL.Image"), optional_import("PIL.ImageOps")
    image = _eight_bits(image, channels)
    return _pixels(ImageOps.fit(image, (image_size, image_size), Image.Resampling.BICUBIC))


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
        channels = 1 if image.mode in ("1", "L", "LA", "La") else 3
    return image.convert("L" if channels == 1 else "RGB")


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
