#pragma once
// Host side of group_norm_act that CPU and CUDA share: argument checks.
#include "norm_act.h"

namespace genimg_fast {

// The arguments that forward and backward share.  Data is of the input's shape (N, C, ...), in any layout, and of its
// dtype, residual, output and their gradients perhaps of that of the statistics; parameters are of the input's dtype or
// that of the statistics, with any strides.
struct GroupNormActArguments {
  const Tensor& input;
  const OptionalTensor& residual;
  const OptionalTensor &weight, &bias;  // (C,)
  const OptionalTensor &scale, &shift;  // (N, C)
  int64_t num_groups, activation;
  ScalarType output;  // its dtype

  void check() const {
    GENIMG_FAST_CHECK(input.dim() >= 2, "group_norm_act: input must have at least 2 dimensions (N, C, ...), got ",
                      input.dim());
    GENIMG_FAST_CHECK(is_supported(input.scalar_type()),
                      "group_norm_act: input must be float32, float64, bfloat16 or float16");
    GENIMG_FAST_CHECK(num_groups > 0 && input.size(1) % num_groups == 0,
                      "group_norm_act: num_groups must divide the input's ", input.size(1), " channels, got ",
                      num_groups);
    GENIMG_FAST_CHECK(activation >= 0 && activation <= 3,
                      "group_norm_act: activation must be 0 (identity), 1 (relu), 2 (leaky_relu) or 3 (silu), got ",
                      activation);
    GENIMG_FAST_CHECK(output == input.scalar_type() || output == statistics_type(input.scalar_type()),
                      "group_norm_act: grad_output must have the input's dtype, or float32 beside 16-bit input");
    if (residual) check_like_output(*residual, "residual");
    check_parameter(weight, 1, "weight");
    check_parameter(bias, 1, "bias");
    check_parameter(scale, 2, "scale");
    check_parameter(shift, 2, "shift");
  }

  // mean and invstd as the forward operator returns them: one value per sample and group.
  void check_gradients(const Tensor& grad_output, const Tensor& mean, const Tensor& invstd) const {
    check_like_output(grad_output, "grad_output");
    check_statistics(mean, "mean");
    check_statistics(invstd, "invstd");
  }

 private:
  void check_like_output(const Tensor& t, const char* name) const {
    GENIMG_FAST_CHECK(t.device() == input.device(), "group_norm_act: ", name, " must be on the input's device");
    GENIMG_FAST_CHECK(t.scalar_type() == output, "group_norm_act: ", name, " must have the ",
                      output == input.scalar_type() ? "input's dtype" : "output's dtype, float32");
    GENIMG_FAST_CHECK(same_shape(t, input), "group_norm_act: ", name, " must have the input's shape, ", shape_of(input),
                      ", got ", shape_of(t));
  }
  void check_parameter(const OptionalTensor& t, int64_t dim, const char* name) const {
    if (!t) return;
    GENIMG_FAST_CHECK(t->device() == input.device(), "group_norm_act: ", name, " must be on the input's device");
    GENIMG_FAST_CHECK(
        t->scalar_type() == input.scalar_type() || t->scalar_type() == statistics_type(input.scalar_type()),
        "group_norm_act: ", name, " must have the input's dtype, or float32 beside 16-bit input");
    const bool fits = t->dim() == dim && t->size(dim - 1) == input.size(1) && (dim == 1 || t->size(0) == input.size(0));
    GENIMG_FAST_CHECK(fits, "group_norm_act: ", name, " must have shape ", dim == 1 ? "(C,)" : "(N, C)",
                      ", one value per channel of the input", dim == 1 ? "" : " and sample", ", got ", shape_of(*t));
  }
  void check_statistics(const Tensor& t, const char* name) const {
    GENIMG_FAST_CHECK(t.device() == input.device(), "group_norm_act: ", name, " must be on the input's device");
    GENIMG_FAST_CHECK(t.scalar_type() == statistics_type(input.scalar_type()), "group_norm_act: ", name,
                      " must be float64 for float64 input and float32 otherwise");
    GENIMG_FAST_CHECK(t.dim() == 2 && t.size(0) == input.size(0) && t.size(1) == num_groups && t.is_contiguous(),
                      "group_norm_act: ", name, " must be contiguous, of shape (N, num_groups), got ", shape_of(t));
  }
};

}  // namespace genimg_fast
