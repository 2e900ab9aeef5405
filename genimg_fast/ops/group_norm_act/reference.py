"""The definition of what is right, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg_fast.ops._activations import activate, activation_code
from genimg_fast.ops.group_norm_act.checks import check_modulation


def group_norm_act_reference(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: str = "silu",
    negative_slope: float = 0.01,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
) -> Tensor:
    """Compute :func:`group_norm_act` with PyTorch's own operators: the definition of what is right.

    Example:
        >>> import torch, genimg_fast as gf
        >>> x = torch.randn(8, 64, 16, 16)
        >>> expected = gf.ops.group_norm_act_reference(x, 32)
        >>> torch.allclose(gf.ops.group_norm_act(x, 32), expected, atol=1e-5)
        True
    """
    activation_code(activation)
    return in_steps(input, num_groups, weight, bias, eps, activation, negative_slope, residual, scale, shift)


def in_steps(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    activation: str,
    negative_slope: float,
    residual: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    group_norm: Callable[..., Tensor] = F.group_norm,
) -> Tensor:
    """Compute it with an activation that is known; by position, which saves time that small input notices."""
    if weight is None and bias is not None:
        weight = torch.ones_like(bias)  # torch 2.13 has no gradient of a bias alone
    output = group_norm(input, num_groups, weight, bias, eps)
    if scale is not None or shift is not None:
        check_modulation(input, scale, "scale")
        check_modulation(input, shift, "shift")
        over_planes = (..., *(None,) * (input.dim() - 2))
        if scale is not None:
            output = output * (1 + scale).to(output.dtype)[over_planes]
        if shift is not None:
            output = output + shift.to(output.dtype)[over_planes]
    return activate(output if residual is None else output + residual, activation, negative_slope)
