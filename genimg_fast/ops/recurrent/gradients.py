"""What the backward operator computes, in PyTorch operations: to be transformed or differentiated."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genimg_fast.ops._checks import WIDE_DTYPE
from genimg_fast.ops.recurrent.operands import CELLS, GRU, LSTM, RNN_TANH, Backward, Layer, layer_of


class LayerBackward(NamedTuple):
    """What backward takes of one layer in one direction."""

    layer: Layer
    output: Tensor
    reserve: Tensor
    grad_output: Tensor | None
    grad_h_n: Tensor | None
    grad_c_n: Tensor | None
    grad_reserve: Tensor | None
    need_input: bool
    need_weights: bool


def _previous_states(output: Tensor, h0: Tensor, layer: Layer) -> Tensor:
    """Return for each row of the output the state from which its step was taken."""
    batch_sizes, reverse = layer.batch_sizes, layer.reverse
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


def gradients_from_steps(
    call: LayerBackward, grad_gates: Tensor, grad_hidden_n: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of input, weights and biases, torch's order: sums and products over all steps."""
    layer, input, h0 = call.layer, call.layer.input, call.layer.h0
    assert h0 is not None
    grad_gates = grad_gates.reshape(-1, grad_gates.shape[-1])
    grad_input = grad_gates.mm(layer.weight_ih).view(input.shape) if call.need_input else input.new_empty(0)
    if not call.need_weights:  # an empty tensor of its own for each: an operator's outputs do not share memory
        return grad_input, input.new_empty(0), input.new_empty(0), input.new_empty(0), input.new_empty(0)
    at_hidden = grad_gates
    if layer.cell == GRU:
        # What the recurrent product sees: the candidate's gradient behind the reset gate.
        at_hidden = torch.cat((grad_gates[:, : 2 * h0.shape[1]], grad_hidden_n), dim=1)
    grad_bias_ih = grad_gates.sum(0)
    return (
        grad_input,
        grad_gates.t().mm(input.flatten(0, -2)),
        at_hidden.t().mm(_previous_states(call.output, h0, layer)),
        grad_bias_ih,
        grad_bias_ih.clone() if at_hidden is grad_gates else at_hidden.sum(0),
    )


def layer_backward_reference(call: LayerBackward) -> tuple[Tensor, ...]:
    """Do what the backward operator does, for one layer and direction, in PyTorch operations.

    It takes gradients at the reserve as well, and is a function of the saved values: differentiating it gives
    gradients at those, which the forward operator's formula passes on.
    """
    layer, output, reserve = call.layer, call.output, call.reserve
    h0, c0, batch_sizes, cell = layer.h0, layer.c0, layer.batch_sizes, layer.cell
    assert h0 is not None
    dtype, hidden = WIDE_DTYPE[output.dtype], h0.shape[1]
    sizes = [h0.shape[0]] * output.shape[0] if batch_sizes is None else batch_sizes.tolist()

    def steps(t: Tensor | None, values: int = 1) -> Sequence[Any]:
        if t is None or values == 0:
            return [None] * len(sizes)
        return t.to(dtype).reshape(sum(sizes), values * hidden).split(sizes)

    outputs, grad_outputs = steps(output), steps(call.grad_output)
    reserves, grad_reserves = steps(reserve, CELLS[cell].reserve), steps(call.grad_reserve, CELLS[cell].reserve)
    states = steps(_previous_states(output, h0, layer))
    if c0 is not None:
        all_cell_states = reserve[:, 4 * hidden :].reshape(output.shape)
        cell_states = steps(_previous_states(all_cell_states, c0, layer))
    weight = layer.weight_hh.to(dtype)
    dh, dc = (
        h0.new_zeros(h0.shape, dtype=dtype) if g is None else g.to(dtype) for g in (call.grad_h_n, call.grad_c_n)
    )
    grads_at_gates: list[Any] = [None] * len(sizes)
    grads_at_hidden_n: list[Any] = [None] * len(sizes)
    for t in range(len(sizes)) if layer.reverse else reversed(range(len(sizes))):
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
    wide = layer._replace(
        input=layer.input.to(dtype), h0=h0.to(dtype), weight_ih=layer.weight_ih.to(dtype)
    )  # fmt: skip
    grad_input, *grad_parameters = gradients_from_steps(
        call._replace(layer=wide, output=output.to(dtype)),
        torch.cat(grads_at_gates) if sizes else nothing.view(0, CELLS[cell].gates * hidden),
        torch.cat(grads_at_hidden_n) if sizes and cell == GRU else nothing.view(0, hidden),
    )
    gradients = (grad_input, dh, dc if cell == LSTM else nothing, *grad_parameters)
    return tuple(g.to(output.dtype) for g in gradients)


def _columns(rows: Tensor, first: int, count: int) -> Tensor:
    # Not all of them as a slice of themselves: the transform behind is_grads_batched lacks that view.
    return rows if rows.shape[-1] == count else rows[..., first : first + count]


def _add(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return second if first is None else first
    return first + second


def backward_by_layers(
    layer_backward: Callable[[LayerBackward], tuple[Tensor, ...]],
    call: Backward,
    grad_kept: Sequence[Tensor | None] = (),
) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
    """Do what the backward operator does, given a function for one layer in one direction.

    It takes gradients at what forward kept as well.
    """
    (input, h0, *_), kept, options = call.operands, call.kept, call.options
    parts, hidden, directions = h0.shape[0], h0.shape[2], options.directions
    layers, each = parts // directions, 4 if call.biased else 2
    outputs, reserves = kept[:layers], kept[layers:] or [input.new_empty(0)] * parts
    grad_kept = grad_kept or [None] * len(kept)
    grad_outputs, grad_reserves = list(grad_kept[:layers]), grad_kept[layers:] or [None] * parts
    grad_outputs[-1] = _add(grad_outputs[-1], call.grad_output)
    grad_states: list[Any] = [None] * parts
    grad_weights: list[Any] = [None] * (each * parts)
    grad_input = input.new_empty(0)
    for k in reversed(range(parts)):
        layer, direction = divmod(k, directions)
        grad, wanted = grad_outputs[layer], layer > 0 or call.need_input
        found, *grad_states[k], grad_weight_ih, grad_weight_hh, grad_bias_ih, grad_bias_hh = layer_backward(
            LayerBackward(
                layer_of(call.operands, options, k, outputs[layer - 1] if layer else input),
                _columns(outputs[layer], direction * hidden, hidden),
                reserves[k],
                None if grad is None else _columns(grad, direction * hidden, hidden),
                None if call.grad_h_n is None else call.grad_h_n[k],
                None if call.grad_c_n is None else call.grad_c_n[k],
                grad_reserves[k],
                wanted,
                call.need_weights,
            )
        )
        grad_weights[k * each : (k + 1) * each] = (grad_weight_ih, grad_weight_hh, grad_bias_ih, grad_bias_hh)[
            :each
        ]
        if layer:
            grad_outputs[layer - 1] = _add(grad_outputs[layer - 1], found)
        elif wanted:
            grad_input = grad_input + found if grad_input.shape == found.shape else found
    grad_h0 = torch.stack([h for h, _ in grad_states])
    grad_c0 = torch.stack([c for _, c in grad_states]) if options.cell == LSTM else input.new_empty(0)
    return grad_input, grad_h0, grad_c0, grad_weights if call.need_weights else []


def gradients_reference(*arguments: Any, grad_kept: Sequence[Tensor | None] = ()) -> tuple[Any, ...]:
    """Do what the backward operator does with the same arguments."""
    return backward_by_layers(layer_backward_reference, Backward.of(*arguments), grad_kept)
