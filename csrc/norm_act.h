#pragma once
// Host side that the operators of a norm with an activation share: the activations, and the one description of memory
// layout.
#include "tensor.h"

namespace genimg_fast {

// tanh and sigmoid are image_conv_act's alone.
enum class Activation : int { identity = 0, relu = 1, leaky_relu = 2, silu = 3, tanh = 4, sigmoid = 5 };

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

// The memory format torch's norms give their output.
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

}  // namespace genimg_fast
