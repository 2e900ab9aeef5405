"""The folder that a training run writes, and its checkpoints."""

import json
import os
import re
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from genimg_fast._close_names import did_you_mean
from genimg_fast.data.optional import optional_import
from genimg_fast.models import BaseGAN, create_model
from genimg_fast.training.pictures import save_animation, save_grid

# Settings that a run may be resumed with in another form.
_MAY_CHANGE = {"steps", "device", "versions"}


class RunFolder:
    """A numbered folder with everything about one training run.

    It holds ``config.json``, ``stats.jsonl`` (one JSON object a line), ``real.png``, ``samples-<step>.png`` and
    other pictures of the trainer's (``.gif`` for sequences), ``losses.png`` and ``checkpoint.pt``.

    Args:
        path: An existing folder.
        config: Settings of the run, which go into ``config.json`` and into checkpoints: numbers, strings, lists,
            dicts. For :func:`load_model`, ``model`` is a registered name and ``model_args`` its arguments.

    Example:
        >>> from pathlib import Path
        >>> import genimg_fast as gf
        >>> run = gf.training.RunFolder(Path("."), {"model": "dcgan", "model_args": {"c_dim": 1}})
        >>> run.checkpoint
        PosixPath('checkpoint.pt')
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        self.config = config
        self.checkpoint = path / "checkpoint.pt"
        self._tensorboard: Any = None

    def use_tensorboard(self) -> None:
        """Write the statistics for TensorBoard, too, into the same folder.

        Raises:
            ImportError: If TensorBoard is missing.
        """
        module = optional_import("torch.utils.tensorboard", "tensorboard")
        self._tensorboard = module.SummaryWriter(str(self.path))

    @classmethod
    def create(cls, out: str | Path, name: str, config: dict[str, Any]) -> "RunFolder":
        """Make a folder with the next free number.

        Args:
            out: Folder of all runs; made if it is missing.
            name: What follows the number.
            config: Settings of the run.

        Returns:
            The run, with its ``config.json`` written.

        Raises:
            OSError: If the folder cannot be made.
            ImportError: If a package that draws the pictures is missing.

        Example:
            >>> import tempfile, genimg_fast as gf
            >>> run = gf.training.RunFolder.create(tempfile.mkdtemp(), "dcgan-digits", {"steps": 10})
            >>> run.path.name
            '00000-dcgan-digits'
        """
        for package in ("matplotlib", "torchvision"):  # better now than at the first picture
            optional_import(package)
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        numbers = [int(match[0]) for entry in out.iterdir() if (match := re.match(r"\d+(?=-)", entry.name))]
        for number in count(max(numbers, default=-1) + 1):
            path = out / f"{number:05d}-{name}"
            try:
                path.mkdir()
                break
            except FileExistsError:  # another run took the number in this moment
                continue
        (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        return cls(path, config)

    @classmethod
    def reopen(cls, path: str | Path, config: dict[str, Any]) -> "RunFolder":
        """Open the folder of a run in order to go on with it.

        Args:
            path: The folder.
            config: Settings to go on with. They have to be those of the run, but for the number of steps, the
                device and the versions; a schedule of the learning rate depends on the number of steps.

        Returns:
            The run.

        Raises:
            FileNotFoundError: If the folder has no checkpoint.
            ValueError: If the checkpoint is damaged, or a setting is another one; the message shows which.
        """
        path = Path(path)
        before = _flat(json.loads(json.dumps(load_checkpoint(path)["config"])))
        now = _flat(json.loads(json.dumps(config)))
        changed = [
            f"{key} was {before.get(key)!r} and is {now.get(key)!r}"
            for key in {**before, **now}
            if key.partition(".")[0] not in _MAY_CHANGE and before.get(key) != now.get(key)
        ]
        if changed:
            raise ValueError(f"the settings differ from those of {path}: {'; '.join(changed)}")
        return cls(find_checkpoint(path).parent, config)

    @classmethod
    def latest(cls, out: str | Path, name: str) -> Path | None:
        """Find the newest run of a name that has a checkpoint, or None.

        Args:
            out: Folder of all runs.
            name: What follows the number.
        """
        folders = Path(out).glob(f"*-{name}") if Path(out).is_dir() else []
        found = [f for f in folders if re.fullmatch(rf"\d+-{re.escape(name)}", f.name)]
        return max((f for f in found if (f / "checkpoint.pt").is_file()), key=lambda f: f.name, default=None)

    def log(self, row: dict[str, float]) -> None:
        """Append a row to ``stats.jsonl``, and to TensorBoard's file if there is one."""
        with open(self.path / "stats.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")
        if self._tensorboard is not None:
            for name, value in row.items():
                if name != "step":
                    self._tensorboard.add_scalar(name, value, int(row["step"]))
            self._tensorboard.flush()

    def rows_until(self, step: int) -> list[dict[str, float]]:
        """Get the rows of ``stats.jsonl`` up to a step; drop those behind it, which will be written again."""
        stats = self.path / "stats.jsonl"
        rows = []
        for line in stats.read_text().splitlines() if stats.is_file() else []:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # a line that was being written when the process was killed
                break
            if row["step"] <= step:
                rows.append(row)
        temporary = stats.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(temporary, stats)
        return rows

    def save_images(self, name: str, images: Tensor) -> None:
        """Write images in [-1, 1] as ``name.png``, a grid, or sequences of them as ``name.gif``, an animated one.

        Images have the shape (n, channels, height, width), sequences (n, frames, channels, height, width).
        """
        if images.ndim == 5:
            save_animation(images, self.path / f"{name}.gif", bounce=False)
        else:
            save_grid(images, self.path / f"{name}.png")

    def plot(self, rows: list[dict[str, float]], panels: Sequence[Sequence[str]]) -> None:
        """Draw what the rows hold over their steps, as ``losses.png``; ``panels`` are the names drawn together."""
        # Not pyplot: this touches neither the user's figures nor their backend.
        figure = optional_import("matplotlib.figure").Figure(
            figsize=(8, 1 + 3 * len(panels)), layout="constrained"
        )
        figure.suptitle(self.path.name)
        steps = [row["step"] for row in rows]
        for axes, names in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
            for name in names:
                axes.plot(steps, [row[name] for row in rows], label=name, linewidth=1)
            axes.set(xlabel="step")
            axes.grid(alpha=0.3)
            axes.legend()
        figure.savefig(self.path / "losses.png", dpi=120)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write ``checkpoint.pt`` so that, killed at any moment, a whole one is there: the old or the new."""
        temporary = self.checkpoint.with_suffix(".tmp")
        try:
            with open(temporary, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.checkpoint)
        except (OSError, RuntimeError) as error:  # torch.save turns a full disk into a RuntimeError
            good = f"; the last good one, {self.checkpoint}, is still there" if self.checkpoint.is_file() else ""
            raise OSError(f"cannot write a checkpoint to {self.path}: {error}{good}") from error


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn settings within settings into one level, with names like ``recipe.ema``."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def find_checkpoint(path: str | Path) -> Path:
    """Find the file of a checkpoint.

    Args:
        path: The file, or a run folder. The ending of either may be left out, or be one too many: the run on
            ``film.mp4`` is found as ``runs/00000-frame-predictor-film``, too.

    Returns:
        The file.

    Raises:
        FileNotFoundError: If there is none, or more than one; the message lists similar names.
    """
    path = Path(path)
    if (file := _checkpoint_at(path)).is_file():
        return file
    beside = [entry for entry in path.parent.iterdir() if entry != path] if path.parent.is_dir() else []
    runs = [e for e in beside if _checkpoint_at(e).suffix == ".pt" and _checkpoint_at(e).is_file()]
    found = [run for run in runs if path.name == run.stem or path.stem == run.name]
    if path.exists() or len(found) != 1:
        hint = did_you_mean(path.name, [run.name for run in runs])
        raise FileNotFoundError(f"no checkpoint at {file}{hint}")
    return _checkpoint_at(found[0])


def _checkpoint_at(path: Path) -> Path:
    return path / "checkpoint.pt" if path.is_dir() else path


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint, without running code that may be in the file.

    Args:
        path: A checkpoint, or a run folder, with or without the ending of its name.

    Returns:
        What ``Trainer.state_dict`` returned, and ``rng`` (states of the random number generators) and ``config``;
        all tensors on the CPU.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the file is not a checkpoint of this package, or is damaged.

    Example:
        >>> import genimg_fast as gf
        >>> sizes = {"c_dim": 1, "channels": 4, "n_blocks": 1}
        >>> run = gf.training.RunFolder.create("runs", "dcgan-digits", {"model": "dcgan", "model_args": sizes})
        >>> trainer = gf.training.GANTrainer(gf.models.DCGAN(**sizes))
        >>> history = gf.training.fit(trainer, gf.data.load_dataset("digits", image_size=8), steps=2, run=run)
        >>> gf.training.load_checkpoint(run.path)["step"]
        2
    """
    file = find_checkpoint(path)
    with open(file, "rb") as stream:
        try:
            state = torch.load(stream, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load documents none; a damaged file raises half a dozen different ones
            raise ValueError(f"{file} is damaged or not a checkpoint ({type(error).__name__})") from error
    if (
        not isinstance(state, dict)
        or not {"model", "config", "step"} <= state.keys()
        or not isinstance(state["config"], dict)
    ):
        raise ValueError(f"{file} is not a checkpoint of genimg_fast")
    return state


def load_run(path: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Load the trained model of a run and the settings it was trained with.

    It has averaged weights, if there are any; a GAN's discriminator has those that the generator trained against.

    Args:
        path: A checkpoint, or a run folder.

    Returns:
        The model with the checkpoint's weights, on the CPU, and what ``config.json`` holds.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If the file is damaged, its model is unknown here, or it holds the weights of another one.

    Example:
        >>> import genimg_fast as gf
        >>> sizes = {"c_dim": 1, "channels": 4, "n_blocks": 1}
        >>> run = gf.training.RunFolder.create("runs", "dcgan-digits", {"model": "dcgan", "model_args": sizes})
        >>> trainer = gf.training.GANTrainer(gf.models.DCGAN(**sizes))
        >>> history = gf.training.fit(trainer, gf.data.load_dataset("digits", image_size=8), steps=2, run=run)
        >>> model, config = gf.training.load_run(run.path)
        >>> config["model"]
        'dcgan'
    """
    state = load_checkpoint(path)
    config = state["config"]
    if not {"model", "model_args"} <= config.keys():
        raise ValueError(
            f"the config of {path} does not say which model it is: 'model' and 'model_args' are missing"
        )
    try:
        model: Any = create_model(config["model"], **config["model_args"])
        model.load_state_dict(state["model"])
        if state.get("ema") is not None:
            averaged = AveragedModel(model, use_buffers=True)
            averaged.load_state_dict(state["ema"])
            if isinstance(model, BaseGAN):
                averaged.module.discriminator = model.discriminator
            model = averaged.module
    except (AttributeError, KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"the checkpoint of {path} does not fit its model, {config['model']}: {error}") from error
    return model, config


def load_model(path: str | Path) -> nn.Module:
    """Load the trained model of a run: the first that :func:`load_run` returns.

    Args:
        path: A checkpoint, or a run folder.

    Returns:
        The model with the checkpoint's weights, on the CPU.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If the file is damaged, or its model is unknown here.

    Example:
        >>> import genimg_fast as gf
        >>> sizes = {"c_dim": 1, "channels": 4, "n_blocks": 1}
        >>> run = gf.training.RunFolder.create("runs", "dcgan-digits", {"model": "dcgan", "model_args": sizes})
        >>> trainer = gf.training.GANTrainer(gf.models.DCGAN(**sizes))
        >>> history = gf.training.fit(trainer, gf.data.load_dataset("digits", image_size=8), steps=2, run=run)
        >>> gf.training.load_model(run.path).sample(16).shape
        torch.Size([16, 1, 8, 8])
    """
    return load_run(path)[0]
