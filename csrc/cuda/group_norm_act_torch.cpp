// CUDA implementation of the group_norm_act operators, torch side: checks, memory and the call of the launchers.
// Its name differs from group_norm_act.cu's because both become an object file of that name.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("Os")  // all of it runs once a call: small it is less than half as large
#endif

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <cstdlib>
#include <string_view>
#include <tuple>

#include "../group_norm_act.h"
#include "cuda/group_norm_act.h"
#include "host.h"

namespace genimg_fast {
namespace {

using torch::stable::accelerator::DeviceGuard;

constexpr char kFamily[] = "group_norm_act";

cuda::GroupNormActShape group_shape(const Tensor& t, int64_t num_groups, MemoryFormat format, ScalarType output) {
  int64_t inner = 1;
  for (int64_t d = 2; d < t.dim(); ++d) inner *= t.size(d);
  return {dtype_of(t),
          t.size(0),
          t.size(1),
          inner,
          num_groups,
          format != MemoryFormat::Contiguous,
          output != t.scalar_type()};
}

Tensor empty_like_data(const Tensor& x, MemoryFormat format, ScalarType type) {
  return torch::stable::empty(x.sizes(), type, std::nullopt, x.device(), std::nullopt, format);
}

Tensor empty_statistics(const Tensor& x, std::initializer_list<int64_t> sizes) {
  return torch::stable::new_empty(x, sizes, statistics_type(x.scalar_type()));
}

OptionalTensor dense(const OptionalTensor& t, MemoryFormat format) {
  return t ? OptionalTensor(as_dense(*t, format)) : std::nullopt;
}

// For benchmarks and bisection: GENIMG_FAST_GROUP_NORM_METHOD = split, on_chip or cluster overrules the policy where it
// can.
cuda::GroupNormMethod group_norm_method() {
  static const cuda::GroupNormMethod chosen = [] {
    const char* const name = std::getenv("GENIMG_FAST_GROUP_NORM_METHOD");
    const std::string_view wanted = name ? name : "";
    return wanted == "split"     ? cuda::GroupNormMethod::split
           : wanted == "on_chip" ? cuda::GroupNormMethod::on_chip
           : wanted == "cluster" ? cuda::GroupNormMethod::cluster
                                 : cuda::GroupNormMethod::automatic;
  }();
  return chosen;
}

// The parameters, contiguous, and as the launchers take them.
struct GroupNormParameters {
  OptionalTensor weight, bias, scale, shift;
  ScalarType statistics;

  explicit GroupNormParameters(const GroupNormActArguments& args)
      : weight(dense(args.weight, MemoryFormat::Contiguous)),
        bias(dense(args.bias, MemoryFormat::Contiguous)),
        scale(dense(args.scale, MemoryFormat::Contiguous)),
        shift(dense(args.shift, MemoryFormat::Contiguous)),
        statistics(statistics_type(args.input.scalar_type())) {}

