// Convolutions with fewer products for one SIMD level.  Included by winograd_conv.cpp only.

// What follows transforms along one axis: vectors s apart to vectors t apart, in order of their points.

// F(3,2): three outputs of two taps from four inputs.
struct ThreeOfTwo {
  static constexpr int products = 4, inputs = 4, outputs = 3, first = 0;
  static SIMD_INLINE void input(const Vec<float>* d, int s, Vec<float>* v, int t) {
    v[0] = d[0] - d[2 * s];
    v[t] = d[s] + d[2 * s];
    v[2 * t] = d[2 * s] - d[s];
    v[3 * t] = d[3 * s] - d[s];
  }
  static SIMD_INLINE void output(const Vec<float>* m, int s, Vec<float>* y, int t) {
    const Vec<float> even = m[s] + m[2 * s];
    y[0] = m[0] + even;
    y[t] = m[s] - m[2 * s];
    y[2 * t] = even + m[3 * s];
  }
  // The transpose of output.
  static SIMD_INLINE void gradient(const Vec<float>* y, int s, Vec<float>* z, int t) {
    const Vec<float> even = y[0] + y[2 * s];
    z[0] = y[0];
    z[t] = even + y[s];
    z[2 * t] = even - y[s];
    z[3 * t] = y[2 * s];
  }
};

// F(2,2): two outputs of two taps from three inputs.
struct TwoOfTwo {
  static constexpr int products = 3, inputs = 3, outputs = 2, first = 1;
  static SIMD_INLINE void input(const Vec<float>* d, int s, Vec<float>* v, int t) {
    v[0] = d[0] + d[s];
    v[t] = d[0] - d[s];
    v[2 * t] = d[2 * s] - d[0];
  }
  static SIMD_INLINE void output(const Vec<float>* m, int s, Vec<float>* y, int t) {
    y[0] = m[0] + m[s];
    y[t] = m[0] - m[s] + m[2 * s];
  }
  static SIMD_INLINE void gradient(const Vec<float>* y, int s, Vec<float>* z, int t) {
    z[0] = y[0] + y[s];
    z[t] = y[0] - y[s];
    z[2 * t] = y[s];
  }
};

// F(2,3): two outputs of three taps from four inputs, which are transformed as for F(3,2).
struct TwoOfThree : ThreeOfTwo {
  static constexpr int outputs = 2;
  static SIMD_INLINE void output(const Vec<float>* m, int s, Vec<float>* y, int t) {
    y[0] = m[0] + (m[s] + m[2 * s]);
    y[t] = m[s] - m[2 * s] + m[3 * s];
  }
  static SIMD_INLINE void gradient(const Vec<float>* y, int s, Vec<float>* z, int t) {
    z[0] = y[0];
    z[t] = y[0] + y[s];
    z[2 * t] = y[0] - y[s];
    z[3 * t] = y[s];
  }
};

// Taps to their values at all points, and the transpose.
template <int Taps>
SIMD_INLINE void filter(const Vec<float>* g, int s, Vec<float>* u, int t) {
  const Vec<float> even = Taps == 3 ? g[0] + g[2 * s] : g[0];
  u[0] = g[0];
  u[t] = 0.5f * (even + g[s]);
  u[2 * t] = 0.5f * (even - g[s]);
  u[3 * t] = g[(Taps - 1) * s];
}
template <int Taps>
SIMD_INLINE void filter_gradient(const Vec<float>* u, int s, Vec<float>* g, int t) {
  const Vec<float> even = 0.5f * (u[s] + u[2 * s]), odd = 0.5f * (u[s] - u[2 * s]);
  g[0] = u[0] + even;
  g[t] = Taps == 3 ? odd : odd + u[3 * s];
  if constexpr (Taps == 3) g[2 * t] = even + u[3 * s];
}

// Calls f with the forms of a tile along y and along x.
template <class F>
SIMD_INLINE void with_forms(const Shape& shape, int64_t ty, int64_t tx, const F& f) {
  const int y = shape.y.pieces[ty].outputs, x = shape.x.pieces[tx].outputs;
  if (shape.taps == 3) return f(TwoOfThree(), TwoOfThree());
  if (y == 3) return x == 3 ? f(ThreeOfTwo(), ThreeOfTwo()) : f(ThreeOfTwo(), TwoOfTwo());
  return x == 3 ? f(TwoOfTwo(), ThreeOfTwo()) : f(TwoOfTwo(), TwoOfTwo());
}

// The pair of points of product i of a tile.
template <class Y, class X>
constexpr int pair_of(int i) {
  return (Y::first + i / X::products) * points + X::first + i % X::products;
}

