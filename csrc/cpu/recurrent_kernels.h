// Kernels of the recurrent family for one SIMD level; see recurrent.cpp for panels, slots, tiles and steps.
// Included by for_each_simd_level.h, and with SIMD_BF16_PRODUCTS for machines that multiply pairs of bfloat16.

#include "vec_math.h"

// One vector of elements, or its first n lanes.
template <bool Tail, class T>
SIMD_INLINE Vec<Acc<T>> read(const T* p, int n) {
  if constexpr (Tail) return load_first(p, n);
  return load(p);
}
template <bool Tail, class T>
SIMD_INLINE void write(T* p, Vec<Acc<T>> v, int n) {
  if constexpr (Tail)
    store_first(p, v, n);
  else
    store(p, v);
}

// A vector of hidden units that products will read.  A pair of bfloat16 can reach one lane past the last unit: there it
// meets a weight of zero, which only a finite value leaves without effect, and where something is infinite the sums of
// the lanes without a unit are NaN.
template <bool Tail, class V>
SIMD_INLINE V without_padding(V v, int n) {
  if constexpr (Tail) {
    using A = std::decay_t<decltype(v[0])>;
    return keep_first<A>(v, n);
  } else {
    return v;
  }
}

// n elements, converted to or from the type of the arithmetic, or copied.
template <class T, class To>
void convert(const T* from, int64_t n, To* to) {
  constexpr int L = lanes<Acc<T>>;
  int64_t i = 0;
  for (; i + L <= n; i += L) store(to + i, load(from + i));
  if (i < n) store_first(to + i, load_first(from + i, n - i), n - i);
}

// Rows of `width` elements, of matrices with strides of their own.
template <class T, class To>
void convert_rows(const T* from, int64_t from_stride, int64_t rows, int64_t width, To* to, int64_t to_stride) {
  for (int64_t r = 0; r < rows; ++r) convert(from + r * from_stride, width, to + r * to_stride);
}

// Calls f(0), ..., f(N - 1) with constants for arguments: arrays that are indexed by them become registers.
template <class F, int... I>
SIMD_INLINE void unroll(const F& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>()), ...);
}
template <int N, class F>
SIMD_INLINE void unroll(const F& f) {
  unroll(f, std::make_integer_sequence<int, N>());
}

// Products with panels.

// What is multiplied: a vector of factors from a panel, and one factor for all its lanes from a row.  With bfloat16 a
// factor is a pair of values, of neighbouring k, and the product is their dot product.
template <class E>
struct Product {
  typedef Vec<E> Factors;
  static SIMD_INLINE Factors load_panel(const E* p) { return load(p); }
  static SIMD_INLINE Factors splat_row(const E* p) { return splat(*p); }
  static SIMD_INLINE Vec<E> add(Factors a, Factors b, Vec<E> sum) { return mul_add(a, b, sum); }
};
#if defined(SIMD_BF16_PRODUCTS)
template <>
struct Product<BFloat16> {
  typedef __m512i Factors;
  static SIMD_INLINE Factors load_panel(const BFloat16* p) { return _mm512_loadu_si512(p); }
  static SIMD_INLINE Factors splat_row(const BFloat16* p) {
    int32_t pair;
    __builtin_memcpy(&pair, p, sizeof(pair));
    return _mm512_set1_epi32(pair);
  }
  static SIMD_INLINE Vec<float> add(Factors a, Factors b, Vec<float> sum) {
    return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }
};

// Every element of a with that of b above it.
SIMD_INLINE __m512i make_pairs(Narrow a, Narrow b) {
  typedef VecType<float>::bits Bits;
  const Bits lower = (Bits)_mm512_maskz_cvtepu16_epi32(all_lanes, a);
  return (__m512i)(lower | (Bits)_mm512_maskz_cvtepu16_epi32(all_lanes, b) << 16);
}
#endif

// Rows that share one reading of the panel: as many sums as the registers hold.
template <int V>
constexpr int max_rows = SIMD_BYTES == 64 ? (V == 4 ? 6 : 8)
                                          : (V == 4   ? 2
                                             : V == 3 ? 4
                                                      : 6);

// Rows whose sums are kept between product and formulas.
constexpr int64_t group_rows = 32;

template <class A>
void make_layout(Layout& l, int gates, int64_t width, int64_t depth) {
  constexpr int widest = SIMD_BYTES == 64 ? 4 : 2;
  l.lanes = lanes<A>;
  l.gates = gates;
  l.width = width;
  l.depth = depth;
  const int64_t vectors = (width + l.lanes - 1) / l.lanes;
  l.unit_vectors = gates > 1 ? 1 : static_cast<int>(std::min<int64_t>(widest, vectors));
  l.panels = (vectors + l.unit_vectors - 1) / l.unit_vectors;
}

