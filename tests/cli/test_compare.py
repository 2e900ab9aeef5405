import json
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image

from genimg_fast.cli import main
from genimg_fast.training import RunFolder, save_grid


def make_run(out: Path, name: str, config: dict, rows: list[dict], report: dict | None = None) -> Path:
    run = RunFolder.create(out, name, config)
    for row in rows:
        run.log(row)
    if report is not None:
        (run.path / "eval.json").write_text(json.dumps(report))
    for step, level in ((5, -1.0), (10, 1.0)):
        save_grid(torch.full((1, 1, 8, 8), level), run.path / f"samples-{step:06}.png")
    return run.path


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("runs")
    report = {"network": "n", "frechet_distance": 3.0, "frechet_distance_real": 1.0,
              "intervals": {"frechet_distance": [2.0, 4.0]}}  # fmt: skip
    vae = [{"step": 5, "loss": 3.0, "val_loss": 4.0, "memory_mb": 9.0}, {"step": 10, "loss": 2.0}]
    return [
        make_run(out, "vae-a", {"model": "vae", "lr": 1e-3, "recipe": {"ema": 0.9}}, vae, report),
        make_run(out, "vae-b", {"model": "vae", "lr": 2e-3, "recipe": {"ema": 0.9}}, vae),
        make_run(out, "gan", {"model": "gan", "lr": 1e-3, "gp": 10}, [{"step": 5, "loss_d": 1.0}]),
    ]  # fmt: skip


def test_runs_of_one_model(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "comparison.png"
    assert main(["compare", *map(str, runs[:2]), "--out", str(picture)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["00000-vae-a", "00001-vae-b"],
        ["lr", "0.001", "0.002"],
        [str(picture)],
    ]
    with Image.open(picture) as opened:
        pixels = numpy.asarray(opened.convert("RGB"))
    blue, orange = ((pixels == colour).all(2).sum() for colour in ((31, 119, 180), (255, 127, 14)))
    assert min(blue, orange) > 500  # lines of both


def test_runs_of_different_models(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *map(str, runs), "--out", str(tmp_path / "comparison.png")]) == 0
    rows = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[1:-1]}
    assert rows == {
        "model": ["vae", "vae", "gan"], "lr": ["0.001", "0.002", "0.001"], "recipe.ema": ["0.9", "0.9", "-"],
        "gp": ["-", "-", "10"],
    }  # fmt: skip


def test_panels(runs: list[Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn = []
    figure = pytest.importorskip("matplotlib.figure").Figure
    monkeypatch.setattr(figure, "savefig", lambda self, path, **options: drawn.append(self))
    assert main(["compare", *map(str, runs), "--out", str(tmp_path / "comparison.png")]) == 0
    (page,) = drawn
    axes = {axes.get_title(): axes for part in page.subfigs for axes in part.axes}
    title = "Fréchet distance (lower is better)"
    assert {"loss (dashed: of held-out data)", "loss_d", title, "samples-000010.png"} <= axes.keys()
    assert "memory_mb" not in axes
    assert [line.get_ydata().tolist() for line in axes["loss_d"].lines] == [[1.0]]
    assert len(axes["loss (dashed: of held-out data)"].lines) == 4
    assert [line.get_marker() for line in axes["loss_d"].lines] == ["."]  # a line of one point does not show
    assert [text.get_text() for text in axes[title].texts] == ["not judged", "not judged"]
    interval = axes[title].containers[0]
    assert (interval.has_xerr, interval.lines[0].get_xdata().tolist()) == (True, [3.0])


def test_runs_of_one_name_go_by_their_paths(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_run(tmp_path, "vae-a", {"model": "vae", "lr": 5}, [])
    assert main(["compare", str(runs[0]), str(other), "--out", str(tmp_path / "comparison.png")]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == [str(runs[0]), str(other)]


def test_steps_are_those_trained_for_and_colours_do_not_repeat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make_run(tmp_path, f"run-{k}", {"steps": 5}, [{"step": 5 + (k == 0), "loss": 1.0}]) for k in range(12)]
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *map(str, runs), "--out", "all"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [lines[1].split(), lines[-1]] == [["steps", "6", *["5"] * 11], "all.png"]
    with Image.open("all.png") as opened:
        pixels = opened.convert("RGB").crop((0, 0, opened.width, opened.height // 4))  # the legend
    assert sum(n > 20 for n, colour in pixels.getcolors(1 << 20) if max(colour) - min(colour) > 30) >= 12


def test_bad_use_gives_one_line(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damaged = make_run(tmp_path, "damaged", {}, [])
    (damaged / "eval.json").write_text("{")
    no_picture = make_run(tmp_path, "no-picture", {}, [])
    (no_picture / "samples-000010.png").write_bytes(b"no picture")
    for flags, message in (
        ([runs[0]], "argument RUN: must be two runs or more, got 1"),
        ([runs[0], tmp_path / "none"], "argument RUN: no checkpoint at "),
        ([runs[0], damaged], f"argument RUN: {damaged / 'eval.json'} is damaged: "),
        ([runs[0], no_picture], "samples-000010.png is damaged: "),
        ([*runs, "--out", tmp_path / "missing" / "a.png"], "argument --out: "),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["compare", *map(str, flags)])
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
