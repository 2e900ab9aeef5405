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

// ln x of a positive, normal, finite x, to 1.2 ulp: x = 2^k (1 + f) with f in [-1/3, 1/3).
HOST_DEVICE float log_of_normal(float x) {
  // P of ln(1 + f) = f - f^2 / 2 + f^3 P(f), minimax in the relative error of the logarithm (4e-8).
  constexpr float series[] = {0x1.555528p-2f, -0x1.000b1cp-2f, 0x1.99c31ep-3f, -0x1.515a7p-3f,
                              0x1.1f9628p-3f, -0x1.35b3bep-3f, 0x1.1b09cap-3f};
  constexpr float ln2 = 0x1.62e43p-1f;
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const uint32_t exponent = (bits - 0x3f2aaaabu) & 0xff800000u;  // bits of 2/3
  bits -= exponent;
  float mantissa;
  memcpy(&mantissa, &bits, sizeof mantissa);
  const float f = mantissa - 1.0f, k = static_cast<float>(static_cast<int32_t>(exponent)) * 0x1p-23f;
  const float bend = multiply_add(polynomial(series, f), f, -0.5f) * f;
  return multiply_add(k, ln2, multiply_add(bend, f, f));
}

// sin and cos of an angle in [-pi/4, pi/4], to 1 ulp.
HOST_DEVICE void sin_cos_of_octant(float angle, float* sine, float* cosine) {
  // S of sin a = a + a^3 S(a^2), and C of cos a = 1 - a^2 / 2 + a^4 C(a^2): minimax, errors below 4e-9.
  constexpr float sine_series[] = {-0x1.555546p-3f, 0x1.11073ap-7f, -0x1.9943ep-13f};
  constexpr float cosine_series[] = {0x1.55554ap-5f, -0x1.6c0c34p-10f, 0x1.99eb9cp-16f};
  const float square = angle * angle;
  *sine = multiply_add(polynomial(sine_series, square) * square, angle, angle);
  *cosine = multiply_add(multiply_add(polynomial(cosine_series, square), square, -0.5f), square, 1.0f);
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

// Box and Muller 1958: two independent standard normals from two uniform words.
HOST_DEVICE void box_muller(uint32_t radial, uint32_t angular, float* x, float* y) {
  const float u = multiply_add(static_cast<float>(radial), 0x1p-32f, 0x1p-33f);  // in (0, 1]
  const float radius = square_root(-2.0f * log_of_normal(u));
  // The angle is 2 pi angular / 2^32; its quadrant is split off in integers, where that is exact.
  const uint32_t quadrant = (angular + (1u << 29)) >> 30;
  const int32_t rest = static_cast<int32_t>(angular - (quadrant << 30));
  constexpr float step = 0x1.921fb6p-30f;  // pi/2 * 2^-30
  float sine, cosine;
  sin_cos_of_octant(static_cast<float>(rest) * step, &sine, &cosine);
  const float x_size = radius * (quadrant & 1 ? sine : cosine), y_size = radius * (quadrant & 1 ? cosine : sine);
  *x = (quadrant + 1) & 2 ? -x_size : x_size;
  *y = quadrant & 2 ? -y_size : y_size;
}

// Noise of elements 4 * group ... 4 * group + 3 of a sample (in row-major order): a function of these numbers and the
// seed only, whatever the tensor's layout, dtype, batch size or device.
HOST_DEVICE void normals_of_group(uint64_t seed, uint64_t sample, uint64_t group, float (&normals)[4]) {
  uint32_t words[4] = {static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32), static_cast<uint32_t>(sample),
                       static_cast<uint32_t>(sample >> 32)};
  philox4x32(words, static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
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

template <class A>
HOST_DEVICE ExpLess<A> exp_less(A x) {
  const A far_constant = exponential(x) - A(1), near_linear = exp_series(x) * x * x;
  const bool near = std::fabs(x) < A(0.5);
  return {near ? near_linear + x : far_constant, near ? near_linear : far_constant - x};
}

// KL(N(mu, exp(logvar)) || N(prior_mu, exp(prior_logvar))) of one element, and its derivatives.
template <class A>
struct GaussianKl {
  A value;
  A by_mu;  // by prior_mu: the negative
  A by_logvar;
  A by_prior_logvar;
};

// offset = mu - prior_mu, difference = logvar - prior_logvar, precision = exp(-prior_logvar).
template <class A>
HOST_DEVICE GaussianKl<A> gaussian_kl(A offset, A difference, A precision) {
  const ExpLess<A> ratio = exp_less(difference);
  const A scaled = offset * precision;
  return {A(0.5) * multiply_add(offset, scaled, ratio.linear), scaled, A(0.5) * ratio.constant,
          A(-0.5) * multiply_add(offset, scaled, ratio.constant)};
}

}  // namespace genimg_fast
