"""What the kernels take, and which layers run on torch's own."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch

from genimg_fast import _native
from genimg_fast.ops._dispatch import Kernels, Preference
from genimg_fast.ops.recurrent.operands import CELLS, LSTM


class LayerCall(NamedTuple):
    """What decides between the compiled operator and torch's own layer."""

    cell: int
    steps: int
    batch: int
    input_size: int
    hidden: int
    dtype: torch.dtype  # of the arithmetic's operands: autocast's, where it is on
    device: int  # index of the GPU

    @property
    def rows(self) -> int:
        """Rows of the input's product."""
        return self.steps * self.batch

    @property
    def weights(self) -> int:
        """Number of weights."""
        return CELLS[self.cell].gates * self.hidden * (self.input_size + self.hidden)


def _weights_are_packed_in_vain(call: LayerCall) -> bool:
    # Measured. Packing the weights takes about as long as multiplying ten rows by them; torch's RNN and GRU do not
    # pack them, its LSTM, which is oneDNN's, does.
    return call.cell != LSTM and (
        (call.rows < 8 and call.weights >= 1 << 17)
        or (call.steps == 1 and call.batch < 32 and call.weights >= 1 << 20)
    )


# Whether a block of that GPU holds the weights for all steps, forward and backward; else each step has launches.
_fits_in_a_block = cache(_native.recurrent_fits)


def _weights_exceed_a_block(call: LayerCall) -> bool:
    # A prediction, not yet measured: what does not fit is cuDNN's, and so are the products of larger layers.
    return torch.backends.cudnn.enabled and (
        call.hidden > 128 or not _fits_in_a_block(call.device, call.dtype, call.cell, call.hidden)
    )


KERNELS = Kernels(
    "recurrent",
    slower={  # by more than 5 %
        "cpu": Preference(
            "layers of RNNs and GRUs with 2^17 weights over fewer than 8 rows (T * B), with 2^20 over one step of "
            "fewer than 32",
            _weights_are_packed_in_vain,
        ),
        "cuda": Preference(
            "layers of more than 128 hidden units, or whose weights exceed a block's memory, unless cuDNN is "
            "disabled",
            _weights_exceed_a_block,
        ),
    },
    parts={"cuda": "recurrent_steps"},
)
