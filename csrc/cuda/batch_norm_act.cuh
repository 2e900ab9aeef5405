#pragma once
// Kernels of batch_norm_act: y = activation((x - mean) * invstd * weight + bias + residual), and its gradients.
//
// Three template parameters describe how a kernel reads: T, the element; V, elements per access (16 bytes, or 1 when
// sizes or addresses are odd); A, channels per access: 1, or V where channels are the fastest dimension.
// Everything else about the layout is run-time data in a Tiling.  The activation is too: these kernels wait for memory.
#include "common.cuh"

namespace genimg_fast::cuda {

constexpr int kThreads = 256;        // of the kernels that stream
constexpr int kOnChipThreads = 512;  // most of the kernels that hold their data on chip: 128 registers each
constexpr int kMaxGroup = 64;        // channels in a tile of a kernel that reduces
constexpr int kMaxPartials = 512;    // per-thread or per-warp partial results in one block
constexpr int64_t kMaxRun = (int64_t{1} << 32) - kOnChipThreads;

// Arithmetic.

__device__ __forceinline__ float square_root(float x) { return sqrtf(x); }
__device__ __forceinline__ double square_root(double x) { return sqrt(x); }
__device__ __forceinline__ float multiply_add(float x, float y, float z) { return fmaf(x, y, z); }
__device__ __forceinline__ double multiply_add(double x, double y, double z) { return fma(x, y, z); }
// Of counts: within 2 ulp, without the slow path that an exact quotient needs.
__device__ __forceinline__ float quotient(float x, float y) { return __fdividef(x, y); }
__device__ __forceinline__ double quotient(double x, double y) { return x / y; }

// Pairwise, in place; V is a power of two.
template <class Acc, int V>
__device__ __forceinline__ Acc sum_of(Acc (&values)[V]) {
#pragma unroll
  for (int half = V / 2; half > 0; half /= 2) {
#pragma unroll
    for (int j = 0; j < half; ++j) values[j] += values[j + half];
  }
  return values[0];
}

// Where a thread's elements are.

// A thread's way through its tile: `left` more accesses, the next one at element `offset` of the tensor.
struct Walk {
  int64_t offset;
  uint32_t at;  // the access's place in its contiguous run
  int left;
  int64_t channel;  // of the access's first element
  int local;        // the same, counted from the tile's first channel
};

// Cuts a tensor into tiles of `group` neighbouring channels and each tile into `slices`; one block works on one slice
// of one tile.  Inside it, one of two arrangements:
//   linear:  The tile is one channel.  Its accesses, run after run, are dealt out to the threads in turn.
//   columns: A row of `width` threads covers the tile's accesses at one outer index.  There are `rows` such rows, and
//            each thread steps down its own column, so it stays with its channel(s).
// Offsets are 64-bit: a tensor may have more than 2^31 elements.  A run has fewer than kMaxRun accesses and a thread
// fewer than 2^31, so these are 32-bit.
struct Tiling {
  int64_t channels;
  int64_t inner;      // elements in a contiguous run of one channel
  int64_t row;        // elements from one outer index to the next: channels * inner
  int64_t extent;     // what is sliced; linear: accesses of a channel, columns: outer indices
  int64_t slice;      // of them in a slice (fewer in the last)
  int64_t step;       // elements from one access of a thread to its next, if `at` stays inside the run,
  uint32_t step_run;  // what `at` grows by,
  uint32_t run;       // where the run ends,
  int64_t wrap;       // and what is added to `offset` when `at` gets there
  int slices;
  int group;
  int threads;
  int width;  // threads in a row
  int rows;
  int span;  // neighbouring threads that share a channel
  int team;  // threads that combine the results of one channel: a power of two, at most 32 and threads / group
  bool linear;

  __host__ __device__ int64_t tiles() const { return (channels + group - 1) / group; }
  __host__ __device__ int64_t begin(int index) const { return index * slice; }
  __host__ __device__ int64_t end(int index) const {
    const int64_t e = begin(index) + slice;
    return e < extent ? e : extent;
  }
  // Elements of one channel in a slice.
  template <int V>
  __host__ __device__ int64_t count(int index) const {
    return (end(index) - begin(index)) * (linear ? V : inner);
  }

  template <int V, int A>
  __host__ __device__ Walk walk(int64_t tile, int index, int thread) const {
    Walk w{0, 0, 0, 0, 0};
    int64_t outer, left, stride;
    if (linear) {
      const int64_t first = begin(index) + thread;
      if (((first | run) >> 31) == 0) {  // the 64-bit division is many times slower
        outer = static_cast<uint32_t>(first) / static_cast<uint32_t>(run);
      } else {
        outer = first / run;
      }
      w.at = static_cast<uint32_t>(first - outer * run);
      left = end(index) - first;
      stride = threads;
    } else {
      const int column = thread % width;
      w.local = A == 1 ? column / span : column * A;
      w.at = A == 1 ? column % span : 0;
      outer = begin(index) + thread / width;
      left = thread / width < rows ? end(index) - outer : 0;
      stride = rows;
    }
    w.channel = tile * group + w.local;
    if (left > 0 && w.channel < channels) w.left = static_cast<int>((left + stride - 1) / stride);
    w.offset = outer * row + w.channel * inner + static_cast<int64_t>(w.at) * V;
    return w;
  }

