#pragma once
// The one include of every kernel file: real CUDA under nvcc, the SIMT emulator of tests/simt under a plain C++
// compiler (which finds it through -I tests/simt).  The same kernel source is therefore built for the GPU and executed
// by the test suite on machines without one.
//
// What keeps one source working on both sides:
//   * Shared memory:  SHARED(float, partial, [32]);   SHARED(bool, is_last, );   DYN_SHARED(float, tile);
//   * Launches:       gpu::launch(kernel, grid, block, dynamic_smem, stream, arguments...), never <<<...>>>.
//   * Inline PTX and loops that wait for another thread only behind the functions of this file; a loop that spins on
//     plain or volatile memory never ends in the emulator, one that calls gpu::ld_acquire or an atomic does.
//   * Conversions:    gpu::convert<To>(value); torch's nvcc flags disable the casts of __half and __nv_bfloat16.
//
// Functions of the host side return a cudaError_t as int, 0 for success; gpu::error_string says what it means.
#if defined(__CUDACC__)

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>
#include <type_traits>
#include <utility>

#define SHARED(T, name, ...) __shared__ T name __VA_ARGS__

// One symbol for the kernels of all element types: C++ allows only one type for an extern array of a given name.
#define DYN_SHARED(T, name)                                           \
  extern __shared__ __align__(16) unsigned char gpu_dynamic_shared[]; \
  T* name = reinterpret_cast<T*>(gpu_dynamic_shared)

namespace gpu {

using stream_t = cudaStream_t;

// A failed call also leaves its error for the next cudaGetLastError(); torch would find it there and blame an innocent
// kernel, so it is taken out once the caller has the code.
inline int take_error(cudaError_t code) {
  if (code != cudaSuccess) cudaGetLastError();
  return static_cast<int>(code);
}

inline const char* error_string(int code) { return cudaGetErrorString(static_cast<cudaError_t>(code)); }

template <class... Parameters, class... Arguments>
inline int launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_smem, stream_t stream,
                  Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = dynamic_smem;
  config.stream = stream;
  return take_error(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
}

// Likewise, behind a kernel of the same stream that has called allow_next_kernel(): the blocks may start before it has
// ended, and must call wait_for_previous_kernel() before they touch what it writes.  From compute capability 9.0 on.
template <class... Parameters, class... Arguments>
inline int launch_early(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_smem, stream_t stream,
                        Arguments&&... arguments) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = dynamic_smem;
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = 1;
  return take_error(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
}

// All blocks of the grid are resident at once, so they may wait for each other.
template <class... Parameters, class... Arguments>
inline int launch_coop(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_smem, stream_t stream,
                       Arguments&&... arguments) {
  cudaLaunchAttribute cooperative{};
  cooperative.id = cudaLaunchAttributeCooperative;
  cooperative.val.cooperative = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = dynamic_smem;
  config.stream = stream;
  config.attrs = &cooperative;
  config.numAttrs = 1;
  return take_error(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
}

// Needed once before a launch with more than 48 KiB of dynamic shared memory.
template <class... Parameters>
inline int set_max_dynamic_smem(void (*kernel)(Parameters...), size_t bytes) {
  return take_error(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

inline int multiprocessor_count(int* count) {
  int device = 0;
  if (const int code = take_error(cudaGetDevice(&device))) return code;
  return take_error(cudaDeviceGetAttribute(count, cudaDevAttrMultiProcessorCount, device));
}

// The largest grid that launch_coop accepts.
template <class... Parameters>
inline int max_cooperative_blocks(void (*kernel)(Parameters...), int threads, size_t dynamic_smem, int* blocks) {
  int multiprocessors = 0, per_multiprocessor = 0;
  if (const int code = multiprocessor_count(&multiprocessors)) return code;
  const cudaError_t code =
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_multiprocessor, kernel, threads, dynamic_smem);
  *blocks = multiprocessors * per_multiprocessor;
  return take_error(code);
}

inline int memset_async(void* pointer, int value, size_t bytes, stream_t stream) {
  return take_error(cudaMemsetAsync(pointer, value, bytes, stream));
}

__device__ __forceinline__ unsigned ld_acquire(const unsigned* p) {
  unsigned value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(p) : "memory");
  return value;
}

__device__ __forceinline__ void red_release_add(unsigned* p, unsigned value) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}

// Returns the old value.
__device__ __forceinline__ unsigned atomic_add_acq_rel(unsigned* p, unsigned value) {
  unsigned old;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(value) : "memory");
  return old;
}

