// reparameterize_kl on the CPU.
//
// Procedure overview.  The work is cut into items: segments of one sample or, where samples are short, groups of whole
// samples.  One pass over an item computes everything, reading each input and writing each output once:
//  - the noise is made a few hundred elements at a time, so that arithmetic and memory traffic overlap: Philox4x32-10,
//    keyed by the seed, whose counter is the index of a block of four elements within its sample (in row-major order)
//    and the index of the sample; then Box-Muller;
//  - tensors whose elements do not lie one after the other in that order are gathered into, or scattered from, buffers
//    in the L1 cache.  An item that needs those is done in parts of tile_elements.
// Divergences are added up in short float chains, the chains' sums in double, always in the same order: items depend on
// the shape only, so the number of threads changes no bit of the result.
// Backward keeps nothing of the forward pass; it makes the noise again.
#include "../reparameterize_kl.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <tuple>

#include "../math/philox.h"
#include "common.h"
#include "output_memory.h"
#include "simd.h"

namespace genimg_fast {
namespace {

constexpr int64_t segment_elements = 16384;  // of an item, at most
constexpr int64_t tile_elements = 1024;      // of a part that needs buffers, at most
constexpr int64_t noise_elements = 256;      // of noise made at a time
constexpr int64_t short_elements = 128;      // samples of fewer are grouped
constexpr int64_t thread_elements = 4096;    // a thread is not worth waking for less
constexpr int64_t padding = 64;              // noise is made in whole batches

// Elements [first, first + elements) of each of `samples` samples; whole samples if there are several.
struct Part {
  int64_t sample, samples, first, elements;
  int64_t count() const { return samples * elements; }
};

struct Plan {
  int64_t batch, elements;
  int64_t group;     // samples of an item
  int64_t segments;  // items of a group; 1 if it has several samples
  int64_t items;

  explicit Plan(const Samples& s) : batch(s.batch), elements(s.elements) {
    // The noise of a group comes in blocks of four elements.
    group = elements < short_elements ? tile_elements / ((elements + 3) / 4 * 4) : 1;
    segments = group > 1 ? 1 : (elements + segment_elements - 1) / segment_elements;
    items = (batch + group - 1) / group * segments;
  }

  // Calls f(part) for the item's parts, each of at most part_elements of a sample.
  template <class F>
  void for_each_part(int64_t item, int64_t part_elements, const F& f) const {
    const int64_t sample = item / segments * group, samples = std::min(group, batch - sample);
    const int64_t begin = item % segments * segment_elements, end = std::min(elements, begin + segment_elements);
    for (int64_t first = begin; first < end; first += part_elements)
      f(Part{sample, samples, first, std::min(part_elements, end - first)});
  }
};

// Calls f(position in the part, offset in memory, stride, elements) for the runs of equal stride that make up a part.
template <class F>
void for_each_run(const Samples& samples, const SampleLayout& layout, const Part& part, const F& f) {
  for (int64_t s = 0, at = 0; s < part.samples; ++s) {
    int64_t index[max_sample_dims], offset = (part.sample + s) * layout.batch_stride;
    if (layout.row_major) {
      f(at, offset + part.first, 1, part.elements);
      at += part.elements;
      continue;
    }
    for (int64_t d = 0, rest = part.first; d < samples.dims; rest /= samples.sizes[d++]) {
      index[d] = rest % samples.sizes[d];
      offset += index[d] * layout.strides[d];
    }
    for (int64_t left = part.elements; left > 0;) {
      const int64_t n = std::min(left, samples.sizes[0] - index[0]);
      f(at, offset, layout.strides[0], n);
      at += n;
      left -= n;
      index[0] += n;
      offset += n * layout.strides[0];
      for (int d = 0; index[d] == samples.sizes[d] && d + 1 < samples.dims; ++d) {
        offset += layout.strides[d + 1] - samples.sizes[d] * layout.strides[d];
        index[d] = 0;
        ++index[d + 1];
      }
    }
  }
}

template <class T>
struct Operand {
  T* data = nullptr;  // null: not given, not needed
  SampleLayout layout{};

  bool is_consecutive(const Part& part) const {
    return layout.row_major && (part.samples == 1 || layout.batch_stride == part.elements);
  }
  T* begin(const Part& part) const { return data + part.sample * layout.batch_stride + part.first; }
};

// The key of every round of Philox, in 64-bit lanes.
struct PhiloxKeys {
  uint64_t word[2][philox_rounds];

