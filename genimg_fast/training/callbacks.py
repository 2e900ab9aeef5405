"""Hooks of a training, and ready ones for TensorBoard, Weights & Biases and MLflow."""

import importlib.util
import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from torch import Tensor

from genimg_fast.data.optional import optional_import
from genimg_fast.training.processes import raised_in_all, rank
from genimg_fast.training.run import RunFolder, flat_settings

Status = Literal["finished", "interrupted", "failed"]


class Callback:
    """What :func:`fit` tells of a training. A subclass writes the methods that it wants; the others do nothing.

    What cannot start ends the training before its first step; an exception of another method is a warning. Of
    several processes, the first one calls.

    Example:
        >>> import genimg_fast as gf
        >>> class Best(gf.training.Callback):
        ...     value = float("inf")
        ...
        ...     def on_row(self, row):
        ...         self.value = min(self.value, row["loss"])
        >>> best = Best()
        >>> trainer = gf.training.VAETrainer(gf.models.VAE(c_dim=1, channels=4, n_blocks=1))
        >>> data = gf.data.load_dataset("digits", image_size=8)
        >>> history = gf.training.fit(trainer, data, steps=4, log_every=2, callbacks=[best])
        >>> best.value == min(row["loss"] for row in history)
        True
    """

    def on_start(self, run: RunFolder | None, step: int) -> None:
        """Hear that training begins, with ``step`` steps behind it; a run has a ``path`` and a ``config``."""

    def on_step(self, step: int, values: Mapping[str, Tensor]) -> None:
        """Hear what a step returned, from step 1 on. To look at the values makes the processor wait for a GPU."""

    def on_row(self, row: Mapping[str, float]) -> None:
        """Hear a row of statistics; its ``step`` is the number of the step."""

    def on_pictures(self, step: int, paths: Sequence[Path]) -> None:
        """Hear that pictures were written to a run folder."""

    def on_checkpoint(self, step: int, path: Path) -> None:
        """Hear that a checkpoint was written to a run folder. The next one will replace it."""

    def on_end(self, status: Status) -> None:
        """Hear that training has come to its end: finished, interrupted by a signal, or failed."""


