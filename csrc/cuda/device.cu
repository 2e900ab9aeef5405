#include <atomic>

#include "device.h"
#include "gpu.cuh"

namespace genimg_fast::cuda {
namespace {

constexpr int kOccupyingThreads = 512;

// Takes a multiprocessor's whole shared memory when it is asked how many of it run at a time.
__global__ void occupy() {}

// Of the current device.  0 where it cannot, which is no error: it has no clusters, none so large, or the code of this
// build is older than clusters.
void count_clusters(DeviceFacts* facts) {
  const auto bytes = static_cast<size_t>(facts->shared_bytes_per_block);
  if (facts->compute_capability < 90 || !gpu::has_code_for_clusters(occupy)) return;
  if (gpu::set_max_dynamic_smem(occupy, bytes)) return;
  for (int i = 0; i < 5; ++i) {
    if (gpu::max_active_clusters(occupy, 1u << i, kOccupyingThreads, bytes, &facts->clusters[i]))
      facts->clusters[i] = 0;
  }
}

}  // namespace

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
  int major = 0, minor = 0;
  const auto ask = [device](int* value, cudaDeviceAttr attribute) {
    return gpu::take_error(cudaDeviceGetAttribute(value, attribute, device));
  };
  if (const int error = ask(&facts->multiprocessors, cudaDevAttrMultiProcessorCount)) return error;
  if (const int error = ask(&facts->shared_bytes_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin)) return error;
  if (const int error = ask(&major, cudaDevAttrComputeCapabilityMajor)) return error;
  if (const int error = ask(&minor, cudaDevAttrComputeCapabilityMinor)) return error;
  facts->compute_capability = 10 * major + minor;
  count_clusters(facts);
  if (remember) {
    remembered[device] = *facts;
    known[device].store(true, std::memory_order_release);
  }
  return 0;
#else
  (void)device;
  *facts = {simt::multiprocessors(), 227 << 10, 90, {}};
  count_clusters(facts);
  return 0;
#endif
}

}  // namespace genimg_fast::cuda