  explicit PhiloxKeys(uint64_t seed) {
    for (uint32_t r = 0; r < philox_rounds; ++r) {
      word[0][r] = static_cast<uint32_t>(seed) + r * philox_key_step0;
      word[1][r] = static_cast<uint32_t>(seed >> 32) + r * philox_key_step1;
    }
  }
};

template <class T>
struct Job {
  using A = Acc<T>;
  Samples samples;
  Plan plan;
  PhiloxKeys keys;
  int64_t part_elements = segment_elements;
  bool streaming = false;  // gradients go past the caches
  bool clamps;
  A logvar_min, logvar_max, free_bits;
  Operand<const T> mu, logvar, noise, prior_mu, prior_logvar;
  // Forward.  The divergence goes to kl, per element, or to kl_sum, by way of partial where samples have segments.
  Operand<T> z;
  Operand<A> kl;
  A* kl_sum = nullptr;
  double* partial = nullptr;  // [item]
  // Backward.
  Operand<const T> grad_z;
  Operand<const A> grad_kl;
  bool grad_kl_varies = false;  // within a sample
  Operand<T> grads[5];          // of mu, logvar, noise, prior_mu, prior_logvar

  Job(const ReparameterizeKlArguments& in, const Samples& s)
      : samples(s),
        plan(s),
        keys(in.seed ? static_cast<uint64_t>(*static_cast<const int64_t*>(in.seed->const_data_ptr())) : 0),
        clamps(in.logvar_min > -INFINITY || in.logvar_max < INFINITY),
        logvar_min(A(in.logvar_min)),
        logvar_max(A(in.logvar_max)),
        free_bits(A(in.free_bits)) {}

