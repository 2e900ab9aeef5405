// Backward of group_norm_act for one SIMD level: sums, and one vector of the elementwise pass.
// Included by group_norm_act_kernels.h only.

// Gradient at the pre-activation, g', of the vector at element i; `centred` is x - mean.
template <bool Tail, Activation Kind, bool Residual, class T>
SIMD_INLINE Vec<Acc<T>> inner_gradient(const Data<T>& data, const Parameters<Acc<T>>& p, const Vec<Acc<T>>& centred,
                                       int64_t i, int n) {
  const Vec<Acc<T>> v = pre_activation<Tail, Residual>(data, p, centred, i, n);
  return through_activation<Kind, T>(read<Tail>(data.g + i, n), v, data.slope);
}

// Adds the vector at element i to the sums; keeps its g' at `kept`, unless that is null.
template <bool Tail, Activation Kind, bool Residual, class T>
SIMD_INLINE void add_gradients(const Data<T>& data, const Parameters<Acc<T>>& p, int64_t i, int n, Acc<T>* kept,
                               Vec<Acc<T>>& sum, Vec<Acc<T>>& dot) {
  Vec<Acc<T>> centred = read<Tail>(data.x + i, n) - p.mean;
  Vec<Acc<T>> g = inner_gradient<Tail, Kind, Residual>(data, p, centred, i, n);
  if (kept) write<Tail>(kept, g, n);
  // Two streams, with arithmetic between the loads: the processor's own prefetching falls behind.
  __builtin_prefetch(reinterpret_cast<const char*>(data.x + i) + prefetched_bytes);
  __builtin_prefetch(reinterpret_cast<const char*>(data.g + i) + prefetched_bytes);
  if constexpr (Tail) {  // the parameters may be infinite
    g = keep_first<Acc<T>>(g, n);
    centred = keep_first<Acc<T>>(centred, n);
  }
  sum += g;
  dot = mul_add(g, centred, dot);
}

// Sums of g' and of g' * (x - mean) over n consecutive elements of a plane.
template <Activation Kind, bool Residual, class T>
SIMD_INLINE void piece_gradients(const Data<T>& data, const Parameters<Acc<T>>& p, int64_t start, int64_t n,
                                 Acc<T>* kept, double* sum, double* dot) {
  using A = Acc<T>;
  using V = Vec<A>;
  constexpr int L = lanes<A>;
  // Additions in a float chain, whose error grows with its length, before the sums move on to double.
  constexpr int64_t chain = 16;
  const auto at = [&](int64_t i) { return kept ? kept + i : nullptr; };
  *sum = *dot = 0;
  for (int64_t from = start, end = start + n; from < end; from += 4 * L * chain) {
    const int64_t to = std::min(end, from + 4 * L * chain);
    V s[4] = {}, d[4] = {};
    int64_t i = from;
    for (; i + 4 * L <= to; i += 4 * L)
      for (int u = 0; u < 4; ++u)
        add_gradients<false, Kind, Residual>(data, p, i + u * L, 0, at(i + u * L), s[u], d[u]);
    for (; i + L <= to; i += L) add_gradients<false, Kind, Residual>(data, p, i, 0, at(i), s[0], d[0]);
    if (i < to) add_gradients<true, Kind, Residual>(data, p, i, to - i, at(i), s[1], d[1]);
    *sum += horizontal_sum<A>((s[0] + s[1]) + (s[2] + s[3]));
    *dot += horizontal_sum<A>((d[0] + d[1]) + (d[2] + d[3]));
  }
}

// Likewise of n columns over some rows, added to the columns' sums.
template <bool Tail, Activation Kind, bool Residual, class T>
SIMD_INLINE void column_gradients(const Data<T>& data, const Columns<Acc<T>>& columns, int64_t start, int64_t stride,
                                  int64_t column, int rows, int n, Acc<T>* kept, Acc<T>* sum, Acc<T>* dot) {
  const Parameters<Acc<T>> p = column_parameters<false>(columns, column);
  Vec<Acc<T>> s{}, d{};
  for (int u = 0; u < rows; ++u)
    add_gradients<Tail, Kind, Residual>(data, p, start + u * stride, n, kept ? kept + u * stride : nullptr, s, d);
  store(sum, load(sum) + s);
  store(dot, load(dot) + d);
}

