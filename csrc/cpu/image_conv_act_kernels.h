// Kernels of image_conv_act for one SIMD level; see image_conv_act.cpp for strips and units.
// Included by for_each_simd_level.h only.

// In this order: parts have no include guards, and include nothing themselves.
// clang-format off
#include "vec_math.h"
#include "activation.h"
#include "image_conv_act_strips.h"
#include "image_conv_act_products.h"
// clang-format on

// Calls f with the activation as a constant.
template <class F>
void with_activation(Activation activation, const F& f) {
  switch (activation) {
    case Activation::relu:
      return f(std::integral_constant<Activation, Activation::relu>());
    case Activation::silu:
      return f(std::integral_constant<Activation, Activation::silu>());
    case Activation::tanh:
      return f(std::integral_constant<Activation, Activation::tanh>());
    case Activation::sigmoid:
      return f(std::integral_constant<Activation, Activation::sigmoid>());
    default:
      return f(std::integral_constant<Activation, Activation::leaky_relu>());
  }
}

// n sums, whose biases are bias[i * BiasStep], on their way out.
template <int BiasStep, Activation Kind, class T>
SIMD_INLINE void finish(const float* sums, int64_t n, const float* bias, const Epilogue& epilogue, T* to) {
  constexpr int L = lanes<float>;
  const auto value = [&](int64_t i) __attribute__((always_inline)) {
    const Vec<float> b = BiasStep ? load(bias + i) : splat(*bias);
    return activate<Kind, T>(load(sums + i) + b, epilogue.slope);
  };
  int64_t i = 0;
  if (epilogue.streams)
    for (; i + L <= n; i += L) stream(to + i, value(i));
  for (; i + L <= n; i += L) store(to + i, value(i));
  if (i < n) store_first(to + i, value(i), n - i);
}

// Groups of V vectors of positions (row, first column) of a block of rows; a last group that lacks some repeats its
// last one.
template <int V, class F>
SIMD_INLINE void for_position_groups(int64_t rows, int64_t columns, const F& f) {
  constexpr int L = lanes<float>;
  for (int64_t y = 0, x = 0; y < rows;) {
    int64_t row[V], column[V];
    int count = 0;
    for (int v = 0; v < V; ++v) {
      row[v] = y < rows ? y : row[v - 1];
      column[v] = y < rows ? x : column[v - 1];
      if (y == rows) continue;
      ++count;
      x += L;
      if (x >= columns) {
        x = 0;
        ++y;
      }
    }
    f(row, column, count);
  }
}

// Calls f(first, count) on taps that are summed up in one chain.
template <class F>
SIMD_INLINE void for_chains(int64_t taps, const F& f) {
  const int64_t chains = ceil_div(taps, chain);
  for (int64_t i = 0; i < chains; ++i) f(i * taps / chains, (i + 1) * taps / chains - i * taps / chains);
}

// image_conv_from

template <class T>
void from_planes(const FromJob<T, false>& job, const float* strip, int64_t rows, T* to) {
  constexpr int L = lanes<float>, V = from_vectors;
  const FeatureBlocks& blocks = job.blocks;
  const ConvShape& shape = blocks.shape;
  const int64_t groups = ceil_div(shape.channels, from_rows), step = blocks.row_step;
  alignas(64) float sums[from_rows * V * L];
  for (int64_t i = 0; i < groups; ++i) {
    const int64_t first = i * shape.channels / groups, last = (i + 1) * shape.channels / groups;
    for_position_groups<V>(rows, shape.x.features, [&](const int64_t* row, const int64_t* column, int count) {
      const float* at[V];
      float* sum[V];
      for (int v = 0; v < V; ++v) {
        at[v] = strip + row[v] * step + column[v];
        sum[v] = sums + v * L;
      }
      for_chains(shape.taps(), [&](int64_t k, int64_t depth) {
        some_products_of_positions<false, V, from_rows>(last - first, at, blocks.offsets.data() + k, depth,
                                                        job.weight + k * job.weight_stride + first, job.weight_stride,
                                                        sum, V * L, k > 0);
      });
      with_activation(job.epilogue.activation, [&](auto kind) {
        for (int64_t c = first; c < last; ++c)
          for (int v = 0; v < count; ++v)
            finish<0, decltype(kind)::value>(
                sums + ((c - first) * V + v) * L, std::min<int64_t>(L, shape.x.features - column[v]),
                job.epilogue.bias + c, job.epilogue,
                to + c * job.feature_strides.channel + row[v] * job.feature_strides.row + column[v]);
      });
    });
  }
}

