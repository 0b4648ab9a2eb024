// The process that an emulated plug-in runs in: workers, memory, and what compilers call by themselves.
#include "params.h"

namespace {

/// Written behind each workspace, and before each call wherever nobody has written.
constexpr char kUntouched = char(0xff);
constexpr int64_t kGap = 128;

char* memory;
char* memory_end;
const char* failure;
int64_t most_workers;

/// Tasks that a worker may still take before it is the next one's turn.
struct Turn {
  int64_t left;
  bool wants_more;
} turn;

/// In the emulator one worker runs at a time. Each takes one task and lets the next one go on, in a workspace of its own.
void launch(int64_t workers, int64_t bytes, void (*body)(void*, void*), void* context) {
  const int64_t pitch = (bytes + 63) / 64 * 64 + kGap;
  if (memory_end - memory < workers * pitch) {
    failure = "the emulator has too little memory for these workspaces";
    return;
  }
  if (workers > most_workers) most_workers = workers;
  __builtin_memset(memory, kUntouched, workers * pitch);
  for (bool more = true; more;) {
    more = false;
    for (int64_t worker = 0; worker < workers; worker++) {
      turn = {workers == 1 ? INT64_MAX : 1, false};
      char* workspace = memory + worker * pitch;
      body(context, workspace);
      more |= turn.wants_more;
      for (int64_t at = bytes; at < pitch; at++)
        if (workspace[at] != kUntouched) failure = "a worker has written past its workspace";
    }
  }
}

}  // namespace

extern "C" {

int32_t software_arm_fail(const OrchardCall* call, const char* reason) {
  for (int64_t at = 0; at < call->error_capacity; at++) {
    call->error[at] = at + 1 < call->error_capacity ? reason[at] : 0;
    if (!reason[at]) break;
  }
  return 1;
}

/// Runs a call with our workers in place of those of the process outside.
int32_t software_arm_run(const OrchardCall* call, char* start, int64_t bytes) {
  memory = start;
  memory_end = start + bytes;
  failure = nullptr;
  most_workers = 0;
  OrchardHost host = *call->host;
  host.launch = launch;
  OrchardCall ours = *call;
  ours.host = &host;
  const int32_t code = ORCHARD_RUN(&ours);
  return failure ? software_arm_fail(call, failure) : code;
}

/// How many were there at once in the last call.
int64_t software_arm_workers() { return most_workers; }

/// What the queue of tasks is: `*at += by`, and what it was. For who has had his turn, there is no task left.
int64_t __aarch64_ldadd8_relax(int64_t by, int64_t* at) {
  if (turn.left == 0) {
    turn.wants_more = true;
    return INT64_MAX;
  }
  turn.left--;
  const int64_t old = *at;
  *at += by;
  return old;
}

void* memcpy(void* to, const void* from, uint64_t bytes) {
  for (uint64_t at = 0; at < bytes; at++) static_cast<char*>(to)[at] = static_cast<const char*>(from)[at];
  return to;
}

void* memset(void* to, int byte, uint64_t bytes) {
  for (uint64_t at = 0; at < bytes; at++) static_cast<char*>(to)[at] = byte;
  return to;
}

}  // extern "C"
