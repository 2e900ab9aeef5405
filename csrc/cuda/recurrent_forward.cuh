#pragma once
// Kernels of the recurrent cells' forward: all steps of a layer, and the elementwise part of one step.
#include "recurrent_formulas.cuh"
#include "recurrent_products.cuh"

namespace genimg_fast::cuda::recurrent {

// Procedure overview: forward by tensor cores.
//   1. Each warp takes the weights of its hidden units to registers, and the initial states to the operand.
//   2. In each step a warp starts its sums at the gates, which it loaded in the step before, adds the product of the
//      state and its weights, applies the cell's formulas and leaves the new state in the other buffer; rows that have
//      no such step keep theirs.  One barrier ends the step.
//   3. The last states are written.
// Registers hold a state as it is stored, in pairs, and beside it what is more exact.
template <class T, Cell C>
__global__ void __launch_bounds__(kPersistentThreads<T>, 1)
    forward_fragments(const __grid_constant__ RecurrentSequence sequence, const __grid_constant__ RecurrentForward call,
                      bool vectors) {
  constexpr int G = kGates<C>, S = kSaved<C>;
  DYN_SHARED(unsigned char, shared);
  const int H = static_cast<int>(sequence.hidden), direction = blockIdx.y, width = sequence.directions * H;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kFragmentRows, left = sequence.batch - first;
  const int rows = static_cast<int>(left < kFragmentRows ? left : kFragmentRows);
  FragmentThread<T, G> thread(shared, H, 1);
  const Steps steps(sequence, first, rows, sequence.reverse != (direction == 1));
  thread.template begin<false>(call.weight_hh[direction], vectors);

  const int row = thread.row, unit = thread.unit;
  const T* const gates = static_cast<const T*>(call.gates[direction]) + row * G * H + unit;
  T* const output = static_cast<T*>(call.output) + row * width + direction * H + unit;
  T* const reserve = call.reserve[direction] ? static_cast<T*>(call.reserve[direction]) + row * S * H + unit : nullptr;
  const int64_t state = (direction * sequence.batch + first + row) * H + unit;  // of the initial and last states

  unsigned h[2], x[G][2], bias = 0;
  const auto load_gates = [&](const Step& step) {
    const T* const from = gates + static_cast<int64_t>(step.row) * (G * H);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool lives = thread.lives(r, step.active);
#pragma unroll
      for (int g = 0; g < G; ++g) x[g][r] = load_pair(from + (8 * r * G + g) * H, lives);
    }
  };
  float kept[4] = {0, 0, 0, 0};  // the state of a GRU, the cell state of an LSTM
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const bool lives = thread.lives(r, rows);
    h[r] = load_pair(static_cast<const T*>(call.h0) + state + 8 * r * H, lives);
    if constexpr (kKeeps<C>) {
      const unsigned pair =
          C == Cell::gru ? h[r] : load_pair(static_cast<const T*>(call.c0) + state + 8 * r * H, lives);
      const float2 values = gpu::unpack_pair<T>(pair);
      kept[2 * r] = values.x;
      kept[2 * r + 1] = values.y;
    }
  }
  if (C == Cell::gru && call.bias_n[direction]) {
    bias = load_pair(static_cast<const T*>(call.bias_n[direction]) + unit, unit < H);
  }
  thread.leave(0, 0, h);
  Step step = steps.at(0);
  load_gates(step);
  __syncthreads();

  int buffer = 0;
