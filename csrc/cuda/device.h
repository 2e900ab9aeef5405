#pragma once
// What the launchers of every family share.  Like their headers: no torch, no CUDA header.

namespace genimg_fast::cuda {

enum class DType : int { float32, float64, bfloat16, float16 };

struct DeviceFacts {
  int multiprocessors;
  int shared_bytes_per_block;  // the most that a block can opt in to
  bool cooperative_launch;
  int compute_capability = 90;  // 10 * major + minor
};

// Of a CUDA device; asked once, then remembered.  Returns a cudaError_t as int, 0 for success.
int device_facts(int device, DeviceFacts* facts);

const char* error_string(int code);

}  // namespace genimg_fast::cuda
