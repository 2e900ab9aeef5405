"""Recurrent layers over whole sequences.

Simple recurrence: Elman 1990, "Finding structure in time". GRU: Cho et al. 2014, arXiv:1406.1078, with the reset
gate behind the product as in cuDNN and torch. LSTM: Hochreiter and Schmidhuber 1997, "Long short-term memory",
with the forget gate of Gers et al. 2000, "Learning to forget".
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from genimg_fast.ops._dispatch import check_backend
from genimg_fast.ops.recurrent.checks import check_nonlinearity, check_states, prepare
from genimg_fast.ops.recurrent.dispatch import KERNELS
from genimg_fast.ops.recurrent.operands import CELLS, GRU, LSTM, Layer, Operands, Options
from genimg_fast.ops.recurrent.operator import run_native
from genimg_fast.ops.recurrent.reference import gru_reference, lstm_reference, rnn_reference, run_reference

__all__ = ["gru", "gru_reference", "lstm", "lstm_reference", "rnn", "rnn_reference"]


def rnn(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    nonlinearity: str = "tanh",
    reverse: bool = False,
    batch_sizes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run one layer and direction of an Elman network over all steps: one product, then one fused recurrence.

    ``h[t] = f(weight_ih x[t] + bias_ih + weight_hh h[t-1] + bias_hh)``: what :class:`torch.nn.RNN` computes, with
    its parameters; differentiable any number of times. Under autocast everything is computed in autocast's dtype.

    Args:
        input: (T, B, I), or the ``data`` of a packed sequence, (N, I), with ``batch_sizes``; float32, float64,
            bfloat16 or float16, which all tensors share.
        hx: Initial state, (B, H); None stands for zeros.
        weight_ih: (H, I).
        weight_hh: (H, H).
        bias_ih: (H,).
        bias_hh: (H,).
        nonlinearity: ``"tanh"`` or ``"relu"``.
        reverse: Run from the last step of each sequence to its first.
        batch_sizes: Number of sequences that have each step, as in
            :class:`torch.nn.utils.rnn.PackedSequence`: int64 on the CPU, from B downwards. A CUDA graph replays
            those that it was captured with.

    Returns:
        The state after every step, (T, B, H) or (N, H), and after the last one of each sequence, (B, H).

    Raises:
        ValueError: A shape, dtype or device does not fit, ``batch_sizes`` increase, or the nonlinearity is none of
            these.
        RuntimeError: The backend is ``"native"`` and no compiled kernel takes these arguments.

    Example:
        >>> import torch, genimg_fast as gf
        >>> x, w_ih, w_hh = torch.randn(16, 8, 3), torch.randn(64, 3) / 8, torch.randn(64, 64) / 8
        >>> output, h_n = gf.ops.rnn(x, None, w_ih, w_hh)
        >>> output.shape, h_n.shape
        (torch.Size([16, 8, 64]), torch.Size([8, 64]))
    """
    cell = check_nonlinearity(nonlinearity)
    layer = Layer(input, hx, None, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, cell, reverse)
    output, h_n, _ = _run(layer)
    return output, h_n


