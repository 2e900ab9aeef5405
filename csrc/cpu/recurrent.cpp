// The recurrent family on the CPU.
//
// Procedure overview.  A step multiplies the input (sequences x features) by weight_ih and the state (sequences x
// hidden) by weight_hh, and applies the cell's formulas to the sums.  The weights are packed once per call into panels:
// a panel belongs to a few vectors of hidden units and holds, for every k, the weights of all their gates side by side.
// Some rows times one panel give all gates of those units, so the formulas are applied while the sums are in the L1
// cache, and no gates are written to memory.  Backward is the same with the weights' transposes: the gradients at a
// step's gates times a panel complete the gradient at the state before, from which the formulas make the gradients at
// that step's gates; another panel makes the gradient at the input.  The gradients at all steps' gates are kept: times
// the inputs and states of all steps they give the weights' gradients, in one product after the last step.
//
// Sequences and the two directions of a layer do not depend on each other: a thread owns a tile of the batch in one
// direction and takes it through all steps alone.  Where the batch is too small for that, or the weights outgrow a
// core's cache, the threads share each step by panels instead.  Very few sequences have their inputs' products of all
// steps made at once, outside the steps, so that weight_ih need not be read for each.  Every sum is made of chains of
// fixed length in a fixed order, so neither the choice nor the number of threads changes a bit.
//
// Products are those of the type of the arithmetic, whatever the data.  Where the machine multiplies pairs of bfloat16,
// bfloat16 data is not converted for them: states and gradients at the gates are rounded to it before each product.
#include "../recurrent.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <tuple>
#include <type_traits>

#include "common.h"
#include "output_memory.h"
#include "recurrent_layout.h"
#include "recurrent_threads.h"
#include "simd.h"

