// Strings: UTF-8 inside, immutable, in two forms: @"..." and everything else.
#import <Foundation/Foundation.h>

#include <cstdio>
#include <cstring>
#include <string>

#include "../runtime/runtime.h"

@interface SoftwareMacString : NSString
@end

@implementation SoftwareMacString {
  std::string text;
}

- (instancetype)initWithUTF8String:(const char*)cString {
  return [self initWithBytes:cString length:strlen(cString) encoding:NSUTF8StringEncoding];
}
- (instancetype)initWithBytes:(const void*)bytes length:(NSUInteger)length encoding:(NSStringEncoding)encoding {
  self = [super init];
  text.assign(static_cast<const char*>(bytes), length);
  return self;
}
- (instancetype)initWithBytesNoCopy:(void*)bytes
                             length:(NSUInteger)length
                           encoding:(NSStringEncoding)encoding
                       freeWhenDone:(BOOL)freeBuffer {
  self = [self initWithBytes:bytes length:length encoding:encoding];
  if (freeBuffer) free(bytes);
  return self;
}
- (const char*)UTF8String {
  return text.c_str();
}

@end

namespace {

/// printf with %@. Each directive goes to vsnprintf alone, with a copy of the arguments left,
/// so that the library decides how it is read; only %@ is ours.
std::string format(NSString* pattern, va_list arguments) {
  std::string out;
  const char* next = [pattern UTF8String];
  while (*next) {
    const char* percent = strchr(next, '%');
    if (!percent) return out + next;
    out.append(next, percent);
    size_t length = 1 + strcspn(percent + 1, "@diouxXeEfFgGaAcspn%") + 1;
    std::string directive(percent, length);
    next = percent + length;
    switch (directive.back()) {
      case '@': {
        id object = va_arg(arguments, id);
        out += object ? [[object description] UTF8String] : "(null)";
        continue;
      }
      case '%': out += '%'; continue;
    }
    va_list copy;
    va_copy(copy, arguments);
    char piece[4096];
    vsnprintf(piece, sizeof piece, directive.c_str(), copy);
    va_end(copy);
    out += piece;
    bool real = strchr("eEfFgGaA", directive.back());
    if (real)
      (void)va_arg(arguments, double);
    else if (directive.find_first_of("lzjtq") != std::string::npos || strchr("sp", directive.back()))
      (void)va_arg(arguments, long);
    else
      (void)va_arg(arguments, int);
  }
  return out;
}

}  // namespace

@implementation NSString
@dynamic UTF8String;

+ (instancetype)alloc {
  return self == [NSString class] ? [SoftwareMacString alloc] : [super alloc];
}
+ (instancetype)string {
  return @"";
}
+ (instancetype)stringWithUTF8String:(const char*)cString {
  return [[[SoftwareMacString alloc] initWithUTF8String:cString] autorelease];
}
+ (instancetype)stringWithString:(NSString*)string {
  return [[string retain] autorelease];
}
+ (instancetype)stringWithCString:(const char*)cString encoding:(NSStringEncoding)encoding {
  return [self stringWithUTF8String:cString];
}
+ (instancetype)stringWithFormat:(NSString*)pattern, ... {
  va_list arguments;
  va_start(arguments, pattern);
  std::string text = format(pattern, arguments);
  va_end(arguments);
  return [self stringWithUTF8String:text.c_str()];
}
- (id)copy {
  return [self retain];
}
- (NSUInteger)length {  // in UTF-16 units: one for each first byte, one more beyond the basic plane
  NSUInteger units = 0;
  for (const char* c = [self UTF8String]; *c; ++c) {
    auto byte = static_cast<unsigned char>(*c);
    units += (byte & 0xc0) != 0x80;
    units += byte >= 0xf0;
  }
  return units;
}
- (NSUInteger)lengthOfBytesUsingEncoding:(NSStringEncoding)encoding {
  return strlen([self UTF8String]);
}
- (BOOL)isEqualToString:(NSString*)string {
  return string && !strcmp([self UTF8String], [string UTF8String]);
}
- (BOOL)isEqual:(id)object {
  return [object isKindOfClass:[NSString class]] && [self isEqualToString:object];
}
- (NSUInteger)hash {
  return std::hash<std::string>()([self UTF8String]);
}
- (NSString*)stringByAppendingString:(NSString*)string {
  return [NSString stringWithUTF8String:(std::string([self UTF8String]) + [string UTF8String]).c_str()];
}
- (NSString*)description {
  return self;
}

@end

@implementation NSConstantString {
  const char* bytes;
  unsigned int byteCount;
}

- (const char*)UTF8String {
  return bytes;
}
- (instancetype)retain {
  return self;
}
- (oneway void)release {
}
- (instancetype)autorelease {
  return self;
}

@end

extern "C" void NSLog(NSString* pattern, ...) {
  va_list arguments;
  va_start(arguments, pattern);
  std::string text = format(pattern, arguments);
  va_end(arguments);
  fprintf(stderr, "%s\n", text.c_str());
}