  __host__ __device__ __forceinline__ void advance(Walk& w) const {
    w.offset += step;
    w.at += step_run;
    if (w.at >= run) {
      w.at -= run;
      w.offset += wrap;
    }
  }
};

// Reserves the walk's next U accesses (fewer at its end); returns how many there are.
template <int U>
__device__ __forceinline__ int take(const Tiling& tiling, Walk& walk, int64_t (&offsets)[U]) {
  const int valid = walk.left < U ? walk.left : U;
#pragma unroll
  for (int u = 0; u < U; ++u) {
    if (u < valid) {
      offsets[u] = walk.offset;
      tiling.advance(walk);
    }
  }
  walk.left -= valid;
  return valid;
}

template <class T, int V, int U>
__device__ __forceinline__ void load_chunk(const T* p, const int64_t (&offsets)[U], int valid, Raw<T, V> (&raw)[U]) {
#pragma unroll
  for (int u = 0; u < U; ++u) {
    if (u < valid) raw[u] = load<T, V>(p + offsets[u]);
  }
}

// Accesses in flight per thread and tensor, as many as registers allow: of kernels that stream, with one tensor and
// with two or three; and beside what an on-chip kernel holds.
template <int V>
constexpr int kChunk = V == 1 ? 8 : 4;
template <int V>
constexpr int kGradientChunk = V == 1 ? 4 : 2;
template <int V, int A>
constexpr int kHeldChunk = A == 8 ? 2 : kChunk<V>;
template <int V, int A>
constexpr int kHeldGradientChunk = A == 8 ? 1 : kGradientChunk<V>;

// Accesses that a thread of an on-chip kernel holds in registers, by the number of tensors it holds; the others go to
// shared memory.
__host__ __device__ constexpr int kept_accesses(int held, int vector, int lanes) {
  if (vector == 1) return held == 1 ? 16 : 4;
  if (vector == 4) return held == 1 ? 12 : lanes > 1 ? 4 : 6;
  return held == 1 ? (lanes > 1 ? 10 : 12) : (lanes > 1 ? 3 : 4);
}

// Reductions.

// Moments: n values with mean a and sum of squared deviations b.  Sums: two sums, n is not used.
template <class Acc>
struct Partial {
  Acc n, a, b;
};

struct Moments {
  // Chan's merge.  An empty side adds nothing, whatever the other holds: no product of infinity and zero.
  template <class Acc>
  static __device__ __forceinline__ Partial<Acc> combine(const Partial<Acc>& l, const Partial<Acc>& r) {
    const Acc n = l.n + r.n;
    const Acc share = n > 0 ? quotient(r.n, n) : Acc(0);
    const Acc delta = r.a - l.a;
    return {n, multiply_add(delta, share, l.a), l.b + r.b + delta * (delta * (l.n * share))};
  }
};

struct Sums {
  template <class Acc>
  static __device__ __forceinline__ Partial<Acc> combine(const Partial<Acc>& l, const Partial<Acc>& r) {
    return {Acc(0), l.a + r.a, l.b + r.b};
  }
};

// Partial results of the A channels of one thread.
template <class Acc, int A>
struct Partials {
  Acc n, a[A], b[A];
};

template <class Combine, class Acc>
__device__ __forceinline__ Partial<Acc> combine_with_lane(const Partial<Acc>& mine, int lane_mask) {
  return Combine::combine(mine, Partial<Acc>{__shfl_xor_sync(0xffffffffu, mine.n, lane_mask),
                                             __shfl_xor_sync(0xffffffffu, mine.a, lane_mask),
                                             __shfl_xor_sync(0xffffffffu, mine.b, lane_mask)});
}

// The team of channel k is threads [k * team, (k + 1) * team); its members' partial results become total[k].
template <class Combine, class Acc>
__device__ __forceinline__ void combine_team(const Tiling& tiling, Partial<Acc> sum, Partial<Acc>* total) {
  for (int lane_mask = tiling.team / 2; lane_mask > 0; lane_mask /= 2) sum = combine_with_lane<Combine>(sum, lane_mask);
  const int k = threadIdx.x / tiling.team;
  if (k < tiling.group && threadIdx.x % tiling.team == 0) total[k] = sum;
  __syncthreads();
}

// Combines what the block's threads found, channel by channel and in a fixed order, into total[0, group), for all
// threads to read.
template <class Combine, int A, class Acc>
__device__ __forceinline__ void combine_block(const Tiling& tiling, Partials<Acc, A> mine, Partial<Acc>* total) {
  SHARED(Partial<Acc>, partials, [kMaxPartials]);
  const int thread = threadIdx.x, lane = thread % 32;
  int contributions;
  if (A > 1 || tiling.linear) {
    // The lanes of a warp whose numbers agree modulo `columns` have the same channels: fold them by shuffles first.
    const int columns = A > 1 ? tiling.width : 1;
    for (int lane_mask = 16; lane_mask >= columns; lane_mask /= 2) {
      const Acc n = mine.n;
#pragma unroll
      for (int j = 0; j < A; ++j) {
        const Partial<Acc> sum = combine_with_lane<Combine>(Partial<Acc>{n, mine.a[j], mine.b[j]}, lane_mask);
        mine.n = sum.n;
        mine.a[j] = sum.a;
        mine.b[j] = sum.b;
      }
    }
    if (lane < columns) {
#pragma unroll
      for (int j = 0; j < A; ++j) {
        partials[((thread / 32) * columns + lane) * A + j] = {mine.n, mine.a[j], mine.b[j]};
      }
    }
    contributions = tiling.threads / 32;
  } else {
    partials[thread] = {mine.n, mine.a[0], mine.b[0]};
    contributions = tiling.rows * tiling.span;
  }
  __syncthreads();
  const int k = thread / tiling.team;
  Partial<Acc> sum{0, 0, 0};
  if (k < tiling.group) {
    for (int j = thread % tiling.team; j < contributions; j += tiling.team) {
      const int from = A > 1 || tiling.linear ? j * tiling.group + k
                                              : (j / tiling.span) * tiling.width + k * tiling.span + j % tiling.span;
      sum = Combine::combine(sum, partials[from]);
    }
  }
  combine_team<Combine>(tiling, sum, total);
}

template <class Acc>
struct PairOf {
  using type = float2;
};
template <>
struct PairOf<double> {
  using type = double2;
};

// Where the blocks of a tile meet: slice s of channel c leaves its (a, b) in staged[c * slices + s] and counts itself
// in arrived[tile], which is zero at launch.
template <class Acc>
struct Meeting {
  typename PairOf<Acc>::type* staged;
  unsigned* arrived;
};

template <class Acc>
__device__ __forceinline__ void stage(const Tiling& tiling, const Meeting<Acc>& meeting, int64_t tile, int slice,
                                      const Partial<Acc>* total) {
  const int k = threadIdx.x;
  const int64_t channel = tile * tiling.group + k;
  if (k < tiling.group && channel < tiling.channels) {
    typename PairOf<Acc>::type pair;
    pair.x = total[k].a;
    pair.y = total[k].b;
    meeting.staged[channel * tiling.slices + slice] = pair;
  }
}

// Waits until all blocks of the tile have staged their part; they must be resident together.
__device__ __forceinline__ void wait_for_tile(const Tiling& tiling, unsigned* arrived) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    gpu::red_release_add(arrived, 1u);
    while (gpu::ld_acquire(arrived) < static_cast<unsigned>(tiling.slices)) {
    }
    __threadfence();
  }
  __syncthreads();
}

