// Host side of the batch_norm_act kernels: which kernel runs for which shape, and the launches.
#include <algorithm>
#include <initializer_list>

#include "batch_norm_act.h"
#include "batch_norm_act_backward.cuh"
#include "batch_norm_act_cluster.cuh"
#include "batch_norm_act_forward.cuh"
#include "cluster_launch.cuh"

namespace genimg_fast::cuda {
namespace {

using namespace batch_norm;

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
  if (shape.channels == 1) access = {1, 1, shape.outer * shape.inner, access.element_bytes, 1, 1};
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

constexpr int kMaxSlices = 65535;                                 // of a grid's second dimension
constexpr int64_t kMaxChannels = (int64_t{1} << 31) - kMaxGroup;  // kernels count them in 32 bits

// Chunks of the thread that has most.
int64_t chunks_per_thread(const Tiling& t, int chunk) {
  const int64_t units = t.rounds + (t.spare > 0);
  return t.linear ? units + t.rest_rounds + (t.spare_rests > 0) : divide_up(units, chunk);
}

// Once rows and extent are known: slices whose units are `length` long, `stride` apart in a thread.
void set_slices(Tiling& t, const Access& access, int chunk, int64_t slices, int64_t length, int64_t stride) {
  t.slices = static_cast<int>(slices);
  t.length = length;
  t.stride = stride;
  t.rounds = static_cast<int>(length / stride);
  const int64_t at_once = int64_t{t.rows} * t.slices;
  t.spare = static_cast<int>(t.extent % at_once);
  t.each = t.extent / at_once * t.rows * t.unit;
  if (t.linear) {
    const int64_t piece = int64_t{piece_accesses(access.vector)} * access.bytes();
    t.access_step = piece / chunk;
    t.at_step = static_cast<uint32_t>(stride % t.pieces);
    t.chunk_step = stride / t.pieces * t.row + t.at_step * piece;
    t.wrap = t.row - t.pieces * piece;
    t.rest_rounds = static_cast<int>(t.rest > 0 ? t.outer / at_once : 0);
    t.spare_rests = static_cast<int>(t.rest > 0 ? t.outer % at_once : 0);
    t.each += t.rest_rounds * int64_t{t.rows} * t.rest_elements;
    t.ragged_step = at_once * t.row;
  } else {
    t.access_step = stride * t.row;
    t.chunk_step = chunk * t.access_step;
  }
}

// As many units to a slice as a block visits in `rounds`, neighbours.
void neighbouring_slices(Tiling& t, const Access& access, int chunk, int64_t rounds) {
  rounds = std::max(rounds, divide_up(t.extent, int64_t{t.rows} * kMaxSlices));
  t.slice = rounds * t.rows;
  set_slices(t, access, chunk, divide_up(t.extent, t.slice), t.slice, t.rows);
}

void interleaved_slices(Tiling& t, const Access& access, int chunk, int64_t slices) {
  slices = std::clamp<int64_t>(slices, 1, divide_up(t.extent, t.rows));
  t.slice = t.rows;
  set_slices(t, access, chunk, slices, t.extent, t.rows * slices);
}

// Of one slice.  Rows of columns are `row_accesses` wide where the layout allows it: the contiguous bytes that a block
// touches at once.
Tiling make_tiling(const Access& access, int threads, int row_accesses, int chunk) {
  Tiling t{};
  const int64_t run = access.lanes == 1 ? access.inner / access.vector : 1;  // accesses
  const int piece = piece_accesses(access.vector);
  t.channels = static_cast<int>(std::min(access.channels, kMaxChannels));
  t.outer = access.outer;
  t.run = access.inner * access.element_bytes;
  t.row = access.channels * t.run;
  t.threads = threads;
  t.linear = access.lanes == 1 && run >= piece;
  t.span = t.width = t.group = 1;
  if (t.linear) {
    t.pieces = static_cast<uint32_t>(run / piece);
    t.rest = static_cast<int>(run % piece);
    t.rows = threads / (piece / chunk);
    t.extent = access.outer * t.pieces;
    t.unit = piece * access.vector;
    t.rest_elements = t.rest * access.vector;
  } else {
    if (access.lanes > 1) {  // a power of two, so that a warp holds whole rows
      while (t.width < row_accesses && t.width < access.channels / access.lanes) t.width *= 2;
      t.group = t.width * access.lanes;
    } else {
      t.group = static_cast<int>(std::max<int64_t>(1, std::min<int64_t>(access.channels, row_accesses / run)));
      t.span = static_cast<int>(run);
      t.width = t.group * t.span;
    }
    t.pieces = 1;
    t.unit = static_cast<int>(access.inner);
    t.rows = threads / t.width;
    t.extent = access.outer;
  }
  t.tiles = static_cast<int>(divide_up(t.channels, t.group));
  t.team = std::min(32, power_of_two_at_most(threads / t.group));
  interleaved_slices(t, access, chunk, 1);
  return t;
}

// Of the kernels that stream.
int row_accesses_to_stream(const Access& access) { return access.lanes == 1 ? 32 : 128 / access.bytes(); }

// The narrowest rows that do not waste memory transactions (64 bytes): as many tiles, that is blocks, as possible.
int row_accesses_on_chip(const Access& access) { return access.vector == 1 ? 16 : 4; }

// held: tensors that are read, 1 in forward and 2 in backward.
int chunk_of(bool reduces, const Access& access, int held) {
  return chunk_accesses(reduces, held, access.vector, access.lanes, access.bytes());
}

Tiling elementwise_tiling(const Access& access, int held) {
  const int chunk = chunk_of(false, access, held);
  Tiling t = make_tiling(access, kThreads, row_accesses_to_stream(access), chunk);
  const int64_t accesses = divide_up(access.outer * access.channels * access.inner, access.vector);
  const int64_t per_thread = std::clamp<int64_t>(accesses / (kThreads * 512), chunk, 16);
  neighbouring_slices(t, access, chunk, t.linear ? per_thread / chunk : per_thread);
  return t;
}

// Policy.

constexpr int kBlocksPerMultiprocessor = 4;  // of a reduction that streams
constexpr int64_t kSmallTile = 128 << 10;    // bytes: one multiprocessor reads them before a second kernel has started
constexpr int64_t kSharedTile = 32 << 10;    // so much that blocks share a multiprocessor: one loads while others work
constexpr size_t kFreeShared = 32 << 10;     // dynamic shared memory that, with a kernel's own, needs no opt-in
constexpr int64_t kStreamBytes = 32 << 20;   // of a tensor: more than half of a large cache

struct Plan {
  Method method;
  Tiling tiling;         // of the kernel that reduces
  ClusterPlan cluster;   // of the kernel for clusters, if it is chosen
  size_t shared_bytes;   // dynamic shared memory: needed,
  size_t shared_limit;   // and available
  size_t counter_bytes;  // at the head of the workspace, zeroed before the launch
  size_t staged_bytes;
};

// On-chip kernels hold `held` tensors.  Threads enough to have several accesses in flight each, few enough for more
// than one small block to share a multiprocessor.
Tiling on_chip_tiling(const Access& access, int held) {
  const int chunk = chunk_of(true, access, held);
  for (int threads = 128;; threads *= 2) {
    const Tiling t = make_tiling(access, threads, row_accesses_on_chip(access), chunk);
    if (threads == kOnChipThreads || chunks_per_thread(t, chunk) * chunk * held <= 8) return t;
  }
}

// Dynamic shared memory of an on-chip kernel.
int64_t parked_bytes(const Tiling& t, const Access& access, int held) {
  const int chunk = chunk_of(true, access, held);
  const int64_t parked = chunks_per_thread(t, chunk) * chunk - kept_accesses(held, access.vector, access.lanes);
  return std::max<int64_t>(0, parked) * t.threads * access.bytes() * held;
}

// Beside the kernel's own: partial results and the table of the channels.
int64_t shared_limit(const Access& access, const DeviceFacts& facts) {
  const int64_t value_bytes = access.element_bytes == 8 ? 8 : 4;
  return facts.shared_bytes_per_block - (3 * (kMaxPartials + kMaxGroup) + 5 * kMaxGroup) * value_bytes - 16;
}

// What the kernel reads that reduces gradients: beside the sums of eight channels there are no registers for wide
// accesses.
Access gradient_access(Access access) {
  if (access.lanes == 8) access.vector = access.lanes = 4;
  return access;
}

Tiling split_tiling(Access access, int held, const DeviceFacts& facts) {
  if (held == 2) access = gradient_access(access);
  const int chunk = chunk_of(true, access, held);
  Tiling t = make_tiling(access, kThreads, row_accesses_to_stream(access), chunk);
  const int64_t for_device = divide_up(int64_t{facts.multiprocessors} * kBlocksPerMultiprocessor, t.tiles);
  const int64_t rounds = t.linear ? 1 : chunk;  // that make a chunk of each thread
  interleaved_slices(t, access, chunk, std::min(for_device, divide_up(t.extent, t.rows * rounds)));
  return t;
}

// False if the kernels for clusters cannot do it.
bool make_cluster_tiles(const Access& access, int held, ClusterTiles* tiles) {
  if (access.vector * access.element_bytes != kWordBytes) return false;
  ClusterTiling t{};
  t.channels = access.channels;
  t.inner = access.inner;
  t.group = 1;
  const int64_t row = access.channels * access.inner * access.element_bytes;  // bytes
  int64_t run = access.inner / access.vector, units = access.outer * run;
  if (access.lanes > 1) {
    for (run = 1; run < kRowWords && run < access.channels / access.lanes;) run *= 2;
    t.group = static_cast<int>(run) * access.lanes;
    t.step = 32 / run * row;
    units = access.outer;
  }
  t.tile_step = t.group * access.inner * access.element_bytes;
  t.unit = static_cast<uint32_t>(access.lanes > 1 ? run : 1);
  t.run = static_cast<uint32_t>(run);
  t.wrap = static_cast<uint32_t>(row - run * kWordBytes);
  const int64_t elements = access.outer * access.channels * access.inner;
  *tiles = {t, units, held, access.vector, access.element_bytes, held * access.element_bytes, elements};
  const int64_t number = divide_up(t.channels, t.group);
  if (!can_count(*tiles, number) || row > UINT32_MAX) return false;
  tiles->tiling.by_run = Divider(t.run);
  tiles->tiling.tiles = static_cast<int>(number);
  return true;
}

bool choose_clusters(const Access& access, int held, const DeviceFacts& facts, bool forced, ClusterPlan* plan) {
  constexpr int64_t kBulkBytes = 256;  // of a run: there would be too many bulk copies of less
  if (!forced && access.lanes == 1 && access.inner * access.element_bytes < kBulkBytes) return false;
  ClusterTiles tiles;
  return make_cluster_tiles(access, held, &tiles) && choose_clusters(tiles, facts, forced, plan);
}

// The whole policy: how batch statistics, or in backward sums, are computed.
//
//   block    A channel tile fits in one block, and either tiles are small or they keep at least 3/4 of the device busy.
//   cluster  A channel tile fits in one cluster of blocks: preferred but for small tiles.
//   split    Everything else, and whatever has nothing to gain on chip (held == 0).
Method choose_method(const Access& access, int held, const DeviceFacts& facts, Method wanted, Plan* plan) {
  if (held == 0 || wanted == Method::split) return Method::split;
  const int64_t multiprocessors = std::max(1, facts.multiprocessors);
  const Tiling block = on_chip_tiling(access, held);
  const bool fits = parked_bytes(block, access, held) <= shared_limit(access, facts);
  const bool automatic = wanted == Method::automatic;
  const int64_t tile_bytes = access.outer * access.inner * block.group * access.element_bytes;
  const int64_t waves = divide_up(block.tiles, multiprocessors);
  const int64_t small_tile = facts.clusters[0] > 0 && waves > 1 ? kSharedTile : kSmallTile;
  const bool small = tile_bytes * held <= small_tile, busy = block.tiles * 4 >= waves * multiprocessors * 3;
  if (fits && (wanted == Method::block || (automatic && small))) return Method::block;
  if ((automatic || wanted == Method::cluster) && choose_clusters(access, held, facts, !automatic, &plan->cluster)) {
    return Method::cluster;
  }
  return fits && automatic && busy ? Method::block : Method::split;
}

// Whether the second kernel combines the parts that the slices of a tile left, which is quicker than to count them.
bool combines_itself(const Tiling& t) { return t.slices > 1 && t.group * t.slices <= kThreads; }

// combined: by a second kernel, if it can.
Plan make_plan(const Access& access, int held, bool combined, const DeviceFacts& facts, Method wanted) {
  Plan plan{};
  plan.method = choose_method(access, held, facts, wanted, &plan);
  if (plan.method == Method::block) {
    plan.tiling = on_chip_tiling(access, held);
    plan.shared_bytes = static_cast<size_t>(parked_bytes(plan.tiling, access, held));
    plan.shared_limit = static_cast<size_t>(shared_limit(access, facts));
  } else if (plan.method == Method::split) {
    plan.tiling = split_tiling(access, held == 1 ? 1 : 2, facts);
  }
  if (plan.tiling.slices > 1) {
    if (!combined || !combines_itself(plan.tiling)) {
      plan.counter_bytes = static_cast<size_t>(divide_up(plan.tiling.tiles * sizeof(unsigned), 16) * 16);
    }
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
  return make_plan(forward_access(shape, call), 1, true, facts, method);
}

Plan backward_plan(const BatchNormActShape& shape, const BatchNormActBackward& call, const DeviceFacts& facts,
                   Method method) {
  const bool both = call.training && call.grad_input;
  return make_plan(backward_access(shape, call), both ? 2 : 0, both, facts, method);
}

// Launches.

template <class T_, int V_, int A_>
struct Instance {
  using T = T_;
  static constexpr int V = V_, A = A_;
};

// Calls launch with the Instance of the shape: each kernel is compiled for ten.
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

// Calls launch with the activation and `plain` as constants, those that stream wide accesses: in them, an instruction
// an element counts.  plain: only what every call does.
template <int V, class Launch>
int dispatch_options(int activation, bool plain, Launch launch) {
  using False = std::false_type;
  const auto with = [&](auto kind) { return plain ? launch(kind, std::true_type{}) : launch(kind, False{}); };
  if constexpr (V == 1) {
    if (activation == kSilu) return launch(std::integral_constant<int, kSilu>{}, False{});
    return launch(std::integral_constant<int, kSelect>{}, False{});
  } else {
    if (activation == kSilu) return with(std::integral_constant<int, kSilu>{});
    if (activation == kRelu) return with(std::integral_constant<int, kRelu>{});
    return with(std::integral_constant<int, kLeakyRelu>{});
  }
}

// early: the kernel waits by itself for the one before it, which lets it.
template <class Kernel, class... Arguments>
int launch_tiles(Kernel kernel, const Tiling& t, bool early, gpu::stream_t stream, const Arguments&... arguments) {
  if (t.channels == kMaxChannels) return kInvalidConfiguration;
  const dim3 grid(t.tiles, t.slices), block(t.threads);
  return early ? gpu::launch_early(kernel, grid, block, 0, stream, t, arguments...)
               : gpu::launch(kernel, grid, block, 0, stream, t, arguments...);
}

template <class Kernel, class... Arguments>
int launch_on_chip(Kernel kernel, const Plan& plan, gpu::stream_t stream, const Arguments&... arguments) {
  const Tiling& t = plan.tiling;
  if (t.channels == kMaxChannels) return kInvalidConfiguration;
  if (plan.shared_bytes > kFreeShared) {
    // Always the same value: the setting belongs to the kernel, and another host thread may be launching it too.
    if (const int error = gpu::set_max_dynamic_smem(kernel, plan.shared_limit)) return error;
  }
  return gpu::launch(kernel, dim3(t.tiles), dim3(t.threads), plan.shared_bytes, stream, t, arguments...);
}

template <class Acc>
int prepare_parts(const Plan& plan, void* workspace, gpu::stream_t stream, Parts<Acc>* parts) {
  if (plan.staged_bytes == 0) return 0;
  parts->staged =
      reinterpret_cast<typename PairOf<Acc>::type*>(static_cast<unsigned char*>(workspace) + plan.counter_bytes);
  if (plan.counter_bytes == 0) return 0;
  parts->arrived = static_cast<unsigned*>(workspace);
  return gpu::memset_async(workspace, 0, plan.counter_bytes, stream);
}

// What the second kernel gets: nothing if the first one has combined the parts.
template <class Acc>
Parts<Acc> left_by(const Parts<Acc>& parts) {
  return parts.arrived ? Parts<Acc>{} : parts;
}

bool starts_early(const DeviceFacts& facts) { return facts.compute_capability >= 90; }

template <class Acc>
ActivationOf<Acc> activation_of(int activation, double negative_slope) {
  return {activation == kLeakyRelu ? static_cast<Acc>(negative_slope) : Acc(1), activation};
}

bool streams(const BatchNormActShape& shape) {
  return shape.outer * shape.channels * shape.inner * element_bytes(shape.dtype) >= kStreamBytes;
}

template <class T>
ForwardArguments<T> forward_arguments(const BatchNormActShape& shape, const BatchNormActForward& call, bool training) {
  using Acc = Accumulator<T>;
  const double count = static_cast<double>(shape.outer) * static_cast<double>(shape.inner);
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
  args.eps = call.eps;
  args.unbiased = static_cast<Acc>(count / (count - 1));
  args.activation = activation_of<Acc>(call.activation, call.negative_slope);
  args.training = training;
  args.stream = streams(shape);
  return args;
}

template <class T>
BackwardArguments<T> backward_arguments(const BatchNormActShape& shape, const BatchNormActBackward& call) {
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
  args.inverse_count = static_cast<Acc>(1 / (static_cast<double>(shape.outer) * static_cast<double>(shape.inner)));
  args.activation = activation_of<Acc>(call.activation, call.negative_slope);
  args.stream = streams(shape);
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
  const Plan plan = train_plan(shape, call, facts, method);
  return dispatch(shape.dtype, access, [&](auto instance) {
    using I = decltype(instance);
    using T = typename I::T;
    const auto args = forward_arguments<T>(shape, call, true);
    if constexpr (I::V > 1) {
      if (plan.method == Method::cluster) return launch_clusters(train_cluster<T, I::A>, plan.cluster, stream, args);
    }
    if (plan.method == Method::block) return launch_on_chip(train_on_chip<T, I::V, I::A>, plan, stream, args);
    Parts<Accumulator<T>> parts{};
    if (const int error = prepare_parts(plan, workspace, stream, &parts)) return error;
    if (const int error = launch_tiles(reduce_moments<T, I::V, I::A>, plan.tiling, false, stream, args, parts)) {
      return error;
    }
    return dispatch_options<I::V>(call.activation, !call.residual, [&](auto activation, auto plain) {
      return launch_tiles(normalize<T, I::V, I::A, activation.value, plain.value>,
                          elementwise_tiling(access, plain.value ? 1 : 2), starts_early(facts), stream, args,
                          plan.tiling, left_by(parts));
    });
  });
}

int batch_norm_act_eval(const BatchNormActShape& shape, const BatchNormActForward& call, void* opaque_stream) {
  const auto stream = static_cast<gpu::stream_t>(opaque_stream);
  const Access access = forward_access(shape, call);
  return dispatch(shape.dtype, access, [&](auto instance) {
    using I = decltype(instance);
    using T = typename I::T;
    const auto args = forward_arguments<T>(shape, call, false);
    return dispatch_options<I::V>(call.activation, !call.residual, [&](auto activation, auto plain) {
      return launch_tiles(normalize<T, I::V, I::A, activation.value, plain.value>,
                          elementwise_tiling(access, plain.value ? 1 : 2), false, stream, args, Tiling{},
                          Parts<Accumulator<T>>{});
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
    auto args = backward_arguments<T>(shape, call);
    if constexpr (I::V > 1) {
      if (plan.method == Method::cluster) return launch_clusters(backward_cluster<T, I::A>, plan.cluster, stream, args);
    }
    if (plan.method == Method::block) return launch_on_chip(backward_on_chip<T, I::V, I::A>, plan, stream, args);
    Parts<Accumulator<T>> parts{};
    if (const int error = prepare_parts(plan, workspace, stream, &parts)) return error;
    auto reduce = args;
    if (call.training) reduce.grad_input = nullptr;  // depends on the sums
    const bool plain = !reduce.residual && !reduce.grad_residual && !reduce.grad_input;
    const int error = dispatch_options<I::V>(call.activation, plain, [&](auto activation, auto plain) {
      return launch_tiles(reduce_gradients < T, I::A == 8 ? 4 : I::V, I::A == 8 ? 4 : I::A, activation.value,
                          plain.value >, plan.tiling, false, stream, reduce, parts);
    });
    if (error || !call.training || !call.grad_input) return error;
    // What the first kernel writes is no constant of the second one if that starts early.
    const bool early = starts_early(facts) && !call.grad_residual;
    if (call.grad_residual) {
      // It holds the gradient behind the activation, so neither the residual nor the activation is needed again.
      args.grad_output = args.grad_residual;
      args.residual = nullptr;
      args.activation = activation_of<Accumulator<T>>(kIdentity, 0);
    }
    return dispatch_options<I::V>(args.activation.kind, !args.residual, [&](auto activation, auto plain) {
      return launch_tiles(apply_gradients<T, I::V, I::A, activation.value, plain.value>, elementwise_tiling(access, 2),
                          early, stream, args, plan.tiling, left_by(parts));
    });
  });
}

ClusterCounts batch_norm_act_clusters(const BatchNormActShape& shape, int held, const DeviceFacts& facts) {
  ClusterPlan plan;
  return choose_clusters(choose_access(shape, {}), held, facts, true, &plan) ? counts_of(plan) : ClusterCounts{};
}

BatchNormActVisits batch_norm_act_visits(const BatchNormActShape& shape, bool aligned, bool elementwise, int held,
                                         const DeviceFacts& facts, Method method, int64_t tile, int slice, int limit) {
  const Access access = choose_access(shape, {reinterpret_cast<const void*>(uintptr_t{aligned ? 0u : 1u})});
  const Plan plan = make_plan(access, held, true, facts, method);
  const Tiling t = elementwise ? elementwise_tiling(access, held) : plan.tiling;
  const int chunk = chunk_of(!elementwise, access, held);
  BatchNormActVisits visits{t.tiles, t.slices, access.vector, access.lanes, 0, {}, {}};
  dispatch(shape.dtype, access, [&](auto instance) {
    using I = decltype(instance);
    if (slice < 0) return 0;
    visits.slice_elements = elementwise ? 0 : t.count(slice);
    const auto visit = [&](auto size) {
      for (int thread = 0; thread < t.threads; ++thread) {
        Walk walk = t.walk<typename I::T, I::V, I::A, size.value>(static_cast<int>(tile), slice, thread);
        const int count = walk.ragged + walk.whole;
        for (int left = count; left > 0; --left) {
          const Chunk next = t.next<I::A, size.value>(walk);
          if (left > limit && left <= count - limit) continue;
          for (int u = 0; u < next.valid; ++u) {
            visits.channels.push_back(walk.channel);
            visits.offsets.push_back((next.offset + u * t.access_step) / static_cast<int>(sizeof(typename I::T)));
          }
        }
      }
      return 0;
    };
    switch (chunk) {
      case 1:
        return visit(std::integral_constant<int, 1>{});
      case 2:
        return visit(std::integral_constant<int, 2>{});
      case 4:
        return visit(std::integral_constant<int, 4>{});
      default:
        return visit(std::integral_constant<int, 8>{});
    }
  });
  return visits;
}

}  // namespace genimg_fast::cuda
