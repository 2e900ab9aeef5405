#pragma once
// What the bind_<family>.cpp files share.
//
// A binding only calls host launchers and never instantiates a kernel: binding files are compiled without sanitizers,
// and the linker could otherwise keep their uninstrumented copy of an inline function of the kernel.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

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

inline void check(int code) {
  if (code != success) throw SimtError(std::string(error_string(code)) + " [error " + std::to_string(code) + "]");
}

}  // namespace simt
