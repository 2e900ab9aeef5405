// Host side of the recurrent kernels: how a layer's steps are computed for which shape, and the launches.
#include <algorithm>

#include "recurrent_backward.cuh"
#include "recurrent_forward.cuh"

namespace genimg_fast::cuda {
namespace {

using namespace recurrent;

template <class T_, Cell C_>
struct Instance {
  using T = T_;
  static constexpr Cell C = C_;
};

template <class T, class Call>
auto dispatch_cell(Cell cell, Call call) {
  switch (cell) {
    case Cell::rnn_tanh:
      return call(Instance<T, Cell::rnn_tanh>{});
    case Cell::rnn_relu:
      return call(Instance<T, Cell::rnn_relu>{});
    case Cell::gru:
      return call(Instance<T, Cell::gru>{});
    default:
      return call(Instance<T, Cell::lstm>{});
  }
}

// Calls call with the Instance of the data; each kernel is compiled for the sixteen instances named here and above.
template <class Call>
auto dispatch(DType dtype, Cell cell, Call call) {
  return dispatch_element(dtype,
                          [&](auto element) { return dispatch_cell<typename decltype(element)::T>(cell, call); });
}

// Policy.

constexpr size_t kFreeShared = 48 << 10;  // bytes of dynamic shared memory that need no permission
constexpr int kTensorCoreCapability = 80;
constexpr int kMaxRows = 16;  // of a block

bool has_16_bits(DType dtype) { return element_bytes(dtype) == 2; }

size_t shared_bytes(const RecurrentSequence& s, bool backward, int rows) {
  return dispatch(s.dtype, s.cell, [&](auto instance) {
    using T = typename decltype(instance)::T;
    constexpr Cell C = decltype(instance)::C;
    constexpr int G = gate_count(C);
    const int H = static_cast<int>(s.hidden);
    if constexpr (kTensorCores<T>)
      return fragment_layout(H, backward ? G : 1).bytes();
    else if (backward)
      return slice_layout<T>(H, rows, G * H, 1).bytes(C == Cell::lstm ? 2 : 1);
    else
      return slice_layout<T>(H, rows, H, G).bytes(kKeeps<C>);
  });
}

// A persistent block of `rows` rows; no threads if it does not fit.
RecurrentPlan persistent_plan(const RecurrentSequence& s, bool backward, int rows, const DeviceFacts& facts) {
  RecurrentPlan plan{RecurrentMethod::persistent, rows, 0, divide_up(s.batch, rows), 0, 0};
  const bool fragments = has_16_bits(s.dtype);
  if (fragments && facts.compute_capability < kTensorCoreCapability) return plan;
  if (fragments && (s.hidden > kMaxFragmentHidden || s.hidden % 2 != 0)) return plan;
  plan.shared_limit = static_cast<size_t>(facts.shared_bytes_per_block);
  // Far too large for any GPU, and for the arithmetic of layouts and steps.
  if (s.hidden > 1024 || s.batch > INT32_MAX || s.steps > (INT32_MAX - 2) / s.batch) return plan;
  plan.shared_bytes = shared_bytes(s, backward, rows);
  if (plan.shared_bytes > plan.shared_limit) return plan;
  if (fragments) {  // as many as its products have half fragments: those without units help to load
    plan.threads = static_cast<int>(divide_up(s.hidden, 16)) * 64;
    return plan;
  }
  // A warp for each tile, or each few tiles where there are too many.
  plan.threads = dispatch(s.dtype, s.cell, [&](auto instance) {
    using T = typename decltype(instance)::T;
    const int64_t tiles = slice_layout<T>(static_cast<int>(s.hidden), rows, 0, 0).tiles;
    return static_cast<int>(divide_up(tiles, divide_up(tiles * 32, kPersistentThreads<T>)) * 32);
  });
  return plan;
}

// The whole policy.
//
//   persistent   16 bits: an even number of up to 128 hidden units, whose weights are registers.  Tensor cores take 16
//                rows of the batch to a block.
//                Else weights, operands and state fit in a block's shared memory.  Largest hidden sizes on an H200,
//                forward and backward:  tanh, relu    GRU         LSTM
//                  float32              236, 234      136, 134    118, 115
//                  float64              166, 164      96, 93      83, 80
//                4 rows to a block, or as many up to 16 as it takes for one block to a multiprocessor.
//   steps        Everything else, and 16 bits before compute capability 8.0.
//
// Whether cuDNN is used instead of either is decided in Python.  That persistent wins wherever it fits, and the choice
// of rows, are predictions until they are measured on a GPU.
RecurrentPlan make_plan(const RecurrentSequence& s, bool backward, const DeviceFacts& facts, RecurrentMethod wanted) {
  RecurrentPlan best{RecurrentMethod::steps, 0, 0, 0, 0, 0};
  if (wanted == RecurrentMethod::steps) return best;
  for (int rows = has_16_bits(s.dtype) ? kFragmentRows : 4; rows <= kMaxRows; rows *= 2) {
    const RecurrentPlan plan = persistent_plan(s, backward, rows, facts);
    if (plan.threads == 0) break;
    best = plan;
    if (plan.blocks * s.directions <= facts.multiprocessors) break;
  }
  return best;
}

// Persistent launches.

template <class Kernel, class... Arguments>
int launch_persistent(Kernel kernel, const RecurrentSequence& s, const RecurrentPlan& plan, void* stream,
                      Arguments... arguments) {
  if (plan.shared_bytes > kFreeShared) {
    // Always the same value: the setting belongs to the kernel, and another host thread may be launching it too.
    if (const int error = gpu::set_max_dynamic_smem(kernel, plan.shared_limit)) return error;
  }
  return gpu::launch(kernel, dim3(static_cast<unsigned>(plan.blocks), s.directions), dim3(plan.threads),
                     plan.shared_bytes, static_cast<gpu::stream_t>(stream), s, arguments...);
}

// Whether every row of the weights begins at an address aligned to 16 bytes.
bool has_vectors(const RecurrentSequence& s, const void* const (&weights)[2]) {
  return s.hidden * element_bytes(s.dtype) % 16 == 0 &&
         std::all_of(weights, weights + s.directions, [](const void* p) { return is_aligned(p, 16); });
}

// Whether pairs of 16 bits can be accessed at once.
bool has_pairs(std::initializer_list<const void*> data) {
  return std::all_of(data.begin(), data.end(), [](const void* p) { return is_aligned(p, 4); });
}

// Launches of one step.

unsigned step_blocks(int64_t count) { return static_cast<unsigned>(divide_up(count, kStepThreads)); }

// Elements are counted in 32 bits.
bool is_countable(const RecurrentSequence& s) { return s.batch * s.hidden <= INT32_MAX - kStepThreads; }

template <class From, class To>
int convert(const void* from, void* to, int64_t count, gpu::stream_t stream) {
  return gpu::launch(convert_all<From, To>, dim3(step_blocks(count)), dim3(kStepThreads), 0, stream,
                     static_cast<const From*>(from), static_cast<To*>(to), count);
}

template <class T, Cell C>
int forward_steps(const RecurrentSequence& s, const RecurrentForward& call, int direction,
                  const RecurrentProduct& multiply, gpu::stream_t stream) {
  using Acc = Accumulator<T>;
  constexpr int G = gate_count(C), S = reserve_count(C);
  const int64_t H = s.hidden, count = s.batch * H, state = direction * count;
  const bool descending = s.reverse != (direction == 1);
  const T* const h0 = static_cast<const T*>(call.h0) + state;
  T* const h_n = static_cast<T*>(call.h_n) + state;
  if (const int error = convert<T, T>(h0, h_n, count, stream)) return error;
  if (kKeeps<C>) {
    const T* const kept = C == Cell::lstm ? static_cast<const T*>(call.c0) + state : h0;
    if (const int error = convert<T, Acc>(kept, call.kept, count, stream)) return error;
  }
  for (int64_t i = 0; i < s.steps; ++i) {
    const int64_t t = descending ? s.steps - 1 - i : i, row = s.offsets[t], rows = s.offsets[t + 1] - row;
    if (rows == 0) continue;
    multiply(direction, 0, rows);
    T* const reserve = static_cast<T*>(call.reserve[direction]);
    const ForwardStep<T> step{static_cast<const T*>(call.gates[direction]) + row * G * H,
                              static_cast<const T*>(call.product),
                              static_cast<const T*>(call.bias_n[direction]),
                              static_cast<T*>(call.output) + (row * s.directions + direction) * H,
                              h_n,
                              reserve && S > 0 ? reserve + row * S * H : nullptr,
                              s.directions * H,
                              static_cast<Acc*>(call.kept)};
    if (const int error = gpu::launch(forward_step<T, C>, dim3(step_blocks(rows * H)), dim3(kStepThreads), 0, stream,
                                      step, static_cast<unsigned>(H), static_cast<unsigned>(rows * H))) {
      return error;
    }
  }
  return C == Cell::lstm ? convert<Acc, T>(call.kept, static_cast<T*>(call.c_n) + state, count, stream) : 0;
}

template <class T, Cell C>
int backward_steps(const RecurrentSequence& s, const RecurrentBackward& call, int direction,
                   const RecurrentProduct& multiply, gpu::stream_t stream) {
  using Acc = Accumulator<T>;
  constexpr int G = gate_count(C), S = kSaved<C>;
  const int64_t H = s.hidden, count = s.batch * H, state = direction * count, width = s.directions * H;
  const bool descending = s.reverse == (direction == 1);
  const auto at_state = [&](const void* p) { return p ? static_cast<const T*>(p) + state : nullptr; };
  const T* const output = static_cast<const T*>(call.output) + direction * H;
  const T* const reserve = static_cast<const T*>(call.reserve[direction]);
  const auto rows_of = [&](int64_t t) { return t < 0 || t >= s.steps ? 0 : s.offsets[t + 1] - s.offsets[t]; };
  if (const int error = convert<T, Acc>(at_state(call.grad_h_n), call.dh, count, stream)) return error;
  if (C == Cell::lstm) {
    if (const int error = convert<T, Acc>(at_state(call.grad_c_n), call.dc, count, stream)) return error;
  }
  int64_t products = 0;  // rows of the product that have yet to be added
  const auto launch = [&](const BackwardStep<T>& step) {
    const int64_t rows = std::max<int64_t>(step.active, step.products);
    if (rows == 0) return 0;
    return gpu::launch(backward_step<T, C>, dim3(step_blocks(rows * H)), dim3(kStepThreads), 0, stream, step,
                       static_cast<unsigned>(H), static_cast<unsigned>(rows * H));
  };
  BackwardStep<T> step{};
  step.product = static_cast<const T*>(call.product);
  step.initial = at_state(C == Cell::lstm ? call.c0 : call.h0);
  step.grad_output_stride = width;
  step.saved_stride = kKeeps<C> ? S * H : width;
  step.before_stride = C == Cell::lstm ? S * H : width;
  step.operand = static_cast<T*>(call.operand);
  step.dh = static_cast<Acc*>(call.dh);
  step.dc = static_cast<Acc*>(call.dc);
  for (int64_t i = 0; i < s.steps; ++i) {
    const int64_t t = descending ? s.steps - 1 - i : i, before = descending ? t - 1 : t + 1;
    const int64_t row = s.offsets[t], rows = rows_of(t), known = std::min(rows, rows_of(before));
    if (rows == 0) continue;
    step.grad_output = nullptr;
    if (call.grad_output) step.grad_output = static_cast<const T*>(call.grad_output) + row * width + direction * H;
    step.saved = (kKeeps<C> ? reserve : output) + row * step.saved_stride;
    step.before = nullptr;
    if (known > 0) {
      step.before = (C == Cell::lstm ? reserve + 4 * H : output) + s.offsets[before] * step.before_stride;
    }
    step.grad_gates = static_cast<T*>(call.grad_gates[direction]) + row * G * H;
    step.grad_hidden_n = C == Cell::gru ? static_cast<T*>(call.grad_hidden_n[direction]) + row * H : nullptr;
    step.active = static_cast<unsigned>(rows);
    step.known = static_cast<unsigned>(known);
    step.products = static_cast<unsigned>(products);
    if (const int error = launch(step)) return error;
    multiply(direction, row, rows);
    products = rows;
  }
  step.active = step.known = 0;
  step.products = static_cast<unsigned>(products);
  if (const int error = launch(step)) return error;
  if (const int error = convert<Acc, T>(call.dh, static_cast<T*>(call.grad_h0) + state, count, stream)) return error;
  return C == Cell::lstm ? convert<Acc, T>(call.dc, static_cast<T*>(call.grad_c0) + state, count, stream) : 0;
}

}  // namespace

int recurrent_write_offsets(const int64_t* offsets, int64_t count, int64_t* device_offsets, void* stream) {
  for (int64_t first = 0; first < count; first += kOffsetsOfLaunch) {
    const int part = static_cast<int>(std::min<int64_t>(count - first, kOffsetsOfLaunch));
    OffsetsOfLaunch values{};
    std::copy_n(offsets + first, part, values.values);
    if (const int error = gpu::launch(write_offsets, dim3(1), dim3(kOffsetsOfLaunch), 0,
                                      static_cast<gpu::stream_t>(stream), values, device_offsets + first, part)) {
      return error;
    }
  }
  return 0;
}

RecurrentPlan recurrent_forward_plan(const RecurrentSequence& s, const DeviceFacts& facts, RecurrentMethod wanted) {
  return make_plan(s, false, facts, wanted);
}

RecurrentPlan recurrent_backward_plan(const RecurrentSequence& s, const DeviceFacts& facts, RecurrentMethod wanted) {
  return make_plan(s, true, facts, wanted);
}

bool recurrent_fits(DType dtype, Cell cell, int64_t hidden, const DeviceFacts& facts) {
  const RecurrentSequence s{dtype, cell, 1, 1, hidden, 1, false, nullptr, nullptr};
  return make_plan(s, false, facts, RecurrentMethod::automatic).method == RecurrentMethod::persistent &&
         make_plan(s, true, facts, RecurrentMethod::automatic).method == RecurrentMethod::persistent;
}

int recurrent_forward(const RecurrentSequence& s, const RecurrentForward& call, const RecurrentPlan& plan,
                      void* stream) {
  const bool vectors = has_vectors(s, call.weight_hh);
  return dispatch(s.dtype, s.cell, [&](auto instance) {
    using T = typename decltype(instance)::T;
    constexpr Cell C = decltype(instance)::C;
    if constexpr (kTensorCores<T>) {
      if (!has_pairs({call.gates[0], call.gates[1], call.weight_hh[0], call.weight_hh[1], call.bias_n[0],
                      call.bias_n[1], call.h0, call.c0, call.output, call.h_n, call.c_n, call.reserve[0],
                      call.reserve[1]})) {
        return kInvalidConfiguration;
      }
      return launch_persistent(forward_fragments<T, C>, s, plan, stream, call, vectors);
    } else {
      return launch_persistent(forward_slices<T, C>, s, plan, stream, call, plan.rows, vectors);
    }
  });
}

int recurrent_backward(const RecurrentSequence& s, const RecurrentBackward& call, const RecurrentPlan& plan,
                       void* stream) {
  return dispatch(s.dtype, s.cell, [&](auto instance) {
    using T = typename decltype(instance)::T;
    constexpr Cell C = decltype(instance)::C;
    if constexpr (kTensorCores<T>) {
      if (!has_pairs({call.grad_output, call.grad_h_n, call.grad_c_n, call.output, call.reserve[0], call.reserve[1],
                      call.h0, call.c0, call.weight_hh[0], call.weight_hh[1], call.grad_gates[0], call.grad_gates[1],
                      call.grad_hidden_n[0], call.grad_hidden_n[1], call.grad_h0, call.grad_c0})) {
        return kInvalidConfiguration;
      }
      return launch_persistent(backward_fragments<T, C>, s, plan, stream, call, has_vectors(s, call.weight_hh));
    } else {
      return launch_persistent(backward_slices<T, C>, s, plan, stream, call, plan.rows);
    }
  });
}

int recurrent_forward_steps(const RecurrentSequence& s, const RecurrentForward& call, const RecurrentProduct& multiply,
                            void* stream) {
  if (!is_countable(s)) return kInvalidConfiguration;
  return dispatch(s.dtype, s.cell, [&](auto instance) {
    using I = decltype(instance);
    int error = 0;
    for (int d = 0; d < s.directions && error == 0; ++d) {
      error = forward_steps<typename I::T, I::C>(s, call, d, multiply, static_cast<gpu::stream_t>(stream));
    }
    return error;
  });
}

int recurrent_backward_steps(const RecurrentSequence& s, const RecurrentBackward& call,
                             const RecurrentProduct& multiply, void* stream) {
  if (!is_countable(s)) return kInvalidConfiguration;
  return dispatch(s.dtype, s.cell, [&](auto instance) {
    using I = decltype(instance);
    int error = 0;
    for (int d = 0; d < s.directions && error == 0; ++d) {
      error = backward_steps<typename I::T, I::C>(s, call, d, multiply, static_cast<gpu::stream_t>(stream));
    }
    return error;
  });
}

}  // namespace genimg_fast::cuda
