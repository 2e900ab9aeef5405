#pragma once
// Kernels of the recurrent cells' forward: all steps of a layer, and the elementwise part of one step.
#include "recurrent_formulas.cuh"
#include "recurrent_products.cuh"

namespace genimg_fast::cuda {

// Procedure overview: forward.
//   1. The block loads the weights, and the initial states of its rows.
//   2. In each step a thread loads the gates of its values, multiplies the state by the weights of its hidden units,
//      applies the cell's formulas and leaves the new state in the other buffer; rows that have no such step keep
//      theirs.  One barrier ends the step.
//   3. The last states are written.
template <class T, Cell C>
__global__ void __launch_bounds__(kPersistentThreads<T>, 1)
    forward_persistent(const __grid_constant__ RecurrentSequence sequence,
                       const __grid_constant__ RecurrentForward call, const __grid_constant__ RecurrentPlan plan,
                       bool paired) {
  using Acc = Accumulator<T>;
  using At = Values<T>;
  constexpr int G = kGates<C>, S = kSaved<C>, J = At::count;
  DYN_SHARED(unsigned char, shared);
  const int H = static_cast<int>(sequence.hidden);
  const Block<T, G> block(shared, sequence, plan, H, paired);
  const Times times{sequence};

  block.begin(call.weight_hh, 1, H * H, H);
  __syncthreads();
  for (int tile = block.warp; tile < block.layout.tiles; tile += block.warps) {
    const unsigned live = block.live(tile, block.rows);
    const auto h0 = block.fetch(call.h0, block.first, H, 0, tile, live);
    const auto c0 = C == Cell::lstm ? block.fetch(call.c0, block.first, H, 0, tile, live) : h0;
#pragma unroll
    for (int j = 0; j < J; ++j) {
      if (live >> j & 1) block.operand(0)[block.place(tile, j)] = gpu::convert<T>(block.value(h0, j));
      if (kKeeps<C>) block.keep(0, tile, j) = block.value(c0, j);
    }
  }
  __syncthreads();

  int buffer = 0;
#pragma unroll 1
  for (int64_t s = 0; s < sequence.steps; ++s) {
    const int64_t t = sequence.reverse ? sequence.steps - 1 - s : s;
    const int active = times.active(t, block.first, block.rows);
    if (active == 0) continue;
    const int64_t first_row = times.begin(t) + block.first;
    const T* const before = block.operand(buffer);
    T* const after = block.operand(buffer ^ 1);
#pragma unroll 1
    for (int tile = block.warp; tile < block.layout.tiles; tile += block.warps) {
      const unsigned live = block.live(tile, active);
      typename Block<T, G>::Fetched x[G], bias{};
      Acc sums[G][J];
#pragma unroll
      for (int g = 0; g < G; ++g) x[g] = block.fetch(call.gates, first_row, G * H, g * H, tile, live);
      if (C == Cell::gru && call.bias_n) bias = block.fetch(call.bias_n, 0, 0, 0, tile, live);
      block.multiply(before, tile, sums);

      Acc h[J], saved[S][J];
#pragma unroll
      for (int j = 0; j < J; ++j) {
        Acc x_of[G], h_of[G], saved_of[S], kept = kKeeps<C> ? block.keep(0, tile, j) : Acc(0);
#pragma unroll
        for (int g = 0; g < G; ++g) {
          x_of[g] = block.value(x[g], j);
          h_of[g] = sums[g][j];
        }
        if constexpr (C == Cell::gru) h_of[2] += block.value(bias, j);
        h[j] = advance<C>(x_of, h_of, kept, saved_of);
#pragma unroll
        for (int k = 0; k < S; ++k) saved[k][j] = saved_of[k];
        if (kKeeps<C> && live >> j & 1) block.keep(0, tile, j) = kept;
        const int at = block.place(tile, j);
        if (block.unit(tile) + At::unit(j) < H) after[at] = live >> j & 1 ? gpu::convert<T>(h[j]) : before[at];
      }
      block.write(call.output, first_row, H, 0, tile, live, h);
      if constexpr (kKeeps<C>) {
        if (call.reserve) {
#pragma unroll
          for (int k = 0; k < S; ++k) block.write(call.reserve, first_row, S * H, k * H, tile, live, saved[k]);
        }
      }
    }
    buffer ^= 1;
    __syncthreads();
  }

  for (int tile = block.warp; tile < block.layout.tiles; tile += block.warps) {
    const unsigned live = block.live(tile, block.rows);
    Acc h[J], c[J];
#pragma unroll
    for (int j = 0; j < J; ++j) {
      h[j] = 0;
      if (live >> j & 1) {
        h[j] = gpu::convert<Acc>(block.operand(buffer)[block.place(tile, j)]);
      }
      if (C == Cell::lstm) c[j] = block.keep(0, tile, j);
    }
    block.write(call.h_n, block.first, H, 0, tile, live, h);
    if (C == Cell::lstm) block.write(call.c_n, block.first, H, 0, tile, live, c);
  }
}

// Of a step; pointers are to its first row.
template <class T>
struct ForwardStep {
  const T *gates, *product, *bias_n;
  T *output, *state, *reserve;
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
  Acc x[G], h[G], saved[S], kept = 0;
#pragma unroll
  for (int g = 0; g < G; ++g) {
    x[g] = gpu::convert<Acc>(__ldg(step.gates + (row * G + g) * H + unit));
    h[g] = gpu::convert<Acc>(__ldg(step.product + (row * G + g) * H + unit));
  }
  if constexpr (C == Cell::gru) {
    if (step.bias_n) h[2] += gpu::convert<Acc>(__ldg(step.bias_n + unit));
  }
  if (kKeeps<C>) kept = step.kept[i];
  const T rounded = gpu::convert<T>(advance<C>(x, h, kept, saved));
  step.output[i] = rounded;
  step.state[i] = rounded;
  if constexpr (kKeeps<C>) {
    step.kept[i] = kept;
    if (step.reserve) {
#pragma unroll
      for (int k = 0; k < S; ++k) step.reserve[(row * S + k) * H + unit] = gpu::convert<T>(saved[k]);
    }
  }
}

}  // namespace genimg_fast::cuda
