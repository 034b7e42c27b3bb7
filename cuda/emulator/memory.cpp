// Device memory: each allocation has pages of its own between two guard pages, and lies at their end or at their beginning,
// by the seed, so that a small step out on one side faults; on the other side it reads NaN, and a write is seen when the
// launch ends. In the ASan build the heap of ASan does all that.
#include "memory.h"

#include <sys/mman.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

#include "block.h"

namespace emu {
namespace {
constexpr size_t kPage = 4096, kAlignment = 16;
std::mutex mutex;
std::map<uintptr_t, Allocation> allocations;  // by the start of their pages

size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// One bit of this decides where an allocation lies.
uint64_t mixed(uint64_t seed, uint64_t number) {
  const uint64_t x = (seed * 0x9E3779B97F4A7C15ull) ^ (number * 0xD1B54A32D192ED03ull);
  return (x ^ x >> 29) * 0xBF58476D1CE4E5B9ull >> 40;
}

void add(const Allocation& a) {
  std::lock_guard<std::mutex> lock(mutex);
  allocations[(uintptr_t)a.map] = a;
}

uint8_t* create_for_asan(uint64_t device, size_t bytes) {
  const size_t rounded = round_up(bytes ? bytes : 1, 256);
  uint8_t* user = (uint8_t*)aligned_alloc(256, rounded);
  if (!user) return nullptr;
  memset(user, 0xff, rounded);
  poison(user + bytes, rounded - bytes);
  add({device, user, user, rounded, bytes, nullptr, 0});
  return user;
}

uint8_t* create_between_guards(uint64_t device, size_t bytes) {
  static std::atomic<uint64_t> counter;
  const size_t rounded = round_up(bytes ? bytes : 1, kAlignment), pages = round_up(rounded, kPage);
  const size_t map_bytes = pages + 2 * kPage;
  void* map = mmap(nullptr, map_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (map == MAP_FAILED) return nullptr;
  uint8_t* first = (uint8_t*)map + kPage;
  if (mprotect(first, pages, PROT_READ | PROT_WRITE)) {
    munmap(map, map_bytes);
    return nullptr;
  }
  const bool at_end = options.placement == 1 || (options.placement == 0 && mixed(options.seed, counter++) & 1);
  uint8_t* user = at_end ? first + pages - rounded : first;
  memset(first, 0xff, pages);
  add({device, (uint8_t*)map, user, map_bytes, bytes, nullptr, 0});
  return user;
}

bool all_ff(const uint8_t* from, const uint8_t* to) {
  for (uint64_t eight; to - from >= 8; from += 8) {
    memcpy(&eight, from, 8);
    if (eight != ~0ull) return false;
  }
  for (; from < to; from++)
    if (*from != 0xff) return false;
  return true;
}

std::string beside(const Allocation& a, uintptr_t address) {
  const uintptr_t start = (uintptr_t)a.user, end = start + a.bytes;
  char text[160];
  if (address >= start && address < end) snprintf(text, sizeof text, "byte %zu of a device allocation of %zu bytes", address - start, a.bytes);
  else if (address >= end) snprintf(text, sizeof text, "%zu bytes past the end of a device allocation of %zu bytes", address - end, a.bytes);
  else snprintf(text, sizeof text, "%zu bytes before the start of a device allocation of %zu bytes", start - address, a.bytes);
  return text;
}
}  // namespace

Allocation* find_allocation(uintptr_t address) {
  std::lock_guard<std::mutex> lock(mutex);
  auto after = allocations.upper_bound(address);
  if (after == allocations.begin()) return nullptr;
  Allocation& a = std::prev(after)->second;
  return address < (uintptr_t)a.map + a.map_bytes ? &a : nullptr;
}

std::string describe_address(uintptr_t address) {
  if (const Allocation* a = find_allocation(address)) return beside(*a, address);
  if (block) {
    const uintptr_t offset = address - (uintptr_t)block->shared;
    if (offset < kSharedBytes + kPage || offset + kPage < kPage) return "outside of the block's shared memory";
    if (address - (uintptr_t)block->stacks < block->threads[0].stack_bytes * kMaxThreads) return "the stack of a thread is too small, or its pointer wild";
  }
  return "in no device allocation";
}

std::string check_slack(uint64_t device) {
  if (EMU_ASAN) return "";
  std::lock_guard<std::mutex> lock(mutex);
  for (const auto& [_, a] : allocations) {
    if (a.device != device) continue;
    const uint8_t *first = a.map + kPage, *end = a.map + a.map_bytes - kPage;
    if (!all_ff(first, a.user)) return "bytes before the start of a device allocation of " + std::to_string(a.bytes) + " bytes were written";
    if (!all_ff(a.user + a.bytes, end)) return "bytes past the end of a device allocation of " + std::to_string(a.bytes) + " bytes were written";
  }
  return "";
}
}  // namespace emu

extern "C" uint64_t vlm_emu_alloc(uint64_t device, uint64_t bytes) {
  if (bytes > 1ull << 46) return 0;
  return (uint64_t)(EMU_ASAN ? emu::create_for_asan(device, (size_t)bytes) : emu::create_between_guards(device, (size_t)bytes));
}

extern "C" void vlm_emu_free(uint64_t address) {
  if (!address) return;
  emu::Allocation* a = emu::find_allocation((uintptr_t)address);
  if (!a || (uint64_t)a->user != address) {
    fprintf(stderr, "vlm_emu_free: 0x%llx is no device allocation\n", (unsigned long long)address);
    abort();
  }
  if (a->shadow) munmap(a->shadow, a->shadow_bytes);
  const emu::Allocation gone = *a;
  {
    std::lock_guard<std::mutex> lock(emu::mutex);
    emu::allocations.erase((uintptr_t)gone.map);
  }
  if (EMU_ASAN) {
    emu::unpoison(gone.map, gone.map_bytes);
    free(gone.map);
  } else {
    munmap(gone.map, gone.map_bytes);
  }
}
