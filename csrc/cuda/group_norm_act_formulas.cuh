#pragma once
// The maths of group_norm_act that forward and backward share, and their arguments.  With
//   u = weight * (1 + scale), a = invstd * u, b = bias * (1 + scale) + shift
// of a channel of a sample, the output is activation(v), v = (x - mean) * a + b + residual.
#include "activation.cuh"
#include "group_norm_act_layout.cuh"

namespace genimg_fast::cuda::group_norm {

// Where a thread's A neighbouring channels are: of one sample, but perhaps of several groups.
template <int A>
struct Spot {
  int64_t row;  // of the first: sample * channels + channel
  int channel;
  int64_t group[A];  // sample * groups + group
};

// Sizes that every kernel needs.
struct Sizes {
  int64_t groups_in_all, rows_in_all;  // of all samples: groups, and channels
  int channels, groups, group_channels;
  Divider by_group_channels;
  int64_t sample, group_step;  // elements from one sample, and inside it from one group's first element, to the next

  // The group's first element, about which moments are taken: where the mean is large beside the standard deviation,
  // float could not hold the mean of a few elements well enough to merge it with another.
  __device__ __forceinline__ int64_t origin(int64_t group) const {
    const int64_t n = divide(group, groups);
    return n * sample + (group - n * groups) * group_step;
  }
  template <int A>
  __device__ __forceinline__ Spot<A> spot(int64_t row) const {
    const int64_t n = divide(row, channels);
    Spot<A> spot;
    spot.row = row;
    spot.channel = static_cast<int>(row - n * channels);
#pragma unroll
    for (int j = 0; j < A; ++j) spot.group[j] = n * groups + by_group_channels(spot.channel + j);
    return spot;
  }
};

template <class T>
struct Parameters {
  using Acc = Accumulator<T>;
  PerChannel<T> weight, bias;  // by channel
  PerChannel<T> scale, shift;  // by row: sample * channels + channel

  __device__ __forceinline__ Acc weight_of(int channel) const { return weight ? weight.read(channel) : Acc(1); }
  __device__ __forceinline__ Acc bias_of(int channel) const { return bias ? bias.read(channel) : Acc(0); }
  __device__ __forceinline__ Acc gain_of(int64_t row) const { return scale ? Acc(1) + scale.read(row) : Acc(1); }
  __device__ __forceinline__ Acc u(int channel, int64_t row) const { return weight_of(channel) * gain_of(row); }
  // The only place that computes b, and with coefficients() and preactivation() the only one that arrives at v:
  // backward must see the very sign that forward saw.
  __device__ __forceinline__ Acc b(int channel, int64_t row) const {
    const Acc from_scale = bias ? bias.read(channel) * gain_of(row) : Acc(0);  // not 0 * infinity
    return shift ? from_scale + shift.read(row) : from_scale;
  }
};

template <class Acc>
struct Coefficients {
  Acc mean, a, b;

  __device__ __forceinline__ Acc preactivation(Acc centred) const { return multiply_add(centred, a, b); }
};

template <class T>
__device__ __forceinline__ Coefficients<Accumulator<T>> coefficients(const Parameters<T>& parameters, int channel,
                                                                     int64_t row, Accumulator<T> mean,
                                                                     Accumulator<T> invstd) {
  return {mean, invstd * parameters.u(channel, row), parameters.b(channel, row)};
}

template <class T, int A>
__device__ __forceinline__ void load_coefficients(const Parameters<T>& parameters, const Accumulator<T>* means,
                                                  const Accumulator<T>* invstds, const Spot<A>& spot,
                                                  Coefficients<Accumulator<T>> (&of)[A]) {
#pragma unroll
  for (int j = 0; j < A; ++j) {
    of[j] = coefficients(parameters, spot.channel + j, spot.row + j, __ldg(means + spot.group[j]),
                         __ldg(invstds + spot.group[j]));
  }
}

// The activation.  Which one it is differs between calls, not between threads: the choice is made per access.
template <class Acc>
struct Activation {
  int kind;
  Acc slope;

  template <class T, int V>
  __device__ __forceinline__ void apply(Acc (&v)[V]) const {
    if (kind == kIdentity) return;
    if (kind == kRelu) {
#pragma unroll
      for (int j = 0; j < V; ++j) v[j] = v[j] <= 0 ? Acc(0) : v[j];
    } else if (kind == kLeakyRelu) {
#pragma unroll
      for (int j = 0; j < V; ++j) v[j] = v[j] > 0 ? v[j] : v[j] * slope;
    } else {
#pragma unroll
      for (int j = 0; j < V; ++j) v[j] = silu<T>(v[j]);
    }
  }

