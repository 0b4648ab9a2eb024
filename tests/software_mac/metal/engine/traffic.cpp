#include "traffic.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

namespace msl {

traffic the_traffic;

namespace {

constexpr uint64_t widest_access = 16, sector_bytes = 32, bank_bytes = 4, banks = 32;
constexpr unsigned most_pieces = msl_simd_width * (widest_access / bank_bytes + 1);  // at any place

// Numbers that were seen, few at a time.
struct set {
  uint64_t members[most_pieces];
  unsigned size = 0;

  void add(uint64_t number) {
    for (unsigned i = 0; i < size; ++i)
      if (members[i] == number) return;
    members[size++] = number;
  }
  void add_pieces(uint64_t place, uint64_t bytes, uint64_t piece) {
    for (uint64_t n = place / piece; n <= (place + bytes - 1) / piece; ++n) add(n);
  }
};

// How often the most wanted bank serves, less what as many words need at least.
unsigned further_turns(const set& words) {
  unsigned wanted[banks] = {}, most = 0;
  for (unsigned i = 0; i < words.size; ++i) {
    unsigned& of_bank = wanted[words.members[i] % banks];
    if (++of_bank > most) most = of_bank;
  }
  return most - (words.size + banks - 1) / banks;
}

}  // namespace

void traffic::begin_dispatch(software_metal_traffic* counts) {
  counts_ = counts;
  if (!counts) return;
  *counts = {};
  void* mapping = mmap(nullptr, mapping_bytes(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) {
    fprintf(stderr, "software_mac.metal: no memory to count accesses\n");
    abort();
  }
  memory_ = static_cast<entry*>(mapping);
  logs_ = reinterpret_cast<log*>(memory_ + size_t(max_lanes) * capacity);
  for (unsigned lane = 0; lane < max_lanes; ++lane) logs_[lane].entries = memory_ + size_t(lane) * capacity;
}

void traffic::end_dispatch() {
  if (counts_) munmap(memory_, mapping_bytes());
  counts_ = nullptr;
}

void traffic::access(uint64_t place, uint64_t size, bool is_write, bool of_threadgroup, int site) {
  log& mine = logs_[the_threadgroup.current().index];
  for (uint64_t done = 0; done < size; done += widest_access) {
    if (mine.used == capacity) {
      fprintf(stderr, "software_mac.metal: a lane has more than %u accesses between simd operations\n", capacity);
      abort();
    }
    const uint64_t rest = size - done;
    mine.entries[mine.used++] = {place + done, static_cast<uint32_t>(site),
                                 static_cast<uint8_t>(rest < widest_access ? rest : widest_access), is_write,
                                 of_threadgroup};
  }
}

// Takes the next access of the first lane that has one left, and with it those of the lanes that are at the same place.
void traffic::meet(unsigned simdgroup) {
  log* lanes = logs_ + simdgroup * msl_simd_width;
  uint32_t taken[msl_simd_width] = {};
  for (unsigned first = 0; first < msl_simd_width;) {
    if (taken[first] == lanes[first].used) {
      ++first;
      continue;
    }
    const entry* same[msl_simd_width];
    unsigned count = 0;
    const entry& wanted = lanes[first].entries[taken[first]];
    for (unsigned l = first; l < msl_simd_width; ++l) {
      if (taken[l] == lanes[l].used || lanes[l].entries[taken[l]].site != wanted.site) continue;
      same[count++] = &lanes[l].entries[taken[l]++];
    }
    serve(same, count);
  }
  for (unsigned l = 0; l < msl_simd_width; ++l) lanes[l].used = 0;
}

void traffic::serve(const entry* const* same, unsigned lanes) {
  const entry& first = *same[0];
  set pieces;
  uint64_t bytes = 0;
  for (unsigned l = 0; l < lanes; ++l) {
    pieces.add_pieces(same[l]->place, same[l]->size, first.of_threadgroup ? bank_bytes : sector_bytes);
    bytes += same[l]->size;
  }
  if (first.of_threadgroup) {
    counts_->threadgroup_requests += 1;
    counts_->threadgroup_bytes += bytes;
    counts_->bank_conflicts += further_turns(pieces);
  } else {
    counts_->device_requests += 1;
    (first.is_write ? counts_->device_bytes_written : counts_->device_bytes_read) += bytes;
    (first.is_write ? counts_->sectors_written : counts_->sectors_read) += pieces.size;
  }
}

}  // namespace msl

void msl_count_product() {
  if (msl::the_traffic.is_counted() && msl_current->lane == 0) msl::the_traffic.count_product();
}

void msl_count_exponential() {
  if (msl::the_traffic.is_counted()) msl::the_traffic.count_exponential();
}
