#pragma once
// Where a thread of a batch_norm_act kernel finds its elements, and how many it has in flight or holds.
//
// Three template parameters describe how a kernel reads: T, the element; V, elements per access (16 bytes, or 1 when
// sizes or addresses are odd); A, channels per access: 1, or V where channels are the fastest dimension.
// Everything else about the layout is run-time data in a Tiling.
#include "common.cuh"

namespace genimg_fast::cuda {

constexpr int kThreads = 256;        // of the kernels that stream
constexpr int kOnChipThreads = 512;  // most of the kernels that hold their data on chip: 128 registers each
constexpr int kMaxGroup = 64;        // channels in a tile of a kernel that reduces
constexpr int kMaxPartials = 512;    // per-thread or per-warp partial results in one block
constexpr int64_t kMaxRun = (int64_t{1} << 32) - kOnChipThreads;

// A thread's way through its tile: `left` more accesses, the next one at element `offset` of the tensor.
struct Walk {
  int64_t offset;
  uint32_t at;  // the access's place in its contiguous run
  int left;
  int64_t channel;  // of the access's first element
  int local;        // the same, counted from the tile's first channel
};

// Cuts a tensor into tiles of `group` neighbouring channels and each tile into `slices`; one block works on one slice
// of one tile.  Inside it, one of two arrangements:
//   linear:  The tile is one channel.  Its accesses, run after run, are dealt out to the threads in turn.
//   columns: A row of `width` threads covers the tile's accesses at one outer index.  There are `rows` such rows, and
//            each thread steps down its own column, so it stays with its channel(s).
// Offsets are 64-bit: a tensor may have more than 2^31 elements.  A run has fewer than kMaxRun accesses and a thread
// fewer than 2^31, so these are 32-bit.
struct Tiling {
  int64_t channels;
  int64_t inner;      // elements in a contiguous run of one channel
  int64_t row;        // elements from one outer index to the next: channels * inner
  int64_t extent;     // what is sliced; linear: accesses of a channel, columns: outer indices
  int64_t slice;      // of them in a slice (fewer in the last)
  int64_t step;       // elements from one access of a thread to its next, if `at` stays inside the run,
  uint32_t step_run;  // what `at` grows by,
  uint32_t run;       // where the run ends,
  int64_t wrap;       // and what is added to `offset` when `at` gets there
  int slices;
  int group;
  int threads;
  int width;  // threads in a row
  int rows;
  int span;  // neighbouring threads that share a channel
  int team;  // threads that combine the results of one channel: a power of two, at most 32 and threads / group
  bool linear;

  __host__ __device__ int64_t tiles() const { return (channels + group - 1) / group; }
  __host__ __device__ int64_t begin(int index) const { return index * slice; }
  __host__ __device__ int64_t end(int index) const {
    const int64_t e = begin(index) + slice;
    return e < extent ? e : extent;
  }
  // Elements of one channel in a slice.
  template <int V>
  __host__ __device__ int64_t count(int index) const {
    return (end(index) - begin(index)) * (linear ? V : inner);
  }

  template <int V, int A>
  __host__ __device__ Walk walk(int64_t tile, int index, int thread) const {
    Walk w{0, 0, 0, 0, 0};
    int64_t outer, left, stride;
    if (linear) {
      const int64_t first = begin(index) + thread;
      if (((first | run) >> 31) == 0) {  // the 64-bit division is many times slower
        outer = static_cast<uint32_t>(first) / static_cast<uint32_t>(run);
      } else {
        outer = first / run;
      }
      w.at = static_cast<uint32_t>(first - outer * run);
      left = end(index) - first;
      stride = threads;
    } else {
      const int column = thread % width;
      w.local = A == 1 ? column / span : column * A;
      w.at = A == 1 ? column % span : 0;
      outer = begin(index) + thread / width;
      left = thread / width < rows ? end(index) - outer : 0;
      stride = rows;
    }
    w.channel = tile * group + w.local;
    if (left > 0 && w.channel < channels) w.left = static_cast<int>((left + stride - 1) / stride);
    w.offset = outer * row + w.channel * inner + static_cast<int64_t>(w.at) * V;
    return w;
  }

  __host__ __device__ __forceinline__ void advance(Walk& w) const {
    w.offset += step;
    w.at += step_run;
    if (w.at >= run) {
      w.at -= run;
      w.offset += wrap;
    }
  }
};

// Reserves the walk's next U accesses (fewer at its end); returns how many there are.
template <int U>
__device__ __forceinline__ int take(const Tiling& tiling, Walk& walk, int64_t (&offsets)[U]) {
  const int valid = walk.left < U ? walk.left : U;
#pragma unroll
  for (int u = 0; u < U; ++u) {
    if (u < valid) {
      offsets[u] = walk.offset;
      tiling.advance(walk);
    }
  }
  walk.left -= valid;
  return valid;
}

template <class T, int V, int U>
__device__ __forceinline__ void load_chunk(const T* p, const int64_t (&offsets)[U], int valid, Raw<T, V> (&raw)[U]) {
#pragma unroll
  for (int u = 0; u < U; ++u) {
    if (u < valid) raw[u] = load<T, V>(p + offsets[u]);
  }
}

// Accesses in flight per thread and tensor, as many as registers allow: of kernels that stream, with one tensor and
// with two or three; and beside what an on-chip kernel holds.
template <int V>
constexpr int kChunk = V == 1 ? 8 : 4;
template <int V>
constexpr int kGradientChunk = V == 1 ? 4 : 2;
template <int V, int A>
constexpr int kHeldChunk = A == 8 ? 2 : kChunk<V>;
template <int V, int A>
constexpr int kHeldGradientChunk = A == 8 ? 1 : kGradientChunk<V>;

// Accesses that a thread of an on-chip kernel holds in registers, by the number of tensors it holds; the others go to
// shared memory.
__host__ __device__ constexpr int kept_accesses(int held, int vector, int lanes) {
  if (vector == 1) return held == 1 ? 16 : 4;
  if (vector == 4) return held == 1 ? 12 : lanes > 1 ? 4 : 6;
  return held == 1 ? (lanes > 1 ? 10 : 12) : (lanes > 1 ? 3 : 4);
}

}  // namespace genimg_fast::cuda
