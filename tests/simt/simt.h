#pragma once
// Test-only SIMT emulator: what CUDA kernels use of the CUDA language and of csrc/cuda/gpu.cuh, for a plain C++20
// compiler.  Every CUDA thread runs as a fiber on the one host thread that launches; simt.cpp is the run time.
//
// What it shows: wrong results under any schedule, missing or divergent barriers, deadlock, livelock, uninitialised
// shared memory (reads NaN), lanes that are not there, asynchronous copies that nobody waited for, shared memory of a
// block that has exited; under a sanitizer also out-of-bounds and misaligned accesses (ASan, UBSan) and data races,
// missing __threadfence() included (TSan).
// What it does not show: speed, registers, occupancy; reordering by the hardware, such as a missing
// gpu::fence_proxy_async(); anything written in raw PTX.
// What it leaves out: what the oldest GPU of a default build (sm_75) does not have, such as __reduce_add_sync.
// A launch is synchronous and the emulator is not thread-safe: one launch at a time in a process.
#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

#include "simt_types.h"

// Language.

#define __global__
#define __device__
#define __host__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))
#define warpSize 32

// Run time (simt.cpp).

namespace simt {

// What a CUDA thread sees of itself.
struct ThreadView {
  uint3 thread_index, block_index;
  dim3 block_size, grid_size;
};

// The running thread's view; changes with every fiber switch.
extern const ThreadView* current;

enum class BarrierKind { plain, count, all, any };
int barrier(BarrierKind kind, bool predicate, const char* file, int line);

enum class WarpOp { shuffle, shuffle_up, shuffle_down, shuffle_xor, ballot, any, all, sync, match, mma };
uint64_t warp_collective(WarpOp op, unsigned mask, uint64_t value, int source, int width);
unsigned active_mask();

// What a lane brings to WarpOp::mma, as gpu::mma_m16n8k16 says; a collective's value is its address.
struct MmaOperands {
  float* d;
  const unsigned *a, *b;
  float (*to_float)(uint16_t);
};

// Other threads may run now.  A thread that waits for another one must pass through spin() in its loop: it always gives
// way, and it is counted, so that a loop whose condition nobody will ever fulfil ends as a "livelock" error.
// preemption_point() gives way now and then, in random schedules only; progress() says that memory has changed.
void spin();
void preemption_point();
void progress();

// For TSan: a fence orders nothing by itself, but together with a relaxed atomic it does what a release or an acquire
// would.  (Real memory is sequentially consistent here anyway.)  before_atomic() is also a preemption point.
void fence();
void before_atomic(void* address);

// The block's copy of the shared variable that `key` identifies, filled with 0xff when first seen: NaN in every
// floating-point format, -1 as an integer.  Real shared memory holds leftovers, so a kernel must not rely on zeros.
void* shared_memory(const void* key, size_t bytes, size_t alignment);
void* dynamic_shared_memory();

// Clusters, mbarriers and asynchronous copies (simt_clusters.h): the functions of gpu.cuh of the same names.
unsigned cluster_rank();
unsigned cluster_size();
void cluster_arrive();
void cluster_wait();
void* peer_address(unsigned rank, const void* p);
void mbarrier_init(uint64_t* address, unsigned count);
void mbarrier_arrive(uint64_t* address, size_t expected_bytes);
void mbarrier_wait(uint64_t* address, unsigned parity);
void bulk_copy(void* to, const void* from, size_t bytes, uint64_t* address);
void store_async(unsigned rank, void* p, uint64_t value, uint64_t* address);
void async_copy(void* to, const void* from, size_t bytes);
void arrive_after_copies(uint64_t* address);

// Ends the launch with an error that names the running thread.
[[noreturn]] void fail(const char* why);

// cudaError_t values.
enum Error : int {
  success = 0,
  invalid_value = 1,
  invalid_configuration = 9,
  launch_failure = 719,
  invalid_cluster_size = 912,
};
using KernelPointer = void (*)();
int launch(KernelPointer kernel, dim3 grid, dim3 block, unsigned cluster, size_t dynamic_smem, void (*run)(void*),
           void* job);
// Every thread of a kernel that is launched early has to wait for the kernel before it, even here where that has ended.
void begin_early_launch();
void wait_for_previous_kernel();
int check_waits(dim3 grid, dim3 block);
int set_max_dynamic_smem(KernelPointer kernel, size_t bytes);
int max_active_clusters(unsigned cluster, uint64_t threads, size_t dynamic_smem);
const char* error_string(int code);

// Settings and counters, for the tests.
void set_seed(uint64_t seed);         // 0: first in, first out.  Others: a random schedule each, always the same one.
void set_resident_blocks(int count);  // how many blocks run at the same time
int resident_blocks();
void set_multiprocessors(int count);  // of the emulated GPU: steers launch policies
int multiprocessors();
void reset_settings();
const char* last_error();  // message of the latest launch; empty if it succeeded
uint64_t switches();       // fiber switches so far

template <class T>
T exchange(WarpOp op, unsigned mask, T value, int source, int width) {
  static_assert(sizeof(T) <= sizeof(uint64_t) && std::is_trivially_copyable_v<T>);
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  bits = warp_collective(op, mask, bits, source, width);
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// CUDA's atomics are relaxed.  So are these: without __threadfence() around them TSan sees no order between what one
// thread wrote before its atomic and another reads after its own.
template <class T, class Update>
T read_modify_write(T* p, Update update) {
  before_atomic(p);
  std::atomic_ref<T> reference(*p);
  T old = reference.load(std::memory_order_relaxed);
  T updated = update(old);
  while (!reference.compare_exchange_weak(old, updated, std::memory_order_relaxed)) updated = update(old);
  // An atomic that changes nothing may be one turn of a waiting loop (a lock, a counter polled with atomicAdd(p, 0)).
  if (std::memcmp(&old, &updated, sizeof(T)) == 0) {
    spin();
  } else {
    progress();
  }
  return old;
}

// As a parameter type: takes no part in template argument deduction, so that atomicAdd(&an_unsigned, 1) compiles.
template <class T>
using NotDeduced = std::type_identity_t<T>;

}  // namespace simt

#define threadIdx (::simt::current->thread_index)
#define blockIdx (::simt::current->block_index)
#define blockDim (::simt::current->block_size)
#define gridDim (::simt::current->grid_size)

// Shared memory, barriers, fences.

// The address of a static variable in a lambda is the key: one for each place and each template instantiation, which is
// also how CUDA tells __shared__ variables apart.
#define SHARED(T, name, ...)                                                          \
  using name##_shared_type = T __VA_ARGS__;                                           \
  static_assert(std::is_trivially_default_constructible_v<name##_shared_type>);       \
  name##_shared_type& name = *static_cast<name##_shared_type*>(::simt::shared_memory( \
      [] {                                                                            \
        static char key;                                                              \
        return &key;                                                                  \
      }(),                                                                            \
      sizeof(name##_shared_type), alignof(name##_shared_type)))
#define DYN_SHARED(T, name) T* name = reinterpret_cast<T*>(::simt::dynamic_shared_memory())

#define __syncthreads() ((void)::simt::barrier(::simt::BarrierKind::plain, false, __FILE__, __LINE__))
#define __syncthreads_count(p) ::simt::barrier(::simt::BarrierKind::count, (p) != 0, __FILE__, __LINE__)
#define __syncthreads_and(p) ::simt::barrier(::simt::BarrierKind::all, (p) != 0, __FILE__, __LINE__)
#define __syncthreads_or(p) ::simt::barrier(::simt::BarrierKind::any, (p) != 0, __FILE__, __LINE__)
#define __trap() ::simt::fail("__trap()")

inline void __threadfence() { simt::fence(); }
inline void __threadfence_block() { simt::fence(); }
inline void __threadfence_system() { simt::fence(); }
inline void __nanosleep(unsigned) { simt::spin(); }

// Warp collectives.

inline void __syncwarp(unsigned mask = 0xffffffffu) { simt::warp_collective(simt::WarpOp::sync, mask, 0, 0, 32); }
inline unsigned __activemask() { return simt::active_mask(); }

template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
  return simt::exchange(simt::WarpOp::shuffle, mask, value, lane, width);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return simt::exchange(simt::WarpOp::shuffle_up, mask, value, static_cast<int>(delta), width);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
  return simt::exchange(simt::WarpOp::shuffle_down, mask, value, static_cast<int>(delta), width);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  return simt::exchange(simt::WarpOp::shuffle_xor, mask, value, lane_mask, width);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return static_cast<unsigned>(simt::warp_collective(simt::WarpOp::ballot, mask, predicate != 0, 0, 32));
}
inline int __any_sync(unsigned mask, int predicate) {
  return static_cast<int>(simt::warp_collective(simt::WarpOp::any, mask, predicate != 0, 0, 32));
}
inline int __all_sync(unsigned mask, int predicate) {
  return static_cast<int>(simt::warp_collective(simt::WarpOp::all, mask, predicate != 0, 0, 32));
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return static_cast<unsigned>(simt::warp_collective(simt::WarpOp::match, mask, bits, 0, 32));
}

// Loads with a cache hint, atomics.

template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, simt::NotDeduced<T> value) {
  *p = value;
}
template <class T>
void __stcg(T* p, simt::NotDeduced<T> value) {
  *p = value;
}

template <class T>
T atomicAdd(T* p, simt::NotDeduced<T> value) {
  return simt::read_modify_write(p, [=](T old) { return static_cast<T>(old + value); });
}
template <class T>
T atomicSub(T* p, simt::NotDeduced<T> value) {
  return simt::read_modify_write(p, [=](T old) { return static_cast<T>(old - value); });
}
template <class T>
T atomicMax(T* p, simt::NotDeduced<T> value) {
  return simt::read_modify_write(p, [=](T old) { return old > value ? old : value; });
}
template <class T>
T atomicMin(T* p, simt::NotDeduced<T> value) {
  return simt::read_modify_write(p, [=](T old) { return old < value ? old : value; });
}
template <class T>
T atomicExch(T* p, simt::NotDeduced<T> value) {
  return simt::read_modify_write(p, [=](T) { return value; });
}
template <class T>
T atomicOr(T* p, simt::NotDeduced<T> value) {
  return simt::read_modify_write(p, [=](T old) { return static_cast<T>(old | value); });
}
template <class T>
T atomicAnd(T* p, simt::NotDeduced<T> value) {
  return simt::read_modify_write(p, [=](T old) { return static_cast<T>(old & value); });
}
template <class T>
T atomicXor(T* p, simt::NotDeduced<T> value) {
  return simt::read_modify_write(p, [=](T old) { return static_cast<T>(old ^ value); });
}
template <class T>
T atomicCAS(T* p, simt::NotDeduced<T> expected, simt::NotDeduced<T> value) {
  return simt::read_modify_write(p, [=](T old) { return old == expected ? value : old; });
}
inline unsigned atomicInc(unsigned* p, unsigned limit) {
  return simt::read_modify_write(p, [=](unsigned old) { return old >= limit ? 0u : old + 1; });
}
inline unsigned atomicDec(unsigned* p, unsigned limit) {
  return simt::read_modify_write(p, [=](unsigned old) { return old == 0 || old > limit ? limit : old - 1; });
}

// Arithmetic.

using std::max;
using std::min;

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline double __fma_rn(double x, double y, double z) { return std::fma(x, y, z); }
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fmul_rn(float x, float y) { return x * y; }
inline float __saturatef(float x) { return x > 0 ? (x < 1 ? x : 1) : 0; }  // NaN gives 0, as on the GPU
inline void sincospif(float x, float* sine, float* cosine) {
  *sine = static_cast<float>(std::sin(M_PI * x));
  *cosine = static_cast<float>(std::cos(M_PI * x));
}
inline unsigned __umulhi(unsigned x, unsigned y) { return static_cast<unsigned>((static_cast<uint64_t>(x) * y) >> 32); }
inline int __popc(unsigned x) { return std::popcount(x); }
inline int __popcll(unsigned long long x) { return std::popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return std::countl_zero(static_cast<unsigned>(x)); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }
inline unsigned __float_as_uint(float x) { return std::bit_cast<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return std::bit_cast<float>(x); }

// The functions of gpu.cuh.

namespace gpu {

using stream_t = void*;

template <class... Parameters, class... Arguments>
int launch_emulated(void (*kernel)(Parameters...), dim3 grid, dim3 block, unsigned cluster, size_t dynamic_smem,
                    Arguments&&... arguments) {
  struct Job {
    void (*kernel)(Parameters...);
    std::tuple<std::decay_t<Parameters>...> arguments;
  };
  Job job{kernel, {std::forward<Arguments>(arguments)...}};
  const auto run = [](void* p) {
    const Job& job = *static_cast<Job*>(p);
    std::apply(job.kernel, job.arguments);
  };
  return simt::launch(reinterpret_cast<simt::KernelPointer>(kernel), grid, block, cluster, dynamic_smem, run, &job);
}

template <class... Parameters, class... Arguments>
int launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_smem, stream_t,
           Arguments&&... arguments) {
  return launch_emulated(kernel, grid, block, 1, dynamic_smem, std::forward<Arguments>(arguments)...);
}
template <class... Parameters, class... Arguments>
int launch_early(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t dynamic_smem, stream_t,
                 Arguments&&... arguments) {
  simt::begin_early_launch();
  const int code = launch_emulated(kernel, grid, block, 1, dynamic_smem, std::forward<Arguments>(arguments)...);
  return code ? code : simt::check_waits(grid, block);
}
template <class... Parameters, class... Arguments>
int launch_clusters(void (*kernel)(Parameters...), dim3 grid, dim3 block, unsigned cluster, size_t dynamic_smem,
                    stream_t, Arguments&&... arguments) {
  // As in a context that has a part of the device.
  if (std::getenv("SIMT_REFUSES_CLUSTERS")) return simt::invalid_cluster_size;
  return launch_emulated(kernel, grid, block, cluster, dynamic_smem, std::forward<Arguments>(arguments)...);
}

template <class... Parameters>
int set_max_dynamic_smem(void (*kernel)(Parameters...), size_t bytes) {
  return simt::set_max_dynamic_smem(reinterpret_cast<simt::KernelPointer>(kernel), bytes);
}

inline bool refuses_clusters(int code) { return code == simt::invalid_cluster_size; }

template <class... Parameters>
bool has_code_for_clusters(void (*)(Parameters...)) {
  return true;
}
template <class... Parameters>
int max_active_clusters(void (*)(Parameters...), unsigned cluster, int threads, size_t dynamic_smem, int* clusters) {
  *clusters = simt::max_active_clusters(cluster, static_cast<uint64_t>(threads), dynamic_smem);
  return simt::success;
}

inline int memset_async(void* pointer, int value, size_t bytes, stream_t) {
  std::memset(pointer, value, bytes);
  return simt::success;
}

inline const char* error_string(int code) { return simt::error_string(code); }

inline unsigned cluster_rank() { return simt::cluster_rank(); }
inline unsigned cluster_size() { return simt::cluster_size(); }
inline void cluster_arrive() { simt::cluster_arrive(); }
inline void cluster_wait() { simt::cluster_wait(); }
template <class T>
T cluster_load(unsigned rank, const T* p) {
  return *static_cast<const T*>(simt::peer_address(rank, p));
}

inline void mbarrier_init(uint64_t* barrier, unsigned count) { simt::mbarrier_init(barrier, count); }
inline void fence_mbarrier_init() {}
inline void mbarrier_arrive(uint64_t* barrier) { simt::mbarrier_arrive(barrier, 0); }
inline void mbarrier_arrive_expect_tx(uint64_t* barrier, unsigned bytes) { simt::mbarrier_arrive(barrier, bytes); }
inline void mbarrier_wait(uint64_t* barrier, unsigned parity) { simt::mbarrier_wait(barrier, parity); }
inline void mbarrier_wait_for_peers(uint64_t* barrier, unsigned parity) { simt::mbarrier_wait(barrier, parity); }
inline void bulk_copy(void* to, const void* from, unsigned bytes, uint64_t* barrier) {
  simt::bulk_copy(to, from, bytes, barrier);
}
template <class T>
void store_async(unsigned rank, T* p, T value, uint64_t* barrier) {
  static_assert(sizeof(T) == sizeof(uint64_t));
  uint64_t word;
  std::memcpy(&word, &value, sizeof value);
  simt::store_async(rank, p, word, barrier);
}
template <int bytes>
void async_copy(void* to, const void* from) {
  simt::async_copy(to, from, bytes);
}
inline void arrive_after_copies(uint64_t* barrier) { simt::arrive_after_copies(barrier); }
inline void fence_proxy_async() {}
inline unsigned atomic_add_acq_rel(unsigned* p, unsigned value) {
  simt::preemption_point();
  const unsigned old = std::atomic_ref<unsigned>(*p).fetch_add(value, std::memory_order_acq_rel);
  simt::progress();
  return old;
}

inline void allow_next_kernel() {}
inline void wait_for_previous_kernel() { simt::wait_for_previous_kernel(); }
inline void forget_memory() {}
inline int opaque(int value) { return value; }
inline int64_t opaque(int64_t value) { return value; }
template <class T>
T* opaque_shared(T* address) {
  return address;
}
inline int64_t multiply_add_wide(uint32_t a, uint32_t b, int64_t c) {
  return static_cast<int64_t>(uint64_t{a} * b) + c;
}

struct StorePolicy {};
inline StorePolicy store_policy(bool) { return {}; }
inline void store_128(uint4* p, uint4 value, StorePolicy) { *p = value; }

template <class T>
T ld_cg(const T* p) {
  return *p;
}

template <class T>
void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
  const simt::MmaOperands mine{d, a, b, [](uint16_t bits) {
                                 T value;
                                 value.bits = bits;
                                 return static_cast<float>(value);
                               }};
  simt::warp_collective(simt::WarpOp::mma, 0xffffffffu, reinterpret_cast<uintptr_t>(&mine), 0, 32);
}

// As inaccurate as the GPU's may be: rounded to 11 bits.
inline float tanh_approx(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(tanhf(x));
  return x != x ? x : std::bit_cast<float>((bits + 0x1000u) & 0xffffe000u);
}
inline float flushed(float x) { return std::fabs(x) < 0x1p-126f ? std::copysign(0.0f, x) : x; }
inline float exp2_approx(float x) { return flushed(exp2f(x)); }
inline float reciprocal_approx(float x) { return flushed(1.0f / flushed(x)); }

}  // namespace gpu
