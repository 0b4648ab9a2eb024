// All but autograd as one translation unit, so that PyTorch's headers, which cost seconds, are parsed once.
// autograd.cpp takes as long as the rest together and is compiled beside it.
#include "arguments.cpp"
#include "autocast.cpp"
#include "checks.cpp"
#include "device.cpp"
#include "host.cpp"
#include "journal.cpp"
#include "kernels.cpp"
#include "operators.cpp"
#include "refusal.cpp"
#include "requests.cpp"
