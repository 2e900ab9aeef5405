"""What the public functions and the operators refuse."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from genimg_fast.ops._checks import check_dtype, check_flag, check_tensor, check_type
from genimg_fast.ops.recurrent.operands import (
    CELLS,
    LSTM,
    RNN_RELU,
    RNN_TANH,
    Backward,
    Layer,
    Operands,
    Options,
    layer_of,
)

_NONLINEARITIES = {"tanh": RNN_TANH, "relu": RNN_RELU}


def check_nonlinearity(nonlinearity: Any) -> int:
    """Return the cell of an RNN."""
    cell = _NONLINEARITIES.get(nonlinearity) if isinstance(nonlinearity, str) else None
    if cell is None:
        raise ValueError(f"unknown nonlinearity {nonlinearity!r}; choose one of {', '.join(_NONLINEARITIES)}")
    return cell


def check_states(hx: Any) -> tuple[Any, Any]:
    """Return the two initial states of an LSTM."""
    if hx is None:
        return None, None
    if not isinstance(hx, (tuple, list)):
        raise TypeError(f"hx must be a pair (h0, c0), got {type(hx).__name__}")
    if len(hx) != 2:
        raise ValueError(f"hx must be a pair (h0, c0), got {len(hx)} tensors")
    return hx[0], hx[1]


def check_batch_sizes(batch_sizes: Tensor, rows: int, h0: Tensor | None) -> int:
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


def check_layer(layer: Layer) -> tuple[int, int]:
    """Check shapes, dtypes and devices, as the compiled operators do; return B and H."""
    input, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, cell, _ = layer
    check_dtype(input, "input")
    if input.dim() != (3 if batch_sizes is None else 2):
        expected = "(T, B, I)" if batch_sizes is None else "(N, I), with batch_sizes"
        raise ValueError(f"input must have shape {expected}, got {tuple(input.shape)}")
    gates = CELLS[cell].gates
    if weight_hh.dim() != 2 or weight_hh.shape[1] == 0:
        raise ValueError(f"weight_hh must have shape ({gates} * H, H), got {tuple(weight_hh.shape)}")
    hidden = weight_hh.shape[1]
    batch = input.shape[1] if batch_sizes is None else check_batch_sizes(batch_sizes, input.shape[0], h0)
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


def prepare(layer: Layer) -> Layer:
    """Check the arguments of the public functions, cast them for autocast, make the states that are not given."""
    names = [("h0" if layer.cell == LSTM else "hx") if name == "h0" else name for name in Layer._fields[:7]]
    input, *others = layer[:7]
    check_type(input, "input")
    for name, tensor in zip(names[1:], others, strict=True):
        if tensor is not None or name.startswith("weight"):
            check_type(tensor, name)
    if layer.batch_sizes is not None:
        check_type(layer.batch_sizes, "batch_sizes")
    check_flag(layer.reverse, "reverse")
    kind = input.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind) and input.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        layer = Layer._make((*(None if t is None else t.to(dtype) for t in layer[:7]), *layer[7:]))
    shape = check_layer(layer)
    if layer.h0 is None:
        layer = layer._replace(h0=layer.input.new_zeros(shape))
    if layer.c0 is None and layer.cell == LSTM:
        layer = layer._replace(c0=layer.input.new_zeros(shape))
    return layer


def check_operands(operands: Operands, options: Options) -> tuple[int, int]:
    """The checks of csrc/recurrent.h, so that tracing refuses what the kernels refuse; return B and H."""
    input, h0, c0, _, weights = operands
    cell, directions = options.cell, options.directions
    if not 0 <= cell < len(CELLS):
        raise ValueError(f"cell must be 0 (tanh RNN), 1 (relu RNN), 2 (GRU) or 3 (LSTM), got {cell}")
    if (c0 is None) == (cell == LSTM):
        raise ValueError("c0 belongs to an LSTM, and to no other cell")
    if h0.dim() != 3 or h0.shape[0] == 0 or h0.shape[0] % directions:
        raise ValueError(f"h0 must have shape (layers * {directions}, batch, hidden), got {tuple(h0.shape)}")
    if c0 is not None:
        check_tensor(c0, "c0", h0.shape, input, "input")
    parts, x, state = h0.shape[0], input, (0, 0)
    if len(weights) not in (2 * parts, 4 * parts):
        raise ValueError(f"{parts} layers times directions have 2 or 4 weights each, got {len(weights)} in all")
    for k in range(parts):
        if k == directions:
            x = input.new_empty((*input.shape[:-1], directions * h0.shape[2]))
        state = check_layer(layer_of(operands, options, k, x))
    return state


def check_backward(call: Backward) -> tuple[int, int]:
    """Likewise, of backward."""
    (input, h0, _, _, weights), kept = call.operands, call.kept
    batch, hidden = check_operands(call.operands, call.options)
    parts, directions = h0.shape[0], call.options.directions
    if len(weights) != 2 * parts:
        raise ValueError("backward takes weight_ih and weight_hh only, without biases")
    layers, values = parts // directions, CELLS[call.options.cell].reserve * hidden
    if len(kept) != layers + (parts if values else 0):
        raise ValueError(f"kept must have {layers + (parts if values else 0)} tensors, got {len(kept)}")
    shape, reserve = (*input.shape[:-1], directions * hidden), (input.shape[:-1].numel(), values)
    for tensor, name, expected in (
        (call.grad_output, "grad_output", shape),
        (call.grad_h_n, "grad_h_n", h0.shape),
        (call.grad_c_n, "grad_c_n", h0.shape),
        *((tensor, "kept output", shape) for tensor in kept[:layers]),
        *((tensor, "reserve", reserve) for tensor in kept[layers:]),
    ):
        if tensor is not None:
            check_tensor(tensor, name, expected, input, "input")
    return batch, hidden
