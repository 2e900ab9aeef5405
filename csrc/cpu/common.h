#pragma once
// What the CPU kernels of every family share: the types of their elements.
//
// The names of this header, and of those that hold a part of a family, are local to each source that includes it:
// families use the same words (Job, Plan, parallel) for things of their own.
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <type_traits>
#include <utility>

#include "../tensor.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace genimg_fast {
namespace {

using c10::BFloat16;
using c10::Half;

// Type of arithmetic, and of all that is summed up or kept between steps.
template <class T>
using Acc = std::conditional_t<std::is_same<T, double>::value, double, float>;

constexpr int64_t read_ahead_bytes = int64_t(1) << 20;  // of data that is read ahead: no core's own cache holds more

// Calls f with a value of the dtype's type.
template <class F>
void dispatch(ScalarType t, const F& f) {
  if (t == ScalarType::Float) f(float());
  if (t == ScalarType::Double) f(double());
  if (t == ScalarType::BFloat16) f(BFloat16());
  if (t == ScalarType::Half) f(Half());
}

template <class T>
T* data(Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}
template <class T>
const T* data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

}  // namespace
}  // namespace genimg_fast
