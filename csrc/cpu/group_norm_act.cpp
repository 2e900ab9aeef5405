// group_norm_act on the CPU.
//
// Procedure overview.  The data is seen in one of two views:
//  - planes (NCHW): a group of a sample is one run of elements, of planes that have a channel's parameters each.  A
//    unit of work is a group; its rows are pieces of planes;
//  - columns (channels_last, (N, C)): a unit is a sample, a matrix of rows x columns in which the channels repeat.  A
//    row is `fold` periods of them, long enough for whole vectors; the last row may be shorter.  Each column has sums
//    of its own; those of a group are put together at the end.
// Rows form segments.  Passes: sums of each segment (in double), a finish per unit in a fixed order, then the
// elementwise pass.  Where units divide well among the threads, a thread takes all passes of a unit in a row, so that
// the second read of the data comes from its cache; else each pass is spread over the segments of all units.  The
// partition depends on the shape only, so the number of threads changes no bit of the result.
// Backward gets the parameters' gradients from the same sums per sample and channel, at the end.  With SiLU, whose
// derivative is most of the arithmetic, it keeps a unit's gradients before the activation, g', from the first pass for
// the second, if they are few enough to stay in the cache.
#include "../group_norm_act.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <tuple>
#include <vector>

#include "group_norm_act_layout.h"
#include "output_memory.h"
#include "simd.h"

namespace genimg_fast {
namespace {

#define SIMD_BODY "group_norm_act_kernels.h"
#include "for_each_simd_level.h"

// Calls f(begin, end) on parts of [0, n), which together stand for `elements` elements of data.
template <class F>
void parallel(int64_t n, int64_t elements, const F& f) {
  const int64_t threads = std::max<int64_t>(1, elements / thread_elements);
  torch::stable::parallel_for(0, n, (n + threads - 1) / threads, f);
}

template <bool Backward, class T>
void run(const Job<T>& job) {
  const Plan& plan = job.plan;
  const int64_t numel = plan.numel();
  const int64_t threads =
      std::min<int64_t>(torch::stable::get_num_threads(), std::max<int64_t>(1, numel / thread_elements));
  if (plan.segments == 1 || plan.units >= 8 * threads || plan.units % threads == 0) {
    const bool keep =
        Backward && job.activation == Activation::silu && plan.per_unit() * int64_t(sizeof(Acc<T>)) <= kept_bytes;
    parallel(plan.units, numel, [&](int64_t begin, int64_t end) {
      const Scratch<T> scratch(plan, plan.segments, keep ? plan.per_unit() : 0);
      for (int64_t u = begin; u < end; ++u) SIMD_DISPATCH(whole_unit<Backward>(job, u, scratch));
    });
    return;
  }
  const int64_t items = plan.units * plan.segments, size = plan.partial_size();
  const Scratch<T> all(plan, items);
  parallel(items, numel, [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch(plan, 0);
    for (int64_t i = begin; i < end; ++i)
      SIMD_DISPATCH(sums_of_item<Backward>(job, i / plan.segments, i % plan.segments, scratch,
                                           all.partial[0] + i * size, all.partial[1] + i * size));
  });
  for (int64_t u = 0; u < plan.units; ++u) {
    const int64_t at = u * plan.segments * size;
    const double* const partial[2] = {all.partial[0] + at, all.partial[1] + at};
    SIMD_DISPATCH(finish<Backward>(job, u, partial, all.row));
  }
  parallel(items, numel, [&](int64_t begin, int64_t end) {
    const Scratch<T> scratch(plan, 0);
    for (int64_t i = end - 1; i >= begin; --i)
      SIMD_DISPATCH(elementwise_of_item<Backward>(job, i / plan.segments, i % plan.segments, scratch));
  });
}

// A parameter's values in the type of arithmetic, dense; null without.
template <class T>
class Parameter {
 public:
  using A = Acc<T>;

  explicit Parameter(const OptionalTensor& t) {
    if (!t) return;
    dense_ = t->is_contiguous() ? *t : torch::stable::contiguous(*t);
    if (dense_->scalar_type() == statistics_type(dense_->scalar_type())) {
      values_ = static_cast<const A*>(dense_->const_data_ptr());
      return;
    }
    wide_.reset(new A[dense_->numel()]);
    SIMD_DISPATCH(widen_all(static_cast<const T*>(dense_->const_data_ptr()), wide_.get(), dense_->numel()));
    values_ = wide_.get();
  }
  operator const A*() const { return values_; }

 private:
  OptionalTensor dense_;
  std::unique_ptr<A[]> wide_;
  const A* values_ = nullptr;
};

// The arguments with the data dense in the input's memory format.
struct Operands {
  const GroupNormActArguments& given;
  MemoryFormat format;
  Tensor x;
  OptionalTensor residual;

  explicit Operands(const GroupNormActArguments& arguments)
      : given(arguments), format(memory_format(arguments.input)), x(as_dense(arguments.input, format)) {
    if (arguments.residual) residual = as_dense(*arguments.residual, format);
  }