// Combines the staged parts of the tile's channels, in the same order whichever block does it.
template <class Combine, int V, class Acc>
__device__ __forceinline__ void combine_staged(const Tiling& tiling, const Meeting<Acc>& meeting, int64_t tile,
                                               Partial<Acc>* total) {
  const int k = threadIdx.x / tiling.team;
  const int64_t channel = tile * tiling.group + k;
  Partial<Acc> sum{0, 0, 0};
  if (k < tiling.group && channel < tiling.channels) {
    for (int s = threadIdx.x % tiling.team; s < tiling.slices; s += tiling.team) {
      const typename PairOf<Acc>::type pair = gpu::ld_cg(meeting.staged + channel * tiling.slices + s);
      sum = Combine::combine(sum, Partial<Acc>{static_cast<Acc>(tiling.count<V>(s)), pair.x, pair.y});
    }
  }
  combine_team<Combine>(tiling, sum, total);
}

// The maths of one access.

// identity is leaky_relu with slope 1; relu is not leaky_relu with slope 0, which turns infinities into NaN.
template <class Acc>
struct ActivationOf {
  Acc slope;
  bool relu;

  // `passed` where the activation's input v is on the positive side, else what the other side makes of it.  With
  // passed = v this is the activation, with passed = gradient its derivative.
  __device__ __forceinline__ Acc operator()(Acc v, Acc passed) const {
    const bool positive = relu ? !(v <= 0) : v > 0;
    return positive ? passed : relu ? Acc(0) : passed * slope;
  }
};