// sums[row][v] += rows[row][k] * panel[k][v] over k.  Every sum over k is one chain, whatever R is: how rows are
// grouped changes no bit.  depth is a multiple of factor_values<E>.
template <class E, int V, int R>
void multiply(const E* panel, int64_t depth, const E* rows, int64_t row_stride, int64_t k_stride, Acc<E>* sums,
              int64_t sum_stride) {
  using A = Acc<E>;
  using P = Product<E>;
  constexpr int L = lanes<A>, K = factor_values<E>;
  Vec<A> sum[R * V];
  unroll<R * V>([&](auto i) __attribute__((always_inline)) { sum[i] = Vec<A>{}; });
  for (int64_t k = 0; k < depth; k += K) {
    typename P::Factors w[V];
    unroll<V>([&](auto v) __attribute__((always_inline)) { w[v] = P::load_panel(panel + (k * V + v * K) * L); });
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      const typename P::Factors a = P::splat_row(rows + r * row_stride + k * k_stride);
      unroll<V>([&](auto v) __attribute__((always_inline)) { sum[r * V + v] = P::add(a, w[v], sum[r * V + v]); });
    });
  }
  unroll<R * V>([&](auto i) __attribute__((always_inline)) {
    A* const to = sums + i / V * sum_stride + i % V * L;
    store(to, load(to) + sum[i]);
  });
}

template <class E, int V, int R>
void multiply_some(int count, const E* panel, int64_t depth, const E* rows, int64_t row_stride, Acc<E>* sums,
                   int64_t sum_stride) {
  if constexpr (R > 1)
    if (count < R) return multiply_some<E, V, R - 1>(count, panel, depth, rows, row_stride, sums, sum_stride);
  multiply<E, V, R>(panel, depth, rows, row_stride, 1, sums, sum_stride);
}

// The same for any number of rows: the panel's part in the L1 cache serves all of them before the next part is read.
template <class E, int V>
void multiply_all(const E* panel, int64_t depth, const E* rows, int64_t row_stride, int64_t count, Acc<E>* sums,
                  int64_t sum_stride) {
  constexpr int64_t part = 32768 / (V * SIMD_BYTES) * factor_values<E>;
  const int64_t blocks = (count + max_rows<V> - 1) / max_rows<V>;
  for (int64_t k = 0; k < depth; k += part)
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t first = i * count / blocks, last = (i + 1) * count / blocks;
      multiply_some<E, V, max_rows<V>>(last - first, panel + k * V * lanes<Acc<E>>, std::min(part, depth - k),
                                       rows + first * row_stride + k, row_stride, sums + first * sum_stride,
                                       sum_stride);
    }
}

// sums += rows times the panel's k from first_k on.
template <class E>
void multiply_panel(const Layout& layout, int64_t p, const E* panels, int64_t first_k, int64_t depth, const E* rows,
                    int64_t row_stride, int64_t count, Acc<E>* sums, int64_t sum_stride) {
  const int V = layout.vectors(p);
  const E* const panel = panels + layout.panel_offset(p) + first_k * V * lanes<Acc<E>>;
  switch (V) {
    case 1:
      return multiply_all<E, 1>(panel, depth, rows, row_stride, count, sums, sum_stride);
    case 2:
      return multiply_all<E, 2>(panel, depth, rows, row_stride, count, sums, sum_stride);
    case 3:
      return multiply_all<E, 3>(panel, depth, rows, row_stride, count, sums, sum_stride);
    default:
      return multiply_all<E, 4>(panel, depth, rows, row_stride, count, sums, sum_stride);
  }
}

