"""What the backward operator computes, in PyTorch operations: to be transformed or differentiated."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genimg_fast.ops._checks import WIDE_DTYPE
from genimg_fast.ops.reparameterize_kl.operands import Backward
from genimg_fast.ops.reparameterize_kl.reference import clamp_logvar, divergence, standard_noise


def gradients_reference(*arguments: Any) -> tuple[Tensor, ...]:
    """Do what the backward operator does with the same arguments."""
    call = Backward.of(*arguments)
    operands, options, grad_kl = call.operands, call.options, call.grad_kl
    mu, prior_mu, prior_logvar = operands.mu, operands.prior_mu, operands.prior_logvar
    dtype = WIDE_DTYPE[mu.dtype]
    mean, unclamped = mu.to(dtype), operands.logvar.to(dtype)
    lv = clamp_logvar(unclamped, options)
    at_mu = at_logvar = at_noise = at_prior_mu = at_prior_logvar = torch.zeros_like(mean)
    if grad_kl is not None:
        per_sample = grad_kl.shape + (1,) * (mu.dim() - 1)
        at_kl = grad_kl if options.per_element else grad_kl.reshape(per_sample).expand_as(mu)
        if options.free_bits > 0:
            at_kl = torch.where(divergence(mean, lv, operands) < options.free_bits, 0.0, at_kl)
        if prior_mu is None or prior_logvar is None:
            at_mu, at_logvar = at_kl * mean, 0.5 * at_kl * torch.expm1(lv)
        else:
            offset, prior_lv = mean - prior_mu.to(dtype), prior_logvar.to(dtype)
            at_mu, at_logvar = at_kl * offset * (-prior_lv).exp(), 0.5 * at_kl * torch.expm1(lv - prior_lv)
            at_prior_mu, at_prior_logvar = -at_mu, -at_logvar - 0.5 * at_mu * offset
    if call.grad_z is not None:
        at_z, std = call.grad_z.to(dtype), (0.5 * lv).exp()
        noise = standard_noise(operands)
        at_mu, at_logvar = at_mu + at_z, at_logvar + 0.5 * at_z * std * noise.to(dtype)
        at_noise = at_z * std
    at_logvar = torch.where((unclamped < options.logvar_min) | (unclamped > options.logvar_max), 0.0, at_logvar)
    needed = (True, True, call.need_noise, call.need_prior, call.need_prior)
    found = (at_mu, at_logvar, at_noise, at_prior_mu, at_prior_logvar)
    return tuple(
        gradient.to(mu.dtype) if need else mu.new_empty(0) for gradient, need in zip(found, needed, strict=True)
    )
