import json
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from trainers import OnStep, make

import genimg_fast as gf
from genimg_fast.training import (
    Callback,
    MLflowLogger,
    NonFiniteLossError,
    RunFolder,
    TensorBoardLogger,
    WandbLogger,
    fit,
)


class Diary(Callback):
    def __init__(self) -> None:
        self.lines: list[Any] = []

    def on_start(self, run: RunFolder | None, step: int) -> None:
        self.lines.append(("start", run and run.config, step))

    def on_step(self, step: int, values: Mapping[str, torch.Tensor]) -> None:
        self.lines.append(("step", step, sorted(values)))

    def on_row(self, row: Mapping[str, float]) -> None:
        self.lines.append(("row", row["step"]))

    def on_pictures(self, step: int, paths: Sequence[Path]) -> None:
        assert all(path.is_file() for path in paths)
        self.lines.append(("pictures", step, [path.name for path in paths]))

    def on_checkpoint(self, step: int, path: Path) -> None:
        assert path.is_file()
        self.lines.append(("checkpoint", step))

    def on_end(self, status: str) -> None:
        self.lines.append(("end", status))


def test_what_is_told(digits: gf.data.ImageDataset, tmp_path: Path) -> None:
    diary, run = Diary(), RunFolder.create(tmp_path, "vae", {"lr": 1})
    options = {"batch_size": 8, "log_every": 2, "run": run, "callbacks": [diary]}
    plain = fit(make("vae"), digits, steps=3, batch_size=8, log_every=2)
    rows = fit(make("vae"), digits, steps=3, **options)
    assert [row["loss"] for row in rows] == [row["loss"] for row in plain]
    values = ["active_units", "kl", "loss", "reconstruction"]
    first = [("start", {"lr": 1}, 0), ("pictures", 0, ["real.png"])]
    steps = [("step", 1, values), ("step", 2, values), ("row", 2), ("step", 3, values), ("row", 3)]
    assert diary.lines[:-2] == [*first, *steps, ("checkpoint", 3)]
    name, step, pictures = diary.lines[-2]
    assert (name, step, sorted(pictures)) == ("pictures", 3, ["reconstructions-000003.png", "samples-000003.png"])
    assert diary.lines[-1] == ("end", "finished")
    diary.lines.clear()
    fit(make("vae"), digits, steps=4, resume=True, **options)
    assert diary.lines[0] == ("start", {"lr": 1}, 3)


def test_how_it_ends(digits: gf.data.ImageDataset) -> None:
    def stop(step: int, _: Any) -> None:
        raise KeyboardInterrupt

    def spoil(step: int, _: Any) -> None:
        next(iter(trainer.model.parameters())).data.fill_(torch.nan)

    for function, error, status in (
        (stop, KeyboardInterrupt, "interrupted"),
        (spoil, NonFiniteLossError, "failed"),
    ):
        trainer, diary = make("vae"), Diary()
        with pytest.raises(error):
            fit(trainer, digits, steps=9, batch_size=8, log_every=1, callbacks=[OnStep(function), diary])
        assert diary.lines[-1] == ("end", status)


@pytest.mark.filterwarnings("always")
def test_failures_are_warnings(digits: gf.data.ImageDataset) -> None:
    class Failing(Diary):
        def on_row(self, row: Mapping[str, float]) -> None:
            super().on_row(row)
            raise OSError("no network")

    failing = Failing()
    with pytest.warns(UserWarning, match="failed") as caught:
        rows = fit(make("vae"), digits, steps=2, batch_size=8, log_every=1, callbacks=[failing])
    assert len(rows) == 2
    told = [str(warning.message) for warning in caught]
    again = "Failing.on_row failed: OSError: no network"
    assert told == [again, again]
    assert failing.lines[-2:] == [("row", 2), ("end", "finished")]


