#pragma once
// What the normalisations share of their activations.
#include "reductions.cuh"

namespace genimg_fast::cuda {

enum : int { kIdentity, kRelu, kLeakyRelu, kSilu };

// 16-bit data, T, have no digit that the fast functions would spoil.
template <class T>
__device__ __forceinline__ float logistic(float v) {
  return __fdividef(1.0f, 1.0f + (sizeof(T) == 2 ? __expf(-v) : expf(-v)));
}
template <class T>
__device__ __forceinline__ double logistic(double v) {
  return 1 / (1 + exp(-v));
}

template <class T, class Acc>
__device__ __forceinline__ Acc silu(Acc v) {
  return v * logistic<T>(v);
}
template <class T, class Acc>
__device__ __forceinline__ Acc silu_derivative(Acc v) {
  const Acc s = logistic<T>(v);
  return s * multiply_add(v, Acc(1) - s, Acc(1));
}

}  // namespace genimg_fast::cuda
