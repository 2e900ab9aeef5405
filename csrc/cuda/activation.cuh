#pragma once
// The activations of the normalisations.  Which one it is differs between calls, not between threads.
#include "reductions.cuh"

namespace genimg_fast::cuda {

enum : int { kIdentity, kRelu, kLeakyRelu, kSilu };

// 16-bit data have no digit that the fast functions would spoil.
template <class T>
__device__ __forceinline__ float logistic(float v) {
  return __fdividef(1.0f, 1.0f + (sizeof(T) == 2 ? __expf(-v) : expf(-v)));
}
template <class T>
__device__ __forceinline__ double logistic(double v) {
  return 1 / (1 + exp(-v));
}

// The exponential of SiLU is many instructions and takes registers: kernels either are compiled for it apart (Silu), so
// that it costs the others nothing, or branch once per access.
template <class Acc>
struct ActivationOf {
  int kind;
  Acc slope;  // of leaky_relu; 1 for the identity, which is a leaky_relu, too

  template <class T, bool Silu, int V>
  __device__ __forceinline__ void apply_as(Acc (&v)[V]) const {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      if constexpr (Silu) {
        v[j] *= logistic<T>(v[j]);
      } else {
        v[j] = by_sign(v[j], v[j]);
      }
    }
  }

  // Turns the gradients behind the activation into those before it, v being what it was applied to.
  template <class T, bool Silu, int V>
  __device__ __forceinline__ void differentiate_as(const Acc (&v)[V], Acc (&grad)[V]) const {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      if constexpr (Silu) {
        const Acc s = logistic<T>(v[j]);
        grad[j] *= s * multiply_add(v[j], Acc(1) - s, Acc(1));
      } else {
        grad[j] = by_sign(v[j], grad[j]);
      }
    }
  }

  template <class T, int V>
  __device__ __forceinline__ void apply(Acc (&v)[V]) const {
    if (kind == kSilu) {
      apply_as<T, true>(v);
    } else {
      apply_as<T, false>(v);
    }
  }
  template <class T, int V>
  __device__ __forceinline__ void differentiate(const Acc (&v)[V], Acc (&grad)[V]) const {
    if (kind == kSilu) {
      differentiate_as<T, true>(v, grad);
    } else {
      differentiate_as<T, false>(v, grad);
    }
  }

 private:
  // `passed` where v is on the positive side, else what the other side makes of it.  relu is not leaky_relu with slope
  // 0, which turns infinities into NaN.
  __device__ __forceinline__ Acc by_sign(Acc v, Acc passed) const {
    const bool relu = kind == kRelu, positive = relu ? !(v <= 0) : v > 0;
    return positive ? passed : relu ? Acc(0) : passed * slope;
  }
};

template <class Acc>
ActivationOf<Acc> activation_of(int kind, double negative_slope) {
  return {kind, kind == kLeakyRelu ? static_cast<Acc>(negative_slope) : Acc(1)};
}

}  // namespace genimg_fast::cuda
