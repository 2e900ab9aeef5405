"""More pixels: by interpolation.

Each new pixel is a weighted mean of those around its place: of 4x4 by the bicubic kernel (Keys 1981, a = -0.5), of
6x6 by Lanczos's window of the sinc (a = 3), of Pillow. No detail is made that the picture does not have.
"""

from typing import Literal

import torch
from torch import Tensor

from genimg_fast.data.optional import optional_import
from genimg_fast.editing.pictures import check_picture
from genimg_fast.options import PositiveInt


def upscale(
    image: Tensor, *, factor: PositiveInt = 2, method: Literal["lanczos", "bicubic"] = "lanczos"
) -> Tensor:
    """Enlarge a picture.

    Args:
        image: The picture. Its shape is (1 or 3, height, width).
        factor: New pixels to a pixel, along each side.
        method: ``"lanczos"``, the sharper one, or ``"bicubic"``.

    Returns:
        The picture, of shape (channels, factor * height, factor * width), clipped to [0, 1].

    Raises:
        ValueError: If the image is no picture, ``factor`` is below 1, or the method unknown.
        ImportError: If Pillow is missing.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.editing.upscale(torch.rand(3, 20, 30), factor=3).shape
        torch.Size([3, 60, 90])
    """
    check_picture(image)
    if factor < 1:
        raise ValueError(f"factor must be at least 1, got {factor}")
    if method not in ("lanczos", "bicubic"):
        raise ValueError(f"method must be lanczos or bicubic, got {method!r}")
    Image, numpy = optional_import("PIL.Image", "editing"), optional_import("numpy")
    size = image.shape[2] * factor, image.shape[1] * factor
    kernel = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}[method]
    planes = [Image.fromarray(plane.numpy()).resize(size, kernel) for plane in image.detach().float().cpu()]
    return torch.stack([torch.from_numpy(numpy.array(plane)) for plane in planes]).clamp(0, 1).to(image)
