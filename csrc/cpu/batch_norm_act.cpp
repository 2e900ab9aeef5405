// batch_norm_act on the CPU.
//
// Procedure overview.  The data is seen as a matrix of rows x columns, in one of two views:
//  - planes (large `inner`): a column is a channel, its rows are pieces of its planes, each a run of elements;
//  - columns (small `inner`, channels_last, (N, C)): the tensor is a flat array in which the channels repeat with a
//    period of channels * inner elements.  A row is `fold` periods, long enough for whole vectors; each element of it
//    is a column with sums of its own, and the columns of one channel are put together at the end.  The last row may be
//    shorter.
// Columns form groups, rows form segments; one group over one segment is an item of work.  Passes: sums per item (in
// double, `partial`), a finish per channel in a fixed order, then the elementwise pass per item.  Where groups are
// whole channels and divide well among the threads, a thread takes all passes of a group in a row, so that the second
// read of the data comes from its cache; else each pass is spread over all items.  (A few wide groups of columns do not
// divide well: a thread's share would be a strip of every row.)  The partition depends on the shape only, so the number
// of threads changes no bit of the result.
#include "../batch_norm_act.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <tuple>

#include "batch_norm_act_layout.h"
#include "output_memory.h"
#include "simd.h"

namespace genimg_fast {
namespace {

#define SIMD_BODY "batch_norm_act_kernels.h"
#include "for_each_simd_level.h"

// Calls f(begin, end) on parts of [0, n), which together stand for `elements` elements of data.
template <class F>
void parallel(int64_t n, int64_t elements, const F& f) {
  const int64_t threads = std::max<int64_t>(1, elements / thread_elements);
  torch::stable::parallel_for(0, n, (n + threads - 1) / threads, f);
}

// Calls f(first channel, channels) on chunks of at most max_block columns a fold.
template <class F>
void for_channel_chunks(const Plan& plan, int64_t elements, const F& f) {
  const int64_t chunk = max_block / plan.repeat, channels = plan.shape.channels;
  parallel((channels + chunk - 1) / chunk, elements, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) f(k * chunk, std::min(chunk, channels - k * chunk));
  });
}

// The passes: sums(group, segment), finish(first channel, channels), elementwise(group, segment).  The elementwise pass
// goes backwards: what was read last is still in the cache.
template <class Sums, class Finish, class Elementwise>
void run(const Plan& plan, const Sums& sums, const Finish& finish, const Elementwise& elementwise) {
  const int64_t numel = plan.shape.numel(), channels = plan.shape.channels;
  const int64_t threads =
      std::min<int64_t>(torch::stable::get_num_threads(), std::max<int64_t>(1, numel / thread_elements));
  const bool even = plan.groups >= 8 * threads || (!plan.columns && plan.groups % threads == 0);
  if (plan.whole_channels && even) {
    const int64_t group_channels = plan.columns ? plan.block / plan.repeat : 1;
    parallel(plan.groups, numel, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        for (int64_t s = 0; s < plan.segments; ++s) sums(g, s);
        finish(g * group_channels, std::min(group_channels, channels - g * group_channels));
        for (int64_t s = plan.segments - 1; s >= 0; --s) elementwise(g, s);
      }
    });
    return;
  }
  const int64_t items = plan.groups * plan.segments;
  parallel(items, numel, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) sums(i % plan.groups, i / plan.groups);
  });
  for_channel_chunks(plan, plan.segments * plan.width, finish);
  parallel(items, numel, [&](int64_t begin, int64_t end) {
    for (int64_t i = end - 1; i >= begin; --i) elementwise(i % plan.groups, i / plan.groups);
  });
}

// The job's arrays, aligned to cache lines.
class Buffers {
 public:
  template <class T>
  Buffers(Job<T>& job, bool need_partial, bool backward) {
    using A = Acc<T>;
    const Plan& plan = job.plan;
    const int64_t size = round_up(plan.segments * plan.width), stride = round_up(plan.width + padding);
    const int64_t doubles = need_partial ? 2 * size : 0, arrays = backward ? 5 : 3;
    memory_.reset(new char[doubles * sizeof(double) + arrays * stride * sizeof(A) + 64]);
    double* partial = reinterpret_cast<double*>(round_up(reinterpret_cast<uintptr_t>(memory_.get())));
    A* column = reinterpret_cast<A*>(partial + doubles);
    if (need_partial) {
      job.partial[0] = partial;
      job.partial[1] = partial + size;
    }
    A** const targets[] = {&job.mean, &job.scale, &job.bias, &job.by_centred, &job.constant};
    for (int64_t k = 0; k < arrays; ++k, column += stride) {
      *targets[k] = column;
      std::fill(column + plan.width, column + stride, A(0));
    }
  }

