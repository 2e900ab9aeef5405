"""``genimg-fast edit``: pictures, and sequences of frames, changed by a tool or by a trained model."""

from typing import Any

from genimg_fast.cli.commands import add_function
from genimg_fast.cli.edit import frames
from genimg_fast.cli.edit.adversarial import adversarial
from genimg_fast.cli.edit.pictures import add_edit
from genimg_fast.editing import cut_out


def add(commands: Any) -> None:
    """Add the command, with a subcommand for each edit."""
    text = "Edit pictures, or sequences of frames."
    edits = commands.add_parser("edit", help=text, description=text).add_subparsers(
        title="edits", metavar="EDIT", required=True
    )
    for function in (frames.continue_, frames.fill, frames.retime, frames.complete, adversarial):
        add_function(edits, function)
    add_edit(
        edits,
        cut_out,
        name="matte",
        examples="""genimg-fast edit matte cat.png --trimap trimap.png
            genimg-fast edit matte cat.png --trimap trimap.png --background beach.jpg --out holiday.jpg""",
        alpha=False,
    )
