#pragma once
// Kernels of batch_norm_act's backward: two that stream, and one that holds its data on chip.
#include "batch_norm_act_formulas.cuh"

namespace genimg_fast::cuda {

// The gradient behind the activation of one access, in place of grad; `centred` receives x - mean.
template <class T, int V, int A, int Activation, int N>
__device__ __forceinline__ void activation_gradient(const BackwardArguments<T>& args,
                                                    const ChannelValues<Accumulator<T>, N, A>& channel, Raw<T, V> input,
                                                    bool has_residual, Raw<T, V> residual, Accumulator<T> (&grad)[V],
                                                    Accumulator<T> (&centred)[V]) {
  using Acc = Accumulator<T>;
  Acc r[V];
  unpack<T, V>(input, centred);
  if (has_residual) unpack<T, V>(residual, r);
#pragma unroll
  for (int j = 0; j < V; ++j) {
    centred[j] = channel.centred(centred[j], j);
    Acc v = channel.preactivation(centred[j], j);
    if (has_residual) v += r[j];
    grad[j] = through_activation<T, Activation>(args.activation, v, grad[j]);
  }
}

// sum(g') and sum(g' * (x - mean)) of a thread's channels.
template <class Acc, int V, int A>
struct GradientSums {
  Acc plain[V] = {}, weighted[V] = {};