// The end of from_columns for n channels of pixels, `pitch` apart in sums and `column` in the result.  It is compiled
// once for all widths, with all activations; for the usual one of AVX-512 that would take 5 to 9% more time.
template <class Out>
__attribute__((noinline)) void finish_pixels(const float* sums, int64_t pixels, int64_t pitch, int64_t n,
                                             const Epilogue& epilogue, Out* to, int64_t column) {
  with_activation(epilogue.activation, [&](auto kind) {
    for (int64_t x = 0; x < pixels; ++x)
      finish<1, decltype(kind)::value>(sums + x * pitch, n, epilogue.bias, epilogue, to + x * column);
  });
}

// Channels from `channel` on, at to[y * row + x * column + i].
template <int V, class T, bool Pairs, class Out>
void from_columns(const FromJob<T, Pairs>& job, const float* strip, int64_t rows, int64_t channel,
                  const Epilogue& epilogue, Out* to, int64_t row, int64_t column) {
  constexpr int L = lanes<float>, P = max_pixels<V>;
  const FeatureBlocks& blocks = job.blocks;
  const ConvShape& shape = blocks.shape;
  const int64_t width = shape.x.features, groups = ceil_div(width, P);
  const int64_t n = std::min<int64_t>(V * L, shape.channels - channel);
  alignas(64) float sums[P * V * L];
  for (int64_t y = 0; y < rows; ++y)
    for (int64_t i = 0; i < groups; ++i) {
      const int64_t first = i * width / groups, last = (i + 1) * width / groups;
      for_chains(blocks.offsets.size(), [&](int64_t k, int64_t depth) {
        some_products_of_channels<Pairs, V, P>(
            last - first, strip + y * blocks.row_step + first * blocks.step, blocks.step, blocks.offsets.data() + k,
            depth, job.weight + k * job.weight_stride + channel, job.weight_stride, sums, k > 0);
      });
      if constexpr (V == widest && L == 16 && std::is_same<T, Out>::value)
        with_activation(epilogue.activation, [&](auto kind) {
          for (int64_t x = first; x < last; ++x)
            finish<1, decltype(kind)::value>(sums + (x - first) * V * L, n, epilogue.bias, epilogue,
                                             to + y * row + x * column);
        });
      else
        finish_pixels(sums, last - first, V * L, n, epilogue, to + y * row + first * column, column);
    }
}

// Likewise of as many channels as are taken together.
template <class T, bool Pairs, class Out>
void from_some_columns(const FromJob<T, Pairs>& job, const float* strip, int64_t rows, int64_t channel,
                       const Epilogue& epilogue, Out* to, int64_t row, int64_t column) {
  switch (std::min<int64_t>(widest, ceil_div(job.blocks.shape.channels - channel, lanes<float>))) {
    case 1:
      return from_columns<1>(job, strip, rows, channel, epilogue, to, row, column);
    case 2:
      return from_columns<2>(job, strip, rows, channel, epilogue, to, row, column);
    case 3:
      return from_columns<std::min(3, widest)>(job, strip, rows, channel, epilogue, to, row, column);
    default:
      return from_columns<widest>(job, strip, rows, channel, epilogue, to, row, column);
  }
}

// Narrow planes, in which vectors of positions would be half empty: lanes are channels, and the sums are transposed.
template <class T>
void from_narrow_planes(const FromJob<T, false>& job, const float* strip, int64_t rows, float* scratch, T* to) {
  constexpr int L = lanes<float>;
  constexpr float no_bias[widest * L] = {};
  const ConvShape& shape = job.blocks.shape;
  const int64_t width = shape.x.features, positions = rows * width, pitch = round_up(positions, line_floats);
  float *const columns = scratch, *const planes = scratch + positions * widest * L;
  for (int64_t channel = 0; channel < shape.channels; channel += widest * L) {
    const int64_t count = std::min<int64_t>(widest * L, shape.channels - channel);
    from_some_columns(job, strip, rows, channel, Epilogue{no_bias, Activation::identity, 1, false}, columns,
                      width * widest * L, widest * L);
    transpose(columns, widest * L, positions, count, planes, pitch);
    with_activation(job.epilogue.activation, [&](auto kind) {
      for (int64_t c = 0; c < count; ++c)
        finish<0, decltype(kind)::value>(planes + c * pitch, positions, job.epilogue.bias + channel + c, job.epilogue,
                                         to + (channel + c) * job.feature_strides.channel);
    });
  }
}

