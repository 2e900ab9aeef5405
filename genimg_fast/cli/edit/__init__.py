"""``genimg-fast edit``: pictures, and sequences of frames, changed by a tool or by a trained model."""

from collections.abc import Callable
from typing import Any

from genimg_fast.cli.commands import add_function
from genimg_fast.cli.edit import frames, latents
from genimg_fast.cli.edit.pictures import add_edit
from genimg_fast.editing import inpaint, quilt


def add(commands: Any) -> None:
    """Add the command, with a subcommand for each edit."""
    text = "Edit pictures, or sequences of frames."
    edits = commands.add_parser("edit", help=text, description=text).add_subparsers(
        title="edits", metavar="EDIT", required=True
    )
    add_edit(
        edits, inpaint,
        examples="""
            genimg-fast edit inpaint street.jpg --mask car.png --dilate 4
            genimg-fast edit inpaint street.jpg --mask car.png --guide pavement.png --before-after
        """,
    )  # fmt: skip
    add_edit(
        edits, quilt, name="texture", alpha=False,
        examples="""
            genimg-fast edit texture bricks.png --size 512 512
            genimg-fast edit texture gravel.png --size 512 512 --patch 48 --tileable
        """,
    )  # fmt: skip
    functions: list[Callable[..., int]] = [
        latents.project, latents.vary, latents.attribute, latents.mix,
        frames.continue_, frames.fill, frames.retime, frames.complete,
    ]  # fmt: skip
    for function in functions:
        add_function(edits, function)
