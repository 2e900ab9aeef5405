#pragma once
// Kernels of reparameterize_kl: z = mu + exp(logvar / 2) * noise and the KL divergence of N(mu, exp(logvar)) from the
// prior, and the gradients of both.
//
// Two template parameters: T, the element; and what is known of the call:
//   strided   nothing: each element is read where its strides put it
//   dense     every operand is row-major and aligned, so a thread moves 16 bytes at a time (the gradient of kl may be
//             one value per sample)
//   plain     also that it is the usual call: noise from the seed, a standard normal prior, no clamp, no free bits, and
//             one divergence per sample; backward has both gradients, and computes those of mu and logvar
// A thread handles whole groups of four elements, because Philox makes four normals at a time.  What is not known is
// run-time data, the same for all threads; the usual call has no instruction to spare for asking.
#include "common.cuh"
#include "math/gaussian.h"
#include "reparameterize_kl.h"

namespace genimg_fast::cuda::reparameterize {

constexpr int kThreads = 256;  // most of a block

enum class Known { strided, dense, plain };

// Elements that a thread handles at a time.
template <class T, Known known>
constexpr int kStep = known != Known::strided && sizeof(T) == 2 ? 8 : 4;

// Blocks that a multiprocessor's registers are to suffice for: as many as there are without spilling.
constexpr int forward_blocks(size_t element_bytes, Known known) {
  if (element_bytes == 8) return 1;
  if (known == Known::strided) return 2;
  return element_bytes == 4 || known == Known::plain ? 4 : 3;
}
constexpr int backward_blocks(size_t element_bytes, Known known) {
  if (element_bytes == 8) return 1;
  return known == Known::plain ? 4 : 2;
}

// Where elements are.

// A thread's way through a slice of its sample: of the steps from `first` on, begin, begin + team, ... before end.
struct Way {
  int64_t sample, first;
  int begin, end;  // a slice has no 2^31 steps: a sample has up to kMaxSlices
};

__host__ __device__ __forceinline__ Way way_of(const Samples& samples, const ReparameterizeKlPlan& plan, unsigned block,
                                               int thread) {
  const int member = thread & ((1 << plan.team_log2) - 1);
  if (plan.slices > 1) {
    const unsigned sample = block / static_cast<unsigned>(plan.slices);
    const int64_t first = (block - sample * static_cast<unsigned>(plan.slices)) * plan.slice_steps;
    const int64_t left = plan.sample_steps - first;
    return {sample, first, member, static_cast<int>(left < plan.slice_steps ? left : plan.slice_steps)};
  }
  const int64_t sample = static_cast<int64_t>(block) * (plan.threads >> plan.team_log2) + (thread >> plan.team_log2);
  return {sample, 0, member, sample < samples.batch ? static_cast<int>(plan.sample_steps) : 0};
}

// Where an element of a sample lies in N tensors.  Offsets are 64-bit, and so is the number of elements.
template <int N>
__host__ __device__ __forceinline__ void locate(const Samples& samples, const SampleLayout* layouts, int64_t sample,
                                                int64_t element, int64_t (&offsets)[N]) {
#pragma unroll
  for (int t = 0; t < N; ++t) offsets[t] = sample * layouts[t].batch_stride;
  const auto move = [&](int d, int64_t index) {
#pragma unroll
    for (int t = 0; t < N; ++t) offsets[t] += index * layouts[t].strides[d];
  };
  const int last = samples.dims - 1;
#pragma unroll 1
  for (int d = 0; d < last; ++d) {
    const int64_t size = samples.sizes[d];
    int64_t next;
    if (((element | size) >> 31) == 0) {  // the 64-bit division is many times slower
      next = static_cast<uint32_t>(element) / static_cast<uint32_t>(size);
    } else {
      next = element / size;
    }
    move(d, element - next * size);
    element = next;
  }
  move(last, element);
}

// Accesses.

// The keys of Philox, where all threads of a block find them: once it has them in registers, none adds the round's
// constants to the seed in every step.
using Keys = uint32_t[philox_keys];

// A thread's E elements of a sample at a time: what the first N operands hold there, and where the results belong.
template <class T, Known known, int N>
struct Step {
  static constexpr bool dense = known != Known::strided, plain = known == Known::plain;
  static constexpr int E = kStep<T, known>;
  using Acc = Accumulator<T>;

