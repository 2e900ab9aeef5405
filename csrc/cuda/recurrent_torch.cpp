// CUDA implementation of the recurrent operators, torch side: checks, memory and the call of the launchers.
// Its name differs from recurrent.cu's because both become an object file of that name.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>

#include <array>
#include <cstdlib>
#include <string_view>
#include <tuple>

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

Tensor as_dense(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

OptionalTensor as_dense(const OptionalTensor& t) { return t ? OptionalTensor(as_dense(*t)) : t; }

Tensor empty(const Tensor& like, std::initializer_list<int64_t> sizes) {
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(sizes.begin(), sizes.size()));
}

// In the type of the arithmetic.
Tensor empty_wide(const Tensor& like, const Sequence& s) {
  return empty_vector(like, s.batch * s.hidden, statistics_type(like.scalar_type()));
}

// The shape of a sequence with `width` values per row.
Tensor empty_rows(const Tensor& like, const Sequence& s, bool packed, int64_t width) {
  return packed ? empty(like, {s.rows(), width}) : empty(like, {s.steps, s.batch, width});
}

Tensor nothing(const Tensor& like) { return empty_vector(like, 0, like.scalar_type()); }

void* data_of(Tensor& t) { return t.mutable_data_ptr(); }

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

cuda::RecurrentSequence describe(const Sequence& s, const Tensor& like, Cell cell, bool reverse) {
  return {dtype_of(like), cell, s.steps, s.batch, s.hidden, reverse, s.offsets.data(), nullptr};
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

std::tuple<Tensor, Tensor, Tensor, Tensor> recurrent_steps(const Tensor& gates_, const Tensor& h0_,
                                                           const OptionalTensor& c0_, const Tensor& weight_hh_,
                                                           const OptionalTensor& bias_n_,
                                                           const OptionalTensor& batch_sizes, int64_t cell,
                                                           bool reverse, bool keep) {
  const Cell kind = check_cell(cell);
  const Sequence s = check_forward(gates_, h0_, c0_, weight_hh_, bias_n_, batch_sizes, kind);
  const DeviceGuard guard(gates_.get_device_index());
  const Tensor gates = as_dense(gates_), h0 = as_dense(h0_), weight_hh = as_dense(weight_hh_);
  const OptionalTensor c0 = as_dense(c0_), bias_n = as_dense(bias_n_);
  const int64_t H = s.hidden, saved = reserve_count(kind);
  const bool lstm = kind == Cell::lstm;
  Tensor output = empty_rows(gates, s, batch_sizes.has_value(), H), h_n = empty(gates, {s.batch, H});
  Tensor c_n = lstm ? empty(gates, {s.batch, H}) : nothing(gates);
  keep = keep && saved > 0;
  Tensor reserve = keep ? empty(gates, {s.rows(), saved * H}) : nothing(gates);
  if (s.batch == 0) return {output, h_n, c_n, reserve};

  cuda::RecurrentSequence sequence = describe(s, gates, kind, reverse);
  cuda::RecurrentForward call{gates.const_data_ptr(),
                              h0.const_data_ptr(),
                              data_or_null<void>(c0),
                              weight_hh.const_data_ptr(),
                              data_or_null<void>(bias_n),
                              data_of(output),
                              data_of(h_n),
                              lstm ? data_of(c_n) : nullptr,
                              keep ? data_of(reserve) : nullptr,
                              nullptr,
                              nullptr};
  void* const stream = current_cuda_stream(gates.get_device_index());
  const cuda::RecurrentPlan plan = cuda::recurrent_forward_plan(sequence, facts_of(gates, kFamily), method());
  if (plan.method == cuda::RecurrentMethod::persistent) {
    const OptionalTensor offsets = device_offsets(s, batch_sizes.has_value(), gates, stream);
    sequence.device_offsets = data_or_null<int64_t>(offsets);
    check_cuda(cuda::recurrent_forward(sequence, call, plan, stream), kFamily, "launching the forward");
    return {output, h_n, c_n, reserve};
  }
  Tensor product = empty(gates, {s.batch, gate_count(kind) * H});
  Tensor kept = lstm || kind == Cell::gru ? empty_wide(gates, s) : nothing(gates);
  call.product = data_of(product);
  call.kept = data_of(kept);
  const Tensor transposed = torch::stable::transpose(weight_hh, 0, 1);
  const auto multiply = [&](int64_t first, int64_t rows) {
    multiply_into(first_rows(product, 0, rows), first_rows(h_n, first, rows), transposed);
  };
  check_cuda(cuda::recurrent_forward_steps(sequence, call, multiply, stream), kFamily, "launching a step");
  return {output, h_n, c_n, reserve};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> recurrent_steps_backward(
    const OptionalTensor& grad_output_, const OptionalTensor& grad_h_n_, const OptionalTensor& grad_c_n_,
    const Tensor& output_, const Tensor& reserve_, const Tensor& h0_, const OptionalTensor& c0_,
    const Tensor& weight_hh_, const OptionalTensor& batch_sizes, int64_t cell, bool reverse) {
  const Cell kind = check_cell(cell);
  const Sequence s =
      check_backward(grad_output_, grad_h_n_, grad_c_n_, output_, reserve_, h0_, c0_, weight_hh_, batch_sizes, kind);
  const DeviceGuard guard(output_.get_device_index());
  const OptionalTensor grad_output = as_dense(grad_output_), grad_h_n = as_dense(grad_h_n_);
  const OptionalTensor grad_c_n = as_dense(grad_c_n_), c0 = as_dense(c0_);
  const Tensor output = as_dense(output_), reserve = as_dense(reserve_), h0 = as_dense(h0_);
  const Tensor weight_hh = as_dense(weight_hh_);
  const int64_t H = s.hidden, width = gate_count(kind) * H;
  const bool lstm = kind == Cell::lstm, gru = kind == Cell::gru;
  Tensor grad_gates = empty_rows(output, s, batch_sizes.has_value(), width);
  Tensor grad_hidden_n = gru ? empty(output, {s.rows(), H}) : nothing(output);
  Tensor grad_h0 = empty(output, {s.batch, H}), grad_c0 = lstm ? empty(output, {s.batch, H}) : nothing(output);
  if (s.batch == 0) return {grad_gates, grad_hidden_n, grad_h0, grad_c0};

  cuda::RecurrentSequence sequence = describe(s, output, kind, reverse);
  cuda::RecurrentBackward call{data_or_null<void>(grad_output),
                               data_or_null<void>(grad_h_n),
                               data_or_null<void>(grad_c_n),
                               output.const_data_ptr(),
                               reserve.const_data_ptr(),
                               h0.const_data_ptr(),
                               data_or_null<void>(c0),
                               weight_hh.const_data_ptr(),
                               data_of(grad_gates),
                               gru ? data_of(grad_hidden_n) : nullptr,
                               data_of(grad_h0),
                               lstm ? data_of(grad_c0) : nullptr,
                               nullptr,
                               nullptr,
                               nullptr,
                               nullptr};
  void* const stream = current_cuda_stream(output.get_device_index());
  const cuda::RecurrentPlan plan = cuda::recurrent_backward_plan(sequence, facts_of(output, kFamily), method());
  if (plan.method == cuda::RecurrentMethod::persistent) {
    const OptionalTensor offsets = device_offsets(s, batch_sizes.has_value(), output, stream);
    sequence.device_offsets = data_or_null<int64_t>(offsets);
    check_cuda(cuda::recurrent_backward(sequence, call, plan, stream), kFamily, "launching the backward");
    return {grad_gates, grad_hidden_n, grad_h0, grad_c0};
  }
  Tensor product = empty(output, {s.batch, H}), dh = empty_wide(output, s);
  Tensor operand = gru ? empty(output, {s.batch, width}) : nothing(output);
  Tensor dc = lstm ? empty_wide(output, s) : nothing(output);
  call.product = data_of(product);
  call.operand = data_of(operand);
  call.dh = data_of(dh);
  call.dc = data_of(dc);
  const Tensor all_gates = torch::stable::view(grad_gates, {s.rows(), width});
  const auto multiply = [&](int64_t first, int64_t rows) {
    const Tensor left = gru ? first_rows(operand, 0, rows) : first_rows(all_gates, first, rows);
    multiply_into(first_rows(product, 0, rows), left, weight_hh);
  };
  check_cuda(cuda::recurrent_backward_steps(sequence, call, multiply, stream), kFamily, "launching a step");
  return {grad_gates, grad_hidden_n, grad_h0, grad_c0};
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
