#pragma once
// Gaussian maths, one element at a time: standard normals from a seed, and the Kullback-Leibler divergence of two
// normal distributions with its derivatives.
#include <cmath>
#include <cstdint>
#include <cstring>

#include "host_device.h"
#include "philox.h"

namespace genimg_fast {

HOST_DEVICE float multiply_add(float x, float y, float z) { return fmaf(x, y, z); }
HOST_DEVICE double multiply_add(double x, double y, double z) { return fma(x, y, z); }

// coefficients[0] + x * (coefficients[1] + ...)
template <class A, int N>
HOST_DEVICE A polynomial(const A (&coefficients)[N], A x) {
  A sum = coefficients[N - 1];
  UNROLL
  for (int k = N - 2; k >= 0; --k) sum = multiply_add(sum, x, coefficients[k]);
  return sum;
}

// Standard normals.

// -2 ln x of a positive, normal, finite x, to 1.2 ulp: x = 2^k (1 - g / 2) with g in (-2/3, 2/3].
HOST_DEVICE float minus_two_log(float x) {
  // Q of -2 ln(1 - g / 2) = g + g^2 Q(g), minimax in the relative error (4e-8).
  constexpr float series[] = {0x1p-2f,       0x1.555528p-4f, 0x1.000b1cp-5f,  0x1.99c31ep-7f,
                              0x1.515a7p-8f, 0x1.1f9628p-9f, 0x1.35b3bep-10f, 0x1.1b09cap-11f};
  constexpr float minus_two_ln2 = -0x1.62e43p0f;
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint32_t exponent = (bits - 0x3f2aaaabu) & 0xff800000u;  // bits of 2/3
  bits -= exponent;
  float mantissa;
  memcpy(&mantissa, &bits, sizeof mantissa);
  const float g = multiply_add(mantissa, -2.0f, 2.0f);
  const float k = static_cast<float>(static_cast<int32_t>(exponent));  // times 2^23
  const float bend = polynomial(series, g) * g;
  return multiply_add(k, minus_two_ln2 * 0x1p-23f, multiply_add(bend, g, g));
}

// sin and cos of an angle in [-pi/4, pi/4], to 1 ulp.
HOST_DEVICE void sin_cos_of_octant(float angle, float* sine, float* cosine) {
  // S of sin a = a + a^3 S(a^2), and C of cos a = 1 + a^2 C(a^2): minimax, errors below 4e-9.
  constexpr float sine_series[] = {-0x1.555546p-3f, 0x1.11073ap-7f, -0x1.9943ep-13f};
  constexpr float cosine_series[] = {-0.5f, 0x1.55554ap-5f, -0x1.6c0c34p-10f, 0x1.99eb9cp-16f};
  const float square = angle * angle;
  *sine = multiply_add(polynomial(sine_series, square) * square, angle, angle);
  *cosine = multiply_add(polynomial(cosine_series, square), square, 1.0f);
}

// Of zero or a normal x; within 1 ulp.
HOST_DEVICE float square_root(float x) {
#if defined(__CUDA_ARCH__)
  float root;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(root) : "f"(x));
  return root;
#else
  return sqrtf(x);
#endif
}

// Changes the sign of x where the highest bit of `flip` is set.
HOST_DEVICE float flip_sign(float x, uint32_t flip) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  bits ^= flip & 0x80000000u;
  memcpy(&x, &bits, sizeof x);
  return x;
}

