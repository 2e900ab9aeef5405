// How data moves into strips and out of sums, for one SIMD level.  Included by image_conv_act_kernels.h only.

// n elements in the type of the arithmetic.
template <class T>
SIMD_INLINE void widen_row(const T* from, int64_t n, float* to) {
  constexpr int L = lanes<float>;
  int64_t i = 0;
  for (; i + L <= n; i += L) store(to + i, load(from + i));
  if (i == n) return;
  if (n >= L)
    store(to + n - L, load(from + n - L));
  else
    store_first(to, load_first(from, n), n);
}

// The lanes 0, 2, 4, ... of a and then of b.
SIMD_INLINE Vec<float> even_lanes(Vec<float> a, Vec<float> b) {
#if defined(SIMD_AVX512)
  const VecType<float>::index lanes = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30};
  return (Vec<float>)_mm512_maskz_permutex2var_ps(all_lanes, (__m512)a, (__m512i)lanes, (__m512)b);
#elif defined(SIMD_AVX2)
  const __m256d pairs = _mm256_castps_pd(_mm256_shuffle_ps((__m256)a, (__m256)b, _MM_SHUFFLE(2, 0, 2, 0)));
  return (Vec<float>)_mm256_permute4x64_pd(pairs, _MM_SHUFFLE(3, 1, 2, 0));
#else
  return Vec<float>{a[0], a[2], b[0], b[2]};
#endif
}

// The 16-byte blocks of v, one to each row.
SIMD_INLINE void store_blocks(Vec<float> v, float* to, int64_t stride) {
#if defined(SIMD_AVX512)
  _mm_storeu_ps(to, _mm512_maskz_extractf32x4_ps(0xf, (__m512)v, 0));
  _mm_storeu_ps(to + stride, _mm512_maskz_extractf32x4_ps(0xf, (__m512)v, 1));
  _mm_storeu_ps(to + 2 * stride, _mm512_maskz_extractf32x4_ps(0xf, (__m512)v, 2));
  _mm_storeu_ps(to + 3 * stride, _mm512_maskz_extractf32x4_ps(0xf, (__m512)v, 3));
#elif defined(SIMD_AVX2)
  _mm_storeu_ps(to, _mm256_castps256_ps128((__m256)v));
  _mm_storeu_ps(to + stride, _mm256_extractf128_ps((__m256)v, 1));
#else
  (void)stride;
  store(to, v);
#endif
}

// to[c][r] = from[r][c].
template <class T>
void transpose(const T* from, int64_t from_stride, int64_t rows, int64_t columns, float* to, int64_t to_stride) {
  constexpr int L = lanes<float>;
  int64_t c = 0;
  if constexpr (L % 4 == 0) {
    for (; c + L <= columns; c += L) {
      int64_t r = 0;
      for (; r + 4 <= rows; r += 4) {
        Vec<float> v[4];
        for (int i = 0; i < 4; ++i) v[i] = load(from + (r + i) * from_stride + c);
        transpose_blocks(v);
        for (int i = 0; i < 4; ++i) store_blocks(v[i], to + (c + i) * to_stride + r, 4 * to_stride);
      }
      for (; r < rows; ++r)
        for (int i = 0; i < L; ++i) to[(c + i) * to_stride + r] = from[r * from_stride + c + i];
    }
  }
  for (; c < columns; ++c)
    for (int64_t r = 0; r < rows; ++r) to[c * to_stride + r] = from[r * from_stride + c];
}

#if defined(SIMD_BF16_PRODUCTS)
// to[i] = the pair of a[i] and b[i]; null stands for zeros.
SIMD_INLINE void zip_row(const BFloat16* a, const BFloat16* b, int64_t n, float* to) {
  constexpr int L = lanes<float>;
  for (int64_t i = 0; i < n; i += L) {
    const __mmask16 mask = n - i >= L ? all_lanes : static_cast<__mmask16>((1u << (n - i)) - 1);
    const Narrow u = _mm256_maskz_loadu_epi16(mask, a + i);
    const Narrow v = b ? _mm256_maskz_loadu_epi16(mask, b + i) : _mm256_setzero_si256();
    _mm512_mask_storeu_epi32(to + i, mask, make_pairs(u, v));
  }
}
#endif

// Every step-th element.
template <class T>
SIMD_INLINE void gather_row(const T* from, int64_t step, int64_t n, float* to) {
  constexpr int L = lanes<float>;
  if (step == 1) return widen_row(from, n, to);
  int64_t i = 0;
  if (step == 2)  // the last element that is read must not lie beyond the row
    for (; i + L < n; i += L, from += 2 * L) store(to + i, even_lanes(load(from), load(from + L)));
  for (; i < n; ++i, from += step) to[i] = *from;
}

// A row of a strip, to[i] = element i * stride - padding for those of `size` elements that there are, else zero.
// copy(first, step, n, to) copies n of them.
template <class To, class Copy>
SIMD_INLINE void copy_row(int64_t size, int64_t stride, int64_t padding, int64_t pitch, To* to, const Copy& copy) {
  const int64_t left = std::min(pitch, std::max<int64_t>(0, ceil_div(padding, stride)));
  const int64_t right = size > 0 ? std::max(left, std::min(pitch, ceil_div(size + padding, stride))) : left;
  std::fill_n(to, left, To(0.0f));
  if (right > left) copy(left * stride - padding, stride, right - left, to + left);
  std::fill(to + right, to + pitch, To(0.0f));
}

