#pragma once
// The recurrent kernels: a layer's steps in one kernel (persistent), or the elementwise part of one step beside a
// product that torch makes (steps).  Here is where a block and its threads find what they work on.
//
// A persistent block owns some rows of the batch and takes them through all steps; nothing passes between blocks.  Its
// shared memory holds, in this order:
//   weights   loaded once, in the order in which the product reads them
//   operands  two buffers (rows x depth): what the weights are multiplied with in this step, and what this step leaves
//             for the next.  Forward: the state; backward: the gradients at the gates.
//   kept      what a thread keeps between steps, in the type of the arithmetic: the cell state of an LSTM, the state of
//             a GRU before it is rounded; in backward the gradients at both
// A warp makes one tile of results at a time: 8 hidden units of 16 rows by tensor cores with sums in float32 (bfloat16
// and float16), or of 4 rows by FMA (float32 and float64).  Either way the sums of a unit's gates end in one thread,
// which applies the cell's formulas to them in registers.
#include "common.cuh"
#include "recurrent.h"

namespace genimg_fast::cuda {

constexpr int kStepThreads = 256;  // of a block of an elementwise kernel

// Most threads of a persistent block: as many as leave a thread the registers that it needs.
template <class T>
constexpr int kPersistentThreads = sizeof(T) == 8 ? 256 : 512;

template <class T>
constexpr bool kTensorCores = sizeof(T) == 2;

// Results of a tile that a thread has, and where: value j is `row(j)` rows and `unit(j)` hidden units after value 0.
template <class T>
struct Values {
  static constexpr int count = kTensorCores<T> ? 4 : 1;
  static __host__ __device__ constexpr int row(int j) { return j / 2 * 8; }  // as mma.m16n8 leaves its sums
  static __host__ __device__ constexpr int unit(int j) { return j % 2; }
};

// Sizes of what a block holds, for products of `depth` terms that make `gates` sums per hidden unit.
struct BlockLayout {
  int hidden, rows, depth;
  int padded_depth;    // whole accesses, or whole fragments
  int operand_stride;  // elements from a row to the next: for fragments such that a warp's rows lie in different banks
  int unit_tiles, tiles;
  size_t weight_bytes, operand_bytes, kept_bytes;  // operand_bytes of each buffer, kept_bytes of each value

  size_t bytes(int kept) const { return weight_bytes + 2 * operand_bytes + kept * kept_bytes; }
};

template <class T>
__host__ __device__ __forceinline__ BlockLayout block_layout(int hidden, int rows, int depth, int gates) {
  BlockLayout b{};
  const int granule = kTensorCores<T> ? 16 : kVector<T>;
  b.hidden = hidden;
  b.rows = rows;
  b.depth = depth;
  b.padded_depth = (depth + granule - 1) / granule * granule;
  b.operand_stride = b.padded_depth + (kTensorCores<T> ? 8 : 0);
  b.unit_tiles = (hidden + 7) / 8;
  b.tiles = b.unit_tiles * (kTensorCores<T> ? 1 : rows / 4);
  b.weight_bytes = sizeof(T) * gates * (kTensorCores<T> ? b.unit_tiles * 8 : hidden) * b.padded_depth;
  b.operand_bytes = sizeof(T) * rows * b.operand_stride;
  b.kept_bytes = sizeof(Accumulator<T>) * b.tiles * 32 * Values<T>::count;
  return b;
}

// The steps of a sequence as a kernel sees them.
struct Times {
  const RecurrentSequence& sequence;

  __device__ __forceinline__ int64_t begin(int64_t t) const {
    return sequence.device_offsets ? __ldg(sequence.device_offsets + t) : t * sequence.batch;
  }
  // Of the rows [first, first + rows) of the batch, those that take part in step t; none in a step that is not there.
  __device__ __forceinline__ int active(int64_t t, int64_t first, int rows) const {
    if (t < 0 || t >= sequence.steps) return 0;
    const int64_t count = begin(t + 1) - begin(t) - first;
    return static_cast<int>(count < 0 ? 0 : count < rows ? count : rows);
  }
};

// Some offsets of steps as a kernel's parameter, of which there are 4 KiB.
constexpr int kOffsetsOfLaunch = 480;
struct OffsetsOfLaunch {
  int64_t values[kOffsetsOfLaunch];
};

// Procedure overview: each thread writes one offset.
__global__ void __launch_bounds__(kOffsetsOfLaunch)
    write_offsets(const __grid_constant__ OffsetsOfLaunch offsets, int64_t* to, int count) {
  if (static_cast<int>(threadIdx.x) < count) to[threadIdx.x] = offsets.values[threadIdx.x];
}

// Procedure overview: each thread converts one element; from == nullptr stands for zeros.
template <class From, class To>
__global__ void __launch_bounds__(kStepThreads) convert_all(const From* from, To* to, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kStepThreads + threadIdx.x;
  if (i < count) to[i] = from ? gpu::convert<To>(from[i]) : gpu::convert<To>(0.0f);
}

}  // namespace genimg_fast::cuda
