"""Sequences of frames, and images, changed by a trained model."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor

from genimg_fast.cli.arguments import blaming
from genimg_fast.cli.runs import (
    ClipSource,
    ImageSource,
    Look,
    Output,
    Session,
    batches,
    check_out,
    choose,
    load_clips,
    load_real,
    load_with_settings,
    write,
)
from genimg_fast.cli.sampling import context
from genimg_fast.models import BaseFrameModel, FrameFiller, FramePredictor, RowRNN
from genimg_fast.options import NonNegativeInt, OptionError, PositiveFloat, PositiveInt, Reader
from genimg_fast.training import Picture
from genimg_fast.training.sequence import completions


def _frame_range(text: str) -> range:
    """Read numbers of frames: ``7``, or ``5-8``."""
    numbers = re.fullmatch(r"([0-9]{1,9})(?:-([0-9]{1,9}))?", text)
    first, last = (int(numbers[1]), int(numbers[2] or numbers[1])) if numbers else (0, 0)
    if not 1 <= first <= last:
        raise ValueError(f"must be a number from 1 on, or a range such as 5-8, got {text!r}")
    return range(first, last + 1)


FrameRange = Annotated[range, Reader(_frame_range, "N|N-M")]


def continue_(
    run: Path,
    *,
    out: Output = "continued.gif",
    n: PositiveInt | None = None,
    frames: PositiveInt | None = None,
    steps: PositiveInt = 10,
    source: ClipSource,
    look: Look,
    session: Session,
) -> int:
    """Continue sequences, with a frame predictor.

    Args:
        run: Run folder, or checkpoint.
        out: File to write: .gif, .webp, .mp4, .webm; film strips, .png ...; FOLDER/ of frames, or .npz.
        n: Number of sequences; default: 8, if there are so many.
        frames: Frames that are given; default: as many as in the training.
        steps: Frames to add.
        source: Where real sequences come from.
        look: What pictures look like.
        session: Random numbers, and the device.

    Example:
        genimg-fast edit continue runs/00000-frame-predictor-moving-digits --steps 20
        genimg-fast edit continue runs/00000-frame-predictor-clips --data walk.gif --n 1 --out longer.mp4
    """
    model, config = _load_frame_model(run, out, session, FramePredictor)

    def made(given: Tensor) -> Picture:
        continued = torch.cat([given, model.rollout(given, steps)], 1)
        return Picture(images=continued, generated=torch.arange(continued.shape[1]) >= given.shape[1])

    return _edit(model, config, out, n, frames or context(config), made, source, look, session)


def fill(
    run: Path,
    *,
    missing: list[FrameRange],
    out: Output = "filled.gif",
    n: PositiveInt | None = None,
    frames: PositiveInt | None = None,
    source: ClipSource,
    look: Look,
    session: Session,
) -> int:
    """Make missing or damaged frames anew, with a frame filler.

    Args:
        run: Run folder, or checkpoint.
        missing: Frames to make anew, counted from 1.
        out: File to write: .gif, .webp, .mp4, .webm; film strips, .png ...; FOLDER/ of frames, or .npz.
        n: Number of sequences; default: 8, if there are so many.
        frames: Frames in a sequence; default: as many as in the training.
        source: Where real sequences come from.
        look: What pictures look like.
        session: Random numbers, and the device.

    Example:
        genimg-fast edit fill runs/00001-frame-filler-moving-digits --missing 5-8 12
        genimg-fast edit fill runs/00001-frame-filler-clips --data scratched/ --n 1 --frames 40 --missing 17
    """
    model, config = _load_frame_model(run, out, session, FrameFiller)
    frames = frames or config["frames"]
    numbers = range(1, frames + 1)
    known = torch.tensor([not any(k in part for part in missing) for k in numbers], device=session.find_device())
    if max(part[-1] for part in missing) > frames or not known.any():
        raise OptionError("missing", f"must leave some of the {frames} frames, and none behind them")

    def made(given: Tensor) -> Picture:
        return Picture(images=model.fill(given, known), generated=~known)

    return _edit(model, config, out, n, frames, made, source, look, session)


def retime(
    run: Path,
    *,
    out: Output = "retimed.gif",
    n: PositiveInt | None = None,
    frames: PositiveInt | None = None,
    speed: PositiveFloat = 0.5,
    source: ClipSource,
    look: Look,
    session: Session,
) -> int:
    """Change the speed of sequences, with a frame filler.

    Args:
        run: Run folder, or checkpoint.
        out: File to write: .gif, .webp, .mp4, .webm; film strips, .png ...; FOLDER/ of frames, or .npz.
        n: Number of sequences; default: 8, if there are so many.
        frames: Frames in a sequence, before; default: as many as in the training.
        speed: 0.5: half the speed, with frames in between; 2: every other frame.
        source: Where real sequences come from.
        look: What pictures look like.
        session: Random numbers, and the device.

    Example:
        genimg-fast edit retime runs/00001-frame-filler-moving-digits --speed 0.5
        genimg-fast edit retime runs/00001-frame-filler-clips --data walk.gif --n 1 --speed 0.25 --out slow.mp4
    """
    model, config = _load_frame_model(run, out, session, FrameFiller)

    def made(given: Tensor) -> Picture:
        with blaming("speed"):
            retimed = model.retime(given, speed)
        fraction = Fraction(speed).limit_denominator(8)  # as the model takes it
        between = torch.arange(retimed.shape[1]) * fraction.numerator % fraction.denominator > 0
        return Picture(images=retimed, generated=between)

    return _edit(model, config, out, n, frames or config["frames"], made, source, look, session)


def complete(
    run: Path,
    *,
    out: Output = "completed.png",
    n: PositiveInt | None = None,
    rows: NonNegativeInt | None = None,
    source: ImageSource,
    look: Look,
    session: Session,
) -> int:
    """Show images, each beside a completion of its upper rows.

    Args:
        run: Run folder, or checkpoint.
        out: Picture to write, or FOLDER/, or .npz.
        n: Number of images; default: 36, if there are so many.
        rows: Rows that are given; default: half of them.
        source: Where real images come from.
        look: What pictures look like.
        session: Random numbers, and the device.

    Example:
        genimg-fast edit complete runs/00000-row-rnn-digits --rows 6
    """
    check_out(out)
    model, config = load_with_settings(run, session.device)
    if not isinstance(model, RowRNN):
        raise OptionError("run", f"{config['model']} cannot complete images; this is for row-rnn")
    given = model.image_size // 2 if rows is None else rows
    if given >= model.image_size:
        raise OptionError("rows", f"must be below {model.image_size}, the height, got {given}")
    real = load_real(model, config, source)
    indices = choose(real, n, most=36, seed=session.seed)
    generator = session.generator()

    def made() -> Iterator[Picture]:
        for images, _ in batches(real, indices, model.image_size, session.find_device()):
            yield replace(completions(model, images, given, generator), caption=real.caption())

    return write(made(), out, n=len(indices), look=look)


def _load_frame_model(
    run: Path, out: str, session: Session, kind: type[BaseFrameModel]
) -> tuple[Any, dict[str, Any]]:
    check_out(out, moves=True)
    model, config = load_with_settings(run, session.device)
    if not isinstance(model, kind):
        name = "frame-predictor" if kind is FramePredictor else "frame-filler"
        raise OptionError("run", f"must be a run of {name}, got one of {config['model']}")
    return model, config


def _edit(
    model: Any, config: dict[str, Any], out: str, n: int | None, frames: int,
    edit: Callable[[Tensor], Picture], source: ClipSource, look: Look, session: Session,
) -> int:  # fmt: skip
    """Take ``n`` sequences at random, change them, and write them."""
    real = load_clips(model, config, source, frames, seed=session.seed, flag="frames")
    indices = choose(real, n, most=8, seed=session.seed, what="sequences")
    sequences = batches(real, indices, model.image_size, session.find_device(), frames=frames)
    pictures = (replace(edit(given), caption=real.caption("sequences")) for given, _ in sequences)
    return write(pictures, out, n=len(indices), look=look)
