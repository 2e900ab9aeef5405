#pragma once
// Where a thread of a group_norm_act kernel finds its elements.
//
// Template parameters describe how a kernel reads: T, the element, and Y, that of the output, the residual and their
// gradients, which is T, or float beside 16-bit T; V, elements per access (16 bytes, sometimes 8, or 1 element when
// sizes or addresses are odd); Layout, Rows for contiguous tensors and Columns for channels_last. Either layout keeps a
// thread on the same channels, with the same distance from each access to the next, so that a step costs one addition.
#include "common.cuh"

namespace genimg_fast::cuda::group_norm {

constexpr int kThreads = 256;        // of a block of the kernels that stream
constexpr int kOnChipThreads = 512;  // most of one that holds contiguous data on chip
// Blocks of a streaming kernel on a multiprocessor: as many as keep enough loads in flight to wait for memory, at 48
// registers each; fewer of the instances that need more registers.
template <class T, bool lean = true>
constexpr int kMinBlocks = lean && sizeof(T) < 8 ? 5 : 3;
constexpr int kMaxWidth = 64;  // accesses in a row of a tile, unless the least with whole groups are more

__host__ __device__ constexpr int smaller(int a, int b) { return a < b ? a : b; }

// A thread's way: `left` accesses, `step` bytes apart, from the tensor's access `offset` on.
struct Walk {
  int64_t offset;
  int64_t row;  // of the first element's channel: sample * channels + channel; in Rows the row
  int64_t step;
  int left;
};

// Rows of `length` accesses one behind the other, each cut into `slices`.  A row is a channel of a sample, or where
// moments are taken, a whole group.  A team of threads takes a slice; a block has one team or several.
struct Rows {
  static constexpr bool columns = false;
  int64_t rows;
  int length;
  int slices, slice;  // accesses in a slice (fewer in the last)
  int team;           // a power of two
  int step;           // bytes of `team` accesses

  __host__ __device__ int64_t blocks() const { return (rows + kThreads / team - 1) / (kThreads / team) * slices; }
  __host__ __device__ __forceinline__ int slice_of(unsigned block) const { return static_cast<int>(block % slices); }

  template <int V>
  __host__ __device__ __forceinline__ Walk walk(unsigned block, int thread) const {
    const int begin = slice_of(block) * slice + thread % team;
    const int end = slice_of(block) * slice + smaller(slice, length - slice_of(block) * slice);
    Walk w;
    w.row = static_cast<int64_t>(block / slices) * (kThreads / team) + thread / team;
    w.offset = w.row * length + begin;
    w.step = step;
    w.left = w.row < rows && begin < end ? (end - begin + team - 1) / team : 0;
    return w;
  }
};

// Samples of `rows` rows of all channels.  Rows are cut into tiles of `width` accesses and samples into `slices` of
// neighbouring rows; a block takes one slice of one tile, `height` rows at a time, and each thread steps down its own
// column.  A tile holds whole groups, or, with several tiles to a `unit`, a part of one.
struct Columns {
  static constexpr bool columns = true;
  int64_t samples;
  int rows, channels;
  int width, height;
  int64_t step;    // bytes of `height` rows
  int unit;        // accesses that a run of `unit_tiles` tiles covers: of a group, or of all channels
  int unit_tiles;  // the last one of a unit may be narrower
  int parts;       // tiles that a group is cut into
  int tiles;
  int slices, slice;  // rows in a slice (fewer in the last)

  __host__ __device__ int64_t blocks() const { return samples * slices * tiles; }
  __host__ __device__ __forceinline__ int tile_of(unsigned block) const { return static_cast<int>(block % tiles); }
  __host__ __device__ __forceinline__ int slice_of(unsigned block) const {
    return static_cast<int>(block / tiles % slices);
  }
  __host__ __device__ __forceinline__ int64_t sample_of(unsigned block) const { return block / tiles / slices; }
  __host__ __device__ __forceinline__ int first_access(int tile) const {
    return tile / unit_tiles * unit + tile % unit_tiles * width;
  }
  __host__ __device__ __forceinline__ int accesses(int tile) const {
    return smaller(width, unit - tile % unit_tiles * width);
  }

