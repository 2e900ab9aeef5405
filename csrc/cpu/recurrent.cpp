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
// Sequences do not depend on each other: a thread owns a tile of the batch and takes it through all steps alone.  Where
// the batch is too small for that, or the weights outgrow a core's cache, the threads share each step by panels
// instead.  Very few sequences have their inputs' products of all steps made at once, outside the steps, so that
// weight_ih need not be read for each.  Every sum is made of chains of fixed length in a fixed order, so neither the
// choice nor the number of threads changes a bit.
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

  int64_t time(int64_t s) const { return descending ? steps - 1 - s : s; }
  int64_t active(int64_t s) const { return offsets[time(s) + 1] - offsets[time(s)]; }
};

// T is the type of the data, E that of the operands of products.
template <class T, class E>
struct Forward : Steps {
  Layout from_input, from_state;
  const T *h0, *c0;
  T *output, *h_n, *c_n, *reserve;  // reserve: or null
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
  int64_t width;
  int64_t first, last;  // groups of the columns of the gradients at the gates
  Acc<T>* product;      // [column][width]
  int64_t product_stride;
  T *weight, *bias;  // in torch's order

  const T* row(int64_t i) const {
    if (source == nullptr) return rows + i * width;
    return source[i] >= 0 ? rows + source[i] * width : initial + ~source[i] * width;
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

// Takes all sequences through all steps: tile(first, last) does so with some of them, shared(threads) with all.
template <class Tile, class Shared>
void run(const Sequence& sequence, int64_t weights, int64_t weight_bytes, int64_t panels, const Tile& tile,
         const Shared& shared) {
  const int64_t threads = threads_for(sequence.rows() * weights, thread_products);
  if (threads > 1 && panels > 1 && sequence.rows() * weights >= sequence.steps * step_products &&
      (sequence.batch < threads * 4 || weight_bytes > core_cache)) {
    shared(std::min(threads, panels));
    return;
  }
  const std::vector<int64_t> bounds = tiles(sequence, threads);
  parallel_each(bounds.size() - 1, threads, [&](int64_t i) { tile(bounds[i], bounds[i + 1]); });
}

Tensor as_dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

OptionalTensor as_dense(const OptionalTensor& t) { return t ? OptionalTensor(as_dense(*t)) : t; }

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

// The shape of a sequence with `width` values per row.
std::vector<int64_t> sequence_shape(const Sequence& s, bool packed, int64_t width) {
  if (packed) return {s.rows(), width};
  return {s.steps, s.batch, width};
}

void set_steps(Steps& job, const Sequence& sequence, Cell kind, int64_t features, bool descending) {
  job.kind = kind;
  job.hidden = sequence.hidden;
  job.features = features;
  job.steps = sequence.steps;
  job.offsets = sequence.offsets.data();
  job.descending = descending;
  job.stride = round_up(sequence.hidden);
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

std::tuple<Tensor, Tensor, Tensor, Tensor> recurrent(Tensor input_, Tensor h0_, OptionalTensor c0_, Tensor weight_ih_,
                                                     Tensor weight_hh_, OptionalTensor bias_ih_,
                                                     OptionalTensor bias_hh_, OptionalTensor batch_sizes, int64_t cell,
                                                     bool reverse, bool keep) {
  const Cell kind = check_cell(cell);
  const Sequence sequence =
      check_layer(input_, h0_, c0_, weight_ih_, weight_hh_, bias_ih_, bias_hh_, batch_sizes, kind);
  const Tensor input = as_dense(input_), h0 = as_dense(h0_);
  const Tensor weight_ih = as_dense(weight_ih_), weight_hh = as_dense(weight_hh_);
  const OptionalTensor c0 = as_dense(c0_), bias_ih = as_dense(bias_ih_), bias_hh = as_dense(bias_hh_);
  const int64_t H = sequence.hidden, N = sequence.rows(), B = sequence.batch;
  const int64_t features = input.size(input.dim() - 1);
  keep = keep && reserve_count(kind) > 0;
  Tensor output = empty(input, sequence_shape(sequence, batch_sizes.has_value(), H));
  Tensor h_n = empty(input, {B, H});
  Tensor c_n = kind == Cell::lstm ? empty(input, {B, H}) : nothing(input);
  Tensor reserve = keep ? empty(input, {N, reserve_count(kind) * H}) : nothing(input);
  if (N == 0) {
    torch::stable::copy_(h_n, h0);
    if (c0) torch::stable::copy_(c_n, *c0);
    return {output, h_n, c_n, reserve};
  }
  dispatch(input.scalar_type(), [&](auto element, auto operand) {
    using T = decltype(element);
    using E = decltype(operand);
    using A = Acc<T>;
    Forward<T, E> job;
    set_steps(job, sequence, kind, features, reverse);
    const int G = gate_count(kind);
    OPERAND_DISPATCH(E, make_layout<A>(job.from_state, G, H, factor_depth<E>(H)));
    OPERAND_DISPATCH(E, make_layout<A>(job.from_input, G, H, factor_depth<E>(features)));
    job.h0 = data<T>(h0);
    job.c0 = data_or_null<T>(c0);
    job.output = data<T>(output);
    job.h_n = data<T>(h_n);
    job.c_n = data<T>(c_n);
    job.reserve = keep ? data<T>(reserve) : nullptr;
    // Rows that end with an incomplete factor have to be padded.
    const bool input_as_it_is = std::is_same<T, E>::value && features == job.from_input.depth;
    job.input_stride = input_as_it_is ? features : round_up(features);
    const int64_t state = B * job.stride, weights = job.from_input.size() + job.from_state.size();
    E* converted_input;
    Workspace workspace;
    workspace.add(job.state_panels, job.from_state.size());
    workspace.add(job.input_panels, job.from_input.size());
    workspace.add(job.bias, slot_count(kind) * job.stride);
    job.projected = nullptr;
    if (B < few_sequences) workspace.add(job.projected, N * slot_count(kind) * job.stride);
    for (E*& s : job.state) workspace.add(s, state);
    workspace.add(job.cell, state);
    workspace.add(converted_input, input_as_it_is ? 0 : N * job.input_stride);
    workspace.allocate(input);
    set_bias(job, data_or_null<T>(bias_ih), data_or_null<T>(bias_hh));
    parallel_each(job.panels(), threads_for(weights, thread_packed), [&](int64_t p) {
      OPERAND_DISPATCH(E, pack_transposed(job.from_state, p, data<T>(weight_hh), H, 0, job.state_panels));
      OPERAND_DISPATCH(
          E, pack_transposed(job.from_input, p, data<T>(weight_ih), features, first_gate(kind), job.input_panels));
    });
    if (input_as_it_is) {
      job.input = data<E>(input);
    } else {
      job.input = converted_input;
      parallel(N, threads_for(N * features, thread_elements), [&](int64_t begin, int64_t end) {
        E* const to = converted_input + begin * job.input_stride;
        if (features != job.from_input.depth) std::fill_n(to, (end - begin) * job.input_stride, E(0));
        OPERAND_DISPATCH(
            E, convert_rows(data<T>(input) + begin * features, features, end - begin, features, to, job.input_stride));
      });
    }
    int64_t step_weights = weights;
    if (job.projected) {
      step_weights = job.from_state.size();
      parallel_each(job.panels(), threads_for(N * job.from_input.size(), thread_products),
                    [&](int64_t p) { OPERAND_DISPATCH(E, project_panel(job, p)); });
    }
    run(
        sequence, step_weights, step_weights * sizeof(E), job.panels(),
        [&](int64_t first, int64_t last) { OPERAND_DISPATCH(E, forward_tile(job, first, last)); },
        [&](int64_t threads) {
          OPERAND_DISPATCH(E, begin_forward(job, 0, B));
          for (int64_t s = 0; s < job.steps; ++s) {
            parallel_each(job.panels(), threads,
                          [&](int64_t p) { OPERAND_DISPATCH(E, forward_panel(job, s, p, 0, B)); });
            OPERAND_DISPATCH(E, end_forward(job, s, 0, B));
          }
        });
  });
  return {output, h_n, c_n, reserve};
}

// Gradients at a layer's weights and biases.
struct Gradients {
  Tensor weight_ih, weight_hh, bias_ih, bias_hh;
};

// Rows of the states that forward's steps began with: see Factor.
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

// Gradients of the weights and biases, from those at all gates.
template <class T, class E>
void weight_gradients(const Backward<T, E>& job, const Sequence& sequence, const Tensor& input, bool reverse,
                      Gradients& grads) {
  const int64_t H = job.hidden, G = gate_count(job.kind), slots = slot_count(job.kind), columns = slots * job.stride;
  const int64_t gate_groups = job.stride / column_group, groups = slots * gate_groups;
  const std::vector<int64_t> before = rows_before(sequence, reverse);
  const int64_t I = job.features;
  WeightGradients<T, E> sums;
  sums.kind = job.kind;
  sums.hidden = H;
  sums.stride = job.stride;
  sums.rows = sequence.rows();
  sums.gates = job.gates;
  sums.gate_stride = job.gate_stride;
  sums.right[0] = {data<T>(input),
                   nullptr,
                   nullptr,
                   I,
                   (slots - G) * gate_groups,
                   groups,
                   nullptr,
                   round_up(I),
                   data<T>(grads.weight_ih),
                   data<T>(grads.bias_ih)};
  sums.right[1] = {job.output,
                   job.h0,
                   before.data(),
                   H,
                   0,
                   G * gate_groups,
                   nullptr,
                   job.stride,
                   data<T>(grads.weight_hh),
                   data<T>(grads.bias_hh)};
  Workspace workspace;
  workspace.add(sums.sums, columns);
  for (Right<T>& right : sums.right) {
    if constexpr (std::is_same<T, Acc<T>>::value) {
      // The product has torch's order and no gaps.
      if (first_gate(job.kind) == 0 && job.stride == H && right.product_stride == right.width) {
        right.product = right.weight;
        continue;
      }
    }
    workspace.add(right.product, columns * right.product_stride);
  }
  workspace.allocate(input);
  parallel(groups, threads_for(sums.rows * G * H * (I + H), thread_products),
           [&](int64_t begin, int64_t end) { OPERAND_DISPATCH(E, weight_gradients(sums, begin, end)); });
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> recurrent_backward(
    OptionalTensor grad_output_, OptionalTensor grad_h_n_, OptionalTensor grad_c_n_, Tensor input_, Tensor output_,
    Tensor reserve_, Tensor h0_, OptionalTensor c0_, Tensor weight_ih_, Tensor weight_hh_, OptionalTensor batch_sizes,
    int64_t cell, bool reverse, bool need_input, bool need_weights) {
  const Cell kind = check_cell(cell);
  const Sequence sequence =
      check_backward(grad_output_, grad_h_n_, grad_c_n_, output_, reserve_, h0_, c0_, weight_hh_, batch_sizes, kind);
  const int64_t features = check_layer_input(input_, weight_ih_, sequence, batch_sizes.has_value(), output_, kind);
  const OptionalTensor grad_output = as_dense(grad_output_), grad_h_n = as_dense(grad_h_n_);
  const OptionalTensor grad_c_n = as_dense(grad_c_n_), c0 = as_dense(c0_);
  const Tensor input = as_dense(input_), output = as_dense(output_), reserve = as_dense(reserve_), h0 = as_dense(h0_);
  const Tensor weight_ih = as_dense(weight_ih_), weight_hh = as_dense(weight_hh_);
  const int64_t H = sequence.hidden, N = sequence.rows(), B = sequence.batch;
  const int G = gate_count(kind);
  const auto if_needed = [&](bool need, const std::vector<int64_t>& sizes) {
    return need ? empty(output, sizes) : nothing(output);
  };
  Tensor grad_input = if_needed(need_input, sequence_shape(sequence, batch_sizes.has_value(), features));
  Tensor grad_h0 = empty(output, {B, H}), grad_c0 = if_needed(kind == Cell::lstm, {B, H});
  Gradients grads{if_needed(need_weights, {G * H, features}), if_needed(need_weights, {G * H, H}),
                  if_needed(need_weights, {G * H}), if_needed(need_weights, {G * H})};
  dispatch(output.scalar_type(), [&](auto element, auto operand) {
    using T = decltype(element);
    using E = decltype(operand);
    using A = Acc<T>;
    Backward<T, E> job;
    set_steps(job, sequence, kind, features, !reverse);
    OPERAND_DISPATCH(E, make_layout<A>(job.to_state, 1, H, G * factor_depth<E>(H)));
    if (need_input) OPERAND_DISPATCH(E, make_layout<A>(job.to_input, 1, features, G * factor_depth<E>(H)));
    job.grad_output = data_or_null<T>(grad_output);
    job.grad_h_n = data_or_null<T>(grad_h_n);
    job.grad_c_n = data_or_null<T>(grad_c_n);
    job.output = data<T>(output);
    job.reserve = data<T>(reserve);
    job.h0 = data<T>(h0);
    job.c0 = data_or_null<T>(c0);
    job.grad_input = data<T>(grad_input);
    job.grad_h0 = data<T>(grad_h0);
    job.grad_c0 = data<T>(grad_c0);
    job.gate_stride = slot_count(kind) * job.stride + column_group;  // rows begin in different cache sets
    const int64_t state = B * job.stride, weights = job.to_state.size() + job.to_input.size();
    job.input_in_steps = B >= few_sequences;
    Workspace workspace, kept;
    workspace.add(job.state_panels, job.to_state.size());
    workspace.add(job.input_panels, job.to_input.size());
    workspace.add(job.dh, state);
    workspace.add(job.dc, state);
    workspace.allocate(output);
    kept.add(job.gates, N * job.gate_stride);
    kept.allocate(output);
    parallel_each(job.to_state.panels + job.to_input.panels, threads_for(weights, thread_packed), [&](int64_t p) {
      if (p < job.to_state.panels) {
        OPERAND_DISPATCH(E, pack(job.to_state, p, data<T>(weight_hh), H, G, first_gate(kind), job.state_panels));
      } else {
        OPERAND_DISPATCH(E, pack(job.to_input, p - job.to_state.panels, data<T>(weight_ih), H, G, 0, job.input_panels));
      }
    });
    const int64_t step_weights = job.input_in_steps ? weights : job.to_state.size();
    run(
        sequence, step_weights, step_weights * sizeof(E), job.panels(),
        [&](int64_t first, int64_t last) { OPERAND_DISPATCH(E, backward_tile(job, first, last)); },
        [&](int64_t threads) {
          OPERAND_DISPATCH(E, begin_backward(job, 0, B));
          for (int64_t s = 0; s <= job.steps; ++s)
            parallel_each(job.panels(), threads,
                          [&](int64_t p) { OPERAND_DISPATCH(E, backward_panel(job, s, p, 0, B)); });
          OPERAND_DISPATCH(E, end_backward(job, 0, B));
        });
    if (!job.input_in_steps)
      parallel_each(job.to_input.panels, threads_for(N * job.to_input.size(), thread_products),
                    [&](int64_t p) { OPERAND_DISPATCH(E, input_gradient(job, p, 0, N)); });
    if (need_weights) weight_gradients(job, sequence, input, reverse, grads);
  });
  return {grad_input, grad_h0, grad_c0, grads.weight_ih, grads.weight_hh, grads.bias_ih, grads.bias_hh};
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
