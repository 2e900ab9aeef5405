#pragma once
// What a persistent recurrent block multiplies: its weights and operands in shared memory, and what threads load and
// write.
#include <type_traits>

#include "recurrent_layout.cuh"

namespace genimg_fast::cuda {

// What the persistent kernels share: T is the element, N the number of sums per hidden unit.
template <class T, int N>
struct Block {
  using Acc = Accumulator<T>;
  using At = Values<T>;
  static constexpr int J = At::count;

  const BlockLayout layout;
  T* const weights;
  T* const operands;
  Acc* const kept;
  const int64_t first;  // row of the batch
  const int rows;       // of the batch that there are
  const int warp, warps, lane;
  const bool paired;  // two neighbouring values can be accessed at once

  __device__ __forceinline__ Block(unsigned char* shared, const RecurrentSequence& s, const RecurrentPlan& plan,
                                   int depth, bool paired)
      : layout(block_layout<T>(static_cast<int>(s.hidden), plan.rows, depth, N)),
        weights(reinterpret_cast<T*>(shared)),
        operands(reinterpret_cast<T*>(shared + layout.weight_bytes)),
        kept(reinterpret_cast<Acc*>(shared + layout.weight_bytes + 2 * layout.operand_bytes)),
        first(static_cast<int64_t>(blockIdx.x) * plan.rows),
        rows(static_cast<int>(s.batch - first < plan.rows ? s.batch - first : plan.rows)),
        warp(threadIdx.x / 32),
        warps(blockDim.x / 32),
        lane(threadIdx.x % 32),
        paired(paired) {}

  // Of value 0.
  __device__ __forceinline__ int row(int tile) const {
    return kTensorCores<T> ? lane / 4 : tile / layout.unit_tiles * 4 + lane / 8;
  }
  __device__ __forceinline__ int unit(int tile) const {
    return kTensorCores<T> ? tile * 8 + lane % 4 * 2 : tile % layout.unit_tiles * 8 + lane % 8;
  }
  // Element of value j in an operand of one value per unit.
  __device__ __forceinline__ int place(int tile, int j) const {
    return (row(tile) + At::row(j)) * layout.operand_stride + unit(tile) + At::unit(j);
  }
  __device__ __forceinline__ T* operand(int buffer) const {
    return operands + buffer * layout.rows * layout.operand_stride;
  }
  __device__ __forceinline__ Acc& keep(int which, int tile, int j) const {
    return kept[((which * layout.tiles + tile) * J + j) * 32 + lane];
  }
  // Bit j: value j belongs to one of the first `count` rows, and to a hidden unit that there is.
  __device__ __forceinline__ unsigned live(int tile, int count) const {
    unsigned mask = 0;
#pragma unroll
    for (int j = 0; j < J; ++j) {
      mask |= static_cast<unsigned>(row(tile) + At::row(j) < count && unit(tile) + At::unit(j) < layout.hidden) << j;
    }
    return mask;
  }

  // A thread's values of the rows from `first_row` on, which are `width` wide, at `column` + unit, on their way:
  // nothing waits for them before `value` converts them.  Those that do not live are zero.
  struct Fetched {
    std::conditional_t<kTensorCores<T>, unsigned, T> words[J];  // the first of two holds both if they are paired
  };
  __device__ __forceinline__ Fetched fetch(const void* data, int64_t first_row, int64_t width, int64_t column, int tile,
                                           unsigned live) const {
    const T* const p = static_cast<const T*>(data) + (first_row + row(tile)) * width + column + unit(tile);
    Fetched fetched{};
    if constexpr (!kTensorCores<T>) {
      if (live) fetched.words[0] = __ldg(p);
    } else if (paired) {
#pragma unroll
      for (int j = 0; j < J; j += 2) {
        if (live >> j & 1) fetched.words[j] = load<T, 2>(p + At::row(j) * width);
      }
    } else {
#pragma unroll
      for (int j = 0; j < J; ++j) {
        if (live >> j & 1) fetched.words[j] = load<T, 1>(p + At::row(j) * width + At::unit(j));
      }
    }
    return fetched;
  }
  __device__ __forceinline__ Acc value(const Fetched& fetched, int j) const {
    if constexpr (kTensorCores<T>) {
      const unsigned word = !paired ? fetched.words[j] : j % 2 == 0 ? fetched.words[j] : fetched.words[j - 1] >> 16;
      const auto bits = static_cast<unsigned short>(word);
      T element;
      memcpy(&element, &bits, sizeof bits);
      return gpu::convert<Acc>(element);
    } else {
      return fetched.words[j];
    }
  }

  __device__ __forceinline__ void write(void* data, int64_t first_row, int64_t width, int64_t column, int tile,
                                        unsigned live, const Acc (&values)[J]) const {
    T* const p = static_cast<T*>(data) + (first_row + row(tile)) * width + column + unit(tile);
    if constexpr (kTensorCores<T>) {
      if (paired) {
#pragma unroll
        for (int j = 0; j < J; j += 2) {
          const Acc pair[2] = {values[j], values[j + 1]};
          if (live >> j & 1) store<T, 2>(p + At::row(j) * width, pack<T, 2>(pair));
        }
        return;
      }
    }
#pragma unroll
    for (int j = 0; j < J; ++j) {
      if (live >> j & 1) p[At::row(j) * width + At::unit(j)] = gpu::convert<T>(values[j]);
    }
  }

