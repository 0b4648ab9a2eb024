// Messages: what happened, in which kernel, threadgroup and lane, at which line.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace msl {

class report {
 public:
  void begin(char* text, size_t bytes);
  __attribute__((format(printf, 2, 3))) void add(const char* format, ...);
  // "lanes 0-15, 17" for the bits of a mask; "all lanes" for every lane of count.
  void add_lanes(uint32_t mask, unsigned count);
  void add_site(int site);
  int status = 0;

 private:
  char* text_ = nullptr;
  size_t bytes_ = 0;
  size_t used_ = 0;
};

}  // namespace msl
