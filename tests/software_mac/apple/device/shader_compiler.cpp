#include "shader_compiler.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <mutex>
#include <sstream>
#include <tuple>
#include <vector>

#include "../runtime/runtime.h"
#include "settings.h"

namespace software_mac {
namespace {

/// A directory that goes when the compiler is done.
class Workspace {
 public:
  Workspace() {
    std::string pattern = (std::filesystem::temp_directory_path() / "software-mac-XXXXXX").string();
    if (!mkdtemp(pattern.data())) throw ProgrammingError("no temporary directory for the Metal compiler: " + pattern);
    path_ = pattern;
  }
  ~Workspace() { std::filesystem::remove_all(path_); }
  Workspace(const Workspace&) = delete;

  std::string file(const char* name) const { return (path_ / name).string(); }
  std::string read(const char* name) const {
    std::ostringstream text;
    text << std::ifstream(path_ / name).rdbuf();
    return text.str();
  }

 private:
  std::filesystem::path path_;
};

/// The environment, with the package on Python's path.
std::vector<std::string> environment() {
  std::vector<std::string> variables{"PYTHONPATH=" SOFTWARE_MAC_ROOT};
  for (char** variable = environ; *variable; ++variable)
    if (!std::string(*variable).starts_with("PYTHONPATH=")) variables.push_back(*variable);
  return variables;
}

std::vector<char*> pointers(std::vector<std::string>& strings) {
  std::vector<char*> out;
  for (auto& string : strings) out.push_back(string.data());
  out.push_back(nullptr);
  return out;
}

int run(std::vector<std::string> arguments, const std::string& output, const std::string& errors) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 1, output.c_str(), O_WRONLY | O_CREAT, 0600);
  posix_spawn_file_actions_addopen(&actions, 2, errors.c_str(), O_WRONLY | O_CREAT, 0600);
  std::vector<std::string> variables = environment();
  pid_t child = 0;
  int failure = posix_spawnp(&child, arguments[0].c_str(), &actions, nullptr, pointers(arguments).data(),
                             pointers(variables).data());
  posix_spawn_file_actions_destroy(&actions);
  if (failure)
    throw ProgrammingError(arguments[0] + " cannot be started to compile Metal source: set SOFTWARE_MAC_PYTHON");
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}

CompiledShader compile(const ShaderSource& source, bool checked) {
  Workspace workspace;
  std::ofstream(workspace.file("macros")) << source.macros;
  std::ofstream(workspace.file("text")) << source.text;
  std::vector<std::string> command{setting("SOFTWARE_MAC_PYTHON", "python3"), "-m", "software_mac.apple.shader",
                                   workspace.file("macros"), workspace.file("text")};
  if (checked) command.push_back("--checked");
  if (source.fast_math) command.push_back("--fast-math");
  if (run(command, workspace.file("output"), workspace.file("errors"))) return {"", workspace.read("errors")};
  return {workspace.read("output"), ""};
}

}  // namespace

CompiledShader compile_shader(const ShaderSource& source) {
  static std::mutex turn;
  static std::map<std::tuple<std::string, std::string, bool, bool>, CompiledShader> compiled;
  std::lock_guard lock(turn);
  auto [entry, is_new] = compiled.try_emplace({source.macros, source.text, source.fast_math, is_checked()});
  if (is_new || !entry->second.error.empty()) entry->second = compile(source, is_checked());
  return entry->second;
}

}  // namespace software_mac
