#pragma once
// The emulator's fibers, errors in them, and the shared memory of their blocks.  Included by simt.cpp only.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdio>

#include "simt_state.h"

namespace simt {
namespace {

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
    // Shared memory ends with the last thread of its block, which to TSan is a write.
    Block& block = *running->block;
    block.exit_point.release();
    if (block.live == 1) {
      block.exit_point.acquire();
      tsan_write(block.arena, block.arena_used);
    }
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

void* shared_variable(Block& block, const void* key, size_t bytes, size_t alignment) {
  for (size_t i = 0; i < block.variable_count; ++i) {
    if (block.variables[i].key == key) return block.variables[i].address;
  }
  block.static_bytes += bytes;
  if (block.static_bytes > kMaxStaticShared) fail("more than 48 KiB of static shared memory");
  if (block.static_bytes + block.dynamic_bytes > kMaxShared) fail("more than 227 KiB of shared memory");
  if (block.variable_count == kMaxSharedVariables) fail("too many shared variables for the emulator");
  void* address = arena_allocate(block, bytes, alignment);
  block.variables[block.variable_count++] = {key, address, bytes};
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

}  // namespace
}  // namespace simt
