"""The folder that a training run writes, and its checkpoints."""

import errno
import fcntl
import json
import os
import re
import socket
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genimg_fast._files import LONGEST_NAME, TEMPORARY, file_name, naming, replacing
from genimg_fast.data.dataset import same_data
from genimg_fast.data.optional import optional_import
from genimg_fast.models.checkpoint import CheckpointError, find_checkpoint, load_checkpoint
from genimg_fast.training.pictures import Picture, printable

# Settings that a run may be resumed with in another form.
_MAY_CHANGE = {"steps", "device", "versions", "code", "memory", "cache", "workers", "skip_broken"}
FEW_POINTS = 10  # of a curve: fewer are marked
_ROOM = LONGEST_NAME - len("00000-")  # for the name of a run


class RunFolder:
    """A numbered folder with everything about one training run.

    It holds ``config.json``, ``stats.jsonl`` (one JSON object a line), ``real.png``, ``samples-<step>.png`` and
    other pictures of the trainer's (``.gif`` for sequences), ``losses.png`` and ``checkpoint.pt``.

    Args:
        path: An existing folder.
        config: Settings of the run, which go into ``config.json`` and into checkpoints: numbers, strings, lists,
            dicts. For :func:`genimg_fast.models.load`, ``model`` is a registered name and ``model_args`` its
            arguments.

    Attributes:
        scale: Pixels of pictures for a pixel; see :func:`genimg_fast.training.save_grid`.

    Example:
        >>> from pathlib import Path
        >>> import genimg_fast as gf
        >>> run = gf.training.RunFolder(Path("."), {"model": "dcgan", "model_args": {"c_dim": 1}})
        >>> run.checkpoint
        PosixPath('checkpoint.pt')
    """

    def __init__(self, path: Path, config: dict[str, Any]) -> None:
        self.scale: int | None = None
        self.path = path
        self.config = config
        self.checkpoint = path / "checkpoint.pt"
        self._unwritten: list[dict[str, float]] = []

    def __fspath__(self) -> str:
        return str(self.path)

    @classmethod
    def create(cls, out: str | Path, name: str, config: dict[str, Any]) -> "RunFolder":
        """Make a folder with the next free number.

        Of several processes one does, and the others get ``RunFolder(path, config)`` of the same path.

        Args:
            out: Folder of all runs; made if it is missing.
            name: What follows the number. What a file's name cannot hold is replaced or, at the end, left out.
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
        for package in ("matplotlib", "PIL.Image"):  # better now than at the first picture
            optional_import(package)
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        numbers = [int(match[0]) for entry in out.iterdir() if (match := re.match(r"\d+(?=-)", entry.name))]
        for number in count(max(numbers, default=-1) + 1):
            path = out / f"{number:05d}-{file_name(name, _ROOM)}"
            try:
                path.mkdir()
                break
            except FileExistsError:  # another run took the number in this moment
                continue
        with replacing(path / "config.json") as temporary:
            temporary.write_text(json.dumps(config, indent=2) + "\n")
        return cls(path, config)

    @classmethod
    def reopen(
        cls,
        path: str | Path,
        config: dict[str, Any],
        *,
        names: Mapping[str, str] | None = None,
        unwritten: Mapping[str, Any] | None = None,
    ) -> "RunFolder":
        """Open the folder of a run in order to go on with it.

        Args:
            path: The folder.
            config: Settings to go on with. They have to be those of the run, but for the number of steps, the
                device and the versions; a schedule of the learning rate depends on the number of steps.
            names: What the caller of the program knows settings by, for the message: flags, such as ``--lr`` for
                ``lr``.
            unwritten: What a run means that does not have a setting: the value that it has as long as nobody knows
                of the setting.

        Returns:
            The run.

        Raises:
            FileNotFoundError: If the folder has no checkpoint.
            ValueError: If the checkpoint is damaged, or a setting is another one; the message shows which.
        """
        path = Path(path)
        if path.name == "checkpoint.pt" and path.is_file():
            path = path.parent
        try:
            before = flat_settings(json.loads(json.dumps(load_checkpoint(path)["config"])))
        except (TypeError, RecursionError) as error:
            raise CheckpointError(f"the config in the checkpoint of {path} is damaged: {error}") from error
        now = flat_settings(json.loads(json.dumps(config)))
        meant = flat_settings(json.loads(json.dumps(unwritten or {})))
        before |= {key: meant[key] for key in now if key in meant and key not in before}
        changed = {
            key
            for key in {**before, **now}
            if key.partition(".")[0] not in _MAY_CHANGE and before.get(key) != now.get(key)
        }
        if "model" in changed:  # explains all the others
            changed = {"model"}
        hint = _compare_data(changed, before, now, names or {})
        if "recipe.schedule" in changed:  # one without steps has none to compare
            changed.discard("recipe.decay_steps")
        if "recipe.decay_steps" in changed:  # is told as the number of steps: not again what follows it
            follows = {key for key in changed if all(c.get(key) == c.get("steps") for c in (before, now))}
            changed -= follows - {"recipe.decay_steps"}
        if changed:
            told = [
                _difference(key, before.get(key), now, names or {}) for key in {**before, **now} if key in changed
            ]
            raise CheckpointError(f"the settings differ from those of {path}: {'; '.join(told)}{hint}")
        return cls(find_checkpoint(path).parent, config)

    @classmethod
    def find(cls, out: str | Path, name: str) -> list[Path]:
        """Find the runs of a name that have a checkpoint, the newest first.

        Args:
            out: Folder of all runs.
            name: What follows the number.
        """
        found = []
        for folder in Path(out).iterdir() if Path(out).is_dir() else []:
            number, _, rest = folder.name.partition("-")
            named = re.fullmatch("[0-9]+", number) is not None and rest == file_name(name, _ROOM)
            if named and (folder / "checkpoint.pt").is_file():
                found.append((int(number), folder))
        return [folder for _, folder in sorted(found, reverse=True)]

    @classmethod
    def latest(cls, out: str | Path, name: str) -> Path | None:
        """Find the newest run of a name that has a checkpoint, or None.

        Args:
            out: Folder of all runs.
            name: What follows the number.
        """
        return next(iter(cls.find(out, name)), None)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in this folder; the system ends that when this process ends.

        Raises:
            BlockingIOError: If another process does; the message has its number.
            OSError: If nothing can be written to the folder.
        """
        file = self.path / ".lock"
        descriptor, exclusive = _lock(file)
        try:
            if exclusive:
                for entry in self.path.iterdir():  # what a process that was killed was writing
                    if entry.name.startswith(TEMPORARY):
                        entry.unlink(missing_ok=True)
            yield
        finally:
            file.unlink(missing_ok=True)  # while it is locked: nobody else can have locked it
            os.close(descriptor)

    def log(self, row: dict[str, float]) -> None:
        """Append a row to ``stats.jsonl``.

        Rows that could not be written are written with the next one.

        Args:
            row: Numbers by name.

        Raises:
            OSError: If ``stats.jsonl`` cannot be written, a full disk included.
        """
        json.dumps(row)
        self._unwritten.append(row)
        stats = self.path / "stats.jsonl"
        lines = "".join(json.dumps(row) + "\n" for row in self._unwritten).encode()
        with naming(stats), open(stats, "ab", buffering=0) as file:
            size = file.seek(0, os.SEEK_END)
            try:
                if file.write(lines) < len(lines):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            except OSError:
                with suppress(OSError):
                    file.truncate(size)  # no half a line
                raise
        self._unwritten = []

    def rows_until(self, step: int) -> list[dict[str, float]]:
        """Get the rows of ``stats.jsonl`` up to a step; drop those behind it, which will be written again.

        Lines that hold no row are left out, with a warning.
        """
        stats = self.path / "stats.jsonl"
        rows = [row for row in read_rows(self.path) if row["step"] <= step]
        with replacing(stats) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return rows

    def save_images(self, name: str, images: Tensor | Picture) -> Path:
        """Write images in [-1, 1] as ``name.png``, a grid, or sequences of them as ``name.gif``, an animated one.

        Images have the shape (n, channels, height, width), sequences (n, frames, channels, height, width). Classes
        have the names that the settings hold as ``classes``. Return the file.
        """
        picture = images if isinstance(images, Picture) else Picture(images=images)
        file = self.path / f"{name}.{'gif' if picture.moves else 'png'}"
        with replacing(file) as temporary:
            picture.save(temporary, scale=self.scale, class_names=self.config.get("classes"))
        return file

    def plot(self, rows: list[dict[str, float]], panels: Sequence[Sequence[str]]) -> None:
        """Draw what the rows hold over their steps, as ``losses.png``.

        Args:
            rows: What to draw; a row without a name's value has no point in its curve.
            panels: The names that are drawn together, each with the held-out images' ``val_<name>``, dashed.
        """
        # Not pyplot: this touches neither the user's figures nor their backend.
        figure = optional_import("matplotlib.figure").Figure(
            figsize=(8, 1 + 3 * len(panels)), layout="constrained"
        )
        figure.suptitle(printable(self.path.name), parse_math=False)
        for axes, names in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
            for name in names:
                held_out = f"val_{name}"
                points = _points(rows, name)
                marker = "." if len(points[0]) < FEW_POINTS else ""
                (line,) = axes.plot(*points, label=name, linewidth=1, marker=marker)
                if any(held_out in row for row in rows):
                    style = {"color": line.get_color(), "linestyle": "--", "linewidth": 1, "marker": "."}
                    axes.plot(*_points(rows, held_out), label=held_out, **style)
            axes.set(xlabel="step")
            axes.grid(alpha=0.3)
            axes.legend()
        with replacing(self.path / "losses.png") as temporary:
            figure.savefig(temporary, dpi=120)

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        """Write ``checkpoint.pt`` so that, killed at any moment, a whole one is there: the old or the new.

        Args:
            state: What :func:`load_checkpoint` shall return.

        Raises:
            OSError: If it cannot be written; the old one is still there.
        """
        try:
            with replacing(self.checkpoint) as temporary, open(temporary, "wb") as file:
                torch.save(state, file)
                file.flush()
                os.fsync(file.fileno())
        except (OSError, RuntimeError) as error:
            good = f"; the last good one, {self.checkpoint}, is still there" if self.checkpoint.is_file() else ""
            # torch.save may turn a full disk into a RuntimeError that hides the reason.
            hidden = isinstance(error, RuntimeError) and isinstance(error.__context__, OSError)
            reason = error.__context__ if hidden else error
            what = getattr(reason, "strerror", None) or reason
            raise OSError(f"cannot write {self.checkpoint}: {what}{good}") from error


