#pragma once
// Kernels of batch_norm_act's training for GPUs with clusters, compute capability 9.0 and later: each tensor is read
// and written once, whatever its size, as long as one tile of it fits into the shared memory of a cluster.
//
// A cluster of blocks owns one tile of channels at a time, and walks over its part of the tiles: while its blocks work
// on a tile in one buffer of shared memory, the next tile is on its way into the other one.  Blocks exchange what they
// found through distributed shared memory.  They wait at mbarriers for their copies and their own cluster only, whose
// blocks the hardware starts together: nothing spins on global memory, and there is no workspace.
//
// A tile is one channel (A == 1), or neighbouring ones where channels are the fastest dimension (A == V).  Word i of a
// block's share of it, 16 bytes, lies at place i of a buffer and belongs to thread i % threads.
#include "batch_norm_act_backward.cuh"
#include "batch_norm_act_forward.cuh"

namespace genimg_fast::cuda::batch_norm {

constexpr int kMaxBuffers = 2;
constexpr int kMaxClusterBlocks = 16;
constexpr int kMaxClusterGroup = 32;                                         // channels in a tile
constexpr int kMaxClusterPartials = kOnChipThreads / 32 * kMaxClusterGroup;  // of the warps of a block

// A thread's first word of its block's share of a tile.
struct Place {
  int64_t offset;  // in the tensor, for the first tile
  uint32_t at;     // in its run
  int count;       // how many words the thread has
  int local;       // channel, counted from the tile's first one
};

struct ClusterTiling {
  int64_t channels;
  int64_t inner;      // elements in a contiguous run of one channel
  int64_t row;        // elements from one outer index to the next
  int64_t share;      // words of a channel, A > 1: outer indices, of a block; the first `longer` blocks have one more
  int64_t tile_step;  // elements from one tile to the next
  int64_t step;       // elements from one of a thread's words to its next, if `at` stays inside the run,
  uint32_t step_run;  // what `at` grows by,
  uint32_t run;       // where the run ends, in words,
  int64_t wrap;       // and what is added to the offset when `at` gets there
  int tiles;
  int blocks;  // in a cluster: a power of two
  int longer;
  int group;  // channels in a tile
  int width;  // words of a tile at one outer index; A == 1: not used
  int threads;
  int team;  // threads that combine what a block's warps found for one channel: at most 32 and threads / group
  int buffers;
  int words;  // of one tensor in a buffer
  bool bulk;  // runs are long enough for bulk copies

  __host__ __device__ int64_t begin(int rank) const { return rank * share + (rank < longer ? rank : longer); }
  __host__ __device__ int64_t end(int rank) const { return begin(rank + 1); }
  // Elements of one channel in a block's share.
  template <int V, int A>
  __host__ __device__ int64_t count(int rank) const {
    return (end(rank) - begin(rank)) * (A == 1 ? V : 1);
  }

  template <int V, int A>
  __host__ __device__ Place place(int rank, int thread) const {
    Place p{};
    if (A == 1) {
      const int64_t first = begin(rank) + thread, outer = first / run;
      p.at = static_cast<uint32_t>(first - outer * run);
      p.offset = outer * row + int64_t{p.at} * V;
      p.count = static_cast<int>((end(rank) - first + threads - 1) / threads);
    } else {
      const int rows = threads / width;
      const int64_t first = begin(rank) + thread / width;
      p.local = thread % width * A;
      p.offset = first * row + p.local;
      p.count = static_cast<int>((end(rank) - first + rows - 1) / rows);
    }
    if (p.count < 0) p.count = 0;
    return p;
  }
  // The last tile may have fewer channels.
  __host__ __device__ int count_in(const Place& p, int tile) const {
    return int64_t{tile} * group + p.local < channels ? p.count : 0;
  }