  __device__ __forceinline__ void add(const Acc (&grad)[V], const Acc (&centred)[V]) {
#pragma unroll
    for (int j = 0; j < V; ++j) {
      plain[j] += grad[j];
      weighted[j] = multiply_add(grad[j], centred[j], weighted[j]);
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
__device__ __forceinline__ void read_parameters(const Tiling& tiling, const BackwardArguments<T>& args, int64_t tile,
                                                ChannelTable<Accumulator<T>, N>& table) {
  using Acc = Accumulator<T>;
  const int k = threadIdx.x;
  const int64_t channel = tile * tiling.group + k;
  if (k < tiling.group && channel < tiling.channels) {
    table.set_affine(k, args.mean[channel], args.invstd[channel], read_or(args.weight, channel, Acc(1)),
                     read_or(args.bias, channel, Acc(0)));
  }
}

template <class T>
__device__ __forceinline__ void store_parameter_gradients(const Tiling& tiling, const BackwardArguments<T>& args,
                                                          int64_t tile, const Partial<Accumulator<T>>* total) {
  const int k = threadIdx.x;
  const int64_t channel = tile * tiling.group + k;
  if (k < tiling.group && channel < tiling.channels) {
    args.grad_bias[channel] = total[k].a;
    args.grad_weight[channel] = total[k].b * args.invstd[channel];
  }
}

// dx = (g' - mean(g') - normalized * mean(g' * normalized)) * scale, with normalized = (x - mean) * invstd.
template <class T>
__device__ __forceinline__ void set_input_gradient(const BackwardArguments<T>& args, int64_t channel, int k,
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
__global__ void __launch_bounds__(kThreads, kMinBlocks<T>)
    reduce_gradients(const Tiling tiling, const BackwardArguments<T> args, const Parts<Accumulator<T>> parts) {
  using Acc = Accumulator<T>;
  constexpr int U = gradient_chunk_accesses(V);
  using Table = ChannelTable<Acc, 3>;
  SHARED(Partial<Acc>, total, [kMaxGroup]);
  SHARED(Table, table, );
  const int64_t tile = blockIdx.x % tiling.tiles;
  const int slice = blockIdx.x / tiling.tiles;
  gpu::allow_next_kernel();

  read_parameters(tiling, args, tile, table);
  __syncthreads();
  GradientSums<Acc, V, A> sums;
  Walk walk = tiling.walk<T, V, A, U>(tile, slice, threadIdx.x);
  if (walk.ragged > 0) {
    ChannelValues<Acc, 3, A> channel;
    channel.read(table, walk.local);
    for_each_chunk<A, U>(tiling, walk, [&](int64_t offset, auto valid) {
      const bool residual = !Plain && args.residual;
      Raw<T, V> grad_raw[U], input[U], added[U];
      load_chunk<T, V, U>(tiling, args.grad_output, offset, valid, grad_raw);
      load_chunk<T, V, U>(tiling, args.input, offset, valid, input);
      if (residual) load_chunk<T, V, U>(tiling, args.residual, offset, valid, added);
      channel.read_again(table, walk.local);
#pragma unroll
      for (int u = 0; u < U; ++u) {
        if (u < valid) {
          Acc grad[V], centred[V];
          unpack<T, V>(grad_raw[u], grad);
          activation_gradient<T, V, A, Activation>(args, channel, input[u], residual, added[u], grad, centred);
          sums.add(grad, centred);
          if (!Plain) {
            const int64_t at = offset + u * tiling.access_step;
            if (args.grad_residual) store<T, V>(at_byte(args.grad_residual, at), pack<T, V>(grad));
            if (args.grad_input) {
#pragma unroll
              for (int j = 0; j < V; ++j) grad[j] *= channel.get(kScale, j);
              store_result<T, V>(at_byte(args.grad_input, at), pack<T, V>(grad), args.stream);
            }
          }
        }
      }
    });
  }
  combine_block<Sums, A>(tiling, sums.found(), total);
  if (tiling.slices > 1) {
    stage(tiling, parts, tile, slice, total);
    if (!parts.arrived || !is_last_block(parts.arrived + tile, tiling.slices)) return;
    combine_staged<Sums, V>(tiling, parts, tile, total);
  }
  store_parameter_gradients(tiling, args, tile, total);
}

// Procedure overview: grad_input in training, once the sums are known.
//   1. The block makes the table of its channels: from the parts that reduce_gradients left (the first slice's block
//      then also stores grad_weight and grad_bias), or from its results.
//   2. Each thread recomputes g' and writes grad_input.  Blocks begin at the end of the tensor, as in normalize.
template <class T, int V, int A, int Activation, bool Plain>
__global__ void __launch_bounds__(kThreads, kMinBlocks<T>)
    apply_gradients(const Tiling tiling, const BackwardArguments<T> args, const Tiling reduced,
                    const Parts<Accumulator<T>> parts) {
  using Acc = Accumulator<T>;
  constexpr int U = gradient_chunk_accesses(V);
  using Table = ChannelTable<Acc, 5>;
  SHARED(Partial<Acc>, total, [kMaxGroup]);
  SHARED(Table, table, );
  const unsigned block = gridDim.x - 1 - blockIdx.x;
  const int64_t tile = block % tiling.tiles;
  const int slice = block / tiling.tiles, k = threadIdx.x;
  const int64_t mine = tile * tiling.group + k;
  Walk walk = tiling.walk<T, V, A, U>(tile, slice, threadIdx.x);
  read_parameters(tiling, args, tile, table);

  gpu::wait_for_previous_kernel();
  if (parts.staged) {
    combine_staged<Sums, V>(reduced, parts, tile, total);
    if (slice == 0) store_parameter_gradients(reduced, args, tile, total);
  }
  if (k < tiling.group && mine < tiling.channels) {
    const Acc grad_bias = parts.staged ? total[k].a : gpu::ld_cg(args.grad_bias + mine);
    const Acc grad_weight = parts.staged ? total[k].b * args.invstd[mine] : gpu::ld_cg(args.grad_weight + mine);
    set_input_gradient(args, mine, k, grad_bias, grad_weight, table);
  }
  __syncthreads();

  if (walk.ragged == 0) return;
  ChannelValues<Acc, 5, A> channel;
  channel.read(table, walk.local);
  for_each_chunk<A, U>(tiling, walk, [&](int64_t offset, auto valid) {
    const bool residual = !Plain && args.residual;
    Raw<T, V> grad_raw[U], input[U], added[U];
    load_chunk<T, V, U>(tiling, args.grad_output, offset, valid, grad_raw);
    load_chunk<T, V, U>(tiling, args.input, offset, valid, input);
    if (residual) load_chunk<T, V, U>(tiling, args.residual, offset, valid, added);
    channel.read_again(table, walk.local);
    T* grad_input = at_byte(args.grad_input, offset);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (u < valid) {
        Acc grad[V], centred[V];
        unpack<T, V>(grad_raw[u], grad);
        activation_gradient<T, V, A, Activation>(args, channel, input[u], residual, added[u], grad, centred);
#pragma unroll
        for (int j = 0; j < V; ++j) grad[j] = channel.input_gradient(grad[j], centred[j], j);
        store_result<T, V>(grad_input, pack<T, V>(grad), args.stream);
      }
      grad_input = at_byte(grad_input, tiling.access_step);
    }
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
  constexpr int U = held_chunk_accesses(2, V, A), R = kept_accesses(2, V, A);
  static_assert(R % U == 0);
  using Word = Raw<T, V>;
  using Table = ChannelTable<Acc, 5>;
  DYN_SHARED(Word, parked);
  SHARED(Partial<Acc>, total, [kMaxGroup]);
  SHARED(Table, table, );
  const int64_t tile = blockIdx.x;

  read_parameters(tiling, args, tile, table);
  __syncthreads();
  const Walk begin = tiling.walk<T, V, A, U>(tile, 0, threadIdx.x);
  Walk walk = begin;
  ChannelValues<Acc, 5, A> channel;
  channel.read(table, walk.local);
  GradientSums<Acc, V, A> sums;
  // Loads the next chunk, leaves input and g' in two arrays and adds to the sums.
  const auto absorb = [&](Word(&input)[U], Word(&grads)[U]) {
    Word added[U], grad_raw[U];
    const Chunk chunk = tiling.next<A, U>(walk);
    load_chunk<T, V, U>(tiling, args.grad_output, chunk.offset, chunk.valid, grad_raw);
    load_chunk<T, V, U>(tiling, args.input, chunk.offset, chunk.valid, input);
    if (args.residual) load_chunk<T, V, U>(tiling, args.residual, chunk.offset, chunk.valid, added);
    channel.read_again(table, walk.local);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (u < chunk.valid) {
        Acc grad[V], centred[V];
        unpack<T, V>(grad_raw[u], grad);
        if (args.activation.kind == kSilu) {
          activation_gradient<T, V, A, kSilu>(args, channel, input[u], args.residual, added[u], grad, centred);
        } else {
          activation_gradient<T, V, A, kSelect>(args, channel, input[u], args.residual, added[u], grad, centred);
        }
        sums.add(grad, centred);
        grads[u] = pack<T, V>(grad);
        if (args.grad_residual) {
          store<T, V>(at_byte(args.grad_residual, chunk.offset + u * tiling.access_step), grads[u]);
        }
      }
    }
    return chunk.valid;
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
  const int64_t mine = tile * tiling.group + k;
  if (k < tiling.group && mine < tiling.channels) {
    set_input_gradient(args, mine, k, total[k].a, total[k].b * args.invstd[mine], table);
  }
  __syncthreads();

  walk = begin;
  channel.read(table, walk.local);
  const auto write = [&](const Word(&input)[U], const Word(&grads)[U], const Chunk& chunk) {
    channel.read_again(table, walk.local);
    T* grad_input = at_byte(args.grad_input, chunk.offset);
#pragma unroll
    for (int u = 0; u < U; ++u) {
      if (u < chunk.valid) {
        Acc x[V], grad[V];
        unpack<T, V>(input[u], x);
        unpack<T, V>(grads[u], grad);
#pragma unroll
        for (int j = 0; j < V; ++j) grad[j] = channel.input_gradient(grad[j], channel.centred(x[j], j), j);
        store<T, V>(grad_input, pack<T, V>(grad));
      }
      grad_input = at_byte(grad_input, tiling.access_step);
    }
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

}  // namespace genimg_fast::cuda
