// CUDA implementation of the cell updates, torch side: checks, memory and the call of the launchers.
// Its name differs from cell_update.cu's because both become an object file of that name.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("Os")  // all of it runs once a call: small it is less than half as large
#endif

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../cell_update.h"
#include "cuda/cell_update.h"
#include "host.h"

namespace genimg_fast {
namespace {

using torch::stable::accelerator::DeviceGuard;

void* data_of(Tensor& t) { return t.mutable_data_ptr(); }

// Tensors of a cell update, dense in the format of the gates.
Tensor dense(const Tensor& t, const CellShape& shape) { return torch::stable::contiguous(t, shape.format); }

OptionalTensor dense(const OptionalTensor& t, const CellShape& shape) {
  return t ? OptionalTensor(dense(*t, shape)) : t;
}

Tensor empty_like(const Tensor& t, const CellShape& shape) {
  return torch::stable::empty(t.sizes(), t.scalar_type(), std::nullopt, t.device(), std::nullopt, shape.format);
}

cuda::CellUpdate describe(const CellShape& shape, Cell cell, const Tensor& gates, const Tensor& state) {
  cuda::CellUpdate call{};
  call.dtype = dtype_of(state);
  call.cell = cell;
  call.outer = shape.outer;
  call.inner = shape.inner;
  call.gates = gates.const_data_ptr();
  call.state = state.const_data_ptr();
  return call;
}

void launch(int (*update)(const cuda::CellUpdate&, void*), const cuda::CellUpdate& call, const Tensor& state) {
  if (state.numel() == 0) return;
  check_cuda(update(call, current_cuda_stream(state.get_device_index())), "cell update", "launching the kernel");
}

std::tuple<Tensor, Tensor> lstm_cell_update(const Tensor& gates_, const Tensor& c_) {
  check_gates(gates_, c_, 4, "gates");
  const DeviceGuard guard(c_.get_device_index());
  const CellShape shape = cell_shape(gates_, c_);
  const Tensor gates = dense(gates_, shape), c = dense(c_, shape);
  Tensor h = empty_like(c, shape), c_new = empty_like(c, shape);
  cuda::CellUpdate call = describe(shape, Cell::lstm, gates, c);
  call.h = data_of(h);
  call.c = data_of(c_new);
  launch(cuda::cell_update_forward, call, c);
  return {h, c_new};
}

std::tuple<Tensor, Tensor> lstm_cell_update_backward(const OptionalTensor& grad_h_, const OptionalTensor& grad_c_new_,
                                                     const Tensor& gates_, const Tensor& c_) {
  check_gates(gates_, c_, 4, "gates");
  if (grad_h_) check_like_state(*grad_h_, c_, "grad_h");
  if (grad_c_new_) check_like_state(*grad_c_new_, c_, "grad_c_new");
  const DeviceGuard guard(c_.get_device_index());
  const CellShape shape = cell_shape(gates_, c_);
  const Tensor gates = dense(gates_, shape), c = dense(c_, shape);
  const OptionalTensor grad_h = dense(grad_h_, shape), grad_c_new = dense(grad_c_new_, shape);
  Tensor grad_gates = empty_like(gates, shape), grad_c = empty_like(c, shape);
  cuda::CellUpdate call = describe(shape, Cell::lstm, gates, c);
  call.grad_h = data_or_null<void>(grad_h);
  call.grad_c = data_or_null<void>(grad_c_new);
  call.grad_gates = data_of(grad_gates);
  call.grad_state = data_of(grad_c);
  launch(cuda::cell_update_backward, call, c);
  return {grad_gates, grad_c};
}

Tensor gru_cell_update(const Tensor& gates_x_, const Tensor& gates_h_, const Tensor& h_) {
  check_gates(gates_x_, h_, 3, "gates_x");
  check_gates(gates_h_, h_, 3, "gates_h");
  const DeviceGuard guard(h_.get_device_index());
  const CellShape shape = cell_shape(gates_x_, h_);
  const Tensor gates_x = dense(gates_x_, shape), gates_h = dense(gates_h_, shape), h = dense(h_, shape);
  Tensor h_new = empty_like(h, shape);
  cuda::CellUpdate call = describe(shape, Cell::gru, gates_x, h);
  call.gates_h = gates_h.const_data_ptr();
  call.h = data_of(h_new);
  launch(cuda::cell_update_forward, call, h);
  return h_new;
}

std::tuple<Tensor, Tensor, Tensor> gru_cell_update_backward(const Tensor& grad_, const Tensor& gates_x_,
                                                            const Tensor& gates_h_, const Tensor& h_) {
  check_gates(gates_x_, h_, 3, "gates_x");
  check_gates(gates_h_, h_, 3, "gates_h");
  check_like_state(grad_, h_, "grad");
  const DeviceGuard guard(h_.get_device_index());
  const CellShape shape = cell_shape(gates_x_, h_);
  const Tensor gates_x = dense(gates_x_, shape), gates_h = dense(gates_h_, shape), h = dense(h_, shape);
  const Tensor grad = dense(grad_, shape);
  Tensor grad_gates_x = empty_like(gates_x, shape), grad_gates_h = empty_like(gates_x, shape);
  Tensor grad_h = empty_like(h, shape);
  cuda::CellUpdate call = describe(shape, Cell::gru, gates_x, h);
  call.gates_h = gates_h.const_data_ptr();
  call.grad_h = grad.const_data_ptr();
  call.grad_gates = data_of(grad_gates_x);
  call.grad_gates_h = data_of(grad_gates_h);
  call.grad_state = data_of(grad_h);
  launch(cuda::cell_update_backward, call, h);
  return {grad_gates_x, grad_gates_h, grad_h};
}

}  // namespace
}  // namespace genimg_fast

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CUDA, m) {
  m.impl("lstm_cell_update", TORCH_BOX(&genimg_fast::lstm_cell_update));
  m.impl("lstm_cell_update_backward", TORCH_BOX(&genimg_fast::lstm_cell_update_backward));
  m.impl("gru_cell_update", TORCH_BOX(&genimg_fast::gru_cell_update));
  m.impl("gru_cell_update_backward", TORCH_BOX(&genimg_fast::gru_cell_update_backward));
}
