#pragma once
// Philox4x32-10, the counter-based random number generator of Salmon et al. 2011, "Parallel random numbers: as easy as
// 1, 2, 3": four random 32-bit words for every 128-bit counter, under a 64-bit key.
#include <cstdint>

#include "host_device.h"

namespace genimg_fast {

constexpr int philox_rounds = 10;
constexpr uint32_t philox_multiplier0 = 0xD2511F53u, philox_multiplier1 = 0xCD9E8D57u;
constexpr uint32_t philox_key_step0 = 0x9E3779B9u, philox_key_step1 = 0xBB67AE85u;

HOST_DEVICE uint32_t multiply_high(uint32_t x, uint32_t y) {
#if defined(__CUDA_ARCH__)
  return __umulhi(x, y);
#else
  return static_cast<uint32_t>((uint64_t{x} * y) >> 32);
#endif
}

// The keys of the rounds, two of each.
constexpr int philox_keys = 2 * philox_rounds;
HOST_DEVICE uint32_t philox_key(uint64_t seed, int k) {
  return k % 2 == 0 ? static_cast<uint32_t>(seed) + static_cast<uint32_t>(k / 2) * philox_key_step0
                    : static_cast<uint32_t>(seed >> 32) + static_cast<uint32_t>(k / 2) * philox_key_step1;
}

// Replaces the counter by its random words.
HOST_DEVICE void philox4x32(uint32_t (&words)[4], const uint32_t (&keys)[philox_keys]) {
  UNROLL
  for (int round = 0; round < philox_rounds; ++round) {
    const uint32_t low0 = philox_multiplier0 * words[0], high0 = multiply_high(philox_multiplier0, words[0]);
    const uint32_t low1 = philox_multiplier1 * words[2], high1 = multiply_high(philox_multiplier1, words[2]);
    words[0] = high1 ^ words[1] ^ keys[2 * round];
    words[2] = high0 ^ words[3] ^ keys[2 * round + 1];
    words[1] = low1;
    words[3] = low0;
  }
}

}  // namespace genimg_fast
