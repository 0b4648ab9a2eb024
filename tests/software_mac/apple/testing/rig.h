// Everything that a dispatch needs, for the tests that do it right and for those that do it wrong.
#pragma once

#import <Metal/Metal.h>

#include <stdexcept>

namespace testing {

inline const char* const kSource = R"(
#include <metal_stdlib>
using namespace metal;
constant float factor [[function_constant(0)]];

kernel void scale(device float* x [[buffer(0)]], constant float& by [[buffer(1)]], threadgroup float* scratch [[threadgroup(0)]],
                  uint i [[thread_position_in_grid]], uint t [[thread_position_in_threadgroup]]) {
  scratch[t] = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  x[i] = scratch[t] * by;
}
kernel void specialised(device float* x [[buffer(0)]], uint i [[thread_position_in_grid]]) { x[i] = factor; }
kernel void copy_first(device float* x [[buffer(0)]], uint i [[thread_position_in_grid]]) { x[1] = x[0]; }
kernel void overrun(device float* x [[buffer(0)]], uint i [[thread_position_in_grid]]) { x[i + 16] = 1.0f; }
)";

/// What it owns is released at the end.
struct Rig {
  id<MTLDevice> device = MTLCreateSystemDefaultDevice();
  id<MTLCommandQueue> queue = [device newCommandQueue];
  id<MTLLibrary> library = new_library();
  id<MTLComputePipelineState> pipeline = new_pipeline(@"scale");
  id<MTLBuffer> buffer = [device newBufferWithLength:64 options:MTLResourceStorageModeShared];
  id<MTLCommandBuffer> commands = [queue commandBuffer];
  id<MTLComputeCommandEncoder> encoder = nil;
  float by = 2;

  ~Rig() {
    for (id object : {(id)device, (id)queue, (id)library, (id)pipeline, (id)buffer}) [object release];
  }
  id<MTLLibrary> new_library() {
    NSError* error = nil;
    id<MTLLibrary> made = [device newLibraryWithSource:@(kSource) options:nil error:&error];
    if (!made) throw std::runtime_error([[error localizedDescription] UTF8String]);
    return made;
  }
  id<MTLComputePipelineState> new_pipeline(NSString* name, MTLFunctionConstantValues* values = nil) {
    NSError* error = nil;
    id<MTLFunction> function = values ? [library newFunctionWithName:name constantValues:values error:&error]
                                      : [library newFunctionWithName:name];
    id<MTLComputePipelineState> made = [device newComputePipelineStateWithFunction:function error:&error];
    [function release];
    return made;
  }
  float* values() { return static_cast<float*>([buffer contents]); }

  void open() { encoder = [commands computeCommandEncoder]; }
  void bind() {
    [encoder setComputePipelineState:pipeline];
    [encoder setBuffer:buffer offset:0 atIndex:0];
    [encoder setBytes:&by length:sizeof by atIndex:1];
    [encoder setThreadgroupMemoryLength:64 atIndex:0];
  }
  void dispatch(NSUInteger threads = 16) {
    [encoder dispatchThreadgroups:MTLSizeMake(1, 1, 1) threadsPerThreadgroup:MTLSizeMake(threads, 1, 1)];
  }
  void scale() {
    open();
    bind();
    dispatch();
    [encoder endEncoding];
  }
  void copy(NSUInteger from, NSUInteger to, NSUInteger size, id<MTLBuffer> destination) {
    id<MTLBlitCommandEncoder> blit = [commands blitCommandEncoder];
    [blit copyFromBuffer:buffer sourceOffset:from toBuffer:destination destinationOffset:to size:size];
    [blit endEncoding];
  }
  void run() {
    [commands commit];
    [commands waitUntilCompleted];
  }
};

}  // namespace testing
