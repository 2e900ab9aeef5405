#include <cuda_runtime.h>

#include "build_info.h"

namespace genimg_fast::cuda {

// Stands for all kernels: every one is compiled for the same architectures.
__global__ void probed_kernel() {}

}  // namespace genimg_fast::cuda

// Whether kernels of this library can run on the current device, without launching one: null, or the name of the CUDA
// error that says why not.  driver: the CUDA version that the driver is for, 1000 * major + 10 * minor; 0 without one.
GENIMG_FAST_EXPORT const char* genimg_fast_cuda_probe(int* driver) {
  if (cudaDriverGetVersion(driver) != cudaSuccess) *driver = 0;
  cudaFuncAttributes attributes;
  const cudaError_t code = cudaFuncGetAttributes(&attributes, genimg_fast::cuda::probed_kernel);
  if (code == cudaSuccess) return nullptr;
  cudaGetLastError();  // torch would find it there and blame an innocent kernel
  return cudaGetErrorName(code);
}
