"""``genimg-fast edit``: pictures, and sequences of frames, changed by a tool or by a trained model."""

from collections.abc import Callable
from typing import Any

from genimg_fast.cli.commands import add_function
from genimg_fast.cli.edit import frames, latents


def add(commands: Any) -> None:
    """Add the command, with a subcommand for each edit."""
    text = "Edit pictures, or sequences of frames."
    edits = commands.add_parser("edit", help=text, description=text).add_subparsers(
        title="edits", metavar="EDIT", required=True
    )
    functions: list[Callable[..., int]] = [
        frames.continue_, frames.fill, frames.retime, frames.complete,
        latents.project, latents.vary, latents.attribute, latents.mix,
    ]  # fmt: skip
    for function in functions:
        add_function(edits, function)
