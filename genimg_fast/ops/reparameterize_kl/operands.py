"""What is passed from the public functions to the operators: tensors and options, in the order of the schemas."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class Operands(NamedTuple):
    """The tensors. All but `seed` have the shape of `mu`; of `noise` and `seed` there is one."""

    mu: Tensor
    logvar: Tensor
    noise: Tensor | None
    seed: Tensor | None
    prior_mu: Tensor | None
    prior_logvar: Tensor | None


class Options(NamedTuple):
    """The numbers."""

    logvar_min: float
    logvar_max: float
    free_bits: float
    per_element: bool


class Backward(NamedTuple):
    """What the backward operator takes."""

    grad_z: Tensor | None
    grad_kl: Tensor | None
    operands: Operands
    options: Options
    need_noise: bool
    need_prior: bool

    @classmethod
    def of(cls, *arguments: Any) -> Backward:
        """Sort the operator's arguments."""
        operands, options = Operands(*arguments[2:8]), Options(*arguments[8:12])
        return cls._make((*arguments[:2], operands, options, *arguments[12:]))
