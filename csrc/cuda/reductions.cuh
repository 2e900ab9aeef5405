#pragma once
// What the normalisations share: arithmetic, parameters, and partial results that are combined, always in the same
// order.
#include "common.cuh"

namespace genimg_fast::cuda {

__device__ __forceinline__ float multiply_add(float x, float y, float z) { return fmaf(x, y, z); }
__device__ __forceinline__ double multiply_add(double x, double y, double z) { return fma(x, y, z); }
__device__ __forceinline__ float square_root(float x) { return sqrtf(x); }
__device__ __forceinline__ double square_root(double x) { return sqrt(x); }
// Of counts: within 2 ulp, without the slow path that an exact quotient needs.
__device__ __forceinline__ float quotient(float x, float y) { return __fdividef(x, y); }
__device__ __forceinline__ double quotient(double x, double y) { return x / y; }

// Pairwise, in place; V is a power of two.
template <class Acc, int V>
__device__ __forceinline__ Acc sum_of(Acc (&values)[V]) {
#pragma unroll
  for (int half = V / 2; half > 0; half /= 2) {
#pragma unroll
    for (int j = 0; j < half; ++j) values[j] += values[j + half];
  }
  return values[0];
}

// Moments: n values with mean a and sum of squared deviations b.  Sums: two sums, n is not used.
template <class Acc>
struct Partial {
  Acc n, a, b;
};

// Partial results of the A channels of a thread.
template <class Acc, int A>
struct Partials {
  Acc n, a[A], b[A];
};

struct Moments {
  // Chan's merge.  An empty side adds nothing, whatever the other holds: no product of infinity and zero.
  template <class Acc>
  static __device__ __forceinline__ Partial<Acc> combine(const Partial<Acc>& l, const Partial<Acc>& r) {
    const Acc n = l.n + r.n;
    const Acc share = n > 0 ? quotient(r.n, n) : Acc(0);
    const Acc delta = r.a - l.a;
    return {n, multiply_add(delta, share, l.a), l.b + r.b + delta * (delta * (l.n * share))};
  }
};

struct Sums {
  template <class Acc>
  static __device__ __forceinline__ Partial<Acc> combine(const Partial<Acc>& l, const Partial<Acc>& r) {
    return {Acc(0), l.a + r.a, l.b + r.b};
  }
};

template <class Combine, class Acc>
__device__ __forceinline__ Partial<Acc> combine_with_lane(const Partial<Acc>& mine, int lane_mask) {
  return Combine::combine(mine, Partial<Acc>{__shfl_xor_sync(0xffffffffu, mine.n, lane_mask),
                                             __shfl_xor_sync(0xffffffffu, mine.a, lane_mask),
                                             __shfl_xor_sync(0xffffffffu, mine.b, lane_mask)});
}

template <class Acc>
struct PairOf {
  using type = float2;
};
template <>
struct PairOf<double> {
  using type = double2;
};

// A parameter or running statistic, one value per channel, or null: of Acc, or of T if `own`.
template <class T>
struct PerChannel {
  using Acc = Accumulator<T>;
  void* values;
  bool own;

  __device__ __forceinline__ explicit operator bool() const { return values != nullptr; }
  __device__ __forceinline__ Acc read(int64_t channel) const {
    return sizeof(T) < sizeof(Acc) && own ? gpu::convert<Acc>(static_cast<const T*>(values)[channel])
                                          : static_cast<const Acc*>(values)[channel];
  }
  __device__ __forceinline__ void write(int64_t channel, Acc value) const {
    if (sizeof(T) < sizeof(Acc) && own) {
      static_cast<T*>(values)[channel] = gpu::convert<T>(value);
    } else {
      static_cast<Acc*>(values)[channel] = value;
    }
  }
};

}  // namespace genimg_fast::cuda
