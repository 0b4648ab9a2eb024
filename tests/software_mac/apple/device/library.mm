// Libraries: Metal source, compiled by software_mac.metal into a shared library that is loaded here.
#include <dlfcn.h>

#include <cstring>

#include "classes.h"
#include "shader_compiler.h"

NSErrorDomain const MTLLibraryErrorDomain = @"MTLLibraryErrorDomain";

namespace {

void report(NSError** error, MTLLibraryError code, const std::string& text) {
  software_mac::report(error, MTLLibraryErrorDomain, code, text);
}

size_t size_of(MTLDataType type) {
  switch (type) {
    case MTLDataTypeBool:
    case MTLDataTypeChar:
    case MTLDataTypeUChar: return 1;
    case MTLDataTypeHalf:
    case MTLDataTypeBFloat:
    case MTLDataTypeShort:
    case MTLDataTypeUShort: return 2;
    case MTLDataTypeFloat:
    case MTLDataTypeInt:
    case MTLDataTypeUInt: return 4;
    case MTLDataTypeLong:
    case MTLDataTypeULong: return 8;
    default: return 0;
  }
}

/// The macOS that first knew a version of the language.
NSInteger first_system(MTLLanguageVersion version) {
  switch (version) {
    case MTLLanguageVersion4_0: return 26;
    case MTLLanguageVersion3_2: return 15;
    case MTLLanguageVersion3_1: return 14;
    default: return 13;
  }
}

NSInteger system_version() { return [[NSProcessInfo processInfo] operatingSystemVersion].majorVersion; }

bool has_word(const std::string& text, const std::string& word) {
  auto is_letter = [&](size_t at) { return at < text.size() && (isalnum(text[at]) || text[at] == '_'); };
  for (size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1))
    if ((at == 0 || !is_letter(at - 1)) && !is_letter(at + word.size())) return true;
  return false;
}

}  // namespace

@implementation MTLCompileOptions

- (instancetype)init {
  self = [super init];
  _fastMathEnabled = YES;
  _mathMode = MTLMathModeFast;
  _languageVersion = MTLLanguageVersion3_0;  // what a process built against an old SDK gets: bfloat is unknown
  return self;
}
- (void)dealloc {
  [_preprocessorMacros release];
  [super dealloc];
}
- (BOOL)respondsToSelector:(SEL)selector {  // the math mode came with macOS 15
  bool is_new = sel_isEqual(selector, @selector(mathMode)) || sel_isEqual(selector, @selector(setMathMode:));
  return (!is_new || system_version() >= 15) && [super respondsToSelector:selector];
}
- (void)setMathMode:(MTLMathMode)mode {
  REQUIRE(system_version() >= 15, @"unrecognized selector on macOS %ld", system_version());
  _mathMode = mode;
  _fastMathEnabled = mode == MTLMathModeFast;
}

@end

@implementation MTLFunctionConstantValues

- (void)setConstantValue:(const void*)value type:(MTLDataType)type atIndex:(NSUInteger)index {
  REQUIRE(size_of(type), @"type %lu: only scalars are here", type);
  values.push_back({static_cast<long>(index), "", std::string(static_cast<const char*>(value), size_of(type))});
}
- (void)setConstantValue:(const void*)value type:(MTLDataType)type withName:(NSString*)name {
  REQUIRE(size_of(type), @"type %lu: only scalars are here", type);
  values.push_back({-1, [name UTF8String], std::string(static_cast<const char*>(value), size_of(type))});
}
- (void)reset {
  values.clear();
}

@end

@implementation SoftwareMacFunction
@synthesize label;

- (void)dealloc {
  [library release];
  [label release];
  [super dealloc];
}
- (id<MTLDevice>)device {
  return [SoftwareMacDevice shared];
}
- (NSString*)name {
  return [NSString stringWithUTF8String:kernel->name];
}

@end

@implementation SoftwareMacLibrary {
  void* handle;
  const software_metal_library* compiled;
}
@synthesize label;

