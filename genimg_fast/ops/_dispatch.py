"""The choice between a compiled operator and plain PyTorch, as far as it is the same for every operator family."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from genimg_fast import _native

# Subclasses (DTensor, quantised tensors, tracers ...) bring their own rules, which know PyTorch's operators.
PLAIN_TENSORS = {Tensor, torch.nn.Parameter}

# A reason not to use the kernel that is no fault of the caller's: it holds with backend "native", too.
TRANSFORMED = "the call is being transformed or exported"


def find_kernels(operator: str) -> dict[str, bool]:
    """Return per device type whether the library has kernels for it; empty if it lacks the operator.

    Args:
        operator: Name without namespace.
    """
    if _native.load_error is not None or not hasattr(torch.ops.genimg_fast, operator):
        return {}
    return {device: _native.has_kernel(operator, device) for device in ("cpu", "cuda")}


def why_unavailable(kernels: dict[str, bool], device_type: str) -> str | None:
    """Return why no compiled kernel runs on a device type, or None.

    Args:
        kernels: From :func:`find_kernels`.
        device_type: ``"cpu"``, ``"cuda"`` ...
    """
    if kernels.get(device_type):
        return None
    if _native.load_error is not None:
        return _native.load_error
    if not kernels:
        return f"{_native.LIBRARY.name} is older than the package's Python files; reinstall genimg_fast"
    if device_type not in kernels:
        return f"there are no compiled kernels for device {device_type!r}"
    return f"the library was built without {device_type.upper()} kernels"


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


def describe_paths(kernels: dict[str, bool], cpu_note: str = "") -> dict[str, tuple[str, str]]:
    """Return, for ``info()``, per device the path that ``backend="auto"`` takes and why.

    Args:
        kernels: From :func:`find_kernels`.
        cpu_note: Added where the kernel runs on the CPU.
    """
    described = {}
    for device in ("cpu", "cuda"):
        reason = why_unavailable(kernels, device)
        if reason is not None:
            described[device] = ("torch", reason)
        elif device == "cuda" and not torch.cuda.is_available():
            described[device] = ("none", "no GPU is visible to torch; the library has fused kernels for one")
        else:
            described[device] = ("native", f"fused kernel{cpu_note if device == 'cpu' else ''}")
    return described
