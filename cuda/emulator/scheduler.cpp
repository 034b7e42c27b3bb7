// Threads as fibers: who runs next, how to switch, how a block begins, ends or fails.
//
// A switch saves six registers. The ready threads are a bit each, so choosing one costs the same for 32 and for 1024. The
// order is that of the policy and the seed; with the same seed a block runs in the same order again.
#include <pthread.h>
#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "block.h"

namespace emu {
thread_local ThreadView* current;
thread_local LaunchShape launch_shape;
thread_local Block* block;

#if !defined(__x86_64__)
#error "the emulator switches stacks with x86-64 code"
#endif
extern "C" void emu_switch(void** save, void* to);
asm(R"(
.text
.type emu_switch,@function
.align 16
emu_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size emu_switch, .-emu_switch
)");

namespace {
constexpr size_t kStackBytes = EMU_ASAN ? 512 * 1024 : 128 * 1024;
constexpr size_t kPage = 4096;
// Stack tops that all fall on the same lines of the first-level cache would make every switch a miss.
constexpr size_t kStagger = 1088, kStaggerSpan = 16384;

thread_local void* abandoned;  // where a thread that ended saves a stack pointer that nobody needs

void run_thread();

void reset(Thread& t) {
  t.block_index = block->index;
  t.state = State::Ready;
  t.what = nullptr;
  t.proxy_epoch = t.mbar_epoch = 1;
  t.failed_tests = 0;
  t.unfenced_counter = false;
  t.asan_stack = nullptr;
  if (t.used) {
    t.copies.clear();
    t.copy_groups.clear();
    t.copies_done = 0;
    t.stores.clear();
    t.store_groups = 0;
    t.wgmma = WgmmaLane{};
    t.used = false;
  }
  block->started[t.linear >> 5] |= 1u << t.lane;
}

bool has_started(const Thread* t) { return block->started[t->linear >> 5] >> t->lane & 1; }

__attribute__((noinline)) void start(Thread& t) {
  reset(t);
  unpoison(t.stack, t.stack_bytes);
  const size_t number = (size_t)(t.stack - block->stacks) / kStackBytes;
  const uintptr_t top = (uintptr_t)t.stack + t.stack_bytes - number * kStagger % kStaggerSpan;
  uint64_t* frame = (uint64_t*)(top & ~(uintptr_t)15);
  *--frame = 0;
  *--frame = (uint64_t)run_thread;
  for (int saved = 0; saved < 6; saved++) *--frame = 0;
  t.stack_pointer = frame;
}

void switch_to(void** save, Thread* to) {
  if (__builtin_expect(!has_started(to), 0)) start(*to);
  Thread* from = self();
  before_switch(!from ? &block->main_asan_stack : from->state == State::Exited ? nullptr : &from->asan_stack, to->stack,
                to->stack_bytes);
  current = to;
  emu_switch(save, to->stack_pointer);
  after_switch(self() ? self()->asan_stack : block->main_asan_stack);
}

[[noreturn]] void switch_to_main() {
  before_switch(nullptr, block->main_stack, block->main_stack_bytes);
  current = nullptr;
  emu_switch(&abandoned, block->main_stack_pointer);
  __builtin_unreachable();
}

const char* state_name(State s) {
  switch (s) {
    case State::Ready: return "ready";
    case State::Barrier: return "barrier";
    case State::Collective: return "warp instruction";
    case State::Mbarrier: return "mbarrier";
    case State::Counter: return "a counter";
    case State::Wgmma: return "wgmma.wait_group";
    case State::Exited: return "exited";
  }
  return "";
}

std::string describe_wait(const Thread& t) {
  char text[160];
  switch (t.state) {
    case State::Barrier: {
      const NamedBarrier& b = block->barriers[t.waits_for];
      snprintf(text, sizeof text, "barrier %u (%u of %u threads have arrived)", t.waits_for, b.arrived, b.wanted);
      return text;
    }
    case State::Collective:
      snprintf(text, sizeof text, "%s of the lanes 0x%08x", t.what, t.waits_for);
      return text;
    case State::Mbarrier:
      return "parity " + std::to_string(t.parity) + " of " + describe_mbarrier(t.waits_for);
    case State::Counter:
      return "a counter that comes to " + std::to_string(t.waits_for) + ", which no block that runs will take it to";
    default:
      return state_name(t.state);
  }
}

[[noreturn]] void report_deadlock() {
  std::string report = "deadlock: no thread can run and nothing is under way.";
  int lines = 0;
  for (int first = 0, next; first < block->n_threads; first = next) {
    const Thread& t = block->threads[first];
    for (next = first + 1; next < block->n_threads; next++) {
      const Thread& u = block->threads[next];
      const bool same_place = u.waits_for == t.waits_for && u.parity == t.parity && u.what == t.what;
      if (u.state != t.state || (t.state != State::Exited && !same_place)) break;
    }
    if (++lines > 12) {
      report += " and more;";
      break;
    }
    report += " threads " + std::to_string(first) + "-" + std::to_string(next - 1) + ": " + describe_wait(t) + ";";
  }
  fail_block("%s", report.c_str());
}

// The first set bit of `mask` at or after `from`, going round.
uint32_t next_bit(uint32_t mask, uint32_t from) {
  const uint32_t turned = from ? mask >> from | mask << (32 - from) : mask;
  return ((uint32_t)__builtin_ctz(turned) + from) & 31;
}

// Takes the next thread to run out of the ready ones.
Thread* pick() {
  Block* b = block;
  b->tick++;
  if (__builtin_expect(b->tick >= b->next_due, 0)) {
    look_at_counters();
    deliver_due_loads();
  }
  const int policy = b->options.policy;
  const uint64_t r = policy == kFixed ? 0 : random_bits();
  const bool jump = policy == kAnyThread || (policy == kWarpAtATime && (r >> 40 & b->jump_mask) == 0);
  if (__builtin_expect(jump || !b->ready[b->warp_now], 0)) {
    while (!b->ready_warps) {
      if (!b->loads.empty()) deliver_some_load();
      else if (!await_counters()) report_deadlock();
    }
    b->warp_now = next_bit(b->ready_warps, policy == kFixed ? (b->warp_now + 1) & 31 : r >> 8 & 31);
  }
  const uint32_t w = b->warp_now;
  const uint32_t lane = policy == kFixed ? (uint32_t)__builtin_ctz(b->ready[w]) : next_bit(b->ready[w], r >> 16 & 31);
  b->ready[w] &= ~(1u << lane);
  if (!b->ready[w]) b->ready_warps &= ~(1u << w);
  return &b->threads[w * 32 + lane];
}

void run_next() {
  Thread* me = self();
  Thread* next = pick();
  if (next != me) switch_to(&me->stack_pointer, next);
}

// A fiber's whole life. When its thread is done the stack goes straight on with a thread that has not begun, without a
// switch; threads that never wait so cost a call each.
void run_thread() {
  after_switch(nullptr);
  for (;;) {
    block->kernel->invoke(block->argument);
    Thread* me = self();
    if (me->used) {
      check_copies_done(me);
      finish_stores(me);
      check_wgmma_done(me);
    }
    me->state = State::Exited;
    block->warps[me->linear >> 5].exited |= 1u << me->lane;
    if (--block->alive == 0) {
      if (!block->loads.empty()) fail("the block ends with TMA loads under way");
      check_barriers_done();
      switch_to_main();
    }
    Thread* next = pick();
    if (has_started(next)) {
      switch_to(&abandoned, next);
      __builtin_unreachable();
    }
    std::swap(me->stack, next->stack);
    reset(*next);
    current = next;
  }
}

void place_threads(Block* b) {
  for (int i = 0; i < b->n_threads; i++) {
    Thread& t = b->threads[i];
    const uint32_t n = (uint32_t)i;
    t.thread_index = {n % b->shape.x, n / b->shape.x % b->shape.y, n / (b->shape.x * b->shape.y)};
    t.linear = n;
    t.lane = n & 31;
    t.shared = b->shared;
    t.used = true;
    t.stack = b->stacks + i * kStackBytes + kPage;
    t.stack_bytes = kStackBytes - kPage;
  }
}

void begin(Block* b, dim3 shape, uint3 index, uint32_t dynamic_bytes) {
  const bool same_shape = b->shape.x == shape.x && b->shape.y == shape.y && b->shape.z == shape.z;
  b->shape = shape;
  b->index = index;
  b->n_threads = b->alive = (int)(shape.x * shape.y * shape.z);
  b->n_warps = (b->n_threads + 31) / 32;
  b->failed = false;
  b->tick = 0;
  b->next_due = ~0ull;
  b->loads.clear();
  b->mbarrier_waiters.clear();
  b->mbarriers.clear();
  b->counter_waiters.clear();
  memset(b->ready, 0, sizeof b->ready);
  memset(b->started, 0, sizeof b->started);
  b->ready_warps = 0;
  for (Warp& w : b->warps) {
    for (Rendezvous& m : w.meetings) m.arrived = 0;
    w.exited = 0;
  }
  memset(b->barriers, 0, sizeof b->barriers);
  for (int i = 0; i < (b->n_threads + 127) / 128; i++) {
    Warpgroup& g = b->warpgroups[i];
    g.operations.clear();
    g.group_ends.clear();
    g.waiters.clear();
    g.executed = g.issued = 0;
  }
  begin_shared(b, dynamic_bytes);
  if (!same_shape) place_threads(b);
  for (int w = 0; w < b->n_warps; w++) {
    const int lanes = b->n_threads - w * 32;
    make_ready((uint32_t)w, lanes >= 32 ? ~0u : (1u << lanes) - 1);
  }
  // From warps that run far ahead of others to warps that go nearly side by side.
  constexpr uint64_t kJumpMasks[] = {15, 63, 511, 8191};
  b->jump_mask = kJumpMasks[random_bits() >> 20 & 3];
  b->warp_now = b->options.policy == kFixed ? 0 : (uint32_t)(random_bits() % (uint64_t)b->n_warps);
  if (race_hooks) race_hooks->block_begin(b);
}

// ASan wants to know the stack that a switch goes back to.
void find_main_stack(Block* b) {
  pthread_attr_t attributes;
  void* stack;
  pthread_getattr_np(pthread_self(), &attributes);
  pthread_attr_getstack(&attributes, &stack, &b->main_stack_bytes);
  pthread_attr_destroy(&attributes);
  b->main_stack = stack;
}

[[noreturn]] void fail_with(const char* format, va_list arguments, bool blame_thread) {
  char text[3072];
  int n = vsnprintf(text, sizeof text, format, arguments);
  n = n < (int)sizeof text ? n : (int)sizeof text - 1;
  const uint3 at = block->index;
  char place[256];
  if (blame_thread && current) {
    const uint3 t = current->thread_index;
    snprintf(place, sizeof place, " [kernel %s, block (%u,%u,%u), thread (%u,%u,%u)]", block->kernel->name, at.x, at.y, at.z,
             t.x, t.y, t.z);
  } else {
    snprintf(place, sizeof place, " [kernel %s, block (%u,%u,%u)]", block->kernel->name, at.x, at.y, at.z);
  }
  block->error = std::string(text) + place;
  block->failed = true;
  switch_to_main();
}
}  // namespace

void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fail_with(format, arguments, true);
}
void fail_block(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fail_with(format, arguments, false);
}
void trap(const char* why) { fail("the kernel stopped itself: %s", why); }

