#pragma once
#include "batch_norm_act_formulas.cuh"
namespace genimg_fast::cuda {
template <class T, int Activation, class Acc>
__device__ __forceinline__ Acc activate(const ActivationOf<Acc>& activation, Acc v) {
  if constexpr (Activation == kSilu) return silu<T>(v);
  if constexpr (Activation == kRelu) return v <= 0 ? Acc(0) : v;
  if constexpr (Activation == kLeakyRelu) return v > 0 ? v : v * activation.slope;
}
template <class T, int Activation, class Acc>
__device__ __forceinline__ Acc through_activation(const ActivationOf<Acc>& activation, Acc v, Acc grad) {
  if constexpr (Activation == kSilu) return grad * silu_derivative<T>(v);
  if constexpr (Activation == kRelu) return v <= 0 ? Acc(0) : grad;
  if constexpr (Activation == kLeakyRelu) return v > 0 ? grad : grad * activation.slope;
}
enum : int { kMean, kScale, kBias, kXScale, kOffset };
template <class Acc, int N>
struct alignas(16) ChannelTable {
  Acc values[N][kMaxGroup];
  __device__ __forceinline__ void set_affine(int k, Acc mean, Acc invstd, Acc weight, Acc bias) {
    values[kMean][k] = mean;
    values[kScale][k] = invstd * weight;
    values[kBias][k] = bias;
  }
};
template <class Acc, int N, int A>
struct ChannelValues {
  Acc values[N][A];
  __device__ __forceinline__ void read(const ChannelTable<Acc, N>& table, int local) {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if constexpr (A == 1) {
        values[i][0] = table.values[i][local];
      } else {
#pragma unroll
        for (int j = 0; j < A; j += 4) {
          const uint4 four = gpu::load_128(&table.values[i][local + j]);
          memcpy(&values[i][j], &four, sizeof four);
        }
      }
    }
  }
  __device__ __forceinline__ Acc get(int value, int j) const { return values[value][A == 1 ? 0 : j]; }
  __device__ __forceinline__ Acc centred(Acc x, int j) const { return x - get(kMean, j); }
  __device__ __forceinline__ Acc preactivation(Acc centred, int j) const {
    return multiply_add(centred, get(kScale, j), get(kBias, j));
  }
  __device__ __forceinline__ Acc input_gradient(Acc grad, Acc centred, int j) const {
    return multiply_add(grad, get(kScale, j), multiply_add(centred, get(kXScale, j), get(kOffset, j)));
  }
};
template <class T>
__device__ __forceinline__ Accumulator<T> read_or(const PerChannel<T>& values, int64_t channel, Accumulator<T> other) {
  return values ? values.read(channel) : other;
}
}
