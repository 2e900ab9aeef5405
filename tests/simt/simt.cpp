// Run time of the SIMT emulator.
//
// A launch keeps a number of clusters of blocks resident.  Each of their threads is a fiber: a stack of its own and a
// saved stack pointer.  The scheduler (run_launch, on the host's stack) takes a fiber from the run queue and switches
// to it; the fiber runs the kernel until it has to wait at a barrier or in a warp collective, gives way, or returns,
// and switches back.  Whoever completes a barrier or a collective puts the waiting fibers back into the queue.  When
// the queue is empty, asynchronous copies take place; when there are none and threads are left, nobody can ever wake
// them: deadlock.
//
// Sanitizers.  SIMT_ASAN: ASan is told of every stack switch, and of the bounds of every shared variable.
// SIMT_TSAN: ThreadSanitizer sees every fiber as a thread, and only what the run time declares (tsan_release and
// tsan_acquire in barriers, __syncwarp, fences, start and end of a launch) orders them.  The run time itself must then
// be compiled WITHOUT -fsanitize=thread: it works on the scheduler's data from all fibers, which is no race because
// they all run on one host thread. TSan follows about 8,000 threads in a process and gets slow long before: small
// launches only.
#include "simt.h"

#include <cstdio>
#include <memory>

#include "simt_clusters.h"
#include "simt_collectives.h"
#include "simt_fibers.h"
#include "simt_state.h"

namespace simt {
namespace {

// Blocks.

// False, with the error set, if memory runs out.
bool start_block(Launch& launch, Cluster& cluster, uint64_t number) {
  const unsigned threads = launch.block.x * launch.block.y * launch.block.z;
  const dim3 grid = launch.grid, size = launch.block;
  const uint3 block_index = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
                             static_cast<unsigned>(number / grid.x / grid.y)};

  Block& block = *cluster.blocks.emplace_back(std::make_unique<Block>());
  block.cluster = &cluster;
  block.rank = static_cast<unsigned>(cluster.blocks.size() - 1);
  block.live = threads;
  cluster.live += threads;
  block.warps.resize((threads + kLanes - 1) / kLanes);
  block.fibers.reserve(threads);
  if (!provide_fibers(threads) || !map_arena(block)) {
    set_error(launch_failure, "simt: no memory for block number %llu of %u threads",
              static_cast<unsigned long long>(number), threads);
    launch.failed = true;
    return false;
  }
  block.dynamic_bytes = launch.dynamic_smem;
  block.dynamic_shared = arena_allocate(block, launch.dynamic_smem, 16);

