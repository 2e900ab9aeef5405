// Elementary functions of vectors.  Float errors are given in ulp of the result; double goes through the C library, lane
// by lane.  Included after vec.h, once per SIMD level; no include guard.

// c[0] + c[1] x + c[2] x^2 + ...
template <int N>
SIMD_INLINE Vec<float> polynomial(Vec<float> x, const float (&c)[N]) {
  Vec<float> p = splat(c[N - 1]);
  for (int k = N - 2; k >= 0; --k) p = mul_add(p, x, splat(c[k]));
  return p;
}

// v * 2^n for |n| < 250, with gradual underflow and overflow.
SIMD_INLINE Vec<float> scale_by_power(Vec<float> v, Vec<float> n) {
#if defined(SIMD_AVX512)
  return (Vec<float>)_mm512_maskz_scalef_ps(all_lanes, (__m512)v, (__m512)n);
#else
  typedef VecType<float>::index Index;
  const Index whole = __builtin_convertvector(n, Index), half = whole >> 1;
  return v * (Vec<float>)((half + 127) << 23) * (Vec<float>)((whole - half + 127) << 23);
#endif
}

template <class A>
struct Exponential {
  Vec<A> exp;            // e^x
  Vec<A> expm1;          // e^x - 1
  Vec<A> expm1_minus_x;  // e^x - 1 - x, never negative
};

// None of the three cancels: all have a few ulp wherever they are finite and normal.
SIMD_INLINE Exponential<float> exponential(Vec<float> x) {
  typedef Vec<float> V;
  // x = n ln 2 + r with |r| <= ln 2 / 2, and e^r = 1 + r + r^2 q(r), minimax.  Beyond the bounds e^x is 0 or infinite.
  V bounded = x < -105.0f ? splat(-105.0f) : x;
  bounded = bounded > 90.0f ? splat(90.0f) : bounded;
  const V round = splat(12582912.0f);  // 1.5 * 2^23: what is added to it is rounded to an integer
  const V n = mul_add(bounded, splat(1.44269504f), round) - round;
  // n times the upper part of ln 2 is exact.
  V r = mul_add(n, splat(-0x1.62e4p-1f), bounded);
  r = mul_add(n, splat(-0x1.7f7d1cp-20f), r);
  const V rest = r * r * polynomial(r, {0.5f, 0x1.555556p-3f, 0x1.5554e4p-5f, 0x1.11114ep-7f, 0x1.6d48d4p-10f,
                                        0x1.a07488p-13f});
  const V y = r + rest;
  Exponential<float> e;
  e.exp = scale_by_power(1 + y, n);
  // For n in {-1, 0, 1}, from the parts; elsewhere the plain differences lose nothing.
  const V power = 1 + n * mul_add(n, splat(0.25f), splat(0.75f));  // 2^n
  const V constant = mul_add(n, splat(-0.693147181f), power - 1);
  const auto is_near = n * n < 2;
  e.expm1 = is_near ? mul_add(power, y, power - 1) : e.exp - 1;
  e.expm1_minus_x = is_near ? mul_add(power, rest, mul_add(power - 1, r, constant)) : e.expm1 - x;
  return e;
}
SIMD_INLINE Exponential<double> exponential(Vec<double> x) {
  Exponential<double> e;
  for (int i = 0; i < lanes<double>; ++i) {
    const double v = x[i];
    e.exp[i] = std::exp(v);
    e.expm1[i] = std::expm1(v);
    double series = 1;
    for (int k = 16; k > 2; --k) series = 1 + series * v / k;
    e.expm1_minus_x[i] = v > -0.5 && v < 0.5 ? 0.5 * v * v * series : e.expm1[i] - v;
  }
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
  const V p = polynomial(f, {0x1.55550cp-2f, -0x1.fffe5ap-3f, 0x1.99ce94p-3f, -0x1.55b886p-3f, 0x1.1eeb88p-3f,
                             -0x1.f02a78p-4f, 0x1.1e14c2p-3f, -0x1.0e51aep-3f});
  const V square = f * f;
  return mul_add(n, splat(0.693147181f), mul_add(square, mul_add(f, p, splat(-0.5f)), f));
}

// sin x and cos x for |x| <= pi / 4; 1 ulp.
SIMD_INLINE Vec<float> sin_first_octant(Vec<float> x) {
  const Vec<float> s = x * x;
  return mul_add(x * s, polynomial(s, {-0x1.555546p-3f, 0x1.11075cp-7f, -0x1.994cfep-13f}), x);
}
SIMD_INLINE Vec<float> cos_first_octant(Vec<float> x) {
  const Vec<float> s = x * x;
  return mul_add(s * s, polynomial(s, {0x1.55554ap-5f, -0x1.6c0c86p-10f, 0x1.9a00d8p-16f}), mul_add(s, splat(-0.5f), splat(1.0f)));
}

