"""Installing from source, as users do it; `pytest -m install`."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

SOURCE = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.install,
    pytest.mark.skipif(not (SOURCE / "setup.py").exists(), reason="tests run without the source tree"),
]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """An unpacked source distribution."""
    where = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", where, "sdist", "--dist-dir", where]
    result = subprocess.run(command, capture_output=True, text=True, cwd=SOURCE)
    assert result.returncode == 0, result.stderr
    (archive,) = where.glob("*.tar.gz")
    shutil.unpack_archive(archive, where / "unpacked")
    (unpacked,) = (where / "unpacked").iterdir()
    return unpacked


@pytest.fixture
def source(sdist, tmp_path):
    """A copy of it, for a build to leave its traces in."""
    return shutil.copytree(sdist, tmp_path / "source")


def pip(*arguments, **environment) -> str:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


def run_installed(where: Path, backend: str = "auto") -> subprocess.CompletedProcess[str]:
    code = (
        "import torch, genimg_fast as gf\n"
        "print(gf.__file__)\n"
        "print(gf.nn.BatchNormAct2d(4)(torch.randn(8, 4, 32, 32, requires_grad=True)).grad_fn)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(where), "GENIMG_FAST_BACKEND": backend}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=where, env=environment)


def test_an_sdist_holds_what_a_checkout_holds(sdist):
    try:
        listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True, cwd=SOURCE).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this is not a git checkout")
    tracked = {name for name in listed.splitlines() if (SOURCE / name).exists()}
    held = {str(file.relative_to(sdist)) for file in sdist.rglob("*") if file.is_file()}
    assert tracked - held == set()
    assert not [name for name in held if name.endswith((".so", ".pyc"))]


@pytest.mark.parametrize(("package", "version"), [("setuptools", "70.3.0"), ("torch", "2.10.1+cpu")])
def test_a_build_with_old_tools_ends_in_one_sentence(package, version, tmp_path):
    metadata = tmp_path / f"{package}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "setup.py", "--version"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=SOURCE, env=environment)
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"genimg_fast: needs {package} >= ")
    assert f"has {version}: pip install" in line


def test_without_a_compiler_the_install_is_pure_python(source, tmp_path):
    where = tmp_path / "installed"
    tools = tmp_path / "bin"  # a PATH on which there is no compiler
    tools.mkdir()
    log = pip(
        "install", "--verbose", "--no-build-isolation", "--no-deps", "--target", where, source,
        PATH=str(tools), CXX="no-such-compiler",
    )  # fmt: skip
    assert log.count("genimg_fast: no C++ compiler found") >= 1
    assert not list(where.rglob("*.so"))
    result = run_installed(where)
    assert result.returncode == 0, result.stderr
    assert str(where) in result.stdout
    assert "LeakyRelu" in result.stdout
    assert result.stderr.count("NativeUnavailableWarning:") == 1
    assert run_installed(where, "native").returncode != 0


def test_one_wheel_serves_every_python_and_torch(source, tmp_path):
    pip(
        "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", tmp_path, source, GENIMG_FAST_SKIP_CUDA="1",
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    assert "-py3-none-linux" in wheel.name
    names = zipfile.ZipFile(wheel).namelist()
    assert "genimg_fast/_C.so" in names
    assert "genimg_fast/py.typed" in names
    assert not [n for n in names if n.startswith(("tests", "benchmarks", "csrc"))]
    where = tmp_path / "installed"
    pip("install", "--no-deps", "--target", where, wheel)
    result = run_installed(where, "native")
    assert result.returncode == 0, result.stderr
    assert str(where) in result.stdout
    assert "_BatchNormActBackward" in result.stdout
    # Nothing of Python, of libtorch_python or of libtorch_cuda: these would tie it to one version or build.
    needed = subprocess.run(["readelf", "-d", where / "genimg_fast" / "_C.so"], capture_output=True, text=True)
    libraries = [line.split("[")[1].rstrip("]") for line in needed.stdout.splitlines() if "(NEEDED)" in line]
    assert not [name for name in libraries if "python" in name or "cuda" in name], libraries


@pytest.mark.skipif(torch.version.cuda is None or shutil.which("nvcc") is None, reason="needs CUDA torch and nvcc")
def test_cuda_kernels_are_in_the_build():
    import genimg_fast as gf

    assert "sm_90" in gf.info().build["architectures"]
    assert gf._native.has_kernel("batch_norm_act_train", "cuda")
