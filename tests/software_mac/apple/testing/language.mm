// What Objective-C++ promises, asked of our runtime. Each function returns a text that its test knows.
#import <Foundation/Foundation.h>
#include <TargetConditionals.h>
#include <dispatch/dispatch.h>
#include <os/log.h>

#include <stdexcept>
#include <string>

namespace {
std::string text;
const char* answer(const std::string& given) {
  text = given;
  return text.c_str();
}
const char* answer(NSString* given) { return answer(std::string([given UTF8String])); }

std::string events;
struct Member {
  Member() { events += "construct "; }
  ~Member() { events += "destruct "; }
};
}  // namespace

@protocol Named <NSObject>
@property(readonly) NSString* name;
@optional
- (int)unused;
@end

@interface Animal : NSObject <Named>
@property(copy, nonatomic) NSString* title;
- (int)legs;
@end

@implementation Animal {
  Member member;
  int count;
}
- (instancetype)init {
  self = [super init];
  count = 4;
  return self;
}
- (void)dealloc {
  events += "dealloc ";
  [_title release];
  [super dealloc];
}
- (NSString*)name {
  return @"animal";
}
- (int)legs {
  return count;
}
@end

@interface Bird : Animal
@end

@implementation Bird {
  int own;
}
- (NSString*)name {
  return [[super name] stringByAppendingString:@"/bird"];
}
- (int)legs {
  own = 2;
  return [super legs] - own;
}
@end

@interface Animal (Extra)
- (int)twice;
@end
@implementation Animal (Extra)
- (int)twice {
  return 2 * [self legs];
}
@end

extern "C" {

const char* inheritance() {
  @autoreleasepool {
    Bird* bird = [[[Bird alloc] init] autorelease];
    bird.title = @"wren";
    return answer([NSString stringWithFormat:@"%@ %d %d %@ %d%d", bird.name, [bird legs], [bird twice], bird.title,
                                             [bird respondsToSelector:@selector(twice)],
                                             [bird respondsToSelector:@selector(unused)]]);
  }
}

const char* lifetime() {
  events.clear();
  Animal* animal = [[Animal alloc] init];
  [animal retain];
  [animal release];
  @autoreleasepool {
    [animal autorelease];
    events += "kept ";
  }
  return answer(events);
}

const char* released_too_often() {
  Animal* animal = [[Animal alloc] init];
  [animal release];
  [animal release];
  return "";
}

const char* blocks() {
  @autoreleasepool {
    events.clear();
    __block int sum = 0;
    Animal* animal = [[Animal alloc] init];
    int (^add)(int) = Block_copy(^(int n) {
      sum += n + [animal legs];
      return sum;
    });
    [animal release];  // the copied block keeps it
    int first = add(1), second = add(2);
    Block_release(add);
    return answer([NSString stringWithFormat:@"%d %d %d %s", first, second, sum, events.c_str()]);
  }
}

const char* exception_through_block() {
  dispatch_queue_t queue = dispatch_queue_create("test", DISPATCH_QUEUE_SERIAL);
  const char* result = answer(std::string("not thrown"));
  try {
    dispatch_sync(queue, ^{ throw std::runtime_error("through a block and a queue"); });
  } catch (const std::exception& caught) {
    result = answer(std::string(caught.what()));
  }
  __block bool ran = false;
  dispatch_sync(queue, ^{
    ran = true;  // the queue is free again
  });
  dispatch_release(queue);
  return ran ? result : "the queue stayed locked";
}

const char* reentrant_dispatch_sync() {
  static dispatch_queue_t queue = dispatch_queue_create("stream", DISPATCH_QUEUE_SERIAL);
  dispatch_sync(queue, ^{ dispatch_sync(queue, ^{}); });
  return "";
}

const char* once() {
  __block int runs = 0;
  static dispatch_once_t predicate;
  for (int i = 0; i < 3; ++i) dispatch_once(&predicate, ^{ ++runs; });
  return answer(std::to_string(runs));
}

const char* messages_to_nil() {
  NSNumber* none = nil;
  NSString* text_of_none = [none stringValue];
  return answer(std::to_string([none intValue]) + " " + std::to_string([none doubleValue]) +
                (text_of_none ? " text" : " nil"));
}

const char* unrecognized_selector() {
  id object = [[[Animal alloc] init] autorelease];
  return [object UTF8String];
}

const char* collections() {
  @autoreleasepool {
    NSDictionary* numbers = @{@"one" : @1, @"half" : @0.5, @"yes" : @YES};
    NSString* joined = @"";
    for (NSString* key in numbers.allKeys) joined = [NSString stringWithFormat:@"%@%@=%@;", joined, key, numbers[key]];
    NSArray* items = @[ @"a", @2 ];
    return answer([NSString stringWithFormat:@"%@ %@ %lu %@", joined, items, items.count, items[0]]);
  }
}

const char* strings() {
  @autoreleasepool {
    NSString* made = [NSString stringWithFormat:@"%5.2f|%-4s|%04d|%lu|%%|%@", 3.14159, "ab", 7, 1ul << 40, @"nested"];
    NSString* accents = @"h\u00e9llo \U0001F600";
    BOOL same = [@"x" isEqualToString:[NSString stringWithUTF8String:"x"]];
    return answer([NSString stringWithFormat:@"%@ %lu %d", made, accents.length, same]);
  }
}

const char* errors() {
  @autoreleasepool {
    NSError* error = [NSError errorWithDomain:@"Test" code:7 userInfo:@{NSLocalizedDescriptionKey : @"it broke"}];
    return answer([NSString stringWithFormat:@"%@ %@ %ld", error.localizedDescription, error.domain, error.code]);
  }
}

void logging() {
  NSLog(@"NSLog on a %@", TARGET_OS_OSX ? @"Mac" : @"phone");
  os_log_error(OS_LOG_DEFAULT, "os_log of %d", 7);
}

const char* system_version() {
  @autoreleasepool {
    NSOperatingSystemVersion version = [[NSProcessInfo processInfo] operatingSystemVersion];
    BOOL modern = [[NSProcessInfo processInfo] isOperatingSystemAtLeastVersion:(NSOperatingSystemVersion){15, 0, 0}];
    return answer([NSString stringWithFormat:@"%ld.%ld %d", version.majorVersion, version.minorVersion, modern]);
  }
}
}
