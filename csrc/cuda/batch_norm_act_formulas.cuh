#pragma once
// The maths of batch_norm_act, y = activation((x - mean) * scale + bias + residual) with scale = weight / std, that
// forward and backward share, and their arguments.
#include "activation.cuh"
#include "batch_norm_act_reductions.cuh"

namespace genimg_fast::cuda::batch_norm {

// The activation as a template parameter: kRelu, kLeakyRelu (identity with slope 1), kSilu, or kSelect, which is relu
// or leaky_relu by run-time data, for kernels that gain nothing from instances of their own.
constexpr int kSelect = -1;

template <class Acc>
struct ActivationOf {
  Acc slope;  // of leaky_relu
  int kind;
};

// relu is not leaky_relu with slope 0, which turns infinities into NaN.
template <class T, int Activation, class Acc>
__device__ __forceinline__ Acc activate(const ActivationOf<Acc>& activation, Acc v) {
  if constexpr (Activation == kSilu) return silu<T>(v);
  if constexpr (Activation == kRelu) return v <= 0 ? Acc(0) : v;
  if constexpr (Activation == kLeakyRelu) return v > 0 ? v : v * activation.slope;
  if constexpr (Activation == kSelect) {
    return activation.kind == kRelu ? activate<T, kRelu>(activation, v) : activate<T, kLeakyRelu>(activation, v);
  }
}

// The gradient behind the activation, whose input was v.
template <class T, int Activation, class Acc>
__device__ __forceinline__ Acc through_activation(const ActivationOf<Acc>& activation, Acc v, Acc grad) {
  if constexpr (Activation == kSilu) return grad * silu_derivative<T>(v);
  if constexpr (Activation == kRelu) return v <= 0 ? Acc(0) : grad;
  if constexpr (Activation == kLeakyRelu) return v > 0 ? grad : grad * activation.slope;
  if constexpr (Activation == kSelect) {
    return activation.kind == kRelu ? through_activation<T, kRelu>(activation, v, grad)
                                    : through_activation<T, kLeakyRelu>(activation, v, grad);
  }
}

template <class T>
struct ForwardArguments {
  using Acc = Accumulator<T>;
  const T* input;
  const T* residual;
  T* output;
  PerChannel<T> weight;
  PerChannel<T> bias;
  Acc* mean;
  Acc* invstd;
  PerChannel<T> running_mean;
  PerChannel<T> running_var;
  Acc momentum;
  double eps;
  Acc unbiased;  // count / (count - 1)
  ActivationOf<Acc> activation;
  bool training;
  bool stream;  // the output is too large to be found in the cache again
};

template <class T>
struct BackwardArguments {
  using Acc = Accumulator<T>;
  const T* grad_output;
  const T* input;
  const T* residual;
  T* grad_input;
  T* grad_residual;
  PerChannel<T> weight;
  PerChannel<T> bias;
  const Acc* mean;
  const Acc* invstd;
  Acc* grad_weight;
  Acc* grad_bias;
  Acc inverse_count;
  ActivationOf<Acc> activation;
  bool stream;  // likewise, grad_input
};

// What the elements of a channel are computed with: one value per channel, made once in a block.  x_scale and offset
// are the input gradient's, dx = g' * scale + (x - mean) * x_scale + offset.
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

// Those of the channels of one part of a thread's accesses.  With one channel they stay in registers; with more of
// them the registers are worth more, and every chunk reads them again.
template <class Acc, int N, int V, int A>
struct ChannelValues {
  static constexpr int kChannels = A == 1 ? 1 : kPart<V>;
  Acc values[N][kChannels];

  __device__ __forceinline__ void read(const ChannelTable<Acc, N>& table, int local) {
    if constexpr (A == 1) {
#pragma unroll
      for (int i = 0; i < N; ++i) values[i][0] = table.values[i][local];
    }
  }
  __device__ __forceinline__ void read_part(const ChannelTable<Acc, N>& table, int local, int part) {
    if constexpr (A > 1) {
      if (part == 0) gpu::forget_memory();
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const uint4 four = gpu::load_128(&table.values[i][local + part * kChannels]);
        memcpy(values[i], &four, sizeof four);
      }
    }
  }
  __device__ __forceinline__ Acc get(int value, int j) const { return values[value][A == 1 ? 0 : j]; }

  // centred() and preactivation() are the only place that computes the activation's input, with explicit roundings:
  // backward must arrive at the very sign that forward saw.
  __device__ __forceinline__ Acc centred(Acc x, int j) const { return x - get(kMean, j); }
  __device__ __forceinline__ Acc preactivation(Acc centred, int j) const {
    return multiply_add(centred, get(kScale, j), get(kBias, j));
  }
  __device__ __forceinline__ Acc input_gradient(Acc grad, Acc centred, int j) const {
    return multiply_add(grad, get(kScale, j), multiply_add(centred, get(kXScale, j), get(kOffset, j)));
  }
};

template <class T>
__device__ __forceinline__ Accumulator<T> read_or(const PerChannel<T>& values, int channel, Accumulator<T> other) {
  return values ? values.read(channel) : other;
}

}  // namespace genimg_fast::cuda::batch_norm
