"""Deblurring by a known kernel: Richardson-Lucy, or a Wiener filter.

Richardson 1972 and Lucy 1974 multiply an estimate x of the sharp picture, again and again, by how much brighter
the blurred one y is than x blurred: x <- x K'(m y / Kx) / K'm. Here m is 1 in the picture and 0 around it, where x
goes on by half a kernel: what is not seen says nothing, and borders make no rings (Bertero and Boccacci 2005, "A
simple method for the reduction of boundary effects in the Richardson-Lucy approach to image deconvolution").

The Wiener filter, of scikit-image, divides by the kernel's spectrum H: conj(H) / (|H|² + balance |L|²), with a
Laplacian L, so that little is made of frequencies that the kernel took and of those where there is mostly noise.
It supposes that a picture is periodic. So the picture is continued first: by its mirror image, two kernels wide,
which towards the outside turns into itself blurred over the seam of a torus (edge tapering), a few times over.

Each channel is restored by itself.
"""

from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg_fast.data.degradations import check_kernel, gaussian_kernel, motion_kernel
from genimg_fast.data.optional import optional_import
from genimg_fast.editing.denoise import check_noisy, estimate_sigma
from genimg_fast.editing.networks import load_restorer, restore
from genimg_fast.editing.pictures import Mask, check_left_out, tool
from genimg_fast.options import PositiveFloat, PositiveInt

_TAPERS = 4


@tool
def deblur(
    image: Tensor,
    *,
    gaussian: PositiveFloat | None = None,
    motion: tuple[float, float] | None = None,
    kernel: Mask | None = None,
    method: Literal["richardson-lucy", "wiener"] = "richardson-lucy",
    steps: PositiveInt | None = None,
    balance: PositiveFloat | None = None,
    model: str | Path | None = None,
    progress: bool = False,
) -> Tensor:
    """Sharpen a picture that is blurred by a known kernel.

    Args:
        image: The picture. Its shape is (1 or 3, height, width).
        gaussian: Standard deviation of a blur as of a lens out of focus, in pixels.
        motion: Length in pixels and angle in degrees, counterclockwise, of a camera's motion.
        kernel: Picture of one point, blurred, black around it, in any units; odd height and width.
        method: ``"richardson-lucy"``, or ``"wiener"``, which is faster, and has rings near borders.
        steps: For Richardson-Lucy: how often to improve, less for more noise; default: by the noise.
        balance: For Wiener: how much to hold back, more for more noise; default: by the noise.
        model: Run of ``restorer``, for deblur, to take instead, of a Gaussian blur.
        progress: Whether to show a progress bar, for a model.

    Returns:
        The picture, clipped to [0, 1].

    Raises:
        ValueError: If the image is no picture, or smaller than twice the kernel, or there is not exactly one of
            ``gaussian``, ``motion`` and ``kernel``, or the model is no restorer of blur, or has no ``gaussian``.
        ImportError: If scikit-image is missing, for Wiener.

    Example:
        >>> import torch, genimg_fast as gf
        >>> blur = gf.editing.degradations.Blur(gf.editing.degradations.motion_kernel(9, 30))
        >>> sharp = torch.zeros(1, 96, 96)
        >>> sharp[:, ::12, ::12] = 1.0  # stars
        >>> restored = gf.editing.deblur(blur(sharp), motion=(9, 30))
        >>> bool((restored - sharp).std() < 0.7 * (blur(sharp) - sharp).std())
        True
    """
    check_noisy(image)
    weights = _weights(gaussian, motion, kernel)
    if model is not None:
        if gaussian is None:
            raise ValueError("gaussian must be given for a model")
        check_left_out("a model has none", steps=steps, balance=balance)
        return restore(load_restorer(model, ("deblur",)), image, gaussian, progress=progress)
    if method not in ("richardson-lucy", "wiener"):
        raise ValueError(f"method must be richardson-lucy or wiener, got {method!r}")
    if method == "wiener":
        check_left_out("Wiener's filter takes none", steps=steps)
    else:
        check_left_out("it is for Wiener's filter", balance=balance)
    if balance is not None and not balance > 0:
        raise ValueError(f"balance must be above 0, got {balance}")
    if steps is not None and steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if any(2 * kernel_side >= side for kernel_side, side in zip(weights.shape, image.shape[1:], strict=True)):
        height, width = image.shape[1:]
        name = "gaussian" if gaussian is not None else "kernel" if motion is None else "motion"
        size = "x".join(map(str, reversed(weights.shape)))
        raise ValueError(
            f"{name} must make a blur of less than half the picture, {width}x{height} pixels, got {size}"
        )
    picture = image.detach().double()
    weights = weights.to(picture)
    noise = estimate_sigma(image)
    if method == "wiener":
        restored = _wiener(picture, weights, max(0.01, 0.015 * noise) if balance is None else balance)
    else:
        restored = _richardson_lucy(picture, weights, round(60 / max(noise, 1.2)) if steps is None else steps)
    return restored.clamp(0, 1).to(image.dtype)


