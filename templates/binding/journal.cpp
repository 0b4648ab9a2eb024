#include "journal.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <string>

namespace orchard {
namespace {

bool is_on(const char* variable) {
  const char* value = std::getenv(variable);
  return value && *value && std::string(value) != "0";
}

/// A file that only its owner may read or write. One that somebody else made, or a link, is refused:
/// the default paths are in /tmp, where others could have put one.
class Journal {
 public:
  Journal(const char* path_variable, const char* default_path) {
    const char* named = std::getenv(path_variable);
    path_ = named && *named ? named : default_path;
    constexpr int flags = O_WRONLY | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK;  // a pipe would wait
    file_ = open(path_.c_str(), flags, S_IRUSR | S_IWUSR);
    if (file_ < 0 && errno == ELOOP) refuse("it is a symbolic link", path_variable);
    if (file_ < 0) refuse(std::string("it cannot be opened: ") + std::strerror(errno), path_variable);
    struct stat status;
    if (fstat(file_, &status) != 0 || !S_ISREG(status.st_mode)) refuse("it is not a regular file", path_variable);
    if (status.st_uid != geteuid()) refuse("it belongs to another user", path_variable);
    if (status.st_nlink != 1) refuse("it has other names (hard links)", path_variable);
  }

  void write(const std::string& text) {
    // One call for each piece, so that lines of several threads and processes never mix.
    if (::write(file_, text.data(), text.size()) != static_cast<ssize_t>(text.size()))
      throw std::runtime_error("orchard_jit: cannot write to " + path_ + ": " + std::strerror(errno));
  }

 private:
  [[noreturn]] void refuse(const std::string& reason, const char* path_variable) {
    if (file_ >= 0) close(file_);
    throw std::runtime_error("orchard_jit: will not write to " + path_ + ": " + reason + "; name another file in " +
                             path_variable);
  }

  std::string path_;
  int file_;
};

template <class Values>
std::string listed(const Values& values) {
  std::ostringstream text;
  for (const auto value : values) text << (text.tellp() > 0 ? "x" : "") << value;
  return text.str();
}

}  // namespace

void note_call(const Request& request) {
  static const bool on = is_on("ORCHARD_DEBUG_FLASH_ATN") || is_on("ORCHARD_DEBUG_FLASHATN");
  if (!on) return;
  static Journal journal("ORCHARD_DEBUG_FLASH_ATN_LOG", "/tmp/flashattn_kernel_calls.log");
  static std::atomic<int64_t> forward_calls = 0, backward_calls = 0;
  const bool forward = request.pass != Pass::backward;
  const int64_t call = ++(forward ? forward_calls : backward_calls);
  journal.write(std::string(request.backend == Backend::metal ? "[flashattn.mm] " : "[flashattn.cpp] ") +
                (forward ? "FWD" : "BWD") + " call=" + std::to_string(call) + "\n");
}

bool profiles_tensors() {
  static const bool on = is_on("ORCHARD_TENSOR_PROFILE");
  return on;
}

void note_tensors(const Kernel& kernel, const std::vector<Role>& tensors) {
  static Journal journal("ORCHARD_TENSOR_PROFILE_LOG", "/tmp/orchard_tensor_profile.log");
  std::ostringstream text;
  for (const auto& [name, tensor] : tensors) {
    const OrchardBuffer buffer{tensor->storage().mutable_data(), 0};
    text << name << " shape=" << listed(tensor->sizes()) << " strides=" << listed(tensor->strides())
         << " dtype=" << tensor->dtype().name() << " device=" << tensor->device()
         << " storage=" << kernel.storage(&buffer) << " bytes=" << tensor->nbytes() << "\n";
  }
  journal.write(text.str());
}

}  // namespace orchard
