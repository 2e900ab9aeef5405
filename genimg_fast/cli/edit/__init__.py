"""``genimg-fast edit``: pictures, and sequences of frames, changed by a tool or by a trained model."""

from collections.abc import Callable
from typing import Any

from genimg_fast.cli.commands import add_function
from genimg_fast.cli.edit import frames, latents
from genimg_fast.cli.edit.adversarial import adversarial
from genimg_fast.cli.edit.pictures import add_edit
from genimg_fast.editing import cut_out, deblur, denoise, enhance, inpaint, stylise, texture, upscale


def add(commands: Any) -> None:
    """Add the command, with a subcommand for each edit."""
    text = "Edit pictures, or sequences of frames."
    edits = commands.add_parser("edit", help=text, description=text).add_subparsers(
        title="edits", metavar="EDIT", required=True
    )
    add_edit(
        edits, stylise, name="style",
        examples="""
            genimg-fast edit style cat.png --style painting.jpg
            genimg-fast edit style cat.png --style sea.png sand.png --masks sky.png beach.png --preserve-colours
            genimg-fast edit style cat.png --style painting.jpg --method features --content-weight 0.5
            genimg-fast edit style cat.png --model runs/00000-style-net-photos
        """,
    )  # fmt: skip
    add_edit(
        edits, texture, alpha=False,
        examples="""
            genimg-fast edit texture gravel.png --size 512 512 --tileable
            genimg-fast edit texture bricks.png --size 1024 512 --patch 64
            genimg-fast edit texture grass.png --size 512 512 --method transport
        """,
    )  # fmt: skip
    add_edit(
        edits, inpaint,
        examples="""
            genimg-fast edit inpaint street.jpg --mask car.png --dilate 4
            genimg-fast edit inpaint street.jpg --mask car.png --guide pavement.png --before-after
            genimg-fast edit inpaint scan.jpg --mask dust.png --model runs/00000-restorer-photos
        """,
    )  # fmt: skip
    add_edit(
        edits, denoise,
        examples="""
            genimg-fast edit denoise night.jpg
            genimg-fast edit denoise scan.png --sigma 25
            genimg-fast edit denoise phone.jpg --model runs/00000-restorer-holiday --before-after
        """,
    )  # fmt: skip
    add_edit(
        edits, deblur,
        examples="""
            genimg-fast edit deblur cat.png --gaussian 1.5
            genimg-fast edit deblur street.jpg --motion 15 30 --steps 20
        """,
    )  # fmt: skip
    add_edit(
        edits, upscale,
        examples="""
            genimg-fast edit upscale stamp.png --factor 4
            genimg-fast edit upscale stamp.png --model runs/00000-restorer-photos
        """,
    )  # fmt: skip
    add_edit(
        edits, enhance,
        examples="""
            genimg-fast edit enhance hazy.jpg --contrast 0.02
            genimg-fast edit enhance room.jpg --exposures dark.jpg bright.jpg
            genimg-fast edit enhance lamp.jpg --white-balance grey-world
        """,
    )  # fmt: skip
    add_edit(
        edits, cut_out, name="matte", alpha=False,
        examples="""
            genimg-fast edit matte cat.png --trimap trimap.png
            genimg-fast edit matte cat.png --trimap trimap.png --background beach.jpg --out holiday.jpg
        """,
    )  # fmt: skip
    functions: list[Callable[..., int]] = [
        adversarial, latents.project, latents.vary, latents.attribute, latents.mix,
        frames.continue_, frames.fill, frames.retime, frames.complete,
    ]  # fmt: skip
    for function in functions:
        add_function(edits, function)
