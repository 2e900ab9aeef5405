"""Group norm, a modulation per sample and channel, an optional residual and an activation as one operator.

Group norm: Wu and He 2018, arXiv:1803.08494. SiLU: Elfwing et al. 2017, arXiv:1702.03118. Normalisation with scale
and shift from another network: adaptive instance norm, Huang and Belongie 2017, arXiv:1703.06868.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg_fast.ops._activations import ACTIVATIONS, activation_code
from genimg_fast.ops._dispatch import check_backend, new
from genimg_fast.ops.group_norm_act.dispatch import KERNELS
from genimg_fast.ops.group_norm_act.operands import Operands, Options
from genimg_fast.ops.group_norm_act.operator import run_native
from genimg_fast.ops.group_norm_act.reference import group_norm_act_reference, in_steps

__all__ = ["group_norm_act", "group_norm_act_reference"]

_IDENTITY = ACTIVATIONS["identity"]


def group_norm_act(
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
    """Normalise groups of channels of each sample, modulate, add a residual, apply an activation, in one pass.

    Equals ``activation(F.group_norm(input, ...) * (1 + scale) + shift + residual)``, with scale and shift spread
    over the planes: same numbers, gradients of first and second order and errors. ``num_groups = C`` is instance
    norm, ``num_groups = 1`` layer norm over a whole sample. Backward needs only the input, the parameters, the
    residual and two values per group.

    Parameters are of the input's dtype or, beside 16-bit input, of float32. The arithmetic is in float32 (float64
    for float64) either way. Autocast does with 16-bit input what it does in PyTorch: on a GPU the result is in
    float32, without PyTorch's copy of the input in float32; on a CPU the dtype stays what it is.

    Group norm: Wu and He 2018, arXiv:1803.08494. SiLU: Elfwing et al. 2017, arXiv:1702.03118. Scale and shift from
    another network: Huang and Belongie 2017, arXiv:1703.06868.

    Args:
        input: (N, C, *), float32, float64, bfloat16 or float16, in any memory layout.
        num_groups: Into how many groups of consecutive channels to divide the C channels.
        weight: (C,), scale; None stands for ones.
        bias: (C,), shift; None stands for zeros.
        eps: Added to the variance.
        activation: ``"identity"``, ``"relu"``, ``"leaky_relu"`` or ``"silu"``.
        negative_slope: Slope of ``"leaky_relu"`` below zero.
        residual: Shape of ``input``; added before the activation.
        scale: (N, C), what the normalised values are scaled by, less one; None stands for zeros.
        shift: (N, C), what is then added; None stands for zeros.

    Returns:
        Shape and memory format of ``input``, and its dtype; of 16-bit input under autocast on a GPU, float32.

    Raises:
        ValueError: The activation is unknown, scale or shift do not fit, or there is one value in all.
        RuntimeError: Shapes, dtypes or devices do not fit, as :func:`torch.nn.functional.group_norm` says; or
            the backend is ``"native"`` and no compiled kernel takes these arguments.

    Example:
        >>> import torch, genimg_fast as gf
        >>> x = torch.randn(8, 64, 16, 16)
        >>> gf.ops.group_norm_act(x, 32, activation="silu", scale=torch.zeros(8, 64)).shape
        torch.Size([8, 64, 16, 16])
    """
    code = ACTIVATIONS.get(activation)
    if code is None:
        code = activation_code(activation)  # which raises
    # To look at sizes is to be warned by torch.jit.trace, whose graph consists of PyTorch's operators anyhow.
    group_norm = F.group_norm
    if torch._C._get_tracing_state() is None:
        alone = code == _IDENTITY and residual is None and scale is None and shift is None
        if KERNELS.is_slower("cpu", (input, num_groups if alone else 0, False)):
            if _passes_checks(input, num_groups):
                group_norm = torch.group_norm
        else:
            operands = new(Operands, (input, residual, weight, bias, scale, shift))
            options = new(Options, (num_groups, eps, code, negative_slope))
            reason = KERNELS.why_not(operands, options)
            if reason is None:
                return run_native(operands, options)
            check_backend("group_norm_act", reason)
    return in_steps(
        input, num_groups, weight, bias, eps, activation, negative_slope, residual, scale, shift, group_norm
    )


def _passes_checks(input: Tensor, num_groups: int) -> bool:
    """Whether F.group_norm would only pass a plain tensor on; its checks take a quarter of a small call."""
    return (
        type(num_groups) is int
        and 0 < 2 * num_groups <= input.numel()
        and input.dim() > 1
        and torch._C._len_torch_function_stack() == 0
    )
