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
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <tuple>
#include <type_traits>

#include "output_memory.h"
#include "simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace genimg_fast {
namespace {

using c10::BFloat16;
using c10::Half;

// Type of arithmetic, weights in panels, and the state between steps.
template <class T>
using Acc = std::conditional_t<std::is_same<T, double>::value, double, float>;

// Values of k that one multiplication takes: operands of type E are numbers, or pairs of bfloat16.
template <class E>
constexpr int factor_values = std::is_same<E, BFloat16>::value ? 2 : 1;

constexpr int64_t tile_rows = 64;                 // of a tile, at most: its state stays in the L2 cache
constexpr int64_t thread_products = 1 << 18;      // a thread is not worth waking for fewer multiplications
constexpr int64_t thread_elements = 1 << 14;      // nor for fewer elements of an elementwise pass
constexpr int64_t thread_packed = 1 << 16;        // nor for fewer weights to pack
constexpr int64_t step_products = 1 << 16;        // threads are not worth joining after fewer in every step
constexpr int64_t few_sequences = 8;              // fewer do not make up for reading weight_ih in every step
constexpr int64_t core_cache = int64_t(1) << 20;  // bytes of panels that a thread can reread in every step
constexpr int64_t outer_depth = 256;              // rows of a chain in the weights' gradients
constexpr int64_t column_group = 16;              // columns of a matrix that are packed together; strides are multiples

// Panels of a matrix depth x (gates * width): depth x vectors x lanes each.
struct Layout {
  int lanes;         // of a vector
  int gates;         // sums per hidden unit
  int unit_vectors;  // vectors of hidden units in a panel; the last panel may have fewer
  int64_t width, depth, panels = 0;

  int units(int64_t p) const {
    const int64_t vectors = (width + lanes - 1) / lanes;
    return static_cast<int>(std::min<int64_t>(unit_vectors, vectors - p * unit_vectors));
  }
  int vectors(int64_t p) const { return units(p) * gates; }
  int64_t panel_offset(int64_t p) const { return p * depth * unit_vectors * gates * lanes; }
  int64_t size() const { return panel_offset(panels); }
};

// Sums of a hidden unit while a step is computed, and values kept of it in backward.  GRU adds its two n gates only
// after one of them has met the reset gate: forward has x_n r z h_n, backward h_n r z x_n, so that the gates of one
// product are neighbours in either.
constexpr int slot_count(Cell cell) { return cell == Cell::gru ? 4 : gate_count(cell); }

// The gate that comes first in the slots of a product that does not begin with r.
constexpr int first_gate(Cell cell) { return cell == Cell::gru ? 2 : 0; }

// What forward and backward share.  Step s is counted in the order of the pass, time t in the order of the data.
struct Steps {
  Cell kind;
  int64_t hidden, features, steps;
  const int64_t* offsets;  // of the rows of each time
  bool descending;         // the pass goes from the last time to the first
  int64_t stride;          // of a sequence's state
  int64_t output_stride;   // of rows of the output and of its gradient

  int64_t time(int64_t s) const { return descending ? steps - 1 - s : s; }
  int64_t active(int64_t s) const { return offsets[time(s) + 1] - offsets[time(s)]; }
};

// T is the type of the data, E that of the operands of products.
template <class T, class E>
struct Forward : Steps {
  Layout from_input, from_state;
  const T *h0, *c0;
  T *output, *h_n, *c_n;
  T *output_copy, *reserve;  // or null
  const E* input;
  int64_t input_stride;
  E *input_panels, *state_panels;
  Acc<T>* bias;       // [slot][stride]: where the sums begin
  Acc<T>* projected;  // the products with the inputs of all steps, or null: they are part of each step
  E* state[2];        // read and written by turns
  Acc<T>* cell;       // LSTM: the cell state; GRU: the state before it is rounded to an operand

  int64_t panels() const { return from_state.panels; }
};

template <class T, class E>
struct Backward : Steps {
  Layout to_input, to_state;                   // to_input: without panels if that gradient is not wanted
  const T *grad_output, *grad_h_n, *grad_c_n;  // or null
  const T *output, *reserve, *h0, *c0;
  T *grad_input, *grad_h0, *grad_c0;
  E *input_panels, *state_panels;
  E* gates;  // gradients at the gates before their activations: [row][slot][stride]
  int64_t gate_stride;
  Acc<T>*dh, *dc;

