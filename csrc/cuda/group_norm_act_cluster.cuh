#pragma once
// Kernels of group_norm_act for GPUs with clusters, compute capability 9.0 and later: each tensor is read and written
// once, as long as one group of a sample fits into the shared memory of a cluster.  cluster_ring.cuh says how clusters
// walk over tiles; a tile is a group of a sample of a contiguous tensor, its runs are its channels.
//
// What batch_norm_act's tiles do not have: the channels of a tile are normalised together, each with coefficients of
// its own, and backward needs the sums of each.  So all words that a warp has in a piece belong to one channel: blocks
// and warps get whole chunks of a run, unless a group is one channel.
#include "cluster_ring.cuh"
#include "group_norm_act_backward.cuh"
#include "group_norm_act_forward.cuh"

namespace genimg_fast::cuda::group_norm {

// Elements that are handled at a time, of an access: the values of more would take too many registers.
constexpr int kClusterPart = 4;

// A thread's word `u` of those from `word` on, 32 words apart, in a tensor whose tile is at `origin`.
template <class T>
__device__ __forceinline__ T* word_at(T* tensor, int64_t origin, uint32_t word, int u) {
  return at_byte(tensor, origin + int64_t{word} * 16) + u * (32 * kVector<T>);
}

// The kind of the activation as a constant, and whether there is no residual, for call: of plain calls.  All others,
// and the words behind the whole pieces, are kAny's, which takes any call.
using AnyCall = std::integral_constant<int, kAny>;
template <class Acc, class Call>
__device__ __forceinline__ void with_variant(const Activation<Acc>& activation, bool plain, Call call) {
  if (!plain) {
    call(AnyCall{});
  } else if (activation.kind == kSilu) {
    call(std::integral_constant<int, kSilu>{});
  } else if (activation.kind == kRelu) {
    call(std::integral_constant<int, kRelu>{});
  } else {
    call(std::integral_constant<int, kLeakyRelu>{});
  }
}

// The group's first element, about which its moments are taken.
template <class Acc>
struct Origin {
  Acc value;

