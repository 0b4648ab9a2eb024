// The plain C side of the software Mac: what the PyTorch device and the tests ask of it.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/// A new id<MTLBuffer> that belongs to the caller; `is_private` chooses MTLStorageModePrivate.
void* software_mac_new_buffer(size_t length, int is_private);
/// A buffer's memory, whatever its storage mode. `contents` of a private one is nil, for hosts.
void* software_mac_buffer_bytes(void* buffer);
void* software_mac_retain(void* object);
void software_mac_release(void* object);

/// What the engine has done since the last reset.
struct software_mac_statistics {
  uint64_t dispatches, threadgroups, threadgroup_barriers, simdgroup_operations;
  uint64_t device_bytes_read, device_bytes_written, threadgroup_bytes_read, threadgroup_bytes_written;
};
void software_mac_read_statistics(struct software_mac_statistics* statistics);
void software_mac_reset_statistics(void);

/// Calls `function` with up to six integers or pointers. Returns 0; or 1 with what a C++ exception said in `error`.
int software_mac_call(void* function, const int64_t arguments[6], int64_t* result, char* error, size_t capacity);

/// Lines of "class count" of the Objective-C classes that have living instances; returns the capacity that it needs.
long software_mac_live_objects(char* text, long capacity);

#ifdef __cplusplus
}
#endif
