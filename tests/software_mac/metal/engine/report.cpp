#include "report.h"

#include <stdarg.h>
#include <stdio.h>

#include "program.h"

namespace msl {

void report::begin(char* text, size_t bytes) {
  text_ = text;
  bytes_ = bytes;
  used_ = 0;
  status = SOFTWARE_METAL_OK;
  if (bytes_) text_[0] = 0;
}

void report::add(const char* format, ...) {
  if (used_ + 1 >= bytes_) return;
  va_list arguments;
  va_start(arguments, format);
  const int written = vsnprintf(text_ + used_, bytes_ - used_, format, arguments);
  va_end(arguments);
  if (written > 0) used_ += static_cast<size_t>(written);
}

void report::add_lanes(uint32_t mask, unsigned count) {
  if (count > 1 && mask == 0xffffffffu >> (32 - count)) return add("all %u lanes", count);
  add((mask & (mask - 1)) ? "lanes " : "lane ");
  const char* separator = "";
  for (unsigned first = 0; first < 32; ++first) {
    if (!(mask >> first & 1)) continue;
    unsigned last = first;
    while (last < 31 && mask >> (last + 1) & 1) ++last;
    add(last == first ? "%s%u" : "%s%u-%u", separator, first, last);
    separator = ", ";
    first = last;
  }
}

void report::add_site(int site) {
  add(" at %s", site >= 0 && static_cast<uint32_t>(site) < msl_site_count ? msl_sites[site] : "an unknown line");
}

}  // namespace msl
