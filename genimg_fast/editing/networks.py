"""Networks that a run has trained; and pictures through restorers, in tiles."""

from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from genimg_fast._evaluating import evaluating
from genimg_fast.editing.tiles import in_tiles
from genimg_fast.models import Restorer, load

_Model = TypeVar("_Model", bound=torch.nn.Module)


def load_network(model: str | Path, kind: type[_Model], name: str) -> _Model:
    """Load the model of a run.

    Args:
        model: Folder of a run, or of a model; or a checkpoint.
        kind: What it is to be.
        name: What the message calls that, as ``genimg-fast train`` does.

    Raises:
        ValueError: If there is none, or it is something else.
    """
    try:
        network = load(model)
    except (OSError, ValueError) as error:
        raise ValueError(f"model must be a run of {name}: {error}") from error
    if not isinstance(network, kind):
        raise ValueError(f"model must be a run of {name}, got one of {type(network).__name__}")
    return network


def load_restorer(model: str | Path, tasks: tuple[str, ...]) -> Restorer:
    """Load the restorer of a run.

    Args:
        model: See :func:`load_network`.
        tasks: What it may have been trained for.

    Raises:
        ValueError: If there is none, or it is for something else.
    """
    restorer = load_network(model, Restorer, "restorer")
    if restorer.task not in tasks:
        raise ValueError(f"model must have been trained for {' or '.join(tasks)}, got {restorer.task}")
    return restorer


def restore(restorer: Restorer, image: Tensor, level: float | Tensor | None, *, progress: bool = False) -> Tensor:
    """Put a picture through a restorer.

    Args:
        restorer: The network.
        image: The picture, of shape (1 or 3, height, width), in [0, 1], noise aside. A network for colours gets a
            grey picture as three equal channels, and the mean is taken; one for grey gets each colour by itself.
        level: What the network is told; a mask for inpainting.
        progress: Whether to show a progress bar.

    Returns:
        The picture, clipped to [0, 1].
    """
    restorer = restorer.to(image.device)
    channels = len(image)
    picture = image.detach().float().mul(2).sub(1)
    if restorer.task not in ("denoise", "neighbor2neighbor"):
        picture = picture.clamp(-1, 1)
    if restorer.c_dim == 3 and channels == 1:
        picture = picture.expand(3, -1, -1)
    mask = level if isinstance(level, Tensor) else None

    def through(part: Tensor) -> Tensor:
        colours = part if mask is None else part[:-1]
        batch = colours.unflatten(0, (-1, restorer.c_dim))
        levels: Tensor | None = None
        if mask is not None:
            levels = part[-1:].expand(len(batch), 1, -1, -1)
        elif restorer.takes_level:
            levels = torch.full((len(batch),), float(level or 0.0), device=part.device)
        return restorer(batch, levels).flatten(0, 1)

    if mask is not None:
        mask = (mask > 0.5).to(picture)
        picture = torch.cat([picture * (1 - mask), mask])  # as in training, grey where it is gone
    with torch.no_grad(), evaluating(restorer):
        restored = in_tiles(
            through,
            picture,
            margin=restorer.reach,
            scale=restorer.scale,
            multiple=restorer.multiple,
            progress=progress,
        )
    if len(restored) > channels:
        restored = restored.mean(0, keepdim=True)
    return restored.add(1).div(2).clamp(0, 1).to(image.dtype)
