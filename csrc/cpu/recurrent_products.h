// Products with panels, and how panels are packed, for one SIMD level.  Included by recurrent_kernels.h only.

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
    typename P::Vector w[V];
    unroll<V>([&](auto v) __attribute__((always_inline)) { w[v] = P::vector(panel + (k * V + v * K) * L); });
    unroll<R>([&](auto r) __attribute__((always_inline)) {
      const typename P::Vector a = P::all(rows + r * row_stride + k * k_stride);
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

// to[j][i] = strip[i][j] for j < n: a strip holds the rows of a vector's lanes.
template <int Block, class Factor>
void transpose_strip(const Factor (&strip)[lanes<Factor>][Block], int64_t n, Factor* to, int64_t to_stride) {
  constexpr int L = lanes<Factor>;
  int64_t j = 0;
  if constexpr (std::is_same<Factor, float>::value) {
    for (; j + 4 <= n; j += 4) {
      Vec<float> v[4];
      for (int i = 0; i < 4; ++i) v[i] = load_fours(&strip[i][j], 4 * Block);
      transpose_blocks(v);
      for (int i = 0; i < 4; ++i) store(to + (j + i) * to_stride, v[i]);
    }
  }
  for (; j < n; ++j)
    for (int i = 0; i < L; ++i) to[j * to_stride + i] = strip[i][j];
}

// Forward: panel[k][gate, unit] = weight[gate, unit][k]; first_gate comes first.  A weight's row has `columns` values,
// the panel's k go on to the next multiple of factor_values with zeros.
template <class E, class T>
void pack_transposed(const Layout& layout, int64_t p, const T* weight, int64_t columns, int first_gate, E* panels) {
  using Factor = Acc<E>;  // as long as a pair of bfloat16
  constexpr int L = lanes<Factor>, K = factor_values<E>, block = 64;
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
      transpose_strip(strip, n, panel + k * width + v * L, width);
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