constexpr int L = lanes<float>;
constexpr int panel = 2 * L;  // channels of an output whose products share one reading of the left factor
constexpr int max_rows = SIMD_BYTES == 64 ? 14 : 6;  // sums that the registers hold, over two
constexpr int64_t block_depth = 64;                  // products summed up at a time; longer sums err more

// Inputs of row `row` of tiles to the rows of `factors`.  Out of the picture they are zero.
inline void transform_input(const Shape& shape, const Group& group, int64_t row, int out_y, int out_x,
                            const float* input, const float* zeros, float* factors) {
  const int64_t C = shape.in_channels, ty = row % shape.y.pieces.size(), S = shape.in_phases;
  const int64_t pixel = shape.in_pitch;
  const float* const image = input + row / shape.y.pieces.size() * shape.in_height * shape.in_width * pixel;
  const int64_t columns = shape.x.pieces.size(), steps = columns * S * S;
  const float* sources[2][pairs];
  const auto find_sources = [&](int64_t step, const float** from) {
    const int64_t tx = step / (S * S), phase = step % (S * S);
    with_forms(shape, ty, tx, [&](auto y, auto x) {
      for (int i = 0; i < y.inputs * x.inputs; ++i) {
        const int64_t r = S * (shape.y.pieces[ty].start + i / x.inputs) + phase / S + out_y - 1;
        const int64_t c = S * (shape.x.pieces[tx].start + i % x.inputs) + phase % S + out_x - 1;
        const bool inside = r >= 0 && c >= 0 && r < shape.in_height && c < shape.in_width;
        from[i] = inside ? image + (r * shape.in_width + c) * pixel : zeros;
      }
    });
  };
  std::fill_n(sources[0], 2 * pairs, zeros);
  find_sources(0, sources[0]);
  for (int64_t step = 0; step < steps; ++step) {
    const float *const *const from = sources[step % 2], **const next = sources[(step + 1) % 2];
    if (step + 1 < steps) find_sources(step + 1, next);
    with_forms(shape, ty, step / (S * S), [&](auto y, auto x) __attribute__((always_inline)) {
      using Y = decltype(y);
      using X = decltype(x);
      float* to[pairs];
      for (int i = 0; i < Y::products * X::products; ++i) {
        const int e = pair_of<Y, X>(i);
        to[i] = factors + (group.offset[e] + group.index(shape, e, row, step / (S * S))) * shape.row_stride() +
                step % (S * S) * C;
      }
      for (int64_t c = 0; c < C; c += L) {
        Vec<float> d[pairs], h[pairs], v[pairs];
#pragma GCC unroll 16
        for (int i = 0; i < Y::inputs * X::inputs; ++i) {
          d[i] = load(from[i] + c);
          __builtin_prefetch(next[i] + c);
        }
#pragma GCC unroll 4
        for (int i = 0; i < Y::inputs; ++i) X::input(d + i * X::inputs, 1, h + i * X::products, 1);
#pragma GCC unroll 4
        for (int j = 0; j < X::products; ++j) Y::input(h + j, X::products, v + j, X::products);
#pragma GCC unroll 16
        for (int i = 0; i < Y::products * X::products; ++i) store(to[i] + c, v[i]);
      }
    });
  }
}

// Products of a panel's channels to the outputs of row `row` of tiles.
inline void transform_output(const Shape& shape, const Group& group, int64_t row, int out_y, int out_x,
                             const float* products, const float* bias, float* output) {
  const int64_t C = shape.out_channels, ty = row % shape.y.pieces.size(), S = shape.out_phases;
  const int64_t y_stride = S * shape.out_width * C, x_stride = S * C;
  float* const image =
      output + ((row / shape.y.pieces.size() * shape.out_height + out_y) * shape.out_width + out_x) * C;
  for (size_t tx = 0; tx < shape.x.pieces.size(); ++tx) {
    float* const to = image + shape.y.pieces[ty].start * y_stride + shape.x.pieces[tx].start * x_stride;
    with_forms(shape, ty, tx, [&](auto y, auto x) __attribute__((always_inline)) {
      using Y = decltype(y);
      using X = decltype(x);
      const float* from[pairs];
      for (int i = 0; i < Y::products * X::products; ++i) {
        const int e = pair_of<Y, X>(i);
        from[i] = products + (group.offset[e] + group.index(shape, e, row, tx)) * panel;
      }
      for (int c = 0; c < panel; c += L) {
        Vec<float> m[pairs], h[pairs], v[pairs];
        const Vec<float> shift = bias == nullptr ? Vec<float>{} : load(bias + c);
#pragma GCC unroll 16
        for (int i = 0; i < Y::products * X::products; ++i) m[i] = load(from[i] + c);
#pragma GCC unroll 4
        for (int j = 0; j < X::products; ++j) Y::output(m + j, X::products, h + j, X::products);
#pragma GCC unroll 4
        for (int i = 0; i < Y::outputs; ++i) X::output(h + i * X::products, 1, v + i * X::outputs, 1);
#pragma GCC unroll 9
        for (int i = 0; i < Y::outputs * X::outputs; ++i)
          store(to + i / X::outputs * y_stride + i % X::outputs * x_stride + c, v[i] + shift);
      }
    });
  }
}

