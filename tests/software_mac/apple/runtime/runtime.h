// What Foundation and the fake device ask of the runtime.
#pragma once

#include <atomic>
#include <stdexcept>
#include <string>

#include "abi.h"

namespace software_mac {

/// What would abort a process on a Mac, as an exception: it passes through a host's frames up to
/// whoever called it, so a test sees a message instead of a dead process.
struct ProgrammingError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

Class* find_class(const char* name);
const char* unique_name(const char* name);
void resolve(Class* cls);

/// The method of `cls` or of the nearest superclass that has one; null when there is none.
Slot* find_method(Class* cls, const char* unique_selector_name);

Object* create_instance(Class* cls);  // with one reference
void destroy_instance(Object* object);
/// The name of the class that a dead object had; null while it lives.
const char* name_if_dead(const Object* object);
std::atomic<long>& references(Object* object);

}  // namespace software_mac
