// Vectors of one SIMD level, on GCC's vector extensions: arithmetic, comparisons and `mask ? a : b` are the compiler's,
// loads, stores and conversions are below.  float data computes in float, double in double, 16-bit floats in float.
// Included by for_each_simd_level.h only; no include guard.

#define SIMD_INLINE inline __attribute__((always_inline))

template <class A>
struct VecType;
template <>
struct VecType<float> {
  typedef float type __attribute__((vector_size(SIMD_BYTES)));
  typedef uint32_t bits __attribute__((vector_size(SIMD_BYTES)));
  typedef int32_t index __attribute__((vector_size(SIMD_BYTES)));
};
template <>
struct VecType<double> {
  typedef double type __attribute__((vector_size(SIMD_BYTES)));
  typedef uint64_t bits __attribute__((vector_size(SIMD_BYTES)));
  typedef int64_t index __attribute__((vector_size(SIMD_BYTES)));
};
template <class A>
using Vec = typename VecType<A>::type;
template <class A>
constexpr int lanes = SIMD_BYTES / sizeof(A);

#if defined(SIMD_AVX512)
// The zero-masked intrinsics with every lane on: GCC 12 warns about an uninitialised variable in the plain ones.
constexpr __mmask16 all_lanes = 0xffff;
#endif

template <class A>
SIMD_INLINE Vec<A> splat(A a) {
  return a - Vec<A>{};  // a - 0 keeps the sign of a zero, a + 0 would not
}

// Calls f(0), ..., f(N - 1) with constants for arguments: arrays that are indexed by them become registers.
template <class F, int... I>
SIMD_INLINE void unroll(const F& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>()), ...);
}
template <int N, class F>
SIMD_INLINE void unroll(const F& f) {
  unroll(f, std::make_integer_sequence<int, N>());
}

