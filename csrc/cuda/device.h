#pragma once
// What the launchers of every family share.  Like their headers: no torch, no CUDA header.
#include <cstddef>
#include <cstdint>

namespace genimg_fast::cuda {

enum class DType : int { float32, float64, bfloat16, float16 };

constexpr int element_bytes(DType dtype) { return dtype == DType::float64 ? 8 : dtype == DType::float32 ? 4 : 2; }

struct DeviceFacts {
  int multiprocessors;
  int shared_bytes_per_block;   // the most that a block can opt in to
  int compute_capability = 90;  // 10 * major + minor
  int clusters[5] = {};         // of 1, 2, 4, 8, 16 blocks, each on a multiprocessor of its own, that run at a time
};

// Of a CUDA device, which must be the current one; asked once, then remembered.  Returns a cudaError_t as int, 0 for
// success.
int device_facts(int device, DeviceFacts* facts);

const char* error_string(int code);

// What a launcher returns where the device did not take the clusters that its facts promise: those are of the whole
// device, and a context may have a part of it (green contexts, MPS).  Nothing was launched.
constexpr int kClustersRefused = -1;

// From now on the device has no clusters, nor do these facts of it.
void forget_clusters(int device, DeviceFacts* facts);

// The grid of a kernel for clusters, for tests; zeros if there can be none.  See cluster_ring.cuh.
struct ClusterCounts {
  int clusters, blocks;  // blocks of a cluster
  int pieces, slots;     // of a block
};

constexpr int kInvalidConfiguration = 9;  // cudaErrorInvalidConfiguration

constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool is_aligned(const void* p, size_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

}  // namespace genimg_fast::cuda
