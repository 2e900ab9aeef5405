#pragma once
// What the bind_<family>.cpp files share.
//
// A binding only calls host launchers and never instantiates a kernel: binding files are compiled without sanitizers,
// and the linker could otherwise keep their uninstrumented copy of an inline function of the kernel.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <map>
#include <stdexcept>
#include <string>

#include "cuda/device.h"
#include "simt.h"

namespace simt {

// Arrays must have exactly this type and be C-contiguous: bind arguments with py::arg("x").noconvert(), because a
// converted copy would silently take the kernel's output.
template <class T>
using Array = pybind11::array_t<T, pybind11::array::c_style>;

// SimtError in Python, with the message that last_error() holds.
struct SimtError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// bfloat16 and float16 travel as int16: numpy has no bfloat16.
inline const std::map<std::string, genimg_fast::cuda::DType> kDTypes = {
    {"float32", genimg_fast::cuda::DType::float32},
    {"float64", genimg_fast::cuda::DType::float64},
    {"bfloat16", genimg_fast::cuda::DType::bfloat16},
    {"float16", genimg_fast::cuda::DType::float16}};

// The array's memory, which must hold exactly `bytes`; null if there is none of this name, or None.
inline void* pointer(const pybind11::dict& arrays, const char* name, int64_t bytes) {
  namespace py = pybind11;
  if (!arrays.contains(name) || arrays[name].is_none()) return nullptr;
  const py::array array = py::reinterpret_borrow<py::array>(arrays[name]);
  if (!py::isinstance<py::array>(arrays[name]) || !(array.flags() & py::array::c_style) || array.nbytes() != bytes) {
    throw py::value_error(std::string(name) + ": expected a C-contiguous array of " + std::to_string(bytes) + " bytes");
  }
  return const_cast<void*>(array.data());
}

inline void check(int code) {
  if (code != success) throw SimtError(std::string(error_string(code)) + " [error " + std::to_string(code) + "]");
}

}  // namespace simt
