#pragma once
// Kernels of batch_norm_act's forward: two that stream, and one that holds its data on chip.
#include "batch_norm_act_formulas.cuh"

namespace genimg_fast::cuda {

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
template <class T, int V, int A, bool Silu, int U>
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
        x[j] = Silu ? silu<T>(v) : args.activation(v, v);
      }
      store<T, V>(args.output + offsets[u], pack<T, V>(x));
    }
  }
}

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
template <class T, int V, int A, bool Silu>
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
    write_output<T, V, A, Silu>(args, affine, raw, offsets, valid);
  }
}

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
  const auto write = [&](const Word* raw, int valid) {
    if (args.activation.silu) {
      write_output<T, V, A, true>(args, affine, raw, offsets, valid);
    } else {
      write_output<T, V, A, false>(args, affine, raw, offsets, valid);
    }
  };
#pragma unroll
  for (int r = 0; r < R; r += U) write(kept + r, take(tiling, walk, offsets));
  place = parked + threadIdx.x;
  while (walk.left > 0) {
    Word raw[U];
    const int valid = take(tiling, walk, offsets);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (u < valid) raw[u] = place[u * tiling.threads];
    }
    place += U * tiling.threads;
    write(raw, valid);
  }
}

}  // namespace genimg_fast::cuda
