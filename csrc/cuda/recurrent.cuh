#pragma once
// Kernels of the recurrent family: a layer's steps in one kernel (persistent), the elementwise part of one step beside
// a product that torch makes (steps), and the cell updates.
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
#include <type_traits>

#include "common.cuh"
#include "math/gaussian.h"
#include "recurrent.h"

namespace genimg_fast::cuda {

constexpr int kStepThreads = 256;  // of a block of an elementwise kernel

// Most threads of a persistent block: as many as leave a thread the registers that it needs.
template <class T>
constexpr int kPersistentThreads = sizeof(T) == 8 ? 256 : 512;

// The cells' formulas.

__device__ __forceinline__ float hyperbolic_tangent(float x) { return tanhf(x); }
__device__ __forceinline__ double hyperbolic_tangent(double x) { return tanh(x); }

template <class A>
__device__ __forceinline__ A logistic(A x) {
  return A(1) / (A(1) + exponential(-x));
}

// What kernels need of a cell, as constants: nvcc does not let them call host functions.
template <Cell C>
constexpr int kGates = gate_count(C);
template <Cell C>  // values of a hidden unit and step that backward reads: the reserve, or the output where there is
                   // none
constexpr int kSaved = reserve_count(C) > 0 ? reserve_count(C) : 1;
template <Cell C>  // whether more is kept between steps than the rounded state
constexpr bool kKeeps = C == Cell::gru || C == Cell::lstm;

// One step of a hidden unit, from its gates' two parts.  kept: the state of a GRU, the cell state of an LSTM.
template <Cell C, class A>
__device__ __forceinline__ A advance(const A (&x)[kGates<C>], const A (&h)[kGates<C>], A& kept, A (&saved)[kSaved<C>]) {
  if constexpr (C == Cell::rnn_tanh) {
    saved[0] = hyperbolic_tangent(x[0] + h[0]);
    return saved[0];
  } else if constexpr (C == Cell::rnn_relu) {
    const A sum = x[0] + h[0];
    saved[0] = sum <= A(0) ? A(0) : sum;  // NaN passes
    return saved[0];
  } else if constexpr (C == Cell::gru) {
    const A r = logistic(x[0] + h[0]), z = logistic(x[1] + h[1]);
    const A n = hyperbolic_tangent(multiply_add(r, h[2], x[2]));
    saved[0] = r;
    saved[1] = z;
    saved[2] = n;
    saved[3] = h[2];
    kept = multiply_add(z, kept - n, n);
    return kept;
  } else {
    const A i = logistic(x[0] + h[0]), f = logistic(x[1] + h[1]);
    const A g = hyperbolic_tangent(x[2] + h[2]), o = logistic(x[3] + h[3]);
    kept = multiply_add(f, kept, i * g);
    saved[0] = i;
    saved[1] = f;
    saved[2] = g;
    saved[3] = o;
    saved[4] = kept;
    return o * hyperbolic_tangent(kept);
  }
}

// Gradients at the gates before their activations, d, and for GRU at hn; returns what reaches the state before other
// than through the gates.  before: the state of a GRU, or the cell state of an LSTM, before the step; dc: the gradient
// at the cell state, after the step and then before it.
template <Cell C, class A>
__device__ __forceinline__ A retreat(const A (&saved)[kSaved<C>], A before, A dh, A& dc, A (&d)[kGates<C>], A& dhn) {
  if constexpr (C == Cell::rnn_tanh) {
    d[0] = dh * multiply_add(-saved[0], saved[0], A(1));
    return A(0);
  } else if constexpr (C == Cell::rnn_relu) {
    d[0] = saved[0] <= A(0) ? A(0) : dh;
    return A(0);
  } else if constexpr (C == Cell::gru) {
    const A r = saved[0], z = saved[1], n = saved[2], hn = saved[3];
    d[2] = dh * (A(1) - z) * multiply_add(-n, n, A(1));
    d[0] = d[2] * hn * (r * (A(1) - r));
    d[1] = dh * (before - n) * (z * (A(1) - z));
    dhn = d[2] * r;
    return dh * z;
  } else {
    const A i = saved[0], f = saved[1], g = saved[2], o = saved[3], tanh_c = hyperbolic_tangent(saved[4]);
    const A at_c = multiply_add(dh * o, multiply_add(-tanh_c, tanh_c, A(1)), dc);
    d[0] = at_c * g * (i * (A(1) - i));
    d[1] = at_c * before * (f * (A(1) - f));
    d[2] = at_c * i * multiply_add(-g, g, A(1));
    d[3] = dh * tanh_c * (o * (A(1) - o));
    dc = at_c * f;
    return A(0);
  }
}

// A persistent block's shared memory and threads.

template <class T>
constexpr bool kTensorCores = sizeof(T) == 2;

template <class T>
constexpr int kVector = 16 / sizeof(T);

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

// Persistent kernels.

// Procedure overview: forward.
//   1. The block loads the weights, and the initial states of its rows.
//   2. In each step a thread loads the gates of its values, multiplies the state by the weights of its hidden units,
//      applies the cell's formulas and leaves the new state in the other buffer; rows that have no such step keep
//      theirs.  One barrier ends the step.
//   3. The last states are written.
template <class T, Cell C>
__global__ void __launch_bounds__(kPersistentThreads<T>, 1)
    forward_persistent(const __grid_constant__ RecurrentSequence sequence,
                       const __grid_constant__ RecurrentForward call, const __grid_constant__ RecurrentPlan plan,
                       bool paired) {
  using Acc = Accumulator<T>;
  using At = Values<T>;
  constexpr int G = kGates<C>, S = kSaved<C>, J = At::count;
  DYN_SHARED(unsigned char, shared);
  const int H = static_cast<int>(sequence.hidden);
  const Block<T, G> block(shared, sequence, plan, H, paired);
  const Times times{sequence};

  block.begin(call.weight_hh, 1, H * H, H);
  __syncthreads();
  for (int tile = block.warp; tile < block.layout.tiles; tile += block.warps) {
    const unsigned live = block.live(tile, block.rows);
    const auto h0 = block.fetch(call.h0, block.first, H, 0, tile, live);
    const auto c0 = C == Cell::lstm ? block.fetch(call.c0, block.first, H, 0, tile, live) : h0;
#pragma unroll
    for (int j = 0; j < J; ++j) {
      if (live >> j & 1) block.operand(0)[block.place(tile, j)] = gpu::convert<T>(block.value(h0, j));
      if (kKeeps<C>) block.keep(0, tile, j) = block.value(c0, j);
    }
  }
  __syncthreads();

  int buffer = 0;
#pragma unroll 1
  for (int64_t s = 0; s < sequence.steps; ++s) {
    const int64_t t = sequence.reverse ? sequence.steps - 1 - s : s;
    const int active = times.active(t, block.first, block.rows);
    if (active == 0) continue;
    const int64_t first_row = times.begin(t) + block.first;
    const T* const before = block.operand(buffer);
    T* const after = block.operand(buffer ^ 1);
#pragma unroll 1
    for (int tile = block.warp; tile < block.layout.tiles; tile += block.warps) {
      const unsigned live = block.live(tile, active);
      typename Block<T, G>::Fetched x[G], bias{};
      Acc sums[G][J];
#pragma unroll
      for (int g = 0; g < G; ++g) x[g] = block.fetch(call.gates, first_row, G * H, g * H, tile, live);
      if (C == Cell::gru && call.bias_n) bias = block.fetch(call.bias_n, 0, 0, 0, tile, live);
      block.multiply(before, tile, sums);

      Acc h[J], saved[S][J];
#pragma unroll
      for (int j = 0; j < J; ++j) {
        Acc x_of[G], h_of[G], saved_of[S], kept = kKeeps<C> ? block.keep(0, tile, j) : Acc(0);
#pragma unroll
        for (int g = 0; g < G; ++g) {
          x_of[g] = block.value(x[g], j);
          h_of[g] = sums[g][j];
        }
        if constexpr (C == Cell::gru) h_of[2] += block.value(bias, j);
        h[j] = advance<C>(x_of, h_of, kept, saved_of);
#pragma unroll
        for (int k = 0; k < S; ++k) saved[k][j] = saved_of[k];
        if (kKeeps<C> && live >> j & 1) block.keep(0, tile, j) = kept;
        const int at = block.place(tile, j);
        if (block.unit(tile) + At::unit(j) < H) after[at] = live >> j & 1 ? gpu::convert<T>(h[j]) : before[at];
      }
      block.write(call.output, first_row, H, 0, tile, live, h);
      if constexpr (kKeeps<C>) {
        if (call.reserve) {
#pragma unroll
          for (int k = 0; k < S; ++k) block.write(call.reserve, first_row, S * H, k * H, tile, live, saved[k]);
        }
      }
    }
    buffer ^= 1;
    __syncthreads();
  }

  for (int tile = block.warp; tile < block.layout.tiles; tile += block.warps) {
    const unsigned live = block.live(tile, block.rows);
    Acc h[J], c[J];
#pragma unroll
    for (int j = 0; j < J; ++j) {
      h[j] = 0;
      if (live >> j & 1) {
        h[j] = gpu::convert<Acc>(block.operand(buffer)[block.place(tile, j)]);
      }
      if (C == Cell::lstm) c[j] = block.keep(0, tile, j);
    }
    block.write(call.h_n, block.first, H, 0, tile, live, h);
    if (C == Cell::lstm) block.write(call.c_n, block.first, H, 0, tile, live, c);
  }
}

// Procedure overview: backward.
//   1. The block loads the weights, the other way round, and the gradients at the last states of its rows.
//   2. In each step, last first, a thread loads what forward saved of its values, multiplies the gradients at the gates
//      of the step after this one by the weights, which completes the gradient at its state, and makes the gradients at
//      this step's gates: they are written, and left in the other buffer.  Rows that have no such step leave zeros, and
//      keep their gradients.  One barrier ends the step.
//   3. A last product completes the gradients at the initial states.
template <class T, Cell C>
__global__ void __launch_bounds__(kPersistentThreads<T>, 1)
    backward_persistent(const __grid_constant__ RecurrentSequence sequence,
                        const __grid_constant__ RecurrentBackward call, const __grid_constant__ RecurrentPlan plan,
                        bool paired) {
  using Acc = Accumulator<T>;
  using At = Values<T>;
  constexpr int G = kGates<C>, S = kSaved<C>, J = At::count;
  DYN_SHARED(unsigned char, shared);
  const int H = static_cast<int>(sequence.hidden);
  const Block<T, 1> block(shared, sequence, plan, G * H, paired);
  const Times times{sequence};

  block.begin(call.weight_hh, H, 0, 1);
  for (int tile = block.warp; tile < block.layout.tiles; tile += block.warps) {
    const unsigned live = block.live(tile, block.rows);
    const auto dh = block.fetch(call.grad_h_n, block.first, H, 0, tile, call.grad_h_n ? live : 0);
    const auto dc = block.fetch(call.grad_c_n, block.first, H, 0, tile, call.grad_c_n ? live : 0);
#pragma unroll
    for (int j = 0; j < J; ++j) {
      block.keep(0, tile, j) = block.value(dh, j);
      if (C == Cell::lstm) block.keep(1, tile, j) = block.value(dc, j);
    }
  }
  __syncthreads();

  // Rows that left gradients at gates in the buffer.  The others' zeros are not multiplied: a weight may be infinite.
  int multiplied = 0, buffer = 0;
#pragma unroll 1
  for (int64_t s = 0; s < sequence.steps; ++s) {
    const int64_t t = sequence.reverse ? s : sequence.steps - 1 - s;
    const int active = times.active(t, block.first, block.rows);
    if (active == 0) continue;
    const int64_t first_row = times.begin(t) + block.first;
    const int64_t t_before = sequence.reverse ? t + 1 : t - 1;
    const int known = times.active(t_before, block.first, active);  // rows for which it was not the first step
    const int64_t row_before = known > 0 ? times.begin(t_before) + block.first : 0;
#pragma unroll 1
    for (int tile = block.warp; tile < block.layout.tiles; tile += block.warps) {
      const unsigned live = block.live(tile, active), has_product = block.live(tile, multiplied);
      typename Block<T, 1>::Fetched saved[S], before{}, initial{};
      Acc product[1][J];
      const auto grad = block.fetch(call.grad_output, first_row, H, 0, tile, call.grad_output ? live : 0);
      const void* const from = kKeeps<C> ? call.reserve : call.output;
#pragma unroll
      for (int k = 0; k < S; ++k) saved[k] = block.fetch(from, first_row, S * H, k * H, tile, live);
      if constexpr (kKeeps<C>) {
        const unsigned not_first = block.live(tile, known);
        before = C == Cell::lstm ? block.fetch(call.reserve, row_before, S * H, 4 * H, tile, not_first)
                                 : block.fetch(call.output, row_before, H, 0, tile, not_first);
        initial = block.fetch(C == Cell::lstm ? call.c0 : call.h0, block.first, H, 0, tile, live & ~not_first);
      }
      block.multiply(block.operand(buffer), tile, product);

      Acc d[G][J], dhn[J];
#pragma unroll
      for (int j = 0; j < J; ++j) {
        const Acc dh = block.keep(0, tile, j) + (has_product >> j & 1 ? product[0][j] : Acc(0));
        Acc saved_of[S], d_of[G], dc = C == Cell::lstm ? block.keep(1, tile, j) : Acc(0);
        dhn[j] = 0;
#pragma unroll
        for (int k = 0; k < S; ++k) saved_of[k] = block.value(saved[k], j);
        const Acc state = block.value(before, j) + block.value(initial, j);  // one of them is zero
        const Acc rest = retreat<C>(saved_of, state, dh + block.value(grad, j), dc, d_of, dhn[j]);
        const bool lives = live >> j & 1;
        block.keep(0, tile, j) = lives ? rest : dh;
        if (C == Cell::lstm && lives) block.keep(1, tile, j) = dc;
        const int unit = block.unit(tile) + At::unit(j);
        T* const after = block.operand(buffer ^ 1) + block.place(tile, j);
#pragma unroll
        for (int g = 0; g < G; ++g) {
          d[g][j] = d_of[g];
          const Acc at_product = C == Cell::gru && g == 2 ? dhn[j] : d_of[g];
          if (unit < H) after[g * H] = gpu::convert<T>(lives ? at_product : Acc(0));
        }
      }
#pragma unroll
      for (int g = 0; g < G; ++g) block.write(call.grad_gates, first_row, G * H, g * H, tile, live, d[g]);
      if (C == Cell::gru) block.write(call.grad_hidden_n, first_row, H, 0, tile, live, dhn);
    }
    multiplied = active;
    buffer ^= 1;
    __syncthreads();
  }

  for (int tile = block.warp; tile < block.layout.tiles; tile += block.warps) {
    const unsigned live = block.live(tile, block.rows), has_product = block.live(tile, multiplied);
    Acc product[1][J], dh[J], dc[J];
    block.multiply(block.operand(buffer), tile, product);
#pragma unroll
    for (int j = 0; j < J; ++j) {
      dh[j] = block.keep(0, tile, j) + (has_product >> j & 1 ? product[0][j] : Acc(0));
      if (C == Cell::lstm) dc[j] = block.keep(1, tile, j);
    }
    block.write(call.grad_h0, block.first, H, 0, tile, live, dh);
    if (C == Cell::lstm) block.write(call.grad_c0, block.first, H, 0, tile, live, dc);
  }
}

// Elementwise kernels of one step.

// Procedure overview: each thread converts one element; from == nullptr stands for zeros.
template <class From, class To>
__global__ void __launch_bounds__(kStepThreads) convert_all(const From* from, To* to, int64_t count) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kStepThreads + threadIdx.x;
  if (i < count) to[i] = from ? gpu::convert<To>(from[i]) : gpu::convert<To>(0.0f);
}

