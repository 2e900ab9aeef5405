// What forward and backward of group_norm_act share for one SIMD level.  Included by group_norm_act_kernels.h only.

template <bool Tail, class T>
SIMD_INLINE void write(const Data<T>& data, T* p, Vec<Acc<T>> v, int n) {
  if constexpr (Tail)
    store_first(p, v, n);
  else if (data.streaming)
    stream(p, v);
  else
    store(p, v);
}

// Weights as the normalised values see them: weight * (1 + scale) of `n` channels of a sample.
template <class T>
void weights(const Job<T>& job, int64_t sample, int64_t channel, int64_t n, Acc<T>* out) {
  using A = Acc<T>;
  if (job.weight)
    std::copy_n(job.weight + channel, n, out);
  else
    std::fill_n(out, n, A(1));
  if (const A* scale = job.scale) {
    scale += sample * job.plan.channels + channel;
    for (int64_t c = 0; c < n; ++c) out[c] *= 1 + scale[c];
  }
}

// Likewise bias * (1 + scale) + shift.
template <class T>
void biases(const Job<T>& job, int64_t sample, int64_t channel, int64_t n, Acc<T>* out) {
  using A = Acc<T>;
  const int64_t at = sample * job.plan.channels + channel;
  if (job.bias)
    std::copy_n(job.bias + channel, n, out);
  else
    std::fill_n(out, n, A(0));
  if (const A* scale = job.scale; scale && job.bias)
    for (int64_t c = 0; c < n; ++c) out[c] *= 1 + scale[at + c];
  if (const A* shift = job.shift)
    for (int64_t c = 0; c < n; ++c) out[c] += shift[at + c];
}

// What an elementwise run needs, in vectors: of one channel, or of the columns from j on.
template <class A>
struct Parameters {
  Vec<A> mean, scale, bias, by_centred, constant;
};
template <bool Backward, class T>
SIMD_INLINE Parameters<Acc<T>> plane_parameters(const Job<T>& job, int64_t unit, Acc<T> weight, Acc<T> bias) {
  Parameters<Acc<T>> p;
  p.mean = splat(job.mean[unit]);
  p.scale = splat(job.invstd[unit] * weight);
  p.bias = splat(bias);
  if constexpr (Backward) {
    p.by_centred = splat(job.by_centred[unit]);
    p.constant = splat(job.constant[unit]);
  }
  return p;
}
template <bool Backward, class A>
SIMD_INLINE Parameters<A> column_parameters(const Columns<A>& columns, int64_t j) {
  Parameters<A> p;
  p.mean = load(columns.mean + j);
  p.scale = load(columns.scale + j);
  p.bias = load(columns.bias + j);
  if constexpr (Backward) {
    p.by_centred = load(columns.by_centred + j);
    p.constant = load(columns.constant + j);
  }
  return p;
}

// Planes view: calls f(piece, weight, bias) for some pieces of a group.
template <class T, class F>
SIMD_INLINE void for_pieces(const Job<T>& job, int64_t unit, int64_t first, int64_t last, const F& f) {
  const Plan& plan = job.plan;
  const int64_t sample = unit / plan.groups, channel = unit % plan.groups * plan.per_group;
  Acc<T> weight[max_block], bias[max_block];
  for (int64_t k = first; k < last;) {
    const int64_t c = k / plan.pieces, n = std::min<int64_t>(max_block, (last - 1) / plan.pieces + 1 - c);
    weights(job, sample, channel + c, n, weight);
    biases(job, sample, channel + c, n, bias);
    for (const int64_t end = std::min(last, (c + n) * plan.pieces); k < end; ++k)
      f(k, weight[k / plan.pieces - c], bias[k / plan.pieces - c]);
  }
}

// Spreads one value per group over the columns of a row.
template <class A, class B>
void set_groups(const Plan& plan, const A* value, B* column) {
  if (plan.per_group == 1)
    std::copy_n(value, plan.groups, column);
  else
    for (int64_t g = 0; g < plan.groups; ++g) std::fill_n(column + g * plan.per_group, plan.per_group, B(value[g]));
}
// Repeats a period of columns for the rest of a row.
template <class A>
void repeat(const Plan& plan, A* column) {
  for (int64_t f = 1; f < plan.fold; ++f) std::copy_n(column, plan.channels, column + f * plan.channels);
}
// The reverse: adds all periods to the first.
inline void add_repeats(const Plan& plan, double* column) {
  for (int64_t f = 1; f < plan.fold; ++f)
    for (int64_t c = 0; c < plan.channels; ++c) column[c] += column[f * plan.channels + c];
}
inline double sum_of(const double* p, int64_t n) {
  double sums[8] = {}, sum = 0;
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int k = 0; k < 8; ++k) sums[k] += p[i + k];
  for (; i < n; ++i) sum += p[i];
  for (double part : sums) sum += part;
  return sum;
}

template <class T>
void set_columns(const Job<T>& job, int64_t sample, const Columns<Acc<T>>& columns) {
  const Plan& plan = job.plan;
  set_groups(plan, job.mean + sample * plan.groups, columns.mean);
  set_groups(plan, job.invstd + sample * plan.groups, columns.scale);
  weights(job, sample, 0, plan.channels, columns.bias);
  for (int64_t c = 0; c < plan.channels; ++c) columns.scale[c] *= columns.bias[c];
  biases(job, sample, 0, plan.channels, columns.bias);
  for (Acc<T>* column : {columns.mean, columns.scale, columns.bias}) repeat(plan, column);
}

// Likewise what backward's sums give.
template <class T>
void set_corrections(const Job<T>& job, int64_t sample, const Columns<Acc<T>>& columns) {
  const Plan& plan = job.plan;
  set_groups(plan, job.constant + sample * plan.groups, columns.constant);
  set_groups(plan, job.by_centred + sample * plan.groups, columns.by_centred);
  for (Acc<T>* column : {columns.constant, columns.by_centred}) repeat(plan, column);
}

// What the activation is applied to.  Backward recomputes it, and has to find the sign that forward found: this is the
// one expression of both.  x - mean comes first because x * scale + shift would cancel where |mean| >> std.
template <bool Tail, bool Residual, class T>
SIMD_INLINE Vec<Acc<T>> pre_activation(const Data<T>& data, const Parameters<Acc<T>>& p, const Vec<Acc<T>>& centred,
                                       int64_t i, int n) {
  const Vec<Acc<T>> v = mul_add(centred, p.scale, p.bias);
  if constexpr (Residual) return v + read<Tail>(data.residual + i, n);
  return v;
}
