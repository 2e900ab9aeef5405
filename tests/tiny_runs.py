"""Command lines of tiny trainings, and what their pictures measure."""

import copy
from pathlib import Path
from typing import Any

from PIL import Image

SMALL = ["--image-size", "8", "--z-dim", "4", "--batch-size", "8"]
TINY = ["train", "dcgan", *SMALL, "--channels", "2"]
TINY_VAES = {
    "vae": ["train", "vae", *SMALL, "--channels", "2"],
    "cvae": ["train", "cvae", *SMALL, "--channels", "2", "--likelihood", "bernoulli", "--free-bits", "0.1"],
    "mlp-vae": ["train", "mlp-vae", *SMALL, "--hidden", "12", "8", "--beta", "2", "--warmup", "5"],
}
TINY_FRAMES = ["--image-size", "8", "--frames", "6", "--channels", "2", "--hidden-size", "4", "--batch-size", "4"]
TINY_SEQUENCES = {
    "frame-predictor": ["train", "frame-predictor", *TINY_FRAMES, "--reach", "1", "--context", "4"],
    "frame-filler": ["train", "frame-filler", *TINY_FRAMES, "--core", "gru", "--speed", "0.2", "0.05"],
    "row-rnn": ["train", "row-rnn", "--image-size", "8", "--hidden-size", "8", "--batch-size", "8"],
}
PLAIN = ["--plain", "--scale", "1"]


def image_size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def side(tiles: int, group: int = 1) -> int:
    """Length of a row of plain tiles of 8 pixels, in groups."""
    return 8 * tiles + 4 * (tiles - 1) + (12 * ((tiles - 1) // group) if group > 1 else 0)


def animation(path: Path) -> tuple[tuple[int, int], int]:
    """Size and number of frames, of which Pillow merges equal ones."""
    with Image.open(path) as frames:
        return frames.size, frames.n_frames


def damaged(good: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """Get a checkpoint with another value at a place, or without the place."""
    state = copy.deepcopy(good)
    *folders, last = [int(key) if key.isdecimal() else key for key in place.split("/")]
    inner: Any = state
    for key in folders:
        inner = inner[key]
    if value is Ellipsis:
        del inner[last]
    else:
        inner[last] = value
    return state


def png_names(folder: str) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in Path(folder).rglob("*.png"))
