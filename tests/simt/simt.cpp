// Run time of the SIMT emulator.
//
// A launch keeps a number of blocks resident.  Each of their threads is a fiber: a stack of its own and a saved stack
// pointer.  The scheduler (run_launch, on the host's stack) takes a fiber from the run queue and switches to it; the
// fiber runs the kernel until it has to wait at a barrier or in a warp collective, gives way, or returns, and switches
// back.  Whoever completes a barrier or a collective puts the waiting fibers back into the queue.  When the queue is
// empty and threads are left, nobody can ever wake them: deadlock.
//
// Sanitizers.  SIMT_ASAN: ASan is told of every stack switch, and of the bounds of every shared variable.
// SIMT_TSAN: ThreadSanitizer sees every fiber as a thread, and only what this file declares (tsan_release and
// tsan_acquire in barriers, __syncwarp, fences, start and end of a launch) orders them.  This file itself must then be
// compiled WITHOUT -fsanitize=thread: it works on the scheduler's data from all fibers, which is no race because they
// all run on one host thread.
// TSan follows about 8,000 threads in a process and gets slow long before: small launches only.
#include "simt.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <vector>

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
}
#endif

// Context switch.

#if defined(__x86_64__) && !defined(SIMT_UCONTEXT)

// Pushes the registers that a function must preserve (System V ABI), stores the stack pointer in *save, continues on
// the stack `resume`, and pops what the same code pushed there.  To its caller it is a function that returns much
// later. Not saved: the floating-point control words, which kernels do not change.
extern "C" void simt_switch_context(void** save, void* resume);
asm(R"(
.text
.p2align 4
.globl simt_switch_context
.hidden simt_switch_context
.type simt_switch_context, @function
simt_switch_context:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch_context, .-simt_switch_context
)");

namespace simt {
namespace {

struct Context {
  void* stack_pointer = nullptr;
};

void switch_context(Context& from, Context& to) { simt_switch_context(&from.stack_pointer, to.stack_pointer); }

// Lays out the stack as if simt_switch_context had been called from the first instruction of `entry`.
void make_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  constexpr int kSavedRegisters = 6;
  void** top = reinterpret_cast<void**>(stack + bytes - 16);
  *--top = nullptr;  // entry's return address, where stack traces end; it leaves the stack aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < kSavedRegisters; ++i) *--top = nullptr;
  context.stack_pointer = top;
}

}  // namespace
}  // namespace simt

#else  // any other CPU: about 15 times slower, because swapcontext calls the kernel to save the signal mask

#include <ucontext.h>

namespace simt {
namespace {

struct Context {
  ucontext_t ucontext;
};

void switch_context(Context& from, Context& to) { swapcontext(&from.ucontext, &to.ucontext); }

void make_context(Context& context, char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context.ucontext);
  context.ucontext.uc_stack.ss_sp = stack;
  context.ucontext.uc_stack.ss_size = bytes;
  context.ucontext.uc_link = nullptr;
  makecontext(&context.ucontext, entry, 0);
}

}  // namespace
}  // namespace simt

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
#else
void tsan_release(void*) {}
void tsan_acquire(void*) {}
#endif

// What releases and acquires meet at.  Its address is all that matters.
struct SyncPoint {
  char unused;
  void release() { tsan_release(&unused); }
  void acquire() { tsan_acquire(&unused); }
};

// Data.

constexpr unsigned kLanes = 32;
constexpr size_t kStackBytes = 256 << 10;  // address space; only touched pages take memory
constexpr size_t kMaxThreads = 1024;       // of a block
constexpr size_t kMaxStaticShared = 48 << 10;
constexpr size_t kDefaultDynamicShared = 48 << 10;
constexpr size_t kMaxShared = 227 << 10;  // sm_90
constexpr size_t kArenaBytes = 512 << 10;
constexpr size_t kArenaRedzone = 32;
constexpr size_t kMaxSharedVariables = 256;
constexpr size_t kRememberedAtomics = 64;
[[maybe_unused]] constexpr size_t kTsanFibers = 1024;
constexpr uint64_t kThreadsPerMultiprocessor = 2048;
constexpr uint64_t kBlocksPerMultiprocessor = 32;
constexpr uint64_t kAllOnes = ~uint64_t{0};  // NaN in every floating-point format