+ (instancetype)newWithSource:(NSString*)source options:(MTLCompileOptions*)options error:(NSError**)error {
  options = options ? options : [[[MTLCompileOptions alloc] init] autorelease];
  std::string text = [source UTF8String];
  NSInteger needed = first_system(options.languageVersion);
  if (system_version() < needed) {
    report(error, MTLLibraryErrorUnsupported,
           "the language version needs macOS " + std::to_string(needed) + ", this is macOS " +
               std::to_string(system_version()));
    return nil;
  }
  if (options.languageVersion < MTLLanguageVersion3_1 && has_word(text, "bfloat")) {
    report(error, MTLLibraryErrorCompileFailure,
           "program_source: error: unknown type name 'bfloat': set languageVersion to 3.1 or later");
    return nil;
  }
  std::string macros;
  for (NSString* name in options.preprocessorMacros.allKeys)
    macros += "#define " + std::string([name UTF8String]) + " " +
              [[options.preprocessorMacros[name] description] UTF8String] + "\n";
  software_mac::CompiledShader shader = software_mac::compile_shader({macros, text, options.fastMathEnabled});
  if (shader.error.empty()) return [[self alloc] initWithFile:shader.path.c_str()];
  report(error, MTLLibraryErrorCompileFailure, shader.error);
  return nil;
}
- (instancetype)initWithFile:(const char*)path {
  self = [super init];
  handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!handle)
    throw software_mac::ProgrammingError(std::string("a compiled Metal library cannot be loaded: ") + dlerror());
  compiled = reinterpret_cast<decltype(&software_metal_library_v1)>(dlsym(handle, "software_metal_library_v1"))();
  return self;
}
- (void)dealloc {
  if (handle) dlclose(handle);
  [label release];
  [super dealloc];
}
- (id<MTLDevice>)device {
  return [SoftwareMacDevice shared];
}
- (NSArray<NSString*>*)functionNames {
  std::vector<NSString*> names;
  for (uint32_t i = 0; i < compiled->kernel_count; ++i)
    names.push_back([NSString stringWithUTF8String:compiled->kernels[i].name]);
  return [NSArray arrayWithObjects:names.data() count:names.size()];
}
- (id<MTLFunction>)newFunctionWithName:(NSString*)name {
  return [self newFunctionWithName:name constantValues:nil error:nil];
}
- (id<MTLFunction>)newFunctionWithName:(NSString*)name
                        constantValues:(MTLFunctionConstantValues*)values
                                 error:(NSError**)error {
  for (uint32_t i = 0; i < compiled->kernel_count; ++i) {
    if (strcmp(compiled->kernels[i].name, [name UTF8String])) continue;
    auto* function = [[SoftwareMacFunction alloc] init];
    function->library = [self retain];
    function->compiled = compiled;
    function->kernel = &compiled->kernels[i];
    if (!values || [self specialise:function with:values error:error]) return function;
    [function release];
    return nil;
  }
  report(error, MTLLibraryErrorFunctionNotFound,
         std::string("Function ") + [name UTF8String] + " was not found in the library");
  return nil;
}
/// Gives the function the values of those constants that the library has; others are ignored, as Metal does.
- (BOOL)specialise:(SoftwareMacFunction*)function with:(MTLFunctionConstantValues*)values error:(NSError**)error {
  for (auto& value : values->values) {
    for (uint32_t i = 0; i < compiled->function_constant_count; ++i) {
      auto& constant = compiled->function_constants[i];
      if (value.index >= 0 ? constant.index != value.index : constant.name != value.name) continue;
      if (constant.bytes != value.bytes.size()) {
        report(error, MTLLibraryErrorCompileFailure,
               std::string("function constant ") + constant.name + " has " + std::to_string(constant.bytes) +
                   " bytes, the value given for it has " + std::to_string(value.bytes.size()));
        return NO;
      }
      function->constantBytes.push_back(value.bytes);
      function->constants.push_back({constant.index, constant.bytes, nullptr});
    }
  }
  for (size_t i = 0; i < function->constants.size(); ++i)
    function->constants[i].value = function->constantBytes[i].data();
  return YES;
}

@end