#pragma unroll 1
  for (int i = 0; i < steps.count; ++i) {
    const Step next = steps.at(i + 1);
    float sums[G][4];
    unsigned x_n[2];  // GRU's candidate adds the state's part behind the reset gate
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int g = 0; g < G; ++g) {
        const bool apart = C == Cell::gru && g == 2;
        if (apart) x_n[r] = x[g][r];
        const float2 values = gpu::unpack_pair<T>(apart ? bias : x[g][r]);
        sums[g][2 * r] = values.x;
        sums[g][2 * r + 1] = values.y;
      }
    }
    load_gates(next);
    thread.template multiply<false>(buffer, sums);

    unsigned saved[S][2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool lives = thread.lives(r, step.active);
      float states[2], values[S][2];
      const float2 candidates = C == Cell::gru ? gpu::unpack_pair<T>(x_n[r]) : float2{0, 0};
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float sums_of[G], values_of[S], hn = 0, new_kept = kept[2 * r + j];
#pragma unroll
        for (int g = 0; g < G; ++g) sums_of[g] = sums[g][2 * r + j];
        if constexpr (C == Cell::gru) {
          hn = sums_of[2];
          sums_of[2] = j == 0 ? candidates.x : candidates.y;
        }
        states[j] = advance<C, T>(sums_of, hn, new_kept, values_of);
        if (kKeeps<C> && lives) kept[2 * r + j] = new_kept;
#pragma unroll
        for (int k = 0; k < S; ++k) values[k][j] = values_of[k];
      }
      if (lives) h[r] = gpu::pack_pair<T>(states[0], states[1]);
#pragma unroll
      for (int k = 0; k < S; ++k) saved[k][r] = gpu::pack_pair<T>(values[k][0], values[k][1]);
    }
    buffer ^= 1;
    thread.leave(buffer, 0, h);
    T* const to = output + static_cast<int64_t>(step.row) * width;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool lives = thread.lives(r, step.active);
      store_pair(to + 8 * r * width, lives, h[r]);
      if constexpr (kKeeps<C>) {
        if (reserve) {
          T* const p = reserve + static_cast<int64_t>(step.row) * (S * H) + 8 * r * S * H;
#pragma unroll
          for (int k = 0; k < S; ++k) store_pair(p + k * H, lives, saved[k][r]);
        }
      }
    }
    step = next;
    __syncthreads();
  }

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const bool lives = thread.lives(r, rows);
    store_pair(static_cast<T*>(call.h_n) + state + 8 * r * H, lives, h[r]);
    if (C == Cell::lstm) {
      store_pair(static_cast<T*>(call.c_n) + state + 8 * r * H, lives, gpu::pack_pair<T>(kept[2 * r], kept[2 * r + 1]));
    }
  }
}

// Procedure overview: forward by FMA.
//   1. The block loads the weights, and the initial states of its rows.
//   2. In each step a warp makes one tile after the other: a thread loads the gates of its value, multiplies the state
//      by the weights of its hidden unit, applies the cell's formulas and leaves the new state in the other buffer;
//      rows that have no such step keep theirs.  One barrier ends the step.
//   3. The last states are written.
template <class T, Cell C>
__global__ void __launch_bounds__(kPersistentThreads<T>, 1)
    forward_slices(const __grid_constant__ RecurrentSequence sequence, const __grid_constant__ RecurrentForward call,
                   int rows_of_block, bool vectors) {
  constexpr int G = kGates<C>, S = kSaved<C>;
  DYN_SHARED(unsigned char, shared);
  const int H = static_cast<int>(sequence.hidden), direction = blockIdx.y, width = sequence.directions * H;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * rows_of_block, left = sequence.batch - first;
  const int rows = static_cast<int>(left < rows_of_block ? left : rows_of_block);
  const SliceBlock<T, G> block(shared, H, rows_of_block, H);
  const Steps steps(sequence, first, rows, sequence.reverse != (direction == 1));
  const T* const gates = static_cast<const T*>(call.gates[direction]);
  const T* const bias_n = static_cast<const T*>(call.bias_n[direction]);
  T* const output = static_cast<T*>(call.output) + direction * H;
  T* const reserve = static_cast<T*>(call.reserve[direction]);
  const int64_t state = (direction * sequence.batch + first) * H;  // where the block's initial and last states begin

  block.begin(call.weight_hh[direction], 1, H * H, H, vectors);
  __syncthreads();
  for (int tile = block.warp; tile < block.layout.tiles; tile += block.warps) {
    if (!block.lives(tile, rows)) continue;
    const int64_t at = state + block.row(tile) * H + block.unit(tile);
    const T h0 = __ldg(static_cast<const T*>(call.h0) + at);
    block.operand(0)[block.place(tile)] = h0;
    if (kKeeps<C>) block.keep(0, tile) = C == Cell::lstm ? __ldg(static_cast<const T*>(call.c0) + at) : h0;
  }
  __syncthreads();

  int buffer = 0;
#pragma unroll 1
  for (int i = 0; i < steps.count; ++i) {
    const Step step = steps.at(i);
    const T* const before = block.operand(buffer);
    T* const after = block.operand(buffer ^ 1);
#pragma unroll 1
    for (int tile = block.warp; tile < block.layout.tiles; tile += block.warps) {
      const bool lives = block.lives(tile, step.active);
      const int unit = block.unit(tile);
      const int64_t row = step.row + block.row(tile);
      T x[G], sums[G];
#pragma unroll
      for (int g = 0; g < G; ++g) {
        x[g] = lives ? __ldg(gates + (row * G + g) * H + unit) : T(0);
        sums[g] = 0;
      }
      if (C == Cell::gru && bias_n && lives) sums[2] = __ldg(bias_n + unit);
      block.multiply(before, tile, sums);

      const T hn = C == Cell::gru ? sums[2] : T(0);
      T saved[S], kept = kKeeps<C> ? block.keep(0, tile) : T(0);
#pragma unroll
      for (int g = 0; g < G; ++g) sums[g] = C == Cell::gru && g == 2 ? x[g] : sums[g] + x[g];
      const T h = advance<C, T>(sums, hn, kept, saved);
      if (unit < H) after[block.place(tile)] = lives ? h : before[block.place(tile)];
      if (!lives) continue;
      if (kKeeps<C>) block.keep(0, tile) = kept;
      output[row * width + unit] = h;
      if (kKeeps<C> && reserve) {
#pragma unroll
        for (int k = 0; k < S; ++k) reserve[(row * S + k) * H + unit] = saved[k];
      }
    }
    buffer ^= 1;
    __syncthreads();
  }

  for (int tile = block.warp; tile < block.layout.tiles; tile += block.warps) {
    if (!block.lives(tile, rows)) continue;
    const int64_t at = state + block.row(tile) * H + block.unit(tile);
    static_cast<T*>(call.h_n)[at] = block.operand(buffer)[block.place(tile)];
    if (C == Cell::lstm) static_cast<T*>(call.c_n)[at] = block.keep(0, tile);
  }
}