// Of a step; pointers are to its first row.
template <class T>
struct ForwardStep {
  const T *gates, *product, *bias_n;
  T *output, *state, *reserve;
  Accumulator<T>* kept;
};

// Procedure overview: each thread takes one hidden unit of one row from its gates to its new state, which is written
// twice: to the output, and to where the next product reads it.
template <class T, Cell C>
__global__ void __launch_bounds__(kStepThreads)
    forward_step(const __grid_constant__ ForwardStep<T> step, unsigned hidden, unsigned count) {
  using Acc = Accumulator<T>;
  constexpr int G = kGates<C>, S = kSaved<C>;
  const unsigned i = blockIdx.x * kStepThreads + threadIdx.x;
  if (i >= count) return;
  const int64_t row = i / hidden, unit = i % hidden, H = hidden;
  Acc x[G], h[G], saved[S], kept = 0;
#pragma unroll
  for (int g = 0; g < G; ++g) {
    x[g] = gpu::convert<Acc>(__ldg(step.gates + (row * G + g) * H + unit));
    h[g] = gpu::convert<Acc>(__ldg(step.product + (row * G + g) * H + unit));
  }
  if constexpr (C == Cell::gru) {
    if (step.bias_n) h[2] += gpu::convert<Acc>(__ldg(step.bias_n + unit));
  }
  if (kKeeps<C>) kept = step.kept[i];
  const T rounded = gpu::convert<T>(advance<C>(x, h, kept, saved));
  step.output[i] = rounded;
  step.state[i] = rounded;
  if constexpr (kKeeps<C>) {
    step.kept[i] = kept;
    if (step.reserve) {
#pragma unroll
      for (int k = 0; k < S; ++k) step.reserve[(row * S + k) * H + unit] = gpu::convert<T>(saved[k]);
    }
  }
}