struct Block;

struct Fiber {
  enum class State { ready, at_barrier, in_collective, finished };
  State state = State::finished;
  ThreadView view{};
  Block* block = nullptr;
  unsigned warp = 0, lane = 0;
  bool fenced = false;  // has executed a fence since it started
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

struct SharedVariable {
  const void* key;
  void* address;
};

struct Block {
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
  // The variables that threads of this block updated atomically, most recent last in a ring; for fence().
  void* atomics[kRememberedAtomics] = {};
  size_t atomics_seen = 0;
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
  std::vector<uint64_t> block_order;
  size_t blocks_started = 0;
  std::vector<std::unique_ptr<Block>> resident;
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

// Fibers.

constexpr unsigned kTsanSwitchDoesNotSynchronize = 1;

void switch_to_fiber(Fiber* fiber) {
  running = fiber;
  current = &fiber->view;
  ++switch_count;
#if defined(SIMT_ASAN)
  __sanitizer_start_switch_fiber(&scheduler_fake_stack, fiber->stack, kStackBytes);
#elif defined(SIMT_TSAN)
  __tsan_switch_to_fiber(fiber->tsan_fiber, kTsanSwitchDoesNotSynchronize);
#endif
  switch_context(scheduler_context, fiber->context);
#if defined(SIMT_ASAN)
  __sanitizer_finish_switch_fiber(scheduler_fake_stack, nullptr, nullptr);
#endif
}

void switch_to_scheduler() {
  Fiber* self = running;
#if defined(SIMT_ASAN)
  __sanitizer_start_switch_fiber(&self->asan_fake_stack, scheduler_stack, scheduler_stack_bytes);
#elif defined(SIMT_TSAN)
  __tsan_switch_to_fiber(scheduler_tsan_fiber, kTsanSwitchDoesNotSynchronize);
#endif
  switch_context(self->context, scheduler_context);
#if defined(SIMT_ASAN)
  __sanitizer_finish_switch_fiber(self->asan_fake_stack, &scheduler_stack, &scheduler_stack_bytes);
#endif
}

// The body of every fiber: one CUDA thread after another.
[[noreturn]] void fiber_main() {
#if defined(SIMT_ASAN)
  __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
#endif
  for (;;) {
    start_point.acquire();
    launch_state->run(launch_state->job);
    end_point.release();
    running->state = Fiber::State::finished;
    switch_to_scheduler();
  }
}

// Null if the system has no room for another stack.
Fiber* new_fiber() {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* stack = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (stack == MAP_FAILED) return nullptr;
  // Guard page: a stack overflow faults instead of running into the neighbour's stack.
  if (mprotect(stack, static_cast<size_t>(sysconf(_SC_PAGESIZE)), PROT_NONE) != 0) {
    munmap(stack, kStackBytes);
    return nullptr;
  }
  Fiber* fiber = new Fiber;
  fiber->stack = static_cast<char*>(stack);
  make_context(fiber->context, fiber->stack, kStackBytes, fiber_main);
#if defined(SIMT_TSAN)
  fiber->tsan_fiber = __tsan_create_fiber(0);
#endif
  return fiber;
}

bool provide_fibers(size_t count) {
  while (idle_fibers.size() < count) {
    Fiber* fiber = new_fiber();
    if (fiber == nullptr) return false;
    idle_fibers.push_back(fiber);
  }
  return true;
}

// For a fiber that an error stopped in the middle of a kernel: it cannot be used again.
void delete_fiber(Fiber* fiber) {
#if defined(SIMT_TSAN)
  // What it did is over before the host goes on, so release on its behalf: TSan is told of a switch to the fiber that
  // does not take place.
  __tsan_switch_to_fiber(fiber->tsan_fiber, kTsanSwitchDoesNotSynchronize);
  end_point.release();
  __tsan_switch_to_fiber(scheduler_tsan_fiber, kTsanSwitchDoesNotSynchronize);
  end_point.acquire();
  __tsan_destroy_fiber(fiber->tsan_fiber);
#endif
  asan_unpoison(fiber->stack, kStackBytes);
  munmap(fiber->stack, kStackBytes);
  delete fiber;
}

void wake(Fiber* fiber) {
  fiber->state = Fiber::State::ready;
  launch_state->queue.push(fiber);
}

void suspend(Fiber::State reason) {
  running->state = reason;
  switch_to_scheduler();
}

void give_way() {
  wake(running);
  switch_to_scheduler();
}

// Errors.

__attribute__((format(printf, 2, 3))) Error set_error(Error code, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(error_message, sizeof error_message, format, arguments);
  va_end(arguments);
  last_code = code;
  return code;
}

// Marks the launch as failed; the scheduler stops before the next fiber.
void fail_launch(const Fiber* culprit, const char* why) {
  const uint3 block = culprit->view.block_index, thread = culprit->view.thread_index;
  set_error(launch_failure, "simt: block (%u,%u,%u) thread (%u,%u,%u): %s", block.x, block.y, block.z, thread.x,
            thread.y, thread.z, why);
  launch_state->failed = true;
}

// Shared memory.

void* arena_allocate(Block& block, size_t bytes, size_t alignment) {
  alignment = std::max<size_t>(alignment, 16);
  const size_t start = (block.arena_used + alignment - 1) & ~(alignment - 1);
  block.arena_used = start + bytes + kArenaRedzone;
  char* address = block.arena + start;
  asan_unpoison(address, bytes);
  // By hand, because TSan intercepts memset and would take the fill for an unordered write of this thread.
  volatile char* cells = address;
  for (size_t i = 0; i < bytes; ++i) cells[i] = static_cast<char>(0xff);
  return address;
}

bool map_arena(Block& block) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* arena = mmap(nullptr, kArenaBytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (arena == MAP_FAILED) return false;
  block.arena = static_cast<char*>(arena);
  asan_poison(arena, kArenaBytes);
  return true;
}

void unmap_arena(Block& block) {
  asan_unpoison(block.arena, kArenaBytes);
  munmap(block.arena, kArenaBytes);
}

// Barrier.

// Invariant: nobody can arrive at barrier g + 2 before everybody has left barrier g, because g + 1 needs all threads.
// So `result` stays valid until the last thread has read it, and two sync points, taken in turn, are enough to keep
// TSan from ordering a thread that leaves g after what others did before g + 1.
void complete_barrier(Block& block) {
  Barrier& barrier = block.barrier;
  switch (barrier.kind) {
    case BarrierKind::plain:
      break;
    case BarrierKind::count:
      barrier.result = static_cast<int>(barrier.votes);
      break;
    case BarrierKind::all:
      barrier.result = barrier.votes == barrier.arrived;
      break;
    case BarrierKind::any:
      barrier.result = barrier.votes != 0;
      break;
  }
  barrier.arrived = 0;
  barrier.votes = 0;
  ++barrier.generation;
  progress();
  for (Fiber* fiber : block.fibers) {
    if (fiber->state == Fiber::State::at_barrier) wake(fiber);
  }
}

// Warp collectives.

template <class Function>
void for_each_lane(unsigned mask, Function function) {
  for (; mask != 0; mask &= mask - 1) function(static_cast<unsigned>(std::countr_zero(mask)));
}

// The lane that `lane` reads from; itself where the source would leave its segment of `width` lanes.
unsigned shuffle_source(WarpOp op, unsigned lane, int offset, int width) {
  const int self = static_cast<int>(lane);
  const int segment = self & ~(width - 1);
  int from = self;
  switch (op) {
    case WarpOp::shuffle:
      return static_cast<unsigned>(segment + (offset & (width - 1)));
    case WarpOp::shuffle_up:
      from = self - offset;
      return static_cast<unsigned>(from >= segment ? from : self);
    case WarpOp::shuffle_down:
      from = self + offset;
      return static_cast<unsigned>(from < segment + width ? from : self);
    case WarpOp::shuffle_xor:
      from = self ^ offset;
      return static_cast<unsigned>(from < segment + width ? from : self);
    default:
      return lane;
  }
}

unsigned lanes_with_value(const Warp& warp, unsigned participants, uint64_t value) {
  unsigned found = 0;
  for_each_lane(participants, [&](unsigned lane) {
    if (warp.lanes[lane].value == value) found |= 1u << lane;
  });
  return found;
}

// gpu::mma_m16n8k16 of a warp, with sums in order.
void multiply_fragments(Warp& warp) {
  const auto operands = [&](int lane) -> const MmaOperands& {
    return *reinterpret_cast<const MmaOperands*>(static_cast<uintptr_t>(warp.lanes[lane].value));
  };
  const auto half_of = [](unsigned pair, int which) { return static_cast<uint16_t>(pair >> 16 * which); };
  float a[16][16], b[16][8];
  for (int lane = 0; lane < static_cast<int>(kLanes); ++lane) {
    const MmaOperands& mine = operands(lane);
    const int group = lane / 4, column = lane % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      for (int k = 0; k < 2; ++k) {
        a[group + i % 2 * 8][column + i / 2 * 8 + k] = mine.to_float(half_of(mine.a[i], k));
        if (i < 2) b[column + i * 8 + k][group] = mine.to_float(half_of(mine.b[i], k));
      }
    }
  }
  for (int lane = 0; lane < static_cast<int>(kLanes); ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
      float sum = operands(lane).d[i];
      for (int k = 0; k < 16; ++k) sum += a[row][k] * b[k][column];
      operands(lane).d[i] = sum;
    }
  }
}

