// Every operator schema of genimg_fast, in one place.  Implementations register themselves per device in cpu/ and
// cuda/.
#include <torch/csrc/stable/library.h>
#include <torch/headeronly/version.h>

#include "build_info.h"

// Version of the torch that was compiled against, then the C++ compiler.
GENIMG_FAST_EXPORT const char* genimg_fast_build_info() {
  return TORCH_VERSION ";"
#if defined(__clang__)
      __VERSION__;
#else
      "GCC " __VERSION__;
#endif
}

STABLE_TORCH_LIBRARY(genimg_fast, m) {
  // Batch norm with batch statistics, + residual, then activation (0 identity, 1 relu, 2 leaky_relu).
  // mean and invstd (one value per channel, float32 or float64) are what backward needs; running statistics are updated
  // in place.
  m.def(
      "batch_norm_act_train(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, "
      "Tensor(a!)? running_mean, Tensor(b!)? running_var, float momentum, float eps, "
      "int activation, float negative_slope) -> (Tensor output, Tensor mean, Tensor invstd)");
  // The same as a pure function, which autograd under torch.compile needs: with the batch's unbiased variance.
  m.def(
      "batch_norm_act_train_functional(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, float eps, "
      "int activation, float negative_slope) -> (Tensor output, Tensor mean, Tensor invstd, Tensor var)");
  // Batch norm with running statistics, + residual, then activation.
  m.def(
      "batch_norm_act_eval(Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, "
      "Tensor running_mean, Tensor running_var, float eps, int activation, float negative_slope) -> Tensor");
  // Gradients of both; `training` says whether mean and invstd depend on input.
  // A gradient that is not needed comes back as an empty tensor; grad_weight and grad_bias are always computed.
  m.def(
      "batch_norm_act_backward(Tensor grad_output, Tensor input, Tensor? residual, Tensor? weight, Tensor? bias, "
      "Tensor mean, Tensor invstd, bool training, int activation, float negative_slope, "
      "bool need_input, bool need_residual) "
      "-> (Tensor grad_input, Tensor grad_residual, Tensor grad_weight, Tensor grad_bias)");
  // z = mu + exp(logvar / 2) * noise and the KL divergence of N(mu, exp(logvar)) from the prior (N(0, 1) without one),
  // per sample or per element.  Exactly one of noise and seed is given; seed is a 0-dimensional int64 tensor.  Every
  // other tensor has mu's shape.  logvar is clamped first; -inf and inf switch that off, free_bits = 0 the lower bound
  // of each element's divergence.
  m.def(
      "reparameterize_kl(Tensor mu, Tensor logvar, Tensor? noise, Tensor? seed, Tensor? prior_mu, "
      "Tensor? prior_logvar, float logvar_min, float logvar_max, float free_bits, bool per_element) "
      "-> (Tensor z, Tensor kl)");
  // Its gradients, with the noise generated again.  grad_z and grad_kl: None is zero.
  // A gradient that is not needed comes back as an empty tensor; grad_mu and grad_logvar are always computed.
  m.def(
      "reparameterize_kl_backward(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor logvar, Tensor? noise, "
      "Tensor? seed, Tensor? prior_mu, Tensor? prior_logvar, float logvar_min, float logvar_max, float free_bits, "
      "bool per_element, bool need_noise, bool need_prior) "
      "-> (Tensor grad_mu, Tensor grad_logvar, Tensor grad_noise, Tensor grad_prior_mu, Tensor grad_prior_logvar)");
}
