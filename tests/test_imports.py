"""Imports in the package run one way: no part imports one from above it, and none imports the package's top."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import genimg_fast

PACKAGE = Path(genimg_fast.__file__).parent
# From the bottom up.  A module or folder of the package imports those in the lines before its own, and itself.
LAYERS = (
    ("_close_names", "_evaluating", "_files", "_images", "_native", "_program", "_version", "options"),
    ("_signatures",),
    ("ops",),
    ("nn",),
    ("_fold", "_fuse", "_info"),
    ("data", "losses"),
    ("models",),
    ("training",),
    ("bench", "editing", "metrics"),
    ("cli",),
    ("__main__",),
)
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}
# What these parts do not need; elsewhere it is imported where it is used.
HEAVY = {"matplotlib", "scipy", "skimage", "sklearn", "tensorboard", "torchvision"}
LIGHT = {"ops", "nn", "losses", "models"}


def imports(tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """Line, module and name of every import, those in functions and under TYPE_CHECKING included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((node.lineno, node.module or "", alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", getattr(node.func, "attr", "")) in {
            "import_module",
            "optional_import",
        }:
            yield from ((node.lineno, arg.value, "") for arg in node.args[:1] if isinstance(arg, ast.Constant))


def violations(package: Path) -> list[str]:
    """What is wrong with the imports of a package, a line each: file, line number and what it must not import."""
    name, found = package.name, []
    files = {path: path.relative_to(package.parent).with_suffix("") for path in sorted(package.rglob("*.py"))}
    modules = {".".join(parts.parts).removesuffix(".__init__"): path for path, parts in files.items()}
    graph: dict[str, set[str]] = {module: set() for module in modules}
    for module, path in modules.items():
        part = module.partition(".")[2].partition(".")[0]  # "" is the package's top
        if part and part not in LEVEL:
            found.append(f"{path}:1: {part} is not in LAYERS")
            continue
        for line, target, attribute in imports(ast.parse(path.read_text())):
            if part in LIGHT and HEAVY & {*target.split("."), attribute}:
                found.append(f"{path}:{line}: {part} does without {target}")
            if target.partition(".")[0] != name:
                continue
            target = next(t for t in (f"{target}.{attribute}", target, name) if t in modules)
            if target == name:
                found.append(f"{path}:{line}: imports the package's top")
                continue
            graph[module].add(target)
            other = target.split(".")[1]
            if part not in {"", other} and LEVEL.get(other, -1) >= LEVEL[part]:
                found.append(f"{path}:{line}: {part} is not above {other}")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        found.append(f"{package}: a circle: {' -> '.join(reversed(error.args[1]))}")
    return found


def test_imports_run_one_way() -> None:
    assert violations(PACKAGE) == []


@pytest.mark.parametrize(
    ("file", "line", "complaint"),
    [
        ("ops/planted.py", "from {0}.nn import Linear", "{file}:2: ops is not above nn"),
        ("losses/planted.py", "if TYPE_CHECKING:\n    import {0}.models", "{file}:3: losses is not above models"),
        ("data/planted.py", "from {0} import losses", "{file}:2: data is not above losses"),
        ("nn/planted.py", "import {0} as gf", "{file}:2: imports the package's top"),
        ("nn/planted.py", "from {0} import fuse", "{file}:2: imports the package's top"),
        ("models/planted.py", "def f():\n    from torch.utils import tensorboard", "{file}:3: models does"),
        ("nn/planted.py", 'optional_import("torchvision.utils")', "{file}:2: nn does without torchvision.utils"),
        ("planted.py", "", "{file}:1: planted is not in LAYERS"),
        ("models/planted.py", "import {0}.models.vae", "{folder}: a circle: "),
    ],
)  # fmt: skip
def test_a_planted_import_is_found(tmp_path: Path, file: str, line: str, complaint: str) -> None:
    package = tmp_path / "planted_package"
    for module in ("", "ops", "nn", "data", "losses", "models"):
        (package / module).mkdir(exist_ok=True)
        (package / module / "__init__.py").touch()
    (package / "models" / "vae.py").write_text(f"from {package.name}.models import planted\n")
    if file != "models/planted.py":
        (package / "models" / "planted.py").touch()
    assert violations(package) == []
    planted = package / file
    planted.write_text(f"import torch\n{line.format(package.name)}\n")
    found = violations(package)
    assert len(found) == 1
    assert found[0].startswith(complaint.format(file=planted, folder=package))


def test_import_loads_nothing_heavy() -> None:
    code = (
        "import sys, genimg_fast\n"
        "print('genimg_fast.training' in sys.modules)\n"
        "import genimg_fast.cli, genimg_fast.models, genimg_fast.losses\n"
        f"print(*sorted({HEAVY | {'PIL'}!r} & {{m.split('.')[0] for m in sys.modules}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]
