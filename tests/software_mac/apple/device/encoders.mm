// Encoders: take down what the GPU is to do, and refuse what Metal refuses.
#include <algorithm>
#include <cstring>

#include "classes.h"

using software_mac::ExecutionError;

namespace {

constexpr NSUInteger kBuffers = SOFTWARE_METAL_BUFFERS;
constexpr NSUInteger kMaxBytes = 4096;

/// What one index of the buffer table holds.
struct Binding {
  SoftwareMacBuffer* buffer = nil;  // kept by the command buffer
  NSUInteger offset = 0;
  std::string bytes;

  bool is_bound() const { return buffer || !bytes.empty(); }
  NSUInteger length() const { return buffer ? [buffer length] - offset : bytes.size(); }
  void* pointer() { return buffer ? [buffer bytes] + offset : bytes.data(); }
};

/// One dispatch, with a copy of everything that the host may change after it.
struct Dispatch {
  SoftwareMacFunction* function;  // kept by the command buffer, through its pipeline
  software_metal_launch launch;
  std::vector<Binding> bindings;

  void operator()() {
    for (NSUInteger i = 0; i < kBuffers; ++i)
      if (bindings[i].is_bound()) launch.buffers[i] = {bindings[i].pointer(), bindings[i].length()};
    launch.constants = function->constants.data();
    launch.constant_count = static_cast<uint32_t>(function->constants.size());
    launch.seed = software_mac::lane_seed();
    software_metal_statistics run{};
    char message[2048];
    if (function->compiled->dispatch(function->kernel, &launch, &run, message, sizeof message) != SOFTWARE_METAL_OK)
      throw ExecutionError(message);
    auto& total = software_mac::statistics;
    total.dispatches += 1;
    total.threadgroups += run.threadgroups;
    total.threadgroup_barriers += run.threadgroup_barriers;
    total.simdgroup_operations += run.simdgroup_operations;
    total.device_bytes_read += run.device_bytes_read;
    total.device_bytes_written += run.device_bytes_written;
    total.threadgroup_bytes_read += run.threadgroup_bytes_read;
    total.threadgroup_bytes_written += run.threadgroup_bytes_written;
  }
};

NSUInteger volume(MTLSize size) { return size.width * size.height * size.depth; }

}  // namespace

@implementation SoftwareMacCommandEncoder {
  BOOL ended;
}
@synthesize label;

- (instancetype)initWithCommandBuffer:(SoftwareMacCommandBuffer*)buffer {
  self = [super init];
  commands = [buffer retain];
  return self;
}
- (void)dealloc {
  [commands release];
  [label release];
  [super dealloc];
}
- (id<MTLDevice>)device {
  return [SoftwareMacDevice shared];
}
- (void)checkOpen:(SEL)method {
  if (ended) software_mac::refuse(self, method, @"the encoder was used after endEncoding");
}
- (void)endEncoding {
  [self checkOpen:_cmd];
  ended = YES;
  [commands barrier];
  [commands close:self];
}
- (void)abandon {
  ended = YES;
  [commands abandon];
}
- (void)insertDebugSignpost:(NSString*)string {
  [self checkOpen:_cmd];
}
- (void)pushDebugGroup:(NSString*)string {
  [self checkOpen:_cmd];
}
- (void)popDebugGroup {
  [self checkOpen:_cmd];
}

@end

@implementation SoftwareMacComputeCommandEncoder {
  SoftwareMacComputePipelineState* pipeline;  // kept by the command buffer
  std::vector<Binding> bindings;
  uint32_t threadgroupLengths[SOFTWARE_METAL_THREADGROUP_LENGTHS];
}
@synthesize dispatchType;

- (instancetype)initWithCommandBuffer:(SoftwareMacCommandBuffer*)buffer dispatchType:(MTLDispatchType)type {
  self = [super initWithCommandBuffer:buffer];
  dispatchType = type;
  bindings.resize(kBuffers);
  return self;
}

