// Host side of the group_norm_act kernels: which kernel runs for which shape, and the launches.
#include <algorithm>
#include <initializer_list>
#include <numeric>

#include "cluster_launch.cuh"
#include "group_norm_act.h"
#include "group_norm_act_backward.cuh"
#include "group_norm_act_cluster.cuh"
#include "group_norm_act_forward.cuh"

namespace genimg_fast::cuda {
namespace {

using namespace group_norm;

int64_t power_of_two_at_least(int64_t x) {
  int64_t p = 1;
  while (p < x) p *= 2;
  return p;
}

// Access: how wide, and in which layout.

struct Access {
  bool columns;
  int vector;  // elements per access
  int element_bytes;
  bool wide_output;
};

// Of the output, the residual and their gradients.
int output_bytes(const Access& access) { return access.wide_output ? 4 : access.element_bytes; }

// Elements per access of a pass that only reads the input.
int input_vector(const Access& access) { return access.vector > 1 ? 16 / access.element_bytes : 1; }

Access choose_access(const GroupNormActShape& shape, std::initializer_list<const void*> data) {
  const int64_t group_channels = shape.channels / shape.groups;
  const bool columns = shape.channels_last && shape.inner > 1 && shape.channels > 1;
  Access access{columns, 1, element_bytes(shape.dtype), shape.wide_output};
  const int64_t vector = 16 / access.element_bytes;
  if (shape.dtype == DType::float64) return access;  // 8-byte accesses of neighbouring threads are wide enough
  for (const void* p : data) {
    if (!is_aligned(p, 16)) return access;
  }
  const bool whole = columns ? shape.channels % vector == 0 : shape.inner % vector == 0;
  // A tile has to hold whole groups, unless accesses do not cross from one group to the next.
  const bool fits = !columns || group_channels % vector == 0 || std::lcm(group_channels, vector) <= kThreads * vector;
  if (whole && fits) access.vector = static_cast<int>(16 / output_bytes(access));
  return access;
}

// Tiling.

constexpr int kBlocksPerMultiprocessor = 4;
constexpr int kAccessesPerThread = 4;       // at least, where there are so many,
constexpr int kMostAccessesPerThread = 16;  // and at most, of a kernel that does not reduce
constexpr int64_t kMaxLength = INT32_MAX - kThreads;

// Kernels that stream differ in the number of slices they can have.
enum class Pass { moments, gradients, elements };

constexpr int64_t kMaxMomentSlices = 1024;
constexpr int64_t kMaxGradientSlices = 64;  // each costs memory for two values per channel of a sample

// How many slices a piece of `length` steps of a thread (`at_once` of them by the block's threads together) is cut
// into, where `blocks` blocks would do without.
int64_t count_slices(Pass pass, int64_t length, int64_t at_once, int64_t blocks, const DeviceFacts& facts) {
  const int64_t for_device = divide_up(int64_t{std::max(1, facts.multiprocessors)} * kBlocksPerMultiprocessor, blocks);
  const int64_t most = divide_up(length, at_once * kAccessesPerThread);
  switch (pass) {
    case Pass::moments:
      return std::min({for_device, most, kMaxMomentSlices});
    case Pass::gradients:
      return std::min({for_device, most, kMaxGradientSlices});
    default:
      return std::min(std::max(for_device, divide_up(length, at_once * kMostAccessesPerThread)), most);
  }
}

template <class Layout>
void set_slices(Layout& layout, int64_t length, int64_t at_once, int64_t slices) {
  layout.slice = static_cast<int>(std::min(length, divide_up(divide_up(length, slices), at_once) * at_once));
  layout.slices = static_cast<int>(divide_up(length, layout.slice));
}

Rows make_rows(Pass pass, int64_t rows, int64_t length, const Access& access, const DeviceFacts& facts) {
  Rows layout{};
  layout.rows = rows;
  layout.length = static_cast<int>(length);
  layout.team =
      static_cast<int>(std::min<int64_t>(kThreads, power_of_two_at_least(divide_up(length, kAccessesPerThread))));
  layout.step = layout.team * access.vector * access.element_bytes;
  const int64_t blocks = divide_up(rows, kThreads / layout.team);
  set_slices(layout, length, layout.team, count_slices(pass, length, layout.team, blocks, facts));
  return layout;
}

// Tiles `widest` accesses wide, where groups allow it; without slices yet.
Columns make_tiles(const GroupNormActShape& shape, const Access& access, int64_t widest) {
  Columns layout{};
  const int64_t group_channels = shape.channels / shape.groups, vector = access.vector;
  layout.samples = shape.samples;
  layout.rows = static_cast<int>(shape.inner);
  layout.channels = static_cast<int>(shape.channels);
  if (group_channels % vector == 0 && group_channels / vector > kMaxWidth) {
    layout.unit = static_cast<int>(group_channels / vector);
    layout.unit_tiles = layout.parts = static_cast<int>(divide_up(layout.unit, kMaxWidth));
    layout.width = static_cast<int>(divide_up(layout.unit, layout.unit_tiles));
    layout.tiles = static_cast<int>(shape.groups * layout.unit_tiles);
  } else {
    layout.unit = static_cast<int>(shape.channels / vector);
    const int64_t step = std::lcm(group_channels, vector) / vector;  // the least with whole groups
    const int64_t steps = layout.unit / step;
    const int64_t tiles = divide_up(steps, std::max<int64_t>(1, widest / step));
    layout.width = static_cast<int>(step * divide_up(steps, tiles));
    layout.unit_tiles = layout.tiles = static_cast<int>(divide_up(layout.unit, layout.width));
    layout.parts = 1;
  }
  layout.height = kThreads / layout.width;
  layout.step = layout.height * shape.channels * access.element_bytes;
  layout.slices = 1;
  layout.slice = layout.rows;
  return layout;
}

Columns make_columns(Pass pass, const GroupNormActShape& shape, const Access& access, const DeviceFacts& facts) {
  Columns layout = make_tiles(shape, access, kMaxWidth);
  const int64_t slices = count_slices(pass, shape.inner, layout.height, shape.samples * layout.tiles, facts);
  set_slices(layout, shape.inner, layout.height, slices);
  return layout;
}

// Calls run with the layout of a pass.
template <class Run>
int with_layout(Pass pass, const GroupNormActShape& shape, const Access& access, const DeviceFacts& facts, Run run) {
  Access of_pass = access;
  if (pass == Pass::moments) of_pass.vector = input_vector(access);
  if (access.columns) {
    if (pass == Pass::gradients) of_pass.vector = std::min(access.vector, 4);  // kPart
    return run(make_columns(pass, shape, of_pass, facts));
  }
  const int64_t inner = shape.inner / of_pass.vector;
  if (pass == Pass::moments) {
    return run(make_rows(pass, shape.samples * shape.groups, shape.channels / shape.groups * inner, of_pass, facts));
  }
  return run(make_rows(pass, shape.samples * shape.channels, inner, of_pass, facts));
}

int part_count(const Rows& layout) { return layout.slices; }
int part_count(const Columns& layout) { return layout.slices * layout.parts; }

// Indices inside a block are 32-bit.
bool is_too_large(const GroupNormActShape& shape, const Access& access) {
  const int64_t length = access.columns ? shape.inner : shape.channels / shape.groups * (shape.inner / access.vector);
  return length > kMaxLength || shape.channels > kMaxLength || shape.groups > kMaxLength;
}

// Policy.

constexpr int64_t kSmall = 128 << 10;     // bytes that one multiprocessor reads in the time of two launches
constexpr size_t kFreeShared = 16 << 10;  // dynamic shared memory that, with a kernel's own, needs no opt-in

int kept_accesses(int vector) { return vector == 1 ? kKept<1> : kKept<4>; }

OnChip on_chip_rows(const GroupNormActShape& shape, const Access& access) {
  const int64_t channel = shape.inner / access.vector, accesses = shape.channels / shape.groups * channel;
  OnChip plan{shape.samples * shape.groups,           static_cast<int>(accesses), 0, 0, 0,
              Divider(static_cast<uint32_t>(channel))};
  const int64_t kept = kept_accesses(access.vector);
  plan.team = static_cast<int>(std::min<int64_t>(kOnChipThreads, power_of_two_at_least(divide_up(accesses, kept))));
  plan.threads = std::max(128, plan.team);
  plan.parked = static_cast<int>(std::max<int64_t>(0, divide_up(accesses, plan.team) - kept));
  return plan;
}

// The narrowest tiles that do not waste memory transactions (64 bytes): as many blocks as possible.
Columns on_chip_columns(const GroupNormActShape& shape, const Access& access) {
  return make_tiles(shape, access, access.vector > 1 ? 64 / (access.vector * access.element_bytes) : 16);
}

// What a launch that holds its data on chip needs.
struct Needs {
  int64_t blocks;
  int64_t bytes;         // of input that one team, in Columns one block, holds
  int64_t shared;        // dynamic shared memory: needed,
  int64_t shared_limit;  // and available
};

Needs on_chip_needs(const GroupNormActShape& shape, const Access& access, const DeviceFacts& facts) {
  const int64_t access_bytes = int64_t{access.vector} * access.element_bytes;
  const int64_t wide = shape.dtype == DType::float64 ? 8 : 4, pair = 2 * wide, partial = 3 * wide;
  if (access.columns) {
    const Columns layout = on_chip_columns(shape, access);
    const int64_t parked = divide_up(layout.rows, layout.height) - kept_accesses(access.vector);
    return {layout.blocks(), int64_t{layout.rows} * layout.width * access_bytes,
            std::max<int64_t>(0, parked) * kThreads * access_bytes,
            facts.shared_bytes_per_block - (kThreads * partial + kMaxWidth * pair) * access.vector};
  }
  const OnChip plan = on_chip_rows(shape, access);
  const int64_t teams = plan.threads / plan.team;
  return {divide_up(plan.groups, teams), plan.accesses * access_bytes,
          int64_t{plan.parked} * plan.threads * access_bytes + teams * (shape.channels / shape.groups) * pair,
          facts.shared_bytes_per_block - kOnChipThreads / 32 * pair};
}

// Of an element in all tensors that a cluster holds.
int held_bytes(const Access& access, int held) { return access.element_bytes + (held == 2 ? output_bytes(access) : 0); }

// Tiles of channels_last: whole groups side by side, in rows that waste no memory transaction.  The kernels leave to
// the others what does not divide into rows of the same powers of two.
bool make_cluster_columns(const GroupNormActShape& shape, const Access& access, int held, ClusterTiles* tiles) {
  const int64_t group_channels = shape.channels / shape.groups, across = shape.channels / access.vector;
  const int64_t word = access.vector * access.element_bytes;  // bytes of it
  int64_t run = 1;
  while (run < across && (run * word < kRowWords * kWordBytes || run * access.vector < group_channels)) run *= 2;
  const int64_t width = run * access.vector, row = shape.channels * access.element_bytes;  // channels, bytes
  if (width > kMaxClusterGroup || width % group_channels != 0 || shape.channels % width != 0) return false;
  const int64_t of_sample = shape.channels / width, number = shape.samples * of_sample;
  ClusterTiling t{};
  t.channels = shape.samples * shape.channels;
  t.tile_step = run * word;
  t.sample_step = (shape.inner - 1) * row;
  t.group = static_cast<int>(width);
  t.step = 32 / run * row;
  t.run = t.unit = static_cast<uint32_t>(run);
  t.wrap = static_cast<uint32_t>(row - run * word);
  *tiles = {
      t, shape.inner, held, access.vector, access.element_bytes, held_bytes(access, held), t.channels * shape.inner};
  if (!can_count(*tiles, number) || row * (output_bytes(access) / access.element_bytes) > UINT32_MAX) return false;
  tiles->tiling.by_run = Divider(t.run);
  tiles->tiling.by_sample = Divider(static_cast<uint32_t>(of_sample));
  tiles->tiling.tiles = static_cast<int>(number);
  return true;
}

// False if the kernels for clusters cannot do it.  They leave to the others: runs of channels that do not divide into a
// warp's words of a piece, and more channels in a group than a cluster exchanges sums of; single elements.  held:
// tensors that a block holds, 1 in forward and 2 in backward.
bool make_cluster_tiles(const GroupNormActShape& shape, const Access& access, int held, ClusterTiles* tiles) {
  const int64_t group_channels = shape.channels / shape.groups, run = shape.inner / access.vector;
  const int64_t chunk = 32 * words_of_piece(held, access.vector);  // of a warp in a piece
  if (access.vector == 1 || group_channels > kMaxClusterGroup) return false;
  if (access.columns) return make_cluster_columns(shape, access, held, tiles);
  if (group_channels > 1 && run % chunk != 0) return false;
  ClusterTiling t{};
  t.channels = shape.samples * shape.groups;
  t.inner = group_channels * shape.inner;
  t.tile_step = t.inner * access.element_bytes;
  t.group = held == 1 ? 1 : static_cast<int>(group_channels);                 // forward reduces them together
  const int64_t least = kWordBytes / (access.vector * access.element_bytes);  // of words that a bulk copy moves
  t.unit = static_cast<uint32_t>(group_channels > 1 ? chunk : least);
  *tiles = {t,
            group_channels * run / t.unit,
            held,
            access.vector,
            access.element_bytes,
            held_bytes(access, held),
            t.channels * t.inner};
  if (!can_count(*tiles, t.channels)) return false;
  tiles->tiling.run = static_cast<uint32_t>(run);
  tiles->tiling.by_run = Divider(tiles->tiling.run);
  tiles->tiling.tiles = static_cast<int>(t.channels);
  return true;
}

bool choose_clusters(const GroupNormActShape& shape, const Access& access, int held, const DeviceFacts& facts,
                     GroupNormMethod wanted, ClusterPlan* plan) {
  const bool forced = wanted == GroupNormMethod::cluster;
  if (!forced && wanted != GroupNormMethod::automatic) return false;
  ClusterTiles tiles;
  if (!make_cluster_tiles(shape, access, held, &tiles) || !choose_clusters(tiles, facts, forced, plan)) return false;
  const int64_t number = plan->tiling.tiles, needed = divide_up(number, divide_up(number, plan->clusters));
  if (needed * shape.samples == number) plan->clusters = static_cast<int>(needed);  // see sums_over_samples
  return true;
}

// Whether each cluster has the same tile of every sample, and so all of grad_weight and grad_bias of its channels.
bool sums_over_samples(const GroupNormActShape& shape, const ClusterPlan& plan) {
  return plan.clusters * shape.samples == plan.tiling.tiles;
}

// The whole policy of forward; that of backward is the same without on_chip.
//
//   on_chip  Blocks can hold whole groups, and either these are small or they keep at least 3/4 of the device busy.
//   cluster  Clusters of blocks can.
//   split    Everything else.
GroupNormMethod choose_method(const GroupNormActShape& shape, const Access& access, const DeviceFacts& facts,
                              GroupNormMethod wanted, ClusterPlan* plan) {
  if (wanted == GroupNormMethod::split || is_too_large(shape, access)) return GroupNormMethod::split;
  bool fits = false, small = false, busy = false;
  if (!access.columns || on_chip_columns(shape, access).parts == 1) {
    const Needs needs = on_chip_needs(shape, access, facts);
    const int64_t multiprocessors = std::max(1, facts.multiprocessors);
    const int64_t waves = divide_up(needs.blocks, multiprocessors);
    fits = needs.shared <= needs.shared_limit;
    small = needs.bytes <= kSmall;
    busy = needs.blocks * 4 >= waves * multiprocessors * 3;
  }
  const bool automatic = wanted == GroupNormMethod::automatic;
  if (fits && (wanted == GroupNormMethod::on_chip || (automatic && (small || busy)))) return GroupNormMethod::on_chip;
  return choose_clusters(shape, access, 1, facts, wanted, plan) ? GroupNormMethod::cluster : GroupNormMethod::split;
}

GroupNormMethod choose_backward_method(const GroupNormActShape& shape, const Access& access,
                                       const GroupNormActBackward& call, const DeviceFacts& facts,
                                       GroupNormMethod wanted, ClusterPlan* plan) {
  // Sums alone have nothing to gain: the data are read once.
  const bool cluster =
      call.grad_input && !is_too_large(shape, access) && choose_clusters(shape, access, 2, facts, wanted, plan);
  return cluster ? GroupNormMethod::cluster : GroupNormMethod::split;
}

Access forward_access(const GroupNormActShape& shape, const GroupNormActForward& call) {
  return choose_access(shape, {call.input, call.residual, call.output});
}

Access backward_access(const GroupNormActShape& shape, const GroupNormActBackward& call) {
  return choose_access(shape, {call.grad_output, call.input, call.residual, call.grad_input, call.grad_residual});
}

// Launches.

template <class T_, class Y_, int V_>
struct Instance {
  using T = T_;
  using Y = Y_;
  static constexpr int V = V_;
};

// Of a kernel that recomputes or applies the activation.
template <int Kind_, bool Plain_>
struct Variant {
  static constexpr int Kind = Kind_;
  static constexpr bool Plain = Plain_;
};

// Calls launch with the Variant: Plain ones, without a residual, for accesses of 16 bytes and an output of the input's
// width only, which keeps the library small; else the one that takes any call.
template <class T, class Y, int V, class Launch>
int with_variant(int activation, bool plain, Launch launch) {
  if constexpr (V > 1 && std::is_same<T, Y>::value) {
    if (plain && activation == kSilu) return launch(Variant<kSilu, true>{});
    if (plain && activation == kRelu) return launch(Variant<kRelu, true>{});
    if (plain) return launch(Variant<kLeakyRelu, true>{});
  }
  return launch(Variant<kAny, false>{});
}

template <class Acc>
Activation<Acc> activation_of(int kind, double slope) {
  return {kind, kind == kIdentity ? Acc(1) : static_cast<Acc>(slope)};
}

template <class Launch>
int dispatch(DType dtype, const Access& access, Launch launch) {
  return dispatch_element(dtype, [&](auto element) {
    using T = typename decltype(element)::T;
    if constexpr (sizeof(T) == 2) {
      if (access.wide_output) {
        return access.vector > 1 ? launch(Instance<T, float, kWord<T, float>>{}) : launch(Instance<T, float, 1>{});
      }
    }
    if constexpr (!std::is_same<T, double>::value) {
      if (access.vector > 1) return launch(Instance<T, T, kVector<T>>{});
    }
    return launch(Instance<T, T, 1>{});
  });
}

template <class Kernel, class... Arguments>
int launch_blocks(Kernel kernel, int64_t blocks, size_t shared, gpu::stream_t stream, const Arguments&... arguments) {
  if (blocks > INT32_MAX) return kInvalidConfiguration;
  return gpu::launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), shared, stream, arguments...);
}

