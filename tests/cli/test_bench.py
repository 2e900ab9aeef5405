import json
import time
from pathlib import Path

import pytest

from genimg_fast.bench import load
from genimg_fast.bench.catalog import all_entries
from genimg_fast.bench.entries import choose
from genimg_fast.cli import main

MINE = """
import torch, torch.nn.functional as F
import genimg_fast as gf

def right():
    x = torch.randn(64, 64, requires_grad=True)
    return gf.bench.Case({"mine": lambda x: x * torch.sigmoid(x), "eager": F.silu}, (x,), compiled=False)

def wrong():
    x = torch.randn(64, 64)
    cases = {"wrong": gf.bench.Case({"mine": F.gelu, "eager": F.silu}, (x,), passes=("forward",), compiled=False)}
    return {**cases, "right": right()}

def number():
    return 3

def careless():
    x = torch.randn(4, 3)
    return x @ x

def several():
    import os, sys, time
    if "worker" in sys.argv[0] and os.fork() == 0:  # a child that holds everything open
        time.sleep(60)
        os._exit(0)
    x = torch.randn(8, 8)
    return {
        "raises": gf.bench.Case({"mine": lambda x: 1 / 0, "eager": F.silu}, (x,), compiled=False),
        "broken": gf.bench.Case({"mine": F.silu, "eager": lambda x: x @ x[:3]}, (x,), compiled=False),
        "whole": gf.bench.Case({"mine": F.silu, "eager": F.silu}, (x,), compiled=False),
    }
"""


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(MINE)
    Path(f"{file}.broken.py").write_text("import torch\nx = (1\n")
    return file


def test_own_code_is_measured_compared_and_drawn(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: tmp_path / f"x.{name}" for name in ("json", "csv", "svg")}
    flags = [f"--{n if n != 'svg' else 'plot'}={file}" for n, file in files.items()]
    assert main(["bench", f"{mine}:right", "--processes", "2", *flags]) == 0
    out = capsys.readouterr().out
    assert "right" in out
    assert "slowest case" in out
    assert all(file.stat().st_size > 0 for file in files.values())
    (forward, both) = load(files["json"]).rows
    assert (forward.pass_, both.pass_, forward.judged) == ("forward", "both", "mine")
    assert set(forward.seconds) == {"warm", "cold", "fresh"}
    assert len(forward.seconds["warm"]["eager"]) == 2  # processes
    assert main(["bench", "compare", str(files["json"]), str(files["json"])]) == 0
    assert "right, both" in capsys.readouterr().out
    files["svg"].unlink()
    assert main(["bench", "show", str(files["json"]), f"--plot={files['svg']}"]) == 0
    shown = capsys.readouterr()
    assert "| right | forward |" in shown.out
    assert str(files["svg"]) in shown.err.splitlines()
    assert str(files["svg"]) not in shown.out.splitlines()  # which is Markdown
    assert files["svg"].stat().st_size > 0


def test_what_is_wrong_has_no_figure_and_fails(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--processes", "1", "--out", str(tmp_path / "results")]
    assert main(["bench", f"{mine}:wrong", *flags]) == 1
    out = capsys.readouterr().out
    assert "WRONG, no figure: wrong, forward: mine: results[0] of inputs differ from float64" in out
    (file,) = (tmp_path / "results").iterdir()
    rows = json.loads(file.read_text())["rows"]
    assert [bool(row["seconds"]) for row in rows] == [False, True, True]


def test_a_case_that_fails_stops_no_other_one(
    mine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(mine.parent)
    flags = ["--processes", "1", "--time-limit", "0.3", "--json", str(tmp_path / "x.json")]
    started = time.monotonic()
    assert main(["bench", "mine.py:several", *flags]) == 1
    assert time.monotonic() - started < 45
    out = capsys.readouterr().out
    assert f"mine does not run: ZeroDivisionError: division by zero ({mine}:" in out
    assert "broken, forward: RuntimeError: mat1 and mat2 shapes" in out
    rows = load(tmp_path / "x.json").rows
    assert [(row.key, bool(row.seconds)) for row in rows] == [
        ("raises, forward", False), ("broken, forward", False), ("whole, forward", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing"], "argument WHAT: must be ops, models, all or FILE.py:FUNCTION, got 'nothing'"),
        (["none.py:f"], "argument WHAT: must be FILE.py:FUNCTION; there is no file 'none.py'"),
        (["{mine}:rihgt"], "has no function 'rihgt'; did you mean right?"),
        (["{mine}:careless"], "WHAT: must run without an error, but careless raises RuntimeError: mat1 and mat2"),
        (["{mine}:careless"], "(4x3 and 4x3) ({mine}:19)"),
        (["{mine}.broken.py:f"], "broken.py raises SyntaxError: '(' was never closed ({mine}.broken.py:2)"),
        (["{mine}:number"], "argument WHAT: must return a gf.bench.Case"),
        (["ops", "--filter", "no-such-case"], "argument --filter: must leave a case; none has 'no-such-case'"),
        (["ops", "--filter", "2x8", "--base", "no-such-revision"], "argument --base: must be a revision"),
        (
            ["ops", "--peers", "comple"],
            "must be of inplace, compile-float32, diffusers, liger, compile, graph, or none, got 'comple'",
        ),
        (["ops", "--base", "HEAD", "--plot", "x.svg"], "argument --plot: cannot go with --base"),
        (["ops", "--base", "HEAD", "--peers", "compile"], "argument --peers: cannot go with --base"),
        (["ops", "--plot", "x.docx"], "argument --plot: must end in .svg, .png or .pdf"),
        (["ops", "--plot", "no/x.svg"], "argument --plot: must be in a folder that exists"),
        (["ops", "--json", "no/x.json"], "argument --json: must be in a folder that exists, which no does not"),
        (["ops", "--csv", "{folder}"], "argument --csv: must be a file, and {folder} is a folder"),
        (["ops", "--out", "{mine}"], "argument --out: [Errno 17] File exists"),
        (["ops", "--passes", "step"], "argument --passes: must leave a case; none of those chosen has step"),
        (["compare", "{mine}", "{mine}"], "argument FIRST: must be a result of genimg-fast bench"),
        (["show", "{mine}.gone"], "No such file"),
    ],
)
def test_what_is_wrong_with_arguments_is_said(
    mine: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["bench", *(argument.format(mine=mine, folder=mine.parent) for argument in arguments)])
    assert stopped.value.code == 2
    assert words.format(mine=mine, folder=mine.parent) in " ".join(capsys.readouterr().err.split())


def test_a_limit_that_does_not_suffice_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "ops", "--filter", "reparameterize_kl 16x8", "--time-limit", "0.001"]) == 1
    assert "nothing was measured: 0.001 minutes do not suffice" in capsys.readouterr().out


def test_names_are_of_one_case_each_and_the_short_list_holds_every_operator() -> None:
    entries = all_entries()
    assert len({entry.name for entry in entries}) == len(entries)
    short = choose(entries, "ops")
    families = {entry.name.split()[0] for entry in choose(entries, "ops", [""])}
    assert {entry.name.split()[0] for entry in short} == families
    assert all("bfloat16" in e.name for e in choose(entries, "ops", ["batch_norm_act"], ["bfloat16"]))