def _lock(file: Path) -> tuple[int, bool]:
    """Open and lock a file; return its descriptor, and whether there are locks here at all."""
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace")
            os.close(descriptor)
            raise BlockingIOError(
                f"another process{holder and f' ({holder})'} is training in {file.parent}"
            ) from None
        except OSError as error:
            warnings.warn(f"cannot keep other processes from training in {file.parent}: {error}", stacklevel=4)
            return descriptor, False
        # The process before may have removed the file between these two calls.
        try:
            same = os.path.samestat(os.fstat(descriptor), os.stat(file))
        except FileNotFoundError:
            same = False
        if same:
            with suppress(OSError):  # a full disk: the lock holds without a name
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"PID {os.getpid()} on {socket.gethostname()}".encode(), 0)
            return descriptor, True
        os.close(descriptor)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a run folder's ``stats.jsonl``; lines that hold no row are left out, with a warning."""
    stats = path / "stats.jsonl"
    rows, damaged = [], 0
    for line in stats.read_bytes().splitlines(keepends=True) if stats.is_file() else []:
        row = _row(line)
        if row is not None:
            rows.append(row)
        else:
            damaged += line.endswith(b"\n")  # else it was being written when the process was killed
    if damaged > 0:
        warnings.warn(f"{stats}: {damaged} damaged lines left out", stacklevel=3)
    return rows


