"""``genimg-fast edit``: pictures, and sequences of frames, changed by a tool or by a trained model."""

from typing import Any

from genimg_fast.cli.commands import add_function
from genimg_fast.cli.edit import frames
from genimg_fast.cli.edit.pictures import add_edit
from genimg_fast.editing import deblur, denoise, enhance, upscale


def add(commands: Any) -> None:
    """Add the command, with a subcommand for each edit."""
    text = "Edit pictures, or sequences of frames."
    edits = commands.add_parser("edit", help=text, description=text).add_subparsers(
        title="edits", metavar="EDIT", required=True
    )
    for function in (frames.continue_, frames.fill, frames.retime, frames.complete):
        add_function(edits, function)
    add_edit(
        edits,
        denoise,
        examples="genimg-fast edit denoise night.jpg\n"
        "genimg-fast edit denoise scan.png --sigma 25\n"
        "genimg-fast edit denoise phone.jpg --model runs/00000-restorer-holiday --before-after",
    )
    add_edit(
        edits,
        deblur,
        examples="genimg-fast edit deblur cat.png --gaussian 1.5\n"
        "genimg-fast edit deblur street.jpg --motion 15 30 --steps 20",
    )
    add_edit(
        edits,
        upscale,
        examples="genimg-fast edit upscale stamp.png --factor 4\n"
        "genimg-fast edit upscale stamp.png --model runs/00000-restorer-photos",
    )
    add_edit(
        edits,
        enhance,
        examples="genimg-fast edit enhance hazy.jpg --contrast 0.02\n"
        "genimg-fast edit enhance room.jpg --exposures dark.jpg bright.jpg\n"
        "genimg-fast edit enhance lamp.jpg --white-balance grey-world",
    )
