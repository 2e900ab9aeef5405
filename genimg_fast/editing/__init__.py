"""Editing pictures.

A picture is a tensor of floating-point numbers in [0, 1], of shape (channels, height, width), as in the tools that
people know from image processing; the models of this package have images in [-1, 1]. Masks are pictures of one
channel. Functions take pictures on any device, and what they return is there, too.
"""

from genimg_fast.data import degradations
from genimg_fast.editing.denoise import denoise, estimate_sigma
from genimg_fast.editing.files import before_and_after, load_picture, save_picture

__all__ = [
    "before_and_after",
    "degradations",
    "denoise",
    "estimate_sigma",
    "load_picture",
    "save_picture",
]