template <Activation Kind, bool Residual, class T>
void column_gradient_tile(const Data<T>& shared, const Columns<Acc<T>>& columns, int64_t start, int64_t stride,
                          int64_t column, int rows, int n, Acc<T>* kept, double* sum, double* dot) {
  constexpr int L = lanes<Acc<T>>;
  const Data<T> data = shared;
  alignas(64) Acc<T> tile_sum[max_block] = {}, tile_dot[max_block] = {};
  for (int r = 0; r < rows; r += 4) {
    const int quad = std::min(4, rows - r);
    const int64_t row = start + r * stride;
    const auto at = [&](int j) { return kept ? kept + r * stride + j : nullptr; };
    int j = 0;
    for (; j + L <= n; j += L)
      column_gradients<false, Kind, Residual>(data, columns, row + j, stride, column + j, quad, 0, at(j), tile_sum + j,
                                              tile_dot + j);
    if (j < n)
      column_gradients<true, Kind, Residual>(data, columns, row + j, stride, column + j, quad, n - j, at(j),
                                             tile_sum + j, tile_dot + j);
  }
  for (int j = 0; j < n; ++j) {
    sum[j] += tile_sum[j];
    dot[j] += tile_dot[j];
  }
}

// Sums of a segment: of every piece, into the job's arrays (planes view), or of every column.
template <Activation Kind, bool Residual, class T>
void gradient_sums_of(const Job<T>& job, int64_t unit, int64_t segment, const Columns<Acc<T>>& columns, Acc<T>* kept,
                      double* sum, double* dot) {
  const Plan& plan = job.plan;
  const int64_t first = segment * plan.segment, last = std::min(first + plan.segment, plan.length);
  if (!plan.columns) {
    const Data<T> data = job.data.from(plan.start(unit));
    for_pieces(job, unit, first, last, [&](int64_t k, Acc<T> weight, Acc<T> bias) {
      const Parameters<Acc<T>> p = plane_parameters<false>(job, unit, weight, bias);
      piece_gradients<Kind, Residual>(data, p, plan.piece_start(k), plan.piece_size(k), kept,
                                      job.sums + unit * plan.length + k, job.dots + unit * plan.length + k);
    });
    return;
  }
  const Data<T> data = job.data.from(plan.start(unit));
  const int64_t full = std::min(last, plan.rows);
  std::fill_n(sum, plan.width, 0.0);
  std::fill_n(dot, plan.width, 0.0);
  const auto tile = [&](int64_t row, int64_t rows, int64_t j, int64_t n) {
    const int64_t start = row * plan.width + j;
    column_gradient_tile<Kind, Residual>(data, columns, start, plan.width, j, rows, n, kept ? kept + start : nullptr,
                                         sum + j, dot + j);
  };
  for (int64_t r = first; r < full; r += tile_rows)
    for (int64_t j = 0; j < plan.width; j += max_block)
      tile(r, std::min(tile_rows, full - r), j, std::min<int64_t>(max_block, plan.width - j));
  if (last > plan.rows)
    for (int64_t j = 0; j < plan.rest; j += max_block)
      tile(plan.rows, 1, j, std::min<int64_t>(max_block, plan.rest - j));
}

