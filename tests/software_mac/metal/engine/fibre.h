// Fibres: stacks, and the switch from one to another.
#pragma once

#include <stddef.h>

namespace msl {

// Saves the callee-saved registers on the current stack and its pointer in *save, then continues the fibre at load.
extern "C" void msl_switch(void** save, void* load);

// One stack for each lane, in one mapping, each with a guard page below it.
class fibre_stacks {
 public:
  void reserve(unsigned count);
  // Gives the mapping back: a process that runs hundreds of libraries would run out of mappings.
  void release();
  // The saved stack pointer of a fibre that will start in body, which must not return.
  void* start(unsigned index, void (*body)());
  bool contains(const void* address) const { return address >= base_ && address < base_ + count_ * stack_bytes; }

 private:
  static constexpr size_t stack_bytes = 256 * 1024;
  static constexpr size_t guard_bytes = 64 * 1024;
  char* base_ = nullptr;
  unsigned count_ = 0;
};

}  // namespace msl
