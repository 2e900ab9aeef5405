"""What is passed from the public functions to the operators: tensors and options, in the order of the schemas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor


class Cell(NamedTuple):
    """What the cells differ in: values per hidden unit."""

    name: str
    gates: int
    reserve: int  # what backward needs beside the output: r z n hn with hn = W_n h + b_n, or i f g o c


# What the compiled operators call the cells, in the order of CELLS.
RNN_TANH, RNN_RELU, GRU, LSTM = range(4)
CELLS = (Cell("rnn", 1, 0), Cell("rnn", 1, 0), Cell("gru", 3, 4), Cell("lstm", 4, 5))


class Layer(NamedTuple):
    """One layer in one direction: what the public functions take."""

    input: Tensor  # (T, B, I), or (N, I) with batch_sizes
    h0: Tensor | None  # (B, H), None for zeros
    c0: Tensor | None  # likewise, of an LSTM
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None
    batch_sizes: Tensor | None
    cell: int
    reverse: bool


class Operands(NamedTuple):
    """The tensors of the operators: layers, each over the output of the one before."""

    input: Tensor  # (T, B, I), or (N, I) with batch_sizes
    h0: Tensor  # (L * D, B, H) for L layers with D directions
    c0: Tensor | None  # likewise, of an LSTM
    batch_sizes: Tensor | None
    weights: Sequence[Tensor]  # of each layer and direction two matrices and, all or none, two biases


class Options(NamedTuple):
    """How the layers run."""

    cell: int  # RNN_TANH, RNN_RELU, GRU or LSTM
    bidirectional: bool = False  # run in both directions, and put their outputs side by side
    reverse: bool = False  # run the first direction, or the only one, backwards in time, the second one forwards

    @property
    def directions(self) -> int:
        """Number of directions."""
        return 2 if self.bidirectional else 1


class Backward(NamedTuple):
    """What the backward operator takes; the weights come without biases, which layers have if `biased`."""

    grad_output: Tensor | None
    grad_h_n: Tensor | None
    grad_c_n: Tensor | None
    operands: Operands
    kept: Sequence[Tensor]  # by the forward operator: the outputs of all layers, then their reserves
    options: Options
    biased: bool
    need_input: bool
    need_weights: bool

    @classmethod
    def of(cls, *arguments: Any) -> Backward:
        """Sort the operator's arguments."""
        kept, weights = arguments[7:9]
        operands, options = Operands._make((*arguments[3:7], weights)), Options(*arguments[9:12])
        return cls._make((*arguments[:3], operands, kept, options, *arguments[12:]))


def layer_of(operands: Operands, options: Options, k: int, input: Tensor) -> Layer:
    """Return the `k`-th layer and direction as one of its own.

    Args:
        operands: Of all.
        options: Likewise.
        k: The directions of a layer are neighbours.
        input: Of this layer.
    """
    h0, c0 = operands.h0, operands.c0
    each = len(operands.weights) // h0.shape[0]
    weight_ih, weight_hh, *biases = operands.weights[k * each : (k + 1) * each]
    bias_ih, bias_hh = biases or (None, None)
    return Layer(
        input,
        h0[k],
        None if c0 is None else c0[k],
        weight_ih,
        weight_hh,
        bias_ih,
        bias_hh,
        operands.batch_sizes,
        options.cell,
        options.reverse != (k % options.directions == 1),
    )
