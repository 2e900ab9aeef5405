"""Editing pictures.

A picture is a tensor of floating-point numbers in [0, 1], of shape (channels, height, width), as in the tools that
people know from image processing; the models of this package have images in [-1, 1]. Masks are pictures of one
channel. Functions take pictures on any device, and what they return is there, too.
"""

from genimg_fast.data import degradations
from genimg_fast.editing.deblur import deblur
from genimg_fast.editing.denoise import denoise, estimate_sigma
from genimg_fast.editing.enhance import enhance
from genimg_fast.editing.files import before_and_after, load_picture, save_picture
from genimg_fast.editing.upscale import upscale

__all__ = [
    "before_and_after",
    "deblur",
    "degradations",
    "denoise",
    "enhance",
    "estimate_sigma",
    "load_picture",
    "save_picture",
    "upscale",
]
