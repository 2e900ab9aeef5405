#include <algorithm>
#include <atomic>

#include "device.h"
#include "gpu.cuh"

namespace genimg_fast::cuda {
namespace {

constexpr int kOccupyingThreads = 512;
constexpr int kRemembered = 64;  // devices

std::atomic<bool> refuses_clusters[kRemembered];

bool is_remembered(int device) { return device >= 0 && device < kRemembered; }

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

void forget_clusters(int device, DeviceFacts* facts) {
  if (is_remembered(device)) refuses_clusters[device].store(true, std::memory_order_relaxed);
  std::fill_n(facts->clusters, 5, 0);
}

int device_facts(int device, DeviceFacts* facts) {
  const bool remember = is_remembered(device);
  const bool refuses = remember && refuses_clusters[device].load(std::memory_order_relaxed);
#if defined(__CUDACC__)
  // Two threads that ask at the same time write the same values; `known` publishes them.
  static DeviceFacts remembered[kRemembered];
  static std::atomic<bool> known[kRemembered];
  if (remember && known[device].load(std::memory_order_acquire)) {
    *facts = remembered[device];
    if (refuses) forget_clusters(device, facts);
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
  *facts = {simt::multiprocessors(), 227 << 10, 90, {}};
  if (!refuses) count_clusters(facts);
  return 0;
#endif
}

}  // namespace genimg_fast::cuda
