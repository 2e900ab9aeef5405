#pragma once
// What the torch side of the CUDA operators shares: the current stream, and errors of launches.
#include <dlfcn.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>

namespace genimg_fast {

// The stream getter is the one symbol needed from libtorch_cuda.  It is looked up, not linked, so that one library
// loads beside a torch without CUDA as well.  There it is null; no operator on CUDA tensors is ever called there.
inline void* current_cuda_stream(int32_t device) {
  using Getter = AOTITorchError (*)(int32_t, void**);
  static const Getter getter = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return library ? reinterpret_cast<Getter>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  STD_TORCH_CHECK(getter != nullptr, "genimg_fast: this torch has no CUDA");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(getter(device, &stream));
  return stream;
}

}  // namespace genimg_fast
