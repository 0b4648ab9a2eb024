#include "kernels.h"

#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace orchard {
namespace {

/// Python's part: finds or builds the kernels that a JSON list asks for and writes their entry points.
/// Returns 0, or writes the reason to `error`.
using Resolver = int32_t (*)(const char* requests, Kernel* kernels, char* error, int64_t error_capacity);

Resolver resolver = nullptr;
std::shared_mutex guard;
std::unordered_map<uint64_t, Kernel> table;

uint64_t packed(const Request& r) {
  uint64_t bits = static_cast<uint64_t>(r.backend);
  bits = bits << 8 | static_cast<uint64_t>(r.pass);
  bits = bits << 8 | static_cast<uint64_t>(r.dtype);
  bits = bits << 8 | static_cast<uint64_t>(r.causal);
  bits = bits << 16 | static_cast<uint64_t>(r.head_dim);
  return bits << 16 | static_cast<uint64_t>(r.head_dim_v);
}

std::string json(const Request& r) {
  static const char* const backends[] = {"cpu", "metal"};
  static const char* const passes[] = {"forward", "backward"};
  static const char* const dtypes[] = {"float32", "float16", "bfloat16", "float64"};
  const auto field = [](const char* name, const std::string& value) {
    return "\"" + std::string(name) + "\":" + value;
  };
  const auto quoted = [](const std::string& text) { return "\"" + text + "\""; };
  return "{" + field("backend", quoted(backends[static_cast<int>(r.backend)])) + "," +
         field("kernel", quoted(passes[static_cast<int>(r.pass)])) + "," +
         field("dtype", quoted(dtypes[static_cast<int>(r.dtype)])) + "," +
         field("head_dim", std::to_string(r.head_dim)) + "," +
         field("head_dim_v", std::to_string(r.head_dim_v)) + "," +
         field("features", r.causal ? "[\"causal\"]" : "[]") + "}";
}

bool find(const Request& request, Kernel* kernel) {
  std::shared_lock lock(guard);
  const auto found = table.find(packed(request));
  if (found == table.end()) return false;
  *kernel = found->second;
  return true;
}

/// Asks Python without holding the lock: a build takes seconds, and Python may come back in.
void resolve(const std::vector<Request>& requests) {
  std::string list;
  for (const auto& request : requests) list += (list.empty() ? "[" : ",") + json(request);
  list += "]";
  std::vector<Kernel> kernels(requests.size());
  char error[8192] = "no resolver: import orchard_jit first";
  if (!resolver || resolver(list.c_str(), kernels.data(), error, sizeof error) != 0) throw std::runtime_error(error);
  std::unique_lock lock(guard);
  for (size_t i = 0; i < requests.size(); ++i) table[packed(requests[i])] = kernels[i];
}

}  // namespace

Kernel kernel_for(const Request& request) {
  Kernel kernel;
  while (!find(request, &kernel)) resolve({request});
  return kernel;
}

void prepare(std::initializer_list<Request> requests) {
  std::vector<Request> missing;
  Kernel unused;
  for (const auto& request : requests) {
    if (!find(request, &unused)) missing.push_back(request);
  }
  if (!missing.empty()) resolve(missing);
}

}  // namespace orchard

ORCHARD_EXPORT void orchard_set_resolver(orchard::Resolver resolver) { orchard::resolver = resolver; }

/// Forgets every kernel, so that the next call asks Python again.
ORCHARD_EXPORT void orchard_forget_kernels() {
  std::unique_lock lock(orchard::guard);
  orchard::table.clear();
}
