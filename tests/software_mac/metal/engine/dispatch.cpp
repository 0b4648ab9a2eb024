// The C interface: checks a launch as Metal's validation would, then runs its threadgroups one after another.
#include <pthread.h>
#include <string.h>

#include "fault.h"
#include "memory.h"
#include "threadgroup.h"
#include "traffic.h"

namespace msl {

namespace {

pthread_mutex_t one_dispatch = PTHREAD_MUTEX_INITIALIZER;
uint3 grid, threadgroup_extent, threadgroup_count, extent;  // of the dispatch; extent: of the current threadgroup
constexpr unsigned max_kernels = 4096;
software_metal_kernel kernels[max_kernels];

uint64_t round_up(uint64_t bytes) { return (bytes + 15) / 16 * 16; }

uint32_t static_bytes(int kernel) {
  uint64_t bytes = 0;
  for (unsigned i = 0; i < msl_variable_count; ++i)
    if (msl_variables[i].kernel == kernel) bytes += round_up(msl_variables[i].bytes);
  return static_cast<uint32_t>(bytes);
}

bool check_grid(report& text, const software_metal_kernel& kernel, const software_metal_launch& launch) {
  const uint32_t* t = launch.threads_per_threadgroup;
  const uint64_t threads = static_cast<uint64_t>(t[0]) * t[1] * t[2];
  if (threads == 0 || threads > kernel.max_total_threads_per_threadgroup) {
    text.add("%u x %u x %u threads per threadgroup: the kernel takes 1 to %u", t[0], t[1], t[2],
             kernel.max_total_threads_per_threadgroup);
    return false;
  }
  return true;
}

bool check_arguments(report& text, const software_metal_kernel& kernel, const software_metal_launch& launch) {
  uint64_t threadgroup_bytes = kernel.static_threadgroup_bytes;
  for (unsigned i = 0; i < kernel.argument_count; ++i) {
    const software_metal_argument& argument = kernel.arguments[i];
    if (argument.kind == SOFTWARE_METAL_BUFFER) {
      const software_metal_binding& binding = launch.buffers[argument.index];
      if (!binding.pointer) {
        if (argument.is_optional) continue;
        text.add("nothing is bound to buffer(%u) '%s'", argument.index, argument.name);
        return false;
      }
      if (argument.is_reference && binding.length < argument.pointee_bytes) {
        text.add("buffer(%u) '%s' has %llu bytes; its type has %u", argument.index, argument.name,
                 static_cast<unsigned long long>(binding.length), argument.pointee_bytes);
        return false;
      }
      if (reinterpret_cast<uintptr_t>(binding.pointer) % argument.pointee_alignment) {
        text.add("buffer(%u) '%s' is not aligned to %u bytes", argument.index, argument.name, argument.pointee_alignment);
        return false;
      }
    } else if (argument.kind == SOFTWARE_METAL_THREADGROUP) {
      const uint32_t bytes = launch.threadgroup_lengths[argument.index];
      if (bytes == 0 || bytes % 16) {
        text.add("the length of threadgroup(%u) '%s' is %u: it must be a multiple of 16 and not 0", argument.index,
                 argument.name, bytes);
        return false;
      }
      threadgroup_bytes += bytes;
    }
  }
  if (threadgroup_bytes > SOFTWARE_METAL_THREADGROUP_BYTES) {
    text.add("%llu bytes of threadgroup memory: there are %u", static_cast<unsigned long long>(threadgroup_bytes),
             static_cast<unsigned>(SOFTWARE_METAL_THREADGROUP_BYTES));
    return false;
  }
  return true;
}

bool set_function_constants(report& text, const software_metal_launch& launch) {
  for (unsigned c = 0; c < msl_function_constant_count; ++c) {
    const software_metal_function_constant& constant = msl_function_constants[c];
    *msl_function_constant_defined[c] = false;
    memset(msl_function_constant_values[c], 0, constant.bytes);
    for (unsigned i = 0; i < launch.constant_count; ++i) {
      const software_metal_constant_value& value = launch.constants[i];
      if (value.index != constant.index) continue;
      if (value.bytes != constant.bytes) {
        text.add("function constant %u '%s' has %u bytes; %u were given", constant.index, constant.name, constant.bytes,
                 value.bytes);
        return false;
      }
      memcpy(msl_function_constant_values[c], value.value, value.bytes);
      *msl_function_constant_defined[c] = true;
    }
  }
  for (unsigned i = 0; i < msl_initialiser_count; ++i) msl_initialisers[i]();
  return true;
}

uint32_t edge(uint32_t grid, uint32_t size, uint32_t position) {
  const uint32_t rest = grid - position * size;
  return rest < size ? rest : size;
}

void run_threadgroups(int kernel, const software_metal_launch& launch) {
  uint64_t index = 0;
  for (uint32_t z = 0; z < threadgroup_count.z; ++z)
    for (uint32_t y = 0; y < threadgroup_count.y; ++y)
      for (uint32_t x = 0; x < threadgroup_count.x; ++x, ++index) {
        the_threadgroup.threadgroup_position = {x, y, z};
        extent = {edge(grid.x, threadgroup_extent.x, x), edge(grid.y, threadgroup_extent.y, y),
                  edge(grid.z, threadgroup_extent.z, z)};
        the_memory.begin_threadgroup(index);
        the_threadgroup.run(msl_entries[kernel], extent, launch.seed ? launch.seed * 0x9e3779b97f4a7c15u + index : 0);
        if (the_threadgroup.message.status != SOFTWARE_METAL_OK) return;
      }
}

void fill(software_metal_statistics& statistics) {
  statistics.threadgroups = static_cast<uint64_t>(threadgroup_count.x) * threadgroup_count.y * threadgroup_count.z;
  statistics.threadgroup_barriers = the_threadgroup.barriers;
  statistics.simdgroup_operations = the_threadgroup.simd_operations;
  statistics.device_bytes_read = the_memory.bytes_read[0];
  statistics.device_bytes_written = the_memory.bytes_written[0];
  statistics.threadgroup_bytes_read = the_memory.bytes_read[1];
  statistics.threadgroup_bytes_written = the_memory.bytes_written[1];
}

int run(const software_metal_kernel& kernel, const software_metal_launch& launch, software_metal_statistics* statistics,
        char* message, size_t message_bytes) {
  const int index = static_cast<int>(&kernel - kernels);
  report& text = the_threadgroup.message;
  text.begin(message, message_bytes);
  text.status = SOFTWARE_METAL_BAD_LAUNCH;
  text.add("kernel '%s': ", kernel.name);
  if (!check_grid(text, kernel, launch) || !check_arguments(text, kernel, launch) ||
      !set_function_constants(text, launch))
    return text.status;

  text.begin(message, message_bytes);
  const uint32_t *g = launch.threads_per_grid, *t = launch.threads_per_threadgroup;
  grid = {g[0], g[1], g[2]};
  threadgroup_extent = {t[0], t[1], t[2]};
  threadgroup_count = {(g[0] + t[0] - 1) / t[0], (g[1] + t[1] - 1) / t[1], (g[2] + t[2] - 1) / t[2]};
  the_threadgroup.kernel_name = kernel.name;
  the_threadgroup.barriers = the_threadgroup.simd_operations = 0;
  the_memory.begin_dispatch(index, kernel, launch);
  the_traffic.begin_dispatch(msl_checked ? launch.traffic : nullptr);
  {
    fault_guard guard;
    run_threadgroups(index, launch);
  }
  if (statistics) fill(*statistics);
  the_memory.end_dispatch();
  the_traffic.end_dispatch();
  the_threadgroup.end_dispatch();
  return text.status;
}

int dispatch(const software_metal_kernel* kernel, const software_metal_launch* launch,
             software_metal_statistics* statistics, char* message, size_t message_bytes) {
  pthread_mutex_lock(&one_dispatch);
  const int status = run(*kernel, *launch, statistics, message, message_bytes);
  pthread_mutex_unlock(&one_dispatch);
  return status;
}

// The table of the compiled source, completed with what only the linked program knows.
const software_metal_library* describe() {
  static software_metal_library library;
  if (library.dispatch) return &library;
  for (unsigned i = 0; i < msl_kernel_count && i < max_kernels; ++i) {
    kernels[i] = msl_kernels[i];
    kernels[i].static_threadgroup_bytes = static_bytes(static_cast<int>(i));
  }
  library = {msl_checked, msl_kernel_count, kernels, msl_function_constant_count, msl_function_constants, dispatch};
  return &library;
}

uint3 whole(uint32_t x) { return {x, 1, 1}; }

uint32_t simdgroups(uint3 size) { return (size.x * size.y * size.z + msl_simd_width - 1) / msl_simd_width; }

}  // namespace

}  // namespace msl

// The cases are in the order of msl::builtin in runtime.h.
void msl_builtin(unsigned which, unsigned components[3]) {
  using namespace msl;
  const lane_state& me = the_threadgroup.current();
  const uint3 position = the_threadgroup.threadgroup_position;
  const uint3 answers[] = {
      {position.x * threadgroup_extent.x + me.position.x, position.y * threadgroup_extent.y + me.position.y,
       position.z * threadgroup_extent.z + me.position.z},
      me.position,
      whole(me.index),
      whole(me.lane),
      whole(me.simdgroup),
      position,
      threadgroup_count,
      grid,
      extent,
      threadgroup_extent,
      whole(msl_simd_width),
      whole(simdgroups(extent)),
      whole(simdgroups(threadgroup_extent)),
      whole(msl_simd_width),
      whole(me.index / 4),
      whole(me.index % 4),
  };
  components[0] = answers[which].x;
  components[1] = answers[which].y;
  components[2] = answers[which].z;
}

extern "C" __attribute__((visibility("default"))) const software_metal_library* software_metal_library_v1(void) {
  pthread_mutex_lock(&msl::one_dispatch);
  const software_metal_library* library = msl::describe();
  pthread_mutex_unlock(&msl::one_dispatch);
  return library;
}
