// Kernels of group_norm_act for one SIMD level; see group_norm_act.cpp for the two views, units and segments.
// Included by for_each_simd_level.h only.

// In this order: parts have no include guards, and include nothing themselves.
// clang-format off
#include "vec_math.h"
#include "activation.h"
#include "moments.h"
#include "group_norm_act_formulas.h"
#include "group_norm_act_forward.h"
#include "group_norm_act_backward.h"
// clang-format on

// The elementwise pass of an item: one segment of a unit.

template <bool Tail, bool Backward, Activation Kind, bool Residual, bool Kept = false, class T>
SIMD_INLINE void elementwise_step(const Data<T>& data, const Parameters<Acc<T>>& p, int64_t i, int n,
                                  const Acc<T>* kept) {
  if constexpr (Backward)
    backward_step<Tail, Kind, Residual, Kept>(data, p, i, n, kept);
  else
    forward_step<Tail, Kind, Residual>(data, p, i, n);
}

// Rows x n elements, from column j0 on.  The data's addresses are copied so that the compiler need not expect the
// stores to change them.
template <int Rows, bool Backward, Activation Kind, bool Residual, bool Kept, class T>
void elementwise_rows(const Data<T>& shared, const Columns<Acc<T>>& columns, int64_t start, int64_t stride, int64_t n,
                      const Acc<T>* kept) {
  constexpr int L = lanes<Acc<T>>;
  const Data<T> data = shared;
  int64_t j = 0;
  for (; j + L <= n; j += L) {
    const Parameters<Acc<T>> p = column_parameters<Backward>(columns, j);
    for (int u = 0; u < Rows; ++u)
      elementwise_step<false, Backward, Kind, Residual, Kept>(data, p, start + u * stride + j, 0, kept);
  }
  if (j < n) {
    const Parameters<Acc<T>> p = column_parameters<Backward>(columns, j);
    for (int u = 0; u < Rows; ++u)
      elementwise_step<true, Backward, Kind, Residual, Kept>(data, p, start + u * stride + j, n - j, kept);
  }
}

// Planes view.
template <bool Backward, Activation Kind, bool Residual, bool Kept, class T>
void elementwise_of_planes(const Job<T>& job, int64_t unit, int64_t segment, const Acc<T>* kept) {
  constexpr int L = lanes<Acc<T>>;
  const Plan& plan = job.plan;
  const Data<T> data = job.data.from(plan.start(unit));
  const int64_t first = segment * plan.segment, last = std::min(first + plan.segment, plan.length);
  for_pieces(job, unit, first, last, [&](int64_t k, Acc<T> weight, Acc<T> bias) {
    const Parameters<Acc<T>> p = plane_parameters<Backward>(job, unit, weight, bias);
    int64_t i = plan.piece_start(k);
    const int64_t end = i + plan.piece_size(k);
    for (; i + L <= end; i += L) elementwise_step<false, Backward, Kind, Residual, Kept>(data, p, i, 0, kept);
    if (i < end) elementwise_step<true, Backward, Kind, Residual, Kept>(data, p, i, end - i, kept);
  });
}

// Columns view.
template <bool Backward, Activation Kind, bool Residual, bool Kept, class T>
void elementwise_of_columns(const Job<T>& job, int64_t unit, int64_t segment, const Columns<Acc<T>>& columns,
                            const Acc<T>* kept) {
  const Plan& plan = job.plan;
  const Data<T> data = job.data.from(plan.start(unit));
  const int64_t first = segment * plan.segment, last = std::min(first + plan.segment, plan.length);
  const int64_t full = std::min(last, plan.rows);
  int64_t r = first;
  const auto rows = [&](auto count, int64_t n) {
    elementwise_rows<count.value, Backward, Kind, Residual, Kept>(data, columns, r * plan.width, plan.width, n, kept);
  };
  // Several rows share their parameters; not where writing past the caches wants consecutive addresses.
  for (; !data.streaming && r + 4 <= full; r += 4) rows(std::integral_constant<int, 4>(), plan.width);
  for (; r < full; ++r) rows(std::integral_constant<int, 1>(), plan.width);
  if (last > plan.rows) rows(std::integral_constant<int, 1>(), plan.rest);
}

