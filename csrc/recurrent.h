#pragma once
// Host side of the recurrent family that CPU and CUDA share: argument checks and the shape of a sequence.
#include <algorithm>
#include <string>
#include <vector>

#include "recurrent_cell.h"
#include "tensor.h"

namespace genimg_fast {

// Rows of all steps lie one after the other: step t has rows offsets[t] ... offsets[t + 1], one per sequence that is
// longer than t.  Sequences are sorted by length, longest first.
struct Sequence {
  int64_t steps, batch, hidden;
  std::vector<int64_t> offsets;  // steps + 1

  int64_t rows() const { return offsets.back(); }
  int64_t active(int64_t t) const { return offsets[t + 1] - offsets[t]; }
};

inline Cell check_cell(int64_t cell) {
  GENIMG_FAST_CHECK(cell >= 0 && cell <= 3,
                    "recurrent: cell must be 0 (tanh RNN), 1 (relu RNN), 2 (GRU) or 3 (LSTM), got ", cell);
  return static_cast<Cell>(cell);
}

// t must have the first tensor's dtype and device, and these sizes.
inline void check_operand(const Tensor& t, const Tensor& first, std::initializer_list<int64_t> sizes,
                          const char* name) {
  GENIMG_FAST_CHECK(t.device() == first.device(), "recurrent: ", name, " must be on the device of the other tensors");
  GENIMG_FAST_CHECK(t.scalar_type() == first.scalar_type(), "recurrent: ", name,
                    " must have the dtype of the other tensors");
  bool same = t.dim() == static_cast<int64_t>(sizes.size());
  int64_t d = 0;
  for (int64_t size : sizes) same = same && t.size(d++) == size;
  if (!same) {
    std::string expected;
    for (int64_t size : sizes) expected += (expected.empty() ? "" : ", ") + std::to_string(size);
    GENIMG_FAST_CHECK(false, "recurrent: ", name, " must have shape (", expected, "), got ", shape_of(t));
  }
}

inline void check_operand(const OptionalTensor& t, const Tensor& first, std::initializer_list<int64_t> sizes,
                          const char* name) {
  if (t) check_operand(*t, first, sizes, name);
}

// The steps of `data`, which has `width` values per row: (T, B, width), or (N, width) with batch_sizes.  h0 is
// (..., batch, hidden).
inline Sequence check_sequence(const Tensor& data, int64_t width, const Tensor& h0, const OptionalTensor& batch_sizes,
                               const char* name) {
  GENIMG_FAST_CHECK(is_supported(data.scalar_type()), "recurrent: ", name,
                    " must be float32, float64, bfloat16 or float16");
  Sequence s{0, h0.size(h0.dim() - 2), h0.size(h0.dim() - 1), {}};
  GENIMG_FAST_CHECK(s.hidden > 0, "recurrent: the hidden size must be greater than 0");
  const int64_t dim = batch_sizes ? 2 : 3;
  GENIMG_FAST_CHECK(data.dim() == dim && data.size(dim - 1) == width, "recurrent: ", name, " must have shape (",
                    batch_sizes ? "rows" : "steps, batch", ", ", width, "), got ", shape_of(data));
  if (!batch_sizes) {
    GENIMG_FAST_CHECK(data.size(1) == s.batch, "recurrent: ", name, " has ", data.size(1), " sequences, h0 has ",
                      s.batch);
    s.steps = data.size(0);
    s.offsets.resize(s.steps + 1);
    for (int64_t t = 0; t <= s.steps; ++t) s.offsets[t] = t * s.batch;
    return s;
  }
  GENIMG_FAST_CHECK(batch_sizes->dim() == 1 && batch_sizes->scalar_type() == ScalarType::Long && batch_sizes->is_cpu(),
                    "recurrent: batch_sizes must be a one-dimensional int64 tensor on the CPU");
  s.steps = batch_sizes->size(0);
  s.offsets.resize(s.steps + 1);
  const int64_t* const sizes = static_cast<const int64_t*>(batch_sizes->const_data_ptr());
  for (int64_t t = 0, before = s.batch; t < s.steps; ++t) {
    const int64_t size = sizes[t * batch_sizes->stride(0)];
    GENIMG_FAST_CHECK(size >= 0 && (t == 0 ? size == before : size <= before),
                      "recurrent: batch_sizes must begin with the batch size of h0, ", s.batch,
                      ", and never increase; element ", t, " is ", size);
    s.offsets[t + 1] = s.offsets[t] + size;
    before = size;
  }
  GENIMG_FAST_CHECK(s.rows() == data.size(0), "recurrent: batch_sizes add up to ", s.rows(), ", but ", name, " has ",
                    data.size(0), " rows");
  return s;
}

// t must be (T, B, width), or (N, width) if the data is packed.
inline void check_rows(const Tensor& t, const Tensor& first, const Sequence& s, bool packed, int64_t width,
                       const char* name) {
  if (packed)
    check_operand(t, first, {s.rows(), width}, name);
  else
    check_operand(t, first, {s.steps, s.batch, width}, name);
}

// One tensor of each direction, or none at all unless they are needed.
inline void check_operands(const std::vector<Tensor>& tensors, const Tensor& first, int64_t directions, bool needed,
                           std::initializer_list<int64_t> sizes, const char* name) {
  const int64_t count = tensors.size();
  GENIMG_FAST_CHECK(count == directions || (count == 0 && !needed), "recurrent: ", name, " must have ", directions,
                    " tensors, got ", count);
  for (const Tensor& t : tensors) check_operand(t, first, sizes, name);
}

// Checks what recurrent_steps and its backward have in common: rows are of the width of `data`.
inline Sequence check_steps(const Tensor& data, int64_t width, const char* name, const Tensor& h0,
                            const OptionalTensor& c0, const std::vector<Tensor>& weight_hh,
                            const OptionalTensor& batch_sizes, Cell cell) {
  GENIMG_FAST_CHECK(h0.dim() == 3 && (h0.size(0) == 1 || h0.size(0) == 2),
                    "recurrent: h0 must have shape (directions, batch, hidden), got ", shape_of(h0));
  const Sequence s = check_sequence(data, width, h0, batch_sizes, name);
  const int64_t directions = h0.size(0);
  check_operand(h0, data, {directions, s.batch, s.hidden}, "h0");
  GENIMG_FAST_CHECK(c0.has_value() == (cell == Cell::lstm), "recurrent: c0 belongs to an LSTM, and to no other cell");
  check_operand(c0, data, {directions, s.batch, s.hidden}, "c0");
  check_operands(weight_hh, data, directions, true, {gate_count(cell) * s.hidden, s.hidden}, "weight_hh");
  return s;
}

// Checks every argument of recurrent_steps.
inline Sequence check_forward(const std::vector<Tensor>& gates, const Tensor& h0, const OptionalTensor& c0,
                              const std::vector<Tensor>& weight_hh, const std::vector<Tensor>& bias_n,
                              const OptionalTensor& batch_sizes, Cell cell, const Tensor& output, const Tensor& h_n,
                              const OptionalTensor& c_n, const std::vector<Tensor>& reserve) {
  GENIMG_FAST_CHECK(h0.dim() == 3 && static_cast<int64_t>(gates.size()) == h0.size(0) && !gates.empty(),
                    "recurrent: gates must have a tensor of each direction");
  const int64_t width = gate_count(cell) * h0.size(2);
  const Sequence s = check_steps(gates[0], width, "gates", h0, c0, weight_hh, batch_sizes, cell);
  const int64_t directions = h0.size(0);
  const bool packed = batch_sizes.has_value();
  for (const Tensor& t : gates) check_rows(t, gates[0], s, packed, width, "gates");
  GENIMG_FAST_CHECK(bias_n.empty() || cell == Cell::gru, "recurrent: bias_n belongs to a GRU, and to no other cell");
  check_operands(bias_n, gates[0], directions, false, {s.hidden}, "bias_n");
  check_rows(output, gates[0], s, packed, directions * s.hidden, "output");
  check_operand(h_n, h0, {directions, s.batch, s.hidden}, "h_n");
  GENIMG_FAST_CHECK(c_n.has_value() == (cell == Cell::lstm), "recurrent: c_n belongs to an LSTM, and to no other cell");
  check_operand(c_n, h0, {directions, s.batch, s.hidden}, "c_n");
  check_operands(reserve, h0, directions, false, {s.rows(), reserve_count(cell) * s.hidden}, "reserve");
  return s;
}

// Checks every argument of recurrent_steps_backward.
inline Sequence check_backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                               const OptionalTensor& grad_c_n, const Tensor& output, const std::vector<Tensor>& reserve,
                               const Tensor& h0, const OptionalTensor& c0, const std::vector<Tensor>& weight_hh,
                               const OptionalTensor& batch_sizes, Cell cell, const std::vector<Tensor>& grad_gates,
                               const std::vector<Tensor>& grad_hidden_n, const Tensor& grad_h0,
                               const OptionalTensor& grad_c0) {
  GENIMG_FAST_CHECK(h0.dim() == 3, "recurrent: h0 must have shape (directions, batch, hidden), got ", shape_of(h0));
  const int64_t directions = h0.size(0), width = gate_count(cell) * h0.size(2);
  const Sequence s = check_steps(output, directions * h0.size(2), "output", h0, c0, weight_hh, batch_sizes, cell);
  const bool packed = batch_sizes.has_value();
  check_operands(reserve, h0, directions, reserve_count(cell) > 0, {s.rows(), reserve_count(cell) * s.hidden},
                 "reserve");
  if (grad_output) check_rows(*grad_output, h0, s, packed, directions * s.hidden, "grad_output");
  check_operand(grad_h_n, h0, {directions, s.batch, s.hidden}, "grad_h_n");
  GENIMG_FAST_CHECK(cell == Cell::lstm || (!grad_c_n && !grad_c0),
                    "recurrent: grad_c_n and grad_c0 belong to an LSTM, and to no other cell");
  check_operand(grad_c_n, h0, {directions, s.batch, s.hidden}, "grad_c_n");
  GENIMG_FAST_CHECK(static_cast<int64_t>(grad_gates.size()) == directions,
                    "recurrent: grad_gates must have a tensor of each direction");
  for (const Tensor& t : grad_gates) check_rows(t, h0, s, packed, width, "grad_gates");
  check_operands(grad_hidden_n, h0, directions, cell == Cell::gru, {s.rows(), s.hidden}, "grad_hidden_n");
  check_operand(grad_h0, h0, {directions, s.batch, s.hidden}, "grad_h0");
  check_operand(grad_c0, h0, {directions, s.batch, s.hidden}, "grad_c0");
  return s;
}

