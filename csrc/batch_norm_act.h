#pragma once
// Host side of batch_norm_act that CPU and CUDA share: argument checks and the one description of memory layout.
#include "tensor.h"

namespace genimg_fast {

enum class Activation : int { identity = 0, relu = 1, leaky_relu = 2 };

// Element i of channel c in group o lies at (o * channels + c) * inner + i.
// NCHW: outer = N, inner = H*W.  channels_last and (N, C): outer = N*H*W, inner = 1.
struct Geometry {
  int64_t outer, channels, inner;
  int64_t per_channel() const { return outer * inner; }
  int64_t numel() const { return outer * channels * inner; }
};

// The strides test of torch's suggest_memory_format: channel fastest, then the spatial dimensions, then the batch.
inline bool has_channels_last_strides(const Tensor& t) {
  const int64_t dim = t.dim();
  if (dim != 4 && dim != 5) return false;
  int64_t order[5], smallest = 0, k = 0;
  order[k++] = 1;
  for (int64_t d = dim - 1; d >= 2; --d) order[k++] = d;
  order[k++] = 0;
  if (t.stride(1) == 0) return false;
  for (int64_t j = 0; j < dim; ++j) {
    const int64_t d = order[j], stride = t.stride(d), size = t.size(d);
    if (size == 0 || stride < smallest) return false;
    if (d == 0 && smallest == t.stride(1)) return false;  // (N, C, 1, 1): ambiguous, NCHW by convention
    smallest = stride * (size > 1 ? size : 1);
  }
  return true;
}

inline bool is_dense(const Tensor& t, MemoryFormat format) {
  if (format == MemoryFormat::Contiguous) return t.is_contiguous();
  const int64_t dim = t.dim();
  int64_t expected = 1;
  for (int64_t j = 0; j < dim; ++j) {
    const int64_t d = j == 0 ? 1 : j == dim - 1 ? 0 : dim - j;
    if (t.size(d) != 1 && t.stride(d) != expected) return false;
    expected *= t.size(d);
  }
  return true;
}

// The memory format torch's batch norm gives its output.
inline MemoryFormat memory_format(const Tensor& t) {
  if (t.is_contiguous() || t.dim() < 4 || t.dim() > 5) return MemoryFormat::Contiguous;
  const MemoryFormat channels_last = t.dim() == 4 ? MemoryFormat::ChannelsLast : MemoryFormat::ChannelsLast3d;
  return is_dense(t, channels_last) || has_channels_last_strides(t) ? channels_last : MemoryFormat::Contiguous;
}

inline Tensor as_dense(const Tensor& t, MemoryFormat format) {
  return is_dense(t, format) ? t : torch::stable::contiguous(t, format);
}

inline Geometry geometry(const Tensor& t, MemoryFormat format) {
  int64_t spatial = 1;
  for (int64_t d = 2; d < t.dim(); ++d) spatial *= t.size(d);
  if (format == MemoryFormat::Contiguous) return {t.size(0), t.size(1), spatial};
  return {t.size(0) * spatial, t.size(1), 1};
}

inline Activation check_activation(int64_t activation) {
  STD_TORCH_CHECK(activation >= 0 && activation <= 2,
                  "batch_norm_act: activation must be 0 (identity), 1 (relu) or 2 (leaky_relu), got ", activation);
  return static_cast<Activation>(activation);
}

inline void check_input(const Tensor& input) {
  STD_TORCH_CHECK(input.dim() >= 2, "batch_norm_act: input must have at least 2 dimensions (N, C, ...), got ",
                  input.dim());
  STD_TORCH_CHECK(is_supported(input.scalar_type()),
                  "batch_norm_act: input must be float32, float64, bfloat16 or float16");
}

// A second tensor over the input's elements: residual, grad_output.
inline void check_like_input(const Tensor& t, const Tensor& input, const char* name) {
  STD_TORCH_CHECK(t.device() == input.device(), "batch_norm_act: ", name, " must be on the input's device");
  STD_TORCH_CHECK(t.scalar_type() == input.scalar_type(), "batch_norm_act: ", name, " must have the input's dtype");
  bool same = t.dim() == input.dim();
  for (int64_t d = 0; same && d < t.dim(); ++d) same = t.size(d) == input.size(d);
  STD_TORCH_CHECK(same, "batch_norm_act: ", name, " must have the input's shape");
}

// One value per channel: a parameter or running statistic, as F.batch_norm takes them.
inline void check_per_channel(const Tensor& t, const Tensor& input, const char* name) {
  STD_TORCH_CHECK(t.device() == input.device(), "batch_norm_act: ", name, " must be on the input's device");
  STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == input.size(1), "batch_norm_act: ", name, " must have shape (",
                  input.size(1), ",), one value per channel of the input");
  STD_TORCH_CHECK(t.scalar_type() == input.scalar_type() || t.scalar_type() == statistics_type(input.scalar_type()),
                  "batch_norm_act: ", name, " must have the input's dtype, or float32 beside 16-bit input");
  STD_TORCH_CHECK(t.is_contiguous(), "batch_norm_act: ", name, " must be contiguous");
}

inline void check_per_channel(const OptionalTensor& t, const Tensor& input, const char* name) {
  if (t) check_per_channel(*t, input, name);
}

// Likewise, as the kernels hand them on: mean and invstd.
inline void check_statistics(const Tensor& t, const Tensor& input, const char* name) {
  check_per_channel(t, input, name);
  STD_TORCH_CHECK(t.scalar_type() == statistics_type(input.scalar_type()), "batch_norm_act: ", name,
                  " must be float64 for float64 input and float32 otherwise");
}

// Per-channel values, all zero.
inline Tensor zeros_per_channel(const Tensor& input) {
  Tensor zeros = torch::stable::new_empty(input, {input.size(1)}, statistics_type(input.scalar_type()));
  torch::stable::zero_(zeros);
  return zeros;
}

}  // namespace genimg_fast