// Of dynamic shared memory for Channels with `values` values: with what a kernel has besides, at most 48 KiB.
template <class Acc, int V, class Layout>
size_t table_bytes(const Layout& layout, int values) {
  if constexpr (Layout::columns) {
    return sizeof(Acc) * V * static_cast<size_t>(layout.width) * static_cast<size_t>(values);
  } else {
    return 0;
  }
}

Sizes sizes_of(const GroupNormActShape& shape) {
  const int64_t group_channels = shape.channels / shape.groups;
  return {shape.samples * shape.groups,     shape.samples * shape.channels,
          static_cast<int>(shape.channels), static_cast<int>(shape.groups),
          static_cast<int>(group_channels), Divider(static_cast<uint32_t>(group_channels)),
          shape.channels * shape.inner,     shape.channels_last ? group_channels : group_channels * shape.inner};
}

// The kernels only read these; PerChannel serves batch_norm_act's running statistics too, hence the cast.
template <class T>
PerChannel<T> per_channel(const GroupNormActValues& values) {
  return {const_cast<void*>(values.values), values.own_dtype};
}

template <class T, class Call>
Parameters<T> parameters_of(const Call& call) {
  return {per_channel<T>(call.weight), per_channel<T>(call.bias), per_channel<T>(call.scale),
          per_channel<T>(call.shift)};
}

