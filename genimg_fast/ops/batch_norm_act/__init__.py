"""Batch norm, an optional residual and an activation as one operator.

Batch norm: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 1. SiLU: Elfwing et al. 2017, arXiv:1702.03118.
"""

from __future__ import annotations

import torch
from torch import Tensor

from genimg_fast.ops._activations import ACTIVATIONS, activate, activation_code
from genimg_fast.ops._dispatch import check_backend, new
from genimg_fast.ops.batch_norm_act.dispatch import KERNELS
from genimg_fast.ops.batch_norm_act.operands import Operands, Options
from genimg_fast.ops.batch_norm_act.operator import run_native
from genimg_fast.ops.batch_norm_act.reference import batch_norm_act_reference

__all__ = ["batch_norm_act", "batch_norm_act_reference"]

_IDENTITY = ACTIVATIONS["identity"]


def batch_norm_act(
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
    """Normalise each channel over the batch, add a residual, apply an activation, in one pass.

    Equals ``activation(F.batch_norm(input, ...) + residual)``: same numbers, running statistics, gradients of
    first and second order and errors. Backward keeps the input, the residual if an activation follows it, and a
    few values per channel; what the activation was applied to is computed again, ``"silu"``'s too, of which
    PyTorch keeps a tensor of the input's size.

    Parameters and running statistics are of the input's dtype or, beside 16-bit input, all of float32. The
    arithmetic is in float32 (float64 for float64) either way.

    Args:
        input: (N, C, *), float32, float64, bfloat16 or float16, in any memory layout.
        running_mean: (C,), updated in place in training; required in evaluation.
        running_var: (C,), likewise; receives the unbiased variance.
        weight: (C,), scale; None stands for ones.
        bias: (C,), shift; None stands for zeros.
        training: Normalise with the statistics of this batch (True) or the running ones (False).
        momentum: Share of this batch's statistics in the running ones.
        eps: Added to the variance.
        activation: ``"identity"``, ``"relu"``, ``"leaky_relu"`` or ``"silu"``.
        negative_slope: Slope of ``"leaky_relu"`` below zero.
        residual: Shape of ``input``; added before the activation.

    Returns:
        Shape, dtype and memory format of ``input``.

    Raises:
        ValueError: The activation is unknown, or training has one value per channel.
        RuntimeError: Shapes, dtypes or devices do not fit, as :func:`torch.nn.functional.batch_norm` says; or
            the backend is ``"native"`` and no compiled kernel takes these arguments.

    Example:
        >>> import torch, genimg_fast as gf
        >>> x = torch.randn(8, 64, 16, 16)
        >>> gf.ops.batch_norm_act(x, training=True, activation="leaky_relu", negative_slope=0.2).shape
        torch.Size([8, 64, 16, 16])
    """
    code = ACTIVATIONS.get(activation)
    if code is None:
        code = activation_code(activation)  # which raises
    # To look at sizes is to be warned by torch.jit.trace, whose graph consists of PyTorch's operators anyhow.
    if torch._C._get_tracing_state() is None:
        if KERNELS.is_slower("cpu", (input, training, code == _IDENTITY and residual is None)):
            if eps > 0 and (not training or (input.dim() > 1 and input.numel() > input.shape[1])):
                # What F.batch_norm does once it has checked these.
                output = torch.batch_norm(
                    input, weight, bias, running_mean, running_var, training, momentum, eps,
                    torch.backends.cudnn.enabled,
                )  # fmt: skip
                if residual is not None:
                    output = output + residual
                return output if code == _IDENTITY else activate(output, activation, negative_slope)
        else:
            operands = new(Operands, (input, residual, weight, bias, running_mean, running_var))
            options = new(Options, (training, momentum, eps, code, negative_slope))
            reason = KERNELS.why_not(operands, options)
            if reason is None:
                return run_native(operands, options)
            check_backend("batch_norm_act", reason)
    return batch_norm_act_reference(
        input, running_mean, running_var, weight, bias, training, momentum, eps,
        activation=activation, negative_slope=negative_slope, residual=residual,
    )  # fmt: skip
