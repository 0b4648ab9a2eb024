#include "stream.h"

#import <Metal/Metal.h>

#include <mutex>
#include <stdexcept>
#include <string>
#include <vector>

namespace software_mac {
namespace {

/// An error that was raised already, at the call that caused it, is not raised again.
bool was_abandoned(id<MTLCommandBuffer> buffer) { return [buffer status] == MTLCommandBufferStatusError; }

class Stream {
 public:
  id<MTLCommandBuffer> command_buffer() {
    std::lock_guard lock(mutex_);
    if (open_ && was_abandoned(open_)) {
      [open_ release];
      open_ = nil;
    }
    @autoreleasepool {
      if (!open_) open_ = [[commands_ commandBuffer] retain];
    }
    return open_;
  }

  /// On the queue, as PyTorch's copies to the CPU are, so never while a host encodes.
  void commit() {
    dispatch_sync(queue_, ^{
      std::lock_guard lock(mutex_);
      if (!open_) return;
      id<MTLCommandBuffer> finished = open_;
      open_ = nil;
      if (was_abandoned(finished)) {
        [finished release];
        return;
      }
      committed_.push_back(finished);
      [finished commit];
    });
  }

  void synchronize() {
    @autoreleasepool {
      commit();
      std::lock_guard lock(mutex_);
      std::string error;
      for (id<MTLCommandBuffer> buffer : committed_) {
        [buffer waitUntilCompleted];
        if ([buffer error] && error.empty()) error = [[[buffer error] localizedDescription] UTF8String];
        [buffer release];
      }
      committed_.clear();
      if (!error.empty()) throw std::runtime_error(error);
    }
  }

  dispatch_queue_t queue() { return queue_; }

 private:
  std::recursive_mutex mutex_;
  id<MTLDevice> device_ = MTLCreateSystemDefaultDevice();
  id<MTLCommandQueue> commands_ = [device_ newCommandQueue];
  dispatch_queue_t queue_ = dispatch_queue_create("metal gpu stream", DISPATCH_QUEUE_SERIAL);
  id<MTLCommandBuffer> open_ = nil;
  std::vector<id<MTLCommandBuffer>> committed_;
};

Stream& stream() {
  static auto* instance = new Stream;  // never destroyed: tensors may outlive every static
  return *instance;
}

}  // namespace

void* stream_command_buffer() { return stream().command_buffer(); }
void* stream_dispatch_queue() { return stream().queue(); }
void stream_commit() { stream().commit(); }
void stream_synchronize() { stream().synchronize(); }

}  // namespace software_mac
