#pragma once
// What the kernels of image_conv_act are given, and how it lies in memory; see image_conv_act.cpp for strips and units.
#include <algorithm>
#include <cstdint>
#include <memory>
#include <vector>

#include "../image_conv_act.h"
#include "common.h"

namespace genimg_fast {
namespace {

constexpr int64_t line_floats = 16;               // of a cache line; vectors of every level divide it
constexpr int64_t thread_products = 1 << 18;      // a thread is not worth waking for fewer multiplications
constexpr int64_t strip_floats = (24 << 10) / 4;  // of a strip that is to stay in the L1 cache
constexpr int64_t chain = 64;                     // additions in a row, whose error grows with its length
constexpr int64_t block_positions = 128;          // of features, two vectors of which are read again from the L1 cache
constexpr int64_t most_in_place =
    128;  // channels of features: lines further apart would drive each other from the cache
constexpr int64_t streaming_bytes = int64_t(16) << 20;  // of an output that goes past the caches
constexpr int64_t part_positions = 512;                 // a part's sums are not worth adding to the others' for fewer
constexpr int64_t max_parts = 32;                       // of the weight's gradient

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// Element (n, c, y, x) of a dense tensor lies at n * sample + c * channel + y * row + x * column.
struct Strides {
  int64_t sample, channel, row, column;

  Strides(int64_t channels, int64_t rows, int64_t columns, MemoryFormat format)
      : sample(channels * rows * columns),
        channel(format == MemoryFormat::Contiguous ? rows * columns : 1),
        row(format == MemoryFormat::Contiguous ? columns : columns * channels),
        column(format == MemoryFormat::Contiguous ? 1 : channels) {}
  bool channels_last() const { return channel == 1 && column > 1; }
};

// Zeros, aligned to cache lines.
class Buffer {
 public:
  explicit Buffer(int64_t floats)
      : memory_(new float[floats + line_floats]()),
        data_(reinterpret_cast<float*>((reinterpret_cast<uintptr_t>(memory_.get()) + 63) / 64 * 64)) {}
  float* get() const { return data_; }

 private:
  std::unique_ptr<float[]> memory_;
  float* data_;
};

// How a strip holds rows of the image, padded with zeros.
enum class Strip {
  phases,  // [channel][row][phase of the stride][i], for lanes that are neighbouring positions
  planes,  // [channel][row][column]
  pixels,  // [row][column][channel]
  pairs,   // [row][column][channel], whose values are taken two by two
};

// Blocks of rows of the features with the image around them: image_conv_from and image_conv_weight.
struct FeatureBlocks {
  ConvShape shape;
  Strip form;
  int64_t rows;                  // of features in a block; the last one of a sample may have fewer
  int64_t blocks;                // of a sample
  int64_t image_rows;            // of the strip
  int64_t pitch;                 // of what is innermost in the strip
  int64_t step, row_step;        // in the strip, from one position or row of features to the next
  std::vector<int64_t> offsets;  // in the strip, of tap (channel, ky, kx), or pair (ky, i), for features' position 0

  FeatureBlocks(const ConvShape& s, Strip f) : shape(s), form(f) {
    const int64_t stride = s.x.stride, width = (s.x.features - 1) * stride + s.x.kernel;
    const int64_t values = f == Strip::pairs ? 2 : 1;  // of a factor
    pitch = f == Strip::phases   ? round_up(s.x.features, line_floats) + (s.x.kernel - 1) / stride
            : f == Strip::planes ? width
                                 : ceil_div(width * s.image_channels, values);
    pitch = round_up(pitch, line_floats);
    step = f == Strip::phases ? 1 : f == Strip::planes ? stride : stride * s.image_channels / values;
    row_step = s.y.stride * pitch * (f == Strip::phases ? stride : 1);
    // Four vectors of a line are taken together.
    const int64_t per_row = ceil_div(s.x.features, line_floats);
    const int64_t more = per_row % 4 == 0 ? 1 : per_row % 2 == 0 ? 2 : 4;
    rows = std::min(more, s.y.features);
    while (rows + more <= s.y.features && (rows + more) * s.x.features <= block_positions &&
           strip_size(rows + more) <= strip_floats)
      rows += more;
    blocks = ceil_div(s.y.features, rows);
    image_rows = image_rows_of(rows);
    if (f == Strip::pairs) {
      for (int64_t ky = 0; ky < s.y.kernel; ++ky)
        for (int64_t i = 0; i < s.x.kernel * s.image_channels / 2; ++i) offsets.push_back(ky * pitch + i);
      return;
    }
    for (int64_t c = 0; c < s.image_channels; ++c)
      for (int64_t ky = 0; ky < s.y.kernel; ++ky)
        for (int64_t kx = 0; kx < s.x.kernel; ++kx) {
          const int64_t row = c * image_rows + ky;
          offsets.push_back(f == Strip::phases   ? (row * stride + kx % stride) * pitch + kx / stride
                            : f == Strip::planes ? row * pitch + kx
                                                 : ky * pitch + kx * s.image_channels + c);
        }
  }
  int64_t units() const { return shape.samples * blocks; }
  int64_t strip_size() const { return strip_size(rows); }

