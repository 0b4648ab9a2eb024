// A Metal host as one writes it for a Mac: it encodes on PyTorch's command buffer, neither commits nor waits, and
// keeps nothing but its pipelines.
#import <Metal/Metal.h>

#include <stdio.h>

#include <map>
#include <string>

#include "example.h"

namespace {

struct Sizes {
  uint32_t rows, columns, depth;
};

id<MTLComputePipelineState> new_pipeline(id<MTLDevice> device, const ExampleCall& call, NSError** error) {
  MTLCompileOptions* options = [[MTLCompileOptions alloc] init];
  options.languageVersion = MTLLanguageVersion3_1;
  id<MTLLibrary> library = [device newLibraryWithSource:@(call.source) options:options error:error];
  [options release];
  if (!library) return nil;
  id<MTLFunction> function = [library newFunctionWithName:@(call.kernel)];
  id<MTLComputePipelineState> pipeline = [device newComputePipelineStateWithFunction:function error:error];
  [function release];
  [library release];
  return pipeline;
}

/// One pipeline a kernel and source, for the life of the process.
id<MTLComputePipelineState> pipeline_for(id<MTLDevice> device, const ExampleCall& call, NSError** error) {
  static std::map<std::pair<std::string, std::string>, id<MTLComputePipelineState>> pipelines;
  auto key = std::pair(std::string(call.source), std::string(call.kernel));
  auto found = pipelines.find(key);
  if (found != pipelines.end()) return found->second;
  id<MTLComputePipelineState> pipeline = new_pipeline(device, call, error);
  if (pipeline) pipelines.emplace(key, pipeline);
  return pipeline;
}

void encode(id<MTLComputeCommandEncoder> encoder, const ExampleCall& call) {
  Sizes sizes = {call.rows, call.columns, call.depth};
  [encoder setBuffer:(id<MTLBuffer>)call.a offset:0 atIndex:0];
  [encoder setBuffer:(id<MTLBuffer>)call.b offset:0 atIndex:1];
  [encoder setBuffer:(id<MTLBuffer>)call.out offset:0 atIndex:2];
  [encoder setBytes:&sizes length:sizeof sizes atIndex:3];
  if (std::string(call.kernel) == "matmul") {
    [encoder setThreadgroupMemoryLength:16 * 8 * sizeof(float) atIndex:0];
    [encoder setThreadgroupMemoryLength:8 * 16 * sizeof(float) atIndex:1];
    [encoder dispatchThreadgroups:MTLSizeMake(call.columns / 16, call.rows / 16, 1)
            threadsPerThreadgroup:MTLSizeMake(128, 1, 1)];
  } else {
    [encoder dispatchThreads:MTLSizeMake(call.rows * call.columns, 1, 1) threadsPerThreadgroup:MTLSizeMake(64, 1, 1)];
  }
}

}  // namespace

int32_t example_run(const ExampleCall* call) {
  @autoreleasepool {
    id<MTLCommandBuffer> commands = (id<MTLCommandBuffer>)call->command_buffer;
    NSError* error = nil;
    id<MTLComputePipelineState> pipeline = pipeline_for([commands device], *call, &error);
    if (!pipeline) {
      snprintf(call->error, (size_t)call->error_capacity, "%s", [[error localizedDescription] UTF8String]);
      return 1;
    }
    dispatch_sync((dispatch_queue_t)call->queue, ^{
      id<MTLComputeCommandEncoder> encoder = [commands computeCommandEncoder];
      [encoder setComputePipelineState:pipeline];
      encode(encoder, *call);
      [encoder endEncoding];
    });
    return 0;
  }
}
