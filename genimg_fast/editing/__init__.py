"""Editing pictures.

A picture is a tensor of floating-point numbers in [0, 1], of shape (channels, height, width), as in the tools that
people know from image processing; the models of this package have images in [-1, 1]. Masks are pictures of one
channel. Functions take pictures on any device, of any floating-point dtype; what they return is there, and of that
dtype, and so are made all other pictures. They compute in float32 at least, without autocast and inference mode,
and without gradients; only ``composite`` and ``degradations``, which are formulas, let those through. What edits
latents (``project``, ``vary``, ``attribute_direction``, ``mix``) takes the model's images, batches in [-1, 1].
"""

from genimg_fast.data import degradations
from genimg_fast.editing.adversarial import Normalised, attack
from genimg_fast.editing.attribute import attribute_direction
from genimg_fast.editing.cut_out import composite, cut_out
from genimg_fast.editing.deblur import deblur
from genimg_fast.editing.denoise import denoise, estimate_sigma
from genimg_fast.editing.enhance import enhance
from genimg_fast.editing.files import before_and_after, load_picture, save_picture
from genimg_fast.editing.foreground import estimate_foreground
from genimg_fast.editing.inpainting import inpaint
from genimg_fast.editing.matting import matte
from genimg_fast.editing.matting_errors import MattingErrors, matting_errors
from genimg_fast.editing.mix import mix
from genimg_fast.editing.project import project
from genimg_fast.editing.quilting import quilt
from genimg_fast.editing.style import stylise
from genimg_fast.editing.texture import texture
from genimg_fast.editing.texture_transport import synthesise
from genimg_fast.editing.upscale import upscale
from genimg_fast.editing.vary import vary

__all__ = [
    "MattingErrors",
    "Normalised",
    "attack",
    "attribute_direction",
    "before_and_after",
    "composite",
    "cut_out",
    "deblur",
    "degradations",
    "denoise",
    "enhance",
    "estimate_foreground",
    "estimate_sigma",
    "inpaint",
    "load_picture",
    "matte",
    "matting_errors",
    "mix",
    "project",
    "quilt",
    "save_picture",
    "stylise",
    "synthesise",
    "texture",
    "upscale",
    "vary",
]
