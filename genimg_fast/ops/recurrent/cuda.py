"""The operators on CUDA: composed of PyTorch's products and the kernel of the steps."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg_fast import _native
from genimg_fast.ops.recurrent.checks import check_operands
from genimg_fast.ops.recurrent.gradients import LayerBackward, backward_by_layers, gradients_from_steps
from genimg_fast.ops.recurrent.operands import CELLS, LSTM, Backward, Operands, Options, layer_of
from genimg_fast.ops.recurrent.reference import combine_biases


def forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Do what the forward operator does with the same arguments."""
    operands, options, keep = Operands(*arguments[:5]), Options(*arguments[5:8]), arguments[8]
    check_operands(operands, options)
    directions = options.directions
    x, layers, results = operands.input, [], []
    for k in range(operands.h0.shape[0]):
        layer = layer_of(operands, options, k, x)
        bias, bias_n = combine_biases(layer)
        gates = F.linear(x, layer.weight_ih, bias)
        results.append(
            torch.ops.genimg_fast.recurrent_steps.default(
                gates,
                layer.h0,
                layer.c0,
                layer.weight_hh,
                bias_n,
                layer.batch_sizes,
                layer.cell,
                layer.reverse,
                keep,
            )
        )
        if (k + 1) % directions == 0:
            outputs: list[Any] = [result[0] for result in results[-directions:]]
            x = torch.cat(outputs, -1) if options.bidirectional else outputs[0]
            layers.append(x)
    h_n, c_n = (torch.stack([result[kind] for result in results]) for kind in (1, 2))
    kept = [*layers, *(result[3] for result in results if CELLS[options.cell].reserve > 0)] if keep else []
    return x.clone() if keep else x, h_n, c_n if options.cell == LSTM else x.new_empty(0), kept


def backward(*arguments: Any) -> tuple[Any, ...]:
    """Do what the backward operator does with the same arguments."""
    return backward_by_layers(_layer_backward, Backward.of(*arguments))


def _layer_backward(call: LayerBackward) -> tuple[Tensor, ...]:
    layer = call.layer
    grad_gates, grad_hidden_n, grad_h0, grad_c0 = torch.ops.genimg_fast.recurrent_steps_backward.default(
        call.grad_output, call.grad_h_n, call.grad_c_n, call.output, call.reserve, layer.h0, layer.c0,
        layer.weight_hh, layer.batch_sizes, layer.cell, layer.reverse,
    )  # fmt: skip
    grad_input, *grad_parameters = gradients_from_steps(call, grad_gates, grad_hidden_n)
    return grad_input, grad_h0, grad_c0, *grad_parameters


def register_for_cuda() -> None:
    """Make these the operators' kernels on CUDA, if the library has those of the steps."""
    if _native.has_kernel("recurrent_steps", "cuda"):
        torch.library.impl("genimg_fast::recurrent", "CUDA")(forward)
        torch.library.impl("genimg_fast::recurrent_backward", "CUDA")(backward)
