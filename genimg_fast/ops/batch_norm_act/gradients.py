"""What the backward operator computes, in PyTorch operations: to be transformed or differentiated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genimg_fast.ops._activations import ACTIVATIONS, through_activation
from genimg_fast.ops.batch_norm_act.operands import Backward


def gradients_reference(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Do what the backward operator does with the same arguments.

    Statistics have the values given; in training they also depend on the input. Results that are not needed are
    empty.
    """
    call = Backward(*arguments)
    input, weight = call.input, call.weight
    wide, dims = call.mean.dtype, [d for d in range(input.dim()) if d != 1]
    shape = [1, -1] + [1] * (input.dim() - 2)
    grad, x = call.grad_output.to(wide), input.to(wide)
    mean, invstd = call.mean.detach().view(shape), call.invstd.detach().view(shape)
    if call.training and x.requires_grad:
        batch_variance, batch_mean = torch.var_mean(x, dims, correction=0, keepdim=True)
        mean = mean + (batch_mean - batch_mean.detach())
        invstd = (invstd.pow(-2) + (batch_variance - batch_variance.detach())).rsqrt()
    normalised = (x - mean) * invstd
    scale = invstd if weight is None else invstd * weight.to(wide).view(shape)
    if call.activation != ACTIVATIONS["identity"]:
        before = normalised if weight is None else normalised * weight.to(wide).view(shape)
        if call.bias is not None:
            before = before + call.bias.to(wide).view(shape)
        if call.residual is not None:
            before = before + call.residual.to(wide)
        grad = through_activation(grad, before, call.activation, call.negative_slope)
    grad_bias, grad_weight = grad.sum(dims), (grad * normalised).sum(dims)
    grad_input = grad_residual = input.new_empty(0)
    if call.need_input:
        inner = grad
        if call.training:
            mean_grad, mean_product = (t.view(shape) * (x.shape[1] / x.numel()) for t in (grad_bias, grad_weight))
            inner = grad - mean_grad - normalised * mean_product
        grad_input = (inner * scale).to(input.dtype)
    if call.need_residual:
        grad_residual = grad.to(input.dtype)
    return grad_input, grad_residual, grad_weight, grad_bias
