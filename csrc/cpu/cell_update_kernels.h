// Kernels of the cell updates for one SIMD level.  Included by for_each_simd_level.h only.

#include "recurrent_formulas.h"

// Gate g of element j of a group is at [g * inner + j]; a missing gradient is zero.

template <bool Tail, class T>
SIMD_INLINE Vec<Acc<T>> read_or_zero(const T* p, int64_t at, int n) {
  return p ? read<Tail>(p + at, n) : Vec<Acc<T>>{};
}

template <bool Tail, class T>
SIMD_INLINE void update(const LstmUpdate<T>& job, int64_t group, int64_t j, int n) {
  using A = Acc<T>;
  const int64_t inner = job.inner, gate = group * 4 * inner + j, at = group * inner + j;
  const T* const p = job.gates + gate;
  const Vec<A> c = read<Tail>(job.c + at, n);
  LstmStep<A> v = lstm_step<A>(read<Tail>(p, n), read<Tail>(p + inner, n), read<Tail>(p + 2 * inner, n),
                               read<Tail>(p + 3 * inner, n), c);
  if (job.h) {
    write<Tail>(job.h + at, v.h, n);
    write<Tail>(job.c_new + at, v.c, n);
    return;
  }
  Vec<A> tanh_c = tanh<A>(v.c);
  if (!job.grad_h) v.o = tanh_c = Vec<A>{};  // else zero times what is not finite
  const LstmGradients<A> d =
      lstm_gradients<A>(v, c, tanh_c, read_or_zero<Tail>(job.grad_h, at, n), read_or_zero<Tail>(job.grad_c_new, at, n));
  T* const out = job.grad_gates + gate;
  write<Tail>(out, d.i, n);
  write<Tail>(out + inner, d.f, n);
  write<Tail>(out + 2 * inner, d.g, n);
  write<Tail>(out + 3 * inner, d.o, n);
  write<Tail>(job.grad_c + at, d.c, n);
}

template <bool Tail, class T>
SIMD_INLINE void update(const GruUpdate<T>& job, int64_t group, int64_t j, int n) {
  using A = Acc<T>;
  const int64_t inner = job.inner, gate = group * 3 * inner + j, at = group * inner + j;
  const T *const x = job.gates_x + gate, *const y = job.gates_h + gate;
  const Vec<A> h = read<Tail>(job.h + at, n);
  const GruStep<A> v =
      gru_step<A>(read<Tail>(x, n) + read<Tail>(y, n), read<Tail>(x + inner, n) + read<Tail>(y + inner, n),
                  read<Tail>(x + 2 * inner, n), read<Tail>(y + 2 * inner, n), h);
  if (job.h_new) {
    write<Tail>(job.h_new + at, v.h, n);
    return;
  }
  const GruGradients<A> d = gru_gradients<A>(v, h, read<Tail>(job.grad + at, n));
  T *const out_x = job.grad_gates_x + gate, *const out_h = job.grad_gates_h + gate;
  write<Tail>(out_x, d.r, n);
  write<Tail>(out_x + inner, d.z, n);
  write<Tail>(out_x + 2 * inner, d.n, n);
  write<Tail>(out_h, d.r, n);
  write<Tail>(out_h + inner, d.z, n);
  write<Tail>(out_h + 2 * inner, d.hn, n);
  write<Tail>(job.grad_h + at, d.h, n);
}

// Elements [first, last) of all groups' elements.
template <class Job>
void update_cells(const Job& shared, int64_t first, int64_t last) {
  const Job job = shared;
  constexpr int L = lanes<Acc<typename Job::Element>>;
  while (first < last) {
    const int64_t group = first / job.inner, end = std::min(job.inner, last - group * job.inner);
    int64_t j = first - group * job.inner;
    for (; j + L <= end; j += L) update<false>(job, group, j, 0);
    if (j < end) update<true>(job, group, j, end - j);
    first = group * job.inner + end;
  }
}
