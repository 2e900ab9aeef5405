#pragma once
// Kernels of reparameterize_kl: z = mu + exp(logvar / 2) * noise and the KL divergence of N(mu, exp(logvar)) from the
// prior, and the gradients of both.
//
// Two template parameters: T, the element; and dense: every operand is row-major and aligned, so a thread moves 16
// bytes at a time (the gradient of kl may be one value per sample).  Otherwise each element is read where its strides
// put it.  Either way a thread handles whole groups of four elements, because Philox makes four normals at a time.
// Which operands and options a call has is run-time data, the same for all threads.
#include "common.cuh"
#include "math/gaussian.h"
#include "reparameterize_kl.h"

namespace genimg_fast::cuda {

constexpr int kThreads = 256;  // most of a block

// Elements that a thread handles at a time.
template <class T, bool dense>
constexpr int kStep = dense && sizeof(T) == 2 ? 8 : 4;

// Blocks that a multiprocessor's registers are to suffice for: as many as there are without spilling.
constexpr int forward_blocks(size_t element_bytes, bool dense) {
  if (element_bytes == 8) return 1;
  if (!dense) return 2;
  return element_bytes == 4 ? 4 : 3;
}
constexpr int backward_blocks(size_t element_bytes, bool dense) {
  if (element_bytes == 8) return 1;
  return dense && element_bytes == 4 ? 3 : 2;
}

// Where elements are.

// A thread's way through its sample: steps begin, begin + team, ... before end.
struct Way {
  int64_t sample, begin, end;
};

__host__ __device__ __forceinline__ Way way_of(const Samples& samples, const ReparameterizeKlPlan& plan, unsigned block,
                                               int thread) {
  const int member = thread & ((1 << plan.team_log2) - 1);
  if (plan.slices > 1) {
    const unsigned sample = block / static_cast<unsigned>(plan.slices);
    const int64_t first = (block - sample * static_cast<unsigned>(plan.slices)) * plan.slice_steps;
    const int64_t end = first + plan.slice_steps;
    return {sample, first + member, end < plan.sample_steps ? end : plan.sample_steps};
  }
  const int64_t sample = static_cast<int64_t>(block) * (plan.threads >> plan.team_log2) + (thread >> plan.team_log2);
  return {sample, member, sample < samples.batch ? plan.sample_steps : 0};
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

// A thread's E elements of a sample at a time: what the first N operands hold there, and where the results belong.
template <class T, bool dense, int N>
struct Step {
  static constexpr int E = kStep<T, dense>;
  using Acc = Accumulator<T>;

  const ReparameterizeKlCall& call;
  const int64_t sample;
  int64_t rows[N];  // dense: where the sample begins in each operand

  int64_t first;   // element of the step
  T inputs[N][E];  // of the operands that are given, as packed as in memory
  Acc grad_kl[E];
  int64_t output[dense ? 1 : E];

  __device__ __forceinline__ Step(const ReparameterizeKlCall& call, int64_t sample) : call(call), sample(sample) {
#pragma unroll
    for (int t = 0; t < N; ++t) rows[t] = sample * call.layouts[t].batch_stride;
  }

  // How many of the E elements there are.
  __device__ __forceinline__ int valid() const {
    const int64_t left = call.samples.elements - first;
    return dense || left >= E ? E : static_cast<int>(left);
  }
  __device__ __forceinline__ Acc at(int operand, int j) const { return gpu::convert<Acc>(inputs[operand][j]); }

  __device__ __forceinline__ void load(int64_t index) {
    first = index * E;
    if constexpr (dense) {
      load_dense<kMu>();
      load_dense<kLogvar>();
      if (call.inputs[kNoise] || call.inputs[kPriorMu]) {  // one branch around what most calls do not have
        if (call.inputs[kNoise]) load_dense<kNoise>();
        if (call.inputs[kPriorMu]) {
          load_dense<kPriorMu>();
          load_dense<kPriorLogvar>();
        }
      }
      if constexpr (N > kGradZ) {
        if (call.inputs[kGradZ]) load_dense<kGradZ>();
        if (call.inputs[kGradKl]) load_grad_kl();
      }
      output[0] = rows[kOutput] + first;
    } else {
#pragma unroll
      for (int j = 0; j < E; ++j) {
        if (j >= valid()) continue;
        int64_t offsets[N];
        locate(call.samples, call.layouts, sample, first + j, offsets);
#pragma unroll
        for (int t = kMu; t < N; ++t) {
          if (!call.inputs[t]) continue;
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
  __device__ __forceinline__ void noise(uint64_t seed, int k, Acc (&noise)[4]) const {
    if (call.inputs[kNoise]) {
#pragma unroll
      for (int j = 0; j < 4; ++j) noise[j] = at(kNoise, 4 * k + j);
    } else {
      float normals[4];
      normals_of_group(seed, sample, first / 4 + k, normals);
#pragma unroll
      for (int j = 0; j < 4; ++j) noise[j] = static_cast<Acc>(normals[j]);
    }
  }

  __device__ __forceinline__ void store(void* results, const Acc (&from)[E]) const {
    T* const p = static_cast<T*>(results);
    if constexpr (dense) {
      store_dense(p + output[0], from);
    } else {
#pragma unroll
      for (int j = 0; j < E; ++j) {
        if (j < valid()) p[output[j]] = gpu::convert<T>(from[j]);
      }
    }
  }

  // To contiguous memory.
  __device__ __forceinline__ void store_kl(void* kl, const Acc (&from)[E]) const {
    Acc* const p = static_cast<Acc*>(kl) + sample * call.samples.elements + first;
    if constexpr (dense) {
      store_dense(p, from);
    } else {
#pragma unroll
      for (int j = 0; j < E; ++j) {
        if (j < valid()) p[j] = from[j];
      }
    }
  }

 private:
  template <int t>
  __device__ __forceinline__ void load_dense() {
    load_dense(static_cast<const T*>(call.inputs[t]) + rows[t] + first, inputs[t]);
  }

  // One value per sample, or of these elements.
  __device__ __forceinline__ void load_grad_kl() {
    const Acc* const row = static_cast<const Acc*>(call.inputs[kGradKl]) + rows[kGradKl];
    if (call.layouts[kGradKl].strides[0] != 0) {
      load_dense(row + first, grad_kl);
    } else {
      const Acc value = *row;
#pragma unroll
      for (int j = 0; j < E; ++j) grad_kl[j] = value;
    }
  }

  template <class From>
  static __device__ __forceinline__ void load_dense(const From* p, From (&to)[E]) {
    constexpr int V = 16 / sizeof(From);
#pragma unroll
    for (int j = 0; j < E; j += V) {
      const uint4 raw = cuda::load<From, V>(p + j);
      memcpy(to + j, &raw, sizeof raw);
    }
  }

  template <class To>
  static __device__ __forceinline__ void store_dense(To* p, const Acc (&from)[E]) {
    constexpr int V = 16 / sizeof(To);
#pragma unroll
    for (int k = 0; k < E; k += V) {
      Acc part[V];
#pragma unroll
      for (int j = 0; j < V; ++j) part[j] = from[k + j];
      cuda::store<To, V>(p + k, pack<To, V>(part));
    }
  }
};

// The maths of one element.

template <class Acc>
struct Options {
  Acc logvar_min, logvar_max, free_bits;
  bool clamps;  // not just to [-inf, inf]

  // NaN stays NaN.
  __device__ __forceinline__ Acc clamp(Acc logvar) const {
    if (!clamps) return logvar;
    return logvar < logvar_min ? logvar_min : logvar > logvar_max ? logvar_max : logvar;
  }
  __device__ __forceinline__ bool clamped(Acc logvar) const {
    return clamps && (logvar < logvar_min || logvar > logvar_max);
  }
};

// The divergence before free bits.
template <class Step, class Acc>
__device__ __forceinline__ GaussianKl<Acc> divergence(const Step& step, int j, Acc clamped_logvar) {
  Acc offset = step.at(kMu, j), difference = clamped_logvar, precision = 1;
  if (step.call.inputs[kPriorMu]) {
    const Acc prior_logvar = step.at(kPriorLogvar, j);
    offset -= step.at(kPriorMu, j);
    difference -= prior_logvar;
    precision = exponential(-prior_logvar);
  }
  return gaussian_kl(offset, difference, precision);
}

// Kernels.

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
template <class T, bool dense>
__global__ void __launch_bounds__(kThreads, forward_blocks(sizeof(T), dense))
    forward(const __grid_constant__ ReparameterizeKlCall call, const __grid_constant__ ReparameterizeKlPlan plan,
            const Options<Accumulator<T>> options, const Meeting<Accumulator<T>> meeting) {
  using Acc = Accumulator<T>;
  constexpr int E = kStep<T, dense>;
  const Way way = way_of(call.samples, plan, blockIdx.x, threadIdx.x);
  const uint64_t seed = call.inputs[kNoise] ? 0 : static_cast<uint64_t>(*call.seed);
  Step<T, dense, kForwardOperands> step(call, way.sample);
  Acc sum = 0;
  for (int64_t index = way.begin; index < way.end; index += 1 << plan.team_log2) {
    step.load(index);
    Acc z[E], kl[E];
#pragma unroll
    for (int k = 0; k < E / 4; ++k) {
      Acc noise[4];
      step.noise(seed, k, noise);
#pragma unroll
      for (int j = 4 * k; j < 4 * k + 4; ++j) {
        const Acc logvar = options.clamp(step.at(kLogvar, j));
        z[j] = multiply_add(exponential(Acc(0.5) * logvar), noise[j % 4], step.at(kMu, j));
        kl[j] = divergence(step, j, logvar).value;
        if (kl[j] < options.free_bits) kl[j] = options.free_bits;
      }
    }
    step.store(call.z, z);
    if (call.per_element) {
      step.store_kl(call.kl, kl);
    } else {
#pragma unroll
      for (int j = 0; j < E; ++j) {
        if (j < step.valid()) sum += kl[j];
      }
    }
  }
  if (call.per_element) return;

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
template <class T, bool dense>
__global__ void __launch_bounds__(kThreads, backward_blocks(sizeof(T), dense))
    backward(const __grid_constant__ ReparameterizeKlCall call, const __grid_constant__ ReparameterizeKlPlan plan,
             const Options<Accumulator<T>> options) {
  using Acc = Accumulator<T>;
  constexpr int E = kStep<T, dense>;
  const Way way = way_of(call.samples, plan, blockIdx.x, threadIdx.x);
  const bool sampled = call.inputs[kGradZ] != nullptr;
  const uint64_t seed = !sampled || call.inputs[kNoise] ? 0 : static_cast<uint64_t>(*call.seed);
  Step<T, dense, kOperands> step(call, way.sample);
  for (int64_t index = way.begin; index < way.end; index += 1 << plan.team_log2) {
    step.load(index);
    Acc grad_mu[E], grad_logvar[E], grad_noise[E], grad_prior_mu[E], grad_prior_logvar[E];
#pragma unroll
    for (int k = 0; k < E / 4; ++k) {
      Acc noise[4];
      if (sampled) step.noise(seed, k, noise);
#pragma unroll
      for (int j = 4 * k; j < 4 * k + 4; ++j) {
        const Acc logvar = options.clamp(step.at(kLogvar, j));
        grad_mu[j] = grad_logvar[j] = grad_noise[j] = grad_prior_mu[j] = grad_prior_logvar[j] = 0;
        if (call.inputs[kGradKl]) {
          const GaussianKl<Acc> kl = divergence(step, j, logvar);
          const Acc grad = kl.value < options.free_bits ? Acc(0) : step.grad_kl[j];
          grad_mu[j] = grad * kl.by_mu;
          grad_logvar[j] = grad * kl.by_logvar;
          grad_prior_mu[j] = -grad_mu[j];
          grad_prior_logvar[j] = grad * kl.by_prior_logvar;
        }
        if (sampled) {
          const Acc grad = step.at(kGradZ, j);
          grad_noise[j] = grad * exponential(Acc(0.5) * logvar);
          grad_mu[j] += grad;
          grad_logvar[j] = multiply_add(Acc(0.5) * grad_noise[j], noise[j % 4], grad_logvar[j]);
        }
        if (options.clamped(step.at(kLogvar, j))) grad_logvar[j] = 0;
      }
    }
    step.store(call.grad_mu, grad_mu);
    step.store(call.grad_logvar, grad_logvar);
    if (call.grad_noise) step.store(call.grad_noise, grad_noise);
    if (call.grad_prior_mu) step.store(call.grad_prior_mu, grad_prior_mu);
    if (call.grad_prior_logvar) step.store(call.grad_prior_logvar, grad_prior_logvar);
  }
}

}  // namespace genimg_fast::cuda