void compute_results(Warp& warp, unsigned participants, WarpOp op) {
  if (op == WarpOp::mma) {
    if (participants != ~0u) fail("mma needs all lanes of a warp");
    multiply_fragments(warp);
  }
  const unsigned ballot = participants & ~lanes_with_value(warp, participants, 0);
  for_each_lane(participants, [&](unsigned index) {
    Warp::Lane& lane = warp.lanes[index];
    switch (op) {
      case WarpOp::shuffle:
      case WarpOp::shuffle_up:
      case WarpOp::shuffle_down:
      case WarpOp::shuffle_xor: {
        // Reading from a lane that takes no part is undefined in CUDA; here it gives NaN.
        const unsigned from = shuffle_source(op, index, lane.source, lane.width);
        lane.result = (participants >> from & 1) ? warp.lanes[from].value : kAllOnes;
        break;
      }
      case WarpOp::ballot:
        lane.result = ballot;
        break;
      case WarpOp::any:
        lane.result = ballot != 0;
        break;
      case WarpOp::all:
        lane.result = ballot == participants;
        break;
      case WarpOp::match:
        lane.result = lanes_with_value(warp, participants, lane.value);
        break;
      case WarpOp::sync:
      case WarpOp::mma:
        break;
    }
  });
}

// Completes the collective of `mask` if all its lanes have arrived, and wakes those that wait.
bool try_complete_collective(Warp& warp, unsigned mask, WarpOp op) {
  const unsigned participants = mask & warp.exists;
  if (participants & ~warp.live) fail("a warp collective names a lane that has exited");
  if ((warp.waiting & participants) != participants) return false;
  for_each_lane(participants, [&](unsigned lane) {
    if (warp.lanes[lane].op != op || warp.lanes[lane].mask != mask) {
      fail("lanes of one mask met in different warp collectives");
    }
  });
  compute_results(warp, participants, op);
  if (op == WarpOp::sync && participants == warp.exists) ++warp.full_syncs;
  warp.waiting &= ~participants;
  progress();
  for_each_lane(participants, [&](unsigned lane) {
    if (warp.lanes[lane].fiber != running) wake(warp.lanes[lane].fiber);
  });
  return true;
}