  const ReparameterizeKlCall& call;
  const int64_t sample, slice;  // slice: the first element of the thread's slice
  const void* slices[N];        // dense: where the slice begins in each input; for kGradKl, the sample

  int index;       // of the step in the slice
  T inputs[N][E];  // of the operands that are given, as packed as in memory
  Acc grad_kl[E];
  int64_t output[dense ? 1 : E];

  __device__ __forceinline__ Step(const ReparameterizeKlCall& call, const Way& way)
      : call(call), sample(way.sample), slice(way.first * E) {
#pragma unroll
    for (int t = kMu; t < N; ++t) {
      if (!has(t)) continue;
      const int64_t row = sample * call.layouts[t].batch_stride;
      if (t == kGradKl) {
        slices[t] = static_cast<const Acc*>(call.inputs[t]) + row;
      } else {
        slices[t] = static_cast<const T*>(call.inputs[t]) + (row + slice);
      }
    }
  }

  __device__ __forceinline__ bool has(int operand) const {
    if constexpr (plain) return operand != kNoise && operand != kPriorMu && operand != kPriorLogvar;
    return call.inputs[operand] != nullptr;
  }
  // How many of the E elements there are.
  __device__ __forceinline__ int valid() const {
    const int64_t left = call.samples.elements - first();
    return dense || left >= E ? E : static_cast<int>(left);
  }
  __device__ __forceinline__ Acc at(int operand, int j) const {
    if constexpr (dense && sizeof(T) == 2) {
      unsigned pair;
      memcpy(&pair, &inputs[operand][j / 2 * 2], sizeof pair);
      const float2 two = gpu::unpack_pair<T>(pair);
      return j % 2 == 0 ? two.x : two.y;
    } else {
      return gpu::convert<Acc>(inputs[operand][j]);
    }
  }

  __device__ __forceinline__ void load(int next) {
    index = next;
    if constexpr (dense) {
      load_dense<kMu>();
      load_dense<kLogvar>();
      if (has(kNoise) || has(kPriorMu)) {  // one branch around what most calls do not have
        if (has(kNoise)) load_dense<kNoise>();
        if (has(kPriorMu)) {
          load_dense<kPriorMu>();
          load_dense<kPriorLogvar>();
        }
      }
      if constexpr (N > kGradZ) {
        if (has(kGradZ)) load_dense<kGradZ>();
        if (has(kGradKl)) load_grad_kl();
      }
    } else {
#pragma unroll
      for (int j = 0; j < E; ++j) {
        if (j >= valid()) continue;
        int64_t offsets[N];
        locate(call.samples, call.layouts, sample, first() + j, offsets);
#pragma unroll
        for (int t = kMu; t < N; ++t) {
          if (!has(t)) continue;
          if (t == kGradKl) {
            grad_kl[j] = static_cast<const Acc*>(call.inputs[t])[offsets[t]];
          } else {
            inputs[t][j] = static_cast<const T*>(call.inputs[t])[offsets[t]];
          }
        }
        output[j] = offsets[kOutput];
      }
    }
  }

  // The noise of group k of the step: as given, or made.
  __device__ __forceinline__ void noise(const Keys& keys, int k, Acc (&noise)[4]) const {
    if (has(kNoise)) {
#pragma unroll
      for (int j = 0; j < 4; ++j) noise[j] = at(kNoise, 4 * k + j);
    } else {
      constexpr int groups = E / 4;  // 1 or 2: the lowest bit of the number
      float normals[4];
      normals_of_group(keys, sample, (slice / 4 + int64_t{index} * groups) | k, normals);
#pragma unroll
      for (int j = 0; j < 4; ++j) noise[j] = static_cast<Acc>(normals[j]);
    }
  }

