#pragma once
// Kernels of the recurrent cells' backward: all steps of a layer, and the elementwise part of one step.
#include "recurrent_formulas.cuh"
#include "recurrent_products.cuh"

namespace genimg_fast::cuda {

// Procedure overview: backward.
//   1. The block loads the weights, the other way round, and the gradients at the last states of its rows.
//   2. In each step, last first, a thread loads what forward saved of its values, multiplies the gradients at the gates
//      of the step after this one by the weights, which completes the gradient at its state, and makes the gradients at
//      this step's gates: they are written, and left in the other buffer.  Rows that have no such step leave zeros, and
//      keep their gradients.  One barrier ends the step.
//   3. A last product completes the gradients at the initial states.
template <class T, Cell C>
__global__ void __launch_bounds__(kPersistentThreads<T>, 1)
    backward_persistent(const __grid_constant__ RecurrentSequence sequence,
                        const __grid_constant__ RecurrentBackward call, const __grid_constant__ RecurrentPlan plan,
                        bool paired) {
  using Acc = Accumulator<T>;
  using At = Values<T>;
  constexpr int G = kGates<C>, S = kSaved<C>, J = At::count;
  DYN_SHARED(unsigned char, shared);
  const int H = static_cast<int>(sequence.hidden);
  const Block<T, 1> block(shared, sequence, plan, G * H, paired);
  const Times times{sequence};

  block.begin(call.weight_hh, H, 0, 1);
  for (int tile = block.warp; tile < block.layout.tiles; tile += block.warps) {
    const unsigned live = block.live(tile, block.rows);
    const auto dh = block.fetch(call.grad_h_n, block.first, H, 0, tile, call.grad_h_n ? live : 0);
    const auto dc = block.fetch(call.grad_c_n, block.first, H, 0, tile, call.grad_c_n ? live : 0);
#pragma unroll
    for (int j = 0; j < J; ++j) {
      block.keep(0, tile, j) = block.value(dh, j);
      if (C == Cell::lstm) block.keep(1, tile, j) = block.value(dc, j);
    }
  }
  __syncthreads();

  // Rows that left gradients at gates in the buffer.  The others' zeros are not multiplied: a weight may be infinite.
  int multiplied = 0, buffer = 0;
#pragma unroll 1
  for (int64_t s = 0; s < sequence.steps; ++s) {
    const int64_t t = sequence.reverse ? s : sequence.steps - 1 - s;
    const int active = times.active(t, block.first, block.rows);
    if (active == 0) continue;
    const int64_t first_row = times.begin(t) + block.first;
    const int64_t t_before = sequence.reverse ? t + 1 : t - 1;
    const int known = times.active(t_before, block.first, active);  // rows for which it was not the first step
    const int64_t row_before = known > 0 ? times.begin(t_before) + block.first : 0;
#pragma unroll 1
    for (int tile = block.warp; tile < block.layout.tiles; tile += block.warps) {
      const unsigned live = block.live(tile, active), has_product = block.live(tile, multiplied);
      typename Block<T, 1>::Fetched saved[S], before{}, initial{};
      Acc product[1][J];
      const auto grad = block.fetch(call.grad_output, first_row, H, 0, tile, call.grad_output ? live : 0);
      const void* const from = kKeeps<C> ? call.reserve : call.output;
#pragma unroll
      for (int k = 0; k < S; ++k) saved[k] = block.fetch(from, first_row, S * H, k * H, tile, live);
      if constexpr (kKeeps<C>) {
        const unsigned not_first = block.live(tile, known);
        before = C == Cell::lstm ? block.fetch(call.reserve, row_before, S * H, 4 * H, tile, not_first)
                                 : block.fetch(call.output, row_before, H, 0, tile, not_first);
        initial = block.fetch(C == Cell::lstm ? call.c0 : call.h0, block.first, H, 0, tile, live & ~not_first);
      }
      block.multiply(block.operand(buffer), tile, product);

      Acc d[G][J], dhn[J];
#pragma unroll
      for (int j = 0; j < J; ++j) {
        const Acc dh = block.keep(0, tile, j) + (has_product >> j & 1 ? product[0][j] : Acc(0));
        Acc saved_of[S], d_of[G], dc = C == Cell::lstm ? block.keep(1, tile, j) : Acc(0);
        dhn[j] = 0;
#pragma unroll
        for (int k = 0; k < S; ++k) saved_of[k] = block.value(saved[k], j);
        const Acc state = block.value(before, j) + block.value(initial, j);  // one of them is zero
        const Acc rest = retreat<C>(saved_of, state, dh + block.value(grad, j), dc, d_of, dhn[j]);
        const bool lives = live >> j & 1;
        block.keep(0, tile, j) = lives ? rest : dh;
        if (C == Cell::lstm && lives) block.keep(1, tile, j) = dc;
        const int unit = block.unit(tile) + At::unit(j);
        T* const after = block.operand(buffer ^ 1) + block.place(tile, j);
#pragma unroll
        for (int g = 0; g < G; ++g) {
          d[g][j] = d_of[g];
          const Acc at_product = C == Cell::gru && g == 2 ? dhn[j] : d_of[g];
          if (unit < H) after[g * H] = gpu::convert<T>(lives ? at_product : Acc(0));
        }
      }
#pragma unroll
      for (int g = 0; g < G; ++g) block.write(call.grad_gates, first_row, G * H, g * H, tile, live, d[g]);
      if (C == Cell::gru) block.write(call.grad_hidden_n, first_row, H, 0, tile, live, dhn);
    }
    multiplied = active;
    buffer ^= 1;
    __syncthreads();
  }

  for (int tile = block.warp; tile < block.layout.tiles; tile += block.warps) {
    const unsigned live = block.live(tile, block.rows), has_product = block.live(tile, multiplied);
    Acc product[1][J], dh[J], dc[J];
    block.multiply(block.operand(buffer), tile, product);
#pragma unroll
    for (int j = 0; j < J; ++j) {
      dh[j] = block.keep(0, tile, j) + (has_product >> j & 1 ? product[0][j] : Acc(0));
      if (C == Cell::lstm) dc[j] = block.keep(1, tile, j);
    }
    block.write(call.grad_h0, block.first, H, 0, tile, live, dh);
    if (C == Cell::lstm) block.write(call.grad_c0, block.first, H, 0, tile, live, dc);
  }
}

// Of a step; pointers are to its first row.
template <class T>
struct BackwardStep {
  const T *grad_output, *saved, *product;
  const T *before, *initial;  // states, or cell states, before the step: of the rows up to `known`, and of the others
  unsigned before_stride;
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
  if (step.grad_output) dh += gpu::convert<Acc>(__ldg(step.grad_output + i));
  Acc saved[S], d[G], before = 0, dc = 0, dhn = 0;
#pragma unroll
  for (int k = 0; k < S; ++k) saved[k] = gpu::convert<Acc>(__ldg(step.saved + (row * S + k) * H + unit));
  if constexpr (kKeeps<C>) {
    before = gpu::convert<Acc>(row < step.known ? __ldg(step.before + row * step.before_stride + unit)
                                                : __ldg(step.initial + i));
  }
  if (C == Cell::lstm) dc = step.dc[i];
  step.dh[i] = retreat<C>(saved, before, dh, dc, d, dhn);
  if (C == Cell::lstm) step.dc[i] = dc;
#pragma unroll
  for (int g = 0; g < G; ++g) {
    step.grad_gates[(row * G + g) * H + unit] = gpu::convert<T>(d[g]);
    if (C == Cell::gru) step.operand[(row * G + g) * H + unit] = gpu::convert<T>(g == 2 ? dhn : d[g]);
  }
  if (C == Cell::gru) step.grad_hidden_n[i] = gpu::convert<T>(dhn);
}

}  // namespace genimg_fast::cuda
