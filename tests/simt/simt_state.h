#pragma once
// What the emulator knows of a launch, its blocks, warps and threads.  Included by simt.cpp only.
#include <deque>
#include <map>
#include <memory>
#include <vector>

#include "simt.h"
#include "simt_context.h"

#if defined(SIMT_ASAN)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(SIMT_TSAN)
extern "C" {
void* __tsan_get_current_fiber();
void* __tsan_create_fiber(unsigned flags);
void __tsan_destroy_fiber(void* fiber);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_read_range(void* address, unsigned long bytes);
void __tsan_write_range(void* address, unsigned long bytes);
}
#endif
namespace simt {
namespace {

// Sanitizer annotations (empty in the plain build).

#if defined(SIMT_ASAN)
void asan_poison(void* p, size_t bytes) { __asan_poison_memory_region(p, bytes); }
void asan_unpoison(void* p, size_t bytes) { __asan_unpoison_memory_region(p, bytes); }
#else
void asan_poison(void*, size_t) {}
void asan_unpoison(void*, size_t) {}
#endif

#if defined(SIMT_TSAN)
void tsan_release(void* address) { __tsan_release(address); }
void tsan_acquire(void* address) { __tsan_acquire(address); }
void tsan_read(const void* p, size_t bytes) { __tsan_read_range(const_cast<void*>(p), bytes); }
void tsan_write(void* p, size_t bytes) { __tsan_write_range(p, bytes); }
#else
void tsan_release(void*) {}
void tsan_acquire(void*) {}
void tsan_read(const void*, size_t) {}
void tsan_write(void*, size_t) {}
#endif

// What releases and acquires meet at.  Its address is all that matters.
struct SyncPoint {
  char unused;
  void release() { tsan_release(&unused); }
  void acquire() { tsan_acquire(&unused); }
};
constexpr unsigned kLanes = 32;
constexpr size_t kStackBytes = 256 << 10;  // address space; only touched pages take memory
constexpr size_t kMaxThreads = 1024;       // of a block
constexpr size_t kMaxStaticShared = 48 << 10;
constexpr size_t kDefaultDynamicShared = 48 << 10;
constexpr size_t kMaxShared = 227 << 10;  // sm_90
constexpr size_t kArenaBytes = 512 << 10;
constexpr size_t kArenaRedzone = 32;
constexpr size_t kMaxSharedVariables = 256;
constexpr size_t kMaxMbarriers = 64;        // of a block
constexpr unsigned kMaxClusterBlocks = 16;  // sm_90
constexpr uint64_t kTransferDelay = 64;     // fiber switches of a random schedule between two transfers, on average
constexpr size_t kRememberedAtomics = 64;
[[maybe_unused]] constexpr size_t kTsanFibers = 1024;
constexpr uint64_t kThreadsPerMultiprocessor = 2048;
constexpr uint64_t kBlocksPerMultiprocessor = 32;
constexpr uint64_t kAllOnes = ~uint64_t{0};  // NaN in every floating-point format

struct Block;
struct Cluster;
struct Mbarrier;

struct Fiber {
  enum class State { ready, at_barrier, in_collective, at_cluster_barrier, at_mbarrier, finished };
  State state = State::finished;
  ThreadView view{};
  Block* block = nullptr;
  unsigned warp = 0, lane = 0;
  bool fenced = false;           // has executed a fence since it started
  bool cluster_arrived = false;  // at the cluster barrier of this generation, and has not waited there yet
  unsigned cluster_generation = 0;
  Mbarrier* mbarrier = nullptr;  // where it waits
  void* open_copies = nullptr;   // asynchronous copies that no arrival covers yet
  Context context;
  char* stack = nullptr;
  void* asan_fake_stack = nullptr;
  void* tsan_fiber = nullptr;
};

// Sets of lanes are bit masks.
struct Warp {
  struct Lane {
    Fiber* fiber = nullptr;
    WarpOp op = WarpOp::sync;
    unsigned mask = 0;
    uint64_t value = 0, result = 0;
    int source = 0, width = 0;
  };
  Lane lanes[kLanes];
  unsigned exists = 0;   // the last warp of a block may be incomplete
  unsigned live = 0;     // have not returned yet
  unsigned waiting = 0;  // in a collective
  unsigned full_syncs = 0;
  SyncPoint full_sync_point[2], partial_sync_point;
};

struct Barrier {
  BarrierKind kind = BarrierKind::plain;
  const char* file = nullptr;  // where the first thread to arrive stands
  int line = 0;
  unsigned arrived = 0, votes = 0;
  int result = 0;
  unsigned generation = 0;  // barriers completed
  SyncPoint sync_point[2];
};

// Its word in shared memory is only its name.
struct Mbarrier {
  const void* address;
  unsigned count;    // arrivals that complete a phase,
  unsigned pending;  // and those that this phase still expects,
  int64_t bytes;     // with as many bytes; negative if they come before they are announced
  unsigned phase;    // phases completed
  SyncPoint sync_point[2];
};

struct SharedVariable {
  const void* key;
  void* address;
  size_t bytes;
};

struct Block {
  Cluster* cluster = nullptr;
  unsigned rank = 0;  // in the cluster
  SyncPoint exit_point;
  std::vector<Fiber*> fibers;
  std::vector<Warp> warps;
  unsigned live = 0;
  Barrier barrier;
  // Shared memory: one mapping per block, handed out piece by piece with unaddressable gaps.  Always a fresh mapping,
  // because mmap and munmap make TSan forget the accesses of the block that had the addresses before.
  char* arena = nullptr;
  size_t arena_used = 0;
  void* dynamic_shared = nullptr;
  size_t static_bytes = 0, dynamic_bytes = 0;
  // No std::vector: it would grow on a fiber, and TSan takes malloc and free on different fibers for a race.
  SharedVariable variables[kMaxSharedVariables];
  size_t variable_count = 0;
  Mbarrier mbarriers[kMaxMbarriers];
  size_t mbarrier_count = 0;
  // The variables that threads of this block updated atomically, most recent last in a ring; for fence().
  void* atomics[kRememberedAtomics] = {};
  size_t atomics_seen = 0;
};

// Blocks that start together and end together; a launch without clusters has clusters of one block.
struct Cluster {
  std::vector<std::unique_ptr<Block>> blocks;
  unsigned live = 0;     // threads
  unsigned arrived = 0;  // of them at the barrier
  unsigned generation = 0;
  SyncPoint sync_point[2];  // in turn, as Barrier's
};

// xorshift64; never 0 once seeded.
struct Random {
  uint64_t state = 0;
  bool enabled() const { return state != 0; }
  uint64_t below(uint64_t bound) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state % bound;
  }
};

struct Settings {
  Random random;
  int resident_blocks = 4;
  int multiprocessors = 4;
  std::map<KernelPointer, size_t> max_dynamic_smem;
} settings;

// Ring buffer of the fibers that can run.  A fiber is in it at most once, so the number of fibers bounds its size.
class RunQueue {
 public:
  explicit RunQueue(size_t fibers) : ring_(std::bit_ceil(fibers)), mask_(ring_.size() - 1) {}
  bool empty() const { return head_ == tail_; }
  void push(Fiber* fiber) { ring_[tail_++ & mask_] = fiber; }
  Fiber* pop() {
    if (settings.random.enabled()) {
      const size_t chosen = head_ + settings.random.below(tail_ - head_);
      std::swap(ring_[head_ & mask_], ring_[chosen & mask_]);
    }
    return ring_[head_++ & mask_];
  }

