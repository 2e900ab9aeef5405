// image_conv_act on the CPU: convolutions between features and an image of few channels.
//
// Procedure overview.  Work is split into units that depend on the shape only; a thread takes one after the other.  For
// a unit, what lies around it in the input is copied to a strip that stays in the L1 cache, widened to float32, with
// the padding's zeros, so that the products need no case for borders or layouts:
//  - from: a block of rows of the features.  The strip holds rows of the image; a tap is the strip plus an offset.
//  Lanes
//    are channels when the output is channels_last.  When it is NCHW they are positions, and the strip's rows are split
//    into phases of the stride, in which what a tap meets at neighbouring positions are neighbours; but if that left
//    vectors half empty, lanes are channels, and a block's sums are transposed;
//  - to: a tile of the image.  Its phases of the stride are convolutions of the features with the taps that reach them;
//    lanes are positions, and the strip holds some channels of features at a time, whose sums are one chain each.  Then
//    the phases' sums are put together to rows;
//  - weight: blocks as in `from`; lanes are channels, the sums go over a block's positions.  Blocks form a fixed number
//    of parts, which have sums of their own.
// bfloat16 data and weights are widened; products and sums are float32, and the result is rounded once, when it is
// stored.  But where the machine has products of pairs of bfloat16 and features are channels_last, strips hold pairs
// instead of floats, and weights are rounded, as PyTorch rounds them: half as many products.  A pair is
//  - from: two neighbouring values of a row of the image, if a tap's row is made of whole pairs wherever it begins;
//  - to: two channels of the features;
//  - weight: the same position in two samples.  A last sample without a partner has zeros for one.
#include "../image_conv_act.h"

#include <torch/csrc/stable/library.h>

#include "image_conv_act_layout.h"
#include "output_memory.h"
#include "simd.h"

