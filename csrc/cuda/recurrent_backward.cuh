#pragma once
// Kernels of the recurrent cells' backward: all steps of a layer, and the elementwise part of one step.
#include "recurrent_formulas.cuh"
#include "recurrent_products.cuh"

namespace genimg_fast::cuda::recurrent {

// Procedure overview: backward by tensor cores.
//   1. Each warp takes the weights that reach its hidden units to registers, and the gradients at the last states.
//   2. In each step, last first, a warp multiplies the gradients at the gates of the step after this one by its
//      weights, which completes the gradient at its states, makes the gradients at this step's gates of what forward
//      saved and it loaded in the step before, writes them, and leaves them in the other buffer.  Rows that have no
//      such step leave zeros, and keep their gradients.  One barrier ends the step.
//   3. A last product completes the gradients at the initial states.
template <class T, Cell C>
__global__ void __launch_bounds__(kPersistentThreads<T>, 1)
    backward_fragments(const __grid_constant__ RecurrentSequence sequence,
                       const __grid_constant__ RecurrentBackward call, bool vectors) {
  constexpr int G = kGates<C>, S = kSaved<C>;
  DYN_SHARED(unsigned char, shared);
  const int H = static_cast<int>(sequence.hidden), direction = blockIdx.y, width = sequence.directions * H;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kFragmentRows, left = sequence.batch - first;
  const int rows = static_cast<int>(left < kFragmentRows ? left : kFragmentRows);
  FragmentThread<T, G> thread(shared, H, G);
  const Steps steps(sequence, first, rows, sequence.reverse == (direction == 1));
  thread.template begin<true>(call.weight_hh[direction], vectors);

  const int row = thread.row, unit = thread.unit, column = direction * H + unit;
  // What forward saved: the reserve, or the output where there is none.
  const int saved_width = kKeeps<C> ? S * H : width;
  const T* const saved_rows = kKeeps<C> ? static_cast<const T*>(call.reserve[direction]) + row * saved_width + unit
                                        : static_cast<const T*>(call.output) + row * saved_width + column;
  // The state of a GRU or the cell state of an LSTM, and where it began.
  const int before_width = C == Cell::lstm ? saved_width : width;
  const T* const before_rows =
      C == Cell::lstm ? saved_rows + 4 * H : static_cast<const T*>(call.output) + row * before_width + column;
  const int64_t state = (direction * sequence.batch + first + row) * H + unit;
  const T* const initial = static_cast<const T*>(C == Cell::lstm ? call.c0 : call.h0) + state;
  const T* const grad_output =
      call.grad_output ? static_cast<const T*>(call.grad_output) + row * width + column : nullptr;
  T* const grad_gates = static_cast<T*>(call.grad_gates[direction]) + row * G * H + unit;
  T* const grad_hidden_n = C == Cell::gru ? static_cast<T*>(call.grad_hidden_n[direction]) + row * H + unit : nullptr;

  // Of rows that take no part they keep what they have: its results are not used.
  unsigned saved[S][2] = {}, before[2] = {}, grad[2] = {};
  // earlier: the rows for which this was not the first step had that one before.
  const auto load_saved = [&](const Step& step, const Step& earlier) {
    const T* const from = saved_rows + static_cast<int64_t>(step.row) * saved_width;
    const T* const from_before = before_rows + static_cast<int64_t>(earlier.row) * before_width;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!thread.lives(r, step.active)) continue;
#pragma unroll
      for (int k = 0; k < S; ++k) saved[k][r] = load<T, 2>(from + 8 * r * saved_width + k * H);
      if (kKeeps<C>) {
        before[r] =
            load<T, 2>(thread.lives(r, earlier.active) ? from_before + 8 * r * before_width : initial + 8 * r * H);
      }
      if (grad_output) grad[r] = load<T, 2>(grad_output + static_cast<int64_t>(step.row) * width + 8 * r * width);
    }
  };
  float dh[4] = {0, 0, 0, 0}, dc[4] = {0, 0, 0, 0};  // gradients at the state and the cell state
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const bool lives = thread.lives(r, rows);
    if (call.grad_h_n) {
      const float2 values =
          gpu::unpack_pair<T>(load_pair(static_cast<const T*>(call.grad_h_n) + state + 8 * r * H, lives));
      dh[2 * r] = values.x;
      dh[2 * r + 1] = values.y;
    }
    if (C == Cell::lstm && call.grad_c_n) {
      const float2 values =
          gpu::unpack_pair<T>(load_pair(static_cast<const T*>(call.grad_c_n) + state + 8 * r * H, lives));
      dc[2 * r] = values.x;
      dc[2 * r + 1] = values.y;
    }
  }
  Step step = steps.at(0);
  load_saved(step, steps.at(1));
  __syncthreads();

  // Rows that left gradients at gates in the buffer; what the others left does not count.  (Hidden units that there are
  // not leave zeros.)
  int multiplied = 0, buffer = 0;
  const auto complete = [&] {
    float sums[1][4] = {{0, 0, 0, 0}};
    thread.template multiply<true>(buffer, sums);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (thread.lives(j / 2, multiplied)) dh[j] += sums[0][j];
    }
  };
