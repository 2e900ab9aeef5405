"""Fused operators in functional form; beside each, its reference in plain PyTorch.

A family is a package. In every one the same is in the same place: `operands` (what is passed), `reference` (the
definition), `gradients` (the same of backward), `checks`, `dispatch` (the table of what the kernels take),
`operator` (the compiled operators: calls, autograd, fake kernels), `__init__` (the public functions). A family of
one file has these as headings, in this order.
"""

from genimg_fast.ops import _flops as _flops
from genimg_fast.ops.batch_norm_act import batch_norm_act, batch_norm_act_reference
from genimg_fast.ops.cell_update import (
    gru_cell_update,
    gru_cell_update_reference,
    lstm_cell_update,
    lstm_cell_update_reference,
)
from genimg_fast.ops.group_norm_act import group_norm_act, group_norm_act_reference
from genimg_fast.ops.image_conv_act import image_conv_act, image_conv_act_reference
from genimg_fast.ops.recurrent import gru, gru_reference, lstm, lstm_reference, rnn, rnn_reference
from genimg_fast.ops.reparameterize_kl import normal_from_seed, reparameterize_kl, reparameterize_kl_reference
from genimg_fast.ops.winograd_conv import (
    winograd_conv2d,
    winograd_conv2d_reference,
    winograd_conv_transpose2d,
    winograd_conv_transpose2d_reference,
)

__all__ = [
    "batch_norm_act",
    "batch_norm_act_reference",
    "group_norm_act",
    "group_norm_act_reference",
    "gru",
    "gru_cell_update",
    "gru_cell_update_reference",
    "gru_reference",
    "image_conv_act",
    "image_conv_act_reference",
    "lstm",
    "lstm_cell_update",
    "lstm_cell_update_reference",
    "lstm_reference",
    "normal_from_seed",
    "reparameterize_kl",
    "reparameterize_kl_reference",
    "rnn",
    "rnn_reference",
    "winograd_conv2d",
    "winograd_conv2d_reference",
    "winograd_conv_transpose2d",
    "winograd_conv_transpose2d_reference",
]
