// CUDA implementation of the recurrent operators, torch side: checks, memory and the call of the launchers.
// Its name differs from recurrent.cu's because both become an object file of that name.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("Os")  // all of it runs once a call: small it is less than half as large
#endif

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <array>
#include <cstdlib>
#include <string_view>
#include <vector>

#include "../build_info.h"
#include "../recurrent.h"
#include "cuda/recurrent.h"
#include "host.h"

namespace genimg_fast {
namespace {

using torch::stable::accelerator::DeviceGuard;

constexpr char kFamily[] = "recurrent";

// For benchmarks and bisection: GENIMG_FAST_RECURRENT_METHOD = persistent or steps overrules the policy where it can.
cuda::RecurrentMethod method() {
  static const cuda::RecurrentMethod chosen = [] {
    const char* const name = std::getenv("GENIMG_FAST_RECURRENT_METHOD");
    const std::string_view wanted = name ? name : "";
    return wanted == "persistent" ? cuda::RecurrentMethod::persistent
           : wanted == "steps"    ? cuda::RecurrentMethod::steps
                                  : cuda::RecurrentMethod::automatic;
  }();
  return chosen;
}

// Contiguous, where the kernels' widest accesses are aligned.
Tensor as_dense(const Tensor& t) {
  if (!t.is_contiguous()) return torch::stable::contiguous(t);
  return cuda::is_aligned(t.const_data_ptr(), element_bytes(dtype_of(t)) == 2 ? 4 : 1) ? t : torch::stable::clone(t);
}

OptionalTensor as_dense(const OptionalTensor& t) { return t ? OptionalTensor(as_dense(*t)) : t; }

std::vector<Tensor> as_dense(std::vector<Tensor> tensors) {
  for (Tensor& t : tensors) t = as_dense(t);
  return tensors;
}

// What a kernel writes must be contiguous as it is.
void* data_of(const Tensor& t) {
  GENIMG_FAST_CHECK(t.is_contiguous(), "recurrent: results must be contiguous");
  return t.mutable_data_ptr();
}
void* data_of(const OptionalTensor& t) { return t ? data_of(*t) : nullptr; }

// Fills what a launch has for each direction.
void set_each(const void* (&data)[2], const std::vector<Tensor>& tensors) {
  for (size_t d = 0; d < tensors.size(); ++d) data[d] = tensors[d].const_data_ptr();
}
void set_each(void* (&data)[2], const std::vector<Tensor>& tensors) {
  for (size_t d = 0; d < tensors.size(); ++d) data[d] = data_of(tensors[d]);
}

// Scratch, in the type of the data, or of the arithmetic.
Tensor scratch(const Tensor& like, const Sequence& s, int64_t values) {
  return torch::stable::new_empty(like, {s.batch, values * s.hidden});
}
Tensor scratch_wide(const Tensor& like, const Sequence& s) {
  return empty_vector(like, s.batch * s.hidden, statistics_type(like.scalar_type()));
}

Tensor first_rows(Tensor t, int64_t first, int64_t rows) {
  return first == 0 && rows == t.size(0) ? t : torch::stable::narrow(t, 0, first, rows);
}

// out = a b
void multiply_into(const Tensor& out, const Tensor& a, const Tensor& b) {
  using torch::stable::detail::from;
  std::array<StableIValue, 3> stack{from(a), from(b), from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes the result, a reference to out, off the stack
}

cuda::RecurrentSequence describe(const Sequence& s, const Tensor& h0, Cell cell, bool reverse) {
  return {dtype_of(h0),     cell,   s.steps, s.batch, s.hidden, static_cast<int>(h0.size(0)), reverse,
          s.offsets.data(), nullptr};
}

// The offsets on the device, where sequences differ in length.
OptionalTensor device_offsets(const Sequence& s, bool packed, const Tensor& like, void* stream) {
  if (!packed) return std::nullopt;
  Tensor device = empty_vector(like, s.steps + 1, ScalarType::Long);
  check_cuda(cuda::recurrent_write_offsets(s.offsets.data(), s.steps + 1,
                                           static_cast<int64_t*>(device.mutable_data_ptr()), stream),
             kFamily, "writing the offsets");
  return device;
}

void recurrent_steps(std::vector<Tensor> gates_, Tensor h0_, OptionalTensor c0_, std::vector<Tensor> weight_hh_,
                     std::vector<Tensor> bias_n_, OptionalTensor batch_sizes, int64_t cell, bool reverse, Tensor output,
                     Tensor h_n, OptionalTensor c_n, std::vector<Tensor> reserve) {
  const Cell kind = check_cell(cell);
  const Sequence s = check_forward(gates_, h0_, c0_, weight_hh_, bias_n_, batch_sizes, kind, output, h_n, c_n, reserve);
  if (s.batch == 0) return;
  const DeviceGuard guard(h0_.get_device_index());
  const std::vector<Tensor> gates = as_dense(gates_), weight_hh = as_dense(weight_hh_), bias_n = as_dense(bias_n_);
  const Tensor h0 = as_dense(h0_);
  const OptionalTensor c0 = as_dense(c0_);
  cuda::RecurrentSequence sequence = describe(s, h0, kind, reverse);
  cuda::RecurrentForward call{};
  set_each(call.gates, gates);
  set_each(call.weight_hh, weight_hh);
  set_each(call.bias_n, bias_n);
  set_each(call.reserve, reserve);
  call.h0 = h0.const_data_ptr();
  call.c0 = data_or_null<void>(c0);
  call.output = data_of(output);
  call.h_n = data_of(h_n);
  call.c_n = data_of(c_n);
  void* const stream = current_cuda_stream(h0.get_device_index());
  const cuda::RecurrentPlan plan = cuda::recurrent_forward_plan(sequence, facts_of(h0, kFamily), method());
  if (plan.method == cuda::RecurrentMethod::persistent) {
    const OptionalTensor offsets = device_offsets(s, batch_sizes.has_value(), h0, stream);
    sequence.device_offsets = data_or_null<int64_t>(offsets);
    return check_cuda(cuda::recurrent_forward(sequence, call, plan, stream), kFamily, "launching the forward");
  }
  const Tensor product = scratch(h0, s, gate_count(kind)), kept = scratch_wide(h0, s);
  call.product = data_of(product);
  call.kept = data_of(kept);
  const auto multiply = [&](int direction, int64_t first, int64_t rows) {
    const Tensor state = torch::stable::select(h_n, 0, direction);
    multiply_into(first_rows(product, 0, rows), first_rows(state, first, rows),
                  torch::stable::transpose(weight_hh[direction], 0, 1));
  };
  check_cuda(cuda::recurrent_forward_steps(sequence, call, multiply, stream), kFamily, "launching a step");
}

void recurrent_steps_backward(OptionalTensor grad_output_, OptionalTensor grad_h_n_, OptionalTensor grad_c_n_,
                              Tensor output_, std::vector<Tensor> reserve_, Tensor h0_, OptionalTensor c0_,
                              std::vector<Tensor> weight_hh_, OptionalTensor batch_sizes, int64_t cell, bool reverse,
                              std::vector<Tensor> grad_gates, std::vector<Tensor> grad_hidden_n, Tensor grad_h0,
                              OptionalTensor grad_c0) {
  const Cell kind = check_cell(cell);
  const Sequence s = check_backward(grad_output_, grad_h_n_, grad_c_n_, output_, reserve_, h0_, c0_, weight_hh_,
                                    batch_sizes, kind, grad_gates, grad_hidden_n, grad_h0, grad_c0);
  if (s.batch == 0) return;
  const DeviceGuard guard(h0_.get_device_index());
  const OptionalTensor grad_output = as_dense(grad_output_), grad_h_n = as_dense(grad_h_n_);
  const OptionalTensor grad_c_n = as_dense(grad_c_n_), c0 = as_dense(c0_);
  const Tensor output = as_dense(output_), h0 = as_dense(h0_);
  const std::vector<Tensor> reserve = as_dense(reserve_), weight_hh = as_dense(weight_hh_);
  cuda::RecurrentSequence sequence = describe(s, h0, kind, reverse);
  cuda::RecurrentBackward call{};
  call.grad_output = data_or_null<void>(grad_output);
  call.grad_h_n = data_or_null<void>(grad_h_n);
  call.grad_c_n = data_or_null<void>(grad_c_n);
  call.output = output.const_data_ptr();
  set_each(call.reserve, reserve);
  call.h0 = h0.const_data_ptr();
  call.c0 = data_or_null<void>(c0);
  set_each(call.weight_hh, weight_hh);
  set_each(call.grad_gates, grad_gates);
  set_each(call.grad_hidden_n, grad_hidden_n);
  call.grad_h0 = data_of(grad_h0);
  call.grad_c0 = data_of(grad_c0);
  void* const stream = current_cuda_stream(h0.get_device_index());
  const cuda::RecurrentPlan plan = cuda::recurrent_backward_plan(sequence, facts_of(h0, kFamily), method());
  if (plan.method == cuda::RecurrentMethod::persistent) {
    const OptionalTensor offsets = device_offsets(s, batch_sizes.has_value(), h0, stream);
    sequence.device_offsets = data_or_null<int64_t>(offsets);
    return check_cuda(cuda::recurrent_backward(sequence, call, plan, stream), kFamily, "launching the backward");
  }
  const bool gru = kind == Cell::gru;
  const int64_t width = gate_count(kind) * s.hidden;
  const Tensor product = scratch(h0, s, 1), operand = scratch(h0, s, gru ? gate_count(kind) : 0);
  const Tensor dh = scratch_wide(h0, s), dc = scratch_wide(h0, s);
  call.product = data_of(product);
  call.operand = data_of(operand);
  call.dh = data_of(dh);
  call.dc = data_of(dc);
  const auto multiply = [&](int direction, int64_t first, int64_t rows) {
    const Tensor all_gates = torch::stable::view(grad_gates[direction], {s.rows(), width});
    const Tensor left = gru ? first_rows(operand, 0, rows) : first_rows(all_gates, first, rows);
    multiply_into(first_rows(product, 0, rows), left, weight_hh[direction]);
  };
  check_cuda(cuda::recurrent_backward_steps(sequence, call, multiply, stream), kFamily, "launching a step");
}

}  // namespace
}  // namespace genimg_fast

// recurrent_fits for Python's choice between this and cuDNN; 0 where the device cannot be asked.
GENIMG_FAST_EXPORT int genimg_fast_recurrent_fits(int device, int dtype, int cell, int hidden) {
  using namespace genimg_fast;
  cuda::DeviceFacts facts;
  if (cuda::device_facts(device, &facts) != 0) return 0;
  return cuda::recurrent_fits(static_cast<cuda::DType>(dtype), static_cast<Cell>(cell), hidden, facts);
}

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CUDA, m) {
  m.impl("recurrent_steps", TORCH_BOX(&genimg_fast::recurrent_steps));
  m.impl("recurrent_steps_backward", TORCH_BOX(&genimg_fast::recurrent_steps_backward));
}
