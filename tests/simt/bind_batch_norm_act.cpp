// The batch_norm_act launchers in Python, on numpy arrays.  Arrays of data have the shape (outer, channels, inner) of
// cuda::BatchNormActShape in C order; bfloat16 travels as uint16.
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "binding.h"
#include "cuda/batch_norm_act.h"

namespace py = pybind11;
using namespace genimg_fast::cuda;
using simt::check;
using simt::kDTypes;
using simt::pointer;

namespace {

struct Problem {
  BatchNormActShape shape;
  DeviceFacts facts;
  Method method;
};

const std::map<std::string, Method> kMethods = {
    {"automatic", Method::automatic}, {"split", Method::split}, {"block", Method::block}, {"cluster", Method::cluster}};

std::string name_of(Method method) {
  for (const auto& [name, value] : kMethods) {
    if (value == method) return name;
  }
  return "";
}

// clusters: of 1, 2, 4, 8, 16 blocks that run at a time; none of a GPU before compute capability 9.0.
struct Device {
  int multiprocessors, shared_bytes;
  std::array<int, 5> clusters;
};

Problem problem(const std::string& dtype, std::array<int64_t, 3> shape, const std::string& method,
                const Device& device) {
  DeviceFacts facts{device.multiprocessors, device.shared_bytes};
  std::copy(device.clusters.begin(), device.clusters.end(), facts.clusters);
  return {{kDTypes.at(dtype), shape[0], shape[1], shape[2]}, facts, kMethods.at(method)};
}

struct Pointers {
  const py::dict& arrays;
  int64_t channels, value_bytes, data_bytes, channel_bytes;