// Forward: panel[k][gate, unit] = weight[gate, unit][k], factors transposed in blocks of 4 x 4; first_gate comes first.
// A weight's row has `columns` values, the panel's k go on to the next multiple of factor_values with zeros.
template <class E, class T>
void pack_transposed(const Layout& layout, int64_t p, const T* weight, int64_t columns, int first_gate, E* panels) {
  using Factor = Acc<E>;  // as long as a pair of bfloat16
  typedef Factor Quad __attribute__((vector_size(4 * sizeof(Factor))));
  constexpr int L = lanes<Acc<E>>, K = factor_values<E>, block = 64;
  alignas(64) Factor strip[L][block];
  const int64_t width = layout.vectors(p) * L;
  Factor* const panel = reinterpret_cast<Factor*>(panels + layout.panel_offset(p));
  for (int v = 0; v < layout.vectors(p); ++v) {
    const int64_t units = layout.units(p), gate = (v / units + first_gate) % layout.gates;
    const int64_t unit = (p * layout.unit_vectors + v % units) * L, valid = std::min<int64_t>(L, layout.width - unit);
    const T* const from = weight + (gate * layout.width + unit) * columns;
    for (int64_t k = 0; k < layout.depth / K; k += block) {
      const int64_t n = std::min<int64_t>(block, layout.depth / K - k);
      for (int i = 0; i < L; ++i) {
        if (i >= valid || (k + n) * K > columns) std::fill_n(strip[i], n, Factor(0));
        if (i < valid)
          convert(from + i * columns + k * K, std::min(n * K, columns - k * K), reinterpret_cast<E*>(strip[i]));
      }
      Factor* const to = panel + k * width + v * L;
      int64_t j = 0;
      if constexpr (L % 4 == 0) {
        for (; j + 4 <= n; j += 4)
          for (int i = 0; i < L; i += 4) {
            Quad a[4];
            for (int c = 0; c < 4; ++c) __builtin_memcpy(&a[c], &strip[i + c][j], sizeof(Quad));
            for (int c = 0; c < 4; ++c) {
              const Quad column = {a[0][c], a[1][c], a[2][c], a[3][c]};
              __builtin_memcpy(to + (j + c) * width + i, &column, sizeof(Quad));
            }
          }
      }
      for (; j < n; ++j)
        for (int i = 0; i < L; ++i) to[j * width + i] = strip[i][j];
    }
  }
}

// Rows k of a matrix, from `columns` values on, as factors: to[k][0 .. width).
template <class E, class Row>
SIMD_INLINE void pack_rows(int64_t depth, int64_t width, int64_t valid, const Row& row, E* to) {
  if constexpr (factor_values<E> == 1) {
    for (int64_t k = 0; k < depth; ++k, to += width) {
      convert(row(k), valid, to);
      std::fill(to + valid, to + width, E(0));
    }
  } else {
#if defined(SIMD_BF16_PRODUCTS)
    constexpr int L = lanes<float>;
    for (int64_t k = 0; k < depth; k += 2)
      for (int64_t j = 0; j < width; j += L, to += 2 * L) {
        const __mmask16 mask = valid - j >= L ? all_lanes : static_cast<__mmask16>((1u << (valid - j)) - 1);
        const Narrow a = _mm256_maskz_loadu_epi16(mask, row(k) + j);
        const Narrow b = k + 1 < depth ? _mm256_maskz_loadu_epi16(mask, row(k + 1) + j) : _mm256_setzero_si256();
        _mm512_storeu_si512(to, make_pairs(a, b));
      }
#endif
  }
}

// Backward: panel[gate, k][unit] = weight[gate, k][unit], `rows` values of k for each gate; first_gate comes first.
template <class E, class T>
void pack(const Layout& layout, int64_t p, const T* weight, int64_t rows, int gates, int first_gate, E* panels) {
  const int64_t width = layout.vectors(p) * lanes<Acc<E>>, unit = p * layout.unit_vectors * lanes<Acc<E>>;
  for (int g = 0; g < gates; ++g) {
    const T* const from = weight + (g + first_gate) % gates * rows * layout.width + unit;
    pack_rows<E>(
        rows, width, std::min(width, layout.width - unit), [&](int64_t k) { return from + k * layout.width; },
        panels + layout.panel_offset(p) + g * (layout.depth / gates) * width);
  }
}

// Sequence b's row of a state, from the (batch, hidden) tensor `from`, or zero.
template <class Job, class T, class State>
void begin_state(const Job& job, const T* from, int64_t b, State* state) {
  std::fill_n(state + b * job.stride, job.stride, State(0));
  if (from) convert(from + b * job.hidden, job.hidden, state + b * job.stride);
}

// The cells' formulas.

template <class A>
struct LstmStep {
  Vec<A> i, f, g, o, c, h;
};
// From the gates before their activations, and the cell state before the step.
template <class A>
SIMD_INLINE LstmStep<A> lstm_step(Vec<A> i, Vec<A> f, Vec<A> g, Vec<A> o, Vec<A> c) {
  LstmStep<A> s{sigmoid<A>(i), sigmoid<A>(f), tanh<A>(g), sigmoid<A>(o), c, c};
  s.c = mul_add(s.f, c, s.i * s.g);
  s.h = s.o * tanh<A>(s.c);
  return s;
}