SIMD_INLINE Vec<float> load(const float* p) {
  Vec<float> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
SIMD_INLINE Vec<double> load(const double* p) {
  Vec<double> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
SIMD_INLINE void store(float* p, Vec<float> v) { __builtin_memcpy(p, &v, sizeof(v)); }
SIMD_INLINE void store(double* p, Vec<double> v) { __builtin_memcpy(p, &v, sizeof(v)); }

// Past the caches, to memory aligned to the bytes written; end with stream_fence().
SIMD_INLINE void stream(float* p, Vec<float> v) {
#if defined(SIMD_AVX512)
  _mm512_stream_ps(p, (__m512)v);
#elif defined(SIMD_AVX2)
  _mm256_stream_ps(p, (__m256)v);
#else
  store(p, v);
#endif
}
SIMD_INLINE void stream(double* p, Vec<double> v) {
#if defined(SIMD_AVX512)
  _mm512_stream_pd(p, (__m512d)v);
#elif defined(SIMD_AVX2)
  _mm256_stream_pd(p, (__m256d)v);
#else
  store(p, v);
#endif
}
SIMD_INLINE void stream_fence() {
#if defined(SIMD_AVX512) || defined(SIMD_AVX2)
  _mm_sfence();
#endif
}

// Reads ahead of a kernel that goes through several rows at a time, column by column: more streams than the processor
// follows by itself.  The rows that come next are read in the order in which they lie in memory.
template <class T>
class ReadAhead {
 public:
  SIMD_INLINE explicit ReadAhead(const T* next) : next_(next) {}

  // As much as a vector of each of so many rows.
  SIMD_INLINE void advance(int rows) {
    const int elements = rows * lanes<Acc<T>>;
    for (int i = 0; i < elements; i += 64 / sizeof(T)) __builtin_prefetch(next_ + i);
    next_ += elements;
  }

 private:
  const T* next_;
};

// 16-bit floats pass through vectors of half the size.
#if defined(SIMD_AVX512)
typedef __m256i Narrow;
SIMD_INLINE Narrow load_narrow(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
SIMD_INLINE void store_narrow(void* p, Narrow v) { _mm256_storeu_si256(static_cast<__m256i*>(p), v); }
SIMD_INLINE void stream_narrow(void* p, Narrow v) { _mm256_stream_si256(static_cast<__m256i*>(p), v); }
#elif defined(SIMD_AVX2)
typedef __m128i Narrow;
SIMD_INLINE Narrow load_narrow(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
SIMD_INLINE void store_narrow(void* p, Narrow v) { _mm_storeu_si128(static_cast<__m128i*>(p), v); }
SIMD_INLINE void stream_narrow(void* p, Narrow v) { _mm_stream_si128(static_cast<__m128i*>(p), v); }
#else
typedef uint16_t Narrow __attribute__((vector_size(SIMD_BYTES / 2)));
SIMD_INLINE Narrow load_narrow(const void* p) {
  Narrow v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}
SIMD_INLINE void store_narrow(void* p, Narrow v) { __builtin_memcpy(p, &v, sizeof(v)); }
SIMD_INLINE void stream_narrow(void* p, Narrow v) { store_narrow(p, v); }
#endif

// bfloat16 is the upper half of a float; rounded to nearest even, NaN stays NaN.
#if defined(SIMD_AVX512)
// One permutation moves 16-bit halves to where they belong: of the ports that shuffle and shift there is one each.
typedef uint16_t Halves __attribute__((vector_size(64)));
SIMD_INLINE Vec<float> widen(Narrow v, BFloat16) {
  const Halves twice = {0, 0, 1, 1, 2,  2,  3,  3,  4,  4,  5,  5,  6,  6,  7,  7,
                        8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15};
  return (Vec<float>)_mm512_maskz_permutexvar_epi16(0xaaaaaaaa, (__m512i)twice, _mm512_castsi256_si512(v));
}
#if defined(SIMD_BF16_PRODUCTS)
SIMD_INLINE Narrow narrow(Vec<float> v, BFloat16) { return (Narrow)_mm512_maskz_cvtneps_pbh(all_lanes, (__m512)v); }
#else
SIMD_INLINE Narrow narrow(Vec<float> v, BFloat16) {
  const Halves uppers = {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
  const __m512i bits = (__m512i)v, one = _mm512_set1_epi32(1);
  const __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(0x10000));
  const __mmask16 nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
  __m512i rounded = _mm512_maskz_add_epi32(all_lanes, bits, _mm512_set1_epi32(0x7fff));
  rounded = _mm512_mask_add_epi32(rounded, odd, rounded, one);
  rounded = _mm512_mask_mov_epi32(rounded, nan, _mm512_set1_epi32(0x7fc00000));
  const __m512i packed = _mm512_maskz_permutexvar_epi16(0xffffffff, (__m512i)uppers, rounded);
  Narrow lower;
  __builtin_memcpy(&lower, &packed, sizeof(lower));
  return lower;
}
#endif
#else
SIMD_INLINE Vec<float> widen(Narrow v, BFloat16) {
#if defined(SIMD_AVX2)
  return (Vec<float>)((VecType<float>::bits)_mm256_cvtepu16_epi32(v) << 16);
#else
  return (Vec<float>)(__builtin_convertvector(v, VecType<float>::bits) << 16);
#endif
}
SIMD_INLINE Narrow narrow(Vec<float> v, BFloat16) {
  typedef VecType<float>::bits Bits;
  const Bits b = (Bits)v;
  const Bits rounded = (b + 0x7fff + ((b >> 16) & 1)) >> 16;
  const Bits r = v == v ? rounded : Bits{} + 0x7fc0;
#if defined(SIMD_AVX2)
  const __m256i packed = _mm256_packus_epi32((__m256i)r, (__m256i)r);
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, _MM_SHUFFLE(3, 1, 2, 0)));
#else
  return __builtin_convertvector(r, Narrow);
#endif
}
#endif

#if !defined(SIMD_AVX2) && !defined(SIMD_AVX512)
// Without instructions for it, float16 takes tens of others: they are in the library once for each source, not at each
// load and store.
__attribute__((noinline)) inline Vec<float> widen_half(Narrow v) {
  Vec<float> wide{};
  for (int i = 0; i < lanes<float>; ++i) wide[i] = static_cast<float>(Half(v[i], Half::from_bits()));
  return wide;
}
__attribute__((noinline)) inline Narrow narrow_half(Vec<float> v) {
  Narrow out;
  for (int i = 0; i < lanes<float>; ++i) out[i] = Half(static_cast<float>(v[i])).x;
  return out;
}
#endif

SIMD_INLINE Vec<float> widen(Narrow v, Half) {
#if defined(SIMD_AVX512)
  return (Vec<float>)_mm512_maskz_cvtph_ps(all_lanes, v);
#elif defined(SIMD_AVX2)
  return (Vec<float>)_mm256_cvtph_ps(v);
#else
  return widen_half(v);
#endif
}
SIMD_INLINE Narrow narrow(Vec<float> v, Half) {
#if defined(SIMD_AVX512)
  return _mm512_maskz_cvtps_ph(all_lanes, (__m512)v, _MM_FROUND_TO_NEAREST_INT);
#elif defined(SIMD_AVX2)
  return _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT);
#else
  return narrow_half(v);
#endif
}

template <class T>
SIMD_INLINE Vec<float> load(const T* p) {
  return widen(load_narrow(p), T());
}
template <class T>
SIMD_INLINE void store(T* p, Vec<float> v) {
  store_narrow(p, narrow(v, T()));
}
template <class T>
SIMD_INLINE void stream(T* p, Vec<float> v) {
  stream_narrow(p, narrow(v, T()));
}

// The first n < lanes elements; the other lanes read as zero and are not written.
#if defined(SIMD_AVX512)
SIMD_INLINE Vec<float> load_first(const float* p, int n) {
  return (Vec<float>)_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p);
}
SIMD_INLINE Vec<double> load_first(const double* p, int n) {
  return (Vec<double>)_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << n) - 1), p);
}
SIMD_INLINE void store_first(float* p, Vec<float> v, int n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), (__m512)v);
}
SIMD_INLINE void store_first(double* p, Vec<double> v, int n) {
  _mm512_mask_storeu_pd(p, static_cast<__mmask8>((1u << n) - 1), (__m512d)v);
}
template <class T>
SIMD_INLINE Vec<float> load_first(const T* p, int n) {
  return widen(_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1u << n) - 1), p), T());
}
template <class T>
SIMD_INLINE void store_first(T* p, Vec<float> v, int n) {
  _mm256_mask_storeu_epi16(p, static_cast<__mmask16>((1u << n) - 1), narrow(v, T()));
}
#else
template <class T>
SIMD_INLINE auto load_first(const T* p, int n) {
  T padded[SIMD_BYTES / 2] = {};
  for (int i = 0; i < n; ++i) padded[i] = p[i];
  return load(padded);
}
template <class T, class V>
SIMD_INLINE void store_first(T* p, V v, int n) {
  T padded[SIMD_BYTES / 2] = {};
  store(padded, v);
  for (int i = 0; i < n; ++i) p[i] = padded[i];
}
#endif

