"""Directions of attributes: where latents of images with an attribute lie, seen from those without.

``"mean"``: from the mean of one set to that of the other. ``"linear"``: perpendicular to the plane that separates
the two sets best, by logistic regression, so that what merely comes along with the attribute is left alone as far
as the sets tell; its length, too, is the distance of the means along it. Added to a latent once, either gives a
typical image without the attribute a typical amount of it.

Larsen et al. 2016, arXiv:1512.09300, section 4; Shen et al. 2020, arXiv:1907.10786, section 3.1.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from genimg_fast._images import check_floating, check_has_numbers
from genimg_fast.editing.pictures import check_choices, tool

_DECAY = 1e-3  # of the regression's weights; its data may be separable


@tool
def attribute_direction(without: Tensor, having: Tensor, *, method: Literal["mean", "linear"] = "mean") -> Tensor:
    """Find the direction of an attribute.

    Args:
        without: Latents of images without the attribute, (n, ...).
        having: Latents of images that have it, (m, ...).
        method: The difference of the means, or the normal of a separating plane.

    Returns:
        The direction, of a latent's shape. Add it, times a strength, to latents.

    Raises:
        ValueError: If a set is empty, or has NaN, shapes differ, or the sets have the same mean.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gf.editing.attribute_direction(torch.zeros(5, 3), torch.ones(4, 3))
        tensor([1., 1., 1.])
    """
    check_choices(method=(method, ("mean", "linear")))
    for name, latents in (("without", without), ("having", having)):
        check_floating(latents, name)
        check_has_numbers(latents, name)
        if not bool(latents.isfinite().all()):
            raise ValueError(f"{name} must be finite numbers")
    if without.shape[1:] != having.shape[1:] or len(without) == 0 or len(having) == 0:
        shapes = f"{tuple(without.shape)} and {tuple(having.shape)}"
        raise ValueError(f"having must be latents of the shape of those without, one each at least, got {shapes}")
    difference = having.mean(0) - without.mean(0)
    if difference.norm() == 0:
        raise ValueError("having must have another mean than the latents without")
    if method == "mean":
        return difference
    normal = _separate(without.flatten(1), having.flatten(1)).view_as(difference)
    normal = normal / normal.norm()
    return normal * (normal * difference).sum()


@torch.enable_grad()
def _separate(without: Tensor, having: Tensor) -> Tensor:
    """Find the weights of a logistic regression between two sets, (n, size) and (m, size)."""
    x = torch.cat([without, having]).double().detach()
    x = x - x.mean(0)
    scale = x.std() + 1e-12
    target = torch.cat([x.new_zeros(len(without)), x.new_ones(len(having))])
    # Both sets count the same, whatever their sizes.
    weight = torch.where(target > 0, 0.5 / len(having), 0.5 / len(without))
    normal = x.new_zeros(x.shape[1], requires_grad=True)
    offset = x.new_zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([normal, offset], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits = (x / scale) @ normal + offset
        value = binary_cross_entropy_with_logits(logits, target, weight, reduction="sum")
        value = value + _DECAY * normal.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return normal.detach().to(without.dtype)
