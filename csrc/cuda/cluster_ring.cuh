#pragma once
// Clusters of blocks that walk over the tiles of tensors, each element of which they read once: what the kernels for
// compute capability 9.0 and later share.
//
// A cluster owns one tile at a time, whatever has to be together to be normalised, and each of its blocks a share of
// it.  A share lies in the block's shared memory in pieces, in a ring of slots.  One warp, the producer, loads: it
// waits for a slot to be empty, and brings the next piece.  The others, the consumers, go over the pieces of a tile
// twice:
//
//   1. reduce: wait until a slot is full and reduce the piece.  Its slot stays as it is.
//   2. The block, then the cluster combines what was found, through distributed shared memory.
//   3. write: compute the output of each piece.  Now its slot is empty, and the producer fills it with the piece that
//      lies as many pieces ahead as there are slots: of the next tile, or of the one behind it.
//
// So the ring needs room for one tile, and what it has beyond that is on its way while the cluster meets.  Consumers
// never wait for the producer but for data, and it never but for room; blocks wait for their own cluster only, whose
// blocks the hardware starts together.  Nothing spins on global memory, and there is no workspace.
//
// A word is V elements: 16 bytes, or 8 of a tensor that another one has 16 bytes beside.  The words of a tile are
// counted through its runs, contiguous in memory: of a channel (A == 1), or of neighbouring channels where they are the
// fastest dimension (A == V).
//
// batch_norm_act's tile is a channel, or neighbouring ones, in all samples; group_norm_act's is a group of a sample,
// whose channels lie one behind the other, or neighbouring ones of a sample's channels.  Their kernels say what is done
// to a piece, and have everything else from here; cluster_launch.cuh cuts tensors into tiles and tiles into shares.
#include "reductions.cuh"

namespace genimg_fast::cuda {

constexpr int kMaxSlots = 16;
constexpr int kMaxConsumers = 512;  // threads of a block
constexpr int kProducers = 32;      // behind them
constexpr int kMaxClusterBlocks = 16;
constexpr int kMaxClusterGroup = 32;                                        // channels in a tile
constexpr int kMaxClusterPartials = kMaxConsumers / 32 * kMaxClusterGroup;  // of the warps of a block

// Words of a tensor that a consumer has in a piece, by the number of tensors that are held, and elements of a word: as
// many as registers allow.
__host__ __device__ constexpr int words_of_piece(int held, int vector) { return held == 2 && vector == 8 ? 2 : 4; }

// A consumer's words of a tile: U in each of the `whole` pieces, `rest` of the piece behind them; 32 words apart.
struct Words {
  uint32_t first;
  int whole, rest;
  int local;  // channel, counted from the tile's first one

  template <int U>
  __host__ __device__ uint32_t end_of_whole(int consumers) const {
    return first + static_cast<uint32_t>(whole * consumers * U);
  }
};

struct ClusterTiling {
  int64_t channels;
  int64_t inner;        // elements in a contiguous run of one channel
  int64_t tile_step;    // bytes of the input from one tile to the next, as are all bytes here,
  int64_t sample_step;  // A > 1: and as many more where the next sample's begin
  Divider by_sample;    // by the tiles of a sample, if tiles are of one sample
  int64_t share;        // units of a block; the first `longer` blocks have one more
  int64_t step;         // A > 1: bytes from a thread's word to its next
  uint32_t run;         // words of a contiguous run
  uint32_t wrap;        // bytes from a run's end to the next run
  uint32_t unit;        // words that stay in one block; A > 1: a run
  Divider by_run;
  int tiles;
  int blocks;  // in a cluster: a power of two
  int longer;
  int group;  // channels in a tile that are reduced apart
  int consumers;
  int team;         // threads that combine what a block's warps found for one channel: at most 32 and consumers / group
  int pieces;       // of the largest share
  int slots;        // at least `pieces`
  int first_slots;  // bytes of those of the first tensor, which those of a second one lie behind

  __host__ __device__ int64_t units(int rank) const { return share + (rank < longer); }
  __host__ __device__ uint32_t begin(int rank) const {
    return static_cast<uint32_t>(rank * share + (rank < longer ? rank : longer)) * unit;
  }
  // Elements of one channel in a block's share.
  template <int V, int A>
  __host__ __device__ int64_t count(int rank) const {
    return units(rank) * (A == 1 ? int64_t{unit} * V : 1);
  }

