// The checks of checked libraries: each access that the compiler instrumented comes here (sites.py names these functions).
#include <string.h>

#include "memory.h"
#include "traffic.h"

extern "C" {
// The linker's: this library in memory, and the part of it that holds threadgroup variables.
extern char __ehdr_start[] __attribute__((visibility("hidden")));
extern char _end[] __attribute__((visibility("hidden")));
extern char __start_msl_threadgroup[] __attribute__((weak, visibility("hidden")));
extern char __stop_msl_threadgroup[] __attribute__((weak, visibility("hidden")));
}

namespace msl {

namespace {

// The fields of a stamp, from the highest bit: threadgroup + 1, lane, barriers of the threadgroup, of the simdgroup.
constexpr unsigned lane_bits = 10, epoch_bits = 14;
constexpr unsigned lane_shift = 2 * epoch_bits, threadgroup_shift = lane_shift + lane_bits;

uint64_t field(uint64_t stamp, unsigned shift, unsigned bits) { return stamp >> shift & ((1ull << bits) - 1); }
uint64_t threadgroup_of(uint64_t stamp) { return (stamp >> threadgroup_shift) - 1; }
unsigned lane_of(uint64_t stamp) { return static_cast<unsigned>(field(stamp, lane_shift, lane_bits)); }
unsigned simdgroup_of(uint64_t stamp) { return lane_of(stamp) / msl_simd_width; }
uint64_t epoch_of(uint64_t stamp) { return field(stamp, epoch_bits, epoch_bits); }
uint64_t simdgroup_epoch_of(uint64_t stamp) { return field(stamp, 0, epoch_bits); }

uint64_t stamp_of(uint64_t threadgroup, const lane_state& lane, space in) {
  const epochs& passed = lane.passed[in == space::threadgroup];
  const uint64_t epoch_mask = (1u << epoch_bits) - 1;
  return (threadgroup + 1) << threadgroup_shift | static_cast<uint64_t>(lane.index) << lane_shift |
         (passed.threadgroup & epoch_mask) << epoch_bits | (passed.simdgroup & epoch_mask);
}

// Whether nothing orders an earlier access before a later one.
bool unordered(uint64_t before, uint64_t now, space in) {
  if (!before) return false;
  if (threadgroup_of(before) != threadgroup_of(now)) return in == space::device;
  if (lane_of(before) == lane_of(now) || epoch_of(before) != epoch_of(now)) return false;
  return simdgroup_of(before) != simdgroup_of(now) || simdgroup_epoch_of(before) == simdgroup_epoch_of(now);
}

bool same_epoch(uint64_t a, uint64_t b) {
  return a && threadgroup_of(a) == threadgroup_of(b) && epoch_of(a) == epoch_of(b);
}

void add_what(report& text, uint64_t size, bool is_write, int site) {
  text.add(is_write ? " writes" : " reads");
  if (size) text.add(" %llu bytes", static_cast<unsigned long long>(size));
  text.add_site(site);
}

bool is_private(const char* address) {
  if (the_threadgroup.is_stack(address)) return true;
  const bool in_library = address >= __ehdr_start && address < _end;
  return in_library && !(address >= __start_msl_threadgroup && address < __stop_msl_threadgroup);
}

}  // namespace

// Counted from the start of the range, as if that were aligned, so that the same dispatch gives the same counts.
uint64_t memory::place_of(const range& in, const char* address) const {
  constexpr unsigned bits_of_offset = 40;
  return static_cast<uint64_t>(&in - ranges_) << bits_of_offset | static_cast<uint64_t>(address - in.begin);
}

void memory::race(const range& in, const char* address, const access& before, const char* earlier, const access& now,
                  bool is_write) {
  report& text = the_threadgroup.error(SOFTWARE_METAL_RACE);
  add_what(text, 0, is_write, now.site);
  text.add(" a byte of %s that ", in.name);
  if (threadgroup_of(before.stamp) != threadgroup_of(now.stamp))
    text.add("threadgroup number %llu, ", static_cast<unsigned long long>(threadgroup_of(before.stamp)));
  text.add("lane %u of simdgroup %u %s", lane_of(before.stamp) % msl_simd_width, simdgroup_of(before.stamp), earlier);
  text.add_site(before.site);
  text.add(" (byte %llu); no barrier orders the two", static_cast<unsigned long long>(address - in.begin));
  the_threadgroup.fail();
}

void memory::check_byte(range& in, char* address, const access& now, bool is_write) {
  cell& seen = in.shadow[address - in.begin];
  if (unordered(seen.write.stamp, now.stamp, in.in)) race(in, address, seen.write, "wrote", now, is_write);
  if (is_write) {
    if (unordered(seen.read.stamp, now.stamp, in.in)) race(in, address, seen.read, "read", now, is_write);
    if (unordered(seen.other_read.stamp, now.stamp, in.in)) race(in, address, seen.other_read, "read", now, is_write);
    seen = {now, {}, {}};
    return;
  }
  if (in.in == space::threadgroup && (!seen.write.stamp || threadgroup_of(seen.write.stamp) != threadgroup_)) {
    report& text = the_threadgroup.error(SOFTWARE_METAL_UNINITIALISED);
    add_what(text, 0, false, now.site);
    text.add(" byte %llu of %s, which no lane has written",
             static_cast<unsigned long long>(address - in.begin), in.name);
    the_threadgroup.fail();
  }
  // Two readers are enough to convict a later writer in most cases: keep them in different simdgroups.
  const uint64_t last = seen.read.stamp;
  if (last && lane_of(last) != lane_of(now.stamp) && same_epoch(last, now.stamp)) {
    const bool keep_other = simdgroup_of(last) == simdgroup_of(now.stamp) && same_epoch(seen.other_read.stamp, now.stamp) &&
                            simdgroup_of(seen.other_read.stamp) != simdgroup_of(now.stamp);
    if (!keep_other) seen.other_read = seen.read;
  } else if (last && threadgroup_of(last) != threadgroup_of(now.stamp)) {
    seen.other_read = seen.read;
  }
  seen.read = now;
}

void memory::check(const void* pointer, uint64_t size, uint64_t alignment, bool is_write, int site) {
  char* address = static_cast<char*>(const_cast<void*>(pointer));
  if (the_threadgroup.is_stack(address)) return;
  range* in = find(address);
  if (!in) {
    if (is_private(address)) return;
    fail_out_of_bounds(address, size, is_write, site);
  }
  if (address + size > in->end) fail_out_of_bounds(address, size, is_write, site);
  if (reinterpret_cast<uintptr_t>(address) % alignment) {
    report& text = the_threadgroup.error(SOFTWARE_METAL_UNDEFINED);
    add_what(text, size, is_write, site);
    text.add(" in %s at byte %llu, an address that is not aligned to %llu", in->name,
             static_cast<unsigned long long>(address - in->begin), static_cast<unsigned long long>(alignment));
    the_threadgroup.fail();
  }
  (is_write ? bytes_written : bytes_read)[in->in == space::threadgroup] += size;
  if (in->in != space::constant && the_traffic.is_counted())
    the_traffic.access(place_of(*in, address), size, is_write, in->in == space::threadgroup, site);
  if (!in->shadow) return;
  const access now = {stamp_of(threadgroup_, the_threadgroup.current(), in->in), site};
  for (uint64_t i = 0; i < size; ++i) check_byte(*in, address + i, now, is_write);
}

// Names the range that the address comes closest to.
void memory::fail_out_of_bounds(const char* address, uint64_t size, bool is_write, int site) {
  const range* nearest = nullptr;
  uint64_t nearest_distance = ~0ull;
  for (unsigned i = 0; i < range_count_; ++i) {
    const range& r = ranges_[i];
    const uint64_t distance = address < r.begin ? static_cast<uint64_t>(r.begin - address)
                              : address >= r.end ? static_cast<uint64_t>(address - r.end) : 0;
    if (distance < nearest_distance) nearest_distance = distance, nearest = &r;
  }
  report& text = the_threadgroup.error(SOFTWARE_METAL_BOUNDS);
  add_what(text, size, is_write, site);
  if (!nearest || nearest_distance > 1ull << 32)
    text.add(" at address %p, which belongs to no argument", static_cast<const void*>(address));
  else
    text.add(" at byte %lld of %s, which has %llu bytes", static_cast<long long>(address - nearest->begin), nearest->name,
             static_cast<unsigned long long>(nearest->end - nearest->begin));
  the_threadgroup.fail();
}

}  // namespace msl