// The layers of one call.  A layer takes the states of all directions of the one before for its input, side by side.
struct Stack {
  Cell cell;
  Sequence sequence;
  bool packed;
  int64_t directions, parts;  // parts: layers * directions; a layer's directions are neighbours
  int64_t parameters;         // of a part, in a row: weight_ih, weight_hh and, if there are four, bias_ih, bias_hh
  int64_t features;           // of the first layer's input

  int64_t layers() const { return parts / directions; }
  int64_t width() const { return directions * sequence.hidden; }  // of a row of a layer's output
};

// Checks every argument of recurrent.
inline Stack check_stack(const Tensor& input, const Tensor& h0, const OptionalTensor& c0,
                         const OptionalTensor& batch_sizes, const std::vector<Tensor>& weights, int64_t cell,
                         bool bidirectional) {
  Stack s;
  s.cell = check_cell(cell);
  s.packed = batch_sizes.has_value();
  s.directions = bidirectional ? 2 : 1;
  GENIMG_FAST_CHECK(h0.dim() == 3 && h0.size(0) > 0 && h0.size(0) % s.directions == 0,
                    "recurrent: h0 must have shape (layers * ", s.directions, ", batch, hidden), got ", shape_of(h0));
  GENIMG_FAST_CHECK(input.dim() == (s.packed ? 2 : 3), "recurrent: input must have shape (",
                    s.packed ? "rows" : "steps, batch", ", features), got ", shape_of(input));
  s.parts = h0.size(0);
  s.features = input.size(input.dim() - 1);
  s.sequence = check_sequence(input, s.features, h0, batch_sizes, "input");
  const int64_t batch = s.sequence.batch, hidden = s.sequence.hidden, rows = gate_count(s.cell) * hidden;
  check_operand(h0, input, {s.parts, batch, hidden}, "h0");
  GENIMG_FAST_CHECK(c0.has_value() == (s.cell == Cell::lstm), "recurrent: c0 belongs to an LSTM, and to no other cell");
  check_operand(c0, input, {s.parts, batch, hidden}, "c0");
  const int64_t count = weights.size();
  GENIMG_FAST_CHECK(count == 2 * s.parts || count == 4 * s.parts, "recurrent: ", s.parts,
                    " layers times directions have 2 or 4 weights each, got ", count, " in all");
  s.parameters = count / s.parts;
  for (int64_t k = 0; k < s.parts; ++k) {
    const Tensor* const w = &weights[k * s.parameters];
    check_operand(w[0], input, {rows, k < s.directions ? s.features : s.width()}, "weight_ih");
    check_operand(w[1], input, {rows, hidden}, "weight_hh");
    if (s.parameters == 2) continue;
    check_operand(w[2], input, {rows}, "bias_ih");
    check_operand(w[3], input, {rows}, "bias_hh");
  }
  return s;
}

