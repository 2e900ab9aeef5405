"""Fixtures for tests that execute CUDA kernels on the CPU.

def test_something(emulator):
    emulator.seed(3)  # a random schedule; 0, the default, is first in, first out
    y = emulator.batch_norm_act.forward(x, ...)

@pytest.mark.sanitizer
def test_no_race(run_sanitized):
    done = run_sanitized("tsan", "import simt_kernels as emulator\\n...")
    assert done.returncode == 0, done.stderr
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

if str(Path(__file__).parent) not in sys.path:
    sys.path.insert(0, str(Path(__file__).parent))

import simt_build


@pytest.fixture(scope="session")
def simt_module() -> ModuleType:
    if shutil.which(simt_build.compiler()) is None:
        pytest.skip(f"no C++ compiler ({simt_build.compiler()})")
    return simt_build.load()


@pytest.fixture
def emulator(simt_module: ModuleType) -> Iterator[ModuleType]:
    """The emulated kernels, with every setting of the emulator at its default."""
    simt_module.reset()
    yield simt_module
    simt_module.reset()


@pytest.fixture
def run_sanitized() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``simt_build.run_sanitized``; skips the test where the sanitizer of that name cannot run."""

    def run(name: str, *args: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
        if problem := simt_build.sanitizer_problem(name):
            pytest.skip(problem)
        return simt_build.run_sanitized(name, *args, **kwargs)  # type: ignore[arg-type]

    return run


@pytest.fixture
def run_clean(run_sanitized: Callable[..., subprocess.CompletedProcess[str]]) -> Callable[..., None]:
    """Run code that prints "done" at its end, in which the sanitizer must find nothing."""

    def run(name: str, code: object) -> None:
        done = run_sanitized(name, code)
        assert done.returncode == 0, done.stderr[-4000:]
        assert done.stdout.strip() == "done"

    return run
