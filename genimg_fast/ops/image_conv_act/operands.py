"""What is passed from the public function to the operators: tensors and options."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

Pair = tuple[int, int]


class Operands(NamedTuple):
    """The tensors."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None


class Options(NamedTuple):
    """The numbers; pairs are of rows and columns."""

    stride: Pair
    padding: Pair
    transposed: bool
    output_padding: Pair
    activation: str
    negative_slope: float
