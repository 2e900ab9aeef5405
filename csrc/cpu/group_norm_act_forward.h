// Forward of group_norm_act for one SIMD level: statistics, and one vector of the elementwise pass.
// Included by group_norm_act_kernels.h only.

// Mean and sum of squared deviations of one run of elements.
template <class T>
void run_moments(const T* x, int64_t size, double* mean, double* m2) {
  *mean = *m2 = 0;
  for (int64_t i = 0; i < size; i += tile_elements) {
    const int64_t n = std::min(tile_elements, size - i);
    run_tile<T>([&](int64_t) { return std::pair<const T*, int64_t>(x + i, n); }, 0, 1, n, i, false, *mean, *m2);
  }
}

// Mean and sum of squared deviations of a segment: of all its elements (planes view) or of each column.
template <class T>
void statistics(const Job<T>& job, int64_t unit, int64_t segment, double* mean, double* m2) {
  const Plan& plan = job.plan;
  const int64_t first = segment * plan.segment, last = std::min(first + plan.segment, plan.length);
  if (!plan.columns) {
    const int64_t start = plan.piece_start(first);
    run_moments(job.data.x + unit * plan.per_group * plan.inner + start, plan.piece_start(last) - start, mean, m2);
    return;
  }
  if (plan.inner == 1) return;  // a group is a run of elements: see finish_statistics
  const T* x = job.data.x + unit * plan.channels * plan.inner;
  std::fill_n(mean, plan.width, 0.0);
  std::fill_n(m2, plan.width, 0.0);
  const int64_t full = std::min(last, plan.rows);
  const bool ahead = plan.numel() * int64_t(sizeof(T)) > read_ahead_bytes;
  for (int64_t r = first; r < full; r += tile_rows)
    for (int64_t j = 0; j < plan.width; j += max_block)
      column_tile(x + r * plan.width + j, plan.width, std::min(tile_rows, full - r),
                  std::min<int64_t>(max_block, plan.width - j), r - first, ahead, mean + j, m2 + j);
  if (last > plan.rows)
    for (int64_t j = 0; j < plan.rest; j += max_block)
      column_tile(x + plan.rows * plan.width + j, 0, 1, std::min<int64_t>(max_block, plan.rest - j), full - first,
                  false, mean + j, m2 + j);
}

// Columns view: the groups' mean and sum of squared deviations from those of their columns in every segment, in two
// passes.  `sum` and `centre` have room for a row.
template <class Finish>
void group_moments(const Plan& plan, const double* means, const double* squares, double* sum, double* centre,
                   const Finish& finish) {
  for (int pass = 0; pass < 2; ++pass) {
    std::fill_n(sum, plan.width, 0.0);
    for (int64_t s = 0; s < plan.segments; ++s) {
      const double* mean = means + s * plan.width;
      const double* m2 = squares + s * plan.width;
      // Columns before `rest` have an element of the shorter last row.
      for (int part = 0; part < 2; ++part) {
        const int64_t begin = part == 0 ? 0 : plan.rest, end = part == 0 ? plan.rest : plan.width;
        if (begin == end) continue;
        const double count = plan.count(s, begin);
        if (pass == 0)
          for (int64_t j = begin; j < end; ++j) sum[j] += count * mean[j];
        else
          for (int64_t j = begin; j < end; ++j) sum[j] += m2[j] + count * (mean[j] - centre[j]) * (mean[j] - centre[j]);
      }
    }
    add_repeats(plan, sum);
    for (int64_t g = 0; g < plan.groups; ++g) {
      const double total = sum_of(sum + g * plan.per_group, plan.per_group);
      double* const of_group = centre + g * plan.per_group;
      if (pass == 0)
        std::fill_n(of_group, plan.per_group, total / plan.per_statistic());
      else
        finish(g, *of_group, total);
    }
    if (pass == 0) repeat(plan, centre);
  }
}

// From the segments' values to the statistics of a unit.
template <class T>
void finish_statistics(const Job<T>& job, int64_t unit, const double* const partial[2], double* const row[2]) {
  using A = Acc<T>;
  const Plan& plan = job.plan;
  const int64_t first_statistic = plan.columns ? unit * plan.groups : unit;
  const auto finish = [&](int64_t group, double mean, double m2) {
    job.mean[first_statistic + group] = A(mean);
    job.invstd[first_statistic + group] = A(1 / std::sqrt(m2 / plan.per_statistic() + job.eps));
  };
  double mean = 0, m2 = 0;
  if (!plan.columns) {
    double count = 0;
    for (int64_t s = 0; s < plan.segments; ++s) {
      const int64_t first = s * plan.segment, last = std::min(first + plan.segment, plan.length);
      const double n = plan.piece_start(last) - plan.piece_start(first), delta = partial[0][s] - mean;
      mean += delta * (n / (count + n));
      m2 += partial[1][s] + delta * delta * (count * n / (count + n));
      count += n;
    }
    finish(0, mean, m2);
  } else if (plan.inner == 1) {
    for (int64_t g = 0; g < plan.groups; ++g) {
      run_moments(job.data.x + unit * plan.channels + g * plan.per_group, plan.per_group, &mean, &m2);
      finish(g, mean, m2);
    }
  } else {
    group_moments(plan, partial[0], partial[1], row[0], row[1], finish);
  }
}

// y = activation((x - mean) * scale + bias + residual)
template <bool Tail, Activation Kind, bool Residual, class T>
SIMD_INLINE void forward_step(const Data<T>& data, const Parameters<Acc<T>>& p, int64_t i, int n) {
  const Vec<Acc<T>> v = pre_activation<Tail, Residual>(data, p, read<Tail>(data.x + i, n) - p.mean, i, n);
  write<Tail>(data, data.y + i, activate<Kind, T>(v, data.slope), n);
}
