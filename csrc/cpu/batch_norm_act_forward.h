// Forward of batch_norm_act for one SIMD level: statistics, and one vector of the elementwise pass.
// Included by batch_norm_act_kernels.h only.

// Mean and sum of squared deviations of every column of the group, over the segment's rows.
template <class T>
void statistics(const Job<T>& job, int64_t group, int64_t segment) {
  const Plan& plan = job.plan;
  const int64_t first = segment * plan.segment, last = std::min(first + plan.segment, plan.length);
  const int64_t j0 = group * plan.block, j1 = std::min(j0 + plan.block, plan.width);
  double* mean = job.partial[0] + segment * plan.width + j0;
  double* m2 = job.partial[1] + segment * plan.width + j0;
  std::fill_n(mean, j1 - j0, 0.0);
  std::fill_n(m2, j1 - j0, 0.0);
  const bool ahead = reads_ahead(job);
  if (!plan.columns) {
    const auto piece = [&](int64_t k) {
      return std::make_pair(job.x + plan.piece_start(group, k), plan.piece_size(k));
    };
    for (int64_t k = first; k < last; k += plan.tile) {
      const int64_t end = std::min(k + plan.tile, last), before = plan.elements_before(k);
      run_tile<T>(piece, k, end, plan.elements_before(end) - before, before - plan.elements_before(first), ahead, *mean,
                  *m2);
    }
    return;
  }
  const int64_t full = std::min(last, plan.rows);
  for (int64_t r = first; r < full; r += plan.tile)
    column_tile(job.x + r * plan.width + j0, plan.width, std::min(plan.tile, full - r), j1 - j0, r - first, ahead, mean,
                m2);
  if (last > plan.rows && j0 < plan.rest)
    column_tile(job.x + plan.rows * plan.width + j0, 0, 1, std::min(j1, plan.rest) - j0, full - first, false, mean, m2);
}

// Mean and sum of squared deviations of the channels, in two passes over the columns' ones.
inline void channel_moments(const Plan& plan, const double* const partial[2], int64_t first, int channels, double* mean,
                            double* m2) {
  const int repeat = plan.repeat, columns = channels * repeat;
  const double n = plan.shape.per_channel();
  alignas(64) double sum[max_block] = {}, centre[max_block];
  for (int pass = 0; pass < 2; ++pass) {
    for (int64_t s = 0; s < plan.segments; ++s)
      for (int64_t f = 0; f < plan.fold; ++f) {
        const int64_t j0 = (f * plan.shape.channels + first) * repeat;
        const double* means = partial[0] + s * plan.width + j0;
        const double* squares = partial[1] + s * plan.width + j0;
        // Columns before `longer` have an element of the shorter last row.
        const int longer = std::clamp<int64_t>(plan.rest - j0, 0, columns);
        for (int part = 0; part < 2; ++part) {
          const int begin = part == 0 ? 0 : longer, end = part == 0 ? longer : columns;
          if (begin == end) continue;
          const double count = plan.count(s, j0 + begin);
          if (pass == 0)
            for (int j = begin; j < end; ++j) sum[j] += count * means[j];
          else
            for (int j = begin; j < end; ++j)
              sum[j] += squares[j] + count * (means[j] - centre[j]) * (means[j] - centre[j]);
        }
      }
    add_repeats(sum, channels, repeat, pass == 0 ? mean : m2);
    if (pass == 1) return;
    for (int c = 0; c < channels; ++c) mean[c] /= n;
    for (int c = 0; c < channels; ++c)
      for (int i = 0; i < repeat; ++i) centre[c * repeat + i] = mean[c];
    std::fill_n(sum, columns, 0.0);
  }
}

template <class T>
void finish_statistics(const Job<T>& job, const Statistics<Acc<T>>& out, int64_t first, int channels) {
  using A = Acc<T>;
  const double n = job.plan.shape.per_channel();
  double mean[max_block], m2[max_block];
  channel_moments(job.plan, job.partial, first, channels, mean, m2);
  for (int c = 0; c < channels; ++c) out.mean[c] = A(mean[c]);
  for (int c = 0; c < channels; ++c) out.invstd[c] = A(1 / std::sqrt(m2[c] / n + out.eps));
  if (A* running = out.running_mean)
    for (int c = 0; c < channels; ++c) running[c] = A((1 - out.momentum) * running[c] + out.momentum * mean[c]);
  if (A* running = out.running_var)
    for (int c = 0; c < channels; ++c)
      running[c] = A((1 - out.momentum) * running[c] + out.momentum * (m2[c] / (n - 1)));
  set_normalisation(job, first, channels, out.mean, out.invstd, out.weight, out.bias);
}

// y = activation((x - mean) * scale + bias + residual)
template <bool Tail, Activation Kind, bool Residual, class T>
SIMD_INLINE void forward_step(const Job<T>& job, const Parameters<Acc<T>>& p, int64_t i, int n) {
  const Vec<Acc<T>> v = pre_activation<Tail, Residual>(job, p, read<Tail>(job.x + i, n) - p.mean, i, n);
  write<Tail>(job, job.y + i, activate<Kind, T>(v, job.slope), n);
}
