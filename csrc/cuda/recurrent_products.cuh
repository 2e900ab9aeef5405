#pragma once
// What a persistent recurrent block multiplies: its weights and operands, and what threads load and write.
#include "recurrent_layout.cuh"

namespace genimg_fast::cuda::recurrent {

// A thread of a block of tensor cores.  It has two pairs of neighbouring hidden units, in rows `row` and row + 8 of the
// block: values 2 * r and 2 * r + 1 belong to row + 8 * r.  G is the number of gates.
template <class T, int G>
struct FragmentThread {
  const FragmentLayout layout;
  const int hidden, warp, lane, row, unit;
  T* const stage;
  uint2* const operands;
  unsigned weights[G][kMaxFragments][2];

  __device__ __forceinline__ FragmentThread(unsigned char* shared, int hidden, int operands)
      : layout(fragment_layout(hidden, operands)),
        hidden(hidden),
        warp(threadIdx.x / 32),
        lane(threadIdx.x % 32),
        row(lane / 4),
        unit(warp * 8 + lane % 4 * 2),
        stage(reinterpret_cast<T*>(shared)),
        operands(reinterpret_cast<uint2*>(stage + 16 * layout.fragments * layout.weight_stride)) {}

  // Whether the thread's pair is there in the first `count` rows.  The hidden size is even.
  __device__ __forceinline__ bool lives(int r, int count) const { return unit < hidden && row + 8 * r < count; }

  // Takes the weights of all gates from the matrix (G * hidden, hidden) to registers, and fills both operand buffers
  // with zeros.  For all threads; they may write operands when it returns.
  //   forward   terms are the matrix's columns, sums its rows
  //   backward  the other way round
  // vectors: every row begins at an address aligned to 16 bytes.
  template <bool backward>
  __device__ __forceinline__ void begin(const void* matrix, bool vectors) {
    constexpr int kChunks = kMaxFragments / 2;  // of 8 elements, of a thread and gate
    const int columns = 2 * layout.fragments, side = 16 * layout.fragments;
    uint4 chunks[G][kChunks];
#pragma unroll
    for (int g = 0; g < G; ++g) {
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        const int at = threadIdx.x + i * blockDim.x, from = at / columns, column = at % columns * 8;
        chunks[g][i] = uint4{0, 0, 0, 0};
        if (from >= hidden || column >= hidden) continue;
        const T* const p = static_cast<const T*>(matrix) + (g * hidden + from) * hidden + column;
        if (vectors) {
          chunks[g][i] = load<T, 8>(p);
        } else {
          chunks[g][i].x = load<T, 2>(p);
          if (column + 2 < hidden) chunks[g][i].y = load<T, 2>(p + 2);
          if (column + 4 < hidden) chunks[g][i].z = load<T, 2>(p + 4);
          if (column + 6 < hidden) chunks[g][i].w = load<T, 2>(p + 6);
        }
      }
    }
    for (int i = threadIdx.x; i < layout.operand_words; i += blockDim.x) operands[i] = uint2{0, 0};
#pragma unroll
    for (int g = 0; g < G; ++g) {
      if (g > 0) __syncthreads();
#pragma unroll
      for (int i = 0; i < kChunks; ++i) {
        const int at = threadIdx.x + i * blockDim.x, to = at / columns;
        if (to < side) gpu::store_128(stage + to * layout.weight_stride + at % columns * 8, chunks[g][i]);
      }
      __syncthreads();
#pragma unroll
      for (int f = 0; f < kMaxFragments; ++f) {
        if (f >= layout.fragments) break;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int term = 16 * f + lane % 4 * 2 + 8 * half, sum = warp * 8 + lane / 4;
          const T* const p = stage + (backward ? term * layout.weight_stride + sum : sum * layout.weight_stride + term);
          unsigned short pair[2];
          memcpy(pair, p, sizeof pair[0]);
          memcpy(pair + 1, p + (backward ? layout.weight_stride : 1), sizeof pair[1]);
          weights[g][f][half] = pair[0] | static_cast<unsigned>(pair[1]) << 16;
        }
      }
    }
  }

  // sums[g] += the product of all gates' operand and gate g's weights, or, with `apart`, sums[0] += the sum of the
  // products of each gate's operand and its weights.  For all lanes of a warp.
  template <bool apart>
  __device__ __forceinline__ void multiply(int buffer, float (&sums)[apart ? 1 : G][4]) const {
    const uint4* const from = reinterpret_cast<const uint4*>(operands + buffer * (layout.operand_words / 2)) + lane;
    constexpr bool lone = apart || G == 1;  // a lone sum is made of two chains, which overlap
    float odd[4] = {0, 0, 0, 0};
#pragma unroll
    for (int f = 0; f < kMaxFragments; ++f) {
      if (f >= layout.fragments) break;
      uint4 words;
#pragma unroll
      for (int g = 0; g < G; ++g) {
        if (apart || g == 0) words = from[(g * layout.fragments + f) * 32];
        const unsigned terms[4] = {words.x, words.y, words.z, words.w};
        const bool second = lone && (G > 1 ? g : f) % 2 == 1;
        gpu::mma_m16n8k16<T>(second ? odd : sums[apart ? 0 : g], terms, weights[g][f]);
      }
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (lone) sums[0][j] += odd[j];
    }
  }

  // Leaves the thread's pairs for the product: of both rows, of the gate's fragments.
  __device__ __forceinline__ void leave(int buffer, int gate, const unsigned (&pairs)[2]) const {
    uint2* const to = operands + buffer * (layout.operand_words / 2);
    to[((gate * layout.fragments + warp / 2) * 32 + lane) * 2 + warp % 2] = uint2{pairs[0], pairs[1]};
  }
};

