"""Pictures from files, and into files."""

import contextlib
import os
import warnings
from pathlib import Path

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from genimg_fast._files import naming, replacing
from genimg_fast.data.decode import open_image
from genimg_fast.data.optional import optional_import
from genimg_fast.editing.pictures import check_picture, tool

_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_GAP = 4  # pixels between two pictures
_SLACK = 4.0  # what noise of a standard deviation of 255 levels may need
_WITH_ALPHA = (".png", ".apng", ".webp", ".tif", ".tiff", ".avif", ".jp2", ".ico", ".tga")


def load_picture(path: str | os.PathLike[str]) -> Tensor:
    """Read a picture from a file that Pillow knows, upright.

    Args:
        path: The file.

    Returns:
        The picture, float32 in [0, 1] of shape (channels, height, width): one channel if it is grey, three if it
        has colours, and one more, the last, if it has transparent pixels. Grey of 16 bits keeps them.

    Raises:
        ValueError: If it cannot be read, or its pixels are numbers of 32 bits.
        ImportError: If Pillow is missing.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.editing.save_picture(torch.rand(3, 20, 30), "noise.png")
        >>> gf.editing.load_picture("noise.png").shape
        torch.Size([3, 20, 30])
    """
    ImageOps, pillow = optional_import("PIL.ImageOps"), optional_import("PIL.Image")
    if Path(path).is_dir():
        raise ValueError(f"{str(path)!r} is a folder, not a picture")
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        # The user names this file; of twice as many pixels it is an error.
        warnings.simplefilter("ignore", pillow.DecompressionBombWarning)
        opened = stack.enter_context(open_image(Path(path)))
        sixteen = opened.mode.startswith("I;16") or (opened.mode == "I" and opened.format in ("PNG", "PPM"))
        if opened.mode in ("I", "F") and not sixteen:
            raise ValueError("its pixels are numbers of 32 bits, which do not say what white is")
        image = ImageOps.exif_transpose(opened)
        if not sixteen:
            grey = image.mode in ("1", "L", "LA", "La")
            mode = ("L" if grey else "RGB") + ("A" if image.has_transparency_data else "")
            image = image.convert(mode)
        pixels = numpy.asarray(image).astype(numpy.float32) / (65535 if sixteen else 255)
    picture = torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).contiguous()
    if len(picture) in (2, 4) and bool((picture[-1] == 1).all()):
        picture = picture[:-1].contiguous()
    return picture


@tool
def save_picture(picture: Tensor, path: str | os.PathLike[str]) -> None:
    """Write a picture to a file; its ending says in what format.

    Args:
        picture: The picture, in [0, 1] of shape (channels, height, width): grey, grey and alpha, RGB, or RGB and
            alpha. Numbers outside are set to the nearest in it, unless they are far outside, as of 0..255.
        path: The file. It is there when it is whole.

    Raises:
        ValueError: If the tensor is no picture, or the ending names no format, or one without alpha for a picture
            that has it.
        OSError: If the file cannot be written.
        ImportError: If Pillow is missing.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.editing.save_picture(torch.rand(1, 20, 30), "noise.png")
    """
    path = Path(path)
    check_picture(picture, "picture", channels=(1, 2, 3, 4), slack=_SLACK)
    check_ending(path, alpha=len(picture) in (2, 4))
    pixels = picture.detach().clamp(0, 1).mul(255).round().byte().cpu().permute(1, 2, 0).contiguous()
    image = optional_import("PIL.Image").fromarray((pixels[..., 0] if len(picture) == 1 else pixels).numpy())
    with replacing(path) as temporary, naming(path):
        image.save(temporary, **({"quality": 95} if path.suffix.lower() in (".jpg", ".jpeg") else {}))


def check_ending(path: Path, *, alpha: bool = False) -> None:
    """Raise a ValueError unless a file's ending names a format of pictures, with transparent pixels if need be."""
    pillow = optional_import("PIL.Image")
    if alpha and path.suffix.lower() not in _WITH_ALPHA:
        raise ValueError(f"{str(path)!r} must end in .png or .webp: the picture has transparent pixels")
    if pillow.registered_extensions().get(path.suffix.lower()) not in pillow.SAVE:
        raise ValueError(f"{str(path)!r} does not end like an image file, such as .png")


@tool
def before_and_after(before: Tensor, after: Tensor, *, same_height: bool = True) -> Tensor:
    """Put two pictures side by side.

    Args:
        before: A picture of shape (channels, height, width).
        after: A picture of shape (channels, height, width).
        same_height: Whether to enlarge, or reduce, the first one to the other's height; else the lower one has
            white below.

    Returns:
        Both, with a white gap: RGB, on white if any of them has alpha.

    Raises:
        ValueError: If one is no picture.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.editing.before_and_after(torch.rand(1, 20, 30), torch.rand(3, 40, 60)).shape
        torch.Size([3, 40, 124])
    """
    check_picture(before, "before", channels=(1, 2, 3, 4))
    check_picture(after, "after", channels=(1, 2, 3, 4))
    height = after.shape[1] if same_height else max(before.shape[1], after.shape[1])
    if same_height and before.shape[1] != height:
        width = max(1, round(before.shape[2] * height / before.shape[1]))
        before = F.interpolate(before[None], (height, width), mode="bilinear", antialias=True)[0]
    shown = [_on_white(before.to(after)), after.new_ones(3, height, _GAP), _on_white(after)]
    return torch.cat([F.pad(each, (0, 0, 0, height - each.shape[1]), value=1.0) for each in shown], 2)


def _on_white(picture: Tensor) -> Tensor:
    colours = picture
    if len(picture) in (2, 4):
        colours = picture[:-1] * picture[-1:] + 1 - picture[-1:]
    return colours.expand(3, -1, -1)
