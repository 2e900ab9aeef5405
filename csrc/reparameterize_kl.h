#pragma once
// Host side of reparameterize_kl that CPU and CUDA share: argument checks, and where each tensor's elements lie.
#include <array>
#include <cmath>

#include "sample_layout.h"
#include "tensor.h"

namespace genimg_fast {

// Describes a call's tensors, all of the shape of tensors[0]; null ones are left out.
template <size_t N>
Samples describe_samples(const std::array<const Tensor*, N>& tensors, std::array<SampleLayout, N>& layouts) {
  const Tensor& first = *tensors[0];
  const int64_t dim = first.dim();
  const auto shape = first.sizes();
  Samples samples{shape[0], 1, 0, {}};
  std::array<const int64_t*, N> strides{};
  for (size_t k = 0; k < N; ++k) {
    if (tensors[k] == nullptr) continue;
    strides[k] = tensors[k]->strides().data();
    layouts[k].batch_stride = strides[k][0];
  }
  for (int64_t d = dim - 1; d > 0; --d) {
    if (shape[d] == 1) continue;
    bool merges = samples.dims > 0;
    for (size_t k = 0; merges && k < N; ++k)
      merges = strides[k] == nullptr ||
               strides[k][d] == layouts[k].strides[samples.dims - 1] * samples.sizes[samples.dims - 1];
    if (merges) {
      samples.sizes[samples.dims - 1] *= shape[d];
    } else {
      GENIMG_FAST_CHECK(samples.dims < max_sample_dims, "reparameterize_kl: the tensors' strides make more than ",
                        max_sample_dims, " separate dimensions of a sample; call contiguous() on them");
      samples.sizes[samples.dims] = shape[d];
      for (size_t k = 0; k < N; ++k)
        if (strides[k] != nullptr) layouts[k].strides[samples.dims] = strides[k][d];
      ++samples.dims;
    }
    samples.elements *= shape[d];
  }
  if (samples.dims == 0) {  // one element a sample
    samples.dims = 1;
    samples.sizes[0] = 1;
    for (SampleLayout& layout : layouts) layout.strides[0] = 1;
  }
  for (size_t k = 0; k < N; ++k) {
    if (strides[k] == nullptr) continue;
    int64_t expected = 1;
    layouts[k].row_major = true;
    for (int d = 0; d < samples.dims; expected *= samples.sizes[d++])
      layouts[k].row_major &= layouts[k].strides[d] == expected;
  }
  return samples;
}

// The arguments that forward and backward share.  Every tensor but seed has mu's shape, with any strides.
struct ReparameterizeKlArguments {
  const Tensor& mu;
  const Tensor& logvar;
  const OptionalTensor &noise, &seed;  // exactly one of them
  const OptionalTensor &prior_mu, &prior_logvar;
  double logvar_min, logvar_max, free_bits;  // -inf, inf, 0: off
  bool per_element;

  void check() const {
    GENIMG_FAST_CHECK(mu.dim() >= 1, "reparameterize_kl: mu must have at least 1 dimension (B, ...), got 0");
    GENIMG_FAST_CHECK(is_supported(mu.scalar_type()),
                      "reparameterize_kl: mu must be float32, float64, bfloat16 or float16");
    check_like_mu(logvar, "logvar");
    check_like_mu(noise, "noise");
    check_like_mu(prior_mu, "prior_mu");
    check_like_mu(prior_logvar, "prior_logvar");
    GENIMG_FAST_CHECK(prior_mu.has_value() == prior_logvar.has_value(),
                      "reparameterize_kl: prior_mu and prior_logvar must be given together");
    GENIMG_FAST_CHECK(noise.has_value() != seed.has_value(),
                      "reparameterize_kl: exactly one of noise and seed must be given");
    if (seed) {
      GENIMG_FAST_CHECK(seed->scalar_type() == ScalarType::Long && seed->dim() == 0,
                        "reparameterize_kl: seed must be a 0-dimensional int64 tensor");
      GENIMG_FAST_CHECK(seed->device() == mu.device(), "reparameterize_kl: seed must be on mu's device");
    }
    GENIMG_FAST_CHECK(logvar_min <= logvar_max, "reparameterize_kl: logvar_min must be at most logvar_max, got ",
                      logvar_min, " and ", logvar_max);
    GENIMG_FAST_CHECK(free_bits >= 0 && std::isfinite(free_bits),
                      "reparameterize_kl: free_bits must be finite and at least 0, got ", free_bits);
  }

  void check_gradients(const OptionalTensor& grad_z, const OptionalTensor& grad_kl) const {
    check_like_mu(grad_z, "grad_z");
    if (!grad_kl) return;
    GENIMG_FAST_CHECK(grad_kl->device() == mu.device(), "reparameterize_kl: grad_kl must be on mu's device");
    GENIMG_FAST_CHECK(grad_kl->scalar_type() == statistics_type(mu.scalar_type()),
                      "reparameterize_kl: grad_kl must be float64 for float64 mu and float32 otherwise");
    const bool fits = per_element ? same_shape(*grad_kl, mu) : grad_kl->dim() == 1 && grad_kl->size(0) == mu.size(0);
    GENIMG_FAST_CHECK(fits, "reparameterize_kl: grad_kl must have kl's shape, ",
                      per_element ? "that of mu" : "one value per sample");
  }

  // The KL divergence, contiguous: per sample, or per element.
  Tensor empty_kl() const {
    const ScalarType type = statistics_type(mu.scalar_type());
    if (per_element)
      return torch::stable::empty(mu.sizes(), type, std::nullopt, mu.device(), std::nullopt, MemoryFormat::Contiguous);
    return empty_vector(mu, mu.size(0), type);
  }

 private:
  void check_like_mu(const Tensor& t, const char* name) const {
    GENIMG_FAST_CHECK(t.device() == mu.device(), "reparameterize_kl: ", name, " must be on mu's device");
    GENIMG_FAST_CHECK(t.scalar_type() == mu.scalar_type(), "reparameterize_kl: ", name, " must have mu's dtype");
    GENIMG_FAST_CHECK(same_shape(t, mu), "reparameterize_kl: ", name, " must have mu's shape");
  }
  void check_like_mu(const OptionalTensor& t, const char* name) const {
    if (t) check_like_mu(*t, name);
  }
};

}  // namespace genimg_fast
