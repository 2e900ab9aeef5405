// The reparameterize_kl launchers in Python, on numpy arrays of shape (B, ...) and of any strides; bfloat16 and float16
// travel as int16.
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <string>

#include "binding.h"
#include "cuda/reparameterize_kl.h"
#include "math/gaussian.h"

namespace py = pybind11;
using namespace genimg_fast;
using namespace genimg_fast::cuda;
using namespace py::literals;
using simt::check;
using simt::kDTypes;

namespace {

const std::array<const char*, kOperands> kNames = {nullptr,    "mu",           "logvar", "noise",
                                                   "prior_mu", "prior_logvar", "grad_z", "grad_kl"};

SampleLayout layout_of(const py::array& array, const Samples& samples) {
  SampleLayout layout{};
  const auto stride = [&](int64_t d) { return array.strides(d) / array.itemsize(); };
  layout.batch_stride = stride(0);
  layout.row_major = true;
  int64_t expected = 1;
  for (int d = 0; d < samples.dims; expected *= samples.sizes[d++]) {
    const int64_t from_last = array.ndim() - 1 - d;
    layout.strides[d] = from_last > 0 ? stride(from_last) : d == 0 && samples.elements == 1;
    layout.row_major &= layout.strides[d] == expected;
  }
  return layout;
}

// A call on the arrays of these names.  grad_kl has one dimension, or all of mu's.
struct Problem {
  ReparameterizeKlCall call{};
  const py::dict& arrays;

  Problem(const std::string& dtype, const py::dict& arrays, std::array<double, 2> clamp, double free_bits)
      : arrays(arrays) {
    const py::array mu = get("mu");
    call.dtype = kDTypes.at(dtype);
    call.samples.batch = mu.shape(0);
    call.samples.elements = 1;
    for (int64_t d = mu.ndim() - 1; d > 0; --d) {
      call.samples.sizes[call.samples.dims++] = mu.shape(d);
      call.samples.elements *= mu.shape(d);
    }
    if (call.samples.dims == 0) call.samples.sizes[call.samples.dims++] = 1;
    for (int t = kMu; t < kOperands; ++t) {
      if (!arrays.contains(kNames[t])) continue;
      const py::array array = get(kNames[t]);
      call.layouts[t] = layout_of(array, call.samples);
      call.inputs[t] = array.data();
    }
    call.seed = static_cast<const int64_t*>(optional("seed"));
    call.logvar_min = clamp[0];
    call.logvar_max = clamp[1];
    call.free_bits = free_bits;
  }