// A parameter or running statistic, one value per channel, or null: of Acc, or of T if `own`.
template <class T>
struct PerChannel {
  using Acc = Accumulator<T>;
  void* values;
  bool own;

  __device__ __forceinline__ explicit operator bool() const { return values != nullptr; }
  __device__ __forceinline__ Acc read(int64_t channel) const {
    return sizeof(T) < sizeof(Acc) && own ? gpu::convert<Acc>(static_cast<const T*>(values)[channel])
                                          : static_cast<const Acc*>(values)[channel];
  }
  __device__ __forceinline__ void write(int64_t channel, Acc value) const {
    if (sizeof(T) < sizeof(Acc) && own) {
      static_cast<T*>(values)[channel] = gpu::convert<T>(value);
    } else {
      static_cast<Acc*>(values)[channel] = value;
    }
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

// The first element of each of a thread's channels.  Moments are taken of x - pivot: where the mean is large beside the
// standard deviation, float could not hold the mean of a few elements well enough to merge it with another.
template <class T, int A>
__device__ __forceinline__ void load_pivot(const Tiling& tiling, const T* input, int64_t channel,
                                           Accumulator<T> (&pivot)[A]) {
  unpack<T, A>(load<T, A>(input + channel * tiling.inner), pivot);
}

// Adds `valid` accesses to a thread's moments: mean and squared deviations of the chunk in two passes over registers,
// then one merge.
template <class T, int V, int A, int U>
__device__ __forceinline__ void add_moments(const Raw<T, V>* raw, int valid, const Accumulator<T> (&pivot)[A],
                                            Partials<Accumulator<T>, A>& moments) {
  using Acc = Accumulator<T>;
  if (valid <= 0) return;
  Acc sum[V] = {}, deviations[V] = {}, values[V], mean[A];
#pragma unroll
  for (int u = 0; u < U; ++u) {
    if (u < valid) {
      unpack<T, V>(raw[u], values);
#pragma unroll
      for (int j = 0; j < V; ++j) sum[j] += values[j] - pivot[A == 1 ? 0 : j];
    }
  }
  const Acc count = static_cast<Acc>(A == 1 ? valid * V : valid);
  const Acc inverse = quotient(Acc(1), count);
  if (A == 1) sum_of(sum);
#pragma unroll
  for (int j = 0; j < A; ++j) mean[j] = sum[j] * inverse;
#pragma unroll
  for (int u = 0; u < U; ++u) {
    if (u < valid) {
      unpack<T, V>(raw[u], values);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const Acc d = values[j] - pivot[A == 1 ? 0 : j] - mean[A == 1 ? 0 : j];
        deviations[j] = multiply_add(d, d, deviations[j]);
      }
    }
  }
  if (A == 1) sum_of(deviations);
  const Acc share = quotient(count, moments.n + count), weight = moments.n * share;
#pragma unroll
  for (int j = 0; j < A; ++j) {
    const Acc delta = mean[j] - moments.a[j];
    moments.a[j] = multiply_add(delta, share, moments.a[j]);
    moments.b[j] += multiply_add(delta * weight, delta, deviations[j]);
  }
  moments.n += count;
}

// Normalises, adds the residual, activates and writes `valid` accesses.
template <class T, int V, int A, int U>
__device__ __forceinline__ void write_output(const ForwardArguments<T>& args, const Affine<Accumulator<T>, A>& affine,
                                             const Raw<T, V>* raw, const int64_t (&offsets)[U], int valid) {
  using Acc = Accumulator<T>;
  Raw<T, V> residual[U];
  if (args.residual) load_chunk<T, V>(args.residual, offsets, valid, residual);
#pragma unroll
  for (int u = 0; u < U; ++u) {
    if (u < valid) {
      Acc x[V], r[V];
      unpack<T, V>(raw[u], x);
      if (args.residual) unpack<T, V>(residual[u], r);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        Acc v = affine.preactivation(affine.normalized(x[j], j), j);
        if (args.residual) v += r[j];
        x[j] = args.activation(v, v);
      }
      store<T, V>(args.output + offsets[u], pack<T, V>(x));
    }
  }
}

// The gradient behind the activation of one access, in place of grad; `normalized` receives (x - mean) * invstd.
template <class T, int V, int A>
__device__ __forceinline__ void activation_gradient(const BackwardArguments<T>& args,
                                                    const Affine<Accumulator<T>, A>& affine, Raw<T, V> input,
                                                    Raw<T, V> residual, Accumulator<T> (&grad)[V],
                                                    Accumulator<T> (&normalized)[V]) {
  using Acc = Accumulator<T>;
  Acc r[V];
  unpack<T, V>(input, normalized);
  if (args.residual) unpack<T, V>(residual, r);
#pragma unroll
  for (int j = 0; j < V; ++j) {
    normalized[j] = affine.normalized(normalized[j], j);
    Acc v = affine.preactivation(normalized[j], j);
    if (args.residual) v += r[j];
    grad[j] = args.activation(v, grad[j]);
  }
}

