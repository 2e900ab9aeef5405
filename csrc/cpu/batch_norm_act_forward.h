// Forward of batch_norm_act for one SIMD level: statistics, and one vector of the elementwise pass.
// Included by batch_norm_act_kernels.h only.

// Statistics.
// A tile of data that fits the L1 cache is read twice: for its rough mean `centre`, then for the sums of (x - centre)
// and (x - centre)^2.  Those sums are short float chains of small terms; everything longer is added up in double,
// exactly as if the tile's true mean had been used.

// n elements' sum is `s` and sum of squares `q`, both about `centre`; merge them into (count, mean, m2).
// Infinite elements make an infinite mean, though not a finite distance from it; m2 becomes NaN.
template <class A>
SIMD_INLINE void merge_tile(double n, A centre, A s, A q, double count, double& mean, double& m2) {
  const double shift = s / n;
  const double tile_mean = std::isinf(centre) ? centre : centre + shift;
  const double delta = tile_mean - mean;
  const double share = n / (count + n);
  mean = std::isfinite(delta) ? mean + delta * share : mean + tile_mean;
  m2 += q - s * shift + delta * delta * count * share;
}

template <bool Tail, int Rows, class T>
SIMD_INLINE void column_sum(const T* x, int64_t stride, int n, Acc<T>* sum) {
  Vec<Acc<T>> s = read<Tail>(x, n);
  for (int u = 1; u < Rows; ++u) s += read<Tail>(x + u * stride, n);
  store(sum, load(sum) + s);
}
template <bool Tail, int Rows, class T>
SIMD_INLINE void column_squares(const T* x, int64_t stride, int n, const Acc<T>* centre, Acc<T>* sum, Acc<T>* squares) {
  const Vec<Acc<T>> c = load(centre);
  Vec<Acc<T>> s{}, q{};
  for (int u = 0; u < Rows; ++u) {
    const Vec<Acc<T>> d = read<Tail>(x + u * stride, n) - c;
    s += d;
    q = mul_add(d, d, q);
  }
  store(sum, load(sum) + s);
  store(squares, load(squares) + q);
}
template <int Rows, class T>
SIMD_INLINE void column_sums(const T* x, int64_t stride, int n, Acc<T>* sum) {
  constexpr int L = lanes<Acc<T>>;
  int j = 0;
  for (; j + L <= n; j += L) column_sum<false, Rows>(x + j, stride, 0, sum + j);
  if (j < n) column_sum<true, Rows>(x + j, stride, n - j, sum + j);
}
template <int Rows, class T>
SIMD_INLINE void column_squares(const T* x, int64_t stride, int n, const Acc<T>* centre, Acc<T>* sum, Acc<T>* squares) {
  constexpr int L = lanes<Acc<T>>;
  int j = 0;
  for (; j + L <= n; j += L) column_squares<false, Rows>(x + j, stride, 0, centre + j, sum + j, squares + j);
  if (j < n) column_squares<true, Rows>(x + j, stride, n - j, centre + j, sum + j, squares + j);
}

// Tile of rows x n columns into the columns' (mean, m2), which hold `count` rows already.
template <class T>
void column_tile(const T* x, int64_t stride, int rows, int n, double count, double* mean, double* m2) {
  using A = Acc<T>;
  alignas(64) A centre[max_block] = {}, sum[max_block] = {}, squares[max_block] = {};
  int r = 0;
  for (; r + 8 <= rows; r += 8) column_sums<8>(x + r * stride, stride, n, centre);
  for (; r < rows; ++r) column_sums<1>(x + r * stride, stride, n, centre);
  for (int j = 0; j < n; ++j) centre[j] *= A(1) / rows;
  for (r = 0; r + 4 <= rows; r += 4) column_squares<4>(x + r * stride, stride, n, centre, sum, squares);
  for (; r < rows; ++r) column_squares<1>(x + r * stride, stride, n, centre, sum, squares);
  for (int j = 0; j < n; ++j) merge_tile<A>(rows, centre[j], sum[j], squares[j], count, mean[j], m2[j]);
}

template <bool Tail, class T>
SIMD_INLINE void add_deviations(const T* x, int n, const Vec<Acc<T>>& centre, Vec<Acc<T>>& s, Vec<Acc<T>>& q) {
  Vec<Acc<T>> d = read<Tail>(x, n) - centre;
  if constexpr (Tail) d = keep_first<Acc<T>>(d, n);
  s += d;
  q = mul_add(d, d, q);
}

// Tile of consecutive pieces of one channel.
template <class T>
void piece_tile(const Plan& plan, const T* x, int64_t channel, int64_t first, int64_t last, double count, double& mean,
                double& m2) {
  using A = Acc<T>;
  using V = Vec<A>;
  constexpr int L = lanes<A>;
  V s[4] = {}, q[4] = {};
  for (int64_t k = first; k < last; ++k) {
    const T* p = x + plan.piece_start(channel, k);
    const int64_t n = plan.piece_size(k);
    int64_t i = 0;
    for (; i + 4 * L <= n; i += 4 * L)
      for (int u = 0; u < 4; ++u) s[u] += load(p + i + u * L);
    for (; i + L <= n; i += L) s[0] += load(p + i);
    if (i < n) s[1] += load_first(p + i, n - i);
  }
  const double size = plan.elements_before(last) - plan.elements_before(first);
  const A mid = horizontal_sum<A>((s[0] + s[1]) + (s[2] + s[3])) / A(size);
  const V centre = splat(mid);
  for (int u = 0; u < 4; ++u) s[u] = V{};
  for (int64_t k = first; k < last; ++k) {
    const T* p = x + plan.piece_start(channel, k);
    const int64_t n = plan.piece_size(k);
    int64_t i = 0;
    for (; i + 4 * L <= n; i += 4 * L)
      for (int u = 0; u < 4; ++u) add_deviations<false>(p + i + u * L, 0, centre, s[u], q[u]);
    for (; i + L <= n; i += L) add_deviations<false>(p + i, 0, centre, s[0], q[0]);
    if (i < n) add_deviations<true>(p + i, n - i, centre, s[1], q[1]);
  }
  merge_tile<A>(size, mid, horizontal_sum<A>((s[0] + s[1]) + (s[2] + s[3])),
                horizontal_sum<A>((q[0] + q[1]) + (q[2] + q[3])), count, mean, m2);
}

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
  if (!plan.columns) {
    for (int64_t k = first; k < last; k += plan.tile)
      piece_tile(plan, job.x, group, k, std::min(k + plan.tile, last),
                 plan.elements_before(k) - plan.elements_before(first), *mean, *m2);
    return;
  }
  const int64_t full = std::min(last, plan.rows);
  for (int64_t r = first; r < full; r += plan.tile)
    column_tile(job.x + r * plan.width + j0, plan.width, std::min(plan.tile, full - r), j1 - j0, r - first, mean, m2);
  if (last > plan.rows && j0 < plan.rest)
    column_tile(job.x + plan.rows * plan.width + j0, 0, 1, std::min(j1, plan.rest) - j0, full - first, mean, m2);
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
template <bool Tail, bool Relu, bool Residual, class T>
SIMD_INLINE void forward_step(const Job<T>& job, const Parameters<Acc<T>>& p, int64_t i, int n) {
  using V = Vec<Acc<T>>;
  V v = pre_activation<Tail, Residual>(job, p, read<Tail>(job.x + i, n) - p.mean, i, n);
  if constexpr (Relu)
    v = v <= 0 ? V{} : v;
  else
    v = v > 0 ? v : v * splat(job.slope);
  write<Tail>(job, job.y + i, v, n);
}
