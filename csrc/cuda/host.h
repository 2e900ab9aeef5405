#pragma once
// What the torch side of every family's CUDA operators shares.
#include <dlfcn.h>

#include <cstdint>
#include <utility>

#include "../tensor.h"
#include "device.h"

namespace genimg_fast {

// The stream getter is the one symbol needed from libtorch_cuda.  It is looked up, not linked, so that one library
// loads beside a torch without CUDA as well.  There it is null; no operator on CUDA tensors is ever called there.
inline void* current_cuda_stream(int32_t device) {
  using Getter = AOTITorchError (*)(int32_t, void**);
  static const Getter getter = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library ? reinterpret_cast<Getter>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  GENIMG_FAST_CHECK(getter != nullptr, "genimg_fast: this torch has no CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(getter(device, &stream));
  return stream;
}

inline void check_cuda(int error, const char* family, const char* what) {
  GENIMG_FAST_CHECK(error == 0, family, ": ", what, " failed: ", cuda::error_string(error), " (CUDA error ", error,
                    ")");
}

inline cuda::DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double:
      return cuda::DType::float64;
    case ScalarType::BFloat16:
      return cuda::DType::bfloat16;
    case ScalarType::Half:
      return cuda::DType::float16;
    default:
      return cuda::DType::float32;
  }
}

inline cuda::DeviceFacts facts_of(const Tensor& t, const char* family) {
  cuda::DeviceFacts facts;
  check_cuda(cuda::device_facts(t.get_device_index(), &facts), family, "asking for device properties");
  return facts;
}

// Calls launch(facts), which returns an error, with the facts of the tensor's device; once more where that does not
// take the clusters it has.
template <class Launch>
void launch_with_facts(const Tensor& t, const char* family, const char* what, Launch launch) {
  cuda::DeviceFacts facts = facts_of(t, family);
  int error = launch(std::as_const(facts));
  if (error == cuda::kClustersRefused) {
    cuda::forget_clusters(t.get_device_index(), &facts);
    error = launch(std::as_const(facts));
  }
  check_cuda(error, family, what);
}

}  // namespace genimg_fast
