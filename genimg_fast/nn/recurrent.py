"""Recurrent layers and cells on the fused operators, and the convolutional LSTM."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from genimg_fast.nn.stands_for import StandIn, is_leaf, leaf
from genimg_fast.ops._checks import WIDE_DTYPE, check_flag, check_size, check_type
from genimg_fast.ops._dispatch import new
from genimg_fast.ops.cell_update import KERNELS as CELL_KERNELS, gru_cell_update, lstm_cell_update
from genimg_fast.ops.recurrent.dispatch import KERNELS, LayerCall
from genimg_fast.ops.recurrent.operands import (
    GRU as GRU_CELL,
    LSTM as LSTM_CELL,
    RNN_RELU,
    RNN_TANH,
    Operands,
    Options,
)
from genimg_fast.ops.recurrent.operator import run_native

_CELLS = {"RNN_TANH": RNN_TANH, "RNN_RELU": RNN_RELU, "GRU": GRU_CELL, "LSTM": LSTM_CELL}


def _forward(module: nn.RNNBase, torchs_forward: Any, input: Any, hx: Any) -> Any:
    """Do what torch's recurrent layers do in ``forward``; leave to them what is not fused, and every complaint."""
    result = _fused_forward(module, input, hx)
    return torchs_forward(input, hx) if result is None else result


@torch._disable_dynamo
def _forward_outside_graphs(module: nn.RNNBase, torchs_forward: Any, input: Any, hx: Any) -> Any:
    return _forward(module, torchs_forward, input, hx)


def _choose_forward() -> Any:
    """Dynamo breaks its graph at the recurrent layers of torch and whatever derives from them, unless told not to.

    Then it is to leave all of ``forward`` alone, not to compile what it finds between attributes of the layer.
    """
    if torch.compiler.is_compiling() and not torch._dynamo.config.allow_rnn:
        return _forward_outside_graphs
    return _forward


def _fused_forward(module: nn.RNNBase, input: Any, hx: Any) -> Any:
    """Return what torch's ``forward`` returns, or None where it has to run itself."""
    if module.proj_size > 0:
        return None
    cell, directions = _CELLS[module.mode], 2 if module.bidirectional else 1
    count = module.num_layers * directions
    weights: Sequence[Any] = _weights(module)
    packed = isinstance(input, PackedSequence)
    data, batch_sizes, sorted_indices, unsorted_indices = input if packed else (input, None, None, None)
    pair = isinstance(hx, (tuple, list))
    states: Sequence[Any] = () if hx is None else hx if pair else (hx,)
    if (
        data is None
        or pair != (cell == LSTM_CELL and hx is not None)
        or len(weights) != count * (4 if module.bias else 2)
        or len(states) not in (0, 2 if pair else 1)
        or not (batch_sizes is None or _is_list(batch_sizes))
        or KERNELS.why_not((data, *states, *weights)) is not None
    ):
        return None
    autocast = torch.is_autocast_enabled(data.device.type)
    computed_in, result_dtype = _dtypes(cell, data, batch_sizes, states, weights, autocast)
    if computed_in is None:
        return None
    unbatched = data.dim() == 2 and not packed
    if data.dim() != (2 if packed or unbatched else 3) or data.shape[-1] != module.input_size or data.numel() == 0:
        return None
    if unbatched:
        data = data.unsqueeze(1)
    elif module.batch_first and not packed:
        data = data.transpose(0, 1)
        if torch.is_grad_enabled():
            # Backward reads it again: keep the copy, as torch's layers do, and let the caller change the input.
            data = data.contiguous()
    batch = data.shape[1] if batch_sizes is None else int(batch_sizes[0])
    shape = (count, module.hidden_size) if unbatched else (count, batch, module.hidden_size)
    steps = data.shape[0] if batch_sizes is None else batch_sizes.shape[0]
    call = LayerCall(cell, steps, batch, module.input_size, module.hidden_size, computed_in, data.get_device())
    if any(s.shape != shape for s in states) or KERNELS.is_slower(data.device.type, call):
        return None

    if autocast:
        data, states = data.to(computed_in), tuple(s.to(computed_in) for s in states)
        weights = [w.to(computed_in) for w in weights]
    if not states:
        zeros = data.new_zeros(count, batch, module.hidden_size)
        states = (zeros, zeros)
    elif unbatched:
        states = tuple(s.unsqueeze(1) for s in states)
    elif sorted_indices is not None:
        states = tuple(s.index_select(1, sorted_indices) for s in states)
    output: Any
    c0 = states[1] if cell == LSTM_CELL else None
    operands = new(Operands, (data, states[0], c0, batch_sizes, weights))
    output, h_n, c_n = _run_layers(module, operands, new(Options, (cell, module.bidirectional, False)))
    finals = [h_n] if c0 is None else [h_n, c_n]

    if result_dtype != computed_in:
        output, finals = output.to(result_dtype), [f.to(result_dtype) for f in finals]
    if packed:
        if unsorted_indices is not None:
            finals = [f.index_select(1, unsorted_indices) for f in finals]
        output = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
    elif unbatched:
        output, finals = output.squeeze(1), [f.squeeze(1) for f in finals]
    elif module.batch_first:
        output = output.transpose(0, 1)
    return output, tuple(finals) if cell == LSTM_CELL else finals[0]


