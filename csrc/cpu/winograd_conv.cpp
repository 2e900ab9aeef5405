// Convolutions with fewer products, on the CPU: 4 x 4 kernels with stride 2, their transposes, and 3 x 3 kernels.
//
// Procedure overview.  A 4 x 4 convolution with stride 2 is a 2 x 2 convolution over the channels of the input's four
// phases (even and odd rows, even and odd columns); its transpose is one for each phase of the output.  Their outputs
// are cut into tiles of 2 or 3 a side, and Winograd's F(2,2), F(3,2) or, for 3 x 3 kernels, F(2,3) gives a tile from
// fewer products than it has outputs times taps:
//
// 1. Weights are transformed: for each of 9 or 16 pairs of points, a matrix of depth (channels of all phases of the
//    input) x output channels, packed in panels.
// 2. A thread takes some rows of tiles, as many as its L2 cache holds, and transforms their inputs: for each pair of
//    points a matrix of tiles x depth.
// 3. For one panel of output channels after the other it multiplies the matrices, and transforms the products to
//    outputs.
//
// A weight's gradient goes the other way: for each pair of points the products of the transformed inputs with the
// transformed gradients are summed over all tiles, and the sums are transformed to the gradient.  That is done part by
// part, of the rows of tiles or of the input's channels: a part is transformed while others are multiplied.
//
// Everything is channels_last, so that transforms are additions of vectors.  Sums have the same order whatever the
// number of threads.  Winograd, "Arithmetic complexity of computations", 1980; Lavin and Gray, arXiv 1509.09308.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <thread>
#include <utility>
#include <vector>

#include "common.h"
#include "output_memory.h"
#include "simd.h"
#include "winograd_conv_tiles.h"

