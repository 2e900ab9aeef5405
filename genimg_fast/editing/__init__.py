"""Editing pictures.

A picture is a tensor of floating-point numbers in [0, 1], of shape (channels, height, width), as in the tools that
people know from image processing; the models of this package have images in [-1, 1]. Masks are pictures of one
channel. Functions take pictures on any device, and what they return is there, too.
"""

from genimg_fast.editing.files import before_and_after, load_picture, save_picture
from genimg_fast.editing.style import stylise
from genimg_fast.editing.texture_transport import synthesise

__all__ = [
    "before_and_after",
    "load_picture",
    "save_picture",
    "stylise",
    "synthesise",
]
