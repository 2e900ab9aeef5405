#pragma once
// Where a thread of a batch_norm_act kernel finds its elements, and how many it has in flight or holds.
//
// Template parameters describe how a kernel reads: T, the element; V, elements per access (16 bytes, or 1 when sizes
// or addresses are odd); A, channels per access: 1, or V where channels are the fastest dimension; U, accesses in a
// chunk, which are in flight together.  Everything else about the layout is run-time data in a Tiling.
#include "common.cuh"

namespace genimg_fast::cuda {

constexpr int kThreads = 256;        // of the kernels that stream
constexpr int kOnChipThreads = 512;  // most of the kernels that hold their data on chip: 128 registers each
constexpr int kMaxGroup = 64;        // channels in a tile
constexpr int kMaxPartials = 512;    // per-thread or per-warp partial results in one block
// Blocks of a streaming kernel on a multiprocessor: enough loads in flight to wait for memory, at 48 registers each.
template <class T>
constexpr int kMinBlocks = sizeof(T) == 8 ? 2 : 5;

// Accesses of a piece of a long run: what neighbouring threads, one chunk each, visit together.  Pieces are whole
// where runs are a multiple of 512 bytes.
__host__ __device__ constexpr int piece_accesses(int vector) { return vector == 1 ? 256 : 32; }

// A thread's way through its slice of a tile, in chunks of U accesses that lie Tiling::access_step apart: first the
// ragged ones, of which only `valid` accesses exist, then the whole ones.  A thread that has any data has a ragged
// chunk, if need be one with all its accesses.  Offsets are in bytes.
struct Walk {
  int64_t ragged_offset;
  int ragged;  // chunks left
  int valid;
  int whole;  // chunks left
  int64_t offset;
  uint32_t at;      // the next whole chunk's piece of its run
  int64_t channel;  // of the thread's first element
  int local;        // the same, counted from the tile's first channel
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
// Offsets are 64-bit: a tensor may have more than 2^31 elements.  A run has fewer than 2^32 pieces and a thread fewer
// than 2^31 chunks, so these are 32-bit.
struct Tiling {
  int64_t channels;
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
  int inner;            // columns: elements of a channel in a unit
  int rest;             // linear: accesses of a run beyond its whole pieces
  int tiles, slices;
  int group;
  int threads;
  int width;  // columns: threads in a row
  int rows;   // units that a block visits at once
  int span;   // columns: neighbouring threads that share a channel
  int team;   // threads that combine the results of one channel: a power of two, at most 32 and threads / group
  bool linear;

  __host__ __device__ static int64_t quotient(int64_t a, int64_t b) {
    // The 64-bit division is many times slower.
    return ((a | b) >> 31) == 0 ? static_cast<int64_t>(static_cast<uint32_t>(a) / static_cast<uint32_t>(b)) : a / b;
  }
  // How many of first, first + by, ... are less than end.
  __host__ __device__ static int64_t steps(int64_t first, int64_t end, int64_t by) {
    return first < end ? quotient(end - first + by - 1, by) : 0;
  }
  __host__ __device__ int64_t begin(int index) const { return index * slice; }
  __host__ __device__ int64_t end(int index) const {
    const int64_t e = begin(index) + length;
    return e < extent ? e : extent;
  }

  // Of n units that slices of `each` take in turn, those of one slice.
  __host__ __device__ int64_t share(int64_t n, int64_t each, int index) const {
    const int64_t rounds = quotient(n, each * slices), left = n - rounds * each * slices - each * index;
    return rounds * each + (left < 0 ? 0 : left < each ? left : each);
  }
  // Elements of one channel in a slice.
  template <int V>
  __host__ __device__ int64_t count(int index) const {
    const int64_t units = share(extent, slice, index);
    return linear ? (units * piece_accesses(V) + (rest > 0 ? share(outer, rows, index) * rest : 0)) * V : units * inner;
  }

