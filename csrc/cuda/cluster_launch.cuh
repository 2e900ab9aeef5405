#pragma once
// Host side of cluster_ring.cuh: how the tiles of a call are cut into shares of a cluster's blocks, and the launch.
#include <algorithm>

#include "cluster_ring.cuh"

namespace genimg_fast::cuda {

inline int power_of_two_at_most(int64_t x) {
  int p = 1;
  while (p * 2 <= x) p *= 2;
  return p;
}

// The tiles of a call, before they are cut into shares.
struct ClusterTiles {
  ClusterTiling tiling;  // what does not depend on the shares
  int64_t units;         // of a tile
  int held;              // tensors that a block holds: 1 in forward, 2 in backward
  int vector;            // elements of a word
  int input_bytes;       // of an element of the first,
  int element_bytes;     // and of all of them together
  int64_t elements;      // of one of them
};

struct ClusterPlan {
  ClusterTiling tiling;
  int clusters;         // in the grid
  size_t shared_bytes;  // dynamic shared memory: needed,
  size_t shared_limit;  // and available
};

inline ClusterCounts counts_of(const ClusterPlan& plan) {
  return {plan.clusters, plan.tiling.blocks, plan.tiling.pieces, plan.tiling.slots};
}

constexpr int64_t kWordBytes = 16;
constexpr int64_t kRowWords = 4;  // 64 bytes: the narrowest rows that waste no memory transaction

// Words of a tile are counted in 31 bits, tiles by threads in 32.
inline bool can_count(const ClusterTiles& tiles, int64_t number) {
  return tiles.units * tiles.tiling.unit <= INT32_MAX - 32 * kMaxConsumers && number <= INT32_MAX / 32;
}

// Shared memory of a block, beside what the kernels have of their own.
inline int64_t cluster_shared_limit(const DeviceFacts& facts) { return facts.shared_bytes_per_block - (18 << 10); }

inline int64_t piece_bytes(const ClusterTiles& tiles, int consumers) {
  return int64_t{consumers} * words_of_piece(tiles.held, tiles.vector) * tiles.vector * tiles.element_bytes;
}

// Cuts tiles into shares of `blocks` blocks.  False if a share would be empty, or too large for the ring.
inline bool share_out(const ClusterTiles& tiles, const DeviceFacts& facts, int blocks, ClusterTiling* tiling) {
  ClusterTiling t = tiles.tiling;
  t.blocks = blocks;
  t.share = tiles.units / blocks;
  t.longer = static_cast<int>(tiles.units % blocks);
  if (t.share == 0) return false;
  const int64_t most = t.units(0) * t.unit;
  for (t.consumers = 128; t.consumers < kMaxConsumers; t.consumers *= 2) {
    if (divide_up(most, t.consumers) * tiles.held <= 8 && t.consumers >= t.group * blocks) break;
  }
  t.team = std::min(32, power_of_two_at_most(t.consumers / t.group));
  const int64_t pieces = divide_up(most, t.consumers * words_of_piece(tiles.held, tiles.vector));
  const int64_t slots = cluster_shared_limit(facts) / piece_bytes(tiles, t.consumers);
  if (pieces > std::min<int64_t>(slots, kMaxSlots)) return false;
  t.pieces = static_cast<int>(pieces);
  t.slots = static_cast<int>(std::min<int64_t>({slots, kMaxSlots, 2 * pieces}));
  t.first_slots = static_cast<int>(t.slots * piece_bytes(tiles, t.consumers) / tiles.element_bytes * tiles.input_bytes);
  *tiling = t;
  return true;
}

// The way to cut tiles for clusters that lets the busiest multiprocessor have the least to do; false if tiles do not
// fit, or, unless forced, if they would leave so much of the device idle that to read the input twice is faster.  Work
// is counted in bytes that a block holds.
inline bool choose_clusters(const ClusterTiles& tiles, const DeviceFacts& facts, bool forced, ClusterPlan* plan) {
  constexpr int64_t kMeeting = 16 << 10;   // what a multiprocessor would load and store while a cluster meets
  constexpr int64_t kWaiting = 48 << 10;   // and while its consumers have nothing to write, from tile to tile
  constexpr int64_t kLaunches = 96 << 10;  // and in the time of the launches that are saved
  int64_t least = INT64_MAX;
  for (int i = 0; i < 5; ++i) {
    ClusterTiling t;
    if (facts.clusters[i] == 0 || !share_out(tiles, facts, 1 << i, &t)) continue;
    const int clusters = std::min(t.tiles, facts.clusters[i]);
    const int64_t turns = divide_up(t.tiles, clusters), bytes = piece_bytes(tiles, t.consumers);
    const int64_t stall = std::max<int64_t>(0, kWaiting - (t.slots - t.pieces) * bytes);
    const int64_t work = turns * (t.pieces * bytes + kMeeting) + (turns - 1) * stall;
    if (work < least) {
      least = work;
      *plan = {t, clusters, static_cast<size_t>(t.slots * bytes), static_cast<size_t>(cluster_shared_limit(facts))};
    }
  }
  const double bytes = static_cast<double>(tiles.elements) * tiles.element_bytes;
  const double even = bytes / std::max(1, facts.multiprocessors);
  return least < INT64_MAX && (forced || static_cast<double>(least) <= 1.5 * even + kLaunches);
}

// kClustersRefused if the device does not take them.
template <class Kernel, class... Arguments>
int launch_clusters(Kernel kernel, const ClusterPlan& plan, gpu::stream_t stream, const Arguments&... arguments) {
  const ClusterTiling& t = plan.tiling;
  if (const int error = gpu::set_max_dynamic_smem(kernel, plan.shared_limit)) return error;
  const dim3 grid(static_cast<unsigned>(plan.clusters * t.blocks)),
      block(static_cast<unsigned>(t.consumers + kProducers));
  const int error = gpu::launch_clusters(kernel, grid, block, static_cast<unsigned>(t.blocks), plan.shared_bytes,
                                         stream, t, arguments...);
  return gpu::refuses_clusters(error) ? kClustersRefused : error;
}

}  // namespace genimg_fast::cuda
