#pragma once
// Included ahead of csrc/cuda/*_torch.cpp, so that the operators for CUDA run in the emulator: on tensors of the CPU,
// which is the device that they are registered for.
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <cstdint>

namespace torch::stable::accelerator {
struct EmulatedDeviceGuard {
  explicit EmulatedDeviceGuard(int32_t) {}
};
}  // namespace torch::stable::accelerator
#define DeviceGuard EmulatedDeviceGuard

#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(library, device, m) EMULATED_##device(library, m)
#define EMULATED_CUDA(library, m) _STABLE_TORCH_LIBRARY_IMPL(library, CPU, m, __COUNTER__)

// What host.h looks up in libtorch_cuda: the current stream, which is null.
inline int emulated_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
inline void* emulated_dlopen(const char*, int) { return reinterpret_cast<void*>(&emulated_stream); }
inline void* emulated_dlsym(void*, const char*) { return reinterpret_cast<void*>(&emulated_stream); }
#define dlopen emulated_dlopen
#define dlsym emulated_dlsym
