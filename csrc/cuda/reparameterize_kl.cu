// Host side of the reparameterize_kl kernels: how the work is cut up for which shape, and the launches.
#include <algorithm>

#include "reparameterize_kl.cuh"

namespace genimg_fast::cuda {
namespace {

using namespace reparameterize;

bool is_aligned(const void* p) { return cuda::is_aligned(p, 16); }

// Whether the first `operands` of a call allow 16-byte accesses.
bool is_dense(const ReparameterizeKlCall& call, int operands) {
  const int dims = call.samples.dims, bytes = element_bytes(call.dtype);
  if (call.samples.elements % (bytes == 2 ? 8 : 4) != 0) return false;
  for (int t = 0; t < operands; ++t) {
    const SampleLayout& layout = call.layouts[t];
    if (t != kOutput && !call.inputs[t]) continue;
    const auto is_zero = [](int64_t stride) { return stride == 0; };
    if (t == kGradKl && std::all_of(layout.strides, layout.strides + dims, is_zero)) continue;
    const int size = t == kGradKl ? std::max(bytes, 4) : bytes;
    const bool rows_aligned = call.samples.batch == 1 || layout.batch_stride * size % 16 == 0;
    if (!layout.row_major || !rows_aligned || !is_aligned(call.inputs[t])) return false;
  }
  return is_aligned(call.z) && (!call.per_element || is_aligned(call.kl)) && is_aligned(call.grad_mu) &&
         is_aligned(call.grad_logvar) && is_aligned(call.grad_noise) && is_aligned(call.grad_prior_mu) &&
         is_aligned(call.grad_prior_logvar);
}

bool clamps(const ReparameterizeKlCall& call) { return call.logvar_min > -INFINITY || call.logvar_max < INFINITY; }

// Whether a dense call is a plain one; `operands` says whether of forward or backward.
bool is_plain(const ReparameterizeKlCall& call, int operands) {
  if (call.inputs[kNoise] || call.inputs[kPriorMu] || clamps(call) || call.free_bits > 0 || call.per_element) {
    return false;
  }
  if (operands == kForwardOperands) return true;
  return call.inputs[kGradZ] && call.inputs[kGradKl] && call.layouts[kGradKl].strides[0] == 0 && !call.grad_noise;
}

// Policy.

constexpr int kBusyThreads = 1024;      // of a multiprocessor: enough to keep its memory busy
constexpr int64_t kStepsPerThread = 8;  // and enough for each to make a reduction cheap
constexpr int64_t kLineThreads = 8;     // that read a line of 128 bytes together
constexpr int kMinThreads = 64;         // of a block
constexpr int64_t kMaxSlices = 1024;    // of a sample: one block combines them, keep its work short

// The whole policy.  Each thread gets as many steps as leave the device busy, kStepsPerThread at most, and a sample the
// threads that this takes: a few neighbouring ones, a block, or several blocks (slices).  Blocks are smaller where
// there would be fewer of them than multiprocessors.
ReparameterizeKlPlan choose_plan(const ReparameterizeKlCall& call, int operands, bool reduces,
                                 const DeviceFacts& facts) {
  ReparameterizeKlPlan plan{};
  plan.dense = is_dense(call, operands);
  plan.plain = plan.dense && is_plain(call, operands);
  plan.step = plan.dense && element_bytes(call.dtype) == 2 ? 8 : 4;
  const int64_t batch = call.samples.batch, steps = divide_up(call.samples.elements, plan.step);
  const int64_t multiprocessors = std::max(1, facts.multiprocessors);
  const int64_t per_thread = std::clamp<int64_t>(batch * steps / (multiprocessors * kBusyThreads), 1, kStepsPerThread);

  const int64_t wanted = std::max(divide_up(steps, per_thread), std::min(steps, kLineThreads));
  int team = 1;
  for (; team < kThreads && team < wanted; team *= 2) ++plan.team_log2;

  const int64_t slices = team == kThreads ? std::clamp<int64_t>(steps / (team * per_thread), 1, kMaxSlices) : 1;
  plan.sample_steps = steps;
  plan.slice_steps = divide_up(steps, slices);
  plan.slices = static_cast<int>(divide_up(steps, plan.slice_steps));

  const int64_t teams = batch * plan.slices;
  plan.threads = kThreads;
  while (plan.threads > std::max(team, kMinThreads) && teams * team < multiprocessors * plan.threads) {
    plan.threads /= 2;
  }
  plan.blocks = divide_up(teams, plan.threads / team);

  if (plan.slices > 1 && reduces) {
    const size_t value_bytes = call.dtype == DType::float64 ? 8 : 4;
    plan.workspace_bytes = static_cast<size_t>(teams) * value_bytes + static_cast<size_t>(batch) * sizeof(unsigned);
  }
  return plan;
}

template <class Acc, bool plain>
Options<Acc, plain> options_of(const ReparameterizeKlCall& call) {
  return {static_cast<Acc>(call.logvar_min), static_cast<Acc>(call.logvar_max), static_cast<Acc>(call.free_bits),
          clamps(call)};
}

// Launches.

template <class T_, Known known_>
struct Instance {
  using T = T_;
  using Acc = Accumulator<T>;
  static constexpr Known known = known_;
  static constexpr bool plain = known == Known::plain;
};

// Calls launch with the Instance of the call; each kernel is compiled for the eleven instances named here.
template <class Launch>
int dispatch(DType dtype, const ReparameterizeKlPlan& plan, Launch launch) {
  if (plan.blocks > INT32_MAX) return kInvalidConfiguration;
  return dispatch_element(dtype, [&](auto element) {
    using T = typename decltype(element)::T;
    if constexpr (sizeof(T) < 8) {  // float64 is bound by its arithmetic, not by the questions
      if (plan.plain) return launch(Instance<T, Known::plain>{});
    }
    return plan.dense ? launch(Instance<T, Known::dense>{}) : launch(Instance<T, Known::strided>{});
  });
}

}  // namespace

ReparameterizeKlPlan reparameterize_kl_forward_plan(const ReparameterizeKlCall& call, const DeviceFacts& facts) {
  return choose_plan(call, kForwardOperands, !call.per_element, facts);
}

ReparameterizeKlPlan reparameterize_kl_backward_plan(const ReparameterizeKlCall& call, const DeviceFacts& facts) {
  return choose_plan(call, kOperands, false, facts);
}

int reparameterize_kl_forward(const ReparameterizeKlCall& call, const ReparameterizeKlPlan& plan, void* workspace,
                              void* opaque_stream) {
  const auto stream = static_cast<gpu::stream_t>(opaque_stream);
  return dispatch(call.dtype, plan, [&](auto instance) {
    using I = decltype(instance);
    using Acc = typename I::Acc;
    Meeting<Acc> meeting{};
    if (plan.workspace_bytes > 0) {
      meeting.staged = static_cast<Acc*>(workspace);
      meeting.arrived = reinterpret_cast<unsigned*>(meeting.staged + call.samples.batch * plan.slices);
      const size_t bytes = static_cast<size_t>(call.samples.batch) * sizeof(unsigned);
      if (const int error = gpu::memset_async(meeting.arrived, 0, bytes, stream)) return error;
    }
    return gpu::launch(forward<typename I::T, I::known>, dim3(static_cast<unsigned>(plan.blocks)), dim3(plan.threads),
                       0, stream, call, plan, options_of<Acc, I::plain>(call), meeting);
  });
}

int reparameterize_kl_backward(const ReparameterizeKlCall& call, const ReparameterizeKlPlan& plan,
                               void* opaque_stream) {
  const auto stream = static_cast<gpu::stream_t>(opaque_stream);
  return dispatch(call.dtype, plan, [&](auto instance) {
    using I = decltype(instance);
    return gpu::launch(backward<typename I::T, I::known>, dim3(static_cast<unsigned>(plan.blocks)), dim3(plan.threads),
                       0, stream, call, plan, options_of<typename I::Acc, I::plain>(call));
  });
}

ReparameterizeKlVisit reparameterize_kl_visit(const ReparameterizeKlCall& call, const ReparameterizeKlPlan& plan,
                                              Operand operand, unsigned block, int thread) {
  const Way way = way_of(call.samples, plan, block, thread);
  const int64_t begin = way.first + way.begin;
  int64_t offset[1];
  locate(call.samples, call.layouts + operand, way.sample, begin * plan.step, offset);
  return {way.sample, begin, way.first + way.end, offset[0]};
}

}  // namespace genimg_fast::cuda