def _row(line: bytes) -> dict[str, Any] | None:
    """Read a line of ``stats.jsonl``; None if it holds no row."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


def _points(rows: list[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    points = [(row["step"], row[name]) for row in rows if isinstance(row.get(name), (int, float))]
    return [step for step, _ in points], [value for _, value in points]


def _compare_data(changed: set[str], before: dict[str, Any], now: dict[str, Any], flags: Mapping[str, str]) -> str:
    """Leave out of what has changed how the same data was stored; return what could be done about other data."""
    hint = ""
    for prefix in ("", "val_"):
        sha256, files = keys = f"{prefix}sha256", f"{prefix}files"
        if not changed & {*keys}:
            continue
        named = [known[files][:1] if isinstance(known.get(files), list) else None for known in (before, now)]
        if same_data(before, now, prefix):
            changed -= {*keys}
        elif named[0] is not None and named[0] == named[1] and now.get("skip_broken"):
            changed -= {*keys}
            data = now.get(f"{prefix}data")
            warnings.warn(f"files of {data} have changed: the training goes on with what is there", stacklevel=4)
        elif named[0] is not None and named[0] == named[1] and "skip_broken" in now:
            flag = flags.get("skip_broken", "skip_broken")
            hint = f"; if files were damaged, {flag} goes on with what is there"
        changed -= {sha256 if before.get(sha256) is None or now.get(sha256) is None else files}
    return hint


def _difference(key: str, before: Any, now: dict[str, Any], names: Mapping[str, str]) -> str:
    """Say how a setting differs, by the name that the user knows."""
    if key in ("files", "val_files"):
        return f"files of {now.get(key.replace('files', 'data'))} have changed"
    schedule = now.get("recipe.schedule", "constant")
    of_steps = key == "recipe.decay_steps" and schedule != "constant"
    last = "steps" if of_steps else key.rpartition(".")[2]
    why = f", and the {schedule} schedule depends on it" if of_steps else ""
    return f"{names.get(last, key)} was {before!r} and is {now.get(key)!r}{why}"


def flat_settings(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn settings within settings into one level, with names like ``recipe.ema``."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= flat_settings(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