// Gradients at the gates before their activations, and at the cell state before the step.
template <class A>
struct LstmGradients {
  Vec<A> i, f, g, o, c;
};
// From the gates after their activations, c before the step, tanh(c) after it, and the gradients at h and c after it.
template <class A>
SIMD_INLINE LstmGradients<A> lstm_gradients(const LstmStep<A>& s, Vec<A> c_before, Vec<A> tanh_c, Vec<A> dh,
                                            Vec<A> dc) {
  const Vec<A> one = splat(A(1));
  dc = mul_add(dh * s.o, mul_add(-tanh_c, tanh_c, one), dc);
  return {dc * s.g * (s.i * (1 - s.i)), dc * c_before * (s.f * (1 - s.f)), dc * s.i * mul_add(-s.g, s.g, one),
          dh * tanh_c * (s.o * (1 - s.o)), dc * s.f};
}

template <class A>
struct GruStep {
  Vec<A> r, z, n, hn, h;
};
// From r and z before their activations, the two parts of n before its activation, and the state before the step.
template <class A>
SIMD_INLINE GruStep<A> gru_step(Vec<A> r, Vec<A> z, Vec<A> xn, Vec<A> hn, Vec<A> h) {
  GruStep<A> s{sigmoid<A>(r), sigmoid<A>(z), h, hn, h};
  s.n = tanh<A>(mul_add(s.r, hn, xn));
  s.h = mul_add(s.z, h - s.n, s.n);
  return s;
}

// Gradients at r, z and n before their activations, at hn, and at the state before the step.
template <class A>
struct GruGradients {
  Vec<A> r, z, n, hn, h;
};
template <class A>
SIMD_INLINE GruGradients<A> gru_gradients(const GruStep<A>& s, Vec<A> h_before, Vec<A> dh) {
  const Vec<A> dn = dh * (1 - s.z) * mul_add(-s.n, s.n, splat(A(1)));
  return {dn * s.hn * (s.r * (1 - s.r)), dh * (h_before - s.n) * (s.z * (1 - s.z)), dn, dn * s.r, dh * s.z};
}

// Forward.

// One vector of hidden units of sequence b, from its gates' sums; `row` is the step's row of the sequence.
template <Cell C, bool Tail, class T, class E>
SIMD_INLINE void forward_units(const Forward<T, E>& job, const Acc<T>* sum, int64_t gate_stride, const E* state,
                               E* next, int64_t b, int64_t row, int64_t unit, int n) {
  using A = Acc<T>;
  using V = Vec<A>;
  const int64_t H = job.hidden, at = b * job.stride + unit;
  V h;
  if constexpr (C == Cell::rnn_tanh) {
    h = tanh<A>(load(sum));
  } else if constexpr (C == Cell::rnn_relu) {
    const V x = load(sum);
    h = x <= 0 ? V{} : x;
  } else if constexpr (C == Cell::gru) {
    V before;
    if constexpr (std::is_same<E, A>::value)
      before = load(state + at);
    else
      before = load(job.cell + at);
    const GruStep<A> v = gru_step<A>(load(sum + gate_stride), load(sum + 2 * gate_stride), load(sum),
                                     load(sum + 3 * gate_stride), before);
    h = v.h;
    if constexpr (!std::is_same<E, A>::value) store(job.cell + at, h);
    if (job.reserve) {
      T* const p = job.reserve + row * 4 * H + unit;
      write<Tail>(p, v.r, n);
      write<Tail>(p + H, v.z, n);
      write<Tail>(p + 2 * H, v.n, n);
      write<Tail>(p + 3 * H, v.hn, n);
    }
  } else {
    const LstmStep<A> v = lstm_step<A>(load(sum), load(sum + gate_stride), load(sum + 2 * gate_stride),
                                       load(sum + 3 * gate_stride), load(job.cell + at));
    h = v.h;
    store(job.cell + at, v.c);
    if (job.reserve) {
      T* const p = job.reserve + row * 5 * H + unit;
      write<Tail>(p, v.i, n);
      write<Tail>(p + H, v.f, n);
      write<Tail>(p + 2 * H, v.g, n);
      write<Tail>(p + 3 * H, v.o, n);
      write<Tail>(p + 4 * H, v.c, n);
    }
  }
  write<Tail>(job.output + row * job.output_stride + unit, h, n);
  if (job.output_copy) write<Tail>(job.output_copy + row * job.output_stride + unit, h, n);
  store(next + at, without_padding<Tail>(h, n));
}

// Panel p's sums for the rows [row, row + count) of the data, but for the products with the states.
template <int Slots, class T, class E>
void begin_sums(const Forward<T, E>& job, int64_t p, int64_t row, int64_t count, Acc<T>* sums, int64_t sum_stride) {
  constexpr int L = lanes<Acc<T>>;
  const int units = job.from_state.units(p);
  const Acc<T>* const bias = job.bias + p * job.from_state.unit_vectors * L;
  for (int64_t i = 0; i < count; ++i)
    for (int slot = 0; slot < Slots; ++slot)
      for (int u = 0; u < units; ++u)
        store(sums + i * sum_stride + (slot * units + u) * L, load(bias + slot * job.stride + u * L));
  multiply_panel(job.from_input, p, job.input_panels, 0, job.from_input.depth, job.input + row * job.input_stride,
                 job.input_stride, count, sums, sum_stride);
}