  template <int A>
  __host__ __device__ __forceinline__ void advance(int64_t& offset, uint32_t& at) const {
    offset += step;
    if (A == 1) {
      at += step_run;
      if (at >= run) {
        at -= run;
        offset += wrap;
      }
    }
  }
};

// Starts to load a block's share of a tile of N tensors into a buffer, one after the other; `full` completes a phase
// when all of it is there.
template <class T, int A, int N>
__device__ __forceinline__ void load_tile(const ClusterTiling& tiling, const Place& place, const T* const (&tensors)[N],
                                          int rank, int tile, uint4* buffer, uint64_t* full) {
  constexpr int V = kVector<T>;
  if (A == 1 && tiling.bulk) {
    if (threadIdx.x >= 32) return;
    const int64_t begin = tiling.begin(rank), end = tiling.end(rank), run = tiling.run;
    if (threadIdx.x == 0) {
      gpu::mbarrier_arrive_expect_tx(full,
                                     static_cast<unsigned>(end - begin) * N * static_cast<unsigned>(sizeof(uint4)));
    }
    for (int64_t outer = begin / run + threadIdx.x; outer * run < end; outer += 32) {
      const int64_t from = outer * run > begin ? outer * run : begin;
      const int64_t until = (outer + 1) * run < end ? (outer + 1) * run : end;
      const int64_t offset = tile * tiling.tile_step + outer * tiling.row + (from - outer * run) * V;
#pragma unroll
      for (int i = 0; i < N; ++i) {
        gpu::bulk_copy(buffer + i * tiling.words + (from - begin), tensors[i] + offset,
                       static_cast<unsigned>(until - from) * static_cast<unsigned>(sizeof(uint4)), full);
      }
    }
  } else {
    int64_t offset = place.offset + tile * tiling.tile_step;
    uint32_t at = place.at;
    uint4* to = buffer + threadIdx.x;
    for (int left = tiling.count_in(place, tile); left > 0; --left, to += tiling.threads) {
#pragma unroll
      for (int i = 0; i < N; ++i) gpu::async_copy_16(to + i * tiling.words, tensors[i] + offset);
      tiling.advance<A>(offset, at);
    }
    gpu::arrive_after_copies(full);
  }
}

// Calls body with U as often as `count` allows, then with 1 for what is left: how many words it shall take.
template <int U, class Body>
__device__ __forceinline__ void in_chunks(int count, Body body) {
  for (; count >= U; count -= U) body(std::integral_constant<int, U>{});
#pragma unroll 1
  for (; count > 0; --count) body(std::integral_constant<int, 1>{});
}

// Combines what the block's threads found in a fixed order; thread k * team returns the sum of channel k.
template <class Combine, int A, class Acc>
__device__ __forceinline__ Partial<Acc> combine_warps(const ClusterTiling& tiling, Partials<Acc, A> mine) {
  SHARED(Partial<Acc>, partials, [kMaxClusterPartials]);
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, width = A == 1 ? 1 : tiling.width;
  // Lanes that agree modulo `width` have the same channels.  Two of them that meet share their channels out, and each
  // goes on with half of them, until it has one.
  int k = A == 1 ? 0 : lane % width * A, lane_mask = 16;
#pragma unroll
  for (int half = A / 2; half > 0; half /= 2, lane_mask /= 2) {
    const bool upper = lane & lane_mask;
    const Acc n = mine.n, other = __shfl_xor_sync(0xffffffffu, n, lane_mask);
#pragma unroll
    for (int j = 0; j < half; ++j) {
      const Partial<Acc> kept{n, upper ? mine.a[j + half] : mine.a[j], upper ? mine.b[j + half] : mine.b[j]};
      const Acc a = upper ? mine.a[j] : mine.a[j + half], b = upper ? mine.b[j] : mine.b[j + half];
      const Partial<Acc> sum = Combine::combine(kept, Partial<Acc>{other, __shfl_xor_sync(0xffffffffu, a, lane_mask),
                                                                   __shfl_xor_sync(0xffffffffu, b, lane_mask)});
      mine.n = sum.n;
      mine.a[j] = sum.a;
      mine.b[j] = sum.b;
    }
    if (upper) k += half;
  }
  Partial<Acc> sum{mine.n, mine.a[0], mine.b[0]};
  const bool writes = (lane & (2 * lane_mask - 1)) < width;
  for (; lane_mask >= width; lane_mask /= 2) sum = combine_with_lane<Combine>(sum, lane_mask);
  if (writes) partials[warp * tiling.group + k] = sum;
  __syncthreads();

  const int team = tiling.team, channel = thread / team;
  sum = {0, 0, 0};
  if (warp * 32 >= tiling.group * team) return sum;
  if (channel < tiling.group) {
    for (int w = thread % team; w < tiling.threads / 32; w += team) {
      sum = Combine::combine(sum, partials[w * tiling.group + channel]);
    }
  }
  for (lane_mask = team / 2; lane_mask > 0; lane_mask /= 2) sum = combine_with_lane<Combine>(sum, lane_mask);
  return sum;
}

// What the blocks of a cluster send each other, in two halves that take turns: block r its part of channel k to
// parts[r][k] of all.  A block sends to a half again only after it has had what its peers sent to the other one, which
// they did when they had read this one and had told its mbarrier what to expect.
template <class Acc>
struct Exchange {
  using Pair = typename PairOf<Acc>::type;
  Pair parts[2][kMaxClusterBlocks][kMaxClusterGroup];
  uint64_t full[2];  // mbarriers