  Plan plan() const { return Plan(geometry(x, format), x.size(0), given.num_groups); }
  ScalarType statistics() const { return statistics_type(x.scalar_type()); }
  Tensor output() const { return empty_output(x, format); }
  Tensor per_statistic() const { return empty_output(x, {x.size(0), given.num_groups}, statistics()); }
  Tensor nothing() const { return empty_output(x, {0}, x.scalar_type()); }

  template <class T>
  Data<T> data(const Plan& plan, const T* g, T* y, T* dr, double slope) const {
    const bool leaky = given.activation == int(Activation::leaky_relu);
    const int tensors = 1 + bool(residual) + (g != nullptr) + (y != nullptr) + (dr != nullptr);
    return {genimg_fast::data<T>(x),
            data_or_null<T>(residual),
            g,
            y,
            dr,
            Acc<T>(leaky ? slope : 1),
            streams(plan, y, tensors) && streams(plan, dr, tensors)};
  }
};

std::tuple<Tensor, Tensor, Tensor> forward(Tensor input, OptionalTensor residual, OptionalTensor weight,
                                           OptionalTensor bias, OptionalTensor scale, OptionalTensor shift,
                                           int64_t num_groups, double eps, int64_t activation, double negative_slope,
                                           bool wide_output) {
  GENIMG_FAST_CHECK(!wide_output, "group_norm_act: wide_output is for CUDA");
  const GroupNormActArguments arguments{input,      residual,           weight, bias, scale, shift, num_groups,
                                        activation, input.scalar_type()};
  arguments.check();
  const Operands in(arguments);
  Tensor y = in.output(), mean = in.per_statistic(), invstd = in.per_statistic();
  if (input.numel() == 0) {
    torch::stable::zero_(mean);
    torch::stable::zero_(invstd);
    return {y, mean, invstd};
  }
  const Plan plan = in.plan();
  dispatch(input.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = Acc<T>;
    const Parameter<T> weights(weight), biases(bias), scales(scale), shifts(shift);
    run<false>(Job<T>{plan, in.data<T>(plan, nullptr, data<T>(y), nullptr, negative_slope),
                      static_cast<Activation>(activation), weights, biases, scales, shifts, eps, data<A>(mean),
                      data<A>(invstd), nullptr, nullptr, nullptr, nullptr});
  });
  return {y, mean, invstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> backward(
    Tensor grad_output, Tensor input, OptionalTensor residual, OptionalTensor weight, OptionalTensor bias,
    OptionalTensor scale, OptionalTensor shift, Tensor mean, Tensor invstd, int64_t num_groups, int64_t activation,
    double negative_slope, bool need_input, bool need_residual, bool need_parameters) {
  const GroupNormActArguments arguments{input,      residual,           weight, bias, scale, shift, num_groups,
                                        activation, input.scalar_type()};
  arguments.check();
  arguments.check_gradients(grad_output, mean, invstd);
  const Operands in(arguments);
  const Tensor g = as_dense(grad_output, in.format);
  const int64_t samples = input.size(0), channels = input.size(1);
  const auto gradient = [&](std::vector<int64_t> sizes) {
    return need_parameters ? empty_output(in.x, sizes, in.statistics()) : empty_output(in.x, {0}, in.statistics());
  };
  Tensor dx = need_input ? in.output() : in.nothing(), dr = need_residual ? in.output() : in.nothing();
  Tensor dweight = gradient({channels}), dbias = gradient({channels});
  Tensor dscale = gradient({samples, channels}), dshift = gradient({samples, channels});
  if (input.numel() == 0) {
    for (Tensor* t : {&dweight, &dbias, &dscale, &dshift}) torch::stable::zero_(*t);
    return {dx, dr, dweight, dbias, dscale, dshift};
  }
  const Plan plan = in.plan();
  dispatch(input.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = Acc<T>;
    const Parameter<T> weights(weight), biases(bias), scales(scale), shifts(shift);
    const int64_t statistics = samples * num_groups;
    const int64_t sums = plan.columns ? samples * channels : plan.units * plan.length;
    const std::unique_ptr<double[]> channel_sums(new double[2 * sums]);
    const std::unique_ptr<A[]> corrections(new A[2 * statistics]);
    const Job<T> job{plan,
                     in.data<T>(plan, data<T>(g), need_input ? data<T>(dx) : nullptr,
                                need_residual ? data<T>(dr) : nullptr, negative_slope),
                     static_cast<Activation>(activation),
                     weights,
                     biases,
                     scales,
                     shifts,
                     0,
                     data<A>(mean),
                     data<A>(invstd),
                     corrections.get(),
                     corrections.get() + statistics,
                     channel_sums.get(),
                     channel_sums.get() + sums};
    run<true>(job);
    if (!need_parameters) return;
    const ParameterGradients<A> out{data<A>(dweight), data<A>(dbias), data<A>(dscale), data<A>(dshift)};
    constexpr int64_t chunk = 64;
    parallel((channels + chunk - 1) / chunk, samples * channels, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; ++k)
        SIMD_DISPATCH(parameter_gradients(job, k * chunk, std::min(chunk, channels - k * chunk), out));
    });
  });
  return {dx, dr, dweight, dbias, dscale, dshift};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CPU, m) {
  m.impl("group_norm_act", TORCH_BOX(&forward));
  m.impl("group_norm_act_backward", TORCH_BOX(&backward));
}

}  // namespace genimg_fast
