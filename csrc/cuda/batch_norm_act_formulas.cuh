#pragma once
// The maths of batch_norm_act, y = activation((x - mean) * invstd * weight + bias + residual), that forward and
// backward share, and their arguments.  The activation is run-time data: these kernels wait for memory.  But SiLU's
// exponential takes instructions and registers, which cost blocks that are resident: kernels that stream are compiled
// for it apart.  Those that hold their data on chip, whose registers are all given away already and which are most of
// the code, branch around it.
#include "activation.cuh"
#include "batch_norm_act_reductions.cuh"

namespace genimg_fast::cuda {

// identity is leaky_relu with slope 1; relu is not leaky_relu with slope 0, which turns infinities into NaN.
template <class Acc>
struct ActivationOf {
  Acc slope;
  bool relu;
  bool silu;  // neither of the others

  // But for SiLU: `passed` where the activation's input v is on the positive side, else what the other side makes of
  // it.  With passed = v this is the activation, with passed = gradient its derivative.
  __device__ __forceinline__ Acc operator()(Acc v, Acc passed) const {
    const bool positive = relu ? !(v <= 0) : v > 0;
    return positive ? passed : relu ? Acc(0) : passed * slope;
  }
};

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
  Acc momentum, eps;
  Acc unbiased;  // count / (count - 1)
  ActivationOf<Acc> activation;
  bool training;
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
};

// Parameters and statistics of a thread's A channels.  normalized() and preactivation() are the only place that
// computes the activation's input, with explicit roundings: backward must arrive at the very sign that forward saw.
template <class Acc, int A>
struct Affine {
  Acc mean[A], invstd[A], weight[A], bias[A];

  template <class T>
  __device__ __forceinline__ void load_parameters(const PerChannel<T>& weights, const PerChannel<T>& biases,
                                                  int64_t channel) {
#pragma unroll
    for (int j = 0; j < A; ++j) {
      weight[j] = weights ? weights.read(channel + j) : Acc(1);
      bias[j] = biases ? biases.read(channel + j) : Acc(0);
    }
  }
  __device__ __forceinline__ void load_statistics(const Acc* means, const Acc* invstds, int64_t channel) {
#pragma unroll
    for (int j = 0; j < A; ++j) {
      mean[j] = __ldg(means + channel + j);
      invstd[j] = __ldg(invstds + channel + j);
    }
  }
  template <class T>
  __device__ __forceinline__ void load_statistics(const PerChannel<T>& means, const PerChannel<T>& vars, Acc eps,
                                                  int64_t channel) {
#pragma unroll
    for (int j = 0; j < A; ++j) {
      mean[j] = means.read(channel + j);
      invstd[j] = Acc(1) / square_root(vars.read(channel + j) + eps);
    }
  }
  __device__ __forceinline__ void load_statistics(const Partial<Acc>* tile) {
#pragma unroll
    for (int j = 0; j < A; ++j) {
      mean[j] = tile[j].a;
      invstd[j] = tile[j].b;
    }
  }

  __device__ __forceinline__ Acc normalized(Acc x, int j) const {
    return (x - mean[A == 1 ? 0 : j]) * invstd[A == 1 ? 0 : j];
  }
  __device__ __forceinline__ Acc scale(int j) const { return invstd[A == 1 ? 0 : j] * weight[A == 1 ? 0 : j]; }
  __device__ __forceinline__ Acc preactivation(Acc normalized, int j) const {
    return multiply_add(normalized, weight[A == 1 ? 0 : j], bias[A == 1 ? 0 : j]);
  }
};

}  // namespace genimg_fast::cuda
