"""``genimg-fast completion``."""

import argparse
from collections.abc import Iterator
from typing import Literal

from genimg_fast.data.optional import optional_import

Shell = Literal["bash", "zsh"]


def completion_script(parser: argparse.ArgumentParser, shell: Shell) -> str:
    """Write the script with which a shell completes commands, flags, choices, and names of files.

    Args:
        parser: The parser of the command line.
        shell: The shell.

    Raises:
        ImportError: If shtab is missing.
    """
    shtab = optional_import("shtab", "completion")
    for action in _actions(parser):
        words = str(action.metavar).split("|")
        if not {"RUN", "FILE", "PATH"}.isdisjoint(words):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif "FOLDER" in words:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    script: str = shtab.complete(parser, shell=shell)
    return script


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Go through the arguments of a parser and of its commands."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
