#include "generator.h"

#include <ATen/CPUGeneratorImpl.h>

#include "memory.h"

namespace software_mac {
namespace {

struct MpsGenerator final : c10::GeneratorImpl {
  explicit MpsGenerator(at::Generator source)
      : GeneratorImpl(kDevice, c10::DispatchKeySet(c10::DispatchKey::MPS)), cpu(std::move(source)) {}

  void set_current_seed(uint64_t seed) override { cpu.set_current_seed(seed); }
  uint64_t current_seed() const override { return cpu.current_seed(); }
  uint64_t seed() override { return cpu.seed(); }
  void set_offset(uint64_t offset) override { cpu.set_offset(offset); }
  uint64_t get_offset() const override { return cpu.get_offset(); }
  void set_state(const c10::TensorImpl& state) override { cpu.unsafeGetGeneratorImpl()->set_state(state); }
  c10::intrusive_ptr<c10::TensorImpl> get_state() const override { return cpu.unsafeGetGeneratorImpl()->get_state(); }
  MpsGenerator* clone_impl() const override { return new MpsGenerator(cpu.clone()); }

  at::Generator cpu;
};

}  // namespace

at::Generator new_generator() { return at::make_generator<MpsGenerator>(at::detail::createCPUGenerator()); }

const at::Generator& default_generator() {
  static const at::Generator instance = new_generator();
  return instance;
}

at::Generator cpu_generator(const at::Generator& generator) {
  return static_cast<MpsGenerator*>(generator.unsafeGetGeneratorImpl())->cpu;
}

}  // namespace software_mac