- (void)setComputePipelineState:(id<MTLComputePipelineState>)state {
  [self checkOpen:_cmd];
  REQUIRE(state, @"the pipeline state is nil");
  pipeline = (SoftwareMacComputePipelineState*)state;
  [commands keep:pipeline];
}
- (void)setBytes:(const void*)bytes length:(NSUInteger)length atIndex:(NSUInteger)index {
  [self checkOpen:_cmd];
  REQUIRE(index < kBuffers, @"index %lu: a buffer index is 0 to %lu", index, kBuffers - 1);
  REQUIRE(bytes && length > 0, @"there are no bytes");
  REQUIRE(length <= kMaxBytes, @"length %lu is more than %lu bytes: use a buffer", length, kMaxBytes);
  bindings[index] = {nil, 0, std::string(static_cast<const char*>(bytes), length)};
}
- (void)setBuffer:(id<MTLBuffer>)buffer offset:(NSUInteger)offset atIndex:(NSUInteger)index {
  [self checkOpen:_cmd];
  REQUIRE(index < kBuffers, @"index %lu: a buffer index is 0 to %lu", index, kBuffers - 1);
  if (!buffer) {
    bindings[index] = {};
    return;
  }
  REQUIRE([(id)buffer isKindOfClass:[SoftwareMacBuffer class]], @"index %lu: %@ is no buffer", index, buffer);
  REQUIRE(offset < [buffer length], @"index %lu: offset %lu is outside the buffer of %lu bytes", index, offset,
          [buffer length]);
  bindings[index] = {(SoftwareMacBuffer*)buffer, offset, {}};
  [commands keep:buffer];
}
- (void)setBufferOffset:(NSUInteger)offset atIndex:(NSUInteger)index {
  [self checkOpen:_cmd];
  REQUIRE(index < kBuffers && bindings[index].buffer, @"index %lu holds no buffer", index);
  [self setBuffer:bindings[index].buffer offset:offset atIndex:index];
}
- (void)setBuffers:(const id<MTLBuffer>[])buffers offsets:(const NSUInteger[])offsets withRange:(NSRange)range {
  for (NSUInteger i = 0; i < range.length; ++i)
    [self setBuffer:buffers[i] offset:offsets[i] atIndex:range.location + i];
}
- (void)setThreadgroupMemoryLength:(NSUInteger)length atIndex:(NSUInteger)index {
  [self checkOpen:_cmd];
  REQUIRE(index < SOFTWARE_METAL_THREADGROUP_LENGTHS, @"index %lu: a threadgroup index is 0 to %d", index,
          SOFTWARE_METAL_THREADGROUP_LENGTHS - 1);
  REQUIRE(length % 16 == 0, @"length %lu is no multiple of 16", length);
  REQUIRE(length <= SOFTWARE_METAL_THREADGROUP_BYTES, @"length %lu is more than %d bytes", length,
          SOFTWARE_METAL_THREADGROUP_BYTES);
  threadgroupLengths[index] = static_cast<uint32_t>(length);
}

- (void)dispatchThreadgroups:(MTLSize)groups threadsPerThreadgroup:(MTLSize)threads {
  [self dispatch:MTLSizeMake(groups.width * threads.width, groups.height * threads.height, groups.depth * threads.depth)
      threadsPerThreadgroup:threads
                         by:_cmd];
}
- (void)dispatchThreads:(MTLSize)grid threadsPerThreadgroup:(MTLSize)threads {
  [self dispatch:grid threadsPerThreadgroup:threads by:_cmd];
}
- (void)dispatch:(MTLSize)grid threadsPerThreadgroup:(MTLSize)threads by:(SEL)method {
  [self checkOpen:method];
  REQUIRE_IN(method, pipeline, @"no pipeline state is set");
  [self checkGrid:grid threadsPerThreadgroup:threads by:method];
  [self checkArgumentsBy:method];
  Dispatch dispatch{pipeline->function, {}, bindings};
  auto& launch = dispatch.launch;
  for (int axis = 0; axis < 3; ++axis) {
    launch.threads_per_grid[axis] = static_cast<uint32_t>((&grid.width)[axis]);
    launch.threads_per_threadgroup[axis] = static_cast<uint32_t>((&threads.width)[axis]);
  }
  memcpy(launch.threadgroup_lengths, threadgroupLengths, sizeof threadgroupLengths);
  [commands append:std::move(dispatch)];
  if (dispatchType == MTLDispatchTypeSerial) [commands barrier];
}
- (void)checkGrid:(MTLSize)grid threadsPerThreadgroup:(MTLSize)threads by:(SEL)method {
  NSUInteger most = [pipeline maxTotalThreadsPerThreadgroup];
  REQUIRE_IN(method, volume(grid) > 0 && volume(threads) > 0, @"a size of the grid or of the threadgroup is 0");
  REQUIRE_IN(method, volume(threads) <= most, @"%lu threads in a threadgroup: the pipeline \"%s\" takes %lu",
             volume(threads), pipeline->function->kernel->name, most);
  REQUIRE_IN(method, std::max({grid.width, grid.height, grid.depth}) <= UINT32_MAX,
             @"the grid has more than 2^32 threads");
}
- (void)checkArgumentsBy:(SEL)method {
  const software_metal_kernel* kernel = pipeline->function->kernel;
  NSUInteger threadgroupBytes = kernel->static_threadgroup_bytes;
  for (uint32_t length : threadgroupLengths) threadgroupBytes += length;
  REQUIRE_IN(method, threadgroupBytes <= SOFTWARE_METAL_THREADGROUP_BYTES,
             @"%lu bytes of threadgroup memory in all: the device has %d", threadgroupBytes,
             SOFTWARE_METAL_THREADGROUP_BYTES);
  for (uint32_t i = 0; i < kernel->argument_count; ++i) {
    const software_metal_argument& argument = kernel->arguments[i];
    if (argument.kind == SOFTWARE_METAL_THREADGROUP) {
      REQUIRE_IN(method, threadgroupLengths[argument.index] > 0,
                 @"kernel \"%s\": threadgroup memory \"%s\" [[threadgroup(%u)]] has no length", kernel->name,
                 argument.name, argument.index);
    } else if (argument.kind == SOFTWARE_METAL_BUFFER) {
      Binding& binding = bindings[argument.index];
      if (argument.is_optional && !binding.is_bound()) continue;
      REQUIRE_IN(method, binding.is_bound(), @"kernel \"%s\": \"%s\" [[buffer(%u)]] is not bound", kernel->name,
                 argument.name, argument.index);
      REQUIRE_IN(method, !argument.is_reference || binding.length() >= argument.pointee_bytes,
                 @"kernel \"%s\": \"%s\" [[buffer(%u)]] is bound to %lu bytes and needs %u", kernel->name,
                 argument.name, argument.index, binding.length(), argument.pointee_bytes);
      REQUIRE_IN(method, binding.offset % std::max(argument.pointee_alignment, 1u) == 0,
                 @"kernel \"%s\": \"%s\" [[buffer(%u)]]: offset %lu is no multiple of its alignment, %u", kernel->name,
                 argument.name, argument.index, binding.offset, argument.pointee_alignment);
      REQUIRE_IN(method, binding.buffer || argument.is_constant || argument.is_read_only,
                 @"kernel \"%s\" may write to \"%s\" [[buffer(%u)]], which holds setBytes data", kernel->name,
                 argument.name, argument.index);
    }
  }
}