  // To be called for every operand: parts are small if one of them needs a buffer.
  template <class U>
  void set(Operand<U>& operand, U* data, const SampleLayout& layout) {
    operand = {data, layout};
    if (data != nullptr && !layout.row_major) part_elements = tile_elements;
  }
  void set(Operand<const T>& operand, const Tensor* t, const SampleLayout& layout) {
    set(operand, t ? static_cast<const T*>(t->const_data_ptr()) : nullptr, layout);
  }
};

// A part with all its elements one after the other.
template <class T>
struct Tile {
  using A = Acc<T>;
  const T *mu, *logvar;
  const T *prior_mu, *prior_logvar;  // or null
  // The noise: as given, or made already, or else to be made for elements `first` and on of `sample`.
  const T* given_noise;
  const float* made_noise;
  const PhiloxKeys* keys;
  int64_t sample, first;
  bool streaming, clamps;
  A logvar_min, logvar_max, free_bits;
  // Forward.
  T* z;
  A* kl;  // or null
  // Backward; all but grad_mu and grad_logvar may be null.
  const T* grad_z;
  const A* grad_kl;
  bool grad_kl_varies;
  T *grad_mu, *grad_logvar, *grad_noise, *grad_prior_mu, *grad_prior_logvar;
};

// Buffers of a part.
template <class T>
struct Scratch {
  using A = Acc<T>;
  alignas(64) T in[5][tile_elements];
  alignas(64) T grad_z[tile_elements];
  alignas(64) T out[5][tile_elements];
  alignas(64) A kl[tile_elements];
  alignas(64) float made_noise[tile_elements + padding];
};

template <class T>
struct NoiseBuffer {
  alignas(64) float made[noise_elements];
  alignas(64) Acc<T> wide[noise_elements];
};

#define SIMD_BODY "reparameterize_kl_kernels.h"
#include "for_each_simd_level.h"

// Calls f(begin, end) on parts of the plan's items.
template <class F>
void parallel(const Plan& plan, const F& f) {
  const int64_t elements = std::max<int64_t>(1, plan.batch * plan.elements / plan.items);  // of an item
  torch::stable::parallel_for(0, plan.items, (thread_elements + elements - 1) / elements, f);
}

// Like mu, with the strides that torch.empty_like chooses.
Tensor output_like(const Tensor& mu) {
  int64_t expected = 1;
  bool row_major = true;  // the samples are; between them there may be gaps
  for (int64_t d = mu.dim() - 1; row_major && d > 0; expected *= mu.size(d--)) row_major = mu.stride(d) == expected;
  if (!row_major || mu.stride(0) < expected) return torch::stable::empty_like(mu);
  return empty_output(mu, MemoryFormat::Contiguous);
}

// Whether to write a gradient past the caches: none of a large one would still be there when it is read.  Every vector
// has to begin at a multiple of its size.  (Backward is bound by memory and gains from it; forward is not and loses.)
template <class T>
bool streams(const Plan& plan, const Operand<T>& grad) {
  if (grad.data == nullptr) return true;
  constexpr int64_t line = 64 / sizeof(T);
  return plan.batch * plan.elements * int64_t(sizeof(T)) >= streaming_bytes && plan.group == 1 &&
         grad.layout.row_major && grad.layout.batch_stride % line == 0 &&
         reinterpret_cast<uintptr_t>(grad.data) % 64 == 0;
}

const Tensor* pointer(const OptionalTensor& t) { return t ? &*t : nullptr; }

std::tuple<Tensor, Tensor> forward_cpu(Tensor mu, Tensor logvar, OptionalTensor noise, OptionalTensor seed,
                                       OptionalTensor prior_mu, OptionalTensor prior_logvar, double logvar_min,
                                       double logvar_max, double free_bits, bool per_element) {
  const ReparameterizeKlArguments in{mu,           logvar,     noise,      seed,      prior_mu,
                                     prior_logvar, logvar_min, logvar_max, free_bits, per_element};
  in.check();
  Tensor z = output_like(mu);
  Tensor kl = per_element ? empty_output(mu, {mu.sizes().begin(), mu.sizes().end()}, statistics_type(mu.scalar_type()))
                          : in.empty_kl();
  if (mu.numel() == 0) {
    torch::stable::zero_(kl);
    return {z, kl};
  }
  const std::array<const Tensor*, 7> tensors{
      &mu, &logvar, pointer(noise), pointer(prior_mu), pointer(prior_logvar), &z, per_element ? &kl : nullptr};
  std::array<SampleLayout, 7> layouts;
  const Samples samples = describe_samples(tensors, layouts);
  dispatch(mu.scalar_type(), [&](auto element) {
    using T = decltype(element);
    Job<T> job(in, samples);
    Operand<const T>* const inputs[] = {&job.mu, &job.logvar, &job.noise, &job.prior_mu, &job.prior_logvar};
    for (int k = 0; k < 5; ++k) job.set(*inputs[k], tensors[k], layouts[k]);
    job.set(job.z, static_cast<T*>(z.mutable_data_ptr()), layouts[5]);
    std::unique_ptr<double[]> partial;
    if (per_element) {
      job.set(job.kl, static_cast<Acc<T>*>(kl.mutable_data_ptr()), layouts[6]);
    } else {
      job.kl_sum = static_cast<Acc<T>*>(kl.mutable_data_ptr());
      if (job.plan.segments > 1) partial.reset(job.partial = new double[job.plan.items]);
    }
    parallel(job.plan, [&](int64_t begin, int64_t end) { SIMD_DISPATCH(forward(job, begin, end)); });
    for (int64_t item = 0; partial && item < job.plan.items; item += job.plan.segments)
      job.kl_sum[item / job.plan.segments] =
          Acc<T>(std::accumulate(job.partial + item, job.partial + item + job.plan.segments, 0.0));
  });
  return {z, kl};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> backward_cpu(OptionalTensor grad_z, OptionalTensor grad_kl,
                                                                Tensor mu, Tensor logvar, OptionalTensor noise,
                                                                OptionalTensor seed, OptionalTensor prior_mu,
                                                                OptionalTensor prior_logvar, double logvar_min,
                                                                double logvar_max, double free_bits, bool per_element,
                                                                bool need_noise, bool need_prior) {
  const ReparameterizeKlArguments in{mu,           logvar,     noise,      seed,      prior_mu,
                                     prior_logvar, logvar_min, logvar_max, free_bits, per_element};
  in.check();
  in.check_gradients(grad_z, grad_kl);
  const bool needed[] = {true, true, need_noise, need_prior && prior_mu, need_prior && prior_mu};
  Tensor grads[5];
  for (int k = 0; k < 5; ++k) grads[k] = needed[k] ? output_like(mu) : empty_vector(mu, 0, mu.scalar_type());
  std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> result{grads[0], grads[1], grads[2], grads[3], grads[4]};
  if (mu.numel() == 0) return result;
  const std::array<const Tensor*, 8> tensors{&mu,
                                             &logvar,
                                             pointer(noise),
                                             pointer(prior_mu),
                                             pointer(prior_logvar),
                                             &grads[0],  // all of them have its strides
                                             pointer(grad_z),
                                             per_element ? pointer(grad_kl) : nullptr};
  std::array<SampleLayout, 8> layouts;
  const Samples samples = describe_samples(tensors, layouts);
  if (grad_kl && !per_element) {  // one value for all elements of a sample
    layouts[7] = {grad_kl->stride(0), {}, samples.elements == 1};
  }
  dispatch(mu.scalar_type(), [&](auto element) {
    using T = decltype(element);
    Job<T> job(in, samples);
    Operand<const T>* const inputs[] = {&job.mu, &job.logvar, &job.noise, &job.prior_mu, &job.prior_logvar};
    for (int k = 0; k < 5; ++k) job.set(*inputs[k], tensors[k], layouts[k]);
    job.set(job.grad_z, pointer(grad_z), layouts[6]);
    job.grad_kl_varies = per_element;
    if (grad_kl) {
      job.grad_kl = {static_cast<const Acc<T>*>(grad_kl->const_data_ptr()), layouts[7]};
      if (per_element) job.set(job.grad_kl, job.grad_kl.data, layouts[7]);
    }
    for (int k = 0; k < 5; ++k)
      if (needed[k]) job.set(job.grads[k], static_cast<T*>(grads[k].mutable_data_ptr()), layouts[5]);
    job.streaming = std::all_of(std::begin(job.grads), std::end(job.grads),
                                [&](const Operand<T>& grad) { return streams(job.plan, grad); });
    parallel(job.plan, [&](int64_t begin, int64_t end) { SIMD_DISPATCH(backward(job, begin, end)); });
  });
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(genimg_fast, CPU, m) {
  m.impl("reparameterize_kl", TORCH_BOX(&forward_cpu));
  m.impl("reparameterize_kl_backward", TORCH_BOX(&backward_cpu));
}

}  // namespace genimg_fast
