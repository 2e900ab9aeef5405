// Forward of the recurrent family for one SIMD level.  Included by recurrent_kernels.h only.

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