  cuda::GroupNormActValues values(const OptionalTensor& t) const {
    if (!t) return {nullptr, false};
    return {t->const_data_ptr(), t->scalar_type() != statistics};
  }
};

std::tuple<Tensor, Tensor, Tensor> group_norm_act(const Tensor& input, const OptionalTensor& residual,
                                                  const OptionalTensor& weight, const OptionalTensor& bias,
                                                  const OptionalTensor& scale, const OptionalTensor& shift,
                                                  int64_t num_groups, double eps, int64_t activation,
                                                  double negative_slope, bool wide_output) {
  const ScalarType type = input.scalar_type(), output_type = wide_output ? statistics_type(type) : type;
  const GroupNormActArguments args{input, residual, weight, bias, scale, shift, num_groups, activation, output_type};
  args.check();
  const DeviceGuard guard(input.get_device_index());
  const MemoryFormat format = memory_format(input);
  const Tensor x = as_dense(input, format);
  const OptionalTensor added = dense(residual, format);
  const GroupNormParameters parameters(args);
  Tensor output = empty_like_data(x, format, output_type);
  Tensor mean = empty_statistics(x, {x.size(0), num_groups}), invstd = empty_statistics(x, {x.size(0), num_groups});
  if (x.numel() == 0) {
    torch::stable::zero_(mean);
    torch::stable::zero_(invstd);
    return {output, mean, invstd};
  }

  const cuda::GroupNormActShape shape = group_shape(x, num_groups, format, output_type);
  const cuda::GroupNormActForward call{x.const_data_ptr(),
                                       data_or_null<void>(added),
                                       parameters.values(parameters.weight),
                                       parameters.values(parameters.bias),
                                       parameters.values(parameters.scale),
                                       parameters.values(parameters.shift),
                                       output.mutable_data_ptr(),
                                       mean.mutable_data_ptr(),
                                       invstd.mutable_data_ptr(),
                                       eps,
                                       static_cast<int>(activation),
                                       negative_slope};
  void* const stream = current_cuda_stream(x.get_device_index());
  launch_with_facts(x, kFamily, "launching the forward", [&](const cuda::DeviceFacts& facts) {
    const size_t bytes = cuda::group_norm_act_forward_workspace(shape, call, facts, group_norm_method());
    const Tensor workspace = empty_vector(x, static_cast<int64_t>(bytes), ScalarType::Byte);
    return cuda::group_norm_act_forward(shape, call, facts, group_norm_method(), workspace.mutable_data_ptr(), stream);
  });
  return {output, mean, invstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> group_norm_act_backward(
    const Tensor& grad_output, const Tensor& input, const OptionalTensor& residual, const OptionalTensor& weight,
    const OptionalTensor& bias, const OptionalTensor& scale, const OptionalTensor& shift, const Tensor& mean,
    const Tensor& invstd, int64_t num_groups, int64_t activation, double negative_slope, bool need_input,
    bool need_residual, bool need_parameters) {
  const ScalarType output_type = grad_output.scalar_type();
  const GroupNormActArguments args{input, residual, weight, bias, scale, shift, num_groups, activation, output_type};
  args.check();
  args.check_gradients(grad_output, mean, invstd);
  const DeviceGuard guard(input.get_device_index());
  const MemoryFormat format = memory_format(input);
  const Tensor x = as_dense(input, format), grad = as_dense(grad_output, format);
  const OptionalTensor added = dense(residual, format);
  const GroupNormParameters parameters(args);
  const auto data = [&](bool needed, ScalarType type) {
    return needed ? empty_like_data(x, format, type) : empty_vector(x, 0, type);
  };
  const auto values = [&](std::initializer_list<int64_t> sizes) {
    return need_parameters ? empty_statistics(x, sizes) : empty_vector(x, 0, parameters.statistics);
  };
  const int64_t samples = x.size(0), channels = x.size(1);
  Tensor grad_input = data(need_input, x.scalar_type()), grad_residual = data(need_residual, output_type);
  Tensor grad_weight = values({channels}), grad_bias = values({channels});
  Tensor grad_scale = values({samples, channels}), grad_shift = values({samples, channels});
  if (x.numel() == 0) {
    for (Tensor* t : {&grad_weight, &grad_bias, &grad_scale, &grad_shift}) torch::stable::zero_(*t);
  } else if (need_input || need_residual || need_parameters) {
    const auto pointer = [](bool needed, Tensor& t) { return needed ? t.mutable_data_ptr() : nullptr; };
    const cuda::GroupNormActShape shape = group_shape(x, num_groups, format, output_type);
    const cuda::GroupNormActBackward call{grad.const_data_ptr(),
                                          x.const_data_ptr(),
                                          data_or_null<void>(added),
                                          parameters.values(parameters.weight),
                                          parameters.values(parameters.bias),
                                          parameters.values(parameters.scale),
                                          parameters.values(parameters.shift),
                                          mean.const_data_ptr(),
                                          invstd.const_data_ptr(),
                                          pointer(need_input, grad_input),
                                          pointer(need_residual, grad_residual),
                                          pointer(need_parameters, grad_weight),
                                          pointer(need_parameters, grad_bias),
                                          pointer(need_parameters, grad_scale),
                                          pointer(need_parameters, grad_shift),
                                          static_cast<int>(activation),
                                          negative_slope};
    void* const stream = current_cuda_stream(x.get_device_index());
    launch_with_facts(x, kFamily, "launching the backward", [&](const cuda::DeviceFacts& facts) {
      const size_t bytes = cuda::group_norm_act_backward_workspace(shape, call, facts, group_norm_method());
      const Tensor workspace = empty_vector(x, static_cast<int64_t>(bytes), ScalarType::Byte);
      return cuda::group_norm_act_backward(shape, call, facts, group_norm_method(), workspace.mutable_data_ptr(),
                                           stream);
    });
  }
  return {grad_input, grad_residual, grad_weight, grad_bias, grad_scale, grad_shift};
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CUDA, m) {
  m.impl("group_norm_act", TORCH_BOX(&genimg_fast::group_norm_act));
  m.impl("group_norm_act_backward", TORCH_BOX(&genimg_fast::group_norm_act_backward));
}
