// A host that does the right things. Each function returns a text that its test knows.
#include <string>

#include "rig.h"

using testing::Rig;

namespace {

std::string text;
const char* answer(NSString* given) {
  text = [given UTF8String];
  return text.c_str();
}

}  // namespace

extern "C" {

const char* runs_late() {
  @autoreleasepool {
    Rig rig;
    rig.values()[3] = 5;
    rig.scale();
    float encoded = rig.values()[3];
    [rig.commands commit];
    float committed = rig.values()[3];
    [rig.commands waitUntilCompleted];
    return answer([NSString
        stringWithFormat:@"%g %g %g %lu", encoded, committed, rig.values()[3], (unsigned long)[rig.commands status]]);
  }
}

const char* handlers() {
  @autoreleasepool {
    Rig rig;
    __block int seen = 0;
    rig.scale();
    [rig.commands addCompletedHandler:^(id<MTLCommandBuffer> done) { seen = (int)[done status]; }];
    rig.run();
    return answer([NSString stringWithFormat:@"%d", seen]);
  }
}

const char* private_buffers() {
  @autoreleasepool {
    Rig rig;
    id<MTLBuffer> hidden = [rig.device newBufferWithLength:64 options:MTLResourceStorageModePrivate];
    rig.values()[0] = 7;
    rig.copy(0, 16, 32, hidden);
    id<MTLBlitCommandEncoder> encoder = [rig.commands blitCommandEncoder];
    [encoder fillBuffer:rig.buffer range:NSMakeRange(0, 64) value:0];
    [encoder copyFromBuffer:hidden sourceOffset:16 toBuffer:rig.buffer destinationOffset:4 size:4];
    [encoder endEncoding];
    bool contents = [hidden contents];
    rig.run();
    NSUInteger mode = [hidden storageMode], length = [hidden length];
    [hidden release];
    return answer(
        [NSString stringWithFormat:@"%d %lu %lu %g %g", contents, mode, length, rig.values()[0], rig.values()[1]]);
  }
}

const char* buffers_outlive_their_owner() {
  @autoreleasepool {
    Rig rig;
    id<MTLBuffer> early = [rig.device newBufferWithLength:64 options:MTLResourceStorageModeShared];
    float* values = static_cast<float*>([early contents]);
    values[0] = 3;
    rig.open();
    rig.bind();
    [rig.encoder setBuffer:early offset:0 atIndex:0];
    rig.dispatch();
    [rig.encoder endEncoding];
    NSUInteger count = [early retainCount];
    [early release];
    rig.run();
    return answer([NSString stringWithFormat:@"%d", count > 1]);
  }
}

const char* function_constants() {
  @autoreleasepool {
    Rig rig;
    float three = 3, five = 5;
    MTLFunctionConstantValues* byIndex = [[[MTLFunctionConstantValues alloc] init] autorelease];
    MTLFunctionConstantValues* byName = [[[MTLFunctionConstantValues alloc] init] autorelease];
    [byIndex setConstantValue:&three type:MTLDataTypeFloat atIndex:0];
    [byName setConstantValue:&five type:MTLDataTypeFloat withName:@"factor"];
    std::string seen;
    for (MTLFunctionConstantValues* values : {byIndex, byName}) {
      id<MTLComputePipelineState> pipeline = rig.new_pipeline(@"specialised", values);
      rig.commands = [rig.queue commandBuffer];
      rig.open();
      [rig.encoder setComputePipelineState:pipeline];
      [rig.encoder setBuffer:rig.buffer offset:0 atIndex:0];
      rig.dispatch();
      [rig.encoder endEncoding];
      rig.run();
      [pipeline release];
      seen += std::to_string((int)rig.values()[15]) + " ";
    }
    MTLFunctionConstantValues* wrong = [[[MTLFunctionConstantValues alloc] init] autorelease];
    bool flag = true;
    [wrong setConstantValue:&flag type:MTLDataTypeBool atIndex:0];
    NSError* error = nil;
    id none = [rig.library newFunctionWithName:@"specialised" constantValues:wrong error:&error];
    return answer([NSString stringWithFormat:@"%s%d %@", seen.c_str(), none != nil, error.localizedDescription]);
  }
}

const char* functions() {
  @autoreleasepool {
    Rig rig;
    NSError* error = nil;
    id none = [rig.library newFunctionWithName:@"missing" constantValues:nil error:&error];
    return answer(
        [NSString stringWithFormat:@"%@ %d %@", rig.library.functionNames, none != nil, error.localizedDescription]);
  }
}

/// Two dispatches of a concurrent encoder: the second reads what the first writes.
const char* concurrent(int64_t with_barrier) {
  @autoreleasepool {
    Rig rig;
    id<MTLComputePipelineState> copy = rig.new_pipeline(@"copy_first");
    rig.values()[0] = 1;
    rig.encoder = [rig.commands computeCommandEncoderWithDispatchType:MTLDispatchTypeConcurrent];
    rig.bind();
    rig.dispatch(1);
    if (with_barrier) [rig.encoder memoryBarrierWithScope:MTLBarrierScopeBuffers];
    [rig.encoder setComputePipelineState:copy];
    rig.dispatch(1);
    [rig.encoder endEncoding];
    rig.run();
    [copy release];
    return answer([NSString stringWithFormat:@"%g", rig.values()[1]]);
  }
}

const char* too_much_static_memory() {
  @autoreleasepool {
    id<MTLDevice> device = MTLCreateSystemDefaultDevice();
    NSString* source = @"#include <metal_stdlib>\nusing namespace metal;\n"
                        "kernel void k(device float* x [[buffer(0)]], uint i [[thread_index_in_threadgroup]]) {\n"
                        "  threadgroup float big[8196];\n  big[i] = x[i];\n"
                        "  threadgroup_barrier(mem_flags::mem_threadgroup);\n  x[i] = big[i ^ 1];\n}\n";
    NSError* error = nil;
    id<MTLLibrary> library = [device newLibraryWithSource:source options:nil error:&error];
    id<MTLFunction> function = [library newFunctionWithName:@"k"];
    id none = function ? [device newComputePipelineStateWithFunction:function error:&error] : nil;
    for (id object : {(id)device, (id)library, (id)function}) [object release];
    return answer([NSString stringWithFormat:@"%d %@", none != nil, [error localizedDescription]]);
  }
}

const char* overrun() {
  @autoreleasepool {
    Rig rig;
    id<MTLComputePipelineState> pipeline = rig.new_pipeline(@"overrun");
    rig.open();
    [rig.encoder setComputePipelineState:pipeline];
    [rig.encoder setBuffer:rig.buffer offset:0 atIndex:0];
    rig.dispatch();
    [rig.encoder endEncoding];
    rig.run();
    [pipeline release];
    return answer([NSString
        stringWithFormat:@"%lu %@", (unsigned long)[rig.commands status], [[rig.commands error] localizedDescription]]);
  }
}

/// What the compiler says of a source, with a language version; "" when it takes it.
const char* compile(const char* source, int64_t version, const char* macro, const char* value) {
  @autoreleasepool {
    id<MTLDevice> device = MTLCreateSystemDefaultDevice();
    MTLCompileOptions* options = [[[MTLCompileOptions alloc] init] autorelease];
    if (version) options.languageVersion = (MTLLanguageVersion)version;
    if (macro) options.preprocessorMacros = @{@(macro) : @(value)};
    NSError* error = nil;
    id<MTLLibrary> library = [device newLibraryWithSource:@(source) options:options error:&error];
    [device release];
    if (!library)
      return answer([NSString stringWithFormat:@"%@ %ld: %@", error.domain, error.code, error.localizedDescription]);
    [library release];
    return "";
  }
}

const char* math_mode() {
  @autoreleasepool {
    MTLCompileOptions* options = [[[MTLCompileOptions alloc] init] autorelease];
    if ([options respondsToSelector:@selector(setMathMode:)])
      options.mathMode = MTLMathModeSafe;
    else
      options.fastMathEnabled = NO;
    return answer([NSString stringWithFormat:@"%d", options.fastMathEnabled]);
  }
}

const char* device() {
  @autoreleasepool {
    id<MTLDevice> device = MTLCreateSystemDefaultDevice();
    std::string families;
    for (NSInteger family : {1007, 1008, 1009, 1010, 5001, 5002, 4001})
      if ([device supportsFamily:(MTLGPUFamily)family]) families += std::to_string(family) + " ";
    const char* result = answer(
        [NSString stringWithFormat:@"%@ %s%lu", device.name, families.c_str(), device.maxThreadgroupMemoryLength]);
    [device release];
    return result;
  }
}
}
