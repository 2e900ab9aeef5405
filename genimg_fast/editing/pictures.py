"""What pictures have to be like, in every tool: numbers in [0, 1], of shape (channels, height, width)."""

import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Annotated, Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from genimg_fast._images import check_floating, check_has_numbers
from genimg_fast.data.sources import machine_memory

_P = ParamSpec("_P")
_R = TypeVar("_R")

# A picture of which only the brightness counts: commands read the file as grey.
Mask = Annotated[Tensor, "mask"]


def tool(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Make a function of pictures do the same wherever it is called, and whatever numbers the pictures are.

    It gets pictures without gradients, all on the device of the first one, and of its dtype, or of float32 if that
    has 16 bits; it runs outside of inference mode and of autocast. Pictures that it returns are of the first one's
    dtype. What is no picture is passed on, for the function to complain.
    """
    first = next(iter(inspect.signature(function).parameters))

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        picture = args[0] if args else kwargs.get(first)
        if not isinstance(picture, Tensor) or not picture.is_floating_point() or picture.is_meta:
            return function(*args, **kwargs)
        device, dtype = picture.device, picture.dtype
        wide = torch.promote_types(dtype, torch.float32)

        def plain(value: Any) -> Any:
            if isinstance(value, (list, tuple)) and any(isinstance(each, Tensor) for each in value):
                return [plain(each) for each in value]
            if not isinstance(value, Tensor) or not value.is_floating_point() or value.is_meta:
                return value
            value = value.detach().to(device, wide)
            return value.clone() if value.is_inference() else value  # such a one could not be learned from

        with ExitStack() as modes:
            for mode in (torch.inference_mode(False), torch.no_grad()):
                modes.enter_context(mode)
            for kind in {"cpu", device.type}:
                if torch.is_autocast_enabled(kind):
                    modes.enter_context(torch.autocast(kind, enabled=False))
            result: Any = function(*map(plain, args), **{key: plain(value) for key, value in kwargs.items()})
            if isinstance(result, Tensor):
                result = result.to(dtype)
            elif type(result) is tuple:
                result = tuple(each.to(dtype) for each in result)
        return result

    return run


def check_picture(
    picture: Tensor, name: str = "image", *, channels: tuple[int, ...] = (1, 3), slack: float = 1e-3
) -> None:
    """Raise a ValueError unless a tensor is a picture.

    Args:
        picture: The tensor.
        name: What the message calls it.
        channels: Numbers of channels that it may have.
        slack: By how much numbers may be outside [0, 1].
    """
    check_floating(picture, name, " in [0, 1]")
    check_has_numbers(picture, name)
    shape = tuple(picture.shape)
    if len(shape) != 3 or shape[0] not in channels or 0 in shape:
        wanted = " or ".join(str(c) for c in channels)
        hint = ": its channels are last, take permute(2, 0, 1)" if len(shape) == 3 and shape[2] in channels else ""
        raise ValueError(f"{name} must be of shape ({wanted}, height, width), got {shape}{hint}")
    lowest, highest = (float(limit) for limit in picture.detach().aminmax())
    if not (lowest >= -slack and highest <= 1 + slack):  # NaN is not, either
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
