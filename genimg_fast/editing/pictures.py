"""What pictures have to be like, in every tool: numbers in [0, 1], of shape (channels, height, width)."""

from typing import Annotated

import torch
from torch import Tensor

from genimg_fast.data.sources import machine_memory

# A picture of which only the brightness counts: commands read the file as grey.
Mask = Annotated[Tensor, "mask"]


def check_picture(picture: Tensor, name: str = "image", *, channels: tuple[int, ...] = (1, 3)) -> None:
    """Raise a ValueError unless a tensor is a picture.

    Args:
        picture: The tensor.
        name: What the message calls it.
        channels: Numbers of channels that it may have.
    """
    if not isinstance(picture, Tensor) or not picture.is_floating_point():
        kind = picture.dtype if isinstance(picture, Tensor) else type(picture).__name__
        raise ValueError(f"{name} must be a tensor of floating-point numbers in [0, 1], got {kind}")
    shape = tuple(picture.shape)
    if len(shape) != 3 or shape[0] not in channels or 0 in shape:
        wanted = " or ".join(str(c) for c in channels)
        hint = ": its channels are last, take permute(2, 0, 1)" if len(shape) == 3 and shape[2] in channels else ""
        raise ValueError(f"{name} must be of shape ({wanted}, height, width), got {shape}{hint}")
    lowest, highest = (float(limit) for limit in picture.detach().aminmax())
    if not (lowest >= -1e-3 and highest <= 1 + 1e-3):  # NaN is not, either
        raise ValueError(f"{name} must be in [0, 1], got {lowest:g} to {highest:g}")


def check_choices(**choices: tuple[str, tuple[str, ...]]) -> None:
    """Raise a ValueError for a value that is none of those there are: ``method=(method, ("one", "other"))``."""
    for name, (value, known) in choices.items():
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def check_left_out(why: str, **given: object) -> None:
    """Raise a ValueError for an argument that is given, not None, and has no effect."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name} must be left out: {why}")


def check_mask(mask: Tensor, picture: Tensor, name: str = "mask") -> None:
    """Raise a ValueError unless a tensor is a mask of a picture's size; see :func:`check_picture`."""
    check_picture(mask, name, channels=(1,))
    if mask.shape[1:] != picture.shape[1:]:
        got, wanted = ("x".join(str(n) for n in p.shape[:0:-1]) for p in (mask, picture))
        raise ValueError(f"{name} must have the picture's size, {wanted} pixels, got {got}")


def check_memory(name: str, width: int, height: int, numbers: float, like: Tensor) -> None:
    """Raise a ValueError, before anything is allocated, for a picture too large for the device's memory.

    Args:
        name: What the message calls what asks for it.
        width: Of the picture, in pixels.
        height: Of the picture, in pixels.
        numbers: How many numbers of the tensor's dtype a pixel takes, about, in all that is kept at a time.
        like: A tensor of the dtype, and on the device, where it is to be made.
    """
    needed = width * height * numbers * like.element_size()
    there = torch.cuda.mem_get_info(like.device)[1] if like.is_cuda else machine_memory()
    if needed > there:
        raise ValueError(
            f"{name} must be less: {width}x{height} pixels take about {needed / 1e9:.0f} GB of memory, and there "
            f"are {there / 1e9:.0f}"
        )


def to_grey(picture: Tensor) -> Tensor:
    """Take the luminance of a picture, (1, height, width), as Pillow does (ITU-R BT.601)."""
    if picture.shape[0] == 1:
        return picture
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=picture.dtype, device=picture.device)
    return (weights.view(3, 1, 1) * picture).sum(0, keepdim=True)
