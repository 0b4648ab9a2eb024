#include "fault.h"

#include <signal.h>
#include <string.h>

#include "threadgroup.h"

namespace msl {

namespace {

constexpr int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
constexpr unsigned signal_count = sizeof signals / sizeof *signals;

struct sigaction previous[signal_count];
stack_t previous_stack;
thread_local bool dispatching = false;
alignas(16) char handler_stack[64 * 1024];  // a lane may have no stack left

void on_fault(int number, siginfo_t* info, void*) {
  if (!dispatching || !the_threadgroup.is_running()) {  // not ours: let it happen again under the previous handler
    for (unsigned i = 0; i < signal_count; ++i)
      if (signals[i] == number) sigaction(number, &previous[i], nullptr);
    return;
  }
  report& text = the_threadgroup.error(SOFTWARE_METAL_FAULT);
  if (number == SIGFPE)
    text.add(": an integer division by zero");
  else if (the_threadgroup.is_stack(info->si_addr))
    text.add(": the lane has no stack left");
  else
    text.add(": a wild access to address %p", info->si_addr);
  text.add(" (compile with the checks to see the line)");
  the_threadgroup.fail();
}

}  // namespace

fault_guard::fault_guard() {
  stack_t stack = {};
  stack.ss_sp = handler_stack;
  stack.ss_size = sizeof handler_stack;
  sigaltstack(&stack, &previous_stack);
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;  // the handler never returns
  for (unsigned i = 0; i < signal_count; ++i) sigaction(signals[i], &action, &previous[i]);
  dispatching = true;
}

fault_guard::~fault_guard() {
  dispatching = false;
  for (unsigned i = 0; i < signal_count; ++i) sigaction(signals[i], &previous[i], nullptr);
  sigaltstack(&previous_stack, nullptr);
}

}  // namespace msl
