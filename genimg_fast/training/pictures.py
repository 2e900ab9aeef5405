"""Pictures of what a model does, as files."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from genimg_fast.data.optional import optional_import


def save_grid(images: Tensor, path: str | Path, *, columns: int | None = None) -> None:
    """Write images as a grid.

    Args:
        images: Images in [-1, 1], of shape (n, channels, height, width).
        path: The file; its ending decides the format.
        columns: Images in a row; by default the grid is as square as can be.

    Raises:
        OSError: If the file cannot be written.
        ImportError: If torchvision is missing.

    Example:
        >>> import tempfile, torch, genimg_fast as gf
        >>> gf.training.save_grid(torch.zeros(64, 1, 32, 32), tempfile.mkdtemp() + "/grid.png")
    """
    optional_import("torchvision.utils").save_image(
        images, path, nrow=columns or _square(images), padding=2, normalize=True, value_range=(-1, 1)
    )


def save_animation(
    frames: Tensor, path: str | Path, *, milliseconds: int = 100, columns: int | None = None, bounce: bool = True
) -> None:
    """Write images that change together as an animated grid, played without end.

    Args:
        frames: Images in [-1, 1], of shape (n, frames, channels, height, width); each of the n has its place.
        path: The file; its ending, ``.gif`` or ``.webp``, decides the format.
        milliseconds: How long a frame is shown.
        columns: Images in a row; by default the grid is as square as can be.
        bounce: Whether to play forth and back instead of from the beginning again.

    Raises:
        OSError: If the file cannot be written.
        ImportError: If torchvision or Pillow is missing.

    Example:
        >>> import tempfile, torch, genimg_fast as gf
        >>> frames = torch.linspace(-1, 1, 10).view(1, 10, 1, 1, 1).expand(4, 10, 1, 32, 32)
        >>> gf.training.save_animation(frames, tempfile.mkdtemp() + "/fade.gif")
    """
    make_grid = optional_import("torchvision.utils").make_grid
    from_array = optional_import("PIL.Image").fromarray
    images = []
    for frame in frames.detach().float().cpu().unbind(1):
        grid = make_grid(frame, nrow=columns or _square(frame), padding=2, normalize=True, value_range=(-1, 1))
        grid = grid.mul(255).round().byte().permute(1, 2, 0).numpy()
        # torchvision makes grey images RGB, of which Pillow would keep 256 colours that it thinks fit.
        images.append(from_array(grid[:, :, 0] if frame.shape[1] == 1 else grid))
    if bounce:
        images += images[-2:0:-1]
    images[0].save(path, save_all=True, append_images=images[1:], duration=milliseconds, loop=0)


def printable(text: str) -> str:
    """Get a text that can be drawn or printed: escapes for the bytes of a file's name that are none."""
    return text.encode(errors="backslashreplace").decode()


def plot_latents(mu: Tensor, labels: Tensor, class_names: Sequence[str], path: str | Path) -> None:
    """Draw latent vectors as points coloured by class; longer ones by their first two principal components.

    Args:
        mu: Latent vectors, such as posterior means, of shape (n, z_dim), with z_dim of at least 2.
        labels: Their classes, int64 of shape (n,).
        class_names: Names of the classes.
        path: The file; its ending decides the format.

    Raises:
        ValueError: If ``mu`` has another shape.
        OSError: If the file cannot be written.
        ImportError: If matplotlib is missing.

    Example:
        >>> import tempfile, torch, genimg_fast as gf
        >>> mu, labels = torch.randn(50, 8), torch.arange(50) % 2
        >>> gf.training.plot_latents(mu, labels, ["even", "odd"], tempfile.mkdtemp() + "/latent.png")
    """
    if mu.ndim != 2 or mu.shape[1] < 2 or len(mu) == 0:
        raise ValueError(f"mu must have shape (n, z_dim) with z_dim of at least 2, got {tuple(mu.shape)}")
    points, labels = mu.detach().double().cpu(), labels.cpu()
    names = ("z[0]", "z[1]")
    if mu.shape[1] > 2:
        centred = points - points.mean(0)
        variances, axes = torch.linalg.eigh(centred.T @ centred)  # ascending
        points = centred @ axes[:, [-1, -2]]
        shares = variances[[-1, -2]] / variances.sum().clamp(min=1e-30)
        names = (
            f"1st principal component of z ({shares[0]:.0%} of the variance)",
            f"2nd principal component of z ({shares[1]:.0%})",
        )
    # Not pyplot: this touches neither the user's figures nor their backend.
    figure = optional_import("matplotlib.figure").Figure(figsize=(7, 6), layout="constrained")
    colours = optional_import("matplotlib").colormaps["tab10" if len(class_names) <= 10 else "turbo"]
    plot = figure.subplots()
    for label in range(len(class_names)):
        x, y = points[labels == label].T
        colour = colours(label if len(class_names) <= 10 else label / (len(class_names) - 1))
        plot.scatter(x, y, s=8, color=colour, label=str(label))
    plot.set(xlabel=names[0], ylabel=names[1])
    plot.grid(alpha=0.3)
    if len(class_names) <= 20:
        legend = figure.legend(title="class", markerscale=2, loc="outside right upper")
        # Only here: a legend leaves out labels that begin with an underscore.
        for text, name in zip(legend.get_texts(), class_names, strict=True):
            text.set(text=printable(name), parse_math=False)
    figure.savefig(path, dpi=100)


def _square(images: Tensor) -> int:
    """Number of columns that makes a grid square."""
    return math.ceil(math.sqrt(len(images)))
