// What a call may be given. Whatever is refused raises ValueError, TypeError or NotImplementedError, which names the
// argument, what came and what is accepted.
#pragma once

#include "arguments.h"

namespace orchard {

/// Shapes, types, devices, strides.
void check_arguments(const Arguments& arguments);

/// The numbers in query_offsets, key_offsets and key_lengths. On a GPU they have to be fetched, which waits for it:
/// so a tensor that was found good is not looked at again as long as nobody writes to it.
void check_sequences(const Arguments& arguments);

void check_gradients(const Arguments& arguments, const Gradients& gradients);

}  // namespace orchard
