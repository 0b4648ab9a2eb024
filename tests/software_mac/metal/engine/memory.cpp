#include "memory.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

namespace msl {

memory the_memory;

range& memory::add(space in, char* begin, uint64_t bytes) {
  if (range_count_ == max_ranges) __builtin_trap();
  range& added = ranges_[range_count_++];
  added = {begin, begin + bytes, in, nullptr, {}};
  return added;
}

void memory::add_buffer(char* begin, uint64_t bytes, const software_metal_argument& argument) {
  range* into = nullptr;
  for (unsigned i = 0; i < range_count_; ++i) {
    range& other = ranges_[i];
    if (other.in == space::threadgroup || begin >= other.end || begin + bytes <= other.begin) continue;
    other.begin = begin < other.begin ? begin : other.begin;
    other.end = begin + bytes > other.end ? begin + bytes : other.end;
    into = &other;
    break;
  }
  if (!into) into = &add(argument.is_constant ? space::constant : space::device, begin, bytes);
  if (!argument.is_constant) into->in = space::device;
  const size_t used = strlen(into->name);
  snprintf(into->name + used, sizeof into->name - used, "%sbuffer(%u) '%s'", used ? " and " : "", argument.index,
           argument.name);
}

void memory::begin_dispatch(int kernel, const software_metal_kernel& record, const software_metal_launch& launch) {
  for (unsigned side = 0; side < 2; ++side) bytes_read[side] = bytes_written[side] = 0;
  for (unsigned i = 0; i < SOFTWARE_METAL_BUFFERS; ++i) buffers_[i] = launch.buffers[i].pointer;
  char* free = arena_ + gap_bytes;
  for (unsigned i = 0; i < record.argument_count; ++i) {
    const software_metal_argument& argument = record.arguments[i];
    if (argument.kind == SOFTWARE_METAL_BUFFER && launch.buffers[argument.index].pointer) {
      const software_metal_binding& binding = launch.buffers[argument.index];
      add_buffer(static_cast<char*>(binding.pointer), binding.length, argument);
    } else if (argument.kind == SOFTWARE_METAL_THREADGROUP) {
      const uint64_t bytes = launch.threadgroup_lengths[argument.index];
      threadgroup_memory_[argument.index] = free;
      range& added = add(space::threadgroup, free, bytes);
      snprintf(added.name, sizeof added.name, "threadgroup(%u) '%s'", argument.index, argument.name);
      free += (bytes + 15) / 16 * 16 + gap_bytes;
    }
  }
  for (unsigned i = 0; i < msl_variable_count; ++i) {
    const variable& v = msl_variables[i];
    if (v.kernel >= 0 && v.kernel != kernel) continue;
    range& added = add(v.kernel < 0 ? space::constant : space::threadgroup, v.address, v.bytes);
    snprintf(added.name, sizeof added.name, "'%s'", v.name);
  }
  if (msl_checked) watch();
}

void memory::watch() {
  for (unsigned i = 0; i < range_count_; ++i) {
    range& r = ranges_[i];
    const size_t bytes = static_cast<size_t>(r.end - r.begin);
    if (r.in == space::constant || bytes == 0) continue;
    void* shadow = mmap(nullptr, bytes * sizeof(cell), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    r.shadow = shadow == MAP_FAILED ? nullptr : static_cast<cell*>(shadow);
  }
}

void memory::end_dispatch() {
  for (unsigned i = 0; i < range_count_; ++i)
    if (ranges_[i].shadow)
      munmap(ranges_[i].shadow, static_cast<size_t>(ranges_[i].end - ranges_[i].begin) * sizeof(cell));
  range_count_ = 0;
  last_found_ = nullptr;
}

// Threadgroup memory starts as NaN in every floating-point type.
void memory::begin_threadgroup(uint64_t index) {
  threadgroup_ = index;
  for (unsigned i = 0; i < range_count_; ++i)
    if (ranges_[i].in == space::threadgroup)
      memset(ranges_[i].begin, 0xff, static_cast<size_t>(ranges_[i].end - ranges_[i].begin));
}

range* memory::find(const char* address) {
  if (last_found_ && address >= last_found_->begin && address < last_found_->end) return last_found_;
  for (unsigned i = 0; i < range_count_; ++i)
    if (address >= ranges_[i].begin && address < ranges_[i].end) return last_found_ = &ranges_[i];
  return nullptr;
}

}  // namespace msl

void* msl_buffer(unsigned index) { return msl::the_memory.buffer(index); }

void* msl_threadgroup_memory(unsigned index) { return msl::the_memory.threadgroup_memory(index); }
