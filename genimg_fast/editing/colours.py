"""The colours of pictures, moved to those of others.

The map is linear: the optimal transport between Gaussian distributions of the pictures' means and covariances,
which moves colours least of all linear maps that get there. Pitie, Kokaram 2007, https://doi.org/10.1049/cp:20070055.
"""

import torch
from torch import Tensor

_PIECE = 2**20  # pixels whose colours are in memory in float64 at a time


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
    (mean, covariance), (wanted, goal) = _moments(colours, None), _moments(others, weights)
    root = _root(covariance)
    inverse = torch.linalg.inv(root)
    move = inverse @ _root(root @ goal @ root) @ inverse
    pieces = colours.split(_PIECE, 1)
    return torch.cat([(wanted + move @ (piece.double() - mean)).clamp(0, 1).to(colours) for piece in pieces], 1)


def _moments(colours: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute the mean and the covariance, in float64, of which a few pixels at a time are in memory."""
    total = colours.shape[1] if weights is None else weights.sum()
    shares = [1] * -(-colours.shape[1] // _PIECE) if weights is None else weights.split(_PIECE)
    pieces = list(zip(colours.split(_PIECE, 1), shares, strict=True))
    mean = sum((piece.double() * share).sum(1, keepdim=True) for piece, share in pieces) / total
    squares = sum(((piece - mean) * share) @ (piece - mean).T for piece, share in pieces)
    return mean, squares / total + 1e-5 * torch.eye(len(colours), dtype=mean.dtype, device=mean.device)


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
