// The Metal compiler, as a program of its own: `python -m software_mac.apple.shader`.
#pragma once

#include <string>

namespace software_mac {

struct CompiledShader {
  std::string path;  // of the shared library; empty when `error` says why there is none
  std::string error;
};

struct ShaderSource {
  std::string macros;  // lines of #define that stand before the text and are not counted in its line numbers
  std::string text;
  bool fast_math;
};

CompiledShader compile_shader(const ShaderSource& source);

}  // namespace software_mac
