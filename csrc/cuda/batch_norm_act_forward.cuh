#pragma once
// Kernels of batch_norm_act's forward: two that stream, and one that holds its data on chip.
#include "batch_norm_act_formulas.cuh"

namespace genimg_fast::cuda::batch_norm {

// The first element of each of the tile's channels.  Moments are of x - pivot: where the mean is large beside the
// standard deviation, float could not hold the mean of a few elements well enough to merge it with another.
template <class T>
__device__ __forceinline__ void load_pivots(const Tiling& tiling, const T* input, int tile, Accumulator<T>* pivots) {
  const int k = threadIdx.x;
  const int channel = tile * tiling.group + k;
  if (k < tiling.group && channel < tiling.channels) {
    Accumulator<T> pivot[1];
    unpack<T, 1>(load<T, 1>(at_byte(input, channel * tiling.run)), pivot);
    pivots[k] = pivot[0];
  }
}

// A thread's moments, in one pass: sums of d = x - center and of d * d, several of them side by side.  Now and then
// the center becomes the mean so far: then what cancels in the end is bounded, since a drift inside a thread is itself
// part of the variance.
template <class T, int V, int A>
struct ThreadMoments {
  using Acc = Accumulator<T>;
  static constexpr int kSums = A == 1 ? kPart<V> : V;

  Acc center[A] = {}, sum[kSums] = {}, squares[kSums] = {};
  int accesses = 0;

  // With the thread's first access, before it is added.
  __device__ __forceinline__ void begin(Raw<T, V> raw) {
    Acc values[V];
    unpack<T, V>(raw, values);
    if (A == 1) values[0] = sum_of(values) * (Acc(1) / V);
#pragma unroll
    for (int j = 0; j < A; ++j) center[j] = values[j];
  }
  template <int U, class Valid>
  __device__ __forceinline__ void add(const Raw<T, V>* raw, Valid valid) {
    accesses += valid;
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (u < valid) {
        Acc values[V];
        unpack<T, V>(raw[u], values);
#pragma unroll
        for (int j = 0; j < V; ++j) {
          const Acc d = values[j] - center[A == 1 ? 0 : j];
          sum[j % kSums] += d;
          squares[j % kSums] = multiply_add(d, d, squares[j % kSums]);
        }
      }
    }
  }
  __device__ __forceinline__ void recenter() {
    constexpr int kPerChannel = kSums / A;
    const Acc count = static_cast<Acc>(accesses * (A == 1 ? V / kSums : 1));  // in each sum
    const Acc inverse = quotient(Acc(1), count * kPerChannel);
#pragma unroll
    for (int j = 0; j < A; ++j) {
      Acc total = sum[j * kPerChannel];
#pragma unroll
      for (int i = 1; i < kPerChannel; ++i) total += sum[j * kPerChannel + i];
      const Acc old = center[j];
      center[j] = multiply_add(total, inverse, old);
      const Acc shift = center[j] - old;
#pragma unroll
      for (int i = j * kPerChannel; i < (j + 1) * kPerChannel; ++i) {
        const Acc moved = multiply_add(-shift, count, sum[i]);
        squares[i] = multiply_add(-shift, sum[i] + moved, squares[i]);
        sum[i] = moved;
      }
    }
  }
  // Of x - pivot, by the tile's channels.
  __device__ __forceinline__ Partials<Acc, A> found(const Acc* pivots, int local) {
    Partials<Acc, A> result;
    result.n = static_cast<Acc>(accesses * (A == 1 ? V : 1));
    const Acc inverse = accesses > 0 ? quotient(Acc(1), result.n) : Acc(0);
    if (A == 1) {
      sum_of(sum);
      sum_of(squares);
    }
#pragma unroll
    for (int j = 0; j < A; ++j) {
      if (j % 4 == 0) gpu::forget_memory();  // a few pivots at a time
      const Acc shift = sum[j] * inverse;
      result.a[j] = (center[j] - pivots[local + j]) + shift;
      result.b[j] = multiply_add(-shift, sum[j], squares[j]);
    }
    return result;
  }
};

constexpr int kRound = 16;  // chunks for which the center stays