 private:
  int64_t image_rows_of(int64_t features) const { return (features - 1) * shape.y.stride + shape.y.kernel; }
  int64_t strip_size(int64_t features) const {
    return image_rows_of(features) * pitch *
           (form == Strip::pixels || form == Strip::pairs ? 1 : shape.image_channels) *
           (form == Strip::phases ? shape.x.stride : 1);
  }
};

// Pixels of the image that are `phase` modulo the stride, along one axis: pixel stride * i + phase is the sum over
// j < taps of the product of kernel position first + j * stride with feature i + shift - j.
struct Phase {
  int64_t first, shift, taps;

  Phase(const ConvAxis& a, int64_t phase)
      : first((phase + a.padding) % a.stride),
        shift((phase + a.padding) / a.stride),
        taps(first < a.kernel ? (a.kernel - first - 1) / a.stride + 1 : 0) {}
};

// Tiles of the image, of whole periods of its phases, with the features around them: image_conv_to.
struct ImageTiles {
  ConvShape shape;
  int64_t rows, columns;         // periods of a tile
  int64_t vertical, horizontal;  // tiles of a sample
  int64_t feature_rows, pitch;   // of the strip: [channel][row][pitch]
  int64_t used;                  // of the pitch
  int64_t before_y, before_x;    // features in front of the one whose index is that of the tile's first period
  int64_t channels;              // of features in a strip
  int64_t chained;               // of these, in a chain of sums

  struct PhasePair {
    Phase y, x;
    std::vector<int64_t> offsets;  // in the strip, of tap (channel, i, j), for the tile's first period
    int64_t weights;               // where this pair's packed weights begin
  };
  std::vector<PhasePair> phases;  // [phase of rows][phase of columns]

  explicit ImageTiles(const ConvShape& s) : shape(s) {
    const int64_t periods_y = ceil_div(s.y.image, s.y.stride), periods_x = ceil_div(s.x.image, s.x.stride);
    columns = std::min<int64_t>(64, round_up(periods_x, line_floats));
    rows = std::min(periods_y, std::max<int64_t>(4, ceil_div(128, columns)));
    vertical = ceil_div(periods_y, rows);
    horizontal = ceil_div(periods_x, columns);
    const auto reach = [](const ConvAxis& a) { return (a.kernel - 1) / a.stride; };
    const auto shift = [](const ConvAxis& a, int64_t phase) { return (phase + a.padding) / a.stride; };
    before_y = reach(s.y) - shift(s.y, 0);
    before_x = round_up(reach(s.x) - shift(s.x, 0), line_floats);  // so that rows are copied to whole lines
    feature_rows = rows + before_y + shift(s.y, s.y.stride - 1);
    used = columns + before_x + shift(s.x, s.x.stride - 1);
    pitch = round_up(used, line_floats);
    channels = std::min(s.channels, line_floats);
    const int64_t taps = (reach(s.y) + 1) * (reach(s.x) + 1);
    chained = std::max<int64_t>(1, std::min({channels, chain / taps, strip_floats / (feature_rows * pitch)}));
    int64_t weights = 0;
    for (int64_t ey = 0; ey < s.y.stride; ++ey)
      for (int64_t ex = 0; ex < s.x.stride; ++ex) {
        PhasePair p{Phase(s.y, ey), Phase(s.x, ex), {}, weights};
        for (int64_t c = 0; c < chained; ++c)
          for (int64_t i = 0; i < p.y.taps; ++i)
            for (int64_t j = 0; j < p.x.taps; ++j)
              p.offsets.push_back((c * feature_rows + before_y + p.y.shift - i) * pitch + before_x + p.x.shift - j);
        weights += s.channels * p.y.taps * p.x.taps * s.image_channels;
        phases.push_back(std::move(p));
      }
  }
  int64_t units() const { return shape.samples * vertical * horizontal; }
  int64_t strip_size() const { return channels * feature_rows * pitch; }
  int64_t plane() const { return rows * shape.image_channels * columns; }  // of sums, of a pair of phases
};

// What becomes of a sum before it is stored.
struct Epilogue {
  const float* bias;  // of each output channel, padded with zeros to whole lines
  Activation activation;
  float slope;
  bool streams;  // past the caches: every run that is written begins and ends with a cache line
};

// Factors of products are floats, or, with Pairs, pairs of bfloat16, as long as a float, both products of which are
// added to the sum.
template <class T, bool Pairs>
struct FromJob {
  const FeatureBlocks& blocks;
  const T* image;
  Strides image_strides;
  const float* weight;  // [tap][weight_stride]
  int64_t weight_stride;
  Epilogue epilogue;
  T* features;
  Strides feature_strides;
  bool columns;  // channels are innermost in the features
};

template <class T, bool Pairs>
struct ToJob {
  const ImageTiles& tiles;
  const std::conditional_t<Pairs, float, T>* features;  // pairs: of channels
  Strides feature_strides;
  const float* weight;  // of each pair of phases: [channel][i][j][image channel]
  Epilogue epilogue;
  T* image;
  Strides image_strides;
};

template <class T, bool Pairs>
struct WeightJob {
  const FeatureBlocks& blocks;  // with pairs, a sample is a pair of samples
  int64_t samples;
  const T* image;
  Strides image_strides;
  const T* features;
  Strides feature_strides;
  int64_t sum_stride;  // channels, padded to whole lines
};

}  // namespace
}  // namespace genimg_fast