  template <int V>
  __host__ __device__ __forceinline__ Walk walk(unsigned block, int thread) const {
    const int column = thread % width, line = thread / width, tile = tile_of(block);
    const int begin = slice_of(block) * slice + line;
    const int end = slice_of(block) * slice + smaller(slice, rows - slice_of(block) * slice);
    const int access = first_access(tile) + column, across = channels / V;
    Walk w;
    w.row = sample_of(block) * channels + access * V;
    w.offset = (sample_of(block) * rows + begin) * across + access;
    w.step = step;
    w.left = column < accesses(tile) && line < height && begin < end ? (end - begin + height - 1) / height : 0;
    return w;
  }
};

// The block's number in a kernel that comes back to data which another has just read: from the end, because that is
// what the L2 cache still has of a large tensor.
__device__ __forceinline__ unsigned block_from_end() { return gridDim.x - 1 - blockIdx.x; }

// Channels per access, each of them with values of its own.
template <int V, class Layout>
constexpr int kLanes = Layout::columns ? V : 1;

// A number of accesses that the compiler knows.
template <int N>
struct Exactly {
  __host__ __device__ constexpr operator int() const { return N; }
};

// Where a thread's next accesses are in every tensor, in bytes.
struct Place {
  int64_t at, step;
};

// Bytes of an element of Y for each of T, in which places are counted.
template <class T, class Y>
constexpr int kRatio = sizeof(Y) / sizeof(T);
template <int U, class Chunk>
__device__ __forceinline__ void whole_chunks(Place& place, int& left, const Chunk& chunk) {
#pragma unroll 1
  for (; left >= U; left -= U) {
    chunk(place, Exactly<U>{});
    place.at = gpu::opaque(place.at + U * place.step);
  }
}
template <int U, class Chunk>
__device__ __forceinline__ void last_chunks(Place& place, int left, const Chunk& chunk) {
  if constexpr (U > 0) {
    if (left & U) {
      chunk(place, Exactly<U>{});
      place.at = gpu::opaque(place.at + U * place.step);
    }
    last_chunks<U / 2>(place, left, chunk);
  }
}

// Calls chunk(place, Exactly<n>) for all of a thread's accesses: n is U, a power of two, while there are so many, then
// each of U / 2, U / 4, ... 1 at most once.  No access of a chunk is in question, so none costs a predicate.
template <class T, int V, int U, class Chunk>
__device__ __forceinline__ void in_chunks(const Walk& walk, const Chunk& chunk) {
  Place place{walk.offset * static_cast<int64_t>(sizeof(Raw<T, V>)), walk.step};
  int left = walk.left;
  whole_chunks<U>(place, left, chunk);
  last_chunks<U / 2>(place, left, chunk);
}

// Likewise, but calls `end` for the first and for the last ones.
template <class T, int V, int U, class End, class Chunk>
__device__ __forceinline__ void in_chunks(const Walk& walk, const End& end, const Chunk& chunk) {
  Place place{walk.offset * static_cast<int64_t>(sizeof(Raw<T, V>)), walk.step};
  int left = walk.left;
  if (left >= U) {
    end(place, Exactly<U>{});
    place.at += U * place.step;
    left -= U;
  }
  whole_chunks<U>(place, left, chunk);
  last_chunks<U / 2>(place, left, end);
}

// A tensor's access at a place in bytes.
template <class T, int V>
__device__ __forceinline__ const Raw<T, V>* access_at(const T* data, int64_t at) {
  return reinterpret_cast<const Raw<T, V>*>(reinterpret_cast<const unsigned char*>(data) + at);
}
template <class T, int V>
__device__ __forceinline__ Raw<T, V>* access_at(T* data, int64_t at) {
  return reinterpret_cast<Raw<T, V>*>(reinterpret_cast<unsigned char*>(data) + at);
}

// S: bytes of an element for each byte that places count.
template <class T, int V, int S = 1, int U, class Count>
__device__ __forceinline__ void load_chunk(const T* data, Place place, Count n, Raw<T, V> (&raw)[U]) {
#pragma unroll
  for (int u = 0; u < U; ++u, place.at += place.step) {
    if (u < n) raw[u] = __ldg(access_at<T, V>(data, place.at * S));
  }
}
template <class T, int V, int S = 1, int U, class Count>
__device__ __forceinline__ void store_chunk(T* data, Place place, Count n, const Raw<T, V> (&raw)[U]) {
#pragma unroll
  for (int u = 0; u < U; ++u, place.at += place.step) {
    if (u < n) *access_at<T, V>(data, place.at * S) = raw[u];
  }
}

// The elements of an access are handled in parts, of as many as a thread of Columns has registers to keep values for.
// Where it also has two sums for each, to the end, a part is a whole access.
template <int V, class Layout>
constexpr int kPart = Layout::columns && V > 4 ? 4 : V;

template <class T, int V, int P>
__device__ __forceinline__ void unpack_part(Raw<T, V> raw, int part, Accumulator<T> (&values)[P]) {
  Raw<T, P> parts[V / P];
  memcpy(parts, &raw, sizeof raw);
  unpack<T, P>(parts[part], values);
}
template <class T, int V, int P>
__device__ __forceinline__ void pack_part(const Accumulator<T> (&values)[P], int part, Raw<T, V>& raw) {
  Raw<T, P> parts[V / P];
  memcpy(parts, &raw, sizeof raw);
  parts[part] = pack<T, P>(values);
  memcpy(&raw, parts, sizeof raw);
}

// Accesses in flight per thread and tensor, as many as registers allow: with one tensor, and with two or three.
template <int V>
constexpr int kChunk = V == 1 ? 8 : 4;
template <int V>
constexpr int kGradientChunk = V == 1 ? 4 : 2;

__device__ __forceinline__ int64_t divide(int64_t a, int b) {
  // The 64-bit division is many times slower.
  return a >> 31 == 0 ? static_cast<int64_t>(static_cast<uint32_t>(a) / static_cast<uint32_t>(b)) : a / b;
}

}  // namespace genimg_fast::cuda::group_norm
