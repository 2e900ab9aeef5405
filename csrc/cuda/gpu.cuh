#pragma once
// The one include of every kernel file: real CUDA under nvcc, the SIMT emulator of tests/simt under a plain C++
// compiler (which finds it through -I tests/simt).  The same kernel source is therefore built for the GPU and executed
// by the test suite on machines without one.
//
// What keeps one source working on both sides:
//   * Shared memory:  SHARED(float, partial, [32]);   SHARED(bool, is_last, );   DYN_SHARED(float, tile);
//   * Launches:       gpu::launch(kernel, grid, block, dynamic_smem, stream, arguments...), never <<<...>>>.
//   * Inline PTX and loops that wait for another thread only behind the functions of this file; a loop that spins on
//     plain or volatile memory never ends in the emulator, one that calls an atomic does.
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

// With an attribute, or null.
template <class... Parameters, class... Arguments>
inline int launch_with(cudaLaunchAttribute* attribute, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                       size_t dynamic_smem, stream_t stream, Arguments&&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = dynamic_smem;
  config.stream = stream;
  config.attrs = attribute;
  config.numAttrs = attribute ? 1 : 0;
  return take_error(cudaLaunchKernelEx(&config, kernel, std::forward<Arguments>(arguments)...));
}

template <class... Parameters, class... Arguments>
inline int launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_smem, stream_t stream,
                  Arguments&&... arguments) {
  return launch_with(nullptr, kernel, grid, block, dynamic_smem, stream, std::forward<Arguments>(arguments)...);
}

// Likewise, behind a kernel of the same stream that has called allow_next_kernel(): the blocks may start before it has
// ended, and must call wait_for_previous_kernel() before they touch what it writes.  From compute capability 9.0 on.
template <class... Parameters, class... Arguments>
inline int launch_early(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_smem, stream_t stream,
                        Arguments&&... arguments) {
  cudaLaunchAttribute early{};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  return launch_with(&early, kernel, grid, block, dynamic_smem, stream, std::forward<Arguments>(arguments)...);
}