  __device__ __forceinline__ void read(int) {}
  __device__ __forceinline__ Acc get(int, int) const { return value; }
};

// Procedure overview: all of forward, of the consumers.  For each tile of the cluster:
//   1. Threads reduce its pieces to moments, as they arrive,
//   2. which are combined in the block, then in the cluster: every block of it gets the same bits.
//   3. The first warp makes the coefficients of the group's channels; the cluster's first block writes mean and invstd.
//   4. Threads normalise, add the residual, activate and write the output, and leave each piece to the producer.
template <class T>
__global__ void __launch_bounds__(kMaxConsumers + kProducers, 1)
    forward_cluster(const __grid_constant__ ClusterTiling tiling, const __grid_constant__ ForwardArguments<T> args) {
  using Acc = Accumulator<T>;
  constexpr int V = kVector<T>, P = kClusterPart, U = words_of_piece(1, V, 1);
  DYN_SHARED(uint4, slots);
  SHARED(Ring, ring, );
  SHARED(Exchange<Acc>, exchange, );
  SHARED(Coefficients<Acc>, table, [kMaxClusterGroup]);
  const int rank = static_cast<int>(gpu::cluster_rank()), clusters = static_cast<int>(gridDim.x) / tiling.blocks;
  int tile = static_cast<int>(blockIdx.x) / tiling.blocks;
  start_cluster<1>(tiling, ring, exchange);
  if (static_cast<int>(threadIdx.x) >= tiling.consumers) {
    const T* const tensors[1] = {args.input};
    return produce<T, 1, U>(tiling, tensors, rank, tile, clusters, slots, ring);
  }
  const Words words = tiling.words<1, U>(rank, threadIdx.x);
  const bool prepares = static_cast<int>(threadIdx.x) < args.sizes.group_channels;  // of channel threadIdx.x
  Consumers consumers{&ring.met};
  Cursor cursor;
  for (int turn = 0; tile < tiling.tiles; tile += clusters, ++turn) {
    const int64_t origin = tile * tiling.tile_step;
    Origin<Acc> pivot{gpu::convert<Acc>(*at_byte(args.input, origin))};
    Coefficients<Acc> own{};  // without the moments
    if (prepares) {
      const int64_t row = int64_t{tile} * args.sizes.group_channels + threadIdx.x;
      const int channel = args.sizes.template spot<1>(row).channel;
      own = coefficients(args.parameters, channel, row, Acc(0), Acc(1));
    }

    const auto wait = [&](const Cursor& at) { gpu::mbarrier_wait(&ring.full[at.slot], at.phase); };
    ThreadMoments<T, V, 1> moments;
    Cursor first = cursor;
    wait(first);
    moments.pivot[0] = 0;
    if (words.whole + words.rest > 0) moments.begin(slots[place_of<U, 1>(tiling, first)]);
    for_each_piece<U, 1>(
        tiling, words, true, first, wait,
        [&](int place, uint32_t, auto count) {
#pragma unroll
          for (int u = 0; u < count.value; ++u) moments.add(slots[place + 32 * u]);
        },
        [](const Cursor&) {});
    Partial<Acc> mine[1];
    moments.finish(words.whole * U + words.rest, pivot, mine);
    Partial<Acc> total = combine_cluster<Moments, V>(tiling, consumers, turn, rank,
                                                     Partials<Acc, 1>{mine[0].n, {mine[0].a}, {mine[0].b}}, exchange);
    if (threadIdx.x < 32) {
      total = {__shfl_sync(0xffffffffu, total.n, 0), __shfl_sync(0xffffffffu, total.a, 0),
               __shfl_sync(0xffffffffu, total.b, 0)};
      const Acc mean = pivot.value + total.a, invstd = Acc(1) / square_root(total.b / total.n + args.eps);
      if (prepares) table[threadIdx.x] = coefficients(own.a, own.b, mean, invstd);
      if (rank == 0 && threadIdx.x == 0) {
        args.mean[tile] = mean;
        args.invstd[tile] = invstd;
      }
    }
    consumers.meet();

    const auto write = [&](auto kind) {
      constexpr int kKind = kind.value;
      return [&](int place, uint32_t word, auto count) {
        constexpr int N = count.value;
        const bool has_residual = kKind == kAny && args.residual;
        const Coefficients<Acc> of = table[tiling.by_run(static_cast<int>(word))];
        uint4 raw[N], added[N];
#pragma unroll
        for (int u = 0; u < N; ++u) {
          raw[u] = slots[place + 32 * u];
          if (has_residual) added[u] = load<T, V>(word_at(args.residual, origin, word, u));
        }
#pragma unroll
        for (int u = 0; u < N; ++u) {
#pragma unroll
          for (int part = 0; part < V / P; ++part) {
            Acc v[P], r[P];
            unpack_part<T, V, P>(raw[u], part, v);
            if (has_residual) unpack_part<T, V, P>(added[u], part, r);
#pragma unroll
            for (int j = 0; j < P; ++j) {
              v[j] = of.preactivation(v[j] - of.mean);
              if (has_residual) v[j] += r[j];
            }
            args.activation.template apply<T, kKind>(v);
            pack_part<T, V, P>(v, part, raw[u]);
          }
          store<T, V>(word_at(args.output, origin, word, u), raw[u]);
        }
      };
    };
    const auto stay = [](const Cursor&) {};
    const auto leave = [&](const Cursor& at) { leave_piece(ring, at, false); };
    uint32_t word = words.first;
    const uint32_t end = words.end_of_whole<U>(tiling.consumers);
    with_variant(args.activation, !args.residual, [&](auto kind) {
      for_each_whole_piece<U, 1>(tiling, end, true, cursor, word, stay, write(kind), leave);
    });
    last_piece<U, 1>(tiling, words, true, cursor, word, stay, write(AnyCall{}), leave);
  }
}

// What backward needs of a tile.
template <class Acc>
struct GroupTable {
  Acc mean, invstd;
  typename PairOf<Acc>::type coefficients[kMaxClusterGroup];  // (a, b) of a channel
};

// Sums the two values of a warp's lanes; its lane 0 returns the first sum, its lane 16 the second one.
template <class Acc>
__device__ __forceinline__ Acc sum_of_lanes(Acc first, Acc second) {
  const bool upper = threadIdx.x % 32 >= 16;
  Acc sum = (upper ? second : first) + __shfl_xor_sync(0xffffffffu, upper ? first : second, 16);
#pragma unroll
  for (int lane_mask = 8; lane_mask > 0; lane_mask /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lane_mask);
  return sum;
}

// Procedure overview: all of backward, as forward_cluster, with input and grad_output side by side in a slot.  Where
// each cluster has one group of every sample it adds up over samples what is the channels', else parameter_gradients
// does.
//   1. For each tile in turn: threads compute the gradient behind the activation, g', and its two sums, S1 and S2. They
//      leave g', rounded to T, in the place of grad_output, and write it as grad_residual where that is wanted.  When a
//      warp comes to the end of a channel it leaves its sums.
//   2. Sums of each channel are combined in the block, then in the cluster, whose first block writes what is wanted of
//      the channel.
//   3. Each warp sums u * S1 and u * S2 over the channels; threads compute grad_input from what the slots hold.
template <class T>
__global__ void __launch_bounds__(kMaxConsumers + kProducers, 1)
    backward_cluster(const __grid_constant__ ClusterTiling tiling, const __grid_constant__ BackwardArguments<T> args,
                     const Between<Accumulator<T>> between) {
  using Acc = Accumulator<T>;
  using Pair = typename PairOf<Acc>::type;
  constexpr int V = kVector<T>, P = kClusterPart, S = 2, U = words_of_piece(2, V, 1);  // S: sums side by side
  DYN_SHARED(uint4, slots);
  SHARED(Ring, ring, );
  SHARED(Exchange<Acc>, exchange, );
  SHARED(GroupTable<Acc>, tables, [2]);      // of this tile and the next one
  SHARED(Pair, shares, [kMaxClusterGroup]);  // u * S1 and u * S2 of a channel
  // Its sums of grad_bias and grad_weight, which only the thread that finishes it reads and writes.
  SHARED(double2, over_samples, [kMaxClusterGroup]);
  const int rank = static_cast<int>(gpu::cluster_rank()), clusters = static_cast<int>(gridDim.x) / tiling.blocks;
  int tile = static_cast<int>(blockIdx.x) / tiling.blocks;
  gpu::allow_next_kernel();
  start_cluster<1>(tiling, ring, exchange);
  if (static_cast<int>(threadIdx.x) >= tiling.consumers) {
    const T* const tensors[2] = {args.input, args.grad_output};
    return produce<T, 1, U>(tiling, tensors, rank, tile, clusters, slots, ring);
  }
  const Words words = tiling.words<1, U>(rank, threadIdx.x);
  uint4* const grads = slots + tiling.consumers * U;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  // The channel whose sums this thread gets.
  const int k = static_cast<int>(threadIdx.x) / tiling.blocks;
  const auto finishes = [&] {  // anew each time: registers are short here
    return k < tiling.group && gpu::opaque(static_cast<int>(threadIdx.x)) % tiling.blocks == 0;
  };
  const auto row_of = [&](int tile) { return int64_t{tile} * tiling.group + k; };
  const auto channel_of = [&](int tile) { return args.sizes.template spot<1>(row_of(tile)).channel; };
  const auto prepare = [&](int tile, int turn) {
    if (!finishes()) return;
    GroupTable<Acc>& table = tables[turn % 2];
    const Acc mean = __ldg(args.mean + tile), invstd = __ldg(args.invstd + tile);
    const auto of = coefficients(args.parameters, channel_of(tile), row_of(tile), mean, invstd);
    table.coefficients[k].x = of.a;
    table.coefficients[k].y = of.b;
    if (k == 0) {
      table.mean = mean;
      table.invstd = invstd;
    }
  };
  if (finishes()) over_samples[k].x = over_samples[k].y = 0;
  Consumers consumers{&ring.met};
  Cursor cursor;
  prepare(tile, 0);
  consumers.meet();
  for (int turn = 0; tile < tiling.tiles; tile += clusters, ++turn) {
    const GroupTable<Acc>& table = tables[turn % 2];
    Partial<Acc>* const found = warp_partials<Acc>() + warp * tiling.group;
    if (lane < tiling.group) found[lane] = {0, 0, 0};
    __syncwarp();

    const auto wait = [&](const Cursor& at) { gpu::mbarrier_wait(&ring.full[at.slot], at.phase); };
    Cursor first = cursor;
    uint32_t word = words.first;
    const uint32_t end_of_whole = words.end_of_whole<U>(tiling.consumers);
    with_variant(args.activation, !args.residual && !args.grad_residual, [&](auto kind) {
      constexpr int kKind = kind.value;
      do {  // for each of the channels that the warp has words of
        const int channel = word < end_of_whole ? tiling.by_run(static_cast<int>(word)) : 0;
        const Coefficients<Acc> of{table.mean, table.coefficients[channel].x, table.coefficients[channel].y};
        const uint32_t end = min(static_cast<uint32_t>(channel + 1) * tiling.run, end_of_whole);
        Acc plain[S] = {}, weighted[S] = {};
        const auto reduce = [&](int place, [[maybe_unused]] uint32_t word, auto count) {
          constexpr int N = count.value;
          const bool has_residual = kKind == kAny && args.residual;
          // Anew, too.
          [[maybe_unused]] const int64_t origin = gpu::opaque(tile) * tiling.tile_step;
          uint4 input[N], grad[N], added[N];
#pragma unroll
          for (int u = 0; u < N; ++u) {
            input[u] = slots[place + 32 * u];
            grad[u] = grads[place + 32 * u];
            if (has_residual) added[u] = load<T, V>(word_at(args.residual, origin, word, u));
          }
#pragma unroll
          for (int u = 0; u < N; ++u) {
#pragma unroll
            for (int part = 0; part < V / P; ++part) {
              Acc centred[P], g[P], v[P], r[P];
              unpack_part<T, V, P>(input[u], part, centred);
              unpack_part<T, V, P>(grad[u], part, g);
              if (has_residual) unpack_part<T, V, P>(added[u], part, r);
#pragma unroll
              for (int j = 0; j < P; ++j) {
                centred[j] -= of.mean;
                v[j] = of.preactivation(centred[j]);
                if (has_residual) v[j] += r[j];
              }
              args.activation.template differentiate<T, kKind>(v, g);
#pragma unroll
              for (int j = 0; j < P; ++j) {
                plain[j % S] += g[j];
                weighted[j % S] = multiply_add(g[j], centred[j], weighted[j % S]);
              }
              pack_part<T, V, P>(g, part, grad[u]);
            }
            grads[place + 32 * u] = grad[u];
            if (kKind == kAny && args.grad_residual) {
              store<T, V>(word_at(args.grad_residual, origin, word, u), grad[u]);
            }
          }
        };
        const auto stay = [](const Cursor&) {};
        for_each_whole_piece<U, 2>(tiling, end, true, first, word, wait, reduce, stay);
        if (word >= end_of_whole) last_piece<U, 2>(tiling, words, true, first, word, wait, reduce, stay);
        const Acc sum = sum_of_lanes(sum_of(plain), sum_of(weighted));
        // Of kAny anew, too.
        const int summed = kKind == kAny ? tiling.by_run(static_cast<int>(max(end, 1u) - 1)) : channel;
        if (lane == 0) found[summed].a = sum;
        if (lane == 16) found[summed].b = sum;
      } while (word < end_of_whole);
    });

    const Partial<Acc> total = combine_blocks<Sums, V, 1>(tiling, consumers, turn, rank, exchange);
    if (finishes()) {
      const Acc u = args.parameters.u(channel_of(tile), row_of(tile));
      shares[k].x = u * total.a;
      shares[k].y = u * total.b;
    }
    if (tile + clusters < tiling.tiles) prepare(tile + clusters, turn + 1);
    consumers.meet();
    const Acc mean = table.mean, invstd = table.invstd;
    if (rank == 0 && finishes()) {
      const int channel = channel_of(tile);
      const Pair parts = store_row(args, channel, row_of(tile), invstd, total.a, total.b);
      if (between.sums) {
        between.sums[row_of(tile)] = parts;
      } else {
        over_samples[k].x += parts.x;
        over_samples[k].y += parts.y;
        if (tile + clusters >= tiling.tiles) store_parameters(args, channel, over_samples[k].x, over_samples[k].y);
      }
    }
    Partial<Acc> group{0, 0, 0};
    if (lane < tiling.group) group = {0, shares[lane].x, shares[lane].y};
    for (int lane_mask = 16; lane_mask > 0; lane_mask /= 2) group = combine_with_lane<Sums>(group, lane_mask);
    const Pair terms = terms_of(args, invstd, group.a, group.b);

    const int64_t origin = gpu::opaque(tile) * tiling.tile_step;
    for_each_piece<U, 2>(
        tiling, words, true, cursor, [](const Cursor&) {},
        [&](int place, uint32_t word, auto count) {
          constexpr int N = count.value;
          const Acc a = table.coefficients[tiling.by_run(static_cast<int>(word))].x;
          uint4 input[N], grad[N];
#pragma unroll
          for (int u = 0; u < N; ++u) {
            input[u] = slots[place + 32 * u];
            grad[u] = grads[place + 32 * u];
          }
#pragma unroll
          for (int u = 0; u < N; ++u) {
#pragma unroll
            for (int part = 0; part < V / P; ++part) {
              Acc x[P], g[P];
              unpack_part<T, V, P>(input[u], part, x);
              unpack_part<T, V, P>(grad[u], part, g);
#pragma unroll
              for (int j = 0; j < P; ++j) {
                g[j] = multiply_add(a, g[j], multiply_add(x[j] - mean, terms.y, terms.x));
              }
              pack_part<T, V, P>(g, part, grad[u]);
            }
            store<T, V>(word_at(args.grad_input, origin, word, u), grad[u]);
          }
        },
        [&](const Cursor& at) { leave_piece(ring, at, true); });
  }
}

}  // namespace genimg_fast::cuda::group_norm
