#pragma once
// CUDA's types for the emulator: vectors of numbers, and 16-bit floating point with its conversions.
#include <bit>
#include <cmath>
#include <cstdint>

// Vector types, with the alignment CUDA gives them.

#define SIMT_VECTOR_2(T, Name)         \
  struct alignas(2 * sizeof(T)) Name { \
    T x, y;                            \
  };                                   \
  inline Name make_##Name(T x, T y) { return {x, y}; }
#define SIMT_VECTOR_3(T, Name) \
  struct Name {                \
    T x, y, z;                 \
  };                           \
  inline Name make_##Name(T x, T y, T z) { return {x, y, z}; }
#define SIMT_VECTOR_4(T, Name)         \
  struct alignas(4 * sizeof(T)) Name { \
    T x, y, z, w;                      \
  };                                   \
  inline Name make_##Name(T x, T y, T z, T w) { return {x, y, z, w}; }
SIMT_VECTOR_2(signed char, char2)
SIMT_VECTOR_4(signed char, char4)
SIMT_VECTOR_2(unsigned char, uchar2)
SIMT_VECTOR_4(unsigned char, uchar4)
SIMT_VECTOR_2(short, short2)
SIMT_VECTOR_4(short, short4)
SIMT_VECTOR_2(unsigned short, ushort2)
SIMT_VECTOR_4(unsigned short, ushort4)
SIMT_VECTOR_2(int, int2)
SIMT_VECTOR_3(int, int3)
SIMT_VECTOR_4(int, int4)
SIMT_VECTOR_2(unsigned, uint2)
SIMT_VECTOR_3(unsigned, uint3)
SIMT_VECTOR_4(unsigned, uint4)
SIMT_VECTOR_2(long long, longlong2)
SIMT_VECTOR_2(unsigned long long, ulonglong2)
SIMT_VECTOR_2(float, float2)
SIMT_VECTOR_3(float, float3)
SIMT_VECTOR_4(float, float4)
SIMT_VECTOR_2(double, double2)
#undef SIMT_VECTOR_2
#undef SIMT_VECTOR_3
#undef SIMT_VECTOR_4

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

// 16-bit floating point.

namespace simt {

inline float half_bits_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu;
  const uint32_t mantissa = half & 0x3ffu;
  if (exponent == 0) {  // zero and subnormals: a multiple of 2^-24
    const float magnitude = std::ldexp(static_cast<float>(mantissa), -24);
    return sign ? -magnitude : magnitude;
  }
  const uint32_t float_exponent = exponent == 0x1f ? 0xff : exponent + (127 - 15);
  return std::bit_cast<float>(sign | float_exponent << 23 | mantissa << 13);
}

// Round to nearest even, done on integers, because compilers before GCC 12 have no 16-bit floating-point type.
inline uint16_t float_to_half_bits(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7fff;                                 // NaN
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00);  // 65520 and above round to infinity
  uint32_t kept, dropped, halfway;
  if (magnitude >= 0x38800000u) {  // normal: 2^-14 and above
    kept = (magnitude - ((127 - 15) << 23)) >> 13;
    dropped = magnitude & 0x1fffu;
    halfway = 0x1000u;
  } else {  // subnormal: shift the mantissa, with its hidden bit, to multiples of 2^-24
    const uint32_t exponent = magnitude >> 23;
    if (exponent < 127 - 25) return static_cast<uint16_t>(sign);  // below half of the smallest subnormal
    const uint32_t mantissa = (magnitude & 0x7fffffu) | 0x800000u;
    const uint32_t shift = (127 - 1) - exponent;
    kept = mantissa >> shift;
    dropped = mantissa & ((1u << shift) - 1);
    halfway = 1u << (shift - 1);
  }
  const bool round_up = dropped > halfway || (dropped == halfway && (kept & 1));
  return static_cast<uint16_t>(sign | (kept + round_up));  // a carry into the exponent is the right result
}

inline uint16_t float_to_bfloat16_bits(float value) {
  if (value != value) return 0x7fff;
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t round = 0x7fffu + ((bits >> 16) & 1);  // nearest even
  return static_cast<uint16_t>((bits + round) >> 16);
}

}  // namespace simt

// The conversions are explicit, narrower than CUDA's, because torch's nvcc flags take the implicit ones away.
struct __half {
  uint16_t bits;
  __half() = default;
  explicit __half(float value) : bits(simt::float_to_half_bits(value)) {}
  explicit operator float() const { return simt::half_bits_to_float(bits); }
};

struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float value) : bits(simt::float_to_bfloat16_bits(value)) {}
  explicit operator float() const { return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16); }
};

struct alignas(4) __half2 {
  __half x, y;
};
struct alignas(4) __nv_bfloat162 {
  __nv_bfloat16 x, y;
};
using half = __half;
using half2 = __half2;
using nv_bfloat16 = __nv_bfloat16;
using nv_bfloat162 = __nv_bfloat162;

inline float __half2float(__half x) { return static_cast<float>(x); }
inline __half __float2half(float x) { return __half(x); }
inline __half __float2half_rn(float x) { return __half(x); }
inline float2 __half22float2(__half2 v) { return {__half2float(v.x), __half2float(v.y)}; }
inline __half2 __float22half2_rn(float2 v) { return {__half(v.x), __half(v.y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }

inline float __bfloat162float(__nv_bfloat16 x) { return static_cast<float>(x); }
inline __nv_bfloat16 __float2bfloat16(float x) { return __nv_bfloat16(x); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return __nv_bfloat16(x); }
inline float2 __bfloat1622float2(__nv_bfloat162 v) { return {__bfloat162float(v.x), __bfloat162float(v.y)}; }
inline __nv_bfloat162 __float22bfloat162_rn(float2 v) { return {__nv_bfloat16(v.x), __nv_bfloat16(v.y)}; }
inline __nv_bfloat162 __floats2bfloat162_rn(float x, float y) { return {__nv_bfloat16(x), __nv_bfloat16(y)}; }
