"""Recurrent layers over whole sequences.

Simple recurrence: Elman 1990, "Finding structure in time". GRU: Cho et al. 2014, arXiv:1406.1078, with the reset
gate behind the product as in cuDNN and torch. LSTM: Hochreiter and Schmidhuber 1997, "Long short-term memory",
with the forget gate of Gers et al. 2000, "Learning to forget".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from genimg_fast import _native
from genimg_fast.ops._autograd import call_backward, double_backward, keep_inputs
from genimg_fast.ops._checks import check_flag, check_tensor, check_type
from genimg_fast.ops._dispatch import describe_paths, find_kernels
from genimg_fast.ops.cell_update import (
    WIDE_DTYPE,
    gru_cell_update_reference,
    lstm_cell_update_reference,
    use_native,
)


class Cell(NamedTuple):
    """What the cells differ in: values per hidden unit."""

    name: str
    gates: int
    reserve: int  # what backward needs beside the output: r z n hn with hn = W_n h + b_n, or i f g o c


# What the compiled operators call the cells, in the order of CELLS.
RNN_TANH, RNN_RELU, GRU, LSTM = range(4)
CELLS = (Cell("rnn", 1, 0), Cell("rnn", 1, 0), Cell("gru", 3, 4), Cell("lstm", 4, 5))
_NONLINEARITIES = {"tanh": RNN_TANH, "relu": RNN_RELU}


def _combine_biases(
    cell: int, bias_ih: Tensor | None, bias_hh: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """Return what is added to the projected input, and GRU's bias within the reset gate."""
    if bias_hh is None:
        return bias_ih, None
    if cell != GRU:
        return (bias_hh if bias_ih is None else bias_ih + bias_hh), None
    two = 2 * bias_hh.shape[0] // 3
    outside, bias_n = bias_hh[:two], bias_hh[two:]
    if bias_ih is None:
        return torch.cat((outside, torch.zeros_like(bias_n))), bias_n
    return torch.cat((bias_ih[:two] + outside, bias_ih[two:])), bias_n


