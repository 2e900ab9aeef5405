#pragma once
// The views of group_norm_act's data, and what its kernels are given; see group_norm_act.cpp.
#include <algorithm>
#include <cmath>
#include <memory>
#include <utility>

#include "../group_norm_act.h"
#include "common.h"
#include "output_memory.h"

namespace genimg_fast {
namespace {

constexpr int max_block = 256;                    // columns that are summed up together
constexpr int64_t tile_rows = 32;                 // tile of max_block columns: 32 KiB of floats
constexpr int64_t tile_elements = 2048;           // tile of consecutive elements
constexpr int64_t segment_elements = 32768;       // smaller groups and samples are not divided
constexpr int64_t padding = 16;                   // per-column arrays may be read by whole vectors
constexpr int64_t thread_elements = 16384;        // a thread is not worth waking for less
constexpr int64_t kept_bytes = int64_t(2) << 20;  // of a unit's g' between backward's passes
constexpr int64_t prefetched_bytes = 2048;        // ahead of what backward's first pass reads

struct Plan {
  int64_t samples, channels, inner, groups;  // inner: elements of a plane
  int64_t per_group;                         // channels
  bool columns;
  // Planes view: a plane consists of `pieces` pieces of `piece` elements, the last one may be shorter.
  int64_t piece, pieces;
  // Columns view: a sample consists of `rows` rows of `width` = fold * channels elements, then `rest` elements.
  int64_t fold, width, rows, rest;
  int64_t length;             // pieces of a group, or rows of a sample with the shorter one
  int64_t segment, segments;  // pieces or rows of an item of work, items of a group or sample
  int64_t units;              // groups or samples: what is normalised together

  Plan(const Geometry& shape, int64_t samples_, int64_t groups_)
      : samples(samples_),
        channels(shape.channels),
        inner(shape.numel() / (samples * channels)),
        groups(groups_),
        per_group(channels / groups),
        columns(shape.inner == 1) {
    if (columns) {
      fold = 1;
      if (channels < max_block) {
        int64_t vectors = 1;  // periods until the channels begin at a vector again
        while (vectors * channels % padding != 0) vectors *= 2;
        fold = std::min(inner, vectors * ((max_block + vectors * channels - 1) / (vectors * channels)));
      }
      width = fold * channels;
      rows = inner / fold;
      rest = inner % fold * channels;
      length = rows + (rest > 0);
      piece = pieces = 0;
      const int64_t wanted = std::max(segment_elements, channels * inner / 32);
      segment = std::max<int64_t>(2, wanted / (width * tile_rows)) * tile_rows;
    } else {
      fold = width = rows = rest = 0;
      pieces = (inner + segment_elements - 1) / segment_elements;
      piece = ((inner + pieces - 1) / pieces + 63) / 64 * 64;
      length = per_group * pieces;
      segment = std::max<int64_t>(1, segment_elements / std::min(piece, inner));
    }
    segments = (length + segment - 1) / segment;
    units = columns ? samples : samples * groups;
  }

  int64_t numel() const { return samples * channels * inner; }
  int64_t per_unit() const { return numel() / units; }
  int64_t start(int64_t unit) const { return unit * per_unit(); }  // of its elements
  int64_t partial_size() const { return columns ? width : 1; }
  double per_statistic() const { return double(per_group) * double(inner); }
  // Planes view: where piece k of a group begins, from the group's first element; also for k = length.
  int64_t piece_start(int64_t k) const { return k / pieces * inner + std::min(inner, k % pieces * piece); }
  int64_t piece_size(int64_t k) const { return std::min(piece, inner - k % pieces * piece); }
  // Columns view: elements of column j in a segment.
  int64_t count(int64_t s, int64_t j) const {
    const int64_t first = s * segment, last = std::min(first + segment, length);
    return std::min(last, rows) - first + (last > rows && j < rest);
  }
};

// Whether to write an output past the caches, in a pass over so many tensors.  Needs every run that is written to begin
// at a cache line and to end with one.
template <class T>
bool streams(const Plan& plan, const T* output, int tensors) {
  constexpr int64_t line = 64 / sizeof(T);
  const int64_t run = plan.columns ? plan.channels : plan.inner;
  const int64_t bytes = plan.numel() * int64_t(sizeof(T));
  return output == nullptr ||
         (goes_past_caches(bytes, tensors * bytes) && run % line == 0 && reinterpret_cast<uintptr_t>(output) % 64 == 0);
}

// The data, and what is done to it wherever it lies.
template <class T>
struct Data {
  const T* x;
  const T* residual;  // or null
  const T* g;         // gradient of the output
  T* y;               // output, or gradient of the input (or null)
  T* dr;              // gradient of the residual, or null
  Acc<T> slope;       // of the negative side; 1 for the identity
  bool streaming;     // outputs go past the caches

  // The same of the elements from i on.
  Data from(int64_t i) const {
    const auto at = [i](auto* p) { return p ? p + i : p; };
    return {at(x), at(residual), at(g), at(y), at(dr), slope, streaming};
  }
};

template <class T>
struct Job {
  using A = Acc<T>;
  const Plan& plan;
  Data<T> data;
  Activation activation;
  // Parameters: per channel, or per sample and channel; null without.
  const A *weight, *bias, *scale, *shift;
  double eps;
  // Per sample and group.
  A *mean, *invstd;
  A *constant, *by_centred;  // see backward_step
  // Sums of every channel of every sample: of g', and of g' * (x - mean) * invstd.  In the planes view one per piece
  // until the group is finished, then the channel's is in the place of its first.
  double *sums, *dots;

  int64_t channel_stride() const { return plan.columns ? 1 : plan.pieces; }
};

// What backward computes of the parameters, shaped like these.
template <class A>
struct ParameterGradients {
  A *weight, *bias, *scale, *shift;
};

// Columns view: the parameters of every column of a sample.
template <class A>
struct Columns {
  A *mean, *scale, *bias;
  A *constant, *by_centred;  // backward's
};

// What a thread needs besides: arrays aligned to cache lines.
template <class T>
class Scratch {
 public:
  using A = Acc<T>;

  double* partial[2];  // sums of every segment of a unit, in the columns view one per column
  double* row[2];      // columns view: one value per column
  Columns<A> columns;
  A* kept;  // g' of a unit's elements, or null

  // `partials`: how many segments to hold at a time; `elements`: how many gradients.
  Scratch(const Plan& plan, int64_t partials, int64_t elements = 0) {
    const int64_t size = round_up(partials * plan.partial_size()), width = round_up(plan.width + padding);
    memory_.reset(new char[2 * (size + width) * sizeof(double) + (5 * width + elements) * sizeof(A) + 64]);
    double* p = reinterpret_cast<double*>(round_up(reinterpret_cast<uintptr_t>(memory_.get())));
    for (int k = 0; k < 2; ++k, p += size) partial[k] = p;
    for (int k = 0; k < 2; ++k, p += width) row[k] = p;
    A* column = reinterpret_cast<A*>(p);
    for (A** target : {&columns.mean, &columns.scale, &columns.bias, &columns.constant, &columns.by_centred}) {
      *target = column;
      std::fill(column + plan.width, column + width, A(0));
      column += width;
    }
    kept = elements > 0 ? column : nullptr;
  }

 private:
  template <class I>
  static I round_up(I n) {
    return (n + 63) / 64 * 64;
  }
  std::unique_ptr<char[]> memory_;
};

}  // namespace
}  // namespace genimg_fast
