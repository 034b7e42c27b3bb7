// The race checker: happens-before, by vector clocks. The kernels of this build are compiled with -fsanitize=thread, which
// calls a function at every load and store; these are the functions, in place of libtsan. A race is found whatever the
// order in which the threads happened to run.
//
// An actor is who reads or writes: a thread, the TMA loads of an mbarrier, the TMA stores of a thread, the wgmmas of a
// warpgroup. An access is ordered after an earlier one if its actor's clock knows the earlier one's time. Barriers, named
// barriers, mbarriers and __syncwarp hand on what threads know, and arrivals at a counter and waits for it (race_device.cpp) do
// so between blocks; shuffles, mma.sync, fences and atomics order nothing. Atomics on one address do not race with each other.
//
// Shared memory is watched in cells of 2 bytes. So is device memory, where accesses of different blocks of one launch race
// unless a counter orders them; addresses outside of an allocation are errors to the byte.
#include <algorithm>
#include <atomic>
#include <cstdio>

#include "block.h"
#include "race_history.h"
#include "source_line.h"

namespace emu {
constinit thread_local History* history;
constinit thread_local const void* place;

// Loops over clocks are a good part of a kernel's time: as vectors they take a fraction of it.
#define OVER_CLOCKS __attribute__((optimize("O3")))

OVER_CLOCKS void join(Clock& into, const Clock& from) {
  if (into.size() < from.size()) into.resize(from.size(), 0);
  uint32_t* to = into.data();
  const uint32_t* of = from.data();
  for (size_t i = 0, n = from.size(); i < n; i++) to[i] = to[i] < of[i] ? of[i] : to[i];
}
std::string at_place() { return place ? source_line(place) : ""; }

namespace {
constexpr uint32_t kInFlight = ~0u;  // the time of a write that has no end yet
constexpr uint32_t kMbarriers = 32, kStores = 32, kWarpgroups = 8;
constexpr uint32_t kPseudo = kMbarriers + kStores + kWarpgroups;
std::atomic<uint32_t> launches;

uint32_t actor_of(std::map<uint32_t, uint32_t>& actors, uint32_t key, uint32_t first, uint32_t count) {
  auto found = actors.find(key);
  if (found == actors.end()) found = actors.emplace(key, first + (uint32_t)actors.size() % count).first;
  return found->second;
}
uint32_t mbarrier_actor(uint32_t m) { return actor_of(history->mbarrier_actors, m, history->n_threads, kMbarriers); }
uint32_t store_actor(uint32_t t) { return actor_of(history->store_actors, t, history->n_threads + kMbarriers, kStores); }
uint32_t wgmma_actor(uint32_t g) { return history->n_threads + kMbarriers + kStores + g; }
uint32_t& pseudo_time(uint32_t actor) { return history->pseudo_time[actor - history->n_threads]; }

std::string name(uint32_t actor) {
  const uint32_t n = history->n_threads;
  if (actor < n) return "thread " + std::to_string(actor);
  if (actor < n + kMbarriers) return "a TMA load";
  if (actor < n + kMbarriers + kStores) return "a TMA store";
  return "wgmma of warpgroup " + std::to_string(actor - n - kMbarriers - kStores);
}

[[noreturn]] void race(const char* what, uint32_t actor, const char* earlier, uint32_t other, uint32_t offset, bool in_flight) {
  fail("race: %s of shared address 0x%x by %s is not ordered after the %s by %s%s%s", what, offset + kSharedBase,
       name(actor).c_str(), earlier, name(other).c_str(), in_flight ? ", which is still under way" : "", at_place().c_str());
}

Cell& cell_at(uint32_t i) {
  Cell& c = history->cells[i];
  if (c.generation != history->generation) c = {history->generation, 0, 0, 0, false, {}, -1};
  return c;
}
void forget_reads(Cell& c) {
  c.n_reads = 0;
  if (c.more_reads >= 0) history->free_spare.push_back(c.more_reads);
  c.more_reads = -1;
}
void remember_read(Cell& c, uint32_t actor, uint32_t time) {
  for (uint32_t i = 0; i < c.n_reads; i++)
    if (c.reads[i].actor == actor) {
      c.reads[i].time = time;
      return;
    }
  if (c.n_reads < 4) {
    c.reads[c.n_reads++] = {(uint16_t)actor, time};
    return;
  }
  History& h = *history;
  if (c.more_reads < 0) {
    if (h.free_spare.empty()) {
      h.free_spare.push_back((int32_t)h.spare.size());
      h.spare.emplace_back();
    }
    c.more_reads = h.free_spare.back();
    h.free_spare.pop_back();
    h.spare[(size_t)c.more_reads].assign(h.width, 0);
  }
  h.spare[(size_t)c.more_reads][actor] = time;
}

void check_write(const Cell& c, uint32_t actor, const Clock& knows, uint32_t i, const char* what) {
  const bool in_flight = c.write_time == kInFlight;
  if (c.write_time && (in_flight || knows[c.writer] < c.write_time)) race(what, actor, "write", c.writer, i * 2, in_flight);
}
void check_reads(const Cell& c, uint32_t actor, const Clock& knows, uint32_t i, const char* what) {
  for (uint32_t r = 0; r < c.n_reads; r++)
    if (knows[c.reads[r].actor] < c.reads[r].time) race(what, actor, "read", c.reads[r].actor, i * 2, false);
  if (c.more_reads < 0) return;
  const Clock& reads = history->spare[(size_t)c.more_reads];
  for (uint32_t a = 0; a < history->width; a++)
    if (knows[a] < reads[a]) race(what, actor, "read", a, i * 2, false);
}
void check_atomics(uint32_t actor, const Clock& knows, uint32_t i, const char* what) {
  const Clock& times = history->shared_atomics[i >> 1];
  for (uint32_t t = 0; t < times.size(); t++)
    if (knows[t] < times[t]) race(what, actor, "atomic", t, i * 2, false);
}

// One access by `actor` at `time`, who knows what `knows` says.
void access(uint32_t actor, const Clock& knows, uint32_t time, uint32_t offset, uint32_t bytes, bool write, const char* what) {
  for (uint32_t i = offset >> 1, end = (offset + bytes + 1) >> 1; i < end; i++) {
    Cell& c = cell_at(i);
    check_write(c, actor, knows, i, what);
    if (c.by_atomics) check_atomics(actor, knows, i, what);
    if (!write) {
      remember_read(c, actor, time);
      continue;
    }
    check_reads(c, actor, knows, i, what);
    forget_reads(c);
    c.by_atomics = false;
    c.writer = (uint16_t)actor;
    c.write_time = time;
  }
}
// The end of a write that was in flight.
void settle(uint32_t actor, uint32_t time, uint32_t offset, uint32_t bytes) {
  for (uint32_t i = offset >> 1, end = (offset + bytes + 1) >> 1; i < end; i++) {
    Cell& c = cell_at(i);
    c.writer = (uint16_t)actor;
    c.write_time = time;
  }
}

// ---- the hooks ----

void launch_begin() {
  if (!history) history = new History();
  history->launch = ++launches;
  device_launch_begin();
}

void block_begin(const Block* b) {
  place = nullptr;
  History& h = *history;
  h.n_threads = (uint32_t)b->n_threads;
  h.width = h.n_threads + kPseudo;
  h.block_number = b->index.x + launch_shape.grid.x * (b->index.y + launch_shape.grid.y * b->index.z);
  h.known.resize(h.n_threads);
  for (uint32_t t = 0; t < h.n_threads; t++) {
    h.known[t].own.assign(h.width, 0);
    h.known[t].own[t] = 1;
    h.known[t].others = nullptr;
  }
  h.pseudo_time.assign(kPseudo, 0);
  h.barriers.clear();
  h.arriving.clear();
  h.completed.clear();
  h.shared_atomics.clear();
  h.mbarrier_actors.clear();
  h.store_actors.clear();
  h.cells.resize(kSharedBytes / 2);
  h.generation++;
  h.spare.clear();
  h.free_spare.clear();
}

void shared_access(uint32_t t, uint32_t offset, uint32_t bytes, bool write, const char* what) {
  const Clock& knows = history->known[t].own;
  access(t, knows, knows[t], offset, bytes, write, what);
}

void barrier_arrive(uint32_t id, uint32_t t) {
  join(history->barriers[id], history->known[t]);
  history->known[t].own[t]++;
}
void barrier_release(uint32_t id, uint32_t t) { join(history->known[t], history->barriers[id]); }
void barrier_done(uint32_t id) {
  Knowledge& all = history->barriers[id];
  all.own.clear();
  all.others = nullptr;
}

void syncwarp(uint32_t warp, uint32_t lanes) {
  Knowledge all;
  for (uint32_t l = 0; l < 32; l++)
    if (lanes >> l & 1) join(all, history->known[warp * 32 + l]);
  for (uint32_t l = 0; l < 32; l++) {
    if (!(lanes >> l & 1)) continue;
    Knowledge& k = history->known[warp * 32 + l];
    join(k, all);
    k.own[warp * 32 + l]++;
  }
}

// A relaxed atomic orders nothing, and is in the way of no other atomic.
void atomic(uint32_t t, uintptr_t address) {
  const uintptr_t offset = address - (uintptr_t)block->shared;
  if (offset >= kSharedBytes) return device_atomic(t, address);
  const Clock& knows = history->known[t].own;
  for (uint32_t i = (uint32_t)offset >> 1, end = i + 2; i < end; i++) {
    Cell& c = cell_at(i);
    check_write(c, t, knows, i, "an atomic");
    check_reads(c, t, knows, i, "an atomic");
    c.by_atomics = true;
  }
  Clock& times = history->shared_atomics[(uint32_t)offset >> 2];
  if (times.size() <= t) times.resize(t + 1, 0);
  times[t] = knows[t];
}

void copy_issued(uint32_t t, uint32_t offset, uint32_t bytes) {
  access(t, history->known[t].own, kInFlight, offset, bytes, true, "cp.async");
}
void copy_done(uint32_t t, uint32_t offset, uint32_t bytes) { settle(t, history->known[t].own[t], offset, bytes); }

void load_issued(uint32_t t, uint32_t offset, uint32_t bytes, uint32_t m) {
  access(mbarrier_actor(m), history->known[t].own, kInFlight, offset, bytes, true, "a write");
}
void load_done(uint32_t offset, uint32_t bytes, uint32_t m) {
  const uint32_t actor = mbarrier_actor(m), time = ++pseudo_time(actor);
  settle(actor, time, offset, bytes);
  Clock& c = history->arriving[m].own;
  c.resize(history->width, 0);
  c[actor] = time;
}

// The time of a thread's stores is the number of their group.
void store_issued(uint32_t t, uint32_t group, uint32_t offset, uint32_t bytes) {
  access(store_actor(t), history->known[t].own, group + 1, offset, bytes, false, "a read");
}
void store_read(uint32_t t, uint32_t groups) {
  uint32_t& known = history->known[t].own[store_actor(t)];
  known = std::max(known, groups);
}

void mbarrier_arrive(uint32_t m, uint32_t t) {
  join(history->arriving[m], history->known[t]);
  history->known[t].own[t]++;
}
void mbarrier_phase(uint32_t m) { history->completed[m] = history->arriving[m]; }
void mbarrier_wait(uint32_t m, uint32_t t) { join(history->known[t], history->completed[m]); }

// All 128 threads must know of the writes that a wgmma reads.
OVER_CLOCKS void wgmma_begin(uint32_t g) {
  History& h = *history;
  h.warpgroup_knows = h.known[g * 128].own;
  uint32_t* all = h.warpgroup_knows.data();
  for (uint32_t t = g * 128 + 1; t < g * 128 + 128; t++) {
    const uint32_t* of = h.known[t].own.data();
    for (uint32_t a = 0, n = h.width; a < n; a++) all[a] = all[a] < of[a] ? all[a] : of[a];
  }
}
void wgmma_read(uint32_t g, uint32_t offset, uint32_t bytes) {
  const uint32_t actor = wgmma_actor(g);
  access(actor, history->warpgroup_knows, pseudo_time(actor) + 1, offset, bytes, false, "a read");
}
void wgmma_done(uint32_t g, uint32_t t) {
  const uint32_t actor = wgmma_actor(g);
  uint32_t& known = history->known[t].own[actor];
  if (known <= pseudo_time(actor)) known = ++pseudo_time(actor);
}

constexpr RaceHooks kHooks = {
    launch_begin,    block_begin,    shared_access, device_access,     barrier_arrive, barrier_release,
    barrier_done,    syncwarp,       atomic,        arrive_at_counter, wait_for_counter, copy_issued,
    copy_done,       load_issued,    load_done,     store_issued,      store_read,       mbarrier_arrive,
    mbarrier_phase,  mbarrier_wait,  wgmma_begin,   wgmma_read,        wgmma_done,
};

// A load or store of the kernel's own code.
void plain_access(const void* p, size_t bytes, bool write, const void* from) {
  if (!block || !current) return;
  const Thread* me = self();
  const uintptr_t address = (uintptr_t)p;
  if (address - (uintptr_t)me->stack < me->stack_bytes) return;
  place = from;
  const char* what = write ? "a write" : "a read";
  const uintptr_t offset = address - (uintptr_t)block->shared;
  if (offset < kSharedBytes) {
    if (!in_shared_array((uint32_t)offset, (uint32_t)bytes)) {
      const std::string line = source_line(from);
      fail("%s of %zu bytes at shared address 0x%zx, outside of the block's shared arrays%s", what, bytes, (size_t)offset + kSharedBase, line.c_str());
    }
    shared_access(me->linear, (uint32_t)offset, (uint32_t)bytes, write, what);
    if (write) mark_unfenced((uint32_t)offset, (uint32_t)bytes, me);
  } else if (address - (uintptr_t)block->stacks < (me->stack_bytes + 4096) * kMaxThreads) {
    fail("%s through a pointer to a variable of another thread%s", what, source_line(from).c_str());
  } else {
    device_access(me->linear, address, bytes, write, what);
  }
  place = nullptr;
}
}  // namespace

const RaceHooks* const race_hooks = &kHooks;
}  // namespace emu

#define HERE __builtin_return_address(0)
#define ACCESSES(n)                                                                                  \
  void __tsan_read##n(void* p) { emu::plain_access(p, n, false, HERE); }                             \
  void __tsan_write##n(void* p) { emu::plain_access(p, n, true, HERE); }                             \
  void __tsan_unaligned_read##n(void* p) { emu::plain_access(p, n, false, HERE); }                   \
  void __tsan_unaligned_write##n(void* p) { emu::plain_access(p, n, true, HERE); }                   \
  void __tsan_volatile_read##n(void* p) { emu::plain_access(p, n, false, HERE); }                    \
  void __tsan_volatile_write##n(void* p) { emu::plain_access(p, n, true, HERE); }
extern "C" {
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* p, size_t n) { emu::plain_access(p, n, false, HERE); }
void __tsan_write_range(void* p, size_t n) { emu::plain_access(p, n, true, HERE); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}
