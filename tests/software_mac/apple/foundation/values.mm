// Numbers, errors, and what the process knows of the system that it runs on.
#import <Foundation/Foundation.h>

#include <cstdio>
#include <cstdlib>
#include <variant>

#include "../runtime/runtime.h"

@implementation NSNumber {
  std::variant<long long, unsigned long long, double> value;
}

#define NUMBER(kind, Name, Stored)              \
  +(NSNumber*)numberWith##Name : (kind)given {  \
    NSNumber* number = [[NSNumber alloc] init]; \
    number->value = static_cast<Stored>(given); \
    return [number autorelease];                \
  }
#define READ(kind, name)                                                             \
  -(kind)name {                                                                      \
    return std::visit([](auto stored) { return static_cast<kind>(stored); }, value); \
  }

NUMBER(BOOL, Bool, long long)
NUMBER(int, Int, long long)
NUMBER(unsigned int, UnsignedInt, long long)
NUMBER(long, Long, long long)
NUMBER(unsigned long, UnsignedLong, unsigned long long)
NUMBER(long long, LongLong, long long)
NUMBER(unsigned long long, UnsignedLongLong, unsigned long long)
NUMBER(float, Float, double)
NUMBER(double, Double, double)
READ(BOOL, boolValue)
READ(int, intValue)
READ(unsigned int, unsignedIntValue)
READ(long long, longLongValue)
READ(unsigned long long, unsignedLongLongValue)
READ(float, floatValue)
READ(double, doubleValue)

- (id)copy {
  return [self retain];
}
- (NSString*)stringValue {
  if (auto* whole = std::get_if<long long>(&value)) return [NSString stringWithFormat:@"%lld", *whole];
  if (auto* natural = std::get_if<unsigned long long>(&value)) return [NSString stringWithFormat:@"%llu", *natural];
  return [NSString stringWithFormat:@"%g", std::get<double>(value)];
}
- (NSString*)description {
  return [self stringValue];
}
- (BOOL)isEqual:(id)object {
  return [object isKindOfClass:[NSNumber class]] && static_cast<NSNumber*>(object)->value == value;
}
- (NSUInteger)hash {
  return static_cast<NSUInteger>([self longLongValue]);
}

@end

NSErrorUserInfoKey const NSLocalizedDescriptionKey = @"NSLocalizedDescription";

@implementation NSError
@synthesize domain, code, userInfo;

+ (instancetype)errorWithDomain:(NSErrorDomain)aDomain code:(NSInteger)aCode userInfo:(NSDictionary*)info {
  return [[[self alloc] initWithDomain:aDomain code:aCode userInfo:info] autorelease];
}
- (instancetype)initWithDomain:(NSErrorDomain)aDomain code:(NSInteger)aCode userInfo:(NSDictionary*)info {
  self = [super init];
  domain = [aDomain copy];
  code = aCode;
  userInfo = [info copy];
  return self;
}
- (void)dealloc {
  [domain release];
  [userInfo release];
  [super dealloc];
}
- (id)copy {
  return [self retain];
}
- (NSString*)localizedDescription {
  if (NSString* text = userInfo[NSLocalizedDescriptionKey]) return text;
  return [NSString stringWithFormat:@"The operation couldn't be completed. (%@ error %ld.)", domain, code];
}
- (NSString*)description {
  return [NSString stringWithFormat:@"Error Domain=%@ Code=%ld \"%@\"", domain, code, [self localizedDescription]];
}

@end

@implementation NSProcessInfo

+ (NSProcessInfo*)processInfo {
  static NSProcessInfo* instance = [[NSProcessInfo alloc] init];
  return instance;
}
- (NSOperatingSystemVersion)operatingSystemVersion {
  const char* text = getenv("SOFTWARE_MAC_MACOS_VERSION");
  NSOperatingSystemVersion version = {15, 0, 0};
  if (text && sscanf(text, "%ld.%ld.%ld", &version.majorVersion, &version.minorVersion, &version.patchVersion) < 1)
    throw software_mac::ProgrammingError(std::string("SOFTWARE_MAC_MACOS_VERSION=") + text +
                                         " is no version such as 14.4");
  return version;
}
- (NSString*)operatingSystemVersionString {
  NSOperatingSystemVersion version = [self operatingSystemVersion];
  return [NSString stringWithFormat:@"Version %ld.%ld.%ld (software Mac)", version.majorVersion, version.minorVersion,
                                    version.patchVersion];
}
- (BOOL)isOperatingSystemAtLeastVersion:(NSOperatingSystemVersion)wanted {
  NSOperatingSystemVersion here = [self operatingSystemVersion];
  if (here.majorVersion != wanted.majorVersion) return here.majorVersion > wanted.majorVersion;
  if (here.minorVersion != wanted.minorVersion) return here.minorVersion > wanted.minorVersion;
  return here.patchVersion >= wanted.patchVersion;
}

@end
