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
    return spot<A>(n, static_cast<int>(row - n * channels));
  }
  template <int A>
  __device__ __forceinline__ Spot<A> spot(int64_t sample, int channel) const {
    Spot<A> spot;
    spot.row = sample * channels + channel;
    spot.channel = channel;
#pragma unroll
    for (int j = 0; j < A; ++j) spot.group[j] = sample * groups + by_group_channels(channel + j);
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

template <class Acc>
__device__ __forceinline__ Coefficients<Acc> coefficients(Acc u, Acc b, Acc mean, Acc invstd) {
  return {mean, invstd * u, b};
}
template <class T>
__device__ __forceinline__ Coefficients<Accumulator<T>> coefficients(const Parameters<T>& parameters, int channel,
                                                                     int64_t row, Accumulator<T> mean,
                                                                     Accumulator<T> invstd) {
  return coefficients(parameters.u(channel, row), parameters.b(channel, row), mean, invstd);
}

// What the elements of a channel are computed with; the last two are of the input gradient,
// dx = a * g' + p + (x - mean) * q.
enum : int { kMean, kA, kB, kP, kQ };

template <class T, int N>
__device__ __forceinline__ void set_coefficients(const Parameters<T>& parameters, const Spot<1>& spot,
                                                 Accumulator<T> mean, Accumulator<T> invstd,
                                                 Accumulator<T> (&values)[N]) {
  const auto k = coefficients(parameters, spot.channel, spot.row, mean, invstd);
  values[kMean] = k.mean;
  values[kA] = k.a;
  values[kB] = k.b;
}

// The N values of a thread's channels.  In Rows it has one channel, and they stay in registers.  In Columns they are in
// shared memory, made once for the block's tile: a thread has V channels, its registers are worth more than reading
// them again, for P elements of an access, with every chunk.
template <class T, int V, class Layout, int N, int P_ = kPart<V, Layout>>
struct Channels {
  using Acc = Accumulator<T>;
  static constexpr int P = P_, A = Layout::columns ? P : 1;
  Acc values[N][A];
  const Acc* table;  // of each P channels of the tile their N values, value by value; from the thread's first on

  // Calls value(spot, values) for the channels that the thread needs, or in Columns for the block's, and returns the
  // thread's walk.  All threads of the block take part.
  template <class Value>
  __device__ __forceinline__ Walk make(const Layout& layout, const Sizes& sizes, unsigned block, Value value) {
    if constexpr (Layout::columns) {
      DYN_SHARED(Acc, shared);
      const int tile = layout.tile_of(block), held = layout.accesses(tile) * V;
      const int64_t sample = layout.sample_of(block);
      for (int k = threadIdx.x; k < held; k += kThreads) {
        Acc made[N];
        value(sizes.template spot<1>(sample, layout.first_access(tile) * V + k), made);
#pragma unroll
        for (int i = 0; i < N; ++i) shared[(k / P * N + i) * P + k % P] = made[i];
      }
      __syncthreads();
      table = shared + threadIdx.x % layout.width * (V * N);
    }
    const Walk walk = layout.template walk<V>(block, threadIdx.x);
    if constexpr (!Layout::columns) {
      Acc made[N];
      if (walk.left > 0) value(sizes.template spot<1>(walk.row), made);
#pragma unroll
      for (int i = 0; i < N; ++i) values[i][0] = made[i];
    }
    return walk;
  }
  __device__ __forceinline__ void read(int part) {
    if constexpr (Layout::columns) {
      gpu::forget_memory();
#pragma unroll
      for (int i = 0; i < N; ++i) {
        const Acc* const from = table + (part * N + i) * P;
        if constexpr (P == 4) {
          const uint4 four = gpu::load_128(from);
          memcpy(values[i], &four, sizeof four);
        } else if constexpr (P == 2) {
          const auto two = *reinterpret_cast<const typename PairOf<Acc>::type*>(from);
          memcpy(values[i], &two, sizeof two);
        } else {
          values[i][0] = *from;
        }
      }
    }
  }
  __device__ __forceinline__ Acc get(int value, int j) const { return values[value][A == 1 ? 0 : j]; }

  // With coefficients() the only place that computes the activation's input, with explicit roundings: backward must
  // arrive at the very sign that forward saw.
  __device__ __forceinline__ Acc centred(Acc x, int j) const { return x - get(kMean, j); }
  __device__ __forceinline__ Acc preactivation(Acc centred, int j) const {
    return multiply_add(centred, get(kA, j), get(kB, j));
  }
};

// The activation as a template parameter: kRelu, kLeakyRelu (also identity, with slope 1), kSilu; or kAny, which is the
// call's, for kernels that gain nothing from instances of their own.
constexpr int kAny = -1;

template <class Acc>
struct Activation {
  int kind;
  Acc slope;

  // relu is not leaky_relu with slope 0, which turns infinities into NaN.
  template <class T, int Kind, int V>
  __device__ __forceinline__ void apply(Acc (&v)[V]) const {
    if constexpr (Kind == kAny) {
      if (kind == kRelu) return apply<T, kRelu>(v);
      if (kind == kSilu) return apply<T, kSilu>(v);
      return apply<T, kLeakyRelu>(v);
    }
#pragma unroll
    for (int j = 0; j < V; ++j) {
      if constexpr (Kind == kRelu) v[j] = v[j] <= 0 ? Acc(0) : v[j];
      if constexpr (Kind == kLeakyRelu) v[j] = v[j] > 0 ? v[j] : v[j] * slope;
      if constexpr (Kind == kSilu) v[j] = silu<T>(v[j]);
    }
  }

  // Turns the gradients behind the activation into those before it.
  template <class T, int Kind, int V>
  __device__ __forceinline__ void differentiate(const Acc (&v)[V], Acc (&grad)[V]) const {
    if constexpr (Kind == kAny) {
      if (kind == kRelu) return differentiate<T, kRelu>(v, grad);
      if (kind == kSilu) return differentiate<T, kSilu>(v, grad);
      return differentiate<T, kLeakyRelu>(v, grad);
    }
#pragma unroll
    for (int j = 0; j < V; ++j) {
      if constexpr (Kind == kRelu) grad[j] = v[j] <= 0 ? Acc(0) : grad[j];
      if constexpr (Kind == kLeakyRelu) grad[j] = v[j] > 0 ? grad[j] : grad[j] * slope;
      if constexpr (Kind == kSilu) grad[j] *= silu_derivative<T>(v[j]);
    }
  }
};

// Arguments.

template <class T>
struct Statistics {
  using Acc = Accumulator<T>;
  Sizes sizes;
  const T* input;
  Acc* mean;
  Acc* invstd;
  Acc eps;
};

template <class T, class Y>
struct ForwardArguments : Statistics<T> {
  const Y* residual;
  Y* output;
  Parameters<T> parameters;
  Activation<Accumulator<T>> activation;
};

// Of backward, what is smaller than the data.
template <class T>
struct SmallGradients {
  using Acc = Accumulator<T>;
  Sizes sizes;
  Parameters<T> parameters;
  const Acc* mean;
  const Acc* invstd;
  Acc* grad_weight;
  Acc* grad_bias;
  Acc* grad_scale;
  Acc* grad_shift;
  Acc inverse_count;  // of the elements of a group
};

template <class T, class Y>
struct BackwardArguments : SmallGradients<T> {
  const Y* grad_output;
  const T* input;
  const Y* residual;
  T* grad_input;
  Y* grad_residual;
  Activation<Accumulator<T>> activation;
};

// Partial results of a block's threads.

// Sums in which a thread gathers an access: one for each channel, or of one channel as many as hide an addition's time.
template <int V, int A>
constexpr int kSums = A == 1 && V > 4 ? 4 : V;

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
  const int thread = gpu::opaque(static_cast<int>(threadIdx.x)), channels = layout.width * V;
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