class TensorBoardLogger(Callback):
    """Write the rows of statistics for TensorBoard, into the run folder.

    Resumed, the part of a run that was lost is dropped from the curves.

    Args:
        folder: Where to write instead.

    Raises:
        ImportError: If TensorBoard is missing.

    Example:
        >>> import genimg_fast as gf
        >>> try:
        ...     callbacks = [gf.training.TensorBoardLogger("logs")]
        ... except ImportError:
        ...     callbacks = []
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = folder
        self._writer: Any = None
        self._make_writer = optional_import("torch.utils.tensorboard", "tensorboard").SummaryWriter

    def on_start(self, run: RunFolder | None, step: int) -> None:
        """Open the file.

        Raises:
            ValueError: If there is neither a folder nor a run.
        """
        folder = self.folder or (run and run.path)
        if folder is None:
            raise ValueError("folder must be given where there is no run folder")
        self._writer = self._make_writer(str(folder), purge_step=step + 1 if step > 0 else None)

    def on_row(self, row: Mapping[str, float]) -> None:
        """Write a row."""
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(row["step"]))
        self._writer.flush()

    def on_end(self, status: Status) -> None:
        """Close the file."""
        self._writer.close()


class WandbLogger(Callback):
    """Send settings, rows of statistics and pictures to Weights & Biases: https://docs.wandb.ai.

    What goes where is decided as in every program: ``wandb login``, ``WANDB_MODE=offline``, ``WANDB_PROJECT`` and
    so on. A run that is resumed goes on under its old number.

    Args:
        project: The project; by default that of ``WANDB_PROJECT``, else "genimg_fast".

    Raises:
        ImportError: If wandb is missing.

    Example:
        >>> import os, genimg_fast as gf
        >>> os.environ["WANDB_MODE"] = "offline"
        >>> try:
        ...     callbacks = [gf.training.WandbLogger()]
        ... except ImportError:
        ...     callbacks = []
    """

    def __init__(self, project: str | None = None) -> None:
        self.project = project or os.environ.get("WANDB_PROJECT", "genimg_fast")
        self._wandb: Any = optional_import("wandb", "wandb")
        self._run: Any = None

    def on_start(self, run: RunFolder | None, step: int) -> None:
        """Begin a run."""
        options: dict[str, Any] = {"project": self.project, "reinit": "create_new"}
        if run is not None:
            number = _number_of(run, "wandb", lambda: uuid.uuid4().hex[:8])
            options |= {"dir": str(run.path), "name": run.path.name, "config": run.config, "id": number}
            options |= {"resume": "allow"}
        self._run = self._wandb.init(**options)

    def on_row(self, row: Mapping[str, float]) -> None:
        """Send a row."""
        self._run.log({name: value for name, value in row.items() if name != "step"}, step=int(row["step"]))

    def on_pictures(self, step: int, paths: Sequence[Path]) -> None:
        """Send pictures."""
        kinds = {".gif": self._wandb.Video, ".png": self._wandb.Image}
        shown = {_title(path, step): kinds[path.suffix](str(path)) for path in paths if path.suffix in kinds}
        self._run.log(shown, step=step)

    def on_end(self, status: Status) -> None:
        """End the run."""
        self._run.finish(exit_code=0 if status == "finished" else 1)


class MLflowLogger(Callback):
    """Send settings, rows of statistics and pictures to MLflow: https://mlflow.org/docs.

    A run that is resumed goes on under its old number.

    Args:
        experiment: The experiment, made if it is missing; by default that of ``MLFLOW_EXPERIMENT_NAME``, else
            "genimg_fast".
        tracking_uri: Server, database or folder; by default MLflow's own, ``MLFLOW_TRACKING_URI``, or else, where
            the packages of its default, a database, are missing, the folder ``mlruns``.

    Raises:
        ImportError: If mlflow is missing.

    Example:
        >>> import genimg_fast as gf
        >>> try:
        ...     callbacks = [gf.training.MLflowLogger(tracking_uri="http://localhost:5000")]
        ... except ImportError:
        ...     callbacks = []
    """

    def __init__(self, experiment: str | None = None, *, tracking_uri: str | None = None) -> None:
        self.experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME", "genimg_fast")
        self._mlflow: Any = optional_import("mlflow", "mlflow")
        if tracking_uri is None and not self._mlflow.is_tracking_uri_set():
            tracking_uri = "mlruns" if importlib.util.find_spec("sqlalchemy") is None else None
        self.tracking_uri = tracking_uri or self._mlflow.get_tracking_uri()
        self._client: Any = None
        self._number = ""

    def on_start(self, run: RunFolder | None, step: int) -> None:
        """Begin a run."""
        if urlsplit(self.tracking_uri).scheme in ("", "file"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # without it, MLflow refuses folders
        self._client = self._mlflow.MlflowClient(self.tracking_uri)

        def begin() -> str:
            found = self._client.get_experiment_by_name(self.experiment)
            experiment = self._client.create_experiment(self.experiment) if found is None else found.experiment_id
            return self._client.create_run(experiment, run_name=run and run.path.name).info.run_id

        if run is None:
            self._number = begin()
            return
        self._number = _number_of(run, "mlflow", begin)
        if step > 0:
            self._client.update_run(self._number, status="RUNNING")
        else:
            param, most = self._mlflow.entities.Param, 500  # letters, of the oldest servers
            params = [param(name, str(value)[:most]) for name, value in flat_settings(run.config).items()]
            for first in range(0, len(params), 100):  # no more at once
                self._client.log_batch(self._number, params=params[first : first + 100])

    def on_row(self, row: Mapping[str, float]) -> None:
        """Send a row."""
        now, step = int(time.time() * 1000), int(row["step"])
        values = {name: value for name, value in row.items() if name != "step"}
        metrics = [self._mlflow.entities.Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._number, metrics=metrics)

    def on_pictures(self, step: int, paths: Sequence[Path]) -> None:
        """Send pictures."""
        for path in paths:
            self._client.log_artifact(self._number, str(path), "pictures")

    def on_end(self, status: Status) -> None:
        """End the run."""
        statuses = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
        self._client.set_terminated(self._number, statuses[status])


@contextmanager
def calling(callbacks: Sequence[Callback], run: RunFolder | None, step: int) -> Iterator[Callable[..., None]]:
    """Start callbacks, and end them; what they raise in between is a warning.

    Yields:
        What calls a method of all of them: its name, and its arguments.

    Raises:
        OSError: If one cannot start.
    """
    started: list[Callback] = []

    def call(method: str, *arguments: Any) -> None:
        for callback in started:
            _call(callback, method, *arguments)

    status: Status = "failed"
    try:
        with raised_in_all():
            for callback in callbacks if rank() == 0 else []:
                try:
                    callback.on_start(run, step)
                except Exception as error:  # whatever it is
                    name = type(callback).__name__
                    raise OSError(f"{name} cannot start: {type(error).__name__}: {error}") from error
                started.append(callback)
        yield call
        status = "finished"
    except (KeyboardInterrupt, SystemExit):
        status = "interrupted"
        raise
    finally:
        call("on_end", status)


def _call(callback: Callback, method: str, *arguments: Any) -> None:
    try:
        getattr(callback, method)(*arguments)
    except Exception as error:  # whatever it is, the training is worth more
        name = f"{type(callback).__name__}.{method}"
        warnings.warn(f"{name} failed: {type(error).__name__}: {error}", stacklevel=4)


def _number_of(run: RunFolder, service: str, make: Callable[[], str]) -> str:
    """Get the number that a run has with a service: what the folder says, or a new one, which goes there."""
    file = run.path / f".{service}-id"
    if file.is_file():
        return file.read_text().strip()
    number = make()
    file.write_text(number + "\n")
    return number


def _title(path: Path, step: int) -> str:
    """Name of a picture without its step, to be shown over the steps."""
    return path.stem.removesuffix(f"-{step:06d}")
