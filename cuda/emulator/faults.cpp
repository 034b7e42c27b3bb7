// A fault of a kernel (a wild address, a division by zero, an illegal instruction) becomes an error of its launch: the
// signal's handler lets the thread continue in report_fault on a stack of its own. Faults of anyone else go to the handler
// that was there before. The ASan build leaves all that to ASan.
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <ucontext.h>

#include "block.h"

namespace emu {
namespace {
constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
struct sigaction previous[NSIG];
thread_local uintptr_t fault_address;
thread_local int fault_signal;

void report_fault() {
  switch (fault_signal) {
    case SIGFPE: fail("an integer division by zero, or one that overflows");
    case SIGILL: fail("undefined behaviour: a place that may not be reached");
    default: fail("invalid access to 0x%zx: %s", (size_t)fault_address, describe_address(fault_address).c_str());
  }
}

void on_signal(int signal, siginfo_t* info, void* context) {
  if (block && current) {
    fault_address = (uintptr_t)info->si_addr;
    fault_signal = signal;
    ucontext_t* u = (ucontext_t*)context;
    u->uc_mcontext.gregs[REG_RIP] = (greg_t)report_fault;
    // As after a call: the stack pointer is 8 short of a multiple of 16.
    u->uc_mcontext.gregs[REG_RSP] = (greg_t)(((uintptr_t)block->landing & ~(uintptr_t)15) - 72);
    return;
  }
  const struct sigaction& before = previous[signal];
  if (before.sa_flags & SA_SIGINFO) {
    before.sa_sigaction(signal, info, context);
  } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
    before.sa_handler(signal);
  } else {
    // The instruction runs again and ends the process as if nobody had listened.
    sigaction(signal, &before, nullptr);
  }
}
}  // namespace

void install_fault_handlers() {
  if (EMU_ASAN) return;
  static std::once_flag once;
  std::call_once(once, [] {
    struct sigaction action;
    memset(&action, 0, sizeof action);
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int s : kSignals) sigaction(s, &action, &previous[s]);
  });
  // A thread whose stack has overflown has no room for a handler: it needs a stack of its own. Rust's threads have one.
  stack_t stack;
  if (sigaltstack(nullptr, &stack) == 0 && stack.ss_flags & SS_DISABLE) {
    static thread_local struct Stack {
      void* bytes = malloc(65536);
      ~Stack() {
        stack_t none;
        memset(&none, 0, sizeof none);
        none.ss_flags = SS_DISABLE;
        sigaltstack(&none, nullptr);
        free(bytes);
      }
    } mine;
    memset(&stack, 0, sizeof stack);
    stack.ss_sp = mine.bytes;
    stack.ss_size = 65536;
    sigaltstack(&stack, nullptr);
  }
}
}  // namespace emu
