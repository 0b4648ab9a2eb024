#include "settings.h"

#include <cstdlib>

#include "../runtime/runtime.h"

namespace software_mac {

std::string setting(const char* name, const char* otherwise) {
  const char* text = std::getenv(name);
  return text && *text ? text : otherwise;
}

long gpu_family() {
  std::string text = setting("SOFTWARE_MAC_GPU_FAMILY", "apple9");
  for (long family = 7; family <= 10; ++family)
    if (text == "apple" + std::to_string(family)) return family;
  throw ProgrammingError("SOFTWARE_MAC_GPU_FAMILY=" + text + ": accepted are apple7, apple8, apple9 and apple10");
}

uint64_t lane_seed() { return std::strtoull(setting("SOFTWARE_MAC_SEED", "0").c_str(), nullptr, 10); }

bool is_checked() { return setting("SOFTWARE_MAC_CHECKED", "0") != "0"; }

}  // namespace software_mac
