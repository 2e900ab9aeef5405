// The Python module `simt_kernels`: the emulator's settings, and one submodule of functions for every kernel family.
//
// simt_build.py defines SIMT_FAMILIES from the bind_<family>.cpp files that exist: FAMILY(selftest) FAMILY(...)
#include "binding.h"

namespace py = pybind11;

#define FAMILY(name) void bind_##name(py::module_& m);
SIMT_FAMILIES
#undef FAMILY

PYBIND11_MODULE(simt_kernels, m) {
  m.doc() = "CUDA kernels of genimg_fast, executed on the CPU by the SIMT emulator.";
  py::register_exception<simt::SimtError>(m, "SimtError", PyExc_RuntimeError);
  m.def("seed", &simt::set_seed, py::arg("seed"), "0: first in, first out; any other value: a random schedule.");
  m.def("resident_blocks", &simt::set_resident_blocks, py::arg("count"), "Blocks of a launch that run at a time.");
  m.def("multiprocessors", &simt::set_multiprocessors, py::arg("count"), "Size of the emulated GPU.");
  m.def("reset", &simt::reset_settings, "All of the above back to their defaults.");
  m.def(
      "last_error", [] { return std::string(simt::last_error()); },
      "Message of the latest launch, '' if it succeeded.");
  m.def("switches", &simt::switches, "Fiber switches so far.");

#define FAMILY(name)                             \
  {                                              \
    py::module_ family = m.def_submodule(#name); \
    bind_##name(family);                         \
  }
  SIMT_FAMILIES
#undef FAMILY
}
