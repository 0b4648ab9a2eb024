// How the rest of PyTorch finds the device: the hooks behind torch.mps and torch::mps, and the device guard.
#include <ATen/detail/MPSHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <chrono>
#include <map>
#include <mutex>

#include "generator.h"
#include "memory.h"
#include "settings.h"
#include "stream.h"

namespace software_mac {
namespace {

constexpr size_t kGigabyte = size_t{1} << 30;

/// Events: the time at which everything before them had run.
class Events {
 public:
  uint32_t acquire() {
    std::lock_guard lock(mutex_);
    times_[++last_] = {};
    return last_;
  }
  void release(uint32_t event) {
    std::lock_guard lock(mutex_);
    times_.erase(event);
  }
  void record(uint32_t event) {
    stream_synchronize();
    std::lock_guard lock(mutex_);
    times_.at(event) = std::chrono::steady_clock::now();
  }
  double milliseconds(uint32_t start, uint32_t end) {
    std::lock_guard lock(mutex_);
    return std::chrono::duration<double, std::milli>(times_.at(end) - times_.at(start)).count();
  }

 private:
  std::mutex mutex_;
  uint32_t last_ = 0;
  std::map<uint32_t, std::chrono::steady_clock::time_point> times_;
};

Events& events() {
  static auto* instance = new Events;
  return *instance;
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  using Stream = c10::Stream;
  static Stream stream() { return Stream(Stream::DEFAULT, kDevice); }

  c10::DeviceType type() const override { return c10::DeviceType::MPS; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  Stream getStream(c10::Device) const override { return stream(); }
  Stream getDefaultStream(c10::Device) const override { return stream(); }
  Stream getNewStream(c10::Device, int) const override { return stream(); }
  Stream exchangeStream(Stream) const override { return stream(); }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override { stream_synchronize(); }
  void synchronizeDevice(const c10::DeviceIndex) const override { stream_synchronize(); }
};

}  // namespace
}  // namespace software_mac

namespace at {

/// Found by its name in PyTorch's registry of hooks, when it looks for the first time.
struct MPSHooks final : MPSHooksInterface {
  void init() const override {}
  bool hasMPS() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  bool isOnMacOSorNewer(unsigned major, unsigned minor) const override {
    unsigned here[2] = {15, 0};
    sscanf(software_mac::setting("SOFTWARE_MAC_MACOS_VERSION", "15.0").c_str(), "%u.%u", &here[0], &here[1]);
    return here[0] != major ? here[0] > major : here[1] >= minor;
  }

  DeviceIndex deviceCount() const override { return 1; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  void setCurrentDevice(DeviceIndex) const override {}
  DeviceIndex exchangeDevice(DeviceIndex) const override { return 0; }
  DeviceIndex maybeExchangeDevice(DeviceIndex) const override { return 0; }
  Device getDeviceFromPtr(void*) const override { return software_mac::kDevice; }

  const Generator& getDefaultGenerator(DeviceIndex) const override { return software_mac::default_generator(); }
  Generator getNewGenerator(DeviceIndex) const override { return software_mac::new_generator(); }

  void* getCommandBuffer() const override { return software_mac::stream_command_buffer(); }
  void* getDispatchQueue() const override { return software_mac::stream_dispatch_queue(); }
  void commitStream() const override { software_mac::stream_commit(); }
  void deviceSynchronize() const override { software_mac::stream_synchronize(); }

  Allocator* getMPSDeviceAllocator() const override { return software_mac::allocator(); }
  void emptyCache() const override {}
  void setMemoryFraction(double) const override {}
  size_t getCurrentAllocatedMemory() const override { return allocated(); }
  size_t getDriverAllocatedMemory() const override { return allocated(); }
  size_t getRecommendedMaxMemory() const override { return 12 * software_mac::kGigabyte; }
  size_t getMaxBufferLength() const override { return 8 * software_mac::kGigabyte; }

  uint32_t acquireEvent(bool) const override { return software_mac::events().acquire(); }
  void releaseEvent(uint32_t event) const override { software_mac::events().release(event); }
  void recordEvent(uint32_t event) const override { software_mac::events().record(event); }
  void waitForEvent(uint32_t) const override {}
  void synchronizeEvent(uint32_t) const override { software_mac::stream_synchronize(); }
  bool queryEvent(uint32_t) const override { return true; }
  double elapsedTimeOfEvents(uint32_t start, uint32_t end) const override {
    return software_mac::events().milliseconds(start, end);
  }

 private:
  static size_t allocated() { return static_cast<size_t>(software_mac::allocation_counters().bytes); }
};

REGISTER_MPS_HOOKS(MPSHooks)

}  // namespace at

namespace software_mac {
C10_REGISTER_GUARD_IMPL(MPS, Guard)
}
