"""All cases of the package by name, and those of the user's file."""

from genimg_fast.bench import networks, operators
from genimg_fast.bench.entries import Entry, own_entries


def all_entries() -> list[Entry]:
    """List all cases of the package."""
    return [*operators.entries(), *networks.entries()]


def find(name: str, own: str | None = None) -> Entry:
    """Find a case by its name.

    Args:
        name: The name.
        own: ``FILE.py:FUNCTION`` if it is one of the user's.

    Returns:
        The entry.

    Raises:
        KeyError: If there is none.
    """
    for entry in all_entries() if own is None else own_entries(own):
        if entry.name == name:
            return entry
    raise KeyError(name)