def test_what_cannot_start_ends_the_training_before_its_first_step(digits: gf.data.ImageDataset) -> None:
    class NotStarting(Diary):
        def on_start(self, run: RunFolder | None, step: int) -> None:
            raise PermissionError("not logged in")

    started, absent, trainer = Diary(), NotStarting(), make("vae")
    with pytest.raises(OSError, match=r"^NotStarting cannot start: PermissionError: not logged in$"):
        fit(trainer, digits, steps=2, batch_size=8, callbacks=[started, absent])
    assert trainer.steps_done == 0
    assert started.lines == [("start", None, 0), ("end", "failed")]
    assert absent.lines == []  # what has not begun hears no more


def test_tensorboard(digits: gf.data.ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, float, int]] = []
    purged: list[int | None] = []

    class Writer:
        def __init__(self, folder: str, *, purge_step: int | None) -> None:
            assert folder == str(run.path)
            purged.append(purge_step)

        def add_scalar(self, *scalar: Any) -> None:
            written.append(scalar)

        def flush(self) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    run = RunFolder.create(tmp_path, "dcgan", {})
    (row,) = fit(make("dcgan"), digits, steps=2, batch_size=8, run=run, callbacks=[TensorBoardLogger()])
    assert ("loss_d", row["loss_d"], 2) in written
    assert {name for name, *_ in written} == row.keys() - {"step"}
    again = RunFolder.reopen(run.path, {})
    fit(make("dcgan"), digits, steps=3, batch_size=8, run=again, resume=True, callbacks=[TensorBoardLogger()])
    assert purged == [None, 3]  # what a lost run wrote from step 3 on is not shown


def test_wandb_offline(digits: gf.data.ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")

    for name, value in {"MODE": "offline", "SILENT": "true", "CONSOLE": "off", "DISABLE_GIT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    run = RunFolder.create(tmp_path, "vae", {"recipe": {"ema": 0.5}})
    logger = WandbLogger()
    (row,) = fit(make("vae"), digits, steps=2, batch_size=8, run=run, callbacks=[logger])
    (file,) = run.path.glob("wandb/offline-run-*/run-*.wandb")
    assert file.stem == f"run-{(run.path / '.wandb-id').read_text().strip()}"
    begun = logger._run
    assert json.dumps(row["loss"]).encode() in file.read_bytes()
    assert begun.config["recipe"] == {"ema": 0.5}
    assert begun.name == run.path.name
    media = {path.name.rpartition("_")[0] for path in file.parent.glob("files/media/images/*.png")}
    assert media == {"real_0", "samples_2", "reconstructions_2"}
    fit(make("vae"), digits, steps=3, batch_size=8, run=run, resume=True, callbacks=[logger])
    assert logger._run.id == begun.id


@pytest.mark.parametrize("named", [True, False])
def test_mlflow_in_a_folder(
    named: bool, digits: gf.data.ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_ALLOW_FILE_STORE"):
        monkeypatch.setenv(name, "")  # so that whatever the logger sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.setitem(sys.modules, "sqlalchemy", None)  # as without it, if it is there
    monkeypatch.chdir(tmp_path)
    store = (tmp_path / "mlruns").as_uri()
    run = RunFolder.create(tmp_path, "vae", {"recipe": {"ema": 0.5}, "long": "x" * 9000})
    for steps in (2, 3):
        logger = MLflowLogger("pictures", tracking_uri=store if named else None)
        rows = fit(make("vae"), digits, steps=steps, batch_size=8, run=run, resume=steps > 2, callbacks=[logger])
    client = mlflow.MlflowClient(store)
    (found,) = client.search_runs([client.get_experiment_by_name("pictures").experiment_id])
    assert (found.info.run_name, found.info.status) == (run.path.name, "FINISHED")
    assert found.data.params["recipe.ema"] == "0.5"
    history = client.get_metric_history(found.info.run_id, "loss")
    assert [(point.step, point.value) for point in history] == [(row["step"], row["loss"]) for row in rows]
    pictures = {Path(file.path).name for file in client.list_artifacts(found.info.run_id, "pictures")}
    assert {"real.png", "samples-000002.png", "samples-000003.png"} <= pictures


@pytest.mark.parametrize(("logger", "package"), [(WandbLogger, "wandb"), (MLflowLogger, "mlflow")])
def test_a_missing_package_names_the_extra(
    logger: type[Callback], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'pip install --no-build-isolation "\.\[{package}\]"'):
        logger()