  __device__ __forceinline__ void expect(const ClusterTiling& tiling, int half) {
    const int bytes = tiling.blocks * tiling.group * static_cast<int>(sizeof(Pair));
    gpu::mbarrier_arrive_expect_tx(full + half, static_cast<unsigned>(bytes));
  }
};

// Combines what the cluster's threads found; thread k * blocks returns the sum of channel k, with the same bits in
// every block.  `turn` counts the calls.
template <class Combine, int V, int A, class Acc>
__device__ __forceinline__ Partial<Acc> combine_cluster(const ClusterTiling& tiling, int turn, int own_rank,
                                                        Partials<Acc, A> mine, Exchange<Acc>& exchange) {
  const int thread = threadIdx.x, first_of_warp = thread / 32 * 32, half = turn % 2;
  Partial<Acc> sum = combine_warps<Combine, A>(tiling, mine);
  if (first_of_warp < tiling.group * tiling.team) {
    typename Exchange<Acc>::Pair pair;
    pair.x = __shfl_sync(0xffffffffu, sum.a, 0, tiling.team);
    pair.y = __shfl_sync(0xffffffffu, sum.b, 0, tiling.team);
    const int k = thread / tiling.team;
    for (int rank = thread % tiling.team; rank < tiling.blocks; rank += tiling.team) {
      if (k < tiling.group) {
        gpu::store_async(static_cast<unsigned>(rank), &exchange.parts[half][own_rank][k], pair, &exchange.full[half]);
      }
    }
  }
  sum = {0, 0, 0};
  if (first_of_warp < tiling.group * tiling.blocks) {
    const int k = thread / tiling.blocks, rank = thread % tiling.blocks;
    gpu::mbarrier_wait_for_peers(&exchange.full[half], static_cast<unsigned>(turn / 2 % 2));
    if (thread == 0) exchange.expect(tiling, half);
    if (k < tiling.group) {
      const auto pair = exchange.parts[half][rank][k];
      sum = {static_cast<Acc>(tiling.count<V, A>(rank)), pair.x, pair.y};
    }
    for (int lane_mask = tiling.blocks / 2; lane_mask > 0; lane_mask /= 2) {
      sum = combine_with_lane<Combine>(sum, lane_mask);
    }
  }
  return sum;
}

// Initialises the mbarriers, of whose buffers each load is a phase, before any block of the cluster uses one.
template <class Acc>
__device__ __forceinline__ void start_cluster(const ClusterTiling& tiling, uint64_t* full, Exchange<Acc>& exchange) {
  if (threadIdx.x == 0) {
#pragma unroll
    for (int b = 0; b < kMaxBuffers; ++b) {
      gpu::mbarrier_init(full + b, tiling.bulk ? 1 : static_cast<unsigned>(tiling.threads));
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      gpu::mbarrier_init(&exchange.full[half], 1);
      exchange.expect(tiling, half);
    }
    gpu::fence_mbarrier_init();
  }
  gpu::cluster_arrive();
  gpu::cluster_wait();
}

// Past the caches' usual order if `stream`: to be evicted first.
template <class T>
__device__ __forceinline__ void store_word(T* p, uint4 word, bool stream) {
  if (stream) {
    __stcs(reinterpret_cast<uint4*>(p), word);
  } else {
    gpu::store_128(p, word);
  }
}

// The activation and whether there is a residual, as constants for call.
template <class Acc, class Call>
__device__ __forceinline__ void with_constants(const ActivationOf<Acc>& activation, bool residual, Call call) {
  const auto choose = [&](auto kind) { residual ? call(kind, std::true_type{}) : call(kind, std::false_type{}); };
  if (activation.kind == kSilu) {
    choose(std::integral_constant<int, kSilu>{});
  } else if (activation.kind == kRelu) {
    choose(std::integral_constant<int, kRelu>{});
  } else {
    choose(std::integral_constant<int, kLeakyRelu>{});
  }
}

// Procedure overview: all of training's forward.
//   1. The first tiles start to load, one into each buffer.
//   2. For each tile in turn: threads wait until its buffer is full and reduce their words to moments,
//   3. which are combined in the block, then in the cluster: every block of it gets the same bits.
//   4. Threads normalise, add the residual, activate and write the output; the cluster's first block writes mean,
//      invstd and running statistics.
//   5. The buffer is filled with the tile after the next one.
template <class T, int A>
__global__ void __launch_bounds__(kOnChipThreads, 1)
    train_cluster(const ClusterTiling tiling, const ForwardArguments<T> args) {
  using Acc = Accumulator<T>;
  constexpr int V = kVector<T>, P = kPart<V>, U = A == 8 ? 2 : 4;
  DYN_SHARED(uint4, buffers);
  SHARED(uint64_t, full, [kMaxBuffers]);
  SHARED(Exchange<Acc>, exchange, );
  using Table = ChannelTable<Acc, 3>;
  SHARED(Table, table, );
  const int rank = static_cast<int>(gpu::cluster_rank()), threads = tiling.threads;
  const int clusters = static_cast<int>(gridDim.x) / tiling.blocks;
  const Place place = tiling.place<V, A>(rank, threadIdx.x);
  const T* const tensors[1] = {args.input};
  const auto fill = [&](int tile, int buffer) {
    load_tile<T, A>(tiling, place, tensors, rank, tile, buffers + buffer * tiling.words, &full[buffer]);
  };
  // Of channel k of the tile: the thread that finishes its statistics.
  const int k = static_cast<int>(threadIdx.x) / tiling.blocks;
  const bool finishes = k < tiling.group && static_cast<int>(threadIdx.x) % tiling.blocks == 0;

  int tile = static_cast<int>(blockIdx.x) / tiling.blocks;
  start_cluster(tiling, full, exchange);
  for (int b = 0; b < tiling.buffers; ++b) {
    if (tile + b * clusters < tiling.tiles) fill(tile + b * clusters, b);
  }
  for (int turn = 0; tile < tiling.tiles; tile += clusters, ++turn) {
    const int buffer = turn % tiling.buffers, count = tiling.count_in(place, tile);
    const uint4* const words = buffers + buffer * tiling.words + threadIdx.x;
    const int channel = tile * tiling.group + k;
    const bool writes = finishes && channel < tiling.channels;
    // Of the thread's words, and of channel k: see load_pivots.
    Acc pivots[A] = {}, pivot[1] = {}, weight = 1, bias = 0;
    if (count > 0) unpack<T, A>(load<T, A>(args.input + tile * tiling.tile_step + place.local), pivots);
    if (writes) {
      unpack<T, 1>(load<T, 1>(args.input + channel * tiling.inner), pivot);
      weight = read_or(args.weight, channel, Acc(1));
      bias = read_or(args.bias, channel, Acc(0));
    }

    gpu::mbarrier_wait(&full[buffer], static_cast<unsigned>(turn / tiling.buffers % 2));
    ThreadMoments<T, V, A> moments;
    if (count > 0) {
      moments.begin(words[0]);
      const uint4* from = words;
      in_chunks<U>(count, [&](auto chunk) {
        uint4 raw[chunk.value];
#pragma unroll
        for (int u = 0; u < chunk.value; ++u) raw[u] = from[u * threads];
        from += chunk.value * threads;
        moments.template add<chunk.value>(raw, Whole<chunk.value>{});
      });
    }
    const Partial<Acc> total = combine_cluster<Moments, V>(tiling, turn, rank, moments.found(pivots, 0), exchange);
    Acc mean = 0, variance = 0, invstd = 0;
    if (finishes) {
      mean = pivot[0] + total.a;
      variance = total.b / total.n;
      invstd = Acc(1) / square_root(variance + static_cast<Acc>(args.eps));
      table.set_affine(k, mean, invstd, weight, bias);
    }
    __syncthreads();
    if (rank == 0 && writes) store_statistics(args, channel, mean, invstd, variance);

    if (count > 0) {
      ChannelValues<Acc, 3, V, A> values;
      values.read(table, place.local);
      with_constants(args.activation, args.residual != nullptr, [&](auto activation, auto residual) {
        constexpr int kActivation = activation.value;
        constexpr bool kResidual = residual.value;
        int64_t offset = place.offset + tile * tiling.tile_step;
        uint32_t at = place.at;
        const uint4* from = words;
        in_chunks<U>(count, [&](auto chunk) {
          constexpr int N = chunk.value;
          int64_t offsets[N];
          uint4 raw[N], added[N];
#pragma unroll
          for (int u = 0; u < N; ++u) {
            offsets[u] = offset;
            tiling.advance<A>(offset, at);
            raw[u] = from[u * threads];
            if constexpr (kResidual) added[u] = load<T, V>(args.residual + offsets[u]);
          }
          from += N * threads;
#pragma unroll
          for (int part = 0; part < V / P; ++part) {
            values.read_part(table, place.local, part);
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
#pragma unroll
          for (int u = 0; u < N; ++u) store_word(args.output + offsets[u], raw[u], args.stream);
        });
      });
    }
    if (tile + tiling.buffers * clusters < tiling.tiles) {
      __syncthreads();  // all have read the buffer
      fill(tile + tiling.buffers * clusters, buffer);
    }
  }
}

// Procedure overview: all of training's backward, as train_cluster, with grad_output and input side by side in a
// buffer.
//   1. For each tile in turn: threads compute the gradient behind the activation, g', and sum g' and
//      g' * (x - mean).  They leave g', rounded to T, in the place of grad_output, and write it as grad_residual where
//      that is wanted.
//   2. Sums are combined in the block, then in the cluster, whose first block writes grad_weight and grad_bias.
//   3. Threads compute grad_input from what the buffer holds.
template <class T, int A>
__global__ void __launch_bounds__(kOnChipThreads, 1)
    backward_cluster(const ClusterTiling tiling, const BackwardArguments<T> args) {
  using Acc = Accumulator<T>;
  constexpr int V = kVector<T>, P = kPart<V>, U = A == 8 ? 1 : 2;
  DYN_SHARED(uint4, buffers);
  SHARED(uint64_t, full, [kMaxBuffers]);
  SHARED(Exchange<Acc>, exchange, );
  using Table = ChannelTable<Acc, 5>;
  SHARED(Table, tables, [2]);  // of this tile and the next one
  const int rank = static_cast<int>(gpu::cluster_rank()), threads = tiling.threads, words = tiling.words;
  const int clusters = static_cast<int>(gridDim.x) / tiling.blocks;
  const Place place = tiling.place<V, A>(rank, threadIdx.x);
  const T* const tensors[2] = {args.input, args.grad_output};
  const auto fill = [&](int tile, int buffer) {
    load_tile<T, A>(tiling, place, tensors, rank, tile, buffers + buffer * 2 * words, &full[buffer]);
  };
  const int k = static_cast<int>(threadIdx.x) / tiling.blocks;
  const bool finishes = k < tiling.group && static_cast<int>(threadIdx.x) % tiling.blocks == 0;
  const auto prepare = [&](int tile, int turn) {
    const int channel = tile * tiling.group + k;
    if (finishes && channel < tiling.channels) {
      tables[turn % 2].set_affine(k, __ldg(args.mean + channel), __ldg(args.invstd + channel),
                                  read_or(args.weight, channel, Acc(1)), read_or(args.bias, channel, Acc(0)));
    }
  };

  int tile = static_cast<int>(blockIdx.x) / tiling.blocks;
  start_cluster(tiling, full, exchange);
  for (int b = 0; b < tiling.buffers; ++b) {
    if (tile + b * clusters < tiling.tiles) fill(tile + b * clusters, b);
  }
  prepare(tile, 0);
  __syncthreads();
  for (int turn = 0; tile < tiling.tiles; tile += clusters, ++turn) {
    const int buffer = turn % tiling.buffers, count = tiling.count_in(place, tile);
    uint4* const inputs = buffers + buffer * 2 * words + threadIdx.x;
    uint4* const grads = inputs + words;
    Table& table = tables[turn % 2];
    ChannelValues<Acc, 5, V, A> values;
    if (count > 0) values.read(table, place.local);

    gpu::mbarrier_wait(&full[buffer], static_cast<unsigned>(turn / tiling.buffers % 2));
    GradientSums<Acc, V, A> sums;
    with_constants(args.activation, args.residual != nullptr, [&](auto activation, auto residual) {
      constexpr int kActivation = activation.value;
      constexpr bool kResidual = residual.value;
      int64_t offset = place.offset + tile * tiling.tile_step;
      uint32_t at = place.at;
      int i = 0;
      in_chunks<U>(count, [&](auto chunk) {
        constexpr int N = chunk.value;
        int64_t offsets[N];
        GradientChunk<T, V, N> read;
        read.has_residual = kResidual;
#pragma unroll
        for (int u = 0; u < N; ++u) {
          offsets[u] = offset;
          tiling.advance<A>(offset, at);
          read.input[u] = inputs[i + u * threads];
          read.grad[u] = grads[i + u * threads];
          if constexpr (kResidual) read.residual[u] = load<T, V>(args.residual + offsets[u]);
        }
        uint4 rounded[N];
#pragma unroll
        for (int part = 0; part < V / P; ++part) {
          values.read_part(table, place.local, part);
#pragma unroll
          for (int u = 0; u < N; ++u) {
            Acc centred[P], g[P];
            read.template compute<kActivation>(args, values, u, part, centred, g);
            sums.add(part, g, centred);
            set_part<T, V>(rounded[u], part, pack<T, P>(g));
          }
        }
#pragma unroll
        for (int u = 0; u < N; ++u) {
          grads[i + u * threads] = rounded[u];
          if (args.grad_residual) store_word(args.grad_residual + offsets[u], rounded[u], false);
        }
        i += N * threads;
      });
    });
    const Partial<Acc> total = combine_cluster<Sums, V>(tiling, turn, rank, sums.found(), exchange);
    const int channel = tile * tiling.group + k;
    const bool writes = finishes && channel < tiling.channels;
    Acc grad_weight = 0;
    if (writes) {
      grad_weight = total.b * args.invstd[channel];
      set_input_gradient(args, channel, k, total.a, grad_weight, table);
    }
    if (tile + clusters < tiling.tiles) prepare(tile + clusters, turn + 1);
    __syncthreads();
    if (rank == 0 && writes) {
      args.grad_bias[channel] = total.a;
      args.grad_weight[channel] = grad_weight;
    }

    if (count > 0) {
      values.read(table, place.local);
      int64_t offset = place.offset + tile * tiling.tile_step;
      uint32_t at = place.at;
      int i = 0;
      in_chunks<U>(count, [&](auto chunk) {
        constexpr int N = chunk.value;
        uint4 input[N], grad[N];
#pragma unroll
        for (int u = 0; u < N; ++u) {
          input[u] = inputs[i + u * threads];
          grad[u] = grads[i + u * threads];
        }
        i += N * threads;
#pragma unroll
        for (int part = 0; part < V / P; ++part) {
          values.read_part(table, place.local, part);
#pragma unroll
          for (int u = 0; u < N; ++u) {
            Acc x[P], g[P];
            unpack<T, P>(get_part<T, V>(input[u], part), x);
            unpack<T, P>(get_part<T, V>(grad[u], part), g);
#pragma unroll
            for (int j = 0; j < P; ++j) g[j] = values.input_gradient(g[j], values.centred(x[j], j), j);
            set_part<T, V>(grad[u], part, pack<T, P>(g));
          }
        }
#pragma unroll
        for (int u = 0; u < N; ++u) {
          store_word(args.grad_input + offset, grad[u], args.stream);
          tiling.advance<A>(offset, at);
        }
      });
    }
    if (tile + tiling.buffers * clusters < tiling.tiles) {
      gpu::fence_proxy_async();  // g' was written where copies will write
      __syncthreads();
      fill(tile + tiling.buffers * clusters, buffer);
    }
  }
}

}  // namespace genimg_fast::cuda::batch_norm
