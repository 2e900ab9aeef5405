#pragma once
// Kernels of batch_norm_act's training for GPUs with clusters, compute capability 9.0 and later: each tensor is read
// and written once, whatever its size, as long as one tile of it fits into the shared memory of a cluster.  A tile is
// one channel (A == 1), or neighbouring ones where channels are the fastest dimension (A == V); cluster_ring.cuh says
// how clusters walk over them.
#include "batch_norm_act_backward.cuh"
#include "batch_norm_act_forward.cuh"
#include "cluster_ring.cuh"

namespace genimg_fast::cuda::batch_norm {

template <class T>
__device__ __forceinline__ void store_word(T* p, uint4 word, gpu::StorePolicy policy) {
  gpu::store_128(reinterpret_cast<uint4*>(p), word, policy);
}

// The activation, and whether there is a tensor that not every call has, as constants for call.
template <class Acc, class Call>
__device__ __forceinline__ void with_constants(const ActivationOf<Acc>& activation, bool more, Call call) {
  const auto choose = [&](auto kind) { more ? call(kind, std::true_type{}) : call(kind, std::false_type{}); };
  if (activation.kind == kSilu) {
    choose(std::integral_constant<int, kSilu>{});
  } else if (activation.kind == kRelu) {
    choose(std::integral_constant<int, kRelu>{});
  } else {
    choose(std::integral_constant<int, kLeakyRelu>{});
  }
}

// Procedure overview: all of training's forward, of the consumers.  For each tile of the cluster:
//   1. Threads reduce its pieces to moments, as they arrive,
//   2. which are combined in the block, then in the cluster: every block of it gets the same bits.
//   3. Threads normalise, add the residual, activate and write the output, and leave each piece to the producer; the
//      cluster's first block writes mean, invstd and running statistics.
template <class T, int A>
__global__ void __launch_bounds__(kMaxConsumers + kProducers, 1)
    train_cluster(const __grid_constant__ ClusterTiling tiling, const __grid_constant__ ForwardArguments<T> args) {
  using Acc = Accumulator<T>;
  constexpr int V = kVector<T>, P = kPart<V>, U = words_of_piece(1, V);
  DYN_SHARED(uint4, slots);
  SHARED(Ring, ring, );
  SHARED(Exchange<Acc>, exchange, );
  using Table = ChannelTable<Acc, 3>;
  SHARED(Table, table, );
  const int rank = static_cast<int>(gpu::cluster_rank()), clusters = static_cast<int>(gridDim.x) / tiling.blocks;
  int tile = static_cast<int>(blockIdx.x) / tiling.blocks;
  start_cluster<A>(tiling, ring, exchange);
  if (static_cast<int>(threadIdx.x) >= tiling.consumers) {
    return produce<A, U>(tiling, rank, tile, clusters, ring, Held<T, V>{args.input, slots});
  }
  const Words words = tiling.words<A, U>(rank, threadIdx.x);
  const uint4* const held = gpu::opaque_shared(slots);
  // Of channel k of the tile: the thread that finishes its statistics.
  const int k = static_cast<int>(threadIdx.x) / tiling.blocks;
  const bool finishes = k < tiling.group && static_cast<int>(threadIdx.x) % tiling.blocks == 0;
  Consumers consumers{&ring.met};
  Cursor cursor;
  for (int turn = 0; tile < tiling.tiles; tile += clusters, ++turn) {
    const int64_t origin = tile * tiling.tile_step;
    const int channel = tile * tiling.group + k;
    const bool writes = finishes && channel < tiling.channels, has = tiling.has<A>(words, tile);
    // Of the thread's words, and of channel k: see load_pivots.
    Acc pivots[A] = {}, pivot[1] = {}, weight = 1, bias = 0;
    if (has) unpack<T, A>(load<T, A>(at_byte(args.input, origin) + words.local), pivots);
    if (writes) {
      unpack<T, 1>(load<T, 1>(args.input + channel * tiling.inner), pivot);
      weight = read_or(args.weight, channel, Acc(1));
      bias = read_or(args.bias, channel, Acc(0));
    }

    const auto wait = [&](const Cursor& at) { gpu::mbarrier_wait(&ring.full[at.slot], at.phase); };
    ThreadMoments<T, V, A> moments;
    Cursor first = cursor;
    wait(first);
    if (has && words.whole + words.rest > 0) moments.begin(slots[place_of<U>(tiling, first)]);
    for_each_piece<U>(
        tiling, words, has, first, wait,
        [&](int place, uint32_t, auto count) {
          constexpr int N = count.value;
          uint4 raw[N];
#pragma unroll
          for (int u = 0; u < N; ++u) raw[u] = held[place + 32 * u];
          moments.template add<N>(raw, Whole<N>{});
        },
        [](const Cursor&) {});
    const Partial<Acc> total =
        combine_cluster<Moments, V>(tiling, consumers, turn, rank, moments.found(pivots, 0), exchange);
    Acc mean = 0, variance = 0, invstd = 0;
    if (finishes) {
      mean = pivot[0] + total.a;
      variance = total.b / total.n;
      invstd = Acc(1) / square_root(variance + static_cast<Acc>(args.eps));
      table.set_affine(k, mean, invstd, weight, bias);
    }
    consumers.meet();
    if (rank == 0 && writes) store_statistics(args, channel, mean, invstd, variance);

    ChannelValues<Acc, 3, V, A> values;
    values.read(table, words.local);
    const gpu::StorePolicy policy = gpu::store_policy(args.stream);
    with_constants(args.activation, args.residual != nullptr, [&](auto activation, auto residual) {
      constexpr int kActivation = activation.value;
      constexpr bool kResidual = residual.value;
      for_each_piece<U>(
          tiling, words, has, cursor, [](const Cursor&) {},
          [&](int place, [[maybe_unused]] uint32_t word, auto count) {
            constexpr int N = count.value;
            uint4 raw[N], added[N];
            [[maybe_unused]] const Addresses<A, const T> residuals(tiling, args.residual, origin, word);
#pragma unroll
            for (int u = 0; u < N; ++u) {
              raw[u] = held[place + 32 * u];
              if constexpr (kResidual) added[u] = load<T, V>(residuals(u));
            }
#pragma unroll
            for (int part = 0; part < V / P; ++part) {
              values.read_part(table, words.local, part);
#pragma unroll
              for (int u = 0; u < N; ++u) {
                Acc x[P], r[P];
                unpack<T, P>(get_part<T, V>(raw[u], part), x);
                if constexpr (kResidual) unpack<T, P>(get_part<T, V>(added[u], part), r);
#pragma unroll
                for (int j = 0; j < P; ++j) {
                  Acc v = values.preactivation(values.centred(x[j], j), j);
                  if constexpr (kResidual) v += r[j];
                  x[j] = activate<T, kActivation>(args.activation, v);
                }
                set_part<T, V>(raw[u], part, pack<T, P>(x));
              }
            }
            const Addresses<A, T> outputs(tiling, args.output, origin, word);
#pragma unroll
            for (int u = 0; u < N; ++u) store_word(outputs(u), raw[u], policy);
          },
          [&](const Cursor& at) { leave_piece(ring, at); });
    });
  }
}

// Procedure overview: all of training's backward, as train_cluster, with input and grad_output side by side in a slot.
//   1. For each tile in turn: threads compute the gradient behind the activation, g', and sum g' and
//      g' * (x - mean).  They leave g', rounded to T, in the place of grad_output, and write it as grad_residual where
//      that is wanted.
//   2. Sums are combined in the block, then in the cluster, whose first block writes grad_weight and grad_bias.
//   3. Threads compute grad_input from what the slots hold.
template <class T, int A>
__global__ void __launch_bounds__(kMaxConsumers + kProducers, 1)
    backward_cluster(const __grid_constant__ ClusterTiling tiling, const __grid_constant__ BackwardArguments<T> args) {
  using Acc = Accumulator<T>;
  constexpr int V = kVector<T>, P = kPart<V>, U = words_of_piece(2, V);
  DYN_SHARED(uint4, slots);
  SHARED(Ring, ring, );
  SHARED(Exchange<Acc>, exchange, );
  using Table = ChannelTable<Acc, 5>;
  SHARED(Table, tables, [2]);  // of this tile and the next one
  const int rank = static_cast<int>(gpu::cluster_rank()), clusters = static_cast<int>(gridDim.x) / tiling.blocks;
  int tile = static_cast<int>(blockIdx.x) / tiling.blocks;
  start_cluster<A>(tiling, ring, exchange);
  uint4* const grads = at_byte(slots, tiling.first_slots);
  if (static_cast<int>(threadIdx.x) >= tiling.consumers) {
    return produce<A, U>(tiling, rank, tile, clusters, ring, Held<T, V>{args.input, slots},
                         Held<T, V>{args.grad_output, grads});
  }
  const Words words = tiling.words<A, U>(rank, threadIdx.x);
  const int k = static_cast<int>(threadIdx.x) / tiling.blocks;
  const bool finishes = k < tiling.group && static_cast<int>(threadIdx.x) % tiling.blocks == 0;
  const auto prepare = [&](int tile, int turn) {
    const int channel = tile * tiling.group + k;
    if (finishes && channel < tiling.channels) {
      tables[turn % 2].set_affine(k, __ldg(args.mean + channel), __ldg(args.invstd + channel),
                                  read_or(args.weight, channel, Acc(1)), read_or(args.bias, channel, Acc(0)));
    }
  };
  Consumers consumers{&ring.met};
  Cursor cursor;
  prepare(tile, 0);
  consumers.meet();
  for (int turn = 0; tile < tiling.tiles; tile += clusters, ++turn) {
    const bool has = tiling.has<A>(words, tile);
    Table& table = tables[turn % 2];
    ChannelValues<Acc, 5, V, A> values;
    values.read(table, words.local);

    const auto wait = [&](const Cursor& at) { gpu::mbarrier_wait(&ring.full[at.slot], at.phase); };
    GradientSums<Acc, V, A> sums;
    // Without it grad_residual is wanted of the identity alone, whose gradient is the same whatever is added.
    const T* const residual = args.residual ? args.residual : args.input;
    with_constants(args.activation, args.residual || args.grad_residual, [&](auto activation, auto more) {
      constexpr int kActivation = activation.value;
      constexpr bool kMore = more.value;
      Cursor first = cursor;
      for_each_piece<U>(
          tiling, words, has, first, wait,
          [&](int place, [[maybe_unused]] uint32_t word, auto count) {
            constexpr int N = count.value;
            // Anew each time: registers are short here.
            const int64_t origin = gpu::opaque(tile) * tiling.tile_step;
            [[maybe_unused]] const Addresses<A, const T> residuals(tiling, residual, origin, word);
            GradientChunk<T, V, N> read;
            read.has_residual = kMore;
#pragma unroll
            for (int u = 0; u < N; ++u) {
              read.input[u] = slots[place + 32 * u];
              read.grad[u] = grads[place + 32 * u];
              if constexpr (kMore) read.residual[u] = load<T, V>(residuals(u));
            }
            uint4 rounded[N];
#pragma unroll
            for (int part = 0; part < V / P; ++part) {
              values.read_part(table, words.local, part);
#pragma unroll
              for (int u = 0; u < N; ++u) {
                Acc centred[P], g[P];
                read.template compute<kActivation>(args, values, u, part, centred, g);
                sums.add(part, g, centred);
                set_part<T, V>(rounded[u], part, pack<T, P>(g));
              }
            }
#pragma unroll
            for (int u = 0; u < N; ++u) grads[place + 32 * u] = rounded[u];
            if (kMore && args.grad_residual) {
              const Addresses<A, T> outputs(tiling, args.grad_residual, origin, word);
#pragma unroll
              for (int u = 0; u < N; ++u) store_word(outputs(u), rounded[u], gpu::store_policy(false));
            }
          },
          [](const Cursor&) {});
    });
    if (A == 1) gpu::fence_proxy_async();  // g' is in the slots before what is copied there next, in its own order
    const Partial<Acc> total = combine_cluster<Sums, V>(tiling, consumers, turn, rank, sums.found(), exchange);
    const int channel = tile * tiling.group + k;
    const bool writes = finishes && channel < tiling.channels;
    Acc grad_weight = 0;
    if (writes) {
      grad_weight = total.b * args.invstd[channel];
      set_input_gradient(args, channel, k, total.a, grad_weight, table);
      Acc& offset = table.values[kOffset][k];
      offset = offset_of<T>(offset, table.values[kXScale][k], table.values[kMean][k]);
    }
    if (tile + clusters < tiling.tiles) prepare(tile + clusters, turn + 1);
    consumers.meet();
    if (rank == 0 && writes) {
      args.grad_bias[channel] = total.a;
      args.grad_weight[channel] = grad_weight;
    }

    values.read(table, words.local);
    const gpu::StorePolicy policy = gpu::store_policy(args.stream);
    const int64_t origin = gpu::opaque(tile) * tiling.tile_step;
    for_each_piece<U>(
        tiling, words, has, cursor, [](const Cursor&) {},
        [&](int place, uint32_t word, auto count) {
          constexpr int N = count.value;
          uint4 input[N], grad[N];
#pragma unroll
          for (int u = 0; u < N; ++u) {
            input[u] = slots[place + 32 * u];
            grad[u] = grads[place + 32 * u];
          }
#pragma unroll
          for (int part = 0; part < V / P; ++part) {
            values.read_part(table, words.local, part);
#pragma unroll
            for (int u = 0; u < N; ++u) {
              Acc x[P], g[P];
              unpack<T, P>(get_part<T, V>(input[u], part), x);
              unpack<T, P>(get_part<T, V>(grad[u], part), g);
#pragma unroll
              for (int j = 0; j < P; ++j) {
                g[j] = values.input_gradient(g[j], kOffsetHasMean<T> ? x[j] : values.centred(x[j], j), j);
              }
              set_part<T, V>(grad[u], part, pack<T, P>(g));
            }
          }
          const Addresses<A, T> outputs(tiling, args.grad_input, origin, word);
#pragma unroll
          for (int u = 0; u < N; ++u) store_word(outputs(u), grad[u], policy);
        },
        [&](const Cursor& at) { leave_piece(ring, at); });
  }
}

}  // namespace genimg_fast::cuda::batch_norm
