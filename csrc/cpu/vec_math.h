// Elementary functions of vectors; errors are in ulp of the result.
// Included after vec.h, once per SIMD level; no include guard.

// c[0] + c[1] x + c[2] x^2 + ...
template <class A, int N>
SIMD_INLINE Vec<A> polynomial(typename VecType<A>::type x, const A (&c)[N]) {
  Vec<A> p = splat(c[N - 1]);
  for (int k = N - 2; k >= 0; --k) p = mul_add(p, x, splat(c[k]));
  return p;
}

template <class A>
struct ExpConstants;
template <>
struct ExpConstants<float> {
  static constexpr float lowest = -105, highest = 90;  // beyond, e^x is 0 or infinite
  static constexpr float round = 0x1.8p23f;            // what is added to it is rounded to an integer
  static constexpr float ln2_upper = 0x1.62e4p-1f, ln2_lower = 0x1.7f7d1cp-20f;  // 150 ln2_upper is exact
  // Minimax for (e^r - 1 - r) / r^2.
  static constexpr float q[] = {0.5f, 0x1.555556p-3f, 0x1.5554e4p-5f, 0x1.11114ep-7f, 0x1.6d48d4p-10f, 0x1.a07488p-13f};
  // Minimax for e^-r.
  static constexpr float falling[] = {
      1, -1, 0x1.000002p-1, -0x1.5553cp-3, 0x1.55515cp-5, -0x1.1290a4p-7, 0x1.709ca2p-10};
  static constexpr float normal = 87;  // e^x and e^-x are normal numbers up to it
  static constexpr int exponent_bias = 127, mantissa_bits = 23;
};
template <>
struct ExpConstants<double> {
  static constexpr double lowest = -746, highest = 710;
  static constexpr double round = 0x1.8p52;
  static constexpr double ln2_upper = 0x1.62e42feep-1, ln2_lower = 0x1.a39ef35793c76p-33;
  // Taylor: 1 / (k + 2)!.
  static constexpr double q[] = {1. / 2,         1. / 6,          1. / 24,         1. / 120,     1. / 720,
                                 1. / 5040,      1. / 40320,      1. / 362880,     1. / 3628800, 1. / 39916800,
                                 1. / 479001600, 1. / 6227020800, 1. / 87178291200};
  static constexpr double falling[] = {
      1,          -1,         1. / 2,       -1. / 6,      1. / 24,        -1. / 120,      1. / 720,
      -1. / 5040, 1. / 40320, -1. / 362880, 1. / 3628800, -1. / 39916800, 1. / 479001600, -1. / 6227020800};
  static constexpr double normal = 708;
  static constexpr int exponent_bias = 1023, mantissa_bits = 52;
};

// 2^n for an integer n whose result is normal.
template <class A>
SIMD_INLINE Vec<A> power_of_two(typename VecType<A>::type n) {
  typedef ExpConstants<A> C;
  return (Vec<A>)(((typename VecType<A>::bits)(n + C::round) + C::exponent_bias) << C::mantissa_bits);
}

// v * 2^n, with gradual underflow and overflow.
SIMD_INLINE Vec<float> scale(Vec<float> v, Vec<float> n) {
#if defined(SIMD_AVX512)
  return (Vec<float>)_mm512_maskz_scalef_ps(all_lanes, (__m512)v, (__m512)n);
#else
  const Vec<float> half = (0.5f * n + ExpConstants<float>::round) - ExpConstants<float>::round;
  return v * power_of_two<float>(half) * power_of_two<float>(n - half);
#endif
}
SIMD_INLINE Vec<double> scale(Vec<double> v, Vec<double> n) {
#if defined(SIMD_AVX512)
  return (Vec<double>)_mm512_maskz_scalef_pd(static_cast<__mmask8>(all_lanes), (__m512d)v, (__m512d)n);
#else
  const Vec<double> half = (0.5 * n + ExpConstants<double>::round) - ExpConstants<double>::round;
  return v * power_of_two<double>(half) * power_of_two<double>(n - half);
#endif
}

template <class A>
struct Exponential {
  Vec<A> exp;            // e^x; 1 ulp
  Vec<A> expm1;          // e^x - 1; 2 ulp
  Vec<A> expm1_minus_x;  // e^x - 1 - x, never negative; 4 ulp
};

// None of the three cancels, wherever x is.
template <class A>
SIMD_INLINE Exponential<A> exponential(typename VecType<A>::type x) {
  typedef ExpConstants<A> C;
  typedef Vec<A> V;
  // x = n ln 2 + r with |r| <= ln 2 / 2, and e^r = 1 + r + r^2 q(r).
  const V bounded = at_most(at_least(x, splat(C::lowest)), splat(C::highest));
  const V n = mul_add(bounded, splat(A(1.4426950408889634)), splat(C::round)) - C::round;
  const V r = mul_add(n, splat(-C::ln2_lower), mul_add(n, splat(-C::ln2_upper), bounded));
  const V rest = r * r * polynomial<A>(r, C::q);
  const V y = r + rest;
  Exponential<A> e;
  e.exp = scale(1 + y, n);
  // For n in {-1, 0, 1}, from the parts; elsewhere the plain differences lose nothing.
  const V power = 1 + n * mul_add(n, splat(A(0.25)), splat(A(0.75)));  // 2^n
  const V constant = mul_add(n, splat(A(-0.6931471805599453)), power - 1);
  const auto is_near = n * n < 2;
  e.expm1 = is_near ? mul_add(power, y, power - 1) : e.exp - 1;
  e.expm1_minus_x = is_near ? mul_add(power, rest, mul_add(power - 1, r, constant)) : e.expm1 - x;
  return e;
}

