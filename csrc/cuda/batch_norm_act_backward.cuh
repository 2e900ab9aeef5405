#pragma once
// Kernels of batch_norm_act's backward: two that stream, and one that holds its data on chip.
#include "batch_norm_act_formulas.cuh"

namespace genimg_fast::cuda::batch_norm {

// A chunk of what backward reads.
template <class T, int V, int U>
struct GradientChunk {
  Raw<T, V> grad[U], input[U], residual[U];
  bool has_residual;

  template <class Valid>
  __device__ __forceinline__ void load(const Tiling& tiling, const BackwardArguments<T>& args, bool with_residual,
                                       int64_t offset, Valid valid) {
    has_residual = with_residual && args.residual;
    load_chunk<T, V, U>(tiling, args.grad_output, offset, valid, grad);
    load_chunk<T, V, U>(tiling, args.input, offset, valid, input);
    if (has_residual) load_chunk<T, V, U>(tiling, args.residual, offset, valid, residual);
  }

  // x - mean and the gradient behind the activation, g', of a part of an access.
  template <int Activation, int N, int A>
  __device__ __forceinline__ void compute(const BackwardArguments<T>& args,
                                          const ChannelValues<Accumulator<T>, N, V, A>& channel, int u, int part,
                                          Accumulator<T> (&centred)[kPart<V>],
                                          Accumulator<T> (&gradient)[kPart<V>]) const {
    using Acc = Accumulator<T>;
    constexpr int P = kPart<V>;
    Acc added[P];
    unpack<T, P>(get_part<T, V>(grad[u], part), gradient);
    unpack<T, P>(get_part<T, V>(input[u], part), centred);
    if (has_residual) unpack<T, P>(get_part<T, V>(residual[u], part), added);
#pragma unroll
    for (int j = 0; j < P; ++j) {
      centred[j] = channel.centred(centred[j], j);
      Acc v = channel.preactivation(centred[j], j);
      if (has_residual) v += added[j];
      gradient[j] = through_activation<T, Activation>(args.activation, v, gradient[j]);
    }
  }
};

// sum(g') and sum(g' * (x - mean)) of a thread's channels, several sums of one channel side by side.
template <class Acc, int V, int A>
struct GradientSums {
  static constexpr int kSums = A == 1 ? kPart<V> : V;
  Acc plain[kSums] = {}, weighted[kSums] = {};