  for (unsigned thread = 0; thread < threads; ++thread) {
    Fiber* fiber = idle_fibers.front();
    idle_fibers.pop_front();
    fiber->block = &block;
    fiber->warp = thread / kLanes;
    fiber->lane = thread % kLanes;
    fiber->fenced = fiber->cluster_arrived = false;
    fiber->open_copies = nullptr;
    fiber->view.thread_index = {thread % size.x, thread / size.x % size.y, thread / size.x / size.y};
    fiber->view.block_index = block_index;
    fiber->view.block_size = size;
    fiber->view.grid_size = grid;
    block.fibers.push_back(fiber);
    Warp& warp = block.warps[fiber->warp];
    warp.exists |= 1u << fiber->lane;
    warp.live |= 1u << fiber->lane;
    warp.lanes[fiber->lane].fiber = fiber;
    wake(fiber);
  }
  start_point.release();
  return true;
}

bool start_cluster(Launch& launch) {
  const uint64_t number = launch.cluster_order[launch.clusters_started++];
  Cluster& cluster = *launch.resident.emplace_back(std::make_unique<Cluster>());
  for (unsigned rank = 0; rank < launch.cluster; ++rank) {
    if (!start_block(launch, cluster, number * launch.cluster + rank)) return false;
  }
  return true;
}

void end_cluster(Launch& launch, Cluster* cluster) {
  for (const auto& block : cluster->blocks) {
    for (Fiber* fiber : block->fibers) {
      if (fiber->state == Fiber::State::finished) {
        idle_fibers.push_back(fiber);
      } else {
        delete_fiber(fiber);
      }
    }
    if (block->arena != nullptr) unmap_arena(*block);
  }
  std::erase_if(launch.resident, [&](const auto& owner) { return owner.get() == cluster; });
}

// A thread has returned: that can complete a barrier, and leave its warp waiting for it in vain.
void retire(Launch& launch, Fiber* fiber) {
  Block& block = *fiber->block;
  Cluster& cluster = *block.cluster;
  Warp& warp = block.warps[fiber->warp];
  warp.live &= ~(1u << fiber->lane);
  --block.live;
  --cluster.live;
  progress();
  if (fiber->cluster_arrived) fail_launch(fiber, "exits between arriving and waiting at the cluster barrier");
  if (fiber->open_copies != nullptr) fail_launch(fiber, "exits with asynchronous copies that nobody waits for");
  if (block.live == 0 && has_transfer(block)) {
    fail_launch(fiber, "exits while copies into its block's shared memory are under way");
  }
  if (cluster.arrived != 0 && cluster.arrived == cluster.live) complete_cluster_barrier(cluster);
  if (block.barrier.arrived != 0 && block.barrier.arrived == block.live) complete_barrier(block);
  for_each_lane(warp.waiting, [&](unsigned lane) {
    if (warp.lanes[lane].mask >> fiber->lane & 1) {
      fail_launch(warp.lanes[lane].fiber, "waits in a warp collective for a lane that has exited");
    }
  });
  if (cluster.live == 0) end_cluster(launch, &cluster);
}

// Launch.

void report_deadlock(Launch& launch) {
  size_t at_barrier = 0, in_collective = 0, at_cluster_barrier = 0, at_mbarrier = 0;
  const Block* block_at_barrier = nullptr;
  const Mbarrier* mbarrier = nullptr;
  for (const auto& cluster : launch.resident) {
    for (const auto& block : cluster->blocks) {
      for (const Fiber* fiber : block->fibers) {
        in_collective += fiber->state == Fiber::State::in_collective;
        at_cluster_barrier += fiber->state == Fiber::State::at_cluster_barrier;
        if (fiber->state == Fiber::State::at_barrier) {
          ++at_barrier;
          block_at_barrier = block.get();
        }
        if (fiber->state == Fiber::State::at_mbarrier) {
          ++at_mbarrier;
          mbarrier = fiber->mbarrier;
        }
      }
    }
  }
  char where[200] = "", missing[200] = "";
  if (block_at_barrier != nullptr) {
    const Barrier& barrier = block_at_barrier->barrier;
    snprintf(where, sizeof where, " (%s:%d)", barrier.file, barrier.line);
  }
  if (mbarrier != nullptr) {
    snprintf(missing, sizeof missing, " (one lacks %u arrivals and %lld bytes)", mbarrier->pending,
             static_cast<long long>(mbarrier->bytes));
  }
  set_error(launch_failure,
            "simt: deadlock: %zu threads wait at __syncthreads%s, %zu in warp collectives, %zu at cluster barriers, "
            "%zu at mbarriers%s",
            at_barrier, where, in_collective, at_cluster_barrier, at_mbarrier, missing);
  launch.failed = true;
}

void run_launch(Launch& launch, size_t resident_limit) {
  while (launch.clusters_started < resident_limit) {
    if (!start_cluster(launch)) return;
  }
  while (!launch.resident.empty() && !launch.failed) {
    if (has_transfers()) {
      const bool random = settings.random.enabled() && settings.random.below(kTransferDelay) == 0;
      if (random || launch.queue.empty()) {
        complete_a_transfer();
        continue;
      }
    }
    if (launch.queue.empty()) {
      report_deadlock(launch);
      return;
    }
    Fiber* fiber = launch.queue.pop();
    switch_to_fiber(fiber);
    if (fiber->state != Fiber::State::finished) continue;
    retire(launch, fiber);
    const bool room = launch.resident.size() < resident_limit;
    if (room && launch.clusters_started < launch.cluster_order.size() && !start_cluster(launch)) return;
  }
}

Error check_configuration(KernelPointer kernel, dim3 grid, dim3 block, unsigned cluster, size_t dynamic_smem) {
  const uint64_t threads = static_cast<uint64_t>(block.x) * block.y * block.z;
  if (threads == 0 || threads > kMaxThreads || block.z > 64) {
    return set_error(invalid_configuration, "simt: invalid launch configuration: block (%u, %u, %u)", block.x, block.y,
                     block.z);
  }
  const bool grid_is_empty = grid.x == 0 || grid.y == 0 || grid.z == 0;
  if (grid_is_empty || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    return set_error(invalid_configuration, "simt: invalid launch configuration: grid (%u, %u, %u)", grid.x, grid.y,
                     grid.z);
  }
  if (!std::has_single_bit(cluster) || cluster > kMaxClusterBlocks || grid.x % cluster != 0) {
    return set_error(invalid_cluster_size, "simt: clusters of %u blocks in a grid of %u", cluster, grid.x);
  }
  const auto raised = settings.max_dynamic_smem.find(kernel);
  const size_t limit = raised == settings.max_dynamic_smem.end() ? kDefaultDynamicShared : raised->second;
  if (dynamic_smem > limit) {
    return set_error(invalid_value,
                     "simt: %zu bytes of dynamic shared memory; this kernel may have %zu (gpu::set_max_dynamic_smem)",
                     dynamic_smem, limit);
  }
  return success;
}

}  // namespace

