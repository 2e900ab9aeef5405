// What forward and backward of batch_norm_act share for one SIMD level.  Included by batch_norm_act_kernels.h only.

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

// Calls f(kind, residual) with the job's activation and whether it has a residual, as constants.
template <class T, class F>
void for_kind(const Job<T>& job, const F& f) {
  const auto with = [&](auto kind) { job.residual ? f(kind, std::true_type()) : f(kind, std::false_type()); };
  if (job.activation == Activation::relu)
    with(std::integral_constant<Activation, Activation::relu>());
  else if (job.activation == Activation::silu)
    with(std::integral_constant<Activation, Activation::silu>());
  else
    with(std::integral_constant<Activation, Activation::leaky_relu>());
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
