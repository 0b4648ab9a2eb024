// Buffers: memory that the engine always reaches, and the host only when it is shared.
#include <atomic>
#include <cstdlib>
#include <cstring>

#include "classes.h"

namespace {
std::atomic<size_t> allocated;
constexpr size_t kAlignment = 256;
}  // namespace

extern "C" {

void* software_mac_new_buffer(size_t length, int is_private) {
  return [[SoftwareMacDevice shared]
      newBufferWithLength:length
                  options:is_private ? MTLResourceStorageModePrivate : MTLResourceStorageModeShared];
}
void* software_mac_buffer_bytes(void* buffer) { return [reinterpret_cast<SoftwareMacBuffer*>(buffer) bytes]; }
}

@implementation SoftwareMacBuffer {
  char* memory;
}
@synthesize label, length, resourceOptions;

- (instancetype)initWithLength:(NSUInteger)aLength options:(MTLResourceOptions)options {
  self = [super init];
  length = aLength;
  resourceOptions = options;
  memory = static_cast<char*>(aligned_alloc(kAlignment, (length + kAlignment - 1) / kAlignment * kAlignment));
  if (!memory) {
    [self release];
    return nil;
  }
  memset(memory, 0, length);
  allocated += length;
  return self;
}
- (void)dealloc {
  if (memory) allocated -= length;
  free(memory);
  [label release];
  [super dealloc];
}
- (char*)bytes {
  return memory;
}
+ (NSUInteger)allocatedSize {
  return allocated;
}
- (id<MTLDevice>)device {
  return [SoftwareMacDevice shared];
}
- (void*)contents {
  return self.storageMode == MTLStorageModePrivate ? nullptr : memory;
}
- (uint64_t)gpuAddress {
  return reinterpret_cast<uint64_t>(memory);
}
- (MTLStorageMode)storageMode {
  return static_cast<MTLStorageMode>(resourceOptions >> 4 & 0xf);
}
- (MTLCPUCacheMode)cpuCacheMode {
  return static_cast<MTLCPUCacheMode>(resourceOptions & 0xf);
}
- (NSUInteger)allocatedSize {
  return length;
}
- (void)didModifyRange:(NSRange)range {
  REQUIRE(self.storageMode == MTLStorageModeManaged, @"the buffer's storage mode is not managed");
}

@end