  // Fills both operand buffers with zeros, and the weights from a matrix with these strides: term k of sum n of a
  // hidden unit.  Products find them as
  //   FMA           [k / vector][n][unit][k % vector]
  //   tensor cores  [tile][k / 16][n][lane], the four that mma.m16n8k16 expects of a lane
  __device__ __forceinline__ void begin(const void* matrix, int k_stride, int n_stride, int unit_stride) const {
    for (int i = threadIdx.x; i < 2 * layout.rows * layout.operand_stride; i += blockDim.x) {
      operands[i] = gpu::convert<T>(0.0f);
    }
    // Zero where there is no such term or unit.  Without a branch, so that many loads are on their way at a time.
    const auto weight = [&](int k, int n, int unit) {
      const bool exists = (k < layout.depth) & (unit < layout.hidden);
      const int at = k * k_stride + n * n_stride + unit * unit_stride;
      const Raw<T, 1> bits = load<T, 1>(static_cast<const T*>(matrix) + (exists ? at : 0));
      return exists ? bits : Raw<T, 1>(0);
    };
    if constexpr (kTensorCores<T>) {
      const int fragments = layout.padded_depth / 16;
#pragma unroll 4
      for (int i = warp; i < layout.tiles * fragments * N; i += warps) {
        const int n = i % N, k = i / N % fragments * 16 + lane % 4 * 2, unit = i / N / fragments * 8 + lane / 4;
        const unsigned low = weight(k, n, unit) | static_cast<unsigned>(weight(k + 1, n, unit)) << 16;
        const unsigned high = weight(k + 8, n, unit) | static_cast<unsigned>(weight(k + 9, n, unit)) << 16;
        reinterpret_cast<uint2*>(weights)[i * 32 + lane] = make_uint2(low, high);
      }
    } else {
      constexpr int V = kVector<T>;
      const int columns = N * layout.hidden;
#pragma unroll 4
      for (int i = threadIdx.x; i < layout.padded_depth / V * columns; i += blockDim.x) {
        const int k = i / columns * V, n = i % columns / layout.hidden, unit = i % layout.hidden;
        Raw<T, 1> terms[V];
#pragma unroll
        for (int v = 0; v < V; ++v) terms[v] = weight(k + v, n, unit);
        uint4 raw;
        memcpy(&raw, terms, sizeof raw);
        gpu::store_128(weights + i * V, raw);
      }
    }
  }

  // sums[n][j] = the operand of value j's row times the weights of its unit.  For all lanes of a warp.
  __device__ __forceinline__ void multiply(const T* operand, int tile, Acc (&sums)[N][J]) const {
    if constexpr (kTensorCores<T>) {
      multiply_fragments(operand, tile, sums);
    } else {
      multiply_slices(operand, tile, sums);
    }
  }

 private:
  __device__ __forceinline__ void multiply_fragments(const T* operand, int tile, float (&sums)[N][4]) const {
    const int fragments = layout.padded_depth / 16;
    const uint2* const b = reinterpret_cast<const uint2*>(weights) + tile * fragments * N * 32 + lane;
    const unsigned* const top =
        reinterpret_cast<const unsigned*>(operand + lane / 4 * layout.operand_stride) + lane % 4;
    const unsigned* const bottom = top + 4 * layout.operand_stride;  // eight rows below
    const auto add = [&](int k, float (&to)[N][4]) {
      const unsigned fragment[4] = {top[8 * k], bottom[8 * k], top[8 * k + 4], bottom[8 * k + 4]};
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const uint2 pairs = b[(k * N + n) * 32];
        const unsigned other[2] = {pairs.x, pairs.y};
        gpu::mma_m16n8k16<T>(to[n], fragment, other);
      }
    };
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[n][j] = 0;
    }
    if constexpr (N == 1) {  // a lone sum is made of two chains, which overlap
      float odd[1][4] = {{0, 0, 0, 0}};
      int k = 0;
#pragma unroll 2
      for (; k + 2 <= fragments; k += 2) {
        add(k, sums);
        add(k + 1, odd);
      }
      if (k < fragments) add(k, sums);
#pragma unroll
      for (int j = 0; j < 4; ++j) sums[0][j] += odd[0][j];
    } else {
#pragma unroll 2
      for (int k = 0; k < fragments; ++k) add(k, sums);
    }
  }

  // Eight lanes, one for each unit, take every fourth access of the terms for all four rows; then the lanes of a unit
  // add up, so that each has the sums of one row.
  __device__ __forceinline__ void multiply_slices(const T* operand, int tile, Acc (&sums)[N][1]) const {
    constexpr int V = kVector<T>;
    const int slice = lane / 8, step = N * layout.hidden * V;
    const int column = unit(tile) < layout.hidden ? unit(tile) : 0;  // some unit that there is: nobody reads its sums
    const T* const a = operand + (row(tile) - slice) * layout.operand_stride;
    Acc parts[N][4];
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
        const uint4 raw = gpu::load_128(a + j * layout.operand_stride + k);
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
      Acc(&part)[4] = parts[n];
      Acc pair[2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        pair[j] = (high ? part[j + 2] : part[j]) + __shfl_xor_sync(0xffffffffu, high ? part[j] : part[j + 2], 16);
      }
      sums[n][0] = (odd ? pair[1] : pair[0]) + __shfl_xor_sync(0xffffffffu, odd ? pair[0] : pair[1], 8);
    }
  }
};

}  // namespace genimg_fast::cuda