namespace genimg_fast {
namespace {

#define SIMD_WITH_BF16_PRODUCTS
#define SIMD_BODY "image_conv_act_kernels.h"
#include "for_each_simd_level.h"

// Calls f(begin, end) on parts of [0, n), which together stand for some multiplications.
template <class F>
void parallel(int64_t n, int64_t products, const F& f) {
  const int64_t threads = std::max<int64_t>(1, products / thread_products);
  torch::stable::parallel_for(0, n, ceil_div(n, threads), f);
}

// Calls f with a value of the type of the data or a parameter.
template <class F>
void with_element(const Tensor& t, const F& f) {
  return t.scalar_type() == ScalarType::Float ? f(float()) : f(BFloat16());
}

// The dense format that t has.  A tensor that has both is taken for NCHW, unless its strides say otherwise.
MemoryFormat format_of(const Tensor& t) {
  return has_channels_last_strides(t) || !t.is_contiguous() ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

// That of torch's convolutions.
MemoryFormat output_format(const Tensor& input, const Tensor& weight) {
  return has_channels_last_strides(input) || has_channels_last_strides(weight) ? MemoryFormat::ChannelsLast
                                                                               : MemoryFormat::Contiguous;
}

Strides strides(const Tensor& t) { return {t.size(1), t.size(2), t.size(3), format_of(t)}; }

// Calls f with a value of the type of the data and, as a constant, whether it is multiplied in pairs.
template <class F>
void with_factors(const Tensor& t, bool pairs, const F& f) {
  if constexpr (knows_bf16_products)
    if (pairs) return f(BFloat16(), std::true_type());
  with_element(t, [&](auto element) { f(element, std::false_type()); });
}

bool multiplies_pairs(const Tensor& t) {
  return knows_bf16_products && t.scalar_type() == ScalarType::BFloat16 && has_bf16_products();
}

// Weights as factors: `value` is that of factor `i`, its second half if `second`.
void put(const Buffer& factors, bool pairs, int64_t i, bool second, float value) {
  if (pairs)
    reinterpret_cast<BFloat16*>(factors.get() + i)[second] = BFloat16(value);
  else
    factors.get()[i] = value;
}

// Calls f with a parameter's element (i, j, k, l), in float32, for all of them in this order.
template <class F>
void for_elements(const Tensor& t, const F& f) {
  int64_t size[4] = {1, 1, 1, 1}, stride[4] = {};
  for (int64_t d = 0; d < t.dim(); ++d) {
    size[d] = t.size(d);
    stride[d] = t.stride(d);
  }
  with_element(t, [&](auto element) {
    const auto* const p = data<decltype(element)>(t);
    for (int64_t i = 0; i < size[0]; ++i)
      for (int64_t j = 0; j < size[1]; ++j)
        for (int64_t k = 0; k < size[2]; ++k)
          for (int64_t l = 0; l < size[3]; ++l)
            f(i, j, k, l, static_cast<float>(p[i * stride[0] + j * stride[1] + k * stride[2] + l * stride[3]]));
  });
}

// A strip for lanes that are channels: the image's rows as they are.
Strip rows_of(const Tensor& image) { return strides(image).channels_last() ? Strip::pixels : Strip::planes; }

Buffer packed_bias(const OptionalTensor& bias, int64_t channels) {
  Buffer packed(round_up(channels, line_floats));
  if (bias) for_elements(*bias, [&](int64_t c, int64_t, int64_t, int64_t, float b) { packed.get()[c] = b; });
  return packed;
}

// `run` is the number of elements that are written one after the other.
Epilogue epilogue(const Buffer& bias, int64_t activation, double negative_slope, const Tensor& output, int64_t run) {
  const bool leaky = activation == int(Activation::leaky_relu);
  const int64_t size = output.element_size();
  const bool streams = output.numel() * size >= streaming_bytes && run * size % 64 == 0 &&
                       reinterpret_cast<uintptr_t>(output.const_data_ptr()) % 64 == 0;
  return {bias.get(), static_cast<Activation>(activation), static_cast<float>(leaky ? negative_slope : 1), streams};
}

std::vector<int64_t> kernel_of(const Tensor& weight) {
  GENIMG_FAST_CHECK(weight.dim() == 4, "image_conv_act: weight must have 4 dimensions, got ", weight.dim());
  return {weight.size(2), weight.size(3)};
}

Tensor from(Tensor image, Tensor weight, OptionalTensor bias, std::vector<int64_t> stride, std::vector<int64_t> padding,
            int64_t activation, double negative_slope) {
  const std::vector<int64_t> kernel = kernel_of(weight);
  const ConvShape shape =
      ImageConvArguments{&image, nullptr, &weight, &bias, kernel, stride, padding, activation}.check();
  Tensor features = empty_output(image, {shape.samples, shape.channels, shape.y.features, shape.x.features},
                                 image.scalar_type(), output_format(image, weight));
  if (features.numel() == 0) return features;
  // Features of one channel have both layouts.
  const bool columns = strides(features).channels_last() || strides(image).channels_last();
  // Whether vectors of positions would be filled to three quarters.
  const int64_t width = shape.x.features;
  const bool wide = !columns && 4 * width >= 3 * round_up(width, line_floats);
  // Images of one channel are in both layouts, and so, by chance, in one or the other are two of them side by side:
  // sums must not depend on that.
  const int64_t of_row = shape.x.kernel * shape.image_channels;
  const bool pairs = multiplies_pairs(image) && columns && strides(image).channels_last() &&
                     shape.image_channels >= 3 && of_row % 2 == 0 && shape.x.stride * shape.image_channels % 2 == 0;
  const FeatureBlocks blocks(shape, pairs ? Strip::pairs : wide ? Strip::phases : rows_of(image));
  const int64_t weight_stride = round_up(shape.channels, line_floats);
  const Buffer packed(shape.taps() * weight_stride), biases = packed_bias(bias, shape.channels);
  const int64_t run = columns ? shape.channels : width;
  for_elements(weight, [&](int64_t c, int64_t ci, int64_t ky, int64_t kx, float w) {
    const int64_t in_row = kx * shape.image_channels + ci;
    const int64_t tap = pairs ? (ky * of_row + in_row) / 2 : (ci * shape.y.kernel + ky) * shape.x.kernel + kx;
    put(packed, pairs, tap * weight_stride + c, in_row % 2, w);
  });
  with_factors(image, pairs, [&](auto element, auto in_pairs) {
    using T = decltype(element);
    const FromJob<T, in_pairs> job{blocks,
                                   data<T>(image),
                                   strides(image),
                                   packed.get(),
                                   weight_stride,
                                   epilogue(biases, activation, negative_slope, features, run),
                                   data<T>(features),
                                   strides(features),
                                   columns};
    parallel(blocks.units(), shape.products(), [&](int64_t begin, int64_t end) {
      const Buffer strip(blocks.strip_size());
      const Buffer scratch(columns || wide ? 0 : 2 * 64 * round_up(blocks.rows * width, line_floats));
      for (int64_t unit = begin; unit < end; ++unit)
        SIMD_DISPATCH_PAIRS(in_pairs, image_conv_from_unit(job, unit, strip.get(), scratch.get()));
    });
  });
  return features;
}

Tensor to(Tensor features, Tensor weight, OptionalTensor bias, std::vector<int64_t> stride,
          std::vector<int64_t> padding, std::vector<int64_t> size, int64_t activation, double negative_slope) {
  const std::vector<int64_t> kernel = kernel_of(weight);
  const ConvShape shape =
      ImageConvArguments{nullptr, &features, &weight, &bias, kernel, stride, padding, activation}.check(&size);
  Tensor image = empty_output(features, {shape.samples, shape.image_channels, shape.y.image, shape.x.image},
                              features.scalar_type(), output_format(features, weight));
  if (image.numel() == 0) return image;
  const bool pairs = multiplies_pairs(features) && strides(features).channels_last() && shape.channels % 2 == 0;
  ConvShape of_factors = shape;
  if (pairs) of_factors.channels /= 2;
  const ImageTiles tiles(of_factors);
  const Buffer packed(of_factors.channels * shape.taps()), biases = packed_bias(bias, shape.image_channels);
  for_elements(weight, [&](int64_t c, int64_t ci, int64_t ky, int64_t kx, float w) {
    const int64_t sy = shape.y.stride, sx = shape.x.stride;
    const auto phase_of = [](const ConvAxis& a, int64_t k) { return (k - a.padding + a.kernel * a.stride) % a.stride; };
    const ImageTiles::PhasePair& p = tiles.phases[phase_of(shape.y, ky) * sx + phase_of(shape.x, kx)];
    const int64_t tap = ((pairs ? c / 2 : c) * p.y.taps + ky / sy) * p.x.taps + kx / sx;
    put(packed, pairs, p.weights + tap * shape.image_channels + ci, c % 2, w);
  });
  with_factors(features, pairs, [&](auto element, auto in_pairs) {
    using T = decltype(element);
    const ToJob<T, in_pairs> job{tiles,
                                 static_cast<const std::conditional_t<in_pairs, float, T>*>(features.const_data_ptr()),
                                 Strides(of_factors.channels, features.size(2), features.size(3), format_of(features)),
                                 packed.get(),
                                 epilogue(biases, activation, negative_slope, image, 1),
                                 data<T>(image),
                                 strides(image)};
    parallel(tiles.units(), shape.products(), [&](int64_t begin, int64_t end) {
      const Buffer strip(tiles.strip_size()), sums(tiles.phases.size() * tiles.plane() + 4);
      const Buffer line(tiles.columns * shape.x.stride * shape.image_channels + 4);
      for (int64_t unit = begin; unit < end; ++unit)
        SIMD_DISPATCH_PAIRS(in_pairs, image_conv_to_unit(job, unit, strip.get(), sums.get(), line.get()));
    });
  });
  return image;
}

Tensor weight_gradient(Tensor image, Tensor features, std::vector<int64_t> kernel, std::vector<int64_t> stride,
                       std::vector<int64_t> padding) {
  const ConvShape shape = ImageConvArguments{&image, &features, nullptr, nullptr, kernel, stride, padding, 0}.check();
  Tensor weight =
      empty_output(image, {shape.channels, shape.image_channels, shape.y.kernel, shape.x.kernel}, ScalarType::Float);
  if (features.numel() == 0) return torch::stable::zero_(weight);
  const bool pairs = multiplies_pairs(features) && strides(features).channels_last();
  ConvShape of_factors = shape;
  if (pairs) of_factors.samples = ceil_div(shape.samples, 2);
  const FeatureBlocks blocks(of_factors, rows_of(image));
  const int64_t sum_stride = round_up(shape.channels, line_floats), sums_size = shape.taps() * sum_stride;
  const int64_t positions = shape.samples * shape.y.features * shape.x.features;
  const int64_t parts = std::min({max_parts, blocks.units(), std::max<int64_t>(1, positions / part_positions)});
  const Buffer sums(parts * sums_size);
  with_factors(image, pairs, [&](auto element, auto in_pairs) {
    using T = decltype(element);
    const WeightJob<T, in_pairs> job{
        blocks, shape.samples, data<T>(image), strides(image), data<T>(features), strides(features), sum_stride};
    parallel(parts, shape.products(), [&](int64_t begin, int64_t end) {
      const Buffer strip(blocks.strip_size()), copied(blocks.rows * shape.x.features * 2 * line_floats);
      for (int64_t part = begin; part < end; ++part)
        for (int64_t unit = part * blocks.units() / parts; unit < (part + 1) * blocks.units() / parts; ++unit)
          SIMD_DISPATCH_PAIRS(
              in_pairs, image_conv_weight_unit(job, unit, strip.get(), copied.get(), sums.get() + part * sums_size));
    });
  });
  std::vector<double> total(sums_size);
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t i = 0; i < sums_size; ++i) total[i] += sums.get()[part * sums_size + i];
  float* const to = data<float>(weight);
  for (int64_t c = 0; c < shape.channels; ++c)
    for (int64_t tap = 0; tap < shape.taps(); ++tap)
      to[c * shape.taps() + tap] = static_cast<float>(total[tap * sum_stride + c]);
  return weight;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CPU, m) {
  m.impl("image_conv_from", TORCH_BOX(&from));
  m.impl("image_conv_to", TORCH_BOX(&to));
  m.impl("image_conv_weight", TORCH_BOX(&weight_gradient));
}

}  // namespace genimg_fast
