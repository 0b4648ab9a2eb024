// Classes: registered when an object file is loaded, linked to their superclass at first use,
// because the superclass may live in a file that is loaded later.
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <new>
#include <set>

#include "runtime.h"

namespace software_mac {
namespace {

struct Registry {
  std::recursive_mutex mutex;
  std::map<std::string, Class*> classes;
  std::multimap<std::string, Category*> waiting_categories;
  std::set<std::string> names;
};

Registry& registry() {
  static auto* instance = new Registry;  // never destroyed: objects may outlive every static
  return *instance;
}

void add_methods(Class* cls, MethodList* list) {
  if (!list) return;
  for (int i = 0; i < list->count; ++i) {
    list->entries[i].name = unique_name(list->entries[i].name);
    if (!strcmp(list->entries[i].name, "load") || !strcmp(list->entries[i].name, "initialize"))
      throw ProgrammingError(std::string("software_mac does not call +") + list->entries[i].name + ", which class " +
                             cls->name + " defines");
  }
  list->next = cls->methods;
  cls->methods = list;
}

void add_category(Class* cls, Category* category) {
  add_methods(cls, category->instance_methods);
  add_methods(cls->isa, category->class_methods);
}

void add_class(Class* cls) {
  auto& known = registry();
  if (!known.classes.emplace(cls->name, cls).second)
    throw ProgrammingError(std::string("class ") + cls->name + " is implemented in two images");
  for (Class* half : {cls, cls->isa}) {
    MethodList* methods = half->methods;
    half->methods = nullptr;
    half->live = 0;
    add_methods(half, methods);
  }
  auto [first, last] = known.waiting_categories.equal_range(cls->name);
  for (auto it = first; it != last; ++it) add_category(cls, it->second);
  known.waiting_categories.erase(first, last);
}

/// Moves a class's instance variables behind those of its superclass, whose size its compiler did not know.
void place_ivars(Class* cls, long inherited) {
  if (cls->instance_size > 0) return;
  constexpr long kAlignment = 8;  // also what the layout of @"..." demands
  long start = (inherited + kAlignment - 1) / kAlignment * kAlignment;
  for (int i = 0; cls->ivars && i < cls->ivars->count; ++i) {
    cls->ivars->entries[i].offset += static_cast<int>(start);
    *cls->ivar_offsets[i] += static_cast<int>(start);
  }
  cls->instance_size = start - cls->instance_size;
}

struct alignas(16) Header {
  std::atomic<long> references;
  const Class* was;  // of a dead object: the class that it had
};

Header* header(Object* object) { return reinterpret_cast<Header*>(object) - 1; }

/// Runs a class's C++ member constructors (`.cxx_construct`) or destructors, one class at a time.
void run_own(Class* cls, Object* object, const char* name) {
  for (MethodList* list = cls->methods; list; list = list->next)
    for (int i = 0; i < list->count; ++i)
      if (!strcmp(list->entries[i].name, name))
        reinterpret_cast<void (*)(Object*, Selector*)>(list->entries[i].method)(object, nullptr);
}

/// The last dead objects keep their memory for a while, so that a message to one of them is noticed.
void bury(Object* object) {
  constexpr size_t kGraves = 1024;
  static auto* graves = new std::deque<Object*>;
  std::lock_guard lock(registry().mutex);
  graves->push_back(object);
  if (graves->size() <= kGraves) return;
  std::free(header(graves->front()));
  graves->pop_front();
}

void construct_members(Class* cls, Object* object) {
  if (cls->super) construct_members(cls->super, object);
  run_own(cls, object, ".cxx_construct");
}

}  // namespace

const char* unique_name(const char* name) {
  std::lock_guard lock(registry().mutex);
  return registry().names.insert(name).first->c_str();
}

void resolve(Class* cls) {
  std::lock_guard lock(registry().mutex);
  if (cls->info & kIsResolved) return;
  Class* meta = cls->isa;
  if (auto* super_name = reinterpret_cast<const char*>(cls->super)) {
    Class* super = find_class(super_name);
    if (!super)
      throw ProgrammingError(std::string("class ") + cls->name + ": superclass " + super_name + " is not loaded");
    cls->super = super;
    meta->super = super->isa;
    place_ivars(cls, super->instance_size);
  } else {
    place_ivars(cls, 0);
    meta->super = cls;  // class methods of a root fall back on its instance methods
  }
  meta->isa = meta;
  cls->info |= kIsResolved;
  meta->info |= kIsResolved;
}

Class* find_class(const char* name) {
  std::lock_guard lock(registry().mutex);
  auto found = registry().classes.find(name);
  if (found == registry().classes.end()) return nullptr;
  resolve(found->second);
  return found->second;
}

Class dead_class;

const char* name_if_dead(const Object* object) {
  return object->isa == &dead_class ? (reinterpret_cast<const Header*>(object) - 1)->was->name : nullptr;
}

Object* create_instance(Class* cls) {
  void* memory = std::calloc(1, sizeof(Header) + static_cast<size_t>(cls->instance_size));
  if (!memory) throw std::bad_alloc();
  auto* object = reinterpret_cast<Object*>(new (memory) Header{1, nullptr} + 1);
  object->isa = cls;
  construct_members(cls, object);
  __atomic_add_fetch(&cls->live, 1, __ATOMIC_RELAXED);
  return object;
}

void destroy_instance(Object* object) {
  for (Class* cls = object->isa; cls; cls = cls->super) run_own(cls, object, ".cxx_destruct");
  __atomic_sub_fetch(&object->isa->live, 1, __ATOMIC_RELAXED);
  header(object)->was = object->isa;
  object->isa = &dead_class;
  bury(object);
}

std::atomic<long>& references(Object* object) { return header(object)->references; }

extern "C" {

void __objc_exec_class(Module* module) {
  std::lock_guard lock(registry().mutex);
  SymbolTable* symbols = module->symbols;
  for (Selector* selector = symbols->selectors; selector && selector->name; ++selector)
    selector->name = unique_name(selector->name);
  void** next = symbols->definitions;
  for (int i = 0; i < symbols->class_count; ++i) add_class(static_cast<Class*>(*next++));
  for (int i = 0; i < symbols->category_count; ++i) {
    auto* category = static_cast<Category*>(*next++);
    auto found = registry().classes.find(category->class_name);
    if (found != registry().classes.end())
      add_category(found->second, category);
    else
      registry().waiting_categories.emplace(category->class_name, category);
  }
}

Class* objc_lookup_class(const char* name) { return find_class(name); }

Class* objc_get_class(const char* name) {
  if (Class* cls = find_class(name)) return cls;
  throw ProgrammingError(std::string("class ") + name + " is not loaded");
}

/// Writes "name count" lines of the classes that have living instances; returns the length that it needs.
long software_mac_live_objects(char* text, long capacity) {
  std::lock_guard lock(registry().mutex);
  std::string lines;
  for (auto& [name, cls] : registry().classes)
    if (long live = __atomic_load_n(&cls->live, __ATOMIC_RELAXED)) lines += name + " " + std::to_string(live) + "\n";
  if (capacity > static_cast<long>(lines.size())) std::strcpy(text, lines.c_str());
  return static_cast<long>(lines.size()) + 1;
}

}  // extern "C"
}  // namespace software_mac
