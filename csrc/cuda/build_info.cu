#include "build_info.h"

// CUDA compiler version and the architectures in the binary, e.g. "13.0;750,800,900".
GENIMG_FAST_EXPORT const char* genimg_fast_cuda_build_info() {
  return GENIMG_FAST_STRING(__CUDACC_VER_MAJOR__) "." GENIMG_FAST_STRING(__CUDACC_VER_MINOR__) ";" GENIMG_FAST_STRING(
      __CUDA_ARCH_LIST__);
}
