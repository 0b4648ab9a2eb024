// A serial queue: one block at a time, on the thread that asks.
#include <mutex>
#include <thread>

#include "classes.h"

@interface SoftwareMacDispatchQueue : NSObject <OS_dispatch_queue> {
 @public
  std::string label;
  std::mutex turn;
  std::atomic<std::thread::id> owner;
}
@end

@implementation SoftwareMacDispatchQueue
@end

namespace {

template <class Work>
void run(dispatch_queue_t queue, Work work) {
  auto* serial = (SoftwareMacDispatchQueue*)queue;
  if (!serial) throw software_mac::ProgrammingError("dispatch_sync: the queue is nil");
  if (serial->owner == std::this_thread::get_id())
    throw software_mac::ProgrammingError("dispatch_sync on queue \"" + serial->label +
                                         "\", which this thread already runs: a deadlock");
  std::lock_guard lock(serial->turn);
  struct Ownership {
    std::atomic<std::thread::id>& owner;
    explicit Ownership(std::atomic<std::thread::id>& which) : owner(which) { owner = std::this_thread::get_id(); }
    ~Ownership() { owner = std::thread::id(); }
  } ownership(serial->owner);
  work();
}

}  // namespace

extern "C" {

dispatch_queue_t dispatch_queue_create(const char* label, dispatch_queue_attr_t attributes) {
  if (attributes) throw software_mac::ProgrammingError("dispatch_queue_create: only serial queues are here");
  auto* queue = [[SoftwareMacDispatchQueue alloc] init];
  queue->label = label ? label : "";
  return queue;
}
const char* dispatch_queue_get_label(dispatch_queue_t queue) {
  return ((SoftwareMacDispatchQueue*)queue)->label.c_str();
}
void dispatch_sync(dispatch_queue_t queue, dispatch_block_t block) { run(queue, block); }
void dispatch_sync_f(dispatch_queue_t queue, void* context, dispatch_function_t work) {
  run(queue, [=] { work(context); });
}
void dispatch_once(dispatch_once_t* predicate, dispatch_block_t block) {
  static std::recursive_mutex turn;
  std::lock_guard lock(turn);
  if (*predicate) return;
  block();
  *predicate = ~0l;
}
void dispatch_retain(dispatch_object_t object) { [object retain]; }
void dispatch_release(dispatch_object_t object) { [object release]; }
}