#pragma unroll 1
  for (int i = 0; i < steps.count; ++i) {
    complete();
    unsigned d[G][2], dhn[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool lives = thread.lives(r, step.active);
      const float2 grads = gpu::unpack_pair<T>(grad[r]);
      const float2 befores = kKeeps<C> ? gpu::unpack_pair<T>(before[r]) : float2{0, 0};
      float d_of[2][G], dhn_of[2] = {0, 0};
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float saved_of[S], new_dc = dc[2 * r + j];
#pragma unroll
        for (int k = 0; k < S; ++k) {
          const float2 values = gpu::unpack_pair<T>(saved[k][r]);
          saved_of[k] = j == 0 ? values.x : values.y;
        }
        const float rest = retreat<C, T>(saved_of, j == 0 ? befores.x : befores.y,
                                         dh[2 * r + j] + (j == 0 ? grads.x : grads.y), new_dc, d_of[j], dhn_of[j]);
        if (lives) {
          dh[2 * r + j] = rest;
          dc[2 * r + j] = new_dc;
        }
      }
#pragma unroll
      for (int g = 0; g < G; ++g) d[g][r] = gpu::pack_pair<T>(d_of[0][g], d_of[1][g]);
      dhn[r] = gpu::pack_pair<T>(dhn_of[0], dhn_of[1]);
    }
    buffer ^= 1;
#pragma unroll
    for (int g = 0; g < G; ++g) thread.leave(buffer, g, C == Cell::gru && g == 2 ? dhn : d[g]);
    T* const to = grad_gates + static_cast<int64_t>(step.row) * (G * H);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      if (!thread.lives(r, step.active)) continue;
#pragma unroll
      for (int g = 0; g < G; ++g) store<T, 2>(to + (8 * r * G + g) * H, d[g][r]);
      if (C == Cell::gru) store<T, 2>(grad_hidden_n + static_cast<int64_t>(step.row + 8 * r) * H, dhn[r]);
    }
    multiplied = step.active;
    step = steps.at(i + 1);
    load_saved(step, steps.at(i + 2));
    __syncthreads();
  }

  complete();
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const bool lives = thread.lives(r, rows);
    store_pair(static_cast<T*>(call.grad_h0) + state + 8 * r * H, lives, gpu::pack_pair<T>(dh[2 * r], dh[2 * r + 1]));
    if (C == Cell::lstm) {
      store_pair(static_cast<T*>(call.grad_c0) + state + 8 * r * H, lives, gpu::pack_pair<T>(dc[2 * r], dc[2 * r + 1]));
    }
  }
}