namespace genimg_fast {
namespace {

constexpr int64_t channel_block = 32;                // numbers of channels are multiples of it
constexpr int64_t core_cache = int64_t(3) << 18;     // bytes of transformed inputs that a core's L2 cache holds
constexpr int64_t least_products = 16;               // rows that are to share a reading of transformed weights
constexpr int64_t sum_rows = 144;                    // products summed up before they join the sum of all
constexpr int64_t shared_cache = int64_t(24) << 20;  // bytes of all factors of a weight's gradient,
constexpr int64_t group_cache = int64_t(2) << 20;    // or of those of a part
constexpr int64_t buffers = 3;  // of parts: one is transformed, one multiplied, and one may still be, by a late thread

#define SIMD_BODY "winograd_conv_kernels.h"
#include "for_each_simd_level.h"

void check_float(const Tensor& t, const char* name, int64_t dim = 4) {
  GENIMG_FAST_CHECK(t.scalar_type() == ScalarType::Float, "winograd_conv2d: ", name, " must be float32");
  GENIMG_FAST_CHECK(t.dim() == dim, "winograd_conv2d: ", name, " must have ", dim, " dimensions, got ", t.dim());
}

// Outputs of a phase along an axis of the finer of both sides of a convolution.
int64_t phase_size(int64_t size, int64_t kernel) {
  GENIMG_FAST_CHECK(size % 2 == 0 && size >= 4, "winograd_conv2d: height and width must be even and at least 4, got ",
                    size);
  return kernel == 4 ? size / 2 : size;
}

void check_channels(int64_t channels) {
  GENIMG_FAST_CHECK(channels > 0 && channels % channel_block == 0, "winograd_conv2d: channels must be multiples of ",
                    channel_block, ", got ", channels);
}

Shape make_shape(int64_t kernel, bool transposed, const Tensor& input, int64_t out_channels) {
  GENIMG_FAST_CHECK(kernel == 3 || kernel == 4, "winograd_conv2d: the kernel must be 3 x 3 or 4 x 4, got ", kernel);
  check_channels(input.size(1));
  check_channels(out_channels);
  GENIMG_FAST_CHECK(input.numel() > 0, "winograd_conv2d: input is empty");
  const int64_t scale = transposed && kernel == 4 ? 2 : 1;
  return Shape(kernel, transposed, input.size(0), input.size(1), out_channels,
               phase_size(input.size(2) * scale, kernel), phase_size(input.size(3) * scale, kernel));
}

// A tensor of these sizes in channels_last; no view, which could not be changed in place under autograd.
Tensor empty_image(const Tensor& like, int64_t batch, int64_t channels, int64_t height, int64_t width) {
  return empty_output(like, {batch, channels, height, width}, ScalarType::Float, MemoryFormat::ChannelsLast);
}

Tensor channels_last(const Tensor& t) { return torch::stable::contiguous(t, MemoryFormat::ChannelsLast); }

template <class F>
void parallel_each(int64_t n, const F& f) {
  torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

// Runs phases of tasks, f(phase, task, worker), on all threads.  No thread waits at the end of a phase: one begins when
// the last but one and those before it are done, and its tasks may rely on no others.  So a thread that is late,
// because something else has its processor, does not hold up the others at once.
template <class F>
void run_phases(const std::vector<int64_t>& sizes, const F& f) {
  std::vector<std::atomic<int64_t>> taken(sizes.size()), done(sizes.size());
  parallel_each(torch::stable::get_num_threads(), [&](int64_t worker) {
    for (size_t phase = 0; phase < sizes.size(); ++phase) {
      while (phase >= 2 && done[phase - 2].load(std::memory_order_acquire) < sizes[phase - 2])
        std::this_thread::yield();
      for (int64_t i; (i = taken[phase].fetch_add(1, std::memory_order_relaxed)) < sizes[phase];) {
        f(phase, i, worker);
        done[phase].fetch_add(1, std::memory_order_release);
      }
    }
  });
}

// Rows of tiles in groups of at most `rows`, as even as can be; the number of groups is a multiple of `parts`.
std::vector<Group> make_groups(const Shape& shape, int64_t rows, int64_t parts) {
  const int64_t all = shape.tile_rows(), rounds = std::max<int64_t>(1, (all + rows * parts - 1) / (rows * parts));
  const int64_t count = std::min(all, rounds * parts);
  std::vector<Group> groups;
  for (int64_t i = 0; i < count; ++i)
    groups.emplace_back(shape, all * i / count, all * (i + 1) / count - all * i / count);
  return groups;
}

// Products of a row of tiles, at most.
int64_t row_products(const Shape& shape) {
  int64_t sum = 0;
  for (int64_t count : shape.x.count) sum += count;
  return sum * points;
}

// Both factors of so many products of a weight's gradient.
int64_t factors_bytes(const Shape& shape, int64_t products) {
  return products * (shape.row_stride() + shape.out_channels) * sizeof(float);
}

Tensor run(const Tensor& input_, const Tensor& weight_, const OptionalTensor& bias_, bool transposed) {
  check_float(input_, "input");
  check_float(weight_, "weight");
  const int64_t kernel = weight_.size(2);
  GENIMG_FAST_CHECK(weight_.size(3) == kernel && weight_.size(transposed ? 0 : 1) == input_.size(1),
                    "winograd_conv2d: weight of shape ", shape_of(weight_), " does not fit input of shape ",
                    shape_of(input_));
  const Shape shape = make_shape(kernel, transposed, input_, weight_.size(transposed ? 1 : 0));
  if (bias_) check_float(*bias_, "bias", 1);
  GENIMG_FAST_CHECK(!bias_ || bias_->size(0) == shape.out_channels, "winograd_conv2d: bias must have shape (",
                    shape.out_channels, ",)");
  const OptionalTensor bias = bias_ ? OptionalTensor(torch::stable::contiguous(*bias_)) : bias_;
  const Tensor input = channels_last(input_), weight = channels_last(weight_);
  Tensor output = empty_image(input, shape.batch, shape.out_channels, shape.out_height, shape.out_width);

  const int64_t phases = shape.out_phases * shape.out_phases, blocks = shape.out_channels / channel_block;
  const int64_t phase_weights = shape.slots * shape.depth * shape.out_channels;
  Tensor packed = empty_output(input, {phases * phase_weights}, ScalarType::Float);
  float* const weights = data<float>(packed);
  parallel_each(phases * blocks, [&](int64_t i) {
    const int64_t phase = i / blocks, S = shape.out_phases;
    SIMD_DISPATCH(pack_weights(shape, i % blocks * channel_block, phase / S, phase % S, data<float>(weight),
                               weights + phase * phase_weights));
  });

  const int64_t row_bytes = row_products(shape) * shape.row_stride() * sizeof(float);
  const int64_t columns = shape.x.pieces.size();
  const int64_t rows = std::max({int64_t(1), core_cache / row_bytes, (least_products + columns - 1) / columns});
  const int64_t parts = std::min<int64_t>(torch::stable::get_num_threads(), shape.tile_rows());
  const std::vector<Group> groups = make_groups(shape, rows, parts);
  int64_t most = 0;
  for (const Group& group : groups) most = std::max(most, group.total);
  const int64_t factors_size = most * shape.row_stride(), own_size = factors_size + most * channel_block;
  Tensor own = empty_output(input, {parts * own_size}, ScalarType::Float);
  float* const memory = data<float>(own);
  const std::vector<float> zeros(shape.in_channels);
  const int64_t count = groups.size();
  parallel_each(parts, [&](int64_t part) {
    float* const factors = memory + part * own_size;
    for (int64_t i = count * part / parts; i < count * (part + 1) / parts; ++i)
      SIMD_DISPATCH(convolve(shape, groups[i], data<float>(input), weights, data_or_null<float>(bias), zeros.data(),
                             factors, factors + factors_size, data<float>(output)));
  });
  return output;
}

Tensor winograd_conv2d(Tensor input, Tensor weight, OptionalTensor bias) { return run(input, weight, bias, false); }

Tensor winograd_conv_transpose2d(Tensor input, Tensor weight, OptionalTensor bias) {
  return run(input, weight, bias, true);
}

Tensor winograd_conv2d_weight_gradient(Tensor input_, Tensor grad_output_, int64_t kernel) {
  check_float(input_, "input");
  check_float(grad_output_, "grad_output");
  const Shape shape = make_shape(kernel, false, input_, grad_output_.size(1));
  GENIMG_FAST_CHECK(grad_output_.size(0) == shape.batch && grad_output_.size(2) == shape.out_height &&
                        grad_output_.size(3) == shape.out_width,
                    "winograd_conv2d: grad_output of shape ", shape_of(grad_output_), " does not fit input of shape ",
                    shape_of(input_));
  const Tensor input = channels_last(input_), grad_output = channels_last(grad_output_);
  Tensor gradient = empty_image(input, shape.out_channels, shape.in_channels, kernel, kernel);

  const std::vector<float> zeros(shape.in_channels);
  std::vector<int> used;
  for (int e = 0; e < pairs; ++e)
    if (shape.slot[e] >= 0) used.push_back(e);
  const int64_t threads = torch::stable::get_num_threads(), blocks = shape.out_channels / channel_block;
  const int64_t row_bytes = factors_bytes(shape, row_products(shape));

  // Where factors are few, parts are slices of the input's channels: the sums of a block of output channels are then
  // complete when they are made, and need not be kept.  Otherwise parts are groups of rows of tiles; sums are read and
  // written once a group, so where they are large a group is, too.
  std::vector<Group> groups{Group(shape, 0, shape.tile_rows())};
  const bool few = factors_bytes(shape, groups[0].total) <= shared_cache, whole = few && blocks >= threads;
  const int64_t slices = whole && shape.in_channels % (4 * channel_block) == 0 ? 4 : 1;
  const Shape part = shape.part(shape.in_channels / slices);
  const int64_t block_sums = part.slots * part.depth * channel_block;
  if (!few) {
    const int64_t group_bytes = std::max<int64_t>(group_cache, blocks * block_sums * sizeof(float) / 4);
    groups = make_groups(shape, std::max<int64_t>(1, group_bytes / row_bytes), 1);
  }
  int64_t most = 0;
  for (const Group& group : groups) most = std::max(most, group.total);

  const int64_t count = whole ? slices : groups.size(), lefts = std::min(count, buffers), rights = whole ? 1 : lefts;
  const int64_t left_size = most * part.row_stride(), right_size = most * shape.out_channels;
  const int64_t sums_size = (whole ? threads : blocks) * block_sums;
  Tensor scratch = empty_output(input, {lefts * left_size + rights * right_size + sums_size}, ScalarType::Float);
  float *const left = data<float>(scratch), *const right = left + lefts * left_size;
  float* const sums = right + rights * right_size;
  // Part 0 is transformed in phase 0, part g in phase 2 g - 1; it is multiplied in phase 2 g + 2.
  std::vector<int64_t> sizes(2 * count + 1, 0);
  for (int64_t g = 0; g < count; ++g) {
    sizes[std::max<int64_t>(0, 2 * g - 1)] = groups[whole ? 0 : g].rows;
    sizes[2 * g + 2] = whole ? blocks : used.size() * blocks;
  }
  run_phases(sizes, [&](int64_t phase, int64_t i, int64_t worker) {
    const bool transforms = phase == 0 || phase % 2 == 1;
    const int64_t g = transforms ? (phase + 1) / 2 : phase / 2 - 1, channel = whole ? g * part.in_channels : 0;
    const Group& group = groups[whole ? 0 : g];
    float *const rows = left + g % buffers * left_size, *const panels = right + (whole ? 0 : g % buffers * right_size);
    if (transforms) {
      SIMD_DISPATCH(
          transform_input(part, group, group.first + i, 0, 0, data<float>(input) + channel, zeros.data(), rows));
      if (!whole || g == 0)
        SIMD_DISPATCH(transform_gradient(shape, group, group.first + i, data<float>(grad_output), panels));
    } else if (whole) {
      float* const own = sums + worker * block_sums;
      for (int e : used) SIMD_DISPATCH(accumulate(part, group, e, i * channel_block, rows, panels, own, false));
      SIMD_DISPATCH(unpack_weight_gradient(part, i * channel_block, own, data<float>(gradient) + channel));
    } else {
      // The first row of tiles has products at every pair of points in use, so the first group sets all sums.
      const int64_t block = i % blocks;
      SIMD_DISPATCH(accumulate(part, group, used[i / blocks], block * channel_block, rows, panels,
                               sums + block * block_sums, g > 0));
    }
  });
  if (!whole)
    parallel_each(blocks, [&](int64_t i) {
      SIMD_DISPATCH(unpack_weight_gradient(part, i * channel_block, sums + i * block_sums, data<float>(gradient)));
    });
  return gradient;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CPU, m) {
  m.impl("winograd_conv2d", TORCH_BOX(&winograd_conv2d));
  m.impl("winograd_conv_transpose2d", TORCH_BOX(&winograd_conv_transpose2d));
  m.impl("winograd_conv2d_weight_gradient", TORCH_BOX(&winograd_conv2d_weight_gradient));
}

}  // namespace genimg_fast
