"""The definition of what is right, in plain PyTorch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg_fast.ops.cell_update import gru_cell_update_reference, lstm_cell_update_reference
from genimg_fast.ops.recurrent.checks import check_nonlinearity, check_states, prepare
from genimg_fast.ops.recurrent.operands import GRU, LSTM, RNN_TANH, Layer


def rnn_reference(
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
    """Compute :func:`rnn` with PyTorch's own operators: the definition of what is right.

    Example:
        >>> import torch, genimg_fast as gf
        >>> x, w_ih, w_hh = torch.randn(16, 8, 3), torch.randn(64, 3) / 8, torch.randn(64, 64) / 8
        >>> expected = gf.ops.rnn_reference(x, None, w_ih, w_hh)[0]
        >>> torch.allclose(gf.ops.rnn(x, None, w_ih, w_hh)[0], expected, atol=1e-5)
        True
    """
    cell = check_nonlinearity(nonlinearity)
    layer = Layer(input, hx, None, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, cell, reverse)
    return run_reference(prepare(layer))[:2]


def gru_reference(
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
    """Compute :func:`gru` with PyTorch's own operators: the definition of what is right.

    Example:
        >>> import torch, genimg_fast as gf
        >>> x, w_ih, w_hh = torch.randn(16, 8, 3), torch.randn(192, 3) / 8, torch.randn(192, 64) / 8
        >>> expected = gf.ops.gru_reference(x, None, w_ih, w_hh)[0]
        >>> torch.allclose(gf.ops.gru(x, None, w_ih, w_hh)[0], expected, atol=1e-5)
        True
    """
    layer = Layer(input, hx, None, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, GRU, reverse)
    return run_reference(prepare(layer))[:2]


def lstm_reference(
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
    """Compute :func:`lstm` with PyTorch's own operators: the definition of what is right.

    Example:
        >>> import torch, genimg_fast as gf
        >>> x, w_ih, w_hh = torch.randn(16, 8, 3), torch.randn(256, 3) / 8, torch.randn(256, 64) / 8
        >>> expected = gf.ops.lstm_reference(x, None, w_ih, w_hh)[0]
        >>> torch.allclose(gf.ops.lstm(x, None, w_ih, w_hh)[0], expected, atol=1e-5)
        True
    """
    states = check_states(hx)
    layer = Layer(input, *states, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, LSTM, reverse)
    output, h_n, c_n = run_reference(prepare(layer))
    assert c_n is not None
    return output, (h_n, c_n)


def combine_biases(layer: Layer) -> tuple[Tensor | None, Tensor | None]:
    """Return what is added to the projected input, and GRU's bias within the reset gate."""
    bias_ih, bias_hh = layer.bias_ih, layer.bias_hh
    if bias_hh is None:
        return bias_ih, None
    if layer.cell != GRU:
        return (bias_hh if bias_ih is None else bias_ih + bias_hh), None
    two = 2 * bias_hh.shape[0] // 3
    outside, bias_n = bias_hh[:two], bias_hh[two:]
    if bias_ih is None:
        return torch.cat((outside, torch.zeros_like(bias_n))), bias_n
    return torch.cat((bias_ih[:two] + outside, bias_ih[two:])), bias_n


def run_reference(layer: Layer) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run a layer as a loop over its steps."""
    h, c, weight_hh, cell, batch_sizes = layer.h0, layer.c0, layer.weight_hh, layer.cell, layer.batch_sizes
    assert h is not None
    bias, bias_n = combine_biases(layer)
    if bias_n is not None:
        bias_n = torch.cat((bias_n.new_zeros(2 * bias_n.shape[0]), bias_n))
    gates = F.linear(layer.input, layer.weight_ih, bias)
    steps = gates.unbind() if batch_sizes is None else gates.split(batch_sizes.tolist())
    outputs: list[Tensor] = []
    for gates_x in reversed(steps) if layer.reverse else steps:
        n = gates_x.shape[0]  # sequences that have this step; the others are over, or have yet to begin
        gates_h = F.linear(h[:n], weight_hh, bias_n)
        if cell == LSTM:
            assert c is not None
            new, c_new = lstm_cell_update_reference(gates_x + gates_h, c[:n])
            c = torch.cat((c_new, c[n:]))
        elif cell == GRU:
            new = gru_cell_update_reference(gates_x, gates_h, h[:n])
        else:
            new = (gates_x + gates_h).tanh() if cell == RNN_TANH else (gates_x + gates_h).relu()
        h = torch.cat((new, h[n:]))
        outputs.append(new)
    if layer.reverse:
        outputs.reverse()
    if not outputs:
        output = gates.new_empty((*gates.shape[:-1], h.shape[1]))
    else:
        output = torch.stack(outputs) if batch_sizes is None else torch.cat(outputs)
    return output, h, c
