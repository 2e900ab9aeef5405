"""What commands write: a folder of images, arrays, or a picture to look at, whatever the number of images."""

import io
import os
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from genimg_fast._files import LONGEST_NAME, TEMPORARY, file_name, naming, replacing, replacing_folder
from genimg_fast.data.optional import optional_import
from genimg_fast.training.pictures import VIDEOS, Picture, join, panels_of, to_bytes

_Write = Callable[[dict[str, np.ndarray], int], None]

# Of a layer's activations, for the images that are made at a time, if it has 64 channels.
_BATCH_BYTES = 2**28
_MOST_AT_A_TIME = 256


def batch_sizes(n: int, image_size: int, *, frames: int = 1) -> list[int]:
    """Split a number of images, or sequences of them, into batches whose activations stay within bounds."""
    size = max(1, min(_MOST_AT_A_TIME, _BATCH_BYTES // (4 * 64 * image_size**2 * frames)))
    return [min(size, n - start) for start in range(0, n, size)]


def form_of(path: str | os.PathLike[str]) -> Literal["folder", "arrays", "picture"]:
    """Tell what is written to a path: a folder if it has no suffix, or ends in a slash, or is one."""
    text = os.fspath(path)
    if text.endswith(os.sep) or not Path(text).suffix or Path(text).is_dir():
        return "folder"
    return "arrays" if Path(text).suffix.lower() == ".npz" else "picture"


def check_output(path: str | os.PathLike[str], *, moves: bool) -> None:
    """Complain before the work about a path that cannot be written.

    Args:
        path: Where to write.
        moves: Whether there will be sequences, of which alone there are videos.

    Raises:
        ValueError: If the ending is unknown or does not fit, or there is something in the folder.
        ImportError: If a package is missing.
    """
    form, path = form_of(path), Path(path)
    if form == "folder":
        if path.is_dir() and any(path.iterdir()):
            raise ValueError(f"{path} is a folder with something in it: name another one")
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file: give it an ending, such as .png, or name a folder")
    elif path.suffix.lower() in VIDEOS:
        if not moves:
            raise ValueError(f"{str(path)!r} is a video, and nothing moves here")
        optional_import("av", "video")
    elif form == "picture" and path.suffix.lower() not in optional_import("PIL.Image").registered_extensions():
        raise ValueError(f"{str(path)!r} does not end like an image file, such as .png")


def save_output(
    pictures: Iterable[Picture],
    path: str | os.PathLike[str],
    *,
    n: int,
    labels: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    scale: int | None = None,
    plain: bool = False,
) -> None:
    """Write images, or sequences of them, as they come in batches; what stands at the path is whole.

    * A path without a suffix, or with a slash at the end, is a folder, which has to be new or empty: of
      ``00000.png``, ``00001.png`` ..., or ``00000-cat.png`` where there are classes; a sequence is a folder of its
      frames. Images by several names, such as ``input`` and ``output``, go into a folder each.
    * ``.npz``: arrays of bytes, of shape (n, height, width, channels), or (n, frames, height, width, channels):
      ``arr_0``, or by their names, and classes as ``arr_1``, or ``labels``.
    * ``.mp4``, ``.webm``, ``.gif``, ``.webp`` of sequences, and any other ending of an image file: what
      :meth:`Picture.save` writes, of all batches together.

    The first two take memory for one batch, whatever ``n`` is. On a terminal, a bar shows how far it is.

    Args:
        pictures: The batches.
        path: Where to write.
        n: Number of images, or sequences, in all batches.
        labels: Their classes, int64 of shape (n,), if they have any.
        class_names: Names of the classes; by default their numbers.
        scale: Pixels of a picture for a pixel; see :func:`save_grid`. Folders and arrays have the images as they
            are.
        plain: Whether a picture is to have no names, borders and margin.

    Raises:
        ValueError: If the path's ending is unknown, or does not fit; or batches differ in shape, labels in number,
            or values are NaN.
        OSError: If it cannot be written.
        ImportError: If a package is missing.

    Example:
        >>> import torch, genimg_fast as gf
        >>> model = gf.models.DCGAN(c_dim=1, channels=4)
        >>> batches = (gf.training.Picture(images=model.sample(4)) for _ in range(3))
        >>> gf.training.save_output(batches, "samples/", n=12)
        >>> batches = (gf.training.Picture(images=model.sample(4)) for _ in range(3))
        >>> gf.training.save_output(batches, "samples.npz", n=12)
        >>> import numpy, pathlib
        >>> sorted(file.name for file in pathlib.Path("samples").iterdir())[-1]
        '00011.png'
        >>> numpy.load("samples.npz")["arr_0"].shape
        (12, 32, 32, 1)
    """
    check_output(path, moves=True)
    form, path = form_of(path), Path(path)
    batches = _shown(pictures, n)
    if form == "picture":
        picture = join(batches, n)
        check_output(path, moves=picture.moves)
        with replacing(path) as temporary:
            picture.save(temporary, scale=scale, plain=plain, class_names=class_names)
        return
    names = None
    if labels is not None and labels.shape != (n,):
        raise ValueError(f"labels must have shape ({n},), got {tuple(labels.shape)}")
    if labels is not None:
        names = [class_names[k] if class_names else str(k) for k in labels.tolist()]
    with _folder(path, n, names) if form == "folder" else _arrays(path, n, labels) as write:
        start, shapes = 0, None
        for picture in batches:
            arrays = {name: _array(images) for name, images in panels_of(picture.images).items()}
            found = {name: array.shape[1:] for name, array in arrays.items()}
            if found != (shapes := shapes or found):
                raise ValueError(f"all batches must have images of one shape, got {shapes} and {found}")
            write(arrays, start)
            start += len(next(iter(arrays.values())))
        if start != n:
            raise ValueError(f"n must be the number of all images, {start}, got {n}")


def _shown(pictures: Iterable[Picture], n: int) -> Iterator[Picture]:
    """Show on a terminal how many images there are so far."""
    with optional_import("tqdm").tqdm(total=n, unit="image", leave=False, disable=None) as bar:
        for picture in pictures:
            yield picture
            bar.update(len(next(iter(panels_of(picture.images).values()))))


def _array(images: Tensor) -> np.ndarray:
    """Turn images, (..., channels, height, width), into bytes, channels last."""
    if images.isnan().any():
        raise ValueError("images have values that are NaN")
    array: np.ndarray = to_bytes(images).movedim(-3, -1).contiguous().numpy()
    return array


@contextmanager
def _folder(path: Path, n: int, names: Sequence[str] | None) -> Iterator[_Write]:
    digits = max(5, len(str(n - 1)))
    pillow = optional_import("PIL.Image")
    with replacing_folder(path) as folder:

        def save(image: np.ndarray, file: Path) -> None:
            with naming(file):
                pillow.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file)

        def write(arrays: dict[str, np.ndarray], start: int) -> None:
            for panel, array in arrays.items():
                (folder / panel).mkdir(exist_ok=True)
                for index, example in enumerate(array, start):
                    number = f"{index:0{digits}d}"
                    name = number
                    if names is not None:
                        name += "-" + file_name(names[index], LONGEST_NAME - len(f"{number}-.png"))
                    if example.ndim == 3:
                        save(example, folder / panel / f"{name}.png")
                        continue
                    (folder / panel / name).mkdir()
                    for step, frame in enumerate(example):
                        save(frame, folder / panel / name / f"{step:0{max(3, len(str(len(example) - 1)))}d}.png")

        yield write


@contextmanager
def _arrays(path: Path, n: int, labels: Tensor | None) -> Iterator[_Write]:
    # A zip archive takes one file at a time, and arrays that come together are several.
    with (
        replacing(path) as temporary,
        tempfile.TemporaryDirectory(dir=path.parent, prefix=TEMPORARY) as spool,
        ExitStack() as stack,
    ):
        files: dict[str, Any] = {}

        def write(arrays: dict[str, np.ndarray], start: int) -> None:
            for panel, array in arrays.items():
                name = panel or "arr_0"
                if name not in files:
                    files[name] = stack.enter_context(open(Path(spool, f"{name}.npy"), "wb"))
                    header = {"descr": "|u1", "fortran_order": False, "shape": (n, *array.shape[1:])}
                    np.lib.format.write_array_header_1_0(files[name], header)
                files[name].write(array.tobytes())

        yield write
        with zipfile.ZipFile(temporary, "w") as archive:
            for name, file in files.items():
                file.close()
                archive.write(file.name, f"{name}.npy")
                os.unlink(file.name)
            if labels is not None:
                stored = io.BytesIO()
                np.save(stored, labels.cpu().numpy())
                archive.writestr("arr_1.npy" if "arr_0" in files else "labels.npy", stored.getvalue())