template <class T, class Y>
ForwardArguments<T, Y> forward_arguments(const GroupNormActShape& shape, const GroupNormActForward& call) {
  using Acc = Accumulator<T>;
  return {{sizes_of(shape), static_cast<const T*>(call.input), static_cast<Acc*>(call.mean),
           static_cast<Acc*>(call.invstd), static_cast<Acc>(call.eps)},
          static_cast<const Y*>(call.residual),
          static_cast<Y*>(call.output),
          parameters_of<T>(call),
          activation_of<Acc>(call.activation, call.negative_slope)};
}

template <class T, class Y>
BackwardArguments<T, Y> backward_arguments(const GroupNormActShape& shape, const GroupNormActBackward& call) {
  using Acc = Accumulator<T>;
  const double count = static_cast<double>(shape.channels / shape.groups) * static_cast<double>(shape.inner);
  return {{sizes_of(shape), parameters_of<T>(call), static_cast<const Acc*>(call.mean),
           static_cast<const Acc*>(call.invstd), static_cast<Acc*>(call.grad_weight), static_cast<Acc*>(call.grad_bias),
           static_cast<Acc*>(call.grad_scale), static_cast<Acc*>(call.grad_shift), static_cast<Acc>(1 / count)},
          static_cast<const Y*>(call.grad_output),
          static_cast<const T*>(call.input),
          call.activation == kIdentity ? nullptr : static_cast<const Y*>(call.residual),
          static_cast<T*>(call.grad_input),
          static_cast<Y*>(call.grad_residual),
          activation_of<Acc>(call.activation, call.negative_slope)};
}

