// Pipelines: a kernel with its constants, ready to be dispatched.
#include "classes.h"

static NSErrorDomain const kPipelineErrorDomain = @"AGXMetalSoftware";

@implementation MTLComputePipelineDescriptor
- (void)dealloc {
  [_label release];
  [_computeFunction release];
  [super dealloc];
}
@end

@implementation SoftwareMacComputePipelineState
@synthesize label, maxTotalThreadsPerThreadgroup;

+ (instancetype)newWithFunction:(SoftwareMacFunction*)function
                     maxThreads:(NSUInteger)threads
                          label:(NSString*)label
                          error:(NSError**)error {
  uint32_t bytes = function->kernel->static_threadgroup_bytes;
  if (bytes > SOFTWARE_METAL_THREADGROUP_BYTES) {
    software_mac::report(error, kPipelineErrorDomain, 3,
                         "Threadgroup memory size (" + std::to_string(bytes) +
                             ") exceeds the maximum threadgroup memory allowed (" +
                             std::to_string(SOFTWARE_METAL_THREADGROUP_BYTES) + ")");
    return nil;
  }
  SoftwareMacComputePipelineState* pipeline = [[self alloc] init];
  NSUInteger most = function->kernel->max_total_threads_per_threadgroup;
  pipeline->function = [function retain];
  pipeline->maxTotalThreadsPerThreadgroup = threads && threads < most ? threads : most;
  pipeline->label = [label copy];
  return pipeline;
}
- (void)dealloc {
  [function release];
  [label release];
  [super dealloc];
}
- (id<MTLDevice>)device {
  return [SoftwareMacDevice shared];
}
- (NSUInteger)threadExecutionWidth {
  return SOFTWARE_METAL_SIMD_WIDTH;
}
- (NSUInteger)staticThreadgroupMemoryLength {
  return function->kernel->static_threadgroup_bytes;
}

@end