def gru(
    input: Tensor,
    hx: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    reverse: bool = False,
    batch_sizes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run one layer and direction of a GRU over all steps: one product, then one fused recurrence.

    What :class:`torch.nn.GRU` computes, with its parameters; differentiable any number of times. Under autocast
    everything is computed in autocast's dtype.

    Args:
        input: (T, B, I), or the ``data`` of a packed sequence, (N, I), with ``batch_sizes``; float32, float64,
            bfloat16 or float16, which all tensors share.
        hx: Initial state, (B, H); None stands for zeros.
        weight_ih: (3H, I), the gates r, z and n one below the other.
        weight_hh: (3H, H).
        bias_ih: (3H,).
        bias_hh: (3H,); its last third is added before the reset gate is applied.
        reverse: Run from the last step of each sequence to its first.
        batch_sizes: Number of sequences that have each step, as in
            :class:`torch.nn.utils.rnn.PackedSequence`: int64 on the CPU, from B downwards. A CUDA graph replays
            those that it was captured with.

    Returns:
        The state after every step, (T, B, H) or (N, H), and after the last one of each sequence, (B, H).

    Raises:
        ValueError: A shape, dtype or device does not fit, or ``batch_sizes`` increase.
        RuntimeError: The backend is ``"native"`` and no compiled kernel takes these arguments.

    Example:
        >>> import torch, genimg_fast as gf
        >>> x, w_ih, w_hh = torch.randn(16, 8, 3), torch.randn(192, 3) / 8, torch.randn(192, 64) / 8
        >>> output, h_n = gf.ops.gru(x, None, w_ih, w_hh)
        >>> output.shape, h_n.shape
        (torch.Size([16, 8, 64]), torch.Size([8, 64]))
    """
    layer = Layer(input, hx, None, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, GRU, reverse)
    output, h_n, _ = _run(layer)
    return output, h_n


def lstm(
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    reverse: bool = False,
    batch_sizes: Tensor | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run one layer and direction of an LSTM over all steps: one product, then one fused recurrence.

    What :class:`torch.nn.LSTM` computes, with its parameters; differentiable any number of times. Under autocast
    everything is computed in autocast's dtype.

    Args:
        input: (T, B, I), or the ``data`` of a packed sequence, (N, I), with ``batch_sizes``; float32, float64,
            bfloat16 or float16, which all tensors share.
        hx: Initial state and cell state, (B, H) each; None stands for zeros.
        weight_ih: (4H, I), the gates i, f, g and o one below the other.
        weight_hh: (4H, H).
        bias_ih: (4H,).
        bias_hh: (4H,).
        reverse: Run from the last step of each sequence to its first.
        batch_sizes: Number of sequences that have each step, as in
            :class:`torch.nn.utils.rnn.PackedSequence`: int64 on the CPU, from B downwards. A CUDA graph replays
            those that it was captured with.

    Returns:
        The state after every step, (T, B, H) or (N, H), and the pair of state and cell state after the last one of
        each sequence, (B, H) each.

    Raises:
        ValueError: A shape, dtype or device does not fit, or ``batch_sizes`` increase.
        RuntimeError: The backend is ``"native"`` and no compiled kernel takes these arguments.

    Example:
        >>> import torch, genimg_fast as gf
        >>> x, w_ih, w_hh = torch.randn(16, 8, 3), torch.randn(256, 3) / 8, torch.randn(256, 64) / 8
        >>> output, (h_n, c_n) = gf.ops.lstm(x, None, w_ih, w_hh)
        >>> output.shape, h_n.shape, c_n.shape
        (torch.Size([16, 8, 64]), torch.Size([8, 64]), torch.Size([8, 64]))
    """
    states = check_states(hx)
    layer = Layer(input, *states, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, LSTM, reverse)
    output, h_n, c_n = _run(layer)
    return output, (h_n, c_n)


def _run(layer: Layer) -> tuple[Any, ...]:
    layer = prepare(layer)
    reason = KERNELS.why_not(layer[:7])
    if reason is not None:
        check_backend(CELLS[layer.cell].name, reason)
        return run_reference(layer)
    input, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, cell, reverse = layer
    assert h0 is not None
    weights = [weight_ih, weight_hh]
    if bias_ih is not None:
        weights += [bias_ih, torch.zeros_like(bias_ih) if bias_hh is None else bias_hh]
    elif bias_hh is not None:
        weights += [torch.zeros_like(bias_hh), bias_hh]
    operands = Operands(input, h0.unsqueeze(0), None if c0 is None else c0.unsqueeze(0), batch_sizes, weights)
    output, h_n, c_n = run_native(operands, Options(cell, reverse=reverse))
    return output, h_n.squeeze(0), c_n.squeeze(0) if cell == LSTM else c_n
