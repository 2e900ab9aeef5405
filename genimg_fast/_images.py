"""What images have to be like, in every part of the package: numbers in [-1, 1], channels before pixels."""

import torch
from torch import Tensor

# Noise and images that were normalised in other ways stay within; of those in 0..255 none but black ones do.
_FAR_OUTSIDE = 10


def check_values(images: Tensor, name: str = "images", *, look: bool = True) -> None:
    """Raise a ValueError if images are integers, or floating-point numbers far outside [-1, 1].

    Args:
        images: Of any shape.
        name: What the message calls them.
        look: Whether to look at the numbers: never on a GPU, which would have to be waited for, and not while a
            program is recorded.
    """
    if isinstance(images, torch.fx.Proxy):  # nothing is known of it
        return
    if not images.is_floating_point():
        raise ValueError(
            f"{name} must be floating-point numbers in [-1, 1], got {images.dtype}: take x / 127.5 - 1"
        )
    if not look or not images.is_cpu or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return
    try:
        numbers = images.detach()
        if numbers.dim() == 4 and numbers.is_contiguous(memory_format=torch.channels_last):
            numbers = numbers.permute(0, 2, 3, 1)  # in memory's order, which takes PyTorch a third of the time
        lowest, highest = (float(limit) for limit in numbers.aminmax()) if numbers.numel() > 0 else (0.0, 0.0)
    except RuntimeError:  # within vmap, or without data at all: there is no one number to look at
        return
    if max(-lowest, highest) > _FAR_OUTSIDE:
        raise ValueError(
            f"{name} must be in [-1, 1], got {lowest:g} to {highest:g}: of 0..255, take x / 127.5 - 1"
        )


def check_floating(tensor: Tensor, name: str, where: str = "") -> None:
    """Raise a ValueError unless it is a tensor of floating-point numbers; ``where``, such as " in [0, 1]"."""
    if isinstance(tensor, torch.fx.Proxy):
        return
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"{name} must be a tensor of floating-point numbers{where}, got {kind}")


def check_has_numbers(tensor: Tensor, name: str) -> None:
    """Raise a ValueError for a tensor that has a shape, but no numbers."""
    if tensor.is_meta:
        raise ValueError(f"{name} must have numbers, got a tensor of the device meta")


def check_layout(images: Tensor, channels: int | None = None, name: str = "images") -> None:
    """Raise a ValueError unless images are of shape (batch, channels, height, width).

    Args:
        images: The images.
        channels: Their number of channels; by default any, but where only the last dimension looks like channels.
        name: What the message calls them.
    """
    if isinstance(images, torch.fx.Proxy):
        return
    shape = tuple(images.shape)
    wanted = (1, 3) if channels is None else (channels,)
    last = len(shape) == 4 and shape[3] in wanted and shape[1] not in wanted
    if len(shape) != 4 or last or shape[1] != (shape[1] if channels is None else channels):
        raise ValueError(
            f"{name} must be of shape (batch, {channels or 'channels'}, height, width), got {shape}"
            + (": its channels are last, take permute(0, 3, 1, 2)" if last else "")
        )
