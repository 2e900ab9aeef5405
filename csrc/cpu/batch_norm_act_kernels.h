// Kernels of batch_norm_act for one SIMD level; see batch_norm_act.cpp for the two views, groups and segments.
// Included by for_each_simd_level.h only.

// In this order: parts have no include guards, and include nothing themselves.
// clang-format off
#include "vec_math.h"
#include "activation.h"
#include "moments.h"
#include "batch_norm_act_formulas.h"
#include "batch_norm_act_forward.h"
#include "batch_norm_act_backward.h"
// clang-format on

// The elementwise pass of an item: one group of columns over one segment of rows.

template <bool Tail, bool Backward, Activation Kind, bool Residual, class T>
SIMD_INLINE void elementwise_step(const Job<T>& job, const Parameters<Acc<T>>& p, int64_t i, int n) {
  if constexpr (Backward)
    backward_step<Tail, Kind, Residual>(job, p, i, n);
  else
    forward_step<Tail, Kind, Residual>(job, p, i, n);
}

// A run of n consecutive elements of one channel.  The job is copied, here and below, so that the compiler need not
// expect the stores to change it.
template <bool Backward, Activation Kind, bool Residual, class T>
void elementwise_run(const Job<T>& shared, int64_t start, int64_t n, int64_t channel) {
  constexpr int L = lanes<Acc<T>>;
  const Job<T> job = shared;
  const Parameters<Acc<T>> p = parameters<Backward, false>(job, channel);
  int64_t j = 0;
  for (; j + L <= n; j += L) elementwise_step<false, Backward, Kind, Residual>(job, p, start + j, 0);
  if (j < n) elementwise_step<true, Backward, Kind, Residual>(job, p, start + j, n - j);
}

// Rows x n elements, from `column` on.
template <int Rows, bool Backward, Activation Kind, bool Residual, class T>
void elementwise_rows(const Job<T>& shared, int64_t start, int64_t n, int64_t column) {
  constexpr int L = lanes<Acc<T>>;
  const Job<T> job = shared;
  const int64_t stride = job.plan.width;
  int64_t j = 0;
  for (; j + L <= n; j += L) {
    const Parameters<Acc<T>> p = parameters<Backward, true>(job, column + j);
    for (int u = 0; u < Rows; ++u) elementwise_step<false, Backward, Kind, Residual>(job, p, start + u * stride + j, 0);
  }
  if (j < n) {
    const Parameters<Acc<T>> p = parameters<Backward, true>(job, column + j);
    for (int u = 0; u < Rows; ++u)
      elementwise_step<true, Backward, Kind, Residual>(job, p, start + u * stride + j, n - j);
  }
}

template <bool Backward, Activation Kind, bool Residual, class T>
void elementwise_of(const Job<T>& job, int64_t group, int64_t segment) {
  const Plan& plan = job.plan;
  const int64_t first = segment * plan.segment, last = std::min(first + plan.segment, plan.length);
  if (!plan.columns) {
    for (int64_t k = first; k < last; ++k)
      elementwise_run<Backward, Kind, Residual>(job, plan.piece_start(group, k), plan.piece_size(k), group);
    return;
  }
  const int64_t j0 = group * plan.block, j1 = std::min(j0 + plan.block, plan.width);
  const int64_t full = std::min(last, plan.rows);
  int64_t r = first;
  // Several rows share their parameters; not where writing past the caches wants consecutive addresses.
  for (; !job.streaming && r + 4 <= full; r += 4)
    elementwise_rows<4, Backward, Kind, Residual>(job, r * plan.width + j0, j1 - j0, j0);
  for (; r < full; ++r) elementwise_rows<1, Backward, Kind, Residual>(job, r * plan.width + j0, j1 - j0, j0);
  if (last > plan.rows && j0 < plan.rest)
    elementwise_rows<1, Backward, Kind, Residual>(job, plan.rows * plan.width + j0, std::min(j1, plan.rest) - j0, j0);
}

template <bool Backward, class T>
void elementwise(const Job<T>& job, int64_t group, int64_t segment) {
  for_kind(job, [&](auto kind, auto residual) {
    elementwise_of<Backward, kind.value, residual.value>(job, group, segment);
  });
  if (job.streaming) stream_fence();
}