// Where panel p's part of `projected` begins: panels lie one after the other, their rows are as wide as the sums.
template <class T, class E>
SIMD_INLINE Acc<T>* projected_panel(const Forward<T, E>& job, int64_t p) {
  const int64_t units = p * job.from_state.unit_vectors * lanes<Acc<T>>;
  return job.projected + units * slot_count(job.kind) * job.offsets[job.steps];
}

// The same for all rows of all steps.
template <class T, class E>
void project_panel(const Forward<T, E>& job, int64_t p) {
  const int64_t width = slot_count(job.kind) * job.from_state.units(p) * lanes<Acc<T>>, rows = job.offsets[job.steps];
  for (int64_t row = 0; row < rows; row += group_rows) {
    const int64_t count = std::min(group_rows, rows - row);
    Acc<T>* const sums = projected_panel(job, p) + row * width;
    if (slot_count(job.kind) == 1)
      begin_sums<1>(job, p, row, count, sums, width);
    else
      begin_sums<4>(job, p, row, count, sums, width);
  }
}

// Panel p of step s for the sequences [first, last).
template <Cell C, class T, class E>
void forward_panel(const Forward<T, E>& shared, int64_t s, int64_t p, int64_t first, int64_t last) {
  using A = Acc<T>;
  constexpr int L = lanes<A>;
  const Forward<T, E> job = shared;  // copied: the compiler need not expect the stores to change it
  const Layout& layout = job.from_state;
  const int64_t t = job.time(s), unit0 = p * layout.unit_vectors * L, rows = job.offsets[t];
  const int units = layout.units(p);
  const int64_t gate_stride = units * L, sum_stride = slot_count(C) * gate_stride;
  last = std::min(last, job.offsets[t + 1] - rows);
  const E* const state = job.state[s % 2];
  E* const next = job.state[(s + 1) % 2];
  alignas(64) A buffer[group_rows * 4 * L];
  for (int64_t b0 = first; b0 < last; b0 += group_rows) {
    const int64_t b1 = std::min(b0 + group_rows, last);
    A* sums = buffer;
    if (job.projected)
      sums = projected_panel(job, p) + (rows + b0) * sum_stride;
    else
      begin_sums<slot_count(C)>(job, p, rows + b0, b1 - b0, sums, sum_stride);
    multiply_panel(layout, p, job.state_panels, 0, layout.depth, state + b0 * job.stride, job.stride, b1 - b0,
                   sums + (slot_count(C) - gate_count(C)) * gate_stride, sum_stride);
    for (int64_t b = b0; b < b1; ++b)
      for (int u = 0; u < units; ++u) {
        const int64_t unit = unit0 + u * L, n = job.hidden - unit;
        const A* const sum = sums + (b - b0) * sum_stride + u * L;
        if (n >= L)
          forward_units<C, false>(job, sum, gate_stride, state, next, b, rows + b, unit, 0);
        else
          forward_units<C, true>(job, sum, gate_stride, state, next, b, rows + b, unit, n);
      }
  }
}

template <class T, class E>
void forward_panel(const Forward<T, E>& job, int64_t s, int64_t p, int64_t first, int64_t last) {
  switch (job.kind) {
    case Cell::rnn_tanh:
      return forward_panel<Cell::rnn_tanh>(job, s, p, first, last);
    case Cell::rnn_relu:
      return forward_panel<Cell::rnn_relu>(job, s, p, first, last);
    case Cell::gru:
      return forward_panel<Cell::gru>(job, s, p, first, last);
    default:
      return forward_panel<Cell::lstm>(job, s, p, first, last);
  }
}

// Initial states of the sequences [first, last).  Both of h's buffers: a sequence may begin at any step.
template <class T, class E>
void begin_forward(const Forward<T, E>& job, int64_t first, int64_t last) {
  for (int64_t b = first; b < last; ++b) {
    for (E* state : job.state) begin_state(job, job.h0, b, state);
    begin_state(job, job.kind == Cell::lstm ? job.c0 : job.h0, b, job.cell);
  }
}