def _run_reference(
    input: Tensor,
    h: Tensor,
    c: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    batch_sizes: Tensor | None,
    cell: int,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Run a layer as a loop over its steps."""
    bias, bias_n = _combine_biases(cell, bias_ih, bias_hh)
    if bias_n is not None:
        bias_n = torch.cat((bias_n.new_zeros(2 * bias_n.shape[0]), bias_n))
    gates = F.linear(input, weight_ih, bias)
    steps = gates.unbind() if batch_sizes is None else gates.split(batch_sizes.tolist())
    outputs: list[Tensor] = []
    for gates_x in reversed(steps) if reverse else steps:
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
    if reverse:
        outputs.reverse()
    if not outputs:
        output = gates.new_empty((*gates.shape[:-1], h.shape[1]))
    else:
        output = torch.stack(outputs) if batch_sizes is None else torch.cat(outputs)
    return output, h, c


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
    cell = _rnn_cell(nonlinearity)
    return _run_reference(
        *_prepare(input, (hx,), weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, cell, reverse)
    )[:2]


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
    return _run_reference(
        *_prepare(input, (hx,), weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, GRU, reverse)
    )[:2]


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
    output, h_n, c_n = _run_reference(
        *_prepare(input, _pair_of_states(hx), weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, LSTM, reverse)
    )
    assert c_n is not None
    return output, (h_n, c_n)


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
            :class:`torch.nn.utils.rnn.PackedSequence`: int64 on the CPU, from B downwards.

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
    cell = _rnn_cell(nonlinearity)
    output, h_n, _ = _layer(input, (hx,), weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, cell, reverse)
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
            :class:`torch.nn.utils.rnn.PackedSequence`: int64 on the CPU, from B downwards.

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
    output, h_n, _ = _layer(input, (hx,), weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, GRU, reverse)
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
            :class:`torch.nn.utils.rnn.PackedSequence`: int64 on the CPU, from B downwards.

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
    states = _pair_of_states(hx)
    output, h_n, c_n = _layer(input, states, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, LSTM, reverse)
    return output, (h_n, c_n)


def _pair_of_states(hx: Any) -> tuple[Any, Any]:
    if hx is None:
        return None, None
    if not isinstance(hx, (tuple, list)):
        raise TypeError(f"hx must be a pair (h0, c0), got {type(hx).__name__}")
    if len(hx) != 2:
        raise ValueError(f"hx must be a pair (h0, c0), got {len(hx)} tensors")
    return hx[0], hx[1]


def _rnn_cell(nonlinearity: str) -> int:
    cell = _NONLINEARITIES.get(nonlinearity) if isinstance(nonlinearity, str) else None
    if cell is None:
        raise ValueError(f"unknown nonlinearity {nonlinearity!r}; choose one of {', '.join(_NONLINEARITIES)}")
    return cell


def _check_operands(
    cell: int,
    input: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    batch_sizes: Tensor | None,
) -> tuple[int, int]:
    """Check shapes, dtypes and devices, as the compiled operators do; return B and H."""
    if input.dtype not in WIDE_DTYPE:
        raise ValueError(f"input must be float32, float64, bfloat16 or float16, got {input.dtype}")
    if input.dim() != (3 if batch_sizes is None else 2):
        expected = "(T, B, I)" if batch_sizes is None else "(N, I), with batch_sizes"
        raise ValueError(f"input must have shape {expected}, got {tuple(input.shape)}")
    gates = CELLS[cell].gates
    if weight_hh.dim() != 2 or weight_hh.shape[1] == 0:
        raise ValueError(f"weight_hh must have shape ({gates} * H, H), got {tuple(weight_hh.shape)}")
    hidden = weight_hh.shape[1]
    batch = input.shape[1] if batch_sizes is None else _check_batch_sizes(batch_sizes, input.shape[0], h0)
    for tensor, name, shape in (
        (h0, "h0" if cell == LSTM else "hx", (batch, hidden)),
        (c0, "c0", (batch, hidden)),
        (weight_ih, "weight_ih", (gates * hidden, input.shape[-1])),
        (weight_hh, "weight_hh", (gates * hidden, hidden)),
        (bias_ih, "bias_ih", (gates * hidden,)),
        (bias_hh, "bias_hh", (gates * hidden,)),
    ):
        if tensor is not None:
            check_tensor(tensor, name, shape, input, "input")
    return batch, hidden


def _check_batch_sizes(batch_sizes: Tensor, rows: int, h0: Tensor | None) -> int:
    """Check the lengths of packed sequences; return their number."""
    if batch_sizes.dim() != 1 or batch_sizes.dtype != torch.int64 or not batch_sizes.is_cpu:
        raise ValueError(
            "batch_sizes must be a 1-dimensional int64 tensor on the CPU, got "
            f"{batch_sizes.dtype} of shape {tuple(batch_sizes.shape)} on {batch_sizes.device}"
        )
    if h0 is not None and (torch.compiler.is_compiling() or isinstance(batch_sizes, FakeTensor)):
        # Reading the values would break the graph; the compiled operator checks them.
        return h0.shape[0]
    sizes = batch_sizes.tolist()
    if not sizes or sizes[-1] < 0 or any(later > earlier for earlier, later in pairwise(sizes)):
        raise ValueError(f"batch_sizes must not be empty, negative or increasing, got {sizes}")
    if sum(sizes) != rows:
        raise ValueError(f"batch_sizes must add up to the rows of input, {rows}, got {sum(sizes)}")
    return sizes[0]


def _check_stack(
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    batch_sizes: Tensor | None,
    weights: Sequence[Tensor],
    cell: int,
    bidirectional: bool,
) -> tuple[int, int]:
    """The checks of csrc/recurrent.h, so that tracing refuses what the kernels refuse; return B and H."""
    if not 0 <= cell < len(CELLS):
        raise ValueError(f"cell must be 0 (tanh RNN), 1 (relu RNN), 2 (GRU) or 3 (LSTM), got {cell}")
    if (c0 is None) == (cell == LSTM):
        raise ValueError("c0 belongs to an LSTM, and to no other cell")
    directions = 2 if bidirectional else 1
    if h0.dim() != 3 or h0.shape[0] == 0 or h0.shape[0] % directions:
        raise ValueError(f"h0 must have shape (layers * {directions}, batch, hidden), got {tuple(h0.shape)}")
    if c0 is not None:
        check_tensor(c0, "c0", h0.shape, input, "input")
    parts, x, state = h0.shape[0], input, (0, 0)
    if len(weights) not in (2 * parts, 4 * parts):
        raise ValueError(f"{parts} layers times directions have 2 or 4 weights each, got {len(weights)} in all")
    each = len(weights) // parts
    for k in range(parts):
        if k == directions:
            x = input.new_empty((*input.shape[:-1], directions * h0.shape[2]))
        weight_ih, weight_hh, *biases = weights[k * each : (k + 1) * each]
        c = None if c0 is None else c0[k]
        bias_ih, bias_hh = biases or (None, None)
        state = _check_operands(cell, x, h0[k], c, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes)
    return state


def _prepare(
    input: Tensor,
    hx: Sequence[Tensor | None],
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    batch_sizes: Tensor | None,
    cell: int,
    reverse: bool,
) -> tuple[Any, ...]:
    """Check the arguments of the public functions, cast them for autocast, return those of :func:`run_native`."""
    state_names = ("h0", "c0") if cell == LSTM else ("hx",)
    given: dict[str, Any] = {"input": input, "weight_ih": weight_ih, "weight_hh": weight_hh}
    optional = dict(zip((*state_names, "bias_ih", "bias_hh"), (*hx, bias_ih, bias_hh), strict=True))
    given |= {name: tensor for name, tensor in optional.items() if tensor is not None}
    for name, tensor in given.items():
        check_type(tensor, name)
    if batch_sizes is not None:
        check_type(batch_sizes, "batch_sizes")
    check_flag(reverse, "reverse")
    kind = input.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind) and input.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        given = {name: tensor.to(dtype) for name, tensor in given.items()}
    states = [given.get(name) for name in state_names]
    parameters = [given.get(name) for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
    input = given["input"]
    operands: tuple[Any, ...] = (input, states[0], states[1] if cell == LSTM else None, *parameters, batch_sizes)
    shape = _check_operands(cell, *operands)
    h0, *c0 = (input.new_zeros(shape) if state is None else state for state in states)
    return input, h0, c0[0] if c0 else None, *parameters, batch_sizes, cell, reverse


def _layer(*arguments: Any) -> tuple[Any, ...]:
    arguments = _prepare(*arguments)
    if not use_native(CELLS[arguments[8]].name, KERNELS, arguments[:7]):
        return _run_reference(*arguments)
    input, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, cell, reverse = arguments
    weights = [weight_ih, weight_hh]
    if bias_ih is not None or bias_hh is not None:
        weights.append(torch.zeros_like(bias_hh) if bias_ih is None else bias_ih)
        weights.append(torch.zeros_like(bias_ih) if bias_hh is None else bias_hh)
    states = h0.unsqueeze(0), None if c0 is None else c0.unsqueeze(0)
    output, h_n, c_n = run_native(input, *states, batch_sizes, weights, cell, reverse=reverse)
    return output, h_n.squeeze(0), c_n.squeeze(0) if cell == LSTM else c_n


class LayerCall(NamedTuple):
    """What decides between the compiled operator and torch's own layer."""

    cell: int
    steps: int
    batch: int
    input_size: int
    hidden: int

    @property
    def rows(self) -> int:
        """Rows of the input's product."""
        return self.steps * self.batch

    @property
    def weights(self) -> int:
        """Number of weights."""
        return CELLS[self.cell].gates * self.hidden * (self.input_size + self.hidden)


# Where torch's layer is the faster one: for `info` in words, then as a rule.
#
# On the CPU that is where measurements say so by more than 5 %. Packing the weights takes about as long as
# multiplying ten rows by them; torch's RNN and GRU do not pack them, its LSTM, which is oneDNN's, does.
#
# On CUDA it is a prediction, not yet measured: up to about H = 128 one block holds the recurrent weights for all
# steps (a float32 LSTM's up to 115, the others run step by step); the products of larger layers are cuDNN's.
TORCHS_LAYERS: dict[str, tuple[str, Callable[[LayerCall], bool]]] = {
    "cpu": (
        "RNNs and GRUs with 2^17 weights over fewer than 8 rows (T * B), with 2^20 over one step of fewer than 32",
        lambda call: (
            call.cell != LSTM
            and (
                (call.rows < 8 and call.weights >= 1 << 17)
                or (call.steps == 1 and call.batch < 32 and call.weights >= 1 << 20)
            )
        ),
    ),
    "cuda": (
        "more than 128 hidden units, unless cuDNN is disabled",
        lambda call: call.hidden > 128 and torch.backends.cudnn.enabled,
    ),
}


def choose_path(device: torch.device, call: LayerCall) -> bool:
    """Return whether a layer is to run on the compiled operator, of which there is one, or on torch's own layer.

    Args:
        device: Of all tensors.
        call: What is to be computed.
    """
    if _native._backend == "native" or torch.compiler.is_compiling():
        return True
    return not TORCHS_LAYERS[device.type][1](call)


def run_native(
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    batch_sizes: Tensor | None,
    weights: Sequence[Tensor],
    cell: int,
    bidirectional: bool = False,
    reverse: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run layers, each over the output of the one before, on the compiled operator, which checks what there is.

    Args:
        input: As the other tensors a plain one, of the shape that the public functions say.
        h0: (L * D, B, H) for L layers with D directions.
        c0: (L * D, B, H) for an LSTM, else None.
        batch_sizes: Of packed data.
        weights: Of each layer and direction (G * H, I or D * H), (G * H, H) and, all or none, two biases (G * H,),
            in the order of :class:`torch.nn.RNN`.
        cell: ``RNN_TANH``, ``RNN_RELU``, ``GRU`` or ``LSTM``.
        bidirectional: Run in both directions, and return their outputs side by side.
        reverse: Run the first direction, or the only one, backwards in time, and the second one forwards.

    Returns:
        Output, (T, B, D * H) or (N, D * H), final state, final cell state (empty unless the cell is an LSTM).
    """
    differentiable = torch.is_grad_enabled() and (
        input.requires_grad
        or h0.requires_grad
        or (c0 is not None and c0.requires_grad)
        or any(weight.requires_grad for weight in weights)
    )
    options = cell, bidirectional, reverse, differentiable
    if differentiable and not torch.compiler.is_compiling():
        output, h_n, c_n, *_ = _Layers.apply(input, h0, c0, batch_sizes, *options, *weights)
        return output, h_n, c_n
    # Dynamo runs the backward of an autograd.Function without recording it, which would drop second-order
    # gradients; the operators' registered formulas do without.
    operator, arguments = torch.ops.genimg_fast.recurrent.default, (input, h0, c0, batch_sizes, weights, *options)
    if torch.compiler.is_compiling():
        return operator(*arguments)[:3]
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)[:3]


def _keep_for_backward(ctx: Any, inputs: Sequence[Any], weights: Sequence[Tensor], kept: Sequence[Tensor]) -> None:
    """Keep what :func:`_gradients` needs; `inputs` are the operator's but the weights.

    That is nothing which torch's own layers let the caller change in place: neither the output nor the biases.
    """
    input, h0, c0, batch_sizes, cell, bidirectional, reverse, keep = inputs
    if not keep:
        raise RuntimeError("recurrent: keep must be True where gradients are needed")
    each = len(weights) // h0.shape[0]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, h0, c0, batch_sizes, *kept, *(w for k, w in enumerate(weights) if k % each < 2))
    ctx.kept, ctx.options = len(kept), (cell, bidirectional, reverse, each == 4)


def _gradients(
    ctx: Any, grads: Sequence[Tensor | None], grad_kept: Sequence[Tensor | None], need: Sequence[bool], count: int
) -> tuple[Any, ...] | None:
    """Return the gradients of input, states and weights, or None if all of them are.

    Args:
        ctx: Of the forward operator's call.
        grads: At its output and final states.
        grad_kept: At what it kept for backward.
        need: Of input, h0 and c0, then of the weights, which of them are needed.
        count: Number of weights.
    """
    grad_output, grad_h_n, grad_c_n = grads
    if ctx.options[0] != LSTM:
        grad_c_n = None
    direct = any(grad is not None for grad in grad_kept)
    if grad_output is None and grad_h_n is None and grad_c_n is None and not direct:
        return None
    saved = ctx.saved_tensors
    kept, weights = saved[4 : 4 + ctx.kept], saved[4 + ctx.kept :]
    grads = (grad_output, grad_h_n, grad_c_n)
    others = (*saved[:4], kept, weights, *ctx.options, need[0], any(need[3:]))
    if direct:
        # Only derivatives of higher order come here.
        *found, grad_weights = _backward_reference(*grads, *others, grad_kept=grad_kept)
    else:
        operator = torch.ops.genimg_fast.recurrent_backward.default
        *found, grad_weights = call_backward(operator, _backward_reference, grads, *others)
    none: list[Any] = [None] * count
    return tuple(g if n else None for g, n in zip((*found, *(grad_weights or none)), need, strict=True))


class _Layers(torch.autograd.Function):
    """Autograd of the operator in eager mode: costs less per call than the formula registered for torch.compile.

    What is kept for backward is an output like the others: that is how gradients of second order find their way
    to it.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        inputs, weights = arguments[:8], arguments[8:]
        with torch._C._AutoDispatchBelowAutograd():
            *outputs, kept = torch.ops.genimg_fast.recurrent.default(*inputs[:4], weights, *inputs[4:])
        _keep_for_backward(ctx, inputs, weights, kept)
        return *outputs, *kept

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        need = ctx.needs_input_grad
        found = _gradients(ctx, grads[:3], grads[3:], need[:3] + need[8:], len(need) - 8)
        if found is None:
            return (None,) * len(need)
        return *found[:3], None, None, None, None, None, *found[3:]


def _previous_states(output: Tensor, h0: Tensor, batch_sizes: Tensor | None, reverse: bool) -> Tensor:
    """Return for each row of the output the state from which its step was taken."""
    if batch_sizes is None:
        rows, batch = output.flatten(0, 1), h0.shape[0]
        return torch.cat((rows[batch:], h0) if reverse else (h0, rows))[: rows.shape[0]]
    sizes = batch_sizes.tolist()
    steps = output.split(sizes)
    if reverse:
        # A sequence that has no next step begins here.
        later = [torch.cat((step, h0[step.shape[0] : n])) for step, n in zip(steps[1:], sizes[:-1], strict=True)]
        return torch.cat((*later, h0[: sizes[-1]]))
    return torch.cat((h0[: sizes[0]], *(step[:n] for step, n in zip(steps[:-1], sizes[1:], strict=True))))


def _gradients_from_steps(
    grad_gates: Tensor,
    grad_hidden_n: Tensor,
    input: Tensor,
    output: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    batch_sizes: Tensor | None,
    cell: int,
    reverse: bool,
    need_input: bool,
    need_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of input, weights and biases, torch's order: sums and products over all steps."""
    grad_gates = grad_gates.reshape(-1, grad_gates.shape[-1])
    grad_input = grad_gates.mm(weight_ih).view(input.shape) if need_input else input.new_empty(0)
    if not need_weights:  # an empty tensor of its own for each: an operator's outputs do not share memory
        return grad_input, input.new_empty(0), input.new_empty(0), input.new_empty(0), input.new_empty(0)
    at_hidden = grad_gates
    if cell == GRU:
        # What the recurrent product sees: the candidate's gradient behind the reset gate.
        at_hidden = torch.cat((grad_gates[:, : 2 * h0.shape[1]], grad_hidden_n), dim=1)
    return (
        grad_input,
        grad_gates.t().mm(input.flatten(0, -2)),
        at_hidden.t().mm(_previous_states(output, h0, batch_sizes, reverse)),
        grad_gates.sum(0),
        at_hidden.sum(0),
    )


def _part_backward_reference(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    input: Tensor,
    output: Tensor,
    reserve: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    batch_sizes: Tensor | None,
    cell: int,
    reverse: bool,
    need_input: bool,
    need_weights: bool,
    grad_reserve: Tensor | None,
) -> tuple[Tensor, ...]:
    """Do what the backward operator does, for one layer and direction, in PyTorch operations.

    It takes gradients at the reserve as well, and is a function of the saved values: differentiating it gives
    gradients at those, which the forward operator's formula passes on.
    """
    dtype, hidden = WIDE_DTYPE[output.dtype], h0.shape[1]
    sizes = [h0.shape[0]] * output.shape[0] if batch_sizes is None else batch_sizes.tolist()

    def steps(t: Tensor | None, values: int = 1) -> Sequence[Any]:
        if t is None or values == 0:
            return [None] * len(sizes)
        return t.to(dtype).reshape(sum(sizes), values * hidden).split(sizes)

    outputs, grad_outputs = steps(output), steps(grad_output)
    reserves, grad_reserves = steps(reserve, CELLS[cell].reserve), steps(grad_reserve, CELLS[cell].reserve)
    states = steps(_previous_states(output, h0, batch_sizes, reverse))
    if c0 is not None:
        all_cell_states = reserve[:, 4 * hidden :].reshape(output.shape)
        cell_states = steps(_previous_states(all_cell_states, c0, batch_sizes, reverse))
    weight = weight_hh.to(dtype)
    dh, dc = (h0.new_zeros(h0.shape, dtype=dtype) if g is None else g.to(dtype) for g in (grad_h_n, grad_c_n))
    grads_at_gates: list[Any] = [None] * len(sizes)
    grads_at_hidden_n: list[Any] = [None] * len(sizes)
    for t in range(len(sizes)) if reverse else reversed(range(len(sizes))):
        n, h = sizes[t], states[t]
        g = dh[:n] if grad_outputs[t] is None else dh[:n] + grad_outputs[t]
        direct = (0.0,) * 5 if grad_reserves[t] is None else grad_reserves[t].chunk(CELLS[cell].reserve, dim=1)
        carried: Tensor | float = 0.0
        if cell == LSTM:
            i, f, candidate, o, c = reserves[t].chunk(5, dim=1)
            tanh_c = c.tanh()
            g_c = dc[:n] + g * o * (1 - tanh_c * tanh_c) + direct[4]
            at_hidden = at_gates = torch.cat(
                (
                    (g_c * candidate + direct[0]) * i * (1 - i),
                    (g_c * cell_states[t] + direct[1]) * f * (1 - f),
                    (g_c * i + direct[2]) * (1 - candidate * candidate),
                    (g * tanh_c + direct[3]) * o * (1 - o),
                ),
                dim=1,
            )
            dc = torch.cat((g_c * f, dc[n:]))
        elif cell == GRU:
            r, z, candidate, hn = reserves[t].chunk(4, dim=1)
            g_n = (g * (1 - z) + direct[2]) * (1 - candidate * candidate)
            g_z = (g * (h - candidate) + direct[1]) * z * (1 - z)
            g_r = (g_n * hn + direct[0]) * r * (1 - r)
            g_hn = g_n * r + direct[3]
            at_gates, at_hidden = torch.cat((g_r, g_z, g_n), dim=1), torch.cat((g_r, g_z, g_hn), dim=1)
            grads_at_hidden_n[t] = g_hn
            carried = g * z
        else:
            y = outputs[t]
            # relu's is a function of y as well, if a flat one: torch's gradients of second order are zeros there.
            relu_backward = torch.ops.aten.threshold_backward
            at_hidden = at_gates = g * (1 - y * y) if cell == RNN_TANH else relu_backward(g, y, 0)
        grads_at_gates[t] = at_gates
        dh = torch.cat((at_hidden.mm(weight) + carried, dh[n:]))
    nothing = h0.new_empty(0, dtype=dtype)
    grad_input, *grad_parameters = _gradients_from_steps(
        torch.cat(grads_at_gates) if sizes else nothing.view(0, CELLS[cell].gates * hidden),
        torch.cat(grads_at_hidden_n) if sizes and cell == GRU else nothing.view(0, hidden),
        input.to(dtype), output.to(dtype), h0.to(dtype), weight_ih.to(dtype), batch_sizes, cell, reverse,
        need_input, need_weights,
    )  # fmt: skip
    gradients = (grad_input, dh, dc if cell == LSTM else nothing, *grad_parameters)
    return tuple(g.to(output.dtype) for g in gradients)


def _part_backward_by_steps(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    input: Tensor,
    output: Tensor,
    reserve: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    batch_sizes: Tensor | None,
    cell: int,
    reverse: bool,
    need_input: bool,
    need_weights: bool,
    grad_reserve: None,
) -> tuple[Tensor, ...]:
    """Likewise on the kernel of the steps."""
    grad_gates, grad_hidden_n, grad_h0, grad_c0 = torch.ops.genimg_fast.recurrent_steps_backward.default(
        grad_output, grad_h_n, grad_c_n, output, reserve, h0, c0, weight_hh, batch_sizes, cell, reverse
    )
    grad_input, *grad_parameters = _gradients_from_steps(
        grad_gates, grad_hidden_n, input, output, h0, weight_ih, batch_sizes, cell, reverse,
        need_input, need_weights,
    )  # fmt: skip
    return grad_input, grad_h0, grad_c0, *grad_parameters


def _columns(rows: Tensor, first: int, count: int) -> Tensor:
    # Not all of them as a slice of themselves: the transform behind is_grads_batched lacks that view.
    return rows if rows.shape[-1] == count else rows[..., first : first + count]


def _add(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second


def _backward_by_parts(
    part_backward: Callable[..., tuple[Tensor, ...]],
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    batch_sizes: Tensor | None,
    kept: Sequence[Tensor],
    weights: Sequence[Tensor],
    cell: int,
    bidirectional: bool,
    reverse: bool,
    biased: bool,
    need_input: bool,
    need_weights: bool,
    *,
    grad_kept: Sequence[Tensor | None] = (),
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Do what the backward operator does, given a function for one part: one layer in one direction.

    It takes gradients at what forward kept as well.
    """
    parts, hidden, directions = h0.shape[0], h0.shape[2], 2 if bidirectional else 1
    layers, each = parts // directions, 4 if biased else 2
    outputs, reserves = kept[:layers], kept[layers:] or [input.new_empty(0)] * parts
    grad_kept = grad_kept or [None] * len(kept)
    grad_outputs, grad_reserves = list(grad_kept[:layers]), grad_kept[layers:] or [None] * parts
    grad_outputs[-1] = _add(grad_outputs[-1], grad_output)
    grad_states: list[Any] = [None] * parts
    grad_weights: list[Any] = [None] * (each * parts)
    grad_input = input.new_empty(0)
    for k in reversed(range(parts)):
        layer, direction = divmod(k, directions)
        grad, wanted = grad_outputs[layer], layer > 0 or need_input
        found, *grad_states[k], grad_weight_ih, grad_weight_hh, grad_bias_ih, grad_bias_hh = part_backward(
            None if grad is None else _columns(grad, direction * hidden, hidden),
            None if grad_h_n is None else grad_h_n[k],
            None if grad_c_n is None else grad_c_n[k],
            outputs[layer - 1] if layer else input,
            _columns(outputs[layer], direction * hidden, hidden),
            reserves[k],
            h0[k],
            None if c0 is None else c0[k],
            *weights[2 * k : 2 * k + 2],
            batch_sizes,
            cell,
            reverse != (direction == 1),
            wanted,
            need_weights,
            grad_reserves[k],
        )
        grad_weights[k * each : (k + 1) * each] = (grad_weight_ih, grad_weight_hh, grad_bias_ih, grad_bias_hh)[
            :each
        ]
        if layer:
            grad_outputs[layer - 1] = _add(grad_outputs[layer - 1], found)
        elif wanted:
            grad_input = grad_input + found if grad_input.shape == found.shape else found
    grad_h0 = torch.stack([h for h, _ in grad_states])
    grad_c0 = torch.stack([c for _, c in grad_states]) if cell == LSTM else input.new_empty(0)
    return grad_input, grad_h0, grad_c0, grad_weights if need_weights else []


_backward_reference: Callable[..., Any] = partial(_backward_by_parts, _part_backward_reference)
_backward_by_steps: Callable[..., Any] = partial(_backward_by_parts, _part_backward_by_steps)


def _run_by_steps(
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    batch_sizes: Tensor | None,
    weights: Sequence[Tensor],
    cell: int,
    bidirectional: bool,
    reverse: bool,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Do what the operator does where the library has a kernel for the steps only: on CUDA."""
    _check_stack(input, h0, c0, batch_sizes, weights, cell, bidirectional)
    parts, directions = h0.shape[0], 2 if bidirectional else 1
    each = len(weights) // parts
    x, layers, results = input, [], []
    for k in range(parts):
        weight_ih, weight_hh, *biases = weights[k * each : (k + 1) * each]
        outside, bias_n = _combine_biases(cell, *(biases or (None, None)))
        gates, c = F.linear(x, weight_ih, outside), None if c0 is None else c0[k]
        backwards = reverse != (k % directions == 1)
        results.append(
            torch.ops.genimg_fast.recurrent_steps.default(
                gates, h0[k], c, weight_hh, bias_n, batch_sizes, cell, backwards, keep
            )
        )
        if (k + 1) % directions == 0:
            outputs = [result[0] for result in results[-directions:]]
            x = torch.cat(outputs, -1) if bidirectional else outputs[0]
            layers.append(x)
    h_n, c_n = (torch.stack([result[kind] for result in results]) for kind in (1, 2))
    kept = [*layers, *(result[3] for result in results if CELLS[cell].reserve > 0)] if keep else []
    return x.clone() if keep else x, h_n, c_n if cell == LSTM else input.new_empty(0), kept


if find_kernels("recurrent_steps").get("cuda"):
    torch.library.impl("genimg_fast::recurrent", "CUDA")(_run_by_steps)
    torch.library.impl("genimg_fast::recurrent_backward", "CUDA")(_backward_by_steps)

KERNELS = find_kernels("recurrent")

if KERNELS:

    @torch.library.register_fake("genimg_fast::recurrent")
    def _(
        input: Tensor,
        h0: Tensor,
        c0: Tensor | None,
        batch_sizes: Tensor | None,
        weights: Sequence[Tensor],
        cell: int,
        bidirectional: bool,
        reverse: bool,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        _, hidden = _check_stack(input, h0, c0, batch_sizes, weights, cell, bidirectional)
        parts, directions = h0.shape[0], 2 if bidirectional else 1
        rows, values = input.shape[:-1].numel(), CELLS[cell].reserve * hidden
        output, *outputs = (
            input.new_empty((*input.shape[:-1], directions * hidden))
            for _ in range(1 + (parts // directions if keep else 0))
        )
        reserves = [input.new_empty((rows, values)) for _ in range(parts if keep and values else 0)]
        return (
            output,
            input.new_empty(h0.shape),
            input.new_empty(h0.shape if cell == LSTM else 0),
            outputs + reserves,
        )

    @torch.library.register_fake("genimg_fast::recurrent_backward")
    def _(
        grad_output: Tensor | None,
        grad_h_n: Tensor | None,
        grad_c_n: Tensor | None,
        input: Tensor,
        h0: Tensor,
        c0: Tensor | None,
        batch_sizes: Tensor | None,
        kept: Sequence[Tensor],
        weights: Sequence[Tensor],
        cell: int,
        bidirectional: bool,
        reverse: bool,
        biased: bool,
        need_input: bool,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        _, hidden = _check_stack(input, h0, c0, batch_sizes, weights, cell, bidirectional)
        parts, directions = h0.shape[0], 2 if bidirectional else 1
        if len(weights) != 2 * parts:
            raise ValueError("backward takes weight_ih and weight_hh only, without biases")
        layers, values = parts // directions, CELLS[cell].reserve * hidden
        if len(kept) != layers + (parts if values else 0):
            raise ValueError(f"kept must have {layers + (parts if values else 0)} tensors, got {len(kept)}")
        shape, reserve = (*input.shape[:-1], directions * hidden), (input.shape[:-1].numel(), values)
        for tensor, name, expected in (
            (grad_output, "grad_output", shape),
            (grad_h_n, "grad_h_n", h0.shape),
            (grad_c_n, "grad_c_n", h0.shape),
            *((tensor, "kept output", shape) for tensor in kept[:layers]),
            *((tensor, "reserve", reserve) for tensor in kept[layers:]),
        ):
            if tensor is not None:
                check_tensor(tensor, name, expected, input, "input")
        return (
            input.new_empty(input.shape if need_input else 0),
            input.new_empty(h0.shape),
            input.new_empty(h0.shape if cell == LSTM else 0),
            [
                input.new_empty(shape)
                for k in range(parts if need_weights else 0)
                for shape in (
                    *(weight.shape for weight in weights[2 * k : 2 * k + 2]),
                    *([weights[2 * k].shape[:1]] * (2 if biased else 0)),
                )
            ],
        )

    def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        _keep_for_backward(ctx, inputs[:4] + inputs[5:], inputs[4], output[3])

    def _backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        need = ctx.needs_input_grad
        found = _gradients(ctx, grads[:3], grads[3], [*need[:3], *need[4]], len(need[4]))
        if found is None:
            found = (None,) * (3 + len(need[4]))
        return *found[:3], None, list(found[3:]), None, None, None, None

    def _setup_double_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kept = len(inputs[7])
        keep_inputs(ctx, (*inputs[:7], *inputs[7], *inputs[8], *inputs[9:]), output, 7 + ctx.kept + len(inputs[8]))

    def _double_backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        need, first = ctx.needs_input_grad, 7 + ctx.kept  # first: of the weights among the tensors

        def formula(*arguments: Any) -> tuple[Tensor, ...]:
            tensors, options = arguments[:-6], arguments[-6:]
            lists = tensors[7:first], tensors[first:]
            *found, grad_weights = _backward_reference(*tensors[:7], *lists, *options)
            return *found, *grad_weights

        flat = SimpleNamespace(
            saved_tensors=ctx.saved_tensors, needs_input_grad=(*need[:7], *need[7], *need[8]), options=ctx.options
        )
        found = double_backward(formula, flat, *grads[:3], *grads[3])
        return *found[:7], list(found[7:first]), list(found[first:]), None, None, None, None, None, None

    torch.library.register_autograd("genimg_fast::recurrent", _backward, setup_context=_setup_context)
    torch.library.register_autograd(
        "genimg_fast::recurrent_backward", _double_backward, setup_context=_setup_double_backward
    )


def paths() -> dict[str, tuple[str, str]]:
    """Return, for ``info()``, per device the path that ``backend="auto"`` takes and why."""
    described = describe_paths(KERNELS)
    for device, (words, _) in TORCHS_LAYERS.items():
        path, reason = described[device]
        if path == "native":
            described[device] = path, f"{reason}; in layers, torch's own for {words}"
    return described