// From the sums of a group's channels to what its elements share; the dots become those with the normalised values.
template <class T>
void finish_group(const Job<T>& job, int64_t sample, int64_t group) {
  using A = Acc<T>;
  const Plan& plan = job.plan;
  const int64_t statistic = sample * plan.groups + group, stride = job.channel_stride();
  const double invstd = job.invstd[statistic];
  double sum = 0, dot = 0;
  for (int64_t c = 0; c < plan.per_group; c += max_block) {
    const int64_t n = std::min<int64_t>(max_block, plan.per_group - c);
    A weight[max_block];
    double weighted_sums[max_block], weighted_dots[max_block];
    weights(job, sample, group * plan.per_group + c, n, weight);
    const double* sums = job.sums + (statistic * plan.per_group + c) * stride;
    double* dots = job.dots + (statistic * plan.per_group + c) * stride;
    for (int64_t k = 0; k < n; ++k) {
      dots[k * stride] *= invstd;
      weighted_sums[k] = sums[k * stride] * weight[k];
      weighted_dots[k] = dots[k * stride] * weight[k];
    }
    sum += sum_of(weighted_sums, n);
    dot += sum_of(weighted_dots, n);
  }
  job.constant[statistic] = A(-sum * invstd / plan.per_statistic());
  job.by_centred[statistic] = A(-dot * invstd * invstd / plan.per_statistic());
}

template <class T>
void finish_gradients(const Job<T>& job, int64_t unit, const double* const partial[2], double* const row[2]) {
  const Plan& plan = job.plan;
  if (!plan.columns) {
    for (double* totals : {job.sums + unit * plan.length, job.dots + unit * plan.length})
      for (int64_t c = 0; plan.pieces > 1 && c < plan.per_group; ++c)
        totals[c * plan.pieces] = sum_of(totals + c * plan.pieces, plan.pieces);
    finish_group(job, unit / plan.groups, unit % plan.groups);
    return;
  }
  for (int k = 0; k < 2; ++k) {
    std::copy_n(partial[k], plan.width, row[k]);
    for (int64_t s = 1; s < plan.segments; ++s)
      for (int64_t j = 0; j < plan.width; ++j) row[k][j] += partial[k][s * plan.width + j];
    add_repeats(plan, row[k]);
    std::copy_n(row[k], plan.channels, (k == 0 ? job.sums : job.dots) + unit * plan.channels);
  }
  for (int64_t g = 0; g < plan.groups; ++g) finish_group(job, unit, g);
}

// Gradients of the parameters of some channels, at most max_block.
template <class T>
void parameter_gradients(const Job<T>& job, int64_t first, int64_t channels, const ParameterGradients<Acc<T>>& out) {
  using A = Acc<T>;
  const Plan& plan = job.plan;
  const int64_t stride = job.channel_stride();
  double weight[max_block] = {}, bias[max_block] = {};
  for (int64_t n = 0; n < plan.samples; ++n) {
    const int64_t at = n * plan.channels + first;
    const double* sums = job.sums + at * stride;
    const double* dots = job.dots + at * stride;
    for (int64_t c = 0; c < channels; ++c) {
      const double gain = job.scale ? 1 + double(job.scale[at + c]) : 1;
      weight[c] += dots[c * stride] * gain;
      bias[c] += sums[c * stride] * gain;
    }
    for (int64_t c = 0; c < channels; ++c) {
      const double w = job.weight ? job.weight[first + c] : 1, b = job.bias ? job.bias[first + c] : 0;
      out.scale[at + c] = A(dots[c * stride] * w + sums[c * stride] * b);
      out.shift[at + c] = A(sums[c * stride]);
    }
  }
  for (int64_t c = 0; c < channels; ++c) {
    out.weight[first + c] = A(weight[c]);
    out.bias[first + c] = A(bias[c]);
  }
}

// dx = g' * scale + constant + (x - mean) * by_centred, dresidual = g'.  g' may lie at `kept`.
template <bool Tail, Activation Kind, bool Residual, bool Kept, class T>
SIMD_INLINE void backward_step(const Data<T>& data, const Parameters<Acc<T>>& p, int64_t i, int n, const Acc<T>* kept) {
  using V = Vec<Acc<T>>;
  const V centred = read<Tail>(data.x + i, n) - p.mean;
  V g;
  if constexpr (Kept)
    g = read<Tail>(kept + i, n);
  else
    g = inner_gradient<Tail, Kind, Residual>(data, p, centred, i, n);
  if (data.dr) write<Tail>(data, data.dr + i, g, n);
  if (data.y) write<Tail>(data, data.y + i, mul_add(centred, p.by_centred, mul_add(g, p.scale, p.constant)), n);
}