  __device__ __forceinline__ void add(int part, const Acc (&grad)[kPart<V>], const Acc (&centred)[kPart<V>]) {
#pragma unroll
    for (int j = 0; j < kPart<V>; ++j) {
      const int k = A == 1 ? j : part * kPart<V> + j;
      plain[k] += grad[j];
      weighted[k] = multiply_add(grad[j], centred[j], weighted[k]);
    }
  }
  __device__ __forceinline__ Partials<Acc, A> found() {
    if (A == 1) {
      sum_of(plain);
      sum_of(weighted);
    }
    Partials<Acc, A> sums{};
#pragma unroll
    for (int j = 0; j < A; ++j) {
      sums.a[j] = plain[j];
      sums.b[j] = weighted[j];
    }
    return sums;
  }
};

template <class T, int N>
__device__ __forceinline__ void read_parameters(const Tiling& tiling, const BackwardArguments<T>& args, int tile,
                                                ChannelTable<Accumulator<T>, N>& table) {
  using Acc = Accumulator<T>;
  const int k = threadIdx.x;
  const int channel = tile * tiling.group + k;
  if (k < tiling.group && channel < tiling.channels) {
    table.set_affine(k, args.mean[channel], args.invstd[channel], read_or(args.weight, channel, Acc(1)),
                     read_or(args.bias, channel, Acc(0)));
  }
}

template <class T>
__device__ __forceinline__ void store_parameter_gradients(const Tiling& tiling, const BackwardArguments<T>& args,
                                                          int tile, const Partial<Accumulator<T>>* total) {
  const int k = threadIdx.x;
  const int channel = tile * tiling.group + k;
  if (k < tiling.group && channel < tiling.channels) {
    args.grad_bias[channel] = total[k].a;
    args.grad_weight[channel] = total[k].b * args.invstd[channel];
  }
}

// dx = (g' - mean(g') - normalized * mean(g' * normalized)) * scale, with normalized = (x - mean) * invstd.
template <class T>
__device__ __forceinline__ void set_input_gradient(const BackwardArguments<T>& args, int channel, int k,
                                                   Accumulator<T> grad_bias, Accumulator<T> grad_weight,
                                                   ChannelTable<Accumulator<T>, 5>& table) {
  const Accumulator<T> scale = table.values[kScale][k] * args.inverse_count;
  table.values[kXScale][k] = -scale * args.invstd[channel] * grad_weight;
  table.values[kOffset][k] = -scale * grad_bias;
}

// Procedure overview: gradients of weight and bias; in the same read the gradients that need no sums.
//   1. Each thread computes the gradient behind the activation, g', and sums g' and g' * (x - mean).  Unless Plain, it
//      adds the residual, if any, and writes g' as grad_residual and, in evaluation, g' * scale as grad_input, where
//      these are wanted.
//   2. Sums are combined as in reduce_moments.
template <class T, int V, int A, int Activation, bool Plain>
__global__ void __launch_bounds__(kThreads, kMinBlocks<T, Plain && Activation != kSilu>)
    reduce_gradients(const Tiling tiling, const BackwardArguments<T> args, const Parts<Accumulator<T>> parts) {
  using Acc = Accumulator<T>;
  constexpr int U = chunk_accesses(true, 2, V, A, V * sizeof(T)), P = kPart<V>;
  using Table = ChannelTable<Acc, 3>;
  SHARED(Partial<Acc>, total, [kMaxGroup]);
  SHARED(Table, table, );
  const int tile = blockIdx.x, slice = blockIdx.y;
  gpu::allow_next_kernel();

  read_parameters(tiling, args, tile, table);
  __syncthreads();
  GradientSums<Acc, V, A> sums;
  Walk walk = tiling.walk<T, V, A, U>(tile, slice, threadIdx.x);
  ChannelValues<Acc, 3, V, A> channel;
  channel.read(table, walk.local);
  for_each_chunk<A, U>(tiling, walk, [&](int64_t offset, auto valid) {
    GradientChunk<T, V, U> chunk;
    chunk.load(tiling, args, !Plain, offset, valid);
#pragma unroll
    for (int part = 0; part < V / P; ++part) {
      channel.read_part(table, walk.local, part);
#pragma unroll
      for (int u = 0; u < U; ++u) {
        if (u < valid) {
          Acc grad[P], centred[P];
          chunk.template compute<Activation>(args, channel, u, part, centred, grad);
          sums.add(part, grad, centred);
          if (!Plain) {
            set_part<T, V>(chunk.grad[u], part, pack<T, P>(grad));
#pragma unroll
            for (int j = 0; j < P; ++j) grad[j] *= channel.get(kScale, j);
            set_part<T, V>(chunk.input[u], part, pack<T, P>(grad));
          }
        }
      }
    }
    if (!Plain) {
      if (args.grad_residual) store_chunk<T, V, U>(tiling, args.grad_residual, offset, valid, chunk.grad);
      if (args.grad_input) store_chunk<T, V, U>(tiling, args.grad_input, offset, valid, chunk.input);
    }
  });
  combine_block<Sums, A>(tiling, sums.found(), total);
  if (tiling.slices > 1) {
    stage(tiling, parts, tile, slice, total);
    if (!parts.arrived || !is_last_block(parts.arrived + tile, tiling.slices)) return;
    combine_staged<Sums, 8>(tiling, parts, tile, total);
  }
  store_parameter_gradients(tiling, args, tile, total);
}

// Procedure overview: grad_input in training, once the sums are known.
//   1. The block makes the table of its channels: from the parts that reduce_gradients left (the first slice's block
//      then also stores grad_weight and grad_bias), or from its results.
//   2. Each thread recomputes g' and writes grad_input.  Blocks begin at the end of the tensor, as in normalize.
template <class T, int V, int A, int Activation, bool Plain>
__global__ void __launch_bounds__(kThreads, kMinBlocks<T, Plain && Activation != kSilu>)
    apply_gradients(const Tiling tiling, const BackwardArguments<T> args, const Tiling reduced,
                    const Parts<Accumulator<T>> parts) {
  using Acc = Accumulator<T>;
  constexpr int U = chunk_accesses(false, 2, V, A, V * sizeof(T)), P = kPart<V>;
  using Table = ChannelTable<Acc, 5>;
  SHARED(Partial<Acc>, total, [kMaxGroup]);
  SHARED(Table, table, );
  const int tile = gridDim.x - 1 - blockIdx.x, slice = gridDim.y - 1 - blockIdx.y, k = threadIdx.x;
  const int mine = tile * tiling.group + k;
  Walk walk = tiling.walk<T, V, A, U>(tile, slice, threadIdx.x);
  read_parameters(tiling, args, tile, table);

  gpu::wait_for_previous_kernel();
  if (parts.staged) {
    combine_staged<Sums, 4>(reduced, parts, tile, total);
    if (slice == 0) store_parameter_gradients(reduced, args, tile, total);
  }
  if (k < tiling.group && mine < tiling.channels) {
    const Acc grad_bias = parts.staged ? total[k].a : gpu::ld_cg(args.grad_bias + mine);
    const Acc grad_weight = parts.staged ? total[k].b * args.invstd[mine] : gpu::ld_cg(args.grad_weight + mine);
    set_input_gradient(args, mine, k, grad_bias, grad_weight, table);
  }
  __syncthreads();

  if (walk.ragged == 0) return;
  ChannelValues<Acc, 5, V, A> channel;
  channel.read(table, walk.local);
  const gpu::StorePolicy policy = gpu::store_policy(args.stream);
  for_each_chunk<A, U>(tiling, walk, [&](int64_t offset, auto valid) {
    GradientChunk<T, V, U> chunk;
    chunk.load(tiling, args, !Plain, offset, valid);
#pragma unroll
    for (int part = 0; part < V / P; ++part) {
      channel.read_part(table, walk.local, part);
#pragma unroll
      for (int u = 0; u < U; ++u) {
        if (u < valid) {
          Acc grad[P], centred[P];
          chunk.template compute<Activation>(args, channel, u, part, centred, grad);
#pragma unroll
          for (int j = 0; j < P; ++j) grad[j] = channel.input_gradient(grad[j], centred[j], j);
          set_part<T, V>(chunk.grad[u], part, pack<T, P>(grad));
        }
      }
    }
    store_chunk<T, V, U>(tiling, args.grad_input, offset, valid, chunk.grad, policy);
  });
}

// Procedure overview: all of training's backward with one read of grad_output, input and residual, where a block can
// hold a tile.
//   1. Each thread loads its chunks, computes g', sums g' and g' * (x - mean), and holds input and g' as in
//      train_on_chip; the two of an access lie side by side in shared memory.  g' is rounded to T, as grad_residual is,
//      which is written here when wanted.
//   2. Sums are combined; grad_weight and grad_bias are written.
//   3. Each thread computes grad_input from what it holds.
template <class T, int V, int A>
__global__ void __launch_bounds__(kOnChipThreads, 1)
    backward_on_chip(const Tiling tiling, const BackwardArguments<T> args) {
  using Acc = Accumulator<T>;
  constexpr int U = chunk_accesses(true, 2, V, A, V * sizeof(T)), R = kept_accesses(2, V, A), P = kPart<V>;
  static_assert(R % U == 0);
  using Word = Raw<T, V>;
  using Table = ChannelTable<Acc, 5>;
  DYN_SHARED(Word, parked);
  SHARED(Partial<Acc>, total, [kMaxGroup]);
  SHARED(Table, table, );
  const int tile = blockIdx.x;

  read_parameters(tiling, args, tile, table);
  __syncthreads();
  const Walk begin = tiling.walk<T, V, A, U>(tile, 0, threadIdx.x);
  Walk walk = begin;
  ChannelValues<Acc, 5, V, A> channel;
  channel.read(table, walk.local);
  GradientSums<Acc, V, A> sums;
  // Loads the next chunk, leaves input and g' in two arrays and adds to the sums.
  const auto absorb = [&](Word(&input)[U], Word(&grads)[U]) {
    const Chunk next = tiling.next<A, U>(walk);
    GradientChunk<T, V, U> chunk;
    chunk.load(tiling, args, true, next.offset, next.valid);
#pragma unroll
    for (int part = 0; part < V / P; ++part) {
      channel.read_part(table, begin.local, part);
#pragma unroll
      for (int u = 0; u < U; ++u) {
        if (u < next.valid) {
          Acc grad[P], centred[P];
          if (args.activation.kind == kSilu) {
            chunk.template compute<kSilu>(args, channel, u, part, centred, grad);
          } else {
            chunk.template compute<kSelect>(args, channel, u, part, centred, grad);
          }
          sums.add(part, grad, centred);
          set_part<T, V>(grads[u], part, pack<T, P>(grad));
        }
      }
    }
#pragma unroll
    for (int u = 0; u < U; ++u) input[u] = chunk.input[u];
    if (args.grad_residual) store_chunk<T, V, U>(tiling, args.grad_residual, next.offset, next.valid, grads);
    return next.valid;
  };
  Word kept_input[R / U][U], kept_grads[R / U][U];
#pragma unroll
  for (int r = 0; r < R / U; ++r) absorb(kept_input[r], kept_grads[r]);
  for (Word* place = parked + threadIdx.x; walk.ragged + walk.whole > 0; place += 2 * U * tiling.threads) {
    Word input[U], grads[U];
    const int valid = absorb(input, grads);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (u < valid) {
        place[2 * u * tiling.threads] = input[u];
        place[(2 * u + 1) * tiling.threads] = grads[u];
      }
    }
  }