// Final states of the sequences of [first, last) that step s is the last of.
template <class T, class E>
void end_forward(const Forward<T, E>& job, int64_t s, int64_t first, int64_t last) {
  const int64_t H = job.hidden;
  last = std::min(last, job.active(s));
  if (s + 1 < job.steps) first = std::max(first, job.active(s + 1));
  for (int64_t b = first; b < last; ++b) {
    convert(job.state[(s + 1) % 2] + b * job.stride, H, job.h_n + b * H);
    if (job.kind == Cell::lstm) convert(job.cell + b * job.stride, H, job.c_n + b * H);
  }
}

template <class T, class E>
void forward_tile(const Forward<T, E>& job, int64_t first, int64_t last) {
  begin_forward(job, first, last);
  for (int64_t s = 0; s < job.steps; ++s) {
    for (int64_t p = 0; p < job.panels(); ++p) forward_panel(job, s, p, first, last);
    end_forward(job, s, first, last);
  }
}

// Backward.

// Gradients at the gates of one vector of hidden units of sequence b.  `previous` is the row of the step before in the
// forward order, or -1 where that is the initial state.
template <Cell C, bool Tail, class T, class E>
SIMD_INLINE void backward_units(const Backward<T, E>& job, int64_t b, int64_t row, int64_t previous, int64_t unit,
                                int n) {
  using A = Acc<T>;
  using V = Vec<A>;
  constexpr int G = gate_count(C);
  const int64_t H = job.hidden, at = b * job.stride + unit;
  V dh = load(job.dh + at);
  if (job.grad_output) dh += read<Tail>(job.grad_output + row * job.output_stride + unit, n);
  V rest{};  // what reaches the step before past the product with weight_hh
  V gates[G + 1];
  if constexpr (C == Cell::rnn_tanh) {
    const V y = read<Tail>(job.output + row * job.output_stride + unit, n);
    gates[0] = dh * mul_add(-y, y, splat(A(1)));
  } else if constexpr (C == Cell::rnn_relu) {
    const V y = read<Tail>(job.output + row * job.output_stride + unit, n);
    gates[0] = y <= 0 ? V{} : dh;
  } else if constexpr (C == Cell::gru) {
    const T* const p = job.reserve + row * 4 * H + unit;
    const GruStep<A> v{read<Tail>(p, n), read<Tail>(p + H, n), read<Tail>(p + 2 * H, n), read<Tail>(p + 3 * H, n), {}};
    const V before = read<Tail>((previous < 0 ? job.h0 + b * H : job.output + previous * job.output_stride) + unit, n);
    const GruGradients<A> d = gru_gradients<A>(v, before, dh);
    rest = d.h;
    gates[0] = d.r;
    gates[1] = d.z;
    gates[2] = d.n;
    gates[3] = d.hn;
  } else {
    const T* const p = job.reserve + row * 5 * H + unit;
    const LstmStep<A> v{
        read<Tail>(p, n), read<Tail>(p + H, n), read<Tail>(p + 2 * H, n), read<Tail>(p + 3 * H, n), {}, {}};
    const V before = read<Tail>((previous < 0 ? job.c0 + b * H : job.reserve + (previous * 5 + 4) * H) + unit, n);
    const LstmGradients<A> d = lstm_gradients<A>(v, before, tanh<A>(read<Tail>(p + 4 * H, n)), dh, load(job.dc + at));
    store(job.dc + at, d.c);
    gates[0] = d.i;
    gates[1] = d.f;
    gates[2] = d.g;
    gates[3] = d.o;
  }
  store(job.dh + at, rest);
  E* const to = job.gates + row * job.gate_stride + unit;
  if constexpr (C == Cell::gru) store(to, without_padding<Tail>(gates[3], n));
  for (int g = 0; g < G; ++g) store(to + (g + slot_count(C) - G) * job.stride, without_padding<Tail>(gates[g], n));
}

// sums += gradients at the gates, from `slot` on, times panel p.
template <Cell C, class T, class E>
void multiply_gates(const Backward<T, E>& job, const Layout& layout, int64_t p, const E* panels, const E* gates,
                    int slot, int64_t count, Acc<T>* sums, int64_t sum_stride) {
  const int64_t depth = layout.depth / gate_count(C);
  for (int g = 0; g < gate_count(C); ++g)
    multiply_panel(layout, p, panels, g * depth, depth, gates + (slot + g) * job.stride, job.gate_stride, count, sums,
                   sum_stride);
}

