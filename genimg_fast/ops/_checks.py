"""Refusals of arguments of a wrong type, dtype or layout, in words that name the argument."""

from __future__ import annotations

import numbers
from typing import Any

import torch
from torch import Tensor

# Dtypes of the data, with that of the arithmetic, of statistics and of sums.
WIDE_DTYPE = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}
DTYPES = "float32, float64, bfloat16 or float16"


def check_type(value: Any, name: str) -> None:
    """Refuse what is no tensor, or one whose elements do not lie in memory by strides."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(value).__name__}")
    if value.layout is not torch.strided or value.is_nested:
        kind = "a nested one" if value.is_nested else value.layout
        raise ValueError(f"{name} must be a dense tensor, got {kind}")


def check_dtype(tensor: Tensor, name: str) -> None:
    """Refuse data of a dtype that no operator takes."""
    if tensor.dtype not in WIDE_DTYPE:
        raise ValueError(f"{name} must be {DTYPES}, got {tensor.dtype}")


def check_tensor(tensor: Tensor, name: str, shape: tuple[int, ...], like: Tensor, like_name: str) -> None:
    """Check a tensor against the shape it must have and the tensor that it goes with."""
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
    if tensor.dtype != like.dtype:
        raise ValueError(f"{name} must have the dtype of {like_name}, {like.dtype}, got {tensor.dtype}")
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on the device of {like_name}, {like.device}, got {tensor.device}")


def check_flag(value: Any, name: str) -> None:
    """Refuse what is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")


def check_number(value: Any, name: str) -> float:
    """Return a real number as Python's own."""
    if isinstance(value, (int, float)):
        return value
    if not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return float(value)


def check_size(value: Any, name: str) -> None:
    """Refuse what is no positive integer."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be positive, got {value}")