  bool input_in_steps;  // else its gradient is made of all steps' rows in the end

  int64_t panels() const { return to_state.panels + (input_in_steps ? to_input.panels : 0); }

  // The row of the time that forward took before step s's, or -1 if sequence b began at step s.
  int64_t row_before(int64_t s, int64_t b) const {
    return s + 1 < steps && b < active(s + 1) ? offsets[time(s + 1)] + b : -1;
  }
};

// What the gradients at the gates are multiplied with to give those of the weights: the inputs, or the states before.
template <class T>
struct Right {
  const T *rows, *initial;  // row i is rows[source[i]], or initial[~source[i]] where that is negative
  const int64_t* source;    // null: rows[i]
  int64_t stride, width;
  int64_t first, last;  // groups of the columns of the gradients at the gates
  Acc<T>* product;      // [column][width]
  int64_t product_stride;
  T *weight, *bias;  // in torch's order; bias: or null

  const T* row(int64_t i) const {
    if (source == nullptr) return rows + i * stride;
    return source[i] >= 0 ? rows + source[i] * stride : initial + ~source[i] * width;
  }
};

template <class T, class E>
struct WeightGradients {
  Cell kind;
  int64_t hidden, stride, rows;  // stride: columns of a slot
  const E* gates;                // as in Backward
  int64_t gate_stride;
  Acc<T>* sums;  // over all rows
  Right<T> right[2];
};

template <class T>
struct LstmUpdate {
  using Element = T;
  int64_t inner;
  const T *gates, *c;
  T *h, *c_new;                  // forward, else null
  const T *grad_h, *grad_c_new;  // backward; or null
  T *grad_gates, *grad_c;
};

template <class T>
struct GruUpdate {
  using Element = T;
  int64_t inner;
  const T *gates_x, *gates_h, *h;
  T* h_new;       // forward, else null
  const T* grad;  // backward
  T *grad_gates_x, *grad_gates_h, *grad_h;
};

#define SIMD_BODY "recurrent_kernels.h"
#include "for_each_simd_level.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define SIMD_BYTES 64
#define SIMD_AVX512
#define SIMD_BF16_PRODUCTS
#define SIMD_BODY "recurrent_kernels.h"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")
#endif
namespace simd_bf16 {
#include "vec.h"
#include SIMD_BODY
}  // namespace simd_bf16
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef SIMD_BODY
#undef SIMD_BF16_PRODUCTS
#undef SIMD_AVX512
#undef SIMD_BYTES

constexpr bool knows_bf16_products = true;
bool has_bf16_products() {
  static const bool supported = __builtin_cpu_supports("avx512bf16");
  return supported && simd_level() == SimdLevel::avx512;
}
#define OPERAND_DISPATCH(E, call)                     \
  do {                                                \
    if constexpr (std::is_same<E, BFloat16>::value) { \
      simd_bf16::call;                                \
    } else {                                          \
      SIMD_DISPATCH(call);                            \
    }                                                 \
  } while (false)
#else
constexpr bool knows_bf16_products = false;
bool has_bf16_products() { return false; }
#define OPERAND_DISPATCH(E, call) SIMD_DISPATCH(call)
#endif

// Calls f with a value of the type of the data and one of the type of products' operands.
template <class F>
void dispatch(ScalarType t, const F& f) {
  if (t == ScalarType::Float) f(float(), float());
  if (t == ScalarType::Double) f(double(), double());
  if (t == ScalarType::Half) f(Half(), float());
  if (t != ScalarType::BFloat16) return;
  if constexpr (knows_bf16_products)
    if (has_bf16_products()) return f(BFloat16(), BFloat16());
  f(BFloat16(), float());
}

// Arrays that share one piece of memory, each of which begins at a cache line.
class Workspace {
 public:
  template <class T>
  void add(T*& array, int64_t size) {
    arrays_.push_back({reinterpret_cast<void**>(&array), bytes_});
    bytes_ += (size * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  }
  void allocate(const Tensor& like) {
    memory_ = empty_output(like, {bytes_ / static_cast<int64_t>(sizeof(float))}, ScalarType::Float);
    char* const begin = static_cast<char*>(memory_->mutable_data_ptr());
    for (const auto& [array, offset] : arrays_) *array = begin + offset;
  }

 private:
  std::vector<std::pair<void**, int64_t>> arrays_;
  int64_t bytes_ = 0;
  OptionalTensor memory_;
};

constexpr int64_t round_up(int64_t n) { return (n + column_group - 1) / column_group * column_group; }

// The depth of panels of E for n values of k.
template <class E>
int64_t factor_depth(int64_t n) {
  return (n + factor_values<E> - 1) / factor_values<E> * factor_values<E>;
}

// Threads for a task of n parts that are worth `share` each.
int64_t threads_for(int64_t n, int64_t share) {
  return std::max<int64_t>(1, std::min<int64_t>(torch::stable::get_num_threads(), n / share));
}

// Calls f(begin, end) on at most `threads` parts of [0, n).
template <class F>
void parallel(int64_t n, int64_t threads, const F& f) {
  torch::stable::parallel_for(0, n, std::max<int64_t>(1, (n + threads - 1) / threads), f);
}

template <class F>
void parallel_each(int64_t n, int64_t threads, const F& f) {
  parallel(n, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

// Bounds of tiles of the batch that split the work evenly among the threads.
std::vector<int64_t> tiles(const Sequence& sequence, int64_t threads) {
  const int64_t batch = sequence.batch, per_thread = (batch + threads - 1) / threads;
  const int64_t count = std::min(batch, threads * ((per_thread + tile_rows - 1) / tile_rows));
  std::vector<int64_t> bounds{0};
  int64_t length = sequence.steps, work = 0;
  for (int64_t b = 0; b + 1 < batch; ++b) {
    while (length > 0 && sequence.active(length - 1) <= b) --length;
    work += length;
    const int64_t full = bounds.size();
    if (full < count && work * count >= sequence.rows() * full) bounds.push_back(b + 1);
  }
  bounds.push_back(batch);
  return bounds;
}

// Takes all sequences through all steps: tile(direction, first, last) does so with some of them, shared(direction,
// threads) with all.
template <class Tile, class Shared>
void run(const Stack& stack, int64_t weights, int64_t weight_bytes, int64_t panels, const Tile& tile,
         const Shared& shared) {
  const Sequence& sequence = stack.sequence;
  const int64_t directions = stack.directions, products = sequence.rows() * weights;
  const int64_t threads = threads_for(directions * products, thread_products);
  const bool few = threads > directions && directions * sequence.batch < threads * 4;
  if (threads > 1 && panels > 1 && products >= sequence.steps * step_products && (few || weight_bytes > core_cache)) {
    for (int64_t d = 0; d < directions; ++d) shared(d, std::min(threads, panels));
    return;
  }
  const std::vector<int64_t> bounds = tiles(sequence, (threads + directions - 1) / directions);
  const int64_t count = bounds.size() - 1;
  parallel_each(directions * count, threads,
                [&](int64_t i) { tile(i / count, bounds[i % count], bounds[i % count + 1]); });
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

template <class T>
T* data(Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}
template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
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
  dispatch(input.scalar_type(), [&](auto element, auto operand) {
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
  dispatch(input.scalar_type(), [&](auto element, auto operand) {
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

// Tensors of a cell update, dense in the format of the gates.
Tensor dense(const Tensor& t, const CellShape& shape) { return torch::stable::contiguous(t, shape.format); }

OptionalTensor dense(const OptionalTensor& t, const CellShape& shape) {
  return t ? OptionalTensor(dense(*t, shape)) : t;
}

template <class Job>
void update_all(const Job& job, int64_t elements) {
  torch::stable::parallel_for(0, elements, thread_elements,
                              [&](int64_t begin, int64_t end) { SIMD_DISPATCH(update_cells(job, begin, end)); });
}

std::tuple<Tensor, Tensor> lstm_cell_update(Tensor gates_, Tensor c_) {
  check_gates(gates_, c_, 4, "gates");
  const CellShape shape = cell_shape(gates_, c_);
  const Tensor gates = dense(gates_, shape), c = dense(c_, shape);
  Tensor h = empty_output(c, shape.format), c_new = empty_output(c, shape.format);
  dispatch(c.scalar_type(), [&](auto element, auto) {
    using T = decltype(element);
    const LstmUpdate<T> job{shape.inner, data<T>(gates), data<T>(c), data<T>(h), data<T>(c_new),
                            nullptr,     nullptr,        nullptr,    nullptr};
    update_all(job, c.numel());
  });
  return {h, c_new};
}

std::tuple<Tensor, Tensor> lstm_cell_update_backward(OptionalTensor grad_h_, OptionalTensor grad_c_new_, Tensor gates_,
                                                     Tensor c_) {
  check_gates(gates_, c_, 4, "gates");
  if (grad_h_) check_like_state(*grad_h_, c_, "grad_h");
  if (grad_c_new_) check_like_state(*grad_c_new_, c_, "grad_c_new");
  const CellShape shape = cell_shape(gates_, c_);
  const Tensor gates = dense(gates_, shape), c = dense(c_, shape);
  const OptionalTensor grad_h = dense(grad_h_, shape), grad_c_new = dense(grad_c_new_, shape);
  Tensor grad_gates = empty_output(gates, shape.format), grad_c = empty_output(c, shape.format);
  dispatch(c.scalar_type(), [&](auto element, auto) {
    using T = decltype(element);
    const LstmUpdate<T> job{shape.inner,
                            data<T>(gates),
                            data<T>(c),
                            nullptr,
                            nullptr,
                            data_or_null<T>(grad_h),
                            data_or_null<T>(grad_c_new),
                            data<T>(grad_gates),
                            data<T>(grad_c)};
    update_all(job, c.numel());
  });
  return {grad_gates, grad_c};
}

Tensor gru_cell_update(Tensor gates_x_, Tensor gates_h_, Tensor h_) {
  check_gates(gates_x_, h_, 3, "gates_x");
  check_gates(gates_h_, h_, 3, "gates_h");
  const CellShape shape = cell_shape(gates_x_, h_);
  const Tensor gates_x = dense(gates_x_, shape), gates_h = dense(gates_h_, shape), h = dense(h_, shape);
  Tensor h_new = empty_output(h, shape.format);
  dispatch(h.scalar_type(), [&](auto element, auto) {
    using T = decltype(element);
    const GruUpdate<T> job{shape.inner, data<T>(gates_x), data<T>(gates_h), data<T>(h), data<T>(h_new),
                           nullptr,     nullptr,          nullptr,          nullptr};
    update_all(job, h.numel());
  });
  return h_new;
}

std::tuple<Tensor, Tensor, Tensor> gru_cell_update_backward(Tensor grad_, Tensor gates_x_, Tensor gates_h_, Tensor h_) {
  check_gates(gates_x_, h_, 3, "gates_x");
  check_gates(gates_h_, h_, 3, "gates_h");
  check_like_state(grad_, h_, "grad");
  const CellShape shape = cell_shape(gates_x_, h_);
  const Tensor gates_x = dense(gates_x_, shape), gates_h = dense(gates_h_, shape), h = dense(h_, shape);
  const Tensor grad = dense(grad_, shape);
  Tensor grad_gates_x = empty_output(gates_x, shape.format), grad_gates_h = empty_output(gates_x, shape.format);
  Tensor grad_h = empty_output(h, shape.format);
  dispatch(h.scalar_type(), [&](auto element, auto) {
    using T = decltype(element);
    const GruUpdate<T> job{shape.inner,   data<T>(gates_x),      data<T>(gates_h),      data<T>(h),     nullptr,
                           data<T>(grad), data<T>(grad_gates_x), data<T>(grad_gates_h), data<T>(grad_h)};
    update_all(job, h.numel());
  });
  return {grad_gates_x, grad_gates_h, grad_h};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CPU, m) {
  m.impl("recurrent", TORCH_BOX(&recurrent));
  m.impl("recurrent_backward", TORCH_BOX(&recurrent_backward));
  m.impl("lstm_cell_update", TORCH_BOX(&lstm_cell_update));
  m.impl("lstm_cell_update_backward", TORCH_BOX(&lstm_cell_update_backward));
  m.impl("gru_cell_update", TORCH_BOX(&gru_cell_update));
  m.impl("gru_cell_update_backward", TORCH_BOX(&gru_cell_update_backward));
}

}  // namespace genimg_fast