  template <int A, int U>
  __host__ __device__ Words words(int rank, int thread) const {
    constexpr int kChunk = 32 * U;  // words of a warp in a piece
    const int lane = thread % 32, chunk = thread / 32 * kChunk, piece = consumers * U;
    const int all = static_cast<int>(begin(rank + 1) - begin(rank));
    Words w;
    w.first = begin(rank) + static_cast<uint32_t>(chunk + lane);
    w.whole = all >= chunk + kChunk ? (all - chunk - kChunk) / piece + 1 : 0;
    const int left = all - chunk - lane - w.whole * piece;
    w.rest = left <= 0 ? 0 : left > kChunk - 32 ? U : (left + 31) / 32;
    w.local = A == 1 ? 0 : lane % static_cast<int>(run) * A;
    return w;
  }
  // The run of a word; A > 1: runs have a power of two of words.
  template <int A>
  __device__ __forceinline__ uint32_t run_of(uint32_t word) const {
    return A > 1 ? word >> (by_run.shift - 31) : static_cast<uint32_t>(by_run(static_cast<int>(word)));
  }
  // Bytes before a tile.
  template <int A>
  __device__ __forceinline__ int64_t origin(int tile) const {
    return A == 1 ? tile * tile_step : tile * tile_step + by_sample(tile) * sample_step;
  }
  // The last tile may have fewer channels.
  template <int A>
  __host__ __device__ bool has(const Words& w, int tile) const {
    return A == 1 || int64_t{tile} * group + w.local < channels;
  }
};

// Where a thread's words are in a tensor, from `word` of the tile at `origin` on: a byte offset.  B: bytes of a word;
// S: of an element, for each byte of one of the input.
template <int A, class T, int B = 16, int S = 1>
struct Addresses {
  const ClusterTiling& tiling;
  int64_t first;
  uint64_t product;  // that is shifted to give the word's run

  __device__ __forceinline__ Addresses(const ClusterTiling& tiling, T* tensor, int64_t origin, uint32_t word)
      : tiling(tiling), product(uint64_t{word} * tiling.by_run.multiplier) {
    first = static_cast<int64_t>(reinterpret_cast<uintptr_t>(tensor)) + origin * S + int64_t{word} * B;
    if (A > 1) first = gpu::multiply_add_wide(tiling.run_of<A>(word), tiling.wrap * S, first);
    first = gpu::opaque(first);  // or the compiler adds tensor and origin for each word
  }
  __device__ __forceinline__ uint32_t run(int u) const {
    return static_cast<uint32_t>((product + uint64_t{32u * static_cast<uint32_t>(u)} * tiling.by_run.multiplier) >>
                                 tiling.by_run.shift);
  }
  __device__ __forceinline__ T* operator()(int u) const {
    const int64_t at =
        A > 1 ? first + u * tiling.step * S : gpu::multiply_add_wide(run(u), tiling.wrap * S, first) + u * (32 * B);
    return reinterpret_cast<T*>(at);
  }
};

// Mbarriers of a block.
struct Ring {
  uint64_t full[kMaxSlots];   // a phase: a piece is there
  uint64_t empty[kMaxSlots];  // the consumers' warps have left it
  uint64_t met;               // they have all arrived
};

// Where the next piece is, and in which phase of its mbarriers.
struct Cursor {
  int slot = 0;
  unsigned phase = 0;

  __device__ __forceinline__ void advance(int slots) {
    if (++slot == slots) {
      slot = 0;
      phase ^= 1;
    }
  }
};

// The barrier of a block's consumers.
struct Consumers {
  uint64_t* met;
  unsigned phase = 0;