template <int V, class T, class Y>
int launch_on_chip(const GroupNormActShape& shape, const Access& access, const DeviceFacts& facts,
                   const ForwardArguments<T, Y>& args, gpu::stream_t stream) {
  const Needs needs = on_chip_needs(shape, access, facts);
  if (needs.blocks > INT32_MAX) return kInvalidConfiguration;
  const auto launch = [&](auto kernel, int threads, const auto& plan) {
    if (static_cast<size_t>(needs.shared) > kFreeShared) {
      // Always the same value: the setting belongs to the kernel, and another host thread may be launching it too.
      const int error = gpu::set_max_dynamic_smem(kernel, static_cast<size_t>(needs.shared_limit));
      if (error) return error;
    }
    return gpu::launch(kernel, dim3(static_cast<unsigned>(needs.blocks)), dim3(static_cast<unsigned>(threads)),
                       static_cast<size_t>(needs.shared), stream, plan, args);
  };
  if (access.columns) return launch(forward_columns_on_chip<T, Y, V>, kThreads, on_chip_columns(shape, access));
  const OnChip plan = on_chip_rows(shape, access);
  return launch(forward_rows_on_chip<T, Y, V>, plan.threads, plan);
}

// Bytes of (S1, S2), and of (p, q), at the head of the workspace of backward.
struct BetweenBytes {
  int slices;
  size_t sums, terms;
};

