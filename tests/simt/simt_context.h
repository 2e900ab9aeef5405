#pragma once
// The emulator's switch from one stack to another.  Included by simt.cpp only.
#include <cstddef>

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
