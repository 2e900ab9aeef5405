"""The checkpoints of training runs, as files to read."""

from pathlib import Path
from typing import Any

import torch

from genimg_fast._close_names import did_you_mean

# More than anybody can train; beyond, it would take ages to find the place in the data.
MOST_STEPS = 2**31 - 1


class CheckpointError(ValueError):
    """A checkpoint is damaged, or belongs to something else."""


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
            raise CheckpointError(f"{file} is damaged or not a checkpoint ({type(error).__name__})") from error
    if not isinstance(state, dict) or not {"model", "config", "step"} <= state.keys():
        raise CheckpointError(f"{file} is not a checkpoint of genimg_fast")
    for name, kind in (("model", dict), ("config", dict), ("step", int)):
        if not isinstance(state[name], kind) or isinstance(state[name], bool):
            raise CheckpointError(
                f"{file} is not a checkpoint of genimg_fast, or damaged: its {name} is of type "
                f"{type(state[name]).__name__}, not {kind.__name__}"
            )
    if not 0 <= state["step"] <= MOST_STEPS:
        raise CheckpointError(f"{file} is damaged: its step is {state['step']}")
    return state