BetweenBytes between_bytes(const GroupNormActShape& shape, const Access& access, const DeviceFacts& facts) {
  BetweenBytes bytes{};
  with_layout(Pass::gradients, shape, access, facts, [&](const auto& layout) { return bytes.slices = layout.slices; });
  const size_t pair = shape.dtype == DType::float64 ? 16 : 8;
  bytes.sums = pair * static_cast<size_t>(shape.samples * shape.channels) * static_cast<size_t>(bytes.slices);
  bytes.terms = pair * static_cast<size_t>(shape.samples * shape.groups);
  return bytes;
}

Finish finish_plan(const GroupNormActShape& shape, int slices) {
  Finish plan{};
  const int64_t group_channels = power_of_two_at_least(shape.channels / shape.groups);
  plan.readers = static_cast<int>(std::min<int64_t>(32, power_of_two_at_least(divide_up(slices, 4))));
  plan.team = static_cast<int>(std::min<int64_t>(kThreads, group_channels * plan.readers));
  return plan;
}

}  // namespace

GroupNormMethod group_norm_act_forward_method(const GroupNormActShape& shape, const GroupNormActForward& call,
                                              const DeviceFacts& facts, GroupNormMethod method) {
  ClusterPlan plan;
  return choose_method(shape, forward_access(shape, call), facts, method, &plan);
}

