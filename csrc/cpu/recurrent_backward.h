// Backward of the recurrent family for one SIMD level.  Included by recurrent_kernels.h only.

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