// sum(g') and sum(g' * normalized) of a thread's channels.
template <class Acc, int V, int A>
struct GradientSums {
  Partials<Acc, A> sums{};

  __device__ __forceinline__ void add(const Acc (&grad)[V], const Acc (&normalized)[V]) {
    if constexpr (A == 1) {
      Acc plain[V], weighted[V];
#pragma unroll
      for (int j = 0; j < V; ++j) {
        plain[j] = grad[j];
        weighted[j] = grad[j] * normalized[j];
      }
      sums.a[0] += sum_of(plain);
      sums.b[0] += sum_of(weighted);
    } else {
#pragma unroll
      for (int j = 0; j < V; ++j) {
        sums.a[j] += grad[j];
        sums.b[j] = multiply_add(grad[j], normalized[j], sums.b[j]);
      }
    }
  }
};

// dx = (g' - mean(g') - normalized * mean(g' * normalized)) * invstd * weight.
template <class Acc, int A>
struct InputGradient {
  Acc plain[A], weighted[A];  // the means

  __device__ __forceinline__ Acc operator()(const Affine<Acc, A>& affine, Acc grad, Acc normalized, int j) const {
    const int k = A == 1 ? 0 : j;
    return multiply_add(-normalized, weighted[k], grad - plain[k]) * affine.scale(j);
  }
};

// Results of one channel.

// Turns the tile's moments (about the pivot) into mean (a) and 1/std (b); the block that is `leader` also stores them
// and updates the running statistics.
template <class T>
__device__ __forceinline__ void finish_statistics(const Tiling& tiling, const ForwardArguments<T>& args, int64_t tile,
                                                  bool leader, Partial<Accumulator<T>>* total) {
  using Acc = Accumulator<T>;
  const int k = threadIdx.x;
  const int64_t channel = tile * tiling.group + k;
  if (k < tiling.group && channel < tiling.channels) {
    Acc pivot[1];
    load_pivot<T, 1>(tiling, args.input, channel, pivot);
    const Acc mean = pivot[0] + total[k].a, variance = total[k].b / total[k].n;
    const Acc invstd = Acc(1) / square_root(variance + args.eps);
    total[k].a = mean;
    total[k].b = invstd;
    if (leader) {
      args.mean[channel] = mean;
      args.invstd[channel] = invstd;
      const Acc kept = Acc(1) - args.momentum;
      if (args.running_mean) {
        args.running_mean.write(channel, kept * args.running_mean.read(channel) + args.momentum * mean);
      }
      if (args.running_var) {
        const Acc unbiased = variance * args.unbiased;
        args.running_var.write(channel, kept * args.running_var.read(channel) + args.momentum * unbiased);
      }
    }
  }
}

template <class T>
__device__ __forceinline__ void store_parameter_gradients(const Tiling& tiling, const BackwardArguments<T>& args,
                                                          int64_t tile, const Partial<Accumulator<T>>* total) {
  const int k = threadIdx.x;
  const int64_t channel = tile * tiling.group + k;
  if (k < tiling.group && channel < tiling.channels) {
    args.grad_bias[channel] = total[k].a;
    args.grad_weight[channel] = total[k].b;
  }
}

// Kernels that stream.

// Procedure overview: batch statistics.
//   1. Each thread reduces its accesses to moments, chunk by chunk.
//   2. The block combines its threads' moments.
//   3. With several slices to a tile, it stages the result; the last block of the tile combines what was staged.
//   4. mean, invstd and running statistics are written.
template <class T, int V, int A>
__global__ void __launch_bounds__(kThreads, 2)
    reduce_moments(const Tiling tiling, const ForwardArguments<T> args, const Meeting<Accumulator<T>> meeting) {
  using Acc = Accumulator<T>;
  constexpr int U = kChunk<V>;
  SHARED(Partial<Acc>, total, [kMaxGroup]);
  const int64_t tile = blockIdx.x / tiling.slices;
  const int slice = blockIdx.x % tiling.slices;

  Partials<Acc, A> moments{};
  Walk walk = tiling.walk<V, A>(tile, slice, threadIdx.x);
  Acc pivot[A];
  if (walk.left > 0) load_pivot<T, A>(tiling, args.input, walk.channel, pivot);
  while (walk.left > 0) {
    int64_t offsets[U];
    Raw<T, V> raw[U];
    const int valid = take(tiling, walk, offsets);
    load_chunk<T, V>(args.input, offsets, valid, raw);
    add_moments<T, V, A, U>(raw, valid, pivot, moments);
  }
  combine_block<Moments, A>(tiling, moments, total);
  if (tiling.slices > 1) {
    stage(tiling, meeting, tile, slice, total);
    if (!is_last_block(meeting.arrived + tile, tiling.slices)) return;
    combine_staged<Moments, V>(tiling, meeting, tile, total);
  }
  finish_statistics(tiling, args, tile, true, total);
}

