"""What the data sets of sequences are indexed with."""

from torch import Tensor

SequenceIndex = int | slice | Tensor


def check_at_least_1(**numbers: int) -> None:
    """Raise a ValueError that names the first number below 1."""
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")


def numbers_of(index: SequenceIndex, length: int) -> tuple[list[int], bool]:
    """Turn what a data set is indexed with into numbers from 0 on; tell if it was a single one."""
    if isinstance(index, slice):
        return list(range(*index.indices(length))), False
    single = not isinstance(index, Tensor) or index.ndim == 0
    indices = [int(i) for i in (index.tolist() if isinstance(index, Tensor) and not single else [index])]
    for i in indices:
        if not -length <= i < length:
            raise IndexError(f"index {i} is out of range for {length} sequences")
    return [i % length for i in indices], single
