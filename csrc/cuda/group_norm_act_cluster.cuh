#pragma once
// Kernels of group_norm_act for GPUs with clusters, compute capability 9.0 and later: each tensor is read and written
// once, as long as one group of a sample fits into the shared memory of a cluster.  cluster_ring.cuh says how clusters
// walk over tiles.  A tile is a group of a sample of a contiguous tensor (A == 1), whose runs are its channels; or of
// channels_last (A == V) some whole groups of a sample, side by side.
//
// What batch_norm_act's tiles do not have: the channels of a group are normalised together, each with coefficients of
// its own, and backward needs the sums of each.  So of a contiguous tensor all words that a warp has in a piece belong
// to one channel: blocks and warps get whole chunks of a run, unless a group is one channel.  In channels_last a thread
// stays with its V channels, whose values are in shared memory; moments and sums are found channel by channel, and then
// a warp combines those of each group.
#include "cluster_ring.cuh"
#include "group_norm_act_backward.cuh"
#include "group_norm_act_forward.cuh"

namespace genimg_fast::cuda::group_norm {

// Elements that are handled at a time, of an access: the values of more would take too many registers.
constexpr int kClusterPart = 4;

// Where a thread's words are, from `word` on and 32 words apart, in a tensor whose tile is at `origin`: by u.
// Words of B bytes, elements of S bytes for each of the input's.
template <int A, int B = 16, int S = 1, class T>
__device__ __forceinline__ auto words_at(const ClusterTiling& tiling, T* tensor, int64_t origin, uint32_t word) {
  int64_t first = origin * S + int64_t{word} * B, step = 32 * B;
  if constexpr (A > 1) {
    first = gpu::multiply_add_wide(tiling.run_of<A>(word), tiling.wrap * S, first);
    step = tiling.step * S;
  }
  return [=](int u) { return at_byte(tensor, first + u * step); };
}

// The N values of the channels that a thread is at.
template <class T, int V, int A, int N>
using ClusterChannels = Channels<T, V, std::conditional_t<A == 1, Rows, Columns>, N, kClusterPart>;

// Elements of a word.
template <class T, class Y>
constexpr int kWord = kVector<T> < kVector<Y> ? kVector<T> : kVector<Y>;

// The N values of each channel of a tile where channels lie side by side, as Channels reads them.
template <class Acc, int N>
struct alignas(16) ColumnTable {
  Acc values[N * kMaxClusterGroup];

