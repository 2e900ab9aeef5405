"""Sequences of images by name or path."""

from pathlib import Path

from genimg_fast._close_names import did_you_mean
from genimg_fast.data.clips import FrameFolders
from genimg_fast.data.moving_digits import MovingDigits
from genimg_fast.options import NonNegativeFloat, NonNegativeInt


def load_sequences(
    name_or_path: str | Path,
    *,
    frames: int,
    image_size: int,
    channels: int | None = None,
    speed: float | tuple[float, float] = 0.1,
    train: bool = True,
    seed: int = 0,
    memory: NonNegativeFloat | None = None,
    cache: str | Path | None = "cache",
    workers: NonNegativeInt | None = None,
) -> MovingDigits | FrameFolders:
    """Load, or make, sequences of images at the size and with the number of channels that a model takes.

    Args:
        name_or_path: ``"moving-digits"``, or what :class:`FrameFolders` reads: a folder or a file.
        frames: Frames in a sequence.
        image_size: Height and width, in pixels.
        channels: 1 (grey) or 3 (RGB); by default, 1 for moving digits and 3 for files.
        speed: How fast digits move; see :class:`MovingDigits`.
        train: Whether to take the digits that are for training. Files are not split.
        seed: Of moving digits.
        memory: GB that frames decoded from files may take in memory; by default a quarter of the machine's, shared
            by the processes on it.
        cache: Folder for decoded frames that take more than that; none: decode them whenever they are needed.
        workers: Processes that decode, and read ahead; by default one for each processor, up to 8.

    Returns:
        The sequences, on the CPU.

    Raises:
        ValueError: If nothing has this name, no clip has enough frames, a file cannot be read, or a cache is
            damaged.
        OSError: If the cache cannot be written.
        ImportError: If a package that the source needs is missing.

    Example:
        >>> import genimg_fast as gf
        >>> gf.data.load_sequences("moving-digits", frames=10, image_size=32)[0][0].shape
        torch.Size([10, 1, 32, 32])
    """
    if str(name_or_path) == "moving-digits":
        return MovingDigits(
            frames=frames, image_size=image_size, channels=channels or 1, speed=speed, train=train, seed=seed
        )
    if not Path(name_or_path).exists():
        hint = did_you_mean(str(name_or_path), ["moving-digits"])
        raise ValueError(f"{str(name_or_path)!r} is neither a folder nor a file nor moving-digits{hint}")
    return FrameFolders(
        name_or_path, frames=frames, image_size=image_size, channels=channels or 3, memory=memory, cache=cache,
        workers=workers,
    )  # fmt: skip
