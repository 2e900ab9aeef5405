#pragma once
// Where a thread of a batch_norm_act kernel finds its elements, and how many it has in flight or holds.
//
// Template parameters describe how a kernel reads: T, the element; V, elements per access (16 bytes, or 1 when sizes
// or addresses are odd); A, channels per access: 1, or V where channels are the fastest dimension; U, accesses in a
// chunk, which are in flight together.  Everything else about the layout is run-time data in a Tiling.
#include "common.cuh"

namespace genimg_fast::cuda::batch_norm {

constexpr int kThreads = 256;        // of the kernels that stream
constexpr int kOnChipThreads = 512;  // most of the kernels that hold their data on chip: 128 registers each
constexpr int kMaxGroup = 64;        // channels in a tile
constexpr int kMaxPartials = 512;    // per-thread or per-warp partial results in one block
// Blocks of a streaming kernel on a multiprocessor: enough loads in flight to wait for memory, at 48 registers a
// thread, or 64 with a residual or SiLU.
template <class T, bool Lean>
constexpr int kMinBlocks = sizeof(T) == 8 ? 2
                           : Lean         ? 5
                                          : 4;

// Accesses of a piece of a long run: what neighbouring threads, one chunk each, visit together.  Pieces are whole
// where runs are a multiple of 512 bytes.
__host__ __device__ constexpr int piece_accesses(int vector) { return vector == 1 ? 128 : 32; }

// A thread's way through its slice of a tile, in chunks of U accesses that lie Tiling::access_step apart: first the
// ragged ones, of which only `valid` accesses exist, then the whole ones.  A thread that has any data has a ragged
// chunk, if need be one with all its accesses.  Offsets are in bytes.
struct Walk {
  int64_t ragged_offset;
  int ragged;  // chunks left
  int valid;
  int whole;  // chunks left
  int64_t offset;
  uint32_t at;  // the next whole chunk's piece of its run
  int channel;  // of the thread's first element
  int local;    // the same, counted from the tile's first channel
};

// The length of a whole chunk, as a constant.
template <int U>
struct Whole {
  __host__ __device__ constexpr operator int() const { return U; }
};

struct Chunk {
  int64_t offset;
  int valid;
};

// Cuts a tensor into tiles of `group` neighbouring channels and each tile into `slices`; one block works on one slice
// of one tile.  Inside it, one of two arrangements of units:
//   linear:  The tile is one channel, whose runs are long.  A unit is a whole piece of a run, taken by as many threads
//            as it has chunks.  What runs have beyond whole pieces is dealt out apart.
//   columns: A row of `width` threads covers the tile's accesses at one outer index, the unit.  There are `rows` such
//            rows, and each thread steps down its own column, so it stays with its channel(s).
// Slice s takes units from s * slice on, up to the next slice's; or (`interleaved`) as many as it takes at once, and
// the same again after those of all other slices: then blocks that run together sweep the tensor in its order, and
// its end is what stays in the cache.
// Offsets are 64-bit: a tensor may have more than 2^31 elements.  A channel has fewer than 2^31 pieces, of 512 bytes or
// 128 elements, and a thread fewer units: these are 32-bit.
struct Tiling {
  int64_t outer;
  int64_t extent;  // units of a tile
  int64_t slice;   // units from a slice's first to the next slice's first
  int64_t length;  // units between a slice's first and its end
  int64_t stride;  // units from one of a thread's to its next
  int64_t run;     // bytes of a contiguous run of one channel
  int64_t row;     // bytes from one outer index to the next
  int64_t access_step;
  int64_t ragged_step;  // from one ragged chunk to the next
  int64_t chunk_step;   // from a whole chunk to the next, if `at` stays inside the run,
  uint32_t at_step;     // what `at` grows by,
  uint32_t pieces;      // where the run ends,
  int64_t wrap;         // and what is added to the offset when `at` gets there
  int64_t each;         // elements of a channel that every slice has at least,
  int unit;             // in a unit,
  int rest_elements;    // and, linear, in a run beyond its whole pieces,
  int rest;             // in accesses
  int rounds;           // units that every thread has at least; of slices that neighbour, but for the last one
  int spare;            // units beyond the rounds of interleaved slices
  int rest_rounds;      // likewise, of what runs have beyond whole pieces
  int spare_rests;
  int channels;
  int tiles, slices;
  int group;
  int threads;
  int width;  // columns: threads in a row
  int rows;   // units that a block visits at once
  int span;   // columns: neighbouring threads that share a channel
  int team;   // threads that combine the results of one channel: a power of two, at most 32 and threads / group
  bool linear;

