// The recurrent operators made of torch's products and the operators of the steps: on every device that has the latter,
// which is CUDA.  (The CPU has kernels of their own for all of it.)
//
// Procedure overview.  Forward, of each layer: one product projects the input of all steps, for each direction; then
// recurrent_steps takes all directions through the steps, and writes their states side by side and into the stack's.
// Backward, of each layer, the last one first: recurrent_steps_backward makes the gradients at the gates of all steps;
// products of these with the weights, the input and the states give the others.
//
// A sum of two tensors is written as a difference: torch's stable ABI has no addition.
#include "recurrent.h"

#include <torch/csrc/stable/library.h>

#include <array>
#include <tuple>

namespace genimg_fast {
namespace {

template <class... Arguments>
Tensor call(const char* name, const char* overload, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(arguments)> stack{torch::stable::detail::from(arguments)...};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}
template <class... Arguments>
void call_in_place(const char* name, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(arguments)> stack{torch::stable::detail::from(arguments)...};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, "", stack.data(), TORCH_ABI_VERSION));
}

Tensor product(const Tensor& a, const Tensor& b) { return call("aten::mm", "", a, b); }
Tensor join(const std::vector<Tensor>& tensors) { return call("aten::cat", "", tensors, int64_t{0}); }
Tensor sum(const Tensor& a, const Tensor& b) { return torch::stable::subtract(a, b, -1); }
Tensor transposed(const Tensor& a) { return torch::stable::transpose(a, 0, 1); }
Tensor part(Tensor t, int64_t dim, int64_t first, int64_t count) {
  return first == 0 && t.size(dim) == count ? t : torch::stable::narrow(t, dim, first, count);
}

Tensor empty(const Tensor& like, const std::vector<int64_t>& sizes) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(sizes));
}
Tensor empty_rows(const Tensor& like, const Stack& s, int64_t width) {
  if (s.packed) return empty(like, {s.sequence.rows(), width});
  return empty(like, {s.sequence.steps, s.sequence.batch, width});
}
Tensor nothing(const Tensor& like) { return empty(like, {0}); }

Tensor columns(const Tensor& rows, int64_t first, int64_t count) { return part(rows, rows.dim() - 1, first, count); }
// Each step's rows one below the other.
Tensor as_matrix(const Tensor& rows) { return rows.dim() == 2 ? rows : torch::stable::flatten(rows, 0, 1); }

// A layer's part of what all layers and directions have.
Tensor of_layer(const Tensor& parts, const Stack& s, int64_t layer) {
  return part(parts, 0, layer * s.directions, s.directions);
}
OptionalTensor of_layer(const OptionalTensor& parts, const Stack& s, int64_t layer) {
  return parts ? OptionalTensor(of_layer(*parts, s, layer)) : std::nullopt;
}

// What is added to the projected input, if there are biases, and GRU's bias within the reset gate.
std::pair<OptionalTensor, OptionalTensor> combine_biases(const Stack& s, const Tensor* weights) {
  if (s.parameters == 2) return {};
  const Tensor &bias_ih = weights[2], &bias_hh = weights[3];
  if (s.cell != Cell::gru) return {sum(bias_ih, bias_hh), std::nullopt};
  const int64_t H = s.sequence.hidden;
  const Tensor outside = sum(part(bias_ih, 0, 0, 2 * H), part(bias_hh, 0, 0, 2 * H));
  return {join({outside, part(bias_ih, 0, 2 * H, H)}), part(bias_hh, 0, 2 * H, H)};
}