// ln x for normal x > 0; 1 ulp.
SIMD_INLINE Vec<float> log(Vec<float> x) {
  typedef Vec<float> V;
  typedef VecType<float>::index Index;
  // x = 2^n (1 + f) with f in [-1/3, 1/3], and ln(1 + f) = f - f^2 / 2 + f^3 p(f), minimax.
  const Index from_two_thirds = (Index)x - 0x3f2aaaab;
  const V n = __builtin_convertvector(from_two_thirds >> 23, V);
  const V f = (V)((from_two_thirds & 0x7fffff) + 0x3f2aaaab) - 1;
  const V p = polynomial<float>(f, {0x1.55550cp-2f, -0x1.fffe5ap-3f, 0x1.99ce94p-3f, -0x1.55b886p-3f, 0x1.1eeb88p-3f,
                                    -0x1.f02a78p-4f, 0x1.1e14c2p-3f, -0x1.0e51aep-3f});
  const V square = f * f;
  return mul_add(n, splat(0.693147181f), mul_add(square, mul_add(f, p, splat(-0.5f)), f));
}

// sin x and cos x for |x| <= pi / 4; 1 ulp.
SIMD_INLINE Vec<float> sin_first_octant(Vec<float> x) {
  const Vec<float> s = x * x;
  return mul_add(x * s, polynomial<float>(s, {-0x1.555546p-3f, 0x1.11075cp-7f, -0x1.994cfep-13f}), x);
}
SIMD_INLINE Vec<float> cos_first_octant(Vec<float> x) {
  const Vec<float> s = x * x;
  return mul_add(s * s, polynomial<float>(s, {0x1.55554ap-5f, -0x1.6c0c86p-10f, 0x1.9a00d8p-16f}),
                 mul_add(s, splat(-0.5f), splat(1.0f)));
}

template <class A>
SIMD_INLINE Vec<A> absolute(typename VecType<A>::type x) {
  typedef typename VecType<A>::bits Bits;
  return (Vec<A>)((Bits)x & ((Bits{} - 1) >> 1));
}

// 1 / (1 + e^-x); 2.3 ulp, also where it is small: only about the subnormal numbers it is 0.
template <class A>
SIMD_INLINE Vec<A> sigmoid(typename VecType<A>::type x) {
  typedef ExpConstants<A> C;
  typedef Vec<A> V;
  typedef typename VecType<A>::bits Bits;
  // x = n ln 2 + r, so that e^-x = e^-r 2^-n: a normal number times a power of two that leaves it normal.
  const V bounded = at_most(at_least(x, splat(-C::normal)), splat(C::normal));
  const V shifted = mul_add(bounded, splat(A(1.4426950408889634)), splat(C::round));
  const V n = shifted - C::round;
  const V r = mul_add(n, splat(-C::ln2_lower), mul_add(n, splat(-C::ln2_upper), bounded));
  const V e = (V)((Bits)polynomial<A>(r, C::falling) - ((Bits)shifted << C::mantissa_bits));
  const V s = reciprocal(1 + e);
  return x < -C::normal ? V{} : s;
}

template <class A>
struct Logistic {
  Vec<A> sigmoid;   // 1 / (1 + e^-x)
  Vec<A> opposite;  // 1 / (1 + e^x)
};
// To the precision of T, in which what is computed of them is stored: 12 bits for bfloat16, where that is faster.
template <class T>
SIMD_INLINE Logistic<Acc<T>> logistic(typename VecType<Acc<T>>::type x, T) {
  const Vec<Acc<T>> s = sigmoid<Acc<T>>(x);
  return {s, 1 - s};
}
#if defined(SIMD_AVX512)
SIMD_INLINE Logistic<float> logistic(Vec<float> x, BFloat16) {
  // e^-x = 2^(n + f) with 0 <= f < 1, and 2^f by a minimax polynomial; 1 - sigmoid would cancel, e^-x * sigmoid does
  // not, and is NaN where e^-x is infinite: the least of NaN and 1 is the second of them.
  const float c[] = {0x1.fff632p-1f, 0x1.64444cp-1f, 0x1.cefc4cp-3f, 0x1.3f96a4p-4f};
  const Vec<float> y = x * -1.4426950408889634f;
  const Vec<float> f = (Vec<float>)_mm512_maskz_reduce_ps(all_lanes, (__m512)y, _MM_FROUND_TO_NEG_INF);
  const __m512 e = _mm512_maskz_scalef_ps(all_lanes, (__m512)polynomial<float>(f, c), (__m512)y);
  const __m512 s = _mm512_maskz_rcp14_ps(all_lanes, (__m512)((Vec<float>)e + 1));
  return {(Vec<float>)s,
          (Vec<float>)_mm512_maskz_min_ps(all_lanes, (__m512)((Vec<float>)e * (Vec<float>)s), _mm512_set1_ps(1))};
}
#endif

// 2 ulp; keeps the sign of a zero.
template <class A>
SIMD_INLINE Vec<A> tanh(typename VecType<A>::type x) {
  typedef ExpConstants<A> C;
  typedef Vec<A> V;
  typedef typename VecType<A>::bits Bits;
  // (e^2x - 1) / (e^2x + 1) for positive x, where e^2x - 1 = 2^n (1 + y) - 1 does not cancel.
  const V magnitude = absolute<A>(x), twice = at_most(magnitude + magnitude, splat(A(40)));
  const V n = mul_add(twice, splat(A(1.4426950408889634)), splat(C::round)) - C::round;
  const V r = mul_add(n, splat(-C::ln2_lower), mul_add(n, splat(-C::ln2_upper), twice));
  const V y = mul_add(r * r, polynomial<A>(r, C::q), r), power = power_of_two<A>(n);
  const V e = mul_add(power, y, power - 1);
  return (V)((Bits)(e / (e + 2)) | ((Bits)x ^ (Bits)magnitude));
}
