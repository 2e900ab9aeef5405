"""Where images come from: scikit-learn's digits, data sets that torchvision downloads, folders, shards.

To add a named data set, write a function ``(root, download) -> ImageDataset`` and enter it in ``_SOURCES``.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from genimg_fast._close_names import did_you_mean
from genimg_fast.data.cache import find_cache, has_room, make_cache
from genimg_fast.data.dataset import ImageDataset, content_hash
from genimg_fast.data.decode import (
    Decoder,
    UnreadableError,
    images_among,
    measure,
    open_image,
    path_in,
    paths_of,
    read_image,
    read_whole,
)
from genimg_fast.data.files import files_below, list_folder
from genimg_fast.data.idx import find_idx, read_idx
from genimg_fast.data.optional import optional_import
from genimg_fast.data.shards import TarImages, index_shards, is_shard
from genimg_fast.data.stored import StoredImages
from genimg_fast.data.stream import map_in_order
from genimg_fast.options import NonNegativeFloat, NonNegativeInt

# Files to decode from which on processes of their own are worth starting.
_WORTH_WORKERS = 500


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
    memory: NonNegativeFloat | None = None,
    cache: str | Path | None = "cache",
    workers: NonNegativeInt | None = None,
) -> ImageDataset:
    """Load images, at the size and with the number of channels that a model takes.

    Images are resized by antialiased bicubic interpolation; those of a folder are first cropped to a square. With
    ``crops``, squares of ``image_size`` are cut at random from the images of a folder as they are.

    Files whose images do not fit in ``memory`` are decoded once, into a file in ``cache``: what is interrupted
    goes on the next time, and processes that come at the same time wait for the first. Where the disk has no
    room for that, they are decoded whenever they are needed. ``storage`` of the data set says which it is. The
    images and their order are the same either way.

    Args:
        name_or_path: ``"digits"`` (1,797 real 8x8 handwritten digits that come with scikit-learn), ``"mnist"``,
            ``"fashion-mnist"``, ``"cifar10"`` (training sets, through torchvision), ``"photos"`` (two photographs
            that come with scikit-learn, for crops), a folder of images or of IDX files, or tar shards. A folder
            whose subfolders hold images
            is read as one class per subfolder, in alphabetical order; hidden files and folders are left out, links
            are followed. Or a folder of IDX files, as MNIST, Fashion-MNIST and EMNIST are published, packed by
            gzip or not: the training split, unless the path is that of a split's file of images. Or a tar file, or
            a folder of such: shards in the form of WebDataset, in which the files of an image have a name in
            common, such as ``0001.jpg`` and its class ``0001.cls``, a number, or ``0001.json`` with a ``label``.
        image_size: Height and width, in pixels.
        channels: 1 (grey) or 3 (RGB); grey images are repeated, colour ones weighted. By default, the data's own:
            1 if all files of a folder are grey.
        root: Folder for data sets that torchvision stores.
        download: Whether torchvision may download what is not in ``root``. Nothing is ever downloaded otherwise.
        crops: Number of random crops to take, equally many of each image of a folder or of ``"photos"``; 0 for
            whole images (of ``"photos"``: for 2,000 crops).
        seed: Decides where they are.
        skip_broken: Whether to leave out, with a warning that names it, a file that cannot be read.
        memory: GB that images decoded from files may take in memory; by default a quarter of the machine's, shared
            by the processes on it. Data sets by name and IDX files are in memory in any case.
        cache: Folder for decoded images that take more than that; none: decode them whenever they are needed.
        workers: Processes that decode, and read ahead; by default one for each processor, up to 8.

    Returns:
        The data set, on the CPU.

    Raises:
        ValueError: If nothing has this name, a folder holds no images, or IDX files of several data sets, a file
            cannot be read, an image is too small for a crop, crops are wanted of a data set of small images, or a
            cache is damaged.
        FileNotFoundError: If the data set is not in ``root`` and may not be downloaded.
        OSError: If a folder cannot be read, or the cache cannot be written.
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
    keep = Keep.of(memory, cache, workers)
    name = str(name_or_path)
    path = Path(name_or_path)
    if name in (*_SOURCES, "photos") and path.is_dir():
        warnings.warn(f"{name} is a data set's name, and taken for that: ./{name} is the folder", stacklevel=2)
    idx = None if name in _SOURCES else find_idx(path)
    if name in _SOURCES or idx is not None:
        if crops > 0:
            raise ValueError(f"crops are cut from photos or a folder of images, not from {name}: leave crops at 0")
        data = _SOURCES[name](Path(root), download) if idx is None else read_idx(idx)
        images = _resize(_convert(data.images, channels), image_size)
        return ImageDataset(images, data.labels, class_names=data.class_names)
    if name == "photos":
        return _photos(image_size, channels, crops or 2000, seed)
    if is_shard(path) and path.is_file():
        return _shards([path], path.stem, image_size, channels, crops, skip_broken, keep)
    if path.is_dir():
        return _folder(path, image_size, channels, crops, seed, skip_broken, keep)
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


