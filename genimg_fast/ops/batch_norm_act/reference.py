"""The definition of what is right, in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from genimg_fast.ops._activations import activate, activation_code


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
    activation_code(activation)
    output = F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
    return activate(output if residual is None else output + residual, activation, negative_slope)
