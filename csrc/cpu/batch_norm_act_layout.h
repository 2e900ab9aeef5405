#pragma once
// The views of batch_norm_act's data, and what its kernels are given; see batch_norm_act.cpp.
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <utility>

#include "../batch_norm_act.h"
#include "common.h"
#include "output_memory.h"

namespace genimg_fast {
namespace {

constexpr int max_block = 256;              // columns of a group, at most
constexpr int64_t tile_rows = 32;           // tile of max_block columns: 32 KiB of floats
constexpr int64_t tile_elements = 2048;     // tile of a channel's pieces
constexpr int64_t plane_elements = 128;     // smaller planes are seen as columns
constexpr int64_t padding = 16;             // per-column arrays may be read by whole vectors
constexpr int64_t thread_elements = 16384;  // a thread is not worth waking for less

struct Plan {
  Geometry shape;
  bool columns;
  int64_t width, fold, repeat;  // columns; width = fold * channels * repeat
  int64_t rows, rest;           // columns view: whole rows, and the elements of the shorter one after them
  int64_t piece, pieces;        // planes view: elements of a piece, pieces of a plane
  int64_t length;               // rows or pieces
  int64_t tile, segment;        // rows or pieces
  int64_t block, groups, segments;
  bool whole_channels;  // a group consists of whole channels, and no channel is in two groups

  explicit Plan(const Geometry& s) : shape(s), columns(s.inner < plane_elements) {
    if (columns) {
      const int64_t period = s.channels * s.inner;
      fold = 1;
      if (period < max_block) {
        int64_t vectors = 1;  // periods until the channels begin at a vector again
        while (vectors * period % padding != 0) vectors *= 2;
        fold = std::min(s.outer, vectors * ((max_block + vectors * period - 1) / (vectors * period)));
      }
      repeat = s.inner;
      width = fold * period;
      rows = s.numel() / width;
      rest = s.numel() % width;
      piece = pieces = 0;
      length = rows + (rest > 0);
      tile = tile_rows;
      whole_channels = fold == 1;
      block = whole_channels ? max_block / repeat * repeat : max_block;
    } else {
      fold = repeat = 1;
      width = s.channels;
      rows = rest = 0;
      pieces = (s.inner + tile_elements - 1) / tile_elements;
      piece = ((s.inner + pieces - 1) / pieces + 63) / 64 * 64;
      length = s.outer * pieces;
      tile = pieces > 1 ? 1 : tile_elements / s.inner;
      whole_channels = true;
      block = 1;
    }
    groups = (width + block - 1) / block;
    const int64_t row_elements = columns ? block : std::min(piece, s.inner);
    const int64_t wanted = std::min<int64_t>(s.numel() / 64, 1 << 18);
    segment = std::max<int64_t>(2, wanted / (row_elements * tile)) * tile;
    segments = (length + segment - 1) / segment;
  }

  int64_t piece_start(int64_t channel, int64_t k) const {
    return (k / pieces * shape.channels + channel) * shape.inner + k % pieces * piece;
  }
  int64_t piece_size(int64_t k) const { return std::min(piece, shape.inner - k % pieces * piece); }
  int64_t elements_before(int64_t k) const {
    return k / pieces * shape.inner + std::min(shape.inner, k % pieces * piece);
  }
  // Elements of column j in a segment.
  int64_t count(int64_t s, int64_t j) const {
    const int64_t first = s * segment, last = std::min(first + segment, length);
    if (!columns) return elements_before(last) - elements_before(first);
    return std::min(last, rows) - first + (last > rows && j < rest);
  }
};

// Whether to write an output past the caches, in a pass over so many tensors.  Needs every run of a group to begin at a
// cache line and to end with one.
template <class T>
bool streams(const Plan& plan, const T* output, int tensors) {
  constexpr int64_t line = 64 / sizeof(T);
  const int64_t run = plan.columns ? plan.width : plan.shape.inner, block = plan.columns ? plan.block : line;
  const int64_t bytes = plan.shape.numel() * int64_t(sizeof(T));
  return output == nullptr || (goes_past_caches(bytes, tensors * bytes) && run % line == 0 && block % line == 0 &&
                               reinterpret_cast<uintptr_t>(output) % 64 == 0);
}

template <class T>
struct Job {
  using A = Acc<T>;
  const Plan& plan;
  const T* x;
  const T* residual;  // or null
  const T* g;         // gradient of the output
  T* y;               // output, or gradient of the input (or null)
  T* dr;              // gradient of the residual, or null
  Activation activation;
  bool streaming;                                // outputs go past the caches
  A slope;                                       // of a piecewise linear activation's negative side
  bool training;                                 // mean and scale depend on x
  double* partial[2];                            // [segment][column]
  A *mean, *scale, *bias;                        // per column
  A *by_centred = nullptr, *constant = nullptr;  // per column: see backward_step
};

// Whether to read ahead of the sums.
template <class T>
bool reads_ahead(const Job<T>& job) {
  return job.plan.shape.numel() * int64_t(sizeof(T)) > read_ahead_bytes;
}

// What training computes of some channels, and from what: one value per channel each.
template <class A>
struct Statistics {
  const A *weight, *bias;         // or null
  A *mean, *invstd;               // results
  A *running_mean, *running_var;  // updated, or null
  double momentum, eps;
};

// What backward computes of some channels.
template <class A>
struct Gradients {
  const A* invstd;
  A *weight, *bias;  // results
};

// A parameter or running statistic: null, or of the type of arithmetic, or of the data's own type.
template <class T>
class PerChannel {
 public:
  using A = Acc<T>;

  explicit PerChannel(const OptionalTensor& t, bool written = false)
      : p_(!t        ? nullptr
           : written ? t->mutable_data_ptr()
                     : const_cast<void*>(t->const_data_ptr())),
        own_(t && t->scalar_type() != type_of_arithmetic) {}

  // The values of some channels, at most max_block: where they are, or converted into `buffer`.
  A* read(int64_t first, int channels, A* buffer) const {
    if (!own_) return p_ ? static_cast<A*>(p_) + first : nullptr;
    for (int c = 0; c < channels; ++c) buffer[c] = A(static_cast<const T*>(p_)[first + c]);
    return buffer;
  }
  // Puts back what read() returned and the caller changed.
  void write(int64_t first, int channels, const A* values) const {
    if (!own_) return;
    for (int c = 0; c < channels; ++c) static_cast<T*>(p_)[first + c] = T(values[c]);
  }

 private:
  static constexpr ScalarType type_of_arithmetic =
      std::is_same<A, double>::value ? ScalarType::Double : ScalarType::Float;
  void* p_;
  bool own_;
};

}  // namespace
}  // namespace genimg_fast
