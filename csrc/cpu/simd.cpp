#include "simd.h"

#include <atomic>
#include <cstring>

namespace genimg_fast {
namespace {

#if defined(__x86_64__)
const char* const names[] = {"sse2", "avx2", "avx512"};
#else
const char* const names[] = {"portable"};
#endif
constexpr int level_count = sizeof(names) / sizeof(names[0]);

SimdLevel best_level() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    return avx512 ? SimdLevel::avx512 : SimdLevel::avx2;
  }
#endif
  return SimdLevel::base;
}

std::atomic<SimdLevel>& current() {
  static std::atomic<SimdLevel> level{best_level()};
  return level;
}

}  // namespace

SimdLevel simd_level() { return current().load(std::memory_order_relaxed); }

bool has_bf16_products() {
#if defined(__x86_64__)
  static const bool supported = __builtin_cpu_supports("avx512bf16");
  return supported && simd_level() == SimdLevel::avx512;
#else
  return false;
#endif
}

}  // namespace genimg_fast

// For tests and gf.info(), through ctypes.

extern "C" __attribute__((visibility("default"))) const char* genimg_fast_simd_level() {
  return genimg_fast::names[static_cast<int>(genimg_fast::simd_level())];
}

extern "C" __attribute__((visibility("default"))) int genimg_fast_has_bf16_products() {
  return genimg_fast::has_bf16_products();
}

// Returns 0, or 1 when the name is unknown or the machine lacks the level; then nothing changes.
extern "C" __attribute__((visibility("default"))) int genimg_fast_set_simd_level(const char* name) {
  using namespace genimg_fast;
  for (int i = 0; i < level_count && i <= static_cast<int>(best_level()); ++i) {
    if (std::strcmp(name, names[i]) == 0) {
      current().store(static_cast<SimdLevel>(i), std::memory_order_relaxed);
      return 0;
    }
  }
  return 1;
}