 private:
  template <class I>
  static I round_up(I n) {
    return (n + 63) / 64 * 64;
  }
  std::unique_ptr<char[]> memory_;
};

// Input and residual, dense in the input's memory format.
struct Operands {
  MemoryFormat format;
  Tensor x;
  OptionalTensor residual;
  Activation activation;

  Operands(const Tensor& input, const OptionalTensor& residual_, const OptionalTensor& weight,
           const OptionalTensor& bias, int64_t activation_)
      : activation(check_activation(activation_)) {
    check_input(input);
    check_per_channel(weight, input, "weight");
    check_per_channel(bias, input, "bias");
    format = memory_format(input);
    x = as_dense(input, format);
    if (residual_) {
      check_like_input(*residual_, input, "residual");
      residual = as_dense(*residual_, format);
    }
  }

  template <class T>
  Job<T> job(const Plan& plan, const T* g, T* y, T* dr, double slope, bool training) const {
    const int tensors = 1 + bool(residual) + (g != nullptr) + (y != nullptr) + (dr != nullptr);
    Job<T> job{plan,
               static_cast<const T*>(x.const_data_ptr()),
               data_or_null<T>(residual),
               g,
               y,
               dr,
               activation,
               streams(plan, y, tensors) && streams(plan, dr, tensors),
               Acc<T>(activation == Activation::leaky_relu ? slope : 1),
               training,
               {},
               nullptr,
               nullptr,
               nullptr};
    return job;
  }

  Tensor output() const {
    // In the planes view, the planes of channels that different threads work on lie in the same pages.
    const bool planes = geometry(x, format).inner >= plane_elements;
    return empty_output(x, format, planes && x.numel() * int64_t(x.element_size()) >= streaming_bytes);
  }
};