// Gradients at the outputs of row `row` of tiles to the right factors of a weight's gradient: for each pair of points
// a panel of channels after the other.
inline void transform_gradient(const Shape& shape, const Group& group, int64_t row, const float* gradient,
                               float* factors) {
  const int64_t C = shape.out_channels, ty = row % shape.y.pieces.size();
  const int64_t y_stride = shape.out_width * C;
  const float* const image = gradient + row / shape.y.pieces.size() * shape.out_height * y_stride;
  for (size_t tx = 0; tx < shape.x.pieces.size(); ++tx) {
    const float* const from = image + shape.y.pieces[ty].start * y_stride + shape.x.pieces[tx].start * C;
    with_forms(shape, ty, tx, [&](auto y, auto x) __attribute__((always_inline)) {
      using Y = decltype(y);
      using X = decltype(x);
      float* to[pairs];
      int64_t step[pairs];
      for (int i = 0; i < Y::products * X::products; ++i) {
        const int e = pair_of<Y, X>(i);
        to[i] = factors + group.offset[e] * C + group.index(shape, e, row, tx) * panel;
        step[i] = group.size[e] * panel;
      }
      for (int64_t c = 0; c < C; c += L) {
        Vec<float> d[pairs], h[pairs], v[pairs];
#pragma GCC unroll 9
        for (int i = 0; i < Y::outputs * X::outputs; ++i)
          d[i] = load(from + i / X::outputs * y_stride + i % X::outputs * C + c);
#pragma GCC unroll 4
        for (int i = 0; i < Y::outputs; ++i) X::gradient(d + i * X::outputs, 1, h + i * X::products, 1);
#pragma GCC unroll 4
        for (int j = 0; j < X::products; ++j) Y::gradient(h + j, X::products, v + j, X::products);
#pragma GCC unroll 16
        for (int i = 0; i < Y::products * X::products; ++i) store(to[i] + c / panel * step[i] + c % panel, v[i]);
      }
    });
  }
}

// to[j][i] = from[i][j] of L x L values.
inline void transpose(const float* from, int64_t from_stride, float* to, int64_t to_stride) {
  for (int i = 0; i < L; i += 4) {
    Vec<float> v[4];
    for (int k = 0; k < 4; ++k) v[k] = load(from + (i + k) * from_stride);
    transpose_blocks(v);
    for (int k = 0; k < 4; ++k)
      for (int j = 0; j < L; j += 4) {
        const float four[4] = {v[k][j], v[k][j + 1], v[k][j + 2], v[k][j + 3]};
        __builtin_memcpy(to + (j + k) * to_stride + i, four, sizeof(four));
      }
  }
}

// The weights of a panel of output channels, of one phase of the output, to packed[slot][depth][panel].
template <int Taps>
void transform_weights(const Shape& shape, int64_t first, int out_y, int out_x, const float* weight, float* packed) {
  const int K = shape.kernel();
  const int64_t in = shape.in_channels, out = shape.out_channels, S = shape.in_phases;
  for (int64_t o = first; o < first + panel; o += L)
    for (int64_t c = 0; c < in; c += L)
      for (int phase = 0; phase < S * S; ++phase) {
        float taps[Taps * Taps][L][L];  // of channel c + i of the input, o + j of the output
        for (int t = 0; t < Taps * Taps; ++t) {
          const int64_t tap = shape.tap(t / Taps, phase / S, out_y) * K + shape.tap(t % Taps, phase % S, out_x);
          if (shape.transposed)
            for (int i = 0; i < L; ++i) store(taps[t][i], load(weight + ((c + i) * K * K + tap) * out + o));
          else
            transpose(weight + (o * K * K + tap) * in + c, K * K * in, taps[t][0], L);
        }
        float* const to = packed + (phase * in + c) * panel + o - first;
        for (int i = 0; i < L; ++i) {
          Vec<float> g[Taps * Taps], h[Taps * points], u[pairs];
#pragma GCC unroll 9
          for (int t = 0; t < Taps * Taps; ++t) g[t] = load(taps[t][i]);
#pragma GCC unroll 3
          for (int t = 0; t < Taps; ++t) filter<Taps>(g + t * Taps, 1, h + t * points, 1);
#pragma GCC unroll 4
          for (int p = 0; p < points; ++p) filter<Taps>(h + p, points, u + p, points);
#pragma GCC unroll 16
          for (int e = 0; e < pairs; ++e)
            if (shape.slot[e] >= 0) store(to + (shape.slot[e] * shape.depth + i) * panel, u[e]);
        }
      }
}

