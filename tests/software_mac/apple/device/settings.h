// What a test may choose, by environment variables that are read anew each time.
#pragma once

#include <cstdint>
#include <string>

namespace software_mac {

/// SOFTWARE_MAC_GPU_FAMILY: apple7 (M1) to apple10 (M5). The number; 9 unless set.
long gpu_family();
/// SOFTWARE_MAC_SEED: 0 runs lanes in order, any other number shuffles them.
uint64_t lane_seed();
/// SOFTWARE_MAC_CHECKED=1: kernels are compiled with the race, bounds and initialisation checks.
bool is_checked();
/// The text of a variable, or `otherwise` when it is unset or empty.
std::string setting(const char* name, const char* otherwise);

}  // namespace software_mac