  combine_block<Sums, A>(tiling, sums.found(), total);
  store_parameter_gradients(tiling, args, tile, total);
  const int k = threadIdx.x;
  const int mine = tile * tiling.group + k;
  if (k < tiling.group && mine < tiling.channels) {
    set_input_gradient(args, mine, k, total[k].a, total[k].b * args.invstd[mine], table);
  }
  __syncthreads();

  walk = begin;
  channel.read(table, begin.local);
  const auto write = [&](const Word(&input)[U], Word(&grads)[U], const Chunk& chunk) {
#pragma unroll
    for (int part = 0; part < V / P; ++part) {
      channel.read_part(table, begin.local, part);
#pragma unroll
      for (int u = 0; u < U; ++u) {
        if (u < chunk.valid) {
          Acc x[P], grad[P];
          unpack<T, P>(get_part<T, V>(input[u], part), x);
          unpack<T, P>(get_part<T, V>(grads[u], part), grad);
#pragma unroll
          for (int j = 0; j < P; ++j) grad[j] = channel.input_gradient(grad[j], channel.centred(x[j], j), j);
          set_part<T, V>(grads[u], part, pack<T, P>(grad));
        }
      }
    }
    store_chunk<T, V, U>(tiling, args.grad_input, chunk.offset, chunk.valid, grads);
  };
#pragma unroll
  for (int r = 0; r < R / U; ++r) write(kept_input[r], kept_grads[r], tiling.next<A, U>(walk));
  for (const Word* place = parked + threadIdx.x; walk.ragged + walk.whole > 0; place += 2 * U * tiling.threads) {
    const Chunk chunk = tiling.next<A, U>(walk);
    Word input[U], grads[U];
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (u < chunk.valid) {
        input[u] = place[2 * u * tiling.threads];
        grads[u] = place[(2 * u + 1) * tiling.threads];
      }
    }
    write(input, grads, chunk);
  }
}

}  // namespace genimg_fast::cuda::batch_norm
