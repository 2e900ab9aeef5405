"""Recurrent layers over whole sequences, one layer and direction at a time, and the elementwise part of one step.

Simple recurrence: Elman 1990, "Finding structure in time". GRU: Cho et al. 2014, arXiv:1406.1078, with the reset
gate behind the product as in cuDNN and torch. LSTM: Hochreiter and Schmidhuber 1997, "Long short-term memory",
with the forget gate of Gers et al. 2000, "Learning to forget".
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from genimg_fast import _native
from genimg_fast.ops._dispatch import (
    PLAIN_TENSORS,
    TRANSFORMED,
    describe_paths,
    find_kernels,
    is_transformed,
    why_unavailable,
)

# What the compiled operators call the cells.
RNN_TANH, RNN_RELU, GRU, LSTM = range(4)
_NAMES = ("rnn", "rnn", "gru", "lstm")
_NONLINEARITIES = {"tanh": RNN_TANH, "relu": RNN_RELU}
# Per cell and hidden unit: gates, and values that backward needs beside the output (GRU: r z n hn with
# hn = W_n h + b_n; LSTM: i f g o c).
_GATES = (1, 1, 3, 4)
_RESERVE = (0, 0, 4, 5)

# Type of the arithmetic.
_WIDE_DTYPE = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}
DTYPES = frozenset(_WIDE_DTYPE)


def lstm_cell_update_reference(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Compute :func:`lstm_cell_update` with PyTorch's own operators: the definition of what is right."""
    i, f, g, o = gates.chunk(4, dim=1)
    c_new = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c_new.tanh(), c_new