def side_of_images(path: str | Path) -> int:
    """Get the shorter side of the smallest of a few images in a folder and its subfolders; 0 if there is none."""
    path = Path(path)
    if not path.is_dir():
        return 0
    subfolders, files = list_folder(path)
    sides = []
    for file in images_among(files + [f for sub in subfolders for f in files_below(sub, above=path)])[:50]:
        with suppress(ValueError), open_image(file) as image:  # reading the images will tell
            sides.append(min(image.size))
    return min(sides, default=0)


def load_pairs(
    path: str | Path,
    *,
    image_size: int,
    channels: int | None = None,
    skip_broken: bool = False,
    memory: NonNegativeFloat | None = None,
    cache: str | Path | None = "cache",
    workers: NonNegativeInt | None = None,
) -> ImageDataset:
    """Load pairs of images, A and B, that belong together, side by side as one image each.

    Args:
        path: A folder of images twice as wide as high, whose left half is A and whose right half is B; or a
            folder with the subfolders ``A`` and ``B``, whose files of the same name are a pair. Hidden files are
            left out.
        image_size: Height and width of either half, in pixels.
        channels: 1 (grey) or 3 (RGB); by default 3.
        skip_broken: Whether to leave out, with a warning that names it, a file that cannot be read or is no pair.
        memory: GB that decoded pairs may take in memory; by default a quarter of the machine's, shared by the
            processes on it.
        cache: Folder for decoded pairs that take more than that; none: decode them whenever they are needed.
        workers: Processes that decode, and read ahead; by default one for each processor, up to 8.

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
    keep = Keep.of(memory, cache, workers)
    if (path / "A").is_dir() and (path / "B").is_dir():
        a, b = ({f.name: f for f in images_among(list_folder(path / half)[1])} for half in "AB")
        if lonely := sorted(a.keys() ^ b.keys()):
            raise ValueError(f"{lonely[0]} is in one of {path / 'A'} and {path / 'B'} only")
        files = [half[name] for name in sorted(a) for half in (a, b)]
        items = paths_of(files).reshape(-1, 2)
        load = partial(_read_two, image_size=image_size, channels=channels or 3)
    else:
        files = images_among(list_folder(path)[1])
        items = paths_of(files)
        load = partial(_read_halves, image_size=image_size, channels=channels or 3)
    if not files:
        raise ValueError(f"no pairs of images in {path}")
    key, known = identify_files(path, files, f"pairs {image_size} {channels or 3}", skip_broken)
    decoder = Decoder(
        items, load, (channels or 3, image_size, 2 * image_size), fingerprint=key, skip_broken=skip_broken
    )
    images, _ = keep.decoded(decoder, path.resolve().name, key)
    if len(images) == 0:
        raise ValueError(f"no pairs of images in {path}")
    return _with_files(ImageDataset(images), known)


def _read_two(item: Any, image_size: int, channels: int) -> Tensor:
    """Read a pair of two files."""
    return torch.cat([read_image(path_in(half), image_size, channels) for half in item], 2)


def _read_halves(item: Any, image_size: int, channels: int) -> Tensor:
    """Read a pair of one file."""
    file = path_in(item)
    picture = read_whole(file, channels)
    height, width = picture.shape[1:]
    if width != 2 * height:  # any photograph could be cut in two, into a pair that is none
        raise ValueError(
            f"{file} is {width} pixels wide and {height} high, but a pair, A and B side by side, is twice "
            "as wide as high"
        )
    return torch.cat([_resize(half.unsqueeze(0), image_size)[0] for half in picture.chunk(2, 2)], 2)


def _photos(image_size: int, channels: int | None, crops: int, seed: int) -> ImageDataset:
    photos = optional_import("sklearn.datasets").load_sample_images()
    pictures = [torch.from_numpy(photo.copy()).permute(2, 0, 1) for photo in photos.images]
    names = [Path(file).stem for file in photos.filenames]
    sizes = [(picture.shape[1], picture.shape[2]) for picture in pictures]
    # In one piece from the start: if that is too large, it shows before the work.
    images = torch.empty(crops, 3, image_size, image_size, dtype=torch.uint8)
    corners = _draw_corners(sizes, names, image_size, crops, seed).tolist()
    which = torch.arange(crops) % len(pictures)
    for image, k, (top, left) in zip(images, which.tolist(), corners, strict=True):
        image.copy_(pictures[k][:, top : top + image_size, left : left + image_size])
    return ImageDataset(_convert(images, channels), which, class_names=names, groups=which)


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
    folder: Path,
    image_size: int,
    channels: int | None,
    crops: int,
    seed: int,
    skip_broken: bool,
    keep: "Keep",
) -> ImageDataset:
    subfolders, loose = list_folder(folder)
    shards = [file for file in loose if file.suffix == ".tar"]
    by_class = [(sub.name, images_among(files_below(sub, above=folder))) for sub in subfolders]
    by_class = [(name, files) for name, files in by_class if files]
    loose = images_among(loose)
    if shards or not (by_class or loose):  # beside images, a compressed one may be what they were unpacked from
        shards = [file for file in list_folder(folder)[1] if is_shard(file)]
    beside = loose or shards
    if (by_class and beside) or (loose and shards):
        others = (
            f"subfolders of images, such as {by_class[0][0]}" if by_class else f"shards, such as {shards[0].name}"
        )
        what = "images" if loose else "shards"
        raise ValueError(
            f"{folder} holds {what}, such as {beside[0].name}, beside {others}: have one or the other"
        )
    if shards:
        return _shards(shards, folder.resolve().name, image_size, channels, crops, skip_broken, keep)
    if not by_class:
        by_class = [(folder.name, loose)]
    if not by_class[0][1]:
        raise ValueError(f"no images in folder {folder}")

    names = [name for name, files in by_class for _ in files]
    files = [file for _, files in by_class for file in files]
    every = files
    corners = groups = None
    if crops > 0:
        files, names, sizes = _measured(files, names, skip_broken, keep.workers)
        corners = _draw_corners(sizes, names, image_size, crops, seed)
        groups = torch.arange(crops) % len(files)
    classes = list(dict.fromkeys(names))
    labels = torch.tensor([classes.index(name) for name in names])
    if channels is None:
        channels = 1 if all(_is_grey(file) for file in files) else 3
    settings = f"{image_size} {channels} {crops} {crops and seed}"
    key, known = identify_files(folder, every, settings, skip_broken)
    read = partial(_read_file, image_size=None if crops else image_size, channels=channels)
    decoder = Decoder(
        paths_of(files[:crops] if crops else files), read, (channels, image_size, image_size),
        fingerprint=key, corners=corners, skip_broken=skip_broken,
    )  # fmt: skip
    images, kept = keep.decoded(decoder, folder.resolve().name, key)
    if len(images) == 0:
        raise ValueError(f"no image in folder {folder} can be read")
    labels = labels[kept] if groups is None else labels[groups]
    return _with_files(ImageDataset(images, labels, class_names=classes, groups=groups), known)


def _shards(
    files: list[Path],
    name: str,
    image_size: int,
    channels: int | None,
    crops: int,
    skip_broken: bool,
    keep: "Keep",
) -> ImageDataset:
    if crops > 0:
        raise ValueError("crops are cut from photos or a folder of images, not from shards: leave crops at 0")
    items, labels = index_shards(files)
    read = TarImages(tuple(map(str, files)), image_size, channels or 3)
    if channels is None and all(read.is_grey(item) for item in items):
        channels = read.channels = 1
    key, known = identify_files(files[0].parent, files, f"shards {image_size} {channels or 3}", skip_broken)
    decoder = Decoder(
        items, read, (channels or 3, image_size, image_size), fingerprint=key, skip_broken=skip_broken
    )
    images, kept = keep.decoded(decoder, name, key)
    if len(images) == 0:
        raise ValueError(f"no image in {files[0].parent} can be read")
    classes = [str(label) for label in range(int(labels.max()) + 1)]
    return _with_files(ImageDataset(images, labels[kept], class_names=classes), known)


class Keep(NamedTuple):
    """Where decoded images are to be kept."""

    memory: float  # bytes
    cache: Path | None
    workers: int

    @classmethod
    def of(cls, memory: float | None, cache: str | Path | None, workers: int | None) -> "Keep":
        """Check the options of the loading functions, and fill in what they leave open."""
        if memory is not None and not memory >= 0:
            raise ValueError(f"memory must be at least 0 GB, got {memory:g}")
        if workers is not None and workers < 0:
            raise ValueError(f"workers must be at least 0, got {workers}")
        sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's processes on this machine
        if workers is None:
            workers = max(1, min(8, len(os.sched_getaffinity(0)) // sharing))
        size = machine_memory() / 4 / sharing if memory is None else memory * 1e9
        return cls(size, None if cache is None else Path(cache), workers)

    def decoded(self, decoder: Decoder, name: str, key: str) -> tuple[Tensor | StoredImages, Tensor]:
        """Decode images into memory or a cache, or leave that for later.

        Args:
            decoder: Reads the images.
            name: What the data is called.
            key: Tells images and settings apart from any others.

        Returns:
            The images, and, for each item of the decoder's, True if they are among them.
        """
        if decoder.nbytes <= self.memory:
            return self._in_memory(decoder, name)
        kept = torch.ones(len(decoder.items), dtype=torch.bool)
        if self.cache is not None:
            cache = find_cache(self.cache, name, key, decoder)
            if cache is None and has_room(self.cache, name, key, decoder.nbytes):
                cache = make_cache(self.cache, name, key, decoder, workers=self.workers)
            if cache is not None:
                kept[cache.skipped] = False
                rows = None if decoder.corners is None else decoder.rows_of_cache()
                return StoredImages(cache, rows), kept
            warnings.warn(
                f"no room for {decoder.nbytes / 1e9:.3g} GB of decoded images in {self.cache}: they are decoded "
                "whenever they are needed",
                stacklevel=4,
            )
        if decoder.skip_broken and decoder.corners is None:
            # Before there are labels, splits and an order, all of which depend on what can be read.
            for item, result in enumerate(self._mapped(decoder.check_item, decoder, f"checking {name}")):
                if isinstance(result, Exception):
                    warnings.warn(f"skipped: {result}", stacklevel=4)
                    kept[item] = False
            if not kept.all():
                decoder.keep(kept)
        return StoredImages(decoder, workers=self.workers), kept

    def _mapped(self, function: Callable[[int], Any], decoder: Decoder, title: str) -> Iterator[Any]:
        """Call a function with the number of each item, in processes of their own if that is worth it."""
        items = range(len(decoder.items))
        workers = self.workers if len(items) >= _WORTH_WORKERS else 0
        return map_in_order(function, items, workers=workers, title=title)

    def _in_memory(self, decoder: Decoder, name: str) -> tuple[Tensor, Tensor]:
        # In one piece from the start: if that is too large, it shows before the work.
        images = torch.empty(len(decoder), *decoder.shape, dtype=torch.uint8)
        items = range(len(decoder.items))
        kept, done = torch.ones(len(items), dtype=torch.bool), 0
        for item, read in enumerate(self._mapped(decoder.read_item, decoder, f"decoding {name}")):
            if isinstance(read, Exception):
                if not decoder.skip_broken or decoder.corners is not None:
                    raise read
                warnings.warn(f"skipped: {read}", stacklevel=4)
                kept[item] = False
            elif decoder.corners is None:
                images[done] = torch.from_numpy(read[0])
                done += 1
            else:
                images[item :: len(items)] = torch.from_numpy(read)
                done += len(read)
        return images[:done], kept


def machine_memory() -> float:
    """Get the bytes of memory that this machine has, or lets its container have."""
    total = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):  # "max" where there is no limit
        total = min(total, float(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def identify_files(root: Path, files: list[Path], settings: str, skip_broken: bool) -> tuple[str, list[str]]:
    """Hash settings and what the system knows of files.

    Returns:
        What tells decoded images on this machine apart from any others. And, for a run that may go elsewhere, a
        hash of the files' names, and one of their sizes and times of change.
    """
    names, states, changed_here = [settings], [], [str(skip_broken)]
    for file in files:
        status = os.stat(file) if file.exists() else None
        names.append(os.path.relpath(file, root))
        states.append(f"{status.st_size} {status.st_mtime_ns}" if status else "-1")
        changed_here.append(str(status.st_ctime_ns if status else -1))  # what a program cannot set
    known = [content_hash("\0".join(names)), content_hash("\0".join(states))]
    return content_hash(*known, *changed_here), known


def _with_files(dataset: ImageDataset, known: list[str]) -> ImageDataset:
    names, states = known
    dataset.files = [names, content_hash(f"{len(dataset)} {states}")]
    return dataset


def _read_file(item: Any, image_size: int | None, channels: int) -> Tensor:
    file = path_in(item)
    return read_whole(file, channels) if image_size is None else read_image(file, image_size, channels)


def _is_grey(file: Path) -> bool:
    try:
        return measure(file).grey
    except ValueError:  # decoding it will tell
        return True


def _measured(
    files: list[Path], names: list[str], skip_broken: bool, workers: int
) -> tuple[list[Path], list[str], list[tuple[int, int]]]:
    """Get heights and widths of pictures; one that cannot be read is an error, or left out with a warning."""
    found = map_in_order(
        partial(_measure_item, files, skip_broken), range(len(files)), title="looking at the pictures",
        workers=workers if len(files) >= _WORTH_WORKERS else 0,
    )  # fmt: skip
    measured = []
    for file, name, size in zip(files, names, found, strict=True):
        if not isinstance(size, Exception):
            measured.append((file, name, size))
        elif skip_broken:
            warnings.warn(f"skipped: {size}", stacklevel=4)
        else:
            raise UnreadableError(str(size)) from size
    if not measured:
        raise ValueError("there is no picture to cut from")
    return [m[0] for m in measured], [m[1] for m in measured], [m[2] for m in measured]


def _measure_item(files: list[Path], whole: bool, item: int) -> tuple[int, int]:
    return measure(files[item], whole=whole)[:2]


def _draw_corners(
    sizes: Sequence[tuple[int, int]], names: Sequence[str], image_size: int, crops: int, seed: int
) -> Tensor:
    """Draw the upper left corners of squares in pictures, equally many in each, one picture after the other."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.empty(crops, 2, dtype=torch.int64)  # if that is too large, it shows before the work
    for k in range(crops):
        height, width = sizes[k % len(sizes)]
        if min(height, width) < image_size:
            name = names[k % len(sizes)]
            size = f"{height}x{width}"
            raise ValueError(f"a picture of {name} has {size} pixels, too few for crops of {image_size}")
        for axis, side in enumerate((height, width)):
            corners[k, axis] = torch.randint(side - image_size + 1, (), generator=generator)
    return corners


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
