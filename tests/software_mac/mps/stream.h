// PyTorch's stream on the software Mac: one command queue, the command buffer that is being filled, and the
// dispatch queue that guards it. Objective-C stays behind these functions.
#pragma once

namespace software_mac {

void* stream_command_buffer();  // id<MTLCommandBuffer>, open for encoding
void* stream_dispatch_queue();  // dispatch_queue_t
void stream_commit();
/// Runs everything that was encoded; throws std::runtime_error when the GPU found something wrong.
void stream_synchronize();

}  // namespace software_mac