// Normalises, adds the residual, activates and writes a chunk.
template <class T, int V, int A, int Activation, bool Residual, int U, class Valid>
__device__ __forceinline__ void write_output(const Tiling& tiling, const ForwardArguments<T>& args,
                                             ChannelValues<Accumulator<T>, 3, V, A>& channel,
                                             const ChannelTable<Accumulator<T>, 3>& table, int local, Raw<T, V>* raw,
                                             int64_t offset, Valid valid) {
  using Acc = Accumulator<T>;
  constexpr int P = kPart<V>;
  const bool residual = Residual && args.residual;
  Raw<T, V> added[U];
  if (residual) load_chunk<T, V, U>(tiling, args.residual, offset, valid, added);
#pragma unroll
  for (int part = 0; part < V / P; ++part) {
    channel.read_part(table, local, part);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (u < valid) {
        Acc x[P], r[P];
        unpack<T, P>(get_part<T, V>(raw[u], part), x);
        if (residual) unpack<T, P>(get_part<T, V>(added[u], part), r);
#pragma unroll
        for (int j = 0; j < P; ++j) {
          Acc v = channel.preactivation(channel.centred(x[j], j), j);
          if (residual) v += r[j];
          x[j] = activate<T, Activation>(args.activation, v);
        }
        set_part<T, V>(raw[u], part, pack<T, P>(x));
      }
    }
  }
  store_chunk<T, V, U>(tiling, args.output, offset, valid, raw, gpu::store_policy(args.stream));
}

