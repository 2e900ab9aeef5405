"""The operators for CUDA, their torch side included, in the emulator."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import simt_build


@pytest.fixture(scope="module")
def library() -> Path:
    if shutil.which(simt_build.compiler()) is None:
        pytest.skip(f"no C++ compiler ({simt_build.compiler()})")
    return simt_build.build_operators()


@pytest.mark.parametrize("family", ["normalizations", "reparameterize_kl", "recurrent", "cell_update"])
def test_operators_take_every_layout(family, library):
    command = [sys.executable, str(Path(__file__).with_name("operators.py")), str(library), family]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip() == "done"