// The gradient at the input of the rows [first, last) of the data, the part of panel p.
template <Cell C, class T, class E>
void input_gradient(const Backward<T, E>& job, int64_t p, int64_t first, int64_t last) {
  using A = Acc<T>;
  constexpr int L = lanes<A>;
  const Layout& layout = job.to_input;
  const int64_t feature = p * layout.unit_vectors * L, width = layout.vectors(p) * L;
  const int64_t valid = std::min(width, job.features - feature);
  alignas(64) A sums[group_rows * 4 * L];
  for (int64_t row = first; row < last; row += group_rows) {
    const int64_t count = std::min(group_rows, last - row);
    std::fill_n(sums, count * width, A(0));
    multiply_gates<C>(job, layout, p, job.input_panels, job.gates + row * job.gate_stride,
                      slot_count(C) - gate_count(C), count, sums, width);
    for (int64_t i = 0; i < count; ++i)
      convert(sums + i * width, valid, job.grad_input + (row + i) * job.features + feature);
  }
}

template <class T, class E>
void input_gradient(const Backward<T, E>& job, int64_t p, int64_t first, int64_t last) {
  switch (gate_count(job.kind)) {
    case 1:
      return input_gradient<Cell::rnn_tanh>(job, p, first, last);
    case 3:
      return input_gradient<Cell::gru>(job, p, first, last);
    default:
      return input_gradient<Cell::lstm>(job, p, first, last);
  }
}

// Panel p of step s for the sequences [first, last): the gradients at step s - 1's gates times weight_hh complete dh,
// from which come the gradients at step s's gates.  The panels after those of weight_hh make the gradient at step
// s - 1's input.  s counts from the last step of forward; after it come the products alone, for the initial states.
template <Cell C, class T, class E>
void backward_panel(const Backward<T, E>& shared, int64_t s, int64_t p, int64_t first, int64_t last) {
  constexpr int L = lanes<Acc<T>>;
  const Backward<T, E> job = shared;
  const int64_t products = s > 0 ? std::min(last, job.active(s - 1)) : 0;
  const int64_t updates = s < job.steps ? std::min(last, job.active(s)) : 0;
  if (p >= job.to_state.panels) {
    const int64_t row = s > 0 ? job.offsets[job.time(s - 1)] : 0;
    input_gradient<C>(job, p - job.to_state.panels, row + first, row + products);
    return;
  }
  const Layout& layout = job.to_state;
  const int64_t unit0 = p * layout.unit_vectors * L;
  for (int64_t b0 = first; b0 < last; b0 += group_rows) {
    const int64_t b1 = std::min(b0 + group_rows, last);
    if (b0 < products)
      multiply_gates<C>(job, layout, p, job.state_panels,
                        job.gates + (job.offsets[job.time(s - 1)] + b0) * job.gate_stride, 0,
                        std::min(b1, products) - b0, job.dh + b0 * job.stride + unit0, job.stride);
    for (int64_t b = b0; b < std::min(b1, updates); ++b) {
      const int64_t row = job.offsets[job.time(s)] + b, previous = job.row_before(s, b);
      for (int u = 0; u < layout.units(p); ++u) {
        const int64_t unit = unit0 + u * L, n = job.hidden - unit;
        if (n >= L)
          backward_units<C, false>(job, b, row, previous, unit, 0);
        else
          backward_units<C, true>(job, b, row, previous, unit, n);
      }
    }
  }
}

template <class T, class E>
void backward_panel(const Backward<T, E>& job, int64_t s, int64_t p, int64_t first, int64_t last) {
  switch (job.kind) {
    case Cell::rnn_tanh:
      return backward_panel<Cell::rnn_tanh>(job, s, p, first, last);
    case Cell::rnn_relu:
      return backward_panel<Cell::rnn_relu>(job, s, p, first, last);
    case Cell::gru:
      return backward_panel<Cell::gru>(job, s, p, first, last);
    default:
      return backward_panel<Cell::lstm>(job, s, p, first, last);
  }
}

template <class T, class E>
void begin_backward(const Backward<T, E>& job, int64_t first, int64_t last) {
  for (int64_t b = first; b < last; ++b) {
    begin_state(job, job.grad_h_n, b, job.dh);
    if (job.kind == Cell::lstm) begin_state(job, job.grad_c_n, b, job.dc);
  }
}

template <class T, class E>
void end_backward(const Backward<T, E>& job, int64_t first, int64_t last) {
  const int64_t H = job.hidden;
  for (int64_t b = first; b < last; ++b) {
    convert(job.dh + b * job.stride, H, job.grad_h0 + b * H);
    if (job.kind == Cell::lstm) convert(job.dc + b * job.stride, H, job.grad_c0 + b * H);
  }
}

template <class T, class E>
void backward_tile(const Backward<T, E>& job, int64_t first, int64_t last) {
  begin_backward(job, first, last);
  for (int64_t s = 0; s <= job.steps; ++s)
    for (int64_t p = 0; p < job.panels(); ++p) backward_panel(job, s, p, first, last);
  end_backward(job, first, last);
}