// Procedure overview: backward by FMA.
//   1. The block loads the weights, the other way round, and the gradients at the last states of its rows.
//   2. In each step, last first, a warp makes one tile after the other: a thread loads what forward saved of its value,
//      multiplies the gradients at the gates of the step after this one by the weights, which completes the gradient at
//      its state, and makes the gradients at this step's gates: they are written, and left in the other buffer.  Rows
//      that have no such step leave zeros, and keep their gradients.  One barrier ends the step.
//   3. A last product completes the gradients at the initial states.
template <class T, Cell C>
__global__ void __launch_bounds__(kPersistentThreads<T>, 1)
    backward_slices(const __grid_constant__ RecurrentSequence sequence, const __grid_constant__ RecurrentBackward call,
                    int rows_of_block) {
  constexpr int G = kGates<C>, S = kSaved<C>;
  DYN_SHARED(unsigned char, shared);
  const int H = static_cast<int>(sequence.hidden), direction = blockIdx.y, width = sequence.directions * H;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * rows_of_block, left = sequence.batch - first;
  const int rows = static_cast<int>(left < rows_of_block ? left : rows_of_block);
  const SliceBlock<T, 1> block(shared, H, rows_of_block, G * H);
  const Steps steps(sequence, first, rows, sequence.reverse == (direction == 1));
  const T* const output = static_cast<const T*>(call.output) + direction * H;
  const T* const grad_output = call.grad_output ? static_cast<const T*>(call.grad_output) + direction * H : nullptr;
  const T* const reserve = static_cast<const T*>(call.reserve[direction]);
  T* const grad_gates = static_cast<T*>(call.grad_gates[direction]);
  T* const grad_hidden_n = static_cast<T*>(call.grad_hidden_n[direction]);
  const int64_t state = (direction * sequence.batch + first) * H;

  block.begin(call.weight_hh[direction], H, 0, 1, false);
  for (int tile = block.warp; tile < block.layout.tiles; tile += block.warps) {
    const bool lives = block.lives(tile, rows);
    const int64_t at = state + block.row(tile) * H + block.unit(tile);
    block.keep(0, tile) = lives && call.grad_h_n ? __ldg(static_cast<const T*>(call.grad_h_n) + at) : T(0);
    if (C != Cell::lstm) continue;
    block.keep(1, tile) = lives && call.grad_c_n ? __ldg(static_cast<const T*>(call.grad_c_n) + at) : T(0);
  }
  __syncthreads();

  // Rows that left gradients at gates in the buffer.  The others' zeros do not count: a weight may be infinite.
  int multiplied = 0, buffer = 0;
#pragma unroll 1
  for (int i = 0; i < steps.count; ++i) {
    const Step step = steps.at(i), earlier = steps.at(i + 1);
#pragma unroll 1
    for (int tile = block.warp; tile < block.layout.tiles; tile += block.warps) {
      const bool lives = block.lives(tile, step.active);
      const int unit = block.unit(tile);
      const int64_t row = step.row + block.row(tile);
      T saved[S], d[G], product[1] = {0}, before = 0, grad = 0, dhn = 0;
#pragma unroll
      for (int k = 0; k < S; ++k) saved[k] = 0;
      if (lives) {
#pragma unroll
        for (int k = 0; k < S; ++k) {
          saved[k] = __ldg(kKeeps<C> ? reserve + (row * S + k) * H + unit : output + row * width + unit);
        }
        if constexpr (kKeeps<C>) {
          const int64_t row_before = earlier.row + block.row(tile);
          const T* p = static_cast<const T*>(C == Cell::lstm ? call.c0 : call.h0) + state + block.row(tile) * H + unit;
          if (block.lives(tile, earlier.active)) {  // else it was the first step
            p = C == Cell::lstm ? reserve + (row_before * S + 4) * H + unit : output + row_before * width + unit;
          }
          before = __ldg(p);
        }
        if (grad_output) grad = __ldg(grad_output + row * width + unit);
      }
      block.multiply(block.operand(buffer), tile, product);

      const T dh = block.keep(0, tile) + (block.lives(tile, multiplied) ? product[0] : T(0));
      T dc = C == Cell::lstm ? block.keep(1, tile) : T(0);
      const T rest = retreat<C, T>(saved, before, dh + grad, dc, d, dhn);
      block.keep(0, tile) = lives ? rest : dh;
      if (C == Cell::lstm && lives) block.keep(1, tile) = dc;
      T* const after = block.operand(buffer ^ 1) + block.place(tile);
#pragma unroll
      for (int g = 0; g < G; ++g) {
        if (unit < H) after[g * H] = lives ? (C == Cell::gru && g == 2 ? dhn : d[g]) : T(0);
        if (lives) grad_gates[(row * G + g) * H + unit] = d[g];
      }
      if (C == Cell::gru && lives) grad_hidden_n[row * H + unit] = dhn;
    }
    multiplied = step.active;
    buffer ^= 1;
    __syncthreads();
  }

  for (int tile = block.warp; tile < block.layout.tiles; tile += block.warps) {
    T product[1] = {0};
    block.multiply(block.operand(buffer), tile, product);
    if (!block.lives(tile, rows)) continue;
    const int64_t at = state + block.row(tile) * H + block.unit(tile);
    const bool completed = block.lives(tile, multiplied);
    static_cast<T*>(call.grad_h0)[at] = block.keep(0, tile) + (completed ? product[0] : T(0));
    if (C == Cell::lstm) static_cast<T*>(call.grad_c0)[at] = block.keep(1, tile);
  }
}

