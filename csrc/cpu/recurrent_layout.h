#pragma once
// What the recurrent kernels are given, and how it lies in memory; see recurrent.cpp for panels, slots and steps.
#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "../recurrent.h"
#include "common.h"
#include "output_memory.h"

namespace genimg_fast {
namespace {

constexpr int64_t outer_depth = 256;  // rows of a chain in the weights' gradients
constexpr int64_t column_group = 16;  // columns of a matrix that are packed together; strides are multiples

// Values of k that one multiplication takes: operands of type E are numbers, or pairs of bfloat16.
template <class E>
constexpr int factor_values = std::is_same<E, BFloat16>::value ? 2 : 1;

// Panels of a matrix depth x (gates * width): depth x vectors x lanes each.
struct Layout {
  int lanes;         // of a vector
  int gates;         // sums per hidden unit
  int unit_vectors;  // vectors of hidden units in a panel; the last panel may have fewer
  int64_t width, depth, panels = 0;

  int units(int64_t p) const {
    const int64_t vectors = (width + lanes - 1) / lanes;
    return static_cast<int>(std::min<int64_t>(unit_vectors, vectors - p * unit_vectors));
  }
  int vectors(int64_t p) const { return units(p) * gates; }
  int64_t panel_offset(int64_t p) const { return p * depth * unit_vectors * gates * lanes; }
  int64_t size() const { return panel_offset(panels); }
};

// Sums of a hidden unit while a step is computed, and values kept of it in backward.  GRU adds its two n gates only
// after one of them has met the reset gate: forward has x_n r z h_n, backward h_n r z x_n, so that the gates of one
// product are neighbours in either.
constexpr int slot_count(Cell cell) { return cell == Cell::gru ? 4 : gate_count(cell); }

// The gate that comes first in the slots of a product that does not begin with r.
constexpr int first_gate(Cell cell) { return cell == Cell::gru ? 2 : 0; }

// What forward and backward share.  Step s is counted in the order of the pass, time t in the order of the data.
struct Steps {
  Cell kind;
  int64_t hidden, features, steps;
  const int64_t* offsets;  // of the rows of each time
  bool descending;         // the pass goes from the last time to the first
  int64_t stride;          // of a sequence's state
  int64_t output_stride;   // of rows of the output and of its gradient

  int64_t time(int64_t s) const { return descending ? steps - 1 - s : s; }
  int64_t active(int64_t s) const { return offsets[time(s) + 1] - offsets[time(s)]; }
};

// T is the type of the data, E that of the operands of products.
template <class T, class E>
struct Forward : Steps {
  Layout from_input, from_state;
  const T *h0, *c0;
  T *output, *h_n, *c_n;
  T *output_copy, *reserve;  // or null
  const E* input;
  int64_t input_stride;
  E *input_panels, *state_panels;
  Acc<T>* bias;       // [slot][stride]: where the sums begin
  Acc<T>* projected;  // the products with the inputs of all steps, or null: they are part of each step
  E* state[2];        // read and written by turns
  Acc<T>* cell;       // LSTM: the cell state; GRU: the state before it is rounded to an operand

  int64_t panels() const { return from_state.panels; }
};

template <class T, class E>
struct Backward : Steps {
  Layout to_input, to_state;                   // to_input: without panels if that gradient is not wanted
  const T *grad_output, *grad_h_n, *grad_c_n;  // or null
  const T *output, *reserve, *h0, *c0;
  T *grad_input, *grad_h0, *grad_c0;
  E *input_panels, *state_panels;
  E* gates;  // gradients at the gates before their activations: [row][slot][stride]
  int64_t gate_stride;
  Acc<T>*dh, *dc;

  bool input_in_steps;  // else its gradient is made of all steps' rows in the end

  int64_t panels() const { return to_state.panels + (input_in_steps ? to_input.panels : 0); }

  // The row of the time that forward took before step s's, or -1 if sequence b began at step s.
  int64_t row_before(int64_t s, int64_t b) const {
    return s + 1 < steps && b < active(s + 1) ? offsets[time(s + 1)] + b : -1;
  }
};

// What the gradients at the gates are multiplied with to give those of the weights: the inputs, or the states before.
template <class T>
struct Right {
  const T *rows, *initial;  // row i is rows[source[i]], or initial[~source[i]] where that is negative
  const int64_t* source;    // null: rows[i]
  int64_t stride, width;
  int64_t first, last;  // groups of the columns of the gradients at the gates
  Acc<T>* product;      // [column][width]
  int64_t product_stride;
  T *weight, *bias;  // in torch's order; bias: or null

  const T* row(int64_t i) const {
    if (source == nullptr) return rows + i * stride;
    return source[i] >= 0 ? rows + source[i] * stride : initial + ~source[i] * width;
  }
};

template <class T, class E>
struct WeightGradients {
  Cell kind;
  int64_t hidden, stride, rows;  // stride: columns of a slot
  const E* gates;                // as in Backward
  int64_t gate_stride;
  Acc<T>* sums;  // over all rows
  Right<T> right[2];
};

// Arrays that share one piece of memory, each of which begins at a cache line.
class Workspace {
 public:
  template <class T>
  void add(T*& array, int64_t size) {
    arrays_.push_back({reinterpret_cast<void**>(&array), bytes_});
    bytes_ += (size * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
  }
  void allocate(const Tensor& like) {
    memory_ = empty_output(like, {bytes_ / static_cast<int64_t>(sizeof(float))}, ScalarType::Float);
    char* const begin = static_cast<char*>(memory_->mutable_data_ptr());
    for (const auto& [array, offset] : arrays_) *array = begin + offset;
  }

 private:
  std::vector<std::pair<void**, int64_t>> arrays_;
  int64_t bytes_ = 0;
  OptionalTensor memory_;
};

constexpr int64_t round_up(int64_t n) { return (n + column_group - 1) / column_group * column_group; }

// The depth of panels of E for n values of k.
template <class E>
int64_t factor_depth(int64_t n) {
  return (n + factor_values<E> - 1) / factor_values<E> * factor_values<E>;
}

}  // namespace
}  // namespace genimg_fast