std::tuple<Tensor, Tensor, Tensor> train(Tensor input, OptionalTensor residual, OptionalTensor weight,
                                         OptionalTensor bias, OptionalTensor running_mean, OptionalTensor running_var,
                                         double momentum, double eps, int64_t activation, double negative_slope) {
  const Operands in(input, residual, weight, bias, activation);
  check_per_channel(running_mean, input, "running_mean");
  check_per_channel(running_var, input, "running_var");
  const Geometry shape = geometry(in.x, in.format);
  const ScalarType type = statistics_type(input.scalar_type());
  Tensor y = in.output();
  Tensor mean = torch::stable::new_empty(input, {shape.channels}, type);
  Tensor invstd = torch::stable::new_empty(input, {shape.channels}, type);
  if (shape.numel() == 0) {
    torch::stable::zero_(mean);
    torch::stable::zero_(invstd);
    return {y, mean, invstd};
  }
  dispatch(input.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = Acc<T>;
    const Plan plan(shape);
    Job<T> job = in.job<T>(plan, nullptr, static_cast<T*>(y.mutable_data_ptr()), nullptr, negative_slope, true);
    const Buffers buffers(job, true, false);
    A* const means = static_cast<A*>(mean.mutable_data_ptr());
    A* const invstds = static_cast<A*>(invstd.mutable_data_ptr());
    const PerChannel<T> weights(weight), biases(bias), running_means(running_mean, true),
        running_vars(running_var, true);
    run(
        plan, [&](int64_t g, int64_t s) { SIMD_DISPATCH(statistics(job, g, s)); },
        [&](int64_t first, int channels) {
          A wide[4][max_block];
          const Statistics<A> out{weights.read(first, channels, wide[0]),
                                  biases.read(first, channels, wide[1]),
                                  means + first,
                                  invstds + first,
                                  running_means.read(first, channels, wide[2]),
                                  running_vars.read(first, channels, wide[3]),
                                  momentum,
                                  eps};
          SIMD_DISPATCH(finish_statistics(job, out, first, channels));
          running_means.write(first, channels, out.running_mean);
          running_vars.write(first, channels, out.running_var);
        },
        [&](int64_t g, int64_t s) { SIMD_DISPATCH(elementwise<false>(job, g, s)); });
  });
  return {y, mean, invstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> train_functional(Tensor input, OptionalTensor residual,
                                                            OptionalTensor weight, OptionalTensor bias, double eps,
                                                            int64_t activation, double negative_slope) {
  check_input(input);
  // With momentum 1 the running variance is this batch's alone.
  Tensor unused = zeros_per_channel(input), var = zeros_per_channel(input);
  auto [y, mean, invstd] = train(input, residual, weight, bias, unused, var, 1, eps, activation, negative_slope);
  return {y, mean, invstd, var};
}

Tensor eval(Tensor input, OptionalTensor residual, OptionalTensor weight, OptionalTensor bias, Tensor running_mean,
            Tensor running_var, double eps, int64_t activation, double negative_slope) {
  const Operands in(input, residual, weight, bias, activation);
  check_per_channel(running_mean, input, "running_mean");
  check_per_channel(running_var, input, "running_var");
  const Geometry shape = geometry(in.x, in.format);
  Tensor y = in.output();
  if (shape.numel() == 0) return y;
  dispatch(input.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = Acc<T>;
    const Plan plan(shape);
    Job<T> job = in.job<T>(plan, nullptr, static_cast<T*>(y.mutable_data_ptr()), nullptr, negative_slope, false);
    const Buffers buffers(job, false, false);
    const PerChannel<T> weights(weight), biases(bias), means(running_mean), vars(running_var);
    run(
        plan, [](int64_t, int64_t) {},
        [&](int64_t first, int channels) {
          A wide[4][max_block], invstd[max_block];
          const A* var = vars.read(first, channels, wide[3]);
          for (int c = 0; c < channels; ++c) invstd[c] = A(1 / std::sqrt(double(var[c]) + eps));
          SIMD_DISPATCH(set_normalisation(job, first, channels, means.read(first, channels, wide[2]), invstd,
                                          weights.read(first, channels, wide[0]),
                                          biases.read(first, channels, wide[1])));
        },
        [&](int64_t g, int64_t s) { SIMD_DISPATCH(elementwise<false>(job, g, s)); });
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(Tensor grad_output, Tensor input, OptionalTensor residual,
                                                    OptionalTensor weight, OptionalTensor bias, Tensor mean,
                                                    Tensor invstd, bool training, int64_t activation,
                                                    double negative_slope, bool need_input, bool need_residual) {
  const Operands in(input, residual, weight, bias, activation);
  check_like_input(grad_output, input, "grad_output");
  check_statistics(mean, input, "mean");
  check_statistics(invstd, input, "invstd");
  const Tensor g = as_dense(grad_output, in.format);
  const Geometry shape = geometry(in.x, in.format);
  const ScalarType type = statistics_type(input.scalar_type());
  Tensor dx = need_input ? in.output() : torch::stable::new_empty(input, {0});
  Tensor dr = need_residual ? in.output() : torch::stable::new_empty(input, {0});
  Tensor dweight = torch::stable::new_empty(input, {shape.channels}, type);
  Tensor dbias = torch::stable::new_empty(input, {shape.channels}, type);
  if (shape.numel() == 0) {
    torch::stable::zero_(dweight);
    torch::stable::zero_(dbias);
    return {dx, dr, dweight, dbias};
  }
  dispatch(input.scalar_type(), [&](auto element) {
    using T = decltype(element);
    using A = Acc<T>;
    const Plan plan(shape);
    Job<T> job = in.job<T>(plan, static_cast<const T*>(g.const_data_ptr()),
                           need_input ? static_cast<T*>(dx.mutable_data_ptr()) : nullptr,
                           need_residual ? static_cast<T*>(dr.mutable_data_ptr()) : nullptr, negative_slope, training);
    const Buffers buffers(job, true, true);
    const A* means = static_cast<const A*>(mean.const_data_ptr());
    const A* invstds = static_cast<const A*>(invstd.const_data_ptr());
    A* const dweights = static_cast<A*>(dweight.mutable_data_ptr());
    A* const dbiases = static_cast<A*>(dbias.mutable_data_ptr());
    const PerChannel<T> weights(weight), biases(bias);
    for_channel_chunks(plan, plan.width, [&](int64_t first, int channels) {
      A wide[2][max_block];
      SIMD_DISPATCH(set_normalisation(job, first, channels, means + first, invstds + first,
                                      weights.read(first, channels, wide[0]), biases.read(first, channels, wide[1])));
    });
    run(
        plan, [&](int64_t g, int64_t s) { SIMD_DISPATCH(gradient_sums(job, g, s)); },
        [&](int64_t first, int channels) {
          const Gradients<A> out{invstds + first, dweights + first, dbiases + first};
          SIMD_DISPATCH(finish_gradients(job, out, first, channels));
        },
        [&](int64_t g, int64_t s) {
          if (need_input || need_residual) SIMD_DISPATCH(elementwise<true>(job, g, s));
        });
  });
  return {dx, dr, dweight, dbias};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CPU, m) {
  m.impl("batch_norm_act_train", TORCH_BOX(&train));
  m.impl("batch_norm_act_train_functional", TORCH_BOX(&train_functional));
  m.impl("batch_norm_act_eval", TORCH_BOX(&eval));
  m.impl("batch_norm_act_backward", TORCH_BOX(&backward));
}

}  // namespace genimg_fast
