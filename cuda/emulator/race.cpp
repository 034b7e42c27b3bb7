// The race checker: happens-before, by vector clocks. The kernels of this build are compiled with -fsanitize=thread, which
// calls a function at every load and store; these are the functions, in place of libtsan. A race is found whatever the
// order in which the threads happened to run.
//
// An actor is who reads or writes: a thread, the TMA loads of an mbarrier, the TMA stores of a thread, the wgmmas of a
// warpgroup. An access is ordered after an earlier one if its actor's clock knows the earlier one's time. Barriers, named
// barriers, mbarriers, __syncwarp and atomics hand on what threads know; shuffles and mma.sync order nothing.
//
// Shared memory is watched in cells of 2 bytes. So is device memory, where accesses of different blocks of one launch race
// unless atomics order the blocks; addresses outside of an allocation are errors to the byte.
#include "race.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <map>
#include <set>
#include <vector>

#include "block.h"
#include "memory.h"
#include "source_line.h"

namespace emu {
namespace {
using Clock = std::vector<uint32_t>;
constexpr uint32_t kInFlight = ~0u;  // the time of a write that has no end yet
constexpr uint32_t kMbarriers = 32, kStores = 32, kWarpgroups = 8;
constexpr uint32_t kPseudo = kMbarriers + kStores + kWarpgroups;

struct Read {
  uint16_t actor;
  uint32_t time;
};
struct Cell {
  uint32_t generation, write_time;
  uint16_t writer, n_reads;
  Read reads[4];
  int32_t more_reads;  // a clock in `spare`, -1 where four are enough
};

// A cell of device memory keeps one reader: the second of another block or thread makes it Many.
constexpr uint32_t kNobody = ~0u, kMany = ~0u - 1;
struct DeviceCell {
  uint32_t launch, write_block, write_time, read_block, read_time;
  uint32_t writer, reader;
};

// What is known of the block that runs now; one per thread of the operating system.
struct History {
  uint32_t n_threads, width, generation = 0, block_number, launch;
  std::vector<Clock> known;              // per thread
  Clock pseudo_time;                     // of actors that are no threads
  std::map<uint32_t, Clock> barriers, arriving, completed;
  std::map<uintptr_t, Clock> atomics;
  std::map<uint32_t, uint32_t> mbarrier_actors, store_actors;
  Clock warpgroup_knows;
  std::vector<Cell> cells;
  std::vector<Clock> spare;
  std::vector<int32_t> free_spare;
  // Blocks that came before by atomics on the same address, over the launch.
  std::map<uintptr_t, std::set<uint32_t>> atomic_blocks;
  std::map<uint32_t, std::set<uint32_t>> before;
  Allocation* recent = nullptr;
};
thread_local History* history;
std::atomic<uint32_t> launches;
thread_local const void* place;  // in the kernel's code

void join(Clock& into, const Clock& from) {
  if (into.size() < from.size()) into.resize(from.size(), 0);
  for (size_t i = 0; i < from.size(); i++)
    if (into[i] < from[i]) into[i] = from[i];
}

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
  const std::string line = place ? source_line(place) : "";
  fail("race: %s of shared address 0x%x by %s is not ordered after the %s by %s%s%s", what, offset + kSharedBase,
       name(actor).c_str(), earlier, name(other).c_str(), in_flight ? ", which is still under way" : "", line.c_str());
}

Cell& cell_at(uint32_t i) {
  Cell& c = history->cells[i];
  if (c.generation != history->generation) c = {history->generation, 0, 0, 0, {}, -1};
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

// One access by `actor` at `time`, who knows what `knows` says.
void access(uint32_t actor, const Clock& knows, uint32_t time, uint32_t offset, uint32_t bytes, bool write, const char* what) {
  for (uint32_t i = offset >> 1, end = (offset + bytes + 1) >> 1; i < end; i++) {
    Cell& c = cell_at(i);
    const bool in_flight = c.write_time == kInFlight;
    if (c.write_time && (in_flight || knows[c.writer] < c.write_time)) race(what, actor, "write", c.writer, i * 2, in_flight);
    if (!write) {
      remember_read(c, actor, time);
      continue;
    }
    for (uint32_t r = 0; r < c.n_reads; r++)
      if (knows[c.reads[r].actor] < c.reads[r].time) race(what, actor, "read", c.reads[r].actor, i * 2, false);
    if (c.more_reads >= 0) {
      const Clock& reads = history->spare[(size_t)c.more_reads];
      for (uint32_t a = 0; a < history->width; a++)
        if (knows[a] < reads[a]) race(what, actor, "read", a, i * 2, false);
    }
    forget_reads(c);
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

// ---- device memory ----

Allocation* allocation_at(uintptr_t address) {
  Allocation* a = history->recent;
  if (a && address >= (uintptr_t)a->map && address < (uintptr_t)a->map + a->map_bytes) return a;
  a = find_allocation(address);
  if (a) history->recent = a;
  return a;
}

DeviceCell* cells_of(Allocation* a) {
  if (!a->shadow) {
    a->shadow_bytes = (a->bytes / 2 + 2) * sizeof(DeviceCell);
    void* p = mmap(nullptr, a->shadow_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) fail("the race checker has no memory to watch a device allocation of %zu bytes", a->bytes);
    a->shadow = (uint8_t*)p;
  }
  return (DeviceCell*)a->shadow;
}

bool block_before(uint32_t other) {
  const auto found = history->before.find(history->block_number);
  return found != history->before.end() && (other == kMany || found->second.count(other));
}

[[noreturn]] void device_race(const char* what, const Allocation& a, size_t at, const char* earlier, uint32_t other_block, uint32_t other_thread) {
  std::string who = other_block == kMany ? "other blocks" : "block " + std::to_string(other_block);
  if (other_block == history->block_number) who = "thread " + std::to_string(other_thread) + " of the same block";
  const std::string line = place ? source_line(place) : "";
  fail("race: %s of byte %zu of a device allocation of %zu bytes is not ordered after the %s by %s%s", what, at, a.bytes, earlier,
       who.c_str(), line.c_str());
}

void device_cell(DeviceCell& c, uint32_t thread, bool write, const char* what, const Allocation& a, size_t at) {
  History& h = *history;
  const Clock& knows = h.known[thread];
  const uint32_t now = h.block_number;
  if (c.launch != h.launch) c = {h.launch, kNobody, 0, kNobody, 0, 0, 0};
  auto unordered = [&](uint32_t other_block, uint32_t other, uint32_t time) {
    if (other_block == kNobody) return false;
    if (other_block != now) return !block_before(other_block);
    return other != kMany && knows[other] < time;
  };
  if (unordered(c.write_block, c.writer, c.write_time)) device_race(what, a, at, "write", c.write_block, c.writer);
  if (write) {
    if (unordered(c.read_block, c.reader, c.read_time)) device_race(what, a, at, "read", c.read_block, c.reader);
    c = {h.launch, now, knows[thread], kNobody, 0, thread, 0};
  } else if (c.read_block == kNobody || (c.read_block == now && c.reader == thread)) {
    c.read_block = now;
    c.reader = thread;
    c.read_time = knows[thread];
  } else if (c.read_block == now) {
    c.reader = kMany;
  } else {
    c.read_block = kMany;
  }
}

// ---- the hooks ----

void launch_begin() {
  if (!history) history = new History();
  history->launch = ++launches;
  history->recent = nullptr;
  history->atomic_blocks.clear();
  history->before.clear();
}

void block_begin(const Block* b) {
  place = nullptr;
  History& h = *history;
  h.n_threads = (uint32_t)b->n_threads;
  h.width = h.n_threads + kPseudo;
  h.block_number = b->index.x + launch_shape.grid.x * (b->index.y + launch_shape.grid.y * b->index.z);
  h.known.resize(h.n_threads);
  for (uint32_t t = 0; t < h.n_threads; t++) {
    h.known[t].assign(h.width, 0);
    h.known[t][t] = 1;
  }
  h.pseudo_time.assign(kPseudo, 0);
  h.barriers.clear();
  h.arriving.clear();
  h.completed.clear();
  h.atomics.clear();
  h.mbarrier_actors.clear();
  h.store_actors.clear();
  h.cells.resize(kSharedBytes / 2);
  h.generation++;
  h.spare.clear();
  h.free_spare.clear();
}

void shared_access(uint32_t t, uint32_t offset, uint32_t bytes, bool write, const char* what) {
  const Clock& knows = history->known[t];
  access(t, knows, knows[t], offset, bytes, write, what);
}

void device_access(uint32_t thread, uintptr_t address, size_t bytes, bool write, const char* what) {
  Allocation* a = allocation_at(address);
  if (!a) return;  // a constant, or the argument
  const uintptr_t start = (uintptr_t)a->user;
  if (address < start || address + bytes > start + a->bytes) {
    const std::string line = place ? source_line(place) : "";
    fail("%s of %zu bytes: %s%s", what, bytes, describe_address(address < start ? address : std::max(address, start + a->bytes)).c_str(), line.c_str());
  }
  if (bytes < 2) return;
  DeviceCell* cells = cells_of(a);
  for (size_t i = (address - start) / 2, end = (address - start + bytes + 1) / 2; i < end; i++)
    device_cell(cells[i], thread, write, what, *a, i * 2);
}

void barrier_arrive(uint32_t id, uint32_t t) {
  join(history->barriers[id], history->known[t]);
  history->known[t][t]++;
}
void barrier_release(uint32_t id, uint32_t t) { join(history->known[t], history->barriers[id]); }
void barrier_done(uint32_t id) { history->barriers[id].clear(); }

void syncwarp(uint32_t warp, uint32_t lanes) {
  Clock all;
  for (uint32_t l = 0; l < 32; l++)
    if (lanes >> l & 1) join(all, history->known[warp * 32 + l]);
  for (uint32_t l = 0; l < 32; l++) {
    if (!(lanes >> l & 1)) continue;
    Clock& k = history->known[warp * 32 + l];
    join(k, all);
    k[warp * 32 + l]++;
  }
}

// An atomic is a write that comes after all atomics on its address before it, and hands on what its thread knows.
void atomic(uint32_t t, uintptr_t address) {
  History& h = *history;
  join(h.known[t], h.atomics[address]);
  std::set<uint32_t>&on_address = h.atomic_blocks[address], &before = h.before[h.block_number];
  before.insert(on_address.begin(), on_address.end());
  on_address.insert(before.begin(), before.end());
  on_address.insert(h.block_number);
  const uintptr_t offset = address - (uintptr_t)block->shared;
  if (offset < kSharedBytes) shared_access(t, (uint32_t)offset, 4, true, "an atomic write");
  else device_access(t, address, 4, true, "an atomic write");
  join(h.atomics[address], h.known[t]);
  h.known[t][t]++;
}

void copy_issued(uint32_t t, uint32_t offset, uint32_t bytes) {
  access(t, history->known[t], kInFlight, offset, bytes, true, "cp.async");
}
void copy_done(uint32_t t, uint32_t offset, uint32_t bytes) { settle(t, history->known[t][t], offset, bytes); }

void load_issued(uint32_t t, uint32_t offset, uint32_t bytes, uint32_t m) {
  access(mbarrier_actor(m), history->known[t], kInFlight, offset, bytes, true, "a write");
}
void load_done(uint32_t offset, uint32_t bytes, uint32_t m) {
  const uint32_t actor = mbarrier_actor(m), time = ++pseudo_time(actor);
  settle(actor, time, offset, bytes);
  Clock& c = history->arriving[m];
  c.resize(history->width, 0);
  c[actor] = time;
}

// The time of a thread's stores is the number of their group.
void store_issued(uint32_t t, uint32_t group, uint32_t offset, uint32_t bytes) {
  access(store_actor(t), history->known[t], group + 1, offset, bytes, false, "a read");
}
void store_read(uint32_t t, uint32_t groups) {
  uint32_t& known = history->known[t][store_actor(t)];
  known = std::max(known, groups);
}

void mbarrier_arrive(uint32_t m, uint32_t t) {
  join(history->arriving[m], history->known[t]);
  history->known[t][t]++;
}
void mbarrier_phase(uint32_t m) { history->completed[m] = history->arriving[m]; }
void mbarrier_wait(uint32_t m, uint32_t t) { join(history->known[t], history->completed[m]); }

// All 128 threads must know of the writes that a wgmma reads.
void wgmma_begin(uint32_t g) {
  Clock& all = history->warpgroup_knows;
  all = history->known[g * 128];
  for (uint32_t t = g * 128 + 1; t < g * 128 + 128; t++)
    for (uint32_t a = 0; a < history->width; a++) all[a] = std::min(all[a], history->known[t][a]);
}
void wgmma_read(uint32_t g, uint32_t offset, uint32_t bytes) {
  const uint32_t actor = wgmma_actor(g);
  access(actor, history->warpgroup_knows, pseudo_time(actor) + 1, offset, bytes, false, "a read");
}
void wgmma_done(uint32_t g, uint32_t t) {
  const uint32_t actor = wgmma_actor(g);
  uint32_t& known = history->known[t][actor];
  if (known <= pseudo_time(actor)) known = ++pseudo_time(actor);
}

constexpr RaceHooks kHooks = {launch_begin,    block_begin,     shared_access,  device_access, barrier_arrive, barrier_release,
                              barrier_done,    syncwarp,        atomic,         copy_issued,   copy_done,      load_issued,
                              load_done,       store_issued,    store_read,     mbarrier_arrive, mbarrier_phase, mbarrier_wait,
                              wgmma_begin,     wgmma_read,      wgmma_done};

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
