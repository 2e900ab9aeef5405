// CUDA implementation of the reparameterize_kl operators, torch side: checks, memory and the call of the launchers.
// Its name differs from reparameterize_kl.cu's because both become an object file of that name.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("Os")  // all of it runs once a call: small it is less than half as large
#endif

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <tuple>

#include "../reparameterize_kl.h"
#include "cuda/reparameterize_kl.h"
#include "host.h"

namespace genimg_fast {
namespace {

using torch::stable::accelerator::DeviceGuard;

constexpr char kFamily[] = "reparameterize_kl";

const Tensor* pointer(const OptionalTensor& t) { return t ? &*t : nullptr; }

// What forward and backward have in common.  `results` is z or a gradient, whose layout the other gradients share.
cuda::ReparameterizeKlCall describe(const ReparameterizeKlArguments& in, const Tensor& results, const Tensor* grad_z,
                                    const Tensor* grad_kl) {
  const std::array<const Tensor*, cuda::kOperands> tensors{&results,
                                                           &in.mu,
                                                           &in.logvar,
                                                           pointer(in.noise),
                                                           pointer(in.prior_mu),
                                                           pointer(in.prior_logvar),
                                                           grad_z,
                                                           in.per_element ? grad_kl : nullptr};
  std::array<SampleLayout, cuda::kOperands> layouts{};
  cuda::ReparameterizeKlCall call{};
  call.samples = describe_samples(tensors, layouts);
  if (grad_kl != nullptr && !in.per_element) layouts[cuda::kGradKl] = {grad_kl->stride(0), {}, false};
  std::copy(layouts.begin(), layouts.end(), call.layouts);
  for (int t = 0; t < cuda::kOperands; ++t) {
    const Tensor* const tensor = t == cuda::kGradKl ? grad_kl : tensors[t];
    call.inputs[t] = tensor ? tensor->const_data_ptr() : nullptr;
  }
  call.dtype = dtype_of(in.mu);
  call.seed = data_or_null<int64_t>(in.seed);
  call.logvar_min = in.logvar_min;
  call.logvar_max = in.logvar_max;
  call.free_bits = in.free_bits;
  call.per_element = in.per_element;
  return call;
}

std::tuple<Tensor, Tensor> forward(Tensor mu, Tensor logvar, OptionalTensor noise, OptionalTensor seed,
                                   OptionalTensor prior_mu, OptionalTensor prior_logvar, double logvar_min,
                                   double logvar_max, double free_bits, bool per_element) {
  const ReparameterizeKlArguments in{mu,           logvar,     noise,      seed,      prior_mu,
                                     prior_logvar, logvar_min, logvar_max, free_bits, per_element};
  in.check();
  const DeviceGuard guard(mu.get_device_index());
  Tensor z = torch::stable::empty_like(mu), kl = in.empty_kl();
  if (mu.numel() == 0) {
    torch::stable::zero_(kl);
    return {z, kl};
  }

  cuda::ReparameterizeKlCall call = describe(in, z, nullptr, nullptr);
  call.z = z.mutable_data_ptr();
  call.kl = kl.mutable_data_ptr();
  const cuda::ReparameterizeKlPlan plan = cuda::reparameterize_kl_forward_plan(call, facts_of(mu, kFamily));
  const Tensor workspace = empty_vector(mu, static_cast<int64_t>(plan.workspace_bytes), ScalarType::Byte);
  void* const stream = current_cuda_stream(mu.get_device_index());
  check_cuda(cuda::reparameterize_kl_forward(call, plan, workspace.mutable_data_ptr(), stream), kFamily,
             "launching the forward");
  return {z, kl};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward(OptionalTensor grad_z, OptionalTensor grad_kl, Tensor mu,
                                                            Tensor logvar, OptionalTensor noise, OptionalTensor seed,
                                                            OptionalTensor prior_mu, OptionalTensor prior_logvar,
                                                            double logvar_min, double logvar_max, double free_bits,
                                                            bool per_element, bool need_noise, bool need_prior) {
  const ReparameterizeKlArguments in{mu,           logvar,     noise,      seed,      prior_mu,
                                     prior_logvar, logvar_min, logvar_max, free_bits, per_element};
  in.check();
  in.check_gradients(grad_z, grad_kl);
  const DeviceGuard guard(mu.get_device_index());
  const auto wanted = [&](bool needed) {
    return needed ? torch::stable::empty_like(mu) : torch::stable::new_empty(mu, {0});
  };
  need_prior &= prior_mu.has_value();
  Tensor grad_mu = wanted(true), grad_logvar = wanted(true), grad_noise = wanted(need_noise);
  Tensor grad_prior_mu = wanted(need_prior), grad_prior_logvar = wanted(need_prior);
  if (mu.numel() > 0) {
    cuda::ReparameterizeKlCall call = describe(in, grad_mu, pointer(grad_z), pointer(grad_kl));
    call.grad_mu = grad_mu.mutable_data_ptr();
    call.grad_logvar = grad_logvar.mutable_data_ptr();
    call.grad_noise = need_noise ? grad_noise.mutable_data_ptr() : nullptr;
    call.grad_prior_mu = need_prior ? grad_prior_mu.mutable_data_ptr() : nullptr;
    call.grad_prior_logvar = need_prior ? grad_prior_logvar.mutable_data_ptr() : nullptr;
    const cuda::ReparameterizeKlPlan plan = cuda::reparameterize_kl_backward_plan(call, facts_of(mu, kFamily));
    void* const stream = current_cuda_stream(mu.get_device_index());
    check_cuda(cuda::reparameterize_kl_backward(call, plan, stream), kFamily, "launching the backward");
  }
  return {grad_mu, grad_logvar, grad_noise, grad_prior_mu, grad_prior_logvar};
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CUDA, m) {
  m.impl("reparameterize_kl", TORCH_BOX(&genimg_fast::forward));
  m.impl("reparameterize_kl_backward", TORCH_BOX(&genimg_fast::backward));
}
