// Blocks: copied from the stack to the heap when somebody keeps them.
// The layout is clang's "Block Implementation Specification".
#include <atomic>
#include <cstdlib>
#include <cstring>

extern "C" {

void* _NSConcreteGlobalBlock[32];
void* _NSConcreteStackBlock[32];
void* _NSConcreteMallocBlock[32];

enum BlockFlags { kReferenceMask = 0xffff, kNeedsFree = 1 << 24, kHasCopyDispose = 1 << 25, kIsGlobal = 1 << 28 };
enum FieldKind { kObject = 3, kBlock = 7, kByRef = 8, kWeak = 16, kCaller = 128 };

struct BlockDescriptor {
  unsigned long reserved, size;
  void (*copy)(void* to, const void* from);
  void (*dispose)(const void* block);
};

struct Block {
  void* isa;
  int flags;
  int reserved;
  void (*invoke)(void*, ...);
  BlockDescriptor* descriptor;
};

/// A __block variable.
struct ByRef {
  void* isa;
  ByRef* forwarding;
  int flags;
  int size;
  void (*keep)(ByRef* to, ByRef* from);
  void (*destroy)(ByRef*);
};

void* software_mac_retain(void* object);
void software_mac_release(void* object);

static int add_reference(int& flags, int delta) { return std::atomic_ref<int>(flags).fetch_add(delta) + delta; }

void* _Block_copy(const void* argument) {
  auto* block = static_cast<Block*>(const_cast<void*>(argument));
  if (!block || block->flags & kIsGlobal) return block;
  if (block->flags & kNeedsFree) {
    add_reference(block->flags, 1);
    return block;
  }
  auto* copy = static_cast<Block*>(std::malloc(block->descriptor->size));
  std::memcpy(copy, block, block->descriptor->size);
  copy->isa = _NSConcreteMallocBlock;
  copy->flags = (copy->flags & ~kReferenceMask) | kNeedsFree | 1;
  if (copy->flags & kHasCopyDispose) copy->descriptor->copy(copy, block);
  return copy;
}

void _Block_release(const void* argument) {
  auto* block = static_cast<Block*>(const_cast<void*>(argument));
  if (!block || !(block->flags & kNeedsFree)) return;
  if (add_reference(block->flags, -1) & kReferenceMask) return;
  if (block->flags & kHasCopyDispose) block->descriptor->dispose(block);
  std::free(block);
}

static ByRef* copy_by_ref(ByRef* variable) {
  ByRef* current = variable->forwarding;
  if (current->flags & kNeedsFree) {
    add_reference(current->flags, 1);
    return current;
  }
  auto* copy = static_cast<ByRef*>(std::malloc(static_cast<size_t>(variable->size)));
  std::memcpy(copy, variable, static_cast<size_t>(variable->size));
  copy->flags = (copy->flags & ~kReferenceMask) | kNeedsFree | 2;  // the stack frame and the block
  copy->forwarding = variable->forwarding = copy;
  if (copy->flags & kHasCopyDispose) copy->keep(copy, variable);
  return copy;
}

static void release_by_ref(ByRef* variable) {
  variable = variable->forwarding;
  if (!(variable->flags & kNeedsFree) || add_reference(variable->flags, -1) & kReferenceMask) return;
  if (variable->flags & kHasCopyDispose) variable->destroy(variable);
  std::free(variable);
}

void _Block_object_assign(void* target, const void* value, int kind) {
  auto** slot = static_cast<const void**>(target);
  if (kind & kByRef)
    *slot = copy_by_ref(static_cast<ByRef*>(const_cast<void*>(value)));
  else if (kind & kCaller)  // an object inside a __block variable is not retained
    *slot = value;
  else if ((kind & kBlock) == kBlock)
    *slot = _Block_copy(value);
  else
    *slot = software_mac_retain(const_cast<void*>(value));
}

void _Block_object_dispose(const void* value, int kind) {
  if (kind & kByRef)
    release_by_ref(static_cast<ByRef*>(const_cast<void*>(value)));
  else if (kind & kCaller)
    return;
  else if ((kind & kBlock) == kBlock)
    _Block_release(value);
  else
    software_mac_release(const_cast<void*>(value));
}

}  // extern "C"