  template <class T, int V, int A, int U>
  __host__ __device__ Walk walk(int64_t tile, int index, int thread) const {
    constexpr int kAccess = V * static_cast<int>(sizeof(T));
    Walk w{};
    if (A == 1 && linear) {
      constexpr int kLanes = piece_accesses(V) / U;
      const int lane = thread % kLanes, unit = thread / kLanes;
      const int64_t first = begin(index) + unit, origin = tile * run + lane * kAccess;
      const int64_t o = quotient(first, pieces);
      w.channel = tile;
      w.at = static_cast<uint32_t>(first - o * pieces);
      w.offset = origin + o * row + int64_t{w.at} * (piece_accesses(V) * kAccess);
      w.whole = static_cast<int>(steps(first, end(index), stride));
      if (lane < rest) {
        const int64_t o = int64_t{index} * rows + unit;
        w.valid = (rest - lane - 1) / kLanes + 1;
        w.ragged = static_cast<int>(steps(o, outer, int64_t{rows} * slices));
        w.ragged_offset = origin + o * row + int64_t{pieces} * (piece_accesses(V) * kAccess);
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
      w.local = A == 1 ? column / span : column * A;
      w.channel = tile * group + w.local;
      const int64_t first = begin(index) + thread / width;
      if (thread / width < rows && w.channel < channels && first < end(index)) {
        const int left = static_cast<int>(steps(first, end(index), stride));
        w.valid = (left - 1) % U + 1;
        w.ragged = 1;
        w.ragged_offset = first * row + w.channel * run + at * kAccess;
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

template <class T>
__device__ __forceinline__ const T* at_byte(const T* p, int64_t offset) {
  return reinterpret_cast<const T*>(reinterpret_cast<const unsigned char*>(p) + offset);
}
template <class T>
__device__ __forceinline__ T* at_byte(T* p, int64_t offset) {
  return reinterpret_cast<T*>(reinterpret_cast<unsigned char*>(p) + offset);
}

// valid is an int or Whole.
template <class T, int V, int U, class Valid>
__device__ __forceinline__ void load_chunk(const Tiling& tiling, const T* p, int64_t offset, Valid valid,
                                           Raw<T, V> (&raw)[U]) {
  p = at_byte(p, offset);
#pragma unroll
  for (int u = 0; u < U; ++u) {
    if (u < valid) raw[u] = load<T, V>(p);
    p = at_byte(p, tiling.access_step);
  }
}

// Calls body(offset, valid) for every chunk.
template <int A, int U, class Body>
__device__ __forceinline__ void for_each_chunk(const Tiling& tiling, Walk& walk, Body body) {
  for (; walk.ragged > 0; --walk.ragged, walk.ragged_offset += tiling.ragged_step) {
    body(walk.ragged_offset, walk.valid);
  }
#pragma unroll 1
  for (; walk.whole > 0; --walk.whole) {
    body(walk.offset, Whole<U>{});
    tiling.advance<A>(walk);
  }
}

// Past the caches' usual order if `stream`: to be evicted first.
template <class T, int V>
__device__ __forceinline__ void store_result(T* p, Raw<T, V> raw, bool stream) {
  if (stream) {
    __stcs(reinterpret_cast<Raw<T, V>*>(p), raw);
  } else {
    store<T, V>(p, raw);
  }
}

// Accesses in a chunk: of kernels that stream, with one tensor and with two or three; and beside what an on-chip kernel
// holds.
__host__ __device__ constexpr int chunk_accesses(int vector) { return vector == 1 ? 8 : 4; }
__host__ __device__ constexpr int gradient_chunk_accesses(int vector) { return vector == 1 ? 4 : 2; }
__host__ __device__ constexpr int held_chunk_accesses(int held, int vector, int lanes) {
  if (lanes == 8) return held == 1 ? 2 : 1;
  return held == 1 ? chunk_accesses(vector) : gradient_chunk_accesses(vector);
}

// Accesses that a thread of an on-chip kernel holds in registers, by the number of tensors it holds; the others go to
// shared memory.
__host__ __device__ constexpr int kept_accesses(int held, int vector, int lanes) {
  if (vector == 1) return held == 1 ? 16 : 4;
  if (vector == 4) return held == 1 ? 12 : lanes > 1 ? 4 : 6;
  return held == 1 ? (lanes > 1 ? 10 : 12) : (lanes > 1 ? 3 : 4);
}

}  // namespace genimg_fast::cuda
