// The group_norm_act launchers in Python, on numpy arrays.  Arrays of data have the shape (samples, channels, inner),
// or with channels_last (samples, inner, channels), in C order; 16-bit data travel as int16.  A dtype "... to float32"
// is the input's, beside a wide output.
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "binding.h"
#include "cuda/group_norm_act.h"

namespace py = pybind11;
using namespace genimg_fast::cuda;
using simt::check;
using simt::kDTypes;
using simt::pointer;

namespace {

const std::map<std::string, GroupNormMethod> kMethods = {{"automatic", GroupNormMethod::automatic},
                                                         {"split", GroupNormMethod::split},
                                                         {"on_chip", GroupNormMethod::on_chip},
                                                         {"cluster", GroupNormMethod::cluster}};

std::string name_of(GroupNormMethod method) {
  for (const auto& [name, value] : kMethods) {
    if (value == method) return name;
  }
  return "";
}

using Sizes = std::array<int64_t, 4>;  // samples, channels, inner, groups

GroupNormActShape shape_of(const std::string& dtype, const Sizes& sizes, bool channels_last) {
  const std::string wide = " to float32";
  const bool wide_output = dtype.size() > wide.size() && dtype.substr(dtype.size() - wide.size()) == wide;
  const std::string of_input = wide_output ? dtype.substr(0, dtype.size() - wide.size()) : dtype;
  return {kDTypes.at(of_input), sizes[0], sizes[1], sizes[2], sizes[3], channels_last, wide_output};
}

// Of 1, 2, 4, 8, 16 blocks that run at a time; none of a GPU before compute capability 9.0.
using Clusters = std::array<int, 5>;

DeviceFacts facts_of(int multiprocessors, int shared_bytes, const Clusters& clusters = {}) {
  DeviceFacts facts{multiprocessors, shared_bytes};
  std::copy(clusters.begin(), clusters.end(), facts.clusters);
  return facts;
}

struct Pointers {
  const py::dict& arrays;
  GroupNormActShape shape;

