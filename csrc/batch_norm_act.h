#pragma once
// Host side of batch_norm_act that CPU and CUDA share: argument checks.
#include "norm_act.h"

namespace genimg_fast {

inline Activation check_activation(int64_t activation) {
  STD_TORCH_CHECK(activation >= 0 && activation <= 3,
                  "batch_norm_act: activation must be 0 (identity), 1 (relu), 2 (leaky_relu) or 3 (silu), got ",
                  activation);
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
