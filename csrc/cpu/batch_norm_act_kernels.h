// Kernels of batch_norm_act for one SIMD level; see batch_norm_act.cpp for the two views, groups and segments.
// Included by for_each_simd_level.h only.

// One vector of elements, or its first n lanes.
template <bool Tail, class T>
SIMD_INLINE Vec<Acc<T>> read(const T* p, int n) {
  if constexpr (Tail) return load_first(p, n);
  return load(p);
}
template <bool Tail, class T>
SIMD_INLINE void write(const Job<T>& job, T* p, Vec<Acc<T>> v, int n) {
  if constexpr (Tail)
    store_first(p, v, n);
  else if (job.streaming)
    stream(p, v);
  else
    store(p, v);
}

// What an elementwise run needs per channel, in vectors: of one channel, or of the columns from `column` on.
template <class A>
struct Parameters {
  Vec<A> mean, scale, bias, by_centred, constant;
};
template <bool Backward, bool PerColumn, class T>
SIMD_INLINE Parameters<Acc<T>> parameters(const Job<T>& job, int64_t column) {
  Parameters<Acc<T>> p;
  if constexpr (PerColumn) {
    p.mean = load(job.mean + column);
    p.scale = load(job.scale + column);
    p.bias = load(job.bias + column);
    if constexpr (Backward) {
      p.by_centred = load(job.by_centred + column);
      p.constant = load(job.constant + column);
    }
  } else {
    p.mean = splat(job.mean[column]);
    p.scale = splat(job.scale[column]);
    p.bias = splat(job.bias[column]);
    if constexpr (Backward) {
      p.by_centred = splat(job.by_centred[column]);
      p.constant = splat(job.constant[column]);
    }
  }
  return p;
}

// What the activation is applied to.  Backward recomputes it, and has to find the sign that forward found: this is the
// one expression of both.  x - mean comes first because x * scale + shift would cancel where |mean| >> std.
template <bool Tail, bool Residual, class T>
SIMD_INLINE Vec<Acc<T>> pre_activation(const Job<T>& job, const Parameters<Acc<T>>& p, const Vec<Acc<T>>& centred,
                                       int64_t i, int n) {
  const Vec<Acc<T>> v = mul_add(centred, p.scale, p.bias);
  if constexpr (Residual) return v + read<Tail>(job.residual + i, n);
  return v;
}

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

// Forward.

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

// Backward.

// Gradient at the pre-activation, g', of the vector at element i; `centred` is x - mean.
template <bool Tail, bool Relu, bool Residual, class T>
SIMD_INLINE Vec<Acc<T>> activation_gradient(const Job<T>& job, const Parameters<Acc<T>>& p, const Vec<Acc<T>>& centred,
                                            int64_t i, int n) {
  using V = Vec<Acc<T>>;
  const V v = pre_activation<Tail, Residual>(job, p, centred, i, n);
  const V g = read<Tail>(job.g + i, n);
  if constexpr (Relu) return v <= 0 ? V{} : g;
  return v > 0 ? g : g * splat(job.slope);
}

// Lanes beyond a tail read g as zero and add nothing.
template <bool Tail, bool Relu, bool Residual, class T>
SIMD_INLINE void add_gradients(const Job<T>& job, const Parameters<Acc<T>>& p, int64_t i, int n, Vec<Acc<T>>& sum,
                               Vec<Acc<T>>& dot) {
  Vec<Acc<T>> centred = read<Tail>(job.x + i, n) - p.mean;
  const Vec<Acc<T>> g = activation_gradient<Tail, Relu, Residual>(job, p, centred, i, n);
  if constexpr (Tail) centred = keep_first<Acc<T>>(centred, n);  // the mean may be infinite
  sum += g;
  dot = mul_add(g, centred, dot);
}

template <bool Tail, bool Relu, bool Residual, class T>
SIMD_INLINE void column_gradients(const Job<T>& job, int64_t start, int64_t column, int rows, int n, Acc<T>* sum,
                                  Acc<T>* dot) {
  const Parameters<Acc<T>> p = parameters<false, true>(job, column);
  Vec<Acc<T>> s{}, d{};
  for (int u = 0; u < rows; ++u) add_gradients<Tail, Relu, Residual>(job, p, start + u * job.plan.width, n, s, d);
  store(sum, load(sum) + s);
  store(dot, load(dot) + d);
}