// For each row of a direction's output the state from which its step was taken.
Tensor previous_states(const Tensor& output, const Tensor& h0, const Sequence& s, bool descending) {
  const Tensor rows = as_matrix(output);
  std::vector<Tensor> states;
  const auto add = [&](const Tensor& from, int64_t first, int64_t count) {
    if (count > 0) states.push_back(part(from, 0, first, count));
  };
  const bool ragged = s.steps > 0 && s.active(s.steps - 1) < s.batch;
  if (!descending) add(h0, 0, std::min(s.batch, s.rows()));
  if (!ragged) {
    add(rows, descending ? std::min(s.batch, s.rows()) : 0, std::max<int64_t>(s.rows() - s.batch, 0));
  } else {
    for (int64_t t = 1; t < s.steps; ++t) {
      add(rows, s.offsets[descending ? t : t - 1], s.active(t));
      // Sequences that have no next step begin here.
      if (descending) add(h0, s.active(t), s.active(t - 1) - s.active(t));
    }
  }
  if (descending) add(h0, 0, ragged ? s.active(s.steps - 1) : std::min(s.batch, s.rows()));
  return states.size() == 1 ? states[0] : states.empty() ? rows : join(states);
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> recurrent(Tensor input, Tensor h0, OptionalTensor c0,
                                                                  OptionalTensor batch_sizes,
                                                                  std::vector<Tensor> weights, int64_t cell,
                                                                  bool bidirectional, bool reverse, bool keep) {
  const Stack s = check_stack(input, h0, c0, batch_sizes, weights, cell, bidirectional);
  const int64_t H = s.sequence.hidden, saved = reserve_count(s.cell);
  const std::vector<int64_t> states{s.parts, s.sequence.batch, H};
  const OptionalTensor c_n = s.cell == Cell::lstm ? OptionalTensor(empty(input, states)) : std::nullopt;
  const Tensor h_n = empty(input, states);
  std::vector<Tensor> outputs, reserves;
  Tensor x = input;
  for (int64_t layer = 0; layer < s.layers(); ++layer) {
    std::vector<Tensor> gates, weights_hh, biases_n, reserve;
    for (int64_t d = 0; d < s.directions; ++d) {
      const Tensor* const w = &weights[(layer * s.directions + d) * s.parameters];
      const auto [bias, bias_n] = combine_biases(s, w);
      gates.push_back(call("aten::linear", "", x, w[0], bias));
      weights_hh.push_back(w[1]);
      if (bias_n) biases_n.push_back(*bias_n);
      if (keep && saved > 0) reserve.push_back(empty(input, {s.sequence.rows(), saved * H}));
    }
    x = empty_rows(input, s, s.width());
    call_in_place("genimg_fast::recurrent_steps", gates, of_layer(h0, s, layer), of_layer(c0, s, layer), weights_hh,
                  biases_n, batch_sizes, cell, reverse, x, of_layer(h_n, s, layer), of_layer(c_n, s, layer), reserve);
    outputs.push_back(x);
    reserves.insert(reserves.end(), reserve.begin(), reserve.end());
  }
  if (!keep) return {x, h_n, c_n ? *c_n : nothing(input), {}};
  outputs.insert(outputs.end(), reserves.begin(), reserves.end());
  return {torch::stable::clone(x), h_n, c_n ? *c_n : nothing(input), outputs};
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> recurrent_backward(
    OptionalTensor grad_output, OptionalTensor grad_h_n, OptionalTensor grad_c_n, Tensor input, Tensor h0,
    OptionalTensor c0, OptionalTensor batch_sizes, std::vector<Tensor> kept, std::vector<Tensor> weights, int64_t cell,
    bool bidirectional, bool reverse, bool biased, bool need_input, bool need_weights) {
  const Stack s = check_stack(input, h0, c0, batch_sizes, weights, cell, bidirectional);
  check_stack_backward(s, grad_output, grad_h_n, grad_c_n, kept, input);
  const bool gru = s.cell == Cell::gru, has_reserve = reserve_count(s.cell) > 0;
  const int64_t H = s.sequence.hidden, width = gate_count(s.cell) * H, each = biased ? 4 : 2;
  const std::vector<int64_t> states{s.parts, s.sequence.batch, H};
  const Tensor grad_h0 = empty(input, states);
  const OptionalTensor grad_c0 = s.cell == Cell::lstm ? OptionalTensor(empty(input, states)) : std::nullopt;
  std::vector<Tensor> grad_weights(need_weights ? each * s.parts : 0, grad_h0);
  OptionalTensor grad = grad_output;  // at the layer's output, then at its input
  for (int64_t layer = s.layers() - 1; layer >= 0; --layer) {
    const Tensor &x = layer > 0 ? kept[layer - 1] : input, &output = kept[layer];
    std::vector<Tensor> reserve, weights_hh, grad_gates, grad_hidden_n;
    for (int64_t d = 0; d < s.directions; ++d) {
      const int64_t part = layer * s.directions + d;
      if (has_reserve) reserve.push_back(kept[s.layers() + part]);
      weights_hh.push_back(weights[2 * part + 1]);
      grad_gates.push_back(empty_rows(input, s, width));
      if (gru) grad_hidden_n.push_back(empty(input, {s.sequence.rows(), H}));
    }
    call_in_place("genimg_fast::recurrent_steps_backward", grad, of_layer(grad_h_n, s, layer),
                  of_layer(grad_c_n, s, layer), output, reserve, of_layer(h0, s, layer), of_layer(c0, s, layer),
                  weights_hh, batch_sizes, cell, reverse, grad_gates, grad_hidden_n, of_layer(grad_h0, s, layer),
                  of_layer(grad_c0, s, layer));
    grad.reset();
    for (int64_t d = s.directions - 1; d >= 0; --d) {
      const int64_t part = layer * s.directions + d;
      const Tensor at_gates = as_matrix(grad_gates[d]);
      if (layer > 0 || need_input) {
        const Tensor at_input = product(at_gates, weights[2 * part]);
        grad = grad ? sum(*grad, at_input) : at_input;
      }
      if (!need_weights) continue;
      // What the recurrent product sees: GRU's candidate's gradient behind the reset gate.
      const Tensor at_hidden =
          gru ? call("aten::cat", "", std::vector<Tensor>{columns(at_gates, 0, 2 * H), grad_hidden_n[d]}, int64_t{1})
              : at_gates;
      const Tensor before = previous_states(columns(output, d * H, H), torch::stable::select(h0, 0, part), s.sequence,
                                            reverse != (d == 1));
      Tensor* const found = &grad_weights[each * part];
      found[0] = product(transposed(at_gates), as_matrix(x));
      found[1] = product(transposed(at_hidden), before);
      if (!biased) continue;
      const std::array<int64_t, 1> rows{0};
      found[2] = torch::stable::sum(at_gates, torch::headeronly::IntHeaderOnlyArrayRef(rows));
      found[3] = gru ? torch::stable::sum(at_hidden, torch::headeronly::IntHeaderOnlyArrayRef(rows))
                     : torch::stable::clone(found[2]);
    }
    if (grad) {
      std::vector<int64_t> sizes;
      for (int64_t d = 0; d < x.dim(); ++d) sizes.push_back(x.size(d));
      grad = torch::stable::view(*grad, torch::headeronly::IntHeaderOnlyArrayRef(sizes));
    }
  }
  return {need_input ? *grad : nothing(input), grad_h0, grad_c0 ? *grad_c0 : nothing(input), grad_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CompositeExplicitAutograd, m) {
  m.impl("recurrent", TORCH_BOX(&recurrent));
  m.impl("recurrent_backward", TORCH_BOX(&recurrent_backward));
}

}  // namespace genimg_fast
