#pragma once
// What every family's host side needs of torch's tensors.
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>

namespace genimg_fast {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

// Throws a RuntimeError of these words alone: torch's own macro puts function, file and line before them.
#define GENIMG_FAST_CHECK(condition, ...)               \
  do {                                                  \
    if (!(condition)) ::genimg_fast::fail(__VA_ARGS__); \
  } while (false)

inline bool is_supported(ScalarType t) {
  return t == ScalarType::Float || t == ScalarType::Double || t == ScalarType::BFloat16 || t == ScalarType::Half;
}

// Parameters, statistics and sums: float64 beside float64 data, float32 beside everything else.
inline ScalarType statistics_type(ScalarType t) { return t == ScalarType::Double ? t : ScalarType::Float; }

inline bool same_shape(const Tensor& a, const Tensor& b) {
  bool same = a.dim() == b.dim();
  for (int64_t d = 0; same && d < a.dim(); ++d) same = a.size(d) == b.size(d);
  return same;
}

// For messages, as Python writes a tuple.
inline std::string shape_of(const Tensor& t) {
  std::string s = "(";
  for (int64_t d = 0; d < t.dim(); ++d) s += (d > 0 ? ", " : "") + std::to_string(t.size(d));
  return s + (t.dim() == 1 ? ",)" : ")");
}

// Whether new tensors are filled with NaN: in tests, where an element that no kernel writes is to show.
inline std::atomic<bool> fill_new_tensors{false};

// A tensor as it comes from the allocator.
inline Tensor uninitialised(Tensor t) {
  if (fill_new_tensors && is_supported(t.scalar_type())) torch::stable::fill_(t, NAN);
  return t;
}

// An uninitialised vector beside t.  Straight from the allocator: through the dispatcher it would cost a microsecond.
inline Tensor empty_vector(const Tensor& t, int64_t size, ScalarType type) {
  const int64_t stride = 1;
  const int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  int32_t device_type, device_index;
  AtenTensorHandle result;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t.get(), &device_index));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(1, &size, &stride, dtype, device_type, device_index, &result));
  return uninitialised(Tensor(result));
}

template <class T>
const T* data_or_null(const OptionalTensor& t) {
  return t ? static_cast<const T*>(t->const_data_ptr()) : nullptr;
}

}  // namespace genimg_fast
