"""The folder that a training run writes, and its checkpoints."""

import json
import math
import os
import re
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genimg_fast.data.optional import optional_import
from genimg_fast.models import create_model


class RunFolder:
    """A numbered folder with everything about one training run.

    It holds ``config.json``, ``stats.jsonl`` (one JSON object a line), ``real.png``, ``samples-<step>.png``,
    ``losses.png`` and ``checkpoint.pt``.

    Args:
        path: An existing folder.
        config: Settings of the run, which go into ``config.json`` and into checkpoints: numbers, strings, lists,
            dicts. For :func:`load_model`, ``model`` is a registered name and ``model_args`` its arguments.
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.path = path
        self.config = config
        self.checkpoint = path / "checkpoint.pt"

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

    def log(self, row: dict[str, float]) -> None:
        """Append a row to ``stats.jsonl``."""
        with open(self.path / "stats.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")

    def save_grid(self, name: str, images: Tensor) -> None:
        """Write images in [-1, 1], of shape (n, channels, height, width), as a grid called ``name``."""
        save_grid(images, self.path / name)

    def plot_losses(self, rows: list[dict[str, float]]) -> None:
        """Draw all that is called ``loss...`` in the rows over their steps, as ``losses.png``."""
        # Not pyplot: this touches neither the user's figures nor their backend.
        figure = optional_import("matplotlib.figure").Figure(figsize=(8, 4), layout="constrained")
        axes = figure.subplots()
        for name in (name for name in rows[-1] if name.startswith("loss")):
            axes.plot([row["step"] for row in rows], [row[name] for row in rows], label=name, linewidth=1)
        axes.set(xlabel="step", ylabel="loss", title=self.path.name)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(self.path / "losses.png", dpi=120)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write ``checkpoint.pt`` so that, killed at any moment, a whole one is there: the old or the new."""
        temporary = self.checkpoint.with_suffix(".tmp")
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.checkpoint)


def save_grid(images: Tensor, path: str | Path) -> None:
    """Write images as a grid, as square as can be.

    Args:
        images: Images in [-1, 1], of shape (n, channels, height, width).
        path: The file; its ending decides the format.

    Raises:
        OSError: If the file cannot be written.
        ImportError: If torchvision is missing.

    Example:
        >>> import tempfile, torch, genimg_fast as gf
        >>> gf.training.save_grid(torch.zeros(64, 1, 32, 32), tempfile.mkdtemp() + "/grid.png")
    """
    columns = math.ceil(math.sqrt(len(images)))
    optional_import("torchvision.utils").save_image(
        images, path, nrow=columns, padding=2, normalize=True, value_range=(-1, 1)
    )


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint, without running code that may be in the file.

    Args:
        path: A checkpoint, or a run folder.

    Returns:
        What ``Trainer.state_dict`` returned, and ``rng`` (states of the random number generators) and ``config``;
        all tensors on the CPU.

    Raises:
        FileNotFoundError: If there is none.
        ValueError: If the file is not a checkpoint of this package, or is damaged.

    Example:
        >>> load_checkpoint("runs/00000-dcgan-digits")["step"]  # doctest: +SKIP
        1500
    """
    path = Path(path)
    file = path / "checkpoint.pt" if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(f"no checkpoint at {file}")
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load documents none; a damaged file raises half a dozen different ones
        raise ValueError(f"{file} is damaged or not a checkpoint ({type(error).__name__})") from error
    if not isinstance(state, dict) or not {"model", "config", "step"} <= state.keys():
        raise ValueError(f"{file} is not a checkpoint of genimg_fast")
    return state


def load_model(path: str | Path) -> nn.Module:
    """Load the trained model of a run.

    Args:
        path: A checkpoint, or a run folder.

    Returns:
        The model with the checkpoint's weights, on the CPU.

    Raises:
        FileNotFoundError: If there is no checkpoint.
        ValueError: If the file is damaged, or its model is unknown here.

    Example:
        >>> load_model("runs/00000-dcgan-digits").sample(16).shape  # doctest: +SKIP
        torch.Size([16, 1, 32, 32])
    """
    state = load_checkpoint(path)
    model = create_model(state["config"]["model"], **state["config"]["model_args"])
    model.load_state_dict(state["model"])
    return model