  // Elements of one channel in a slice; of interleaved ones only.
  __host__ __device__ int64_t count(int index) const {
    return each + part(spare, index) * unit + (linear ? part(spare_rests, index) * rest_elements : 0);
  }
  // Of units that slices take in turn, `rows` each: those of one slice.
  __host__ __device__ int part(int units, int index) const {
    const int left = units - rows * index;
    return left < 0 ? 0 : left < rows ? left : rows;
  }

  // How many units a thread has whose first one is `first`.
  __host__ __device__ int steps(int64_t first, int64_t end) const {
    if (first + rounds * stride < end) return rounds + 1;
    if (first + (rounds - 1) * stride < end) return rounds;
    return first < end ? static_cast<int>((end - first - 1) / stride) + 1 : 0;  // the last of slices that neighbour
  }

  template <class T, int V, int A, int U>
  __host__ __device__ Walk walk(int tile, int index, int thread) const {
    constexpr int kAccess = V * static_cast<int>(sizeof(T));
    Walk w{};
    const int64_t begin = index * slice, end = begin + length < extent ? begin + length : extent;
    if (A == 1 && linear) {
      constexpr int kLanes = piece_accesses(V) / U, kPiece = piece_accesses(V) * kAccess;
      const int lane = thread % kLanes, at_once = thread / kLanes;
      const int64_t origin = int64_t{tile} * run + lane * kAccess;
      const uint32_t first = static_cast<uint32_t>(begin) + at_once, o = first / pieces;
      w.channel = tile;
      w.at = first - o * pieces;
      w.offset = origin + o * row + int64_t{w.at} * kPiece;
      w.whole = steps(first, end);
      if (lane < rest) {
        const int64_t o = int64_t{index} * rows + at_once;
        w.valid = (rest - lane - 1) / kLanes + 1;
        w.ragged = rest_rounds + (o + rest_rounds * int64_t{rows} * slices < outer);
        w.ragged_offset = origin + o * row + int64_t{pieces} * kPiece;
      }
      if (w.ragged == 0 && w.whole > 0) {
        w.valid = U;
        w.ragged = 1;
        w.ragged_offset = w.offset;
        --w.whole;
        advance<A>(w);
      }
    } else {
      const int column = thread % width, at = A == 1 ? column % span : 0;
      const int64_t first = begin + thread / width;
      w.local = A == 1 ? column / span : column * A;
      w.channel = tile * group + w.local;
      const int left = thread / width < rows && w.channel < channels ? steps(first, end) : 0;
      if (left > 0) {
        w.valid = (left - 1) % U + 1;
        w.ragged = 1;
        w.ragged_offset = first * row + int64_t{w.channel} * run + at * kAccess;
        w.whole = (left - w.valid) / U;
        w.offset = w.ragged_offset + w.valid * access_step;
      }
    }
    return w;
  }

  template <int A>
  __host__ __device__ __forceinline__ void advance(Walk& w) const {
    w.offset += chunk_step;
    if constexpr (A == 1) {
      w.at += at_step;
      if (w.at >= pieces) {
        w.at -= pieces;
        w.offset += wrap;
      }
    }
  }

