// Pipelines: a kernel with its constants, ready to be dispatched.
#include "classes.h"

@implementation MTLComputePipelineDescriptor
- (void)dealloc {
  [_label release];
  [_computeFunction release];
  [super dealloc];
}
@end

@implementation SoftwareMacComputePipelineState
@synthesize label, maxTotalThreadsPerThreadgroup;

- (instancetype)initWithFunction:(SoftwareMacFunction*)aFunction maxThreads:(NSUInteger)threads label:(NSString*)aLabel {
  self = [super init];
  function = [aFunction retain];
  NSUInteger most = function->kernel->max_total_threads_per_threadgroup;
  maxTotalThreadsPerThreadgroup = threads && threads < most ? threads : most;
  label = [aLabel copy];
  return self;
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
