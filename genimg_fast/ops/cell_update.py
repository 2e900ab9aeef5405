"""The elementwise part of one step of an LSTM or GRU, for cells and convolutional layers."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from genimg_fast.ops._autograd import call_backward, double_backward, keep_inputs
from genimg_fast.ops._checks import WIDE_DTYPE, check_dtype, check_tensor, check_type
from genimg_fast.ops._dispatch import Kernels, Preference, check_backend

# Reference.


def lstm_cell_update_reference(gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Compute :func:`lstm_cell_update` with PyTorch's own operators: the definition of what is right.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gates, c = torch.randn(8, 128), torch.randn(8, 32)
        >>> expected = gf.ops.lstm_cell_update_reference(gates, c)[0]
        >>> torch.allclose(gf.ops.lstm_cell_update(gates, c)[0], expected, atol=1e-5)
        True
    """
    i, f, g, o = gates.chunk(4, dim=1)
    c_new = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c_new.tanh(), c_new


def gru_cell_update_reference(gates_x: Tensor, gates_h: Tensor, h: Tensor) -> Tensor:
    """Compute :func:`gru_cell_update` with PyTorch's own operators: the definition of what is right.

    Example:
        >>> import torch, genimg_fast as gf
        >>> gates_x, gates_h, h = torch.randn(8, 96), torch.randn(8, 96), torch.randn(8, 32)
        >>> expected = gf.ops.gru_cell_update_reference(gates_x, gates_h, h)
        >>> torch.allclose(gf.ops.gru_cell_update(gates_x, gates_h, h), expected, atol=1e-5)
        True
    """
    (xr, xz, xn), (hr, hz, hn) = gates_x.chunk(3, dim=1), gates_h.chunk(3, dim=1)
    n = (xn + (xr + hr).sigmoid() * hn).tanh()
    return n + (xz + hz).sigmoid() * (h - n)


# Gradients.


def _lstm_update_gradients(
    grad_h: Tensor | None, grad_c_new: Tensor | None, gates: Tensor, c: Tensor
) -> tuple[Tensor, Tensor]:
    """Do what the backward operator does, in PyTorch operations."""
    dtype = WIDE_DTYPE[c.dtype]
    at_h, at_c = (torch.zeros_like(c, dtype=dtype) if g is None else g.to(dtype) for g in (grad_h, grad_c_new))
    i, f, g, o = gates.to(dtype).chunk(4, dim=1)
    i, f, g, o, before = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid(), c.to(dtype)
    tanh_c = (f * before + i * g).tanh()
    if grad_h is None:  # else zero times what is not finite
        o, tanh_c = torch.zeros_like(o), torch.zeros_like(tanh_c)
    at_c = at_c + at_h * o * (1 - tanh_c * tanh_c)
    grad_gates = torch.cat(
        (
            at_c * g * i * (1 - i),
            at_c * before * f * (1 - f),
            at_c * i * (1 - g * g),
            at_h * tanh_c * o * (1 - o),
        ),
        dim=1,
    )
    return grad_gates.to(c.dtype), (at_c * f).to(c.dtype)