template <bool Relu, bool Residual, class T>
void column_gradient_tile(const Job<T>& job, int64_t start, int64_t column, int rows, int n, double* sum, double* dot) {
  constexpr int L = lanes<Acc<T>>;
  alignas(64) Acc<T> tile_sum[max_block] = {}, tile_dot[max_block] = {};
  for (int r = 0; r < rows; r += 4) {
    const int quad = std::min(4, rows - r);
    const int64_t row = start + r * job.plan.width;
    int j = 0;
    for (; j + L <= n; j += L)
      column_gradients<false, Relu, Residual>(job, row + j, column + j, quad, 0, tile_sum + j, tile_dot + j);
    if (j < n)
      column_gradients<true, Relu, Residual>(job, row + j, column + j, quad, n - j, tile_sum + j, tile_dot + j);
  }
  for (int j = 0; j < n; ++j) {
    sum[j] += tile_sum[j];
    dot[j] += tile_dot[j];
  }
}

template <bool Relu, bool Residual, class T>
void piece_gradient_tile(const Job<T>& job, int64_t channel, int64_t first, int64_t last, double& sum, double& dot) {
  using A = Acc<T>;
  using V = Vec<A>;
  constexpr int L = lanes<A>;
  // Additions in a float chain, whose error grows with its length, before the sums move on to double.
  constexpr int64_t chain = 16;
  const Parameters<A> p = parameters<false, false>(job, channel);
  for (int64_t k = first; k < last; ++k) {
    const int64_t start = job.plan.piece_start(channel, k), end = start + job.plan.piece_size(k);
    for (int64_t from = start; from < end; from += 4 * L * chain) {
      const int64_t to = std::min(end, from + 4 * L * chain);
      V s[4] = {}, d[4] = {};
      int64_t i = from;
      for (; i + 4 * L <= to; i += 4 * L)
        for (int u = 0; u < 4; ++u) add_gradients<false, Relu, Residual>(job, p, i + u * L, 0, s[u], d[u]);
      for (; i + L <= to; i += L) add_gradients<false, Relu, Residual>(job, p, i, 0, s[0], d[0]);
      if (i < to) add_gradients<true, Relu, Residual>(job, p, i, to - i, s[1], d[1]);
      sum += horizontal_sum<A>((s[0] + s[1]) + (s[2] + s[3]));
      dot += horizontal_sum<A>((d[0] + d[1]) + (d[2] + d[3]));
    }
  }
}

// Sums of g' and of g' * (x - mean) of every column of the group, over the segment's rows.
template <bool Relu, bool Residual, class T>
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
      piece_gradient_tile<Relu, Residual>(job, group, k, std::min(k + plan.tile, last), *sum, *dot);
    return;
  }
  const int64_t full = std::min(last, plan.rows);
  for (int64_t r = first; r < full; r += plan.tile)
    column_gradient_tile<Relu, Residual>(job, r * plan.width + j0, j0, std::min(plan.tile, full - r), j1 - j0, sum,
                                         dot);
  if (last > plan.rows && j0 < plan.rest)
    column_gradient_tile<Relu, Residual>(job, plan.rows * plan.width + j0, j0, 1, std::min(j1, plan.rest) - j0, sum,
                                         dot);
}

// dx = (g' + constant + (x - mean) * by_centred) * scale, dresidual = g'; in evaluation dx = g' * scale, whatever x is.
template <bool Tail, bool Relu, bool Residual, class T>
SIMD_INLINE void backward_step(const Job<T>& job, const Parameters<Acc<T>>& p, int64_t i, int n) {
  using V = Vec<Acc<T>>;
  const V centred = read<Tail>(job.x + i, n) - p.mean;
  const V g = activation_gradient<Tail, Relu, Residual>(job, p, centred, i, n);
  if (job.dr) write<Tail>(job, job.dr + i, g, n);
  if (job.y)
    write<Tail>(job, job.y + i, (job.training ? mul_add(centred, p.by_centred, g + p.constant) : g) * p.scale, n);
}

// The elementwise pass of an item: one group of columns over one segment of rows.

template <bool Tail, bool Backward, bool Relu, bool Residual, class T>
SIMD_INLINE void elementwise_step(const Job<T>& job, const Parameters<Acc<T>>& p, int64_t i, int n) {
  if constexpr (Backward)
    backward_step<Tail, Relu, Residual>(job, p, i, n);
  else
    forward_step<Tail, Relu, Residual>(job, p, i, n);
}

// A run of n consecutive elements of one channel.  The job is copied, here and below, so that the compiler need not
// expect the stores to change it.
template <bool Backward, bool Relu, bool Residual, class T>
void elementwise_run(const Job<T>& shared, int64_t start, int64_t n, int64_t channel) {
  constexpr int L = lanes<Acc<T>>;
  const Job<T> job = shared;
  const Parameters<Acc<T>> p = parameters<Backward, false>(job, channel);
  int64_t j = 0;
  for (; j + L <= n; j += L) elementwise_step<false, Backward, Relu, Residual>(job, p, start + j, 0);
  if (j < n) elementwise_step<true, Backward, Relu, Residual>(job, p, start + j, n - j);
}