// Of a step; pointers are to its first row.
template <class T>
struct BackwardStep {
  const T *grad_output, *saved, *product;
  const T *before, *initial;  // states, or cell states, before the step: of the rows up to `known`, and of the others
  unsigned before_stride;
  T *grad_gates, *grad_hidden_n, *operand;
  Accumulator<T>*dh, *dc;
  unsigned active, known, products;  // rows that take part, that had a step before, that `product` has
};

// Procedure overview: each thread completes the gradient at the state of one hidden unit and row with the product of
// the step after this one, and takes it to the gradients at the gates.  Rows that do not take part keep their gradient.
template <class T, Cell C>
__global__ void __launch_bounds__(kStepThreads)
    backward_step(const __grid_constant__ BackwardStep<T> step, unsigned hidden, unsigned count) {
  using Acc = Accumulator<T>;
  constexpr int G = kGates<C>, S = kSaved<C>;
  const unsigned i = blockIdx.x * kStepThreads + threadIdx.x;
  if (i >= count) return;
  const int64_t row = i / hidden, unit = i % hidden, H = hidden;
  Acc dh = step.dh[i];
  if (row < step.products) dh += gpu::convert<Acc>(__ldg(step.product + i));
  if (row >= step.active) {
    step.dh[i] = dh;
    return;
  }
  if (step.grad_output) dh += gpu::convert<Acc>(__ldg(step.grad_output + i));
  Acc saved[S], d[G], before = 0, dc = 0, dhn = 0;
#pragma unroll
  for (int k = 0; k < S; ++k) saved[k] = gpu::convert<Acc>(__ldg(step.saved + (row * S + k) * H + unit));
  if constexpr (kKeeps<C>) {
    before = gpu::convert<Acc>(row < step.known ? __ldg(step.before + row * step.before_stride + unit)
                                                : __ldg(step.initial + i));
  }
  if (C == Cell::lstm) dc = step.dc[i];
  step.dh[i] = retreat<C>(saved, before, dh, dc, d, dhn);
  if (C == Cell::lstm) step.dc[i] = dc;
#pragma unroll
  for (int g = 0; g < G; ++g) {
    step.grad_gates[(row * G + g) * H + unit] = gpu::convert<T>(d[g]);
    if (C == Cell::gru) step.operand[(row * G + g) * H + unit] = gpu::convert<T>(g == 2 ? dhn : d[g]);
  }
  if (C == Cell::gru) step.grad_hidden_n[i] = gpu::convert<T>(dhn);
}

