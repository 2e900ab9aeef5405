"""Which files belong to a data set."""

import os
import stat
import warnings
from pathlib import Path


def list_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    """List what may belong to a data set: subfolders and files, links to either included.

    Names beginning with a dot are left out, and so is what is neither a folder nor a regular file: a pipe, a
    socket, a device. A link that leads nowhere counts as a file, so that reading it names it, if it has a suffix;
    else, as it may have led to a folder, there is a warning.

    Args:
        folder: Where to look.

    Returns:
        Subfolders and files, each in the order of their names.

    Raises:
        OSError: If the folder cannot be read.

    Example:
        >>> from pathlib import Path
        >>> from genimg_fast.data.files import list_folder
        >>> for name in ("b.png", "a.png", ".hidden.png"):
        ...     Path(name).touch()
        >>> [file.name for file in list_folder(Path("."))[1]]
        ['a.png', 'b.png']
    """
    folders, files = [], []
    for entry in sorted(folder.iterdir()):
        if entry.name.startswith("."):
            continue
        try:
            mode = entry.stat().st_mode
        except OSError as error:
            if entry.suffix:
                files.append(entry)
            else:
                warnings.warn(f"skipped: {entry}: {error.strerror}", stacklevel=2)
            continue
        if stat.S_ISDIR(mode):
            folders.append(entry)
        elif stat.S_ISREG(mode):
            files.append(entry)
    return folders, files


def files_below(folder: Path, *, above: Path) -> list[Path]:
    """List the files of a folder and of all folders in it, as :func:`list_folder` does.

    Links are followed. Each folder is read once, whatever the number of ways to it, and ``above`` not at all: a
    link back to where the data set begins would put everything into one class.

    Args:
        folder: Where to begin.
        above: The data set's folder.

    Returns:
        The files, in the order of their paths.

    Raises:
        OSError: If a folder cannot be read.
    """
    seen = {_identity(above)}

    def walk(folder: Path) -> list[Path]:
        identity = _identity(folder)
        if identity in seen:
            return []
        seen.add(identity)
        folders, files = list_folder(folder)
        return files + [file for subfolder in folders for file in walk(subfolder)]

    return sorted(walk(folder))


def _identity(folder: Path) -> tuple[int, int]:
    status = os.stat(folder)
    return status.st_dev, status.st_ino
