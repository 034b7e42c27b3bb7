// Barriers of the block: __syncthreads (number 0) and the named ones; counters, on which blocks wait for each other. A
// thread that has exited does not count as arrived, which is stricter than the hardware, and so is that none may be left
// behind with arrivals that nobody has waited for.
#include <chrono>
#include <thread>

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

void check_barriers_done() {
  for (uint32_t id = 0; id < 16; id++) {
    const NamedBarrier& b = block->barriers[id];
    if (b.arrived) fail("the block ends with %u of %u threads arrived at barrier %u", b.arrived, b.wanted, id);
  }
}

void thread_fence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

namespace {
template <class Change> uint32_t change_atomically(uint32_t* p, Change change) {
  uint32_t old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(p, &old, change(old), true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED)) {
  }
  return old;
}
void check_counter(const uint32_t* p, const char* what) {
  if ((uintptr_t)p & 3) fail("%s: the misaligned address %p", what, (const void*)p);
  if ((uintptr_t)p - (uintptr_t)block->shared < kSharedBytes) fail("%s: the counter lies in shared memory", what);
}
template <class Change> uint32_t atomically(uint32_t* p, Change change) {
  if ((uintptr_t)p & 3) fail("an atomic on the misaligned address %p", (void*)p);
  if (race_hooks) race_hooks->atomic(self()->linear, (uintptr_t)p);
  return change_atomically(p, change);
}
}  // namespace
uint32_t atomic_add(uint32_t* p, uint32_t v) {
  return atomically(p, [=](uint32_t old) { return old + v; });
}
uint32_t atomic_max(uint32_t* p, uint32_t v) {
  return atomically(p, [=](uint32_t old) { return old < v ? v : old; });
}
uint32_t atomic_or(uint32_t* p, uint32_t v) {
  return atomically(p, [=](uint32_t old) { return old | v; });
}
uint32_t atomic_cas(uint32_t* p, uint32_t wanted, uint32_t v) {
  return atomically(p, [=](uint32_t old) { return old == wanted ? v : old; });
}
uint32_t arrive_counter(uint32_t* p, uint32_t n) {
  if (n == 0) fail("arrive_counter: a counter of no arrivals");
  check_counter(p, "arrive_counter");
  const auto next = [=](uint32_t old) { return old >= n - 1 ? 0 : old + 1; };
  // the race build runs one block at a time, so nobody else changes the counter between these two
  if (race_hooks) race_hooks->arrive_counter(self()->linear, (uintptr_t)p, next(*p));
  return change_atomically(p, next);
}

// A counter is looked at now and then while other threads run, and all the time once none can.
namespace {
bool reached(const uint32_t* p, uint32_t n) { return __atomic_load_n(p, __ATOMIC_SEQ_CST) >= n; }
constexpr std::chrono::seconds kPatience{60};
}  // namespace

void look_at_counters() {
  auto& waiters = block->counter_waiters;
  for (size_t i = 0; i < waiters.size();) {
    if (!reached(waiters[i].counter, waiters[i].wanted)) {
      i++;
      continue;
    }
    wake(waiters[i].thread);
    waiters[i] = waiters.back();
    waiters.pop_back();
  }
}

bool await_counters() {
  const size_t waiting = block->counter_waiters.size();
  const auto start = std::chrono::steady_clock::now();
  while (waiting) {
    // in this order: who else ran and is done has arrived wherever it was going to
    const bool alone = block->siblings->running == 1;
    look_at_counters();
    if (block->counter_waiters.size() < waiting) return true;
    if (alone || block->siblings->failed || std::chrono::steady_clock::now() - start > kPatience) break;
    std::this_thread::yield();
  }
  return false;
}

void wait_counter(const uint32_t* p, uint32_t n) {
  check_counter(p, "wait_counter");
  Thread* me = self();
  if (!reached(p, n)) {
    block->counter_waiters.push_back({p, n, me});
    if (block->next_due > block->tick + kLook) block->next_due = block->tick + kLook;
    suspend(State::Counter, "wait_counter", n, 0);
  } else if (block->options.policy != kFixed && (random_bits() & 7) == 0) {
    yield();
  }
  me->unfenced_counter = true;
  if (race_hooks) race_hooks->wait_counter(me->linear, (uintptr_t)p, n);
}
}  // namespace emu