  __device__ __forceinline__ Acc& at(int k, int value) {
    return values[(k / kClusterPart * N + value) * kClusterPart + k % kClusterPart];
  }
};

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
//   3. The first warp combines those of a group's channels, if they are apart, and makes the channels' coefficients;
//   the
//      cluster's first block writes mean and invstd.
//   4. Threads normalise, add the residual, activate and write the output, and leave each piece to the producer.
template <class T, class Y, int A>
__global__ void __launch_bounds__(kMaxConsumers + kProducers, 1)
    forward_cluster(const __grid_constant__ ClusterTiling tiling, const __grid_constant__ ForwardArguments<T, Y> args) {
  using Acc = Accumulator<T>;
  using Values = ColumnTable<Acc, 3>;
  using Pivots = ColumnTable<Acc, 1>;
  constexpr int V = kWord<T, Y>, P = kClusterPart, U = words_of_piece(1, V);
  constexpr int S = kRatio<T, Y>, B = V * sizeof(Y);
  using Word = Raw<T, V>;
  DYN_SHARED(Word, slots);
  SHARED(Ring, ring, );
  SHARED(Exchange<Acc>, exchange, );
  SHARED(Coefficients<Acc>, table, [kMaxClusterGroup]);  // A == 1
  SHARED(Values, columns, );                             // A > 1, as are the next ones
  SHARED(Pivots, pivots, );                              // for the moments of a channel: its group's first element
  SHARED(Partial<Acc>, totals, [kMaxClusterGroup]);
  const int rank = static_cast<int>(gpu::cluster_rank()), clusters = static_cast<int>(gridDim.x) / tiling.blocks;
  int tile = static_cast<int>(blockIdx.x) / tiling.blocks;
  start_cluster<A>(tiling, ring, exchange);
  if (static_cast<int>(threadIdx.x) >= tiling.consumers) {
    return produce<A, U>(tiling, rank, tile, clusters, ring, Held<T, V>{args.input, slots});
  }
  const Words words = tiling.words<A, U>(rank, threadIdx.x);
  const int group_channels = args.sizes.group_channels, channels = A == 1 ? group_channels : tiling.group;
  const bool prepares = static_cast<int>(threadIdx.x) < channels;  // of the tile's channel threadIdx.x
  const int first_of_group = A == 1 ? 0 : static_cast<int>(threadIdx.x) / group_channels * group_channels;
  const auto pivot_of = [&](int tile) {
    return gpu::convert<Acc>(at_byte(args.input, tiling.origin<A>(tile))[first_of_group]);
  };
  Consumers consumers{&ring.met};
  Cursor cursor;
  if constexpr (A > 1) {
    if (prepares) pivots.at(threadIdx.x, 0) = pivot_of(tile);
    consumers.meet();
  }
  for (int turn = 0; tile < tiling.tiles; tile += clusters, ++turn) {
    const int64_t origin = tiling.origin<A>(tile);
    std::conditional_t<A == 1, Origin<Acc>, ClusterChannels<T, V, A, 1>> pivot;
    Acc next_pivot = 0;
    if constexpr (A == 1) {
      pivot.value = gpu::convert<Acc>(*at_byte(args.input, origin));
    } else {
      pivot.table = pivots.values + words.local;
      if (prepares && tile + clusters < tiling.tiles) next_pivot = pivot_of(tile + clusters);
    }
    Coefficients<Acc> own{};  // without the moments
    if (prepares) {
      const int64_t row = int64_t{tile} * channels + threadIdx.x;
      const int channel = args.sizes.template spot<1>(row).channel;
      own = coefficients(args.parameters, channel, row, Acc(0), Acc(1));
    }

    const auto wait = [&](const Cursor& at) { gpu::mbarrier_wait(&ring.full[at.slot], at.phase); };
    ThreadMoments<T, V, A> moments;
    Cursor first = cursor;
    wait(first);
#pragma unroll
    for (int j = 0; j < A; ++j) moments.pivot[j] = 0;
    if (words.whole + words.rest > 0) moments.begin(slots[place_of<U>(tiling, first)]);
    for_each_piece<U>(
        tiling, words, true, first, wait,
        [&](int place, uint32_t, auto count) {
#pragma unroll
          for (int u = 0; u < count.value; ++u) moments.add(slots[place + 32 * u]);
        },
        [](const Cursor&) {});
    Partial<Acc> mine[A];
    moments.finish(words.whole * U + words.rest, pivot, mine);
    Partials<Acc, A> found;
    found.n = mine[0].n;
#pragma unroll
    for (int j = 0; j < A; ++j) {
      found.a[j] = mine[j].a;
      found.b[j] = mine[j].b;
    }
    Partial<Acc> total = combine_cluster<Moments, V>(tiling, consumers, turn, rank, found, exchange);
    if constexpr (A > 1) {
      const int k = static_cast<int>(threadIdx.x) / tiling.blocks;
      if (k < tiling.group && static_cast<int>(threadIdx.x) % tiling.blocks == 0) totals[k] = total;
      consumers.meet();
    }
    if (threadIdx.x < 32) {
      Acc origin_of_group;
      if constexpr (A == 1) {
        origin_of_group = pivot.value;
      } else {
        total = {0, 0, 0};
        if (prepares) total = totals[threadIdx.x];
        origin_of_group = prepares ? pivots.at(threadIdx.x, 0) : Acc(0);
        for (int lane_mask = group_channels / 2; lane_mask > 0; lane_mask /= 2) {
          total = combine_with_lane<Moments>(total, lane_mask);
        }
      }
      total = {__shfl_sync(0xffffffffu, total.n, first_of_group), __shfl_sync(0xffffffffu, total.a, first_of_group),
               __shfl_sync(0xffffffffu, total.b, first_of_group)};
      const Acc mean = origin_of_group + total.a, invstd = Acc(1) / square_root(total.b / total.n + args.eps);
      if (prepares) {
        const auto of = coefficients(own.a, own.b, mean, invstd);
        if constexpr (A == 1) {
          table[threadIdx.x] = of;
        } else {
          columns.at(threadIdx.x, kMean) = of.mean;
          columns.at(threadIdx.x, kA) = of.a;
          columns.at(threadIdx.x, kB) = of.b;
          pivots.at(threadIdx.x, 0) = next_pivot;
        }
        if (rank == 0 && static_cast<int>(threadIdx.x) == first_of_group) {
          const int64_t group =
              A == 1 ? tile : int64_t{tile} * channels / group_channels + threadIdx.x / group_channels;
          args.mean[group] = mean;
          args.invstd[group] = invstd;
        }
      }
    }
    consumers.meet();

    const auto write = [&](auto kind) {
      constexpr int kKind = kind.value;
      return [&](int place, uint32_t word, auto count) {
        constexpr int N = count.value;
        const bool has_residual = kKind == kAny && args.residual;
        ClusterChannels<T, V, A, 3> of;
        if constexpr (A == 1) {
          const Coefficients<Acc> values = table[tiling.by_run(static_cast<int>(word))];
          of.values[kMean][0] = values.mean;
          of.values[kA][0] = values.a;
          of.values[kB][0] = values.b;
        } else {
          of.table = columns.values + words.local * 3;
        }
        Word raw[N];
        Raw<Y, V> added[N], result[N] = {};
#pragma unroll
        for (int u = 0; u < N; ++u) {
          raw[u] = slots[place + 32 * u];
          if (has_residual) added[u] = load<Y, V>(words_at<A, B, S>(tiling, args.residual, origin, word)(u));
        }
#pragma unroll
        for (int part = 0; part < V / P; ++part) {
          of.read(part);
#pragma unroll
          for (int u = 0; u < N; ++u) {
            Acc v[P], r[P];
            unpack_part<T, V, P>(raw[u], part, v);
            if (has_residual) unpack_part<Y, V, P>(added[u], part, r);
#pragma unroll
            for (int j = 0; j < P; ++j) {
              v[j] = of.preactivation(of.centred(v[j], j), j);
              if (has_residual) v[j] += r[j];
            }
            args.activation.template apply<Y, kKind>(v);
            pack_part<Y, V, P>(v, part, result[u]);
          }
        }
        const auto output = words_at<A, B, S>(tiling, args.output, origin, word);
#pragma unroll
        for (int u = 0; u < N; ++u) store<Y, V>(output(u), result[u]);
      };
    };
    const auto stay = [](const Cursor&) {};
    const auto leave = [&](const Cursor& at) { leave_piece(ring, at); };
    uint32_t word = words.first;
    const uint32_t end = words.end_of_whole<U>(tiling.consumers);
    with_variant(args.activation, !args.residual, [&](auto kind) {
      for_each_whole_piece<U>(tiling, end, true, cursor, word, stay, write(kind), leave);
    });
    last_piece<U>(tiling, words, true, cursor, word, stay, write(AnyCall{}), leave);
  }
}

// What backward needs of a tile: of a group,
template <class Acc, bool one>
struct GroupTable {
  Acc mean, own_invstd;
  typename PairOf<Acc>::type coefficients[kMaxClusterGroup];  // (a, b) of a channel

