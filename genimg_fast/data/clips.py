"""Sequences cut from clips: folders of numbered frames, animated images, video files."""

import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from genimg_fast.data.dataset import content_hash, draw_share
from genimg_fast.data.decode import (
    Decoder,
    UnreadableError,
    images_among,
    open_image,
    path_in,
    read_image,
    to_pixels,
)
from genimg_fast.data.files import list_folder
from genimg_fast.data.indices import SequenceIndex, check_at_least_1, numbers_of
from genimg_fast.data.optional import optional_import
from genimg_fast.data.sources import Keep, identify_files
from genimg_fast.data.stored import StoredImages
from genimg_fast.data.stream import draw_order, fetch_batches, to_floats
from genimg_fast.options import NonNegativeFloat, NonNegativeInt


class TooFewFramesError(ValueError):
    """No clip is long enough.

    Args:
        message: What to say.
        longest: Number of frames of the longest clip.
    """

    def __init__(self, message: str, longest: int) -> None:
        super().__init__(message)
        self.longest = longest


class FrameFolders(Dataset[tuple[Tensor, Tensor]]):
    """Sequences cut from clips: folders of numbered frames, animated images, video files.

    ``path`` is one clip or a folder of clips. Frames are sorted by the numbers in their names (``2.png`` before
    ``10.png``), cropped to a square and resized by antialiased bicubic interpolation. A sequence is a window that
    slides along a clip. Frames that do not fit in ``memory`` are kept as :func:`load_dataset` keeps images.

    Args:
        path: A folder of images, which are the frames of one clip; a folder whose subfolders or video files are
            one clip each; or a file: an animated GIF or WebP, or a video, for which PyAV is needed. Hidden files
            and folders are left out, links are followed, and videos turned upright as their files say.
        frames: Frames in a sequence.
        image_size: Height and width, in pixels.
        channels: 1 (grey) or 3 (RGB).
        stride: Frames between the beginnings of two sequences.
        memory: GB that frames may take in memory; by default a quarter of the machine's, shared by the processes
            on it.
        cache: Folder for decoded frames that take more than that; none: decode them whenever they are needed.
        workers: Processes that decode, and read ahead; by default one for each processor, up to 8.

    Attributes:
        images: All frames, clip behind clip: bytes of shape (n, channels, image_size, image_size).
        files: Hashes of the names, and of the sizes and times of change, of the clips' files.

    Raises:
        ValueError: If there is no clip of enough frames, a file cannot be read, or a number is out of range.
        FileNotFoundError: If there is nothing at ``path``.
        ImportError: If a package is missing that reads the files.

    Example:
        >>> import torch, genimg_fast as gf
        >>> for number in range(12):
        ...     gf.training.save_grid(torch.zeros(1, 1, 8, 8), f"frame{number}.png")
        >>> data = gf.data.FrameFolders(".", frames=10, image_size=8)
        >>> len(data), data[0][0].shape
        (3, torch.Size([10, 3, 8, 8]))
    """

    def __init__(
        self,
        path: str | Path,
        *,
        frames: int = 20,
        image_size: int = 64,
        channels: int = 3,
        stride: int = 1,
        memory: NonNegativeFloat | None = None,
        cache: str | Path | None = "cache",
        workers: NonNegativeInt | None = None,
    ) -> None:
        check_at_least_1(frames=frames, image_size=image_size, stride=stride)
        if channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {channels}")
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"there is no {path}")
        if not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is neither a file nor a folder")
        found = _find_clips(path)
        keep = Keep.of(memory, cache, workers)
        self.images, lengths, self.files = _read_clips(path, found, image_size, channels, keep)
        stops = list(accumulate(lengths))
        spans = {
            clip.name: range(stop - length, stop)
            for clip, length, stop in zip(found, lengths, stops, strict=True)
            if length > 0
        }
        if not spans:
            raise ValueError(f"no frames in {path}")
        self._spans = {name: span for name, span in spans.items() if len(span) >= frames}
        if not self._spans:
            longest = max(map(len, spans.values()))
            raise TooFewFramesError(
                f"no clip in {path} has {frames} frames, the longest one has {longest}", longest
            )
        self.frames, self.stride = frames, stride
        self._ends = self._count()

    def _count(self) -> list[int]:
        """Number of the sequences of each clip and of those before it."""
        return list(accumulate((len(span) - self.frames) // self.stride + 1 for span in self._spans.values()))

    @property
    def clips(self) -> dict[str, Tensor | StoredImages]:
        """Frames of each clip by its name: bytes of shape (n, channels, image_size, image_size)."""
        return {name: _cut(self.images, span) for name, span in self._spans.items()}

    @property
    def storage(self) -> str:
        """Where the frames are, in words."""
        if isinstance(self.images, StoredImages):
            return self.images.storage
        return f"in memory, {self.images.nbytes / 1e9:.3g} GB"

    @property
    def device(self) -> torch.device:
        """Where the frames are."""
        return self.images.device

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: SequenceIndex) -> tuple[Tensor, Tensor]:
        """Get sequences.

        Args:
            index: One index, a slice, or a tensor of indices.

        Returns:
            float32 frames in [-1, 1], of shape (batch, frames, channels, image_size, image_size), and the number
            of each one's clip, int64 of shape (batch,); without the first dimension for a single index.

        Raises:
            IndexError: If there is no such sequence.
        """
        indices, single = numbers_of(index, len(self))
        pixels, clip = self._read(indices)
        frames = to_floats(pixels)
        return (frames[0], clip[0]) if single else (frames, clip)

    def _read(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Read sequences, as bytes, and the numbers of their clips."""
        spans = list(self._spans.values())
        rows = torch.empty(len(indices), self.frames, dtype=torch.int64)
        labels = torch.empty(len(indices), dtype=torch.int64)
        for k, i in enumerate(indices):
            label = bisect_right(self._ends, i)
            first = spans[label].start + (i - (self._ends[label - 1] if label else 0)) * self.stride
            rows[k], labels[k] = torch.arange(first, first + self.frames), label
        images = self.images[rows.view(-1).to(self.device)]
        return images.view(len(indices), self.frames, *images.shape[1:]), labels.to(self.device)

    def batches(
        self, batch_size: int, *, seed: int = 0, start: int = 0, part: int = 0, parts: int = 1
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Iterate over shuffled batches; see :func:`batches`. Frames that are stored elsewhere are read ahead."""
        order = draw_order(len(self), batch_size, seed=seed, start=start, part=part, parts=parts)
        if not isinstance(self.images, StoredImages):
            return (self[index] for _, index in order)
        here = self.to("cpu")
        workers = self.images.workers
        return fetch_batches(_Fetch(here), order, device=self.device, workers=workers, thread=True)

    def to(self, device: torch.device | str) -> "FrameFolders":
        """Get the same data on another device; frames that are stored elsewhere go there batch by batch."""
        made = self._of(self._spans, self.frames)
        made.images = self.images.to(device)
        return made

    def split(self, share: float, *, seed: int = 0) -> tuple["FrameFolders", "FrameFolders"]:
        """Hold sequences out, without a frame in common with the others: whole clips, drawn at random.

        Where the share is less than a clip, the end of every clip that is long enough is held out.

        Args:
            share: Share of the clips, or of the frames of each, to hold out, between 0 and 1.
            seed: Decides which clips.

        Returns:
            The sequences to train on, and those held out.

        Raises:
            ValueError: If either would be empty.
        """
        number = len(self._spans)
        if 0 < share < 1 and 0 < round(share * number) < number:
            drawn = draw_share(torch.zeros(number, dtype=torch.int64), share, seed=seed, what="clips").tolist()
            training = {
                name: span for (name, span), out in zip(self._spans.items(), drawn, strict=True) if not out
            }
            held_out = {name: span for name, span in self._spans.items() if name not in training}
        else:
            ends = {name: max(self.frames, round(share * len(span))) for name, span in self._spans.items()}
            held_out = {
                name: span[-ends[name] :]
                for name, span in self._spans.items()
                if len(span) - ends[name] >= self.frames
            }
            training = {
                name: span[: -ends[name]] if name in held_out else span for name, span in self._spans.items()
            }
        if not (0 < share < 1 and held_out):
            hint = f"; a share of {1 / number:.2g} holds one out" if number > 1 else ""
            raise ValueError(
                f"a share of {share:g} of {number} clips does not leave {self.frames} frames both to train on and "
                f"to hold out: the longest has {max(map(len, self._spans.values()))}{hint}"
            )
        return self._of(training, self.frames), self._of(held_out, self.frames)

    def windows(self, frames: int) -> "FrameFolders":
        """Get sequences of another number of frames from the same clips.

        Raises:
            TooFewFramesError: If no clip has so many: a ValueError.
        """
        spans = {name: span for name, span in self._spans.items() if len(span) >= frames}
        if not spans:
            longest = max(map(len, self._spans.values()))
            raise TooFewFramesError(f"no clip has {frames} frames, the longest one has {longest}", longest)
        return self._of(spans, frames)

    def _of(self, spans: dict[str, range], frames: int) -> "FrameFolders":
        made = object.__new__(FrameFolders)
        made.__dict__.update(self.__dict__, _spans=spans, frames=frames)
        made._ends = made._count()
        return made


class _Fetch:
    """Reads a batch of sequences, as bytes."""

    def __init__(self, folders: FrameFolders) -> None:
        self.folders = folders

    def __call__(self, number: int, index: Tensor) -> tuple[Tensor, Tensor]:
        return self.folders._read(index.tolist())


def identify_clips(folders: FrameFolders) -> dict[str, Any]:
    """Get what a run notes of its clips; see :func:`genimg_fast.data.dataset.identify`."""
    clips = folders.clips.values()
    unread = any(isinstance(clip, StoredImages) and clip.reader.fingerprint for clip in clips)
    return {"sha256": None if unread else content_hash(*clips), "files": folders.files}


def _natural(path: Path) -> list[Any]:
    """Get a key that sorts numbers in names by their value."""
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", path.name)]


class _Clip(NamedTuple):
    name: str
    files: list[Path]  # of its frames; or that of the film
    film: bool  # a video, or an animated image


def _find_clips(path: Path) -> list[_Clip]:
    """Find the clips at a path; those of a folder without frames are not among them."""
    if path.is_file():
        return [_Clip(path.name, [path], True)]
    folders, files = list_folder(path)
    if frames := images_among(files):
        return [_Clip(path.name, sorted(frames, key=_natural), False)]
    found = []
    videos = {file for file in files if file.suffix.lower() in _VIDEOS}
    for clip in sorted([*folders, *videos], key=_natural):
        if clip in videos:
            found.append(_Clip(clip.name, [clip], True))
        elif frames := images_among(list_folder(clip)[1]):
            found.append(_Clip(clip.name, sorted(frames, key=_natural), False))
    return found


_VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv")


def _read_clips(
    path: Path, clips: list[_Clip], image_size: int, channels: int, keep: Keep
) -> tuple[Tensor | StoredImages, list[int], list[str]]:
    """Read the frames of clips, one behind the other.

    Returns:
        The frames; their number in each clip; and hashes of the files.
    """
    shape = channels, image_size, image_size
    files = [file for clip in clips for file in clip.files]
    root = path if path.is_dir() else path.parent
    key, known = identify_files(root, files, f"frames {image_size} {channels}", False)
    load = _FrameLoader(image_size, channels)
    if any(clip.film for clip in clips):
        in_memory = _films_in_memory(clips, load, keep.memory / (channels * image_size**2))
        if in_memory is not None:
            return *in_memory, known
    lengths = [
        sum(1 for _ in _film(clip.files[0], lambda image, number: None)) if clip.film else len(clip.files)
        for clip in clips
    ]
    if sum(lengths) == 0:
        return torch.empty(0, *shape, dtype=torch.uint8), lengths, known
    numbered = [
        (os.fsencode(clip.files[0 if clip.film else number]), number if clip.film else -1)
        for clip, length in zip(clips, lengths, strict=True)
        for number in range(length)
    ]
    longest = max(len(file) for file, _ in numbered)
    items = np.array(numbered, dtype=[("file", f"S{longest}"), ("number", np.int64)])
    try:
        images, _ = keep.decoded(Decoder(items, load, shape, fingerprint=key), path.resolve().name, key)
    except UnreadableError as error:  # which may not be left out of a clip
        raise ValueError(str(error)) from error
    return images, lengths, known


def _films_in_memory(clips: list[_Clip], load: "_FrameLoader", most: float) -> tuple[Tensor, list[int]] | None:
    """Read clips that are, or may be, films: how many frames those have is known at their ends.

    Returns:
        The frames and their number in each clip; None if there are more than ``most``.
    """
    frames: list[Tensor] = []
    lengths = []
    for clip in clips:
        before = len(frames)
        if clip.film:
            read = _film(clip.files[0], load.convert)
        else:
            read = (read_image(file, load.image_size, load.channels) for file in clip.files)
        for pixels in read:
            frames.append(pixels)
            if len(frames) > most:
                return None
        lengths.append(len(frames) - before)
    return torch.stack(frames) if frames else torch.empty(0, 1, 1, 1, dtype=torch.uint8), lengths


class _FrameLoader:
    """Reads a frame: bytes of shape (channels, image_size, image_size)."""

    def __init__(self, image_size: int, channels: int) -> None:
        self.image_size, self.channels = image_size, channels
        self._close()

    def _close(self) -> None:
        self._file = ""  # of the film that is being read
        self._frames: Iterator[Tensor | None] = iter(())
        self._next = self._wanted = 0  # numbers of frames in it

    def __getstate__(self) -> dict[str, Any]:
        return {"image_size": self.image_size, "channels": self.channels}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __call__(self, item: Any) -> Tensor:
        """Read one of the frames by its file and number; those of a film are quick to read in their order."""
        file, number = path_in(item["file"]), int(item["number"])
        if number < 0:
            return read_image(file, self.image_size, self.channels)
        if self._file != str(file) or number < self._next:
            self._close()
            self._file, self._frames = str(file), _film(file, self._convert_wanted)
        self._wanted = number
        for pixels in self._frames:
            self._next += 1
            if pixels is not None:
                return pixels
        raise ValueError(f"{file} has fewer frames than before")

    def _convert_wanted(self, image: Callable[[], Any], number: int) -> Tensor | None:
        return None if number < self._wanted else self.convert(image, number)

    def convert(self, image: Callable[[], Any], number: int) -> Tensor:
        """Turn an image of Pillow's, which a function makes, into a frame."""
        return to_pixels(image(), self.image_size, self.channels)


Frame = TypeVar("Frame")


def _film(file: Path, convert: Callable[[Callable[[], Any], int], Frame]) -> Iterator[Frame]:
    """Yield what ``convert`` makes of a function that gets a frame as an image of Pillow's, and of its number.

    Args:
        file: An animated image, or a video.
        convert: Called with each frame. Its errors, too, name the file.
    """
    if images_among([file]):
        with open_image(file) as opened:
            for number, image in enumerate(optional_import("PIL.ImageSequence").Iterator(opened)):
                yield convert(partial(_as_it_is, image), number)
        return
    av = optional_import("av", "video")
    try:
        with file.open("rb") as content, av.open(content) as container:
            for number, frame in enumerate(container.decode(video=0)):
                yield convert(partial(_upright, frame), number)
    except (av.FFmpegError, IndexError, OSError) as error:  # IndexError: no video stream
        raise ValueError(f"cannot read video {file}: {error}") from error


def _as_it_is(image: Any) -> Any:
    return image


def _cut(images: Tensor | StoredImages, span: range) -> Tensor | StoredImages:
    if isinstance(images, StoredImages):
        return images.take(torch.arange(span.start, span.stop))
    return images[span.start : span.stop]


def _upright(frame: Any) -> Any:
    """Turn a frame of PyAV's into an image of Pillow's, the way the video's display matrix has it shown.

    With the matrix (a, b; c, d), a pixel at (x, y), y downwards, is shown at (a x + c y, b x + d y): quarter turns
    and mirrorings are all done; what is left of any other angle is not.
    """
    image = frame.to_image()
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
    transpose = optional_import("PIL.Image").Transpose
    if abs(b) > abs(a):
        image, a, d = image.transpose(transpose.TRANSPOSE), c, b
    if a < 0:
        image = image.transpose(transpose.FLIP_LEFT_RIGHT)
    if d < 0:
        image = image.transpose(transpose.FLIP_TOP_BOTTOM)
    return image
