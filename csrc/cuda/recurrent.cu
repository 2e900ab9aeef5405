// Host side of the recurrent kernels: how a layer's steps are computed for which shape, and the launches.
#include <algorithm>

#include "recurrent_backward.cuh"
#include "recurrent_forward.cuh"

namespace genimg_fast::cuda {
namespace {

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

// A persistent block of `rows` rows; no threads if it does not fit.
RecurrentPlan persistent_plan(const RecurrentSequence& s, bool backward, int rows, const DeviceFacts& facts) {
  RecurrentPlan plan{RecurrentMethod::persistent, rows, 0, divide_up(s.batch, rows), 0, 0};
  const bool tensor_cores = s.dtype == DType::bfloat16 || s.dtype == DType::float16;
  if (tensor_cores && facts.compute_capability < kTensorCoreCapability) return plan;
  plan.shared_limit = static_cast<size_t>(facts.shared_bytes_per_block);
  // Far too large for any GPU, and for the arithmetic of a layout.
  if (s.hidden > 1024 || plan.blocks > INT32_MAX) return plan;
  plan.shared_bytes = recurrent_shared_bytes(s.dtype, s.cell, s.hidden, rows, backward);
  if (plan.shared_bytes > plan.shared_limit) return plan;
  // A warp for each tile, or each few tiles where there are too many.
  plan.threads = dispatch(s.dtype, s.cell, [&](auto instance) {
    using T = typename decltype(instance)::T;
    const int64_t tiles = block_layout<T>(static_cast<int>(s.hidden), rows, 0, 0).tiles;
    return static_cast<int>(divide_up(tiles, divide_up(tiles * 32, kPersistentThreads<T>)) * 32);
  });
  return plan;
}

// The whole policy.
//
//   persistent   Weights, operands and state fit in a block's shared memory.  Largest hidden sizes on an H200, forward
//                and backward:       tanh, relu    GRU         LSTM
//                  16 bits           320, 304      176, 176    160, 144
//                  float32           236, 234      136, 134    118, 115
//                  float64           166, 164      96, 93      83, 80
//                Tensor cores take 16 rows of the batch to a block; else 4, or as many up to 16 as it takes for one
//                block to a multiprocessor.
//   steps        Everything else, and 16 bits before compute capability 8.0.
//
// Whether cuDNN is used instead of either is decided in Python.  That persistent wins wherever it fits, and the choice
// of rows, are predictions until they are measured on a GPU.
RecurrentPlan make_plan(const RecurrentSequence& s, bool backward, const DeviceFacts& facts, RecurrentMethod wanted) {
  RecurrentPlan best{RecurrentMethod::steps, 0, 0, 0, 0, 0};
  if (wanted == RecurrentMethod::steps) return best;
  const bool tensor_cores = s.dtype == DType::bfloat16 || s.dtype == DType::float16;
  for (int rows = tensor_cores ? kMaxRows : 4; rows <= kMaxRows; rows *= 2) {
    const RecurrentPlan plan = persistent_plan(s, backward, rows, facts);
    if (plan.threads == 0) break;
    best = plan;
    if (plan.blocks <= facts.multiprocessors) break;
  }
  return best;
}

// Persistent launches.

// Whether two neighbouring values of an even number of columns can be accessed at once.
bool is_paired(const RecurrentSequence& s, std::initializer_list<const void*> data) {
  return s.hidden % 2 == 0 && std::all_of(data.begin(), data.end(), [](const void* p) { return is_aligned(p, 4); });
}

template <class Kernel, class Call>
int launch_persistent(Kernel kernel, const RecurrentSequence& s, const Call& call, const RecurrentPlan& plan,
                      bool paired, void* stream) {
  if (plan.shared_bytes > kFreeShared) {
    // Always the same value: the setting belongs to the kernel, and another host thread may be launching it too.
    if (const int error = gpu::set_max_dynamic_smem(kernel, plan.shared_limit)) return error;
  }
  return gpu::launch(kernel, dim3(static_cast<unsigned>(plan.blocks)), dim3(plan.threads), plan.shared_bytes,
                     static_cast<gpu::stream_t>(stream), s, call, plan, paired);
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
int forward_steps(const RecurrentSequence& s, const RecurrentForward& call, const RecurrentProduct& multiply,
                  gpu::stream_t stream) {
  using Acc = Accumulator<T>;
  constexpr int G = gate_count(C), S = reserve_count(C);
  const int64_t H = s.hidden, count = s.batch * H;
  if (const int error = convert<T, T>(call.h0, call.h_n, count, stream)) return error;
  if (kKeeps<C>) {
    if (const int error = convert<T, Acc>(C == Cell::lstm ? call.c0 : call.h0, call.kept, count, stream)) return error;
  }
  for (int64_t i = 0; i < s.steps; ++i) {
    const int64_t t = s.reverse ? s.steps - 1 - i : i, row = s.offsets[t], rows = s.offsets[t + 1] - row;
    if (rows == 0) continue;
    multiply(0, rows);
    const ForwardStep<T> step{static_cast<const T*>(call.gates) + row * G * H,
                              static_cast<const T*>(call.product),
                              static_cast<const T*>(call.bias_n),
                              static_cast<T*>(call.output) + row * H,
                              static_cast<T*>(call.h_n),
                              call.reserve && S > 0 ? static_cast<T*>(call.reserve) + row * S * H : nullptr,
                              static_cast<Acc*>(call.kept)};
    if (const int error = gpu::launch(forward_step<T, C>, dim3(step_blocks(rows * H)), dim3(kStepThreads), 0, stream,
                                      step, static_cast<unsigned>(H), static_cast<unsigned>(rows * H))) {
      return error;
    }
  }
  return C == Cell::lstm ? convert<Acc, T>(call.kept, call.c_n, count, stream) : 0;
}

template <class T, Cell C>
int backward_steps(const RecurrentSequence& s, const RecurrentBackward& call, const RecurrentProduct& multiply,
                   gpu::stream_t stream) {
  using Acc = Accumulator<T>;
  constexpr int G = gate_count(C), S = kSaved<C>;
  const int64_t H = s.hidden, count = s.batch * H;
  const auto rows_of = [&](int64_t t) { return t < 0 || t >= s.steps ? 0 : s.offsets[t + 1] - s.offsets[t]; };
  if (const int error = convert<T, Acc>(call.grad_h_n, call.dh, count, stream)) return error;
  if (C == Cell::lstm) {
    if (const int error = convert<T, Acc>(call.grad_c_n, call.dc, count, stream)) return error;
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
  step.initial = static_cast<const T*>(C == Cell::lstm ? call.c0 : call.h0);
  step.before_stride = static_cast<unsigned>(C == Cell::lstm ? S * H : H);
  step.operand = static_cast<T*>(call.operand);
  step.dh = static_cast<Acc*>(call.dh);
  step.dc = static_cast<Acc*>(call.dc);
  for (int64_t i = 0; i < s.steps; ++i) {
    const int64_t t = s.reverse ? i : s.steps - 1 - i, before = s.reverse ? t + 1 : t - 1;
    const int64_t row = s.offsets[t], rows = rows_of(t), known = std::min(rows, rows_of(before));
    if (rows == 0) continue;
    step.grad_output = call.grad_output ? static_cast<const T*>(call.grad_output) + row * H : nullptr;
    step.saved = static_cast<const T*>(kKeeps<C> ? call.reserve : call.output) + row * S * H;
    step.before = nullptr;
    if (known > 0) {
      step.before = C == Cell::lstm ? static_cast<const T*>(call.reserve) + (s.offsets[before] * S + 4) * H
                                    : static_cast<const T*>(call.output) + s.offsets[before] * H;
    }
    step.grad_gates = static_cast<T*>(call.grad_gates) + row * G * H;
    step.grad_hidden_n = C == Cell::gru ? static_cast<T*>(call.grad_hidden_n) + row * H : nullptr;
    step.active = static_cast<unsigned>(rows);
    step.known = static_cast<unsigned>(known);
    step.products = static_cast<unsigned>(products);
    if (const int error = launch(step)) return error;
    multiply(row, rows);
    products = rows;
  }
  step.active = step.known = 0;
  step.products = static_cast<unsigned>(products);
  if (const int error = launch(step)) return error;
  if (const int error = convert<Acc, T>(call.dh, call.grad_h0, count, stream)) return error;
  return C == Cell::lstm ? convert<Acc, T>(call.dc, call.grad_c0, count, stream) : 0;
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

size_t recurrent_shared_bytes(DType dtype, Cell cell, int64_t hidden, int rows, bool backward) {
  return dispatch(dtype, cell, [&](auto instance) {
    using I = decltype(instance);
    constexpr Cell C = I::C;
    const int H = static_cast<int>(hidden);
    if (backward) return block_layout<typename I::T>(H, rows, gate_count(C) * H, 1).bytes(C == Cell::lstm ? 2 : 1);
    return block_layout<typename I::T>(H, rows, H, gate_count(C)).bytes(kKeeps<C>);
  });
}

RecurrentPlan recurrent_forward_plan(const RecurrentSequence& s, const DeviceFacts& facts, RecurrentMethod wanted) {
  return make_plan(s, false, facts, wanted);
}

RecurrentPlan recurrent_backward_plan(const RecurrentSequence& s, const DeviceFacts& facts, RecurrentMethod wanted) {
  return make_plan(s, true, facts, wanted);
}

bool recurrent_fits(DType dtype, Cell cell, int64_t hidden, const DeviceFacts& facts) {
  const RecurrentSequence s{dtype, cell, 1, 1, hidden, false, nullptr, nullptr};
  return make_plan(s, false, facts, RecurrentMethod::automatic).method == RecurrentMethod::persistent &&
         make_plan(s, true, facts, RecurrentMethod::automatic).method == RecurrentMethod::persistent;
}

int recurrent_forward(const RecurrentSequence& s, const RecurrentForward& call, const RecurrentPlan& plan,
                      void* stream) {
  const bool paired =
      is_paired(s, {call.gates, call.h0, call.c0, call.bias_n, call.output, call.h_n, call.c_n, call.reserve});
  return dispatch(s.dtype, s.cell, [&](auto instance) {
    using I = decltype(instance);
    return launch_persistent(forward_persistent<typename I::T, I::C>, s, call, plan, paired, stream);
  });
}

int recurrent_backward(const RecurrentSequence& s, const RecurrentBackward& call, const RecurrentPlan& plan,
                       void* stream) {
  const bool paired = is_paired(s, {call.grad_output, call.grad_h_n, call.grad_c_n, call.output, call.reserve, call.h0,
                                    call.c0, call.grad_gates, call.grad_hidden_n, call.grad_h0, call.grad_c0});
  return dispatch(s.dtype, s.cell, [&](auto instance) {
    using I = decltype(instance);
    return launch_persistent(backward_persistent<typename I::T, I::C>, s, call, plan, paired, stream);
  });
}

int recurrent_forward_steps(const RecurrentSequence& s, const RecurrentForward& call, const RecurrentProduct& multiply,
                            void* stream) {
  if (!is_countable(s)) return kInvalidConfiguration;
  return dispatch(s.dtype, s.cell, [&](auto instance) {
    using I = decltype(instance);
    return forward_steps<typename I::T, I::C>(s, call, multiply, static_cast<gpu::stream_t>(stream));
  });
}

int recurrent_backward_steps(const RecurrentSequence& s, const RecurrentBackward& call,
                             const RecurrentProduct& multiply, void* stream) {
  if (!is_countable(s)) return kInvalidConfiguration;
  return dispatch(s.dtype, s.cell, [&](auto instance) {
    using I = decltype(instance);
    return backward_steps<typename I::T, I::C>(s, call, multiply, static_cast<gpu::stream_t>(stream));
  });
}

}  // namespace genimg_fast::cuda
