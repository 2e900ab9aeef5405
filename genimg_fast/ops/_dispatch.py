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
from genimg_fast.ops._checks import DTYPES

# Subclasses (DTensor, quantised tensors, tracers ...) bring their own rules, which know PyTorch's operators.
PLAIN_TENSORS = {Tensor, torch.nn.Parameter}
_PLAIN_OR_NONE = {*PLAIN_TENSORS, type(None)}

# Reasons for PyTorch that backend "native" accepts: it sees the operations it has to see, raises the error that
# users know, gives the dtype that they know, or has nothing to compute.
REFERENCE = "backend is 'reference'"
TRANSFORMED = "the call is being transformed or exported"
INVALID = "the arguments are not valid"
EMPTY = "the input is empty"
AUTOCAST = "autocast has it computed in float32"
LEFT_TO_TORCH = frozenset((REFERENCE, TRANSFORMED, INVALID, EMPTY, AUTOCAST))


_DEVICES = ("cpu", "cuda")

# new(Operands, (...)) makes a named tuple in a third of the time that Operands(...) takes.
new = tuple.__new__


class Preference(NamedTuple):
    """A row of the table: where PyTorch's own kernels are faster, and run with backend "auto"."""

    words: str  # completes "torch's own for"
    holds: Callable[..., bool]


def refusal(limit: str, got: Any) -> str:
    """Return the reason of a call that is beyond a limit of the table."""
    return f"its kernels take {limit}, got {got}"


def check_backend(name: str, reason: str) -> None:
    """Raise if the backend insists on kernels that do not take a call.

    Args:
        name: Of the public function.
        reason: From :meth:`Kernels.why_not`.
    """
    if _native._backend == "native" and reason not in LEFT_TO_TORCH:
        raise RuntimeError(f"{name}: backend 'native' was asked for, but {reason}")


class Kernels:
    """The table of a family's compiled kernels.

    Args:
        operator: Its operator, without namespace.
        limits: What the kernels take beside dtypes; each completes "its kernels take".
        unlike: Returns why tensors and options are beyond them, a :func:`refusal` or a reason of
            :data:`LEFT_TO_TORCH`, or None. One function for all of them: it runs at every call, and a microsecond
            is a few percent of a small one.
        slower: Where PyTorch is faster, by device type.
        parts: By device type, the operator whose kernel `operator` is made of there, if it has none of its own.
        devices: The device types for which the package has kernels.
        dtypes: The dtypes that they take.
    """

    def __init__(
        self,
        operator: str,
        limits: Sequence[str] = (),
        unlike: Callable[..., str | None] | None = None,
        slower: Mapping[str, Preference] | None = None,
        parts: Mapping[str, str] | None = None,
        devices: Sequence[str] = _DEVICES,
        dtypes: str = DTYPES,
    ) -> None:
        self.limits, self.unlike, self.slower = (dtypes, *limits), unlike, dict(slower or {})
        self.in_library = _native.load_error is None and hasattr(torch.ops.genimg_fast, operator)
        self._built = {
            device: self.in_library and _native.has_kernel((parts or {}).get(device, operator), device)
            for device in devices
        }

    def why_unavailable(self, device_type: str) -> str | None:
        """Return why no kernel runs on ``"cpu"``, ``"cuda"`` ..., or None."""
        if self._built.get(device_type):
            return None
        if _native.load_error is not None:
            return _native.load_error
        if not self.in_library:
            return f"{_native.LIBRARY.name} is older than the package's Python files; reinstall genimg_fast"
        if device_type not in self._built:
            return f"there are no compiled kernels for device {device_type!r}"
        return f"the library was built without {device_type.upper()} kernels"

    def why_not(self, tensors: Sequence[Any], options: Any = None) -> str | None:
        """Return the reason why a call is not to run on the kernels, or None.

        Args:
            tensors: The data, then all other tensors, or None.
            options: What the limits look at beside them.
        """
        if _native._backend == "reference":
            return REFERENCE
        for tensor in tensors:
            if type(tensor) not in _PLAIN_OR_NONE:
                return TRANSFORMED
        data = tensors[0]
        device = "cpu" if data.is_cpu else "cuda" if data.is_cuda else data.device.type  # the last one takes long
        if not self._built.get(device):
            return self.why_unavailable(device)
        if device == "cuda" and (reason := _native.cuda_refusal(data.get_device())) is not None:
            return reason
        if self.unlike is not None and (reason := self.unlike(tensors, options)) is not None:
            return reason
        return TRANSFORMED if is_transformed(data) else None

    def is_slower(self, device_type: str, call: Any) -> bool:
        """Whether PyTorch's own kernels are to run a call that these take.

        Args:
            device_type: ``"cpu"`` or ``"cuda"``.
            call: What the preferences look at.
        """
        # Under torch.compile the cost of a call is paid at compile time; comparing sizes would only put a guard on
        # a dimension that the user declared dynamic.
        if _native._backend != "auto" or torch.compiler.is_compiling():
            return False
        row = self.slower.get(device_type)
        return row is not None and row.holds(call)

    def describe(self) -> dict[str, tuple[str, str]]:
        """Return, for `info()`, per device type the path of the backend in force and why.

        "cuda" is the current device; others have a row once a call was refused there.
        """
        described: dict[str, tuple[str, str]] = {}
        for device in _DEVICES:
            reason = self.why_unavailable(device)
            if _native._backend == "reference":
                described[device] = ("reference", REFERENCE)
            elif reason is not None:
                described[device] = ("torch", reason)
            elif device == "cuda" and not torch.cuda.is_available():
                described[device] = ("none", "no GPU is visible to torch; the library has fused kernels for one")
            elif device == "cuda" and (reason := _native.cuda_refusal(torch.cuda.current_device())) is not None:
                described[device] = ("torch", reason)
            else:
                words = list(self.limits)
                if device in self.slower:
                    words.append(f"torch's own for {self.slower[device].words}")
                described[device] = ("native", f"fused kernels, which take {'; '.join(words)}")
        if described["cuda"][0] == "native":
            described.update({f"cuda:{i}": ("torch", reason) for i, reason in _native.cuda_refusals().items()})
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
