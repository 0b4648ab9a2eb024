// Message lookup: the caller asks for a method, then calls it itself.
#include <cxxabi.h>
#include <unwind.h>

#include <mutex>
#include <shared_mutex>
#include <unordered_map>

#include "runtime.h"

extern "C" _Unwind_Reason_Code __gxx_personality_v0(int, _Unwind_Action, _Unwind_Exception_Class, _Unwind_Exception*,
                                                    _Unwind_Context*);

namespace software_mac {
namespace {

using Cache = std::unordered_map<const char*, Slot*>;
std::shared_mutex cache_mutex;

/// A message to nil returns zero, whether the caller reads an integer or a floating-point register.
struct Zero {
  long integer;
  double real;
};
Zero answer_nil(Object*, Selector*) { return {0, 0.0}; }
Slot nil_slot{{}, reinterpret_cast<Method>(&answer_nil)};

Method search(Class* cls, const char* name) {
  for (; cls; cls = cls->super)
    for (MethodList* list = cls->methods; list; list = list->next)
      for (int i = 0; i < list->count; ++i)
        if (list->entries[i].name == name) return list->entries[i].method;
  return nullptr;
}

Slot* require_method(Class* cls, Selector* selector) {
  if (Slot* slot = find_method(cls, selector->name)) return slot;
  throw ProgrammingError(std::string(cls->info & kIsMetaclass ? "+[" : "-[") + cls->name + " " + selector->name +
                         "]: unrecognized selector");
}

}  // namespace

Slot* find_method(Class* cls, const char* name) {
  {
    std::shared_lock lock(cache_mutex);
    if (auto* cache = static_cast<Cache*>(cls->cache))
      if (auto found = cache->find(name); found != cache->end()) return found->second;
  }
  if (!(cls->info & (kIsResolved | kIsMetaclass))) resolve(cls);  // a constant string's class: nobody asked for it
  Method method = search(cls, name);
  if (!method) return nullptr;
  std::unique_lock lock(cache_mutex);
  if (!cls->cache) cls->cache = new Cache;
  auto [entry, is_new] = static_cast<Cache*>(cls->cache)->try_emplace(name, nullptr);
  if (is_new) entry->second = new Slot{{}, method};
  return entry->second;
}

extern "C" {

Slot* objc_msg_lookup_sender(Object** receiver, Selector* selector, Object*) {
  if (!*receiver) return &nil_slot;
  if (const char* name = name_if_dead(*receiver))
    throw ProgrammingError(std::string("-[") + name + " " + selector->name +
                           "]: message to an object that was deallocated");
  return require_method((*receiver)->isa, selector);
}

Slot* objc_slot_lookup_super(Super* super, Selector* selector) {
  return super->receiver ? require_method(super->super, selector) : &nil_slot;
}

bool sel_isEqual(Selector* one, Selector* other) { return one->name == other->name; }
const char* sel_getName(Selector* selector) { return selector->name; }

/// clang names this personality in every Objective-C++ function. There are no Objective-C exceptions
/// here (@try does not compile): what passes is C++ exceptions.
_Unwind_Reason_Code __gnustep_objcxx_personality_v0(int version, _Unwind_Action actions, _Unwind_Exception_Class kind,
                                                    _Unwind_Exception* exception, _Unwind_Context* context) {
  return __gxx_personality_v0(version, actions, kind, exception, context);
}

}  // extern "C"
}  // namespace software_mac
