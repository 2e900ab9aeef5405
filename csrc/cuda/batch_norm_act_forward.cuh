#pragma once
// Kernels of batch_norm_act's forward: two that stream, and one that holds its data on chip.
#include "batch_norm_act_formulas.cuh"

namespace genimg_fast::cuda {

// The first element of each of a thread's channels.  Moments are taken of x - pivot: where the mean is large beside the
// standard deviation, float could not hold the mean of a few elements well enough to merge it with another.
template <class T, int A>
__device__ __forceinline__ void load_pivot(const T* first, Accumulator<T> (&pivot)[A]) {
  unpack<T, A>(load<T, A>(first), pivot);
}
template <class T, int A>
__device__ __forceinline__ void load_pivot(const Tiling& tiling, const T* input, int64_t channel,
                                           Accumulator<T> (&pivot)[A]) {
  load_pivot<T, A>(at_byte(input, channel * tiling.run), pivot);
}

// A thread's moments.
template <class T, int V, int A>
struct ThreadMoments {
  using Acc = Accumulator<T>;
  static constexpr int kPerAccess = A == 1 ? V : 1;  // elements of one channel

  Acc pivot[A];
  Partials<Acc, A> found{};  // of x - pivot
  Acc center[A], sum[V], squares[V];

  __device__ __forceinline__ void merge(Acc count, const Acc (&mean)[A], const Acc* deviations) {
    const Acc share = quotient(count, found.n + count), weight = found.n * share;
#pragma unroll
    for (int j = 0; j < A; ++j) {
      const Acc delta = mean[j] - found.a[j];
      found.a[j] = multiply_add(delta, share, found.a[j]);
      found.b[j] += multiply_add(delta * weight, delta, deviations[j]);
    }
    found.n += count;
  }

  // Adds a chunk: mean and squared deviations in two passes over registers.
  template <int U>
  __device__ __forceinline__ void add_chunk(const Raw<T, V>* raw, int valid) {
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
    const Acc count = static_cast<Acc>(valid * kPerAccess), inverse = quotient(Acc(1), count);
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
    merge(count, mean, deviations);
  }

  // Adds many accesses in one pass, about the mean of those before.  What cancels is bounded: if the mean drifts, the
  // drift is itself part of the variance, and the accesses of one round are at most kRound chunks against those before.
  __device__ __forceinline__ void begin_round() {
#pragma unroll
    for (int j = 0; j < A; ++j) center[j] = pivot[j] + found.a[j];
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] = squares[j] = 0;
  }
  // Likewise about the mean of one access, if there are none before.
  __device__ __forceinline__ void begin_at(Raw<T, V> raw) {
    Acc values[V];
    unpack<T, V>(raw, values);
    if (A == 1) values[0] = sum_of(values) * (Acc(1) / V);
#pragma unroll
    for (int j = 0; j < A; ++j) center[j] = values[j];
#pragma unroll
    for (int j = 0; j < V; ++j) sum[j] = squares[j] = 0;
  }
  __device__ __forceinline__ void add(Raw<T, V> raw) {
    Acc values[V];
    unpack<T, V>(raw, values);
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const Acc d = values[j] - center[A == 1 ? 0 : j];
      sum[j] += d;
      squares[j] = multiply_add(d, d, squares[j]);
    }
  }
  __device__ __forceinline__ void end_round(int accesses) {
    const Acc count = static_cast<Acc>(accesses * kPerAccess), inverse = quotient(Acc(1), count);
    Acc mean[A];
    if (A == 1) {
      sum_of(sum);
      sum_of(squares);
    }
#pragma unroll
    for (int j = 0; j < A; ++j) {
      const Acc shift = sum[j] * inverse;
      squares[j] = multiply_add(-shift, sum[j], squares[j]);
      mean[j] = (center[j] - pivot[j]) + shift;
    }
    merge(count, mean, squares);
  }
};

constexpr int kRound = 16;  // chunks

// Normalises, adds the residual, activates and writes a chunk.
template <class T, int V, int A, int Activation, bool Residual, int U, class Valid>
__device__ __forceinline__ void write_output(const Tiling& tiling, const ForwardArguments<T>& args,
                                             const ChannelValues<Accumulator<T>, 3, A>& channel, const Raw<T, V>* raw,
                                             int64_t offset, Valid valid) {
  using Acc = Accumulator<T>;
  const bool residual = Residual && args.residual;
  Raw<T, V> added[U];
  if (residual) load_chunk<T, V, U>(tiling, args.residual, offset, valid, added);
  T* output = at_byte(args.output, offset);
#pragma unroll
  for (int u = 0; u < U; ++u) {
    if (u < valid) {
      Acc x[V], r[V];
      unpack<T, V>(raw[u], x);
      if (residual) unpack<T, V>(added[u], r);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        Acc v = channel.preactivation(channel.centred(x[j], j), j);
        if (residual) v += r[j];
        x[j] = activate<T, Activation>(args.activation, v);
      }
      store_result<T, V>(output, pack<T, V>(x), args.stream);
    }
    output = at_byte(output, tiling.access_step);
  }
}