// Of a step; pointers are to its first row.
template <class T>
struct BackwardStep {
  const T *grad_output, *saved, *product;
  const T *before, *initial;  // states, or cell states, before the step: of the rows up to `known`, and of the others
  int64_t grad_output_stride, saved_stride, before_stride;
  T *grad_gates, *grad_hidden_n, *operand;
  Accumulator<T>*dh, *dc;
  unsigned active, known, products;  // rows that take part, that had a step before, that `product` has
};

// Procedure overview: each thread completes the gradient at the state of one hidden unit and row with the product of
// the step after this one, and takes it to the gradients at the gates.  Rows that do not take part keep their gradient.
template <class T, Cell C>
__global__ void __launch_bounds__(kStepThreads)
    backward_step(const __grid_constant__ BackwardStep<T> step, unsigned hidden, unsigned count) {
  using Acc = Accumulator<T>;
  constexpr int G = kGates<C>, S = kSaved<C>;
  const unsigned i = blockIdx.x * kStepThreads + threadIdx.x;
  if (i >= count) return;
  const int64_t row = i / hidden, unit = i % hidden, H = hidden;
  Acc dh = step.dh[i];
  if (row < step.products) dh += gpu::convert<Acc>(__ldg(step.product + i));
  if (row >= step.active) {
    step.dh[i] = dh;
    return;
  }
  if (step.grad_output) dh += gpu::convert<Acc>(__ldg(step.grad_output + row * step.grad_output_stride + unit));
  Acc saved[S], d[G], before = 0, dc = 0, dhn = 0;
#pragma unroll
  for (int k = 0; k < S; ++k) {
    saved[k] = gpu::convert<Acc>(__ldg(step.saved + row * step.saved_stride + k * H + unit));
  }
  if constexpr (kKeeps<C>) {
    before = gpu::convert<Acc>(row < step.known ? __ldg(step.before + row * step.before_stride + unit)
                                                : __ldg(step.initial + i));
  }
  if (C == Cell::lstm) dc = step.dc[i];
  step.dh[i] = retreat<C, T>(saved, before, dh, dc, d, dhn);
  if (C == Cell::lstm) step.dc[i] = dc;
#pragma unroll
  for (int g = 0; g < G; ++g) {
    step.grad_gates[(row * G + g) * H + unit] = gpu::convert<T>(d[g]);
    if (C == Cell::gru) step.operand[(row * G + g) * H + unit] = gpu::convert<T>(g == 2 ? dhn : d[g]);
  }
  if (C == Cell::gru) step.grad_hidden_n[i] = gpu::convert<T>(dhn);
}

}  // namespace genimg_fast::cuda::recurrent
