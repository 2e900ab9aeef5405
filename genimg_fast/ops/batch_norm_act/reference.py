"""The definition of what is right, in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def batch_norm_act_reference(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    activation: str = "leaky_relu",
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
) -> Tensor:
    """Compute :func:`batch_norm_act` with PyTorch's own operators: the definition of what is right.

    Example:
        >>> import torch, genimg_fast as gf
        >>> x = torch.randn(8, 64, 16, 16)
        >>> expected = gf.ops.batch_norm_act_reference(x, training=True)
        >>> torch.allclose(gf.ops.batch_norm_act(x, training=True), expected, atol=1e-5)
        True
    """
    output = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return add_and_activate(output, residual, activation, negative_slope)


def add_and_activate(output: Tensor, residual: Tensor | None, activation: str, negative_slope: float) -> Tensor:
    """Do what follows batch norm."""
    if residual is not None:
        output = output + residual
    if activation == "relu":
        return F.relu(output)
    if activation == "leaky_relu":
        return F.leaky_relu(output, negative_slope)
    return output
