"""What is passed from the public functions to the operators: tensors and options, in the order of the schemas."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class Operands(NamedTuple):
    """The tensors."""

    input: Tensor
    residual: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None


class Options(NamedTuple):
    """The numbers: training takes all but the first, evaluation all but the first two."""

    training: bool
    momentum: float
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
    mean: Tensor
    invstd: Tensor
    training: bool  # mean and invstd depend on the input
    activation: int
    negative_slope: float
    need_input: bool
    need_residual: bool


class EvalBackward(NamedTuple):
    """What the backward operator of an evaluation takes, whose statistics may have changed since."""

    grad_output: Tensor
    operands: Operands
    forward_mean: Tensor | None  # as the forward pass read them, where there is an activation
    forward_var: Tensor | None
    eps: float
    activation: int
    negative_slope: float
    need_input: bool
    need_residual: bool

    @classmethod
    def of(cls, *arguments: Any) -> EvalBackward:
        """Sort the operator's arguments."""
        return cls._make((arguments[0], Operands(*arguments[1:7]), *arguments[7:]))