// n elements more, rounded like those that are there.
template <class T>
void add(const T* from, int64_t n, T* to) {
  constexpr int L = lanes<Acc<T>>;
  int64_t i = 0;
  for (; i + L <= n; i += L) store(to + i, load(to + i) + load(from + i));
  if (i < n) store_first(to + i, load_first(to + i, n - i) + load_first(from + i, n - i), n - i);
}

// Gradients of the weights.

// Columns of `gates` that are multiplied at a time; divides column_group.
constexpr int outer_rows = SIMD_BYTES == 64 ? 8 : 4;

// product[i] += left[k][i] * right row (row0 + k), over a chain of rows, for the groups [first, last) of i.  A group's
// columns lie side by side, those of the next group `left_stride` further.
template <class T, class E>
void add_products(const Right<T>& right, int64_t row0, int64_t depth, const E* left, int64_t left_stride,
                  int64_t k_stride, int64_t first, int64_t last) {
  using A = Acc<T>;
  constexpr int L = lanes<A>, V = 2, K = factor_values<E>;
  alignas(64) E panel[outer_depth * V * L];
  for (int64_t c = 0; c < right.width; c += V * L) {
    const int64_t width = right.width - c > L ? V * L : L;
    pack_rows<E>(
        depth, width, std::min(width, right.width - c), [&](int64_t k) { return right.row(row0 + k) + c; }, panel);
    for (int64_t i = first * column_group; i < last * column_group; i += outer_rows) {
      const E* const from = left + (i / column_group - first) * left_stride + i % column_group * K;
      A* const product = right.product + i * right.product_stride + c;
      const int64_t factors = (depth + K - 1) / K * K;
      if (width > L)
        multiply<E, V, outer_rows>(panel, factors, from, K, k_stride, product, right.product_stride);
      else
        multiply<E, 1, outer_rows>(panel, factors, from, K, k_stride, product, right.product_stride);
    }
  }
}

// Groups [first, last) of the columns of `gates`: their sums, and their products with the inputs and the states.
template <class T, class E>
void weight_gradients(const WeightGradients<T, E>& shared, int64_t first, int64_t last) {
  using A = Acc<T>;
  constexpr int L = lanes<A>;
  constexpr int64_t left_stride = outer_depth * column_group + column_group;  // groups begin in different cache sets
  const WeightGradients<T, E> job = shared;
  const int64_t column0 = first * column_group, columns = (last - first) * column_group;
  constexpr bool pairs = factor_values<E> > 1;  // then rows have to be packed, else they are read where they are
  const std::unique_ptr<E[]> left(pairs ? new E[(last - first) * left_stride] : nullptr);
  std::fill_n(job.sums + column0, columns, A(0));
  for (const Right<T>& right : job.right)
    std::fill_n(right.product + column0 * right.product_stride, columns * right.product_stride, A(0));
  for (int64_t row0 = 0; row0 < job.rows; row0 += outer_depth) {
    const int64_t depth = std::min(outer_depth, job.rows - row0);
    const E* const gates = job.gates + row0 * job.gate_stride + column0;
    for (int64_t j = 0; pairs && j < columns; j += column_group)
      pack_rows<E>(
          depth, column_group, column_group, [&](int64_t k) { return gates + k * job.gate_stride + j; },
          &left[j / column_group * left_stride]);
    for (int64_t j = 0; j < columns; j += L) {
      Vec<A> sum{};
      for (int64_t k = 0; k < depth; ++k) sum += load(gates + k * job.gate_stride + j);
      store(job.sums + column0 + j, load(job.sums + column0 + j) + sum);
    }
    for (const Right<T>& right : job.right) {
      const int64_t begin = std::max(first, right.first), end = std::min(last, right.last);
      if (begin >= end) continue;
      if constexpr (pairs)
        add_products(right, row0, depth, &left[(begin - first) * left_stride], left_stride, column_group, begin, end);
      else
        add_products(right, row0, depth, gates + (begin - first) * column_group, column_group, job.gate_stride, begin,
                     end);
    }
  }
  for (const Right<T>& right : job.right)
    for (int64_t i = std::max(first, right.first); i < std::min(last, right.last); ++i) {
      const int64_t column = i * column_group, unit = column % job.stride;
      const int64_t gate = (column / job.stride + first_gate(job.kind)) % gate_count(job.kind);
      const int64_t count = std::min(column_group, job.hidden - unit), row = gate * job.hidden + unit;
      if (right.bias) convert(job.sums + column, count, right.bias + row);
      if (static_cast<const void*>(right.product) != right.weight)
        convert_rows(right.product + column * right.product_stride, right.product_stride, count, right.width,
                     right.weight + row * right.width, right.width);
    }
}

// Cell updates.
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
