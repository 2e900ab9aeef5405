"""What setup.py makes of the tools it finds, and the size of what it built."""

import importlib.util
from pathlib import Path

import pytest
import setuptools

from genimg_fast import _native

SETUP = Path(__file__).parents[1] / "setup.py"
needs_source = pytest.mark.skipif(not SETUP.exists(), reason="tests run without the source tree")


@pytest.fixture
def setup(monkeypatch):
    """setup.py as a module."""
    monkeypatch.chdir(SETUP.parent)
    monkeypatch.setenv("GENIMG_FAST_SKIP_CUDA", "1")
    monkeypatch.setattr(setuptools, "setup", lambda **options: None)
    spec = importlib.util.spec_from_file_location("setup_of_genimg_fast", SETUP)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def nvcc(tmp_path, monkeypatch):
    """Makes the only nvcc one that answers questions with given text."""
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))

    def make(archs, help=""):
        script = tmp_path / "bin" / "nvcc"
        script.parent.mkdir(exist_ok=True)
        listed = "\n".join(f"compute_{arch}" for arch in archs)
        answers = f"--list-gpu-arch) echo '{listed}';;\n--help) echo '{help}';;\n*) exit 1;;"
        script.write_text(f"#!/bin/sh\ncase $1 in\n{answers}\nesac\n")
        script.chmod(0o755)

    return make


@needs_source
@pytest.mark.parametrize(
    ("known", "archs"),
    [
        ((75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121), "7.5;8.0;9.0+PTX;10.0;12.0"),
        ((50, 60, 70, 75, 80, 86, 87, 89, 90), "7.5;8.0;9.0+PTX"),
        ((60, 70, 75, 80, 86), "7.5;8.0+PTX"),
        ((90, 100, 120), "9.0+PTX;10.0;12.0"),
        ((), "7.5;8.0;9.0+PTX;10.0;12.0"),  # it does not know the question
    ],
)
def test_the_default_architectures_are_those_that_nvcc_knows(known, archs, setup, nvcc):
    nvcc(known)
    assert setup.architectures() == archs


@needs_source
def test_device_code_is_compressed_by_what_nvcc_has(setup, nvcc):
    nvcc((90,), help="--compress-mode [default,size,speed,balance,none]")
    assert setup.compression() == "--compress-mode=size"
    nvcc((90,), help="--no-compress")
    assert setup.compression() == "-Xfatbin=-compress-all"


def test_the_library_is_small():
    size = _native.LIBRARY.stat().st_size / 1e6 if _native.LIBRARY.exists() else 0
    architectures = _native.build_facts().get("architectures", "")
    limit = 16 if "," in architectures else 8
    assert size < limit, f"{size:.1f} MB with CUDA architectures {architectures or 'none'}"
