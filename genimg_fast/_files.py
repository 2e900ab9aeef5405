"""Files and folders that are whole, or not there."""

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# How the names of files that are being written begin.
TEMPORARY = ".tmp-"
LONGEST_NAME = 255  # bytes, of Linux's file systems


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file under another name first: nobody ever reads half of it, and two writers do not meet.

    Args:
        path: The file.

    Yields:
        The name to write to, in the same folder and with the same ending. It becomes ``path``, or what that links
        to, at the end, or is removed if there was an error. A device, or a pipe, is written to as it is.

    Raises:
        OSError: If the file cannot be written; the message names ``path``.
    """
    if path.exists() and not path.is_file():  # a device, or a pipe, which is no file's place
        with naming(path):
            yield path
        return
    path = path.resolve() if path.is_symlink() else path
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}{path.suffix}")
    try:
        with naming(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Fill a folder under another name first: nobody ever finds half of it.

    Args:
        path: The folder: missing, or empty. Folders around it are made.

    Yields:
        The folder to fill, beside it. It becomes ``path`` at the end, or is removed if there was an error.

    Raises:
        OSError: If a folder cannot be made, or there is something at ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        with naming(path):
            temporary.mkdir()
            yield temporary
            os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the system, such as a full disk, name the file that the user knows."""
    try:
        yield
    except OSError as error:
        if error.errno is None or Path(os.fsdecode(error.filename or path)).parent != path.parent:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def file_name(text: str, room: int = LONGEST_NAME) -> str:
    """Turn any text into a part of a file's name of at most so many bytes."""
    text = "".join("_" if c == "/" or ord(c) < 32 or ord(c) == 127 else c for c in text)
    while len(os.fsencode(text)) > room:
        text = text[:-1]
    return text
