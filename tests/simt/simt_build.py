"""Builds the emulated kernels as the Python module ``simt_kernels``; runs scripts with it under a sanitizer.

A kernel family ``x`` consists of ``csrc/cuda/x.cu`` and ``tests/simt/bind_x.cpp``, which defines
``void bind_x(pybind11::module_& m)``; putting the two files there is all it takes to join the module.

Objects and modules are cached under ``GENIMG_FAST_SIMT_CACHE`` (default: ``genimg_fast/simt`` in the user's
cache folder), by a hash of compiler, flags and sources, so a build is repeated only when something changed.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import pybind11

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
MODULE = "simt_kernels"
JOBS = 2
KEEP_SECONDS = 30 * 24 * 3600  # cache entries that nobody used for so long are deleted

COMMON_FLAGS = (
    "-std=c++20",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-strict-aliasing",  # kernels read floats through uint4*, as nvcc allows
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-Icsrc",
    "-Icsrc/cuda",
    "-Itests/simt",
)


@dataclass(frozen=True)
class Variant:
    """How kernels and run time are compiled; bindings are the same objects in every variant."""

    kernel_flags: tuple[str, ...]
    runtime_flags: tuple[str, ...]
    link_flags: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


# Lines, but no variables: following variables through optimised code doubles the time to compile.
_LINES = ("-g1", "-fno-omit-frame-pointer")
# -O0 compiles large templates in half the time of -O1.  The checks that are left out cost the most and find
# the least here; ASan reports a null pointer as well.
_ASAN = (
    "-O0",
    *_LINES,
    "-fsanitize=address,undefined",
    "-fno-sanitize=null,vptr,object-size,pointer-overflow",
    "-fno-sanitize-recover=all",
    "-DSIMT_ASAN",
)

VARIANTS = {
    "plain": Variant(kernel_flags=("-O2",), runtime_flags=("-O2",)),
    "asan": Variant(
        kernel_flags=_ASAN,
        runtime_flags=_ASAN,
        link_flags=("-fsanitize=address,undefined",),
        preload=("libasan.so", "libubsan.so"),
        environment={
            # Python itself leaks, and a second stack for each of thousands of fibers is too much.
            "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
            "UBSAN_OPTIONS": "print_stacktrace=1",
        },
    ),
    "tsan": Variant(
        kernel_flags=("-O1", *_LINES, "-fsanitize=thread", "-DSIMT_TSAN"),
        runtime_flags=("-O2", *_LINES, "-DSIMT_TSAN"),  # not instrumented: see simt.cpp
        link_flags=("-fsanitize=thread",),
        preload=("libtsan.so",),
        environment={"TSAN_OPTIONS": "exitcode=66"},
    ),
}


class BuildError(RuntimeError):
    """The compiler said no; the message holds what it said."""


def compiler() -> str:
    return os.environ.get("CXX") or "g++"


def families() -> list[str]:
    return sorted(path.stem.removeprefix("bind_") for path in HERE.glob("bind_*.cpp"))


def cache_folder() -> Path:
    """The first of the possible places that can be written."""
    candidates = [
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "genimg_fast" / "simt",
        Path(tempfile.gettempdir()) / f"genimg_fast-simt-{os.getuid()}",
    ]
    if chosen := os.environ.get("GENIMG_FAST_SIMT_CACHE"):
        candidates = [Path(chosen)]
    for folder in candidates:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    raise BuildError(f"no folder to build in: {', '.join(map(str, candidates))}")


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """One build at a time, also among the workers of a parallel test run."""
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout


@functools.cache
def _compiler_version() -> str:
    return _run([compiler(), "--version"])


def _headers() -> list[Path]:
    """All of them for every object: coarse, but nothing can be out of date."""
    folders = (ROOT / "csrc", HERE)
    return sorted(p for folder in folders for p in folder.rglob("*") if p.suffix in {".h", ".cuh"})


def _digest(texts: Sequence[str], files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    for path in files:
        digest.update(str(path.relative_to(ROOT)).encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:24]


def _make(target: Path, command: Sequence[str]) -> None:
    """Runs ``command -o target`` unless the target is there; it appears complete or not at all."""
    if target.exists():
        os.utime(target)
        return
    partial = target.with_name(f"{target.name}.{os.getpid()}.partial")
    try:
        _run([*command, "-o", str(partial)])
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _compile(source: Path, flags: Sequence[str], cache: Path) -> Path:
    command = [compiler(), *COMMON_FLAGS, *flags, "-x", "c++", "-c", str(source.relative_to(ROOT))]
    key = _digest([_compiler_version(), *command], [source, *_headers()])
    target = cache / f"{source.stem}-{key}.o"
    _make(target, command)
    return target


def _sources(variant: Variant) -> list[tuple[Path, tuple[str, ...]]]:
    """Every source file with its flags, the slow ones first."""
    names = families()
    binding_flags = (
        "-O1",
        f"-isystem{pybind11.get_include()}",
        f"-isystem{sysconfig.get_paths()['include']}",
        f"-DPYBIND11_VERSION_KEY={pybind11.__version__.replace('.', '_')}",  # part of the hash
        "-DSIMT_FAMILIES=" + " ".join(f"FAMILY({name})" for name in names),
    )
    sources: list[tuple[Path, tuple[str, ...]]] = []
    for name in names:
        folder = HERE if name == "selftest" else ROOT / "csrc" / "cuda"
        sources.append((folder / f"{name}.cu", variant.kernel_flags))
        sources.append((HERE / f"bind_{name}.cpp", binding_flags))
    sources.append((ROOT / "csrc" / "cuda" / "device.cu", variant.kernel_flags))
    sources.append((HERE / "module.cpp", binding_flags))
    sources.append((HERE / "simt.cpp", variant.runtime_flags))
    return sources


def _delete_old_entries(cache: Path) -> None:
    oldest = time.time() - KEEP_SECONDS
    for path in cache.rglob("*.*o"):
        if path.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)


def _build(folder: str, file: str, variant: Variant, sources: Sequence[tuple[Path, tuple[str, ...]]]) -> Path:
    cache = cache_folder()
    with _exclusive(cache):
        with ThreadPoolExecutor(JOBS) as pool:
            objects = list(pool.map(lambda source: _compile(source[0], source[1], cache), sources))
        command = [compiler(), "-shared", *variant.link_flags, *map(str, objects)]
        target = cache / f"{folder}-{_digest([_compiler_version(), *command], [])}" / file
        target.parent.mkdir(exist_ok=True)
        _make(target, command)
        _delete_old_entries(cache)
    return target


def build(name: str = "plain") -> Path:
    """Builds a variant if necessary; the answer is the folder to put on ``sys.path``."""
    return _build(name, f"{MODULE}.so", VARIANTS[name], _sources(VARIANTS[name])).parent


def build_operators() -> Path:
    """Builds the operators for CUDA, if necessary, as a library for ``torch.ops.load_library``.

    Their torch side is in it as it is, csrc/cuda/*_torch.cpp; emulated_torch.h has them take tensors of the CPU.
    A process that has loaded genimg_fast's own library cannot load this one.
    """
    import torch
    from torch.utils import cpp_extension

    csrc = ROOT / "csrc"
    libraries = [
        flag for folder in cpp_extension.library_paths() for flag in (f"-L{folder}", f"-Wl,-rpath,{folder}")
    ]
    variant = replace(
        VARIANTS["plain"], link_flags=("-Wl,--no-as-needed", *libraries, "-ltorch", "-ltorch_cpu", "-lc10")
    )
    flags = (
        "-O1",
        "-DTORCH_TARGET_VERSION=0x020b000000000000ULL",  # as in setup.py
        *(f"-isystem{folder}" for folder in cpp_extension.include_paths()),
        f"-DTORCH_IN_HASH={torch.__version__}",
    )
    emulated = (*flags, "-include", "tests/simt/emulated_torch.h")
    sources = [(path, emulated) for path in sorted((csrc / "cuda").glob("*_torch.cpp"))]
    sources += [(csrc / name, flags) for name in ("library.cpp", "recurrent.cpp")]
    sources += [
        (path, kernel_flags)
        for path, kernel_flags in _sources(variant)
        if path.parent == csrc / "cuda" or path.name == "simt.cpp"
    ]
    return _build("operators", "operators.so", variant, sources)


def load() -> ModuleType:
    """The plain module, built if necessary."""
    path = build() / f"{MODULE}.so"
    spec = importlib.util.spec_from_file_location(MODULE, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _library(name: str) -> str:
    """Its full path, or the bare name if the compiler does not have it."""
    return _run([compiler(), f"-print-file-name={name}"]).strip()


def _sanitized_environment(variant: Variant) -> dict[str, str]:
    """The sanitizer's run time must come first into a process whose program is not instrumented."""
    return {
        **os.environ,
        **variant.environment,
        "LD_PRELOAD": " ".join(map(_library, variant.preload)),
        "PYTHONMALLOC": "malloc",  # so that ASan sees every allocation
        "OPENBLAS_NUM_THREADS": "1",
    }


@functools.cache
def _sanitizer_launcher(name: str) -> tuple[list[str], str]:
    """What to put before the program, and why the sanitizer cannot be used here ('' if it can).

    GCC's TSan cannot run where addresses are randomised over too many bits; ``setarch -R`` switches that off.
    """
    variant = VARIANTS[name]
    if shutil.which(compiler()) is None:
        return [], f"no C++ compiler ({compiler()})"
    missing = [name for name in variant.preload if not Path(_library(name)).is_absolute()]
    if missing:
        return [], f"{compiler()} has no {', '.join(missing)}"
    prefixes: list[list[str]] = [[]]
    if setarch := shutil.which("setarch"):
        prefixes.append([setarch, "-R"])
    problem = ""
    for prefix in prefixes:
        probe = [*prefix, sys.executable, "-c", "pass"]
        done = subprocess.run(probe, env=_sanitized_environment(variant), capture_output=True, text=True)
        if done.returncode == 0:
            return prefix, ""
        problem = problem or f"python does not start under {name}: {done.stderr.strip()[-500:]}"
    return [], problem


def sanitizer_problem(name: str) -> str:
    """Why ``run_sanitized`` cannot work on this machine, or ''."""
    return _sanitizer_launcher(name)[1]


def run_sanitized(
    name: str, code_or_arguments: str | Sequence[str], *, timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """Runs Python in a process of its own, where ``import simt_kernels`` gives the sanitized kernels.

    ``name`` is "asan" (address and undefined behaviour) or "tsan" (data races).  A string is code for
    ``python -c``; a sequence is the script and its arguments.  A clean run has return code 0; reports are on
    stderr.
    """
    prefix, problem = _sanitizer_launcher(name)
    if problem:
        raise BuildError(problem)
    environment = _sanitized_environment(VARIANTS[name])
    paths = [str(build(name)), str(HERE), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    arguments = ["-c", code_or_arguments] if isinstance(code_or_arguments, str) else list(code_or_arguments)
    command = [*prefix, sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=timeout)


if __name__ == "__main__":
    for variant_name in sys.argv[1:] or ["plain"]:
        print(build(variant_name))
