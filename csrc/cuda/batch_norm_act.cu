// Host side of the batch_norm_act kernels: which kernel runs for which shape, and the launches.
#include <algorithm>
#include <initializer_list>

#include "batch_norm_act.h"
#include "batch_norm_act_backward.cuh"
#include "batch_norm_act_cluster.cuh"
#include "batch_norm_act_forward.cuh"

namespace genimg_fast::cuda {
namespace {

int power_of_two_at_most(int64_t x) {
  int p = 1;
  while (p * 2 <= x) p *= 2;
  return p;
}

// Access: how wide, and along what.

struct Access {
  int64_t outer, channels, inner;
  int element_bytes;
  int vector;  // elements per access
  int lanes;   // channels per access

  int bytes() const { return vector * element_bytes; }
};

Access choose_access(const BatchNormActShape& shape, std::initializer_list<const void*> data) {
  Access access{shape.outer, shape.channels, shape.inner, element_bytes(shape.dtype), 1, 1};
  if (shape.channels == 1 && shape.outer * shape.inner < kMaxRun) {
    access = {1, 1, shape.outer * shape.inner, access.element_bytes, 1, 1};
  }
  bool aligned = shape.dtype != DType::float64;  // 8-byte accesses of neighbouring threads are wide enough
  for (const void* p : data) aligned = aligned && is_aligned(p, 16);
  const int vector = 16 / access.element_bytes;
  if (aligned && access.inner == 1 && access.channels > 1 && access.channels % vector == 0) {
    access.vector = access.lanes = vector;
  } else if (aligned && access.inner % vector == 0) {
    access.vector = vector;
  }
  return access;
}

// Tiling.

int64_t stride(const Tiling& t) { return t.linear ? t.threads : t.rows; }
int64_t accesses_per_thread(const Tiling& t) { return divide_up(t.slice, stride(t)); }
int64_t accesses_per_tile(const Tiling& t) { return t.linear ? t.extent : t.extent * t.width; }
int64_t blocks(const Tiling& t) { return t.tiles() * t.slices; }

void set_slice(Tiling& t, int64_t slice) {
  t.slice = std::max<int64_t>(1, std::min(slice, t.extent));
  t.slices = static_cast<int>(std::min<int64_t>(divide_up(t.extent, t.slice), INT32_MAX));
}

// Tiles whose rows are `row_accesses` wide where the layout allows it: the contiguous bytes that a block touches at
// once.
Tiling make_tiling(const Access& access, int threads, int row_accesses) {
  Tiling t{};
  t.channels = access.channels;
  t.inner = access.inner;
  t.run = static_cast<uint32_t>(access.lanes == 1 ? std::min(access.inner / access.vector, kMaxRun) : 1);
  t.row = access.channels * access.inner;
  t.wrap = t.row - t.inner;
  t.threads = threads;
  t.span = 1;
  if (access.lanes > 1) {
    t.width = 1;  // a power of two, so that a warp holds whole rows
    while (t.width < row_accesses && t.width < access.channels / access.lanes) t.width *= 2;
    t.group = t.width * access.lanes;
  } else {
    const int64_t channels = std::max<int64_t>(1, std::min<int64_t>(access.channels, row_accesses / t.run));
    t.group = static_cast<int>(channels);
    t.linear = channels == 1;
    t.span = t.linear ? threads : static_cast<int>(t.run);
    t.width = t.group * t.span;
  }
  t.rows = threads / t.width;
  t.team = std::min(32, power_of_two_at_most(threads / t.group));
  if (t.linear) {
    t.extent = access.outer * int64_t{t.run};
    t.step_run = static_cast<uint32_t>(threads) % t.run;
    t.step = static_cast<int64_t>(threads / t.run) * t.row + int64_t{t.step_run} * access.vector;
  } else {
    t.extent = access.outer;
    t.step = t.rows * t.row;
  }
  set_slice(t, t.extent);
  return t;
}

int row_accesses_to_reduce(const Access& access) { return access.vector == 1 || access.lanes == 1 ? 32 : 8; }

// The narrowest rows that do not waste memory transactions (64 bytes): as many tiles, that is blocks, as possible.
int row_accesses_on_chip(const Access& access) { return access.vector == 1 ? 16 : 4; }

Tiling elementwise_tiling(const Access& access) {
  Tiling t = make_tiling(access, kThreads, 32);
  const int64_t total = t.tiles() * accesses_per_tile(t);
  const int64_t per_thread = std::clamp<int64_t>(total / (kThreads * 512), 1, 16);
  set_slice(t, per_thread * stride(t));
  return t;
}

// Policy.

constexpr int kBlocksPerMultiprocessor = 4;  // of a reduction that streams
constexpr int kMaxSlices = 128;              // of its tiles: one block combines them, keep its work short
constexpr int64_t kSmallTile = 128 << 10;  // bytes that one multiprocessor reads in less time than blocks need to meet
constexpr int64_t kSharedTile = 32 << 10;  // so much that blocks share a multiprocessor: one loads while others work
constexpr size_t kFreeShared = 32 << 10;   // dynamic shared memory that, with a kernel's own, needs no opt-in

struct Plan {
  Method method;
  Tiling tiling;          // of the kernel that reduces
  ClusterTiling cluster;  // of the kernel for clusters, if it is chosen
  int clusters;           // in its grid
  size_t shared_bytes;    // dynamic shared memory: needed,
  size_t shared_limit;    // and available
  size_t counter_bytes;   // at the head of the workspace, zeroed before the launch
  size_t staged_bytes;
};

// On-chip kernels hold `held` tensors.  Threads enough to have several accesses in flight each, few enough for more
// than one small block to share a multiprocessor.
Tiling on_chip_tiling(const Access& access, int held, int64_t slices) {
  for (int threads = 128;; threads *= 2) {
    Tiling t = make_tiling(access, threads, row_accesses_on_chip(access));
    set_slice(t, divide_up(t.extent, slices));
    if (threads == kOnChipThreads || accesses_per_thread(t) * held <= 8) return t;
  }
}

// Dynamic shared memory of an on-chip kernel.
int64_t parked_bytes(const Tiling& t, const Access& access, int held) {
  const int64_t parked = accesses_per_thread(t) - kept_accesses(held, access.vector, access.lanes);
  return std::max<int64_t>(0, parked) * t.threads * access.bytes() * held;
}

int64_t shared_limit(const Access& access, const DeviceFacts& facts) {
  const int64_t partial_bytes = access.element_bytes == 8 ? sizeof(Partial<double>) : sizeof(Partial<float>);
  return facts.shared_bytes_per_block - (kMaxPartials + kMaxGroup) * partial_bytes;
}

bool fits_on_chip(const Tiling& t, const Access& access, int held, const DeviceFacts& facts) {
  return parked_bytes(t, access, held) <= shared_limit(access, facts);
}

Tiling split_tiling(const Access& access, const DeviceFacts& facts) {
  Tiling t = make_tiling(access, kThreads, row_accesses_to_reduce(access));
  const int64_t for_device = divide_up(int64_t{facts.multiprocessors} * kBlocksPerMultiprocessor, t.tiles());
  const int64_t slices = std::clamp<int64_t>(for_device, 1, kMaxSlices);
  const int64_t per_thread = divide_up(divide_up(t.extent, slices), stride(t));
  set_slice(t, std::max<int64_t>(per_thread, 4) * stride(t));
  return t;
}

// Shared memory of a block of the kernels for clusters, beside what they have of their own.
int64_t cluster_shared_limit(const DeviceFacts& facts) { return facts.shared_bytes_per_block - (10 << 10); }

// Cuts tiles into shares of `blocks` blocks.  False if a share would be empty, or too large for its buffers.
bool make_cluster_tiling(const Access& access, int held, const DeviceFacts& facts, int blocks, int buffers,
                         ClusterTiling* tiling) {
  constexpr int kWordBytes = 16, kRowWords = 4;  // 64 bytes: the narrowest rows that waste no memory transaction
  constexpr int64_t kBulkBytes = 512;            // of a run: bulk copies of less cost more than they save
  if (access.vector * access.element_bytes != kWordBytes) return false;
  ClusterTiling t{};
  t.channels = access.channels;
  t.inner = access.inner;
  t.row = access.channels * access.inner;
  t.blocks = blocks;
  t.buffers = buffers;
  t.group = t.width = 1;
  if (access.lanes > 1) {
    while (t.width < kRowWords && t.width < access.channels / access.lanes) t.width *= 2;
    t.group = t.width * access.lanes;
    t.extent = access.outer;
  } else {
    if (access.inner / access.vector >= kMaxRun) return false;
    t.run = static_cast<uint32_t>(access.inner / access.vector);
    t.extent = access.outer * int64_t{t.run};
    t.wrap = t.row - t.inner;
    t.bulk = t.run * kWordBytes >= kBulkBytes;
  }
  t.tile_step = t.group * t.inner;
  if (divide_up(t.channels, t.group) > INT32_MAX / 32) return false;
  t.tiles = static_cast<int>(divide_up(t.channels, t.group));
  t.share = divide_up(t.extent, blocks);
  if ((blocks - 1) * t.share >= t.extent) return false;
  int64_t per_thread = 0;
  for (t.threads = 128;; t.threads *= 2) {
    per_thread = divide_up(t.share * t.width, t.threads);
    const bool enough = per_thread * held <= 8 && t.threads >= t.group * blocks;
    if (enough || t.threads == kOnChipThreads) break;
  }
  const int64_t words = per_thread * t.threads;
  if (words * kWordBytes * held * buffers > cluster_shared_limit(facts)) return false;
  t.words = static_cast<int>(words);
  if (access.lanes > 1) {
    t.step = t.threads / t.width * t.row;
  } else {
    t.step_run = static_cast<uint32_t>(t.threads) % t.run;
    t.step = static_cast<int64_t>(t.threads / t.run) * t.row + int64_t{t.step_run} * access.vector;
  }
  *tiling = t;
  return true;
}

// The way to cut tiles for clusters that lets the busiest multiprocessor have the least to do; false if tiles do not
// fit, or if they would leave so much of the device idle that to read the input twice is faster.  Work is counted in
// bytes that a block holds.
bool choose_clusters(const Access& access, int held, const DeviceFacts& facts, bool forced, Plan* plan) {
  constexpr int64_t kMeeting = 16 << 10;   // what a multiprocessor would load and store while a cluster meets
  constexpr int64_t kLaunches = 96 << 10;  // and in the time of the launches that are saved
  int64_t least = INT64_MAX;
  for (int i = 0; i < 5; ++i) {
    for (int buffers = kMaxBuffers; buffers > 0; --buffers) {
      ClusterTiling t;
      if (facts.clusters[i] == 0 || !make_cluster_tiling(access, held, facts, 1 << i, buffers, &t)) continue;
      const int clusters = std::min(t.tiles, facts.clusters[i]);
      const int64_t turns = divide_up(t.tiles, clusters), bytes = int64_t{t.words} * 16 * held;
      // With one buffer a block does not load while it works; others do.
      const bool overlaps = buffers > 1 || turns == 1;
      const int64_t work = turns * ((overlaps ? bytes : bytes * 5 / 4) + kMeeting);
      if (work < least) {
        least = work;
        plan->cluster = t;
        plan->clusters = clusters;
        plan->shared_bytes = static_cast<size_t>(bytes) * buffers;
        plan->shared_limit = static_cast<size_t>(cluster_shared_limit(facts));
      }
    }
  }
  const double all = static_cast<double>(access.outer) * access.channels * access.inner * access.element_bytes * held;
  const double even = all / std::max(1, facts.multiprocessors);
  return least < INT64_MAX && (forced || static_cast<double>(least) <= 1.5 * even + kLaunches);
}

// The whole policy: how batch statistics, or in backward sums, are computed.
//
//   block    A channel tile fits in one block, and either tiles are small or they keep at least 3/4 of the device busy.
//   cluster  A channel tile fits in one cluster of blocks: preferred but for small tiles.
//   group    All tiles fit on the device together, each in several blocks, and the device has no clusters.
//   split    Everything else, and whatever has nothing to gain on chip (held == 0).
Method choose_method(const Access& access, int held, const DeviceFacts& facts, Method wanted, Plan* plan) {
  if (held == 0 || wanted == Method::split) return Method::split;
  const int64_t multiprocessors = std::max(1, facts.multiprocessors);

  const Tiling block = on_chip_tiling(access, held, 1);
  const int64_t waves = divide_up(block.tiles(), multiprocessors);
  const int64_t small_tile = facts.clusters[0] > 0 && waves > 1 ? kSharedTile : kSmallTile;
  const bool small = accesses_per_tile(block) * access.bytes() * held <= small_tile;
  const bool busy = block.tiles() * 4 >= waves * multiprocessors * 3;
  const bool one_block = fits_on_chip(block, access, held, facts), automatic = wanted == Method::automatic;
  if (one_block && (wanted == Method::block || (automatic && small))) return Method::block;
  if (wanted == Method::cluster || automatic) {
    if (choose_clusters(access, held, facts, !automatic, plan)) return Method::cluster;
  }
  if (one_block && automatic && busy) return Method::block;

  const int64_t slices = multiprocessors / block.tiles();
  const bool may_group = wanted == Method::group || (automatic && facts.clusters[0] == 0);
  if (facts.cooperative_launch && slices >= 2 && may_group) {
    const Tiling group = on_chip_tiling(access, held, slices);
    if (group.slices >= 2 && fits_on_chip(group, access, held, facts)) return Method::group;
  }
  return Method::split;
}

Plan make_plan(const Access& access, int held, const DeviceFacts& facts, Method wanted) {
  Plan plan{};
  plan.method = choose_method(access, held, facts, wanted, &plan);
  if (plan.method == Method::split) {
    plan.tiling = split_tiling(access, facts);
  } else if (plan.method != Method::cluster) {
    plan.tiling = on_chip_tiling(access, held, 1);
    if (plan.method == Method::group) {
      plan.tiling = on_chip_tiling(access, held, facts.multiprocessors / plan.tiling.tiles());
    }
    plan.shared_bytes = static_cast<size_t>(parked_bytes(plan.tiling, access, held));
    plan.shared_limit = static_cast<size_t>(shared_limit(access, facts));
  }
  if (plan.tiling.slices > 1) {
    plan.counter_bytes = static_cast<size_t>(divide_up(plan.tiling.tiles() * sizeof(unsigned), 16) * 16);
    const size_t pair = access.element_bytes == 8 ? sizeof(double2) : sizeof(float2);
    plan.staged_bytes = static_cast<size_t>(plan.tiling.channels) * plan.tiling.slices * pair;
  }
  return plan;
}

Access forward_access(const BatchNormActShape& shape, const BatchNormActForward& call) {
  return choose_access(shape, {call.input, call.residual, call.output});
}

Access backward_access(const BatchNormActShape& shape, const BatchNormActBackward& call) {
  return choose_access(shape, {call.grad_output, call.input, call.residual, call.grad_input, call.grad_residual});
}

Plan train_plan(const BatchNormActShape& shape, const BatchNormActForward& call, const DeviceFacts& facts,
                Method method) {
  return make_plan(forward_access(shape, call), 1, facts, method);
}

Plan backward_plan(const BatchNormActShape& shape, const BatchNormActBackward& call, const DeviceFacts& facts,
                   Method method) {
  return make_plan(backward_access(shape, call), call.training && call.grad_input ? 2 : 0, facts, method);
}

// Launches.

template <class T_, int V_, int A_>
struct Instance {
  using T = T_;
  static constexpr int V = V_, A = A_;
};

// Calls launch with the Instance of the shape; each of its kernels is compiled for the ten instances named here, and
// those that stream once more for SiLU.
template <class Launch>
int dispatch(DType dtype, const Access& access, Launch launch) {
  return dispatch_element(dtype, [&](auto element) {
    using T = typename decltype(element)::T;
    if constexpr (!std::is_same<T, double>::value) {
      constexpr int V = kVector<T>;
      if (access.lanes > 1) return launch(Instance<T, V, V>{});
      if (access.vector > 1) return launch(Instance<T, V, 1>{});
    }
    return launch(Instance<T, 1, 1>{});
  });
}

// Calls launch with whether the activation is SiLU, as a constant.
template <class Launch>
int dispatch_silu(bool silu, Launch launch) {
  return silu ? launch(std::true_type{}) : launch(std::false_type{});
}

template <class Kernel, class... Arguments>
int launch_tiles(Kernel kernel, const Tiling& t, gpu::stream_t stream, const Arguments&... arguments) {
  if (blocks(t) >= INT32_MAX || t.run == kMaxRun) return kInvalidConfiguration;  // beyond 32-bit block and run indices
  const dim3 grid(static_cast<unsigned>(blocks(t))), block(static_cast<unsigned>(t.threads));
  return gpu::launch(kernel, grid, block, 0, stream, t, arguments...);
}

template <class Kernel, class... Arguments>
int launch_on_chip(Kernel kernel, const Plan& plan, gpu::stream_t stream, const Arguments&... arguments) {
  const Tiling& t = plan.tiling;
  if (blocks(t) >= INT32_MAX || t.run == kMaxRun) return kInvalidConfiguration;
  if (plan.shared_bytes > kFreeShared) {
    // Always the same value: the setting belongs to the kernel, and another host thread may be launching it too.
    if (const int error = gpu::set_max_dynamic_smem(kernel, plan.shared_limit)) return error;
  }
  const dim3 grid(static_cast<unsigned>(blocks(t))), block(static_cast<unsigned>(t.threads));
  return plan.method == Method::group
             ? gpu::launch_coop(kernel, grid, block, plan.shared_bytes, stream, t, arguments...)
             : gpu::launch(kernel, grid, block, plan.shared_bytes, stream, t, arguments...);
}

template <class Kernel, class Arguments>
int launch_clusters(Kernel kernel, const Plan& plan, gpu::stream_t stream, const Arguments& arguments) {
  const ClusterTiling& t = plan.cluster;
  if (const int error = gpu::set_max_dynamic_smem(kernel, plan.shared_limit)) return error;
  const dim3 grid(static_cast<unsigned>(plan.clusters * t.blocks)), block(static_cast<unsigned>(t.threads));
  return gpu::launch_clusters(kernel, grid, block, static_cast<unsigned>(t.blocks), plan.shared_bytes, stream, t,
                              arguments);
}

template <class Acc>
int prepare_meeting(const Plan& plan, void* workspace, gpu::stream_t stream, Meeting<Acc>* meeting) {
  if (plan.counter_bytes == 0) return 0;
  meeting->arrived = static_cast<unsigned*>(workspace);
  meeting->staged =
      reinterpret_cast<typename PairOf<Acc>::type*>(static_cast<unsigned char*>(workspace) + plan.counter_bytes);
  return gpu::memset_async(workspace, 0, plan.counter_bytes, stream);
}

template <class Acc>
ActivationOf<Acc> activation_of(int activation, double negative_slope) {
  return {activation == kLeakyRelu ? static_cast<Acc>(negative_slope) : Acc(1), activation == kRelu,
          activation == kSilu};
}

template <class T>
ForwardArguments<T> forward_arguments(const Access& access, const BatchNormActForward& call, bool training) {
  using Acc = Accumulator<T>;
  const double count = static_cast<double>(access.outer) * static_cast<double>(access.inner);
  ForwardArguments<T> args{};
  args.input = static_cast<const T*>(call.input);
  args.residual = static_cast<const T*>(call.residual);
  args.output = static_cast<T*>(call.output);
  args.weight = {call.weight.values, call.weight.own_dtype};
  args.bias = {call.bias.values, call.bias.own_dtype};
  args.mean = static_cast<Acc*>(call.mean);
  args.invstd = static_cast<Acc*>(call.invstd);
  args.running_mean = {call.running_mean.values, call.running_mean.own_dtype};
  args.running_var = {call.running_var.values, call.running_var.own_dtype};
  args.momentum = static_cast<Acc>(call.momentum);
  args.eps = static_cast<Acc>(call.eps);
  args.unbiased = static_cast<Acc>(count / (count - 1));
  args.activation = activation_of<Acc>(call.activation, call.negative_slope);
  args.training = training;
  return args;
}

template <class T>
BackwardArguments<T> backward_arguments(const Access& access, const BatchNormActBackward& call) {
  using Acc = Accumulator<T>;
  BackwardArguments<T> args{};
  args.grad_output = static_cast<const T*>(call.grad_output);
  args.input = static_cast<const T*>(call.input);
  args.residual = call.activation == kIdentity ? nullptr : static_cast<const T*>(call.residual);
  args.grad_input = static_cast<T*>(call.grad_input);
  args.grad_residual = static_cast<T*>(call.grad_residual);
  args.weight = {call.weight.values, call.weight.own_dtype};
  args.bias = {call.bias.values, call.bias.own_dtype};
  args.mean = static_cast<const Acc*>(call.mean);
  args.invstd = static_cast<const Acc*>(call.invstd);
  args.grad_weight = static_cast<Acc*>(call.grad_weight);
  args.grad_bias = static_cast<Acc*>(call.grad_bias);
  args.inverse_count = static_cast<Acc>(1 / (static_cast<double>(access.outer) * static_cast<double>(access.inner)));
  args.activation = activation_of<Acc>(call.activation, call.negative_slope);
  return args;
}

}  // namespace

Method batch_norm_act_train_method(const BatchNormActShape& shape, const BatchNormActForward& call,
                                   const DeviceFacts& facts, Method method) {
  return train_plan(shape, call, facts, method).method;
}

Method batch_norm_act_backward_method(const BatchNormActShape& shape, const BatchNormActBackward& call,
                                      const DeviceFacts& facts, Method method) {
  return backward_plan(shape, call, facts, method).method;
}

size_t batch_norm_act_train_workspace(const BatchNormActShape& shape, const BatchNormActForward& call,
                                      const DeviceFacts& facts, Method method) {
  const Plan plan = train_plan(shape, call, facts, method);
  return plan.counter_bytes + plan.staged_bytes;
}

size_t batch_norm_act_backward_workspace(const BatchNormActShape& shape, const BatchNormActBackward& call,
                                         const DeviceFacts& facts, Method method) {
  const Plan plan = backward_plan(shape, call, facts, method);
  return plan.counter_bytes + plan.staged_bytes;
}

int batch_norm_act_train(const BatchNormActShape& shape, const BatchNormActForward& call, const DeviceFacts& facts,
                         Method method, void* workspace, void* opaque_stream) {
  const auto stream = static_cast<gpu::stream_t>(opaque_stream);
  const Access access = forward_access(shape, call);
  const Plan plan = make_plan(access, 1, facts, method);
  return dispatch(shape.dtype, access, [&](auto instance) {
    using I = decltype(instance);
    using T = typename I::T;
    const auto args = forward_arguments<T>(access, call, true);
    Meeting<Accumulator<T>> meeting{};
    if (const int error = prepare_meeting(plan, workspace, stream, &meeting)) return error;
    if constexpr (I::V > 1) {
      if (plan.method == Method::cluster) return launch_clusters(train_cluster<T, I::A>, plan, stream, args);
    }
    if (plan.method != Method::split) {
      return launch_on_chip(train_on_chip<T, I::V, I::A>, plan, stream, args, meeting);
    }
    const int error = launch_tiles(reduce_moments<T, I::V, I::A>, plan.tiling, stream, args, meeting);
    if (error) return error;
    return dispatch_silu(args.activation.silu, [&](auto silu) {
      return launch_tiles(normalize<T, I::V, I::A, silu.value>, elementwise_tiling(access), stream, args);
    });
  });
}

int batch_norm_act_eval(const BatchNormActShape& shape, const BatchNormActForward& call, void* opaque_stream) {
  const auto stream = static_cast<gpu::stream_t>(opaque_stream);
  const Access access = forward_access(shape, call);
  return dispatch(shape.dtype, access, [&](auto instance) {
    using I = decltype(instance);
    using T = typename I::T;
    const auto args = forward_arguments<T>(access, call, false);
    return dispatch_silu(args.activation.silu, [&](auto silu) {
      return launch_tiles(normalize<T, I::V, I::A, silu.value>, elementwise_tiling(access), stream, args);
    });
  });
}

int batch_norm_act_backward(const BatchNormActShape& shape, const BatchNormActBackward& call, const DeviceFacts& facts,
                            Method method, void* workspace, void* opaque_stream) {
  const auto stream = static_cast<gpu::stream_t>(opaque_stream);
  const Access access = backward_access(shape, call);
  const Plan plan = backward_plan(shape, call, facts, method);
  return dispatch(shape.dtype, access, [&](auto instance) {
    using I = decltype(instance);
    using T = typename I::T;
    auto args = backward_arguments<T>(access, call);
    Meeting<Accumulator<T>> meeting{};
    if (const int error = prepare_meeting(plan, workspace, stream, &meeting)) return error;
    if constexpr (I::V > 1) {
      if (plan.method == Method::cluster) return launch_clusters(backward_cluster<T, I::A>, plan, stream, args);
    }
    if (plan.method != Method::split) {
      return launch_on_chip(backward_on_chip<T, I::V, I::A>, plan, stream, args, meeting);
    }
    auto reduce = args;
    if (call.training) reduce.grad_input = nullptr;  // depends on the sums
    const int error = dispatch_silu(args.activation.silu, [&](auto silu) {
      return launch_tiles(reduce_gradients<T, I::V, I::A, silu.value>, plan.tiling, stream, reduce, meeting);
    });
    if (error || !call.training || !call.grad_input) return error;
    if (call.grad_residual) {
      // It holds the gradient behind the activation, so neither the residual nor the activation is needed again.
      args.grad_output = args.grad_residual;
      args.residual = nullptr;
      args.activation = activation_of<Accumulator<T>>(kIdentity, 0);
    }
    return dispatch_silu(args.activation.silu, [&](auto silu) {
      return launch_tiles(apply_gradients<T, I::V, I::A, silu.value>, elementwise_tiling(access), stream, args);
    });
  });
}

BatchNormActClusters batch_norm_act_clusters(const BatchNormActShape& shape, int held, const DeviceFacts& facts) {
  Plan plan{};
  if (!choose_clusters(choose_access(shape, {}), held, facts, true, &plan)) return {};
  return {plan.clusters, plan.cluster.blocks, plan.cluster.buffers, plan.cluster.bulk};
}

BatchNormActVisits batch_norm_act_visits(const BatchNormActShape& shape, bool aligned, bool elementwise, int held,
                                         const DeviceFacts& facts, Method method, int64_t tile, int slice, int limit) {
  const Access access = choose_access(shape, {reinterpret_cast<const void*>(uintptr_t{aligned ? 0u : 1u})});
  const Tiling t = elementwise ? elementwise_tiling(access) : make_plan(access, held, facts, method).tiling;
  BatchNormActVisits visits{t.tiles(), t.slices, access.vector, access.lanes, 0, {}, {}};
  dispatch(shape.dtype, access, [&](auto instance) {
    using I = decltype(instance);
    if (slice < 0) return 0;
    visits.slice_elements = t.count<I::V>(slice);
    for (int thread = 0; thread < t.threads; ++thread) {
      Walk walk = t.walk<I::V, I::A>(tile, slice, thread);
      for (const int count = walk.left; walk.left > 0; --walk.left, t.advance(walk)) {
        if (walk.left > limit && walk.left <= count - limit) continue;
        visits.channels.push_back(walk.channel);
        visits.offsets.push_back(walk.offset);
      }
    }
    return 0;
  });
  return visits;
}

}  // namespace genimg_fast::cuda
