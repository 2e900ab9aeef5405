#pragma once
// The recurrent kernels: a layer's steps in one kernel (persistent), or the elementwise part of one step beside a
// product that torch makes (steps).  Here is where a block and its threads find what they work on.
//
// A persistent block owns some rows of the batch in one direction and takes them through all steps; nothing passes
// between blocks.  What the weights are multiplied with in a step, the operand, lies in shared memory, in two buffers:
// of this step, and of what it leaves for the next.  Forward: the state; backward: the gradients at the gates.  The
// sums of a unit's gates end in one thread, which applies the cell's formulas to them in registers.
//
//   tensor cores  (bfloat16, float16) A block has 16 rows.  A warp owns 8 hidden units and keeps their weights in
//                 registers, their fragments; what a thread keeps between steps are registers as well.  An operand is
//                 stored as the fragments that mma.m16n8k16 expects: the four results of a lane are a half of that
//                 lane's part of one, so nothing is rearranged.
//   FMA           (float32, float64) A block has 4 to 16 rows.  A warp makes one tile of results at a time, 8 hidden
//                 units of 4 rows.  Weights, operands and what is kept between steps lie in shared memory.
#include "common.cuh"
#include "recurrent.h"

namespace genimg_fast::cuda::recurrent {

constexpr int kStepThreads = 256;  // of a block of an elementwise kernel

template <class T>
constexpr bool kTensorCores = sizeof(T) == 2;

// Most threads of a persistent block: as many as leave a thread the registers that it needs.
template <class T>
constexpr int kPersistentThreads = sizeof(T) == 8 ? 256 : 512;

// Tensor cores: a warp for every 8 hidden units, and as many weights as a thread's registers hold.
constexpr int kFragmentRows = 16;
constexpr int kMaxFragments = 8;  // of 16 terms each, in a gate's products
constexpr int kMaxFragmentHidden = 16 * kMaxFragments;

// Shared memory of a block of tensor cores: one gate's weights on their way to registers, then the operands.
struct FragmentLayout {
  int fragments;      // of a gate's products, and half the warps
  int weight_stride;  // elements from a row to the next, such that a warp's rows lie in different banks
  int operand_words;  // of a buffer

  size_t bytes() const { return 16 * fragments * weight_stride * 2 + 2 * operand_words * 4; }
};

// operands: values of the operand for each hidden unit.
__host__ __device__ __forceinline__ FragmentLayout fragment_layout(int hidden, int operands) {
  const int fragments = (hidden + 15) / 16;
  return {fragments, 16 * fragments + 8, operands * fragments * 32 * 4};
}

// Shared memory of a block that multiplies by FMA, for products of `depth` terms that make `gates` sums per hidden
// unit, in this order:
//   weights   in the order in which the product reads them
//   operands  two buffers (rows x depth)
//   kept      in the type of the arithmetic: the cell state of an LSTM, the state of a GRU; in backward the gradients
//             at both
struct SliceLayout {
  int hidden, rows, depth;
  int padded_depth;  // whole accesses
  int unit_tiles, tiles;
  size_t weight_bytes, operand_bytes, kept_bytes;  // operand_bytes of each buffer, kept_bytes of each value

  size_t bytes(int kept) const { return weight_bytes + 2 * operand_bytes + kept * kept_bytes; }
};

template <class T>
__host__ __device__ __forceinline__ SliceLayout slice_layout(int hidden, int rows, int depth, int gates) {
  SliceLayout b{};
  b.hidden = hidden;
  b.rows = rows;
  b.depth = depth;
  b.padded_depth = (depth + kVector<T> - 1) / kVector<T> * kVector<T>;
  b.unit_tiles = (hidden + 7) / 8;
  b.tiles = b.unit_tiles * (rows / 4);
  b.weight_bytes = sizeof(T) * gates * hidden * b.padded_depth;
  b.operand_bytes = sizeof(T) * rows * b.padded_depth;
  b.kept_bytes = sizeof(T) * b.tiles * 32;
  return b;
}

// A step as a block sees it: where its first row is, and how many of its rows take part.
struct Step {
  int row, active;
};

// The steps in which any of the block's rows takes part, in the order in which it takes them.
struct Steps {
  const int64_t* offsets;  // or null: step t begins at t * batch
  int batch, first;
  int rows;  // of the batch that the block owns
  int count;
  bool descending;

  __device__ __forceinline__ Steps(const RecurrentSequence& s, int64_t first, int rows, bool descending)
      : offsets(s.device_offsets),
        batch(static_cast<int>(s.batch)),
        first(static_cast<int>(first)),
        rows(rows),
        count(static_cast<int>(s.steps)),
        descending(descending) {
    if (!offsets) return;
    int low = 0;  // sequences are sorted by length: those steps come first
    while (low < count) {
      const int middle = (low + count) / 2;
      if (__ldg(offsets + middle + 1) - __ldg(offsets + middle) > first) {
        low = middle + 1;
      } else {
        count = middle;
      }
    }
  }
  // The i-th of them; none where there is none.
  __device__ __forceinline__ Step at(int i) const {
    if (i >= count) return {0, 0};
    const int t = descending ? count - 1 - i : i;
    if (!offsets) return {t * batch + first, rows};
    const int begin = static_cast<int>(__ldg(offsets + t)) + first;
    const int active = static_cast<int>(__ldg(offsets + t + 1)) - begin;
    return {begin, active < rows ? active : rows};
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

}  // namespace genimg_fast::cuda::recurrent