  __device__ __forceinline__ void set(int k, const Coefficients<Acc>& of, Acc invstd) {
    coefficients[k].x = of.a;
    coefficients[k].y = of.b;
    if (k == 0) {
      mean = of.mean;
      own_invstd = invstd;
    }
  }
  __device__ __forceinline__ Acc invstd(int) const { return own_invstd; }
};
// and of some.
template <class Acc>
struct GroupTable<Acc, false> : ColumnTable<Acc, 5> {
  Acc invstds[kMaxClusterGroup];

  __device__ __forceinline__ void set(int k, const Coefficients<Acc>& of, Acc invstd) {
    this->at(k, kMean) = of.mean;
    this->at(k, kA) = of.a;
    this->at(k, kB) = of.b;
    invstds[k] = invstd;
  }
  __device__ __forceinline__ Acc invstd(int k) const { return invstds[k]; }
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
// each cluster has the same channels of every sample it adds up over samples what is theirs, else parameter_gradients
// does.
//   1. For each tile in turn: threads compute the gradient behind the activation, g', and its two sums, S1 and S2. They
//      leave g', rounded to Y, in the place of grad_output, and write it as grad_residual where that is wanted.  When a
//      warp comes to the end of a channel it leaves its sums; in channels_last they all come to it at the same time.
//   2. Sums of each channel are combined in the block, then in the cluster, whose first block writes what is wanted of
//      the channel.
//   3. Each warp, in channels_last the first one, sums u * S1 and u * S2 over a group's channels; threads compute
//      grad_input from what the slots hold.
template <class T, class Y, int A>
__global__ void __launch_bounds__(kMaxConsumers + kProducers, 1)
    backward_cluster(const __grid_constant__ ClusterTiling tiling, const __grid_constant__ BackwardArguments<T, Y> args,
                     const Between<Accumulator<T>> between) {
  using Acc = Accumulator<T>;
  using Pair = typename PairOf<Acc>::type;
  using Table = GroupTable<Acc, A == 1>;
  constexpr int V = kWord<T, Y>, P = kClusterPart, U = words_of_piece(2, V);
  constexpr int kSide = A == 1 ? 2 : A;  // sums side by side
  constexpr int S = kRatio<T, Y>, B = V * sizeof(Y);
  using Word = Raw<T, V>;
  using Grad = Raw<Y, V>;
  DYN_SHARED(Word, slots);
  SHARED(Ring, ring, );
  SHARED(Exchange<Acc>, exchange, );
  SHARED(Table, tables, [2]);                // of this tile and the next one
  SHARED(Pair, shares, [kMaxClusterGroup]);  // u * S1 and u * S2 of a channel
  // Its sums of grad_bias and grad_weight, which only the thread that finishes it reads and writes.
  SHARED(double2, over_samples, [kMaxClusterGroup]);
  const int rank = static_cast<int>(gpu::cluster_rank()), clusters = static_cast<int>(gridDim.x) / tiling.blocks;
  int tile = static_cast<int>(blockIdx.x) / tiling.blocks;
  gpu::allow_next_kernel();
  start_cluster<A>(tiling, ring, exchange);
  Grad* const grads = reinterpret_cast<Grad*>(at_byte(slots, tiling.first_slots));
  if (static_cast<int>(threadIdx.x) >= tiling.consumers) {
    return produce<A, U>(tiling, rank, tile, clusters, ring, Held<T, V>{args.input, slots},
                         Held<Y, V, S>{args.grad_output, grads});
  }
  const Words words = tiling.words<A, U>(rank, threadIdx.x);
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
    const auto spot = args.sizes.template spot<1>(row_of(tile));
    const Acc mean = __ldg(args.mean + spot.group[0]), invstd = __ldg(args.invstd + spot.group[0]);
    tables[turn % 2].set(k, coefficients(args.parameters, spot.channel, spot.row, mean, invstd), invstd);
  };
  if (finishes()) over_samples[k].x = over_samples[k].y = 0;
  Consumers consumers{&ring.met};
  Cursor cursor;
  prepare(tile, 0);
  consumers.meet();
  for (int turn = 0; tile < tiling.tiles; tile += clusters, ++turn) {
    Table& table = tables[turn % 2];
    const auto wait = [&](const Cursor& at) { gpu::mbarrier_wait(&ring.full[at.slot], at.phase); };
    const auto stay = [](const Cursor&) {};
    Cursor first = cursor;
    ClusterChannels<T, V, A, 5> of;
    if constexpr (A > 1) of.table = table.values + words.local * 5;
    Acc plain[kSide] = {}, weighted[kSide] = {};
    with_variant(args.activation, !args.residual && !args.grad_residual, [&](auto kind) {
      constexpr int kKind = kind.value;
      const auto reduce = [&](int place, [[maybe_unused]] uint32_t word, auto count) {
        constexpr int N = count.value;
        const bool has_residual = kKind == kAny && args.residual;
        // Anew, too.
        [[maybe_unused]] const int64_t origin = tiling.origin<A>(gpu::opaque(tile));
        Word input[N];
        Grad grad[N], added[N];
#pragma unroll
        for (int u = 0; u < N; ++u) {
          input[u] = slots[place + 32 * u];
          grad[u] = grads[place + 32 * u];
          if (has_residual) added[u] = load<Y, V>(words_at<A, B, S>(tiling, args.residual, origin, word)(u));
        }
#pragma unroll
        for (int part = 0; part < V / P; ++part) {
          of.read(part);
#pragma unroll
          for (int u = 0; u < N; ++u) {
            Acc centred[P], g[P], v[P], r[P];
            unpack_part<T, V, P>(input[u], part, centred);
            unpack_part<Y, V, P>(grad[u], part, g);
            if (has_residual) unpack_part<Y, V, P>(added[u], part, r);
#pragma unroll
            for (int j = 0; j < P; ++j) {
              centred[j] = of.centred(centred[j], j);
              v[j] = of.preactivation(centred[j], j);
              if (has_residual) v[j] += r[j];
            }
            args.activation.template differentiate<Y, kKind>(v, g);
#pragma unroll
            for (int j = 0; j < P; ++j) {
              const int s = (part * P + j) % kSide;
              plain[s] += g[j];
              weighted[s] = multiply_add(g[j], centred[j], weighted[s]);
            }
            pack_part<Y, V, P>(g, part, grad[u]);
          }
        }
#pragma unroll
        for (int u = 0; u < N; ++u) grads[place + 32 * u] = grad[u];
        if (kKind == kAny && args.grad_residual) {
          const auto output = words_at<A, B, S>(tiling, args.grad_residual, origin, word);
#pragma unroll
          for (int u = 0; u < N; ++u) store<Y, V>(output(u), grad[u]);
        }
      };
      if constexpr (A > 1 && kKind == kAny) {
        const auto by_words = [&](int place, uint32_t word, auto count) {  // registers are short here
#pragma unroll 1
          for (int u = 0; u < count.value; ++u) {
            reduce(place + 32 * u, word + 32u * static_cast<uint32_t>(u), std::integral_constant<int, 1>{});
          }
        };
        for_each_piece<U>(tiling, words, true, first, wait, by_words, stay);
      } else if constexpr (A > 1) {
        for_each_piece<U>(tiling, words, true, first, wait, reduce, stay);
      } else {
        Partial<Acc>* const found = warp_partials<Acc>() + warp * tiling.group;
        if (lane < tiling.group) found[lane] = {0, 0, 0};
        __syncwarp();
        uint32_t word = words.first;
        const uint32_t end_of_whole = words.end_of_whole<U>(tiling.consumers);
        of.values[kMean][0] = table.mean;
        do {  // for each of the channels that the warp has words of
          const int channel = word < end_of_whole ? tiling.by_run(static_cast<int>(word)) : 0;
          of.values[kA][0] = table.coefficients[channel].x;
          of.values[kB][0] = table.coefficients[channel].y;
          const uint32_t end = min(static_cast<uint32_t>(channel + 1) * tiling.run, end_of_whole);
#pragma unroll
          for (int j = 0; j < kSide; ++j) plain[j] = weighted[j] = 0;
          for_each_whole_piece<U>(tiling, end, true, first, word, wait, reduce, stay);
          if (word >= end_of_whole) last_piece<U>(tiling, words, true, first, word, wait, reduce, stay);
          const Acc sum = sum_of_lanes(sum_of(plain), sum_of(weighted));
          // Of kAny anew, too.
          const int summed = kKind == kAny ? tiling.by_run(static_cast<int>(max(end, 1u) - 1)) : channel;
          if (lane == 0) found[summed].a = sum;
          if (lane == 16) found[summed].b = sum;
        } while (word < end_of_whole);
      }
    });

    Partial<Acc> total;
    if constexpr (A == 1) {
      gpu::fence_proxy_async();  // g' is in the slots before what is copied there next, in its own order
      total = combine_blocks<Sums, V, A>(tiling, consumers, turn, rank, exchange);
    } else {
      Partials<Acc, A> found;
      found.n = 0;
#pragma unroll
      for (int j = 0; j < A; ++j) {
        found.a[j] = plain[j];
        found.b[j] = weighted[j];
      }
      total = combine_cluster<Sums, V>(tiling, consumers, turn, rank, found, exchange);
    }
    if (finishes()) {
      const Acc u = args.parameters.u(channel_of(tile), row_of(tile));
      shares[k].x = u * total.a;
      shares[k].y = u * total.b;
    }
    if (tile + clusters < tiling.tiles) prepare(tile + clusters, turn + 1);
    consumers.meet();
    if (rank == 0 && finishes()) {
      const int channel = channel_of(tile);
      const Pair parts = store_row(args, channel, row_of(tile), table.invstd(k), total.a, total.b);
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
    const int width = A == 1 ? 32 : args.sizes.group_channels;  // lanes with channels of one group
    for (int lane_mask = width / 2; lane_mask > 0; lane_mask /= 2) group = combine_with_lane<Sums>(group, lane_mask);
    const int own = A > 1 && lane < tiling.group ? lane : 0;
    const Pair terms = terms_of(args, table.invstd(own), group.a, group.b);
    if constexpr (A == 1) {
      of.values[kMean][0] = table.mean;
      of.values[kP][0] = offset_of<T>(terms.x, terms.y, table.mean);
      of.values[kQ][0] = terms.y;
    } else {
      if (warp == 0 && lane < tiling.group) {
        table.at(lane, kP) = offset_of<T>(terms.x, terms.y, table.at(lane, kMean));
        table.at(lane, kQ) = terms.y;
      }
      consumers.meet();
    }

    const int64_t origin = tiling.origin<A>(gpu::opaque(tile));
    for_each_piece<U>(
        tiling, words, true, cursor, stay,
        [&](int place, uint32_t word, auto count) {
          constexpr int N = count.value;
          if constexpr (A == 1) of.values[kA][0] = table.coefficients[tiling.by_run(static_cast<int>(word))].x;
          Word input[N];
          Grad grad[N];
#pragma unroll
          for (int u = 0; u < N; ++u) {
            input[u] = slots[place + 32 * u];
            grad[u] = grads[place + 32 * u];
          }
#pragma unroll
          for (int part = 0; part < V / P; ++part) {
            of.read(part);
#pragma unroll
            for (int u = 0; u < N; ++u) {
              Acc x[P], g[P];
              unpack_part<T, V, P>(input[u], part, x);
              unpack_part<Y, V, P>(grad[u], part, g);
#pragma unroll
              for (int j = 0; j < P; ++j) {
                if constexpr (!kOffsetHasMean<T>) x[j] = of.centred(x[j], j);
                g[j] = multiply_add(of.get(kA, j), g[j], multiply_add(x[j], of.get(kQ, j), of.get(kP, j)));
              }
              pack_part<T, V, P>(g, part, input[u]);
            }
          }
          const auto output = words_at<A, V * sizeof(T)>(tiling, args.grad_input, origin, word);
#pragma unroll
          for (int u = 0; u < N; ++u) store<T, V>(output(u), input[u]);
        },
        [&](const Cursor& at) { leave_piece(ring, at); });
  }
}

}  // namespace genimg_fast::cuda::group_norm
