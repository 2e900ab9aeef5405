// Cell updates on the CPU: one step of a GRU or an LSTM from its gates.
//
// Procedure overview.  The elements are shared among the threads in the order of memory.  A thread takes a vector of
// them at a time from their gates to the new state; backward does so again, and goes from the gradients at the new
// state to those at the gates and at the state before.
#include "../cell_update.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "common.h"
#include "output_memory.h"
#include "simd.h"

namespace genimg_fast {
namespace {

constexpr int64_t thread_elements = 1 << 14;  // a thread is not worth waking for fewer

template <class T>
struct LstmUpdate {
  using Element = T;
  int64_t inner;
  const T *gates, *c;
  T *h, *c_new;                  // forward, else null
  const T *grad_h, *grad_c_new;  // backward; or null
  T *grad_gates, *grad_c;
};

template <class T>
struct GruUpdate {
  using Element = T;
  int64_t inner;
  const T *gates_x, *gates_h, *h;
  T* h_new;       // forward, else null
  const T* grad;  // backward
  T *grad_gates_x, *grad_gates_h, *grad_h;
};

#define SIMD_BODY "cell_update_kernels.h"
#include "for_each_simd_level.h"

// Tensors of a cell update, dense in the format of the gates.
Tensor dense(const Tensor& t, const CellShape& shape) { return torch::stable::contiguous(t, shape.format); }

OptionalTensor dense(const OptionalTensor& t, const CellShape& shape) {
  return t ? OptionalTensor(dense(*t, shape)) : t;
}

template <class Job>
void update_all(const Job& job, int64_t elements) {
  torch::stable::parallel_for(0, elements, thread_elements,
                              [&](int64_t begin, int64_t end) { SIMD_DISPATCH(update_cells(job, begin, end)); });
}

std::tuple<Tensor, Tensor> lstm_cell_update(Tensor gates_, Tensor c_) {
  check_gates(gates_, c_, 4, "gates");
  const CellShape shape = cell_shape(gates_, c_);
  const Tensor gates = dense(gates_, shape), c = dense(c_, shape);
  Tensor h = empty_output(c, shape.format), c_new = empty_output(c, shape.format);
  dispatch(c.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const LstmUpdate<T> job{shape.inner, data<T>(gates), data<T>(c), data<T>(h), data<T>(c_new),
                            nullptr,     nullptr,        nullptr,    nullptr};
    update_all(job, c.numel());
  });
  return {h, c_new};
}

std::tuple<Tensor, Tensor> lstm_cell_update_backward(OptionalTensor grad_h_, OptionalTensor grad_c_new_, Tensor gates_,
                                                     Tensor c_) {
  check_gates(gates_, c_, 4, "gates");
  if (grad_h_) check_like_state(*grad_h_, c_, "grad_h");
  if (grad_c_new_) check_like_state(*grad_c_new_, c_, "grad_c_new");
  const CellShape shape = cell_shape(gates_, c_);
  const Tensor gates = dense(gates_, shape), c = dense(c_, shape);
  const OptionalTensor grad_h = dense(grad_h_, shape), grad_c_new = dense(grad_c_new_, shape);
  Tensor grad_gates = empty_output(gates, shape.format), grad_c = empty_output(c, shape.format);
  dispatch(c.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const LstmUpdate<T> job{shape.inner,
                            data<T>(gates),
                            data<T>(c),
                            nullptr,
                            nullptr,
                            data_or_null<T>(grad_h),
                            data_or_null<T>(grad_c_new),
                            data<T>(grad_gates),
                            data<T>(grad_c)};
    update_all(job, c.numel());
  });
  return {grad_gates, grad_c};
}

Tensor gru_cell_update(Tensor gates_x_, Tensor gates_h_, Tensor h_) {
  check_gates(gates_x_, h_, 3, "gates_x");
  check_gates(gates_h_, h_, 3, "gates_h");
  const CellShape shape = cell_shape(gates_x_, h_);
  const Tensor gates_x = dense(gates_x_, shape), gates_h = dense(gates_h_, shape), h = dense(h_, shape);
  Tensor h_new = empty_output(h, shape.format);
  dispatch(h.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const GruUpdate<T> job{shape.inner, data<T>(gates_x), data<T>(gates_h), data<T>(h), data<T>(h_new),
                           nullptr,     nullptr,          nullptr,          nullptr};
    update_all(job, h.numel());
  });
  return h_new;
}

std::tuple<Tensor, Tensor, Tensor> gru_cell_update_backward(Tensor grad_, Tensor gates_x_, Tensor gates_h_, Tensor h_) {
  check_gates(gates_x_, h_, 3, "gates_x");
  check_gates(gates_h_, h_, 3, "gates_h");
  check_like_state(grad_, h_, "grad");
  const CellShape shape = cell_shape(gates_x_, h_);
  const Tensor gates_x = dense(gates_x_, shape), gates_h = dense(gates_h_, shape), h = dense(h_, shape);
  const Tensor grad = dense(grad_, shape);
  Tensor grad_gates_x = empty_output(gates_x, shape.format), grad_gates_h = empty_output(gates_x, shape.format);
  Tensor grad_h = empty_output(h, shape.format);
  dispatch(h.scalar_type(), [&](auto element) {
    using T = decltype(element);
    const GruUpdate<T> job{shape.inner,   data<T>(gates_x),      data<T>(gates_h),      data<T>(h),     nullptr,
                           data<T>(grad), data<T>(grad_gates_x), data<T>(grad_gates_h), data<T>(grad_h)};
    update_all(job, h.numel());
  });
  return {grad_gates_x, grad_gates_h, grad_h};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CPU, m) {
  m.impl("lstm_cell_update", TORCH_BOX(&lstm_cell_update));
  m.impl("lstm_cell_update_backward", TORCH_BOX(&lstm_cell_update_backward));
  m.impl("gru_cell_update", TORCH_BOX(&gru_cell_update));
  m.impl("gru_cell_update_backward", TORCH_BOX(&gru_cell_update_backward));
}

}  // namespace genimg_fast
