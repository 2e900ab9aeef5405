import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import genimg_fast as gf

PACKAGE = Path(gf.__file__).parent


def python(*lines: str, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fresh interpreter, in `cwd` so that a package there is the one imported."""
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", **environment},
    )


@pytest.fixture
def package(tmp_path):
    """A folder with a copy of the package that tests may damage."""
    shutil.copytree(PACKAGE, tmp_path / "genimg_fast", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_set_backend_and_context():
    assert gf.get_backend() in ("auto", "native")
    before = gf.get_backend()
    with gf.backend("reference"):
        assert gf.get_backend() == "reference"
        assert gf.info().operators["batch_norm_act"]["cpu"][0] == "reference"
    assert gf.get_backend() == before
    with pytest.raises(ZeroDivisionError), gf.backend("reference"):
        raise ZeroDivisionError
    assert gf.get_backend() == before


def test_unknown_backend_lists_the_valid_ones():
    with pytest.raises(ValueError, match="'auto', 'native', 'reference'"):
        gf.set_backend("fastest")
    result = python("import genimg_fast", GENIMG_FAST_BACKEND="fastest")
    assert result.returncode != 0
    assert "GENIMG_FAST_BACKEND=fastest" in result.stderr
    assert "'auto', 'native', 'reference'" in result.stderr.splitlines()[-1]


def missing(library: Path) -> None:
    library.unlink()


def corrupt(library: Path) -> None:
    library.write_bytes(b"\x7fELF but no more")


def from_a_newer_torch(library: Path) -> None:
    source = library.with_name("newer.c")
    source.write_text("void aoti_torch_of_tomorrow(void); void use(void) { aoti_torch_of_tomorrow(); }")
    library.unlink()
    subprocess.run(["cc", "-shared", "-fPIC", "-Wl,-z,now", str(source), "-o", str(library)], check=True)


DAMAGE = {missing: "is missing", corrupt: "did not load", from_a_newer_torch: "aoti_torch_of_tomorrow"}
COMPUTE = (
    "import torch, genimg_fast as gf",
    "y = gf.nn.BatchNormAct2d(4)(torch.randn(8, 4, 32, 32))",
    "print(gf.info().operators['batch_norm_act']['cpu'][0], y.shape)",
)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_library_that_does_not_load_is_one_warning_and_plain_torch(damage, package):
    damage(package / "genimg_fast" / "_C.so")
    result = python(*COMPUTE, cwd=package)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["torch", "torch.Size([8,", "4,", "32,", "32])"]
    warnings = re.findall(r"NativeUnavailableWarning: (.*)", result.stderr)
    assert len(warnings) == 1
    assert DAMAGE[damage] in warnings[0]


@pytest.mark.parametrize(
    "line", ["import genimg_fast", "import genimg_fast.nn as nn", "from genimg_fast.ops import gru"]
)
def test_the_warning_points_at_the_line_of_the_import(line, package):
    missing(package / "genimg_fast" / "_C.so")
    (package / "train.py").write_text(f"import torch\n\n{line}\n")
    result = subprocess.run([sys.executable, "train.py"], capture_output=True, text=True, cwd=package, env={})
    assert result.stderr.startswith(f"{package / 'train.py'}:3: NativeUnavailableWarning"), result.stderr
    assert line in result.stderr


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_library_that_does_not_load_is_an_error_under_native(damage, package):
    damage(package / "genimg_fast" / "_C.so")
    result = python(*COMPUTE, cwd=package, GENIMG_FAST_BACKEND="native")
    assert result.returncode != 0
    last = result.stderr.splitlines()[-1]
    assert last.startswith("RuntimeError: GENIMG_FAST_BACKEND=native")
    assert DAMAGE[damage] in last
    assert python(*COMPUTE, cwd=package, GENIMG_FAST_BACKEND="reference").stderr == ""


def test_info_names_versions_paths_and_reasons():
    text = str(gf.info())
    for part in ("genimg_fast", torch.__version__, "compiler", "CPU SIMD", "GPUs", "batch_norm_act", "cuda"):
        assert part in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="only without a GPU")
def test_without_gpu_info_says_so():
    assert "none visible" in str(gf.info())
    if gf.info().build.get("nvcc"):
        assert "sm_90" in gf.info().build["architectures"]
