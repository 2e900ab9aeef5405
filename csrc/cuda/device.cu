#include <atomic>

#include "device.h"
#include "gpu.cuh"

namespace genimg_fast::cuda {

const char* error_string(int code) { return gpu::error_string(code); }

int device_facts(int device, DeviceFacts* facts) {
#if defined(__CUDACC__)
  // Two threads that ask at the same time write the same values; `known` publishes them.
  constexpr int kRemembered = 64;
  static DeviceFacts remembered[kRemembered];
  static std::atomic<bool> known[kRemembered];
  const bool remember = device >= 0 && device < kRemembered;
  if (remember && known[device].load(std::memory_order_acquire)) {
    *facts = remembered[device];
    return 0;
  }
  int cooperative = 0, major = 0, minor = 0;
  const auto ask = [device](int* value, cudaDeviceAttr attribute) {
    return gpu::take_error(cudaDeviceGetAttribute(value, attribute, device));
  };
  if (const int error = ask(&facts->multiprocessors, cudaDevAttrMultiProcessorCount)) return error;
  if (const int error = ask(&facts->shared_bytes_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin)) return error;
  if (const int error = ask(&cooperative, cudaDevAttrCooperativeLaunch)) return error;
  if (const int error = ask(&major, cudaDevAttrComputeCapabilityMajor)) return error;
  if (const int error = ask(&minor, cudaDevAttrComputeCapabilityMinor)) return error;
  facts->cooperative_launch = cooperative != 0;
  facts->compute_capability = 10 * major + minor;
  if (remember) {
    remembered[device] = *facts;
    known[device].store(true, std::memory_order_release);
  }
  return 0;
#else
  (void)device;
  *facts = {simt::multiprocessors(), 227 << 10, true, 90};
  return 0;
#endif
}

}  // namespace genimg_fast::cuda