extern "C" {

void msl_check_read(const void* address, uint64_t size, uint64_t alignment, int site) {
  msl::the_memory.check(address, size, alignment, false, site);
}

void msl_check_write(const void* address, uint64_t size, uint64_t alignment, int site) {
  msl::the_memory.check(address, size, alignment, true, site);
}

void* msl_check_memcpy(void* to, const void* from, uint64_t size, int site) {
  msl::the_memory.check(from, size, 1, false, site);
  msl::the_memory.check(to, size, 1, true, site);
  return memcpy(to, from, size);
}

void* msl_check_memmove(void* to, const void* from, uint64_t size, int site) {
  msl::the_memory.check(from, size, 1, false, site);
  msl::the_memory.check(to, size, 1, true, site);
  return memmove(to, from, size);
}

void* msl_check_memset(void* to, int value, uint64_t size, int site) {
  msl::the_memory.check(to, size, 1, true, site);
  return memset(to, value, size);
}

void msl_check_index(const void*, uint64_t index, int site) {
  msl::report& text = msl::the_threadgroup.error(SOFTWARE_METAL_BOUNDS);
  text.add(" uses the index %lld beyond the end of an array", static_cast<long long>(index));
  text.add_site(site);
  msl::the_threadgroup.fail();
}

void msl_check_division(const void*, uint64_t, uint64_t, int site) {
  msl::report& text = msl::the_threadgroup.error(SOFTWARE_METAL_UNDEFINED);
  text.add(" divides by zero, or the least integer by -1,");
  text.add_site(site);
  msl::the_threadgroup.fail();
}

}  // extern "C"
