#include "threadgroup.h"

#include <string.h>

#include "traffic.h"

struct msl_lane* msl_current;

namespace msl {

threadgroup_run the_threadgroup;

namespace {

constexpr unsigned flag_device = 1, flag_threadgroup = 2;  // metal::mem_flags

unsigned first_bit_from(uint32_t mask, unsigned from) {
  from &= 31;
  const uint32_t rotated = mask >> from | mask << (-from & 31);
  return (static_cast<unsigned>(__builtin_ctz(rotated)) + from) & 31;
}

}  // namespace

void threadgroup_run::run(void (*entry)(), uint3 extent, uint64_t seed) {
  entry_ = entry;
  random_state_ = seed;
  set_up(extent);
  running_ = true;
  current_ = 0;
  if (seed) current_ = next();
  msl_current = &lanes_[current_];
  msl_switch(&main_stack_, lanes_[current_].stack);
  running_ = false;
}

void threadgroup_run::set_up(uint3 extent) {
  lane_count_ = live_ = extent.x * extent.y * extent.z;
  waiting_at_barrier_ = 0;
  stacks_.reserve(lane_count_);
  const unsigned groups = (lane_count_ + msl_simd_width - 1) / msl_simd_width;
  runnable_simdgroups_ = 0xffffffffu >> (32 - groups);
  for (unsigned g = 0; g < groups; ++g) {
    const unsigned rest = lane_count_ - g * msl_simd_width;
    const unsigned width = rest < msl_simd_width ? rest : msl_simd_width;
    simdgroup& group = simdgroups_[g];
    group.members = group.runnable = 0xffffffffu >> (32 - width);
    group.arrived = 0;
    memset(group.slots, 0xff, sizeof group.slots);  // what no lane publishes reads as NaN
    for (unsigned l = 0; l < width; ++l) {
      const unsigned i = g * msl_simd_width + l;
      lane_state& lane = lanes_[i];
      static_cast<msl_lane&>(lane) = {i, g, l, width};
      lane.position = {i % extent.x, i / extent.x % extent.y, i / (extent.x * extent.y)};
      lane.stack = stacks_.start(i, body);
      lane.at = place::running;
      lane.site = -1;
      lane.phase = 0;
      lane.passed[0] = lane.passed[1] = {};
    }
  }
}

void threadgroup_run::body() {
  threadgroup_run& self = the_threadgroup;
  self.entry_();
  if (--self.live_ == 0) {
    self.count_accesses();
    void* finished;
    msl_switch(&finished, self.main_stack_);
  }
  self.wait(place::returned, -1);
  __builtin_unreachable();
}

uint32_t threadgroup_run::random() {  // splitmix64
  uint64_t z = random_state_ += 0x9e3779b97f4a7c15u;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return static_cast<uint32_t>(z >> 32);
}

// Lanes of the current simdgroup come first, in order. With a seed the lane is a random one, and now and then the
// simdgroup too, so that simdgroups overtake each other between barriers.
unsigned threadgroup_run::next() {
  if (!runnable_simdgroups_) fail_stalled();
  unsigned group = current_ / msl_simd_width, from = current_ + 1;
  bool stay = runnable_simdgroups_ >> group & 1;
  if (random_state_) {
    const uint32_t dice = random();
    from = dice;
    stay = stay && (dice >> 5 & 7);
    if (!stay) group = first_bit_from(runnable_simdgroups_, dice >> 8);
  } else if (!stay) {
    group = first_bit_from(runnable_simdgroups_, group + 1);
    from = 0;
  }
  return group * msl_simd_width + first_bit_from(simdgroups_[group].runnable, from);
}

void threadgroup_run::switch_to(unsigned index) {
  lane_state& from = lanes_[current_];
  current_ = index;
  msl_current = &lanes_[index];
  msl_switch(&from.stack, lanes_[index].stack);
}

// Leaves the processor to another lane, until somebody makes this one runnable.
void threadgroup_run::wait(place at, int site) {
  lane_state& me = current();
  simdgroup& group = simdgroups_[me.simdgroup];
  me.at = at;
  me.site = site;
  group.runnable &= ~(1u << me.lane);
  if (!group.runnable) runnable_simdgroups_ &= ~(1u << me.simdgroup);
  switch_to(next());
}

void threadgroup_run::meet_simdgroup(int site) {
  lane_state& me = current();
  simdgroup& group = simdgroups_[me.simdgroup];
  if (!group.arrived)
    group.site = site;
  else if (group.site != site)
    fail_diverged(group, site);
  group.arrived |= 1u << me.lane;
  if (group.arrived != group.members) {
    wait(place::simd_operation, site);
  } else {
    ++simd_operations;
    if (the_traffic.is_counted()) the_traffic.meet(me.simdgroup);
    group.arrived = 0;
    group.runnable = group.members;
    runnable_simdgroups_ |= 1u << me.simdgroup;
  }
  me.at = place::running;
}

void threadgroup_run::count_accesses() {
  if (!the_traffic.is_counted()) return;
  for (unsigned g = 0; g * msl_simd_width < lane_count_; ++g) the_traffic.meet(g);
}

void* threadgroup_run::exchange(const void* value, unsigned size, int site) {
  lane_state& me = current();
  auto& slots = simdgroups_[me.simdgroup].slots[me.phase];
  me.phase ^= 1;
  memcpy(slots[me.lane], value, size);
  meet_simdgroup(site);
  return slots;
}

void threadgroup_run::simdgroup_barrier(unsigned flags, int site) {
  meet_simdgroup(site);
  lane_state& me = current();
  me.passed[0].simdgroup += (flags & flag_device) != 0;
  me.passed[1].simdgroup += (flags & flag_threadgroup) != 0;
}

void threadgroup_run::threadgroup_barrier(unsigned flags, int site) {
  lane_state& me = current();
  if (!waiting_at_barrier_) {
    barrier_site_ = site;
  } else if (barrier_site_ != site) {
    report& text = error(SOFTWARE_METAL_DIVERGENCE);
    text.add(" waits at a barrier");
    text.add_site(site);
    text.add(", but other lanes wait at another barrier");
    text.add_site(barrier_site_);
    fail();
  }
  if (++waiting_at_barrier_ < lane_count_) {
    wait(place::barrier, site);
  } else {
    ++barriers;
    count_accesses();
    waiting_at_barrier_ = 0;
    const unsigned groups = (lane_count_ + msl_simd_width - 1) / msl_simd_width;
    runnable_simdgroups_ = 0xffffffffu >> (32 - groups);
    for (unsigned g = 0; g < groups; ++g) simdgroups_[g].runnable = simdgroups_[g].members;
  }
  me.at = place::running;
  me.passed[0].threadgroup += (flags & flag_device) != 0;
  me.passed[1].threadgroup += (flags & flag_threadgroup) != 0;
}

report& threadgroup_run::error(int status) {
  message.status = status;
  const lane_state& me = current();
  message.add("kernel '%s', threadgroup (%u, %u, %u), lane %u of simdgroup %u", kernel_name, threadgroup_position.x,
              threadgroup_position.y, threadgroup_position.z, me.lane, me.simdgroup);
  return message;
}

void threadgroup_run::fail() {
  running_ = false;
  void* abandoned;
  msl_switch(&abandoned, main_stack_);
  __builtin_unreachable();
}

void threadgroup_run::fail_diverged(const simdgroup& group, int site) {
  report& text = error(SOFTWARE_METAL_DIVERGENCE);
  text.add(" is at the simd operation");
  text.add_site(site);
  text.add(", but ");
  text.add_lanes(group.arrived, current().lanes);
  text.add(" of its simdgroup wait at another simd operation");
  text.add_site(group.site);
  fail();
}

void threadgroup_run::add_where(place at, int site) {
  if (at == place::returned) return message.add(" returned");
  message.add(at == place::barrier ? ": waiting at the barrier" : ": waiting at the simd operation");
  message.add_site(site);
}

// No lane can run: says for each simdgroup which lanes are where.
void threadgroup_run::fail_stalled() {
  message.status = SOFTWARE_METAL_DEADLOCK;
  for (unsigned g = 0; g * msl_simd_width < lane_count_; ++g)
    if (simdgroups_[g].arrived) message.status = SOFTWARE_METAL_DIVERGENCE;
  message.add("kernel '%s', threadgroup (%u, %u, %u): %s that not all lanes reach.", kernel_name, threadgroup_position.x,
              threadgroup_position.y, threadgroup_position.z,
              message.status == SOFTWARE_METAL_DEADLOCK ? "a barrier" : "a simd operation");
  for (unsigned g = 0; g * msl_simd_width < lane_count_; ++g) {
    uint32_t rest = simdgroups_[g].members;
    while (rest) {
      const lane_state& first = lanes_[g * msl_simd_width + static_cast<unsigned>(__builtin_ctz(rest))];
      uint32_t same = 0;
      for (unsigned l = 0; l < first.lanes; ++l) {
        const lane_state& other = lanes_[g * msl_simd_width + l];
        if (other.at == first.at && other.site == first.site) same |= 1u << l;
      }
      message.add("\n  simdgroup %u: ", g);
      message.add_lanes(same, first.lanes);
      add_where(first.at, first.site);
      rest &= ~same;
    }
  }
  fail();
}

}  // namespace msl

void* msl_exchange(const void* value, unsigned size, int site) {
  return msl::the_threadgroup.exchange(value, size, site);
}

void msl_simdgroup_barrier(unsigned flags, int site) { msl::the_threadgroup.simdgroup_barrier(flags, site); }

void msl_threadgroup_barrier(unsigned flags, int site) { msl::the_threadgroup.threadgroup_barrier(flags, site); }

void msl_undefined(const char* what, int site) {
  msl::report& text = msl::the_threadgroup.error(SOFTWARE_METAL_UNDEFINED);
  text.add(": %s", what);
  text.add_site(site);
  msl::the_threadgroup.fail();
}

void msl_need_full_simdgroup(const char* what, int site) {
  if (msl_current->lanes == msl_simd_width) return;
  msl::report& text = msl::the_threadgroup.error(SOFTWARE_METAL_BAD_LAUNCH);
  text.add(": %s", what);
  text.add_site(site);
  text.add(" needs 32 lanes; this simdgroup has %u", msl_current->lanes);
  msl::the_threadgroup.fail();
}
