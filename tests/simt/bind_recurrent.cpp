// The recurrent launchers in Python, on numpy arrays named as in csrc/cuda/recurrent.h, in C order and of exactly the
// size that is read or written; bfloat16 and float16 travel as int16.
#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <array>
#include <map>
#include <string>

#include "binding.h"
#include "cuda/recurrent.h"

namespace py = pybind11;
using namespace genimg_fast;
using namespace genimg_fast::cuda;
using namespace py::literals;
using simt::check;
using simt::kDTypes;
using simt::pointer;

namespace {

const std::map<std::string, RecurrentMethod> kMethods = {{"automatic", RecurrentMethod::automatic},
                                                         {"persistent", RecurrentMethod::persistent},
                                                         {"steps", RecurrentMethod::steps}};

// (multiprocessors, shared bytes of a block, compute capability)
DeviceFacts facts_of(std::array<int, 3> device) { return {device[0], device[1], device[2]}; }

struct Problem {
  RecurrentSequence sequence;
  const py::dict& arrays;

  // arrays["offsets"]: where each step's rows begin; `ragged`: the kernels read it as well.
  Problem(const std::string& dtype, int cell, int64_t batch, int64_t hidden, int directions, bool reverse, bool ragged,
          const py::dict& arrays)
      : arrays(arrays) {
    const py::array offsets = py::reinterpret_borrow<py::array>(arrays["offsets"]);
    sequence = {kDTypes.at(dtype),
                static_cast<Cell>(cell),
                offsets.size() - 1,
                batch,
                hidden,
                directions,
                reverse,
                nullptr,
                nullptr};
    sequence.offsets = static_cast<const int64_t*>(pointer(arrays, "offsets", offsets.size() * 8));
    if (ragged) sequence.device_offsets = sequence.offsets;
  }
  int64_t rows() const { return sequence.offsets[sequence.steps]; }
  int64_t gates() const { return gate_count(sequence.cell); }
  int64_t saved() const { return reserve_count(sequence.cell); }
  // Of `values` hidden vectors for each of `rows` rows.
  void* get(const std::string& name, int64_t rows, int64_t values = 1) const {
    return pointer(arrays, name.c_str(), rows * values * sequence.hidden * element_bytes(sequence.dtype));
  }
  // Of one direction's own tensor, and of one that all share.
  void* get_own(const std::string& name, int direction, int64_t rows, int64_t values = 1) const {
    return get(name + "_" + std::to_string(direction), rows, values);
  }
  void* get_shared(const std::string& name, int64_t rows) const { return get(name, rows, sequence.directions); }
  void* get_wide(const char* name) const {
    return pointer(arrays, name, sequence.batch * sequence.hidden * (sequence.dtype == DType::float64 ? 8 : 4));
  }
};

py::dict described(const RecurrentPlan& plan) {
  return py::dict("method"_a = plan.method == RecurrentMethod::persistent ? "persistent" : "steps",
                  "rows"_a = plan.rows, "threads"_a = plan.threads, "blocks"_a = plan.blocks,
                  "shared_bytes"_a = plan.shared_bytes);
}

py::dict forward(const std::string& dtype, int cell, int64_t batch, int64_t hidden, int directions, bool reverse,
                 bool ragged, const py::dict& arrays, const std::string& method, std::array<int, 3> device,
                 const RecurrentProduct& multiply) {
  const Problem p(dtype, cell, batch, hidden, directions, reverse, ragged, arrays);
  RecurrentForward call{};
  for (int d = 0; d < directions; ++d) {
    call.gates[d] = p.get_own("gates", d, p.rows(), p.gates());
    call.weight_hh[d] = p.get_own("weight_hh", d, p.gates() * hidden);
    call.bias_n[d] = p.get_own("bias_n", d, 1);
    call.reserve[d] = p.get_own("reserve", d, p.rows(), p.saved());
  }
  call.h0 = p.get_shared("h0", batch);
  call.c0 = p.get_shared("c0", batch);
  call.output = p.get_shared("output", p.rows());
  call.h_n = p.get_shared("h_n", batch);
  call.c_n = p.get_shared("c_n", batch);
  call.product = p.get("product", batch, p.gates());
  call.kept = p.get_wide("kept");
  const RecurrentPlan plan = recurrent_forward_plan(p.sequence, facts_of(device), kMethods.at(method));
  check(plan.method == RecurrentMethod::persistent ? recurrent_forward(p.sequence, call, plan, nullptr)
                                                   : recurrent_forward_steps(p.sequence, call, multiply, nullptr));
  return described(plan);
}

py::dict backward(const std::string& dtype, int cell, int64_t batch, int64_t hidden, int directions, bool reverse,
                  bool ragged, const py::dict& arrays, const std::string& method, std::array<int, 3> device,
                  const RecurrentProduct& multiply) {
  const Problem p(dtype, cell, batch, hidden, directions, reverse, ragged, arrays);
  RecurrentBackward call{};
  for (int d = 0; d < directions; ++d) {
    call.reserve[d] = p.get_own("reserve", d, p.rows(), p.saved());
    call.weight_hh[d] = p.get_own("weight_hh", d, p.gates() * hidden);
    call.grad_gates[d] = p.get_own("grad_gates", d, p.rows(), p.gates());
    call.grad_hidden_n[d] = p.get_own("grad_hidden_n", d, p.rows());
  }
  call.grad_output = p.get_shared("grad_output", p.rows());
  call.grad_h_n = p.get_shared("grad_h_n", batch);
  call.grad_c_n = p.get_shared("grad_c_n", batch);
  call.output = p.get_shared("output", p.rows());
  call.h0 = p.get_shared("h0", batch);
  call.c0 = p.get_shared("c0", batch);
  call.grad_h0 = p.get_shared("grad_h0", batch);
  call.grad_c0 = p.get_shared("grad_c0", batch);
  call.product = p.get("product", batch);
  call.operand = p.get("operand", batch, p.gates());
  call.dh = p.get_wide("dh");
  call.dc = p.get_wide("dc");
  const RecurrentPlan plan = recurrent_backward_plan(p.sequence, facts_of(device), kMethods.at(method));
  check(plan.method == RecurrentMethod::persistent ? recurrent_backward(p.sequence, call, plan, nullptr)
                                                   : recurrent_backward_steps(p.sequence, call, multiply, nullptr));
  return described(plan);
}

py::dict plan(const std::string& dtype, int cell, int64_t batch, int64_t hidden, int directions, bool backward,
              const std::string& method, std::array<int, 3> device) {
  const RecurrentSequence s{
      kDTypes.at(dtype), static_cast<Cell>(cell), 1, batch, hidden, directions, false, nullptr, nullptr};
  const auto make = backward ? recurrent_backward_plan : recurrent_forward_plan;
  return described(make(s, facts_of(device), kMethods.at(method)));
}

bool fits(const std::string& dtype, int cell, int64_t hidden, std::array<int, 3> device) {
  return recurrent_fits(kDTypes.at(dtype), static_cast<Cell>(cell), hidden, facts_of(device));
}

void write_offsets(const simt::Array<int64_t>& offsets, simt::Array<int64_t>& device) {
  if (offsets.size() != device.size()) throw py::value_error("as many offsets as there is room for");
  check(recurrent_write_offsets(offsets.data(), offsets.size(), device.mutable_data(), nullptr));
}

}  // namespace

void bind_recurrent(py::module_& m) {
  m.def("forward", &forward);
  m.def("backward", &backward);
  m.def("write_offsets", &write_offsets, "offsets"_a.noconvert(), "device"_a.noconvert());
  m.def("plan", &plan);
  m.def("fits", &fits);
}
