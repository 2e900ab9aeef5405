#pragma once
// How a convolution is cut into tiles, and where a tile's products lie.
#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

namespace genimg_fast {
namespace {

// Polynomials of filter and input are multiplied through their values at 0, 1, -1 and infinity, along either axis.
constexpr int points = 4;
constexpr int pairs = points * points;

// Outputs of a tile along one axis, from as many products: F(3,2) at all points, F(2,2) without 0, F(2,3) at all.
struct Piece {
  int64_t start;
  int outputs;
};

struct Axis {
  std::vector<Piece> pieces;
  std::array<int64_t, points> count{};              // of the pieces that have a product at this point
  std::vector<std::array<int64_t, points>> rank{};  // of a piece among these

  Axis(int taps, int64_t outputs) {
    for (int64_t start = 0; start < outputs; start += pieces.back().outputs) {
      const int64_t left = outputs - start;
      pieces.push_back({start, taps == 3 || left == 2 || left == 4 ? 2 : 3});
    }
    for (const Piece& piece : pieces) {
      rank.push_back(count);
      for (int p = first_point(taps, piece.outputs); p < points; ++p) ++count[p];
    }
  }

  static int first_point(int taps, int outputs) { return taps == 2 && outputs == 2 ? 1 : 0; }
};

// A convolution as one of stride 1 with `taps` taps a side, over the channels of all phases of its input, for each
// phase of its output: a 4 x 4 kernel with stride 2 has two phases a side in the input, its transpose in the output.
// Along an axis, tap i of input phase p and output phase q is `tap`, and reads row in_phases * (output + i) + p + q
// - 1.
struct Shape {
  int taps, in_phases, out_phases;
  bool transposed;  // whether the weight's first dimension is the input's channels, and its taps run backwards
  int64_t batch, in_channels, out_channels;
  Axis y, x;
  int64_t in_height, in_width, out_height, out_width;
  int64_t in_pitch;                   // channels of a pixel of the input in memory
  int64_t depth;                      // channels of all phases of the input
  std::array<int64_t, pairs> slot{};  // of a pair of points among those that are used
  int64_t slots = 0;

  Shape(int kernel, bool transposed, int64_t batch, int64_t in_channels, int64_t out_channels, int64_t height,
        int64_t width)  // of an output's phase
      : taps(kernel == 4 ? 2 : 3),
        in_phases(kernel == 4 && !transposed ? 2 : 1),
        out_phases(kernel == 4 && transposed ? 2 : 1),
        transposed(transposed),
        batch(batch),
        in_channels(in_channels),
        out_channels(out_channels),
        y(taps, height),
        x(taps, width),
        in_height(height * in_phases),
        in_width(width * in_phases),
        out_height(height * out_phases),
        out_width(width * out_phases),
        in_pitch(in_channels),
        depth(in_phases * in_phases * in_channels) {
    for (int e = 0; e < pairs; ++e) slot[e] = y.count[e / points] > 0 && x.count[e % points] > 0 ? slots++ : -1;
  }

  int kernel() const { return taps == 2 ? 4 : 3; }
  int tap(int i, int in_phase, int out_phase) const {
    const int stride = in_phases * out_phases;
    return transposed ? kernel() - 1 - out_phase - stride * i : stride * i + in_phase;
  }
  // The same for some of the input's channels, which do not lie together.
  Shape part(int64_t channels) const {
    Shape part = *this;
    part.in_channels = channels;
    part.depth = in_phases * in_phases * channels;
    return part;
  }
  int64_t tile_rows() const { return batch * y.pieces.size(); }
  // Values between rows of transformed input: not a power of two, which would put them into the same sets of a cache.
  int64_t row_stride() const { return depth + 16; }
};

// Some rows of tiles, and the rows of their products' left factors, pair of points by pair of points.
struct Group {
  int64_t first, rows;
  std::vector<std::array<int64_t, points>> rank;
  std::array<int64_t, points> count{};
  std::array<int64_t, pairs> offset{}, size{};
  int64_t total = 0;

  Group(const Shape& shape, int64_t first, int64_t rows) : first(first), rows(rows) {
    const int64_t per_image = shape.y.pieces.size();
    for (int64_t row = first; row < first + rows; ++row) {
      rank.push_back(count);
      const int outputs = shape.y.pieces[row % per_image].outputs;
      for (int p = Axis::first_point(shape.taps, outputs); p < points; ++p) ++count[p];
    }
    for (int e = 0; e < pairs; ++e) {
      offset[e] = total;
      size[e] = count[e / points] * shape.x.count[e % points];
      total += size[e];
    }
  }

  // Of a tile, among the products of its pair of points.
  int64_t index(const Shape& shape, int e, int64_t row, int64_t column) const {
    return rank[row - first][e / points] * shape.x.count[e % points] + shape.x.rank[column][e % points];
  }
};

}  // namespace
}  // namespace genimg_fast
