// Products of image_conv_act for one SIMD level.  Included by image_conv_act_kernels.h only.
//
// Every sum is one chain in a fixed order, however many are taken together: grouping changes no bit.  It replaces what
// is there, or is added to it.

#if defined(SIMD_AVX512)
constexpr int from_rows = 6, from_vectors = 4, widest = 4, tap_rows = 12, tap_vectors = 2;
template <int V>
constexpr int max_pixels = V == 4 ? 6 : 8;
template <int C>
constexpr int to_vectors = C == 4 ? 6 : 8;
#else
constexpr int from_rows = 5, from_vectors = 2, widest = 2, tap_rows = 5, tap_vectors = 2;
template <int V>
constexpr int max_pixels = V == 2 ? 5 : 8;
template <int C>
constexpr int to_vectors = C == 4 ? 2 : 4;
#endif

// Where pairs are multiplied, each takes the place of a float.
template <bool Pairs>
using Factor = Product<std::conditional_t<Pairs, BFloat16, float>>;

// Lanes are positions: sums[v][r] of the strip's vectors at[v] + offsets[k] times weight[k][r].
template <bool Pairs, int V, int R>
void products_of_positions(const float* const (&at)[V], const int64_t* offsets, int64_t depth, const float* weight,
                           int64_t weight_stride, float* const (&sums)[V], int64_t sum_stride, bool add) {
  using F = Factor<Pairs>;
  Vec<float> sum[V * R];
  unroll<V * R>([&](auto i) __attribute__((always_inline)) { sum[i] = Vec<float>{}; });
  const float* p[V];
  unroll<V>([&](auto v) __attribute__((always_inline)) { p[v] = at[v]; });
  for (int64_t k = 0; k < depth; ++k, weight += weight_stride) {
    const int64_t offset = offsets[k];
    typename F::Vector x[V];
    unroll<V>([&](auto v) __attribute__((always_inline)) { x[v] = F::vector(p[v] + offset); });
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      const typename F::Vector w = F::all(weight + r);
      unroll<V>([&](auto v) __attribute__((always_inline)) { sum[r * V + v] = F::add(x[v], w, sum[r * V + v]); });
    });
  }
  unroll<V>([&](auto v) __attribute__((always_inline)) {
    float* const to = sums[v];
    if (to == nullptr) return;
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      float* const element = to + r * sum_stride;
      store(element, add ? load(element) + sum[r * V + v] : sum[r * V + v]);
    });
  });
}

template <bool Pairs, int V, int R>
void some_products_of_positions(int count, const float* const (&at)[V], const int64_t* offsets, int64_t depth,
                                const float* weight, int64_t weight_stride, float* const (&sums)[V], int64_t sum_stride,
                                bool add) {
  if constexpr (R > 1)
    if (count < R)
      return some_products_of_positions<Pairs, V, R - 1>(count, at, offsets, depth, weight, weight_stride, sums,
                                                         sum_stride, add);
  products_of_positions<Pairs, V, R>(at, offsets, depth, weight, weight_stride, sums, sum_stride, add);
}

// Lanes are channels: sums[p][v] of the strip's values offsets[k] + p * step times the vectors weight[k][v].
template <bool Pairs, int V, int P>
void products_of_channels(const float* strip, int64_t step, const int64_t* offsets, int64_t depth, const float* weight,
                          int64_t weight_stride, float* sums, bool add) {
  using F = Factor<Pairs>;
  constexpr int L = lanes<float>;
  Vec<float> sum[P * V];
  unroll<P * V>([&](auto i) __attribute__((always_inline)) { sum[i] = Vec<float>{}; });
  for (int64_t k = 0; k < depth; ++k, weight += weight_stride) {
    const float* const x = strip + offsets[k];
    typename F::Vector w[V];
    unroll<V>([&](auto v) __attribute__((always_inline)) { w[v] = F::vector(weight + v * L); });
    unroll<P>([&](auto p) __attribute__((always_inline)) {
      const typename F::Vector value = F::all(x + p * step);
      unroll<V>([&](auto v) __attribute__((always_inline)) { sum[p * V + v] = F::add(value, w[v], sum[p * V + v]); });
    });
  }
  unroll<P * V>(
      [&](auto i) __attribute__((always_inline)) { store(sums + i * L, add ? load(sums + i * L) + sum[i] : sum[i]); });
}

template <bool Pairs, int V, int P>
void some_products_of_channels(int count, const float* strip, int64_t step, const int64_t* offsets, int64_t depth,
                               const float* weight, int64_t weight_stride, float* sums, bool add) {
  if constexpr (P > 1)
    if (count < P)
      return some_products_of_channels<Pairs, V, P - 1>(count, strip, step, offsets, depth, weight, weight_stride, sums,
                                                        add);
  products_of_channels<Pairs, V, P>(strip, step, offsets, depth, weight, weight_stride, sums, add);
}

// Lanes are channels, the sums go over positions: sums[r][v] += strip[offsets[r] + i * step] times the vectors
// features[i][v].
template <bool Pairs, int V, int R>
void products_of_taps(const float* strip, int64_t step, const int64_t* offsets, int64_t rows, int64_t row_step,
                      int64_t columns, const float* features, int64_t feature_stride, float* sums, int64_t sum_stride) {
  using F = Factor<Pairs>;
  constexpr int L = lanes<float>;
  Vec<float> sum[R * V];
  unroll<R * V>([&](auto i) __attribute__((always_inline)) { sum[i] = Vec<float>{}; });
  for (int64_t y = 0; y < rows; ++y, strip += row_step) {
    const float* x[R];
    unroll<R>([&](auto r) __attribute__((always_inline)) { x[r] = strip + offsets[r]; });
    for (int64_t i = 0, end = columns * step; i < end; i += step, features += feature_stride) {
      typename F::Vector f[V];
      unroll<V>([&](auto v) __attribute__((always_inline)) { f[v] = F::vector(features + v * L); });
      unroll<R>([&](auto r) __attribute__((always_inline)) {
        const typename F::Vector value = F::all(x[r] + i);
        unroll<V>([&](auto v) __attribute__((always_inline)) { sum[r * V + v] = F::add(value, f[v], sum[r * V + v]); });
      });
    }
  }
  unroll<R * V>([&](auto i) __attribute__((always_inline)) {
    float* const to = sums + i / V * sum_stride + i % V * L;
    store(to, load(to) + sum[i]);
  });
}

template <bool Pairs, int V, int R>
void some_products_of_taps(int count, const float* strip, int64_t step, const int64_t* offsets, int64_t rows,
                           int64_t row_step, int64_t columns, const float* features, int64_t feature_stride,
                           float* sums, int64_t sum_stride) {
  if constexpr (R > 1)
    if (count < R)
      return some_products_of_taps<Pairs, V, R - 1>(count, strip, step, offsets, rows, row_step, columns, features,
                                                    feature_stride, sums, sum_stride);
  products_of_taps<Pairs, V, R>(strip, step, offsets, rows, row_step, columns, features, feature_stride, sums,
                                sum_stride);
}
