"""Editing pictures.

A picture is a tensor of floating-point numbers in [0, 1], of shape (channels, height, width), as in the tools that
people know from image processing; the models of this package have images in [-1, 1]. Masks are pictures of one
channel. Functions take pictures on any device, and what they return is there, too.
"""

from genimg_fast.editing.adversarial import Normalised, attack
from genimg_fast.editing.cut_out import composite, cut_out
from genimg_fast.editing.files import before_and_after, load_picture, save_picture
from genimg_fast.editing.foreground import estimate_foreground
from genimg_fast.editing.matting import matte
from genimg_fast.editing.matting_errors import MattingErrors, matting_errors

__all__ = [
    "MattingErrors",
    "Normalised",
    "attack",
    "before_and_after",
    "composite",
    "cut_out",
    "estimate_foreground",
    "load_picture",
    "matte",
    "matting_errors",
    "save_picture",
]