- (void)memoryBarrierWithScope:(MTLBarrierScope)scope {
  [self checkOpen:_cmd];
  if (scope & MTLBarrierScopeBuffers) [commands barrier];
}
- (void)memoryBarrierWithResources:(const id<MTLResource>[])resources count:(NSUInteger)count {
  [self checkOpen:_cmd];
  [commands barrier];
}
- (void)useResource:(id<MTLResource>)resource usage:(MTLResourceUsage)usage {
  [self checkOpen:_cmd];
  [commands keep:resource];
}

@end

@implementation SoftwareMacBlitCommandEncoder

- (void)copyFromBuffer:(id<MTLBuffer>)source
          sourceOffset:(NSUInteger)sourceOffset
              toBuffer:(id<MTLBuffer>)destination
     destinationOffset:(NSUInteger)destinationOffset
                  size:(NSUInteger)size {
  [self checkOpen:_cmd];
  REQUIRE(source && destination, @"a buffer is nil");
  REQUIRE(size > 0, @"size is 0");
  REQUIRE(sourceOffset + size <= [source length], @"%lu bytes at %lu are outside the source of %lu bytes", size,
          sourceOffset, [source length]);
  REQUIRE(destinationOffset + size <= [destination length],
          @"%lu bytes at %lu are outside the destination of %lu bytes", size, destinationOffset, [destination length]);
  REQUIRE(source != destination || sourceOffset + size <= destinationOffset || destinationOffset + size <= sourceOffset,
          @"the ranges overlap");
  [commands keep:source];
  [commands keep:destination];
  char* to = [(SoftwareMacBuffer*)destination bytes] + destinationOffset;
  const char* from = [(SoftwareMacBuffer*)source bytes] + sourceOffset;
  [commands append:[=] { memcpy(to, from, size); }];
  [commands barrier];
}
- (void)fillBuffer:(id<MTLBuffer>)buffer range:(NSRange)range value:(uint8_t)value {
  [self checkOpen:_cmd];
  REQUIRE(buffer && range.length > 0 && range.location + range.length <= [buffer length],
          @"the range is outside the buffer");
  [commands keep:buffer];
  char* to = [(SoftwareMacBuffer*)buffer bytes] + range.location;
  NSUInteger size = range.length;
  [commands append:[=] { memset(to, value, size); }];
  [commands barrier];
}
- (void)synchronizeResource:(id<MTLResource>)resource {
  [self checkOpen:_cmd];
}

@end