// Procedure overview: the elementwise part of forward.
//   1. Each thread loads the parameters and statistics of its channels: of the batch in training, else running ones.
//   2. It normalises, adds the residual, activates and writes its accesses.
template <class T, int V, int A>
__global__ void __launch_bounds__(kThreads, 2) normalize(const Tiling tiling, const ForwardArguments<T> args) {
  using Acc = Accumulator<T>;
  constexpr int U = kChunk<V>;
  Walk walk = tiling.walk<V, A>(blockIdx.x / tiling.slices, blockIdx.x % tiling.slices, threadIdx.x);
  if (walk.left == 0) return;

  Affine<Acc, A> affine;
  affine.load_parameters(args.weight, args.bias, walk.channel);
  if (args.training) {
    affine.load_statistics(args.mean, args.invstd, walk.channel);
  } else {
    affine.load_statistics(args.running_mean, args.running_var, args.eps, walk.channel);
  }
  while (walk.left > 0) {
    int64_t offsets[U];
    Raw<T, V> raw[U];
    const int valid = take(tiling, walk, offsets);
    load_chunk<T, V>(args.input, offsets, valid, raw);
    write_output<T, V, A, U>(args, affine, raw, offsets, valid);
  }
}

// Procedure overview: gradients of weight and bias; in the same read the gradients that need no sums.
//   1. Each thread computes the gradient behind the activation, g', and sums g' and g' * normalized.  It writes g' as
//      grad_residual and, in evaluation, g' * invstd * weight as grad_input, where these are wanted.
//   2. Sums are combined as in reduce_moments.
template <class T, int V, int A>
__global__ void __launch_bounds__(kThreads, 2)
    reduce_gradients(const Tiling tiling, const BackwardArguments<T> args, const Meeting<Accumulator<T>> meeting) {
  using Acc = Accumulator<T>;
  constexpr int U = kGradientChunk<V>;
  SHARED(Partial<Acc>, total, [kMaxGroup]);
  const int64_t tile = blockIdx.x / tiling.slices;
  const int slice = blockIdx.x % tiling.slices;

  GradientSums<Acc, V, A> gradients;
  Walk walk = tiling.walk<V, A>(tile, slice, threadIdx.x);
  if (walk.left > 0) {
    Affine<Acc, A> affine;
    affine.load_parameters(args.weight, args.bias, walk.channel);
    affine.load_statistics(args.mean, args.invstd, walk.channel);
    while (walk.left > 0) {
      int64_t offsets[U];
      Raw<T, V> grad_raw[U], input[U], residual[U];
      const int valid = take(tiling, walk, offsets);
      load_chunk<T, V>(args.grad_output, offsets, valid, grad_raw);
      load_chunk<T, V>(args.input, offsets, valid, input);
      if (args.residual) load_chunk<T, V>(args.residual, offsets, valid, residual);
#pragma unroll
      for (int u = 0; u < U; ++u) {
        if (u < valid) {
          Acc grad[V], normalized[V];
          unpack<T, V>(grad_raw[u], grad);
          activation_gradient<T, V, A>(args, affine, input[u], residual[u], grad, normalized);
          gradients.add(grad, normalized);
          if (args.grad_residual) store<T, V>(args.grad_residual + offsets[u], pack<T, V>(grad));
          if (args.grad_input) {
#pragma unroll
            for (int j = 0; j < V; ++j) grad[j] *= affine.scale(j);
            store<T, V>(args.grad_input + offsets[u], pack<T, V>(grad));
          }
        }
      }
    }
  }
  combine_block<Sums, A>(tiling, gradients.sums, total);
  if (tiling.slices > 1) {
    stage(tiling, meeting, tile, slice, total);
    if (!is_last_block(meeting.arrived + tile, tiling.slices)) return;
    combine_staged<Sums, V>(tiling, meeting, tile, total);
  }
  store_parameter_gradients(tiling, args, tile, total);
}

