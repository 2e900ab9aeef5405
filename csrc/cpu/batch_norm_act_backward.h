// Backward of batch_norm_act for one SIMD level: sums, and one vector of the elementwise pass.
// Included by batch_norm_act_kernels.h only.

// Gradient at the pre-activation, g', of the vector at element i; `centred` is x - mean.
template <bool Tail, Activation Kind, bool Residual, class T>
SIMD_INLINE Vec<Acc<T>> activation_gradient(const Job<T>& job, const Parameters<Acc<T>>& p, const Vec<Acc<T>>& centred,
                                            int64_t i, int n) {
  const Vec<Acc<T>> v = pre_activation<Tail, Residual>(job, p, centred, i, n);
  return through_activation<Kind, T>(read<Tail>(job.g + i, n), v, job.slope);
}

// Lanes beyond a tail read g as zero and add nothing, whatever infinities their columns' values make of the rest.
template <bool Tail, Activation Kind, bool Residual, class T>
SIMD_INLINE void add_gradients(const Job<T>& job, const Parameters<Acc<T>>& p, int64_t i, int n, Vec<Acc<T>>& sum,
                               Vec<Acc<T>>& dot) {
  Vec<Acc<T>> centred = read<Tail>(job.x + i, n) - p.mean;
  Vec<Acc<T>> g = activation_gradient<Tail, Kind, Residual>(job, p, centred, i, n);
  if constexpr (Tail) centred = keep_first<Acc<T>>(centred, n);
  if constexpr (Tail && Kind == Activation::silu) g = keep_first<Acc<T>>(g, n);
  sum += g;
  dot = mul_add(g, centred, dot);
}

template <bool Tail, Activation Kind, bool Residual, class T>
SIMD_INLINE void column_gradients(const Job<T>& job, int64_t start, int64_t column, int rows, int n, Acc<T>* sum,
                                  Acc<T>* dot) {
  const Parameters<Acc<T>> p = parameters<false, true>(job, column);
  Vec<Acc<T>> s{}, d{};
  for (int u = 0; u < rows; ++u) add_gradients<Tail, Kind, Residual>(job, p, start + u * job.plan.width, n, s, d);
  store(sum, load(sum) + s);
  store(dot, load(dot) + d);
}

template <Activation Kind, bool Residual, class T>
void column_gradient_tile(const Job<T>& job, int64_t start, int64_t column, int rows, int n, double* sum, double* dot) {
  constexpr int L = lanes<Acc<T>>;
  alignas(64) Acc<T> tile_sum[max_block] = {}, tile_dot[max_block] = {};
  const bool ahead = n == job.plan.width && reads_ahead(job);
  for (int r = 0; r < rows; r += 4) {
    const int quad = std::min(4, rows - r);
    const int64_t row = start + r * job.plan.width;
    ReadAhead<T> ahead_x(job.x + row + 4 * job.plan.width), ahead_g(job.g + row + 4 * job.plan.width);
    int j = 0;
    for (; j + L <= n; j += L) {
      if (ahead) {
        ahead_x.advance(4);
        ahead_g.advance(4);
      }
      column_gradients<false, Kind, Residual>(job, row + j, column + j, quad, 0, tile_sum + j, tile_dot + j);
    }
    if (j < n)
      column_gradients<true, Kind, Residual>(job, row + j, column + j, quad, n - j, tile_sum + j, tile_dot + j);
  }
  for (int j = 0; j < n; ++j) {
    sum[j] += tile_sum[j];
    dot[j] += tile_dot[j];
  }
}

template <Activation Kind, bool Residual, class T>
void piece_gradient_tile(const Job<T>& job, int64_t channel, int64_t first, int64_t last, double& sum, double& dot) {
  using A = Acc<T>;
  using V = Vec<A>;
  constexpr int L = lanes<A>;
  // Additions in a float chain, whose error grows with its length, before the sums move on to double.
  constexpr int64_t chain = 16;
  const Parameters<A> p = parameters<false, false>(job, channel);
  const bool ahead = reads_ahead(job);
  for (int64_t k = first; k < last; ++k) {
    const int64_t start = job.plan.piece_start(channel, k), end = start + job.plan.piece_size(k);
    const int64_t next = job.plan.piece_start(channel, k + 1) - start;  // is read after this piece
    for (int64_t from = start; from < end; from += 4 * L * chain) {
      const int64_t to = std::min(end, from + 4 * L * chain);
      V s[4] = {}, d[4] = {};
      int64_t i = from;
      for (; i + 4 * L <= to; i += 4 * L)
        for (int u = 0; u < 4; ++u) {
          if (ahead) {
            __builtin_prefetch(job.x + i + next + u * L);
            __builtin_prefetch(job.g + i + next + u * L);
          }
          add_gradients<false, Kind, Residual>(job, p, i + u * L, 0, s[u], d[u]);
        }
      for (; i + L <= to; i += L) add_gradients<false, Kind, Residual>(job, p, i, 0, s[0], d[0]);
      if (i < to) add_gradients<true, Kind, Residual>(job, p, i, to - i, s[1], d[1]);
      sum += horizontal_sum<A>((s[0] + s[1]) + (s[2] + s[3]));
      dot += horizontal_sum<A>((d[0] + d[1]) + (d[2] + d[3]));
    }
  }
}

