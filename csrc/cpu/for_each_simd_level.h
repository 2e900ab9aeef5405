// Compiles the body header named by SIMD_BODY, with vec.h before it, once per SIMD level.  Include at namespace scope,
// after every header the body needs: nothing else may be included while a target is pushed.
// With SIMD_WITH_BF16_PRODUCTS defined, once more for machines with products of bfloat16 (AVX-512 BF16), into
// simd_bf16. No include guard: once per SIMD_BODY.

#if defined(__x86_64__) && defined(__GNUC__)

#define SIMD_BYTES 32
#define SIMD_AVX2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace simd_avx2 {
#include "vec.h"
#include SIMD_BODY
}  // namespace simd_avx2
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef SIMD_AVX2
#undef SIMD_BYTES

#define SIMD_BYTES 64
#define SIMD_AVX512
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq")
#endif
namespace simd_avx512 {
#include "vec.h"
#include SIMD_BODY
}  // namespace simd_avx512
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

#if defined(SIMD_WITH_BF16_PRODUCTS)
#define SIMD_BF16_PRODUCTS
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")
#endif
namespace simd_bf16 {
#include "vec.h"
#include SIMD_BODY
}  // namespace simd_bf16
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#undef SIMD_BF16_PRODUCTS
#endif

#undef SIMD_AVX512
#undef SIMD_BYTES

#endif

// x86-64 processors without AVX2 are rare: their level is compiled to be small, which takes 2 to 40% more time.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("Os")
#endif
#define SIMD_BYTES 16
namespace simd_base {
#include "vec.h"
#include SIMD_BODY
}  // namespace simd_base
#undef SIMD_BYTES
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif

#undef SIMD_BODY
#undef SIMD_WITH_BF16_PRODUCTS