// Procedure overview: grad_input in training, once grad_weight and grad_bias are known.
//   1. Each thread loads its channels' parameters, statistics and sums.
//   2. It recomputes g' and the normalised input and writes grad_input.
template <class T, int V, int A>
__global__ void __launch_bounds__(kThreads, 2) apply_gradients(const Tiling tiling, const BackwardArguments<T> args) {
  using Acc = Accumulator<T>;
  constexpr int U = kGradientChunk<V>;
  Walk walk = tiling.walk<V, A>(blockIdx.x / tiling.slices, blockIdx.x % tiling.slices, threadIdx.x);
  if (walk.left == 0) return;

  Affine<Acc, A> affine;
  affine.load_parameters(args.weight, args.bias, walk.channel);
  affine.load_statistics(args.mean, args.invstd, walk.channel);
  InputGradient<Acc, A> input_gradient;
#pragma unroll
  for (int j = 0; j < A; ++j) {
    input_gradient.plain[j] = __ldg(args.grad_bias + walk.channel + j) * args.inverse_count;
    input_gradient.weighted[j] = __ldg(args.grad_weight + walk.channel + j) * args.inverse_count;
  }
  while (walk.left > 0) {
    int64_t offsets[U];
    Raw<T, V> grad_raw[U], input[U], residual[U];
    const int valid = take(tiling, walk, offsets);
    load_chunk<T, V>(args.grad_output, offsets, valid, grad_raw);
    load_chunk<T, V>(args.input, offsets, valid, input);
    if (args.residual) load_chunk<T, V>(args.residual, offsets, valid, residual);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (u < valid) {
        Acc grad[V], normalized[V];
        unpack<T, V>(grad_raw[u], grad);
        activation_gradient<T, V, A>(args, affine, input[u], residual[u], grad, normalized);
#pragma unroll
        for (int j = 0; j < V; ++j) grad[j] = input_gradient(affine, grad[j], normalized[j], j);
        store<T, V>(args.grad_input + offsets[u], pack<T, V>(grad));
      }
    }
  }
}

// Kernels that hold their data on chip.

// Procedure overview: all of training's forward with one read of the input.
//   1. Each thread loads its accesses, the first ones into registers, the others into its own places in shared memory
//      (thread t's access r lies at parked[r * threads + t]), and reduces them to moments on the way.
//   2. The block combines its threads' moments.  With several slices to a tile (cooperative launch) it stages the
//      result, waits for the tile's other blocks and combines what all of them staged; every block gets the same bits.
//   3. The tile's first block writes mean, invstd and running statistics.
//   4. Each thread normalises what it holds and writes the output.
template <class T, int V, int A>
__global__ void __launch_bounds__(kOnChipThreads, 1)
    train_on_chip(const Tiling tiling, const ForwardArguments<T> args, const Meeting<Accumulator<T>> meeting) {
  using Acc = Accumulator<T>;
  constexpr int U = kHeldChunk<V, A>, R = kept_accesses(1, V, A);
  static_assert(R % U == 0);
  using Word = Raw<T, V>;
  DYN_SHARED(Word, parked);
  SHARED(Partial<Acc>, total, [kMaxGroup]);
  const int64_t tile = blockIdx.x / tiling.slices;
  const int slice = blockIdx.x % tiling.slices;

  Partials<Acc, A> moments{};
  Walk walk = tiling.walk<V, A>(tile, slice, threadIdx.x);
  int64_t offsets[U];
  Word kept[R];
  const int held = walk.left;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    if (r < held) {
      kept[r] = load<T, V>(args.input + walk.offset);
      tiling.advance(walk);
    }
  }
  walk.left -= held < R ? held : R;
  Acc pivot[A];
  if (held > 0) load_pivot<T, A>(tiling, args.input, walk.channel, pivot);
#pragma unroll
  for (int r = 0; r < R; r += U) add_moments<T, V, A, U>(kept + r, held - r < U ? held - r : U, pivot, moments);
  Word* place = parked + threadIdx.x;
  while (walk.left > 0) {
    Word raw[U];
    const int valid = take(tiling, walk, offsets);
    load_chunk<T, V>(args.input, offsets, valid, raw);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (u < valid) place[u * tiling.threads] = raw[u];
    }
    place += U * tiling.threads;
    add_moments<T, V, A, U>(raw, valid, pivot, moments);
  }

  combine_block<Moments, A>(tiling, moments, total);
  if (tiling.slices > 1) {
    stage(tiling, meeting, tile, slice, total);
    wait_for_tile(tiling, meeting.arrived + tile);
    combine_staged<Moments, V>(tiling, meeting, tile, total);
  }
  finish_statistics(tiling, args, tile, slice == 0, total);
  __syncthreads();

  walk = tiling.walk<V, A>(tile, slice, threadIdx.x);
  if (walk.left == 0) return;
  Affine<Acc, A> affine;
  affine.load_parameters(args.weight, args.bias, walk.channel);
  affine.load_statistics(total + walk.local);
#pragma unroll
  for (int r = 0; r < R; r += U) {
    const int valid = take(tiling, walk, offsets);
    write_output<T, V, A, U>(args, affine, kept + r, offsets, valid);
  }
  place = parked + threadIdx.x;
  while (walk.left > 0) {
    Word raw[U];
    const int valid = take(tiling, walk, offsets);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (u < valid) raw[u] = place[u * tiling.threads];
    }
    place += U * tiling.threads;
    write_output<T, V, A, U>(args, affine, raw, offsets, valid);
  }
}

