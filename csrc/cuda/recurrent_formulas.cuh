#pragma once
// The formulas of the recurrent cells, for one step of one hidden unit.
#include "common.cuh"
#include "math/gaussian.h"
#include "recurrent_cell.h"

namespace genimg_fast::cuda::recurrent {

// Activations beside data of type T.  Results that are rounded to 16 bits are made to little more than that.
template <class T>
struct Activations {
  static __device__ __forceinline__ float hyperbolic_tangent(float x) { return tanhf(x); }
  static __device__ __forceinline__ double hyperbolic_tangent(double x) { return tanh(x); }
  // 1 / (1 + exp(-x)), with a divisor in [1, 2]: Newton's step would make NaN of an infinite one.
  static __device__ __forceinline__ float logistic(float x) {
    const float e = exponential(-fabsf(x)), divisor = 1.0f + e, guess = gpu::reciprocal_approx(divisor);
    const float reciprocal = multiply_add(guess, multiply_add(-divisor, guess, 1.0f), guess);
    return x >= 0.0f ? reciprocal : e * reciprocal;
  }
  static __device__ __forceinline__ double logistic(double x) { return 1.0 / (1.0 + exponential(-x)); }
};

template <>
struct Activations<__nv_bfloat16> {  // to 2^-11
  static __device__ __forceinline__ float hyperbolic_tangent(float x) { return gpu::tanh_approx(x); }
  static __device__ __forceinline__ float logistic(float x) {
    return multiply_add(gpu::tanh_approx(0.5f * x), 0.5f, 0.5f);
  }
};

template <>
struct Activations<__half> {  // to 2^-22
  static constexpr float log2_e = 0x1.715476p+0f;
  static __device__ __forceinline__ float hyperbolic_tangent(float x) {
    return multiply_add(gpu::reciprocal_approx(1.0f + gpu::exp2_approx(x * (2 * log2_e))), -2.0f, 1.0f);
  }
  static __device__ __forceinline__ float logistic(float x) {
    return gpu::reciprocal_approx(1.0f + gpu::exp2_approx(x * -log2_e));
  }
};

// What kernels need of a cell, as constants: nvcc does not let them call host functions.
template <Cell C>
constexpr int kGates = gate_count(C);
template <Cell C>  // values of a hidden unit and step that backward reads: the reserve, or the output where there is
                   // none
constexpr int kSaved = reserve_count(C) > 0 ? reserve_count(C) : 1;
template <Cell C>  // whether more is kept between steps than the rounded state
constexpr bool kKeeps = C == Cell::gru || C == Cell::lstm;

// One step of a hidden unit, beside data of type T, from its gates: both parts' sums, but of GRU's n the input's alone,
// beside the state's, hn.  kept: the state of a GRU, the cell state of an LSTM.
template <Cell C, class T, class A>
__device__ __forceinline__ A advance(const A (&gates)[kGates<C>], A hn, A& kept, A (&saved)[kSaved<C>]) {
  using F = Activations<T>;
  if constexpr (C == Cell::rnn_tanh) {
    saved[0] = F::hyperbolic_tangent(gates[0]);
    return saved[0];
  } else if constexpr (C == Cell::rnn_relu) {
    saved[0] = gates[0] <= A(0) ? A(0) : gates[0];  // NaN passes
    return saved[0];
  } else if constexpr (C == Cell::gru) {
    const A r = F::logistic(gates[0]), z = F::logistic(gates[1]);
    const A n = F::hyperbolic_tangent(multiply_add(r, hn, gates[2]));
    saved[0] = r;
    saved[1] = z;
    saved[2] = n;
    saved[3] = hn;
    kept = multiply_add(z, kept - n, n);
    return kept;
  } else {
    const A i = F::logistic(gates[0]), f = F::logistic(gates[1]);
    const A g = F::hyperbolic_tangent(gates[2]), o = F::logistic(gates[3]);
    kept = multiply_add(f, kept, i * g);
    saved[0] = i;
    saved[1] = f;
    saved[2] = g;
    saved[3] = o;
    saved[4] = kept;
    return o * F::hyperbolic_tangent(kept);
  }
}

// Gradients at the gates before their activations, d, and for GRU at hn; returns what reaches the state before other
// than through the gates.  before: the state of a GRU, or the cell state of an LSTM, before the step; dc: the gradient
// at the cell state, after the step and then before it.
template <Cell C, class T, class A>
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
    const A i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    const A tanh_c = Activations<T>::hyperbolic_tangent(saved[4]);
    const A at_c = multiply_add(dh * o, multiply_add(-tanh_c, tanh_c, A(1)), dc);
    d[0] = at_c * g * (i * (A(1) - i));
    d[1] = at_c * before * (f * (A(1) - f));
    d[2] = at_c * i * multiply_add(-g, g, A(1));
    d[3] = dh * tanh_c * (o * (A(1) - o));
    dc = at_c * f;
    return A(0);
  }
}

}  // namespace genimg_fast::cuda::recurrent
