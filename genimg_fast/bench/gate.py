"""No figure for what is wrong: each contender is compared with float64, and cheats are caught, before it is timed.

1. Outputs and gradients of two sets of inputs are computed in float64 by the reference, and in the case's dtype by
   plain PyTorch: its own errors are the measure.
2. A contender computes the first, then the second in the same memory: what was kept by its address, or never
   computed, is wrong now. The judged one also gets inputs with gaps between elements.
3. Inputs must be as before, and what an earlier call returned must not have changed.
4. The errors may be twice plain PyTorch's, three times in gradients, and a few units in the last place more. Of
   networks they say little: rounding turns the sign of what an activation gets, here and there, and with it a
   gradient. They are compared in float64, to 1e-8; in their own dtype only roughly.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genimg_fast.bench.case import REFERENCE, Case, Pass, calls_of

FACTOR = {"forward": 2.0, "both": 3.0}
ULPS = 8
IN_FLOAT64 = 1e-8  # of networks
ROUGHLY = 0.05
NOTHING = 1e-4  # of the largest gradient


class WrongResultError(RuntimeError):
    """A contender does not compute what the reference does, or cheats; the message says how.

    Example:
        >>> from genimg_fast.bench import WrongResultError
        >>> issubclass(WrongResultError, RuntimeError)
        True
    """


class Gate:
    """Knows what is right for a case and a pass.

    Args:
        case: The case.
        direction: The pass; of steps, which train, results are compared with those of the reference alone.
    """

    def __init__(self, case: Case, direction: Pass) -> None:
        self.case, self.direction = case, direction
        self.sets = [list(case.inputs), [_other(t) for t in case.inputs]]
        reference = case.contenders[REFERENCE]
        exact = _wide_network(reference) if isinstance(reference, nn.Module) else reference
        options = {key: _wide(value) for key, value in case.fixed.items()}
        self.right = [self._results(exact, [_wide(t) for t in inputs], **options) for inputs in self.sets]
        # A bias before a norm has a gradient of zero, and that is no measure of anything.
        network = isinstance(reference, nn.Module)
        self.floors = [NOTHING * max(_scales(t)[1] for t in right) if network else 0.0 for right in self.right]
        if network:
            self.allowed = [[(ROUGHLY, math.inf)] * len(right) for right in self.right]
            return
        plain = [self._results(reference, inputs, **case.fixed) for inputs in self.sets]
        self.allowed = [
            [self._limit(errors_of(result, right), result) for result, right in zip(*both, strict=True)]
            for both in zip(plain, self.right, strict=True)
        ]

    def _results(self, function: Callable[..., Any], inputs: Sequence[Any], **options: Any) -> list[Tensor]:
        call = calls_of(function, inputs, self.direction, **options)
        return [t.detach().clone() for t in call()]

    def _limit(self, errors: tuple[float, float], result: Tensor) -> tuple[float, float]:
        factor, ulps = FACTOR[self.direction], ULPS * torch.finfo(result.dtype).eps
        return (factor * errors[0] + ulps) * self.case.slack, (factor * errors[1] + ulps) * self.case.slack

    def _check_in_float64(self, name: str, network: nn.Module) -> None:
        inputs = [_wide(t, torch.preserve_format) for t in self.sets[0]]
        results = self._results(copy.deepcopy(network).double(), inputs)
        allowed = [(IN_FLOAT64, IN_FLOAT64)] * len(self.right[0])
        self._compare(name, results, 0, "a copy in float64", allowed)

    def check(self, name: str, function: Callable[..., Any]) -> float:
        """Compare a contender's results with what is right.

        Args:
            name: Its name.
            function: The contender.

        Returns:
            The largest relative error.

        Raises:
            WrongResultError: If it is wrong.
        """
        if isinstance(function, nn.Module) and not hasattr(function, "_orig_mod"):  # that is torch.compile's
            self._check_in_float64(name, function)
        inputs = [_copy(t) for t in self.sets[0]]
        call = calls_of(function, inputs, self.direction, **self.case.fixed)
        first = [t.detach() for t in call()]
        kept = [t.clone() for t in first]
        found = self._compare(name, kept, 0, "inputs")
        self._check_unchanged(name, inputs, 0)
        _overwrite(inputs, self.sets[1])
        second = [t.detach().clone() for t in call()]
        found = max(found, self._compare(name, second, 1, "other values in the same memory"))
        self._check_unchanged(name, inputs, 1)
        if any(not torch.equal(a, b) for a, b in zip(first, kept, strict=True)):
            raise WrongResultError(f"{name} changes in a later call what an earlier one returned")
        if name == self.case.judged:
            spaced = [_spaced(t) for t in self.sets[0]]
            if any(s is not t for s, t in zip(spaced, self.sets[0], strict=True)):
                results = self._results(function, spaced, **self.case.fixed)
                found = max(found, self._compare(name, results, 0, "inputs with gaps between elements"))
        return found

    def check_again(self, name: str, call: Callable[[], tuple[Tensor, ...]], inputs: Sequence[Any]) -> None:
        """Look whether a call, after it was timed, still computes what it did, of values that it has not seen.

        Args:
            name: The contender's name.
            call: What was timed.
            inputs: What it computes of.

        Raises:
            WrongResultError: If it does not.
        """
        if self.case.fixed:
            return  # its results are random
        _overwrite(inputs, self.sets[1])
        results = [t.detach().clone() for t in call()]
        _overwrite(inputs, self.sets[0])
        self._compare(name, results, 1, "other values in the same memory, after it was timed")

    def _compare(self, name: str, results: Sequence[Tensor], which: int, of: str, limits: Any = None) -> float:
        right, limits = self.right[which], self.allowed[which] if limits is None else limits
        what = "results" if self.direction == "forward" else "gradients"
        if len(results) != len(right):
            raise WrongResultError(f"{name} has {len(results)} {what}, the reference {len(right)}")
        largest = 0.0
        for index, (result, exact, allowed) in enumerate(zip(results, right, limits, strict=True)):
            if result.shape != exact.shape:
                raise WrongResultError(
                    f"{name}: {what}[{index}] has shape {tuple(result.shape)}, not {tuple(exact.shape)}"
                )
            errors = errors_of(result, exact, self.floors[which])
            largest = max(largest, *errors)
            if not all(error <= limit for error, limit in zip(errors, allowed, strict=True)):  # NaN is not
                raise WrongResultError(
                    f"{name}: {what}[{index}] of {of} differ from float64 by {max(errors):.1e} of the largest, "
                    f"allowed is {max(allowed):.1e}"
                )
        return largest

    def _check_unchanged(self, name: str, inputs: Sequence[Any], which: int) -> None:
        for given, before in zip(inputs, self.sets[which], strict=True):
            if isinstance(given, Tensor) and not torch.equal(given, before):
                raise WrongResultError(f"{name} changes its inputs")


def errors_of(result: Tensor, right: Tensor, floor: float = 0.0) -> tuple[float, float]:
    """Measure how far a result is from what is right: root mean square and largest, relative to what is right.

    Args:
        result: The result.
        right: What is right, in float64, of the same shape.
        floor: Errors are relative to this where what is right is smaller.

    Returns:
        Both errors.
    """
    if right.numel() == 0:
        return 0.0, 0.0
    difference = (result.detach().double() - right.detach()).abs()
    rms, largest = (
        error / max(scale, floor) if max(scale, floor) else error
        for error, scale in zip(_scales(difference), _scales(right), strict=True)
    )
    return rms, largest


def _scales(values: Tensor) -> tuple[float, float]:
    """Root mean square, and the largest."""
    wide = values.detach().double()
    return (wide.square().mean().sqrt().item(), wide.abs().max().item()) if wide.numel() else (0.0, 0.0)


def _wide(value: Any, memory_format: torch.memory_format = torch.contiguous_format) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return value
    # Dense, whatever the layout: torch's own instance norm has wrong gradients where theirs is channels_last.
    wide = value.detach().to(torch.float64, memory_format=memory_format, copy=True)
    return wide.requires_grad_(value.requires_grad)


def _wide_network(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).double().to(memory_format=torch.contiguous_format)


def _copy(value: Any) -> Any:
    return value.detach().clone().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def _other(value: Any) -> Any:
    """Other values of the same distribution: the same ones, elsewhere."""
    if not isinstance(value, Tensor):
        return value
    return (
        torch.empty_like(value)
        .copy_(value.detach().flip(tuple(range(value.dim()))))
        .requires_grad_(value.requires_grad)
    )


def _spaced(value: Any) -> Any:
    """The same values with a gap behind each."""
    if not isinstance(value, Tensor) or value.dim() < 2:
        return value
    wide = value.new_zeros(*value.shape[:-1], 2 * value.shape[-1])
    return wide[..., ::2].copy_(value.detach()).requires_grad_(value.requires_grad)


@torch.no_grad()
def _overwrite(inputs: Sequence[Any], values: Sequence[Any]) -> None:
    for given, value in zip(inputs, values, strict=True):
        if isinstance(given, Tensor):
            given.copy_(value)
