"""``genimg-fast edit``: pictures, and sequences of frames, changed by a tool or by a trained model."""

from typing import Any

from genimg_fast.cli.commands import add_function
from genimg_fast.cli.edit import frames
from genimg_fast.cli.edit.pictures import add_edit
from genimg_fast.editing import stylise


def add(commands: Any) -> None:
    """Add the command, with a subcommand for each edit."""
    text = "Edit pictures, or sequences of frames."
    edits = commands.add_parser("edit", help=text, description=text).add_subparsers(
        title="edits", metavar="EDIT", required=True
    )
    for function in (frames.continue_, frames.fill, frames.retime, frames.complete):
        add_function(edits, function)
    add_edit(
        edits, stylise, name="style",
        examples="genimg-fast edit style cat.png --style painting.jpg\n"
        "genimg-fast edit style cat.png --style sea.png sand.png --masks sky.png beach.png --preserve-colours",
    )  # fmt: skip
