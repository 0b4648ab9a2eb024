// The classes behind Metal's protocols. SoftwareMacX is what a host knows as id<MTLX>.
#pragma once

#import <Metal/Metal.h>

#include <functional>
#include <string>
#include <vector>

#include "../runtime/runtime.h"
#include "settings.h"
#include "software_mac.h"
#include "software_metal.h"

/// Refuses what Metal's validation layer would refuse, naming the method as its user knows it.
#define REQUIRE(condition, ...) REQUIRE_IN(_cmd, condition, __VA_ARGS__)
#define REQUIRE_IN(method, condition, ...)                                                         \
  do                                                                                               \
    if (!(condition)) software_mac::refuse(self, method, [NSString stringWithFormat:__VA_ARGS__]); \
  while (0)

namespace software_mac {

/// Gives a caller the reason why it gets nil.
void report(NSError** error, NSErrorDomain domain, NSInteger code, const std::string& text);
[[noreturn]] void refuse(id object, SEL method, NSString* reason);

/// Bytes of one function constant, as the host gave them.
struct ConstantValue {
  long index;        // -1: given by name
  std::string name;  // empty: given by index
  std::string bytes;
};

/// One dispatch or copy, ready to run.
using Command = std::function<void()>;

/// What went wrong while the GPU was at work: becomes the command buffer's error.
struct ExecutionError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

extern software_mac_statistics statistics;

}  // namespace software_mac

@interface SoftwareMacDevice : NSObject <MTLDevice>
+ (SoftwareMacDevice*)shared;
@end

@interface SoftwareMacBuffer : NSObject <MTLBuffer>
- (instancetype)initWithLength:(NSUInteger)length options:(MTLResourceOptions)options;
- (char*)bytes;  // whatever the storage mode
+ (NSUInteger)allocatedSize;
@end

@interface MTLFunctionConstantValues () {
 @public
  std::vector<software_mac::ConstantValue> values;
}
@end

@interface SoftwareMacLibrary : NSObject <MTLLibrary>
+ (instancetype)newWithSource:(NSString*)source options:(MTLCompileOptions*)options error:(NSError**)error;
@end

@interface SoftwareMacFunction : NSObject <MTLFunction> {
 @public
  SoftwareMacLibrary* library;
  const software_metal_library* compiled;
  const software_metal_kernel* kernel;
  std::vector<std::string> constantBytes;
  std::vector<software_metal_constant_value> constants;
}
@end

@interface SoftwareMacComputePipelineState : NSObject <MTLComputePipelineState> {
 @public
  SoftwareMacFunction* function;
}
/// `threads`: how many a threadgroup may have, if fewer than the kernel allows; 0 when the host did not say.
+ (instancetype)newWithFunction:(SoftwareMacFunction*)function
                     maxThreads:(NSUInteger)threads
                          label:(NSString*)label
                          error:(NSError**)error;
@end

@interface SoftwareMacCommandQueue : NSObject <MTLCommandQueue>
- (instancetype)initWithMaxCommandBufferCount:(NSUInteger)count;
- (void)submit:(id<MTLCommandBuffer>)commands;
- (void)runUntil:(id<MTLCommandBuffer>)last;
@end

@interface SoftwareMacCommandBuffer : NSObject <MTLCommandBuffer>
- (instancetype)initWithQueue:(SoftwareMacCommandQueue*)aQueue;
- (void)keep:(id)object;
- (void)append:(software_mac::Command)command;
- (void)barrier;
- (void)close:(id<MTLCommandEncoder>)encoder;
- (void)run;
- (void)abandon;
@end

@interface SoftwareMacCommandEncoder : NSObject <MTLCommandEncoder> {
 @protected
  SoftwareMacCommandBuffer* commands;
}
- (instancetype)initWithCommandBuffer:(SoftwareMacCommandBuffer*)buffer;
- (void)checkOpen:(SEL)method;
- (void)abandon;
@end

@interface SoftwareMacComputeCommandEncoder : SoftwareMacCommandEncoder <MTLComputeCommandEncoder>
- (instancetype)initWithCommandBuffer:(SoftwareMacCommandBuffer*)buffer dispatchType:(MTLDispatchType)type;
@end

@interface SoftwareMacBlitCommandEncoder : SoftwareMacCommandEncoder <MTLBlitCommandEncoder>
@end