def gru_cell_update_reference(gates_x: Tensor, gates_h: Tensor, h: Tensor) -> Tensor:
    """Compute :func:`gru_cell_update` with PyTorch's own operators: the definition of what is right."""
    (xr, xz, xn), (hr, hz, hn) = gates_x.chunk(3, dim=1), gates_h.chunk(3, dim=1)
    n = (xn + (xr + hr).sigmoid() * hn).tanh()
    return n + (xz + hz).sigmoid() * (h - n)


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
    """Compute :func:`rnn` with PyTorch's own operators: the definition of what is right."""
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
    """Compute :func:`gru` with PyTorch's own operators: the definition of what is right."""
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
    """Compute :func:`lstm` with PyTorch's own operators: the definition of what is right."""
    output, h_n, c_n = _run_reference(
        *_prepare(input, hx or (None, None), weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, LSTM, reverse)
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
        >>> x, w_ih, w_hh = torch.randn(16, 8, 3), torch.randn(64, 3) / 8, torch.randn(64, 64) / 8
        >>> output, h_n = rnn(x, None, w_ih, w_hh)
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
        >>> x, w_ih, w_hh = torch.randn(16, 8, 3), torch.randn(192, 3) / 8, torch.randn(192, 64) / 8
        >>> output, h_n = gru(x, None, w_ih, w_hh)
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
        >>> x, w_ih, w_hh = torch.randn(16, 8, 3), torch.randn(256, 3) / 8, torch.randn(256, 64) / 8
        >>> output, (h_n, c_n) = lstm(x, None, w_ih, w_hh)
        >>> output.shape, h_n.shape, c_n.shape
        (torch.Size([16, 8, 64]), torch.Size([8, 64]), torch.Size([8, 64]))
    """
    states = (None, None) if hx is None else hx
    output, h_n, c_n = _layer(input, states, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, LSTM, reverse)
    return output, (h_n, c_n)


def _rnn_cell(nonlinearity: str) -> int:
    cell = _NONLINEARITIES.get(nonlinearity)
    if cell is None:
        raise ValueError(f"unknown nonlinearity {nonlinearity!r}; choose one of {', '.join(_NONLINEARITIES)}")
    return cell


def _check_tensor(tensor: Tensor, name: str, shape: tuple[int, ...], like: Tensor, like_name: str) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}")
    if tensor.dtype != like.dtype:
        raise ValueError(f"{name} must have the dtype of {like_name}, {like.dtype}, got {tensor.dtype}")
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on the device of {like_name}, {like.device}, got {tensor.device}")


def _check_type(tensor: Any, name: str) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")


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
    if len(hx) != len(state_names):
        raise ValueError(f"hx must be a pair (h0, c0), got {len(hx)} tensors")
    tensors: dict[str, Any] = dict(zip(state_names, hx, strict=True))
    tensors |= {"input": input, "weight_ih": weight_ih, "weight_hh": weight_hh}
    tensors |= {"bias_ih": bias_ih, "bias_hh": bias_hh}
    for name, tensor in tensors.items():
        if tensor is not None or name in ("input", "weight_ih", "weight_hh"):
            _check_type(tensor, name)
    kind = input.device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind) and input.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
        tensors = {name: None if t is None else t.to(dtype) for name, t in tensors.items()}
    input, weight_ih, weight_hh = tensors["input"], tensors["weight_ih"], tensors["weight_hh"]
    if input.dtype not in DTYPES:
        raise ValueError(f"input must be float32, float64, bfloat16 or float16, got {input.dtype}")
    if input.dim() != (3 if batch_sizes is None else 2):
        expected = "(T, B, I)" if batch_sizes is None else "(N, I), with batch_sizes"
        raise ValueError(f"input must have shape {expected}, got {tuple(input.shape)}")
    if weight_hh.dim() != 2 or weight_hh.shape[1] == 0:
        raise ValueError(f"weight_hh must have shape ({_GATES[cell]} * H, H), got {tuple(weight_hh.shape)}")
    hidden, states = weight_hh.shape[1], [tensors[name] for name in state_names]
    given = [state for state in states if state is not None]
    if batch_sizes is None:
        batch = input.shape[1]
    else:
        _check_type(batch_sizes, "batch_sizes")
        if batch_sizes.dim() != 1 or batch_sizes.dtype != torch.int64 or not batch_sizes.is_cpu:
            raise ValueError(
                "batch_sizes must be a 1-dimensional int64 tensor on the CPU, got "
                f"{batch_sizes.dtype} of shape {tuple(batch_sizes.shape)} on {batch_sizes.device}"
            )
        if torch.compiler.is_compiling() and given:
            # Reading the values would break the graph; the compiled operator checks them.
            batch = given[0].shape[0]
        else:
            sizes = batch_sizes.tolist()
            if not sizes or sizes[-1] < 0 or any(later > earlier for earlier, later in pairwise(sizes)):
                raise ValueError(f"batch_sizes must not be empty, negative or increasing, got {sizes}")
            if sum(sizes) != input.shape[0]:
                raise ValueError(
                    f"batch_sizes must add up to the rows of input, {input.shape[0]}, got {sum(sizes)}"
                )
            batch = sizes[0]
    width = _GATES[cell] * hidden
    shapes = dict.fromkeys(state_names, (batch, hidden)) | dict.fromkeys(("bias_ih", "bias_hh"), (width,))
    shapes |= {"weight_ih": (width, input.shape[-1]), "weight_hh": (width, hidden)}
    for name, shape in shapes.items():
        if tensors[name] is not None:
            _check_tensor(tensors[name], name, shape, input, "input")
    h0, *c0 = (input.new_zeros(batch, hidden) if state is None else state for state in states)
    return (
        input, h0, c0[0] if c0 else None, weight_ih, weight_hh, tensors["bias_ih"], tensors["bias_hh"],
        batch_sizes, cell, reverse,
    )  # fmt: skip


def _layer(*arguments: Any) -> tuple[Any, ...]:
    arguments = _prepare(*arguments)
    if _native._backend != "reference":
        reason = why_not_native(arguments[:7])
        if reason is None:
            return run_native(*arguments)
        if _native._backend == "native" and reason is not TRANSFORMED:
            raise RuntimeError(f"{_NAMES[arguments[8]]}: backend 'native' was asked for, but {reason}")
    return _run_reference(*arguments)


def why_not_native(tensors: Sequence[Any]) -> str | None:
    """Return None if the compiled kernels take these arguments, else the reason why they do not.

    Args:
        tensors: The data, then all other tensors, or None; shapes, dtypes and devices are not looked at.
    """
    for tensor in tensors:
        if tensor is not None and type(tensor) not in PLAIN_TENSORS:
            return TRANSFORMED
    if (reason := why_unavailable(_KERNELS, tensors[0].device.type)) is not None:
        return reason
    return TRANSFORMED if is_transformed(tensors[0]) else None


def choose_path(
    cell: int, device: torch.device, dtype: torch.dtype, steps: int, batch: int, input_size: int, hidden: int
) -> bool:
    """Return whether a recurrent layer is to run on the compiled operator rather than on torch's own layer.

    Args:
        cell: ``RNN_TANH``, ``RNN_RELU``, ``GRU`` or ``LSTM``.
        device: Of all tensors.
        dtype: Of the data.
        steps: T.
        batch: B.
        input_size: I.
        hidden: H.
    """
    if _native._backend == "native" or torch.compiler.is_compiling():
        return True
    return True


def run_native(
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    batch_sizes: Tensor | None,
    cell: int,
    reverse: bool,
) -> tuple[Tensor, ...]:
    """Run a layer on the compiled operator, which checks what there is to check.

    Args:
        input: As the other tensors a plain one, of the shape that the public functions say.
        h0: (B, H).
        c0: (B, H) for an LSTM, else None.
        weight_ih: (G * H, I).
        weight_hh: (G * H, H).
        bias_ih: (G * H,).
        bias_hh: (G * H,).
        batch_sizes: Of packed data.
        cell: ``RNN_TANH``, ``RNN_RELU``, ``GRU`` or ``LSTM``.
        reverse: Run backwards in time.

    Returns:
        Output, final state, final cell state (empty unless the cell is an LSTM).
    """
    differentiable = torch.is_grad_enabled() and (
        input.requires_grad
        or weight_ih.requires_grad
        or weight_hh.requires_grad
        or h0.requires_grad
        or (c0 is not None and c0.requires_grad)
        or (bias_ih is not None and bias_ih.requires_grad)
        or (bias_hh is not None and bias_hh.requires_grad)
    )
    arguments = (
        input, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh, batch_sizes, cell, reverse, differentiable
    )  # fmt: skip
    if torch.compiler.is_compiling():
        # Dynamo runs the backward of an autograd.Function without recording it, which would drop second-order
        # gradients; the operators' registered formulas do without.
        return torch.ops.genimg_fast.recurrent_layer.default(*arguments)[:3]
    if differentiable:
        return _Layer.apply(*arguments)[:3]
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.genimg_fast.recurrent_layer.default(*arguments)[:3]


def _call(operator: Any, *arguments: Any) -> Any:
    """Call a backward operator."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return operator(*arguments)
    # Nothing to record: passing by the registered formula saves 10 microseconds.
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def _keep_for_layer(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    input, h0, c0, weight_ih, weight_hh, _, _, batch_sizes, ctx.cell, ctx.reverse, keep = inputs
    if not keep and _RESERVE[ctx.cell] > 0:
        raise RuntimeError("recurrent_layer: keep must be True where gradients are needed")
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(input, output[0], output[3], h0, c0, weight_ih, weight_hh, batch_sizes)


def _layer_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_output, grad_h_n, grad_c_n, grad_reserve = grads
    if ctx.cell != LSTM:
        grad_c_n = None
    if _RESERVE[ctx.cell] == 0:
        grad_reserve = None
    if grad_output is None and grad_h_n is None and grad_c_n is None and grad_reserve is None:
        return (None,) * 11
    need = ctx.needs_input_grad
    need_weights = need[3] or need[4] or need[5] or need[6]
    arguments: tuple[Any, ...] = (*ctx.saved_tensors, ctx.cell, ctx.reverse, need[0], need_weights)
    if grad_reserve is None:
        operator = torch.ops.genimg_fast.recurrent_layer_backward.default
        gradients = _call(operator, grad_output, grad_h_n, grad_c_n, *arguments)
    else:
        # Only derivatives of higher order come here.
        gradients = _backward_reference(grad_output, grad_h_n, grad_c_n, grad_reserve, *arguments)
    return *(g if n else None for g, n in zip(gradients, need[:7], strict=True)), None, None, None, None


class _Layer(torch.autograd.Function):
    """Autograd of the operator in eager mode: costs less per call than the formula registered for torch.compile.

    The reserve is an output like the others: that is how gradients of second order find their way to it.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        with torch._C._AutoDispatchBelowAutograd():
            outputs = torch.ops.genimg_fast.recurrent_layer.default(*arguments)
        _keep_for_layer(ctx, arguments, outputs)
        return outputs

    backward = staticmethod(_layer_backward)


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
    grad_gates = grad_gates.flatten(0, -2)
    nothing = input.new_empty(0)
    grad_input = grad_gates.mm(weight_ih).view(input.shape) if need_input else nothing
    if not need_weights:
        return grad_input, nothing, nothing, nothing, nothing
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


def _backward_reference(
    grad_output: Tensor | None,
    grad_h_n: Tensor | None,
    grad_c_n: Tensor | None,
    grad_reserve: Tensor | None,
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
) -> tuple[Tensor, ...]:
    """Do what the backward operator does, in PyTorch operations, and take gradients at the reserve as well.

    It is a function of the saved values: differentiating it gives gradients at those, which the forward operator's
    formula passes on.
    """
    dtype, hidden = _WIDE_DTYPE[output.dtype], h0.shape[1]
    sizes = [h0.shape[0]] * output.shape[0] if batch_sizes is None else batch_sizes.tolist()

    def steps(t: Tensor | None, values: int = 1) -> Sequence[Any]:
        if t is None or values == 0:
            return [None] * len(sizes)
        return t.to(dtype).reshape(sum(sizes), values * hidden).split(sizes)

    outputs, grad_outputs = steps(output), steps(grad_output)
    reserves, grad_reserves = steps(reserve, _RESERVE[cell]), steps(grad_reserve, _RESERVE[cell])
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
        direct = (0.0,) * 5 if grad_reserves[t] is None else grad_reserves[t].chunk(_RESERVE[cell], dim=1)
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
            at_hidden = at_gates = g * ((1 - y * y) if cell == RNN_TANH else (y > 0).to(dtype))
        grads_at_gates[t] = at_gates
        dh = torch.cat((at_hidden.mm(weight) + carried, dh[n:]))
    nothing = h0.new_empty(0, dtype=dtype)
    grad_input, *grad_parameters = _gradients_from_steps(
        torch.cat(grads_at_gates) if sizes else nothing.view(0, _GATES[cell] * hidden),
        torch.cat(grads_at_hidden_n) if sizes and cell == GRU else nothing.view(0, hidden),
        input.to(dtype), output.to(dtype), h0.to(dtype), weight_ih.to(dtype), batch_sizes, cell, reverse,
        need_input, need_weights,
    )  # fmt: skip
    gradients = (grad_input, dh, dc if cell == LSTM else nothing, *grad_parameters)
    return tuple(g.to(output.dtype) for g in gradients)


def _run_by_steps(
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    batch_sizes: Tensor | None,
    cell: int,
    reverse: bool,
    keep: bool,
) -> tuple[Tensor, ...]:
    """Do what the operator does where the library has a kernel for the steps only: on CUDA."""
    bias, bias_n = _combine_biases(cell, bias_ih, bias_hh)
    gates = F.linear(input, weight_ih, bias)
    return torch.ops.genimg_fast.recurrent.default(
        gates, h0, c0, weight_hh, bias_n, batch_sizes, cell, reverse, keep
    )


def _backward_by_steps(
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
) -> tuple[Tensor, ...]:
    """Likewise for the backward operator."""
    grad_gates, grad_hidden_n, grad_h0, grad_c0 = torch.ops.genimg_fast.recurrent_backward.default(
        grad_output, grad_h_n, grad_c_n, output, reserve, h0, c0, weight_hh, batch_sizes, cell, reverse
    )
    grad_input, *grad_parameters = _gradients_from_steps(
        grad_gates,
        grad_hidden_n,
        input,
        output,
        h0,
        weight_ih,
        batch_sizes,
        cell,
        reverse,
        need_input,
        need_weights,
    )
    return grad_input, grad_h0, grad_c0, *grad_parameters


def lstm_cell_update(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Apply the gates of an LSTM to its cell state, in one pass.

    ``c_new = sigmoid(f) * c + sigmoid(i) * tanh(g)`` and ``h = sigmoid(o) * tanh(c_new)``: everything of a step
    but its products or convolutions, for single steps and convolutional LSTMs; differentiable any number of times.

    Args:
        gates: (B, 4H, *), pre-activations of i, f, g and o along dimension 1; float32, float64, bfloat16 or
            float16.
        c: (B, H, *), the cell state. If its dtype is another one, the result has that to which the two promote.

    Returns:
        State ``h`` and cell state ``c_new``, (B, H, *) each.

    Raises:
        ValueError: A shape, dtype or device does not fit.
        RuntimeError: The backend is ``"native"`` and no compiled kernel takes these arguments.

    Example:
        >>> h, c = lstm_cell_update(torch.randn(8, 4 * 32, 16, 16), torch.zeros(8, 32, 16, 16))
        >>> h.shape, c.shape
        (torch.Size([8, 32, 16, 16]), torch.Size([8, 32, 16, 16]))
    """
    _check_type(gates, "gates")
    _check_state(c, "c")
    gates, c = _promote(gates, c)
    _check_gates(gates, "gates", 4, c)
    if not _use_native("lstm_cell_update", gates, c):
        return lstm_cell_update_reference(gates, c)
    if torch.compiler.is_compiling():
        return torch.ops.genimg_fast.lstm_cell_update.default(gates, c)
    if torch.is_grad_enabled() and (gates.requires_grad or c.requires_grad):
        return _LSTMCellUpdate.apply(gates, c)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.genimg_fast.lstm_cell_update.default(gates, c)


def gru_cell_update(gates_x: Tensor, gates_h: Tensor, h: Tensor) -> Tensor:
    """Apply the gates of a GRU to its state, in one pass.

    ``r = sigmoid(x_r + h_r)``, ``z = sigmoid(x_z + h_z)``, ``n = tanh(x_n + r * h_n)`` and
    ``h_new = (1 - z) * n + z * h``: everything of a step but its products or convolutions; differentiable any
    number of times.

    Args:
        gates_x: (B, 3H, *), what the input contributes to r, z and n along dimension 1; float32, float64, bfloat16
            or float16.
        gates_h: (B, 3H, *), what the state contributes.
        h: (B, H, *), the state. If dtypes differ, the result has that to which they promote.

    Returns:
        The new state, (B, H, *).

    Raises:
        ValueError: A shape, dtype or device does not fit.
        RuntimeError: The backend is ``"native"`` and no compiled kernel takes these arguments.

    Example:
        >>> gru_cell_update(torch.randn(8, 3 * 32), torch.randn(8, 3 * 32), torch.zeros(8, 32)).shape
        torch.Size([8, 32])
    """
    _check_type(gates_x, "gates_x")
    _check_type(gates_h, "gates_h")
    _check_state(h, "h")
    gates_x, gates_h, h = _promote(gates_x, gates_h, h)
    _check_gates(gates_x, "gates_x", 3, h)
    _check_gates(gates_h, "gates_h", 3, h)
    if not _use_native("gru_cell_update", gates_x, gates_h, h):
        return gru_cell_update_reference(gates_x, gates_h, h)
    if torch.compiler.is_compiling():
        return torch.ops.genimg_fast.gru_cell_update.default(gates_x, gates_h, h)
    if torch.is_grad_enabled() and (gates_x.requires_grad or gates_h.requires_grad or h.requires_grad):
        return _GRUCellUpdate.apply(gates_x, gates_h, h)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.genimg_fast.gru_cell_update.default(gates_x, gates_h, h)


def _promote(*tensors: Tensor) -> tuple[Tensor, ...]:
    first, *others = (t.dtype for t in tensors)
    if all(dtype == first for dtype in others):
        return tensors
    for dtype in others:
        first = torch.promote_types(first, dtype)
    return tuple(t.to(first) for t in tensors)


def _check_state(state: Tensor, name: str) -> None:
    _check_type(state, name)
    if state.dtype not in _WIDE_DTYPE:
        raise ValueError(f"{name} must be float32, float64, bfloat16 or float16, got {state.dtype}")
    if state.dim() < 2:
        raise ValueError(f"{name} must have at least 2 dimensions, (B, H, ...), got {state.dim()}")


def _check_gates(gates: Tensor, name: str, count: int, state: Tensor) -> None:
    batch, hidden, *rest = state.shape
    _check_tensor(gates, name, (batch, count * hidden, *rest), state, "state")


def _use_native(operator: str, *tensors: Tensor) -> bool:
    if _native._backend == "reference":
        return False
    reason = why_not_native(tensors)
    if reason is not None and reason is not TRANSFORMED and _native._backend == "native":
        raise RuntimeError(f"{operator}: backend 'native' was asked for, but {reason}")
    return reason is None


def _keep_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs)


def _lstm_update_backward(
    ctx: Any, grad_h: Tensor | None, grad_c_new: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    if grad_h is None and grad_c_new is None:
        return None, None
    gates, c = ctx.saved_tensors
    operator = torch.ops.genimg_fast.lstm_cell_update_backward.default
    grad_gates, grad_c = _call(operator, grad_h, grad_c_new, gates, c)
    return grad_gates, grad_c if ctx.needs_input_grad[1] else None


def _gru_update_backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None
    grads = _call(torch.ops.genimg_fast.gru_cell_update_backward.default, grad, *ctx.saved_tensors)
    return tuple(g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=True))


class _LSTMCellUpdate(torch.autograd.Function):
    """Autograd of the update in eager mode: costs less per call than the formula registered for torch.compile."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            outputs = torch.ops.genimg_fast.lstm_cell_update.default(gates, c)
        _keep_inputs(ctx, (gates, c), outputs)
        return outputs

    backward = staticmethod(_lstm_update_backward)


class _GRUCellUpdate(torch.autograd.Function):
    """Likewise."""

    @staticmethod
    def forward(ctx: Any, gates_x: Tensor, gates_h: Tensor, h: Tensor) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            output = torch.ops.genimg_fast.gru_cell_update.default(gates_x, gates_h, h)
        _keep_inputs(ctx, (gates_x, gates_h, h), output)
        return output

    backward = staticmethod(_gru_update_backward)


def _aliases(tensors: Sequence[Tensor | None]) -> list[Any]:
    """Make differentiable aliases: saved tensors may depend on each other, and each gradient follows its own."""
    return [
        None if t is None else t.view_as(t) if t.requires_grad else t.detach().requires_grad_() for t in tensors
    ]


def _keep_for_layer_double_backward(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:11])
    ctx.options = inputs[11:]


def _layer_double_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    """Differentiate the backward operator: the same in PyTorch operations, differentiated."""
    create_graph = torch.is_grad_enabled()
    result: list[Tensor | None] = [None] * 15
    with torch.enable_grad():
        *saved, batch_sizes = ctx.saved_tensors
        tensors = _aliases(saved)
        wanted = [k for k, t in enumerate(tensors) if t is not None and ctx.needs_input_grad[k]]
        arguments: list[Any] = [*tensors[:3], None, *tensors[3:], batch_sizes, *ctx.options]
        outputs = _backward_reference(*arguments)
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
        if not (wanted and pairs):
            return tuple(result)
        gradients = torch.autograd.grad(
            [o for o, _ in pairs],
            [tensors[k] for k in wanted],
            [g for _, g in pairs],
            allow_unused=True,
            create_graph=create_graph,
        )
    for k, gradient in zip(wanted, gradients, strict=True):
        result[k] = gradient
    return tuple(result)


def _update_double_backward(
    function: Any, weights: int, ctx: Any, *grads: Tensor | None
) -> tuple[Tensor | None, ...]:
    """Differentiate the backward operator of a cell update.

    The update is written out in PyTorch operations, differentiated once to get what the operator computes, and
    once more. The operator's arguments are the gradients at the outputs of ``function``, of which there are
    ``weights``, then its inputs.
    """
    create_graph = torch.is_grad_enabled()
    result: list[Tensor | None] = [None] * len(ctx.saved_tensors)
    with torch.enable_grad():
        tensors = _aliases(ctx.saved_tensors)
        wanted = [k for k, t in enumerate(tensors) if t is not None and ctx.needs_input_grad[k]]
        inputs = tensors[weights:]
        given = [(t, g) for t, g in zip(inputs, grads, strict=True) if g is not None]
        outputs = function(*inputs)
        weighted = zip(outputs if weights > 1 else (outputs,), tensors[:weights], strict=True)
        pairs = [(o, w) for o, w in weighted if w is not None]
        if not (wanted and given and pairs):
            return tuple(result)
        first = torch.autograd.grad(
            [o for o, _ in pairs], [t for t, _ in given], [w for _, w in pairs], create_graph=True
        )
        second = torch.autograd.grad(
            first,
            [tensors[k] for k in wanted],
            [g for _, g in given],
            allow_unused=True,
            create_graph=create_graph,
        )
    for k, gradient in zip(wanted, second, strict=True):
        result[k] = gradient
    return tuple(result)


if find_kernels("recurrent").get("cuda") and not find_kernels("recurrent_layer").get("cuda"):
    torch.library.impl("genimg_fast::recurrent_layer", "CUDA")(_run_by_steps)
    torch.library.impl("genimg_fast::recurrent_layer_backward", "CUDA")(_backward_by_steps)

_KERNELS = find_kernels("recurrent_layer")


def paths() -> dict[str, tuple[str, str]]:
    """Return, for ``info()``, per device the path that ``backend="auto"`` takes and why."""
    return describe_paths(_KERNELS)


def _like_state(state: Tensor, gates: Tensor) -> Tensor:
    """An empty tensor of the state's shape in the memory format of the gates, as the kernels choose it."""
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(gates.dim())
    if channels_last and not gates.is_contiguous() and gates.is_contiguous(memory_format=channels_last):
        return torch.empty_like(state, memory_format=channels_last)
    return torch.empty_like(state, memory_format=torch.contiguous_format)


if _KERNELS:

    @torch.library.register_fake("genimg_fast::recurrent_layer")
    def _(
        input: Tensor,
        h0: Tensor,
        c0: Tensor | None,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        batch_sizes: Tensor | None,
        cell: int,
        reverse: bool,
        keep: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        rows, hidden = _check_operands(input, h0, c0, weight_ih, weight_hh, batch_sizes, cell)
        for bias, name in ((bias_ih, "bias_ih"), (bias_hh, "bias_hh")):
            if bias is not None:
                _check_tensor(bias, name, (_GATES[cell] * hidden,), input, "input")
        return (
            input.new_empty((*input.shape[:-1], hidden)),
            torch.empty_like(h0, memory_format=torch.contiguous_format),
            input.new_empty(h0.shape if cell == LSTM else 0),
            input.new_empty((rows, _RESERVE[cell] * hidden) if keep and _RESERVE[cell] else 0),
        )

    @torch.library.register_fake("genimg_fast::recurrent_layer_backward")
    def _(
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
    ) -> tuple[Tensor, ...]:
        rows, hidden = _check_operands(input, h0, c0, weight_ih, weight_hh, batch_sizes, cell)
        output_shape = (*input.shape[:-1], hidden)
        for tensor, name, shape in (
            (output, "output", output_shape),
            (grad_output, "grad_output", output_shape),
            (grad_h_n, "grad_h_n", h0.shape),
            (grad_c_n, "grad_c_n", h0.shape),
        ):
            if tensor is not None:
                _check_tensor(tensor, name, tuple(shape), input, "input")
        if _RESERVE[cell]:
            _check_tensor(reserve, "reserve", (rows, _RESERVE[cell] * hidden), input, "input")
        width = _GATES[cell] * hidden
        return (
            input.new_empty(input.shape if need_input else 0),
            input.new_empty(h0.shape),
            input.new_empty(h0.shape if cell == LSTM else 0),
            input.new_empty((width, input.shape[-1]) if need_weights else 0),
            input.new_empty((width, hidden) if need_weights else 0),
            input.new_empty(width if need_weights else 0),
            input.new_empty(width if need_weights else 0),
        )

    @torch.library.register_fake("genimg_fast::lstm_cell_update")
    def _(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        _check_state(c, "c")
        _check_gates(gates, "gates", 4, c)
        return _like_state(c, gates), _like_state(c, gates)

    @torch.library.register_fake("genimg_fast::lstm_cell_update_backward")
    def _(grad_h: Tensor | None, grad_c_new: Tensor | None, gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        _check_state(c, "c")
        _check_gates(gates, "gates", 4, c)
        for tensor, name in ((grad_h, "grad_h"), (grad_c_new, "grad_c_new")):
            if tensor is not None:
                _check_tensor(tensor, name, tuple(c.shape), c, "state")
        return _like_state(gates, gates), _like_state(c, gates)

    @torch.library.register_fake("genimg_fast::gru_cell_update")
    def _(gates_x: Tensor, gates_h: Tensor, h: Tensor) -> Tensor:
        _check_state(h, "h")
        _check_gates(gates_x, "gates_x", 3, h)
        _check_gates(gates_h, "gates_h", 3, h)
        return _like_state(h, gates_x)

    @torch.library.register_fake("genimg_fast::gru_cell_update_backward")
    def _(grad: Tensor, gates_x: Tensor, gates_h: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        _check_state(h, "h")
        _check_gates(gates_x, "gates_x", 3, h)
        _check_gates(gates_h, "gates_h", 3, h)
        _check_tensor(grad, "grad", tuple(h.shape), h, "state")
        return _like_state(gates_x, gates_x), _like_state(gates_h, gates_x), _like_state(h, gates_x)

    for _name, _formula, _keep in (
        ("recurrent_layer", _layer_backward, _keep_for_layer),
        ("recurrent_layer_backward", _layer_double_backward, _keep_for_layer_double_backward),
        ("lstm_cell_update", _lstm_update_backward, _keep_inputs),
        (
            "lstm_cell_update_backward",
            partial(_update_double_backward, lstm_cell_update_reference, 2),
            _keep_inputs,
        ),
        ("gru_cell_update", _gru_update_backward, _keep_inputs),
        ("gru_cell_update_backward", partial(_update_double_backward, gru_cell_update_reference, 1), _keep_inputs),
    ):
        torch.library.register_autograd(f"genimg_fast::{_name}", _formula, setup_context=_keep)


def _check_operands(
    input: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    batch_sizes: Tensor | None,
    cell: int,
) -> tuple[int, int]:
    """The checks of csrc/recurrent.h, so that tracing refuses what the kernels would refuse; return rows and H."""
    if not 0 <= cell <= 3:
        raise ValueError(f"cell must be 0 (tanh RNN), 1 (relu RNN), 2 (GRU) or 3 (LSTM), got {cell}")
    if input.dtype not in DTYPES:
        raise ValueError(f"input must be float32, float64, bfloat16 or float16, got {input.dtype}")
    if input.dim() != (3 if batch_sizes is None else 2) or h0.dim() != 2:
        raise ValueError("input must have 3 dimensions, 2 with batch_sizes, and h0 must have 2")
    if (c0 is None) == (cell == LSTM):
        raise ValueError("c0 belongs to an LSTM, and to no other cell")
    batch, hidden = h0.shape
    if batch_sizes is None:
        batch = input.shape[1]
    _check_tensor(h0, "h0", (batch, hidden), input, "input")
    _check_tensor(weight_ih, "weight_ih", (_GATES[cell] * hidden, input.shape[-1]), input, "input")
    _check_tensor(weight_hh, "weight_hh", (_GATES[cell] * hidden, hidden), input, "input")
    if c0 is not None:
        _check_tensor(c0, "c0", (batch, hidden), input, "input")
    return input.shape[:-1].numel(), hidden