GroupNormMethod group_norm_act_backward_method(const GroupNormActShape& shape, const GroupNormActBackward& call,
                                               const DeviceFacts& facts, GroupNormMethod method) {
  ClusterPlan plan;
  return choose_backward_method(shape, backward_access(shape, call), call, facts, method, &plan);
}

size_t group_norm_act_forward_workspace(const GroupNormActShape& shape, const GroupNormActForward& call,
                                        const DeviceFacts& facts, GroupNormMethod method) {
  const Access access = forward_access(shape, call);
  if (group_norm_act_forward_method(shape, call, facts, method) != GroupNormMethod::split) return 0;
  if (is_too_large(shape, access)) return 0;
  int parts = 0;
  with_layout(Pass::moments, shape, access, facts, [&](const auto& layout) { return parts = part_count(layout); });
  const size_t part = shape.dtype == DType::float64 ? sizeof(Partial<double>) : sizeof(Partial<float>);
  return part * static_cast<size_t>(shape.samples * shape.groups) * static_cast<size_t>(parts);
}

size_t group_norm_act_backward_workspace(const GroupNormActShape& shape, const GroupNormActBackward& call,
                                         const DeviceFacts& facts, GroupNormMethod method) {
  const Access access = backward_access(shape, call);
  if (is_too_large(shape, access)) return 0;
  ClusterPlan plan;
  if (choose_backward_method(shape, access, call, facts, method, &plan) == GroupNormMethod::cluster) {
    if (sums_over_samples(shape, plan)) return 0;
    return sizeof(float2) * static_cast<size_t>(shape.samples * shape.channels);
  }
  const BetweenBytes bytes = between_bytes(shape, access, facts);
  return bytes.sums + bytes.terms;
}