void suspend(State state, const char* what, uint32_t waits_for, uint32_t parity) {
  Thread* me = self();
  me->state = state;
  me->what = what;
  me->waits_for = waits_for;
  me->parity = parity;
  run_next();
  me->state = State::Ready;
}
void yield() {
  wake(self());
  run_next();
}

Block* new_block() {
  Block* b = new Block();
  const int prot = PROT_READ | PROT_WRITE, flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  void* stacks = mmap(nullptr, kStackBytes * kMaxThreads, prot, flags, -1, 0);
  void* shared = mmap(nullptr, kSharedBytes + 2 * kPage, prot, flags, -1, 0);
  void* landing = mmap(nullptr, 16 * kPage, prot, flags, -1, 0);
  if (stacks == MAP_FAILED || shared == MAP_FAILED || landing == MAP_FAILED) {
    for (void* p : {stacks, shared, landing})
      if (p != MAP_FAILED) munmap(p, p == stacks ? kStackBytes * kMaxThreads : p == shared ? kSharedBytes + 2 * kPage : 16 * kPage);
    delete b;
    return nullptr;
  }
  b->stacks = (uint8_t*)stacks;
  for (int i = 0; i < kMaxThreads; i++) mprotect(b->stacks + i * kStackBytes, kPage, PROT_NONE);
  mprotect(shared, kPage, PROT_NONE);
  mprotect((uint8_t*)shared + kPage + kSharedBytes, kPage, PROT_NONE);
  b->shared = (uint8_t*)shared + kPage;
  b->landing = (uint8_t*)landing + 16 * kPage;
  b->threads.resize(kMaxThreads);
  b->unfenced.assign(kSharedBytes / 16, 0);
  return b;
}

__attribute__((noinline)) bool run_block(Block* b, dim3 shape, uint3 index, uint32_t dynamic_bytes) {
  begin(b, shape, index, dynamic_bytes);
  current = nullptr;
  if (EMU_ASAN) find_main_stack(b);
  switch_to(&b->main_stack_pointer, pick());
  current = nullptr;
  if (b->failed) return false;
  if (const char* array = end_shared(b)) {
    b->error = std::string("written outside of the shared array ") + array + " [kernel " + b->kernel->name + ", block (" +
               std::to_string(index.x) + "," + std::to_string(index.y) + "," + std::to_string(index.z) + ")]";
    b->failed = true;
  }
  return !b->failed;
}
}  // namespace emu
