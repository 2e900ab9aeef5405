#pragma once
// Kernels of batch_norm_act's backward: two that stream, and one that holds its data on chip.
#include "batch_norm_act_formulas.cuh"

namespace genimg_fast::cuda {

// The gradient behind the activation of one access, in place of grad; `normalized` receives (x - mean) * invstd.
template <class T, int V, int A, bool Silu>
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
    grad[j] = Silu ? grad[j] * silu_derivative<T>(v) : args.activation(v, grad[j]);
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

// Procedure overview: gradients of weight and bias; in the same read the gradients that need no sums.
//   1. Each thread computes the gradient behind the activation, g', and sums g' and g' * normalized.  It writes g' as
//      grad_residual and, in evaluation, g' * invstd * weight as grad_input, where these are wanted.
//   2. Sums are combined as in reduce_moments.
template <class T, int V, int A, bool Silu>
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
          activation_gradient<T, V, A, Silu>(args, affine, input[u], residual[u], grad, normalized);
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
template <class T, int V, int A, bool Silu>
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
        activation_gradient<T, V, A, Silu>(args, affine, input[u], residual[u], grad, normalized);
#pragma unroll
        for (int j = 0; j < V; ++j) grad[j] = input_gradient(affine, grad[j], normalized[j], j);
        store<T, V>(args.grad_input + offsets[u], pack<T, V>(grad));
      }
    }
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
        if (args.activation.silu) {
          activation_gradient<T, V, A, true>(args, affine, input_raw[u], residual[u], grad, normalized);
        } else {
          activation_gradient<T, V, A, false>(args, affine, input_raw[u], residual[u], grad, normalized);
        }
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