// Checks the arguments that recurrent_backward has beside those of recurrent.
inline void check_stack_backward(const Stack& s, const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                                 const OptionalTensor& grad_c_n, const std::vector<Tensor>& kept, const Tensor& input) {
  const int64_t batch = s.sequence.batch, hidden = s.sequence.hidden, values = reserve_count(s.cell) * hidden;
  GENIMG_FAST_CHECK(s.parameters == 2, "recurrent: backward takes weight_ih and weight_hh only, without biases");
  if (grad_output) check_rows(*grad_output, input, s.sequence, s.packed, s.width(), "grad_output");
  check_operand(grad_h_n, input, {s.parts, batch, hidden}, "grad_h_n");
  GENIMG_FAST_CHECK(!grad_c_n || s.cell == Cell::lstm, "recurrent: grad_c_n belongs to an LSTM, and to no other cell");
  check_operand(grad_c_n, input, {s.parts, batch, hidden}, "grad_c_n");
  const int64_t outputs = s.layers(), count = kept.size(), expected = outputs + (values > 0 ? s.parts : 0);
  GENIMG_FAST_CHECK(count == expected, "recurrent: kept must have ", expected, " tensors, got ", count);
  for (int64_t k = 0; k < count; ++k) {
    if (k < outputs)
      check_rows(kept[k], input, s.sequence, s.packed, s.width(), "kept output");
    else
      check_operand(kept[k], input, {s.sequence.rows(), values}, "reserve");
  }
}

}  // namespace genimg_fast
