// The GNU Objective-C ABI as clang emits it under -fobjc-runtime=gnustep-1.5: the structures that every
// compiled .mm hands to the runtime when it is loaded. Unlike -fobjc-runtime=gcc it has everything that
// Apple's language has (private instance variables, automatic properties, subscripts), and a C++ exception
// can be caught in an Objective-C++ function.
#pragma once

#include <cstdint>

namespace software_mac {

struct Class;
struct Object {
  Class* isa;
};

/// A selector in a table of one object file. `name` is made unique while the file is loaded,
/// so two selectors are the same message exactly when their `name` pointers are equal.
struct Selector {
  const char* name;
  const char* types;
};

using Method = void (*)();

struct MethodList {
  MethodList* next;
  int count;
  struct Entry {
    const char* name;
    const char* types;
    Method method;
  } entries[];
};

struct IvarList {
  int count;
  struct Entry {
    const char* name;
    const char* types;
    int offset;
  } entries[];
};

enum ClassInfo : unsigned long { kIsMetaclass = 2, kIsResolved = 8 };

struct Class {
  Class* isa;
  Class* super;  // the superclass's name until the class is resolved
  const char* name;
  long live;  // the ABI's "version", which nobody uses: how many instances are alive
  unsigned long info;
  long instance_size;  // minus the class's own part, until the class is resolved
  IvarList* ivars;
  MethodList* methods;
  void* cache;  // the ABI's dispatch table: ours to use
  Class* subclasses;
  Class* sibling;
  void* protocols;
  void* gc_type;
  long abi_version;
  int** ivar_offsets;
};

/// What a lookup returns: clang reads `method` and calls it.
struct Slot {
  void* unused[4];
  Method method;
};

struct Category {
  const char* name;
  const char* class_name;
  MethodList* instance_methods;
  MethodList* class_methods;
  void* protocols;
};

/// Constant strings of one object file, to be given their class.
struct StaticInstances {
  const char* class_name;
  Object* instances[];
};

struct SymbolTable {
  unsigned long selector_count;
  Selector* selectors;
  unsigned short class_count;
  unsigned short category_count;
  void* definitions[];  // the classes, the categories, then a list of StaticInstances
};

struct Module {
  unsigned long version;
  unsigned long size;
  const char* file;
  SymbolTable* symbols;
};

struct Super {
  Object* receiver;
  Class* super;
};

}  // namespace software_mac
