"""No figure for what is wrong: each contender is compared with float64, and cheats are caught, before it is timed.

1. Outputs and gradients of two sets of inputs are computed in float64 by the reference, and in the case's dtype
   by plain PyTorch: its own errors are the measure.
2. A contender computes the first, then the second in the same memory, which autograd's count of versions does not
   see: what was kept by its address, or never computed, is wrong now. The judged one also gets inputs with gaps
   between elements.
3. Inputs must be as before, and what an earlier call returned must not have changed.
4. The errors may be twice plain PyTorch's, three times in gradients, and a few units in the last place more. Of
   networks they say little: rounding turns the sign of what an activation gets, here and there, and with it a
   gradient. They are compared in float64, to 1e-8, buffers included; in their own dtype only roughly.

Steps of training are compared in another way: see :mod:`genimg_fast.bench.step_gate`.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from genimg_fast.bench.case import REFERENCE, Case, Pass, calls_of
from genimg_fast.bench.graphed import Graphed

FACTOR = {"forward": 2.0, "both": 3.0}
ULPS = 8
IN_FLOAT64 = 1e-8  # of networks
DOUBLE = 1e-11  # of other results in float64, in which plain PyTorch's own errors are none: float32 is off by 1e-7
ROUGHLY = 0.05  # of networks in their own dtype; of their outputs at most so many units in the last place
ROUGH_ULPS = 1000
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
        direction: The pass: ``"forward"``, or ``"both"``: outputs and gradients.

    Raises:
        ValueError: If the reference returns no tensor, or values that are not finite.
    """

    def __init__(self, case: Case, direction: Pass) -> None:
        self.case, self.direction = case, direction
        self.sets = [list(case.inputs), [_other(t) for t in case.inputs]]
        reference = case.contenders[REFERENCE]
        exact = _wide_network(reference) if isinstance(reference, nn.Module) else reference
        options = {key: _wide(value) for key, value in case.fixed.items()}
        self.right = [self._results(exact, [_wide(t) for t in inputs], **options) for inputs in self.sets]
        if not self.right[0]:
            raise ValueError(f"{REFERENCE} returns no tensor")
        if not all(bool(t.isfinite().all()) for t in self.right[0]):
            raise ValueError(f"{REFERENCE} returns values that are not finite")
        self.outputs = len(calls_of(reference, self.sets[0], "forward", **case.fixed)())
        plain = [self._results(reference, inputs, **case.fixed) for inputs in self.sets]
        self.dtypes = [t.dtype for t in plain[0]]
        # A bias before a norm has a gradient of zero, and that is no measure of anything.
        self.network = isinstance(reference, nn.Module)
        self.floors = [
            NOTHING * max(_scales(t)[1] for t in right) if self.network else 0.0 for right in self.right
        ]
        self.allowed = [
            [self._limit(index, result, right) for index, (result, right) in enumerate(zip(*both, strict=True))]
            for both in zip(plain, self.right, strict=True)
        ]

    def _results(self, function: Callable[..., Any], inputs: Sequence[Any], **options: Any) -> list[Tensor]:
        """Outputs, and with backward the gradients behind them."""
        outputs = [t.detach().clone() for t in calls_of(function, inputs, "forward", **options)()]
        if self.direction == "forward":
            return outputs
        return outputs + [t.detach().clone() for t in calls_of(function, inputs, "both", **options)()]

    def _limit(self, index: int, result: Tensor, right: Tensor) -> tuple[float, float]:
        if not result.is_floating_point() and not result.is_complex():
            return 0.0, 0.0
        eps, output = torch.finfo(result.dtype).eps, index < self.outputs
        if self.network:
            return (min(ROUGHLY, ROUGH_ULPS * eps) if output else ROUGHLY), math.inf
        factor, least = FACTOR["forward" if output else "both"], max(ULPS * eps, DOUBLE * (eps < 1e-12))
        rms, largest = ((factor * error + least) * self.case.slack for error in errors_of(result, right))
        return rms, largest

    def _check_in_float64(self, name: str, network: nn.Module) -> None:
        inputs = [_wide(t, torch.preserve_format) for t in self.sets[0]]
        exact, plain = copy.deepcopy(network).double(), _wide_network(self.case.contenders[REFERENCE])
        buffers = dict(plain.named_buffers())
        for key, buffer in exact.named_buffers():  # each may have been called some times before
            if key in buffers:
                buffer.copy_(buffers[key])
        results = self._results(exact, inputs)
        allowed = [(IN_FLOAT64, IN_FLOAT64)] * len(self.right[0])
        self._compare(name, results, 0, "a copy in float64", allowed, dtypes=False)
        self._results(plain, [_wide(t) for t in self.sets[0]])
        for key, buffer in exact.named_buffers():
            if key in buffers and max(errors_of(buffer, buffers[key])) > IN_FLOAT64:
                raise WrongResultError(f"{name}: its buffer {key} is another than that of {REFERENCE}")

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
        graphed = isinstance(function, Graphed)  # results lie where the next call writes its own
        if self.network and isinstance(function, nn.Module) and not (graphed or hasattr(function, "_orig_mod")):
            self._check_in_float64(name, function)
        inputs = [copy_of(t) for t in self.sets[0]]
        call = calls_of(function, inputs, self.direction, **self.case.fixed)
        kept = call()
        copies = [t.detach().clone() for t in kept]
        self._check_unchanged(name, inputs, 0)
        self._compare_last(name, copies, 0, "inputs")
        found = self._compare(name, self._results(function, inputs, **self.case.fixed), 0, "inputs")
        _overwrite(inputs, self.sets[1])
        self._compare_last(name, [t.detach().clone() for t in call()], 1, "other values in the same memory")
        results = self._results(function, inputs, **self.case.fixed)
        found = max(found, self._compare(name, results, 1, "other values in the same memory"))
        self._check_unchanged(name, inputs, 1)
        if not graphed and any(not torch.equal(a, b) for a, b in zip(kept, copies, strict=True)):
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
        if self.case.fixed or any(isinstance(t, Tensor) and _overlaps(t) for t in inputs):
            return  # its results are random, or other values cannot be written there
        _overwrite(inputs, self.sets[1])
        results = [t.detach().clone() for t in call()]
        _overwrite(inputs, self.sets[0])
        self._compare_last(name, results, 1, "other values in the same memory, after it was timed")

    def _compare_last(self, name: str, results: Sequence[Tensor], which: int, of: str) -> None:
        """Compare what a call of the pass returns: of backward, the gradients alone."""
        first = len(self.right[which]) - len(results)
        if first not in (0, self.outputs):
            first = 0
        self._compare(name, results, which, of, first=first)

    def _compare(
        self, name: str, results: Sequence[Tensor], which: int, of: str, limits: Any = None, *,
        first: int = 0, dtypes: bool = True,
    ) -> float:  # fmt: skip
        right, limits = self.right[which][first:], (self.allowed[which] if limits is None else limits)[first:]
        if len(results) != len(right):
            raise WrongResultError(f"{name} has {len(results)} results, the reference {len(right)}")
        largest = 0.0
        for index, (result, exact, allowed) in enumerate(zip(results, right, limits, strict=True), first):
            gradient = index - self.outputs
            what = f"gradients[{gradient}]" if gradient >= 0 else f"results[{index}]"
            if result.shape != exact.shape:
                raise WrongResultError(f"{name}: {what} has shape {tuple(result.shape)}, not {tuple(exact.shape)}")
            if dtypes and result.dtype != self.dtypes[index]:
                raise WrongResultError(f"{name}: {what} is of {result.dtype}, not {self.dtypes[index]}")
            errors = errors_of(result, exact, self.floors[which])
            largest = max(largest, *errors)
            if not all(error <= limit for error, limit in zip(errors, allowed, strict=True)):  # NaN is not
                raise WrongResultError(
                    f"{name}: {what} of {of} differ from float64 by {max(errors):.1e} of the largest, "
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
    wide = _real(result)
    if wide.data_ptr() == result.data_ptr():
        wide = wide.clone()
    difference = wide.sub_(_real(right))
    rms, largest = (
        error / max(scale, floor) if max(scale, floor) else error
        for error, scale in zip(_scales(difference), _scales(_real(right)), strict=True)
    )
    return rms, largest


def _real(values: Tensor) -> Tensor:
    values = values.detach()
    return torch.view_as_real(values.to(torch.complex128)) if values.is_complex() else values.double()


def _scales(values: Tensor) -> tuple[float, float]:
    """Root mean square, and the largest."""
    wide = _real(values)
    if wide.numel() == 0:
        return 0.0, 0.0
    # Two reductions: to write what is in between into new memory would take most of a comparison's time.
    low, high = torch.aminmax(wide)
    return torch.linalg.vector_norm(wide).item() / math.sqrt(wide.numel()), max(-low.item(), high.item())


def _wide(value: Any, memory_format: torch.memory_format = torch.contiguous_format) -> Any:
    if not isinstance(value, Tensor) or not (value.is_floating_point() or value.is_complex()):
        return value
    dtype = torch.complex128 if value.is_complex() else torch.float64
    # Dense, whatever the layout: torch's own instance norm has wrong gradients where theirs is channels_last.
    wide = value.detach().to(dtype, memory_format=memory_format, copy=True)
    return wide.requires_grad_(value.requires_grad)


def _wide_network(network: Any) -> nn.Module:
    return copy.deepcopy(network).double().to(memory_format=torch.contiguous_format)


def copy_of(value: Any) -> Any:
    """Copy an input, densely."""
    return value.detach().clone().requires_grad_(value.requires_grad) if isinstance(value, Tensor) else value


def _other(value: Any) -> Any:
    """Other values of much the same distribution: elsewhere, and smaller, so that no sum of them is the same."""
    if not isinstance(value, Tensor):
        return value
    other = value.detach().flip(tuple(range(value.dim())))
    if value.is_floating_point() or value.is_complex():
        other = other * 0.8
    return torch.empty_like(value).copy_(other).requires_grad_(value.requires_grad)


def _overlaps(t: Tensor) -> bool:
    return any(size > 1 and stride == 0 for size, stride in zip(t.shape, t.stride(), strict=True))


def _spaced(value: Any) -> Any:
    """The same values with a gap behind each."""
    if not isinstance(value, Tensor) or value.dim() < 2:
        return value
    wide = value.new_zeros(*value.shape[:-1], 2 * value.shape[-1])
    return wide[..., ::2].copy_(value.detach()).requires_grad_(value.requires_grad)


def _overwrite(inputs: Sequence[Any], values: Sequence[Any]) -> None:
    """Write other values into the memory of inputs; by way of ``data``, which no counter of versions sees."""
    for given, value in zip(inputs, values, strict=True):
        if isinstance(given, Tensor):
            given.data.copy_(value.detach())