int group_norm_act_forward(const GroupNormActShape& shape, const GroupNormActForward& call, const DeviceFacts& facts,
                           GroupNormMethod method, void* workspace, void* opaque_stream) {
  const auto stream = static_cast<gpu::stream_t>(opaque_stream);
  const Access access = forward_access(shape, call);
  if (is_too_large(shape, access)) return kInvalidConfiguration;
  return dispatch(shape.dtype, access, [&](auto instance) {
    using T = typename decltype(instance)::T;
    constexpr int V = decltype(instance)::V;
    using Y = typename decltype(instance)::Y;
    using Acc = Accumulator<T>;
    const auto args = forward_arguments<T, Y>(shape, call);
    const Statistics<T>& statistics = args;
    ClusterPlan plan;
    const GroupNormMethod chosen = choose_method(shape, access, facts, method, &plan);
    if (chosen == GroupNormMethod::on_chip) return launch_on_chip<V>(shape, access, facts, args, stream);
    if constexpr (V > 1) {
      if (chosen == GroupNormMethod::cluster) {
        return access.columns ? launch_clusters(forward_cluster<T, Y, V>, plan, stream, args)
                              : launch_clusters(forward_cluster<T, Y, 1>, plan, stream, args);
      }
    }
    Parts<Acc> parts{static_cast<Partial<Acc>*>(workspace), 0};
    int error = with_layout(Pass::moments, shape, access, facts, [&](const auto& layout) {
      constexpr int W = V > 1 ? kVector<T> : 1;  // input_vector
      parts.count = part_count(layout);
      return launch_blocks(reduce_moments<T, W, std::decay_t<decltype(layout)>>, layout.blocks(),
                           table_bytes<Acc, W>(layout, 1), stream, layout, args.sizes, args.input, parts);
    });
    if (error) return error;
    const int64_t finishing = divide_up(args.sizes.groups_in_all, kThreads / 32);
    error = launch_blocks(finish_moments<T>, finishing, 0, stream, statistics, parts);
    if (error) return error;
    return with_layout(Pass::elements, shape, access, facts, [&](const auto& layout) {
      return with_variant<T, Y, V>(args.activation.kind, !args.residual, [&](auto variant) {
        using Of = decltype(variant);
        return launch_blocks(normalize<T, Y, V, std::decay_t<decltype(layout)>, Of::Kind, Of::Plain>, layout.blocks(),
                             table_bytes<Acc, V>(layout, 3), stream, layout, args);
      });
    });
  });
}