// Cell updates.

// A thread's V elements of an update; gate g of theirs is g * inner after `gates`.
struct UpdateSpot {
  int64_t gates, state;
};

template <int V, int G>
__device__ __forceinline__ bool find_spot(const CellUpdate& call, UpdateSpot& spot) {
  spot.state = (static_cast<int64_t>(blockIdx.x) * kStepThreads + threadIdx.x) * V;
  if (spot.state >= call.outer * call.inner) return false;
  int64_t group;
  if (((spot.state | call.inner) >> 31) == 0) {  // the 64-bit division is many times slower
    group = static_cast<uint32_t>(spot.state) / static_cast<uint32_t>(call.inner);
  } else {
    group = spot.state / call.inner;
  }
  spot.gates = spot.state + group * (G - 1) * call.inner;
  return true;
}

template <class T, int V>
__device__ __forceinline__ void read(const void* data, int64_t at, Accumulator<T> (&values)[V]) {
  unpack<T, V>(load<T, V>(static_cast<const T*>(data) + at), values);
}
template <class T, int V>
__device__ __forceinline__ void write(void* data, int64_t at, const Accumulator<T> (&values)[V]) {
  store<T, V>(static_cast<T*>(data) + at, pack<T, V>(values));
}

// A thread's part of an update: what it loads, and the step of each element.
template <class T, int V, Cell C>
struct Update {
  using Acc = Accumulator<T>;
  static constexpr int G = kGates<C>, S = kSaved<C>;
  Acc x[G][V], h[G][V], state[V];

