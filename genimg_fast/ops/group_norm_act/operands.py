"""What is passed from the public functions to the operators: tensors and options, in the order of the schemas."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Operands(NamedTuple):
    """The tensors."""

    input: Tensor
    residual: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    scale: Tensor | None
    shift: Tensor | None


class Options(NamedTuple):
    """The numbers."""

    num_groups: int
    eps: float
    activation: int
    negative_slope: float


class Backward(NamedTuple):
    """What the backward operator takes."""

    grad_output: Tensor
    input: Tensor
    residual: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    mean: Tensor
    invstd: Tensor
    num_groups: int
    activation: int
    negative_slope: float
    need_input: bool
    need_residual: bool
    need_parameters: bool
