// Mean and sum of squared deviations of elements, for one SIMD level.  Included, once per level, by the kernels of the
// families that need them, whose layout headers define max_block; no include guard.
//
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
SIMD_INLINE void column_sums(const T* x, int64_t stride, int n, bool read_ahead, Acc<T>* sum) {
  constexpr int L = lanes<Acc<T>>;
  ReadAhead<T> ahead(x + Rows * stride);
  int j = 0;
  for (; j + L <= n; j += L) {
    if (read_ahead) ahead.advance(Rows);
    column_sum<false, Rows>(x + j, stride, 0, sum + j);
  }
  if (j < n) column_sum<true, Rows>(x + j, stride, n - j, sum + j);
}
template <int Rows, class T>
SIMD_INLINE void column_squares(const T* x, int64_t stride, int n, const Acc<T>* centre, Acc<T>* sum, Acc<T>* squares) {
  constexpr int L = lanes<Acc<T>>;
  int j = 0;
  for (; j + L <= n; j += L) column_squares<false, Rows>(x + j, stride, 0, centre + j, sum + j, squares + j);
  if (j < n) column_squares<true, Rows>(x + j, stride, n - j, centre + j, sum + j, squares + j);
}

// Tile of rows x n columns into the columns' (mean, m2), which hold `count` rows already.  read_ahead: of rows that lie
// one after the other.
template <class T>
void column_tile(const T* x, int64_t stride, int rows, int n, double count, bool read_ahead, double* mean, double* m2) {
  using A = Acc<T>;
  alignas(64) A centre[max_block] = {}, sum[max_block] = {}, squares[max_block] = {};
  int r = 0;
  for (; r + 8 <= rows; r += 8) column_sums<8>(x + r * stride, stride, n, read_ahead && stride == n, centre);
  for (; r < rows; ++r) column_sums<1>(x + r * stride, stride, n, false, centre);
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

// Tile of the elements of several runs, piece(first) ... piece(last - 1), each a pointer and a length; `size` in all.
// read_ahead: of piece(k + 1) while piece(k) is read; where runs lie apart, the processor would not find it.
template <class T, class Piece>
void run_tile(const Piece& piece, int64_t first, int64_t last, double size, double count, bool read_ahead, double& mean,
              double& m2) {
  using A = Acc<T>;
  using V = Vec<A>;
  constexpr int L = lanes<A>;
  V s[4] = {}, q[4] = {};
  for (int64_t k = first; k < last; ++k) {
    const auto [p, n] = piece(k);
    const T* const next = piece(k + 1).first;
    int64_t i = 0;
    for (; i + 4 * L <= n; i += 4 * L)
      for (int u = 0; u < 4; ++u) {
        if (read_ahead) __builtin_prefetch(next + i + u * L);
        s[u] += load(p + i + u * L);
      }
    for (; i + L <= n; i += L) s[0] += load(p + i);
    if (i < n) s[1] += load_first(p + i, n - i);
  }
  const A mid = horizontal_sum<A>((s[0] + s[1]) + (s[2] + s[3])) / A(size);
  const V centre = splat(mid);
  for (int u = 0; u < 4; ++u) s[u] = V{};
  for (int64_t k = first; k < last; ++k) {
    const auto [p, n] = piece(k);
    int64_t i = 0;
    for (; i + 4 * L <= n; i += 4 * L)
      for (int u = 0; u < 4; ++u) add_deviations<false>(p + i + u * L, 0, centre, s[u], q[u]);
    for (; i + L <= n; i += L) add_deviations<false>(p + i, 0, centre, s[0], q[0]);
    if (i < n) add_deviations<true>(p + i, n - i, centre, s[1], q[1]);
  }
  merge_tile<A>(size, mid, horizontal_sum<A>((s[0] + s[1]) + (s[2] + s[3])),
                horizontal_sum<A>((q[0] + q[1]) + (q[2] + q[3])), count, mean, m2);
}
