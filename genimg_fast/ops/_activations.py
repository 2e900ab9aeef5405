"""The activations that norms and convolutions run as one operator with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

# What the compiled operators call the activations.
ACTIVATIONS = {"identity": 0, "relu": 1, "leaky_relu": 2, "silu": 3}
# Those at images, which end in a range of values.
IMAGE_ACTIVATIONS = {**ACTIVATIONS, "tanh": 4, "sigmoid": 5}


def activation_code(activation: str, choices: Mapping[str, int] = ACTIVATIONS) -> int:
    """Return what the compiled operators call an activation."""
    code = choices.get(activation)
    if code is None:
        raise ValueError(f"unknown activation {activation!r}; choose one of {', '.join(choices)}")
    return code


def activate(input: Tensor, activation: str, negative_slope: float, in_place: bool = False) -> Tensor:
    """Apply an activation by its name."""
    if activation == "relu":
        return F.relu(input, in_place)
    if activation == "leaky_relu":
        return F.leaky_relu(input, negative_slope, in_place)
    if activation == "silu":
        return F.silu(input, in_place)
    if activation == "tanh":
        return input.tanh_() if in_place else input.tanh()
    if activation == "sigmoid":
        return input.sigmoid_() if in_place else input.sigmoid()
    return input


def through_activation(grad: Tensor, before: Tensor, activation: int, negative_slope: float) -> Tensor:
    """Return the gradient before an activation, in operations that can be differentiated.

    Args:
        grad: The gradient behind it.
        before: What it was applied to.
        activation: As the compiled operators call it.
        negative_slope: Of ``"leaky_relu"``.
    """
    # What the first two's gradients record in torch: a second derivative of zeros by what they were given.
    if activation == ACTIVATIONS["relu"]:
        return torch.ops.aten.threshold_backward(grad, before, 0)
    if activation == ACTIVATIONS["leaky_relu"]:
        return torch.ops.aten.leaky_relu_backward(grad, before, negative_slope, False)
    if activation == ACTIVATIONS["silu"]:  # silu_backward has no derivative of its own
        sigmoid = before.sigmoid()
        return grad * (sigmoid * (1 + before * (1 - sigmoid)))
    return grad
