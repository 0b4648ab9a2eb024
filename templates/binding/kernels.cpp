#include "kernels.h"

#include <functional>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <unordered_map>

#include "refusal.h"

namespace orchard {
namespace {

/// Python's part: finds or builds the kernels that a JSON list asks for and writes their entry points.
/// Returns 0, or leaves it to `refuse` to say why not.
using Resolver = int32_t (*)(const char* requests, Kernel* kernels);

struct Hash {
  size_t operator()(const Request& request) const {
    size_t hash = std::hash<uint64_t>()(request.packed());
    for (const std::string* text : {&request.score, &request.blocks})
      if (!text->empty()) hash = hash * 31 ^ std::hash<std::string>()(*text);
    return hash;
  }
};

Resolver resolver = nullptr;
std::shared_mutex guard;
std::unordered_map<Request, Kernel, Hash> table;

bool find(const Request& request, Kernel* kernel) {
  std::shared_lock lock(guard);
  const auto found = table.find(request);
  if (found == table.end()) return false;
  *kernel = found->second;
  return true;
}

/// Asks Python without holding the lock: a build takes seconds, and Python may come back in.
void resolve(const std::vector<Request>& requests) {
  std::vector<Kernel> kernels(requests.size());
  if (!resolver) throw std::runtime_error("no resolver: import orchard_jit first");
  if (resolver(json(requests).c_str(), kernels.data()) != 0) refuse("the resolver failed");
  std::unique_lock lock(guard);
  for (size_t i = 0; i < requests.size(); ++i) table[requests[i]] = kernels[i];
}

std::string quoted(const std::string& text) {
  std::string result = "\"";
  for (const char character : text) {
    if (character == '"' || character == '\\') result += '\\';
    result += character;
  }
  return result + "\"";
}

std::string listed(uint16_t features) {
  static const char* const names[] = {"causal", "window", "mask",    "bias",   "bias_f32",
                                      "bias_grad", "sinks", "dropout", "varlen", "lengths"};
  std::string list;
  for (size_t bit = 0; bit < std::size(names); ++bit)
    if (features >> bit & 1) list += (list.empty() ? "" : ",") + quoted(names[bit]);
  return "[" + list + "]";
}

}  // namespace

uint64_t Request::packed() const {
  uint64_t bits = static_cast<uint64_t>(backend);
  bits = bits << 2 | static_cast<uint64_t>(pass);
  bits = bits << 4 | static_cast<uint64_t>(dtype);
  bits = bits << 16 | features;
  bits = bits << 16 | static_cast<uint64_t>(head_dim);
  return bits << 16 | static_cast<uint64_t>(head_dim_v);
}

std::string Request::json() const {
  static const char* const backends[] = {"cpu", "metal"};
  static const char* const passes[] = {"forward", "backward", "decode"};
  static const char* const dtypes[] = {"float32", "float16", "bfloat16", "float64"};
  return "{\"backend\":" + quoted(backends[static_cast<int>(backend)]) +
         ",\"kernel\":" + quoted(passes[static_cast<int>(pass)]) +
         ",\"dtype\":" + quoted(dtypes[static_cast<int>(dtype)]) + ",\"head_dim\":" + std::to_string(head_dim) +
         ",\"head_dim_v\":" + std::to_string(head_dim_v) + ",\"features\":" + listed(features) +
         ",\"score\":" + quoted(score) + ",\"blocks\":" + quoted(blocks) + "}";
}

std::string json(const std::vector<Request>& requests) {
  std::string list;
  for (const auto& request : requests) list += (list.empty() ? "" : ",") + request.json();
  return "[" + list + "]";
}

Kernel kernel_for(const Request& request) {
  Kernel kernel;
  while (!find(request, &kernel)) resolve({request});
  return kernel;
}

void prepare(const std::vector<Request>& requests) {
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