// See launch_early; without effect in a kernel that was launched otherwise.
__device__ __forceinline__ void allow_next_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
__device__ __forceinline__ void wait_for_previous_kernel() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// How the L2 is to keep what is stored: as usual, or as what it evicts first.
struct StorePolicy {
  uint64_t bits;
};
__device__ __forceinline__ StorePolicy store_policy(bool evict_first) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint64_t usual, first;
  asm("createpolicy.fractional.L2::evict_normal.b64 %0, 1.0;" : "=l"(usual));
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(first));
  return {evict_first ? first : usual};
#else
  return {evict_first};
#endif
}
__device__ __forceinline__ void store_128(uint4* p, uint4 value, StorePolicy policy) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("st.global.L2::cache_hint.v4.b32 [%0], {%1, %2, %3, %4}, %5;" ::"l"(p), "r"(value.x), "r"(value.y),
               "r"(value.z), "r"(value.w), "l"(policy.bits)
               : "memory");
#else
  if (policy.bits) {
    __stcs(p, value);
  } else {
    *p = value;
  }
#endif
}

// The compiler keeps no value of memory in registers across it.
__device__ __forceinline__ void forget_memory() { asm volatile("" ::: "memory"); }

// A load past the L1 cache, which may hold a stale copy of what another block wrote.
template <class T>
__device__ __forceinline__ T ld_cg(const T* p) {
  return __ldcg(p);
}

// d += a b with tensor cores, for all lanes of a warp: a is 16 x 16, b 16 x 8, both of T (__half or __nv_bfloat16) in
// pairs along the dimension that is summed over; d is float.  With g = lane / 4 and q = lane % 4 * 2, a lane holds
//   a  rows g and g + 8 at columns q, q + 1; then both at q + 8, q + 9
//   b  rows q, q + 1; then q + 8, q + 9, at column g
//   d  row g at columns q, q + 1; then row g + 8
// A GPU before compute capability 8.0 cannot, and traps.
template <class T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define GPU_MMA(type)                                                                                                  \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type ".f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};" \
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                                                                 \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (std::is_same<T, __half>::value) {
    GPU_MMA("f16");
  } else {
    static_assert(std::is_same<T, __nv_bfloat16>::value, "tensor cores take 16-bit floats here");
    GPU_MMA("bf16");
  }
#undef GPU_MMA
#else
  (void)d, (void)a, (void)b;
  __trap();
#endif
}

}  // namespace gpu

#else
#include "simt.h"  // the same names, emulated
#endif

namespace gpu {

// 128-bit accesses; p must be aligned to 16 bytes (the emulator's UBSan pass reports one that is not).
__device__ __forceinline__ uint4 load_128(const void* p) { return *reinterpret_cast<const uint4*>(p); }
__device__ __forceinline__ void store_128(void* p, uint4 value) { *reinterpret_cast<uint4*>(p) = value; }

__host__ __device__ __forceinline__ float to_float(float x) { return x; }
__host__ __device__ __forceinline__ float to_float(double x) { return static_cast<float>(x); }
__host__ __device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
__host__ __device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class To>
struct Converter {
  template <class From>
  static __host__ __device__ __forceinline__ To from(From x) {
    return static_cast<To>(to_float(x));
  }
  static __host__ __device__ __forceinline__ To from(float x) { return static_cast<To>(x); }
  static __host__ __device__ __forceinline__ To from(double x) { return static_cast<To>(x); }
};

template <>
struct Converter<__half> {
  template <class From>
  static __host__ __device__ __forceinline__ __half from(From x) {
    return __float2half_rn(to_float(x));
  }
  static __host__ __device__ __forceinline__ __half from(__half x) { return x; }
};

template <>
struct Converter<__nv_bfloat16> {
  template <class From>
  static __host__ __device__ __forceinline__ __nv_bfloat16 from(From x) {
    return __float2bfloat16_rn(to_float(x));
  }
  static __host__ __device__ __forceinline__ __nv_bfloat16 from(__nv_bfloat16 x) { return x; }
};

// Between float, double, __half and __nv_bfloat16, round to nearest even; to and from 16 bits by way of float.
template <class To, class From>
__host__ __device__ __forceinline__ To convert(From x) {
  return Converter<To>::from(x);
}

}  // namespace gpu
