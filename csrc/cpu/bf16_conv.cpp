// Convolutions in bfloat16 between images and features of many channels, on CPUs that multiply pairs of bfloat16
// (AVX-512 BF16).
//
// Procedure overview.  The instruction adds the products of two pairs of values to a sum.  All passes are sums of
// outer products of pairs: a panel of up to 64 channels in vectors, by a block of five or six rows, all of whose sums
// are in registers.  A thread follows runs, in which panel and block go on in steps; what lies in the padding is in no
// run, so that there are fewer products than PyTorch counts.
//
// Convolution, to the features or, transposed, to the image:
// 1. Weights are rounded and packed in panels of output channels, a pair of input channels after the other; inputs in
//    blocks of five or six samples, so that rows of a block are at the same pixel and meet the same taps.
// 2. For a pixel of the output, a run is a tap that meets the input there, over all pairs of input channels.
//
// Gradient of the weight, summed over pixels.  A pair is one pixel of two samples, so that a tap meets whole pairs
// whatever its stride and padding are, and nothing has to be transposed:
// 1. Some pairs of samples are packed: channels of the image in panels, those of the features in blocks.  A sample
//    without a partner has zeros for one.
// 2. A thread takes a tap, a panel and some blocks.  A run is a row of the features that the tap meets.
//
// Sums are float32, and have the same order whatever the number of threads.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <vector>

#include "../image_conv_act.h"
#include "common.h"
#include "output_memory.h"
#include "simd.h"

namespace genimg_fast {
namespace {

constexpr int64_t channel_block = 32;  // numbers of channels are multiples of it
constexpr int64_t panel_channels = 64;
constexpr int64_t block_rows = 6;       // or one less, so that blocks are full
constexpr int64_t part_blocks = 12;     // blocks that a task takes, at most
constexpr int64_t group_pixels = 512;   // of the features, packed at a time for the gradient of the weight
constexpr int64_t longest_chain = 512;  // pairs of pixels summed up before they join the rest; a panel's stay in L2

// Rows in blocks.
class Blocks {
 public:
  explicit Blocks(int64_t rows) {
    const int64_t count = std::max<int64_t>(1, (rows + block_rows - 1) / block_rows);
    for (int64_t block = 0; block <= count; ++block) starts_.push_back(block * rows / count);
  }
  int64_t count() const { return starts_.size() - 1; }
  int64_t start(int64_t block) const { return starts_[block]; }
  int64_t size(int64_t block) const { return start(block + 1) - start(block); }
  bool are_full() const { return starts_.back() / count() >= block_rows - 1; }