  int64_t wide_bytes() const { return shape.dtype == DType::float64 ? 8 : 4; }
  int64_t rows() const { return shape.samples * shape.channels; }
  void* input(const char* name) const {
    return pointer(arrays, name, rows() * shape.inner * element_bytes(shape.dtype));
  }
  void* output(const char* name) const { return shape.wide_output ? wide(name, rows() * shape.inner) : input(name); }
  void* wide(const char* name, int64_t count) const { return pointer(arrays, name, count * wide_bytes()); }
  // Of the data's own dtype if the array has elements of that size.
  GroupNormActValues values(const char* name, int64_t count) const {
    const int64_t bytes = element_bytes(shape.dtype);
    const bool own = bytes != wide_bytes() && arrays.contains(name) && !arrays[name].is_none() &&
                     py::reinterpret_borrow<py::array>(arrays[name]).itemsize() == bytes;
    return {pointer(arrays, name, count * (own ? bytes : wide_bytes())), own};
  }
};

// Exactly as large as asked for, so that ASan sees an overrun, and full of rubbish.
std::unique_ptr<unsigned char[]> workspace(size_t bytes) {
  auto memory = std::make_unique<unsigned char[]>(bytes);
  std::memset(memory.get(), 0xab, bytes);
  return memory;
}

std::string forward(const std::string& dtype, const Sizes& sizes, bool channels_last, const py::dict& arrays,
                    double eps, int activation, double slope, const std::string& method, int multiprocessors,
                    int shared_bytes, const Clusters& clusters) {
  const GroupNormActShape shape = shape_of(dtype, sizes, channels_last);
  const DeviceFacts facts = facts_of(multiprocessors, shared_bytes, clusters);
  const Pointers at{arrays, shape};
  const GroupNormActForward call{at.input("input"),
                                 at.output("residual"),
                                 at.values("weight", shape.channels),
                                 at.values("bias", shape.channels),
                                 at.values("scale", at.rows()),
                                 at.values("shift", at.rows()),
                                 at.output("output"),
                                 at.wide("mean", shape.samples * shape.groups),
                                 at.wide("invstd", shape.samples * shape.groups),
                                 eps,
                                 activation,
                                 slope};
  const GroupNormMethod wanted = kMethods.at(method);
  const auto memory = workspace(group_norm_act_forward_workspace(shape, call, facts, wanted));
  check(group_norm_act_forward(shape, call, facts, wanted, memory.get(), nullptr));
  return name_of(group_norm_act_forward_method(shape, call, facts, wanted));
}

std::string backward(const std::string& dtype, const Sizes& sizes, bool channels_last, const py::dict& arrays,
                     int activation, double slope, const std::string& method, int multiprocessors, int shared_bytes,
                     const Clusters& clusters) {
  const GroupNormActShape shape = shape_of(dtype, sizes, channels_last);
  const DeviceFacts facts = facts_of(multiprocessors, shared_bytes, clusters);
  const Pointers at{arrays, shape};
  const GroupNormActBackward call{at.output("grad_output"),
                                  at.input("input"),
                                  at.output("residual"),
                                  at.values("weight", shape.channels),
                                  at.values("bias", shape.channels),
                                  at.values("scale", at.rows()),
                                  at.values("shift", at.rows()),
                                  at.wide("mean", shape.samples * shape.groups),
                                  at.wide("invstd", shape.samples * shape.groups),
                                  at.input("grad_input"),
                                  at.output("grad_residual"),
                                  at.wide("grad_weight", shape.channels),
                                  at.wide("grad_bias", shape.channels),
                                  at.wide("grad_scale", at.rows()),
                                  at.wide("grad_shift", at.rows()),
                                  activation,
                                  slope};
  const GroupNormMethod wanted = kMethods.at(method);
  const auto memory = workspace(group_norm_act_backward_workspace(shape, call, facts, wanted));
  check(group_norm_act_backward(shape, call, facts, wanted, memory.get(), nullptr));
  return name_of(group_norm_act_backward_method(shape, call, facts, wanted));
}

// What the policy would choose; `held` is 1 for forward, 2 for backward.
std::string chosen(const std::string& dtype, const Sizes& sizes, bool channels_last, int held, int multiprocessors,
                   int shared_bytes, const Clusters& clusters) {
  const GroupNormActShape shape = shape_of(dtype, sizes, channels_last);
  const DeviceFacts facts = facts_of(multiprocessors, shared_bytes, clusters);
  GroupNormActBackward call{};
  call.grad_input = reinterpret_cast<void*>(uintptr_t{16});
  return name_of(held == 1 ? group_norm_act_forward_method(shape, {}, facts, GroupNormMethod::automatic)
                           : group_norm_act_backward_method(shape, call, facts, GroupNormMethod::automatic));
}

// How the kernels for clusters would be launched, whether or not that is chosen; (0, 0, 0, 0) if they cannot be.
py::tuple clusters(const std::string& dtype, const Sizes& sizes, bool channels_last, int held, int multiprocessors,
                   int shared_bytes, const Clusters& of_device) {
  const ClusterCounts c = group_norm_act_clusters(shape_of(dtype, sizes, channels_last), held,
                                                  facts_of(multiprocessors, shared_bytes, of_device));
  return py::make_tuple(c.clusters, c.blocks, c.pieces, c.slots);
}

// The accesses of one block.
py::dict visits(const std::string& dtype, const Sizes& sizes, bool channels_last, bool aligned, bool moments,
                int multiprocessors, int64_t block, int limit) {
  const GroupNormActVisits v = group_norm_act_visits(shape_of(dtype, sizes, channels_last), aligned, moments,
                                                     facts_of(multiprocessors, 0), block, limit);
  const auto array = [](const std::vector<int64_t>& values) {
    return py::array_t<int64_t>(static_cast<py::ssize_t>(values.size()), values.data());
  };
  using namespace py::literals;
  return py::dict("blocks"_a = v.blocks, "vector"_a = v.vector, "lanes"_a = v.lanes, "rows"_a = array(v.rows),
                  "offsets"_a = array(v.offsets));
}

}  // namespace

void bind_group_norm_act(py::module_& m) {
  m.def("forward", &forward);
  m.def("backward", &backward);
  m.def("chosen", &chosen);
  m.def("clusters", &clusters);
  m.def("visits", &visits);
}