// Interface.

const ThreadView* current = nullptr;

int barrier(BarrierKind kind, bool predicate, const char* file, int line) {
  Block& block = *running->block;
  Barrier& barrier = block.barrier;
  if (barrier.arrived == 0) {
    barrier.kind = kind;
    barrier.file = file;
    barrier.line = line;
  } else if (barrier.line != line || std::strcmp(barrier.file, file) != 0) {
    char why[300];
    snprintf(why, sizeof why, "divergent __syncthreads: %s:%d and %s:%d", barrier.file, barrier.line, file, line);
    fail(why);
  }
  ++barrier.arrived;
  barrier.votes += predicate;
  SyncPoint& sync_point = barrier.sync_point[barrier.generation % 2];
  sync_point.release();
  if (barrier.arrived == block.live) {
    complete_barrier(block);
  } else {
    suspend(Fiber::State::at_barrier);
  }
  sync_point.acquire();
  return barrier.result;
}

uint64_t warp_collective(WarpOp op, unsigned mask, uint64_t value, int source, int width) {
  Warp& warp = running->block->warps[running->warp];
  const unsigned index = running->lane;
  Warp::Lane& lane = warp.lanes[index];
  if (!(mask >> index & 1)) fail("the calling lane is not in its own mask");
  if (width < 1 || width > 32 || !std::has_single_bit(static_cast<unsigned>(width))) fail("shuffle width");
  lane.op = op;
  lane.mask = mask;
  lane.value = value;
  lane.source = source;
  lane.width = width;
  warp.waiting |= 1u << index;

  // Only __syncwarp orders memory; shuffles and votes do not.  The sync point of a __syncwarp of the whole warp
  // alternates as that of a barrier does.  With partial masks there is no such order of generations; they share one
  // sync point, so that TSan may miss a race there but never invents one.
  SyncPoint* sync_point = nullptr;
  if (op == WarpOp::sync) {
    const bool full = (mask & warp.exists) == warp.exists;
    sync_point = full ? &warp.full_sync_point[warp.full_syncs % 2] : &warp.partial_sync_point;
    sync_point->release();
  }
  if (!try_complete_collective(warp, mask, op)) suspend(Fiber::State::in_collective);
  if (sync_point != nullptr) sync_point->acquire();
  return lane.result;
}

unsigned active_mask() { return running->block->warps[running->warp].live; }

void spin() {
  if (++launch_state->fruitless_spins > launch_state->spin_limit) fail("livelock: threads spin and nothing changes");
  give_way();
}

void preemption_point() {
  if (settings.random.enabled() && settings.random.below(4) == 0) give_way();
}

void progress() { launch_state->fruitless_spins = 0; }

// CUDA's pattern  write; fence; atomic  ->  atomic; fence; read  orders the write before the read.  TSan knows no
// fences, so: an atomic releases if its thread has executed a fence before, and a fence acquires what the atomics of
// its block have met.  That is more order than CUDA promises in two points (an old fence counts; the atomic may be
// another thread's of the same block, as in kernels where one thread counts and all fence after the next barrier): TSan
// may miss a race between fenced threads, but it reports every missing first fence.
void before_atomic(void* address) {
  preemption_point();
#if defined(SIMT_TSAN)
  if (running->fenced) tsan_release(address);
  Block& block = *running->block;
  const size_t newest = (block.atomics_seen + kRememberedAtomics - 1) % kRememberedAtomics;
  if (block.atomics[newest] != address) block.atomics[block.atomics_seen++ % kRememberedAtomics] = address;
#else
  (void)address;
#endif
}

void fence() {
  preemption_point();
  running->fenced = true;
  for (void* address : running->block->atomics) {
    if (address != nullptr) tsan_acquire(address);
  }
}

void* shared_memory(const void* key, size_t bytes, size_t alignment) {
  return shared_variable(*running->block, key, bytes, alignment);
}

void* dynamic_shared_memory() { return running->block->dynamic_shared; }