namespace genimg_fast {
namespace {

constexpr int64_t few_sequences = 8;  // fewer do not make up for reading weight_ih in every step

#define SIMD_WITH_BF16_PRODUCTS
#define SIMD_BODY "recurrent_kernels.h"
#include "for_each_simd_level.h"

#define OPERAND_DISPATCH(E, call) SIMD_DISPATCH_PAIRS((std::is_same<E, BFloat16>::value), call)

// Calls f with a value of the type of the data and one of the type of products' operands.
template <class F>
void dispatch_operands(ScalarType t, const F& f) {
  if (t == ScalarType::Float) f(float(), float());
  if (t == ScalarType::Double) f(double(), double());
  if (t == ScalarType::Half) f(Half(), float());
  if (t != ScalarType::BFloat16) return;
  if constexpr (knows_bf16_products)
    if (has_bf16_products()) return f(BFloat16(), BFloat16());
  f(BFloat16(), float());
}

Tensor as_dense(const Tensor& t) {
  if (t.is_contiguous()) return t;
  Tensor copy = empty_output(t, MemoryFormat::Contiguous);
  torch::stable::copy_(copy, t);
  return copy;
}

OptionalTensor as_dense(const OptionalTensor& t) { return t ? OptionalTensor(as_dense(*t)) : t; }

std::vector<Tensor> as_dense(std::vector<Tensor> tensors) {
  for (Tensor& t : tensors) t = as_dense(t);
  return tensors;
}

Tensor empty(const Tensor& like, const std::vector<int64_t>& sizes) {
  return empty_output(like, sizes, like.scalar_type());
}

Tensor nothing(const Tensor& like) { return empty(like, {0}); }

// One row of `width` values for each of the sequence's.
Tensor empty_rows(const Tensor& like, const Stack& stack, int64_t width) {
  if (stack.packed) return empty(like, {stack.sequence.rows(), width});
  return empty(like, {stack.sequence.steps, stack.sequence.batch, width});
}

// Part `part`'s rows of a tensor (parts, batch, hidden).
template <class T>
T* part_of(T* states, const Stack& stack, int64_t part) {
  return states == nullptr ? nullptr : states + part * stack.sequence.batch * stack.sequence.hidden;
}

void set_steps(Steps& job, const Stack& stack, int64_t features, bool descending) {
  job.kind = stack.cell;
  job.hidden = stack.sequence.hidden;
  job.features = features;
  job.steps = stack.sequence.steps;
  job.offsets = stack.sequence.offsets.data();
  job.descending = descending;
  job.stride = round_up(stack.sequence.hidden);
  job.output_stride = stack.width();
}

// Where the sums of all slots begin: at the biases.
template <class T, class E>
void set_bias(const Forward<T, E>& job, const T* bias_ih, const T* bias_hh) {
  using A = Acc<T>;
  const int64_t H = job.hidden, gates = gate_count(job.kind), first = first_gate(job.kind);
  std::fill_n(job.bias, slot_count(job.kind) * job.stride, A(0));
  for (int64_t g = 0; g < gates; ++g) {
    A* const sum = job.bias + (g + gates - first) % gates * job.stride;
    const bool apart = job.kind == Cell::gru && g == 2;
    for (int64_t j = 0; j < H; ++j)
      sum[j] = (bias_ih ? A(bias_ih[g * H + j]) : A(0)) + (bias_hh && !apart ? A(bias_hh[g * H + j]) : A(0));
  }
  if (job.kind != Cell::gru || bias_hh == nullptr) return;
  for (int64_t j = 0; j < H; ++j) job.bias[3 * job.stride + j] = A(bias_hh[2 * H + j]);
}

// All tensors of forward but the inputs of the layers; kept is empty if nothing is.
struct ForwardTensors {
  Tensor h0;
  OptionalTensor c0;
  std::vector<Tensor> weights;
  Tensor h_n, c_n;
  std::vector<Tensor> kept;
};

// Parts first_part, ... of the stack: the directions of one layer.  The output is written to output_copy, too, if there
// is one.
template <class T, class E>
void forward_layer(const Stack& stack, int64_t first_part, const Tensor& input, bool reverse, ForwardTensors& tensors,
                   Tensor& output, Tensor* output_copy) {
  using A = Acc<T>;
  const Cell kind = stack.cell;
  const int64_t H = stack.sequence.hidden, N = stack.sequence.rows(), B = stack.sequence.batch;
  const int64_t features = input.size(input.dim() - 1), directions = stack.directions;
  const int G = gate_count(kind);
  Forward<T, E> jobs[2];
  Forward<T, E>& like = jobs[0];
  E* converted_input;
  bool input_as_it_is = false;
  Workspace workspace;
  for (int64_t d = 0; d < directions; ++d) {
    Forward<T, E>& job = jobs[d];
    const int64_t part = first_part + d;
    set_steps(job, stack, features, reverse != (d == 1));
    OPERAND_DISPATCH(E, make_layout<A>(job.from_state, G, H, factor_depth<E>(H)));
    OPERAND_DISPATCH(E, make_layout<A>(job.from_input, G, H, factor_depth<E>(features)));
    job.h0 = part_of(data<T>(std::as_const(tensors.h0)), stack, part);
    job.c0 = part_of(data_or_null<T>(tensors.c0), stack, part);
    job.output = data<T>(output) + d * H;
    job.output_copy = output_copy ? data<T>(*output_copy) + d * H : nullptr;
    job.h_n = part_of(data<T>(tensors.h_n), stack, part);
    job.c_n = part_of(data<T>(tensors.c_n), stack, part);
    const bool keep = !tensors.kept.empty() && reserve_count(kind) > 0;
    job.reserve = keep ? data<T>(tensors.kept[stack.layers() + part]) : nullptr;
    // Rows that end with an incomplete factor have to be padded.
    input_as_it_is = std::is_same<T, E>::value && features == job.from_input.depth;
    job.input_stride = input_as_it_is ? features : round_up(features);
    workspace.add(job.state_panels, job.from_state.size());
    workspace.add(job.input_panels, job.from_input.size());
    workspace.add(job.bias, slot_count(kind) * job.stride);
    job.projected = nullptr;
    if (B < few_sequences) workspace.add(job.projected, N * slot_count(kind) * job.stride);
    for (E*& s : job.state) workspace.add(s, B * job.stride);
    workspace.add(job.cell, B * job.stride);
  }
  workspace.add(converted_input, input_as_it_is ? 0 : N * like.input_stride);
  workspace.allocate(input);
  int64_t step_weights = like.from_input.size() + like.from_state.size();
  parallel_each(directions * like.panels(), threads_for(directions * step_weights, thread_packed), [&](int64_t i) {
    const int64_t d = i / like.panels(), p = i % like.panels();
    const Forward<T, E>& job = jobs[d];
    const Tensor* const weights = &tensors.weights[(first_part + d) * stack.parameters];
    if (p == 0) {
      const bool biased = stack.parameters == 4;
      set_bias(job, biased ? data<T>(weights[2]) : nullptr, biased ? data<T>(weights[3]) : nullptr);
    }
    OPERAND_DISPATCH(E, pack_transposed(job.from_state, p, data<T>(weights[1]), H, 0, job.state_panels));
    OPERAND_DISPATCH(
        E, pack_transposed(job.from_input, p, data<T>(weights[0]), features, first_gate(kind), job.input_panels));
  });
  if (!input_as_it_is)
    parallel(N, threads_for(N * features, thread_elements), [&](int64_t begin, int64_t end) {
      E* const to = converted_input + begin * like.input_stride;
      if (features != like.from_input.depth) std::fill_n(to, (end - begin) * like.input_stride, E(0));
      OPERAND_DISPATCH(
          E, convert_rows(data<T>(input) + begin * features, features, end - begin, features, to, like.input_stride));
    });
  for (Forward<T, E>& job : jobs) {
    job.input = converted_input;
    if constexpr (std::is_same<T, E>::value)
      if (input_as_it_is) job.input = data<T>(input);
  }
  if (like.projected) {
    step_weights = like.from_state.size();
    parallel_each(directions * like.panels(), threads_for(directions * N * like.from_input.size(), thread_products),
                  [&](int64_t i) { OPERAND_DISPATCH(E, project_panel(jobs[i / like.panels()], i % like.panels())); });
  }
  run(
      stack, step_weights, step_weights * sizeof(E), like.panels(),
      [&](int64_t d, int64_t first, int64_t last) { OPERAND_DISPATCH(E, forward_tile(jobs[d], first, last)); },
      [&](int64_t d, int64_t threads) {
        const Forward<T, E>& job = jobs[d];
        OPERAND_DISPATCH(E, begin_forward(job, 0, B));
        for (int64_t s = 0; s < job.steps; ++s) {
          parallel_each(job.panels(), threads, [&](int64_t p) { OPERAND_DISPATCH(E, forward_panel(job, s, p, 0, B)); });
          OPERAND_DISPATCH(E, end_forward(job, s, 0, B));
        }
      });
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> recurrent(Tensor input_, Tensor h0, OptionalTensor c0,
                                                                  OptionalTensor batch_sizes,
                                                                  std::vector<Tensor> weights, int64_t cell,
                                                                  bool bidirectional, bool reverse, bool keep) {
  const Stack stack = check_stack(input_, h0, c0, batch_sizes, weights, cell, bidirectional);
  const int64_t H = stack.sequence.hidden, N = stack.sequence.rows(), B = stack.sequence.batch;
  Tensor input = as_dense(input_), output = empty_rows(input, stack, stack.width());
  ForwardTensors tensors{as_dense(h0),
                         as_dense(c0),
                         as_dense(std::move(weights)),
                         empty(input, {stack.parts, B, H}),
                         stack.cell == Cell::lstm ? empty(input, {stack.parts, B, H}) : nothing(input),
                         {}};
  const int64_t values = reserve_count(stack.cell) * H;
  if (keep) {
    for (int64_t layer = 0; layer < stack.layers(); ++layer)
      tensors.kept.push_back(empty_rows(input, stack, stack.width()));
    for (int64_t part = 0; values > 0 && part < stack.parts; ++part) tensors.kept.push_back(empty(input, {N, values}));
  }
  if (N == 0) {
    torch::stable::copy_(tensors.h_n, tensors.h0);
    if (c0) torch::stable::copy_(tensors.c_n, *c0);
    return {output, tensors.h_n, tensors.c_n, tensors.kept};
  }
  dispatch_operands(input.scalar_type(), [&](auto element, auto operand) {
    for (int64_t layer = 0; layer < stack.layers(); ++layer) {
      const bool last = layer + 1 == stack.layers();
      Tensor to = keep ? tensors.kept[layer] : last ? output : empty_rows(input, stack, stack.width());
      forward_layer<decltype(element), decltype(operand)>(stack, layer * stack.directions, input, reverse, tensors, to,
                                                          keep && last ? &output : nullptr);
      input = to;
    }
  });
  return {output, tensors.h_n, tensors.c_n, tensors.kept};
}

// Rows of the states that forward's steps began with: see Right.
std::vector<int64_t> rows_before(const Sequence& sequence, bool reverse) {
  std::vector<int64_t> before(sequence.rows());
  for (int64_t t = 0; t < sequence.steps; ++t) {
    const int64_t other = reverse ? t + 1 : t - 1;
    const int64_t known = other < 0 || other == sequence.steps ? 0 : sequence.active(other);
    for (int64_t b = 0; b < sequence.active(t); ++b)
      before[sequence.offsets[t] + b] = b < known ? sequence.offsets[other] + b : ~b;
  }
  return before;
}

// All tensors of backward but the inputs and outputs of the layers and their gradients; grad_weights is empty if those
// are not wanted.
struct BackwardTensors {
  OptionalTensor grad_h_n, grad_c_n;
  std::vector<Tensor> kept;
  Tensor h0;
  OptionalTensor c0;
  std::vector<Tensor> weights;
  Tensor grad_h0, grad_c0;
  std::vector<Tensor> grad_weights;
  std::vector<int64_t> rows_before[2];  // of each direction
};

// Gradients of a layer's weights and biases, from those at all gates.
template <class T, class E>
void weight_gradients(const Stack& stack, int64_t first_part, const Backward<T, E>* jobs, const Tensor& input,
                      BackwardTensors& tensors) {
  const int64_t H = stack.sequence.hidden, G = gate_count(stack.cell), slots = slot_count(stack.cell);
  const int64_t I = jobs[0].features, stride = jobs[0].stride, columns = slots * stride;
  const int64_t gate_groups = stride / column_group, groups = slots * gate_groups;
  WeightGradients<T, E> all[2];
  Workspace workspace;
  for (int64_t d = 0; d < stack.directions; ++d) {
    const Backward<T, E>& job = jobs[d];
    WeightGradients<T, E>& sums = all[d];
    Tensor* const grads = &tensors.grad_weights[(first_part + d) * stack.parameters];
    T* const bias_ih = stack.parameters == 4 ? data<T>(grads[2]) : nullptr;
    T* const bias_hh = stack.parameters == 4 ? data<T>(grads[3]) : nullptr;
    sums.kind = stack.cell;
    sums.hidden = H;
    sums.stride = stride;
    sums.rows = stack.sequence.rows();
    sums.gates = job.gates;
    sums.gate_stride = job.gate_stride;
    sums.right[0] = {data<T>(input), nullptr,     nullptr,           I,      I, (slots - G) * gate_groups, groups,
                     nullptr,        round_up(I), data<T>(grads[0]), bias_ih};
    sums.right[1] = {job.output,        job.h0,  tensors.rows_before[d].data(),
                     job.output_stride, H,       0,
                     G * gate_groups,   nullptr, stride,
                     data<T>(grads[1]), bias_hh};
    workspace.add(sums.sums, columns);
    for (Right<T>& right : sums.right) {
      if constexpr (std::is_same<T, Acc<T>>::value) {
        // The product has torch's order and no gaps.
        if (first_gate(stack.cell) == 0 && stride == H && right.product_stride == right.width) {
          right.product = right.weight;
          continue;
        }
      }
      workspace.add(right.product, columns * right.product_stride);
    }
  }
  workspace.allocate(input);
  parallel(stack.directions * groups,
           threads_for(stack.directions * stack.sequence.rows() * G * H * (I + H), thread_products),
           [&](int64_t begin, int64_t end) {
             for (int64_t d = 0; d < stack.directions; ++d) {
               const int64_t first = std::max<int64_t>(begin - d * groups, 0),
                             last = std::min(end - d * groups, groups);
               if (first < last) OPERAND_DISPATCH(E, weight_gradients(all[d], first, last));
             }
           });
}

// Parts first_part, ... of the stack: the directions of one layer.  grad_input: without elements if it is not wanted.
template <class T, class E>
void backward_layer(const Stack& stack, int64_t first_part, const Tensor& input, const Tensor& output,
                    const OptionalTensor& grad_output, bool reverse, BackwardTensors& tensors, Tensor& grad_input) {
  using A = Acc<T>;
  const Cell kind = stack.cell;
  const int64_t H = stack.sequence.hidden, N = stack.sequence.rows(), B = stack.sequence.batch;
  const int64_t features = input.size(input.dim() - 1), directions = stack.directions;
  const int G = gate_count(kind);
  const bool need_input = grad_input.numel() > 0;
  Backward<T, E> jobs[2];
  const Backward<T, E>& like = jobs[0];
  Workspace workspace, large;
  for (int64_t d = 0; d < directions; ++d) {
    Backward<T, E>& job = jobs[d];
    const int64_t part = first_part + d;
    set_steps(job, stack, features, reverse == (d == 1));
    OPERAND_DISPATCH(E, make_layout<A>(job.to_state, 1, H, G * factor_depth<E>(H)));
    if (need_input) OPERAND_DISPATCH(E, make_layout<A>(job.to_input, 1, features, G * factor_depth<E>(H)));
    job.grad_output = grad_output ? data<T>(*grad_output) + d * H : nullptr;
    job.grad_h_n = part_of(data_or_null<T>(tensors.grad_h_n), stack, part);
    job.grad_c_n = part_of(data_or_null<T>(tensors.grad_c_n), stack, part);
    job.output = data<T>(output) + d * H;
    job.reserve = reserve_count(kind) > 0 ? data<T>(std::as_const(tensors.kept[stack.layers() + part])) : nullptr;
    job.h0 = part_of(data<T>(std::as_const(tensors.h0)), stack, part);
    job.c0 = part_of(data_or_null<T>(tensors.c0), stack, part);
    job.grad_input = data<T>(grad_input);
    job.grad_h0 = part_of(data<T>(tensors.grad_h0), stack, part);
    job.grad_c0 = part_of(data<T>(tensors.grad_c0), stack, part);
    job.gate_stride = slot_count(kind) * job.stride + column_group;  // rows begin in different cache sets
    job.input_in_steps = B >= few_sequences;
    workspace.add(job.state_panels, job.to_state.size());
    workspace.add(job.input_panels, job.to_input.size());
    workspace.add(job.dh, B * job.stride);
    workspace.add(job.dc, B * job.stride);
    large.add(job.gates, N * job.gate_stride);
    if (d > 0 && need_input) large.add(job.grad_input, N * features);
  }
  workspace.allocate(output);
  large.allocate(output);
  const int64_t weights = like.to_state.size() + like.to_input.size();
  const int64_t panels = like.to_state.panels + like.to_input.panels;
  parallel_each(directions * panels, threads_for(directions * weights, thread_packed), [&](int64_t i) {
    const int64_t d = i / panels, p = i % panels, q = p - like.to_state.panels;
    const Backward<T, E>& job = jobs[d];
    const Tensor* const w = &tensors.weights[(first_part + d) * 2];
    if (q < 0) {
      OPERAND_DISPATCH(E, pack(job.to_state, p, data<T>(w[1]), H, G, first_gate(kind), job.state_panels));
    } else {
      OPERAND_DISPATCH(E, pack(job.to_input, q, data<T>(w[0]), H, G, 0, job.input_panels));
    }
  });
  const int64_t step_weights = like.input_in_steps ? weights : like.to_state.size();
  run(
      stack, step_weights, step_weights * sizeof(E), like.panels(),
      [&](int64_t d, int64_t first, int64_t last) { OPERAND_DISPATCH(E, backward_tile(jobs[d], first, last)); },
      [&](int64_t d, int64_t threads) {
        const Backward<T, E>& job = jobs[d];
        OPERAND_DISPATCH(E, begin_backward(job, 0, B));
        for (int64_t s = 0; s <= job.steps; ++s)
          parallel_each(job.panels(), threads,
                        [&](int64_t p) { OPERAND_DISPATCH(E, backward_panel(job, s, p, 0, B)); });
        OPERAND_DISPATCH(E, end_backward(job, 0, B));
      });
  if (!like.input_in_steps) {
    const int64_t count = like.to_input.panels;
    parallel_each(directions * count, threads_for(directions * N * like.to_input.size(), thread_products),
                  [&](int64_t i) { OPERAND_DISPATCH(E, input_gradient(jobs[i / count], i % count, 0, N)); });
  }
  if (directions > 1 && need_input)
    parallel(N * features, threads_for(N * features, thread_elements), [&](int64_t begin, int64_t end) {
      SIMD_DISPATCH(add(jobs[1].grad_input + begin, end - begin, like.grad_input + begin));
    });
  if (!tensors.grad_weights.empty()) weight_gradients(stack, first_part, jobs, input, tensors);
}

std::tuple<Tensor, Tensor, Tensor, std::vector<Tensor>> recurrent_backward(
    OptionalTensor grad_output_, OptionalTensor grad_h_n, OptionalTensor grad_c_n, Tensor input_, Tensor h0,
    OptionalTensor c0, OptionalTensor batch_sizes, std::vector<Tensor> kept, std::vector<Tensor> weights, int64_t cell,
    bool bidirectional, bool reverse, bool biased, bool need_input, bool need_weights) {
  Stack stack = check_stack(input_, h0, c0, batch_sizes, weights, cell, bidirectional);
  check_stack_backward(stack, grad_output_, grad_h_n, grad_c_n, kept, input_);
  stack.parameters = biased ? 4 : 2;  // that have gradients
  const int64_t H = stack.sequence.hidden, B = stack.sequence.batch, rows = gate_count(stack.cell) * H;
  const Tensor input = as_dense(input_);
  OptionalTensor grad_output = as_dense(grad_output_);
  Tensor grad_input = need_input ? empty_rows(input, stack, stack.features) : nothing(input);
  BackwardTensors tensors{as_dense(grad_h_n),
                          as_dense(grad_c_n),
                          as_dense(std::move(kept)),
                          as_dense(h0),
                          as_dense(c0),
                          as_dense(std::move(weights)),
                          empty(input, {stack.parts, B, H}),
                          stack.cell == Cell::lstm ? empty(input, {stack.parts, B, H}) : nothing(input),
                          {},
                          {}};
  if (need_weights) {
    for (int64_t part = 0; part < stack.parts; ++part) {
      for (int64_t k = 2 * part; k < 2 * part + 2; ++k)
        tensors.grad_weights.push_back(empty(input, {rows, tensors.weights[k].size(1)}));
      for (int64_t k = 2; k < stack.parameters; ++k) tensors.grad_weights.push_back(empty(input, {rows}));
    }
    for (int64_t d = 0; d < stack.directions; ++d)
      tensors.rows_before[d] = rows_before(stack.sequence, reverse != (d == 1));
  }
  dispatch_operands(input.scalar_type(), [&](auto element, auto operand) {
    for (int64_t layer = stack.layers() - 1; layer >= 0; --layer) {
      const Tensor& from = layer == 0 ? input : tensors.kept[layer - 1];
      Tensor to = layer == 0 ? grad_input : empty_rows(input, stack, stack.width());
      backward_layer<decltype(element), decltype(operand)>(stack, layer * stack.directions, from, tensors.kept[layer],
                                                           grad_output, reverse, tensors, to);
      grad_output = to;
    }
  });
  return {grad_input, tensors.grad_h0, tensors.grad_c0, tensors.grad_weights};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CPU, m) {
  m.impl("recurrent", TORCH_BOX(&recurrent));
  m.impl("recurrent_backward", TORCH_BOX(&recurrent_backward));
}

}  // namespace genimg_fast
