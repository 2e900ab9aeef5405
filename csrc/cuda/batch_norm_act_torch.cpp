// CUDA implementation of the batch_norm_act operators, torch side: checks, memory and the call of the launchers.
// Its name differs from batch_norm_act.cu's because both become an object file of that name.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("Os")  // all of it runs once a call: small it is less than half as large
#endif

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <string_view>
#include <tuple>

#include "../batch_norm_act.h"
#include "cuda/batch_norm_act.h"
#include "host.h"

namespace genimg_fast {
namespace {

using torch::stable::accelerator::DeviceGuard;

constexpr char kFamily[] = "batch_norm_act";

cuda::BatchNormActShape shape_of(const Tensor& t, MemoryFormat format) {
  const Geometry g = geometry(t, format);
  return {dtype_of(t), g.outer, g.channels, g.inner};
}

Tensor empty_data(const Tensor& like, MemoryFormat format) {
  return torch::stable::empty(like.sizes(), like.scalar_type(), std::nullopt, like.device(), std::nullopt, format);
}

Tensor empty_per_channel(const Tensor& input) {
  return empty_vector(input, input.size(1), statistics_type(input.scalar_type()));
}

OptionalTensor dense_residual(const OptionalTensor& residual, const Tensor& input, MemoryFormat format) {
  if (!residual) return std::nullopt;
  check_like_input(*residual, input, "residual");
  return as_dense(*residual, format);
}

// For benchmarks and bisection: GENIMG_FAST_BATCH_NORM_METHOD = split, block or cluster overrules the policy where it
// can.
cuda::Method method() {
  static const cuda::Method chosen = [] {
    const char* const name = std::getenv("GENIMG_FAST_BATCH_NORM_METHOD");
    const std::string_view wanted = name ? name : "";
    return wanted == "split"     ? cuda::Method::split
           : wanted == "block"   ? cuda::Method::block
           : wanted == "cluster" ? cuda::Method::cluster
                                 : cuda::Method::automatic;
  }();
  return chosen;
}

bool has_own_dtype(const Tensor& t, const Tensor& input) {
  return t.scalar_type() != statistics_type(input.scalar_type());
}

// Values that the launcher only reads; its structs serve the others too, hence the cast.
cuda::BatchNormActValues per_channel(const OptionalTensor& t, const Tensor& input) {
  if (!t) return {nullptr, false};
  return {const_cast<void*>(t->const_data_ptr()), has_own_dtype(*t, input)};
}

cuda::BatchNormActValues updated_per_channel(const OptionalTensor& t, const Tensor& input) {
  if (!t) return {nullptr, false};
  return {t->mutable_data_ptr(), has_own_dtype(*t, input)};
}

std::tuple<Tensor, Tensor, Tensor> train(const Tensor& input, const OptionalTensor& residual,
                                         const OptionalTensor& weight, const OptionalTensor& bias,
                                         const OptionalTensor& running_mean, const OptionalTensor& running_var,
                                         double momentum, double eps, int64_t activation, double negative_slope) {
  check_input(input);
  check_activation(activation);
  check_per_channel(weight, input, "weight");
  check_per_channel(bias, input, "bias");
  check_per_channel(running_mean, input, "running_mean");
  check_per_channel(running_var, input, "running_var");
  const DeviceGuard guard(input.get_device_index());
  const MemoryFormat format = memory_format(input);
  const OptionalTensor dense = dense_residual(residual, input, format);
  const Tensor x = as_dense(input, format);
  Tensor output = empty_data(x, format), mean = empty_per_channel(x), invstd = empty_per_channel(x);
  if (x.numel() == 0) {
    torch::stable::zero_(mean);
    torch::stable::zero_(invstd);
    return {output, mean, invstd};
  }

  const cuda::BatchNormActShape shape = shape_of(x, format);
  const cuda::BatchNormActForward call{x.const_data_ptr(),
                                       data_or_null<void>(dense),
                                       per_channel(weight, x),
                                       per_channel(bias, x),
                                       output.mutable_data_ptr(),
                                       mean.mutable_data_ptr(),
                                       invstd.mutable_data_ptr(),
                                       updated_per_channel(running_mean, x),
                                       updated_per_channel(running_var, x),
                                       momentum,
                                       eps,
                                       static_cast<int>(activation),
                                       negative_slope};
  void* const stream = current_cuda_stream(x.get_device_index());
  launch_with_facts(x, kFamily, "launching the training forward", [&](const cuda::DeviceFacts& facts) {
    const size_t bytes = cuda::batch_norm_act_train_workspace(shape, call, facts, method());
    const Tensor workspace = empty_vector(x, static_cast<int64_t>(bytes), ScalarType::Byte);
    return cuda::batch_norm_act_train(shape, call, facts, method(), workspace.mutable_data_ptr(), stream);
  });
  return {output, mean, invstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> train_functional(const Tensor& input, const OptionalTensor& residual,
                                                            const OptionalTensor& weight, const OptionalTensor& bias,
                                                            double eps, int64_t activation, double negative_slope) {
  check_input(input);
  // With momentum 1 the running variance is this batch's alone.
  Tensor unused = zeros_per_channel(input), var = zeros_per_channel(input);
  auto [output, mean, invstd] = train(input, residual, weight, bias, unused, var, 1, eps, activation, negative_slope);
  return {output, mean, invstd, var};
}

Tensor eval(const Tensor& input, const OptionalTensor& residual, const OptionalTensor& weight,
            const OptionalTensor& bias, const Tensor& running_mean, const Tensor& running_var, double eps,
            int64_t activation, double negative_slope) {
  check_input(input);
  check_activation(activation);
  check_per_channel(weight, input, "weight");
  check_per_channel(bias, input, "bias");
  check_per_channel(running_mean, input, "running_mean");
  check_per_channel(running_var, input, "running_var");
  const DeviceGuard guard(input.get_device_index());
  const MemoryFormat format = memory_format(input);
  const OptionalTensor dense = dense_residual(residual, input, format);
  const Tensor x = as_dense(input, format);
  Tensor output = empty_data(x, format);
  if (x.numel() == 0) return output;

  const cuda::BatchNormActForward call{x.const_data_ptr(),
                                       data_or_null<void>(dense),
                                       per_channel(weight, x),
                                       per_channel(bias, x),
                                       output.mutable_data_ptr(),
                                       nullptr,
                                       nullptr,
                                       per_channel(running_mean, x),
                                       per_channel(running_var, x),
                                       0,
                                       eps,
                                       static_cast<int>(activation),
                                       negative_slope};
  void* const stream = current_cuda_stream(x.get_device_index());
  check_cuda(cuda::batch_norm_act_eval(shape_of(x, format), call, stream), kFamily, "launching the evaluation forward");
  return output;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(const Tensor& grad_output, const Tensor& input,
                                                    const OptionalTensor& residual, const OptionalTensor& weight,
                                                    const OptionalTensor& bias, const Tensor& mean,
                                                    const Tensor& invstd, bool training, int64_t activation,
                                                    double negative_slope, bool need_input, bool need_residual) {
  check_input(input);
  check_activation(activation);
  check_like_input(grad_output, input, "grad_output");
  check_per_channel(weight, input, "weight");
  check_per_channel(bias, input, "bias");
  check_statistics(mean, input, "mean");
  check_statistics(invstd, input, "invstd");
  const DeviceGuard guard(input.get_device_index());
  const MemoryFormat format = memory_format(input);
  const OptionalTensor dense = dense_residual(residual, input, format);
  const Tensor x = as_dense(input, format), grad = as_dense(grad_output, format);
  const auto wanted = [&](bool needed) { return needed ? empty_data(x, format) : empty_vector(x, 0, x.scalar_type()); };
  Tensor grad_input = wanted(need_input), grad_residual = wanted(need_residual);
  Tensor grad_weight = empty_per_channel(x), grad_bias = empty_per_channel(x);
  if (x.numel() == 0) {
    torch::stable::zero_(grad_weight);
    torch::stable::zero_(grad_bias);
    return {grad_input, grad_residual, grad_weight, grad_bias};
  }

  const cuda::BatchNormActShape shape = shape_of(x, format);
  const cuda::BatchNormActBackward call{grad.const_data_ptr(),
                                        x.const_data_ptr(),
                                        data_or_null<void>(dense),
                                        per_channel(weight, x),
                                        per_channel(bias, x),
                                        mean.const_data_ptr(),
                                        invstd.const_data_ptr(),
                                        need_input ? grad_input.mutable_data_ptr() : nullptr,
                                        need_residual ? grad_residual.mutable_data_ptr() : nullptr,
                                        grad_weight.mutable_data_ptr(),
                                        grad_bias.mutable_data_ptr(),
                                        training,
                                        static_cast<int>(activation),
                                        negative_slope};
  void* const stream = current_cuda_stream(x.get_device_index());
  launch_with_facts(x, kFamily, "launching the backward", [&](const cuda::DeviceFacts& facts) {
    const size_t bytes = cuda::batch_norm_act_backward_workspace(shape, call, facts, method());
    const Tensor workspace = empty_vector(x, static_cast<int64_t>(bytes), ScalarType::Byte);
    return cuda::batch_norm_act_backward(shape, call, facts, method(), workspace.mutable_data_ptr(), stream);
  });
  return {grad_input, grad_residual, grad_weight, grad_bias};
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CUDA, m) {
  m.impl("batch_norm_act_train", TORCH_BOX(&genimg_fast::train));
  m.impl("batch_norm_act_train_functional", TORCH_BOX(&genimg_fast::train_functional));
  m.impl("batch_norm_act_eval", TORCH_BOX(&genimg_fast::eval));
  m.impl("batch_norm_act_backward", TORCH_BOX(&genimg_fast::backward));
}
