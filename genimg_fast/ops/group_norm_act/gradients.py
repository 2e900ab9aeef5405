"""What the backward operator computes, in PyTorch operations: to be transformed or differentiated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genimg_fast.ops._activations import ACTIVATIONS, through_activation
from genimg_fast.ops.group_norm_act.operands import Backward


def gradients_reference(*arguments: Any) -> tuple[Tensor, ...]:
    """Do what the backward operator does with the same arguments.

    Statistics have the values given, and depend on the input. Results that are not needed are empty.
    """
    call = Backward(*arguments)
    input, wide = call.input, call.mean.dtype
    samples, channels = input.shape[:2]
    groups = call.num_groups, channels // call.num_groups
    grouped = (samples, *groups, *input.shape[2:])
    planes = list(range(3, input.dim() + 1))

    def spread(tensor: Tensor) -> Tensor:
        """One value per group or channel, of each sample or of all, over the elements."""
        return tensor.to(wide).view(-1, groups[0], tensor.shape[-1] // groups[0], *[1] * len(planes))

    # Everything below is (N, groups, channels of a group, ...).
    x, grad = (t.to(wide).view(grouped) for t in (input, call.grad_output))
    mean, invstd = spread(call.mean.detach()), spread(call.invstd.detach())
    if x.requires_grad:
        own_variance, own_mean = torch.var_mean(x, [2, *planes], correction=0, keepdim=True)
        mean = mean + (own_mean - own_mean.detach())
        invstd = (invstd.pow(-2) + (own_variance - own_variance.detach())).rsqrt()
    normalised = (x - mean) * invstd
    gain = 1 if call.scale is None else 1 + spread(call.scale)
    weight = 1 if call.weight is None else spread(call.weight)
    bias = 0 if call.bias is None else spread(call.bias)
    if call.activation != ACTIVATIONS["identity"]:
        before = (normalised * weight + bias) * gain
        if call.shift is not None:
            before = before + spread(call.shift)
        if call.residual is not None:
            before = before + call.residual.to(wide).view(grouped)
        grad = through_activation(grad, before, call.activation, call.negative_slope)
    nothing = input.new_empty(0)
    grad_input, grad_residual = nothing, call.grad_output.new_empty(0)
    if call.need_input:
        inner = grad * (gain * weight)
        inner_mean = inner.mean([2, *planes], keepdim=True)
        product_mean = (inner * normalised).mean([2, *planes], keepdim=True)
        grad_input = (
            ((inner - inner_mean - normalised * product_mean) * invstd).reshape(input.shape).to(input.dtype)
        )
    if call.need_residual:
        grad_residual = grad.reshape(input.shape).to(call.grad_output.dtype)
    if not call.need_parameters:
        return grad_input, grad_residual, *(nothing.to(wide) for _ in range(4))
    sums, products = grad, grad * normalised
    if planes:
        sums, products = sums.sum(planes, keepdim=True), products.sum(planes, keepdim=True)
    return (
        grad_input,
        grad_residual,
        (products * gain).sum(0).reshape(channels),
        (sums * gain).sum(0).reshape(channels),
        (products * weight + sums * bias).reshape(samples, channels),
        sums.reshape(samples, channels),
    )