template <class T, bool Pairs>
void image_conv_from_unit(const FromJob<T, Pairs>& job, int64_t unit, float* strip, float* scratch) {
  const FeatureBlocks& blocks = job.blocks;
  const ConvShape& shape = blocks.shape;
  const Strides& strides = job.feature_strides;
  const int64_t sample = unit / blocks.blocks, y = unit % blocks.blocks * blocks.rows;
  const int64_t rows = std::min(blocks.rows, shape.y.features - y);
  const T* const image = job.image + sample * job.image_strides.sample;
  if constexpr (Pairs)
    copy_image(blocks, job.image_strides, y, reinterpret_cast<T*>(strip),
               [&](int64_t first, int64_t, int64_t n, T* line) { std::copy_n(image + first, n, line); });
  else
    copy_image(blocks, job.image_strides, y, strip,
               [&](int64_t first, int64_t step, int64_t n, float* line) { gather_row(image + first, step, n, line); });
  T* const to = job.features + sample * strides.sample + y * strides.row;
  if (job.columns) {
    for (int64_t c = 0; c < shape.channels; c += widest * lanes<float>) {
      Epilogue epilogue = job.epilogue;
      epilogue.bias += c;
      from_some_columns(job, strip, rows, c, epilogue, to + c, strides.row, strides.column);
    }
  } else if constexpr (!Pairs) {
    if (blocks.form == Strip::phases)
      from_planes(job, strip, rows, to);
    else
      from_narrow_planes(job, strip, rows, scratch, to);
  }
  if (job.epilogue.streams) stream_fence();
}

// image_conv_to

// sums[period of rows][image channel][period of columns] of one pair of phases, over the strip's features.
template <bool Pairs, int C>
void to_phase(const ImageTiles& tiles, const ImageTiles::PhasePair& phase, const float* strip, const float* weight,
              int64_t depth, float* sums) {
  constexpr int V = to_vectors<C>;
  for_position_groups<V>(tiles.rows, tiles.columns, [&](const int64_t* row, const int64_t* column, int count) {
    const float* at[V];
    float* sum[V];
    for (int v = 0; v < V; ++v) {
      at[v] = strip + row[v] * tiles.pitch + column[v];
      sum[v] = v < count ? sums + row[v] * C * tiles.columns + column[v] : nullptr;
    }
    products_of_positions<Pairs, V, C>(at, phase.offsets.data(), depth, weight, C, sum, tiles.columns, true);
  });
}

// Likewise of all pairs of phases, over `count` channels from `channel` on, at the strip's begin.
template <class T, bool Pairs>
void to_phases(const ToJob<T, Pairs>& job, const float* strip, int64_t channel, int64_t count, float* sums) {
  const ImageTiles& tiles = job.tiles;
  const int64_t channels = tiles.shape.image_channels;
  for (const ImageTiles::PhasePair& phase : tiles.phases) {
    const int64_t taps = phase.y.taps * phase.x.taps;
    const float* const weight = job.weight + phase.weights + channel * taps * channels;
    if (taps > 0) switch (channels) {
        case 1:
          to_phase<Pairs, 1>(tiles, phase, strip, weight, count * taps, sums);
          break;
        case 2:
          to_phase<Pairs, 2>(tiles, phase, strip, weight, count * taps, sums);
          break;
        case 3:
          to_phase<Pairs, 3>(tiles, phase, strip, weight, count * taps, sums);
          break;
        default:
          to_phase<Pairs, 4>(tiles, phase, strip, weight, count * taps, sums);
      }
    sums += tiles.plane();
  }
}

// n sums with their biases, on their way out.
template <class T>
void finish_line(const float* sums, int64_t n, const Epilogue& epilogue, T* to) {
  const float zero = 0;
  with_activation(epilogue.activation,
                  [&](auto kind) { finish<0, decltype(kind)::value>(sums, n, &zero, epilogue, to); });
}

