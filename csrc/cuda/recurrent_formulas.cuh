#pragma once
// The formulas of the recurrent cells, for one step of one hidden unit.
#include "common.cuh"
#include "math/gaussian.h"
#include "recurrent_cell.h"

namespace genimg_fast::cuda {

__device__ __forceinline__ float hyperbolic_tangent(float x) { return tanhf(x); }
__device__ __forceinline__ double hyperbolic_tangent(double x) { return tanh(x); }

template <class A>
__device__ __forceinline__ A logistic(A x) {
  return A(1) / (A(1) + exponential(-x));
}

// What kernels need of a cell, as constants: nvcc does not let them call host functions.
template <Cell C>
constexpr int kGates = gate_count(C);
template <Cell C>  // values of a hidden unit and step that backward reads: the reserve, or the output where there is
                   // none
constexpr int kSaved = reserve_count(C) > 0 ? reserve_count(C) : 1;
template <Cell C>  // whether more is kept between steps than the rounded state
constexpr bool kKeeps = C == Cell::gru || C == Cell::lstm;

// One step of a hidden unit, from its gates' two parts.  kept: the state of a GRU, the cell state of an LSTM.
template <Cell C, class A>
__device__ __forceinline__ A advance(const A (&x)[kGates<C>], const A (&h)[kGates<C>], A& kept, A (&saved)[kSaved<C>]) {
  if constexpr (C == Cell::rnn_tanh) {
    saved[0] = hyperbolic_tangent(x[0] + h[0]);
    return saved[0];
  } else if constexpr (C == Cell::rnn_relu) {
    const A sum = x[0] + h[0];
    saved[0] = sum <= A(0) ? A(0) : sum;  // NaN passes
    return saved[0];
  } else if constexpr (C == Cell::gru) {
    const A r = logistic(x[0] + h[0]), z = logistic(x[1] + h[1]);
    const A n = hyperbolic_tangent(multiply_add(r, h[2], x[2]));
    saved[0] = r;
    saved[1] = z;
    saved[2] = n;
    saved[3] = h[2];
    kept = multiply_add(z, kept - n, n);
    return kept;
  } else {
    const A i = logistic(x[0] + h[0]), f = logistic(x[1] + h[1]);
    const A g = hyperbolic_tangent(x[2] + h[2]), o = logistic(x[3] + h[3]);
    kept = multiply_add(f, kept, i * g);
    saved[0] = i;
    saved[1] = f;
    saved[2] = g;
    saved[3] = o;
    saved[4] = kept;
    return o * hyperbolic_tangent(kept);
  }
}

// Gradients at the gates before their activations, d, and for GRU at hn; returns what reaches the state before other
// than through the gates.  before: the state of a GRU, or the cell state of an LSTM, before the step; dc: the gradient
// at the cell state, after the step and then before it.
template <Cell C, class A>
__device__ __forceinline__ A retreat(const A (&saved)[kSaved<C>], A before, A dh, A& dc, A (&d)[kGates<C>], A& dhn) {
  if constexpr (C == Cell::rnn_tanh) {
    d[0] = dh * multiply_add(-saved[0], saved[0], A(1));
    return A(0);
  } else if constexpr (C == Cell::rnn_relu) {
    d[0] = saved[0] <= A(0) ? A(0) : dh;
    return A(0);
  } else if constexpr (C == Cell::gru) {
    const A r = saved[0], z = saved[1], n = saved[2], hn = saved[3];
    d[2] = dh * (A(1) - z) * multiply_add(-n, n, A(1));
    d[0] = d[2] * hn * (r * (A(1) - r));
    d[1] = dh * (before - n) * (z * (A(1) - z));
    dhn = d[2] * r;
    return dh * z;
  } else {
    const A i = saved[0], f = saved[1], g = saved[2], o = saved[3], tanh_c = hyperbolic_tangent(saved[4]);
    const A at_c = multiply_add(dh * o, multiply_add(-tanh_c, tanh_c, A(1)), dc);
    d[0] = at_c * g * (i * (A(1) - i));
    d[1] = at_c * before * (f * (A(1) - f));
    d[2] = at_c * i * multiply_add(-g, g, A(1));
    d[3] = dh * tanh_c * (o * (A(1) - o));
    dc = at_c * f;
    return A(0);
  }
}

}  // namespace genimg_fast::cuda
