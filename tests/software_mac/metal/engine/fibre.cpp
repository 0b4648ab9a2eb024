#include "fibre.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

namespace msl {

#if defined(__x86_64__)

asm(R"(
.text
.globl msl_switch
.hidden msl_switch
.type msl_switch, @function
msl_switch:
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
.size msl_switch, .-msl_switch
)");

// Six registers, then the address to return to, then the slot that keeps the stack aligned as after a call.
constexpr unsigned saved_words = 8;
constexpr unsigned return_word = 6;

#elif defined(__aarch64__)

asm(R"(
.text
.globl msl_switch
.hidden msl_switch
.type msl_switch, %function
msl_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size msl_switch, .-msl_switch
)");

constexpr unsigned saved_words = 20;
constexpr unsigned return_word = 11;  // x30

#else
#error "the fibre switch is written for x86-64 and aarch64"
#endif

void fibre_stacks::reserve(unsigned count) {
  if (count <= count_) return;
  release();
  void* mapping = mmap(nullptr, count * stack_bytes, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) {
    fprintf(stderr, "software_mac.metal: no memory for %u lane stacks\n", count);
    abort();
  }
  base_ = static_cast<char*>(mapping);
  count_ = count;
  for (unsigned i = 0; i < count; ++i) mprotect(base_ + i * stack_bytes, guard_bytes, PROT_NONE);
}

void fibre_stacks::release() {
  if (base_) munmap(base_, count_ * stack_bytes);
  base_ = nullptr;
  count_ = 0;
}

void* fibre_stacks::start(unsigned index, void (*body)()) {
  void** stack = reinterpret_cast<void**>(base_ + (index + 1) * stack_bytes) - saved_words;
  memset(stack, 0, saved_words * sizeof(void*));
  stack[return_word] = reinterpret_cast<void*>(body);
  return stack;
}

}  // namespace msl
