import errno
import fcntl
import io
import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from trainers import make

import genimg_fast as gf
from genimg_fast.training import RunFolder, fit, load_checkpoint


@pytest.mark.parametrize(
    "name", ["cats [v2]", "*", "$x_$", "a/b\nc\0", "k\udce4se", "\u00e4" * 300, "-rf"], ids=ascii
)
def test_any_name_is_a_run(name: str, tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, name, {"data": name})
    assert RunFolder.latest(tmp_path, name) is None
    run.save_checkpoint({"model": {}, "config": run.config, "step": 1})
    assert RunFolder.latest(tmp_path, name) == run.path
    assert RunFolder.latest(tmp_path, f"{name[:9]}?") is None
    assert RunFolder.reopen(run.path, run.config).config == {"data": name}
    assert json.loads((run.path / "config.json").read_text()) == {"data": name}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run.plot([{"step": 1, "loss": 2.0}], [["loss"]])


def test_runs_are_numbered(tmp_path: Path) -> None:
    names = [RunFolder.create(tmp_path, name, {}).path.name for name in ("a", "b", "a")]
    assert names == ["00000-a", "00001-b", "00002-a"]
    (tmp_path / "00041-x").mkdir()
    (tmp_path / "other").mkdir()
    assert RunFolder.create(tmp_path, "c", {}).path.name == "00042-c"


@pytest.mark.parametrize(
    "name",
    [
        "00000-film.mp4",
        "00000-film",
        "00000-film.mp4/checkpoint.pt",
        "00000-film.mp4/checkpoint",
        "00001-dcgan.mp4",
    ],
)
def test_a_run_is_found_with_and_without_an_ending(name: str, tmp_path: Path) -> None:
    for run in ("00000-film.mp4", "00001-dcgan"):
        RunFolder.create(tmp_path, run[6:], {"run": run}).save_checkpoint(
            {"model": {}, "config": {"run": run}, "step": 1}
        )
    config = load_checkpoint(tmp_path / name)["config"]
    assert config["run"][:5] == name[:5]
    assert RunFolder.reopen(tmp_path / name, config).path == tmp_path / config["run"]


def test_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder.create(tmp_path, "atomic", {})
    run.save_checkpoint({"model": {}, "config": {}, "step": 1})

    def fail(state: object, file: object) -> None:
        file.write(b"half of a")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        run.save_checkpoint({"model": {}, "config": {}, "step": 2})
    assert load_checkpoint(run.path)["step"] == 1
    assert {f.name for f in run.path.iterdir()} == {"config.json", "checkpoint.pt"}


def test_a_full_disk_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder.create(tmp_path, "full", {})
    monkeypatch.setattr("builtins.open", lambda *_, **__: io.FileIO("/dev/full", "w"))
    with pytest.raises(OSError, match=r"cannot write .*checkpoint\.pt: No space left on device"):
        run.save_checkpoint({"model": {"weight": torch.zeros(9000)}, "config": {}, "step": 2})


def test_latest_run(tmp_path: Path) -> None:
    assert RunFolder.latest(tmp_path / "none", "a") is None
    folders = [RunFolder.create(tmp_path, name, {}).path for name in ("a", "b", "a", "a", "b-a")]
    for folder in folders[:3]:
        (folder / "checkpoint.pt").touch()
    assert RunFolder.latest(tmp_path, "a") == folders[2]
    for number in (99999, 100000):
        (tmp_path / f"{number}-a").mkdir()
        (tmp_path / f"{number}-a" / "checkpoint.pt").touch()
    assert RunFolder.latest(tmp_path, "a") == tmp_path / "100000-a"


def test_one_process_at_a_time_trains_in_a_folder(digits: gf.data.ImageDataset, tmp_path: Path) -> None:
    """A process that is killed leaves no lock: see the next test."""
    run = RunFolder.create(tmp_path, "dcgan", {})
    with run.locked():
        with pytest.raises(BlockingIOError, match=rf"another process \(PID {os.getpid()} on .*\) is training in"):
            fit(make("dcgan"), digits, steps=1, batch_size=8, run=run)
        assert {f.name for f in run.path.iterdir()} == {"config.json", ".lock"}
    fit(make("dcgan"), digits, steps=1, batch_size=8, run=run)


def test_a_file_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.warns(UserWarning, match="cannot keep other processes from training in .*: .*No locks available"),
        RunFolder.create(tmp_path, "dcgan", {}).locked(),
    ):
        pass


def test_damaged_statistics_are_left_out(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "dcgan", {})
    rows = b'{"step": 1}\n[1]\n\xff\0\n{"loss": 1}\n{"step": "2"}\n{"step": 2}\n{"step": 4}\n{"step'
    (run.path / "stats.jsonl").write_bytes(rows)
    with pytest.warns(UserWarning, match=r"stats\.jsonl: 4 damaged lines left out"):
        assert run.rows_until(3) == [{"step": 1}, {"step": 2}]
    assert (run.path / "stats.jsonl").read_bytes() == b'{"step": 1}\n{"step": 2}\n'