// Box and Muller 1958: two independent standard normals from two uniform words.
HOST_DEVICE void box_muller(uint32_t radial, uint32_t angular, float* x, float* y) {
  const float u = multiply_add(static_cast<float>(radial), 0x1p-32f, 0x1p-33f);  // in (0, 1]
  const float radius = square_root(minus_two_log(u));
  // The angle is 2 pi angular / 2^32.  Its quadrant is split off in integers, where that is exact: its number is in the
  // two upper bits of `turned`, and four times the rest is what a shift leaves.
  const uint32_t turned = angular + (1u << 29), once_more = turned + (1u << 30);
  constexpr float step = 0x1.921fb6p-32f;  // pi/2 * 2^-32
  float sine, cosine;
  sin_cos_of_octant(static_cast<float>(static_cast<int32_t>(angular << 2)) * step, &sine, &cosine);
  const bool odd = static_cast<int32_t>(turned ^ once_more) < 0;
  *x = flip_sign(radius * (odd ? sine : cosine), once_more);
  *y = flip_sign(radius * (odd ? cosine : sine), turned);
}

// Noise of elements 4 * group ... 4 * group + 3 of a sample (in row-major order): a function of these numbers and the
// seed only, whatever the tensor's layout, dtype, batch size or device.  `keys` are Philox's of the seed.
HOST_DEVICE void normals_of_group(const uint32_t (&keys)[philox_keys], uint64_t sample, uint64_t group,
                                  float (&normals)[4]) {
  uint32_t words[4] = {static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32), static_cast<uint32_t>(sample),
                       static_cast<uint32_t>(sample >> 32)};
  philox4x32(words, keys);
  box_muller(words[0], words[1], &normals[0], &normals[1]);
  box_muller(words[2], words[3], &normals[2], &normals[3]);
}

// Divergence.

HOST_DEVICE float exponential(float x) { return expf(x); }
HOST_DEVICE double exponential(double x) { return exp(x); }

// exp(x) less the first terms of its series.  Near zero the differences would lose every digit, the series does not.
template <class A>
struct ExpLess {
  A constant;  // exp(x) - 1
  A linear;    // exp(x) - 1 - x, never negative
};

HOST_DEVICE float exp_series(float x) {  // (exp(x) - 1 - x) / x^2 for |x| < 1/2: minimax, error below 3e-8
  constexpr float series[] = {0.5f, 0x1.555554p-3f, 0x1.555382p-5f, 0x1.11121p-7f, 0x1.6e8798p-10f, 0x1.a0d274p-13f};
  return polynomial(series, x);
}
HOST_DEVICE double exp_series(double x) {  // the Taylor series, error below 1e-17
  constexpr double series[] = {
      1.0 / 2,          1.0 / 6,           1.0 / 24,           1.0 / 120,           1.0 / 720,
      1.0 / 5040,       1.0 / 40320,       1.0 / 362880,       1.0 / 3628800,       1.0 / 39916800,
      1.0 / 479001600., 1.0 / 6227020800., 1.0 / 87178291200., 1.0 / 1307674368000.};
  return polynomial(series, x);
}

// Of x and its exponential.
template <class A>
HOST_DEVICE ExpLess<A> exp_less(A x, A exp_x) {
  const A far_constant = exp_x - A(1), series = exp_series(x) * x;
  const bool near = std::fabs(x) < A(0.5);
  return {near ? multiply_add(series, x, x) : far_constant, near ? series * x : far_constant - x};
}

// KL(N(mu, exp(logvar)) || N(prior_mu, exp(prior_logvar))) of one element, and its derivatives.  Those by the logarithm
// of a standard deviation, logvar / 2, are twice those by logvar.
template <class A>
struct GaussianKl {
  A value;
  A by_mu;  // by prior_mu: the negative
  A by_log_deviation;
  A by_prior_log_deviation;
};

// offset = mu - prior_mu, difference = logvar - prior_logvar, exp_difference = exp(difference),
// precision = exp(-prior_logvar).
template <class A>
HOST_DEVICE GaussianKl<A> gaussian_kl(A offset, A difference, A exp_difference, A precision) {
  const ExpLess<A> ratio = exp_less(difference, exp_difference);
  const A scaled = offset * precision;
  return {A(0.5) * multiply_add(offset, scaled, ratio.linear), scaled, ratio.constant,
          -multiply_add(offset, scaled, ratio.constant)};
}

}  // namespace genimg_fast
