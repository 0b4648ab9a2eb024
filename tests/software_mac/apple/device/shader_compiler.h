// The Metal compiler, as a program of its own: `python -m software_mac.apple.shader`.
#pragma once

#include <string>

namespace software_mac {

struct CompiledShader {
  std::string path;   // of the shared library; empty when `error` says why there is none
  std::string error;
};

/// `macros`: lines of #define that stand before the source and are not counted in its line numbers.
CompiledShader compile_shader(const std::string& macros, const std::string& source);

}  // namespace software_mac