  __device__ __forceinline__ void meet() {
    __syncwarp();
    if (threadIdx.x % 32 == 0) gpu::mbarrier_arrive(met);
    gpu::mbarrier_wait(met, phase);
    phase ^= 1;
  }
};

// A tensor that is held, with elements of S times the input's size, and its first slot.
template <class T_, int V, int S_ = 1>
struct Held {
  using T = T_;
  static constexpr int S = S_, B = V * sizeof(T);  // bytes of a word
  const T* tensor;
  Raw<T, V>* slots;
};

// Starts to load a piece of tensors, the words from `begin` up to `end`, into places from `place` on.
template <int A, class... Tensor>
__device__ __forceinline__ void load_piece(const ClusterTiling& tiling, int tile, uint32_t begin, uint32_t end,
                                           int place, uint64_t* full, Tensor... held) {
  const uint32_t lane = threadIdx.x % 32;
  if constexpr (A == 1) {
    constexpr unsigned kBytes = (Tensor::B + ...);
    if (lane == 0) gpu::mbarrier_arrive_expect_tx(full, begin < end ? (end - begin) * kBytes : 0);
    if (begin >= end) return;
    const uint32_t first = static_cast<uint32_t>(tiling.by_run(static_cast<int>(begin)));
    for (uint32_t run = first + lane; run * tiling.run < end; run += 32) {
      const uint32_t from = run == first ? begin : run * tiling.run;
      const uint32_t until = min((run + 1) * tiling.run, end);
      const auto copy = [&](auto& of) {
        using Of = std::decay_t<decltype(of)>;
        const Addresses<A, const typename Of::T, Of::B, Of::S> at(tiling, of.tensor, tiling.origin<A>(tile), from);
        gpu::bulk_copy(of.slots + place + (from - begin), at(0), (until - from) * Of::B, full);
      };
      (copy(held), ...);
    }
  } else {
    const int64_t local = lane % tiling.run * A;
    if (int64_t{tile} * tiling.group + local < tiling.channels) {
      const auto begin_at = [&](auto& of) {
        using Of = std::decay_t<decltype(of)>;
        const int64_t origin = tiling.origin<A>(tile);
        of.tensor = Addresses<A, const typename Of::T, Of::B, Of::S>(tiling, of.tensor, origin, begin + lane)(0);
        of.slots += place + lane;
      };
      const auto copy_word = [&](auto& of) {
        using Of = std::decay_t<decltype(of)>;
        gpu::async_copy<Of::B>(of.slots, of.tensor);
        of.tensor = at_byte(of.tensor, tiling.step * Of::S);
        of.slots += 32;
      };
      const auto copy = [&] { (copy_word(held), ...); };
      (begin_at(held), ...);
      int left = begin + lane < end ? static_cast<int>(end - begin - lane + 31) / 32 : 0;
#pragma unroll 1
      for (; left >= 4; left -= 4) {
#pragma unroll
        for (int u = 0; u < 4; ++u) copy();
      }
#pragma unroll 1
      for (; left > 0; --left) copy();
    }
    gpu::arrive_after_copies(full);
  }
}

// Procedure overview, of the producer: for each tile of the cluster in turn, from `tile` on, and for each piece of it,
//   1. it waits until the slot is empty,
//   2. and starts to load the piece.
// In the end it waits until all slots are empty: no copy outlives its block.
template <int A, int U, class... Tensor>
__device__ __forceinline__ void produce(const ClusterTiling& tiling, int rank, int tile, int clusters, Ring& ring,
                                        const Tensor&... held) {
  const int stride = tiling.consumers * U;  // words of a piece
  const uint32_t begin = tiling.begin(rank), end = tiling.begin(rank + 1);
  Cursor next;
  const auto wait = [&] { gpu::mbarrier_wait(&ring.empty[next.slot], next.phase ^ 1); };
  for (; tile < tiling.tiles; tile += clusters) {
    uint32_t word = begin;
#pragma unroll 1
    for (int piece = 0; piece < tiling.pieces; ++piece, word += stride) {
      wait();
      load_piece<A>(tiling, tile, word, min(word + stride, end), next.slot * stride, &ring.full[next.slot], held...);
      next.advance(tiling.slots);
    }
  }
  for (int i = 0; i < tiling.slots; ++i) {
    wait();
    next.advance(tiling.slots);
  }
}

// Where the first of a thread's words of a piece is in the slots of a tensor.
template <int U>
__device__ __forceinline__ int place_of(const ClusterTiling& tiling, const Cursor& at) {
  const int thread = threadIdx.x;
  return at.slot * (tiling.consumers * U) + thread / 32 * (32 * U) + thread % 32;
}

// A consumer goes over the pieces of a tile: enter(cursor), then body(place, word, Whole<n>) for its words, n at a
// time, the first of which lies at `place` of the slots and has the number `word` in the tile, then leave(cursor). has:
// the tile has the thread's channels.  This is a piece that is whole,
template <int U, class Enter, class Body, class Leave>
__device__ __forceinline__ void whole_piece(const ClusterTiling& tiling, bool has, Cursor& cursor, uint32_t word,
                                            Enter enter, Body body, Leave leave) {
  enter(cursor);
  if (has) body(place_of<U>(tiling, cursor), word, std::integral_constant<int, U>{});
  leave(cursor);
  cursor.advance(tiling.slots);
}
// these are those from `word` on, which moves on with them, up to `end`,
template <int U, class Enter, class Body, class Leave>
__device__ __forceinline__ void for_each_whole_piece(const ClusterTiling& tiling, uint32_t end, bool has,
                                                     Cursor& cursor, uint32_t& word, Enter enter, Body body,
                                                     Leave leave) {
  const int stride = tiling.consumers * U;
#pragma unroll 1
  for (; word < end; word += stride) whole_piece<U>(tiling, has, cursor, word, enter, body, leave);
}
// this is the one behind them, if there is one,
template <int U, class Enter, class Body, class Leave>
__device__ __forceinline__ void last_piece(const ClusterTiling& tiling, const Words& words, bool has, Cursor& cursor,
                                           uint32_t word, Enter enter, Body body, Leave leave) {
  if (words.whole == tiling.pieces) return;
  enter(cursor);
#pragma unroll 1
  for (int u = 0; has && u < words.rest; ++u) {
    body(place_of<U>(tiling, cursor) + 32 * u, word + 32u * static_cast<uint32_t>(u), std::integral_constant<int, 1>{});
  }
  leave(cursor);
  cursor.advance(tiling.slots);
}
// and these are all.  They are counted: it saves an instruction.
template <int U, class Enter, class Body, class Leave>
__device__ __forceinline__ void for_each_piece(const ClusterTiling& tiling, const Words& words, bool has,
                                               Cursor& cursor, Enter enter, Body body, Leave leave) {
  const int stride = tiling.consumers * U;
  uint32_t word = words.first;
#pragma unroll 1
  for (int piece = 0; piece < words.whole; ++piece, word += stride) {
    whole_piece<U>(tiling, has, cursor, word, enter, body, leave);
  }
  last_piece<U>(tiling, words, has, cursor, word, enter, body, leave);
}

// Tells the producer that the calling warp has left a piece.
__device__ __forceinline__ void leave_piece(Ring& ring, const Cursor& cursor) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) gpu::mbarrier_arrive(&ring.empty[cursor.slot]);
}