template <class T, bool Pairs>
void image_conv_to_unit(const ToJob<T, Pairs>& job, int64_t unit, float* strip, float* sums, float* line) {
  const ImageTiles& tiles = job.tiles;
  const ConvShape& shape = tiles.shape;
  const int64_t channels = shape.image_channels, phases = tiles.phases.size();
  const int64_t sample = unit / (tiles.vertical * tiles.horizontal);
  const int64_t first_y = unit / tiles.horizontal % tiles.vertical * tiles.rows;
  const int64_t first_x = unit % tiles.horizontal * tiles.columns;
  const auto* const features = job.features + sample * job.feature_strides.sample;
  std::fill_n(sums, phases * tiles.plane(), 0.0f);
  for (int64_t c = 0; c < shape.channels; c += tiles.channels) {
    const int64_t count = std::min(tiles.channels, shape.channels - c);
    copy_features(tiles, features + c * job.feature_strides.channel, job.feature_strides, count, first_y, first_x,
                  strip);
    for (int64_t chained = 0; chained < count; chained += tiles.chained)
      to_phases(job, strip + chained * tiles.feature_rows * tiles.pitch, c + chained,
                std::min(tiles.chained, count - chained), sums);
  }
  // Rows of the image, from the phases' sums.
  const int64_t sy = shape.y.stride, sx = shape.x.stride;
  const int64_t x0 = first_x * sx, width = std::min(tiles.columns * sx, shape.x.image - x0);
  const bool columns = job.image_strides.channels_last();
  for (int64_t r = 0; r < tiles.rows * sy; ++r) {
    const int64_t y = first_y * sy + r;
    if (y >= shape.y.image) break;
    T* const to =
        job.image + sample * job.image_strides.sample + y * job.image_strides.row + x0 * job.image_strides.column;
    const float* const from = sums + r % sy * sx * tiles.plane() + r / sy * channels * tiles.columns;
    if (columns) {
      interleave(from, tiles.plane(), sx, tiles.columns, channels, width, job.epilogue.bias, line);
      finish_line(line, width * channels, job.epilogue, to);
    } else {
      for (int64_t c = 0; c < channels; ++c) {
        interleave(from + c * tiles.columns, tiles.plane(), sx, width, job.epilogue.bias[c], line);
        finish_line(line, width, job.epilogue, to + c * job.image_strides.channel);
      }
    }
  }
}

// image_conv_weight

// sums[tap][channel] += the products of all positions of a block.
template <class T, bool Pairs>
void image_conv_weight_unit(const WeightJob<T, Pairs>& job, int64_t unit, float* strip, float* copied, float* sums) {
  constexpr int L = lanes<float>;
  const FeatureBlocks& blocks = job.blocks;
  const ConvShape& shape = blocks.shape;
  const int64_t sample = unit / blocks.blocks * (Pairs ? 2 : 1), y = unit % blocks.blocks * blocks.rows;
  const int64_t rows = std::min(blocks.rows, shape.y.features - y), columns = shape.x.features;
  const T* const image = job.image + sample * job.image_strides.sample;
  const T* const given = job.features + sample * job.feature_strides.sample + y * job.feature_strides.row;
  const bool alone = sample + 1 == job.samples;  // a sample that has no partner
  if constexpr (Pairs)
    copy_image(blocks, job.image_strides, y, strip, [&](int64_t first, int64_t, int64_t n, float* line) {
      const T* const from = image + first;
      zip_row(from, alone ? nullptr : from + job.image_strides.sample, n, line);
    });
  else
    copy_image(blocks, job.image_strides, y, strip,
               [&](int64_t first, int64_t step, int64_t n, float* line) { gather_row(image + first, step, n, line); });
  const int64_t taps = shape.taps(), groups = ceil_div(taps, tap_rows);
  const bool in_place = std::is_same<T, float>::value && job.feature_strides.channels_last() &&
                        shape.channels % L == 0 && shape.channels <= most_in_place;
  for (int64_t c = 0; c < shape.channels; c += tap_vectors * L) {
    const int64_t count = std::min<int64_t>(tap_vectors * L, shape.channels - c);
    const T* const panel = given + c * job.feature_strides.channel;
    const float* features = copied;
    int64_t stride = round_up(count, L);
    if constexpr (Pairs) {
      for (int64_t k = 0; k < rows * columns; ++k) {
        const T* const from = panel + k * job.feature_strides.column;
        zip_row(from, alone ? nullptr : from + job.feature_strides.sample, count, copied + k * stride);
      }
    } else if (in_place) {
      features = reinterpret_cast<const float*>(panel);
      stride = shape.channels;
    } else {
      copy_features(panel, job.feature_strides, count, rows * columns, stride, copied);
    }
    for (int64_t i = 0; i < groups; ++i) {
      const int64_t first = i * taps / groups, last = (i + 1) * taps / groups;
      const auto add = [&](auto vectors) {
        some_products_of_taps<Pairs, decltype(vectors)::value, tap_rows>(
            last - first, strip, blocks.step, blocks.offsets.data() + first, rows, blocks.row_step, columns, features,
            stride, sums + first * job.sum_stride + c, job.sum_stride);
      };
      if (count > L)
        add(std::integral_constant<int, tap_vectors>());
      else
        add(std::integral_constant<int, 1>());
    }
  }
}