// Calls f(kind, residual) with the job's activation and whether it has a residual, as constants.
template <class T, class F>
void for_kind(const Job<T>& job, const F& f) {
  const auto with = [&](auto kind) { job.data.residual ? f(kind, std::true_type()) : f(kind, std::false_type()); };
  if (job.activation == Activation::relu)
    with(std::integral_constant<Activation, Activation::relu>());
  else if (job.activation == Activation::silu)
    with(std::integral_constant<Activation, Activation::silu>());
  else
    with(std::integral_constant<Activation, Activation::leaky_relu>());
}

template <bool Backward, class T>
void elementwise(const Job<T>& job, int64_t unit, int64_t segment, const Columns<Acc<T>>& columns,
                 const Acc<T>* kept = nullptr) {
  if (!job.data.y && !job.data.dr) return;
  const auto with = [&](auto kind, auto residual, auto is_kept) {
    if (job.plan.columns)
      elementwise_of_columns<Backward, kind.value, residual.value, is_kept.value>(job, unit, segment, columns, kept);
    else
      elementwise_of_planes<Backward, kind.value, residual.value, is_kept.value>(job, unit, segment, kept);
  };
  if (Backward && kept)
    with(std::integral_constant<Activation, Activation::silu>(), std::false_type(), std::bool_constant<Backward>());
  else
    for_kind(job, [&](auto kind, auto residual) { with(kind, residual, std::false_type()); });
  if (job.data.streaming) stream_fence();
}

// Sums of a segment, from which `finish` gets what its unit's elements share.
template <bool Backward, class T>
void sums(const Job<T>& job, int64_t unit, int64_t segment, const Columns<Acc<T>>& columns, Acc<T>* kept, double* first,
          double* second) {
  if constexpr (Backward)
    for_kind(job, [&](auto kind, auto residual) {
      gradient_sums_of<kind.value, residual.value>(job, unit, segment, columns, kept, first, second);
    });
  else
    statistics(job, unit, segment, first, second);
}

template <bool Backward, class T>
void finish(const Job<T>& job, int64_t unit, const double* const partial[2], double* const row[2]) {
  if constexpr (Backward)
    finish_gradients(job, unit, partial, row);
  else
    finish_statistics(job, unit, partial, row);
}

// What the sums need of the columns, and what the elementwise pass needs besides.
template <bool Backward, class T>
void before_sums(const Job<T>& job, int64_t unit, const Columns<Acc<T>>& columns) {
  if (Backward && job.plan.columns) set_columns(job, unit, columns);
}
template <bool Backward, class T>
void before_elementwise(const Job<T>& job, int64_t unit, const Columns<Acc<T>>& columns) {
  if (!job.plan.columns) return;
  if (Backward)
    set_corrections(job, unit, columns);
  else
    set_columns(job, unit, columns);
}

// All passes of one unit.  The elementwise pass goes backwards: what was read last is still in the cache.
template <bool Backward, class T>
void whole_unit(const Job<T>& job, int64_t unit, const Scratch<T>& scratch) {
  const Plan& plan = job.plan;
  before_sums<Backward>(job, unit, scratch.columns);
  for (int64_t s = 0; s < plan.segments; ++s)
    sums<Backward>(job, unit, s, scratch.columns, scratch.kept, scratch.partial[0] + s * plan.partial_size(),
                   scratch.partial[1] + s * plan.partial_size());
  finish<Backward>(job, unit, scratch.partial, scratch.row);
  before_elementwise<Backward>(job, unit, scratch.columns);
  for (int64_t s = plan.segments - 1; s >= 0; --s) elementwise<Backward>(job, unit, s, scratch.columns, scratch.kept);
}

// One pass over one segment.
template <bool Backward, class T>
void sums_of_item(const Job<T>& job, int64_t unit, int64_t segment, const Scratch<T>& scratch, double* first,
                  double* second) {
  before_sums<Backward>(job, unit, scratch.columns);
  sums<Backward, T>(job, unit, segment, scratch.columns, nullptr, first, second);
}
template <bool Backward, class T>
void elementwise_of_item(const Job<T>& job, int64_t unit, int64_t segment, const Scratch<T>& scratch) {
  before_sums<Backward>(job, unit, scratch.columns);
  before_elementwise<Backward>(job, unit, scratch.columns);
  elementwise<Backward>(job, unit, segment, scratch.columns);
}

// Parameters in the type of arithmetic.
template <class T>
void widen_all(const T* from, Acc<T>* to, int64_t n) {
  constexpr int L = lanes<Acc<T>>;
  int64_t i = 0;
  for (; i + L <= n; i += L) store(to + i, load(from + i));
  if (i < n) store_first(to + i, load_first(from + i, n - i), n - i);
}
