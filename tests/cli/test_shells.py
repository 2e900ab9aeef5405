import subprocess
from pathlib import Path

import pytest

from genimg_fast.cli import main


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sam"], "sample"),
        (["edit", "re"], "retime"),
        (["sample", "--cl"], "--class"),
        (["interpolate", "runs", "--mode", "s"], "spherical"),
        (["export", "run"], "runs"),
        (["sample", "runs", "--out", "gri"], "grid.png"),
    ],
)
def test_bash_completes(
    words: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "grid.png").touch()
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    ask = f"source ./script; COMP_WORDS=(genimg-fast {' '.join(words)}); COMP_CWORD={len(words)}"
    command = ["bash", "-c", f"{ask}; _shtab_genimg_fast 2>/dev/null; echo ${{COMPREPLY[@]}}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [expected]


def test_zsh(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("#compdef genimg-fast")
