"""The colours of pictures, moved to those of others.

The map is linear: the optimal transport between Gaussian distributions of the pictures' means and covariances,
which moves colours least of all linear maps that get there. Pitie, Kokaram 2007, https://doi.org/10.1049/cp:20070055.
"""

import torch
from torch import Tensor


def recoloured(
    content: Tensor, styles: list[Tensor], shares: list[float], regions: Tensor | None = None
) -> Tensor:
    """Give a picture, or each region, the mean and covariance of its styles' colours.

    Args:
        content: The picture.
        styles: Pictures of as many channels.
        shares: How much each counts, without regions.
        regions: Number of the style of each pixel, (height, width).

    Returns:
        The picture with other colours.
    """
    if regions is None:
        pixels = torch.cat([picture.flatten(1) for picture in styles], 1)
        weights = torch.cat(
            [
                pixels.new_full((picture[0].numel(),), share / picture[0].numel())
                for picture, share in zip(styles, shares, strict=True)
            ]
        )
        return moved(content.flatten(1), pixels, weights).view_as(content)
    result = content.flatten(1).clone()
    for number in regions.unique().tolist():
        here = regions.flatten() == number
        pixels = styles[number].flatten(1)
        result[:, here] = moved(result[:, here], pixels, pixels.new_ones(pixels.shape[1]))
    return result.view_as(content)


def moved(colours: Tensor, others: Tensor, weights: Tensor) -> Tensor:
    """Move colours, (channels, n), by the linear optimal transport of Gaussians to the others'."""
    ours, theirs = colours.double(), others.double()
    mean, wanted = ours.mean(1, keepdim=True), (theirs * weights).sum(1, keepdim=True) / weights.sum()
    little = 1e-5 * torch.eye(len(ours), dtype=ours.dtype, device=ours.device)
    covariance = (ours - mean) @ (ours - mean).T / ours.shape[1] + little
    goal = ((theirs - wanted) * weights) @ (theirs - wanted).T / weights.sum() + little
    root = _root(covariance)
    inverse = torch.linalg.inv(root)
    move = inverse @ _root(root @ goal @ root) @ inverse
    return (wanted + move @ (ours - mean)).clamp(0, 1).to(colours)


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
