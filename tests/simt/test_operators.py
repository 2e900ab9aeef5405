"""The operators for CUDA, their torch side included, in the emulator."""

import os
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


def check(library: Path, family: str, environment: dict[str, str] | None = None) -> None:
    command = [sys.executable, str(Path(__file__).with_name("operators.py")), str(library), family]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **(environment or {})})
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.strip() == "done"


@pytest.mark.parametrize("family", ["normalizations", "reparameterize_kl", "recurrent", "cell_update"])
def test_operators_take_every_layout(family, library):
    check(library, family)


def test_python_has_float32_results_under_autocast(library):
    check(library, "autocast", {"GENIMG_FAST_BACKEND": "native"})


def test_refused_clusters_are_done_without(library):
    norms = ("BATCH_NORM", "GROUP_NORM")
    check(
        library,
        "refused_clusters",
        {f"GENIMG_FAST_{norm}_METHOD": "cluster" for norm in norms} | {"SIMT_REFUSES_CLUSTERS": "1"},
    )