template <class T>
__device__ __forceinline__ void store_statistics(const ForwardArguments<T>& args, int channel, Accumulator<T> mean,
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
__device__ __forceinline__ void finish_statistics(const Tiling& tiling, const ForwardArguments<T>& args, int tile,
                                                  bool leader, const Accumulator<T>* pivots,
                                                  const Partial<Accumulator<T>>* total,
                                                  ChannelTable<Accumulator<T>, 3>& table) {
  using Acc = Accumulator<T>;
  const int k = threadIdx.x;
  const int channel = tile * tiling.group + k;
  if (k >= tiling.group || channel >= tiling.channels) return;
  const Acc mean = pivots[k] + total[k].a, variance = total[k].b / total[k].n;
  const Acc invstd = Acc(1) / square_root(variance + static_cast<Acc>(args.eps));
  table.set_affine(k, mean, invstd, read_or(args.weight, channel, Acc(1)), read_or(args.bias, channel, Acc(0)));
  if (leader) store_statistics(args, channel, mean, invstd, variance);
}

// Procedure overview: batch statistics.
//   1. Each thread reduces its chunks to moments.
//   2. The block combines its threads' moments.
//   3. With several slices to a tile, it stages the result.  Few parts are left to normalize; otherwise the last block
//      of the tile combines them.
//   4. If that was done here, mean, invstd and running statistics are written.
template <class T, int V, int A>
__global__ void __launch_bounds__(kThreads, kMinBlocks<T, true>)
    reduce_moments(const Tiling tiling, const ForwardArguments<T> args, const Parts<Accumulator<T>> parts) {
  using Acc = Accumulator<T>;
  constexpr int U = chunk_accesses(true, 1, V, A, V * sizeof(T));
  using Table = ChannelTable<Acc, 3>;
  SHARED(Partial<Acc>, total, [kMaxGroup]);
  SHARED(Table, table, );
  SHARED(Acc, pivots, [kMaxGroup]);
  const int tile = blockIdx.x, slice = blockIdx.y;
  gpu::allow_next_kernel();
  load_pivots(tiling, args.input, tile, pivots);

  ThreadMoments<T, V, A> moments;
  Walk walk = tiling.walk<T, V, A, U>(tile, slice, threadIdx.x);
  for_each_ragged_chunk<A>(tiling, walk, [&](int64_t offset, int valid) {
    Raw<T, V> raw[U];
    load_chunk<T, V, U>(tiling, args.input, offset, valid, raw);
    if (moments.accesses == 0) moments.begin(raw[0]);
    moments.template add<U>(raw, valid);
  });
  while (walk.whole > 0) {
    moments.recenter();
    const int after = walk.whole < kRound ? 0 : walk.whole - kRound;
#pragma unroll 1
    for (; walk.whole > after; --walk.whole) {
      Raw<T, V> raw[U];
      load_chunk<T, V, U>(tiling, args.input, walk.offset, Whole<U>{}, raw);
      tiling.advance<A>(walk);
      moments.template add<U>(raw, Whole<U>{});
    }
  }

  __syncthreads();
  combine_block<Moments, A>(tiling, moments.found(pivots, walk.local), total);
  if (tiling.slices > 1) {
    stage(tiling, parts, tile, slice, total);
    if (!parts.arrived || !is_last_block(parts.arrived + tile, tiling.slices)) return;
    combine_staged<Moments, 8>(tiling, parts, tile, total);
  }
  finish_statistics(tiling, args, tile, true, pivots, total, table);
}

// Procedure overview: the elementwise part of forward.
//   1. The block makes the table of its channels: from the parts that reduce_moments left (the first slice's block then
//      also stores the statistics), from its results, or in evaluation from the running statistics.
//   2. Each thread normalises its accesses, adds the residual, activates and writes.  Blocks begin at the end of the
//      tensor, where reduce_moments was last, so that they read first what the cache still holds.
template <class T, int V, int A, int Activation, bool Plain>
__global__ void __launch_bounds__(kThreads, kMinBlocks<T, Plain && Activation != kSilu>)
    normalize(const Tiling tiling, const ForwardArguments<T> args, const Tiling reduced,
              const Parts<Accumulator<T>> parts) {
  using Acc = Accumulator<T>;
  constexpr int U = chunk_accesses(false, Plain ? 1 : 2, V, A, V * sizeof(T));
  using Table = ChannelTable<Acc, 3>;
  SHARED(Partial<Acc>, total, [kMaxGroup]);
  SHARED(Table, table, );
  SHARED(Acc, pivots, [kMaxGroup]);
  const int tile = gridDim.x - 1 - blockIdx.x, slice = gridDim.y - 1 - blockIdx.y;
  Walk walk = tiling.walk<T, V, A, U>(tile, slice, threadIdx.x);
  if (parts.staged) load_pivots(tiling, args.input, tile, pivots);

  gpu::wait_for_previous_kernel();
  if (parts.staged) {
    combine_staged<Moments, 4>(reduced, parts, tile, total);
    finish_statistics(reduced, args, tile, slice == 0, pivots, total, table);
  } else {
    const int k = threadIdx.x;
    const int channel = tile * tiling.group + k;
    if (k < tiling.group && channel < tiling.channels) {
      Acc mean, invstd;
      if (args.training) {
        mean = gpu::ld_cg(args.mean + channel);
        invstd = gpu::ld_cg(args.invstd + channel);
      } else {  // rounded once, as the invstd that the backward of an evaluation is given
        mean = args.running_mean.read(channel);
        invstd = static_cast<Acc>(rsqrt(args.running_var.read(channel) + args.eps));
      }
      table.set_affine(k, mean, invstd, read_or(args.weight, channel, Acc(1)), read_or(args.bias, channel, Acc(0)));
    }
  }
  __syncthreads();

  if (walk.ragged == 0) return;
  ChannelValues<Acc, 3, V, A> channel;
  channel.read(table, walk.local);
  for_each_chunk<A, U>(tiling, walk, [&](int64_t offset, auto valid) {
    Raw<T, V> raw[U];
    load_chunk<T, V, U>(tiling, args.input, offset, valid, raw);
    write_output<T, V, A, Activation, !Plain, U>(tiling, args, channel, table, walk.local, raw, offset, valid);
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
  constexpr int U = chunk_accesses(true, 1, V, A, V * sizeof(T)), R = kept_accesses(1, V, A);
  static_assert(R % U == 0);
  using Word = Raw<T, V>;
  DYN_SHARED(Word, parked);
  using Table = ChannelTable<Acc, 3>;
  SHARED(Partial<Acc>, total, [kMaxGroup]);
  SHARED(Table, table, );
  SHARED(Acc, pivots, [kMaxGroup]);
  const int tile = blockIdx.x;
  load_pivots(tiling, args.input, tile, pivots);

  ThreadMoments<T, V, A> moments;
  const Walk begin = tiling.walk<T, V, A, U>(tile, 0, threadIdx.x);
  Walk walk = begin;
  Word kept[R / U][U];
#pragma unroll
  for (int r = 0; r < R / U; ++r) {
    const Chunk chunk = tiling.next<A, U>(walk);
    load_chunk<T, V, U>(tiling, args.input, chunk.offset, chunk.valid, kept[r]);
  }
  Walk again = begin;
#pragma unroll
  for (int r = 0; r < R / U; ++r) {
    const int valid = tiling.next<A, U>(again).valid;
    if (r == 0 && valid > 0) moments.begin(kept[0][0]);
    moments.template add<U>(kept[r], valid);
  }
  int chunks = 0;
  for (Word* place = parked + threadIdx.x;; place += U * tiling.threads) {
    const Chunk chunk = tiling.next<A, U>(walk);
    if (chunk.valid == 0) break;
    Word raw[U];
    load_chunk<T, V, U>(tiling, args.input, chunk.offset, chunk.valid, raw);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (u < chunk.valid) place[u * tiling.threads] = raw[u];
    }
    if (chunks++ % kRound == 0) moments.recenter();
    moments.template add<U>(raw, chunk.valid);
  }

  __syncthreads();
  combine_block<Moments, A>(tiling, moments.found(pivots, begin.local), total);
  finish_statistics(tiling, args, tile, true, pivots, total, table);
  __syncthreads();

  walk = begin;
  if (walk.ragged == 0) return;
  ChannelValues<Acc, 3, V, A> channel;
  channel.read(table, walk.local);
  const auto write = [&](Word* raw, const Chunk& chunk) {
    if (args.activation.kind == kSilu) {
      write_output<T, V, A, kSilu, true, U>(tiling, args, channel, table, begin.local, raw, chunk.offset, chunk.valid);
    } else {
      write_output<T, V, A, kSelect, true, U>(tiling, args, channel, table, begin.local, raw, chunk.offset,
                                              chunk.valid);
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

}  // namespace genimg_fast::cuda::batch_norm