template <class T>
__device__ __forceinline__ void store_statistics(const ForwardArguments<T>& args, int64_t channel, Accumulator<T> mean,
                                                 Accumulator<T> invstd, Accumulator<T> variance) {
  using Acc = Accumulator<T>;
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

// Turns the tile's moments (about the pivot) into the table of its channels; the block that is `leader` also stores
// mean and 1/std and updates the running statistics.
template <class T>
__device__ __forceinline__ void finish_statistics(const Tiling& tiling, const ForwardArguments<T>& args, int64_t tile,
                                                  bool leader, const Partial<Accumulator<T>>* total,
                                                  ChannelTable<Accumulator<T>, 3>& table) {
  using Acc = Accumulator<T>;
  const int k = threadIdx.x;
  const int64_t channel = tile * tiling.group + k;
  if (k >= tiling.group || channel >= tiling.channels) return;
  Acc pivot[1];
  load_pivot<T, 1>(tiling, args.input, channel, pivot);
  const Acc mean = pivot[0] + total[k].a, variance = total[k].b / total[k].n;
  const Acc invstd = Acc(1) / square_root(variance + args.eps);
  table.set_affine(k, mean, invstd, read_or(args.weight, channel, Acc(1)), read_or(args.bias, channel, Acc(0)));
  if (leader) store_statistics(args, channel, mean, invstd, variance);
}

// Procedure overview: batch statistics.
//   1. Each thread reduces its chunks to moments: the ragged ones in two passes over registers, the others in one pass
//      about the mean of those before.
//   2. The block combines its threads' moments.
//   3. With several slices to a tile, it stages the result.  Few parts are left to normalize; otherwise the last block
//      of the tile combines them.
//   4. If that was done here, mean, invstd and running statistics are written.
template <class T, int V, int A>
__global__ void __launch_bounds__(kThreads, kMinBlocks<T>)
    reduce_moments(const Tiling tiling, const ForwardArguments<T> args, const Parts<Accumulator<T>> parts) {
  using Acc = Accumulator<T>;
  constexpr int U = chunk_accesses(V);
  using Table = ChannelTable<Acc, 3>;
  SHARED(Partial<Acc>, total, [kMaxGroup]);
  SHARED(Table, table, );
  const int64_t tile = blockIdx.x % tiling.tiles;
  const int slice = blockIdx.x / tiling.tiles;
  gpu::allow_next_kernel();

  ThreadMoments<T, V, A> moments;
  Walk walk = tiling.walk<T, V, A, U>(tile, slice, threadIdx.x);
  if (walk.ragged > 0) load_pivot<T, A>(tiling, args.input, walk.channel, moments.pivot);
  for (; walk.ragged > 0; --walk.ragged, walk.ragged_offset += tiling.ragged_step) {
    Raw<T, V> raw[U];
    load_chunk<T, V, U>(tiling, args.input, walk.ragged_offset, walk.valid, raw);
    moments.template add_chunk<U>(raw, walk.valid);
  }
  while (walk.whole > 0) {
    const int chunks = walk.whole < kRound ? walk.whole : kRound;
    moments.begin_round();
#pragma unroll 1
    for (int i = 0; i < chunks; ++i) {
      Raw<T, V> raw[U];
      load_chunk<T, V, U>(tiling, args.input, walk.offset, Whole<U>{}, raw);
      tiling.advance<A>(walk);
#pragma unroll
      for (int u = 0; u < U; ++u) moments.add(raw[u]);
    }
    moments.end_round(chunks * U);
    walk.whole -= chunks;
  }

  combine_block<Moments, A>(tiling, moments.found, total);
  if (tiling.slices > 1) {
    stage(tiling, parts, tile, slice, total);
    if (!parts.arrived || !is_last_block(parts.arrived + tile, tiling.slices)) return;
    combine_staged<Moments, V>(tiling, parts, tile, total);
  }
  finish_statistics(tiling, args, tile, true, total, table);
}

// Procedure overview: the elementwise part of forward.
//   1. The block makes the table of its channels: from the parts that reduce_moments left (the first slice's block then
//      also stores the statistics), from its results, or in evaluation from the running statistics.
//   2. Each thread normalises its accesses, adds the residual, activates and writes.  Blocks begin at the end of the
//      tensor, where reduce_moments was last, so that they read first what the cache still holds.
template <class T, int V, int A, int Activation, bool Plain>
__global__ void __launch_bounds__(kThreads, kMinBlocks<T>)
    normalize(const Tiling tiling, const ForwardArguments<T> args, const Tiling reduced,
              const Parts<Accumulator<T>> parts) {
  using Acc = Accumulator<T>;
  constexpr int U = chunk_accesses(V);
  using Table = ChannelTable<Acc, 3>;
  SHARED(Partial<Acc>, total, [kMaxGroup]);
  SHARED(Table, table, );
  const unsigned block = gridDim.x - 1 - blockIdx.x;
  const int64_t tile = block % tiling.tiles;
  const int slice = block / tiling.tiles;
  Walk walk = tiling.walk<T, V, A, U>(tile, slice, threadIdx.x);

  gpu::wait_for_previous_kernel();
  if (parts.staged) {
    combine_staged<Moments, V>(reduced, parts, tile, total);
    finish_statistics(reduced, args, tile, slice == 0, total, table);
  } else {
    const int k = threadIdx.x;
    const int64_t channel = tile * tiling.group + k;
    if (k < tiling.group && channel < tiling.channels) {
      const Acc mean = args.training ? gpu::ld_cg(args.mean + channel) : args.running_mean.read(channel);
      const Acc invstd = args.training ? gpu::ld_cg(args.invstd + channel)
                                       : Acc(1) / square_root(args.running_var.read(channel) + args.eps);
      table.set_affine(k, mean, invstd, read_or(args.weight, channel, Acc(1)), read_or(args.bias, channel, Acc(0)));
    }
  }
  __syncthreads();

  if (walk.ragged == 0) return;
  ChannelValues<Acc, 3, A> channel;
  channel.read(table, walk.local);
  for_each_chunk<A, U>(tiling, walk, [&](int64_t offset, auto valid) {
    Raw<T, V> raw[U];
    load_chunk<T, V, U>(tiling, args.input, offset, valid, raw);
    channel.read_again(table, walk.local);
    write_output<T, V, A, Activation, !Plain, U>(tiling, args, channel, raw, offset, valid);
  });
}

// Procedure overview: all of training's forward with one read of the input, where a block can hold a tile.
//   1. Each thread loads its chunks, the first ones into registers, the others into its own places in shared memory
//      (thread t's access r lies at parked[r * threads + t]), and reduces them to moments on the way.
//   2. The block combines its threads' moments and writes mean, invstd and running statistics.
//   3. Each thread normalises what it holds and writes the output.
template <class T, int V, int A>
__global__ void __launch_bounds__(kOnChipThreads, 1)
    train_on_chip(const Tiling tiling, const ForwardArguments<T> args) {
  using Acc = Accumulator<T>;
  constexpr int U = held_chunk_accesses(1, V, A), R = kept_accesses(1, V, A);
  static_assert(R % U == 0);
  using Word = Raw<T, V>;
  DYN_SHARED(Word, parked);
  using Table = ChannelTable<Acc, 3>;
  SHARED(Partial<Acc>, total, [kMaxGroup]);
  SHARED(Table, table, );
  const int64_t tile = blockIdx.x;

  ThreadMoments<T, V, A> moments;
  const Walk begin = tiling.walk<T, V, A, U>(tile, 0, threadIdx.x);
  if (begin.ragged > 0) load_pivot<T, A>(tiling, args.input, begin.channel, moments.pivot);
  Walk walk = begin;
  Word kept[R / U][U];
#pragma unroll
  for (int r = 0; r < R / U; ++r) {
    const Chunk chunk = tiling.next<A, U>(walk);
    load_chunk<T, V, U>(tiling, args.input, chunk.offset, chunk.valid, kept[r]);
  }
  Walk again = begin;
#pragma unroll
  for (int r = 0; r < R / U; ++r) moments.template add_chunk<U>(kept[r], tiling.next<A, U>(again).valid);
  for (Word* place = parked + threadIdx.x;; place += U * tiling.threads) {
    const Chunk chunk = tiling.next<A, U>(walk);
    if (chunk.valid == 0) break;
    Word raw[U];
    load_chunk<T, V, U>(tiling, args.input, chunk.offset, chunk.valid, raw);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (u < chunk.valid) place[u * tiling.threads] = raw[u];
    }
    moments.template add_chunk<U>(raw, chunk.valid);
  }

  combine_block<Moments, A>(tiling, moments.found, total);
  finish_statistics(tiling, args, tile, true, total, table);
  __syncthreads();

  walk = begin;
  if (walk.ragged == 0) return;
  ChannelValues<Acc, 3, A> channel;
  channel.read(table, walk.local);
  const auto write = [&](const Word* raw, const Chunk& chunk) {
    if (args.activation.kind == kSilu) {
      write_output<T, V, A, kSilu, true, U>(tiling, args, channel, raw, chunk.offset, chunk.valid);
    } else {
      write_output<T, V, A, kSelect, true, U>(tiling, args, channel, raw, chunk.offset, chunk.valid);
    }
  };
#pragma unroll
  for (int r = 0; r < R / U; ++r) write(kept[r], tiling.next<A, U>(walk));
  for (const Word* place = parked + threadIdx.x;; place += U * tiling.threads) {
    const Chunk chunk = tiling.next<A, U>(walk);
    if (chunk.valid == 0) break;
    Word raw[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (u < chunk.valid) raw[u] = place[u * tiling.threads];
    }
    write(raw, chunk);
  }
}

}  // namespace genimg_fast::cuda
