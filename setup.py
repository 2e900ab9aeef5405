"""Builds genimg_fast/_C.so: one library on LibTorch's stable ABI, without the Python C API.

GENIMG_FAST_SKIP_CUDA=1 leaves the CUDA kernels out, GENIMG_FAST_FORCE_CUDA=1 insists on them;
TORCH_CUDA_ARCH_LIST, CXX and MAX_JOBS are honoured.  Everything else is in pyproject.toml.
"""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import time
from glob import glob
from pathlib import Path

import setuptools

# Code for 8.0 runs on 8.x, and so on.  9.0's PTX serves what lies between (11.0) and what is newer than this list.
DEFAULT_ARCHS = "7.5;8.0;9.0+PTX;10.0;12.0"
DEFINES = [("TORCH_TARGET_VERSION", "0x020b000000000000ULL")]  # LibTorch's stable ABI as of 2.11
# Python's own flags may ask for debug information (-g), which would be nine tenths of the library.
CXX_FLAGS = ["-O3", "-std=c++17", "-g0", "-fvisibility=hidden", "-fno-math-errno", "-Wall", "-Wextra"]
LINK_FLAGS = ["-Wl,--strip-all"]
# nvcc's defaults for device code are fmad and -O3. Its host code chooses and launches kernels, once a call, and is
# compiled to be small. What -Xptxas -v says of registers and spills goes to the build log.
NVCC_FLAGS = ["-std=c++17", "-Xcompiler=-Os,-fvisibility=hidden,-g0", "-Xptxas=-v"]


def flag(name):
    return os.environ.get(name, "").lower() in {"1", "true", "yes", "on"}


def say(line):
    print(f"genimg_fast: {line}", file=sys.stderr, flush=True)


def require(package):
    """Stop with one sentence if the environment lacks the version that pyproject.toml requires for the build."""
    oldest = re.search(rf'"{package}>=([0-9.]+)"', Path("pyproject.toml").read_text())[1]
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        version = "none"
    numbers = [[int(n) for n in re.findall(r"\d+", v)[:2]] for v in (version, oldest)]
    if numbers[0] < numbers[1]:
        raise SystemExit(
            f"genimg_fast: needs {package} >= {oldest} to build, and this environment has {version}: "
            f'pip install "{package}>={oldest}"'
        )


def find_compiler():
    return shutil.which(os.environ.get("CXX", "c++")) or shutil.which("g++")


def find_nvcc():
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or "/usr/local/cuda"
    beside = Path(home, "bin", "nvcc")
    found = shutil.which("nvcc")
    return str(beside) if beside.exists() else found


def ask_nvcc(option):
    return subprocess.run([find_nvcc(), option], capture_output=True, text=True).stdout


def architectures():
    """The default ones that this nvcc knows; without 9.0, PTX is that of the newest."""
    known = {int(number) for number in re.findall(r"compute_(\d+)\b", ask_nvcc("--list-gpu-arch"))}
    wanted = DEFAULT_ARCHS.split(";")
    archs = ";".join(a for a in wanted if int(a.removesuffix("+PTX").replace(".", "")) in known) or DEFAULT_ARCHS
    return archs if "+PTX" in archs else f"{archs}+PTX"


def compression():
    """The flag for device code of a fifth of the size; the first, since nvcc 12.8, needs a driver of CUDA 12.4."""
    return "--compress-mode=size" if "--compress-mode" in ask_nvcc("--help") else "-Xfatbin=-compress-all"


def wants_cuda(torch):
    if flag("GENIMG_FAST_SKIP_CUDA"):
        return False
    nvcc = find_nvcc()
    if flag("GENIMG_FAST_FORCE_CUDA"):
        if nvcc is None:
            raise SystemExit("genimg_fast: GENIMG_FAST_FORCE_CUDA=1, but nvcc was not found; set CUDA_HOME")
        return True
    if torch.version.cuda is None:
        say("torch is a CPU build: building the CPU kernels only (GENIMG_FAST_FORCE_CUDA=1 builds both)")
        return False
    if nvcc is None:
        say("nvcc not found: building the CPU kernels only (set CUDA_HOME to build both)")
        return False
    return True


def cuda_extension(torch, cpp_extension, sources):
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", architectures())
    home = str(Path(find_nvcc()).resolve().parents[1])
    if torch.version.cuda is None:
        # The .cu files include no torch header, so a CPU build of torch can compile them as well; cpp_extension
        # only has to believe that the versions match.
        torch.version.cuda = re.search(r"release ([0-9.]+)", ask_nvcc("--version"))[1]
    cpp_extension.CUDA_HOME = home
    extension = cpp_extension.CUDAExtension(
        "genimg_fast._C",
        sources + sorted(glob("csrc/cuda/*.cpp")) + sorted(glob("csrc/cuda/*.cu")),
        include_dirs=[str(Path("csrc").resolve())],
        define_macros=DEFINES,
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": [*NVCC_FLAGS, compression()]},
        extra_link_args=LINK_FLAGS,
        py_limited_api=True,
    )
    # A reference to libtorch_cuda would keep the library from loading into CPU builds of torch.
    unwanted = {"cudart", "c10_cuda", "torch_cuda", "c10_hip", "torch_hip"}
    extension.libraries = [name for name in extension.libraries if name not in unwanted]
    extension.libraries += ["cudart_static", "dl", "rt", "pthread"]
    return extension


def extensions():
    if find_compiler() is None:
        say("no C++ compiler found: installing without compiled kernels, everything runs on plain PyTorch")
        return [], {}
    require("torch")
    import torch
    from torch.utils import cpp_extension

    sources = ["csrc/library.cpp", "csrc/recurrent.cpp", *sorted(glob("csrc/cpu/*.cpp"))]
    if wants_cuda(torch):
        extension = cuda_extension(torch, cpp_extension, sources)
    else:
        extension = cpp_extension.CppExtension(
            "genimg_fast._C",
            sources,
            include_dirs=[str(Path("csrc").resolve())],
            define_macros=DEFINES,
            extra_compile_args={"cxx": CXX_FLAGS},
            extra_link_args=LINK_FLAGS,
            py_limited_api=True,
        )
    return [extension], {"build_ext": build_command(cpp_extension)}


def build_command(cpp_extension):
    class TimedBuild(cpp_extension.BuildExtension.with_options(no_python_abi_suffix=True)):
        def build_extensions(self):
            started = time.monotonic()
            super().build_extensions()
            seconds = time.monotonic() - started
            (extension,) = self.extensions
            size = Path(self.get_ext_fullpath(extension.name)).stat().st_size
            with_cuda = any(source.endswith(".cu") for source in extension.sources)
            archs = os.environ["TORCH_CUDA_ARCH_LIST"] if with_cuda else "none"
            say(f"built {size / 1e6:.1f} MB in {seconds:.0f} s, CUDA architectures {archs}")

    return TimedBuild


def wheel_command():
    from setuptools.command.bdist_wheel import bdist_wheel  # not in old versions

    class WheelForEveryPython(bdist_wheel):
        """The library does not touch Python's C API: one wheel serves every Python 3 on this platform."""

        def get_tag(self):
            return "py3", "none", super().get_tag()[2]

    return WheelForEveryPython


# Before setup() reads pyproject.toml, in which an old version does not know the form of the license.
require("setuptools")
ext_modules, commands = extensions()
setuptools.setup(ext_modules=ext_modules, cmdclass={**commands, "bdist_wheel": wheel_command()})