  // Turns the gradients behind the activation into those before it.
  template <class T, int V>
  __device__ __forceinline__ void differentiate(const Acc (&v)[V], Acc (&grad)[V]) const {
    if (kind == kIdentity) return;
    if (kind == kRelu) {
#pragma unroll
      for (int j = 0; j < V; ++j) grad[j] = v[j] <= 0 ? Acc(0) : grad[j];
    } else if (kind == kLeakyRelu) {
#pragma unroll
      for (int j = 0; j < V; ++j) grad[j] = v[j] > 0 ? grad[j] : grad[j] * slope;
    } else {
#pragma unroll
      for (int j = 0; j < V; ++j) grad[j] *= silu_derivative<T>(v[j]);
    }
  }
};

// Arguments.

template <class T>
struct ForwardArguments {
  using Acc = Accumulator<T>;
  Sizes sizes;
  const T* input;
  const T* residual;
  T* output;
  Parameters<T> parameters;
  Acc* mean;
  Acc* invstd;
  Acc eps;
  Activation<Acc> activation;
};

template <class T>
struct BackwardArguments {
  using Acc = Accumulator<T>;
  Sizes sizes;
  const T* grad_output;
  const T* input;
  const T* residual;
  T* grad_input;
  T* grad_residual;
  Parameters<T> parameters;
  const Acc* mean;
  const Acc* invstd;
  Acc* grad_weight;
  Acc* grad_bias;
  Acc* grad_scale;
  Acc* grad_shift;
  Acc inverse_count;  // of the elements of a group
  Activation<Acc> activation;
};

// Partial results of a block's threads.

// Combines the partial results of each team; its first thread has the result.
template <class Combine, class Acc>
__device__ __forceinline__ Partial<Acc> combine_team(int team, Partial<Acc> mine) {
  SHARED(Partial<Acc>, warps, [kThreads / 32]);
  const int thread = threadIdx.x;
  for (int lane_mask = min(team, 32) / 2; lane_mask > 0; lane_mask /= 2) {
    mine = combine_with_lane<Combine>(mine, lane_mask);
  }
  if (team > 32) {
    if (thread % 32 == 0) warps[thread / 32] = mine;
    __syncthreads();
    if (thread % team == 0) {
      for (int warp = 1; warp < team / 32; ++warp) mine = Combine::combine(mine, warps[thread / 32 + warp]);
    }
  }
  return mine;
}

// Combines what the threads of each column found: the result of the tile's channel k is in [k] of what is returned, for
// all threads to read.
template <class Combine, int V, class Acc>
__device__ __forceinline__ const Partial<Acc>* combine_columns(const Columns& layout, const Partial<Acc> (&mine)[V]) {
  SHARED(Partial<Acc>, partials, [kThreads * V]);
  const int thread = threadIdx.x, channels = layout.width * V;
  if (thread < layout.width * layout.height) {
#pragma unroll
    for (int j = 0; j < V; ++j) partials[thread * V + j] = mine[j];
  }
  __syncthreads();
  // First all threads, each of them one part of the lines of one channel (or several channels, if there are too many);
  // then a thread for each channel.  Nobody else reads the place where a thread leaves its result before the barrier.
  const int parts = max(1, kThreads / channels), part = channels < kThreads ? thread / channels : 0;
  const int first = channels < kThreads ? thread % channels : thread;
  if (part < min(parts, layout.height)) {
    for (int k = first; k < channels; k += kThreads) {
      Partial<Acc> sum = partials[part * channels + k];
      for (int line = part + parts; line < layout.height; line += parts) {
        sum = Combine::combine(sum, partials[line * channels + k]);
      }
      partials[part * channels + k] = sum;
    }
  }
  __syncthreads();
  if (thread < channels) {
    for (int p = 1; p < min(parts, layout.height); ++p) {
      partials[thread] = Combine::combine(partials[thread], partials[p * channels + thread]);
    }
  }
  __syncthreads();
  return partials;
}

// Combines what combine_columns has left, by group: calls result(k, combined) for group k of the tile, or for the part
// of a group that the tile is, in one thread.
template <class Combine, int V, class Acc, class Result>
__device__ __forceinline__ void combine_groups(const Columns& layout, int group_channels, const Partial<Acc>* channels,
                                               Result result) {
  const int held = layout.accesses(layout.tile_of(blockIdx.x)) * V, span = min(held, group_channels);
  const int lane = threadIdx.x % 32;
  for (int k = threadIdx.x / 32; k * span < held; k += kThreads / 32) {
    Partial<Acc> sum{0, 0, 0};
    for (int c = lane; c < span; c += 32) sum = Combine::combine(sum, channels[k * span + c]);
    for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) sum = combine_with_lane<Combine>(sum, lane_mask);
    if (lane == 0) result(k, sum);
  }
}

}  // namespace genimg_fast::cuda::group_norm