template <class T>
__device__ __forceinline__ unsigned load_pair(const T* p, bool wanted) {
  return wanted ? load<T, 2>(p) : 0;
}
template <class T>
__device__ __forceinline__ void store_pair(T* p, bool wanted, unsigned pair) {
  if (wanted) store<T, 2>(p, pair);
}

// A block that multiplies by FMA.  N is the number of sums per hidden unit; a lane has one of a tile's results.
template <class T, int N>
struct SliceBlock {
  const SliceLayout layout;
  T* const weights;
  T* const operands;
  T* const kept;
  const int warp, warps, lane;

  __device__ __forceinline__ SliceBlock(unsigned char* shared, int hidden, int rows, int depth)
      : layout(slice_layout<T>(hidden, rows, depth, N)),
        weights(reinterpret_cast<T*>(shared)),
        operands(reinterpret_cast<T*>(shared + layout.weight_bytes)),
        kept(reinterpret_cast<T*>(shared + layout.weight_bytes + 2 * layout.operand_bytes)),
        warp(threadIdx.x / 32),
        warps(blockDim.x / 32),
        lane(threadIdx.x % 32) {}

  __device__ __forceinline__ int row(int tile) const { return tile / layout.unit_tiles * 4 + lane / 8; }
  __device__ __forceinline__ int unit(int tile) const { return tile % layout.unit_tiles * 8 + lane % 8; }
  __device__ __forceinline__ bool lives(int tile, int count) const {
    return row(tile) < count && unit(tile) < layout.hidden;
  }
  __device__ __forceinline__ T* operand(int buffer) const {
    return operands + buffer * layout.rows * layout.padded_depth;
  }
  // Element in an operand of one value per unit.
  __device__ __forceinline__ int place(int tile) const { return row(tile) * layout.padded_depth + unit(tile); }
  __device__ __forceinline__ T& keep(int which, int tile) const {
    return kept[(which * layout.tiles + tile) * 32 + lane];
  }

  // Fills both operand buffers with zeros, and the weights from a matrix with these strides: term k of sum n of a
  // hidden unit.  Products find them as [k / vector][n][unit][k % vector].
  // vectors: a whole access of terms begins at an aligned address.
  __device__ __forceinline__ void begin(const void* matrix, int k_stride, int n_stride, int unit_stride,
                                        bool vectors) const {
    constexpr int V = kVector<T>;
    for (int i = threadIdx.x; i < 2 * layout.rows * layout.padded_depth; i += blockDim.x) operands[i] = 0;
    const int columns = N * layout.hidden;
#pragma unroll 4
    for (int i = threadIdx.x; i < layout.padded_depth / V * columns; i += blockDim.x) {
      const int k = i / columns * V, n = i % columns / layout.hidden, unit = i % layout.hidden;
      const T* const p = static_cast<const T*>(matrix) + k * k_stride + n * n_stride + unit * unit_stride;
      uint4 raw;
      if (vectors) {
        raw = load<T, V>(p);
      } else {
        T terms[V];
#pragma unroll
        for (int v = 0; v < V; ++v) terms[v] = k + v < layout.depth ? __ldg(p + v * k_stride) : T(0);
        memcpy(&raw, terms, sizeof raw);
      }
      gpu::store_128(weights + i * V, raw);
    }
  }

  // sums[n] += the operand of the value's row times the weights of its unit.  For all lanes of a warp: eight lanes, one
  // for each unit, take every fourth access of the terms for all four rows; then the lanes of a unit add up, so that
  // each has the sums of one row.
  __device__ __forceinline__ void multiply(const T* operand, int tile, T (&sums)[N]) const {
    constexpr int V = kVector<T>;
    const int slice = lane / 8, step = N * layout.hidden * V;
    const int column = unit(tile) < layout.hidden ? unit(tile) : 0;  // some unit that there is: nobody reads its sums
    const T* const a = operand + (row(tile) - slice) * layout.padded_depth;
    T parts[N][4];
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) parts[n][j] = 0;
    }
    const T* b = weights + slice * step + column * V;
#pragma unroll 2
    for (int k = slice * V; k < layout.padded_depth; k += 4 * V, b += 4 * step) {
      T terms[4][V];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint4 raw = gpu::load_128(a + j * layout.padded_depth + k);
        memcpy(terms[j], &raw, sizeof raw);
      }
#pragma unroll
      for (int n = 0; n < N; ++n) {
        T factors[V];
        const uint4 raw = gpu::load_128(b + n * layout.hidden * V);
        memcpy(factors, &raw, sizeof raw);
#pragma unroll
        for (int v = 0; v < V; ++v) {
#pragma unroll
          for (int j = 0; j < 4; ++j) parts[n][j] = multiply_add(terms[j][v], factors[v], parts[n][j]);
        }
      }
    }
    // Each exchange halves the rows: a lane gives away what it has of the rows that the other will end with.
    const bool high = slice & 2, odd = slice & 1;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      T(&part)[4] = parts[n];
      T pair[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        pair[j] = (high ? part[j + 2] : part[j]) + __shfl_xor_sync(0xffffffffu, high ? part[j] : part[j + 2], 16);
      }
      sums[n] += (odd ? pair[1] : pair[0]) + __shfl_xor_sync(0xffffffffu, odd ? pair[0] : pair[1], 8);
    }
  }
};

}  // namespace genimg_fast::cuda::recurrent