// Of a step; pointers are to its first row.
template <class T>
struct ForwardStep {
  const T *gates, *product, *bias_n;
  T *output, *state, *reserve;
  int64_t output_stride;
  Accumulator<T>* kept;
};

// Procedure overview: each thread takes one hidden unit of one row from its gates to its new state, which is written
// twice: to the output, and to where the next product reads it.
template <class T, Cell C>
__global__ void __launch_bounds__(kStepThreads)
    forward_step(const __grid_constant__ ForwardStep<T> step, unsigned hidden, unsigned count) {
  using Acc = Accumulator<T>;
  constexpr int G = kGates<C>, S = kSaved<C>;
  const unsigned i = blockIdx.x * kStepThreads + threadIdx.x;
  if (i >= count) return;
  const int64_t row = i / hidden, unit = i % hidden, H = hidden;
  Acc gates[G], saved[S], hn = 0, kept = 0;
#pragma unroll
  for (int g = 0; g < G; ++g) {
    gates[g] = gpu::convert<Acc>(__ldg(step.gates + (row * G + g) * H + unit));
    const Acc product = gpu::convert<Acc>(__ldg(step.product + (row * G + g) * H + unit));
    if (C == Cell::gru && g == 2) {
      hn = product;
    } else {
      gates[g] += product;
    }
  }
  if constexpr (C == Cell::gru) {
    if (step.bias_n) hn += gpu::convert<Acc>(__ldg(step.bias_n + unit));
  }
  if (kKeeps<C>) kept = step.kept[i];
  const T rounded = gpu::convert<T>(advance<C, T>(gates, hn, kept, saved));
  step.output[row * step.output_stride + unit] = rounded;
  step.state[i] = rounded;
  if constexpr (kKeeps<C>) {
    step.kept[i] = kept;
    if (step.reserve) {
#pragma unroll
      for (int k = 0; k < S; ++k) step.reserve[(row * S + k) * H + unit] = gpu::convert<T>(saved[k]);
    }
  }
}

}  // namespace genimg_fast::cuda::recurrent