// e^x - 1 for 0 <= x <= 40; 2 ulp.
SIMD_INLINE Vec<float> expm1_of_positive(Vec<float> x) {
  typedef Vec<float> V;
  typedef VecType<float>::bits Bits;
  // As in exponential(), but 2^n is made of the bits of what rounded n.
  const V round = splat(12582912.0f), rounded = mul_add(x, splat(1.44269504f), round), n = rounded - round;
  V r = mul_add(n, splat(-0x1.62e4p-1f), x);
  r = mul_add(n, splat(-0x1.7f7d1cp-20f), r);
  const V y = mul_add(r * r,
                      polynomial(r, {0.5f, 0x1.555556p-3f, 0x1.5554e4p-5f, 0x1.11114ep-7f, 0x1.6d48d4p-10f,
                                     0x1.a07488p-13f}),
                      r);
  const V power = (V)(((Bits)rounded << 23) + 0x3f800000);
  return mul_add(power, y, power - 1);
}

// e^x = 2^n (1 + y), |y| <= 0.42, for |x| < 1000.
struct ReducedExponential {
  Vec<double> n, y;
};
SIMD_INLINE ReducedExponential reduced_exponential(Vec<double> x) {
  typedef Vec<double> V;
  const V round = splat(6755399441055744.0);  // 1.5 * 2^52
  const V n = mul_add(x, splat(0x1.71547652b82fep+0), round) - round;
  V r = mul_add(n, splat(-0x1.62e42feep-1), x);  // exact
  r = mul_add(n, splat(-0x1.a39ef35793c76p-33), r);
  // (e^r - 1 - r) / r^2 by Taylor's series: the first term left out is 3e-17 of the first one.
  V q = splat(1 / 6227020800.0);
  for (double c : {1 / 479001600.0, 1 / 39916800.0, 1 / 3628800.0, 1 / 362880.0, 1 / 40320.0, 1 / 5040.0, 1 / 720.0,
                   1 / 120.0, 1 / 24.0, 1 / 6.0, 1 / 2.0})
    q = mul_add(q, r, splat(c));
  return {n, mul_add(r * r, q, r)};
}
// 2^n for integers n, |n| < 1000.
SIMD_INLINE Vec<double> power_of_two(Vec<double> n) {
  typedef VecType<double>::bits Bits;
  return (Vec<double>)(((Bits)(n + 6755399441055744.0) + 1023) << 52);
}
SIMD_INLINE Vec<double> expm1_of_positive(Vec<double> x) {
  const ReducedExponential e = reduced_exponential(x);
  const Vec<double> power = power_of_two(e.n);
  return mul_add(power, e.y, power - 1);
}

SIMD_INLINE Vec<float> exp_of_negative(Vec<float> x) { return exponential(x).exp; }
SIMD_INLINE Vec<double> exp_of_negative(Vec<double> x) {
  const ReducedExponential e = reduced_exponential(x < -750.0 ? splat(-750.0) : x);
  const auto half = e.n < -500.0;  // in two factors, for gradual underflow
  const Vec<double> first = half ? splat(-500.0) : e.n;
  return (1 + e.y) * power_of_two(first) * power_of_two(e.n - first);
}

template <class A>
SIMD_INLINE Vec<A> absolute(typename VecType<A>::type x) {
  typedef typename VecType<A>::bits Bits;
  return (Vec<A>)((Bits)x & ((Bits{} - 1) >> 1));
}

// 1 / (1 + e^-x); 2 ulp, also of the small results on the negative side.
template <class A>
SIMD_INLINE Vec<A> sigmoid_of(Vec<A> x, Vec<A> e) {
  return (x < 0 ? e : splat(A(1))) / (1 + e);
}
SIMD_INLINE Vec<float> sigmoid(Vec<float> x) { return sigmoid_of<float>(x, exp_of_negative(-absolute<float>(x))); }
SIMD_INLINE Vec<double> sigmoid(Vec<double> x) { return sigmoid_of<double>(x, exp_of_negative(-absolute<double>(x))); }

// 2 ulp; keeps the sign of a zero.
template <class A>
SIMD_INLINE Vec<A> tanh_of(typename VecType<A>::type x) {
  typedef Vec<A> V;
  typedef typename VecType<A>::bits Bits;
  const V magnitude = absolute<A>(x), twice = magnitude + magnitude;
  const V e = expm1_of_positive(twice > 40 ? splat(A(40)) : twice);
  return (V)((Bits)(e / (e + 2)) | ((Bits)x ^ (Bits)magnitude));
}
SIMD_INLINE Vec<float> tanh(Vec<float> x) { return tanh_of<float>(x); }
SIMD_INLINE Vec<double> tanh(Vec<double> x) { return tanh_of<double>(x); }