def _weights(gaussian: float | None, motion: tuple[float, float] | None, kernel: Tensor | None) -> Tensor:
    ways = {"gaussian": gaussian, "motion": motion, "kernel": kernel}
    given = [name for name, value in ways.items() if value is not None]
    if not given:
        raise ValueError("gaussian must be given, or else motion or kernel")
    if len(given) > 1:
        raise ValueError(f"{given[1]} must be left out with {given[0]}")
    if gaussian is not None:
        if not gaussian > 0:
            raise ValueError(f"gaussian must be above 0, got {gaussian}")
        return gaussian_kernel(gaussian)
    if motion is not None:
        if not motion[0] >= 1:
            raise ValueError(f"motion must have a length of at least 1, got {motion[0]}")
        return motion_kernel(*motion)
    assert kernel is not None
    weights = kernel.squeeze(0) if kernel.dim() == 3 else kernel
    if any(side % 2 == 0 for side in weights.shape):
        size = "x".join(str(side) for side in reversed(weights.shape))
        raise ValueError(f"kernel must have an odd width and height, so that it has a middle, got {size}")
    check_kernel(weights)
    if not (bool((weights >= 0).all()) and float(weights.sum()) > 0):
        raise ValueError("kernel must be black but for the blurred point, and not all black")
    return weights / weights.sum()


def _spectrum(kernel: Tensor, height: int, width: int) -> Tensor:
    """Get the kernel's spectrum on a torus."""
    torus = F.pad(kernel, [0, width - kernel.shape[1], 0, height - kernel.shape[0]])
    return torch.fft.rfft2(torus.roll([-(side // 2) for side in kernel.shape], (0, 1)))


def _filtered(picture: Tensor, spectrum: Tensor) -> Tensor:
    return torch.fft.irfft2(torch.fft.rfft2(picture) * spectrum, s=picture.shape[1:])


def _richardson_lucy(picture: Tensor, kernel: Tensor, steps: int) -> Tensor:
    down, across = (side // 2 for side in kernel.shape)
    around = [across, across, down, down]
    seen = F.pad(torch.ones_like(picture), around)
    blurred = F.pad(picture.clamp_min(0), around)
    spectrum = _spectrum(kernel, *blurred.shape[1:])
    share = _filtered(seen, spectrum.conj()).clamp_min(1e-3)
    sharp = torch.full_like(blurred, 0.5)
    for _ in range(steps):
        ratio = blurred / _filtered(sharp, spectrum).clamp_min(1e-6)
        sharp = (sharp * _filtered(ratio, spectrum.conj()) / share).clamp_min(0)
    height, width = picture.shape[1:]
    return sharp[:, down : down + height, across : across + width]


def _wiener(picture: Tensor, kernel: Tensor, balance: float) -> Tensor:
    wiener = optional_import("skimage.restoration", "editing").wiener
    down, across = (2 * side for side in kernel.shape)
    continued = F.pad(picture.unsqueeze(1), [across, across, down, down], mode="reflect").squeeze(1)
    height, width = continued.shape[1:]
    spectrum = _spectrum(kernel, height, width)
    inside = torch.outer(_ramp(height, down), _ramp(width, across)).to(picture)
    for _ in range(_TAPERS):
        continued = inside * continued + (1 - inside) * _filtered(continued, spectrum)
    planes = [wiener(plane.numpy(), kernel.cpu().numpy(), balance, clip=False) for plane in continued.cpu()]
    restored = torch.stack([torch.as_tensor(plane) for plane in planes]).to(picture)
    return restored[:, down : height - down, across : width - across]


def _ramp(size: int, margin: int) -> Tensor:
    """Rise from 0 to 1 over a margin, and fall over the other."""
    at = torch.arange(size, dtype=torch.float64) + 0.5
    return 0.5 - 0.5 * torch.cos(torch.pi * (torch.minimum(at, size - at) / margin).clamp(max=1))