// The rows of the image that a block of features from row y on meets.  copy(first, step, n, to) copies elements of a
// sample; `to` has the type of `strip`.
template <class To, class Copy>
void copy_image(const FeatureBlocks& blocks, const Strides& strides, int64_t y, To* strip, const Copy& copy) {
  const ConvShape& shape = blocks.shape;
  const int64_t width = shape.x.image, padding = shape.x.padding, stride = shape.x.stride;
  const int64_t pitch = blocks.pitch * int64_t(sizeof(float) / sizeof(To));
  const int64_t channels = shape.image_channels, first_row = y * shape.y.stride - shape.y.padding;
  const auto copy_line = [&](int64_t c, int64_t r, int64_t size, int64_t step, int64_t before) {
    const int64_t row = first_row + r, begin = c * strides.channel + row * strides.row;
    const bool exists = row >= 0 && row < shape.y.image;
    copy_row(exists ? size : 0, step, before, pitch, strip,
             [&](int64_t first, int64_t by, int64_t n, To* to) { copy(begin + first, by, n, to); });
    strip += pitch;
  };
  if (blocks.form == Strip::pixels || blocks.form == Strip::pairs) {
    for (int64_t r = 0; r < blocks.image_rows; ++r) copy_line(0, r, width * channels, 1, padding * channels);
    return;
  }
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t r = 0; r < blocks.image_rows; ++r) {
      if (blocks.form == Strip::planes)
        copy_line(c, r, width, 1, padding);
      else
        for (int64_t phase = 0; phase < stride; ++phase) copy_line(c, r, width, stride, padding - phase);
    }
}

// The features that a tile of the image meets, strip[channel][row][i], zero where there are none.  The zeros beside the
// rows are there already if there is but one tile across.
template <class T>
void copy_features(const ImageTiles& tiles, const T* features, const Strides& strides, int64_t channels, int64_t y,
                   int64_t x, float* strip) {
  const ConvShape& shape = tiles.shape;
  const int64_t plane = tiles.feature_rows * tiles.pitch, first = x - tiles.before_x;
  const int64_t left = std::min(tiles.used, std::max<int64_t>(0, -first));
  const int64_t right = std::max(left, std::min(tiles.used, shape.x.features - first)), n = right - left;
  for (int64_t r = 0; r < tiles.feature_rows; ++r, strip += tiles.pitch) {
    const int64_t row = y - tiles.before_y + r;
    const bool exists = row >= 0 && row < shape.y.features && n > 0;
    if (!exists || tiles.horizontal > 1)
      for (int64_t c = 0; c < channels; ++c) {
        std::fill_n(strip + c * plane, exists ? left : tiles.used, 0.0f);
        if (exists) std::fill(strip + c * plane + right, strip + c * plane + tiles.used, 0.0f);
      }
    if (!exists) continue;
    const T* const from = features + row * strides.row + (first + left) * strides.column;
    if (strides.channels_last())
      transpose(from, strides.column, n, channels, strip + left, plane);
    else
      for (int64_t c = 0; c < channels; ++c) widen_row(from + c * strides.channel, n, strip + c * plane + left);
  }
}

// Some channels of a block's features, to[position][channel], in rows of `width`.
template <class T>
void copy_features(const T* features, const Strides& strides, int64_t channels, int64_t positions, int64_t width,
                   float* to) {
  if (!strides.channels_last()) return transpose(features, strides.channel, channels, positions, to, width);
  for (int64_t i = 0; i < positions; ++i) widen_row(features + i * strides.column, channels, to + i * width);
}

// A row of one channel from its phases: to[i] = sums[i % phases][i / phases] + bias.
SIMD_INLINE void interleave(const float* sums, int64_t plane, int64_t phases, int64_t n, float bias, float* to) {
  constexpr int L = lanes<float>;
  const Vec<float> b = splat(bias);
  int64_t i = 0;
  if (phases == 1)
    for (; i + L <= n; i += L) store(to + i, load(sums + i) + b);
  if constexpr (L % 4 == 0)
    if (phases == 2)
      for (; i + 2 * L <= n; i += 2 * L) {
        const Vec<float> even = load(sums + i / 2) + b, odd = load(sums + plane + i / 2) + b;
        store_blocks(zip_lower(even, odd), to + i, 8);
        store_blocks(zip_upper(even, odd), to + i + 4, 8);
      }
  for (; i < n; ++i) to[i] = sums[i % phases * plane + i / phases] + bias;
}

// A row of all channels: to[i][channel] = sums[i % phases][channel][i / phases] + bias[channel].  Four values are
// read and written at a time, which may go beyond the pixel: to the next one's, or past the end.
SIMD_INLINE void interleave(const float* sums, int64_t plane, int64_t phases, int64_t channel, int64_t channels,
                            int64_t n, const float* bias, float* to) {
  constexpr int L = lanes<float>;
  int64_t i = 0;
  if constexpr (L % 4 == 0)
    for (; i + L * phases <= n; i += L * phases)
      for (int64_t p = 0; p < phases; ++p) {
        Vec<float> v[4];
        for (int c = 0; c < 4; ++c) {
          const int64_t pixel = p + c / channels, of = c % channels;
          v[c] = load(sums + pixel % phases * plane + of * channel + i / phases + pixel / phases) + splat(bias[of]);
        }
        transpose_blocks(v);
        for (int k = 0; k < 4; ++k) store_blocks(v[k], to + (i + k * phases + p) * channels, 4 * phases * channels);
      }
  for (; i < n; ++i)
    for (int64_t c = 0; c < channels; ++c)
      to[i * channels + c] = sums[i % phases * plane + c * channel + i / phases] + bias[c];
}