  __device__ __forceinline__ void store(void* results, const Acc (&from)[E]) const {
    T* const p = static_cast<T*>(results);
    if constexpr (dense) {
      store_dense(p + (sample * call.layouts[kOutput].batch_stride + slice), from);
    } else {
#pragma unroll
      for (int j = 0; j < E; ++j) {
        if (j < valid()) p[output[j]] = gpu::convert<T>(from[j]);
      }
    }
  }

  // To contiguous memory.
  __device__ __forceinline__ void store_kl(void* kl, const Acc (&from)[E]) const {
    Acc* const row = static_cast<Acc*>(kl) + sample * call.samples.elements + slice;
    if constexpr (dense) {
      store_dense(row, from);
    } else {
#pragma unroll
      for (int j = 0; j < E; ++j) {
        if (j < valid()) row[int64_t{index} * E + j] = from[j];
      }
    }
  }

 private:
  __device__ __forceinline__ int64_t first() const { return slice + int64_t{index} * E; }

  template <int t>
  __device__ __forceinline__ void load_dense() {
    load_dense(static_cast<const T*>(slices[t]), inputs[t]);
  }

  // One value per sample, or of these elements.
  __device__ __forceinline__ void load_grad_kl() {
    const Acc* const row = static_cast<const Acc*>(slices[kGradKl]);
    if (!plain && call.layouts[kGradKl].strides[0] != 0) {
      load_dense(row + slice, grad_kl);
    } else {
      const Acc value = __ldg(row);
#pragma unroll
      for (int j = 0; j < E; ++j) grad_kl[j] = value;
    }
  }

  // `slice` is where the slice begins.  A step is at 32 bits from there, which makes its address one instruction.
  template <class From>
  __device__ __forceinline__ void load_dense(const From* slice, From (&to)[E]) const {
    constexpr int V = kVector<From>;
#pragma unroll
    for (int k = 0; k < E / V; ++k) {
      const Raw<From, V> raw = __ldg(reinterpret_cast<const Raw<From, V>*>(slice) + (index * (E / V) + k));
      memcpy(to + k * V, &raw, sizeof raw);
    }
  }

  template <class To>
  __device__ __forceinline__ void store_dense(To* slice, const Acc (&from)[E]) const {
    constexpr int V = kVector<To>;
#pragma unroll
    for (int k = 0; k < E / V; ++k) {
      Acc part[V];
#pragma unroll
      for (int j = 0; j < V; ++j) part[j] = from[k * V + j];
      reinterpret_cast<Raw<To, V>*>(slice)[index * (E / V) + k] = pack<To, V>(part);
    }
  }
};

// The maths of one element.

template <class Acc, bool plain>
struct Options {
  Acc logvar_min, logvar_max, free_bits;
  bool clamps;  // not just to [-inf, inf]

