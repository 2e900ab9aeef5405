"""More pixels: by interpolation, or by a network.

Each new pixel is a weighted mean of those around its place: of 4x4 by the bicubic kernel (Keys 1981, a = -0.5), of
6x6 by Lanczos's window of the sinc (a = 3), of Pillow. No detail is made that the picture does not have. A network
makes what it has learned of other pictures; see :class:`genimg_fast.models.Restorer`.
"""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from genimg_fast.data.optional import optional_import
from genimg_fast.editing.networks import load_restorer, restore
from genimg_fast.editing.pictures import check_left_out, check_memory, check_picture, tool
from genimg_fast.options import PositiveInt

_MOST = 16  # beyond, there is nothing to see but the kernel


@tool
def upscale(
    image: Tensor,
    *,
    factor: PositiveInt | None = None,
    method: Literal["lanczos", "bicubic"] | None = None,
    model: str | Path | None = None,
    progress: bool = False,
) -> Tensor:
    """Enlarge a picture.

    Args:
        image: The picture. Its shape is (1 or 3, height, width).
        factor: New pixels to a pixel, along each side; default: 2, or the model's.
        method: ``"lanczos"``, the sharper one and the default, or ``"bicubic"``.
        model: Run of ``restorer``, for sr2, sr3 or sr4, to take instead.
        progress: Whether to show a progress bar, for a model.

    Returns:
        The picture, of shape (channels, factor * height, factor * width), clipped to [0, 1].

    Raises:
        ValueError: If the image is no picture, ``factor`` is not from 1 to 16, not the model's, or too much for
            the memory, the method is unknown, or the model no restorer of such a task.
        ImportError: If Pillow is missing.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.editing.upscale(torch.rand(3, 20, 30), factor=3).shape
        torch.Size([3, 60, 90])
    """
    check_picture(image)
    if model is not None:
        check_left_out("the model is the method", method=method)
        restorer = load_restorer(model, ("sr2", "sr3", "sr4"))
        if factor not in (None, restorer.scale):
            raise ValueError(f"factor must be {restorer.scale}, the model's, got {factor}")
        check_memory(
            "image", image.shape[2] * restorer.scale, image.shape[1] * restorer.scale, 5 * len(image), image
        )
        return restore(restorer, image, None, progress=progress)
    factor, method = 2 if factor is None else factor, method or "lanczos"
    if not 1 <= factor <= _MOST:
        raise ValueError(f"factor must be from 1 to {_MOST}, got {factor}")
    if method not in ("lanczos", "bicubic"):
        raise ValueError(f"method must be lanczos or bicubic, got {method!r}")
    Image, numpy = optional_import("PIL.Image", "editing"), optional_import("numpy")
    size = image.shape[2] * factor, image.shape[1] * factor
    check_memory("factor", *size, 5 * len(image), image)
    kernel = {"lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC}[method]
    planes = [Image.fromarray(plane.numpy()).resize(size, kernel) for plane in image.detach().float().cpu()]
    return torch.stack([torch.from_numpy(numpy.array(plane)) for plane in planes]).clamp(0, 1).to(image)
