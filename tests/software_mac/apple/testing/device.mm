// A host that does the right things (each returns a text that its test knows), and one that breaks Metal's rules.
#import <Metal/Metal.h>

#include <functional>
#include <map>
#include <stdexcept>
#include <string>

namespace {

const char* kSource = R"(
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

std::string text;
const char* answer(NSString* given) {
  text = [given UTF8String];
  return text.c_str();
}

/// Everything that a dispatch needs, released at the end.
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
  void run() {
    [commands commit];
    [commands waitUntilCompleted];
  }
};

using Violation = std::function<void(Rig&)>;

/// Violations inside an encoder that has everything bound; the dispatch comes after them.
const std::map<std::string, Violation> kEncoderViolations = {
    {"set_bytes_length", [](Rig& r) { [r.encoder setBytes:kSource length:4097 atIndex:1]; }},
    {"set_bytes_nothing", [](Rig& r) { [r.encoder setBytes:kSource length:0 atIndex:1]; }},
    {"buffer_index", [](Rig& r) { [r.encoder setBuffer:r.buffer offset:0 atIndex:31]; }},
    {"offset_outside", [](Rig& r) { [r.encoder setBuffer:r.buffer offset:64 atIndex:0]; }},
    {"offset_of_nothing", [](Rig& r) { [r.encoder setBufferOffset:4 atIndex:5]; }},
    {"not_a_buffer", [](Rig& r) { [r.encoder setBuffer:(id<MTLBuffer>)r.queue offset:0 atIndex:0]; }},
    {"threadgroup_multiple", [](Rig& r) { [r.encoder setThreadgroupMemoryLength:20 atIndex:0]; }},
    {"threadgroup_length", [](Rig& r) { [r.encoder setThreadgroupMemoryLength:32784 atIndex:0]; }},
    {"threadgroup_total",
     [](Rig& r) {
       [r.encoder setThreadgroupMemoryLength:16384 atIndex:0];
       [r.encoder setThreadgroupMemoryLength:16400 atIndex:1];
     }},
    {"threadgroup_unbound", [](Rig& r) { [r.encoder setThreadgroupMemoryLength:0 atIndex:0]; }},
    {"unbound", [](Rig& r) { [r.encoder setBuffer:nil offset:0 atIndex:0]; }},
    {"short_reference", [](Rig& r) { [r.encoder setBytes:kSource length:2 atIndex:1]; }},
    {"misaligned", [](Rig& r) { [r.encoder setBuffer:r.buffer offset:2 atIndex:0]; }},
    {"written_bytes", [](Rig& r) { [r.encoder setBytes:kSource length:64 atIndex:0]; }},
    {"too_many_threads", [](Rig& r) { r.dispatch(1025); }},
    {"empty_grid",
     [](Rig& r) {
       [r.encoder dispatchThreadgroups:MTLSizeMake(0, 1, 1) threadsPerThreadgroup:MTLSizeMake(16, 1, 1)];
     }},
    {"second_encoder", [](Rig& r) { [r.commands blitCommandEncoder]; }},
    {"commit_while_open", [](Rig& r) { [r.commands commit]; }},
    {"use_after_end",
     [](Rig& r) {
       [r.encoder endEncoding];
       r.dispatch();
     }},
    {"end_twice",
     [](Rig& r) {
       [r.encoder endEncoding];
       [r.encoder endEncoding];
     }},
};

void blit(Rig& r, NSUInteger from, NSUInteger to, NSUInteger size, id<MTLBuffer> destination) {
  id<MTLBlitCommandEncoder> encoder = [r.commands blitCommandEncoder];
  [encoder copyFromBuffer:r.buffer sourceOffset:from toBuffer:destination destinationOffset:to size:size];
  [encoder endEncoding];
}

const std::map<std::string, Violation> kOtherViolations = {
    {"no_pipeline",
     [](Rig& r) {
       r.open();
       r.dispatch();
     }},
    {"encode_after_commit",
     [](Rig& r) {
       [r.commands commit];
       r.open();
     }},
    {"commit_twice",
     [](Rig& r) {
       [r.commands commit];
       [r.commands commit];
     }},
    {"wait_before_commit", [](Rig& r) { [r.commands waitUntilCompleted]; }},
    {"private_bytes", [](Rig& r) { [r.device newBufferWithBytes:kSource length:8 options:MTLResourceStorageModePrivate]; }},
    {"empty_buffer", [](Rig& r) { [r.device newBufferWithLength:0 options:MTLResourceStorageModeShared]; }},
    {"huge_buffer", [](Rig& r) { [r.device newBufferWithLength:1ul << 40 options:MTLResourceStorageModeShared]; }},
    {"copy_outside", [](Rig& r) { blit(r, 32, 0, 64, r.buffer); }},
    {"copy_overlap", [](Rig& r) { blit(r, 0, 8, 16, r.buffer); }},
    {"nil_function", [](Rig& r) { [r.device newComputePipelineStateWithFunction:nil error:nil]; }},
};

}  // namespace

extern "C" {

void violate(const char* name) {
  @autoreleasepool {
    Rig rig;
    auto other = kOtherViolations.find(name);
    if (other != kOtherViolations.end()) return other->second(rig);
    rig.open();
    rig.bind();
    kEncoderViolations.at(name)(rig);
    rig.dispatch();
  }
}

const char* runs_late() {
  @autoreleasepool {
    Rig rig;
    rig.values()[3] = 5;
    rig.scale();
    float encoded = rig.values()[3];
    [rig.commands commit];
    float committed = rig.values()[3];
    [rig.commands waitUntilCompleted];
    return answer([NSString stringWithFormat:@"%g %g %g %lu", encoded, committed, rig.values()[3],
                                             (unsigned long)[rig.commands status]]);
  }
}

const char* handlers() {
  @autoreleasepool {
    Rig rig;
    __block int seen = 0;
    rig.scale();
    [rig.commands addCompletedHandler:^(id<MTLCommandBuffer> done) {
      seen = (int)[done status];
    }];
    rig.run();
    return answer([NSString stringWithFormat:@"%d", seen]);
  }
}

const char* private_buffers() {
  @autoreleasepool {
    Rig rig;
    id<MTLBuffer> hidden = [rig.device newBufferWithLength:64 options:MTLResourceStorageModePrivate];
    rig.values()[0] = 7;
    blit(rig, 0, 16, 32, hidden);
    id<MTLBlitCommandEncoder> encoder = [rig.commands blitCommandEncoder];
    [encoder fillBuffer:rig.buffer range:NSMakeRange(0, 64) value:0];
    [encoder copyFromBuffer:hidden sourceOffset:16 toBuffer:rig.buffer destinationOffset:4 size:4];
    [encoder endEncoding];
    bool contents = [hidden contents];
    rig.run();
    NSUInteger mode = [hidden storageMode], length = [hidden length];
    [hidden release];
    return answer([NSString stringWithFormat:@"%d %lu %lu %g %g", contents, mode, length, rig.values()[0], rig.values()[1]]);
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
    return answer([NSString stringWithFormat:@"%@ %d %@", rig.library.functionNames, none != nil, error.localizedDescription]);
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
    return answer([NSString stringWithFormat:@"%lu %@", (unsigned long)[rig.commands status], [[rig.commands error] localizedDescription]]);
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
    if (!library) return answer([NSString stringWithFormat:@"%@ %ld: %@", error.domain, error.code, error.localizedDescription]);
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
    const char* result = answer([NSString stringWithFormat:@"%@ %s%lu", device.name, families.c_str(),
                                                           device.maxThreadgroupMemoryLength]);
    [device release];
    return result;
  }
}
}