  // The walk's next chunk; none is valid at its end.
  template <int A, int U>
  __host__ __device__ __forceinline__ Chunk next(Walk& w) const {
    Chunk chunk{0, 0};
    if (w.ragged > 0) {
      chunk = {w.ragged_offset, w.valid};
      w.ragged_offset += ragged_step;
      --w.ragged;
    } else if (w.whole > 0) {
      chunk = {w.offset, U};
      advance<A>(w);
      --w.whole;
    }
    return chunk;
  }
};

// A chunk is worked on by parts of its accesses, whose values then do not all take registers at the same time.
template <int V>
constexpr int kPart = V < 4 ? V : 4;
template <class T, int V>
__device__ __forceinline__ Raw<T, kPart<V>> get_part(const Raw<T, V>& raw, int part) {
  Raw<T, kPart<V>> value;
  memcpy(&value, reinterpret_cast<const unsigned char*>(&raw) + part * sizeof value, sizeof value);
  return value;
}
template <class T, int V>
__device__ __forceinline__ void set_part(Raw<T, V>& raw, int part, const Raw<T, kPart<V>>& value) {
  memcpy(reinterpret_cast<unsigned char*>(&raw) + part * sizeof value, &value, sizeof value);
}

// valid is an int or Whole.
template <class T, int V, int U, class Valid>
__device__ __forceinline__ void load_chunk(const Tiling& tiling, const T* p, int64_t offset, Valid valid,
                                           Raw<T, V> (&raw)[U]) {
  p = at_byte(p, offset);
#pragma unroll
  for (int u = 0; u < U; ++u) {
    raw[u] = {};  // or the compiler keeps what was there before
    if (u < valid) raw[u] = load<T, V>(p);
    p = at_byte(p, tiling.access_step);
  }
}

// Calls body(offset, valid) for every ragged chunk; with several channels to an access there is one at most.
template <int A, class Body>
__device__ __forceinline__ void for_each_ragged_chunk(const Tiling& tiling, Walk& walk, Body body) {
  if constexpr (A > 1) {
    if (walk.ragged > 0) body(walk.ragged_offset, walk.valid);
  } else {
#pragma unroll 1
    for (; walk.ragged > 0; --walk.ragged, walk.ragged_offset += tiling.ragged_step) {
      body(walk.ragged_offset, walk.valid);
    }
  }
}

// Likewise, for every chunk.
template <int A, int U, class Body>
__device__ __forceinline__ void for_each_chunk(const Tiling& tiling, Walk& walk, Body body) {
  for_each_ragged_chunk<A>(tiling, walk, body);
#pragma unroll 1
  for (; walk.whole > 0; --walk.whole) {
    body(walk.offset, Whole<U>{});
    tiling.advance<A>(walk);
  }
}

// policy: nothing, or of gpu::store_policy, for wide accesses.
template <class T, int V, int U, class Valid, class... Policy>
__device__ __forceinline__ void store_chunk(const Tiling& tiling, T* p, int64_t offset, Valid valid,
                                            const Raw<T, V>* raw, Policy... policy) {
  p = at_byte(p, offset);
#pragma unroll
  for (int u = 0; u < U; ++u) {
    if (u < valid) {
      if constexpr (std::is_same<Raw<T, V>, uint4>::value) {
        gpu::store_128(reinterpret_cast<uint4*>(p), raw[u], policy...);
      } else {
        store<T, V>(p, raw[u]);
      }
    }
    p = at_byte(p, tiling.access_step);
  }
}

// Accesses in a chunk of each tensor, by the number of tensors that are read: as many as registers allow beside the
// sums of a kernel that reduces.
__host__ __device__ constexpr int chunk_accesses(bool reduces, int tensors, int vector, int lanes, int bytes) {
  if (vector == 1) return tensors == 1 ? 8 : 4;
  if (lanes == 8 && reduces) return tensors == 1 ? 2 : 1;
  return tensors == 1 || bytes == 8 ? 4 : 2;
}

// Accesses that a thread of an on-chip kernel holds in registers, by the number of tensors it holds; the others go to
// shared memory.
__host__ __device__ constexpr int kept_accesses(int held, int vector, int lanes) {
  if (vector == 1) return held == 1 ? 16 : 4;
  if (vector == 4) return held == 1 ? 12 : lanes > 1 ? 4 : 6;
  return held == 1 ? (lanes > 1 ? 10 : 12) : (lanes > 1 ? 3 : 4);
}

}  // namespace genimg_fast::cuda::batch_norm