int group_norm_act_backward(const GroupNormActShape& shape, const GroupNormActBackward& call, const DeviceFacts& facts,
                            GroupNormMethod method, void* workspace, void* opaque_stream) {
  const auto stream = static_cast<gpu::stream_t>(opaque_stream);
  const Access access = backward_access(shape, call);
  if (is_too_large(shape, access)) return kInvalidConfiguration;
  ClusterPlan plan;
  const bool cluster = choose_backward_method(shape, access, call, facts, method, &plan) == GroupNormMethod::cluster;
  const BetweenBytes bytes = cluster ? BetweenBytes{} : between_bytes(shape, access, facts);
  const bool parameters = call.grad_weight || call.grad_bias;
  return dispatch(shape.dtype, access, [&](auto instance) {
    using T = typename decltype(instance)::T;
    constexpr int V = decltype(instance)::V;
    using Acc = Accumulator<T>;
    using Y = typename decltype(instance)::Y;
    using Pair = typename PairOf<Acc>::type;
    auto args = backward_arguments<T, Y>(shape, call);
    const SmallGradients<T>& small = args;
    auto* const memory = static_cast<unsigned char*>(workspace);
    Between<Acc> between{reinterpret_cast<Pair*>(memory), reinterpret_cast<Pair*>(memory + bytes.sums), bytes.slices};
    const dim3 blocks_of_channels(static_cast<unsigned>(divide_up(shape.channels, 32)));
    if constexpr (V > 1) {
      if (cluster) {
        if (sums_over_samples(shape, plan)) between.sums = nullptr;
        const int error = access.columns ? launch_clusters(backward_cluster<T, Y, V>, plan, stream, args, between)
                                         : launch_clusters(backward_cluster<T, Y, 1>, plan, stream, args, between);
        if (error || !parameters || !between.sums) return error;
        return gpu::launch_early(parameter_gradients<T>, blocks_of_channels, dim3(kThreads), 0, stream, small, between);
      }
    }
    int error = with_layout(Pass::gradients, shape, access, facts, [&](const auto& layout) {
      return with_variant<T, Y, V>(args.activation.kind, !args.residual && !args.grad_residual, [&](auto variant) {
        using Of = decltype(variant);
        using Layout = std::decay_t<decltype(layout)>;
        constexpr int W = kPart<V, Layout>;
        return launch_blocks(reduce_gradients<T, Y, W, Layout, Of::Kind, Of::Plain>, layout.blocks(),
                             table_bytes<Acc, W>(layout, 3), stream, layout, args, between);
      });
    });
    if (error || !(parameters || call.grad_input || call.grad_scale || call.grad_shift)) return error;
    const Finish finish = finish_plan(shape, bytes.slices);
    const int64_t finishing = divide_up(args.sizes.groups_in_all, kThreads / finish.team);
    error = launch_blocks(finish_gradients<T>, finishing, 0, stream, finish, small, between);
    if (error) return error;
    if (parameters) {
      error = gpu::launch(parameter_gradients<T>, blocks_of_channels, dim3(kThreads), 0, stream, small, between);
    }
    if (error || !call.grad_input) return error;
    if (call.grad_residual) {
      // It holds the gradient behind the activation, so neither the residual nor the activation is needed again.
      args.grad_output = args.grad_residual;
      args.residual = nullptr;
      args.activation = activation_of<Acc>(kIdentity, 1);
    }
    return with_layout(Pass::elements, shape, access, facts, [&](const auto& layout) {
      return with_variant<T, Y, V>(args.activation.kind, !args.residual, [&](auto variant) {
        using Of = decltype(variant);
        return launch_blocks(apply_gradients<T, Y, V, std::decay_t<decltype(layout)>, Of::Kind, Of::Plain>,
                             layout.blocks(), table_bytes<Acc, V>(layout, 5), stream, layout, args, between);
      });
    });
  });
}

ClusterCounts group_norm_act_clusters(const GroupNormActShape& shape, int held, const DeviceFacts& facts) {
  ClusterPlan plan;
  const Access access = choose_access(shape, {});
  const bool possible = choose_clusters(shape, access, held, facts, GroupNormMethod::cluster, &plan);
  return possible ? counts_of(plan) : ClusterCounts{};
}

GroupNormActVisits group_norm_act_visits(const GroupNormActShape& shape, bool aligned, bool moments,
                                         const DeviceFacts& facts, int64_t block, int limit) {
  const Access access = choose_access(shape, {reinterpret_cast<const void*>(uintptr_t{aligned ? 0u : 1u})});
  GroupNormActVisits visits{0, access.vector, access.columns ? access.vector : 1, {}, {}};
  if (is_too_large(shape, access)) return visits;
  dispatch(shape.dtype, access, [&](auto instance) {
    using T = typename decltype(instance)::T;
    constexpr int V = decltype(instance)::V;
    return with_layout(moments ? Pass::moments : Pass::elements, shape, access, facts, [&](const auto& layout) {
      visits.blocks = layout.blocks();
      for (int thread = 0; block >= 0 && thread < kThreads; ++thread) {
        const Walk walk = layout.template walk<V>(static_cast<unsigned>(block), thread);
        for (int k = 0; k < walk.left; ++k) {
          if (k == limit && walk.left > 2 * limit) k = walk.left - limit;
          visits.rows.push_back(walk.row);
          visits.offsets.push_back(walk.offset * V + k * (walk.step / static_cast<int64_t>(sizeof(T))));
        }
      }
      return 0;
    });
  });
  return visits;
}

}  // namespace genimg_fast::cuda
