// Barriers of the block: __syncthreads (number 0) and the named ones. A thread that has exited does not count as arrived,
// which is stricter than the hardware.
#include "block.h"

namespace emu {
namespace {
void arrive(NamedBarrier& b, uint32_t id, uint32_t threads, const char* what) {
  if (id > 15) fail("%s: there is no barrier %u", what, id);
  if (threads % 32 != 0 && threads != (uint32_t)block->n_threads) fail("%s %u: %u threads are not whole warps", what, id, threads);
  if (threads > (uint32_t)block->n_threads) fail("%s %u: waits for %u of %d threads", what, id, threads, block->n_threads);
  if (b.arrived && b.wanted != threads)
    fail("%s %u: wants %u threads where those before wanted %u", what, id, threads, b.wanted);
  b.wanted = threads;
  b.arrived++;
  if (race_hooks) race_hooks->barrier_arrive(id, self()->linear);
}

void release(NamedBarrier& b, uint32_t id) {
  b.arrived = 0;
  for (uint32_t w = 0; w < (uint32_t)block->n_warps; w++) {
    const uint32_t lanes = b.waiting[w];
    if (race_hooks)
      for (uint32_t l = 0; l < 32; l++)
        if (lanes >> l & 1) race_hooks->barrier_release(id, w * 32 + l);
    b.waiting[w] = 0;
    make_ready(w, lanes);
  }
}
}  // namespace

void barrier_sync(uint32_t id, uint32_t threads) {
  Thread* me = self();
  NamedBarrier& b = block->barriers[id & 15];
  arrive(b, id, threads ? threads : (uint32_t)block->n_threads, "bar.sync");
  if (b.arrived < b.wanted) {
    b.waiting[me->linear >> 5] |= 1u << me->lane;
    suspend(State::Barrier, "bar.sync", id, 0);
    return;
  }
  release(b, id);
  if (race_hooks) {
    race_hooks->barrier_release(id, me->linear);
    race_hooks->barrier_done(id);
  }
  // Whoever came last must not always be the first to go on.
  if (block->options.policy != kFixed) yield();
}

void barrier_arrive(uint32_t id, uint32_t threads) {
  NamedBarrier& b = block->barriers[id & 15];
  arrive(b, id, threads, "bar.arrive");
  if (b.arrived < b.wanted) return;
  release(b, id);
  if (race_hooks) race_hooks->barrier_done(id);
}

void thread_fence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

namespace {
template <class Change> uint32_t atomically(uint32_t* p, void (*RaceHooks::*hook)(uint32_t, uintptr_t), Change change) {
  if ((uintptr_t)p & 3) fail("an atomic on the misaligned address %p", (void*)p);
  if (race_hooks) (race_hooks->*hook)(self()->linear, (uintptr_t)p);
  uint32_t old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(p, &old, change(old), true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
  }
  return old;
}
}  // namespace
uint32_t atomic_add(uint32_t* p, uint32_t v) {
  return atomically(p, &RaceHooks::atomic, [=](uint32_t old) { return old + v; });
}
uint32_t atomic_max(uint32_t* p, uint32_t v) {
  return atomically(p, &RaceHooks::atomic, [=](uint32_t old) { return old < v ? v : old; });
}
uint32_t atomic_or(uint32_t* p, uint32_t v) {
  return atomically(p, &RaceHooks::atomic, [=](uint32_t old) { return old | v; });
}
uint32_t atomic_cas(uint32_t* p, uint32_t wanted, uint32_t v) {
  return atomically(p, &RaceHooks::atomic, [=](uint32_t old) { return old == wanted ? v : old; });
}
uint32_t arrive_counter(uint32_t* p, uint32_t n) {
  if (n == 0) fail("arrive_counter: a counter of no arrivals");
  if ((uintptr_t)p - (uintptr_t)block->shared < kSharedBytes) fail("arrive_counter: the counter lies in shared memory");
  return atomically(p, &RaceHooks::arrive_counter, [=](uint32_t old) { return old >= n - 1 ? 0 : old + 1; });
}
}  // namespace emu