  __device__ __forceinline__ void load(const CellUpdate& call, const UpdateSpot& spot) {
#pragma unroll
    for (int g = 0; g < G; ++g) {
      read<T, V>(call.gates, spot.gates + g * call.inner, x[g]);
      if (C == Cell::gru) read<T, V>(call.gates_h, spot.gates + g * call.inner, h[g]);
    }
    read<T, V>(call.state, spot.state, state);
  }
  __device__ __forceinline__ Acc step(int j, Acc& kept, Acc (&saved)[S]) const {
    Acc x_of[G], h_of[G];
#pragma unroll
    for (int g = 0; g < G; ++g) {
      x_of[g] = x[g][j];
      h_of[g] = C == Cell::gru ? h[g][j] : Acc(0);
    }
    kept = state[j];
    return advance<C>(x_of, h_of, kept, saved);
  }
};

// Procedure overview: each thread takes V neighbouring elements from their gates to the new state.
template <class T, int V, Cell C>
__global__ void __launch_bounds__(kStepThreads, 2) update_forward(const __grid_constant__ CellUpdate call) {
  using Acc = Accumulator<T>;
  UpdateSpot spot;
  if (!find_spot<V, kGates<C>>(call, spot)) return;
  Update<T, V, C> update;
  update.load(call, spot);
  Acc new_h[V], new_c[V];
#pragma unroll
  for (int j = 0; j < V; ++j) {
    Acc saved[kSaved<C>];
    new_h[j] = update.step(j, new_c[j], saved);
  }
  write<T, V>(call.h, spot.state, new_h);
  if (C == Cell::lstm) write<T, V>(call.c, spot.state, new_c);
}