// One vector of elements, or its first n lanes.
template <bool Tail, class T>
SIMD_INLINE Vec<Acc<T>> read(const T* p, int n) {
  if constexpr (Tail) return load_first(p, n);
  return load(p);
}
template <bool Tail, class T>
SIMD_INLINE void write(T* p, Vec<Acc<T>> v, int n) {
  if constexpr (Tail)
    store_first(p, v, n);
  else
    store(p, v);
}

// Lanes from n on become zero.
template <class A>
SIMD_INLINE Vec<A> keep_first(typename VecType<A>::type v, int n) {
  typename VecType<A>::index lane;
  for (int i = 0; i < lanes<A>; ++i) lane[i] = i;
  return lane < n ? v : Vec<A>{};
}

// a * b + c, in one rounding where the level has it.
SIMD_INLINE Vec<float> mul_add(Vec<float> a, Vec<float> b, Vec<float> c) {
#if defined(SIMD_AVX512)
  return (Vec<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(SIMD_AVX2)
  return (Vec<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
  return a * b + c;
#endif
}
SIMD_INLINE Vec<double> mul_add(Vec<double> a, Vec<double> b, Vec<double> c) {
#if defined(SIMD_AVX512)
  return (Vec<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif defined(SIMD_AVX2)
  return (Vec<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#else
  return a * b + c;
#endif
}

#if defined(SIMD_BF16_PRODUCTS)
// Pairs of bfloat16, each as long as a float.
SIMD_INLINE __m512i load_pairs(const void* p) { return _mm512_loadu_si512(p); }
SIMD_INLINE __m512i splat_pair(const void* p) {
  int32_t pair;
  __builtin_memcpy(&pair, p, sizeof(pair));
  return _mm512_set1_epi32(pair);
}
// Every element of a with that of b above it.
SIMD_INLINE __m512i make_pairs(Narrow a, Narrow b) {
  typedef VecType<float>::bits Bits;
  const Bits lower = (Bits)_mm512_maskz_cvtepu16_epi32(all_lanes, a);
  return (__m512i)(lower | (Bits)_mm512_maskz_cvtepu16_epi32(all_lanes, b) << 16);
}
// sum + both products of every pair of pairs.
SIMD_INLINE Vec<float> add_products(__m512i a, __m512i b, Vec<float> sum) {
  return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#endif

// What is multiplied: a vector of factors, and one factor for all its lanes.  With bfloat16 a factor is a pair of
// values, and the product is their dot product.
template <class E>
struct Product {
  typedef Vec<E> Vector;
  static SIMD_INLINE Vector vector(const E* p) { return load(p); }
  static SIMD_INLINE Vector all(const E* p) { return splat(*p); }
  static SIMD_INLINE Vec<E> add(Vector a, Vector b, Vec<E> sum) { return mul_add(a, b, sum); }
};
#if defined(SIMD_BF16_PRODUCTS)
template <>
struct Product<BFloat16> {
  typedef __m512i Vector;
  static SIMD_INLINE Vector vector(const void* p) { return load_pairs(p); }
  static SIMD_INLINE Vector all(const void* p) { return splat_pair(p); }
  static SIMD_INLINE Vec<float> add(Vector a, Vector b, Vec<float> sum) { return add_products(a, b, sum); }
};
#endif

// v, but at least or at most `bound`; NaN stays NaN, which is why v is the second operand.
#if defined(SIMD_AVX512)
SIMD_INLINE Vec<float> at_least(Vec<float> v, Vec<float> bound) {
  return (Vec<float>)_mm512_maskz_max_ps(all_lanes, (__m512)bound, (__m512)v);
}
SIMD_INLINE Vec<float> at_most(Vec<float> v, Vec<float> bound) {
  return (Vec<float>)_mm512_maskz_min_ps(all_lanes, (__m512)bound, (__m512)v);
}
SIMD_INLINE Vec<double> at_least(Vec<double> v, Vec<double> bound) {
  return (Vec<double>)_mm512_maskz_max_pd(static_cast<__mmask8>(all_lanes), (__m512d)bound, (__m512d)v);
}
SIMD_INLINE Vec<double> at_most(Vec<double> v, Vec<double> bound) {
  return (Vec<double>)_mm512_maskz_min_pd(static_cast<__mmask8>(all_lanes), (__m512d)bound, (__m512d)v);
}
#elif defined(SIMD_AVX2)
SIMD_INLINE Vec<float> at_least(Vec<float> v, Vec<float> bound) {
  return (Vec<float>)_mm256_max_ps((__m256)bound, (__m256)v);
}
SIMD_INLINE Vec<float> at_most(Vec<float> v, Vec<float> bound) {
  return (Vec<float>)_mm256_min_ps((__m256)bound, (__m256)v);
}
SIMD_INLINE Vec<double> at_least(Vec<double> v, Vec<double> bound) {
  return (Vec<double>)_mm256_max_pd((__m256d)bound, (__m256d)v);
}
SIMD_INLINE Vec<double> at_most(Vec<double> v, Vec<double> bound) {
  return (Vec<double>)_mm256_min_pd((__m256d)bound, (__m256d)v);
}
#else
SIMD_INLINE Vec<float> at_least(Vec<float> v, Vec<float> bound) { return v < bound ? bound : v; }
SIMD_INLINE Vec<float> at_most(Vec<float> v, Vec<float> bound) { return v > bound ? bound : v; }
SIMD_INLINE Vec<double> at_least(Vec<double> v, Vec<double> bound) { return v < bound ? bound : v; }
SIMD_INLINE Vec<double> at_most(Vec<double> v, Vec<double> bound) { return v > bound ? bound : v; }
#endif

// Sum of all lanes, by halves.
#if defined(__SSE2__)
SIMD_INLINE float sum_of_lanes(__m128 v) {
  v = _mm_add_ps(v, _mm_movehl_ps(v, v));
  return _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps(v, v, 1)));
}
SIMD_INLINE double sum_of_lanes(__m128d v) { return _mm_cvtsd_f64(_mm_add_sd(v, _mm_unpackhi_pd(v, v))); }
#if defined(SIMD_AVX512) || defined(SIMD_AVX2)
SIMD_INLINE float sum_of_lanes(__m256 v) {
  return sum_of_lanes(_mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)));
}
SIMD_INLINE double sum_of_lanes(__m256d v) {
  return sum_of_lanes(_mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd(v, 1)));
}
#endif
#if defined(SIMD_AVX512)
SIMD_INLINE float sum_of_lanes(__m512 v) {
  return sum_of_lanes(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_maskz_extractf32x8_ps(0xff, v, 1)));
}
SIMD_INLINE double sum_of_lanes(__m512d v) {
  return sum_of_lanes(_mm256_add_pd(_mm512_castpd512_pd256(v), _mm512_maskz_extractf64x4_pd(0xf, v, 1)));
}
#endif
template <class A>
SIMD_INLINE A horizontal_sum(typename VecType<A>::type v) {
  constexpr bool is_float = std::is_same<A, float>::value;
#if defined(SIMD_AVX512)
  if constexpr (is_float) return sum_of_lanes((__m512)v);
  if constexpr (!is_float) return sum_of_lanes((__m512d)v);
#elif defined(SIMD_AVX2)
  if constexpr (is_float) return sum_of_lanes((__m256)v);
  if constexpr (!is_float) return sum_of_lanes((__m256d)v);
#else
  if constexpr (is_float) return sum_of_lanes((__m128)v);
  if constexpr (!is_float) return sum_of_lanes((__m128d)v);
#endif
}
#else
template <class A>
SIMD_INLINE A horizontal_sum(typename VecType<A>::type v) {
  A lane[lanes<A>];
  store(lane, v);
  for (int half = lanes<A> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}
#endif

// 1 / v for a normal v whose reciprocal is normal; 1 ulp.
SIMD_INLINE Vec<float> reciprocal(Vec<float> v) {
#if defined(SIMD_AVX512)
  // A step of Newton's method after 14 bits: a division takes ten cycles, these take three.
  const Vec<float> r = (Vec<float>)_mm512_maskz_rcp14_ps(all_lanes, (__m512)v);
  return mul_add(r, (Vec<float>)_mm512_fnmadd_ps((__m512)v, (__m512)r, _mm512_set1_ps(1)), r);
#else
  return 1 / v;
#endif
}
SIMD_INLINE Vec<double> reciprocal(Vec<double> v) { return 1 / v; }

SIMD_INLINE Vec<float> sqrt(Vec<float> v) {
#if defined(SIMD_AVX512)
  return (Vec<float>)_mm512_maskz_sqrt_ps(all_lanes, (__m512)v);
#elif defined(SIMD_AVX2)
  return (Vec<float>)_mm256_sqrt_ps((__m256)v);
#elif defined(__SSE2__)
  return (Vec<float>)_mm_sqrt_ps((__m128)v);
#else
  for (int i = 0; i < lanes<float>; ++i) v[i] = std::sqrt(v[i]);
  return v;
#endif
}

// Unsigned integers, rounded to the nearest float.
SIMD_INLINE Vec<float> to_float(VecType<float>::bits v) {
#if defined(SIMD_AVX512)
  return (Vec<float>)_mm512_maskz_cvtepu32_ps(all_lanes, (__m512i)v);
#else
  typedef VecType<float>::index Index;  // both halves are exact, their sum rounds once
  const Vec<float> upper = __builtin_convertvector((Index)(v >> 16), Vec<float>);
  const Vec<float> lower = __builtin_convertvector((Index)(v & 0xffff), Vec<float>);
  return upper * 65536.0f + lower;
#endif
}

// The 64-bit products of the lanes' lower 32 bits; the upper ones do not matter.
SIMD_INLINE VecType<double>::bits multiply_lower(VecType<double>::bits a, VecType<double>::bits b) {
#if defined(SIMD_AVX512)
  return (VecType<double>::bits)_mm512_maskz_mul_epu32(static_cast<__mmask8>(all_lanes), (__m512i)a, (__m512i)b);
#elif defined(SIMD_AVX2)
  return (VecType<double>::bits)_mm256_mul_epu32((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
  return (VecType<double>::bits)_mm_mul_epu32((__m128i)a, (__m128i)b);
#else
  return (a & 0xffffffff) * (b & 0xffffffff);
#endif
}

// a ^ b ^ c.  (Written with operators it becomes the same instruction, yet reparameterize_kl takes 5% longer: GCC 12.)
SIMD_INLINE VecType<double>::bits exclusive_or(VecType<double>::bits a, VecType<double>::bits b,
                                               VecType<double>::bits c) {
#if defined(SIMD_AVX512)
  return (VecType<double>::bits)_mm512_ternarylogic_epi64((__m512i)a, (__m512i)b, (__m512i)c, 0x96);
#else
  return a ^ b ^ c;
#endif
}

// The lower 32 bits of the lanes of a and b in turns.
SIMD_INLINE VecType<float>::bits join_lower(VecType<double>::bits a, VecType<double>::bits b) {
#if defined(SIMD_AVX512)
  // 0xa0: lanes 0 0 2 2 of every four.
  return (VecType<float>::bits)_mm512_mask_shuffle_epi32((__m512i)a, 0xaaaa, (__m512i)b,
                                                         static_cast<_MM_PERM_ENUM>(0xa0));
#else
  return (VecType<float>::bits)((a & 0xffffffff) | b << 32);
#endif
}

// Within every 16 bytes, lanes of a and b in turns: those of the lower or the upper 8 bytes, one or two at a time.
#if defined(SIMD_AVX512)
SIMD_INLINE Vec<float> zip_lower(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm512_maskz_unpacklo_ps(all_lanes, (__m512)a, (__m512)b);
}
SIMD_INLINE Vec<float> zip_upper(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm512_maskz_unpackhi_ps(all_lanes, (__m512)a, (__m512)b);
}
SIMD_INLINE Vec<float> zip_lower_pairs(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm512_maskz_unpacklo_pd(static_cast<__mmask8>(all_lanes), (__m512d)a, (__m512d)b);
}
SIMD_INLINE Vec<float> zip_upper_pairs(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm512_maskz_unpackhi_pd(static_cast<__mmask8>(all_lanes), (__m512d)a, (__m512d)b);
}
#elif defined(SIMD_AVX2)
SIMD_INLINE Vec<float> zip_lower(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm256_unpacklo_ps((__m256)a, (__m256)b);
}
SIMD_INLINE Vec<float> zip_upper(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm256_unpackhi_ps((__m256)a, (__m256)b);
}
SIMD_INLINE Vec<float> zip_lower_pairs(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm256_unpacklo_pd((__m256d)a, (__m256d)b);
}
SIMD_INLINE Vec<float> zip_upper_pairs(Vec<float> a, Vec<float> b) {
  return (Vec<float>)_mm256_unpackhi_pd((__m256d)a, (__m256d)b);
}
#else
SIMD_INLINE Vec<float> zip_lower(Vec<float> a, Vec<float> b) { return Vec<float>{a[0], b[0], a[1], b[1]}; }
SIMD_INLINE Vec<float> zip_upper(Vec<float> a, Vec<float> b) { return Vec<float>{a[2], b[2], a[3], b[3]}; }
SIMD_INLINE Vec<float> zip_lower_pairs(Vec<float> a, Vec<float> b) { return Vec<float>{a[0], a[1], b[0], b[1]}; }
SIMD_INLINE Vec<float> zip_upper_pairs(Vec<float> a, Vec<float> b) { return Vec<float>{a[2], a[3], b[2], b[3]}; }
#endif

// Four numbers each from p, p + stride, p + 2 * stride, ...
SIMD_INLINE Vec<float> load_fours(const float* p, int64_t stride) {
#if defined(SIMD_AVX512)
  const __m256 lower = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + stride), 1);
  p += 2 * stride;
  const __m256 upper = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + stride), 1);
  return (Vec<float>)_mm512_maskz_insertf32x8(all_lanes, _mm512_castps256_ps512(lower), upper, 1);
#elif defined(SIMD_AVX2)
  return (Vec<float>)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(p)), _mm_loadu_ps(p + stride), 1);
#else
  return load(p);
#endif
}

// Transposes every 4 x 4 block of v, a block being the four lanes of the same 16 bytes of all four vectors.
SIMD_INLINE void transpose_blocks(Vec<float> (&v)[4]) {
  const Vec<float> a = zip_lower(v[0], v[1]), b = zip_upper(v[0], v[1]);
  const Vec<float> c = zip_lower(v[2], v[3]), d = zip_upper(v[2], v[3]);
  v[0] = zip_lower_pairs(a, c);
  v[1] = zip_upper_pairs(a, c);
  v[2] = zip_lower_pairs(b, d);
  v[3] = zip_upper_pairs(b, d);
}
