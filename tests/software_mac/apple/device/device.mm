// The device: one Apple GPU, whose family a test may choose.
#include <cstring>

#include "classes.h"

namespace {

constexpr NSUInteger kGigabyte = 1ul << 30;

struct Model {
  const char* name;
  const char* architecture;
};

Model model() {
  switch (software_mac::gpu_family()) {
    case 7: return {"Apple M1", "applegpu_g13g"};
    case 8: return {"Apple M2", "applegpu_g14g"};
    case 9: return {"Apple M3", "applegpu_g15g"};
    default: return {"Apple M5", "applegpu_g17g"};
  }
}

}  // namespace

namespace software_mac {

software_mac_statistics statistics;

void report(NSError** error, NSErrorDomain domain, NSInteger code, const std::string& text) {
  if (!error) return;
  NSDictionary* info = @{NSLocalizedDescriptionKey : [NSString stringWithUTF8String:text.c_str()]};
  *error = [NSError errorWithDomain:domain code:code userInfo:info];
}

void refuse(id object, SEL method, NSString* reason) {
  if ([object respondsToSelector:@selector(abandon)]) [object abandon];
  std::string name = reinterpret_cast<Object*>(object)->isa->name;
  if (name.starts_with("SoftwareMac")) name.replace(0, sizeof "SoftwareMac" - 1, "MTL");
  throw ProgrammingError("-[" + name + " " + sel_getName(method) + "]: " + [reason UTF8String]);
}

}  // namespace software_mac

extern "C" {

id<MTLDevice> MTLCreateSystemDefaultDevice(void) { return [[SoftwareMacDevice shared] retain]; }

NSArray<id<MTLDevice>>* MTLCopyAllDevices(void) {
  id device = [SoftwareMacDevice shared];
  return [[NSArray alloc] initWithObjects:&device count:1];
}

void software_mac_read_statistics(software_mac_statistics* out) { *out = software_mac::statistics; }
void software_mac_reset_statistics(void) { software_mac::statistics = {}; }

int software_mac_call(void* function, const int64_t a[6], int64_t* result, char* error, size_t capacity) {
  try {
    auto call = reinterpret_cast<int64_t (*)(int64_t, int64_t, int64_t, int64_t, int64_t, int64_t)>(function);
    *result = call(a[0], a[1], a[2], a[3], a[4], a[5]);
    return 0;
  } catch (const std::exception& caught) {
    snprintf(error, capacity, "%s", caught.what());
    return 1;
  }
}
}

@implementation MTLArchitecture
- (NSString*)name {
  return [NSString stringWithUTF8String:model().architecture];
}
@end

@implementation SoftwareMacDevice

+ (SoftwareMacDevice*)shared {
  static SoftwareMacDevice* instance = [[SoftwareMacDevice alloc] init];
  return instance;
}
- (NSString*)name {
  return [NSString stringWithFormat:@"%s (software)", model().name];
}
- (uint64_t)registryID {
  return 1;
}
- (MTLArchitecture*)architecture {
  static MTLArchitecture* instance = [[MTLArchitecture alloc] init];
  return instance;
}
- (MTLSize)maxThreadsPerThreadgroup {
  return MTLSizeMake(1024, 1024, 1024);
}
- (NSUInteger)maxThreadgroupMemoryLength {
  return SOFTWARE_METAL_THREADGROUP_BYTES;
}
- (NSUInteger)maxBufferLength {
  return 8 * kGigabyte;
}
- (uint64_t)recommendedMaxWorkingSetSize {
  return 12 * kGigabyte;
}
- (NSUInteger)currentAllocatedSize {
  return [SoftwareMacBuffer allocatedSize];
}
- (BOOL)hasUnifiedMemory {
  return YES;
}
- (BOOL)supportsFamily:(MTLGPUFamily)family {
  if (family >= MTLGPUFamilyApple1 && family < MTLGPUFamilyApple1 + 100)
    return family - MTLGPUFamilyApple1 < software_mac::gpu_family();
  switch (family) {
    case MTLGPUFamilyMac2:
    case MTLGPUFamilyCommon1:
    case MTLGPUFamilyCommon2:
    case MTLGPUFamilyCommon3:
    case MTLGPUFamilyMetal3: return YES;
    case MTLGPUFamilyMetal4: return [[NSProcessInfo processInfo] operatingSystemVersion].majorVersion >= 26;
    default: return NO;
  }
}

- (id<MTLCommandQueue>)newCommandQueue {
  return [self newCommandQueueWithMaxCommandBufferCount:64];
}
- (id<MTLCommandQueue>)newCommandQueueWithMaxCommandBufferCount:(NSUInteger)count {
  return [[SoftwareMacCommandQueue alloc] initWithMaxCommandBufferCount:count];
}

- (id<MTLBuffer>)newBufferWithLength:(NSUInteger)length options:(MTLResourceOptions)options {
  REQUIRE(length > 0, @"length is 0");
  REQUIRE(length <= self.maxBufferLength, @"length %lu is more than maxBufferLength, %lu", length,
          self.maxBufferLength);
  return [[SoftwareMacBuffer alloc] initWithLength:length options:options];
}
- (id<MTLBuffer>)newBufferWithBytes:(const void*)pointer length:(NSUInteger)length options:(MTLResourceOptions)options {
  REQUIRE(!(options & MTLResourceStorageModePrivate), @"a private buffer cannot be filled by the CPU");
  id<MTLBuffer> buffer = [self newBufferWithLength:length options:options];
  memcpy([buffer contents], pointer, length);
  return buffer;
}

- (id<MTLLibrary>)newLibraryWithSource:(NSString*)source options:(MTLCompileOptions*)options error:(NSError**)error {
  REQUIRE(source, @"source is nil");
  return [SoftwareMacLibrary newWithSource:source options:options error:error];
}
- (id<MTLComputePipelineState>)newComputePipelineStateWithFunction:(id<MTLFunction>)function error:(NSError**)error {
  REQUIRE(function, @"computeFunction is nil");
  return [SoftwareMacComputePipelineState newWithFunction:(SoftwareMacFunction*)function
                                               maxThreads:0
                                                    label:nil
                                                    error:error];
}
- (id<MTLComputePipelineState>)newComputePipelineStateWithDescriptor:(MTLComputePipelineDescriptor*)descriptor
                                                             options:(MTLPipelineOption)options
                                                          reflection:
                                                              (MTLAutoreleasedComputePipelineReflection*)reflection
                                                               error:(NSError**)error {
  REQUIRE(descriptor.computeFunction, @"computeFunction is nil");
  REQUIRE(!reflection, @"the software Mac has no reflection: pass nil");
  return [SoftwareMacComputePipelineState newWithFunction:(SoftwareMacFunction*)descriptor.computeFunction
                                               maxThreads:descriptor.maxTotalThreadsPerThreadgroup
                                                    label:descriptor.label
                                                    error:error];
}

@end