// The blocks of a cluster, 1 to 16 neighbours of a grid that they divide, start together on one part of the GPU and can
// read each other's shared memory.  Needs compute capability 9.0; more than 8 blocks may be more than a GPU has room
// for.
template <class... Parameters>
inline int allow_cluster(void (*kernel)(Parameters...), unsigned cluster) {
  return cluster <= 8 ? 0 : take_error(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
}
inline cudaLaunchAttribute cluster_dimension(unsigned cluster) {
  cudaLaunchAttribute dimension{};
  dimension.id = cudaLaunchAttributeClusterDimension;
  dimension.val.clusterDim.x = cluster;
  dimension.val.clusterDim.y = dimension.val.clusterDim.z = 1;
  return dimension;
}

template <class... Parameters, class... Arguments>
inline int launch_clusters(void (*kernel)(Parameters...), dim3 grid, dim3 block, unsigned cluster, size_t dynamic_smem,
                           stream_t stream, Arguments&&... arguments) {
  if (const int code = allow_cluster(kernel, cluster)) return code;
  cudaLaunchAttribute dimension = cluster_dimension(cluster);
  return launch_with(&dimension, kernel, grid, block, dynamic_smem, stream, std::forward<Arguments>(arguments)...);
}

// Whether a launch of clusters failed because there are none of this size for the context.
inline bool refuses_clusters(int code) {
  return code == cudaErrorInvalidClusterSize || code == cudaErrorLaunchOutOfResources ||
         code == cudaErrorInvalidConfiguration || code == cudaErrorNotSupported;
}

// Whether the code that the current device runs was compiled for compute capability 9.0 or later.
template <class... Parameters>
inline bool has_code_for_clusters(void (*kernel)(Parameters...)) {
  cudaFuncAttributes attributes{};
  return take_error(cudaFuncGetAttributes(&attributes, kernel)) == 0 && attributes.ptxVersion >= 90;
}

// How many clusters of a kernel run at a time on the current device.
template <class... Parameters>
inline int max_active_clusters(void (*kernel)(Parameters...), unsigned cluster, int threads, size_t dynamic_smem,
                               int* clusters) {
  if (const int code = allow_cluster(kernel, cluster)) return code;
  cudaLaunchAttribute dimension = cluster_dimension(cluster);
  cudaLaunchConfig_t config{};
  config.gridDim = cluster;
  config.blockDim = threads;
  config.dynamicSmemBytes = dynamic_smem;
  config.attrs = &dimension;
  config.numAttrs = 1;
  return take_error(cudaOccupancyMaxActiveClusters(clusters, kernel, &config));
}

// Needed once before a launch with more than 48 KiB of dynamic shared memory.
template <class... Parameters>
inline int set_max_dynamic_smem(void (*kernel)(Parameters...), size_t bytes) {
  return take_error(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
}

inline int memset_async(void* pointer, int value, size_t bytes, stream_t stream) {
  return take_error(cudaMemsetAsync(pointer, value, bytes, stream));
}

// Of a GPU with clusters: what a kernel must not reach elsewhere, where it traps.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define GPU_CLUSTER_ASM(...) asm volatile(__VA_ARGS__)
#else
#define GPU_CLUSTER_ASM(...) __trap()
#endif

__device__ __forceinline__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

// The block's place in its cluster, and how many there are.
__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank = 0;
  GPU_CLUSTER_ASM("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ unsigned cluster_size() {
  unsigned size = 0;
  GPU_CLUSTER_ASM("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}

// The barrier of all threads of a cluster in two halves; each thread passes both in turn.  What a thread wrote before
// it arrived, all see after they waited: to that end it waits for all its writes to global memory, which takes long.
__device__ __forceinline__ void cluster_arrive() {
  GPU_CLUSTER_ASM("barrier.cluster.arrive.release.aligned;" :: : "memory");
}
__device__ __forceinline__ void cluster_wait() {
  GPU_CLUSTER_ASM("barrier.cluster.wait.acquire.aligned;" :: : "memory");
}

// Reads *p, a shared variable, as the block `rank` of the cluster has it.  That block must have started, and must not
// have exited.
template <class T>
__device__ __forceinline__ T cluster_load(unsigned rank, const T* p) {
  static_assert(sizeof(T) == 8 || sizeof(T) == 16, "a pair of float or of double");
  [[maybe_unused]] unsigned peer = 0;
  unsigned long long words[sizeof(T) / 8] = {};
  GPU_CLUSTER_ASM("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(peer) : "r"(shared_address(p)), "r"(rank));
  if constexpr (sizeof(T) == 8) {
    GPU_CLUSTER_ASM("ld.shared::cluster.b64 %0, [%1];" : "=l"(words[0]) : "r"(peer) : "memory");
  } else {
    GPU_CLUSTER_ASM("ld.shared::cluster.v2.b64 {%0, %1}, [%2];" : "=l"(words[0]),
                    "=l"(words[1]) : "r"(peer) : "memory");
  }
  T value;
  memcpy(&value, words, sizeof value);
  return value;
}

// An mbarrier: 8 bytes of shared memory.  A phase of it completes, and the next one begins, when it has had as many
// arrivals as mbarrier_init says and as many bytes from bulk copies as the arrivals of the phase announce.
// One thread initialises it; then fence_mbarrier_init() and a barrier of the block before anyone uses it.
__device__ __forceinline__ void mbarrier_init(uint64_t* barrier, unsigned count) {
  GPU_CLUSTER_ASM("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
}
// Makes it known to bulk copies, which the hardware runs beside the threads.
__device__ __forceinline__ void fence_mbarrier_init() {
  GPU_CLUSTER_ASM("fence.mbarrier_init.release.cluster;" :: : "memory");
}
__device__ __forceinline__ void mbarrier_arrive(uint64_t* barrier) {
  GPU_CLUSTER_ASM("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
__device__ __forceinline__ void mbarrier_arrive_expect_tx(uint64_t* barrier, unsigned bytes) {
  GPU_CLUSTER_ASM("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
                  "r"(bytes) : "memory");
}
#define GPU_TRY_WAIT(acquire)                              \
  GPU_CLUSTER_ASM(                                         \
      "{\n"                                                \
      ".reg .pred complete;\n"                             \
      "mbarrier.try_wait.parity" acquire                   \
      ".shared::cta.b64 complete, [%1], %2;\n"             \
      "selp.u32 %0, 1, 0, complete;\n"                     \
      "}" : "=r"(complete) : "r"(shared_address(barrier)), \
      "r"(parity) : "memory")
// Waits for the phase of this parity, 0 for the first, to complete.
__device__ __forceinline__ void mbarrier_wait(uint64_t* barrier, unsigned parity) {
  unsigned complete = 1;
  do {
    GPU_TRY_WAIT("");
  } while (!complete);
}
// Likewise where other blocks of the cluster have stored.
__device__ __forceinline__ void mbarrier_wait_for_peers(uint64_t* barrier, unsigned parity) {
  unsigned complete = 1;
  do {
    GPU_TRY_WAIT(".acquire.cluster");
  } while (!complete);
}
#undef GPU_TRY_WAIT

// Copies from global to the block's shared memory in the background.  Addresses and sizes are multiples of 16 bytes.
// The bytes count at the barrier, and whoever waits there sees them.
__device__ __forceinline__ void bulk_copy(void* to, const void* from, unsigned bytes, uint64_t* barrier) {
  GPU_CLUSTER_ASM("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                      shared_address(to)),
                  "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier)) : "memory");
}
// Likewise writes value to *p, a shared variable, as the block `rank` of the cluster has it, and counts its bytes at
// that block's barrier.
template <class T>
__device__ __forceinline__ void store_async(unsigned rank, T* p, T value, uint64_t* barrier) {
  static_assert(sizeof(T) == 8, "a pair of float");
  [[maybe_unused]] unsigned peer = 0, peer_barrier = 0;
  unsigned long long word;
  memcpy(&word, &value, sizeof value);
  GPU_CLUSTER_ASM("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(peer) : "r"(shared_address(p)), "r"(rank));
  GPU_CLUSTER_ASM("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(peer_barrier) : "r"(shared_address(barrier)),
                  "r"(rank));
  GPU_CLUSTER_ASM("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];" ::"r"(peer),
                  "l"(word), "r"(peer_barrier) : "memory");
}
// Between a thread's own writes to shared memory and bulk copies to the same place; then a barrier of the block.
__device__ __forceinline__ void fence_proxy_async() { GPU_CLUSTER_ASM("fence.proxy.async.shared::cta;" :: : "memory"); }

// Likewise 16 bytes for each thread; arrive_after_copies makes the thread arrive at the barrier when all that it has
// asked for are there.
template <int bytes>
__device__ __forceinline__ void async_copy(void* to, const void* from) {
  static_assert(bytes == 16 || bytes == 8, "");
  if constexpr (bytes == 16) {
    GPU_CLUSTER_ASM("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)),
                    "l"(__cvta_generic_to_global(from)) : "memory");
  } else {
    GPU_CLUSTER_ASM("cp.async.ca.shared.global [%0], [%1], 8;" ::"r"(shared_address(to)),
                    "l"(__cvta_generic_to_global(from)) : "memory");
  }
}
__device__ __forceinline__ void arrive_after_copies(uint64_t* barrier) {
  GPU_CLUSTER_ASM("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
}
#undef GPU_CLUSTER_ASM

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

// The same value, of which the compiler knows nothing: where it would otherwise spend registers on remembering what it
// has computed from the value, or on running ahead of a sum.
__device__ __forceinline__ int opaque(int value) {
  asm volatile("" : "+r"(value));
  return value;
}
__device__ __forceinline__ int64_t opaque(int64_t value) {
  asm volatile("" : "+l"(value));
  return value;
}

// The same address, which is in shared memory: in a register, where the compiler would compute it in each iteration.
template <class T>
__device__ __forceinline__ T* opaque_shared(T* address) {
  asm volatile("" : "+l"(address));
  __builtin_assume(__isShared(address));
  return address;
}

// a * b + c in one instruction; written out, the compiler also multiplies the upper halves, which are zero.
__device__ __forceinline__ int64_t multiply_add_wide(uint32_t a, uint32_t b, int64_t c) {
  int64_t d;
  asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(d) : "r"(a), "r"(b), "l"(c));
  return d;
}

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

// One instruction each; results below 2^-126 are zero.
__device__ __forceinline__ float tanh_approx(float x) {  // to 2^-11 of the result
  float y;
  asm("tanh.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float exp2_approx(float x) {  // to 2 ulp
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float reciprocal_approx(float x) {  // to 1 ulp
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
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

// Two neighbours of T (__half or __nv_bfloat16) in a word, the first one in its lower half.
template <class T>
__device__ __forceinline__ unsigned pack_pair(float first, float second) {
  unsigned word;
  if constexpr (std::is_same<T, __half>::value) {
    const __half2 pair = __floats2half2_rn(first, second);
    memcpy(&word, &pair, sizeof word);
  } else {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
    memcpy(&word, &pair, sizeof word);
  }
  return word;
}
template <class T>
__device__ __forceinline__ float2 unpack_pair(unsigned word) {
  if constexpr (std::is_same<T, __half>::value) {
    __half2 pair;
    memcpy(&pair, &word, sizeof word);
    return __half22float2(pair);
  } else {
    // The upper half of a float: one instruction each.
    return float2{__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u)};
  }
}

}  // namespace gpu
