"""The choice between compiled kernels and plain PyTorch: a table of what a family's kernels take.

It answers with the reason of a refusal, in the same words for `info()`, for errors under backend "native" and for
the choice of path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from genimg_fast import _native
from genimg_fast.ops._checks import DTYPES, WIDE_DTYPE

# Subclasses (DTensor, quantised tensors, tracers ...) bring their own rules, which know PyTorch's operators.
PLAIN_TENSORS = {Tensor, torch.nn.Parameter}

# Reasons that hold with backend "native", too: PyTorch sees the operations it has to see, raises the error that
# users know, or has nothing to compute.
TRANSFORMED = "the call is being transformed or exported"
INVALID = "the arguments are not valid"
EMPTY = "the input is empty"
LEFT_TO_TORCH = frozenset((TRANSFORMED, INVALID, EMPTY))


class Limit(NamedTuple):
    """A row of the table: something that the kernels do not take everything of."""

    takes: str  # what they take; completes "its kernels take"
    unlike: Callable[..., str | None]  # what a call has instead, or None


class Preference(NamedTuple):
    """A row of the table: where PyTorch's own kernels are faster, and run with backend "auto"."""

    words: str  # completes "torch's own for"
    holds: Callable[..., bool]


class Kernels:
    """The table of a family's compiled kernels.

    Args:
        operator: Its operator, without namespace.
        limits: What the kernels do not take everything of, beside devices and :data:`DTYPES`.
        slower: Where PyTorch is faster, by device type.
        left_to_torch: Returns the reason of :data:`LEFT_TO_TORCH` that holds for a call, or None.
    """

    def __init__(
        self,
        operator: str,
        limits: Sequence[Limit] = (),
        slower: Mapping[str, Preference] | None = None,
        left_to_torch: Callable[..., str | None] = lambda *call: None,
    ) -> None:
        self.limits, self.slower, self.left_to_torch = tuple(limits), dict(slower or {}), left_to_torch
        self.in_library = _native.load_error is None and hasattr(torch.ops.genimg_fast, operator)
        self._missing: dict[str, str | None] = {}
        for device in ("cpu", "cuda"):
            built = self.in_library and _native.has_kernel(operator, device)
            self._missing[device] = None if built else f"the library was built without {device.upper()} kernels"
        if not self.in_library:
            older = f"{_native.LIBRARY.name} is older than the package's Python files; reinstall genimg_fast"
            self._missing = dict.fromkeys(self._missing, _native.load_error or older)

    def why_unavailable(self, device_type: str) -> str | None:
        """Return why no kernel runs on ``"cpu"``, ``"cuda"`` ..., or None."""
        if device_type in self._missing:
            return self._missing[device_type]
        return _native.load_error or f"there are no compiled kernels for device {device_type!r}"

    def why_not(self, tensors: Sequence[Any], *call: Any) -> str | None:
        """Return the reason why the kernels do not take a call, or None.

        It runs at every call: a microsecond here is a few percent of a small one.

        Args:
            tensors: The data, then all other tensors, or None.
            call: What the limits look at.
        """
        for tensor in tensors:
            if tensor is not None and type(tensor) not in PLAIN_TENSORS:
                return TRANSFORMED
        data = tensors[0]
        device = "cpu" if data.is_cpu else "cuda" if data.is_cuda else data.device.type  # the last one takes long
        if (reason := self.why_unavailable(device)) is not None:
            return reason
        if (reason := self.left_to_torch(*call)) is not None:
            return reason
        if data.dtype not in WIDE_DTYPE:
            return f"its kernels take {DTYPES}, got {data.dtype}"
        for takes, unlike in self.limits:
            if (got := unlike(*call)) is not None:
                return f"its kernels take {takes}, got {got}"
        return TRANSFORMED if is_transformed(data) else None

    def take(self, name: str, tensors: Sequence[Any], *call: Any) -> bool:
        """Choose between the kernels and PyTorch; raise where the backend allows neither.

        Args:
            name: Of the public function.
            tensors: As for :meth:`why_not`.
            call: Likewise.
        """
        if _native._backend == "reference":
            return False
        reason = self.why_not(tensors, *call)
        if reason is not None and _native._backend == "native" and reason not in LEFT_TO_TORCH:
            raise RuntimeError(f"{name}: backend 'native' was asked for, but {reason}")
        return reason is None

    def is_slower(self, device_type: str, *call: Any) -> bool:
        """Whether PyTorch's own kernels are to run a call that these take.

        Args:
            device_type: ``"cpu"`` or ``"cuda"``.
            call: What the preferences look at.
        """
        # Under torch.compile the cost of a call is paid at compile time; comparing sizes would only put a guard on
        # a dimension that the user declared dynamic.
        if _native._backend != "auto" or torch.compiler.is_compiling():
            return False
        return device_type in self.slower and self.slower[device_type].holds(*call)

    def describe(self) -> dict[str, tuple[str, str]]:
        """Return, for `info()`, per device type the path that backend "auto" takes and why."""
        described = {}
        for device in self._missing:
            reason = self.why_unavailable(device)
            if reason is not None:
                described[device] = ("torch", reason)
            elif device == "cuda" and not torch.cuda.is_available():
                described[device] = ("none", "no GPU is visible to torch; the library has fused kernels for one")
            else:
                words = [DTYPES, *(limit.takes for limit in self.limits)]
                if device in self.slower:
                    words.append(f"torch's own for {self.slower[device].words}")
                described[device] = ("native", f"fused kernels, which take {'; '.join(words)}")
        return described


def is_transformed(input: Tensor) -> bool:
    """Whether someone other than the kernel has to see this call's single PyTorch operations.

    Args:
        input: A plain tensor.
    """
    # Dynamo evaluates these two and guards them, so they come before its own case.
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    if torch._C._get_tracing_state() is not None or input.layout is not torch.strided:
        return True
    # A default device is such a mode, too, but one that changes nothing here.
    return torch._C._len_torch_function_stack() > 0 and not all(
        isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack()
    )
