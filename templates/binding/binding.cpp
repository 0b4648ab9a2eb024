// All but autograd as one translation unit, so that PyTorch's headers, which cost seconds, are parsed once.
// autograd.cpp takes as long as the rest together and is compiled beside it.
#include "device.cpp"
#include "host.cpp"
#include "inputs.cpp"
#include "journal.cpp"
#include "kernels.cpp"
#include "operators.cpp"
