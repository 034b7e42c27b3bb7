// The race checker's device memory. Accesses of different blocks of one launch race, unless arrivals at a counter order them:
// an arrival, like a wait, takes over what all who arrived there before it knew, and leaves what its own thread knows by then. That is
// its block's clock, as far as barriers told the thread, and what it has taken over itself. The threads that a barrier
// then lets go on with it know the same.
//
// Blocks run one after the other here, but an order that nothing but the scheduler made counts for nothing: it is the
// clocks that say who knows of whom. A cell keeps its last write, the atomics since then, and one read.
#include <sys/mman.h>

#include <algorithm>

#include "block.h"
#include "memory.h"
#include "race_history.h"

namespace emu {
namespace {
// Of several reads that do not know of each other a cell keeps the first.
constexpr uint32_t kNobody = ~0u;
struct DeviceCell {
  uint32_t launch, write_block, write_time, read_block, read_time;
  uint16_t writer, reader;
  bool by_atomics;  // since the write; their times are in `device_atomics`
};

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
DeviceCell& cell_at(DeviceCell* cells, size_t i) {
  DeviceCell& c = cells[i];
  if (c.launch != history->launch) c = {history->launch, kNobody, 0, kNobody, 0, 0, 0, false};
  return c;
}

const Clock* clock_of(const Others& others, uint32_t block_number) {
  if (!others) return nullptr;
  const auto found = std::lower_bound(others->begin(), others->end(), block_number, [](const auto& a, uint32_t b) { return a.first < b; });
  return found != others->end() && found->first == block_number ? found->second.get() : nullptr;
}

// Whether a thread of the running block knows what thread `other` of a block did at `time`.
bool knows_of(const Knowledge& knows, uint32_t of_block, uint32_t other, uint32_t time) {
  if (of_block == kNobody) return true;
  if (of_block == history->block_number) return knows.own[other] >= time;
  const Clock* clock = clock_of(knows.others, of_block);
  return clock && (*clock)[other] >= time;
}

bool covers(const Clock& a, const Clock& b) {
  for (size_t i = 0; i < b.size(); i++)
    if (a[i] < b[i]) return false;
  return true;
}

// What both know; one of the two where the other adds nothing.
Others merged(const Others& a, const Others& b) {
  if (!a || a == b) return b;
  if (!b) return a;
  History& h = *history;
  if ((h.merge_of[0] == a && h.merge_of[1] == b) || (h.merge_of[0] == b && h.merge_of[1] == a)) return h.merge_is;
  bool a_is_all = true, b_is_all = true;
  auto all = std::make_shared<std::vector<std::pair<uint32_t, std::shared_ptr<const Clock>>>>();
  auto from_a = a->begin(), from_b = b->begin();
  while (from_a != a->end() || from_b != b->end()) {
    if (from_b == b->end() || (from_a != a->end() && from_a->first < from_b->first)) {
      b_is_all = false;
      all->push_back(*from_a++);
      continue;
    }
    if (from_a == a->end() || from_b->first < from_a->first) {
      a_is_all = false;
      all->push_back(*from_b++);
      continue;
    }
    const auto &of_a = from_a->second, &of_b = from_b->second;
    const bool same = of_a == of_b, a_covers = same || covers(*of_a, *of_b), b_covers = same || covers(*of_b, *of_a);
    a_is_all &= a_covers;
    b_is_all &= b_covers;
    if (a_covers || b_covers) {
      all->push_back(a_covers ? *from_a : *from_b);
    } else {
      auto both = std::make_shared<Clock>(*of_a);
      join(*both, *of_b);
      all->emplace_back(from_a->first, std::move(both));
    }
    ++from_a;
    ++from_b;
  }
  h.merge_of[0] = a;
  h.merge_of[1] = b;
  h.merge_is = a_is_all ? a : b_is_all ? b : std::move(all);
  return h.merge_is;
}

[[noreturn]] void device_race(const char* what, const Allocation& a, size_t at, const char* earlier, uint32_t other_block, uint32_t other_thread) {
  std::string who = "block " + std::to_string(other_block);
  if (other_block == history->block_number) who = "thread " + std::to_string(other_thread) + " of the same block";
  fail("race: %s of byte %zu of a device allocation of %zu bytes is not ordered after the %s by %s%s", what, at, a.bytes, earlier,
       who.c_str(), at_place().c_str());
}

void check_write(const DeviceCell& c, const Knowledge& knows, const char* what, const Allocation& a, size_t at) {
  if (!knows_of(knows, c.write_block, c.writer, c.write_time)) device_race(what, a, at, "write", c.write_block, c.writer);
}
void check_read(const DeviceCell& c, const Knowledge& knows, const char* what, const Allocation& a, size_t at) {
  if (!knows_of(knows, c.read_block, c.reader, c.read_time)) device_race(what, a, at, "read", c.read_block, c.reader);
}
void check_atomics(const Knowledge& knows, const char* what, const Allocation& a, size_t at) {
  for (const auto& [of_block, times] : history->device_atomics[((uintptr_t)a.user + at) & ~(uintptr_t)3])
    for (uint32_t t = 0; t < times.size(); t++)
      if (times[t] && !knows_of(knows, of_block, t, times[t])) device_race(what, a, at, "atomic", of_block, t);
}

void device_cell(DeviceCell& c, uint32_t thread, bool write, const char* what, const Allocation& a, size_t at) {
  History& h = *history;
  const Knowledge& knows = h.known[thread];
  check_write(c, knows, what, a, at);
  if (c.by_atomics) check_atomics(knows, what, a, at);
  if (write) {
    check_read(c, knows, what, a, at);
    c = {h.launch, h.block_number, knows.own[thread], kNobody, 0, (uint16_t)thread, 0, false};
  } else if (knows_of(knows, c.read_block, c.reader, c.read_time)) {
    c.read_block = h.block_number;
    c.reader = (uint16_t)thread;
    c.read_time = knows.own[thread];
  }
}

// The allocation that holds these bytes; null where they are a constant's or the argument's.
Allocation* watched(uintptr_t address, size_t bytes, const char* what) {
  Allocation* a = allocation_at(address);
  if (!a) return nullptr;
  const uintptr_t start = (uintptr_t)a->user;
  if (address < start || address + bytes > start + a->bytes)
    fail("%s of %zu bytes: %s%s", what, bytes, describe_address(address < start ? address : std::max(address, start + a->bytes)).c_str(),
         at_place().c_str());
  return a;
}
}  // namespace

void join(Knowledge& into, const Knowledge& from) {
  join(into.own, from.own);
  if (from.others && from.others != into.others) into.others = merged(into.others, from.others);
}

void device_launch_begin() {
  History& h = *history;
  h.recent = nullptr;
  h.device_atomics.clear();
  h.counters.clear();
  h.merge_of[0] = h.merge_of[1] = h.merge_is = nullptr;
}

void device_access(uint32_t thread, uintptr_t address, size_t bytes, bool write, const char* what) {
  Allocation* a = watched(address, bytes, what);
  if (!a || bytes < 2) return;
  DeviceCell* cells = cells_of(a);
  const uintptr_t start = (uintptr_t)a->user;
  for (size_t i = (address - start) / 2, end = (address - start + bytes + 1) / 2; i < end; i++)
    device_cell(cell_at(cells, i), thread, write, what, *a, i * 2);
}

// Orders nothing, and is in the way of no other atomic.
void device_atomic(uint32_t thread, uintptr_t address) {
  History& h = *history;
  Allocation* a = watched(address, 4, "an atomic");
  if (!a) return;
  const Knowledge& knows = h.known[thread];
  const size_t first = (address - (uintptr_t)a->user) / 2;
  for (size_t i = first; i < first + 2; i++) {
    DeviceCell& c = cell_at(cells_of(a), i);
    check_write(c, knows, "an atomic", *a, i * 2);
    check_read(c, knows, "an atomic", *a, i * 2);
    c.by_atomics = true;
  }
  auto& blocks = h.device_atomics[address];
  if (blocks.empty() || blocks.back().first != h.block_number) blocks.emplace_back(h.block_number, Clock());
  Clock& times = blocks.back().second;
  if (times.size() <= thread) times.resize(thread + 1, 0);
  times[thread] = knows.own[thread];
}

// Who waits for a value knows of those who arrived until then, and nothing of later ones.
void wait_for_counter(uint32_t thread, uintptr_t address, uint32_t wanted) {
  const auto& of = history->counters[address];
  if (of.empty()) return;
  const Others& then = of[std::min((size_t)wanted, of.size() - 1)];
  Knowledge& knows = history->known[thread];
  knows.others = merged(knows.others, then);
  if (const Clock* of_own_block = clock_of(then, history->block_number)) join(knows.own, *of_own_block);
}

void arrive_at_counter(uint32_t thread, uintptr_t address, uint32_t becomes) {
  device_atomic(thread, address);
  wait_for_counter(thread, address, ~0u);
  History& h = *history;
  Knowledge& knows = h.known[thread];
  auto own = std::make_shared<std::vector<std::pair<uint32_t, std::shared_ptr<const Clock>>>>();
  own->emplace_back(h.block_number, std::make_shared<Clock>(knows.own));
  auto& of = h.counters[address];
  if (becomes == 0) of.clear();
  if (becomes > 0 && of.empty()) of.push_back(nullptr);
  of.push_back(merged(knows.others, own));
  knows.own[thread]++;
}
}  // namespace emu