def _is_list(batch_sizes: Tensor) -> bool:
    return batch_sizes.layout is torch.strided and batch_sizes.dim() == 1 and len(batch_sizes) > 0


def _weights(module: nn.RNNBase) -> list[Tensor]:
    """Return the parameters in torch's order; those that are missing are left out.

    ``module._flat_weights`` has them, too, but the check that they are up to date takes longer than a small layer.
    """
    found = module._parameters
    weights = [found.get(name, None) for name in module._flat_weights_names]
    if any(w is None for w in weights):  # parametrised, or replaced by a plain tensor
        weights = [getattr(module, name, None) for name in module._flat_weights_names]
    return [w for w in weights if w is not None]


def _dtypes(
    cell: int,
    data: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    autocast: bool,
) -> tuple[torch.dtype | None, torch.dtype]:
    """Return the dtypes to compute in, None for what torch has to do, and of the results."""
    device, dtype = data.device, data.dtype
    for tensor in (*states, *weights):
        if tensor.device != device or (tensor.dtype != dtype and not autocast):
            return None, dtype
        if tensor.layout is not torch.strided:
            return None, dtype
    if not autocast:
        return (dtype if dtype in WIDE_DTYPE else None), dtype
    lower = torch.get_autocast_dtype(device.type)
    used = {dtype, *(t.dtype for t in states), *(t.dtype for t in weights)}
    mixed = bool(states) and states[0].dtype != states[-1].dtype
    if mixed or not used <= {torch.float32, torch.bfloat16, torch.float16}:
        return None, dtype
    if device.type != "cpu" or cell in (RNN_TANH, RNN_RELU):
        return lower, lower
    if cell == LSTM_CELL and _torch_would_use_onednn(dtype, batch_sizes):
        return lower, lower
    # Of the others autocast knows the products only, whose results meet the states as they are.
    return lower, torch.promote_types(lower, states[0].dtype if states else dtype)


def _torch_would_use_onednn(dtype: torch.dtype, batch_sizes: Tensor | None) -> bool:
    """Whether torch's LSTM for the CPU is oneDNN's, which autocast takes as a whole.

    (Not every CPU has it in float16: there, torch's own fails under autocast to float16.)
    """
    if not torch.backends.mkldnn.enabled:
        return False
    if batch_sizes is not None and batch_sizes[0] != batch_sizes[-1]:
        return False
    if dtype == torch.bfloat16:
        return torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if dtype == torch.float16:
        return not torch.is_grad_enabled() and torch.ops.mkldnn._is_mkldnn_fp16_supported()
    return dtype == torch.float32