// Rows x n elements, from `column` on.
template <int Rows, bool Backward, bool Relu, bool Residual, class T>
void elementwise_rows(const Job<T>& shared, int64_t start, int64_t n, int64_t column) {
  constexpr int L = lanes<Acc<T>>;
  const Job<T> job = shared;
  const int64_t stride = job.plan.width;
  int64_t j = 0;
  for (; j + L <= n; j += L) {
    const Parameters<Acc<T>> p = parameters<Backward, true>(job, column + j);
    for (int u = 0; u < Rows; ++u) elementwise_step<false, Backward, Relu, Residual>(job, p, start + u * stride + j, 0);
  }
  if (j < n) {
    const Parameters<Acc<T>> p = parameters<Backward, true>(job, column + j);
    for (int u = 0; u < Rows; ++u)
      elementwise_step<true, Backward, Relu, Residual>(job, p, start + u * stride + j, n - j);
  }
}

template <bool Backward, bool Relu, bool Residual, class T>
void elementwise_of(const Job<T>& job, int64_t group, int64_t segment) {
  const Plan& plan = job.plan;
  const int64_t first = segment * plan.segment, last = std::min(first + plan.segment, plan.length);
  if (!plan.columns) {
    for (int64_t k = first; k < last; ++k)
      elementwise_run<Backward, Relu, Residual>(job, plan.piece_start(group, k), plan.piece_size(k), group);
    return;
  }
  const int64_t j0 = group * plan.block, j1 = std::min(j0 + plan.block, plan.width);
  const int64_t full = std::min(last, plan.rows);
  int64_t r = first;
  // Several rows share their parameters; not where writing past the caches wants consecutive addresses.
  for (; !job.streaming && r + 4 <= full; r += 4)
    elementwise_rows<4, Backward, Relu, Residual>(job, r * plan.width + j0, j1 - j0, j0);
  for (; r < full; ++r) elementwise_rows<1, Backward, Relu, Residual>(job, r * plan.width + j0, j1 - j0, j0);
  if (last > plan.rows && j0 < plan.rest)
    elementwise_rows<1, Backward, Relu, Residual>(job, plan.rows * plan.width + j0, std::min(j1, plan.rest) - j0, j0);
}

template <bool Backward, class T>
void elementwise(const Job<T>& job, int64_t group, int64_t segment) {
  if (job.relu)
    job.residual ? elementwise_of<Backward, true, true>(job, group, segment)
                 : elementwise_of<Backward, true, false>(job, group, segment);
  else
    job.residual ? elementwise_of<Backward, false, true>(job, group, segment)
                 : elementwise_of<Backward, false, false>(job, group, segment);
  if (job.streaming) stream_fence();
}

template <class T>
void gradient_sums(const Job<T>& job, int64_t group, int64_t segment) {
  if (job.relu)
    job.residual ? gradient_sums_of<true, true>(job, group, segment)
                 : gradient_sums_of<true, false>(job, group, segment);
  else
    job.residual ? gradient_sums_of<false, true>(job, group, segment)
                 : gradient_sums_of<false, false>(job, group, segment);
}

// Finish: from the columns' sums to the channels' values, and back to the columns.  Arrays of channels' values begin at
// the first channel that is to be finished.

// Invariant: channels * repeat <= max_block.

// total[c] = sum over the channel's columns of value[column].
inline void add_repeats(const double* column, int channels, int repeat, double* total) {
  if (repeat == 1) {
    std::copy_n(column, channels, total);
    return;
  }
  for (int c = 0; c < channels; ++c) {
    double sum = 0;
    for (int i = 0; i < repeat; ++i) sum += column[c * repeat + i];
    total[c] = sum;
  }
}

// Spreads the channels' values over their columns.
template <class A>
void set_columns(const Plan& plan, A* array, int64_t first_channel, int channels, const A* value) {
  for (int64_t f = 0; f < plan.fold; ++f) {
    A* p = array + (f * plan.shape.channels + first_channel) * plan.repeat;
    if (plan.repeat == 1)
      for (int c = 0; c < channels; ++c) p[c] = value[c];
    else
      for (int c = 0; c < channels; ++c) std::fill_n(p + c * plan.repeat, plan.repeat, value[c]);
  }
}

template <class T>
void set_normalisation(const Job<T>& job, int64_t first, int channels, const Acc<T>* mean, const Acc<T>* invstd,
                       const Acc<T>* weight, const Acc<T>* bias) {
  using A = Acc<T>;
  A scale[max_block], shift[max_block];
  for (int c = 0; c < channels; ++c) scale[c] = invstd[c] * (weight ? weight[c] : A(1));
  for (int c = 0; c < channels; ++c) shift[c] = bias ? bias[c] : A(0);
  set_columns(job.plan, job.mean, first, channels, mean);
  set_columns(job.plan, job.scale, first, channels, scale);
  set_columns(job.plan, job.bias, first, channels, shift);
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