// Gradients at transformed weights, sums[slot][depth][panel] of the panel that starts at channel `first`, to those at
// the weights.
template <int Taps>
void transform_weight_gradient(const Shape& shape, int64_t first, const float* sums, float* gradient) {
  const int K = shape.kernel();
  const int64_t in = shape.in_channels, pitch = shape.in_pitch, S = shape.in_phases;
  for (int64_t o = first; o < first + panel; o += L)
    for (int64_t c = 0; c < in; c += L)
      for (int phase = 0; phase < S * S; ++phase) {
        float taps[Taps * Taps][L][L];
        const float* const from = sums + (phase * in + c) * panel + o - first;
        for (int i = 0; i < L; ++i) {
          Vec<float> u[pairs], h[Taps * points], g[Taps * Taps];
#pragma GCC unroll 16
          for (int e = 0; e < pairs; ++e)
            u[e] = shape.slot[e] < 0 ? Vec<float>{} : load(from + (shape.slot[e] * shape.depth + i) * panel);
#pragma GCC unroll 4
          for (int p = 0; p < points; ++p) filter_gradient<Taps>(u + p, points, h + p, points);
#pragma GCC unroll 3
          for (int t = 0; t < Taps; ++t) filter_gradient<Taps>(h + t * points, 1, g + t * Taps, 1);
#pragma GCC unroll 9
          for (int t = 0; t < Taps * Taps; ++t) store(taps[t][i], g[t]);
        }
        for (int t = 0; t < Taps * Taps; ++t) {
          const int64_t tap = shape.tap(t / Taps, phase / S, 0) * K + shape.tap(t % Taps, phase % S, 0);
          transpose(taps[t][0], L, gradient + (o * K * K + tap) * pitch + c, K * K * pitch);
        }
      }
}

// The sums of R rows' products with a panel, to sums or added to them.
template <int R>
SIMD_INLINE void store_sums(const Vec<float> (&s)[R][2], float* sums, bool add) {
#pragma GCC unroll 14
  for (int r = 0; r < R; ++r)
    for (int v = 0; v < 2; ++v) {
      float* const to = sums + r * panel + v * L;
      store(to, add ? load(to) + s[r][v] : s[r][v]);
    }
}

// Both multiplications below start from zero each time: long sums are made of short ones, whose rounding errors are
// small.

// sums[r] (+)= rows[r][k] * right[k] over k, for R rows and a panel.
template <int R>
void multiply(int64_t depth, const float* rows, int64_t stride, const float* right, float* sums, bool add) {
  Vec<float> s[R][2] = {};
  for (int64_t k = 0; k < depth; ++k, right += panel) {
    const Vec<float> w0 = load(right), w1 = load(right + L);
    __builtin_prefetch(right + 32 * panel);
    __builtin_prefetch(right + 32 * panel + L);
#pragma GCC unroll 14
    for (int r = 0; r < R; ++r) {
      const Vec<float> a = splat(rows[r * stride + k]);
      s[r][0] = mul_add(a, w0, s[r][0]);
      s[r][1] = mul_add(a, w1, s[r][1]);
    }
  }
  store_sums<R>(s, sums, add);
}

// sums[i] (+)= left[r][i] * right[r] over r, for N values of left's rows and a panel.
template <int N>
void multiply_transposed(int64_t rows, const float* left, int64_t stride, const float* right, float* sums, bool add) {
  Vec<float> s[N][2] = {};
  for (int64_t r = 0; r < rows; ++r, left += stride, right += panel) {
    const Vec<float> w0 = load(right), w1 = load(right + L);
    __builtin_prefetch(left + 8 * stride);
    __builtin_prefetch(right + 16 * panel);
    __builtin_prefetch(right + 16 * panel + L);
#pragma GCC unroll 14
    for (int i = 0; i < N; ++i) {
      const Vec<float> a = splat(left[i]);
      s[i][0] = mul_add(a, w0, s[i][0]);
      s[i][1] = mul_add(a, w1, s[i][1]);
    }
  }
  store_sums<N>(s, sums, add);
}