// Procedure overview: each thread takes V neighbouring elements from their gates to the new state again, and from its
// gradients to those at the gates and the state.
template <class T, int V, Cell C>
__global__ void __launch_bounds__(kStepThreads, 2) update_backward(const __grid_constant__ CellUpdate call) {
  using Acc = Accumulator<T>;
  constexpr int G = kGates<C>;
  UpdateSpot spot;
  if (!find_spot<V, G>(call, spot)) return;
  Update<T, V, C> update;
  update.load(call, spot);
  Acc grad_h[V], grad_c[V], d[G][V], dhn[V];
#pragma unroll
  for (int j = 0; j < V; ++j) grad_h[j] = grad_c[j] = 0;
  if (call.grad_h) read<T, V>(call.grad_h, spot.state, grad_h);
  if (C == Cell::lstm && call.grad_c) read<T, V>(call.grad_c, spot.state, grad_c);
#pragma unroll
  for (int j = 0; j < V; ++j) {
    Acc saved[kSaved<C>], d_of[G], kept, before = update.state[j];
    update.step(j, kept, saved);
    if constexpr (C == Cell::lstm) {
      if (!call.grad_h) saved[3] = saved[4] = 0;  // else zero times what is not finite
    }
    dhn[j] = 0;
    const Acc rest = retreat<C>(saved, before, grad_h[j], grad_c[j], d_of, dhn[j]);
    if (C == Cell::gru) grad_h[j] = rest;
#pragma unroll
    for (int g = 0; g < G; ++g) d[g][j] = d_of[g];
  }
#pragma unroll
  for (int g = 0; g < G; ++g) {
    write<T, V>(call.grad_gates, spot.gates + g * call.inner, d[g]);
    if (C == Cell::gru) write<T, V>(call.grad_gates_h, spot.gates + g * call.inner, g == 2 ? dhn : d[g]);
  }
  write<T, V>(call.grad_state, spot.state, C == Cell::gru ? grad_h : grad_c);
}

}  // namespace genimg_fast::cuda