  Pointers(const Problem& p, const py::dict& arrays)
      : arrays(arrays),
        channels(p.shape.channels),
        value_bytes(element_bytes(p.shape.dtype)),
        data_bytes(p.shape.outer * p.shape.channels * p.shape.inner * value_bytes),
        channel_bytes(p.shape.channels * (p.shape.dtype == DType::float64 ? 8 : 4)) {}
  void* data(const char* name) const { return pointer(arrays, name, data_bytes); }
  void* channel(const char* name) const { return pointer(arrays, name, channel_bytes); }
  // Of the data's own dtype if the array has elements of that size.
  BatchNormActValues values(const char* name) const {
    const bool own = arrays.contains(name) && !arrays[name].is_none() &&
                     py::reinterpret_borrow<py::array>(arrays[name]).itemsize() == value_bytes &&
                     value_bytes * channels != channel_bytes;
    return {pointer(arrays, name, own ? value_bytes * channels : channel_bytes), own};
  }
};

// Exactly as large as asked for, so that ASan sees an overrun, and full of rubbish.
std::unique_ptr<unsigned char[]> workspace(size_t bytes) {
  auto memory = std::make_unique<unsigned char[]>(bytes);
  std::memset(memory.get(), 0xab, bytes);
  return memory;
}

BatchNormActForward forward_call(const Problem& p, const py::dict& arrays, double momentum, double eps, int activation,
                                 double slope) {
  const Pointers at(p, arrays);
  return {at.data("input"),
          at.data("residual"),
          at.values("weight"),
          at.values("bias"),
          at.data("output"),
          at.channel("mean"),
          at.channel("invstd"),
          at.values("running_mean"),
          at.values("running_var"),
          momentum,
          eps,
          activation,
          slope};
}

std::string train(const std::string& dtype, std::array<int64_t, 3> shape, const py::dict& arrays, double momentum,
                  double eps, int activation, double slope, const std::string& method, const Device& device) {
  const Problem p = problem(dtype, shape, method, device);
  const BatchNormActForward call = forward_call(p, arrays, momentum, eps, activation, slope);
  const auto memory = workspace(batch_norm_act_train_workspace(p.shape, call, p.facts, p.method));
  check(batch_norm_act_train(p.shape, call, p.facts, p.method, memory.get(), nullptr));
  return name_of(batch_norm_act_train_method(p.shape, call, p.facts, p.method));
}

void eval(const std::string& dtype, std::array<int64_t, 3> shape, const py::dict& arrays, double eps, int activation,
          double slope) {
  const Problem p = problem(dtype, shape, "automatic", {});
  check(batch_norm_act_eval(p.shape, forward_call(p, arrays, 0, eps, activation, slope), nullptr));
}

std::string backward(const std::string& dtype, std::array<int64_t, 3> shape, const py::dict& arrays, bool training,
                     int activation, double slope, const std::string& method, const Device& device) {
  const Problem p = problem(dtype, shape, method, device);
  const Pointers at(p, arrays);
  const BatchNormActBackward call{at.data("grad_output"),
                                  at.data("input"),
                                  at.data("residual"),
                                  at.values("weight"),
                                  at.values("bias"),
                                  at.channel("mean"),
                                  at.channel("invstd"),
                                  at.data("grad_input"),
                                  at.data("grad_residual"),
                                  at.channel("grad_weight"),
                                  at.channel("grad_bias"),
                                  training,
                                  activation,
                                  slope};
  const auto memory = workspace(batch_norm_act_backward_workspace(p.shape, call, p.facts, p.method));
  check(batch_norm_act_backward(p.shape, call, p.facts, p.method, memory.get(), nullptr));
  return name_of(batch_norm_act_backward_method(p.shape, call, p.facts, p.method));
}

// What the policy would choose; `held` is 1 for forward, 2 for backward.
std::string chosen(const std::string& dtype, std::array<int64_t, 3> shape, int held, const Device& device) {
  const Problem p = problem(dtype, shape, "automatic", device);
  BatchNormActBackward call{};
  call.training = true;
  call.grad_input = reinterpret_cast<void*>(uintptr_t{16});
  return name_of(held == 1 ? batch_norm_act_train_method(p.shape, {}, p.facts, p.method)
                           : batch_norm_act_backward_method(p.shape, call, p.facts, p.method));
}

// How the kernels for clusters would be launched, whether or not that is chosen; (0, 0, 0, 0) if they cannot be.
py::tuple clusters(const std::string& dtype, std::array<int64_t, 3> shape, int held, const Device& device) {
  const Problem p = problem(dtype, shape, "cluster", device);
  const ClusterCounts c = batch_norm_act_clusters(p.shape, held, p.facts);
  return py::make_tuple(c.clusters, c.blocks, c.pieces, c.slots);
}

// The accesses of one block; `kernel` is a method or "elementwise".
py::dict visits(const std::string& dtype, std::array<int64_t, 3> shape, bool aligned, const std::string& kernel,
                int multiprocessors, int64_t tile, int slice, int limit) {
  const bool elementwise = kernel == "elementwise";
  const Problem p = problem(dtype, shape, elementwise ? "split" : kernel, {multiprocessors, 227 << 10, {}});
  const BatchNormActVisits v =
      batch_norm_act_visits(p.shape, aligned, elementwise, 1, p.facts, p.method, tile, slice, limit);
  const auto array = [](const std::vector<int64_t>& values) {
    return py::array_t<int64_t>(static_cast<py::ssize_t>(values.size()), values.data());
  };
  using namespace py::literals;
  return py::dict("tiles"_a = v.tiles, "slices"_a = v.slices, "vector"_a = v.vector, "lanes"_a = v.lanes,
                  "slice_elements"_a = v.slice_elements, "channels"_a = array(v.channels),
                  "offsets"_a = array(v.offsets));
}

}  // namespace

void bind_batch_norm_act(py::module_& m) {
  py::class_<Device>(m, "Device")
      .def(py::init<int, int, std::array<int, 5>>(), py::arg("multiprocessors"), py::arg("shared_bytes"),
           py::arg("clusters") = std::array<int, 5>{});
  m.def("clusters", &clusters);
  m.def("train", &train);
  m.def("eval", &eval);
  m.def("backward", &backward);
  m.def("chosen", &chosen);
  m.def("visits", &visits);
}
