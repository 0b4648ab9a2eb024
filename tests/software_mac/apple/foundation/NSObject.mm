// Objects: counted references, autorelease pools.
#import <Foundation/Foundation.h>

#include <vector>

#include "../runtime/runtime.h"

using software_mac::Object;

namespace {

Object* object_of(id object) { return reinterpret_cast<Object*>(object); }
software_mac::Class* class_of(Class cls) { return reinterpret_cast<software_mac::Class*>(cls); }
id instance_of(Class cls) { return reinterpret_cast<id>(software_mac::create_instance(class_of(cls))); }

/// What the pools of this thread hold, oldest first; a pool remembers where its own part begins.
thread_local std::vector<id> pending;

}  // namespace

extern "C" {
void* software_mac_retain(void* object) { return [reinterpret_cast<id>(object) retain]; }
void software_mac_release(void* object) { [reinterpret_cast<id>(object) release]; }

id objc_getProperty(id self, SEL, ptrdiff_t offset, BOOL) {
  return *reinterpret_cast<id*>(reinterpret_cast<char*>(self) + offset);
}

void objc_setProperty(id self, SEL, ptrdiff_t offset, id value, BOOL, BOOL copies) {
  id* slot = reinterpret_cast<id*>(reinterpret_cast<char*>(self) + offset);
  id old = *slot;
  *slot = copies ? [value copy] : [value retain];
  [old release];
}
}

@implementation NSObject

+ (instancetype)alloc {
  return instance_of(reinterpret_cast<Class>(self));
}
+ (instancetype)new {
  return [[self alloc] init];
}
- (instancetype)init {
  return self;
}
- (void)dealloc {
  software_mac::destroy_instance(object_of(self));
}
- (instancetype)self {
  return self;
}
+ (Class)class {
  return reinterpret_cast<Class>(self);
}
- (Class)class {
  return isa;
}
- (id)copy {  // immutable classes return themselves
  throw software_mac::ProgrammingError(std::string("-[") + class_of(isa)->name +
                                       " copy]: the software Mac cannot copy this");
}

- (instancetype)retain {
  ++software_mac::references(object_of(self));
  return self;
}
- (oneway void)release {
  if (--software_mac::references(object_of(self)) == 0) [self dealloc];
}
- (instancetype)autorelease {
  pending.push_back(self);  // without a pool it stays for ever, as on a Mac, and the live counts show it
  return self;
}
- (NSUInteger)retainCount {
  return static_cast<NSUInteger>(software_mac::references(object_of(self)).load());
}
+ (id)retain {
  return self;
}
+ (oneway void)release {
}
+ (id)autorelease {
  return self;
}

- (BOOL)isEqual:(id)object {
  return self == object;
}
- (NSUInteger)hash {
  return reinterpret_cast<NSUInteger>(self);
}
- (BOOL)isKindOfClass:(Class)wanted {
  for (auto* cls = class_of(isa); cls; cls = cls->super)
    if (cls == class_of(wanted)) return YES;
  return NO;
}
- (BOOL)respondsToSelector:(SEL)selector {
  return software_mac::find_method(class_of(isa), reinterpret_cast<software_mac::Selector*>(selector)->name) != nullptr;
}
- (NSString*)description {
  return [NSString stringWithFormat:@"<%s: %p>", class_of(isa)->name, self];
}

@end

@implementation NSAutoreleasePool {
  size_t first;
}

- (instancetype)init {
  self = [super init];
  first = pending.size();
  return self;
}
- (void)drain {
  [self release];
}
- (instancetype)retain {
  throw software_mac::ProgrammingError("NSAutoreleasePool: a pool cannot be retained");
}
- (void)dealloc {
  while (pending.size() > first) {
    id object = pending.back();
    pending.pop_back();
    [object release];
  }
  [super dealloc];
}

@end
