// What the running process lends to a plug-in: PyTorch's threads, or its Metal command buffer and queue.
#pragma once

#include "kernels.h"

namespace orchard {

OrchardHost host_for(Backend backend);

}  // namespace orchard