// Procedure overview: all of training's backward with one read of grad_output, input and residual.
//   1. Each thread loads its accesses, computes g', sums g' and g' * normalized, and holds input and g' as in
//      train_on_chip; the two of an access lie side by side in shared memory.  g' is rounded to T, as grad_residual is,
//      which is written here when wanted.
//   2. Sums are combined as the moments of train_on_chip; the tile's first block writes grad_weight and grad_bias.
//   3. Each thread computes grad_input from what it holds.
template <class T, int V, int A>
__global__ void __launch_bounds__(kOnChipThreads, 1)
    backward_on_chip(const Tiling tiling, const BackwardArguments<T> args, const Meeting<Accumulator<T>> meeting) {
  using Acc = Accumulator<T>;
  constexpr int U = kHeldGradientChunk<V, A>, R = kept_accesses(2, V, A);
  static_assert(R % U == 0);
  using Word = Raw<T, V>;
  DYN_SHARED(Word, parked);
  SHARED(Partial<Acc>, total, [kMaxGroup]);
  const int64_t tile = blockIdx.x / tiling.slices;
  const int slice = blockIdx.x % tiling.slices;

  Walk walk = tiling.walk<V, A>(tile, slice, threadIdx.x);
  Affine<Acc, A> affine;
  if (walk.left > 0) {
    affine.load_parameters(args.weight, args.bias, walk.channel);
    affine.load_statistics(args.mean, args.invstd, walk.channel);
  }
  GradientSums<Acc, V, A> gradients;
  int64_t offsets[U];
  // Loads the next U accesses, leaves input and g' in two arrays and adds to the sums.
  const auto absorb = [&](Word* input, Word* grads) {
    Word residual[U], grad_raw[U], input_raw[U];
    const int valid = take(tiling, walk, offsets);
    load_chunk<T, V>(args.grad_output, offsets, valid, grad_raw);
    load_chunk<T, V>(args.input, offsets, valid, input_raw);
    if (args.residual) load_chunk<T, V>(args.residual, offsets, valid, residual);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (u < valid) {
        Acc grad[V], normalized[V];
        unpack<T, V>(grad_raw[u], grad);
        activation_gradient<T, V, A>(args, affine, input_raw[u], residual[u], grad, normalized);
        gradients.add(grad, normalized);
        input[u] = input_raw[u];
        grads[u] = pack<T, V>(grad);
        if (args.grad_residual) store<T, V>(args.grad_residual + offsets[u], grads[u]);
      }
    }
    return valid;
  };
  Word kept_input[R], kept_grads[R];
#pragma unroll
  for (int r = 0; r < R; r += U) absorb(kept_input + r, kept_grads + r);
  Word* place = parked + threadIdx.x;
  while (walk.left > 0) {
    Word input[U], grads[U];
    const int valid = absorb(input, grads);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (u < valid) {
        place[2 * u * tiling.threads] = input[u];
        place[(2 * u + 1) * tiling.threads] = grads[u];
      }
    }
    place += 2 * U * tiling.threads;
  }

  combine_block<Sums, A>(tiling, gradients.sums, total);
  if (tiling.slices > 1) {
    stage(tiling, meeting, tile, slice, total);
    wait_for_tile(tiling, meeting.arrived + tile);
    combine_staged<Sums, V>(tiling, meeting, tile, total);
  }
  if (slice == 0) store_parameter_gradients(tiling, args, tile, total);

  walk = tiling.walk<V, A>(tile, slice, threadIdx.x);
  if (walk.left == 0) return;
  affine.load_parameters(args.weight, args.bias, walk.channel);
  affine.load_statistics(args.mean, args.invstd, walk.channel);
  InputGradient<Acc, A> input_gradient;
#pragma unroll
  for (int j = 0; j < A; ++j) {
    input_gradient.plain[j] = total[walk.local + j].a * args.inverse_count;
    input_gradient.weighted[j] = total[walk.local + j].b * args.inverse_count;
  }
  const auto write = [&](Word input, Word grads) {
    Acc x[V], grad[V];
    unpack<T, V>(input, x);
    unpack<T, V>(grads, grad);
#pragma unroll
    for (int j = 0; j < V; ++j) grad[j] = input_gradient(affine, grad[j], affine.normalized(x[j], j), j);
    store<T, V>(args.grad_input + walk.offset, pack<T, V>(grad));
    tiling.advance(walk);
    --walk.left;
  };
#pragma unroll
  for (int r = 0; r < R; ++r) {
    if (walk.left > 0) write(kept_input[r], kept_grads[r]);
  }
  for (place = parked + threadIdx.x; walk.left > 0; place += 2 * tiling.threads) {
    write(place[0], place[tiling.threads]);
  }
}

}  // namespace genimg_fast::cuda
