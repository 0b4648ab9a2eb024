// Wild accesses that the processor catches, turned into errors of the lane that made them.
#pragma once

namespace msl {

// While one of these lives, a fault of a lane of this thread fails the threadgroup instead of ending the process.
class fault_guard {
 public:
  fault_guard();
  ~fault_guard();
};

}  // namespace msl