  // NaN stays NaN.
  __device__ __forceinline__ Acc clamp(Acc logvar) const {
    if (plain || !clamps) return logvar;
    return logvar < logvar_min ? logvar_min : logvar > logvar_max ? logvar_max : logvar;
  }
  __device__ __forceinline__ bool clamped(Acc logvar) const {
    return !plain && clamps && (logvar < logvar_min || logvar > logvar_max);
  }
  __device__ __forceinline__ bool is_free(Acc kl) const { return !plain && kl < free_bits; }
};

// exp(logvar / 2).  16-bit data have no digit that the fast power of two would spoil.
template <class T, class Acc>
__device__ __forceinline__ Acc standard_deviation(Acc logvar) {
  if constexpr (sizeof(T) == 2) {
    constexpr float half_log2_e = 0x1.715476p-1f;
    return gpu::exp2_approx(logvar * half_log2_e);
  } else {
    return exponential(Acc(0.5) * logvar);
  }
}

// The divergence before free bits.
template <class Step, class Acc>
__device__ __forceinline__ GaussianKl<Acc> divergence(const Step& step, int j, Acc clamped_logvar, Acc deviation) {
  const Acc mu = step.at(kMu, j);
  if (!step.has(kPriorMu)) return gaussian_kl(mu, clamped_logvar, deviation * deviation, Acc(1));
  const Acc prior_logvar = step.at(kPriorLogvar, j), difference = clamped_logvar - prior_logvar;
  return gaussian_kl(mu - step.at(kPriorMu, j), difference, exponential(difference), exponential(-prior_logvar));
}

// Kernels.

// Makes the keys of the call's seed.  All threads of the block take part.
__device__ __forceinline__ void make_keys(const ReparameterizeKlCall& call, Keys& keys) {
  const uint64_t seed = static_cast<uint64_t>(*call.seed);
  if (threadIdx.x < philox_keys) keys[threadIdx.x] = philox_key(seed, static_cast<int>(threadIdx.x));
  __syncthreads();
}

// Sum over a team's threads, in a fixed order; the team's first thread gets it.  All threads of the block take part.
template <class Acc>
__device__ __forceinline__ Acc team_sum(Acc sum, int team_log2) {
  SHARED(Acc, warps, [kThreads / 32]);
#pragma unroll 1
  for (int lane_mask = (1 << (team_log2 < 5 ? team_log2 : 5)) / 2; lane_mask > 0; lane_mask /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, lane_mask);
  }
  if (team_log2 > 5) {
    const int warp = threadIdx.x / 32, others = (1 << (team_log2 - 5)) - 1;
    if (threadIdx.x % 32 == 0) warps[warp] = sum;
    __syncthreads();
#pragma unroll 1
    for (int other = 1; other <= others; ++other) {
      if ((warp & others) == 0) sum += warps[warp + other];
    }
  }
  return sum;
}

// Where the slices of a sample meet: slice s of sample b leaves its sum in staged[b * slices + s] and counts itself in
// arrived[b], which is zero at launch.
template <class Acc>
struct Meeting {
  Acc* staged;
  unsigned* arrived;
};

// Procedure overview: z and the divergences.
//   1. Each thread goes through its steps: loads, makes the noise unless it is given, writes z; it writes the
//      divergences, or adds them up if they are wanted per sample.
//   2. The team of a sample combines its threads' sums.
//   3. With several slices to a sample, their sums are staged; the sample's last block combines what was staged.
template <class T, Known known>
__global__ void __launch_bounds__(kThreads, forward_blocks(sizeof(T), known))
    forward(const __grid_constant__ ReparameterizeKlCall call, const __grid_constant__ ReparameterizeKlPlan plan,
            const Options<Accumulator<T>, known == Known::plain> options, const Meeting<Accumulator<T>> meeting) {
  using Acc = Accumulator<T>;
  constexpr int E = kStep<T, known>;
  const bool per_element = known != Known::plain && call.per_element;
  const Way way = way_of(call.samples, plan, blockIdx.x, threadIdx.x);
  Step<T, known, kForwardOperands> step(call, way);
  SHARED(Keys, keys, );
  if (!step.has(kNoise)) make_keys(call, keys);
  Acc sum = 0;
  for (int index = way.begin; index < way.end; index += 1 << plan.team_log2) {
    step.load(index);
    Acc z[E], kl[E];
#pragma unroll
    for (int k = 0; k < E / 4; ++k) {
      Acc noise[4];
      step.noise(keys, k, noise);
#pragma unroll
      for (int j = 4 * k; j < 4 * k + 4; ++j) {
        const Acc logvar = options.clamp(step.at(kLogvar, j)), deviation = standard_deviation<T>(logvar);
        z[j] = multiply_add(deviation, noise[j % 4], step.at(kMu, j));
        kl[j] = divergence(step, j, logvar, deviation).value;
        if (options.is_free(kl[j])) kl[j] = options.free_bits;
      }
    }
    step.store(call.z, z);
    if (per_element) {
      step.store_kl(call.kl, kl);
    } else {
#pragma unroll
      for (int j = 0; j < E; ++j) {
        if (j < step.valid()) sum += kl[j];
      }
    }
  }
  if (per_element) return;

  sum = team_sum(sum, plan.team_log2);
  if (plan.slices > 1) {
    const int slice = static_cast<int>(blockIdx.x - way.sample * plan.slices);
    Acc* const staged = meeting.staged + way.sample * plan.slices;
    if (threadIdx.x == 0) staged[slice] = sum;
    if (!is_last_block(meeting.arrived + way.sample, plan.slices)) return;
    sum = 0;
#pragma unroll 1
    for (int s = threadIdx.x; s < plan.slices; s += kThreads) sum += gpu::ld_cg(staged + s);
    sum = team_sum(sum, plan.team_log2);
  }
  const bool first = (threadIdx.x & ((1 << plan.team_log2) - 1)) == 0;
  if (first && way.sample < call.samples.batch) static_cast<Acc*>(call.kl)[way.sample] = sum;
}