void fail(const char* why) {
  fail_launch(running, why);
  end_point.release();  // the host will read the message
  for (;;) switch_to_scheduler();
}

int launch(KernelPointer kernel, dim3 grid, dim3 block, unsigned cluster, size_t dynamic_smem, void (*run)(void*),
           void* job) {
  last_code = success;
  error_message[0] = '\0';
  if (const Error code = check_configuration(kernel, grid, block, cluster, dynamic_smem)) return code;
  const uint64_t threads = static_cast<uint64_t>(block.x) * block.y * block.z;
  const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
  const uint64_t clusters = blocks / cluster;
  const size_t resident_limit = std::min(clusters, std::max<uint64_t>(1, settings.resident_blocks / cluster));

  Launch launch(resident_limit * cluster * threads);
  launch.run = run;
  launch.job = job;
  launch.grid = grid;
  launch.block = block;
  launch.dynamic_smem = dynamic_smem;
  launch.cluster = cluster;
  launch.spin_limit = 4'000'000 + 2000 * resident_limit * cluster * threads;
  launch.cluster_order.resize(clusters);
  for (uint64_t i = 0; i < clusters; ++i) launch.cluster_order[i] = i;
  if (settings.random.enabled()) {
    for (uint64_t i = clusters; i > 1; --i)
      std::swap(launch.cluster_order[i - 1], launch.cluster_order[settings.random.below(i)]);
  }
#if defined(SIMT_TSAN)
  scheduler_tsan_fiber = __tsan_get_current_fiber();
  // To TSan, what runs on one fiber runs on one thread: it takes a later block on the same fibers for ordered after an
  // earlier one, although on a GPU they may run at the same time.  So, as far as possible, every thread of a launch
  // gets a fiber of its own.
  provide_fibers(std::min<uint64_t>(blocks * threads, kTsanFibers));
#endif

  launch_state = &launch;
  forget_transfers();
  run_launch(launch, resident_limit);
  end_point.acquire();
  while (!launch.resident.empty()) end_cluster(launch, launch.resident.back().get());  // the rest of a failed launch
  launch_state = nullptr;
  current = nullptr;
  return launch.failed ? launch_failure : success;
}

static uint64_t waits;
void begin_early_launch() { waits = 0; }
void wait_for_previous_kernel() {
  preemption_point();
  ++waits;
}
int check_waits(dim3 grid, dim3 block) {
  const uint64_t threads = uint64_t{1} * grid.x * grid.y * grid.z * block.x * block.y * block.z;
  if (waits == threads) return success;
  return set_error(launch_failure, "simt: %llu of %llu threads of an early launch waited for the kernel before",
                   static_cast<unsigned long long>(waits), static_cast<unsigned long long>(threads));
}

int set_max_dynamic_smem(KernelPointer kernel, size_t bytes) {
  if (bytes > kMaxShared) {
    return set_error(invalid_value, "simt: %zu bytes of dynamic shared memory; the limit is %zu", bytes, kMaxShared);
  }
  settings.max_dynamic_smem[kernel] = bytes;
  return success;
}

int max_active_clusters(unsigned cluster, uint64_t threads, size_t dynamic_smem) {
  const uint64_t by_memory = kMaxShared / std::max<size_t>(dynamic_smem, 1);
  const uint64_t fitting = std::min({kBlocksPerMultiprocessor, kThreadsPerMultiprocessor / threads, by_memory});
  return static_cast<int>(fitting * static_cast<uint64_t>(settings.multiprocessors) / cluster);
}

const char* error_string(int code) {
  if (code == success) return "no error";
  return code == last_code ? error_message : "simt: an error of an earlier launch";
}

void set_seed(uint64_t seed) {
  constexpr uint64_t kGoldenRatio = 0x9e3779b97f4a7c15;  // spreads small seeds over all bits
  settings.random.state = seed == 0 ? 0 : (seed * kGoldenRatio) | 1;
}
void set_resident_blocks(int count) { settings.resident_blocks = std::max(count, 1); }
int resident_blocks() { return settings.resident_blocks; }
void set_multiprocessors(int count) { settings.multiprocessors = std::max(count, 1); }
int multiprocessors() { return settings.multiprocessors; }
void reset_settings() {
  const Settings defaults;
  settings.random = defaults.random;
  settings.resident_blocks = defaults.resident_blocks;
  settings.multiprocessors = defaults.multiprocessors;
}
const char* last_error() { return error_message; }
uint64_t switches() { return switch_count; }

}  // namespace simt