// Sums of g' and of g' * (x - mean) of every column of the group, over the segment's rows.
template <Activation Kind, bool Residual, class T>
void gradient_sums_of(const Job<T>& job, int64_t group, int64_t segment) {
  const Plan& plan = job.plan;
  const int64_t first = segment * plan.segment, last = std::min(first + plan.segment, plan.length);
  const int64_t j0 = group * plan.block, j1 = std::min(j0 + plan.block, plan.width);
  double* sum = job.partial[0] + segment * plan.width + j0;
  double* dot = job.partial[1] + segment * plan.width + j0;
  std::fill_n(sum, j1 - j0, 0.0);
  std::fill_n(dot, j1 - j0, 0.0);
  if (!plan.columns) {
    for (int64_t k = first; k < last; k += plan.tile)
      piece_gradient_tile<Kind, Residual>(job, group, k, std::min(k + plan.tile, last), *sum, *dot);
    return;
  }
  const int64_t full = std::min(last, plan.rows);
  for (int64_t r = first; r < full; r += plan.tile)
    column_gradient_tile<Kind, Residual>(job, r * plan.width + j0, j0, std::min(plan.tile, full - r), j1 - j0, sum,
                                         dot);
  if (last > plan.rows && j0 < plan.rest)
    column_gradient_tile<Kind, Residual>(job, plan.rows * plan.width + j0, j0, 1, std::min(j1, plan.rest) - j0, sum,
                                         dot);
}

template <class T>
void gradient_sums(const Job<T>& job, int64_t group, int64_t segment) {
  for_kind(job, [&](auto kind, auto residual) { gradient_sums_of<kind.value, residual.value>(job, group, segment); });
}

template <class T>
void finish_gradients(const Job<T>& job, const Gradients<Acc<T>>& out, int64_t first, int channels) {
  using A = Acc<T>;
  const Plan& plan = job.plan;
  const int columns = channels * plan.repeat;
  const double n = plan.shape.per_channel();
  alignas(64) double sums[max_block] = {}, dots[max_block] = {};
  for (int64_t s = 0; s < plan.segments; ++s)
    for (int64_t f = 0; f < plan.fold; ++f) {
      const int64_t j0 = s * plan.width + (f * plan.shape.channels + first) * plan.repeat;
      for (int j = 0; j < columns; ++j) sums[j] += job.partial[0][j0 + j];
      for (int j = 0; j < columns; ++j) dots[j] += job.partial[1][j0 + j];
    }
  double sum[max_block], dot[max_block];
  add_repeats(sums, channels, plan.repeat, sum);
  add_repeats(dots, channels, plan.repeat, dot);
  const A* invstd = out.invstd;
  A constant[max_block], by_centred[max_block];
  for (int c = 0; c < channels; ++c) {
    out.bias[c] = A(sum[c]);
    out.weight[c] = A(dot[c] * invstd[c]);
    constant[c] = A(-sum[c] / n);
    by_centred[c] = A(-dot[c] * invstd[c] * invstd[c] / n);
  }
  set_columns(plan, job.constant, first, channels, constant);
  set_columns(plan, job.by_centred, first, channels, by_centred);
}

// dx = (g' + constant + (x - mean) * by_centred) * scale, dresidual = g'; in evaluation dx = g' * scale, whatever x is.
template <bool Tail, Activation Kind, bool Residual, class T>
SIMD_INLINE void backward_step(const Job<T>& job, const Parameters<Acc<T>>& p, int64_t i, int n) {
  using V = Vec<Acc<T>>;
  const V centred = read<Tail>(job.x + i, n) - p.mean;
  const V g = activation_gradient<Tail, Kind, Residual>(job, p, centred, i, n);
  if (job.dr) write<Tail>(job, job.dr + i, g, n);
  if (job.y)
    write<Tail>(job, job.y + i, (job.training ? mul_add(centred, p.by_centred, g + p.constant) : g) * p.scale, n);
}
