"""Fused operators in functional form; beside each, its reference in plain PyTorch."""

from genimg_fast.ops.batch_norm_act import batch_norm_act, batch_norm_act_reference

__all__ = ["batch_norm_act", "batch_norm_act_reference"]
