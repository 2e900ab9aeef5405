#pragma once
// Clusters of blocks, mbarriers and asynchronous copies of the emulator.  Included by simt.cpp only.
//
// A copy takes place at some later point: in a random schedule at a random one, first in, first out only when nobody
// can run without it, which is as late as a wait allows.  Until then its destination is filled with 0xff, which reads
// as NaN.  So a missing wait, a wait for the wrong phase, and a buffer that is filled again while it is still read give
// wrong results.  To TSan a copy writes when it is issued, and whoever waits at its mbarrier acquires that.
#include "simt_fibers.h"

namespace simt {
namespace {

// By hand, because TSan intercepts memset and memcpy; these bytes are accounted for by tsan_write and tsan_read.
void copy_bytes(char* to, const char* from, size_t bytes) {
  volatile char* cells = to;
  for (size_t i = 0; i < bytes; ++i) cells[i] = from[i];
}

void poison_bytes(char* to, size_t bytes) {
  volatile char* cells = to;
  for (size_t i = 0; i < bytes; ++i) cells[i] = static_cast<char>(0xff);
}

// Under ASan, which has this function instrumented, reports memory that is not there where the copy is issued.
void touch_bytes(const char* from, size_t bytes) {
  const volatile char* cells = from;
  for (size_t i = 0; i < bytes; ++i) (void)cells[i];
}

bool in_own_shared_memory(const void* p, size_t bytes) {
  const Block& block = *running->block;
  const char* at = static_cast<const char*>(p);
  return at >= block.arena && at + bytes <= block.arena + block.arena_used;
}

// Cluster barriers.

void complete_cluster_barrier(Cluster& cluster) {
  cluster.arrived = 0;
  ++cluster.generation;
  progress();
  for (const auto& block : cluster.blocks) {
    for (Fiber* fiber : block->fibers) {
      if (fiber->state == Fiber::State::at_cluster_barrier) wake(fiber);
    }
  }
}

// Mbarriers.

Mbarrier* find_mbarrier(Block& block, const void* address) {
  for (size_t i = 0; i < block.mbarrier_count; ++i) {
    if (block.mbarriers[i].address == address) return &block.mbarriers[i];
  }
  return nullptr;
}

Mbarrier& mbarrier_at(Block& block, const void* address) {
  Mbarrier* barrier = find_mbarrier(block, address);
  if (barrier == nullptr) fail("uses an mbarrier that is not initialised");
  tsan_read(address, sizeof(uint64_t));
  return *barrier;
}

void complete_phase_if_due(Block& block, Mbarrier& barrier) {
  if (barrier.pending != 0 || barrier.bytes != 0) return;
  ++barrier.phase;
  barrier.pending = barrier.count;
  progress();
  for (Fiber* fiber : block.fibers) {
    if (fiber->state == Fiber::State::at_mbarrier && fiber->mbarrier == &barrier) wake(fiber);
  }
}

// Asynchronous copies.  Pools of a fixed size: a std::vector would grow on a fiber, see Block::variables.

struct Copy {
  Copy* next;  // of the same transfer
  char* to;
  const char* from;  // global memory, or `value`
  size_t bytes;
  uint64_t value;
};

// What completes together: one bulk copy or asynchronous store, or a thread's copies up to its arrival at an mbarrier.
struct Transfer {
  Block* block;
  Copy* copies;
  Mbarrier* mbarrier;
  unsigned phase;  // of the mbarrier when it was told of the transfer
  bool bulk;
};

constexpr size_t kMaxCopies = size_t{1} << 20;
Copy copy_pool[kMaxCopies];  // pages that are not touched take no memory
Copy* free_copies = nullptr;
size_t copies_used = 0;
Transfer transfer_ring[kMaxCopies];
size_t transfers_begin = 0, transfers_end = 0;

Transfer& transfer_at(size_t index) { return transfer_ring[index % kMaxCopies]; }
bool has_transfers() { return transfers_begin != transfers_end; }

void forget_transfers() {
  free_copies = nullptr;
  copies_used = transfers_begin = transfers_end = 0;
}

Copy* new_copy(char* to, const char* from, size_t bytes, uint64_t value = 0) {
  Copy* copy = free_copies;
  if (copy != nullptr) {
    free_copies = copy->next;
  } else {
    if (copies_used == kMaxCopies) fail("too many asynchronous copies at a time for the emulator");
    copy = &copy_pool[copies_used++];
  }
  *copy = {nullptr, to, from, bytes, value};
  if (from != nullptr) {
    touch_bytes(from, bytes);
    tsan_read(from, bytes);
  } else {
    copy->from = reinterpret_cast<const char*>(&copy->value);
  }
  poison_bytes(to, bytes);
  tsan_write(to, bytes);
  return copy;
}

void add_transfer(const Transfer& transfer) {
  if (transfers_end - transfers_begin == kMaxCopies) {
    fail("too many asynchronous copies at a time for the emulator");
  }
  transfer_at(transfers_end++) = transfer;
}

// Lets one transfer take place, on the scheduler's stack.
void complete_a_transfer() {
  if (settings.random.enabled()) {
    const size_t chosen = transfers_begin + settings.random.below(transfers_end - transfers_begin);
    std::swap(transfer_at(transfers_begin), transfer_at(chosen));
  }
  const Transfer transfer = transfer_at(transfers_begin++);
  size_t bytes = 0;
  for (Copy* copy = transfer.copies; copy != nullptr;) {
    copy_bytes(copy->to, copy->from, copy->bytes);
    bytes += copy->bytes;
    Copy* next = copy->next;
    copy->next = free_copies;
    free_copies = copy;
    copy = next;
  }
  progress();
  Mbarrier& barrier = *transfer.mbarrier;
  const bool expected = barrier.phase == transfer.phase && (transfer.bulk || barrier.pending != 0);
  if (!expected) {
    fail_launch(transfer.block->fibers[0], "an mbarrier got more bytes or arrivals than its phase expects");
    return;
  }
  if (transfer.bulk) {
    barrier.bytes -= static_cast<int64_t>(bytes);
  } else {
    --barrier.pending;
  }
  complete_phase_if_due(*transfer.block, barrier);
}

bool has_transfer(const Block& block) {
  for (size_t i = transfers_begin; i != transfers_end; ++i) {
    if (transfer_at(i).block == &block) return true;
  }
  return false;
}

}  // namespace

// Interface.

unsigned cluster_rank() { return running->block->rank; }
unsigned cluster_size() { return static_cast<unsigned>(running->block->cluster->blocks.size()); }

void cluster_arrive() {
  preemption_point();
  Cluster& cluster = *running->block->cluster;
  if (running->cluster_arrived) fail("arrives at the cluster barrier twice without waiting there");
  running->cluster_arrived = true;
  running->cluster_generation = cluster.generation;
  cluster.sync_point[cluster.generation % 2].release();
  if (++cluster.arrived == cluster.live) complete_cluster_barrier(cluster);
}

void cluster_wait() {
  Cluster& cluster = *running->block->cluster;
  if (!running->cluster_arrived) fail("waits at the cluster barrier without having arrived there");
  if (cluster.generation == running->cluster_generation) suspend(Fiber::State::at_cluster_barrier);
  cluster.sync_point[running->cluster_generation % 2].acquire();
  running->cluster_arrived = false;
}

// Blocks meet their shared variables in different orders, so a variable has its own place in each.
void* peer_address(unsigned rank, const void* p) {
  preemption_point();
  Block& block = *running->block;
  if (rank >= block.cluster->blocks.size()) fail("names a block that its cluster does not have");
  Block& peer = *block.cluster->blocks[rank];
  if (peer.live == 0) fail("accesses the shared memory of a block that has exited");
  const char* at = static_cast<const char*>(p);
  const char* dynamic = static_cast<const char*>(block.dynamic_shared);
  if (at >= dynamic && at < dynamic + block.dynamic_bytes) {
    return static_cast<char*>(peer.dynamic_shared) + (at - dynamic);
  }
  for (size_t i = 0; i < block.variable_count; ++i) {
    const SharedVariable& variable = block.variables[i];
    const char* start = static_cast<const char*>(variable.address);
    if (at >= start && at < start + variable.bytes) {
      return static_cast<char*>(shared_variable(peer, variable.key, variable.bytes, 16)) + (at - start);
    }
  }
  fail("an address of a peer is not one of shared memory");
}

void mbarrier_init(uint64_t* address, unsigned count) {
  Block& block = *running->block;
  if (!in_own_shared_memory(address, sizeof *address) || reinterpret_cast<uintptr_t>(address) % 8 != 0) {
    fail("an mbarrier is 8 bytes of its block's shared memory");
  }
  if (count == 0) fail("an mbarrier expects at least one arrival");
  if (find_mbarrier(block, address) != nullptr) fail("initialises an mbarrier twice");
  if (block.mbarrier_count == kMaxMbarriers) fail("too many mbarriers for the emulator");
  tsan_write(address, sizeof *address);
  block.mbarriers[block.mbarrier_count++] = {address, count, count, 0, 0, {}};
}

void mbarrier_arrive(uint64_t* address, size_t expected_bytes) {
  preemption_point();
  Mbarrier& barrier = mbarrier_at(*running->block, address);
  if (barrier.pending == 0) fail("arrives at an mbarrier that expects no more arrivals");
  barrier.sync_point[barrier.phase % 2].release();
  barrier.bytes += static_cast<int64_t>(expected_bytes);
  --barrier.pending;
  complete_phase_if_due(*running->block, barrier);
}

void mbarrier_wait(uint64_t* address, unsigned parity) {
  preemption_point();
  Mbarrier& barrier = mbarrier_at(*running->block, address);
  while (barrier.phase % 2 == parity) {
    running->mbarrier = &barrier;
    suspend(Fiber::State::at_mbarrier);
  }
  barrier.sync_point[parity].acquire();
}

void bulk_copy(void* to, const void* from, size_t bytes, uint64_t* address) {
  preemption_point();
  const uintptr_t all = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from) | bytes;
  if (all % 16 != 0 || bytes == 0) fail("bulk copy: addresses and size must be multiples of 16 bytes");
  if (!in_own_shared_memory(to, bytes)) fail("bulk copy to what is not its block's shared memory");
  Mbarrier& barrier = mbarrier_at(*running->block, address);
  Copy* copy = new_copy(static_cast<char*>(to), static_cast<const char*>(from), bytes);
  barrier.sync_point[barrier.phase % 2].release();
  add_transfer({running->block, copy, &barrier, barrier.phase, true});
}

