"""Files that are whole, or not there."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# How the names of files that are being written begin.
TEMPORARY = ".tmp-"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file under another name first: nobody ever reads half of it, and two writers do not meet.

    Args:
        path: The file.

    Yields:
        The name to write to, in the same folder and with the same ending. It becomes ``path`` at the end, or is
        removed if there was an error.

    Raises:
        OSError: If the file cannot be written; the message names ``path``.
    """
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}{path.suffix}")
    try:
        with naming(path):
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Let an error of the system, such as a full disk, name the file that the user knows."""
    try:
        yield
    except OSError as error:
        if error.errno is None or Path(os.fsdecode(error.filename or path)).parent != path.parent:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
