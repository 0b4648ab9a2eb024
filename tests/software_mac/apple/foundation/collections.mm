// Arrays and dictionaries: immutable, small, in the order in which they were written.
#import <Foundation/Foundation.h>

#include <vector>

#include "../runtime/runtime.h"

@implementation NSArray {
  std::vector<id> items;
}

+ (instancetype)array {
  return [self arrayWithObjects:nullptr count:0];
}
+ (instancetype)arrayWithObject:(id)object {
  return [self arrayWithObjects:&object count:1];
}
+ (instancetype)arrayWithObjects:(const id[])objects count:(NSUInteger)count {
  return [[[self alloc] initWithObjects:objects count:count] autorelease];
}
- (instancetype)initWithObjects:(const id[])objects count:(NSUInteger)count {
  self = [super init];
  for (NSUInteger i = 0; i < count; ++i) items.push_back([objects[i] retain]);
  return self;
}
- (void)dealloc {
  for (id item : items) [item release];
  [super dealloc];
}
- (id)copy {
  return [self retain];
}
- (NSUInteger)count {
  return items.size();
}
- (id)objectAtIndex:(NSUInteger)index {
  if (index >= items.size())
    throw software_mac::ProgrammingError("-[NSArray objectAtIndex:]: index " + std::to_string(index) + " of " +
                                         std::to_string(items.size()));
  return items[index];
}
- (id)objectAtIndexedSubscript:(NSUInteger)index {
  return [self objectAtIndex:index];
}
- (NSUInteger)countByEnumeratingWithState:(NSFastEnumerationState*)state
                                  objects:(id __unsafe_unretained[])buffer
                                    count:(NSUInteger)length {
  if (state->state) return 0;
  state->state = 1;
  state->itemsPtr = items.data();
  state->mutationsPtr = &state->extra[0];  // an immutable array: never changes
  return items.size();
}
- (NSString*)description {
  NSString* text = @"(";
  for (NSUInteger i = 0; i < items.size(); ++i)
    text = [NSString stringWithFormat:@"%@%s%@", text, i ? ", " : "", items[i]];
  return [text stringByAppendingString:@")"];
}

@end

extern "C" void objc_enumerationMutation(id) {
  throw software_mac::ProgrammingError("a collection changed while it was enumerated");
}

@implementation NSDictionary {
  NSArray* keys;
  NSArray* values;
}

+ (instancetype)dictionary {
  return [self dictionaryWithObjects:nullptr forKeys:nullptr count:0];
}
+ (instancetype)dictionaryWithObject:(id)object forKey:(id<NSCopying>)key {
  return [self dictionaryWithObjects:&object forKeys:&key count:1];
}
+ (instancetype)dictionaryWithObjects:(const id[])objects
                              forKeys:(const id<NSCopying>[])someKeys
                                count:(NSUInteger)count {
  return [[[self alloc] initWithObjects:objects forKeys:someKeys count:count] autorelease];
}
- (instancetype)initWithObjects:(const id[])objects forKeys:(const id<NSCopying>[])someKeys count:(NSUInteger)count {
  self = [super init];
  keys = [[NSArray alloc] initWithObjects:(const id*)someKeys count:count];
  values = [[NSArray alloc] initWithObjects:objects count:count];
  return self;
}
- (void)dealloc {
  [keys release];
  [values release];
  [super dealloc];
}
- (id)copy {
  return [self retain];
}
- (NSUInteger)count {
  return [keys count];
}
- (NSArray*)allKeys {
  return keys;
}
- (id)objectForKey:(id)key {
  for (NSUInteger i = 0; i < [keys count]; ++i)
    if ([keys[i] isEqual:key]) return values[i];
  return nil;
}
- (id)objectForKeyedSubscript:(id)key {
  return [self objectForKey:key];
}

@end