void store_async(unsigned rank, void* p, uint64_t value, uint64_t* address) {
  Block& peer = *running->block->cluster->blocks[rank % cluster_size()];
  void* to = peer_address(rank, p);
  Mbarrier& barrier = mbarrier_at(peer, peer_address(rank, address));
  if (reinterpret_cast<uintptr_t>(to) % sizeof value != 0) fail("asynchronous store: misaligned address");
  Copy* copy = new_copy(static_cast<char*>(to), nullptr, sizeof value, value);
  barrier.sync_point[barrier.phase % 2].release();
  add_transfer({&peer, copy, &barrier, barrier.phase, true});
}

void async_copy(void* to, const void* from, size_t bytes) {
  const uintptr_t all = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
  if (all % bytes != 0) fail("asynchronous copy: addresses must be multiples of its size");
  if (!in_own_shared_memory(to, bytes)) fail("asynchronous copy to what is not its block's shared memory");
  Copy* copy = new_copy(static_cast<char*>(to), static_cast<const char*>(from), bytes);
  copy->next = static_cast<Copy*>(running->open_copies);
  running->open_copies = copy;
}

void arrive_after_copies(uint64_t* address) {
  preemption_point();
  Mbarrier& barrier = mbarrier_at(*running->block, address);
  barrier.sync_point[barrier.phase % 2].release();
  add_transfer({running->block, static_cast<Copy*>(running->open_copies), &barrier, barrier.phase, false});
  running->open_copies = nullptr;
}

}  // namespace simt
