#pragma once
// What the kernels of several families share: element types and their accesses, and the meeting of blocks.
#include "device.h"
#include "gpu.cuh"

namespace genimg_fast::cuda {

template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

template <class T_>
struct Element {
  using T = T_;
};

// Calls call with the Element of the dtype.
template <class Call>
auto dispatch_element(DType dtype, Call call) {
  switch (dtype) {
    case DType::float64:
      return call(Element<double>{});
    case DType::bfloat16:
      return call(Element<__nv_bfloat16>{});
    case DType::float16:
      return call(Element<__half>{});
    default:
      return call(Element<float>{});
  }
}

// What one access moves, as a type that stays packed in registers.
template <int bytes>
struct RawOf;
template <>
struct RawOf<16> {
  using type = uint4;
};
template <>
struct RawOf<8> {
  using type = unsigned long long;
};
template <>
struct RawOf<4> {
  using type = unsigned;
};
template <>
struct RawOf<2> {
  using type = unsigned short;
};
template <class T, int V>
using Raw = typename RawOf<sizeof(T) * V>::type;

// Elements of an access of 16 bytes.
template <class T>
constexpr int kVector = 16 / sizeof(T);

template <class T, int V>
__device__ __forceinline__ Raw<T, V> load(const T* p) {
  return __ldg(reinterpret_cast<const Raw<T, V>*>(p));
}

template <class T, int V>
__device__ __forceinline__ void unpack(Raw<T, V> raw, Accumulator<T> (&values)[V]) {
  if constexpr (sizeof(T) == 2 && V > 1) {
    unsigned pairs[V / 2];
    memcpy(pairs, &raw, sizeof raw);
#pragma unroll
    for (int j = 0; j < V / 2; ++j) {
      const float2 two = gpu::unpack_pair<T>(pairs[j]);
      values[2 * j] = two.x;
      values[2 * j + 1] = two.y;
    }
  } else {
    T elements[V];
    memcpy(elements, &raw, sizeof raw);
#pragma unroll
    for (int j = 0; j < V; ++j) values[j] = gpu::convert<Accumulator<T>>(elements[j]);
  }
}

template <class T, int V>
__device__ __forceinline__ Raw<T, V> pack(const Accumulator<T> (&values)[V]) {
  Raw<T, V> raw;
  if constexpr (sizeof(T) == 2 && V > 1) {
    unsigned pairs[V / 2];
#pragma unroll
    for (int j = 0; j < V / 2; ++j) pairs[j] = gpu::pack_pair<T>(values[2 * j], values[2 * j + 1]);
    memcpy(&raw, pairs, sizeof raw);
  } else {
    T elements[V];
#pragma unroll
    for (int j = 0; j < V; ++j) elements[j] = gpu::convert<T>(values[j]);
    memcpy(&raw, elements, sizeof raw);
  }
  return raw;
}

template <class T, int V>
__device__ __forceinline__ void store(T* p, Raw<T, V> raw) {
  *reinterpret_cast<Raw<T, V>*>(p) = raw;
}

template <class T>
__device__ __forceinline__ const T* at_byte(const T* p, int64_t offset) {
  return reinterpret_cast<const T*>(reinterpret_cast<const unsigned char*>(p) + offset);
}
template <class T>
__device__ __forceinline__ T* at_byte(T* p, int64_t offset) {
  return reinterpret_cast<T*>(reinterpret_cast<unsigned char*>(p) + offset);
}

// n / divisor for n < 2^31 by a multiplication (Granlund and Montgomery, Division by Invariant Integers, 1994).
struct Divider {
  uint32_t multiplier = 0;
  int shift = 31;

  Divider() = default;
  explicit Divider(uint32_t divisor) {
    while ((uint64_t{1} << (shift - 31)) < divisor) ++shift;
    multiplier = static_cast<uint32_t>(((uint64_t{1} << shift) + divisor - 1) / divisor);
  }
  __device__ __forceinline__ int operator()(int n) const {
    return static_cast<int>((static_cast<uint64_t>(static_cast<uint32_t>(n)) * multiplier) >> shift);
  }
};

// Counts the block in *arrived, which is zero at launch.  True in all threads of the block that comes last of
// `blocks`; what the others wrote before is visible to it.
__device__ __forceinline__ bool is_last_block(unsigned* arrived, int blocks) {
  SHARED(bool, last, );
  __syncthreads();
  if (threadIdx.x == 0) last = gpu::atomic_add_acq_rel(arrived, 1u) + 1 == static_cast<unsigned>(blocks);
  __syncthreads();
  return last;
}

}  // namespace genimg_fast::cuda
