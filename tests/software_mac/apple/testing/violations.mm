// A host that breaks Metal's rules, one at a time.
#include <functional>
#include <map>
#include <string>

#include "rig.h"

using testing::kSource;
using testing::Rig;

namespace {

using Violation = std::function<void(Rig&)>;

/// Violations inside an encoder that has everything bound; the dispatch comes after them.
const std::map<std::string, Violation> kEncoderViolations = {
    {"set_bytes_length", [](Rig& r) { [r.encoder setBytes:kSource length:4097 atIndex:1]; }},
    {"set_bytes_nothing", [](Rig& r) { [r.encoder setBytes:kSource length:0 atIndex:1]; }},
    {"buffer_index", [](Rig& r) { [r.encoder setBuffer:r.buffer offset:0 atIndex:31]; }},
    {"offset_outside", [](Rig& r) { [r.encoder setBuffer:r.buffer offset:64 atIndex:0]; }},
    {"offset_of_nothing", [](Rig& r) { [r.encoder setBufferOffset:4 atIndex:5]; }},
    {"not_a_buffer", [](Rig& r) { [r.encoder setBuffer:(id<MTLBuffer>)r.queue offset:0 atIndex:0]; }},
    {"threadgroup_multiple", [](Rig& r) { [r.encoder setThreadgroupMemoryLength:20 atIndex:0]; }},
    {"threadgroup_length", [](Rig& r) { [r.encoder setThreadgroupMemoryLength:32784 atIndex:0]; }},
    {"threadgroup_total",
     [](Rig& r) {
       [r.encoder setThreadgroupMemoryLength:16384 atIndex:0];
       [r.encoder setThreadgroupMemoryLength:16400 atIndex:1];
     }},
    {"threadgroup_unbound", [](Rig& r) { [r.encoder setThreadgroupMemoryLength:0 atIndex:0]; }},
    {"unbound", [](Rig& r) { [r.encoder setBuffer:nil offset:0 atIndex:0]; }},
    {"short_reference", [](Rig& r) { [r.encoder setBytes:kSource length:2 atIndex:1]; }},
    {"misaligned", [](Rig& r) { [r.encoder setBuffer:r.buffer offset:2 atIndex:0]; }},
    {"written_bytes", [](Rig& r) { [r.encoder setBytes:kSource length:64 atIndex:0]; }},
    {"too_many_threads", [](Rig& r) { r.dispatch(1025); }},
    {"empty_grid",
     [](Rig& r) { [r.encoder dispatchThreadgroups:MTLSizeMake(0, 1, 1) threadsPerThreadgroup:MTLSizeMake(16, 1, 1)]; }},
    {"second_encoder", [](Rig& r) { [r.commands blitCommandEncoder]; }},
    {"commit_while_open", [](Rig& r) { [r.commands commit]; }},
    {"use_after_end",
     [](Rig& r) {
       [r.encoder endEncoding];
       r.dispatch();
     }},
    {"end_twice",
     [](Rig& r) {
       [r.encoder endEncoding];
       [r.encoder endEncoding];
     }},
};

const std::map<std::string, Violation> kOtherViolations = {
    {"no_pipeline",
     [](Rig& r) {
       r.open();
       r.dispatch();
     }},
    {"encode_after_commit",
     [](Rig& r) {
       [r.commands commit];
       r.open();
     }},
    {"commit_twice",
     [](Rig& r) {
       [r.commands commit];
       [r.commands commit];
     }},
    {"wait_before_commit", [](Rig& r) { [r.commands waitUntilCompleted]; }},
    {"private_bytes",
     [](Rig& r) { [r.device newBufferWithBytes:kSource length:8 options:MTLResourceStorageModePrivate]; }},
    {"empty_buffer", [](Rig& r) { [r.device newBufferWithLength:0 options:MTLResourceStorageModeShared]; }},
    {"huge_buffer", [](Rig& r) { [r.device newBufferWithLength:1ul << 40 options:MTLResourceStorageModeShared]; }},
    {"copy_outside", [](Rig& r) { r.copy(32, 0, 64, r.buffer); }},
    {"copy_overlap", [](Rig& r) { r.copy(0, 8, 16, r.buffer); }},
    {"nil_function", [](Rig& r) { [r.device newComputePipelineStateWithFunction:nil error:nil]; }},
};

}  // namespace

extern "C" void violate(const char* name) {
  @autoreleasepool {
    Rig rig;
    auto other = kOtherViolations.find(name);
    if (other != kOtherViolations.end()) return other->second(rig);
    rig.open();
    rig.bind();
    kEncoderViolations.at(name)(rig);
    rig.dispatch();
  }
}
