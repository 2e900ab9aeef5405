// The launchers of the cell updates in Python, on numpy arrays named as in csrc/cuda/cell_update.h: (outer, gates,
// inner), or (outer, inner) for states; bfloat16 and float16 travel as int16.
#include <string>

#include "binding.h"
#include "cuda/cell_update.h"

namespace py = pybind11;
using namespace genimg_fast;
using namespace genimg_fast::cuda;
using simt::check;
using simt::kDTypes;
using simt::pointer;

namespace {

void update(const std::string& dtype, int cell, bool backward, int64_t outer, int64_t inner, const py::dict& arrays) {
  CellUpdate call{};
  call.dtype = kDTypes.at(dtype);
  call.cell = static_cast<Cell>(cell);
  call.outer = outer;
  call.inner = inner;
  const auto get = [&](const char* name, int64_t gates) {
    return pointer(arrays, name, outer * gates * inner * element_bytes(call.dtype));
  };
  const int64_t gates = gate_count(call.cell);
  call.gates = get("gates", gates);
  call.gates_h = get("gates_h", gates);
  call.state = get("state", 1);
  call.h = get("h", 1);
  call.c = get("c", 1);
  call.grad_h = get("grad_h", 1);
  call.grad_c = get("grad_c", 1);
  call.grad_gates = get("grad_gates", gates);
  call.grad_gates_h = get("grad_gates_h", gates);
  call.grad_state = get("grad_state", 1);
  check(backward ? cell_update_backward(call, nullptr) : cell_update_forward(call, nullptr));
}

}  // namespace

void bind_cell_update(py::module_& m) { m.def("update", &update); }