def _gru_update_gradients(
    grad: Tensor, gates_x: Tensor, gates_h: Tensor, h: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Likewise."""
    dtype = WIDE_DTYPE[h.dtype]
    (xr, xz, xn), (hr, hz, hn) = gates_x.to(dtype).chunk(3, dim=1), gates_h.to(dtype).chunk(3, dim=1)
    r, z, at_h = (xr + hr).sigmoid(), (xz + hz).sigmoid(), grad.to(dtype)
    n = (xn + r * hn).tanh()
    at_n = at_h * (1 - z) * (1 - n * n)
    at_r, at_z = at_n * hn * r * (1 - r), at_h * (h.to(dtype) - n) * z * (1 - z)
    grad_x, grad_h = torch.cat((at_r, at_z, at_n), dim=1), torch.cat((at_r, at_z, at_n * r), dim=1)
    return grad_x.to(h.dtype), grad_h.to(h.dtype), (at_h * z).to(h.dtype)


# Checks.


def _promote(*tensors: Tensor) -> tuple[Tensor, ...]:
    first, *others = (t.dtype for t in tensors)
    if all(dtype == first for dtype in others):
        return tensors
    for dtype in others:
        first = torch.promote_types(first, dtype)
    return tuple(t.to(first) for t in tensors)


def _check_data(tensor: Tensor, name: str) -> None:
    check_type(tensor, name)
    check_dtype(tensor, name)


def _check_state(state: Tensor, name: str) -> None:
    _check_data(state, name)
    if state.dim() < 2:
        raise ValueError(f"{name} must have at least 2 dimensions, (B, H, ...), got {state.dim()}")


def _check_gates(gates: Tensor, name: str, count: int, state: Tensor) -> None:
    batch, hidden, *rest = state.shape
    check_tensor(gates, name, (batch, count * hidden, *rest), state, "state")


# Dispatch.

_SMALLEST = 4096


def _starts_faster(values: int) -> bool:
    return values < _SMALLEST and not torch.is_grad_enabled()


_SMALL_CELLS = Preference(
    f"cells with fewer than {_SMALLEST} hidden values where no gradient is recorded", _starts_faster
)
KERNELS = Kernels("lstm_cell_update", slower={"cpu": _SMALL_CELLS, "cuda": _SMALL_CELLS})


# Operator.


def _lstm_update_backward(
    ctx: Any, grad_h: Tensor | None, grad_c_new: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    if grad_h is None and grad_c_new is None:
        return None, None
    operator = torch.ops.genimg_fast.lstm_cell_update_backward.default
    grads = (grad_h, grad_c_new)
    grad_gates, grad_c = call_backward(operator, _lstm_update_gradients, grads, *ctx.saved_tensors)
    return grad_gates, grad_c if ctx.needs_input_grad[1] else None


def _gru_update_backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return None, None, None
    operator = torch.ops.genimg_fast.gru_cell_update_backward.default
    grads = call_backward(operator, _gru_update_gradients, (grad,), *ctx.saved_tensors)
    return tuple(g if need else None for g, need in zip(grads, ctx.needs_input_grad, strict=True))


class _LSTMCellUpdate(torch.autograd.Function):
    """Autograd of the update in eager mode: costs less per call than the formula registered for torch.compile."""

    @staticmethod
    def forward(ctx: Any, gates: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        with torch._C._AutoDispatchBelowAutograd():
            outputs = _lstm_update(gates, c)
        keep_inputs(ctx, (gates, c), outputs)
        return outputs

    backward = staticmethod(_lstm_update_backward)


class _GRUCellUpdate(torch.autograd.Function):
    """Likewise."""

    @staticmethod
    def forward(ctx: Any, gates_x: Tensor, gates_h: Tensor, h: Tensor) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            output = _gru_update(gates_x, gates_h, h)
        keep_inputs(ctx, (gates_x, gates_h, h), output)
        return output

    backward = staticmethod(_gru_update_backward)


def _like_state(state: Tensor, gates: Tensor) -> Tensor:
    """An empty tensor of the state's shape in the memory format of the gates, as the kernels choose it."""
    channels_last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(gates.dim())
    if channels_last and not gates.is_contiguous() and gates.is_contiguous(memory_format=channels_last):
        return torch.empty_like(state, memory_format=channels_last)
    return torch.empty_like(state, memory_format=torch.contiguous_format)


if KERNELS.in_library:
    _lstm_update = torch.ops.genimg_fast.lstm_cell_update.default
    _gru_update = torch.ops.genimg_fast.gru_cell_update.default

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
                check_tensor(tensor, name, tuple(c.shape), c, "state")
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
        check_tensor(grad, "grad", tuple(h.shape), h, "state")
        return _like_state(gates_x, gates_x), _like_state(gates_h, gates_x), _like_state(h, gates_x)

    for _name, _formula in (
        ("lstm_cell_update", _lstm_update_backward),
        ("lstm_cell_update_backward", partial(double_backward, _lstm_update_gradients)),
        ("gru_cell_update", _gru_update_backward),
        ("gru_cell_update_backward", partial(double_backward, _gru_update_gradients)),
    ):
        torch.library.register_autograd(f"genimg_fast::{_name}", _formula, setup_context=keep_inputs)


# Functions.


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
        >>> import torch, genimg_fast as gf
        >>> h, c = gf.ops.lstm_cell_update(torch.randn(8, 4 * 32, 16, 16), torch.zeros(8, 32, 16, 16))
        >>> h.shape, c.shape
        (torch.Size([8, 32, 16, 16]), torch.Size([8, 32, 16, 16]))
    """
    _check_data(gates, "gates")
    _check_state(c, "c")
    gates, c = _promote(gates, c)
    _check_gates(gates, "gates", 4, c)
    if (reason := KERNELS.why_not((gates, c))) is not None:
        check_backend("lstm_cell_update", reason)
        return lstm_cell_update_reference(gates, c)
    if torch.compiler.is_compiling():
        return _lstm_update(gates, c)
    if torch.is_grad_enabled() and (gates.requires_grad or c.requires_grad):
        return _LSTMCellUpdate.apply(gates, c)
    with torch._C._AutoDispatchBelowAutograd():
        return _lstm_update(gates, c)


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
        >>> import torch, genimg_fast as gf
        >>> gf.ops.gru_cell_update(torch.randn(8, 3 * 32), torch.randn(8, 3 * 32), torch.zeros(8, 32)).shape
        torch.Size([8, 32])
    """
    _check_data(gates_x, "gates_x")
    _check_data(gates_h, "gates_h")
    _check_state(h, "h")
    gates_x, gates_h, h = _promote(gates_x, gates_h, h)
    _check_gates(gates_x, "gates_x", 3, h)
    _check_gates(gates_h, "gates_h", 3, h)
    if (reason := KERNELS.why_not((gates_x, gates_h, h))) is not None:
        check_backend("gru_cell_update", reason)
        return gru_cell_update_reference(gates_x, gates_h, h)
    if torch.compiler.is_compiling():
        return _gru_update(gates_x, gates_h, h)
    if torch.is_grad_enabled() and (gates_x.requires_grad or gates_h.requires_grad or h.requires_grad):
        return _GRUCellUpdate.apply(gates_x, gates_h, h)
    with torch._C._AutoDispatchBelowAutograd():
        return _gru_update(gates_x, gates_h, h)