def _run_layers(module: nn.RNNBase, operands: Operands, options: Options) -> tuple[Tensor, ...]:
    """Return the last layer's output and the final states of all layers and directions."""
    if not (module.training and module.dropout > 0):
        return run_native(operands, options)
    x, h0, c0, batch_sizes, weights = operands
    layers, finals = module.num_layers, []
    c0s = [None] * layers if c0 is None else c0.chunk(layers)
    for layer, (h, c) in enumerate(zip(h0.chunk(layers), c0s, strict=True)):
        own = weights[layer * len(weights) // layers : (layer + 1) * len(weights) // layers]
        if layer > 0:
            x = torch.dropout(x, module.dropout, True)
        x, *final = run_native(Operands(x, h, c, batch_sizes, own), options)
        finals.append(final)
    h_n, c_n = (torch.cat(kind) for kind in zip(*finals, strict=True))
    return x, h_n, c_n


class RNN(nn.RNN, StandIn):
    """Here on the fused operator."""

    _smallest = (1, 1, 1, "tanh", True, False, 0.0, False, 0, "meta")

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Run all layers over ``input``, (T, B, I), (B, T, I), (T, I) or packed; return output and final state."""
        return _choose_forward()(self, super().forward, input, hx)


class GRU(nn.GRU, StandIn):
    """Here on the fused operator."""

    _smallest = (1, 1, 1, True, False, 0.0, False, 0, "meta")

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Run all layers over ``input``, (T, B, I), (B, T, I), (T, I) or packed; return output and final state."""
        return _choose_forward()(self, super().forward, input, hx)


class LSTM(nn.LSTM, StandIn):
    """Here on the fused operator; with ``proj_size`` it runs torch's."""

    _smallest = GRU._smallest

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Run all layers over ``input``, (T, B, I), (B, T, I), (T, I) or packed; return output, final states."""
        return _choose_forward()(self, super().forward, input, hx)


def _cell_operands(module: nn.RNNCellBase, input: Any, hx: Any) -> tuple[Tensor, Sequence[Tensor]] | None:
    """Return input and states with a batch dimension, or None where torch's ``forward`` has to run itself."""
    states: Sequence[Any] = () if hx is None else hx if isinstance(hx, (tuple, list)) else (hx,)
    weights = (module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh)
    if input is None:
        return None
    tensors = (input, *states, *weights)
    if CELL_KERNELS.why_not(tensors) is not None:
        return None
    if any(t is not None and t.layout is not torch.strided for t in tensors):
        return None
    if input.dim() not in (1, 2) or input.shape[-1] != module.input_size or input.dtype not in WIDE_DTYPE:
        return None
    expected = (*input.shape[:-1], module.hidden_size)
    if any(s.shape != expected or s.device != input.device for s in states):
        return None
    if not torch.is_autocast_enabled(input.device.type) and any(
        t is not None and t.dtype != input.dtype for t in (*states, *weights)
    ):
        return None
    if CELL_KERNELS.is_slower(input.device.type, input.shape[:-1].numel() * module.hidden_size):
        return None
    if input.dim() == 1:
        input, states = input.unsqueeze(0), [s.unsqueeze(0) for s in states]
    if not states:
        zeros = input.new_zeros(input.shape[0], module.hidden_size)
        states = (zeros, zeros)
    return input, states


class LSTMCell(nn.LSTMCell, StandIn):
    """Here on the fused update."""

    _smallest = (1, 1, True, "meta")

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Take one step with ``input``, (B, I) or (I); return the new state and cell state."""
        operands = _cell_operands(self, input, hx)
        if operands is None or len(operands[1]) != 2:
            return super().forward(input, hx)
        x, (h, c) = operands
        bias = self.bias_ih + self.bias_hh if self.bias else None
        gates = torch.addmm(F.linear(x, self.weight_ih, bias), h, self.weight_hh.t())
        h, c = lstm_cell_update(gates, c)
        return (h, c) if input.dim() == 2 else (h.squeeze(0), c.squeeze(0))


class GRUCell(nn.GRUCell, StandIn):
    """Here on the fused update."""

    _smallest = (1, 1, True, "meta")

    def forward(self, input: Any, hx: Any = None) -> Any:
        """Take one step with ``input``, (B, I) or (I); return the new state."""
        operands = _cell_operands(self, input, hx)
        if operands is None or isinstance(hx, (tuple, list)):
            return super().forward(input, hx)
        x, (h, *_) = operands
        gates_x = F.linear(x, self.weight_ih, self.bias_ih)
        h = gru_cell_update(gates_x, F.linear(h, self.weight_hh, self.bias_hh), h)
        return h if input.dim() == 2 else h.squeeze(0)


class ConvLSTM2d(nn.Module):
    """Convolutional LSTM over sequences of images: an LSTM whose products are convolutions.

    Of each layer, one convolution projects the input of all steps; a step is then one convolution of the state and
    the fused :func:`genimg_fast.ops.lstm_cell_update`. Images keep their size. Shi et al. 2015,
    arXiv:1506.04214, without the peephole connections.

    Args:
        input_channels: Channels C of the images.
        hidden_channels: Channels H of the state, in every layer.
        kernel_size: Of both convolutions, odd: one number, or (height, width).
        num_layers: Each but the first runs over the states of the one before.
        bias: Learn a bias per gate and channel.
        batch_first: Input and output are (B, T, ...) instead of (T, B, ...).
        device: Of the parameters.
        dtype: Likewise.

    Raises:
        TypeError: A size is no int, a switch no bool, an input no tensor.
        ValueError: A size is not positive, the kernel's is even, or an input has the wrong shape.

    Example:
        >>> import torch, genimg_fast as gf
        >>> layer = gf.nn.ConvLSTM2d(3, 16, kernel_size=3, num_layers=2)
        >>> output, (h_n, c_n) = layer(torch.randn(5, 2, 3, 8, 8))
        >>> output.shape, h_n.shape
        (torch.Size([5, 2, 16, 8, 8]), torch.Size([2, 2, 16, 8, 8]))
    """

    def __init__(
        self,
        input_channels: int,
        hidden_channels: int,
        kernel_size: int | tuple[int, int],
        num_layers: int = 1,
        *,
        bias: bool = True,
        batch_first: bool = False,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        sizes = kernel_size if isinstance(kernel_size, (tuple, list)) else (kernel_size,) * 2
        if len(sizes) != 2:
            raise ValueError(f"kernel_size must be one int, or (height, width), got {len(sizes)} values")
        height, width = sizes
        for name, size in (
            ("input_channels", input_channels), ("hidden_channels", hidden_channels), ("num_layers", num_layers),
            ("kernel_size", height), ("kernel_size", width),
        ):  # fmt: skip
            check_size(size, name)
        check_flag(bias, "bias")
        check_flag(batch_first, "batch_first")
        if height % 2 == 0 or width % 2 == 0:
            raise ValueError(f"kernel_size must be odd, so that images keep their size, got {kernel_size}")
        self.input_channels, self.hidden_channels = input_channels, hidden_channels
        self.kernel_size, self.num_layers = (height, width), num_layers
        self.bias, self.batch_first = bias, batch_first
        for layer in range(num_layers):
            inputs = hidden_channels if layer else input_channels
            for name, channels in (("ih", inputs), ("hh", hidden_channels)):
                weight = torch.empty(4 * hidden_channels, channels, height, width, device=device, dtype=dtype)
                self.register_parameter(f"weight_{name}_l{layer}", nn.Parameter(weight))
            empty = torch.empty(4 * hidden_channels, device=device, dtype=dtype) if bias else None
            self.register_parameter(f"bias_l{layer}", None if empty is None else nn.Parameter(empty))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, as torch's recurrent layers do: uniform with the state's fan-in."""
        bound = 1.0 / math.sqrt(self.hidden_channels * math.prod(self.kernel_size))
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run all layers over a sequence of images.

        Args:
            input: (T, B, C, height, width), or (B, T, C, height, width) with ``batch_first``.
            hx: States and cell states to begin with, (num_layers, B, H, height, width) each; None stands for
                zeros.

        Returns:
            States of the last layer, (T, B, H, height, width) or (B, T, H, height, width); states and cell states
            of all layers after the last step, (num_layers, B, H, height, width) each.

        Raises:
            TypeError: If ``hx`` is no pair of tensors, or ``input`` no tensor.
            ValueError: If a shape does not fit.
        """
        if is_leaf(self, input):
            return leaf(self, input, hx)
        check_type(input, "input")
        if input.dim() != 5 or input.shape[2] != self.input_channels or 0 in input.shape[:2]:
            order = "(B, T, " if self.batch_first else "(T, B, "
            raise ValueError(
                f"input must have shape {order}{self.input_channels}, height, width) with at least one step and "
                f"sequence, got {tuple(input.shape)}"
            )
        x = input.transpose(0, 1) if self.batch_first else input
        shape = (x.shape[1], self.hidden_channels, *x.shape[3:])
        if hx is not None:
            if not isinstance(hx, (tuple, list)) or len(hx) != 2:
                raise TypeError(f"hx must be a pair (h, c), got {type(hx).__name__}")
            for name, state in zip(("h", "c"), hx, strict=True):
                check_type(state, f"hx: {name}")
                if state.device != x.device:
                    raise ValueError(f"hx: {name} must be on the device of input, {x.device}, got {state.device}")
                if not state.is_floating_point():
                    raise ValueError(f"hx: {name} must be of a floating-point dtype, got {state.dtype}")
                if state.shape != (self.num_layers, *shape):
                    raise ValueError(
                        f"hx: {name} must have shape {(self.num_layers, *shape)}, got {tuple(state.shape)}"
                    )
        padding = (self.kernel_size[0] // 2, self.kernel_size[1] // 2)
        finals = []
        for layer in range(self.num_layers):
            weight_ih, weight_hh = getattr(self, f"weight_ih_l{layer}"), getattr(self, f"weight_hh_l{layer}")
            projected = F.conv2d(x.flatten(0, 1), weight_ih, getattr(self, f"bias_l{layer}"), padding=padding)
            h, c = (None, x.new_zeros(shape)) if hx is None else (hx[0][layer], hx[1][layer])
            states = []
            for gates in projected.unflatten(0, x.shape[:2]).unbind():
                if h is not None:  # else it is zero
                    gates = gates + F.conv2d(h, weight_hh, padding=padding)
                h, c = lstm_cell_update(gates, c)
                states.append(h)
            x = torch.stack(states)
            finals.append((states[-1], c))
        h_n, c_n = (torch.stack(kind) for kind in zip(*finals, strict=True))
        return (x.transpose(0, 1) if self.batch_first else x), (h_n, c_n)

    def extra_repr(self) -> str:
        """Describe the layer: its sizes, and what differs from the defaults."""
        text = f"{self.input_channels}, {self.hidden_channels}, kernel_size={self.kernel_size}"
        if self.num_layers != 1:
            text += f", num_layers={self.num_layers}"
        return text + ("" if self.bias else ", bias=False") + (", batch_first=True" if self.batch_first else "")
