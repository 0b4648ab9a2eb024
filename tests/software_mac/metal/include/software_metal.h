// The C interface of a library that software_mac.metal has compiled from Metal source.
//
// A library exports one symbol, software_metal_library_v1. Everything it returns is constant and lives as long as the
// library is loaded. A dispatch may come from any thread; the dispatches of one library run one after another.
#pragma once
#ifndef __METAL_VERSION__
#include <stddef.h>
#include <stdint.h>
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum {
  SOFTWARE_METAL_BUFFERS = 31,          // [[buffer(0)]] to [[buffer(30)]], as in Metal
  SOFTWARE_METAL_THREADGROUP_LENGTHS = 31,
  SOFTWARE_METAL_THREADGROUP_BYTES = 32768,
  SOFTWARE_METAL_SIMD_WIDTH = 32,
};

enum software_metal_kind {
  SOFTWARE_METAL_BUFFER = 0,       // a device or constant pointer or reference: setBuffer or setBytes
  SOFTWARE_METAL_THREADGROUP = 1,  // a threadgroup pointer: setThreadgroupMemoryLength
  SOFTWARE_METAL_BUILTIN = 2,      // thread_position_in_grid and the like: the engine supplies it
};

struct software_metal_argument {
  const char* name;             // the parameter's name in the source
  const char* attribute;        // "buffer", "threadgroup", or a builtin's name such as "thread_position_in_grid"
  uint32_t kind;                // enum software_metal_kind
  uint32_t index;               // n of buffer(n) or threadgroup(n); 0 for a builtin
  uint32_t pointee_bytes;       // sizeof of what the pointer or reference leads to; for a builtin, its own size
  uint32_t pointee_alignment;
  uint8_t is_constant;          // the constant address space (else device); buffers only
  uint8_t is_reference;         // T&: the binding must hold at least pointee_bytes
  uint8_t is_read_only;
  uint8_t is_optional;          // guarded by function_constant(...): may stay unbound
};

struct software_metal_kernel {
  const char* name;             // as newFunctionWithName takes it: the function's name, or its host_name
  const struct software_metal_argument* arguments;
  uint32_t argument_count;
  uint32_t static_threadgroup_bytes;           // staticThreadgroupMemoryLength
  uint32_t max_total_threads_per_threadgroup;
};

struct software_metal_function_constant {
  const char* name;
  uint32_t index;
  uint32_t bytes;
};

struct software_metal_constant_value {
  uint32_t index;
  uint32_t bytes;               // must equal the function constant's
  const void* value;
};

struct software_metal_binding {
  void* pointer;                // NULL: not bound
  uint64_t length;              // bytes from pointer to the end of the MTLBuffer (or of the setBytes data)
};

struct software_metal_launch {
  uint32_t threads_per_grid[3];         // dispatchThreadgroups: threadgroups * threads_per_threadgroup
  uint32_t threads_per_threadgroup[3];  // edge threadgroups are smaller when the grid is no multiple (dispatchThreads)
  struct software_metal_binding buffers[SOFTWARE_METAL_BUFFERS];
  uint32_t threadgroup_lengths[SOFTWARE_METAL_THREADGROUP_LENGTHS];
  const struct software_metal_constant_value* constants;  // every function constant that the pipeline was made with
  uint32_t constant_count;
  uint64_t seed;                        // 0: lanes run in order; else the order of switching is shuffled by it
  struct software_metal_traffic* traffic;  // NULL: not counted; checked libraries only
};

// What a dispatch asks of a GPU, summed over its simdgroups. A request is one access of all lanes of a simdgroup; constant
// memory is not counted. Banks are assumed: 32 of 4 bytes, which Apple does not document.
struct software_metal_traffic {
  uint64_t device_requests;
  uint64_t device_bytes_read;           // by all lanes, also where several read the same byte
  uint64_t device_bytes_written;
  uint64_t sectors_read;                // of 32 bytes, that the requests touch
  uint64_t sectors_written;
  uint64_t threadgroup_requests;
  uint64_t threadgroup_bytes;
  uint64_t bank_conflicts;              // turns of a request beyond those that its bytes need
  uint64_t matrix_products;             // 8 x 8 x 8
  uint64_t exponentials;                // a lane's
};

struct software_metal_statistics {
  uint64_t threadgroups;
  uint64_t threadgroup_barriers;        // per threadgroup, not per lane
  uint64_t simdgroup_operations;        // shuffles, reductions, matrix products, simdgroup barriers: per simdgroup
  uint64_t device_bytes_read;           // the last four: checked libraries only, else 0
  uint64_t device_bytes_written;
  uint64_t threadgroup_bytes_read;
  uint64_t threadgroup_bytes_written;
};

enum software_metal_status {
  SOFTWARE_METAL_OK = 0,
  SOFTWARE_METAL_BAD_LAUNCH = 1,     // a binding, a length, a grid or a constant that Metal would refuse
  SOFTWARE_METAL_DIVERGENCE = 2,     // lanes of a simdgroup met at different simd operations
  SOFTWARE_METAL_DEADLOCK = 3,       // a barrier that not all lanes of the threadgroup reach
  SOFTWARE_METAL_FAULT = 4,          // a wild access that the processor caught (plain libraries)
  SOFTWARE_METAL_RACE = 5,           // the last four: checked libraries only
  SOFTWARE_METAL_BOUNDS = 6,
  SOFTWARE_METAL_UNINITIALISED = 7,  // threadgroup memory read before it was written
  SOFTWARE_METAL_UNDEFINED = 8,      // other undefined behaviour: a misaligned access, a division by zero
};

struct software_metal_library {
  uint32_t checked;                  // compiled with the race, bounds and initialisation checks
  uint32_t kernel_count;
  const struct software_metal_kernel* kernels;
  uint32_t function_constant_count;
  const struct software_metal_function_constant* function_constants;

  // Runs one dispatch to its end. Returns an enum software_metal_status; unless it is OK, message says which kernel,
  // threadgroup, lane and line. After an error the library can be used again. statistics may be NULL.
  int (*dispatch)(const struct software_metal_kernel* kernel, const struct software_metal_launch* launch,
                  struct software_metal_statistics* statistics, char* message, size_t message_bytes);
};

const struct software_metal_library* software_metal_library_v1(void);

#ifdef __cplusplus
}
#endif