// Blocks.

// False, with the error set, if memory runs out.
bool start_block(Launch& launch) {
  const uint64_t number = launch.block_order[launch.blocks_started++];
  const unsigned threads = launch.block.x * launch.block.y * launch.block.z;
  const dim3 grid = launch.grid, size = launch.block;
  const uint3 block_index = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
                             static_cast<unsigned>(number / grid.x / grid.y)};

  Block& block = *launch.resident.emplace_back(std::make_unique<Block>());
  block.live = threads;
  block.warps.resize((threads + kLanes - 1) / kLanes);
  block.fibers.reserve(threads);
  if (!provide_fibers(threads) || !map_arena(block)) {
    set_error(launch_failure, "simt: no memory for block number %zu of %u threads", launch.resident.size(), threads);
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
    fiber->fenced = false;
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

void end_block(Launch& launch, Block* block) {
  for (Fiber* fiber : block->fibers) {
    if (fiber->state == Fiber::State::finished) {
      idle_fibers.push_back(fiber);
    } else {
      delete_fiber(fiber);
    }
  }
  if (block->arena != nullptr) unmap_arena(*block);
  std::erase_if(launch.resident, [&](const auto& owner) { return owner.get() == block; });
}

// A thread has returned: that can complete a barrier, and leave its warp waiting for it in vain.
void retire(Launch& launch, Fiber* fiber) {
  Block& block = *fiber->block;
  Warp& warp = block.warps[fiber->warp];
  warp.live &= ~(1u << fiber->lane);
  --block.live;
  progress();
  if (block.barrier.arrived != 0 && block.barrier.arrived == block.live) complete_barrier(block);
  for_each_lane(warp.waiting, [&](unsigned lane) {
    if (warp.lanes[lane].mask >> fiber->lane & 1) {
      fail_launch(warp.lanes[lane].fiber, "waits in a warp collective for a lane that has exited");
    }
  });
  if (block.live == 0) end_block(launch, &block);
}

// Launch.

void report_deadlock(Launch& launch) {
  size_t at_barrier = 0, in_collective = 0;
  const Block* block_at_barrier = nullptr;
  for (const auto& block : launch.resident) {
    for (const Fiber* fiber : block->fibers) {
      if (fiber->state == Fiber::State::in_collective) ++in_collective;
      if (fiber->state == Fiber::State::at_barrier) {
        ++at_barrier;
        block_at_barrier = block.get();
      }
    }
  }
  char where[200] = "";
  if (block_at_barrier != nullptr) {
    const Barrier& barrier = block_at_barrier->barrier;
    snprintf(where, sizeof where, " (%s:%d)", barrier.file, barrier.line);
  }
  set_error(launch_failure, "simt: deadlock: %zu threads wait at __syncthreads%s, %zu in warp collectives", at_barrier,
            where, in_collective);
  launch.failed = true;
}

void run_launch(Launch& launch, size_t resident_limit) {
  while (launch.blocks_started < resident_limit) {
    if (!start_block(launch)) return;
  }
  while (!launch.resident.empty() && !launch.failed) {
    if (launch.queue.empty()) {
      report_deadlock(launch);
      return;
    }
    Fiber* fiber = launch.queue.pop();
    switch_to_fiber(fiber);
    if (fiber->state != Fiber::State::finished) continue;
    retire(launch, fiber);
    const bool room = launch.resident.size() < resident_limit;
    if (room && launch.blocks_started < launch.block_order.size() && !start_block(launch)) return;
  }
}

Error check_configuration(KernelPointer kernel, dim3 grid, dim3 block, size_t dynamic_smem) {
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
  Block& block = *running->block;
  for (size_t i = 0; i < block.variable_count; ++i) {
    if (block.variables[i].key == key) return block.variables[i].address;
  }
  block.static_bytes += bytes;
  if (block.static_bytes > kMaxStaticShared) fail("more than 48 KiB of static shared memory");
  if (block.static_bytes + block.dynamic_bytes > kMaxShared) fail("more than 227 KiB of shared memory");
  if (block.variable_count == kMaxSharedVariables) fail("too many shared variables for the emulator");
  void* address = arena_allocate(block, bytes, alignment);
  block.variables[block.variable_count++] = {key, address};
  return address;
}

void* dynamic_shared_memory() { return running->block->dynamic_shared; }

void fail(const char* why) {
  fail_launch(running, why);
  end_point.release();  // the host will read the message
  for (;;) switch_to_scheduler();
}

int launch(KernelPointer kernel, dim3 grid, dim3 block, size_t dynamic_smem, bool cooperative, void (*run)(void*),
           void* job) {
  last_code = success;
  error_message[0] = '\0';
  if (const Error code = check_configuration(kernel, grid, block, dynamic_smem)) return code;
  const uint64_t threads = static_cast<uint64_t>(block.x) * block.y * block.z;
  const uint64_t blocks = static_cast<uint64_t>(grid.x) * grid.y * grid.z;
  const int cooperative_limit = max_cooperative_blocks(threads);
  if (cooperative && blocks > static_cast<uint64_t>(cooperative_limit)) {
    return set_error(cooperative_launch_too_large,
                     "simt: cooperative launch of %llu blocks; %d fit on %d multiprocessors at the same time",
                     static_cast<unsigned long long>(blocks), cooperative_limit, settings.multiprocessors);
  }
  const size_t resident_limit =
      cooperative ? blocks : std::min<uint64_t>(blocks, static_cast<uint64_t>(settings.resident_blocks));

  Launch launch(resident_limit * threads);
  launch.run = run;
  launch.job = job;
  launch.grid = grid;
  launch.block = block;
  launch.dynamic_smem = dynamic_smem;
  launch.spin_limit = 4'000'000 + 2000 * resident_limit * threads;
  launch.block_order.resize(blocks);
  for (uint64_t i = 0; i < blocks; ++i) launch.block_order[i] = i;
  if (settings.random.enabled()) {
    for (uint64_t i = blocks; i > 1; --i)
      std::swap(launch.block_order[i - 1], launch.block_order[settings.random.below(i)]);
  }
#if defined(SIMT_TSAN)
  scheduler_tsan_fiber = __tsan_get_current_fiber();
  // To TSan, what runs on one fiber runs on one thread: it takes a later block on the same fibers for ordered after an
  // earlier one, although on a GPU they may run at the same time.  So, as far as possible, every thread of a launch
  // gets a fiber of its own.
  provide_fibers(std::min<uint64_t>(blocks * threads, kTsanFibers));
#endif

  launch_state = &launch;
  run_launch(launch, resident_limit);
  end_point.acquire();
  while (!launch.resident.empty()) end_block(launch, launch.resident.back().get());  // the rest of a failed launch
  launch_state = nullptr;
  current = nullptr;
  return launch.failed ? launch_failure : success;
}

int set_max_dynamic_smem(KernelPointer kernel, size_t bytes) {
  if (bytes > kMaxShared) {
    return set_error(invalid_value, "simt: %zu bytes of dynamic shared memory; the limit is %zu", bytes, kMaxShared);
  }
  settings.max_dynamic_smem[kernel] = bytes;
  return success;
}

int max_cooperative_blocks(uint64_t threads) {
  const uint64_t fitting = threads == 0 ? 0 : std::min(kBlocksPerMultiprocessor, kThreadsPerMultiprocessor / threads);
  return static_cast<int>(fitting) * settings.multiprocessors;
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