 private:
  std::vector<int64_t> starts_;
};

struct Shape : ConvShape {
  int64_t taps() const { return y.kernel * x.kernel; }
};

#if defined(__x86_64__) && defined(__GNUC__)
#define BF16_PRODUCTS __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")))

// Channels in panels.
struct Panels {
  int64_t channels;
  int64_t count() const { return (channels + panel_channels - 1) / panel_channels; }
  int64_t start(int64_t panel) const { return panel * panel_channels; }
  int64_t width(int64_t panel) const { return std::min(panel_channels, channels - start(panel)); }
};

// `count` steps, from pair `panel` of a packed panel and pair `block` of a block.
struct Run {
  int32_t panel, block, count;
};

// Where a tap meets the image: positions [first, first + count) of the features, from `start` of the image on.
struct Reach {
  int64_t first, count, start;
  Reach(const ConvAxis& a, int64_t tap) {
    const int64_t before = a.padding - tap;  // pixels of padding that the tap meets before the first one
    first = std::min(a.features, before > 0 ? (before + a.stride - 1) / a.stride : 0);
    const int64_t end = a.image + before <= 0 ? 0 : std::min(a.features, (a.image + before - 1) / a.stride + 1);
    count = std::max<int64_t>(0, end - first);
    start = first * a.stride - before;
  }
};

// What a tap meets in the input at position i of the output, or less than 0.
int64_t met(const ConvAxis& a, int64_t i, int64_t tap, bool to_image) {
  const int64_t at = to_image ? i + a.padding - tap : i * a.stride - a.padding + tap;
  if (!to_image) return at < a.image ? at : -1;
  return at >= 0 && at % a.stride == 0 && at / a.stride < a.features ? at / a.stride : -1;
}

// The same of all positions and taps.
std::vector<int32_t> all_met(const ConvAxis& a, bool to_image) {
  std::vector<int32_t> all;
  for (int64_t i = 0; i < (to_image ? a.image : a.features); ++i)
    for (int64_t tap = 0; tap < a.kernel; ++tap) all.push_back(static_cast<int32_t>(met(a, i, tap, to_image)));
  return all;
}

// Calls f on [0, n), on all threads.
template <class F>
void parallel_each(int64_t n, const F& f) {
  torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

// 32 values, rounded if they are not yet.
BF16_PRODUCTS inline __m512i load(const BFloat16* p) { return _mm512_loadu_si512(p); }
BF16_PRODUCTS inline __m512i load(const float* p) {
  return (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(p + 16), _mm512_loadu_ps(p));
}

// Values of a and b in turns, or zeros for those of b.
template <class E>
BF16_PRODUCTS void make_pairs(const E* a, const E* b, int64_t n, uint32_t* to) {
  alignas(64) uint16_t order[64];
  for (int i = 0; i < 64; ++i) order[i] = static_cast<uint16_t>(i / 2 + i % 2 * 32);
  const __m512i lower = _mm512_load_si512(order), upper = _mm512_load_si512(order + 32);
  for (int64_t i = 0; i < n; i += 32) {
    const __m512i u = load(a + i), v = b == nullptr ? __m512i{} : load(b + i);
    _mm512_storeu_si512(to + i, _mm512_permutex2var_epi16(u, lower, v));
    _mm512_storeu_si512(to + i + 16, _mm512_permutex2var_epi16(u, upper, v));
  }
}

// to[k][row] = pair rows[row][k] of 16 x 16 pairs.  Zero-masked intrinsics, as in vec.h.
template <class E>
BF16_PRODUCTS __attribute__((noinline)) void transpose(const E* const* rows, uint32_t* to, int64_t to_stride) {
  constexpr __mmask16 all = 0xffff;
  constexpr __mmask8 both = 0xff;
  __m512i r[16], t[16];
  for (int i = 0; i < 16; ++i) r[i] = load(rows[i]);
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_maskz_unpacklo_epi32(all, r[i], r[i + 1]);
    t[i + 1] = _mm512_maskz_unpackhi_epi32(all, r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_maskz_unpacklo_epi64(both, t[i], t[i + 2]);
    r[i + 1] = _mm512_maskz_unpackhi_epi64(both, t[i], t[i + 2]);
    r[i + 2] = _mm512_maskz_unpacklo_epi64(both, t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_maskz_unpackhi_epi64(both, t[i + 1], t[i + 3]);
  }
  for (int j = 0; j < 4; ++j) {
    const __m512i a = _mm512_maskz_shuffle_i32x4(all, r[j], r[4 + j], 0x88);
    const __m512i b = _mm512_maskz_shuffle_i32x4(all, r[8 + j], r[12 + j], 0x88);
    const __m512i c = _mm512_maskz_shuffle_i32x4(all, r[j], r[4 + j], 0xdd);
    const __m512i d = _mm512_maskz_shuffle_i32x4(all, r[8 + j], r[12 + j], 0xdd);
    _mm512_storeu_si512(to + j * to_stride, _mm512_maskz_shuffle_i32x4(all, a, b, 0x88));
    _mm512_storeu_si512(to + (4 + j) * to_stride, _mm512_maskz_shuffle_i32x4(all, c, d, 0x88));
    _mm512_storeu_si512(to + (8 + j) * to_stride, _mm512_maskz_shuffle_i32x4(all, a, b, 0xdd));
    _mm512_storeu_si512(to + (12 + j) * to_stride, _mm512_maskz_shuffle_i32x4(all, c, d, 0xdd));
  }
}

// For each of R vectors whose elements are, in order, the first ones of R rows, the second ones, ...: where in its row
// an element is, and which ones are of row r.
template <int R>
struct Interleaved {
  alignas(64) int32_t place[R][16] = {};
  __mmask16 of_row[R][R] = {};
  constexpr Interleaved() {
    for (int i = 0; i < 16 * R; ++i) {
      place[i / 16][i % 16] = i / R;
      of_row[i / 16][i % R] = static_cast<__mmask16>(of_row[i / 16][i % R] | 1 << i % 16);
    }
  }
};

// to[k][r] = pair k of row r, `depth` pairs of R rows that lie `stride` values apart.
template <int R>
BF16_PRODUCTS void interleave(const BFloat16* rows, int64_t stride, int64_t depth, uint32_t* to) {
  static constexpr Interleaved<R> order;
  for (int64_t k = 0; k < depth; k += 16) {
    __m512i row[R];
    for (int r = 0; r < R; ++r) row[r] = load(rows + r * stride + 2 * k);
#pragma GCC unroll 6
    for (int i = 0; i < R; ++i, to += 16) {
      const __m512i place = _mm512_load_si512(order.place[i]);
      __m512i mixed = _mm512_maskz_permutexvar_epi32(order.of_row[i][0], place, row[0]);
#pragma GCC unroll 5
      for (int r = 1; r < R; ++r) mixed = _mm512_mask_permutexvar_epi32(mixed, order.of_row[i][r], place, row[r]);
      _mm512_storeu_si512(to, mixed);
    }
  }
}

// sums[r][.] (+)= block[.][r] * panel[.][.] over runs, for V vectors of a panel and R rows of a block.
template <int V, int R>
BF16_PRODUCTS void multiply(const Run* runs, int64_t count, int64_t step, const uint32_t* panel, const uint32_t* block,
                            float* sums, bool add) {
  __m512 s[R][V] = {};
  for (const Run* run = runs; run < runs + count; ++run) {
    const uint32_t *from = panel + int64_t(run->panel) * (V * 16), *rows = block + int64_t(run->block) * R;
    for (int64_t i = 0; i < run->count; ++i, from += step * (V * 16), rows += R) {
      __m512i w[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) w[v] = _mm512_loadu_si512(from + v * 16);
#pragma GCC unroll 6
      for (int r = 0; r < R; ++r) {
        const __m512i a = _mm512_set1_epi32(rows[r]);
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) s[r][v] = _mm512_dpbf16_ps(s[r][v], (__m512bh)a, (__m512bh)w[v]);
      }
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      float* const to = sums + (r * V + v) * 16;
      _mm512_storeu_ps(to, add ? _mm512_loadu_ps(to) + s[r][v] : s[r][v]);
    }
}

BF16_PRODUCTS void round_values(const float* from, int64_t n, BFloat16* to) {
  for (int64_t i = 0; i < n; i += 32) {
    const __m512bh rounded = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(from + i + 16), _mm512_loadu_ps(from + i));
    __builtin_memcpy(to + i, &rounded, sizeof(rounded));
  }
}

// By the width of a panel and the rows of a block.
auto kernel_for(int64_t width, int64_t rows) {
  if (width == panel_channels) return rows == block_rows ? multiply<4, 6> : multiply<4, 5>;
  return rows == block_rows ? multiply<2, 6> : multiply<2, 5>;
}

// Pairs, which are as long as float32, in memory that is cheap to touch.
struct Packed {
  Tensor memory;
  uint32_t* pairs;
  Packed(const Tensor& like, int64_t size)
      : memory(empty_output(like, {size}, ScalarType::Float)),
        pairs(static_cast<uint32_t*>(memory.mutable_data_ptr())) {}
};

// Weights (Cf, taps, Ci) in panels[tap][pair of input channels][output channel].  They are read row by row, in the
// order in which they lie in memory, whatever the panels are.
template <class E>
void pack_weights(const E* weight, int64_t taps, int64_t in, const Panels& panels, bool to_image, uint32_t* packed) {
  const int64_t depth = in / 2, out = panels.channels;
  if (!to_image) {
    parallel_each(out / 16, [&](int64_t task) {
      const int64_t panel = 16 * task / panel_channels, c = panels.start(panel), width = panels.width(panel);
      for (int64_t k = 0; k < taps * depth; k += 16) {
        const E* rows[16];
        for (int64_t i = 0; i < 16; ++i) rows[i] = weight + (16 * task + i) * taps * in + 2 * k;
        transpose(rows, packed + taps * c * depth + k * width + 16 * task - c, width);
      }
    });
    return;
  }
  parallel_each(depth, [&](int64_t k) {
    for (int64_t tap = 0; tap < taps; ++tap)
      for (int64_t panel = 0; panel < panels.count(); ++panel) {
        const int64_t c = panels.start(panel), width = panels.width(panel);
        const E* const from = weight + (2 * k * taps + tap) * out + c;
        make_pairs(from, from + taps * out, width, packed + (taps * c + tap * width) * depth + k * width);
      }
  });
}

// Samples (N, pixels, channels) in blocks[pixel][pair of channels][sample].
void pack_samples(const BFloat16* input, int64_t pixels, int64_t channels, const Blocks& blocks, uint32_t* packed) {
  const int64_t depth = channels / 2;
  parallel_each(blocks.count() * pixels, [&](int64_t task) {
    const int64_t block = task / pixels, pixel = task % pixels, first = blocks.start(block), size = blocks.size(block);
    uint32_t* const to = packed + (first * pixels + pixel * size) * depth;
    const BFloat16* const from = input + (first * pixels + pixel) * channels;
    if (size == block_rows)
      interleave<block_rows>(from, pixels * channels, depth, to);
    else
      interleave<block_rows - 1>(from, pixels * channels, depth, to);
  });
}

template <class E>
void convolve(const Shape& shape, bool to_image, const BFloat16* input, const E* weight, Tensor& output) {
  const ConvAxis &y = shape.y, &x = shape.x;
  const int64_t rows = to_image ? y.features : y.image, columns = to_image ? x.features : x.image;
  const int64_t out_rows = to_image ? y.image : y.features, out_columns = to_image ? x.image : x.features;
  const int64_t in = to_image ? shape.channels : shape.image_channels, depth = in / 2, taps = shape.taps();
  const Panels panels{to_image ? shape.image_channels : shape.channels};
  const Blocks blocks(shape.samples);
  const Packed weights(output, taps * depth * panels.channels), inputs(output, shape.samples * rows * columns * depth);
  pack_weights(weight, taps, in, panels, to_image, weights.pairs);
  pack_samples(input, rows * columns, in, blocks, inputs.pairs);
  BFloat16* const result = data<BFloat16>(output);
  // The runs of a pixel are the same for all panels and blocks.
  const std::vector<int32_t> rows_met = all_met(y, to_image), columns_met = all_met(x, to_image);
  std::vector<Run> runs;
  std::vector<int64_t> starts{0};
  for (int64_t row = 0; row < out_rows; ++row)
    for (int64_t column = 0; column < out_columns; ++column) {
      for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t i = rows_met[row * y.kernel + tap / x.kernel],
                      j = columns_met[column * x.kernel + tap % x.kernel];
        if (i >= 0 && j >= 0)
          runs.push_back({static_cast<int32_t>(tap * depth), static_cast<int32_t>((i * columns + j) * depth),
                          static_cast<int32_t>(depth)});
      }
      starts.push_back(runs.size());
    }
  // A panel of weights stays in a core's L2 cache.
  parallel_each(panels.count() * blocks.count() * out_rows, [&](int64_t task) {
    const int64_t row = task % out_rows, block = task / out_rows % blocks.count();
    const int64_t panel = task / out_rows / blocks.count(), c = panels.start(panel), width = panels.width(panel);
    const int64_t first = blocks.start(block), size = blocks.size(block);
    alignas(64) float sums[block_rows * panel_channels];
    for (int64_t pixel = row * out_columns; pixel < (row + 1) * out_columns; ++pixel) {
      kernel_for(width, size)(runs.data() + starts[pixel], starts[pixel + 1] - starts[pixel], 1,
                              weights.pairs + taps * depth * c, inputs.pairs + first * rows * columns * depth, sums,
                              false);
      for (int64_t r = 0; r < size; ++r)
        round_values(sums + r * width, width,
                     result + ((first + r) * out_rows * out_columns + pixel) * panels.channels + c);
    }
  });
}

// The runs of one tap, of `pairs` pairs of samples; each has as many.
std::vector<Run> make_runs(const Shape& shape, int64_t tap, int64_t pairs) {
  const Reach y(shape.y, tap / shape.x.kernel), x(shape.x, tap % shape.x.kernel);
  std::vector<Run> runs;
  for (int64_t pair = 0; x.count > 0 && pair < pairs; ++pair)
    for (int64_t i = 0; i < y.count; ++i) {
      const int64_t row = pair * shape.y.image + y.start + i * shape.y.stride;
      const int64_t feature_row = pair * shape.y.features + y.first + i;
      runs.push_back({static_cast<int32_t>(row * shape.x.image + x.start),
                      static_cast<int32_t>(feature_row * shape.x.features + x.first), static_cast<int32_t>(x.count)});
    }
  return runs;
}

// Pixels of a pair of samples (N, pixels, channels); the second is null if there is none.
struct SamplePair {
  const BFloat16 *first, *second;
  SamplePair(const BFloat16* samples, int64_t count, int64_t size, int64_t pair)
      : first(samples + 2 * pair * size), second(2 * pair + 1 < count ? first + size : nullptr) {}
  void pack(int64_t offset, int64_t n, uint32_t* to) const {
    make_pairs(first + offset, second == nullptr ? second : second + offset, n, to);
  }
};

void compute_weight_gradient(const Shape& shape, const BFloat16* image, const BFloat16* features, Tensor& gradient) {
  const int64_t image_pixels = shape.y.image * shape.x.image, pixels = shape.y.features * shape.x.features;
  const int64_t all = (shape.samples + 1) / 2, group = std::clamp<int64_t>(group_pixels / pixels, 1, all);
  const Panels panels{shape.image_channels};
  const Blocks blocks(shape.channels);
  const int64_t C = panels.channels, taps = shape.taps(), parts = (blocks.count() + part_blocks - 1) / part_blocks;
  const int64_t tasks = parts * panels.count() * taps;
  const int64_t chain = std::max<int64_t>(1, longest_chain / shape.x.features);  // runs
  constexpr int64_t tile = part_blocks * block_rows * panel_channels;

  std::vector<std::vector<Run>> runs;
  for (int64_t tap = 0; tap < taps; ++tap) runs.push_back(make_runs(shape, tap, group));
  const Packed images(gradient, group * image_pixels * C), others(gradient, group * pixels * shape.channels);
  const bool once = group == all;
  Tensor kept = empty_output(gradient, {once ? 0 : tasks * tile}, ScalarType::Float);
  float *const sums = data<float>(kept), *const result = data<float>(gradient);

  for (int64_t first = 0; first < all; first += group) {
    const int64_t pairs = std::min(group, all - first), rows = shape.y.image + shape.y.features;
    parallel_each(pairs * rows, [&](int64_t task) {
      const int64_t pair = task / rows, row = task % rows;
      if (row < shape.y.image) {
        const SamplePair from(image, shape.samples, image_pixels * C, first + pair);
        for (int64_t i = row * shape.x.image; i < (row + 1) * shape.x.image; ++i)
          for (int64_t p = 0; p < panels.count(); ++p) {
            const int64_t c = panels.start(p), width = panels.width(p);
            from.pack(i * C + c, width, images.pairs + group * image_pixels * c + (pair * image_pixels + i) * width);
          }
        return;
      }
      const SamplePair from(features, shape.samples, pixels * shape.channels, first + pair);
      std::vector<uint32_t> line(shape.channels);
      const int64_t begin = (row - shape.y.image) * shape.x.features;
      for (int64_t i = begin; i < begin + shape.x.features; ++i) {
        from.pack(i * shape.channels, shape.channels, line.data());
        for (int64_t b = 0, start = 0, size; b < blocks.count(); ++b, start += size) {
          size = blocks.size(b);
          uint32_t* const to = others.pairs + group * pixels * start + (pair * pixels + i) * size;
          if (size == block_rows)  // a size that the compiler knows takes a few instructions
            std::copy_n(line.data() + start, block_rows, to);
          else
            std::copy_n(line.data() + start, block_rows - 1, to);
        }
      }
    });
    parallel_each(tasks, [&](int64_t task) {
      const int64_t tap = task % taps, panel = task / taps % panels.count(), part = task / taps / panels.count();
      const int64_t begin = part * blocks.count() / parts, end = (part + 1) * blocks.count() / parts;
      const int64_t c = panels.start(panel), width = panels.width(panel), start = blocks.start(begin);
      const int64_t count = runs[tap].size() / group * pairs;
      alignas(64) float own[tile];
      float* const to = once ? own : sums + task * tile;
      // A tap may meet nothing but padding: then its sums are zero.
      for (int64_t i = 0; i == 0 || i < count; i += chain)
        for (int64_t b = begin; b < end; ++b)
          kernel_for(width, blocks.size(b))(runs[tap].data() + i, std::min(chain, count - i), shape.x.stride,
                                            images.pairs + group * image_pixels * c,
                                            others.pairs + group * pixels * blocks.start(b),
                                            to + (blocks.start(b) - start) * width, first > 0 || i > 0);
      if (first + group < all) return;
      for (int64_t f = start; f < blocks.start(end); ++f)
        std::copy_n(to + (f - start) * width, width, result + (f * taps + tap) * C + c);
    });
  }
}
#else
template <class E>
void convolve(const Shape&, bool, const BFloat16*, const E*, Tensor&) {}
void compute_weight_gradient(const Shape&, const BFloat16*, const BFloat16*, Tensor&) {}
#endif

// The shape of a convolution between an image and features; either of these may have to be computed, and is null.
Shape check(const Tensor* image, const Tensor* features, const std::vector<int64_t>& size,
            const std::vector<int64_t>& channels, const std::vector<int64_t>& kernel,
            const std::vector<int64_t>& stride, const std::vector<int64_t>& padding) {
  GENIMG_FAST_CHECK(has_bf16_products(), "bf16_conv: this machine has no products of bfloat16 (AVX-512 BF16)");
  for (const Tensor* t : {image, features})
    GENIMG_FAST_CHECK(t == nullptr || (t->dim() == 4 && t->scalar_type() == ScalarType::BFloat16),
                      "bf16_conv: image and features must be bfloat16 and have 4 dimensions");
  Shape shape{{(image ? image : features)->size(0), channels[1], channels[0], {}, {}}};
  for (int64_t n : channels)
    GENIMG_FAST_CHECK(n > 0 && n % channel_block == 0, "bf16_conv: numbers of channels must be multiples of ",
                      channel_block, ", got ", n);
  bool fits = kernel.size() == 2 && stride.size() == 2 && padding.size() == 2 && (image || size.size() == 2) &&
              (!image || image->size(1) == channels[1]) && (!features || features->size(1) == channels[0]) &&
              (!image || !features || image->size(0) == features->size(0));
  for (int d = 0; fits && d < 2; ++d) {
    ConvAxis& a = d == 0 ? shape.y : shape.x;
    a = {image ? image->size(2 + d) : size[d], 0, kernel[d], stride[d], padding[d]};
    fits = a.image >= 1 && a.kernel >= 1 && a.stride >= 1 && a.padding >= 0 && a.image + 2 * a.padding >= a.kernel;
    if (fits) a.features = a.features_of_image();
    fits = fits && (!features || features->size(2 + d) == a.features);
  }
  GENIMG_FAST_CHECK(fits, "bf16_conv: image, features, weight, stride and padding do not fit together");
  return shape;
}

Tensor empty_image(const Tensor& like, int64_t samples, int64_t channels, int64_t rows, int64_t columns,
                   ScalarType type) {
  return empty_output(like, {samples, channels, rows, columns}, type, MemoryFormat::ChannelsLast);
}

const BFloat16* values(const Tensor& t) { return static_cast<const BFloat16*>(t.const_data_ptr()); }

Tensor channels_last(const Tensor& t) { return torch::stable::contiguous(t, MemoryFormat::ChannelsLast); }

Tensor bf16_conv(Tensor input, Tensor weight, std::vector<int64_t> stride, std::vector<int64_t> padding,
                 std::vector<int64_t> size) {
  const bool to_image = !size.empty(), rounded = weight.scalar_type() == ScalarType::BFloat16;
  GENIMG_FAST_CHECK(weight.dim() == 4 && (rounded || weight.scalar_type() == ScalarType::Float),
                    "bf16_conv: weight must be bfloat16 or float32 and have 4 dimensions");
  const Shape shape = check(to_image ? nullptr : &input, to_image ? &input : nullptr, size,
                            {weight.size(0), weight.size(1)}, {weight.size(2), weight.size(3)}, stride, padding);
  GENIMG_FAST_CHECK(Blocks(shape.samples).are_full(), "bf16_conv: a batch must have at least 20 samples, got ",
                    shape.samples);
  const int64_t rows = to_image ? shape.y.image : shape.y.features;
  const int64_t columns = to_image ? shape.x.image : shape.x.features;
  Tensor output = empty_image(input, shape.samples, to_image ? shape.image_channels : shape.channels, rows, columns,
                              ScalarType::BFloat16);
  input = channels_last(input);
  weight = channels_last(weight);
  if (rounded)
    convolve(shape, to_image, values(input), values(weight), output);
  else
    convolve(shape, to_image, values(input), data<float>(std::as_const(weight)), output);
  return output;
}

Tensor bf16_conv_weight(Tensor image, Tensor features, std::vector<int64_t> kernel, std::vector<int64_t> stride,
                        std::vector<int64_t> padding) {
  const Shape shape = check(&image, &features, {}, {features.size(1), image.size(1)}, kernel, stride, padding);
  Tensor gradient = empty_image(image, shape.channels, shape.image_channels, kernel[0], kernel[1], ScalarType::Float);
  if (shape.samples == 0) return torch::stable::zero_(gradient);
  image = channels_last(image);
  features = channels_last(features);
  compute_weight_gradient(shape, values(image), values(features), gradient);
  return gradient;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CPU, m) {
  m.impl("bf16_conv", TORCH_BOX(&bf16_conv));
  m.impl("bf16_conv_weight", TORCH_BOX(&bf16_conv_weight));
}

}  // namespace genimg_fast
