// Command queues and buffers. A committed buffer runs at the last moment: when somebody waits for it or looks at
// its status, or when the queue is full. So a host that counts on an early result meets the old one.
#include <algorithm>
#include <deque>
#include <mutex>

#include "classes.h"

NSErrorDomain const MTLCommandBufferErrorDomain = @"MTLCommandBufferErrorDomain";

@implementation SoftwareMacCommandQueue {
  std::recursive_mutex turn;
  std::deque<SoftwareMacCommandBuffer*> submitted;  // each retained
  NSUInteger capacity;
}
@synthesize label;

- (instancetype)initWithMaxCommandBufferCount:(NSUInteger)count {
  self = [super init];
  capacity = count;
  return self;
}
- (void)dealloc {
  [label release];
  [super dealloc];
}
- (id<MTLDevice>)device {
  return [SoftwareMacDevice shared];
}
- (id<MTLCommandBuffer>)commandBuffer {
  return [[[SoftwareMacCommandBuffer alloc] initWithQueue:self] autorelease];
}
- (void)submit:(id<MTLCommandBuffer>)commands {
  std::lock_guard lock(turn);
  submitted.push_back([(SoftwareMacCommandBuffer*)commands retain]);
  if (submitted.size() >= capacity) [self runUntil:submitted.front()];
}
/// Runs what was submitted, in order, up to `last`; nothing when that has run already.
- (void)runUntil:(id<MTLCommandBuffer>)last {
  std::lock_guard lock(turn);
  if (std::find(submitted.begin(), submitted.end(), last) == submitted.end()) return;
  while (!submitted.empty()) {
    SoftwareMacCommandBuffer* next = submitted.front();
    submitted.pop_front();
    [next run];
    bool is_last = next == last;
    [next release];
    if (is_last) return;
  }
}

@end

@implementation SoftwareMacCommandBuffer {
  SoftwareMacCommandQueue* queue;
  std::vector<id> kept;
  std::vector<std::vector<software_mac::Command>> groups;  // no barrier stands between the commands of a group
  std::vector<MTLCommandBufferHandler> handlers;
  id<MTLCommandEncoder> openEncoder;  // not retained: an encoder retains its buffer
  MTLCommandBufferStatus state;
}
@synthesize label, error;

- (instancetype)initWithQueue:(SoftwareMacCommandQueue*)aQueue {
  self = [super init];
  queue = [aQueue retain];
  return self;
}
- (void)dealloc {
  [self drop];
  [queue release];
  [label release];
  [error release];
  [super dealloc];
}
- (id<MTLDevice>)device {
  return [SoftwareMacDevice shared];
}
- (id<MTLCommandQueue>)commandQueue {
  return queue;
}
- (NSString*)description {
  return label ? label : [super description];
}

// Encoding

- (void)checkReady:(SEL)method {
  if (state >= MTLCommandBufferStatusCommitted)
    software_mac::refuse(self, method, @"the command buffer has been committed already");
  if (openEncoder) software_mac::refuse(self, method, @"another encoder is open: end its encoding first");
}
- (id<MTLComputeCommandEncoder>)computeCommandEncoder {
  return [self computeCommandEncoderWithDispatchType:MTLDispatchTypeSerial];
}
- (id<MTLComputeCommandEncoder>)computeCommandEncoderWithDispatchType:(MTLDispatchType)type {
  [self checkReady:_cmd];
  auto* encoder = [[SoftwareMacComputeCommandEncoder alloc] initWithCommandBuffer:self dispatchType:type];
  openEncoder = encoder;
  return [encoder autorelease];
}
- (id<MTLBlitCommandEncoder>)blitCommandEncoder {
  [self checkReady:_cmd];
  auto* encoder = [[SoftwareMacBlitCommandEncoder alloc] initWithCommandBuffer:self];
  openEncoder = encoder;
  return [encoder autorelease];
}
- (void)close:(id<MTLCommandEncoder>)encoder {
  if (openEncoder == encoder) openEncoder = nil;
}
- (void)keep:(id)object {
  kept.push_back([object retain]);
}
- (void)append:(software_mac::Command)command {
  if (groups.empty()) groups.emplace_back();
  groups.back().push_back(std::move(command));
}
- (void)barrier {
  groups.emplace_back();
}
- (void)addCompletedHandler:(MTLCommandBufferHandler)block {
  REQUIRE(state < MTLCommandBufferStatusCommitted, @"the command buffer has been committed already");
  handlers.push_back(Block_copy(block));
}

// Running

- (void)enqueue {
  REQUIRE(state == MTLCommandBufferStatusNotEnqueued, @"the command buffer is enqueued already");
  state = MTLCommandBufferStatusEnqueued;
}
- (void)commit {
  [self checkReady:_cmd];
  state = MTLCommandBufferStatusCommitted;
  [queue submit:self];
}
- (void)run {
  try {
    for (auto& group : groups) {
      if (software_mac::lane_seed()) std::reverse(group.begin(), group.end());  // any order is allowed
      for (auto& command : group) command();
    }
    state = MTLCommandBufferStatusCompleted;
  } catch (const software_mac::ExecutionError& failure) {
    [self failWith:failure.what()];
  }
  for (MTLCommandBufferHandler handler : handlers) handler(self);
  [self drop];
}
- (void)failWith:(const char*)reason {
  state = MTLCommandBufferStatusError;
  error = [[NSError alloc] initWithDomain:MTLCommandBufferErrorDomain
                                     code:MTLCommandBufferErrorInternal
                                 userInfo:@{NSLocalizedDescriptionKey : [NSString stringWithUTF8String:reason]}];
}
- (void)waitUntilScheduled {
  [self waitUntilCompleted];
}
- (void)waitUntilCompleted {
  REQUIRE(state >= MTLCommandBufferStatusCommitted, @"the command buffer has not been committed");
  [queue runUntil:self];
}
- (MTLCommandBufferStatus)status {
  if (state == MTLCommandBufferStatusCommitted) [queue runUntil:self];
  return state;
}
- (void)abandon {
  if (!error) [self failWith:"abandoned after a programming error"];
  state = MTLCommandBufferStatusError;
  openEncoder = nil;
  [self drop];
}
- (void)drop {
  for (id object : kept) [object release];
  for (MTLCommandBufferHandler handler : handlers) Block_release(handler);
  kept.clear();
  handlers.clear();
  groups.clear();
}

@end
