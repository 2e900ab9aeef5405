"""The compiled library: loading it, its build facts, and the choice between it and plain PyTorch."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, get_args

import torch

Backend = Literal["auto", "native", "reference"]
BACKENDS: tuple[str, ...] = get_args(Backend)
LIBRARY = Path(__file__).with_name("_C.so")
OLDEST_TORCH = "2.11"


class NativeUnavailableWarning(UserWarning):
    """The compiled kernels could not be loaded; plain PyTorch runs instead.

    Example:
        >>> import warnings, genimg_fast as gf
        >>> warnings.simplefilter("ignore", gf.NativeUnavailableWarning)
    """


def _load() -> str | None:
    """Load the library; return why it cannot be used, or None."""
    if not LIBRARY.exists():
        return (
            f"{LIBRARY.name} is missing from the package: it was installed without a C++ compiler, or not "
            "built. Install a C++ compiler and reinstall genimg_fast"
        )
    try:
        torch.ops.load_library(str(LIBRARY))
    except (OSError, RuntimeError) as error:
        # Some versions of torch wrap the loader's error in one that only names the file.
        reason = str(error.__cause__ or error).splitlines()[0]
        return (
            f"{LIBRARY.name} did not load into torch {torch.__version__} (it needs torch >= {OLDEST_TORCH}; "
            f"reinstall genimg_fast if it is newer): {reason}"
        )
    return None


load_error: str | None = _load()
_backend: str = "auto"


def set_backend(name: Backend) -> None:
    """Choose what every operator runs on, for the whole process.

    Args:
        name: ``"auto"`` uses a compiled kernel wherever it is available and faster than PyTorch's own;
            ``"native"`` insists on the compiled kernels and raises where there is none; ``"reference"``
            runs plain PyTorch.

    Raises:
        ValueError: The name is none of these.
        RuntimeError: ``"native"`` was asked for and the compiled library is not usable.

    Example:
        >>> import genimg_fast as gf
        >>> before = gf.get_backend()
        >>> gf.set_backend("reference")
        >>> gf.set_backend(before)
    """
    global _backend
    if name not in BACKENDS:
        raise ValueError(f"unknown backend {name!r}; choose one of {', '.join(map(repr, BACKENDS))}")
    if name == "native" and load_error is not None:
        raise RuntimeError(f"backend 'native' is not available: {load_error}")
    _backend = name


def get_backend() -> str:
    """Return the backend in force: ``"auto"``, ``"native"`` or ``"reference"``.

    Returns:
        What :func:`set_backend` or :func:`backend` chose last, or ``GENIMG_FAST_BACKEND`` at the start.

    Example:
        >>> import genimg_fast as gf
        >>> with gf.backend("reference"):
        ...     gf.get_backend()
        'reference'
    """
    return _backend


@contextlib.contextmanager
def backend(name: Backend) -> Iterator[None]:
    """Choose the backend within a ``with`` block; see :func:`set_backend`.

    Args:
        name: ``"auto"``, ``"native"`` or ``"reference"``.

    Yields:
        Nothing.

    Raises:
        ValueError: The name is none of these.
        RuntimeError: ``"native"`` was asked for and the compiled library is not usable.

    Example:
        >>> import genimg_fast as gf
        >>> with gf.backend("reference"):
        ...     gf.get_backend()
        'reference'
    """
    before = _backend
    set_backend(name)
    try:
        yield
    finally:
        set_backend(before)  # type: ignore[arg-type]


def _c_string(symbol: str) -> str | None:
    """Call a ``const char* symbol()`` of the library; None if it is not in this build."""
    if load_error is not None:
        return None
    function = getattr(ctypes.CDLL(str(LIBRARY)), symbol, None)
    if function is None:
        return None
    function.restype = ctypes.c_char_p
    return function().decode()


def simd_level() -> str | None:
    """Instruction set the CPU kernels use here: avx512, avx2, sse2 or portable."""
    return _c_string("genimg_fast_simd_level")


def set_simd_level(level: str) -> None:
    """Make the CPU kernels use another instruction set of this machine (for tests and benchmarks)."""
    if load_error is not None or ctypes.CDLL(str(LIBRARY)).genimg_fast_set_simd_level(level.encode()):
        raise ValueError(f"this machine or build does not have SIMD level {level!r}")
    has_bf16_products.cache_clear()


@functools.cache
def has_bf16_products() -> bool:
    """Whether CPU kernels multiply pairs of bfloat16: the machine can, and their instruction set is avx512."""
    if load_error is not None:
        return False
    function = getattr(ctypes.CDLL(str(LIBRARY)), "genimg_fast_has_bf16_products", None)
    return function is not None and bool(function())


def fill_new_tensors(fill: bool) -> None:
    """Make the kernels' results NaN before they are computed, so that an element left out shows (for tests).

    ``torch.utils.deterministic.fill_uninitialized_memory`` does that for tensors that torch's operators make.
    """
    if load_error is None:
        ctypes.CDLL(str(LIBRARY)).genimg_fast_fill_new_tensors(int(fill))


def build_facts() -> dict[str, str]:
    """Return the compilers and versions that the library was built with; empty if there is none."""
    facts: dict[str, str] = {}
    if (build := _c_string("genimg_fast_build_info")) is not None:
        facts["torch"], facts["compiler"] = build.split(";")
    if (cuda := _c_string("genimg_fast_cuda_build_info")) is not None:
        facts["nvcc"], architectures = cuda.split(";")
        facts["architectures"] = ", ".join(f"sm_{int(a) // 10}" for a in architectures.split(","))
    return facts


def recurrent_fits(device: int, dtype: torch.dtype, cell: int, hidden: int) -> bool:
    """Whether one kernel takes a recurrent layer through all steps, forward and backward, on a GPU.

    Args:
        device: The GPU's index.
        dtype: Of the layer.
        cell: As in the operators.
        hidden: Units of the layer.
    """
    if load_error is not None:
        return False
    function = getattr(ctypes.CDLL(str(LIBRARY)), "genimg_fast_recurrent_fits", None)
    if function is None:
        return False
    order = (torch.float32, torch.float64, torch.bfloat16, torch.float16)  # as in csrc/cuda/device.h
    with torch.cuda.device(device):
        return bool(function(device, order.index(dtype), cell, hidden))


def take_output_peak() -> int:
    """Return the most bytes that outputs of CPU kernels held in recycled memory since the last call.

    The profiler of torch does not see them.
    """
    if load_error is not None:
        return 0
    function = ctypes.CDLL(str(LIBRARY)).genimg_fast_take_output_peak
    function.restype = ctypes.c_int64
    return function()


def empty_cache() -> None:
    """Give the memory that CPU kernels keep for their next outputs back to the system.

    Only large outputs use such memory. At most 1 GiB of it is idle, and all but 64 MiB of that the system takes
    back by itself when memory runs short: there is rarely a reason to call this.

    Example:
        >>> import genimg_fast as gf
        >>> gf.empty_cache()
    """
    if load_error is None:
        ctypes.CDLL(str(LIBRARY)).genimg_fast_release_idle_outputs()


def has_kernel(operator: str, device_type: str) -> bool:
    """Whether the library implements an operator for a device type."""
    return load_error is None and torch._C._dispatch_has_kernel_for_dispatch_key(
        f"genimg_fast::{operator}", device_type.upper()
    )


# The second is that of PTX from a compiler that is newer than the driver.
_NO_CODE = {"cudaErrorNoKernelImageForDevice", "cudaErrorUnsupportedPtxVersion", "cudaErrorInvalidDeviceFunction"}
_cuda_refusals: dict[int, str | None] = {}
_asking = threading.Lock()


def cuda_refusal(device: int) -> str | None:
    """Return why the CUDA kernels cannot run on a device, or None; asked once, then remembered.

    A driver may be older than the kernels, or a device one that they were not compiled for.
    """
    try:
        return _cuda_refusals[device]
    except KeyError:
        pass
    with _asking:
        if device not in _cuda_refusals:
            error, driver = probe_cuda(device)
            if error is not None and error.startswith("cudaErrorStreamCapture"):
                return None  # says nothing about the device
            _cuda_refusals[device] = None if error is None else _in_words(error, driver, device)
        return _cuda_refusals[device]


# What torch.compiler.assume_constant_result does, without the second that its import takes.
cuda_refusal._dynamo_marked_constant = True  # type: ignore[attr-defined]


def cuda_refusals() -> dict[int, str]:
    """Return why the CUDA kernels cannot run on those devices that were asked and refused."""
    return {device: reason for device, reason in _cuda_refusals.items() if reason is not None}


def probe_cuda(device: int) -> tuple[str | None, int]:
    """Ask CUDA, without a launch, whether kernels of the library run on a device.

    Returns:
        The name of the error that says no, or None; the CUDA version that the driver is for, such as 12080.
    """
    driver = ctypes.c_int()
    probe = ctypes.CDLL(str(LIBRARY)).genimg_fast_cuda_probe
    probe.restype = ctypes.c_char_p
    with torch.cuda.device(device):
        error = probe(ctypes.byref(driver))
    return error and error.decode(), driver.value


def _in_words(error: str, driver: int, device: int) -> str:
    facts = build_facts()
    if error == "cudaErrorInsufficientDriver":
        return (
            f"its kernels were built with CUDA {facts['nvcc']}, and the NVIDIA driver is for CUDA "
            f"{driver // 1000}.{driver % 1000 // 10}: update the driver, or build with an older nvcc"
        )
    if error in (
        "cudaErrorNoKernelImageForDevice",
        "cudaErrorInvalidDeviceFunction",
        "cudaErrorUnsupportedPtxVersion",
    ):
        major, minor = torch.cuda.get_device_capability(device)
        return (
            f"the library has no code for sm_{major}{minor}, cuda:{device}, only for {facts['architectures']}: "
            f"build it with TORCH_CUDA_ARCH_LIST={major}.{minor}"
        )
    return f"its kernels cannot run on cuda:{device}: {error}"


def _start() -> None:
    requested = os.environ.get("GENIMG_FAST_BACKEND", "auto")
    try:
        set_backend(requested)  # type: ignore[arg-type]
    except (ValueError, RuntimeError) as error:
        raise type(error)(f"GENIMG_FAST_BACKEND={requested}: {error}") from None
    if load_error is not None and requested != "reference":
        frame = sys._getframe()
        while frame.f_back is not None and _is_importing(frame.f_code.co_filename):
            frame = frame.f_back
        warnings.warn_explicit(
            f"genimg_fast runs on plain PyTorch: {load_error}. GENIMG_FAST_BACKEND=reference silences this.",
            NativeUnavailableWarning,
            frame.f_code.co_filename,  # the user's, that imports this package
            frame.f_lineno,
            registry=frame.f_globals.setdefault("__warningregistry__", {}),
        )


def _is_importing(file: str) -> bool:
    return "importlib" in file or file.startswith(str(LIBRARY.parent) + os.sep)


_start()