// What the block's warps found: warp w of channel k in [w * group + k].
template <class Acc>
__device__ __forceinline__ Partial<Acc>* warp_partials() {
  SHARED(Partial<Acc>, partials, [kMaxClusterPartials]);
  return partials;
}

// Combines what the threads of each warp found, and leaves it there.
template <class Combine, int A, class Acc>
__device__ __forceinline__ void combine_lanes(const ClusterTiling& tiling, Partials<Acc, A> mine) {
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  const int width = A == 1 ? 1 : static_cast<int>(tiling.run);
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
  if (writes) warp_partials<Acc>()[warp * tiling.group + k] = sum;
}

// Combines what the block's warps left in a fixed order; thread k * team returns the sum of channel k.
template <class Combine, class Acc>
__device__ __forceinline__ Partial<Acc> combine_warps(const ClusterTiling& tiling, Consumers& consumers) {
  const Partial<Acc>* const partials = warp_partials<Acc>();
  const int thread = threadIdx.x, warp = thread / 32, team = tiling.team, channel = thread / team;
  consumers.meet();
  Partial<Acc> sum{0, 0, 0};
  if (warp * 32 >= tiling.group * team) return sum;
  if (channel < tiling.group) {
    for (int w = thread % team; w < tiling.consumers / 32; w += team) {
      sum = Combine::combine(sum, partials[w * tiling.group + channel]);
    }
  }
  for (int lane_mask = team / 2; lane_mask > 0; lane_mask /= 2) sum = combine_with_lane<Combine>(sum, lane_mask);
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

// Combines what the cluster's warps left; thread k * blocks returns the sum of channel k, with the same bits in every
// block.  `turn` counts the calls.
template <class Combine, int V, int A, class Acc>
__device__ __forceinline__ Partial<Acc> combine_blocks(const ClusterTiling& tiling, Consumers& consumers, int turn,
                                                       int own_rank, Exchange<Acc>& exchange) {
  const int thread = threadIdx.x, first_of_warp = thread / 32 * 32, half = turn % 2;
  Partial<Acc> sum = combine_warps<Combine, Acc>(tiling, consumers);
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

// Likewise, of what its threads found.
template <class Combine, int V, int A, class Acc>
__device__ __forceinline__ Partial<Acc> combine_cluster(const ClusterTiling& tiling, Consumers& consumers, int turn,
                                                        int own_rank, Partials<Acc, A> mine, Exchange<Acc>& exchange) {
  combine_lanes<Combine, A>(tiling, mine);
  return combine_blocks<Combine, V, A>(tiling, consumers, turn, own_rank, exchange);
}

// What is constant in dx = a * g' + (x - mean) * q + p: p, or in 16 bits p - mean * q beside x * q, which saves a
// subtraction.  Rounding mean * q to 24 bits loses less than rounding x to 11 or 8 did.
template <class T>
constexpr bool kOffsetHasMean = sizeof(T) == 2;
template <class T, class Acc>
__device__ __forceinline__ Acc offset_of(Acc p, Acc q, Acc mean) {
  return kOffsetHasMean<T> ? multiply_add(-mean, q, p) : p;
}

// Initialises the mbarriers before any block of the cluster uses one.
template <int A, class Acc>
__device__ __forceinline__ void start_cluster(const ClusterTiling& tiling, Ring& ring, Exchange<Acc>& exchange) {
  if (threadIdx.x == 0) {
    const auto warps = static_cast<unsigned>(tiling.consumers / 32);
    for (int slot = 0; slot < tiling.slots; ++slot) {
      gpu::mbarrier_init(&ring.full[slot], A == 1 ? 1 : kProducers);
      gpu::mbarrier_init(&ring.empty[slot], warps);
    }
    gpu::mbarrier_init(&ring.met, warps);
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

}  // namespace genimg_fast::cuda