 private:
  std::vector<Fiber*> ring_;
  size_t mask_, head_ = 0, tail_ = 0;
};

struct Launch {
  explicit Launch(size_t fibers) : queue(fibers) {}
  void (*run)(void*) = nullptr;
  void* job = nullptr;
  dim3 grid, block;
  size_t dynamic_smem = 0;
  RunQueue queue;
  unsigned cluster = 1;  // blocks in a cluster
  std::vector<uint64_t> cluster_order;
  size_t clusters_started = 0;
  std::vector<std::unique_ptr<Cluster>> resident;
  uint64_t fruitless_spins = 0, spin_limit = 0;
  bool failed = false;
};

Launch* launch_state = nullptr;  // the launch in progress
Fiber* running = nullptr;        // the fiber that runs, or ran last
std::deque<Fiber*> idle_fibers;  // first in, first out; kept from launch to launch, a warm fiber costs nothing to start
uint64_t switch_count = 0;
Error last_code = success;
char error_message[512] = "";  // a fixed buffer, for the same reason as Block::variables

Context scheduler_context;
#if defined(SIMT_ASAN)
const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;
void* scheduler_fake_stack = nullptr;
#elif defined(SIMT_TSAN)
void* scheduler_tsan_fiber = nullptr;
#endif

// All blocks start after the host's work and end before it goes on, but are not ordered among themselves: so the
// scheduler releases only its own past at a start, and acquires the ends once, after the last block.
SyncPoint start_point, end_point;

}  // namespace
}  // namespace simt