// Procedure overview: gradients.  Each element's depend on nothing but its own inputs: each thread goes through its
// steps, loads, makes the noise again unless it is given, and writes the gradients that are wanted.
template <class T, Known known>
__global__ void __launch_bounds__(kThreads, backward_blocks(sizeof(T), known))
    backward(const __grid_constant__ ReparameterizeKlCall call, const __grid_constant__ ReparameterizeKlPlan plan,
             const Options<Accumulator<T>, known == Known::plain> options) {
  using Acc = Accumulator<T>;
  constexpr int E = kStep<T, known>;
  const Way way = way_of(call.samples, plan, blockIdx.x, threadIdx.x);
  Step<T, known, kOperands> step(call, way);
  const bool sampled = step.has(kGradZ);
  SHARED(Keys, keys, );
  if (sampled && !step.has(kNoise)) make_keys(call, keys);
  for (int index = way.begin; index < way.end; index += 1 << plan.team_log2) {
    step.load(index);
    Acc grad_mu[E], grad_logvar[E], grad_noise[E], grad_prior_mu[E], grad_prior_logvar[E];
#pragma unroll
    for (int k = 0; k < E / 4; ++k) {
      Acc noise[4];
      if (sampled) step.noise(keys, k, noise);
#pragma unroll
      for (int j = 4 * k; j < 4 * k + 4; ++j) {
        const Acc logvar = options.clamp(step.at(kLogvar, j)), deviation = standard_deviation<T>(logvar);
        grad_mu[j] = grad_noise[j] = grad_prior_mu[j] = grad_prior_logvar[j] = 0;
        Acc by_log_deviation = 0;
        if (step.has(kGradKl)) {
          const GaussianKl<Acc> kl = divergence(step, j, logvar, deviation);
          const Acc grad = options.is_free(kl.value) ? Acc(0) : step.grad_kl[j];
          grad_mu[j] = grad * kl.by_mu;
          by_log_deviation = grad * kl.by_log_deviation;
          grad_prior_mu[j] = -grad_mu[j];
          grad_prior_logvar[j] = Acc(0.5) * (grad * kl.by_prior_log_deviation);
        }
        if (sampled) {
          const Acc grad = step.at(kGradZ, j);
          grad_noise[j] = grad * deviation;
          grad_mu[j] += grad;
          by_log_deviation = multiply_add(grad_noise[j], noise[j % 4], by_log_deviation);
        }
        grad_logvar[j] = Acc(0.5) * by_log_deviation;
        if (options.clamped(step.at(kLogvar, j))) grad_logvar[j] = 0;
      }
    }
    step.store(call.grad_mu, grad_mu);
    step.store(call.grad_logvar, grad_logvar);
    if (known == Known::plain) continue;
    if (call.grad_noise) step.store(call.grad_noise, grad_noise);
    if (call.grad_prior_mu) step.store(call.grad_prior_mu, grad_prior_mu);
    if (call.grad_prior_logvar) step.store(call.grad_prior_logvar, grad_prior_logvar);
  }
}

}  // namespace genimg_fast::cuda::reparameterize
