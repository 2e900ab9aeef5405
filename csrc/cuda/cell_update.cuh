#pragma once
// Kernels of the cell updates: one step of a GRU or an LSTM from its gates, and its gradients.
#include "cell_update.h"
#include "recurrent_formulas.cuh"

namespace genimg_fast::cuda::recurrent {

constexpr int kUpdateThreads = 256;  // of a block

// A thread's V elements of an update; gate g of theirs is g * inner after `gates`.
struct UpdateSpot {
  int64_t gates, state;
};

template <int V, int G>
__device__ __forceinline__ bool find_spot(const CellUpdate& call, UpdateSpot& spot) {
  spot.state = (static_cast<int64_t>(blockIdx.x) * kUpdateThreads + threadIdx.x) * V;
  if (spot.state >= call.outer * call.inner) return false;
  int64_t group;
  if (((spot.state | call.inner) >> 31) == 0) {  // the 64-bit division is many times slower
    group = static_cast<uint32_t>(spot.state) / static_cast<uint32_t>(call.inner);
  } else {
    group = spot.state / call.inner;
  }
  spot.gates = spot.state + group * (G - 1) * call.inner;
  return true;
}

template <class T, int V>
__device__ __forceinline__ void read(const void* data, int64_t at, Accumulator<T> (&values)[V]) {
  unpack<T, V>(load<T, V>(static_cast<const T*>(data) + at), values);
}
template <class T, int V>
__device__ __forceinline__ void write(void* data, int64_t at, const Accumulator<T> (&values)[V]) {
  store<T, V>(static_cast<T*>(data) + at, pack<T, V>(values));
}

// A thread's part of an update: what it loads, and the step of each element.
template <class T, int V, Cell C>
struct Update {
  using Acc = Accumulator<T>;
  static constexpr int G = kGates<C>, S = kSaved<C>;
  Acc x[G][V], h[G][V], state[V];

  __device__ __forceinline__ void load(const CellUpdate& call, const UpdateSpot& spot) {
#pragma unroll
    for (int g = 0; g < G; ++g) {
      read<T, V>(call.gates, spot.gates + g * call.inner, x[g]);
      if (C == Cell::gru) read<T, V>(call.gates_h, spot.gates + g * call.inner, h[g]);
    }
    read<T, V>(call.state, spot.state, state);
  }
  __device__ __forceinline__ Acc step(int j, Acc& kept, Acc (&saved)[S]) const {
    Acc gates[G];
#pragma unroll
    for (int g = 0; g < G; ++g) gates[g] = C == Cell::gru && g < 2 ? x[g][j] + h[g][j] : x[g][j];
    kept = state[j];
    return advance<C, T>(gates, C == Cell::gru ? h[2][j] : Acc(0), kept, saved);
  }
};

// Procedure overview: each thread takes V neighbouring elements from their gates to the new state.
template <class T, int V, Cell C>
__global__ void __launch_bounds__(kUpdateThreads, 2) update_forward(const __grid_constant__ CellUpdate call) {
  using Acc = Accumulator<T>;
  UpdateSpot spot;
  if (!find_spot<V, kGates<C>>(call, spot)) return;
  Update<T, V, C> update;
  update.load(call, spot);
  Acc new_h[V], new_c[V];
#pragma unroll
  for (int j = 0; j < V; ++j) {
    Acc saved[kSaved<C>];
    new_h[j] = update.step(j, new_c[j], saved);
  }
  write<T, V>(call.h, spot.state, new_h);
  if (C == Cell::lstm) write<T, V>(call.c, spot.state, new_c);
}

// Procedure overview: each thread takes V neighbouring elements from their gates to the new state again, and from its
// gradients to those at the gates and the state.
template <class T, int V, Cell C>
__global__ void __launch_bounds__(kUpdateThreads, 2) update_backward(const __grid_constant__ CellUpdate call) {
  using Acc = Accumulator<T>;
  constexpr int G = kGates<C>;
  UpdateSpot spot;
  if (!find_spot<V, G>(call, spot)) return;
  Update<T, V, C> update;
  update.load(call, spot);
  Acc grad_h[V], grad_c[V], d[G][V], dhn[V];
#pragma unroll
  for (int j = 0; j < V; ++j) grad_h[j] = grad_c[j] = 0;
  if (call.grad_h) read<T, V>(call.grad_h, spot.state, grad_h);
  if (C == Cell::lstm && call.grad_c) read<T, V>(call.grad_c, spot.state, grad_c);
#pragma unroll
  for (int j = 0; j < V; ++j) {
    Acc saved[kSaved<C>], d_of[G], kept, before = update.state[j];
    update.step(j, kept, saved);
    if constexpr (C == Cell::lstm) {
      if (!call.grad_h) saved[3] = saved[4] = 0;  // else zero times what is not finite
    }
    dhn[j] = 0;
    const Acc rest = retreat<C, T>(saved, before, grad_h[j], grad_c[j], d_of, dhn[j]);
    if (C == Cell::gru) grad_h[j] = rest;
#pragma unroll
    for (int g = 0; g < G; ++g) d[g][j] = d_of[g];
  }
#pragma unroll
  for (int g = 0; g < G; ++g) {
    write<T, V>(call.grad_gates, spot.gates + g * call.inner, d[g]);
    if (C == Cell::gru) write<T, V>(call.grad_gates_h, spot.gates + g * call.inner, g == 2 ? dhn : d[g]);
  }
  write<T, V>(call.grad_state, spot.state, C == Cell::gru ? grad_h : grad_c);
}

}  // namespace genimg_fast::cuda::recurrent