using Multiply = void (*)(int64_t, const float*, int64_t, const float*, float*, bool);
template <int... R>
constexpr std::array<Multiply, max_rows> multiplies(std::integer_sequence<int, R...>) {
  return {multiply<R + 1>...};
}
template <int... N>
constexpr std::array<Multiply, max_rows> multiplies_transposed(std::integer_sequence<int, N...>) {
  return {multiply_transposed<N + 1>...};
}

// Cuts [0, n) into the fewest parts of at most max_rows, as even as can be: f(begin, size).
template <class F>
SIMD_INLINE void in_parts(int64_t n, const F& f) {
  const int64_t parts = (n + max_rows - 1) / max_rows;
  for (int64_t i = 0; i < parts; ++i) f(n * i / parts, n * (i + 1) / parts - n * i / parts);
}

// Weights of the 32 output channels from `first` on, of one phase of the output.
void pack_weights(const Shape& shape, int64_t first, int out_y, int out_x, const float* weight, float* packed) {
  for (int64_t o = first; o < first + channel_block; o += panel) {
    float* const to = packed + o * shape.slots * shape.depth;
    if (shape.taps == 2)
      transform_weights<2>(shape, o, out_y, out_x, weight, to);
    else
      transform_weights<3>(shape, o, out_y, out_x, weight, to);
  }
}

// Some rows of tiles, of all phases of the output.  packed has the weights phase by phase.
void convolve(const Shape& shape, const Group& group, const float* input, const float* packed, const float* bias,
              const float* zeros, float* factors, float* products, float* output) {
  constexpr auto by_rows = multiplies(std::make_integer_sequence<int, max_rows>());
  const int S = shape.out_phases;
  for (int phase = 0; phase < S * S; ++phase, packed += shape.slots * shape.depth * shape.out_channels) {
    for (int64_t row = group.first; row < group.first + group.rows; ++row)
      transform_input(shape, group, row, phase / S, phase % S, input, zeros, factors);
    for (int64_t o = 0; o < shape.out_channels; o += panel) {
      for (int e = 0; e < pairs; ++e) {
        if (group.size[e] == 0) continue;
        const float* const left = factors + group.offset[e] * shape.row_stride();
        const float* const right = packed + (o * shape.slots + shape.slot[e] * panel) * shape.depth;
        for (int64_t k = 0; k < shape.depth; k += block_depth)
          in_parts(group.size[e], [&](int64_t r, int64_t n) {
            by_rows[n - 1](std::min(block_depth, shape.depth - k), left + r * shape.row_stride() + k,
                           shape.row_stride(), right + k * panel, products + (group.offset[e] + r) * panel, k > 0);
          });
      }
      const float* const shift = bias == nullptr ? nullptr : bias + o;
      for (int64_t row = group.first; row < group.first + group.rows; ++row)
        transform_output(shape, group, row, phase / S, phase % S, products, shift, output + o);
    }
  }
}

// A group's products, to the gradients at transformed weights or added to them, sums[32 / panel][slot][depth][panel]:
// at one pair of points, for the 32 output channels from `first` on.
void accumulate(const Shape& shape, const Group& group, int e, int64_t first, const float* left, const float* right,
                float* sums, bool add) {
  constexpr auto by_values = multiplies_transposed(std::make_integer_sequence<int, max_rows>());
  left += group.offset[e] * shape.row_stride();
  right += group.offset[e] * shape.out_channels + first * group.size[e];
  for (int64_t o = 0; o < channel_block; o += panel, right += group.size[e] * panel) {
    float* const to = sums + (o * shape.slots + shape.slot[e] * panel) * shape.depth;
    for (int64_t r = 0; r < group.size[e]; r += sum_rows)
      in_parts(shape.depth, [&](int64_t k, int64_t n) {
        by_values[n - 1](std::min(sum_rows, group.size[e] - r), left + r * shape.row_stride() + k, shape.row_stride(),
                         right + r * panel, to + k * panel, add || r > 0);
      });
  }
}

// The 32 output channels from `first` on.
void unpack_weight_gradient(const Shape& shape, int64_t first, const float* sums, float* gradient) {
  for (int64_t o = 0; o < channel_block; o += panel, sums += shape.slots * shape.depth * panel) {
    if (shape.taps == 2)
      transform_weight_gradient<2>(shape, first + o, sums, gradient);
    else
      transform_weight_gradient<3>(shape, first + o, sums, gradient);
  }
}
