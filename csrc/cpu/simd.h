#pragma once
// SIMD level of the CPU kernels: which ones the machine has, which one is in use.
//
// Kernels are written once, on vec.h, in a body header that for_each_simd_level.h compiles for every level into a
// namespace of its own: simd_base, simd_avx2, simd_avx512.  Host code picks one with SIMD_DISPATCH.

namespace genimg_fast {

enum class SimdLevel : int { base = 0, avx2 = 1, avx512 = 2 };

// The best level of this machine unless genimg_fast_set_simd_level chose another.
SimdLevel simd_level();

// Whether the level in use is avx512, and the machine has the products of pairs of bfloat16 beside it.
bool has_bf16_products();

}  // namespace genimg_fast

// SIMD_DISPATCH_PAIRS(pairs, call): if the constant is true, the level with products of pairs of bfloat16, simd_bf16;
// only where has_bf16_products().
#if defined(__x86_64__) && defined(__GNUC__)
namespace genimg_fast {
constexpr bool knows_bf16_products = true;
}
#define SIMD_DISPATCH_PAIRS(pairs, call) \
  do {                                   \
    if constexpr (pairs) {               \
      simd_bf16::call;                   \
    } else {                             \
      SIMD_DISPATCH(call);               \
    }                                    \
  } while (false)
#define SIMD_DISPATCH(call)                \
  switch (::genimg_fast::simd_level()) {   \
    case ::genimg_fast::SimdLevel::avx512: \
      simd_avx512::call;                   \
      break;                               \
    case ::genimg_fast::SimdLevel::avx2:   \
      simd_avx2::call;                     \
      break;                               \
    default:                               \
      simd_base::call;                     \
  }
#else
namespace genimg_fast {
constexpr bool knows_bf16_products = false;
}
#define SIMD_DISPATCH_PAIRS(pairs, call) SIMD_DISPATCH(call)
#define SIMD_DISPATCH(call) simd_base::call
#endif