  py::array get(const char* name) const { return py::reinterpret_borrow<py::array>(arrays[name]); }
  void* optional(const char* name) const {
    return arrays.contains(name) ? const_cast<void*>(get(name).data()) : nullptr;
  }
  // Of results, which share a layout.
  void* result(const char* name) {
    if (!arrays.contains(name)) return nullptr;
    call.layouts[kOutput] = layout_of(get(name), call.samples);
    return optional(name);
  }
};

py::dict described(const ReparameterizeKlPlan& plan) {
  return py::dict("dense"_a = plan.dense, "plain"_a = plan.plain, "step"_a = plan.step, "threads"_a = plan.threads,
                  "team"_a = 1 << plan.team_log2, "slices"_a = plan.slices, "blocks"_a = plan.blocks,
                  "workspace_bytes"_a = plan.workspace_bytes);
}

py::dict forward(const std::string& dtype, const py::dict& arrays, std::array<double, 2> clamp, double free_bits,
                 bool per_element, int multiprocessors) {
  Problem p(dtype, arrays, clamp, free_bits);
  p.call.z = p.result("z");
  p.call.kl = p.optional("kl");
  p.call.per_element = per_element;
  const ReparameterizeKlPlan plan = reparameterize_kl_forward_plan(p.call, {multiprocessors, 0, true});
  // Exactly as large as asked for, so that ASan sees an overrun, and full of rubbish.
  const auto workspace = std::make_unique<unsigned char[]>(plan.workspace_bytes);
  std::memset(workspace.get(), 0xab, plan.workspace_bytes);
  check(reparameterize_kl_forward(p.call, plan, workspace.get(), nullptr));
  return described(plan);
}

py::dict backward(const std::string& dtype, const py::dict& arrays, std::array<double, 2> clamp, double free_bits,
                  int multiprocessors) {
  Problem p(dtype, arrays, clamp, free_bits);
  p.call.grad_noise = p.result("grad_noise");
  p.call.grad_prior_mu = p.result("grad_prior_mu");
  p.call.grad_prior_logvar = p.result("grad_prior_logvar");
  p.call.grad_mu = p.result("grad_mu");
  p.call.grad_logvar = p.result("grad_logvar");
  const ReparameterizeKlPlan plan = reparameterize_kl_backward_plan(p.call, {multiprocessors, 0, true});
  check(reparameterize_kl_backward(p.call, plan, nullptr));
  return described(plan);
}

// A forward call on contiguous tensors that do not exist.
ReparameterizeKlCall imaginary(const std::string& dtype, int64_t batch, int64_t elements, bool aligned) {
  ReparameterizeKlCall call{};
  call.dtype = kDTypes.at(dtype);
  call.samples = {batch, elements, 1, {elements}};
  for (const Operand t : {kOutput, kMu, kLogvar}) {
    call.layouts[t] = {elements, {1}, true};
    call.inputs[t] = reinterpret_cast<const void*>(uintptr_t{aligned ? 16u : 1u});
  }
  return call;
}

py::dict plan(const std::string& dtype, int64_t batch, int64_t elements, bool aligned, int multiprocessors) {
  return described(
      reparameterize_kl_forward_plan(imaginary(dtype, batch, elements, aligned), {multiprocessors, 0, true}));
}

// (sample, first step, end of the slice, offset of the first step) of a thread.
std::array<int64_t, 4> visit(const std::string& dtype, int64_t batch, int64_t elements, bool aligned,
                             int multiprocessors, unsigned block, int thread) {
  const ReparameterizeKlCall call = imaginary(dtype, batch, elements, aligned);
  const ReparameterizeKlPlan plan = reparameterize_kl_forward_plan(call, {multiprocessors, 0, true});
  const ReparameterizeKlVisit v = reparameterize_kl_visit(call, plan, kMu, block, thread);
  return {v.sample, v.begin, v.end, v.offset};
}

struct KeysOf {
  uint32_t words[philox_keys];
  explicit KeysOf(uint64_t seed) {
    for (int k = 0; k < philox_keys; ++k) words[k] = philox_key(seed, k);
  }
};

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  uint32_t words[4];
  std::copy(counter.begin(), counter.end(), words);
  philox4x32(words, KeysOf(uint64_t{key[1]} << 32 | key[0]).words);
  return {words[0], words[1], words[2], words[3]};
}

std::array<float, 2> box_muller_of(uint32_t radial, uint32_t angular) {
  std::array<float, 2> normals;
  box_muller(radial, angular, &normals[0], &normals[1]);
  return normals;
}

// Noise of elements [4 * first, 4 * (first + groups)) of a sample.
py::array_t<float> noise(uint64_t seed, uint64_t sample, uint64_t first, int64_t groups) {
  const KeysOf keys(seed);
  py::array_t<float> result(4 * groups);
  for (int64_t g = 0; g < groups; ++g) {
    float normals[4];
    normals_of_group(keys.words, sample, first + g, normals);
    std::copy(normals, normals + 4, result.mutable_data() + 4 * g);
  }
  return result;
}

// exp(x) - 1 and exp(x) - 1 - x.
template <class A>
std::array<A, 2> exp_less_of(A x) {
  const ExpLess<A> less = exp_less(x, exponential(x));
  return {less.constant, less.linear};
}

}  // namespace

void bind_reparameterize_kl(py::module_& m) {
  m.def("forward", &forward);
  m.def("backward", &backward);
  m.def("plan", &plan);
  m.def("visit", &visit);
  m.def("philox", &philox);
  m.def("box_muller", &box_muller_of);
  m.def("noise", &noise);
  m.def("exp_less_float32", &exp_less_of<float>);
  m.def("exp_less_float64", &exp_less_of<double>);
}
